"""Where a layer speaks for a score: Grad-CAM, guided Grad-CAM (Selvaraju 2017), and activation maps.

A layer's grid is coarser than the image's; it is taken to span the same box, and its maps are interpolated onto the
image's grid.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from ..errors import BadInput
from .layers import activations, observed
from .rules import guided_backpropagation
from .scoring import require_evaluation, require_image, scored
from .targets import Target, held

Interpolation = Literal["linear", "nearest"]

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def grad_cam(
    network: nn.Module,
    image: torch.Tensor,
    target: Target,
    layer: str,
    *,
    interpolation: Interpolation = "linear",
    rectify: bool = True,
) -> torch.Tensor:
    """A layer's channels, each weighted by the mean of its gradient, summed (Selvaraju 2017, equations 1 and 2).

    Args:
        network: in evaluation mode.
        image: (N, C, *shape), float32 or float64.
        target: what is explained, see :mod:`MLILib.explanation.targets`.
        layer: its name; it runs once, and its output is (N, channels, *shape of the layer).
        interpolation: from the layer's grid to the image's.
        rectify: keep what speaks for the score, as published; otherwise also what speaks against it, below 0.

    Returns:
        (N, 1, *shape).

    Raises:
        BadInput: there is no such layer, it does not run once, its output has no places, or the score does not depend
            on it; the target does not fit the output.
    """
    require_evaluation(network)
    require_image(image)
    target = held(target, network, image)
    # a leaf with a gradient, because the network's own parameters may have none
    leaf = image.detach().as_subclass(torch.Tensor).clone().requires_grad_()
    with observed(network, layer) as found, torch.enable_grad():
        output = network(leaf.clone())
        kept = found.output()
        _require_places(kept, layer, image)
        score = scored(target, output, len(image)).sum()
        slope = None
        if score.requires_grad and kept.requires_grad:
            (slope,) = torch.autograd.grad(score, kept, allow_unused=True)
    if slope is None:
        raise BadInput(f"The score does not depend on the layer {layer!r}.",
                       "Either it lies on another branch, or a step after it has no gradient.",
                       "Choose another layer.")  # fmt: skip
    weights = slope.flatten(2).mean(2).reshape(*slope.shape[:2], *(1,) * (slope.ndim - 2))
    total = (weights * kept.detach()).sum(1, keepdim=True)
    if rectify:
        total = total.relu()
    return _onto(total, image, interpolation)


def guided_grad_cam(
    network: nn.Module,
    image: torch.Tensor,
    target: Target,
    layer: str,
    *,
    interpolation: Interpolation = "linear",
) -> torch.Tensor:
    """Guided backpropagation times :func:`grad_cam` (Selvaraju 2017, section 3.2): fine, and for one class.

    Args as :func:`grad_cam`.

    Returns:
        (N, C, *shape), signed.

    Raises:
        BadInput: as :func:`grad_cam` and :func:`MLILib.explanation.rules.guided_backpropagation`.
    """
    coarse = grad_cam(network, image, target, layer, interpolation=interpolation)
    return guided_backpropagation(network, image, target) * coarse


def activation_maps(
    network: nn.Module, image: torch.Tensor, layer: str, *, interpolation: Interpolation = "linear"
) -> torch.Tensor:
    """The channels of a layer, on the image's grid.

    Args:
        network: in evaluation mode.
        image: (N, C, *shape).
        layer: its name; it runs once, and its output is (N, channels, *shape of the layer).
        interpolation: from the layer's grid to the image's.

    Returns:
        (N, channels, *shape).

    Raises:
        BadInput: there is no such layer, it does not run once, or its output has no places.
    """
    found = activations(network, image, layer)
    _require_places(found, layer, image)
    return _onto(found, image, interpolation)


def _require_places(output: torch.Tensor, layer: str, image: torch.Tensor) -> None:
    if output.ndim != image.ndim or len(output) != len(image):
        raise BadInput(f"The output of the layer {layer!r} has shape {tuple(output.shape)}: it is no image.", "",
                       f"Choose a layer whose output has {image.ndim - 2} axes beside images and channels, "
                       "such as a convolution.")  # fmt: skip


def _onto(maps: torch.Tensor, image: torch.Tensor, interpolation: Interpolation) -> torch.Tensor:
    shape = image.shape[2:]
    if maps.shape[2:] == shape:
        return maps
    if interpolation == "nearest":
        return functional.interpolate(maps, size=shape, mode="nearest")
    return functional.interpolate(maps, size=shape, mode=_LINEAR[len(shape)], align_corners=False)

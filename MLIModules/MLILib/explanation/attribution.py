"""A map by the method's name: one function for all that explain a target on one window.

What the methods are is in the files that they come from; here is only which settings each takes.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from ..progress import Progress
from .ablation import ablate_channels, ablate_feature_maps, ablate_regions
from .cam import activation_maps, grad_cam, guided_grad_cam
from .fill import filled
from .gradients import gradient, gradient_times_input, integrated_gradients, smoothgrad
from .occlusion import occlusion
from .rules import deconvnet, guided_backpropagation
from .targets import Target


@dataclasses.dataclass(frozen=True)
class Settings:
    """What methods take beside network, image and target.

    Attributes:
        layer: for the methods that look at one.
        steps: of integrated gradients.
        samples, noise: of SmoothGrad.
        window, stride: of occlusion, voxels.
        seed: of noise.
    """

    layer: str = ""
    steps: int = 50
    samples: int = 25
    noise: float = 0.15
    window: int = 8
    stride: int = 4
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing that was taken away.

    Attributes:
        part: its number: a region's value, a channel or a feature map.
        fall: of the score without it.
    """

    part: int
    fall: float


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """A method's answer on one window.

    Attributes:
        map: (1, C or 1, *window).
        difference: of integrated gradients, the difference of the scores that the map should add up to; else None.
        parts: of an ablation.
    """

    map: torch.Tensor
    difference: float | None = None
    parts: tuple[Part, ...] = ()


def baseline_of(image: torch.Tensor, name: str, sigma: float) -> torch.Tensor:
    """The image (1, C, *shape) that says nothing: "zero", "minimum", "mean" or "blur"."""
    if name == "minimum":
        return filled(image, "constant", value=float(image.min()))
    return filled(image, "constant" if name == "zero" else "mean" if name == "mean" else "blur", sigma=sigma)


def attribute(
    method: str,
    network: nn.Module,
    image: torch.Tensor,
    target: Target,
    baseline: torch.Tensor,
    settings: Settings,
    *,
    regions: torch.Tensor | None = None,
    progress: Progress | None = None,
) -> Found:
    """The map of one image for a target.

    Args:
        method: name of a method with a target, see :data:`MLILib.explanation.methods.METHODS`.
        network: in evaluation mode.
        image: (1, C, *shape).
        target: what is explained.
        baseline: as `image`: what stands for nothing.
        settings: of the method.
        regions: (1, 1, *shape) integers, for "ablation-regions".
        progress: told how far it is.

    Raises:
        BadInput: as the methods.
    """
    if method == "gradient":
        return Found(gradient(network, image, target))
    if method == "gradient-x-input":
        return Found(gradient_times_input(network, image, target))
    if method == "integrated-gradients":
        found = integrated_gradients(network, image, target, baseline=baseline, steps=settings.steps)
        return Found(found.map, float(found.score.double() - found.baseline_score.double()))
    if method == "smoothgrad":
        return Found(
            smoothgrad(network, image, target, samples=settings.samples, noise=settings.noise, seed=settings.seed)
        )
    if method == "deconvnet":
        return Found(deconvnet(network, image, target))
    if method == "guided-backpropagation":
        return Found(guided_backpropagation(network, image, target))
    if method == "grad-cam":
        return Found(grad_cam(network, image, target, settings.layer))
    if method == "guided-grad-cam":
        return Found(guided_grad_cam(network, image, target, settings.layer))
    if method == "occlusion":
        shape = image.shape[2:]
        window = [min(settings.window, n) for n in shape]
        stride = [min(settings.stride, edge) for edge in window]
        return Found(
            occlusion(network, image, target, window=window, stride=stride, fill=baseline, progress=progress)
        )  # fmt: skip
    if method == "ablation-regions":
        assert regions is not None
        without = ablate_regions(network, image, target, regions, fill=baseline, progress=progress)
        parts = tuple(Part(*pair) for pair in zip(without.regions, without.falls[0].tolist(), strict=True))
        return Found(without.attribution, parts=parts)
    if method == "ablation-channels":
        falls = ablate_channels(network, image, target, fill=baseline, progress=progress)[0]
        wide = falls.reshape(1, -1, *(1,) * (image.ndim - 2)).expand_as(image).clone()
        return Found(wide, parts=tuple(Part(i, fall) for i, fall in enumerate(falls.tolist())))
    if method == "ablation-features":
        falls = ablate_feature_maps(network, image, target, settings.layer, progress=progress)[0]
        maps = activation_maps(network, image, settings.layer)
        weighted = (maps * falls.to(maps).reshape(1, -1, *(1,) * (image.ndim - 2))).sum(1, keepdim=True)
        return Found(weighted, parts=tuple(Part(i, fall) for i, fall in enumerate(falls.tolist())))
    msg = f"the method {method!r} explains no target"
    raise ValueError(msg)

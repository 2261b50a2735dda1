"""Scores of perturbed images: what occlusion, ablation and the curves of deletion measure.

A score turns the output of a network for N images into N numbers: a class' logit, the sum of a label's logits over a
region. The images go through the network in batches that fit into memory, and no gradient is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import device as devices

Score = Callable[[Any], torch.Tensor]

#: Bytes beyond which a larger batch was no faster, on CPUs with 2 to 16 cores.
_ENOUGH = 1 << 30


def require_evaluation(network: nn.Module) -> None:
    """A network in training mode draws random numbers and changes its statistics: no perturbation can be measured.

    Raises:
        ValueError: `network` or a part of it is in training mode.
    """
    training = [name or "the network itself" for name, module in network.named_modules() if module.training]
    if training:
        msg = f"{training[0]} is in training mode; call network.eval() first"
        raise ValueError(msg)


def require_image(image: torch.Tensor) -> None:
    """Of what shape an image is: (N, C, *shape) in one to three dimensions, floating point.

    Raises:
        ValueError: it is not.
    """
    if image.ndim not in (3, 4, 5) or not image.is_floating_point() or image.numel() == 0:
        msg = f"an image is (N, C, *shape) of floats, not {tuple(image.shape)} of {image.dtype}"
        raise ValueError(msg)


def scored(score: Score, output: Any, count: int) -> torch.Tensor:
    """`score` of an output for `count` images, as (count,) numbers.

    Raises:
        ValueError: `score` gives something else.
    """
    found = score(output)
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != (count,):
        given = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        msg = f"a score must give one number for each of {count} images, shape ({count},), not {given}"
        raise ValueError(msg)
    return found


@torch.no_grad()
def scores(network: nn.Module, images: torch.Tensor, score: Score) -> torch.Tensor:
    """The score of each image of one batch.

    Args:
        network: in evaluation mode.
        images: (N, C, *shape).
        score: turns the output into (N,).

    Returns:
        (N,) without gradient.
    """
    return scored(score, network(images), len(images)).detach()


@torch.no_grad()
def forward_bytes(network: nn.Module, image: torch.Tensor) -> int:
    """Memory that one image takes on its way through the network, from above.

    Twice the outputs of all layers together: the outputs themselves, and what sums, concatenations and the
    convolutions' own buffers take beside them.

    Args:
        network: in evaluation mode; it is run once.
        image: (1, C, *shape).
    """
    total = image.numel() * image.element_size()

    def count(module: nn.Module, given: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, torch.Tensor):
            total += output.numel() * output.element_size()

    leaves = [module for module in network.modules() if not any(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return 2 * total


def batch_size(network: nn.Module, image: torch.Tensor, memory: int | None = None) -> int:
    """How many images of this size go through the network at once.

    Args:
        network: in evaluation mode; it is run once.
        image: (1, C, *shape).
        memory: bytes that a batch may take; by default half of what is free on the image's device, and 1 GiB at most.

    Returns:
        At least 1: a network that needs more for one image is tried, since :func:`forward_bytes` is a bound from above.
    """
    if memory is None:
        memory = min(devices.free_memory(image.device) // 2, _ENOUGH)
    return max(1, memory // forward_bytes(network, image))

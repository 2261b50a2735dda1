"""What the similarities share: images that fit each other, masks as weights, and means over them.

A weight is 0 or more: a mask of ones changes nothing, and one of zeros and ones gives the value of the voxels chosen.
Masks choose what is compared and are not themselves optimised: no gradient flows to them.
"""

from __future__ import annotations

import torch

from ..errors import BadInput


def check_image(image: torch.Tensor) -> None:
    """Raise :class:`BadInput` unless `image` is (N, C, z, y, x) or (N, C, y, x) of a floating point type."""
    if image.ndim not in (4, 5) or not image.is_floating_point() or 0 in image.shape:
        raise BadInput(
            f"A tensor of shape {tuple(image.shape)} and type {str(image.dtype).removeprefix('torch.')} is no image.",
            "Images are (batch, channel, z, y, x) or (batch, channel, y, x) and of a floating point type.",
            "Add the missing axes, and convert with .float().",
        )


def check_pair(fixed: torch.Tensor, moving: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """Raise :class:`BadInput` unless both are images on one grid, and the mask is on it, too.

    A batch of 1 goes with any other; only the mask has a single channel.
    """
    check_image(fixed)
    check_image(moving)
    shapes = [fixed.shape, moving.shape] + ([] if mask is None else [mask.shape])
    batches = {shape[0] for shape in shapes} - {1}
    masked = mask is not None and mask.shape[1:2] != (1,)
    if masked or fixed.shape[1] != moving.shape[1] or len({s[2:] for s in shapes}) > 1 or len(batches) > 1:
        named = [f"fixed {tuple(fixed.shape)}", f"moving {tuple(moving.shape)}"]
        named += [] if mask is None else [f"mask {tuple(mask.shape)}"]
        raise BadInput(
            f"The shapes do not fit each other: {', '.join(named)}.",
            "Voxels are compared one by one, and a mask has one channel.",
            "Bring the moving image and the mask onto the fixed image's grid first.",
        )


def weights(mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """The mask in the type of `like`, without a gradient."""
    return None if mask is None else mask.detach().to(like.dtype)


def ratio(above: torch.Tensor, below: torch.Tensor, undefined: float) -> torch.Tensor:
    """`above` / `below`, and `undefined`, without a gradient, where `below` is 0."""
    there = below != 0
    return torch.where(there, above / torch.where(there, below, torch.ones_like(below)), undefined)


def weighted_sum(values: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over voxels of the mean over channels of (N, C, ...), and the sum of the weights, (N,) each."""
    values = values.mean(1).flatten(1)
    chosen = weights(mask, values)
    if chosen is None:
        return values.sum(1), values.new_full((len(values),), values.shape[1])
    chosen = chosen.flatten(1).expand(len(values), -1) if len(chosen) == 1 else chosen.flatten(1)
    return (values * chosen).sum(1), chosen.sum(1)


def weighted_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of (N, C, ...) over channels, and over voxels with the weights of `mask` (N, 1, ...), (N,).

    It is nan, with a gradient of 0, where the mask is empty.
    """
    return ratio(*weighted_sum(values, mask), undefined=float("nan"))

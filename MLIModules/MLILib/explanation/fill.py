"""What stands in an image for what is taken away from it: a constant, the mean of each channel, or the image blurred.

A constant may be a value that the network has never seen and that it reacts to; a blurred image keeps the intensities
and loses the detail (Fong and Vedaldi 2017).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch.nn import functional

from ..errors import BadInput

Fill = Literal["constant", "mean", "blur"]

FILLS: tuple[Fill, ...] = get_args(Fill)


def filled(
    image: torch.Tensor, fill: Fill | torch.Tensor = "constant", *, value: float = 0.0, sigma: float = 4.0
) -> torch.Tensor:
    """The image without what it shows.

    Args:
        image: (N, C, *shape).
        fill: "constant" is `value` everywhere, "mean" the mean of each channel of each image, "blur" the image under a
            Gaussian; or an image of the same shape, which stands for it.
        value: intensity, as the network sees it, of the constant.
        sigma: standard deviation in voxels of the Gaussian.

    Returns:
        As `image`.

    Raises:
        BadInput: there is no such fill, or a number makes none.
        ValueError: an image of another shape.
    """
    if isinstance(fill, torch.Tensor):
        if fill.shape != image.shape:
            msg = f"a fill of {tuple(fill.shape)} does not stand for an image of {tuple(image.shape)}"
            raise ValueError(msg)
        return fill.to(image)
    if fill == "constant":
        if not math.isfinite(value):
            raise BadInput(f"An image cannot be filled with {value}.", "", "Give a finite intensity.")
        return torch.full_like(image, value)
    if fill == "mean":
        axes = tuple(range(2, image.ndim))
        return image.mean(dim=axes, keepdim=True).expand_as(image).clone()
    if fill == "blur":
        return blurred(image, sigma)
    raise BadInput(f"There is no fill {fill!r}.", "", f"Choose one of {', '.join(FILLS)}.")


def blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """The image convolved with a Gaussian, cut at 4 standard deviations; beyond the border its edge goes on.

    Args:
        image: (N, C, *shape).
        sigma: standard deviation in voxels.

    Raises:
        BadInput: `sigma` is not a positive number.
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise BadInput(f"A blur of {sigma} voxels is none.", "", "Give a standard deviation above 0.")
    radius = int(4 * sigma + 0.5)
    at = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).reshape(1, 1, -1)
    for axis in range(2, image.ndim):
        lines = image.movedim(axis, -1)
        padded = functional.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="replicate")
        image = functional.conv1d(padded, kernel).reshape(lines.shape).movedim(-1, axis)
    return image

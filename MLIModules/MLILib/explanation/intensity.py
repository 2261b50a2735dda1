"""The image's own intensity units: what a model's preprocessing makes of them, where that is a line for each channel.

The preprocessing is run again without its intensity transforms; what is left lies on the network's grid in the image's
units, and the two are compared.
"""

from __future__ import annotations

import dataclasses

import torch
from monai.transforms import Compose
from torch import nn

from ..segmentation.preparation import prepare
from .subject import Subject

#: Largest distance from the line, in standard deviations of what the network sees.
_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """network's intensity = scale x image's intensity + offset, for each channel.

    Attributes:
        raw: (C, *size), the prepared image in the image's units.
        scale, offset: (C,).
        bounds: lowest and highest intensity that the preprocessing lets through, as the network sees them; None for
            any.
    """

    raw: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    bounds: tuple[float, float] | None

    def to_image(self, values: torch.Tensor) -> torch.Tensor:
        """Intensities as the network sees them, (N, C, *shape), in the image's units."""
        return (values - _wide(self.offset, values)) / _wide(self.scale, values)


class InImageUnits(nn.Module):
    """A network that takes the image in its own units."""

    def __init__(self, network: nn.Module, units: Units) -> None:
        super().__init__()
        self.network = network
        self.units = units
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, C, *shape) in the image's units."""
        seen = image * _wide(self.units.scale, image) + _wide(self.units.offset, image)
        if self.units.bounds is not None:
            seen = seen.clamp(*self.units.bounds)
        return self.network(seen)


def units(subject: Subject) -> Units | None:
    """The units of the image; None where the preprocessing does not leave them recognisable."""
    compose = subject.model.preprocessing
    spatial = Compose([t for t in compose.flatten().transforms if ".intensity." not in type(t).__module__])
    raw = prepare(subject.pictures, spatial, channels=subject.model.channels, name=subject.bundle.name).image
    seen = subject.prepared.image
    if raw.shape != seen.shape:
        return None
    scales, offsets = [], []
    clipped = False
    for x, y in zip(raw.double(), seen.double(), strict=True):
        low, high = y.min(), y.max()
        # what was clipped, or left at 0 as background, lies beside the line
        inner = (y > low) & (y < high) & (y != 0)
        if int(inner.sum()) < 2 or x[inner].std() == 0:
            return None
        a = (x[inner] - x[inner].mean()).flatten()
        b = (y[inner] - y[inner].mean()).flatten()
        scale = (a * b).sum() / (a * a).sum()
        offset = y[inner].mean() - scale * x[inner].mean()
        beside = (y - scale * x - offset).abs() / y.std()
        if float(beside[inner].max()) > _TOLERANCE or float(scale) == 0:
            return None
        clipped |= bool((beside[(y == low) | (y == high)] > _TOLERANCE).any())
        scales.append(scale)
        offsets.append(offset)
    bounds = (float(seen.min()), float(seen.max())) if clipped else None
    return Units(raw, torch.stack(scales).float(), torch.stack(offsets).float(), bounds)


def _wide(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like).reshape(1, -1, *(1,) * (like.ndim - 2))

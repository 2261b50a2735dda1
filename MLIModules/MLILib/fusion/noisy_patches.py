"""Random views of a target with all its label maps: turned, scaled, bent, shifted and re-toned, all labels alike.

One sampling grid serves an image and its label maps, so that twenty raters cost little more than one. In place of
MONAI's transforms, which would deform each label map by itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


@dataclasses.dataclass(frozen=True, eq=False)
class NoisyTarget:
    """An image and what several raters drew on it.

    Attributes:
        name: for a reader.
        image: (channels, *space) float32 with mean 0 and standard deviation 1.
        labels: (raters, *space) uint8 or int32, 0 is background.
    """

    name: str
    image: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Variation:
    """How much views of a target differ; standard deviations, but for `mirror_axes`.

    Attributes:
        turn: radians.
        scale: of the size, relative.
        shift: voxels.
        bend: voxels, of displacements that vary over a quarter of the view.
        noise, brightness, contrast: in standard deviations of the image.
        mirror_axes: spatial axes along which half of the views are mirrored.
    """

    turn: float = 0.1
    scale: float = 0.08
    shift: float = 2.0
    bend: float = 1.5
    noise: float = 0.1
    brightness: float = 0.1
    contrast: float = 0.1
    mirror_axes: tuple[int, ...] = ()


def view(
    target: NoisyTarget, patch: Sequence[int], variation: Variation, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A random view of `target`.

    Where the target is larger than the view, its place is random; where it is smaller, it lies in the middle, the image
    goes on as its border and the labels as background.

    Args:
        patch: size of the view in voxels.
        generator: on the CPU.

    Returns:
        Image (channels, *patch) float32 and label maps (raters, *patch) uint8 or int32.
    """
    size = target.image.shape[1:]
    where = _positions(size, patch, variation, generator).to(target.image.device)
    scale = torch.tensor([2.0 / n for n in size], device=where.device)
    unit = ((where + 0.5) * scale - 1).flip(-1)[None]  # what grid_sample wants: -1 ... 1, last axis first
    image = functional.grid_sample(target.image[None], unit, "bilinear", "border", align_corners=False)[0]
    maps = functional.grid_sample(target.labels[None].float(), unit, "nearest", "zeros", align_corners=False)[0]
    contrast, brightness = torch.randn(2, generator=generator).tolist()
    image = image * math.exp(variation.contrast * contrast) + variation.brightness * brightness
    noise = torch.randn(image.shape, generator=generator).to(image.device)
    return image + variation.noise * float(torch.rand(1, generator=generator)) * noise, maps.to(target.labels.dtype)


def _positions(size: Sequence[int], patch: Sequence[int], variation: Variation, generator: torch.Generator) -> Tensor:
    """Where the voxels of a view lie in the target, (*patch, d) in its voxels."""
    d = len(size)
    room = torch.tensor([max(n - p, 0) / 2 for n, p in zip(size, patch, strict=True)])
    middle = torch.tensor([(n - 1) / 2 for n in size])
    middle = middle + (2 * torch.rand(d, generator=generator) - 1) * room
    middle = middle + variation.shift * torch.randn(d, generator=generator)
    skew = torch.zeros(d, d)
    for a in range(d):
        for b in range(a):
            skew[a, b] = variation.turn * float(torch.randn(1, generator=generator))
            skew[b, a] = -skew[a, b]
    sizes = torch.exp(variation.scale * torch.randn(d, generator=generator))
    matrix = torch.linalg.matrix_exp(skew) @ torch.diag(sizes)
    for axis in variation.mirror_axes:
        if float(torch.rand(1, generator=generator)) < 0.5:
            matrix[:, axis] = -matrix[:, axis]
    lines = [torch.arange(p, dtype=torch.float32) - (p - 1) / 2 for p in patch]
    offsets = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)
    where = offsets @ matrix.T + middle
    if variation.bend > 0:
        coarse = variation.bend * torch.randn((1, d, *(4,) * d), generator=generator)
        mode = "bilinear" if d == 2 else "trilinear"
        bend = functional.interpolate(coarse, size=tuple(patch), mode=mode, align_corners=True)
        where = where + bend[0].movedim(0, -1)
    return where

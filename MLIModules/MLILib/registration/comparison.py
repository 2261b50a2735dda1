"""A pair of images on one grid, before and after registration: what quality is measured on and pictures are drawn of.

Before means that both lie in world space as their headers say. Where the moving image has no voxels there is NaN, so
that what lies outside of it is neither compared nor taken for dark tissue.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from .. import geometry
from ..errors import BadInput
from ..geometry import Grid

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Arrays of shape (z, y, x) or (y, x) on the fixed image's grid, or on a coarser one.

    Attributes:
        grid: where their voxels lie.
        fixed: intensities.
        before: the moving image as it lies in world space, NaN outside of it.
        after: the moving image through the transform, NaN outside of it.
        before_mask: voxels that are compared before: both images are there, and their masks.
        after_mask: likewise after.
        covered: share of the smaller image's volume that the other covers, before and after, 0 to 1.
    """

    grid: Grid
    fixed: Floats
    before: Floats
    after: Floats
    before_mask: Mask
    after_mask: Mask
    covered: tuple[float, float]

    def coarser(self, most: int) -> Comparison:
        """Averages over blocks of voxels, as few as make it `most` voxels or fewer; itself where it is small enough.

        Blocks grow along the axes with the smallest spacing first. A block with a voxel outside of the moving image
        is outside, and one with a voxel that is not compared is not compared.
        """
        factors = [1] * self.grid.dimension
        while math.prod(n // f for n, f in zip(self.grid.size, factors, strict=True)) > most:
            steps = [
                s * f if 2 * f <= n else math.inf
                for s, f, n in zip(self.grid.spacing, factors, self.grid.size, strict=True)
            ]
            factors[steps.index(min(steps))] *= 2
        if max(factors) == 1:
            return self
        size = tuple(n // f for n, f in zip(self.grid.size, factors, strict=True))
        spacing = tuple(s * f for s, f in zip(self.grid.spacing, factors, strict=True))
        first = self.grid.matrix() @ np.array([*((f - 1) / 2 for f in factors), 1.0])
        blocks = tuple(reversed(factors))

        def averaged(array: Floats) -> Floats:
            return _blocks(array, blocks).mean(axis=1, dtype=np.float32).reshape(size[::-1])

        def whole(mask: Mask) -> Mask:
            return _blocks(mask, blocks).all(axis=1).reshape(size[::-1])

        return Comparison(
            Grid(size, spacing, tuple(float(x) for x in first[:-1]), self.grid.direction),
            averaged(self.fixed),
            averaged(self.before),
            averaged(self.after),
            whole(self.before_mask),
            whole(self.after_mask),
            self.covered,
        )


def compare(
    fixed: sitk.Image,
    moving: sitk.Image,
    transform: sitk.Transform,
    *,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
) -> Comparison:
    """Bring the moving image onto the fixed one's grid twice, without and with the transform.

    Args:
        fixed: scalar image, 2-D or 3-D.
        moving: scalar image of the same dimension.
        transform: fixed to moving points, LPS mm.
        fixed_mask: on the fixed grid; only voxels other than 0 are compared.
        moving_mask: on any grid in the moving image's space, likewise.

    Raises:
        BadInput: one image is 2-D and the other 3-D.
    """
    require_same_dimension(fixed, moving)
    grid = Grid.of(fixed)
    identity = sitk.Transform(grid.dimension, sitk.sitkIdentity)
    inside = None if fixed_mask is None else sitk.GetArrayViewFromImage(fixed_mask) != 0
    images, masks, covered = [], [], []
    smaller = min(_volume(grid), _volume(Grid.of(moving)))
    for through in (identity, transform):
        image = sitk.GetArrayFromImage(resample(moving, grid, through, outside=math.nan))
        mask = ~np.isnan(image)
        covered.append(min(1.0, float(mask.sum()) * math.prod(grid.spacing) / smaller))
        if inside is not None:
            mask &= inside
        if moving_mask is not None:
            mask &= sitk.GetArrayFromImage(resample_labels(moving_mask, grid, through)) != 0
        images.append(image)
        masks.append(mask)
    array = sitk.GetArrayFromImage(fixed).astype(np.float32)
    return Comparison(grid, array, images[0], images[1], masks[0], masks[1], (covered[0], covered[1]))


def require_same_dimension(
    fixed: sitk.Image, moving: sitk.Image, names: tuple[str, str] = ("The fixed image", "the moving image")
) -> None:
    """Raise :class:`BadInput` for a 2-D image and a 3-D one."""
    ours, theirs = fixed.GetDimension(), moving.GetDimension()
    if ours != theirs:
        raise BadInput(
            f"{names[0]} is {ours}-D and {names[1]} {theirs}-D.",
            "Images of one dimension can be registered.",
            "Give two volumes or two slices; a slice can be cut out of a volume first.",
        )


def resample(image: sitk.Image, grid: Grid, transform: sitk.Transform, *, outside: float | None = None) -> sitk.Image:
    """The image through a transform, linearly interpolated.

    Args:
        image: scalar image.
        grid: where the result lies.
        transform: points of `grid` to points of `image`, LPS mm.
        outside: value where the image has no voxels: a number or NaN, the result is then float32. None makes an image
            of the same kind of number as `image`, rounded and clipped to its range, whose outside is the darkest
            value of the image: air in CT, black in MR.
    """
    if outside is not None:
        return _resample(image, grid, transform, sitk.sitkLinear, outside, sitk.sitkFloat32)
    array = sitk.GetArrayViewFromImage(image)
    wide = sitk.sitkFloat32 if array.dtype in (np.uint8, np.int8, np.uint16, np.int16, np.float32) else sitk.sitkFloat64
    out = _resample(image, grid, transform, sitk.sitkLinear, float(array.min()), wide)
    if array.dtype.kind == "f":
        return out
    limits = np.iinfo(array.dtype)
    rounded = np.rint(sitk.GetArrayViewFromImage(out)).clip(limits.min, limits.max)
    return geometry.from_array(rounded.astype(array.dtype), grid)


def resample_labels(labels: sitk.Image, grid: Grid, transform: sitk.Transform, *, smooth: bool = False) -> sitk.Image:
    """A label map through a transform, 0 outside of it; its kind of number stays.

    Args:
        labels: label map.
        grid: of the result.
        transform: points of `grid` to points of the labels.
        smooth: take the label that linear interpolation of each label's mask gives most weight, which has no steps of
            half a voxel; else the nearest voxel's.
    """
    how = sitk.sitkLabelLinear if smooth else sitk.sitkNearestNeighbor
    return _resample(labels, grid, transform, how, 0.0, labels.GetPixelID())


def _resample(
    image: sitk.Image, grid: Grid, transform: sitk.Transform, how: int, outside: float, kind: int
) -> sitk.Image:
    return sitk.Resample(image, grid.size, transform, how, grid.origin, grid.spacing, grid.direction, outside, kind)


def _volume(grid: Grid) -> float:
    return float(np.prod(np.array(grid.size) * grid.spacing))


def _blocks(array: npt.NDArray, factors: tuple[int, ...]) -> npt.NDArray:
    """The blocks of `factors` voxels as rows, (blocks, voxels); what does not fill a block at the end is left out."""
    counts = [n // f for n, f in zip(array.shape, factors, strict=True)]
    whole = array[tuple(slice(0, n * f) for n, f in zip(counts, factors, strict=True))]
    split = whole.reshape([k for pair in zip(counts, factors, strict=True) for k in pair])
    d = array.ndim
    return split.transpose([*range(0, 2 * d, 2), *range(1, 2 * d, 2)]).reshape(math.prod(counts), -1)

"""Views of a registration as arrays: overlay, checkerboard, difference, joint histogram, deformed grid.

Another viewer can show them; :mod:`MLILib.registration.pictures` draws them. Fixed is red and moving cyan in the
overlay: where they agree it is grey. Where the moving image has no voxels the fixed one is shown, darkened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from ..geometry import Grid
from .comparison import Comparison
from .planes import Plane, centre_of, planes

Floats = npt.NDArray[np.floating]

#: How bright the fixed image is where there is no moving one.
_ALONE = 0.3


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """What the pictures are drawn of.

    Attributes:
        comparison: the images before and after.
        planes: where they are cut.
        fixed, before, after: intensities brought to 0..1, NaN outside of the moving image.
        determinant: of the Jacobian on the comparison's grid; None for a linear transform.
        displacements: T(p) - p of the voxels of each plane along its columns and rows, mm: (rows, columns, 2).
        curve: dicts of stage, level, iteration and value.
    """

    comparison: Comparison
    planes: tuple[Plane, ...]
    fixed: Floats
    before: Floats
    after: Floats
    determinant: Floats | None
    displacements: tuple[Floats, ...]
    curve: Sequence[Mapping[str, Any]]


def scene(
    comparison: Comparison,
    transform: sitk.Transform,
    *,
    determinant: Floats | None = None,
    curve: Sequence[Mapping[str, Any]] = (),
    focus: npt.NDArray[Any] | None = None,
) -> Scene:
    """Prepare the pictures of a registration.

    Args:
        comparison: the images before and after.
        transform: fixed to moving points.
        determinant: of its Jacobian, None where it is the same everywhere.
        curve: the similarity while it was optimised.
        focus: weights on the grid, whose centre of gravity the planes go through; by default the bright half of the
            fixed image, where it is compared.
    """
    if focus is None or not np.any(focus):
        compared = comparison.after_mask if comparison.after_mask.any() else np.ones_like(comparison.after_mask)
        focus = (comparison.fixed > comparison.fixed[compared].mean()) & compared
    cuts = tuple(planes(comparison.grid, centre_of(focus)))
    ours = window(comparison.fixed)
    theirs = window(np.concatenate([a[~np.isnan(a)] for a in (comparison.before, comparison.after)]))
    return Scene(
        comparison,
        cuts,
        scaled(comparison.fixed, ours),
        scaled(comparison.before, theirs),
        scaled(comparison.after, theirs),
        determinant,
        tuple(displacements(plane, comparison.grid, transform) for plane in cuts),
        curve,
    )


def window(values: Floats) -> tuple[float, float]:
    """The intensities shown as black and white: percentiles of what is not background."""
    if not values.size:
        return 0.0, 1.0
    low = float(values.min())
    tissue = values[values > low]
    if not tissue.size:
        return low, low + 1.0
    black, white = (float(x) for x in np.percentile(tissue, (0.5, 99.7)))
    return (black, white) if white > black else (black, black + 1.0)


def scaled(values: Floats, shades: tuple[float, float]) -> Floats:
    """Intensities with `shades` as 0 and 1, clipped; NaN stays."""
    return ((values - shades[0]) / (shades[1] - shades[0])).clip(0.0, 1.0)


def overlay(fixed: Floats, moving: Floats) -> Floats:
    """Fixed in red and moving in cyan, (..., 3): grey where they agree."""
    alone = fixed * _ALONE
    outside = np.isnan(moving)
    cyan = np.where(outside, alone, moving)
    return np.stack([np.where(outside, alone, fixed), cyan, cyan], axis=-1)


def checkerboard(fixed: Floats, moving: Floats, tiles: tuple[int, ...]) -> Floats:
    """Fixed and moving in turn, in so many tiles along each axis; the first tile is fixed."""
    places = [np.arange(n) * t // n for n, t in zip(fixed.shape, tiles, strict=True)]
    odd = sum(np.meshgrid(*places, indexing="ij")) % 2
    return np.where(np.isnan(moving), fixed * _ALONE, np.where(odd == 1, moving, fixed))


def difference(fixed: Floats, moving: Floats) -> Floats:
    """Moving minus fixed, 0 where the moving image has no voxels."""
    return np.nan_to_num(moving - fixed)


def histogram(fixed: Floats, moving: Floats, mask: npt.NDArray[np.bool_], bins: int = 64) -> Floats:
    """Counts of pairs of intensities between 0 and 1; rows from low to high moving intensity, columns fixed."""
    ours, theirs = ((array[mask] * (bins - 1) + 0.5).astype(np.intp) for array in (fixed, moving))
    return np.bincount(theirs * bins + ours, minlength=bins * bins).reshape(bins, bins).astype(np.float64)


def displacements(plane: Plane, grid: Grid, transform: sitk.Transform) -> Floats:
    """T(p) - p of the voxels of a plane, along its columns and its rows, mm: (rows, columns, 2)."""
    d = grid.dimension
    first, size = [0] * d, list(grid.size)
    if d == 3:
        axis = 2 - plane.order[0]
        first[axis], size[axis] = plane.index, 1
    origin = (grid.matrix() @ np.array([*first, 1.0]))[:d]
    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, size, [float(x) for x in origin], grid.spacing, grid.direction
    )
    there = dataclasses.replace(plane, index=0).cut(sitk.GetArrayFromImage(field))
    direction = np.reshape(grid.direction, (d, d))
    rows, columns = (
        direction[:, d - 1 - axis] * (-1 if back else 1)
        for axis, back in zip(plane.order[-2:], plane.turned[-2:], strict=True)
    )
    return np.stack([there @ columns, there @ rows], axis=-1)


def bent_grid(plane: Plane, moved: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """A plane's pixels in the moving image, for lines of a square grid there, bent onto the fixed image.

    Args:
        plane: of the fixed image.
        moved: its displacements, see :func:`displacements`.

    Returns:
        Positions x (columns) and y (rows) in the plane, mm, reaching half a pixel beyond its borders, and for each
        where it comes from along the columns and along the rows, mm, (rows, columns).
    """
    ends = [(1, 1) if n > 1 else (0, 0) for n in moved.shape[:2]]
    wide = np.pad(moved, [*ends, (0, 0)], mode="reflect", reflect_type="odd")
    width, height = plane.pixel(moved)
    x = (np.arange(wide.shape[1]) + 0.5 - ends[1][0]) * width
    y = (np.arange(wide.shape[0]) + 0.5 - ends[0][0]) * height
    return x, y, x[None, :] + wide[..., 0], y[:, None] + wide[..., 1]

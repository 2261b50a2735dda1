"""Free-form deformation: a displacement made of cubic B-splines on a coarse grid of control points.

After Rueckert et al. (IEEE TMI 1999). A B-spline surface is a product along the axes, so that the dense field is one
small matrix product an axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..geometry import Grid
from .conversion import to_lps_mm
from .fields import along_axes


def control_shape(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """How many control points a grid needs along each axis.

    The second control point lies on the first voxel; there is one before and, as cubic splines reach over four, two
    after the last that is needed.

    Args:
        shape: of the dense grid.
        spacing: voxels between control points along each axis of the tensor.
    """
    if len(spacing) != len(shape) or min(spacing) <= 0:
        msg = f"expected {len(shape)} positive control point spacings, got {spacing}"
        raise ValueError(msg)
    return tuple(max(1, math.ceil((n - 1) / s - 1e-9)) + 3 for n, s in zip(shape, spacing, strict=True))


def evaluate(control: Tensor, shape: Sequence[int], spacing: Sequence[float]) -> Tensor:
    """The dense displacement of a control grid. Differentiable.

    Args:
        control: coefficients, (N, d, *control shape), in the unit of the displacement (voxels of the dense grid).
        shape: of the dense grid.
        spacing: voxels between control points along each axis of the tensor.

    Returns:
        (N, d, *shape).
    """
    if tuple(control.shape[2:]) != control_shape(shape, spacing):
        msg = f"{tuple(control.shape[2:])} control points do not fit; needed are {control_shape(shape, spacing)}"
        raise ValueError(msg)
    return along_axes(control, [basis(n, float(s)) for n, s in zip(shape, spacing, strict=True)])


def fit(u: Tensor, spacing: Sequence[float]) -> Tensor:
    """The control grid whose field is nearest to u in the least squares sense: to start a level from the one before.

    Of several (a control point beyond the border that hardly matters) the one of least norm. The inverse of
    :func:`evaluate` where u is a spline of this grid.

    Args:
        u: displacement in voxels, (N, d, *shape).
        spacing: voxels between control points along each axis of the tensor.
    """
    control_shape(u.shape[2:], spacing)
    return along_axes(u, [_fit(n, float(s)) for n, s in zip(u.shape[2:], spacing, strict=True)])


@functools.lru_cache(maxsize=64)
def basis(n: int, spacing: float) -> Tensor:
    """The weight of each control point at each of n voxels, (n, control points), float64. Rows sum to 1."""
    (size,) = control_shape((n,), (spacing,))
    with torch.inference_mode(False):
        position = torch.arange(n, dtype=torch.float64) / spacing + 1.0
        distance = (position[:, None] - torch.arange(size, dtype=torch.float64)).abs()
        near = 2 / 3 - distance**2 * (1 - distance / 2)
        far = (2 - distance).clamp_min(0) ** 3 / 6
        return torch.where(distance < 1, near, far)


@functools.lru_cache(maxsize=64)
def _fit(n: int, spacing: float) -> Tensor:
    with torch.inference_mode(False):
        return torch.linalg.pinv(basis(n, spacing), rtol=1e-10)


def to_bspline_transform(control: Tensor, grid: Grid, spacing: Sequence[float]) -> sitk.BSplineTransform:
    """The control grid as ITK's transform, the same at every voxel of `grid`.

    Outside the control points' domain it is the identity, to which a voxel on the very edge may be rounded.

    Args:
        control: coefficients in voxels of `grid`, (1, d, *control shape).
        grid: the dense grid.
        spacing: voxels between control points along each axis of the tensor.
    """
    steps = [float(s) for s in spacing][::-1]  # x, y, z
    mm = tuple(step * s for step, s in zip(steps, grid.spacing, strict=True))
    # The first control point lies one step before the first voxel.
    origin = np.array(grid.origin) - np.reshape(grid.direction, (grid.dimension, -1)) @ mm
    lattice = Grid(tuple(control.shape[:1:-1]), mm, tuple(origin.tolist()), grid.direction)
    # In the lattice's own voxels a displacement counts fewer: one is `step` voxels of the grid.
    scale = torch.tensor(steps[::-1], dtype=control.dtype, device=control.device).view(-1, *[1] * grid.dimension)
    vectors = to_lps_mm(control / scale, lattice)
    parts = [sitk.VectorIndexSelectionCast(vectors, k, sitk.sitkFloat64) for k in range(grid.dimension)]
    return sitk.BSplineTransform(parts, 3)

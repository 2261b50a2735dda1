"""Deformations turned round: fixed-point inverse of a displacement, and the inverse of a whole registration.

With T = A (id + D), the inverse is (id + D)^-1 A^-1: exact for the linear map, iterative for the displacement, or the
exponential of the negative velocity where there is one; how well it inverts is measured and told in mm.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..geometry import Grid
from .conversion import linear_to_sitk, middle, to_lps_mm
from .fields import compose, exponential
from .sampling import valid_mask, warp


@dataclasses.dataclass(frozen=True)
class InverseField:
    """What :func:`invert` found.

    Attributes:
        displacement: v, (N, d, *shape), in voxels: v(j) + u(j + v(j)) is nearly 0.
        residual: largest length of that sum, in voxels, for each of the N.
        iterations: how many were done.
        converged: whether the residual of all is below the tolerance.
    """

    displacement: Tensor
    residual: Tensor
    iterations: int
    converged: bool


def invert(u: Tensor, iterations: int = 50, tolerance: float = 0.01, start: Tensor | None = None) -> InverseField:
    """The displacement that undoes u, by fixed-point iteration: v <- -u(j + v) (Chen et al., Medical Physics 2008).

    The plain iteration converges where u changes by less than a voxel from voxel to voxel. Where the residual stops
    falling, the steps are shortened (v moves by a part of the way only), which also inverts stretching by more than 2.
    Where u folds, several voxels go to one place and v leads back to one of them: the residual may be small there, and
    :func:`residual_mm` large. Beyond its border u goes on with its outermost values.

    Args:
        u: displacement in voxels, (N, d, *shape).
        iterations: most that are done.
        tolerance: residual in voxels at which to stop.
        start: first guess, like u; None is zero.

    Returns:
        The best found, with its residual.
    """
    step = torch.ones(len(u), *[1] * (u.ndim - 1), dtype=u.dtype, device=u.device)
    v = torch.zeros_like(u) if start is None else start
    off, mean, worst = _residual(u, v)
    done = 0
    while done < iterations and bool((worst > tolerance).any()):
        tried = v - step * off
        new_off, new_mean, new_worst = _residual(u, tried)
        better = new_mean < mean
        chosen = better.view(step.shape)
        v, off = torch.where(chosen, tried, v), torch.where(chosen, new_off, off)
        # little gain: the iteration swings to and fro in some places
        step = torch.where((new_mean < 0.9 * mean).view(step.shape), step, (0.7 * step).clamp_min(0.05))
        mean, worst = torch.where(better, new_mean, mean), torch.where(better, new_worst, worst)
        done += 1
    return InverseField(v, worst, done, bool((worst <= tolerance).all()))


def _residual(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """v(j) + u(j + v(j)), and of its length the mean and the maximum, (N,) each."""
    off = v + warp(u, v)
    length = torch.linalg.vector_norm(off, dim=1).flatten(1)
    return off, length.mean(1), length.amax(1)


@dataclasses.dataclass(frozen=True)
class InverseTransform:
    """The inverse of a registration.

    Attributes:
        transform: from moving to fixed points, LPS mm. Outside the fixed grid, on which its displacement lives, it is
            the inverse of the linear map.
        mean_mm: mean distance by which there and back misses a fixed voxel, over those that D keeps in the grid, mm.
        max_mm: the largest such distance, mm.
    """

    transform: sitk.Transform
    mean_mm: float
    max_mm: float


def inverse_transform(
    linear: np.ndarray | None, u: Tensor | None, grid: Grid, velocity: Tensor | None = None
) -> InverseTransform:
    """The inverse of T(p) = A(p + D(p)), from moving to fixed points.

    Args:
        linear: A in LPS mm, (d + 1) x (d + 1); None is the identity.
        u: D in voxels of the fixed grid, (1, d, *shape); None is zero.
        grid: the fixed grid.
        velocity: stationary velocity in voxels whose exponential u is, (1, d, *shape), where there is one:
            exp(-velocity) is u's inverse up to interpolation, and a few iterations take that error away.

    Raises:
        ValueError: when the linear map is singular.
    """
    back: sitk.Transform | None = None
    if linear is not None:
        back = linear_to_sitk(np.linalg.inv(linear), linear[:-1, :-1] @ middle(grid) + linear[:-1, -1])
    if u is None:
        return InverseTransform(back or linear_to_sitk(np.eye(grid.dimension + 1), middle(grid)), 0.0, 0.0)
    v = invert(u, start=None if velocity is None else exponential(-velocity)).displacement
    mean_mm, max_mm = residual_mm(u, v, grid)
    undone: sitk.Transform = sitk.DisplacementFieldTransform(to_lps_mm(v, grid))
    # The transform that was added last is applied first.
    return InverseTransform(undone if back is None else sitk.CompositeTransform([undone, back]), mean_mm, max_mm)


def residual_mm(u: Tensor, v: Tensor, grid: Grid) -> tuple[float, float]:
    """Mean and largest distance by which u and then v miss the voxel one came from, in mm.

    Args:
        u: displacement in voxels of `grid`, (1, d, *shape).
        v: its inverse, likewise.
        grid: where both lie. Voxels that u leads out of it do not count.

    Returns:
        Mean and maximum; infinite where u leads all voxels out of the grid.
    """
    off = compose(u, v)
    spacing = torch.tensor(grid.spacing[::-1], dtype=u.dtype, device=u.device)
    length = torch.linalg.vector_norm(off * spacing.view(-1, *[1] * grid.dimension), dim=1, keepdim=True)
    kept = length[valid_mask(grid.shape, u, margin=0.0)]
    return (float(kept.mean()), float(kept.max())) if len(kept) else (math.inf, math.inf)

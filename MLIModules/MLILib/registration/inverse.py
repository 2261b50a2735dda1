"""Deformations turned round: fixed-point inverse of a displacement, and the inverse of a whole registration.

With T = A (id + D), the inverse is (id + D)^-1 A^-1: exact for the linear map, iterative for the displacement, or the
exponential of the negative velocity where there is one; how well it inverts is measured and told in mm.

D ends with the fixed grid, and leads voxels at its border out of it: the inverse of a registration lives on a grid that
is larger by as much, so that these voxels come back, too.

How exact it is: at the voxels of its grid the inverse leads to a point that T brings back to within some hundredths of
a voxel, at the border as elsewhere. Between them it is interpolated, so that there and back misses a voxel by a tenth
of its edge on average, and by more where T squeezes: where it lays several voxels into one, by up to as many.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as functional
from torch import Tensor

from ..geometry import Grid
from .conversion import linear_to_sitk, middle, to_lps_mm
from .fields import carry, compose, exponential
from .pyramid import coarser, finest_spacing
from .sampling import identity_grid, index_matrix, sample, valid_mask

#: Iterations after which voxels that are still on their way take Newton steps; their damping and longest step, voxels.
PLAIN = 12
DAMPING, LONGEST = 1e-3, 2.0


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

    The plain iteration converges where u changes by less than a voxel from voxel to voxel. Each voxel goes its own way:
    where its residual does not fall enough it takes shorter steps (v moves by a part of the way only), and once its
    residual is small it rests, so that late iterations are cheap. Where u squeezes space flat, nearly folds it, or
    stretches it by more than 2 that is slow: voxels not there after :data:`PLAIN` iterations go on with damped Newton
    steps (Levenberg and Marquardt) along the slope of u. Where u folds, several voxels go to one place and v leads back
    to one of them: the residual may be small there, and :func:`residual_mm` large. Beyond its border u goes on with its
    outermost values.

    Args:
        u: displacement in voxels, (N, d, *shape).
        iterations: most that are done.
        tolerance: residual in voxels at which to stop.
        start: first guess, like u; None is zero.

    Returns:
        The best found, with its residual.
    """
    places = identity_grid(u.shape[2:], dtype=u.dtype, device=u.device).flatten(2)[0]
    found = [
        _invert_one(field[None], places, None if start is None else start[n].flatten(1), iterations, tolerance)
        for n, field in enumerate(u)
    ]
    residual = torch.stack([worst for _, worst, _ in found])
    displacement = torch.stack([v for v, _, _ in found]).view(u.shape)
    return InverseField(displacement, residual, max(n for _, _, n in found), bool((residual <= tolerance).all()))


def _invert_one(
    u: Tensor, places: Tensor, start: Tensor | None, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, int]:
    """The inverse (d, voxels) of one displacement, its largest residual, and the iterations it took."""
    v = torch.zeros_like(places) if start is None else start.clone()
    off = v + sample(u, (places + v)[None])[0]
    length = torch.linalg.vector_norm(off, dim=0)
    at = torch.nonzero(length > tolerance)[:, 0]  # the voxels still on their way
    there, now, off, left = places[:, at], v[:, at], off[:, at], length[at]
    step = torch.ones_like(left)
    done = 0
    while done < iterations and len(at):
        now = now - step * (off if done < PLAIN else _newton(u, there + now, off))
        off = now + sample(u, (there + now)[None])[0]
        before, left = left, torch.linalg.vector_norm(off, dim=0)
        step = torch.where(left < 0.7 * before, step, (0.7 * step).clamp_min(0.1))
        done += 1
        better = left < length[at]  # a step that makes it worse is taken, for it may lead out of a fold, but not kept
        v[:, at[better]], length[at[better]] = now[:, better], left[better]
        keep = left > tolerance
        at, there, now, off, left, step = at[keep], there[:, keep], now[:, keep], off[:, keep], left[keep], step[keep]
    return v, length.max(), done


def _newton(u: Tensor, where: Tensor, off: Tensor) -> Tensor:
    """The step (d, n) at the points `where` that would take `off` away if u were linear, damped where that is flat."""
    unit = torch.eye(len(where), dtype=u.dtype, device=u.device)
    along = [sample(u, (where + e / 2)[None])[0] - sample(u, (where - e / 2)[None])[0] for e in unit[:, :, None]]
    slope = torch.stack(along, 1).permute(2, 0, 1) + unit
    step = torch.linalg.solve(slope.mT @ slope + DAMPING * unit, slope.mT @ off.T[..., None])[..., 0].T
    return step * (LONGEST / torch.linalg.vector_norm(step, dim=0).clamp_min(LONGEST))


@dataclasses.dataclass(frozen=True)
class InverseTransform:
    """The inverse of a registration.

    Attributes:
        transform: from moving to fixed points, LPS mm. Outside the grid on which its displacement lives, which holds
            the fixed voxels and the places that D leads them to, it is the inverse of the linear map.
        mean_mm: mean distance by which there and back misses a fixed voxel, mm.
        max_mm: the largest such distance, mm.
    """

    transform: sitk.Transform
    mean_mm: float
    max_mm: float


def inverse_transform(
    linear: np.ndarray | None, u: Tensor | None, grid: Grid, velocity: Tensor | None = None, *, most: int = 0
) -> InverseTransform:
    """The inverse of T(p) = A(p + D(p)), from moving to fixed points.

    Args:
        linear: A in LPS mm, (d + 1) x (d + 1); None is the identity.
        u: D in voxels of the fixed grid, (1, d, *shape); None is zero.
        grid: the fixed grid.
        velocity: stationary velocity in voxels whose exponential u is, (1, d, *shape), where there is one:
            exp(-velocity) is u's inverse up to interpolation, and a few iterations take that error away.
        most: where the grid has more voxels, the inverse is sought on a coarser one of about as many, which serves
            fields that are smooth; 0 seeks it on the grid itself.

    Raises:
        ValueError: when the linear map is singular.
    """
    back: sitk.Transform | None = None
    if linear is not None:
        back = linear_to_sitk(np.linalg.inv(linear), linear[:-1, :-1] @ middle(grid) + linear[:-1, -1])
    if u is None:
        return InverseTransform(back or linear_to_sitk(np.eye(grid.dimension + 1), middle(grid)), 0.0, 0.0)
    sides = reached(u)
    whole = _extended(grid, sides)
    wide = _continued(u, sides)
    start = None if velocity is None else exponential(-_continued(velocity, sides))
    if most and math.prod(whole.size) > most:
        coarse = coarser(whole, finest_spacing(whole, most))
        into = index_matrix(coarse, whole)
        small = invert(
            carry(wide, into, coarse.shape), start=None if start is None else carry(start, into, coarse.shape)
        )
        v = carry(small.displacement, index_matrix(whole, coarse), whole.shape)
    else:
        v = invert(wide, start=start).displacement
    fixed = tuple(slice(low, low + n) for (low, _), n in zip(sides, grid.shape, strict=True))
    mean_mm, max_mm = residual_mm(wide, v, whole, fixed)
    undone: sitk.Transform = sitk.DisplacementFieldTransform(to_lps_mm(v, whole))
    # The transform that was added last is applied first.
    return InverseTransform(undone if back is None else sitk.CompositeTransform([undone, back]), mean_mm, max_mm)


def reached(u: Tensor) -> tuple[tuple[int, int], ...]:
    """How many voxels beyond its grid a displacement leads, before the first and after the last of each axis.

    At most half as many as the axis has: what leads further has diverged.

    Args:
        u: in voxels, (1, d, *shape).
    """
    found = []
    for axis, (n, along) in enumerate(zip(u.shape[2:], u[0], strict=True)):
        place = along + torch.arange(n, dtype=u.dtype, device=u.device).view(
            [-1 if a == axis else 1 for a in range(along.ndim)]
        )
        ends = (-float(place.min()), float(place.max()) - (n - 1))
        low, high = (min(max(math.ceil(end - 1e-6), 0), n // 2) for end in ends)
        found.append((low, high))
    return tuple(found)


def _extended(grid: Grid, sides: Sequence[tuple[int, int]]) -> Grid:
    """The grid with more voxels on each side, tensor order."""
    low, high = (np.array([side[end] for side in reversed(sides)]) for end in (0, 1))
    d = grid.dimension
    origin = np.asarray(grid.origin) - grid.matrix()[:d, :d] @ low
    size = tuple(int(n) for n in low + grid.size + high)
    return Grid(size, grid.spacing, tuple(origin.tolist()), grid.direction)


def _continued(u: Tensor, sides: Sequence[tuple[int, int]]) -> Tensor:
    """A field with its outermost values going on."""
    return functional.pad(u, [n for side in reversed(sides) for n in side], mode="replicate")


def residual_mm(u: Tensor, v: Tensor, grid: Grid, inner: tuple[slice, ...] = ()) -> tuple[float, float]:
    """Mean and largest distance by which u and then v miss the voxel one came from, in mm.

    Args:
        u: displacement in voxels of `grid`, (1, d, *shape).
        v: its inverse, likewise.
        grid: where both lie. Voxels that u leads out of it do not count.
        inner: the voxels that count, tensor order; all of them where it is empty.

    Returns:
        Mean and maximum; infinite where u leads all voxels out of the grid.
    """
    off = compose(u, v)
    spacing = torch.tensor(grid.spacing[::-1], dtype=u.dtype, device=u.device)
    length = torch.linalg.vector_norm(off * spacing.view(-1, *[1] * grid.dimension), dim=1, keepdim=True)
    counted = (slice(None), slice(None), *inner)
    kept = length[counted][valid_mask(grid.shape, u, margin=0.0)[counted]]
    return (float(kept.mean()), float(kept.max())) if len(kept) else (math.inf, math.inf)

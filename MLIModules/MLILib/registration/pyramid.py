"""Coarser versions of an image on its own axes: smoothed, then sampled, as two matrices an axis.

A level keeps the image's outer edges. Smoothing takes away what the coarser voxels cannot hold (a Gaussian of 0.4 times
the shrink factor), so that a level is no aliased one.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from ..geometry import Grid
from .fields import along_axes, gaussian_matrix

#: Standard deviation of the smoothing before an axis is sampled, in coarse voxels.
SMOOTHING = 0.4
#: No level has fewer voxels along an axis that has as many.
FEWEST = 8
#: Largest difference of direction cosines at which axes still count as the same.
NEARLY = 0.25


def coarser(grid: Grid, spacing: float) -> Grid:
    """The same region in voxels with edges of about `spacing` mm; axes whose voxels are longer stay as they are."""
    size, steps = [], []
    for n, s in zip(grid.size, grid.spacing, strict=True):
        new = min(n, max(min(n, FEWEST), round(n * s / max(s, spacing))))
        size.append(new)
        steps.append(n * s / new)
    shift = [(new - old) / 2 for new, old in zip(steps, grid.spacing, strict=True)]
    d = grid.dimension
    origin = np.asarray(grid.origin) + np.reshape(grid.direction, (d, d)) @ np.asarray(shift)
    return Grid(tuple(size), tuple(steps), tuple(origin.tolist()), grid.direction)


def aligned(moving: Grid, fixed: Grid, linear: np.ndarray) -> Grid:
    """A grid over the moving image whose axes and voxels are the fixed grid's, as a map turns and scales them.

    Args:
        moving: grid of the moving image.
        fixed: grid of the fixed image.
        linear: fixed to moving points, LPS mm, (d + 1) x (d + 1).

    Returns:
        As large as the moving image, but no more than half the fixed image's extent beyond where that comes to lie;
        `moving` itself where its axes are within some 15 degrees and its voxels within a third.
    """
    d = fixed.dimension
    axes = linear[:d, :d] @ np.reshape(fixed.direction, (d, d))
    left, _, right = np.linalg.svd(axes)
    turned = left @ right
    steps = np.linalg.norm(axes, axis=0) * fixed.spacing
    apart = np.abs(turned.T @ np.reshape(moving.direction, (d, d)) - np.eye(d)).max()
    if apart < NEARLY and (np.abs(np.log(steps / np.asarray(moving.spacing))) < math.log(4 / 3)).all():
        return moving
    boxes = []
    for grid, through, beyond in ((moving, np.eye(d + 1), 0.0), (fixed, linear, 0.5)):
        ends = np.array([[-0.5 - beyond * n, n - 0.5 + beyond * n] for n in grid.size])
        corners = np.stack(np.meshgrid(*ends, indexing="ij")).reshape(d, -1)
        whole = through @ grid.matrix()
        along = turned.T @ (whole[:d, :d] @ corners + whole[:d, d:])
        boxes.append((along.min(1), along.max(1)))
    low, high = np.maximum(boxes[0][0], boxes[1][0]), np.minimum(boxes[0][1], boxes[1][1])
    if (low >= high).any():  # far apart: nothing to see, wherever it is sampled
        return moving
    size = np.maximum(1, np.ceil((high - low) / steps - 1e-6)).astype(int)
    origin = turned @ ((low + high) / 2 - (size - 1) / 2 * steps)
    return Grid(tuple(size.tolist()), tuple(steps.tolist()), tuple(origin.tolist()), tuple(turned.ravel().tolist()))


def reduced(image: Tensor, shape: tuple[int, ...], smoothing: float = SMOOTHING) -> Tensor:
    """An image on a coarser grid of the same region.

    Args:
        image: (N, C, *old shape).
        shape: of the coarser grid, tensor order.
        smoothing: standard deviation in coarse voxels, taken where an axis shrinks.
    """
    old = image.shape[2:]
    return along_axes(image, [None if a == b else _matrix(a, b, smoothing) for a, b in zip(old, shape, strict=True)])


@functools.lru_cache(maxsize=64)
def _matrix(old: int, new: int, smoothing: float) -> Tensor:
    """Smoothing and linear interpolation at the coarse voxels' centres, (new, old)."""
    factor = old / new
    with torch.inference_mode(False):
        where = ((torch.arange(new, dtype=torch.float64) + 0.5) * factor - 0.5).clamp(0, old - 1)
        low = where.floor().long().clamp(max=max(old - 2, 0))
        share = (where - low)[:, None]
        smooth = gaussian_matrix(old, smoothing * factor)
        return (1 - share) * smooth[low] + share * smooth[(low + 1).clamp(max=old - 1)]


def spacings(grid: Grid, finest: float, levels: int) -> list[float]:
    """Voxel edges of the levels from coarse to fine: halves down to `finest` mm, as long as the image has the room."""
    extent = sorted(n * s for n, s in zip(grid.size, grid.spacing, strict=True))
    room = extent[-1] / FEWEST
    found = [finest * 2**k for k in range(levels)]
    return sorted({s for s in found if s <= room} or {finest}, reverse=True)


def finest_spacing(grid: Grid, most: int) -> float:
    """The voxel edge, mm, at which a grid has no more than `most` voxels; its own smallest where it has fewer."""
    spacing = min(grid.spacing)
    while math.prod(coarser(grid, spacing).size) > most:
        spacing *= 1.05
    return spacing

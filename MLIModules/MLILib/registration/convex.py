"""A global search for large displacements: every one of a discrete set, coupled by convex optimisation.

After Siebert, Hansen and Heinrich (Fast 3D registration with accurate optimisation and little learning for Learn2Reg
2021) and Heinrich, Papiez, Schnabel and Handels (Non-parametric discrete registration with convex optimisation, WBIR
2014): the dissimilarity of MIND descriptors is tabulated for all displacements of a cell within reach; then the best
displacement of each cell and a smooth field are pulled towards each other, more and more. What forward and backward
searches agree on is kept.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from .fields import box, carry, resize
from .linear_stage import Images
from .mind import mind_ssc
from .sampling import index_matrix, warp

#: Cells along the longest axis, and descriptors' voxels in a cell.
CELLS, POOL = 32, 2
#: Reach of the search along an axis, cells.
REACH = 4
#: Weights of the coupling, one an iteration, per squared cell, for descriptors' mean squared differences.
COUPLING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
#: Rounds in which forward and backward fields are made consistent.
CONSISTENT = 15


def search(images: Images, linear: np.ndarray, start: Tensor | None) -> Tensor:
    """The displacement on the fixed image's grid that a search without local optima suggests.

    Args:
        images: the pair, from 0 to 1.
        linear: LPS mm, fixed to moving points.
        start: displacement on the fixed grid that comes before `linear`, or None.

    Returns:
        (1, d, *fixed shape), voxels, to be composed before `start`.
    """
    grid = images.fixed_grid
    extent = max(n * s for n, s in zip(grid.size, grid.spacing, strict=True))
    part = images.level(extent / CELLS / POOL)
    u = None if start is None else carry(start, index_matrix(part.fixed_grid, grid), part.fixed_grid.shape)
    shape, matrix = part.fixed_grid.shape, index_matrix(part.fixed_grid, part.moving_grid, linear)
    moving = warp(part.moving, u, matrix, shape)
    mask = part.moving_mask
    masks = part.fixed_mask, None if mask is None else warp(mask, u, matrix, shape, padding="zeros")
    fixed_cells, moving_cells = (_pooled(mind_ssc(image)) for image in (part.fixed, moving))
    forward = _coupled(fixed_cells, moving_cells, masks[0])
    backward = _coupled(moving_cells, fixed_cells, masks[1])
    agreed = _consistent(forward, backward)
    pools = _pools(part.fixed)
    fine = resize(agreed, tuple(n * pool for n, pool in zip(agreed.shape[2:], pools, strict=True)), align="edges")
    # Pooling drops what does not fill a cell; the outermost displacement goes on there.
    pad = [p for n, have in zip(part.fixed_grid.shape[::-1], fine.shape[:1:-1], strict=True) for p in (0, n - have)]
    fine = functional.pad(fine, pad, mode="replicate")
    return carry(fine, index_matrix(grid, part.fixed_grid), grid.shape)


def _pools(image: Tensor) -> tuple[int, ...]:
    """Voxels of a cell along each axis: a single slice is one cell thick."""
    return tuple(min(POOL, n) for n in image.shape[2:])


def _pooled(features: Tensor) -> Tensor:
    pool = functional.avg_pool3d if features.ndim == 5 else functional.avg_pool2d
    return pool(features, _pools(features))


def _coupled(fixed: Tensor, moving: Tensor, mask: Tensor | None) -> Tensor:
    """The smooth field of displacements, in cells, (1, d, *cells); towards the outside of the mask it fades to none."""
    d = fixed.ndim - 2
    shape = tuple(fixed.shape[2:])
    # From the shortest to the longest: where all fit alike, as in air, the first is taken. A single slice stays in it.
    along = [range(-REACH, REACH + 1) if n > 1 else range(1) for n in shape]
    offsets = sorted(itertools.product(*along), key=lambda offset: sum(step * step for step in offset))
    wide = functional.pad(moving, (REACH,) * (2 * d), mode="replicate")
    costs = torch.empty(len(offsets), *shape, dtype=fixed.dtype, device=fixed.device)
    for row, offset in zip(costs, offsets, strict=True):
        window = wide[0]
        for axis, (step, n) in enumerate(zip(offset, shape, strict=True), start=1):
            window = window.narrow(axis, REACH + step, n)
        torch.mean((fixed[0] - window).square_(), dim=0, out=row)
    if mask is not None:
        costs *= _pooled(mask)[0]
    costs = box(costs[None])[0]
    table = torch.tensor(offsets, dtype=fixed.dtype, device=fixed.device)
    flat = costs.flatten(1)
    field = _smoothed(table[flat.argmin(0)].T.unflatten(1, shape)[None])
    for weight in COUPLING:
        away = table.square().sum(1, keepdim=True) - 2 * table @ field[0].flatten(1)
        best = torch.add(flat, away, alpha=weight).argmin(0)
        field = _smoothed(table[best].T.unflatten(1, shape)[None])
    return field


def _consistent(forward: Tensor, backward: Tensor) -> Tensor:
    """Fields that are more nearly each other's inverse, the forward one."""
    for _ in range(CONSISTENT):
        forward, backward = (
            0.5 * (forward - warp(backward, forward)),
            0.5 * (backward - warp(forward, backward)),
        )
    return forward


def _smoothed(field: Tensor) -> Tensor:
    return box(box(field))

"""The middle of a group: a grid that suits all images, and transforms freed from what they have in common.

A template that was started anywhere is moved to where the transforms to the images average to the identity: linear maps
by their logarithms, displacements by their mean, whose inverse is put before each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from ..errors import BadInput, MLIError
from ..geometry import Grid
from .conversion import middle
from .fields import compose
from .inverse import invert

#: A template of more voxels would take more memory than the computers it is made on have.
MOST_VOXELS = 300_000_000
#: Move of the corners by the mean map, mm, below which linear maps are in the middle.
LINEAR_TOLERANCE = 1e-7
#: Imaginary part of a logarithm above which there is no real one.
_REAL = 1e-6


def common_grid(grids: Sequence[Grid], spacing: float = 0.0) -> Grid:
    """A grid with the median spacing and extent of the images, centred at the mean of their centres.

    Axes are compared by the direction of the body that each is nearest to, however the images are stored; the grid's
    own directions are the rotation nearest to their mean. It is stored as the images are where they agree, else along
    right, anterior and superior.

    Args:
        grids: of the images, of one dimension.
        spacing: voxel edge in mm along all axes; 0 is the median along each.

    Raises:
        BadInput: the grid would have more than :data:`MOST_VOXELS` voxels.
    """
    d = grids[0].dimension
    stored = [_storage(grid) for grid in grids]
    wanted = stored[0] if len(set(stored)) == 1 else tuple((axis, (-1, -1, 1)[axis]) for axis in range(d))
    edges, extents, directions = [], [], []
    for grid, axes in zip(grids, stored, strict=True):
        order = [axes.index(next(a for a in axes if a[0] == body)) for body in range(d)]
        signs = [axes[i][1] for i in order]
        edges.append([grid.spacing[i] for i in order])
        extents.append([grid.spacing[i] * grid.size[i] for i in order])
        directions.append(np.reshape(grid.direction, (d, d))[:, order] * signs)
    left, _, right = np.linalg.svd(np.mean(directions, axis=0))
    step = np.full(d, spacing) if spacing > 0 else np.median(edges, axis=0)
    count = np.maximum(1, np.rint(np.median(extents, axis=0) / step)).astype(int)
    if math.prod(int(n) for n in count) > MOST_VOXELS:
        raise BadInput(
            f"A template of {' x '.join(str(n) for n in count)} voxels is too large.",
            f"Its voxel edges would be {' x '.join(f'{s:.3g}' for s in step)} mm.",
            "Give a larger spacing.",
        )
    body = [axis for axis, _ in wanted]
    direction = (left @ right)[:, body] * [sign for _, sign in wanted]
    centre = np.mean([middle(grid) for grid in grids], axis=0)
    size, edge = count[body], step[body]
    origin = centre - direction @ (edge * (size - 1) / 2)
    return Grid(
        tuple(int(n) for n in size),
        tuple(float(s) for s in edge),
        tuple(origin.tolist()),
        tuple(direction.ravel().tolist()),
    )


def _storage(grid: Grid) -> tuple[tuple[int, int], ...]:
    """For each stored axis the LPS axis that it is nearest to, and whether it runs along it (1) or against it (-1)."""
    d = grid.dimension
    direction = np.reshape(grid.direction, (d, d))
    axes = max(itertools.permutations(range(d)), key=lambda p: sum(abs(direction[a, i]) for i, a in enumerate(p)))
    return tuple((a, 1 if direction[a, i] >= 0 else -1) for i, a in enumerate(axes))


def remove_linear(maps: Sequence[np.ndarray], grid: Grid) -> tuple[list[np.ndarray], float, float]:
    """Linear maps relative to their mean: A_i M^-1, where M is such that the logarithms of these average to zero.

    That M is the bi-invariant mean of the maps (Arsigny and Pennec; Pennec and Arsigny 2013), found by repeating the
    log-Euclidean mean (Arsigny et al., SIAM J. Matrix Anal. Appl. 2007), which it is where the maps commute: of scales
    their geometric mean, of translations the arithmetic one.

    Args:
        maps: template to image points, LPS mm, (d + 1) x (d + 1).
        grid: of the template, for the figures in mm.

    Returns:
        The maps from the template in the middle; how far the mean moved the corners of the grid (root mean square, mm);
        and how far the mean of what is left would move them.

    Raises:
        MLIError: a map has no real logarithm.
    """
    d = grid.dimension
    out = [np.asarray(one, dtype=np.float64) for one in maps]
    whole = np.eye(d + 1)
    for _ in range(30):
        shared = linalg.expm(np.mean([_logarithm(one) for one in out], axis=0))
        if _moved(shared, grid) < LINEAR_TOLERANCE:
            break
        out = [one @ np.linalg.inv(shared) for one in out]
        whole = shared @ whole
    return out, _moved(whole, grid), _moved(linalg.expm(np.mean([_logarithm(one) for one in out], axis=0)), grid)


def _logarithm(matrix: np.ndarray) -> np.ndarray:
    found = linalg.logm(matrix)
    if not np.isfinite(found).all() or np.abs(np.imag(found)).max() > _REAL:
        raise MLIError(
            "The images have no middle.",
            "One of them is mirrored, or turned by half a turn, relative to the others.",
            "Bring the images into one orientation first, and leave out those that show something else.",
        )
    return np.real(found)


def _moved(matrix: np.ndarray, grid: Grid) -> float:
    """Root mean square distance by which a linear map moves a grid's corners, mm."""
    corners = grid.corners()
    d = grid.dimension
    off = corners @ (matrix[:d, :d] - np.eye(d)).T + matrix[:d, d]
    return float(np.sqrt((off**2).sum(1).mean()))


def remove_displacement(fields: list[Tensor], grid: Grid) -> tuple[float, float]:
    """Make displacements relative to their mean: (id + D_i) (id + mean D)^-1 (Guimond et al., CVIU 2000).

    At each point q of the new template their displacements average to zero, for the inverse leads from q to the p with
    p + mean D(p) = q, and so the p + D_i(p) average to q.

    Args:
        fields: D_i, (1, d, *shape), voxels of `grid`; in the list each is replaced by the displacement from the
            template in the middle, one by one, so that there are never two of all.
        grid: where they lie.

    Returns:
        The root mean square length of the mean that was removed, mm, and that of the mean that is left, which is the
        error of inverse and interpolation.
    """
    shared = mean_of(fields)
    back = invert(shared).displacement
    for number, one in enumerate(fields):
        fields[number] = compose(back, one)
    return length(shared, grid), length(mean_of(fields), grid)


def mean_of(fields: Sequence[Tensor]) -> Tensor:
    """The mean of fields of one shape, without stacking them."""
    total = torch.zeros_like(fields[0])
    for one in fields:
        total += one
    return total / len(fields)


def length(u: Tensor, grid: Grid) -> float:
    """Root mean square length of a displacement in voxels of `grid`, mm."""
    spacing = torch.tensor(grid.spacing[::-1], dtype=u.dtype, device=u.device).view(-1, *[1] * grid.dimension)
    return float((u * spacing).square().sum(1).mean().sqrt())

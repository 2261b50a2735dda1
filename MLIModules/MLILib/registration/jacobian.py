"""How a deformation changes volume: its Jacobian determinant, and what is said of it in figures.

The determinant is 1 where volume is kept, below 1 where a piece of the fixed image is smaller in the moving one, above
1 where it is larger, and 0 or less where the map folds.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..geometry import Grid
from .conversion import from_sitk


def determinant(u: Tensor, linear: np.ndarray | None = None) -> Tensor:
    """The Jacobian determinant of A (id + u). Differentiable.

    Central differences in voxels, one-sided at the border; an axis of one voxel counts as still. The determinant of
    id + u is the same in voxels and in mm, whatever the grid's spacing and direction.

    Args:
        u: displacement in voxels, (N, d, *shape).
        linear: A in LPS mm, (d + 1) x (d + 1), as in T(p) = A(p + D(p)); None is the identity.

    Returns:
        (N, 1, *shape).
    """
    d = u.shape[1]
    slopes = [_slope(u, axis) for axis in range(2, 2 + d)]
    # rows[k][j] is the derivative of coordinate k along axis j
    rows = [[slopes[j][:, k] + (1.0 if j == k else 0.0) for j in range(d)] for k in range(d)]
    if d == 2:
        out = rows[0][0] * rows[1][1] - rows[0][1] * rows[1][0]
    else:
        out = (
            rows[0][0] * (rows[1][1] * rows[2][2] - rows[1][2] * rows[2][1])
            - rows[0][1] * (rows[1][0] * rows[2][2] - rows[1][2] * rows[2][0])
            + rows[0][2] * (rows[1][0] * rows[2][1] - rows[1][1] * rows[2][0])
        )
    return out[:, None] if linear is None else out[:, None] * float(np.linalg.det(linear[:d, :d]))


def _slope(u: Tensor, axis: int) -> Tensor:
    if u.shape[axis] == 1:
        return torch.zeros_like(u)
    return torch.gradient(u, dim=axis)[0]


def of_transform(transform: sitk.Transform, grid: Grid) -> Tensor:
    """The Jacobian determinant of any transform at the voxels of `grid`, (1, 1, *shape), float32."""
    linear, u = from_sitk(transform, grid)
    if u is None:
        return torch.full((1, 1, *grid.shape), float(np.linalg.det(linear[:-1, :-1])))
    return determinant(u, linear)


def statistics(det: Tensor, mask: Tensor | None = None) -> dict[str, float | None]:
    """What the quality report says of a determinant map.

    The true standard deviation of the logarithm leaves out folded voxels, where there is no logarithm; their share is
    given beside it. Learn2Reg's (Hering et al., IEEE TMI 2023, and the challenge's evaluation code) adds 3, clips to
    1e-9 ... 1e9, takes the logarithm everywhere, and leaves out 2 voxels on every side; it is smaller, and only
    good for comparison with its tables.

    Args:
        det: one determinant map, (1, 1, *shape).
        mask: voxels that count (not 0), (1, 1, *shape) or *shape; None is all.

    Returns:
        min, max, folded (share of voxels with det <= 0), sd_log, sd_log_learn2reg; None where no voxel is left to take
        it of.
    """
    values = det.detach()[0, 0].double()
    counts = (
        torch.ones_like(values, dtype=torch.bool) if mask is None else mask.reshape(values.shape).to(det.device) > 0
    )
    inner = (slice(2, -2),) * values.ndim
    cropped = values[inner][counts[inner]]
    chosen = values[counts]
    if not len(chosen):
        return dict.fromkeys(("min", "max", "folded", "sd_log", "sd_log_learn2reg"))
    positive = chosen[chosen > 0]
    return {
        "min": float(chosen.min()),
        "max": float(chosen.max()),
        "folded": 1.0 - len(positive) / len(chosen),
        "sd_log": float(positive.log().std(correction=0)) if len(positive) else None,
        "sd_log_learn2reg": float((cropped + 3).clamp(1e-9, 1e9).log().std(correction=0)) if len(cropped) else None,
    }

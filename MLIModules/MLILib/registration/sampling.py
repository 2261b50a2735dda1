"""Images sampled at mapped positions: the index matrix between two grids, and the warp by it and a displacement.

Everything is in tensor index coordinates (z, y, x), with voxel centres at whole numbers (align_corners=True in torch's
words), so that a map between two grids is one (d + 1) x (d + 1) matrix and a voxel centre is met exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ..geometry import Grid

#: Modes of :func:`warp` and what torch calls them; "bilinear" is trilinear in 3-D.
MODES = {"linear": "bilinear", "nearest": "nearest"}


def voxel_to_lps(grid: Grid) -> np.ndarray:
    """Homogeneous tensor index (z, y, x, 1) to homogeneous LPS mm (x, y, z, 1), (d + 1) x (d + 1), float64."""
    d = grid.dimension
    order = [*range(d - 1, -1, -1), d]
    return grid.matrix()[:, order]


def index_matrix(fixed: Grid, moving: Grid, linear: np.ndarray | Tensor | None = None) -> Tensor:
    """The index matrix M: tensor index of the fixed grid to tensor index of the moving grid.

    Args:
        fixed: grid whose indices go in.
        moving: grid whose indices come out.
        linear: map in LPS mm, fixed point to moving point: (d + 1, d + 1) or (N, d + 1, d + 1), an array or a tensor
            (gradients flow through it); None is the identity.

    Returns:
        (N or 1, d + 1, d + 1), float64, on the device of `linear`.

    Raises:
        ValueError: when the grids differ in dimension.
    """
    if fixed.dimension != moving.dimension:
        msg = f"a {fixed.dimension}-D grid has no index matrix to a {moving.dimension}-D one"
        raise ValueError(msg)
    into = torch.from_numpy(voxel_to_lps(fixed))
    out = torch.from_numpy(np.linalg.inv(voxel_to_lps(moving)))
    if linear is None:
        return (out @ into)[None]
    middle = torch.as_tensor(linear).to(torch.float64)
    middle = middle[None] if middle.ndim == 2 else middle
    return out.to(middle.device) @ middle @ into.to(middle.device)


def linear_of_index_matrix(fixed: Grid, moving: Grid, matrix: Tensor) -> Tensor:
    """The map in LPS mm whose index matrix is `matrix`: the inverse of :func:`index_matrix`, (N, d + 1, d + 1)."""
    into = torch.from_numpy(np.linalg.inv(voxel_to_lps(fixed))).to(matrix.device)
    out = torch.from_numpy(voxel_to_lps(moving)).to(matrix.device)
    return out @ matrix.to(torch.float64) @ into


def identity_grid(
    shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """The index of every voxel, (1, d, *shape): channel 0 counts along the first axis."""
    axes = [torch.arange(n, dtype=dtype, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def positions(u: Tensor | None = None, M: Tensor | None = None, shape: Sequence[int] | None = None) -> Tensor:
    """Moving index M (i + u(i)) of every fixed voxel i.

    Args:
        u: displacement in voxels, (N, d, *shape); None is zero.
        M: index matrix, (N or 1, d + 1, d + 1); None is the identity.
        shape: of the fixed grid; needed where `u` is None.

    Returns:
        (N, d, *shape); dtype and device of `u`, else of `M` (float32 on the CPU without either).
    """
    like = u if u is not None else M
    dtype, device = (torch.float32, torch.device("cpu")) if like is None else (like.dtype, like.device)
    grid = _displaced(u, shape, dtype, device)
    if M is None:
        return grid
    return _mapped(grid, M.to(device))


def warp(
    moving: Tensor,
    u: Tensor | None = None,
    M: Tensor | None = None,
    shape: Sequence[int] | None = None,
    mode: str = "linear",
    padding: str = "border",
) -> Tensor:
    """The moving image at M (i + u(i)) for every fixed voxel i. Differentiable in `moving`, `u` and `M`.

    With `padding="border"` and a multiplication by :func:`valid_mask` this is what sitk.Resample gives, to rounding;
    nearest neighbours half way between two voxels go to the even one here and up in ITK.

    Args:
        moving: (N or 1, C, *moving shape). Whole numbers are allowed with mode "nearest" and come back as they were;
            half precision is sampled in single precision.
        u: displacement in voxels of the fixed grid, (N or 1, d, *fixed shape); None is zero.
        M: index matrix of :func:`index_matrix`, (N or 1, d + 1, d + 1), any float dtype; None is the identity.
        shape: of the fixed grid; by default that of `u`, else of `moving`.
        mode: "linear" or "nearest".
        padding: "border" goes on with the outermost voxels, "zeros" fades to zero within a voxel.

    Returns:
        (N, C, *fixed shape), dtype of `moving`.

    Raises:
        ValueError: unknown mode or padding, shapes that do not fit, whole numbers with mode "linear".
    """
    if mode not in MODES or padding not in ("border", "zeros"):
        msg = f"unknown mode {mode!r} or padding {padding!r}"
        raise ValueError(msg)
    kind = moving.dtype
    if not kind.is_floating_point:
        if mode != "nearest":
            msg = f"values of type {kind} can only be sampled with mode 'nearest'"
            raise ValueError(msg)
        moving = moving.to(torch.float64 if kind in (torch.int32, torch.int64) else torch.float32)
    elif kind in (torch.float16, torch.bfloat16):
        moving = moving.float()
    sizes = moving.shape[2:]
    if u is not None:
        u = u.to(moving.dtype)
    else:
        shape = sizes if shape is None else shape
    grid = _displaced(u, shape, moving.dtype, moving.device)
    if grid.shape[1] != len(sizes):
        msg = f"a {grid.shape[1]}-D displacement or shape cannot warp a {len(sizes)}-D image"
        raise ValueError(msg)
    out = _sampled(moving, grid, M, mode, padding)
    if padding == "zeros" and 1 in sizes:  # torch finds every position on an axis of one voxel inside
        out = out * valid_mask(sizes, u, M, shape).to(out)
    return out if out.dtype == kind else (out.round() if not kind.is_floating_point else out).to(kind)


def sample(image: Tensor, where: Tensor) -> Tensor:
    """Linear interpolation at any points; beyond the border the outermost voxels go on. Differentiable.

    Args:
        image: (N or 1, C, *shape), floating point.
        where: tensor indices, (N or 1, d, points).

    Returns:
        (N, C, points).
    """
    d = image.ndim - 2
    return _sampled(image, where.view(*where.shape, *[1] * (d - 1)), None, "linear", "border").flatten(2)


def _sampled(image: Tensor, grid: Tensor, M: Tensor | None, mode: str, padding: str) -> Tensor:
    """The image (N or 1, C, *shape) at M grid, whose channels are tensor indices: (N or 1, d, ...) with d more axes."""
    unit = _to_unit(image.shape[2:], image.device)
    return _at(image, _mapped(grid, unit if M is None else unit @ M.to(image.device, torch.float64)), mode, padding)


def _to_unit(shape: Sequence[int], device: torch.device | str) -> Tensor:
    """Tensor indices to torch's coordinates, which run from -1 to 1, (1, d + 1, d + 1), float64."""
    d = len(shape)
    out = torch.eye(d + 1, dtype=torch.float64, device=device)
    for axis, n in enumerate(shape):
        out[axis, axis] = 2.0 / max(n - 1, 1)
        out[axis, d] = -1.0
    return out[None]


def _at(image: Tensor, unit: Tensor, mode: str, padding: str) -> Tensor:
    """The image at torch's coordinates, (N or 1, d, ...)."""
    d = image.ndim - 2
    n = max(len(image), len(unit))
    # Torch's grid holds (x, y, z). Turning the axes of the image round, a view, spares turning those of the grid.
    turned = image.permute(0, 1, *range(d + 1, 1, -1)).expand(n, *[-1] * (d + 1))
    where = unit.movedim(1, -1).expand(n, *[-1] * (d + 1))
    return functional.grid_sample(turned, where, mode=MODES[mode], padding_mode=padding, align_corners=True)


class Warper:
    """:func:`warp` for many displacements of one grid: what does not change from one to the next is worked out once.

    Args:
        shape: of the fixed grid.
        M: index matrix, (N or 1, d + 1, d + 1).
        moving_shape: of the images that are warped.
        device: where they lie.
    """

    def __init__(
        self, shape: Sequence[int], M: Tensor, moving_shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        unit = _to_unit(moving_shape, device) @ M.to(device, torch.float64)
        d = len(moving_shape)
        self._start = _mapped(identity_grid(shape, device=device), unit).flatten(2)
        self._turn = unit[:, :d, :d].to(torch.float32)

    def __call__(self, moving: Tensor, u: Tensor, padding: str = "border") -> Tensor:
        """The moving image (N or 1, C, *moving shape) at M (i + u(i)), (N, C, *shape), linearly interpolated."""
        n = max(len(u), len(self._start))
        flat = u.flatten(2).expand(n, -1, -1)
        unit = torch.baddbmm(self._start.expand(n, -1, -1), self._turn.expand(n, -1, -1), flat)
        return _at(moving, unit.view(n, *u.shape[1:]), "linear", padding)


def valid_mask(
    moving_shape: Sequence[int],
    u: Tensor | None = None,
    M: Tensor | None = None,
    shape: Sequence[int] | None = None,
    margin: float = 0.5,
) -> Tensor:
    """Whether M (i + u(i)) lies in the moving image, for every fixed voxel i.

    Args:
        moving_shape: shape of the moving image, (z, y, x).
        u: displacement in voxels of the fixed grid, (N, d, *shape); None is zero.
        M: index matrix, (N or 1, d + 1, d + 1); None is the identity.
        shape: of the fixed grid; needed where `u` is None.
        margin: how far beyond the outermost voxel centres the image reaches, in voxels: 0.5 is the voxels' extent, as
            ITK sees it.

    Returns:
        (N, 1, *shape), bool.
    """
    where = positions(u, M, shape)
    inside = torch.ones_like(where[:, :1], dtype=torch.bool)
    for axis, n in enumerate(moving_shape):
        along = where[:, axis : axis + 1]
        inside &= (along >= -margin) & (along <= n - 1 + margin)
    return inside


def _displaced(u: Tensor | None, shape: Sequence[int] | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """i + u(i), (N, d, *shape)."""
    if u is None:
        if shape is None:
            msg = "without a displacement the fixed grid's shape is needed"
            raise ValueError(msg)
        return identity_grid(shape, dtype=dtype, device=device)
    if u.shape[1] != u.ndim - 2 or (shape is not None and tuple(shape) != tuple(u.shape[2:])):
        msg = f"a displacement of shape {tuple(u.shape)} does not fit the grid {tuple(shape or u.shape[2:])}"
        raise ValueError(msg)
    return u + identity_grid(u.shape[2:], dtype=dtype, device=device)


def _mapped(grid: Tensor, matrix: Tensor) -> Tensor:
    """The homogeneous (N or 1, d + 1, d + 1) `matrix` applied to the channels of `grid`, (N or 1, d, ...)."""
    d = grid.shape[1]
    n = max(len(grid), len(matrix))
    flat = grid.flatten(2).expand(n, -1, -1)
    turn = matrix[:, :d, :d].to(grid.dtype).expand(n, -1, -1)
    shift = matrix[:, :d, d:].to(grid.dtype).expand(n, -1, -1)
    return torch.baddbmm(shift, turn, flat).view(n, *grid.shape[1:])

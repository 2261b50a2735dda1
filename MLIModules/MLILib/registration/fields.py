"""Dense fields: composed, exponentiated, carried to another grid, smoothed.

A field is (N, d, z, y, x), in voxels of the grid it lives on, channel k along tensor axis k. A displacement u stands
for the map i -> i + u(i); a stationary velocity v for the flow that takes one unit of time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from .sampling import warp


def compose(first: Tensor, second: Tensor) -> Tensor:
    """One displacement that does `first` and then `second`: w(i) = first(i) + second(i + first(i)).

    Outside the grid `second` goes on with its outermost values.

    Args:
        first: (N, d, *shape), voxels.
        second: (N or 1, d, *shape), voxels of the same grid.
    """
    return first + warp(second, first)


def exponential(velocity: Tensor, steps: int = 6) -> Tensor:
    """The displacement at time 1 of a stationary velocity field, by scaling and squaring.

    exp(v) = (id + v / 2**steps) composed with itself `steps` times (Arsigny et al., MICCAI 2006). exp(-v) is its
    inverse up to the error of interpolation.

    Args:
        velocity: (N, d, *shape), voxels per unit of time.
        steps: number of squarings. The first step's length should be well below a voxel: 6 serves up to 30 voxels.
    """
    if steps < 0:
        msg = f"a field cannot be squared {steps} times"
        raise ValueError(msg)
    u = velocity / 2**steps
    for _ in range(steps):
        u = compose(u, u)
    return u


def resize(u: Tensor, shape: Sequence[int], *, align: str = "centres") -> Tensor:
    """A field on a grid of another size that covers the same region; displacements are rescaled to its voxels.

    Args:
        u: (N, d, *old shape), voxels of the old grid.
        shape: the new grid's.
        align: what the two grids share: "centres" of the outermost voxels, or their outer "edges".

    Returns:
        (N, d, *shape), voxels of the new grid.
    """
    if align not in ("centres", "edges"):
        msg = f"grids are aligned by their centres or edges, not {align!r}"
        raise ValueError(msg)
    old = u.shape[2:]
    if tuple(old) == tuple(shape):
        return u
    mode = "trilinear" if len(old) == 3 else "bilinear"
    out = functional.interpolate(u, size=tuple(shape), mode=mode, align_corners=align == "centres")
    if align == "centres":
        ratios = [(new - 1) / (n - 1) if n > 1 else 1.0 for n, new in zip(old, shape, strict=True)]
    else:
        ratios = [new / n for n, new in zip(old, shape, strict=True)]
    return out * torch.tensor(ratios, dtype=u.dtype, device=u.device).view(-1, *[1] * len(old))


def carry(u: Tensor, M: Tensor, shape: Sequence[int]) -> Tensor:
    """A field on any other grid, oblique to the first or not: the same displacement in space.

    Args:
        u: (N, d, *old shape), voxels of the old grid. Outside, its outermost values go on.
        M: index matrix from the new grid to the old one, (N or 1, d + 1, d + 1).
        shape: the new grid's.

    Returns:
        (N, d, *shape), voxels of the new grid.
    """
    d = u.shape[1]
    out = warp(u, M=M, shape=shape)
    back = torch.linalg.inv(M[:, :d, :d].to(torch.float64)).to(out)
    return torch.matmul(back, out.flatten(2)).view(out.shape)


def smooth(x: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """Gaussian smoothing of each channel; beyond the border the outermost values go on.

    Args:
        x: field or image, (N, C, *shape).
        sigma: standard deviation in voxels, one or one an axis (in tensor order); 0 leaves an axis as it is.
    """
    d = x.ndim - 2
    each = [float(sigma)] * d if isinstance(sigma, (int, float)) else [float(s) for s in sigma]
    if len(each) != d or min(each) < 0:
        msg = f"expected one or {d} standard deviations of at least 0, got {sigma}"
        raise ValueError(msg)
    return along_axes(x, [gaussian_matrix(n, s) if s > 0 else None for n, s in zip(x.shape[2:], each, strict=True)])


def box(x: Tensor) -> Tensor:
    """The mean over three voxels along each axis, fewer at the border; an axis of one or two stays as it is.

    Args:
        x: field or image, (N, C, *shape).
    """
    wide = [3 if n > 2 else 1 for n in x.shape[2:]]
    pool = functional.avg_pool3d if x.ndim == 5 else functional.avg_pool2d
    return pool(x, wide, stride=1, padding=[n // 2 for n in wide], count_include_pad=False)


def along_axes(x: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """A separable linear map: a matrix applied along each axis.

    Dense matrix products: for axes of some 200 voxels they take the time of a dozen shifted additions, whatever the
    width of the kernel, and a tenth of torch's convolution on a CPU.

    Args:
        x: (N, C, *shape).
        matrices: one an axis, (new size, size); None leaves the axis.

    Returns:
        (N, C, *new shape).
    """
    for axis, matrix in enumerate(matrices, start=2):
        if matrix is None:
            continue
        weights = matrix.to(x)
        shape = (*x.shape[:axis], len(weights), *x.shape[axis + 1 :])
        if axis == x.ndim - 1:
            x = torch.matmul(x, weights.T)
        else:
            lines = x.reshape(math.prod(x.shape[:axis]), x.shape[axis], -1)
            x = torch.matmul(weights, lines).view(shape)
    return x


@functools.lru_cache(maxsize=64)
def gaussian_matrix(n: int, sigma: float) -> Tensor:
    """Gaussian smoothing of a line of n voxels as a matrix, (n, n), float64: sampled to 4 sigma, rows sum to 1."""
    radius = max(1, math.ceil(4 * sigma))
    with torch.inference_mode(False):
        offsets = torch.arange(-radius, radius + 1)
        weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
        columns = (torch.arange(n)[:, None] + offsets).clamp(0, n - 1)
        return torch.zeros(n, n, dtype=torch.float64).scatter_add_(
            1, columns, (weights / weights.sum()).expand(n, -1).contiguous()
        )

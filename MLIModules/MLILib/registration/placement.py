"""Where a registration network sees a pair: one axis-aligned grid at the network's spacing that holds both images.

The grid's axes point right, anterior and superior whatever the storage order or obliqueness of the images, so that the
anatomy is turned as in training. It is never smaller than the one of the training, and grows with the images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..geometry import Grid
from .sampling import index_matrix, valid_mask, warp

#: Sides of the canvas are multiples of it, for the coarsest level of a cascade and of its networks.
MULTIPLE = 16
#: Voxels. Centre on centre often ends half way between two voxels; this much decides it the same way however the images
#: are stored.
_TIE = 1e-4


def network_grid(
    images: Sequence[Grid], spacing: Sequence[float], least: Sequence[int], multiple: int, *, grows: bool = True
) -> Grid:
    """The grid on which a network sees images whose centres are laid over the centre of the first.

    Args:
        images: grids of the fixed image and of what else must fit.
        spacing: of the network, mm, (x, y, z).
        least: voxels the network was trained with, (x, y, z).
        multiple: sides are multiples of it where they exceed `least`.
        grows: whether the grid may exceed `least`; otherwise it covers the middle of larger images.

    Returns:
        A RAS grid. Voxel centres of an axis-aligned first image with the network's spacing are voxel centres of it.
    """
    first = images[0]
    d = first.dimension
    extent = np.max([_extent(grid) for grid in images], axis=0)
    needed = np.ceil(extent / np.asarray(spacing) - 1e-3).astype(int)
    size = [
        int(n) if n >= want or not grows else multiple * math.ceil(want / multiple)
        for n, want in zip(least, needed, strict=True)
    ]
    direction = np.diag([-1.0, -1.0, 1.0][:d])
    step = direction @ np.diag(spacing)
    origin = centre(first) - step @ (np.asarray(size) - 1) / 2
    # Move by less than half a voxel, so that the first image is not interpolated where it need not be.
    index = np.linalg.solve(step, np.asarray(first.origin) - origin)
    origin = origin + step @ (index - np.floor(index + 0.5 + _TIE))
    return Grid(
        tuple(size), tuple(float(s) for s in spacing), tuple(origin.tolist()), tuple(direction.ravel().tolist())
    )


def centre(grid: Grid) -> np.ndarray:
    """LPS position of the middle of an image."""
    matrix = grid.matrix()
    d = grid.dimension
    middle: np.ndarray = matrix[:d, :d] @ ((np.asarray(grid.size) - 1) / 2) + matrix[:d, d]
    return middle


def centred(fixed: Grid, moving: Grid) -> np.ndarray:
    """The shift of the fixed image's centre onto the moving one's, LPS mm, homogeneous (d + 1, d + 1)."""
    out = np.eye(fixed.dimension + 1)
    out[:-1, -1] = centre(moving) - centre(fixed)
    return out


def snapped(linear: np.ndarray, grid: Grid, moving: Grid) -> tuple[np.ndarray, np.ndarray]:
    """A map without interpolation where there need be none: `linear` after a shift of at most half a moving voxel.

    Returns:
        The map, and the shift p -> p + shift in the fixed space that it starts with, LPS mm.
    """
    d = grid.dimension
    matrix = index_matrix(grid, moving, linear)[0].numpy()
    whole = np.floor(matrix[:d, d] + matrix[:d, :d] @ np.full(d, _TIE) + 0.5)
    shift = np.linalg.solve(matrix[:d, :d], whole - matrix[:d, d])
    step = grid.matrix()[:d, :d] @ shift[::-1]
    first = np.eye(d + 1)
    first[:d, d] = step
    return linear @ first, step


def normalised(image: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the image's own voxels, each channel of (C, *shape) by itself."""
    axes = tuple(range(1, image.ndim))
    mean = image.mean(axes, keepdim=True)
    return (image - mean) / image.std(axes, keepdim=True).clamp_min(1e-6)


def placed(image: Tensor, matrix: Tensor, shape: Sequence[int], *, mode: str = "linear") -> Tensor:
    """An image (C, *its shape) on the network's grid (1, C, *shape), 0 outside.

    Args:
        image: normalised, or labels.
        matrix: index matrix from the network's grid to the image's, (1, d + 1, d + 1).
        shape: of the network's grid, tensor order.
        mode: "linear" or "nearest".
    """
    inside = valid_mask(image.shape[1:], None, matrix, shape)
    found = warp(image[None], M=matrix, shape=shape, mode=mode)
    return torch.where(inside, found, torch.zeros((), dtype=found.dtype))


def _extent(grid: Grid) -> np.ndarray:
    """Edge lengths of the axis-aligned box around an image's voxels, mm, (x, y, z)."""
    d = grid.dimension
    whole: np.ndarray = np.abs(grid.matrix()[:d, :d]) @ np.asarray(grid.size)
    return whole

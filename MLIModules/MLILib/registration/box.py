"""Sums over box windows of any radius, of 2-D and 3-D tensors, at a cost that grows with the radius' logarithm.

A padded image is laid out as one row of numbers, so that the sum along each axis is a sum of shifted copies of that
row: contiguous memory, additions only. No running totals are subtracted, so nothing cancels in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def strides(shape: Sequence[int]) -> tuple[int, ...]:
    """By how many numbers each axis of a contiguous array of `shape` steps."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def margin(shape: Sequence[int], radius: int) -> int:
    """How many numbers lie between a window's first voxel and its centre in an image of `shape` as one row."""
    return radius * sum(strides(shape))


class Windows:
    """Window sums of rows of one length, in buffers used again for each: fresh memory would cost more than the sums.

    Args:
        like: a tensor (..., L) whose type, device and shape the rows have: images of `shape`, each as one row.
        shape: spatial shape, padded by `radius` voxels or more on each side wherever sums are wanted.
        radius: voxels on each side of the centre, 0 or more.
    """

    def __init__(self, like: torch.Tensor, shape: Sequence[int], radius: int) -> None:
        self._steps = strides(shape)
        self._width = 2 * radius + 1
        self._buffers = [torch.empty_like(like) for _ in range(3 if radius else 0)]

    def sums(self, row: torch.Tensor) -> torch.Tensor:
        """For each k the sum over the window whose *first* voxel is number k of `row` (..., at most L).

        Windows that wrap around an axis are summed, too; their values mean nothing. The result (..., shorter than
        `row`) lies in a buffer that the next call overwrites.
        """
        for step in reversed(self._steps):
            row = self._along(row, self._width, step)
        return row

    def _along(self, row: torch.Tensor, width: int, step: int) -> torch.Tensor:
        """Sums of `width` numbers, `step` apart: one of half the width and its shifted copy, and the odd one."""
        if width == 1:
            return row
        half = self._along(row, width // 2, step)
        length = row.shape[-1] - (width // 2 * 2 - 1) * step
        shift = width // 2 * step
        # The row itself is wanted until all its widths are done, and the half is read while the sum is written.
        target = self._free(row, half)[..., :length]
        torch.add(half[..., :length], half[..., shift : shift + length], out=target)
        if width % 2 == 0:
            return target
        length -= step
        return target[..., :length].add_(row[..., (width - 1) * step :])

    def _free(self, *taken: torch.Tensor) -> torch.Tensor:
        used = {tensor.data_ptr() for tensor in taken}
        return next(buffer for buffer in self._buffers if buffer.data_ptr() not in used)

"""Single changes of a grid, computed part by part: whole voxels moved, or values interpolated.

The arithmetic is that of MONAI's transforms, so that values agree to rounding; but a part of the output needs only a
part of the input, so that a whole CT is never resampled at once (MONAI's sampling grid alone takes 24 bytes a voxel).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from monai.networks.utils import to_norm_affine
from torch.nn import functional

from .sliding_window import Box


class Step(Protocol):
    """One change of the grid, undone."""

    def need(self, box: Box) -> Box:
        """The part of this step's input from which `box` of its output follows."""

    def apply(self, block: torch.Tensor, source: Box, box: Box) -> torch.Tensor:
        """The output (channel, *box) from the input `block` (channel, *source)."""

    def axis(self, axis: int) -> int | None:
        """The input's axis that runs along `axis` of the output; None when none does."""


class IndexStep:
    """Undoes flips, permutations, crops (zeros come back) and pads: whole voxels move, none is interpolated.

    Args:
        matrix: voxel index of the step's input to voxel index of its output, (d + 1) x (d + 1), whole numbers.
        shape: spatial shape of the step's input.
    """

    def __init__(self, matrix: np.ndarray, shape: Sequence[int]) -> None:
        d = len(shape)
        whole = np.rint(matrix).astype(int)
        self._to = [int(np.flatnonzero(whole[:d, k])[0]) for k in range(d)]  # input axis k runs along output axis
        self._sign = [int(whole[self._to[k], k]) for k in range(d)]
        self._offset = [int(whole[self._to[k], d]) for k in range(d)]
        self._shape = tuple(shape)
        self._from = [self._to.index(o) for o in range(d)]

    def need(self, box: Box) -> Box:
        """See :class:`Step`."""
        out = []
        for k, n in enumerate(self._shape):
            start, stop = self._source(k, box[self._to[k]])
            start = min(max(start, 0), n)
            out.append((start, max(start, min(stop, n))))
        return tuple(out)

    def _source(self, k: int, span: tuple[int, int]) -> tuple[int, int]:
        a, b = span[0] - self._offset[k], span[1] - self._offset[k]
        return (a, b) if self._sign[k] > 0 else (1 - b, 1 - a)

    def apply(self, block: torch.Tensor, source: Box, box: Box) -> torch.Tensor:
        """See :class:`Step`."""
        flips = [k + 1 for k, sign in enumerate(self._sign) if sign < 0]
        moved = (block.flip(flips) if flips else block).permute(0, *(k + 1 for k in self._from))
        pads: list[int] = []
        for o in reversed(range(len(box))):
            k = self._from[o]
            full = self._source(k, box[o])
            if source[k][0] >= source[k][1]:  # all of it was cropped away
                pads += [0, box[o][1] - box[o][0]]
                continue
            low, high = source[k][0] - full[0], full[1] - source[k][1]
            pads += [low, high] if self._sign[k] > 0 else [high, low]
        return functional.pad(moved, pads) if any(pads) else moved

    def axis(self, axis: int) -> int | None:
        """See :class:`Step`."""
        return self._from[axis]


class ResampleStep:
    """Undoes a resampling by resampling back, as MONAI's SpatialResample does.

    Args:
        matrix: voxel index of the step's output to voxel index of its input, (d + 1) x (d + 1).
        source_shape, target_shape: spatial shapes of the step's input and output.
        mode: "bilinear" or "nearest".
        padding_mode: "border", "zeros" or "reflection", for what lies outside the input.
        align_corners: as in torch's grid_sample; only its rounding matters here.
        dtype: type of the computation; the result is float32.
    """

    def __init__(
        self,
        matrix: np.ndarray,
        source_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        mode: str,
        padding_mode: str,
        align_corners: bool,
        dtype: torch.dtype,
    ) -> None:
        self._matrix = matrix
        self._source = tuple(source_shape)
        self._target = tuple(target_shape)
        self._mode = mode
        self._padding = padding_mode
        self._align = align_corners
        self._dtype = dtype
        d = len(self._source)
        linear = np.abs(matrix[:d, :d]) * np.array(self._target)
        self._along = [int(row.argmax()) for row in linear]  # output axis along which input axis k is sampled
        stray = linear.copy()
        stray[range(d), self._along] = 0.0
        self._aligned = sorted(self._along) == list(range(d)) and float(stray.max()) < 1.0
        self._separates = self._aligned and float(stray.max()) < 1e-9

    def need(self, box: Box) -> Box:
        """See :class:`Step`."""
        d = len(box)
        corners = np.array(list(itertools.product(*[(a, b - 1) for a, b in box]))).T
        where = self._matrix[:d, :d] @ corners + self._matrix[:d, d:]
        out = []
        for k, n in enumerate(self._source):
            if self._padding == "reflection":
                out.append((0, n))
                continue
            low = int(np.floor(where[k].min() - 1e-3)) - 1
            high = int(np.ceil(where[k].max() + 1e-3)) + 2
            low = min(max(low, 0), n - 1)
            out.append((low, max(low + 1, min(high, n))))
        return tuple(out)

    def axis(self, axis: int) -> int | None:
        """See :class:`Step`."""
        return self._along.index(axis) if self._aligned else None

    def apply(self, block: torch.Tensor, source: Box, box: Box) -> torch.Tensor:
        """See :class:`Step`."""
        block = block.to(self._dtype)
        if self._mode == "nearest":
            out = self._nearest(block, source, box)
        elif self._padding == "reflection" or self._dtype != torch.float64:
            out = self._repeated(block, source, box)
        elif self._separates:
            out = self._separable(block, source, box)
        else:
            out = self._sampled(block, source, box)
        return out.to(torch.float32)

    def _separable(self, block: torch.Tensor, source: Box, box: Box) -> torch.Tensor:
        """Linear interpolation axis by axis; five times as fast as grid_sample on a CPU."""
        d = len(box)
        order = sorted(range(d), key=lambda k: _length(box[self._along[k]]) / max(_length(source[k]), 1))
        for k in order:
            first, stop = box[self._along[k]]
            index = torch.arange(first, stop, dtype=torch.float64, device=block.device)
            where = index * self._matrix[k, self._along[k]] + self._matrix[k, d]
            block = _lerp(block, k, where, source[k][0], self._source[k], zeros=self._padding == "zeros")
        return block.permute(0, *(1 + self._along.index(o) for o in range(d)))

    def _sampled(self, block: torch.Tensor, source: Box, box: Box) -> torch.Tensor:
        """Linear interpolation at oblique positions; their coordinates are sums of one line an axis."""
        d = len(box)
        unit = torch.empty((*(b - a for a, b in box), d), dtype=torch.float64, device=block.device)
        for k, (first, stop) in enumerate(source):
            scale = 2.0 / (stop - first)  # voxels to the -1 ... 1 of grid_sample's block
            total: torch.Tensor | float = (self._matrix[k, d] - first) * scale + scale / 2 - 1
            for axis, (a, b) in enumerate(box):
                line = torch.arange(a, b, dtype=torch.float64, device=block.device) * (self._matrix[k, axis] * scale)
                total = total + line.view([-1 if i == axis else 1 for i in range(d)])
            unit[..., d - 1 - k] = total
        return _grid_sample(block, unit, "bilinear", self._padding, align_corners=False)

    def _unit(self, box: Box, device: torch.device) -> torch.Tensor:
        """Where the voxels of `box` lie in the whole input, -1 ... 1, (*box, d) with the last axis as (.., y, x).

        Repeats the rounding of MONAI's path through torch's affine_grid, because a nearest neighbour half way between
        two voxels is decided by it, and in single precision it shows.
        """
        d = len(box)
        theta = torch.as_tensor(self._matrix, dtype=torch.float64).to(self._dtype)[None].to(device)
        theta = to_norm_affine(theta, self._source, self._target, align_corners=self._align)
        reverse = list(range(d - 1, -1, -1))
        theta[:, :d] = theta[:, reverse]
        theta[:, :, :d] = theta[:, :, reverse]
        shape = [b - a for a, b in box]
        base = torch.ones((*shape, d + 1), dtype=self._dtype, device=device)
        for axis in range(d):
            line = _unit_line(self._target[axis], self._dtype, self._align, device)[box[axis][0] : box[axis][1]]
            base[..., d - 1 - axis] = line.view([-1 if i == axis else 1 for i in range(d)])
        return (base.view(1, -1, d + 1) @ theta[:, :d].transpose(1, 2)).view(*shape, d)

    def _voxels(self, unit: torch.Tensor) -> torch.Tensor:
        """The same in voxels of the whole input, the last axis as (x, y, ..)."""
        sizes = torch.tensor(self._source[::-1], dtype=self._dtype, device=unit.device)
        voxels = (unit + 1) / 2 * (sizes - 1) if self._align else ((unit + 1) * sizes - 1) / 2
        return voxels.flip(-1)

    def _nearest(self, block: torch.Tensor, source: Box, box: Box) -> torch.Tensor:
        if self._padding == "reflection":
            return self._repeated(block, source, box)
        where = self._voxels(self._unit(box, block.device))
        flat = torch.zeros(where.shape[:-1], dtype=torch.int64, device=block.device)
        inside = torch.ones(where.shape[:-1], dtype=torch.bool, device=block.device)
        for k, ((first, stop), n) in enumerate(zip(source, self._source, strict=True)):
            at = where[..., k]
            if self._padding == "border":
                at = at.clamp(0, n - 1)
            index = at.round().to(torch.int64)  # half to even, as grid_sample does
            inside &= (index >= 0) & (index < n)
            flat = flat * (stop - first) + (index - first).clamp(0, stop - first - 1)
        out = block.flatten(1)[:, flat.flatten()].view(block.shape[0], *flat.shape)
        return out if bool(inside.all()) else out * inside

    def _repeated(self, block: torch.Tensor, source: Box, box: Box) -> torch.Tensor:
        """grid_sample with MONAI's very coordinates."""
        unit = self._unit(box, block.device)
        if self._padding == "reflection":  # the block is the whole input, see need()
            return _grid_sample(block, unit, self._mode, self._padding, align_corners=self._align)
        shift = torch.tensor([a for a, _ in source], dtype=unit.dtype, device=unit.device)
        sizes = torch.tensor(block.shape[1:], dtype=unit.dtype, device=unit.device)
        unit = (((self._voxels(unit) - shift) * 2 + 1) / sizes - 1).flip(-1)
        return _grid_sample(block, unit, self._mode, self._padding, align_corners=False)


def _grid_sample(
    block: torch.Tensor, unit: torch.Tensor, mode: str, padding_mode: str, *, align_corners: bool
) -> torch.Tensor:
    sampled = functional.grid_sample(
        block[None].contiguous(), unit[None], mode, padding_mode, align_corners=align_corners
    )
    return sampled[0]


def _unit_line(n: int, dtype: torch.dtype, align: bool, device: torch.device) -> torch.Tensor:
    """The coordinates -1 ... 1 that torch's affine_grid gives n voxels."""
    if n <= 1:
        return torch.zeros(n, dtype=dtype, device=device)
    line = torch.linspace(-1, 1, n, dtype=dtype, device=device)
    return line if align else line * (n - 1) / n


def _lerp(block: torch.Tensor, axis: int, where: torch.Tensor, first: int, size: int, *, zeros: bool) -> torch.Tensor:
    """Linear interpolation of (channel, ...) along spatial `axis` at positions `where`, in voxels of the whole input.

    Args:
        block: the input from voxel `first` on along the axis.
        size: the whole input's extent along the axis, where the border is.
        zeros: whether the input is zero outside; otherwise its border goes on.
    """
    if not zeros:
        where = where.clamp(0, size - 1)
    low = where.floor()
    fraction = where - low
    view = [1] * block.ndim
    view[axis + 1] = len(where)
    parts = []
    for shift, weight in ((0, 1 - fraction), (1, fraction)):
        index = low.to(torch.int64) + shift
        inside = (index >= 0) & (index < size)
        local = (index - first).clamp(0, block.shape[axis + 1] - 1)
        parts.append(block.index_select(axis + 1, local).mul_((weight * inside).to(block.dtype).view(view)))
    return parts[0].add_(parts[1])


def _length(span: tuple[int, int]) -> int:
    return span[1] - span[0]


def filled(box: Box) -> bool:
    """Whether a box holds any voxel."""
    return all(a < b for a, b in box)


def nothing(channels: int, box: Box) -> torch.Tensor:
    """Zeros (channel, *box), also of a box that holds no voxel."""
    return torch.zeros((channels, *(max(_length(span), 0) for span in box)))

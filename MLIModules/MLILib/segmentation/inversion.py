"""A prediction on the network's grid, brought back to the input's voxels, part by part.

Undoes what :mod:`.preparation` wrote down, with the arithmetic of MONAI's own inverse transforms, so that the values
agree to rounding; but only for the part that is asked for, so that a whole CT is never resampled at once (MONAI's
sampling grid alone takes 24 bytes a voxel). What is not a flip, crop, pad or resampling is left to MONAI.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import AFFINE_TOL
from monai.networks.utils import to_norm_affine
from monai.transforms import Compose, Invertd
from torch.nn import functional

from .preparation import Change, Prepared
from .sliding_window import Box

#: Reads a part (channel, *box) of the prediction on the network's grid.
Read = Callable[[Box], torch.Tensor]

_RESAMPLERS = ("SpatialResample", "SpatialResampled", "Spacing", "Spacingd", "ResampleToMatch", "ResampleToMatchd")


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


class Chain:
    """All steps from the network's grid to the input's, pulled from the far end.

    Args:
        steps: in the order in which they are applied to a prediction.
        source_shape, target_shape: spatial shapes (x, y[, z]) of the network's and the input's grid.
    """

    def __init__(self, steps: Sequence[Step], source_shape: Sequence[int], target_shape: Sequence[int]) -> None:
        self.steps = list(steps)
        self.source_shape = tuple(source_shape)
        self.target_shape = tuple(target_shape)

    def need(self, box: Box) -> Box:
        """The part of the prediction from which `box` of the input's grid follows."""
        for step in reversed(self.steps):
            box = step.need(box)
        return box

    def axis(self, axis: int) -> int | None:
        """The network's axis that runs along `axis` of the input; None when none does."""
        found: int | None = axis
        for step in reversed(self.steps):
            found = None if found is None else step.axis(found)
        return found

    def pull(self, box: Box, read: Read, channels: int) -> torch.Tensor:
        """The part `box` (channel, *box) of the prediction on the input's grid; `channels` is what `read` gives."""
        boxes = [box]
        for step in reversed(self.steps):
            boxes.append(step.need(boxes[-1]) if _filled(boxes[-1]) else boxes[-1])
        source = boxes.pop()
        block = read(source) if _filled(source) else _nothing(channels, source)
        for step in self.steps:
            target = boxes.pop()
            block = step.apply(block, source, target) if _filled(target) else _nothing(channels, target)
            source = target
        return block


class MonaiChain:
    """MONAI's own inverse of the whole prediction, for transforms that :class:`Chain` does not know.

    The prediction is held whole, once on each grid: 4 bytes a voxel and class, twice.

    Args:
        prepared: what the preprocessing left.
        compose: the preprocessing.
        nearest: whether resampling is by nearest neighbour.
    """

    def __init__(self, prepared: Prepared, compose: Compose, *, nearest: bool) -> None:
        self.source_shape = tuple(int(n) for n in prepared.image.shape[1:])
        self.target_shape = prepared.shape
        self._trace = prepared.trace
        self._key = prepared.key
        self._invert = Invertd("pred", transform=compose, orig_keys=prepared.key, nearest_interp=nearest)
        self._done: dict[Read, torch.Tensor] = {}

    def need(self, box: Box) -> Box:
        """Everything."""
        return tuple((0, n) for n in self.source_shape)

    def axis(self, axis: int) -> int | None:
        """None: it does not work along an axis."""
        return None

    def pull(self, box: Box, read: Read, channels: int) -> torch.Tensor:
        """The part `box` (channel, *box) of the prediction on the input's grid; the first call inverts all of it."""
        if read not in self._done:
            whole = read(self.need(box))
            self._done[read] = torch.cat([self._channel(channel[None]) for channel in whole])
        return self._done[read][(slice(None), *(slice(a, b) for a, b in box))]

    def _channel(self, channel: torch.Tensor) -> torch.Tensor:
        data = {"pred": MetaTensor(channel.to(torch.float32)), self._key: deepcopy(self._trace)}
        inverted = self._invert(data)["pred"]
        if tuple(inverted.shape[1:]) != self.target_shape:
            msg = f"MONAI's inverse gave {tuple(inverted.shape[1:])} voxels where the input has {self.target_shape}"
            raise RuntimeError(msg)
        return inverted.as_tensor()


def chain(prepared: Prepared, compose: Compose, *, nearest: bool) -> Chain | MonaiChain:
    """The way back from the network's grid to the input's."""
    if prepared.changes is None:
        return MonaiChain(prepared, compose, nearest=nearest)
    steps: list[Step] = []
    for change in reversed(prepared.changes):
        if change.before[0] == change.after[0] and np.allclose(change.before[1], change.after[1], rtol=0, atol=1e-9):
            continue
        step = _step(change, nearest)
        if step is None:
            return MonaiChain(prepared, compose, nearest=nearest)
        steps.append(step)
    return Chain(steps, prepared.image.shape[1:], prepared.shape)


def _step(change: Change, nearest: bool) -> Step | None:
    (_, affine_before), (shape_after, affine_after) = change.before, change.after
    if len(affine_before) != len(affine_after):
        return None
    names = [str(op.get("class", "")) for op in change.operations]
    if len(names) == 1 and names[0] in _RESAMPLERS:
        return _resample_step(change, nearest)
    if any(name in _RESAMPLERS for name in names):
        return None
    forward = np.linalg.solve(affine_before, affine_after)
    if not _moves_whole_voxels(forward):
        return None
    return IndexStep(forward, shape_after)


def _resample_step(change: Change, nearest: bool) -> Step | None:
    extra: Mapping[str, Any] = change.operations[0].get("extra_info", {})
    mode = "nearest" if nearest else str(extra.get("mode"))
    if mode not in ("bilinear", "nearest") or str(extra.get("padding_mode")) not in ("border", "zeros", "reflection"):
        return None
    (shape_before, _), (shape_after, affine_after) = change.before, change.after
    rank = len(shape_after)
    target = np.asarray(extra["src_affine"], dtype=np.float64)
    if target.shape != affine_after.shape:
        return None
    matrix = np.linalg.solve(affine_after, target)
    same = np.allclose(affine_after, target, atol=AFFINE_TOL) or np.allclose(matrix, np.eye(rank + 1), atol=AFFINE_TOL)
    if same and shape_before == shape_after:
        return IndexStep(np.eye(rank + 1), shape_after)
    align = extra.get("align_corners")
    return ResampleStep(
        matrix,
        shape_after,
        shape_before,
        mode=mode,
        padding_mode=str(extra["padding_mode"]),
        align_corners=align is True and not nearest,
        dtype=getattr(torch, str(extra.get("dtype", "float64"))),
    )


def _moves_whole_voxels(matrix: np.ndarray) -> bool:
    d = len(matrix) - 1
    whole = np.rint(matrix)
    if not np.allclose(matrix, whole, rtol=0, atol=1e-4):
        return False
    turn = np.abs(whole[:d, :d])
    return bool((turn.sum(0) == 1).all() and (turn.sum(1) == 1).all())


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


def _filled(box: Box) -> bool:
    return all(a < b for a, b in box)


def _nothing(channels: int, box: Box) -> torch.Tensor:
    return torch.zeros((channels, *(max(_length(span), 0) for span in box)))

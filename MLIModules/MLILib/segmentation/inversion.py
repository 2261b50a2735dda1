"""A prediction on the network's grid, brought back to the input's voxels, part by part.

Undoes what :mod:`.preparation` wrote down, step by step from the far end, for the part that is asked for. What is not a
flip, crop, pad or resampling is left to MONAI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import AFFINE_TOL
from monai.transforms import Compose, Invertd

from .preparation import Change, Prepared
from .sliding_window import Box
from .steps import IndexStep, ResampleStep, Step, filled, nothing

#: Reads a part (channel, *box) of the prediction on the network's grid.
Read = Callable[[Box], torch.Tensor]

_RESAMPLERS = ("SpatialResample", "SpatialResampled", "Spacing", "Spacingd", "ResampleToMatch", "ResampleToMatchd")


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
            boxes.append(step.need(boxes[-1]) if filled(boxes[-1]) else boxes[-1])
        source = boxes.pop()
        block = read(source) if filled(source) else nothing(channels, source)
        for step in self.steps:
            target = boxes.pop()
            block = step.apply(block, source, target) if filled(target) else nothing(channels, target)
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

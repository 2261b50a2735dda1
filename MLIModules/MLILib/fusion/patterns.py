"""Patterns: voxels about which all raters say the same are one row with a count, so that an estimate looks at it once.

Twenty raters of an organ leave some thousand patterns in millions of voxels. Votes, STAPLE and the measures of
agreement depend on what is said alone, not on where, and so work on patterns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .raters import Raters, Region

#: Largest table of all thinkable patterns, entries. Beyond it voxels are sorted, which takes some ten times as long.
TABLE = 1 << 24

#: Voxels looked at in one step: what a processor's cache holds.
_SLAB = 1 << 16

#: Numbers in one step over patterns.
_NUMBERS = 1 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class Patterns:
    """What raters say of voxels, each combination once.

    Attributes:
        decisions: (patterns, raters), the dtype of the raters' stack: index of the label that each gives.
        counts: (patterns,) int64, how many voxels have it; 1 or more.
        index: (z, y, x) of the region, int32: the pattern of each voxel.
        levels: labels and the background.
    """

    decisions: npt.NDArray[Any]
    counts: npt.NDArray[np.int64]
    index: npt.NDArray[np.int32]
    levels: int

    @property
    def voxels(self) -> int:
        """Of the region."""
        return self.index.size

    def blocks(self) -> Iterator[slice]:
        """The patterns in turn, so many that a number for each label and rater takes some megabytes."""
        step = max(_NUMBERS // max(self.levels, self.decisions.shape[1]), 1)
        for start in range(0, len(self.counts), step):
            yield slice(start, min(start + step, len(self.counts)))

    def votes(self, part: slice, weights: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
        """Sum of the weights of the raters for each label: (patterns of the part, levels); each counts 1 by default."""
        decisions = self.decisions[part]
        rows, raters = decisions.shape
        places = decisions + np.arange(0, rows * self.levels, self.levels)[:, None]
        each = None if weights is None else np.broadcast_to(weights, (rows, raters)).ravel()
        found = np.bincount(places.ravel(), each, minlength=rows * self.levels)
        return found.reshape(rows, self.levels).astype(np.float64, copy=False)

    def place(self, labels: npt.NDArray[Any], region: Region, shape: Sequence[int]) -> npt.NDArray[Any]:
        """The image of a label for each pattern, (z, y, x) of `shape`: 0 outside of the region."""
        out = np.zeros(shape, dtype=labels.dtype)
        out[region] = labels[self.index]
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class Fused:
    """What support decides.

    Attributes:
        indices: (z, y, x) of labels, background outside of the region.
        shares: (levels, z, y, x) float32 that sum to 1, or None.
        ties: voxels where several labels had most support.
    """

    indices: npt.NDArray[Any]
    shares: npt.NDArray[np.float32] | None
    ties: int


def find(label_maps: Iterable[npt.NDArray[Any]], levels: int, region: Region) -> Patterns:
    """The patterns of label maps within a region.

    Args:
        label_maps: (z, y, x) or (y, x) each, of indices below `levels`: a rater's stack, and others.
        levels: labels and the background.
        region: that is looked at.

    Takes 4 bytes a voxel beside the label maps.
    """
    shown = [one[region] for one in label_maps]
    index = np.zeros(shown[0].shape, dtype=np.int32)
    decisions = np.zeros((1, 0), dtype=shown[0].dtype)
    done = 0
    while done < len(shown):
        several = 1
        while done + several < len(shown) and len(decisions) * levels ** (several + 1) <= TABLE:
            several += 1
        decisions = _refine(index, decisions, shown[done : done + several], levels)
        done += several
    counts = np.zeros(len(decisions), dtype=np.int64)
    for slab in _slabs(index.shape):
        found = np.bincount(index[slab].ravel())
        counts[: len(found)] += found
    return Patterns(decisions, counts, index, levels)


def fused(
    raters: Raters, region: Region, found: Patterns, support: Callable[[slice], npt.NDArray[np.float64]], shares: bool
) -> Fused:
    """The image of the labels that have most support.

    Args:
        raters: whose patterns these are.
        region: that they were found in.
        found: the patterns.
        support: of each label for some patterns, (patterns, levels), 0 or more.
        shares: whether the image of the support is wanted, too; it takes 4 bytes a voxel and level.
    """
    winner = np.zeros(len(found.counts), dtype=raters.stack.dtype)
    table = np.zeros((found.levels, len(found.counts)), dtype=np.float32) if shares else None
    ties = 0
    for part in found.blocks():
        given = support(part)
        winner[part], tied = decide(given)
        ties += int(found.counts[part][tied].sum())
        if table is not None:
            table[:, part] = (given / given.sum(axis=1, keepdims=True)).T
    shape = raters.stack.shape[1:]
    image = None
    if table is not None:
        image = np.zeros((found.levels, *shape), dtype=np.float32)
        image[0] = 1.0
        for one, share in zip(image, table, strict=True):
            one[region] = share[found.index]
    return Fused(found.place(winner, region, shape), image, ties)


def decide(support: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """The label of most support in each row, the lowest where several have it, and where that is so.

    Sums that differ by rounding alone count as the same: within 1e-9 of the row's support.

    Args:
        support: (rows, levels), 0 or more.
    """
    most = support.max(axis=1, keepdims=True)
    near = support >= most - 1e-9 * support.sum(axis=1, keepdims=True)
    return near.argmax(axis=1), np.count_nonzero(near, axis=1) > 1


def _refine(
    index: npt.NDArray[np.int32], decisions: npt.NDArray[Any], shown: Sequence[npt.NDArray[Any]], levels: int
) -> npt.NDArray[Any]:
    """Split the patterns of `index`, in place, by what further raters say; returns the decisions of the new ones."""
    base = levels ** len(shown)
    if len(decisions) * base <= TABLE:
        seen = np.zeros(len(decisions) * base, dtype=bool)
        for slab in _slabs(index.shape):
            code = index[slab]
            _append(code, [one[slab] for one in shown], levels)
            seen[code] = True
        codes = np.flatnonzero(seen)
        number = np.zeros(len(seen), dtype=np.int32)
        number[codes] = np.arange(len(codes), dtype=np.int32)
        for slab in _slabs(index.shape):
            index[slab] = number[index[slab]]
    else:
        every = index.astype(np.int64)
        _append(every, shown, levels)
        codes, found = np.unique(every, return_inverse=True)
        index[...] = found.reshape(index.shape)
    parents, said = np.divmod(codes, base)
    digits = said[:, None] // levels ** np.arange(len(shown) - 1, -1, -1) % levels
    return np.concatenate([decisions[parents], digits.astype(decisions.dtype)], axis=1)


def _append(code: npt.NDArray[Any], shown: Sequence[npt.NDArray[Any]], levels: int) -> None:
    """code = code * levels + label for each label map, in place.

    Labels are first joined in numbers of one or two bytes, of which a processor adds many at once.
    """
    dtype: type[np.unsignedinteger[Any]]
    dtype, limit = (np.uint8, 1 << 8) if levels <= 16 else (np.uint16, 1 << 16)
    several = 1
    while levels ** (several + 1) <= limit:
        several += 1
    for start in range(0, len(shown), several):
        joined: npt.NDArray[Any] = shown[start].astype(dtype)
        for one in shown[start + 1 : start + several]:
            joined *= levels
            joined += one.astype(dtype, copy=False)
        code *= levels ** len(shown[start : start + several])
        code += joined


def _slabs(shape: Sequence[int]) -> Iterator[slice]:
    """The first axis in steps."""
    step = max(_SLAB // max(int(np.prod(shape[1:])), 1), 1)
    for start in range(0, shape[0], step):
        yield slice(start, start + step)

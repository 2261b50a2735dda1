"""The effective receptive field: what one voxel of the output really looks at (Luo 2016).

The energy of a voxel of the image is the squared gradient, summed over channels; the field is the smallest box that
holds a given share of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..errors import BadInput
from .gradients import gradient
from .receptive import Box
from .targets import Voxel


@dataclasses.dataclass(frozen=True)
class EffectiveField:
    """An effective receptive field.

    Attributes:
        box: the smallest that holds the share.
        energy: of each voxel of the image, *shape, float64; 1 in all.
        share: of the energy that the box holds, at least what was asked for.
    """

    box: Box
    energy: np.ndarray
    share: float


def effective_field(
    network: nn.Module, image: torch.Tensor, label: int, index: Sequence[int], *, share: float = 0.95
) -> EffectiveField:
    """Where the score of one label at one voxel comes from, on this image.

    Args:
        network: in evaluation mode.
        image: (1, C, *shape), float32 or float64.
        label: channel of the output, see :class:`MLILib.explanation.targets.Voxel`.
        index: of the voxel on the output's grid, in the order of the array's axes.
        share: of the energy that the box holds.

    Raises:
        BadInput: no such label or voxel, several images, a share outside 0 to 1, or a voxel that does not react.
    """
    if len(image) != 1:
        raise BadInput(f"An effective field belongs to one image, not to {len(image)}.", "", "Give one image.")
    slope = gradient(network, image, Voxel(label, tuple(index)))
    energy = slope[0].double().square().sum(0).cpu().numpy()
    total = float(energy.sum())
    if not total > 0:
        raise BadInput("This voxel's score does not react to the image: its gradient is 0.",
                       "Its units are off on this image.", "Choose another voxel or label.")  # fmt: skip
    energy = energy / total
    box = smallest_box(energy, share)
    inside = tuple(slice(low, up + 1) for low, up in zip(box.lower, box.upper, strict=True))
    return EffectiveField(box, energy, float(energy[inside].sum()))


def smallest_box(energy: np.ndarray, share: float = 0.95) -> Box:
    """The box with the fewest voxels that holds a share of the energy; the first of several in the order of the axes.

    Exact, by branch and bound: slabs of the first axis, strips of the second in each, windows of the third.

    Args:
        energy: of one to three axes, no number below 0, not all 0.
        share: above 0, at most 1.

    Raises:
        BadInput: `share` is none.
    """
    if not 0 < share <= 1:
        raise BadInput(f"A box cannot hold a share of {share:g} of the energy.", "", "Give a share from 0 to 1.")
    axes = energy.ndim
    volume = np.asarray(energy, np.float64).reshape((1,) * (3 - axes) + energy.shape)
    # sums are compared to rounding
    need = share * volume.sum() * (1 - 1e-12)
    occupied = [np.flatnonzero(volume.sum(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    start = [int(places[0]) for places in occupied]
    volume = volume[tuple(slice(int(places[0]), int(places[-1]) + 1) for places in occupied)]
    sums = np.pad(volume, ((1, 0),) * 3).cumsum(0).cumsum(1).cumsum(2)
    n, m, k = volume.shape
    # no box that holds enough is narrower than the shortest window of an axis' marginal
    narrowest = [_shortest(sums[:, -1, -1], need), _shortest(sums[-1, :, -1], need), _shortest(sums[-1, -1, :], need)]
    best, found = n * m * k + 1, ((0, n), (0, m), (0, k))
    for thick in range(narrowest[0], n + 1):
        if thick * narrowest[1] * narrowest[2] >= best:
            break
        for first in range(n - thick + 1):
            slab = sums[first + thick] - sums[first]
            if slab[-1, -1] < need:
                continue
            for wide in range(narrowest[1], m + 1):
                long = min(k, (best - 1) // (thick * wide))
                if long < narrowest[2]:
                    break
                strips = slab[wide:] - slab[:-wide]
                place = _window(strips, long, need)
                # shorter windows, for as long as one holds enough
                while place is not None:
                    best = thick * wide * long
                    found = ((first, first + thick), (place[0], place[0] + wide), (place[1], place[1] + long))
                    long -= 1
                    place = _window(strips, long, need) if long >= narrowest[2] else None
    lower = tuple(low + s for (low, _), s in zip(found, start, strict=True))
    upper = tuple(high - 1 + s for (_, high), s in zip(found, start, strict=True))
    return Box(lower[3 - axes :], upper[3 - axes :])


def _shortest(sums: np.ndarray, need: float) -> int:
    """Length of the shortest window, from running sums that begin with 0."""
    ends = np.searchsorted(sums, sums + need)
    reached = ends < len(sums)
    # the sum of all may fall short of `need` by rounding
    return int((ends - np.arange(len(sums)))[reached].min()) if reached.any() else len(sums) - 1


def _window(strips: np.ndarray, length: int, need: float) -> tuple[int, int] | None:
    """Strip and start of the first window of a length that holds enough, from running sums along each strip."""
    enough = strips[:, length:] - strips[:, :-length] >= need
    if not enough.any():
        return None
    strip, start = np.unravel_index(int(enough.argmax()), enough.shape)
    return int(strip), int(start)

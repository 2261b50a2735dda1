"""Raters: several label maps of one image on one grid, and the consensus that a fusion method makes of them.

A rater is a person, a model or an atlas whose labels were brought to the target. Voxels are held as indices into the
labels that any rater uses, so that methods work on small whole numbers from 0 (background) without gaps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from ..errors import BadInput
from ..geometry import Grid, from_array, same_grid
from ..labels import Label, label
from ..metrics import label_array

#: Part of an array on the raters' grid: one slice an axis, (z, y, x).
Region = tuple[slice, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Raters:
    """What several raters drew on one image.

    Attributes:
        grid: of every label map.
        names: of the raters, in order, no name twice.
        labels: what is drawn, without the background, by value.
        stack: (raters, z, y, x) or (raters, y, x), uint8 or uint16: 0 is background, i stands for labels[i - 1].
    """

    grid: Grid
    names: tuple[str, ...]
    labels: tuple[Label, ...]
    stack: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def values(self) -> npt.NDArray[np.int64]:
        """Label value of each index, (labels + 1,); 0 first."""
        return np.array([0, *(one.value for one in self.labels)], dtype=np.int64)

    def image(self, indices: npt.NDArray[Any]) -> sitk.Image:
        """Indices on the raters' grid as an image of label values."""
        values = self.values
        return from_array(values.astype(np.min_scalar_type(int(values.max())))[indices], self.grid)

    def only(self, chosen: Sequence[int]) -> Raters:
        """Some of the raters, in the given order; the labels stay."""
        return dataclasses.replace(
            self, names=tuple(self.names[i] for i in chosen), stack=self.stack[np.asarray(chosen, dtype=np.intp)]
        )

    def union(self) -> npt.NDArray[np.bool_]:
        """Voxels where any rater drew something, (z, y, x)."""
        out = np.zeros(self.stack.shape[1:], dtype=bool)
        for one in self.stack:
            out |= one != 0
        return out

    def agreed(self) -> npt.NDArray[np.bool_]:
        """Voxels where all raters say the same, (z, y, x)."""
        out = np.ones(self.stack.shape[1:], dtype=bool)
        for one in self.stack[1:]:
            out &= one == self.stack[0]
        return out

    def box(self, margin: int = 0) -> Region:
        """The smallest box that holds what any rater drew, `margin` voxels wider on each side, within the image."""
        return box_around(self.union(), margin)

    def whole(self) -> Region:
        """The whole image."""
        return tuple(slice(0, n) for n in self.stack.shape[1:])


def box_around(mask: npt.NDArray[np.bool_], margin: int = 0) -> Region:
    """The smallest box that holds the true voxels, of which there is one or more, and `margin` voxels beyond."""
    found = []
    for axis, n in enumerate(mask.shape):
        along = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        found.append(slice(max(int(along[0]) - margin, 0), min(int(along[-1]) + 1 + margin, n)))
    return tuple(found)


def raters(
    images: Sequence[sitk.Image], names: Sequence[str] = (), label_names: Mapping[int, str] | None = None
) -> Raters:
    """The raters that drew `images`.

    Args:
        images: label maps of whole numbers from 0, on one grid.
        names: of the raters; by default "rater 1", ...
        label_names: of label values; by default the value as text.

    Raises:
        BadInput: none, not on one grid, no label maps, or nothing drawn by anybody.
    """
    if not images:
        raise BadInput("There is nobody to fuse.", "No label map was given.", "Give the label maps of the raters.")
    names = tuple(names) or tuple(f"rater {i}" for i in range(1, len(images) + 1))
    if len(names) != len(images) or len(set(names)) != len(names):
        raise BadInput(
            f"{len(images)} label maps have {len(set(names))} names.", "", "Name each rater, and none like another."
        )
    for name, image in zip(names, images, strict=True):
        if not same_grid(images[0], image):
            raise BadInput(
                f"The labels of {name} are not on the grid of {names[0]}.",
                "They were drawn on another image, or resampled.",
                "Resample them to one grid, or give the target image and the atlases instead.",
            )
    # Arrays are made twice rather than kept: a copy of an image is quick, and all at once would double the memory.
    drawn = (_values(label_array(image, name)) for name, image in zip(names, images, strict=True))
    values = sorted(set().union(*drawn) - {0})
    if not values:
        raise BadInput(
            "The labels of all raters are empty.", "No voxel of any of them is other than 0.", "Give the drawn labels."
        )
    stack = np.empty((len(images), *Grid.of(images[0]).shape), dtype=np.uint8 if len(values) < 256 else np.uint16)
    for one, name, image in zip(stack, names, images, strict=True):
        _renumber(label_array(image, name), values, one)
    found = tuple(label(value, (label_names or {}).get(value, str(value)), {}) for value in values)
    return Raters(Grid.of(images[0]), names, found, stack)


def _values(array: npt.NDArray[Any]) -> set[int]:
    """The values that occur."""
    most = int(array.max(initial=0))
    if most >= 1 << 16:
        return set(np.unique(array).tolist())
    seen = np.zeros(most + 1, dtype=bool)
    for part in array:
        seen[part] = True
    return set(np.flatnonzero(seen).tolist())


def _renumber(array: npt.NDArray[Any], values: Sequence[int], out: npt.NDArray[Any]) -> None:
    """Write 0 for 0 and i + 1 for values[i], which ascend."""
    if values[-1] == len(values):
        out[...] = array
    elif values[-1] < 1 << 16:
        number = np.zeros(values[-1] + 1, dtype=out.dtype)
        number[list(values)] = np.arange(1, len(values) + 1)
        for part, target in zip(array, out, strict=True):
            target[...] = number[part]
    else:
        out[...] = np.searchsorted([0, *values], array)


@dataclasses.dataclass(frozen=True, eq=False)
class Consensus:
    """What a fusion method makes of raters.

    Attributes:
        indices: (z, y, x), of the raters' labels; 0 is background.
        probabilities: (labels + 1, z, y, x) float32 that sum to 1, background first; None where not asked for.
        weights: (raters,) or (raters, labels): trust in each rater, in the method's own measure; None without one.
        sensitivity, specificity: (raters, labels) as the method estimates them; None where it does not.
        kept: (raters,) bool; False for a rater that was left out.
        region: the box outside of which nothing was computed: all voxels there are background.
        voxels: how many voxels the estimate was made from.
        ties: voxels where labels had the same support; the lowest value won.
        iterations: of an iterative method, else 0.
        notes: sentences for the reader about what was decided for him.
    """

    indices: npt.NDArray[Any]
    kept: npt.NDArray[np.bool_]
    region: Region
    voxels: int
    probabilities: npt.NDArray[np.float32] | None = None
    weights: npt.NDArray[np.float64] | None = None
    sensitivity: npt.NDArray[np.float64] | None = None
    specificity: npt.NDArray[np.float64] | None = None
    ties: int = 0
    iterations: int = 0
    notes: tuple[str, ...] = ()

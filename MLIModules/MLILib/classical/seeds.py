"""Seeds that a method starts from: scribbles in a label map, or points, on the image's grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from ..errors import BadInput
from ..geometry import Grid, describe
from ..registration import landmarks
from ..segmentation import label_files
from ..segmentation.label_files import LabelFile


@dataclasses.dataclass(frozen=True, eq=False)
class Seeds:
    """Where something is known.

    Attributes:
        values: 0 where nothing is known, n in the object called `names[n - 1]`, (z, y, x).
        background: where there is none of them, same shape.
        names: of the objects.
    """

    values: npt.NDArray[np.integer[Any]]
    background: npt.NDArray[np.bool_]
    names: tuple[str, ...]

    def require(self, *, both: bool) -> None:
        """Raise :class:`BadInput` where a method lacks what it starts from."""
        if not self.names or not (self.values > 0).any():
            raise BadInput("No seed lies in what is sought.", "All mark background, or are off the image.", "Add some.")
        if both and not self.background.any():
            raise BadInput(
                "No seed marks background.",
                "The method learns from both sides.",
                "Draw scribbles in the background, in a segment called background, or name theirs with --background.",
            )


def read(
    seeds: str, points: str, background: str, point_radius: float, grid: Grid, names: Mapping[int, str] | None = None
) -> Seeds:
    """Scribbles and points from files.

    Args:
        seeds: label map or .seg.nrrd, "" for none.
        points: markups, "" for none: all unlabelled and otherwise labelled points mark one object.
        background: name or value of what marks background.
        point_radius: of a point's ball, mm.
        grid: of the image.
        names: of the values of the scribbles; by default those in the file.

    Raises:
        BadInput: they cannot be read, or lie on another grid.
    """
    found = _scribbles(seeds, background, grid, names or {}) if seeds else Seeds(*_empty(grid), ())
    if points:
        found = _with_points(found, landmarks.read(points), background, point_radius, grid)
    return found


def of_image(scribbles: sitk.Image, background: int, names: Mapping[int, str] | None = None) -> Seeds:
    """Scribbles in memory: what is not 0 marks the object of that value, or background."""
    array = sitk.GetArrayFromImage(scribbles)
    return _numbered(array, [int(v) for v in np.unique(array) if v not in (0, background)], background, names or {})


def _empty(grid: Grid) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    return np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, bool)


def _numbered(array: npt.NDArray[Any], values: Sequence[int], background: int, names: Mapping[int, str]) -> Seeds:
    numbers = np.zeros(array.shape, np.min_scalar_type(len(values) + 1))
    for i, value in enumerate(values, start=1):
        numbers[array == value] = i
    return Seeds(numbers, array == background, tuple(names.get(v, f"Segment {v}") for v in values))


def _scribbles(path: str, background: str, grid: Grid, names: Mapping[int, str]) -> Seeds:
    from ..fusion.atlas_labels import placed

    found = label_files.read(path, names)
    layers = []
    for layer in found.layers:
        one = placed(LabelFile(found.grid, (layer,), (), found.segments), grid)
        if one is None:
            raise BadInput(
                f"The seeds {path} are not on the image's grid.",
                f"They have {describe(found.grid)}, the image {describe(grid)}.",
                "Draw them on the image itself.",
            )
        layers.append(one.layers[0])
    values, dark = _empty(grid)
    called: list[str] = []
    for label in found.labels:
        there = layers[label.layer] == label.value
        if label.value == 0 or not there.any():
            continue
        if label.name.lower() == background.lower() or (not found.segments and str(label.value) == background):
            dark |= there
            continue
        called.append(label.name if label.named else f"Segment {label.value}")
        if len(called) > 255:
            raise BadInput(f"{path} has more than 255 labels.", "It is no map of scribbles.", "Give scribbles.")
        values[there] = len(called)
    dark &= values == 0
    return Seeds(values, dark, tuple(called))


def _with_points(found: Seeds, points: landmarks.Landmarks, background: str, radius: float, grid: Grid) -> Seeds:
    names = list(found.names)
    number = len(names) + 1
    inverse = np.linalg.inv(grid.matrix())
    d = grid.dimension
    added = False
    for point, label in zip(points.points, points.labels, strict=True):
        index = (inverse @ np.append(point[:d], 1.0))[:d]
        off = np.maximum(-0.5 - index, index - (np.array(grid.size) - 0.5)).max()
        if off > 1e-6:
            raise BadInput(
                f"The point {label or tuple(float(x) for x in point)} lies outside of the image.",
                "It belongs to another image, or its coordinates are RAS in a file that says LPS.",
                "Place it in the image.",
            )
        there = _ball(index, radius, grid)
        if label.lower() == background.lower():
            found.background[there] = True
        else:
            found.values[there] = number
            added = True
    return Seeds(found.values, found.background & (found.values == 0), (*names, "Segment 1") if added else tuple(names))


def _ball(index: npt.NDArray[np.float64], radius: float, grid: Grid) -> tuple[npt.NDArray[np.intp], ...]:
    """Voxels (z, y, x) whose centre lies within `radius` mm of a point, and the one that holds it."""
    near = np.clip(np.rint(index).astype(int), 0, np.array(grid.size) - 1)
    reach = np.floor(radius / np.array(grid.spacing)).astype(int) + 1
    low, high = np.maximum(near - reach, 0), np.minimum(near + reach, np.array(grid.size) - 1)
    axes = [np.arange(a, b + 1) for a, b in zip(low, high, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    distance = np.linalg.norm((places - index) * np.array(grid.spacing), axis=1)
    chosen = places[(distance <= radius) | (places == near).all(axis=1)]
    return tuple(chosen[:, ::-1].T)

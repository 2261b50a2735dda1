"""Label maps as files: which labels a file holds, where, and under which names.

Plain label maps, and Slicer's .seg.nrrd, whose segments have names, may overlap (in layers), and may lie in an image
that was cropped to them. Labels of two files are paired by name where they have names, else by value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from .. import files, images
from ..errors import BadInput
from ..geometry import Grid
from ..metrics import GRID_TOLERANCE, Place, label_array, values

#: Files that may hold labels, in a folder of them.
SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".tif", ".tiff", ".bmp")


@dataclasses.dataclass(frozen=True)
class Label:
    """One label of a file.

    Attributes:
        name: from the file or the user, else the value as text.
        named: whether somebody gave it that name.
        layer: index of the layer it lies in; 0 in a plain label map.
        value: its value there.
    """

    name: str
    named: bool
    layer: int
    value: int

    @property
    def place(self) -> Place:
        """The layer and the value."""
        return self.layer, self.value


@dataclasses.dataclass(frozen=True, eq=False)
class LabelFile:
    """A label map that was read.

    Attributes:
        grid: where its voxels are.
        layers: arrays of shape (z, y, x) or (y, x), whole numbers from 0.
        labels: what they hold; a .seg.nrrd lists its empty segments, too.
        segments: whether the file is Slicer's .seg.nrrd, whose image may be cropped to the segments.
    """

    grid: Grid
    layers: tuple[npt.NDArray[Any], ...]
    labels: tuple[Label, ...]
    segments: bool


def read(path: str | Path, names: Mapping[int, str] | None = None) -> LabelFile:
    """Read a label map.

    Args:
        path: any image file of 2-D or 3-D labels, or Slicer's .seg.nrrd, with overlapping segments or not.
        names: the user's names of label values; they come before those in the file.

    Raises:
        BadInput: not a readable label map, or `names` names a value that several segments share.
    """
    image = _read_image(path)
    count = image.GetNumberOfComponentsPerPixel()
    parts = [image] if count == 1 else [sitk.VectorIndexSelectionCast(image, i) for i in range(count)]
    layers = tuple(label_array(part, str(path)) for part in parts)
    segments = _segments(path, image)
    if segments is None:
        found = {*values(layers[0]), *(names or {})}
        labels = [Label(str(value), False, 0, value) for value in sorted(found)]
    else:
        labels = segments
    return LabelFile(Grid.of(image), layers, _renamed(path, labels, names or {}), segments is not None)


def read_on(path: str, image: sitk.Image, name: str, remedy: str) -> LabelFile:
    """Read labels that were drawn on an image; one slice of three dimensions serves a picture of two.

    Args:
        path: of the labels.
        image: what they were drawn on.
        name: its file.
        remedy: what the reader is told to do where the two have different dimensions.

    Raises:
        BadInput: they have different dimensions, or it is no label map.
    """
    found = read(path)
    if found.grid.dimension == 3 and image.GetDimension() == 2:
        found = picture(found)
    if found.grid.dimension != image.GetDimension():
        raise BadInput(
            f"{path} is {found.grid.dimension}-D and {name} {image.GetDimension()}-D.",
            "They do not belong together.",
            remedy,
        )
    return found


def pair(ours: Sequence[Label], theirs: Sequence[Label]) -> tuple[list[tuple[str, Label | None, Label | None]], str]:
    """Which label of a prediction stands for which of a reference.

    Labels with the same name are a pair, whatever their capitals. Of the rest, labels with the same value are one when
    at most one of them was given a name, or when no names agree at all. What is left has no partner.

    Returns:
        A name with the label on each side, None where there is none; and a sentence for the reader when labels with
        different names were paired, else "".
    """
    theirs_by_name = {label.name.casefold(): label for label in theirs} | {label.name: label for label in theirs}
    partner = {label: theirs_by_name.get(label.name) for label in ours}
    exact = {other for other in partner.values() if other is not None}
    for label in (label for label, other in partner.items() if other is None):
        other = theirs_by_name.get(label.name.casefold())
        if other is not None and other not in exact:
            partner[label] = other
            exact.add(other)
    agreed = any(other is not None for other in partner.values())
    taken = {other for other in partner.values() if other is not None}
    rest = [label for label in theirs if label not in taken]
    renamed = []
    for label in [label for label, other in partner.items() if other is None]:
        same = [other for other in rest if other.value == label.value]
        rivals = [other for other in ours if partner[other] is None and other.value == label.value]
        if len(same) != 1 or len(rivals) != 1 or (agreed and label.named and same[0].named):
            continue
        partner[label] = same[0]
        rest.remove(same[0])
        if label.named and same[0].named:
            renamed.append(f"{label.name} with {same[0].name}")
    found: list[tuple[str, Label | None, Label | None]] = [
        (label.name if other is None or not other.named else other.name, label, other)
        for label, other in partner.items()
    ]
    found += [(label.name, None, label) for label in rest]
    note = f"No names agree, so labels of one value were compared: {', '.join(renamed)}." if renamed else ""
    return sorted(found, key=_order), note


def on_one_grid(prediction: LabelFile, reference: LabelFile) -> tuple[LabelFile, LabelFile, str]:
    """Undo what a format did to the extent of one of two label maps of the same image.

    Slicer crops a .seg.nrrd to its segments: both are put on the smallest grid that holds both, where the grids differ
    by whole voxels. A 2-D image may have been kept as a volume with one slice: it is taken as 2-D again. What differs
    in another way is left as it is.

    Returns:
        Both label maps, and a sentence for the reader when one was extended, else "".
    """
    if prediction.grid.dimension != reference.grid.dimension:
        prediction, reference = picture(prediction), picture(reference)
    ours, theirs = prediction.grid, reference.grid
    if not (prediction.segments or reference.segments) or ours.dimension != theirs.dimension:
        return prediction, reference, ""
    step = np.linalg.solve(theirs.matrix(), ours.matrix())  # our index -> their index
    d = ours.dimension
    shift = np.rint(step[:d, d])
    ends = np.array([np.zeros(d), np.array(ours.size) - 1.0]).T
    off = step[:d, :d] @ ends + step[:d, d:] - (ends + shift[:, None])
    if np.abs(off).max() > GRID_TOLERANCE or (not shift.any() and ours.size == theirs.size):
        return prediction, reference, ""
    low = np.minimum(0, shift).astype(int)
    high = np.maximum(theirs.size, shift + ours.size).astype(int)
    whole = Grid(
        tuple(int(n) for n in high - low),
        theirs.spacing,
        tuple(float(x) for x in (theirs.matrix() @ np.append(low, 1.0))[:d]),
        theirs.direction,
    )
    start = shift.astype(int) - low
    note = "The two images have different extents; what lies outside one was taken as background there."
    return _padded(prediction, whole, start), _padded(reference, whole, -low), note


def picture(file: LabelFile) -> LabelFile:
    """A volume with one slice as the 2-D image that it is; anything else unchanged."""
    if file.grid.dimension != 3 or file.grid.size[2] != 1:
        return file
    size, spacing, origin, direction = dataclasses.astuple(file.grid)
    flat = Grid(size[:2], spacing[:2], origin[:2], (*direction[0:2], *direction[3:5]))
    return dataclasses.replace(file, grid=flat, layers=tuple(layer[0] for layer in file.layers))


def _padded(file: LabelFile, whole: Grid, start: npt.NDArray[Any]) -> LabelFile:
    end = np.array(whole.size) - start - file.grid.size
    margins = [(int(a), int(b)) for a, b in zip(start, end, strict=True)][::-1]
    return dataclasses.replace(file, grid=whole, layers=tuple(np.pad(layer, margins) for layer in file.layers))


def _read_image(path: str | Path) -> sitk.Image:
    if files.suffix(path) != ".seg.nrrd" or not Path(path).is_file():
        return images.read(path)
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise BadInput(
            f"{path} cannot be read.",
            f"It is not a segmentation, or it is damaged ({reason}).",
            "Save the segmentation again.",
        ) from error


def _segments(path: str | Path, image: sitk.Image) -> list[Label] | None:
    """The segments that the header of a .seg.nrrd lists, None for another file.

    Versions of Slicer before 4.11 wrote neither layer nor value: one layer a segment, value 1.
    """
    labels: list[Label] = []
    while image.HasMetaDataKey(f"Segment{len(labels)}_ID"):
        key = f"Segment{len(labels)}_"
        text = {
            name: image.GetMetaData(key + name) if image.HasMetaDataKey(key + name) else default
            for name, default in (
                ("Name", f"Segment {len(labels) + 1}"),
                ("Layer", f"{len(labels)}"),
                ("LabelValue", "1"),
            )
        }
        try:
            labels.append(Label(text["Name"], True, int(text["Layer"]), int(text["LabelValue"])))
        except ValueError as error:
            raise BadInput(f"{path} has a damaged header.", f"{key}: {error}.", "Save it again in Slicer.") from error
    if not labels:
        if image.GetNumberOfComponentsPerPixel() > 1:
            raise BadInput(
                f"{path} has {image.GetNumberOfComponentsPerPixel()} values a voxel.",
                "Its header does not list the segments that would explain them.",
                "Save the segmentation again in Slicer.",
            )
        return None
    if max(label.layer for label in labels) >= image.GetNumberOfComponentsPerPixel():
        raise BadInput(
            f"{path} lists segments in more layers than it has ({image.GetNumberOfComponentsPerPixel()}).",
            "It was changed by a program that does not know segmentations.",
            "Save the segmentation again in Slicer.",
        )
    return labels


def _renamed(path: str | Path, labels: Sequence[Label], names: Mapping[int, str]) -> tuple[Label, ...]:
    """The labels with the user's names, and no name twice."""
    found = []
    for label in labels:
        if label.value in names:
            if sum(other.value == label.value for other in labels) > 1:
                raise BadInput(
                    f"The name {names[label.value]!r} cannot be given to the label {label.value} of {path}.",
                    "Its segments overlap, and several have this value.",
                    "Leave out the names: the segments have names of their own.",
                )
            label = dataclasses.replace(label, name=names[label.value], named=True)
        found.append(label)
    return tuple(_told_apart(label, found) for label in found)


def _told_apart(label: Label, labels: Sequence[Label]) -> Label:
    """The label; with its place in the name where others have the same name."""
    same = [other for other in labels if other.name == label.name]
    if len(same) == 1:
        return label
    place = f"label {label.value}"
    if any(other.layer != label.layer for other in same):
        place = f"layer {label.layer}, {place}"
    return dataclasses.replace(label, name=f"{label.name} ({place})")


def _order(entry: tuple[str, Label | None, Label | None]) -> tuple[int, int, bool, str]:
    """By layer and value, those of the reference before what only the prediction has."""
    name, ours, theirs = entry
    label = theirs or ours
    assert label is not None
    return label.layer, label.value, theirs is None, name

"""The labels of several label maps under common values: names, colours, and which values do not fit together.

Segments of .seg.nrrd files are the same label where they have one name, whatever their values; labels of plain label
maps where they have one value.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .. import files, labels
from ..errors import BadInput
from ..geometry import Grid, from_array, same_grid
from ..metrics import GRID_TOLERANCE, values
from ..segmentation import label_files
from ..segmentation.label_files import LabelFile

#: What a colour or coded meaning is called in the header of a .seg.nrrd, after "Segment0_".
_COLOUR, _TAGS = "Color", "Tags"
_TERMINOLOGY = "TerminologyEntry:"


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What one label map says of its labels, without its voxels.

    Attributes:
        name: of the atlas or rater.
        names: of the label values that it holds or lists, 0 left out.
        present: the values that occur.
        named: whether the names are somebody's, and not the values as text.
        styles: colour and coded meaning by name.
    """

    name: str
    names: Mapping[int, str]
    present: frozenset[int]
    named: bool
    styles: Mapping[str, labels.Label]


def read(path: str | Path, names: Mapping[int, str] | None = None) -> LabelFile:
    """A label map, or a .seg.nrrd whose segments do not overlap.

    Args:
        names: the user's names of values, which come before those of segments. Plain label maps get theirs in
            :func:`common`.

    Raises:
        BadInput: it cannot be read, is no label map, or its segments overlap.
    """
    found = label_files.read(path, names if files.suffix(path) == ".seg.nrrd" else None)
    if len(found.layers) > 1:
        raise BadInput(
            f"The segments of {path} overlap.",
            f"They lie in {len(found.layers)} layers; fusion gives each voxel one label.",
            "Save them as a label map, or in a segmentation without overlap.",
        )
    return found


def drawn(found: LabelFile, name: str, path: str | Path = "") -> Drawn:
    """What a label map that was read says of its labels.

    Args:
        path: of the file, where a .seg.nrrd may hold colours.
    """
    present = frozenset(values(found.layers[0]))
    names = {one.value: one.name for one in found.labels if one.value != 0}
    named = any(one.named for one in found.labels)
    return Drawn(name, names, present, named, _styles(path) if found.segments else {})


def _styles(path: str | Path) -> dict[str, labels.Label]:
    """Colours and coded meanings in the header of a .seg.nrrd, by the segments' names."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    out: dict[str, labels.Label] = {}
    i = 0
    while reader.HasMetaDataKey(f"Segment{i}_Name"):
        name = reader.GetMetaData(f"Segment{i}_Name")
        text = {
            key: reader.GetMetaData(f"Segment{i}_{key}") if reader.HasMetaDataKey(f"Segment{i}_{key}") else ""
            for key in (_COLOUR, _TAGS)
        }
        try:
            red, green, blue = (float(c) for c in text[_COLOUR].split())
        except ValueError:  # no colour, or none that can be read: it gets one of its own
            color = labels.label(i + 1, name, {}).color
        else:
            color = (red, green, blue)
        tags = [one for one in text[_TAGS].split("|") if one.startswith(_TERMINOLOGY)]
        out[name] = labels.Label(0, name, color, tags[0].removeprefix(_TERMINOLOGY) if tags else "")
        i += 1
    return out


@dataclasses.dataclass(frozen=True)
class Common:
    """The labels that several label maps share.

    Attributes:
        labels: by value, without the background.
        warnings: sentences about labels that only some hold.
    """

    labels: tuple[labels.Label, ...]
    warnings: tuple[str, ...]

    def image(self, found: LabelFile, grid: Grid | None = None) -> sitk.Image:
        """A label map in the common values.

        Args:
            grid: where it should lie, if its file says so only roughly.
        """
        array = found.layers[0]
        ours = {one.name: one.value for one in self.labels}
        highest = max(ours.values(), default=1)
        out = np.zeros(array.shape, dtype=np.min_scalar_type(highest))
        present = set(values(array))
        for one in found.labels:
            if one.value in present:
                value = ours[one.name] if one.named else one.value
                out[array == one.value] = value
        return from_array(out, grid or found.grid)


def common(maps: Sequence[Drawn], names: Mapping[int, str] | None = None, given: str = "") -> Common:
    """The common labels of several label maps.

    Args:
        maps: of all atlases or raters, in order.
        names: of label values, declared by a data set or the user; plain label maps may hold no others.
        given: who declared them, for an error.

    Raises:
        BadInput: nothing is drawn, a value was not declared, or two label maps have different sets of values.
    """
    names = names or {}
    if not any(one.present for one in maps):
        raise BadInput(
            "All label maps are empty.", "No voxel of any of them is other than 0.", "Give the labels that were drawn."
        )
    segments = [one for one in maps if one.named]
    plain = [one for one in maps if not one.named]
    found = _by_name(segments, names)
    if plain and segments:
        stray = sorted(set().union(*(one.present for one in plain)) - set(found.values()))
        if stray:
            holder = next(one for one in plain if stray[0] in one.present)
            raise BadInput(
                f"The labels of {holder.name} hold the value {stray[0]}, which has no name.",
                f"Those of {segments[0].name} are segments with names, and none has this value.",
                "Give segmentations or label maps alone, or name the values.",
            )
    elif plain:
        _require_declared(plain, names, given)
        if not names:
            _require_like_sets(plain)
        present = set().union(*(one.present for one in plain))
        found = {names.get(value, str(value)): value for value in sorted(present | set(names))}
    styles = {name: style for one in reversed(segments) for name, style in one.styles.items()}
    made = []
    for name, value in sorted(found.items(), key=lambda item: item[1]):
        style = styles.get(name)
        own = labels.label(value, name, {})
        made.append(labels.Label(value, name, style.color, style.terminology) if style else own)
    return Common(tuple(made), tuple(_lacking(maps, found)))


def _by_name(segments: Sequence[Drawn], names: Mapping[int, str]) -> dict[str, int]:
    """The value of each name: declared, else the one it has in its first file if that is free, else the next free."""
    found = {name: value for value, name in names.items()} if segments else {}
    later = []
    for one in segments:
        for value, name in one.names.items():
            if name in found:
                continue
            if value in found.values():
                later.append(name)
            else:
                found[name] = value
    for name in dict.fromkeys(later):
        if name not in found:
            found[name] = max(found.values()) + 1
    return found


def _require_declared(maps: Sequence[Drawn], names: Mapping[int, str], given: str) -> None:
    for one in maps:
        unknown = sorted(one.present - set(names))
        if names and unknown:
            raise BadInput(
                f"The labels of {one.name} hold the value {unknown[0]}, which has no name.",
                f"{given or 'The list of labels'} names {_few(sorted(names))}.",
                "Correct the label map, or name the value.",
            )


def _require_like_sets(maps: Sequence[Drawn]) -> None:
    """Raise :class:`BadInput` for label maps in different codes: a mask of 255 among masks of 1, for instance.

    A rater may lack labels. But two that share none, or one that lacks what all others have and has what none of them
    has, did not mean the same by their numbers.
    """
    some = [one for one in maps if one.present]
    for a, b in itertools.combinations(some, 2):
        if not a.present & b.present:
            raise _different(a, b)
    for one in some:
        others = [other for other in some if other is not one]
        if not others:
            continue
        private = one.present - frozenset[int]().union(*(other.present for other in others))
        lacks = frozenset.intersection(*(other.present for other in others)) - one.present
        if private and lacks:
            raise _different(one, others[0])


def _different(a: Drawn, b: Drawn) -> BadInput:
    return BadInput(
        f"The labels of {a.name} and {b.name} have different values: {_few(sorted(a.present))} and "
        f"{_few(sorted(b.present))}.",
        "They were drawn in different codes.",
        "Bring them to one code, or name the values if they do mean the same.",
    )


def _lacking(maps: Sequence[Drawn], found: Mapping[str, int]) -> list[str]:
    """A sentence for each label that some label maps lack."""
    out = []
    for name, value in sorted(found.items(), key=lambda item: item[1]):
        lack = [one.name for one in maps if not _has(one, name, value)]
        if len(lack) == len(maps):
            out.append(f"No one has drawn the label {name}.")
        elif lack:
            have = len(maps) - len(lack)
            out.append(f"{have} of {len(maps)} have drawn the label {name}; {_few(lack)} {_do(lack)} not.")
    return out


def _has(one: Drawn, name: str, value: int) -> bool:
    if not one.named:
        return value in one.present
    return any(other == name and own in one.present for own, other in one.names.items())


def _do(names: Sequence[str]) -> str:
    return "does" if len(names) == 1 else "do"


def _few(items: Sequence[object]) -> str:
    shown = ", ".join(str(one) for one in items[:4])
    return shown if len(items) <= 4 else f"{shown} and {len(items) - 4} more"


def placed(found: LabelFile, grid: Grid) -> LabelFile | None:
    """The labels on `grid`, where they lie there or differ in extent only, as Slicer crops a .seg.nrrd; else None.

    What lies outside of `grid` is cut off.
    """
    if found.grid.dimension != grid.dimension:
        found = label_files.picture(found)
    if same_grid(grid, found.grid, GRID_TOLERANCE):
        return dataclasses.replace(found, grid=grid)
    if not found.segments or found.grid.dimension != grid.dimension:
        return None
    d = grid.dimension
    step = np.linalg.solve(grid.matrix(), found.grid.matrix())  # its index -> ours
    shift = np.rint(step[:d, d]).astype(int)
    off = step[:d] - np.eye(d, d + 1)
    off[:, d] -= shift
    if (np.abs(off) @ np.append(found.grid.size, 1.0)).max() > GRID_TOLERANCE:
        return None
    array = np.zeros(grid.shape, dtype=found.layers[0].dtype)
    ours, theirs = [], []
    for start, n, whole in zip(shift[::-1], found.grid.shape, grid.shape, strict=True):
        low, high = max(start, 0), min(start + n, whole)
        if high <= low:
            return dataclasses.replace(found, grid=grid, layers=(array,))
        ours.append(slice(low, high))
        theirs.append(slice(low - start, high - start))
    array[tuple(ours)] = found.layers[0][tuple(theirs)]
    return dataclasses.replace(found, grid=grid, layers=(array,))


def rater_names(paths: Sequence[str]) -> list[str]:
    """A name for each file: its own without the ending, or with its folder where two would be called the same."""
    stems = [files.stem(path) for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    longer = [f"{Path(path).absolute().parent.name}/{stem}" for path, stem in zip(paths, stems, strict=True)]
    return longer if len(set(longer)) == len(longer) else [f"{name} ({i})" for i, name in enumerate(longer, start=1)]

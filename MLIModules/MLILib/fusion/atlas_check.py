"""The task "atlases check": whether an atlas set is sound, before hours are spent on registering it.

Looks for images without labels, files that cannot be read, labels on other grids than their image, unknown and missing
labels, and the same image or labels twice.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import SimpleITK as sitk

from .. import images
from ..errors import MLIError
from ..geometry import Grid, describe
from ..progress import Progress
from ..segmentation.label_files import LabelFile
from . import atlas_labels, atlas_sets, cache
from .atlas_labels import Drawn
from .atlas_sets import Atlas, AtlasSet
from .requests import AtlasesCheckRequest

#: What can be wrong, by the word that the result uses for it.
KINDS = {
    "missing": "a listed file is not there",
    "unlabelled": "an image has no labels",
    "orphan": "a label map has no image",
    "unreadable": "a file cannot be read",
    "grid": "labels are not on their image's grid",
    "empty": "a label map is empty",
    "unknown": "a label that the set does not know",
    "lacking": "a label that the others have is not drawn",
    "duplicate": "the same image or labels twice",
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that is wrong with a set.

    Attributes:
        kind: one of :data:`KINDS`.
        atlas: its name, or the file's.
        text: a sentence.
    """

    kind: str
    atlas: str
    text: str


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What was read of an atlas."""

    atlas: Atlas
    grid: Grid
    drawn: Drawn
    image: str  # hashes of the voxels
    labels: str


def run(request: AtlasesCheckRequest, progress: Progress) -> dict[str, Any]:
    """Look at an atlas set.

    Returns:
        Plain values: ok (nothing is wrong), atlases (how many), problems (kind, atlas, text), labels (value, name,
        atlases that have it), grids (in words, with how many atlases), stages and text.

    Raises:
        BadInput: there is no atlas set to look at, or its files can be paired in two ways.
    """
    found = atlas_sets.find(request.atlases)
    progress.stage("Reading atlases")
    problems = [*_of_files(found)]
    seen: list[_Seen] = []
    for number, atlas in enumerate(found.atlases):
        progress.fraction(number / len(found.atlases))
        one = _read(atlas, problems)
        if one is not None:
            seen.append(one)
    progress.fraction(1.0)
    problems += _of_labels(found, seen)
    problems += _duplicates(seen)
    labels = _labels(found, seen)
    grids = Counter(describe(dataclasses.replace(one.grid, origin=(0.0,) * one.grid.dimension)) for one in seen)
    return {
        "ok": not problems,
        "atlases": len(found.atlases),
        "problems": [dataclasses.asdict(one) for one in problems],
        "labels": labels,
        "grids": [{"grid": text.partition(" at ")[0], "atlases": n} for text, n in grids.most_common()],
        "stages": progress.finish(),
        "text": _text(found, problems, labels, len(grids)),
    }


def _of_files(found: AtlasSet) -> Iterator[Problem]:
    for path in found.missing:
        yield Problem("missing", path, f"{path} is listed and does not exist.")
    for path in found.unlabelled:
        yield Problem("unlabelled", path, f"The image {path} has no labels.")
    for path in found.orphans:
        yield Problem("orphan", path, f"The label map {path} has no image.")


def _read(atlas: Atlas, problems: list[Problem]) -> _Seen | None:
    """What there is to say of an atlas; None where it cannot be read."""
    image: sitk.Image | None = None
    file: LabelFile | None = None
    try:
        image = images.read(atlas.image)
        images.check(image, atlas.image)
    except MLIError as error:
        problems.append(Problem("unreadable", atlas.name, str(error)))
    try:
        file = atlas_labels.read(atlas.labels)
    except MLIError as error:
        problems.append(Problem("unreadable", atlas.name, str(error)))
    if image is None or file is None:
        return None
    grid = Grid.of(image)
    if atlas_labels.placed(file, grid) is None:
        text = f"{atlas.name}: the labels have {describe(file.grid)}, the image has {describe(grid)}."
        problems.append(Problem("grid", atlas.name, text))
    drawn = atlas_labels.drawn(file, atlas.name, atlas.labels)
    if not drawn.present:
        problems.append(Problem("empty", atlas.name, f"The labels of {atlas.name} are empty."))
    labels = cache.content(sitk.GetImageFromArray(file.layers[0])) if drawn.present else ""
    return _Seen(atlas, grid, drawn, cache.content(image), labels)


def _names(one: Drawn, declared: Mapping[int, str]) -> list[str]:
    """The names of the labels that are drawn."""
    return [one.names[value] if one.named else declared.get(value, str(value)) for value in sorted(one.present)]


def _of_labels(found: AtlasSet, seen: list[_Seen]) -> Iterator[Problem]:
    """Labels that are not declared, and declared ones that are lacking; by the majority where nothing is declared."""
    counts = Counter(name for one in seen for name in _names(one.drawn, found.names))
    if found.names:
        known, says = set(found.names.values()), "dataset.json does not name"
    else:
        known = {name for name, n in counts.items() if 2 * n >= len(seen)}
        says = "most atlases do not have"
    for one in seen:
        here = _names(one.drawn, found.names)
        for name in here:
            if name not in known:
                yield Problem("unknown", one.atlas.name, f"{one.atlas.name} has the label {name}, which {says}.")
        for name in sorted(known - set(here)) if here else ():
            yield Problem("lacking", one.atlas.name, f"{one.atlas.name} lacks the label {name}.")


def _duplicates(seen: list[_Seen]) -> Iterator[Problem]:
    for what, prints in (
        ("image", {one.atlas.name: one.image for one in seen}),
        ("labels", {one.atlas.name: one.labels for one in seen if one.labels}),
    ):
        first: dict[str, str] = {}
        for name, fingerprint in prints.items():
            if fingerprint in first:
                verb = "is" if what == "image" else "are"
                text = f"The {what} of {name} {verb} that of {first[fingerprint]}, voxel by voxel."
                yield Problem("duplicate", name, text if what == "image" else text.replace("that of", "those of"))
            first.setdefault(fingerprint, name)


def _labels(found: AtlasSet, seen: list[_Seen]) -> list[dict[str, Any]]:
    counts = Counter(name for one in seen for name in _names(one.drawn, found.names))
    values = {name: value for value, name in found.names.items()}
    for one in seen:
        for value in sorted(one.drawn.present):
            name = one.drawn.names[value] if one.drawn.named else found.names.get(value, str(value))
            values.setdefault(name, value)
    return [
        {"value": value, "name": name, "atlases": counts[name]}
        for name, value in sorted(values.items(), key=lambda item: item[1])
    ]


def _text(found: AtlasSet, problems: list[Problem], labels: list[dict[str, Any]], grids: int) -> str:
    n = len(found.atlases)
    lines = [f"{found.path}: {n} atlas{'es' if n != 1 else ''}, {len(labels)} labels, {grids} kinds of grid."]
    lines += [f"{row['value']:>6}  {row['name']}  (in {row['atlases']})" for row in labels]
    if not problems:
        return "\n".join([*lines, "Nothing is wrong with it."])
    lines.append(f"{len(problems)} thing{'s' if len(problems) > 1 else ''} wrong with it:")
    return "\n".join([*lines, *(f"- {one.text}" for one in problems)])

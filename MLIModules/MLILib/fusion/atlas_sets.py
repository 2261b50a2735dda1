"""Atlas sets: which image goes with which labels, in a folder or as a dataset.json says.

A folder may hold the files in two folders (imagesTr and labelsTr, images and labels), side by side (t1.nii.gz with
t1_seg.nii.gz), or in a folder for each subject. What can be read in two ways is refused rather than guessed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..errors import BadInput
from ..segmentation.label_files import SUFFIXES

#: Folders that hold images and labels, by the layouts in use, in lower case.
IMAGE_FOLDERS = ("imagestr", "images", "image", "imgs", "img")
LABEL_FOLDERS = ("labelstr", "labels", "label", "segmentations", "segmentation", "segs", "seg")
#: Taken for labels where there is no folder of the above: beside labels, masks are of the brain or the body.
MASK_FOLDERS = ("masks", "mask")
#: Parts of a file's name that say what it holds and not whose it is.
LABEL_WORDS = frozenset(("label", "labels", "labelmap", "seg", "dseg", "segmentation", "segmentations", "mask", "gt"))
IMAGE_WORDS = frozenset(("image", "img", "volume", "vol"))
_IMAGES = (*SUFFIXES, ".jpg", ".jpeg")
_REMEDY = (
    "Give a folder with imagesTr and labelsTr, with pairs such as t1.nii.gz and t1_seg.nii.gz, or with a folder for "
    "each subject that holds one image and one label map; or a Decathlon-format dataset.json."
)


@dataclasses.dataclass(frozen=True)
class Atlas:
    """An image and its labels, as files."""

    name: str
    image: str
    labels: str


@dataclasses.dataclass(frozen=True)
class AtlasSet:
    """What was found.

    Attributes:
        path: of the folder or file.
        atlases: pairs of image and labels, by name; no name twice.
        names: of label values, as dataset.json declares them, without the background; empty where nothing is declared.
        unlabelled: images without labels.
        orphans: label maps without an image.
        missing: files that dataset.json lists and that are not there.
    """

    path: str
    atlases: tuple[Atlas, ...]
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    unlabelled: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def files(self) -> list[str]:
        """Every image and label map."""
        return [path for one in self.atlases for path in (one.image, one.labels)]


def read(path: str | Path) -> AtlasSet:
    """The atlas set of a folder or a dataset.json, complete.

    Raises:
        BadInput: no atlas, one without labels, labels without an image, a file that is not there, or files that can be
            paired in two ways.
    """
    found = find(path)
    for paths, what, cause, remedy in (
        (found.missing, "{} does not exist.", f"{Path(path).name} lists it.",
         "Restore it, or remove it from the list."),
        (found.unlabelled, "The atlas image {} has no labels.", "No label map has its name.",
         "Add its label map, or move the image elsewhere."),
        (found.orphans, "The label map {} has no image.", "No image has its name.",
         "Add its image, or move the label map elsewhere."),
    ):  # fmt: skip
        if paths:
            more = f" {len(paths) - 1} more are in that state, too." if len(paths) > 1 else ""
            raise BadInput(what.format(paths[0]) + more, cause, remedy)
    return found


def find(path: str | Path) -> AtlasSet:
    """The atlas set of a folder or a dataset.json, with what is wrong with it.

    Raises:
        BadInput: no atlas is there, the files can be paired in two ways, or dataset.json cannot be read.
    """
    root = Path(path)
    files.require_input(str(path), name="atlases")
    if root.is_file():
        found = _from_json(root, _json(root))
    else:
        listed = root / "dataset.json"
        data = _json(listed) if listed.is_file() else {}
        if "training" in data:
            found = dataclasses.replace(_from_json(listed, data), path=str(root))
        else:
            found = dataclasses.replace(_from_folder(root), names=_names(listed, data))
    if not found.atlases and not (found.unlabelled or found.missing):
        raise BadInput(f"{root} holds no atlas.", "No image with labels was found there.", _REMEDY)
    return found


def _json(path: Path) -> dict[str, Any]:
    if path.suffix.lower() != ".json":
        raise BadInput(f"{path} is not an atlas set.", "It is a single file.", _REMEDY)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not a JSON file ({error}).", "", "Give a Decathlon-format dataset.json.") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path} is not a dataset.json.", "It holds no keys.", "Give a Decathlon-format dataset.json.")
    return data


def _names(path: Path, data: Mapping[str, Any]) -> dict[int, str]:
    """The names of label values: {"1": name} as in the Decathlon, or {name: 1} as nnU-Net has it since version 2."""
    labels = data.get("labels") or {}
    try:
        pairs = [(int(k), str(v)) if str(k).isdecimal() else (_whole(v), str(k)) for k, v in labels.items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise BadInput(
            f"The labels of {path} are not numbered.", "", 'Write them as {"0": "background", "1": "name", ...}.'
        ) from error
    found = {value: name for value, name in pairs if value != 0}
    if len(found) < len([value for value, _ in pairs if value != 0]) or len(set(found.values())) < len(found):
        raise BadInput(f"{path} gives a label's value or name twice.", "", "Name each label once, each differently.")
    return found


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def _from_json(path: Path, data: Mapping[str, Any]) -> AtlasSet:
    entries = data.get("training")
    if not isinstance(entries, list) or not entries:
        raise BadInput(
            f"{path} has no 'training'.", "It is not in the Decathlon format.", "Add the list 'training' of its cases."
        )
    atlases, unlabelled, missing = [], [], []
    for entry in entries:
        image = entry.get("image") if isinstance(entry, dict) else entry
        if isinstance(image, list) and len(image) == 1:
            image = image[0]
        if not isinstance(image, str):
            raise BadInput(
                f"A case of {path} is {entry!r}.",
                "An atlas is one image with its labels.",
                'Write {"image": file, "label": file}.',
            )
        labels = entry.get("label") if isinstance(entry, dict) else None
        listed = [str(path.parent / one) for one in (image, labels) if one]
        lost = [one for one in listed if not Path(one).is_file()]
        missing += lost
        if not labels:
            unlabelled += [] if lost else listed
        elif not lost:
            atlases.append((_stem(Path(image)), listed[0], listed[1]))
    stems = [name for name, *_ in atlases]
    if len(set(stems)) < len(stems):  # sub-01/t1.nii.gz, sub-02/t1.nii.gz: the path tells them apart
        atlases = [(_relative(image, path.parent), image, labels) for _, image, labels in atlases]
    return _found(path, atlases, names=_names(path, data), unlabelled=unlabelled, missing=missing)


def _from_folder(root: Path) -> AtlasSet:
    folders = {one.name.lower(): one for one in _visible(root) if one.is_dir()}
    image_folders = [folders[name] for name in IMAGE_FOLDERS if name in folders]
    label_folders = [folders[name] for name in LABEL_FOLDERS if name in folders]
    label_folders = label_folders or [folders[name] for name in MASK_FOLDERS if name in folders]
    if image_folders and label_folders:
        for several in (image_folders, label_folders):
            if len(several) > 1:
                raise _unclear(root, f"It has the folders {_listed(several)}", "Leave one of them")
        return _two_folders(root, image_folders[0], label_folders[0])
    here = _image_files(root)
    subjects = [one for one in folders.values() if _image_files(one)]
    if here and subjects:
        raise _unclear(
            root, f"Images lie in it ({here[0].name}) and in its folder {subjects[0].name}", "Move one kind elsewhere"
        )
    return _side_by_side(root, here) if here else _subjects(root, subjects)


def _two_folders(root: Path, images: Path, labels: Path) -> AtlasSet:
    sides = []
    for folder in (images, labels):
        inside = sorted(one for one in folder.rglob("*") if _is_image(one) and not _hidden(one.relative_to(folder)))
        sides.append([(one, (*one.relative_to(folder).parent.parts, *_key(one))) for one in inside])
    _require_one_channel(root, [one for one, _ in sides[0]])
    return _paired(root, sides[0], sides[1], images)


def _side_by_side(root: Path, paths: Sequence[Path]) -> AtlasSet:
    _require_one_channel(root, paths)
    images = [(one, _key(one)) for one in paths if not _is_labels(one)]
    labels = [(one, _key(one)) for one in paths if _is_labels(one)]
    return _paired(root, images, labels, root)


def _subjects(root: Path, folders: Iterable[Path]) -> AtlasSet:
    atlases: list[tuple[str, str, str]] = []
    unlabelled: list[str] = []
    orphans: list[str] = []
    for folder in sorted(folders):
        inside = _image_files(folder)
        labels = [one for one in inside if _is_labels(one)]
        images = [one for one in inside if not _is_labels(one)]
        if len(images) > 1 or len(labels) > 1:
            raise _unclear(
                folder, f"It holds {_count(images, 'image')} and {_count(labels, 'label map')}", "Leave one of each"
            )
        if not labels:
            unlabelled += map(str, images)
        elif not images:
            orphans += map(str, labels)
        else:
            atlases.append((folder.name, str(images[0]), str(labels[0])))
    return _found(root, atlases, unlabelled=unlabelled, orphans=orphans)


def _paired(root: Path, images: Sequence[tuple[Path, Any]], labels: Sequence[tuple[Path, Any]], base: Path) -> AtlasSet:
    """Images and labels with the same key."""
    sides: list[dict[Any, Path]] = []
    for side, what in ((images, "images"), (labels, "label maps")):
        by_key: dict[Any, Path] = {}
        for path, key in side:
            if key in by_key:
                raise _unclear(
                    root, f"The files {by_key[key].name} and {path.name} are {what} of one name", "Leave one of them"
                )
            by_key[key] = path
        sides.append(by_key)
    ours, theirs = sides
    atlases = []
    for key, image in ours.items():
        if key in theirs:
            name = (image.relative_to(base).parent / _stem(image)).as_posix()
            atlases.append((name, str(image), str(theirs[key])))
    return _found(
        root,
        atlases,
        unlabelled=[str(path) for key, path in ours.items() if key not in theirs],
        orphans=[str(path) for key, path in theirs.items() if key not in ours],
    )


def _found(
    path: Path,
    atlases: Iterable[tuple[str, str, str]],
    *,
    names: Mapping[int, str] | None = None,
    unlabelled: Iterable[str] = (),
    orphans: Iterable[str] = (),
    missing: Iterable[str] = (),
) -> AtlasSet:
    made = [Atlas(*one) for one in sorted(atlases)]
    called = [one.name for one in made]
    twice = sorted({name for name in called if called.count(name) > 1})
    if twice:
        raise _unclear(path, f"Two atlases are called {twice[0]}", "Name each file differently")
    return AtlasSet(str(path), tuple(made), names or {}, tuple(unlabelled), tuple(orphans), tuple(missing))


def _visible(folder: Path) -> Iterator[Path]:
    return (one for one in sorted(folder.iterdir()) if not _hidden(Path(one.name)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_image(path: Path) -> bool:
    return files.suffix(path) in _IMAGES and path.is_file()


def _image_files(folder: Path) -> list[Path]:
    return [one for one in _visible(folder) if _is_image(one)]


def _is_labels(path: Path) -> bool:
    return files.suffix(path) == ".seg.nrrd" or not LABEL_WORDS.isdisjoint(_words(path))


def _words(path: Path) -> list[str]:
    """The parts of a file's name, in lower case; "img01" is two."""
    stem = re.sub(r"(?<![a-z])(image|img|label|seg|mask|vol)(?=\d)", r"\1_", files.stem(path).lower())
    return [word for word in re.split(r"[\s_.\-]+", stem) if word]


def _key(path: Path) -> tuple[str, ...]:
    """Whose file it is: the parts of its name without those that say what it holds, nor nnU-Net's first channel."""
    found = [word for word in _words(path) if word not in LABEL_WORDS | IMAGE_WORDS]
    return tuple(found[:-1] if len(found) > 1 and found[-1] == "0000" else found)


def _stem(path: Path) -> str:
    stem = files.stem(path)
    return stem.removesuffix("_0000") or stem


def _relative(image: str, folder: Path) -> str:
    path = Path(image)
    inside = path.relative_to(folder) if path.is_relative_to(folder) else path
    return (inside.parent / _stem(path)).as_posix()


def _require_one_channel(root: Path, images: Iterable[Path]) -> None:
    stems = {files.stem(one) for one in images}
    for stem in sorted(stems):
        if stem.endswith("_0000") and f"{stem[:-1]}1" in stems:
            raise BadInput(
                f"The image {stem.removesuffix('_0000')} of {root} has several channels.",
                f"There are {stem} and {stem[:-1]}1, as nnU-Net names them.",
                "Make an atlas set of one channel.",
            )


def _unclear(root: Path, why: str, remedy: str) -> BadInput:
    return BadInput(
        f"It is not clear which images and labels in {root} belong together.", f"{why}.",
        f"{remedy}, or list the pairs in a Decathlon-format dataset.json.",
    )  # fmt: skip


def _count(paths: Sequence[Path], what: str) -> str:
    return f"{len(paths)} {what}{'' if len(paths) == 1 else 's'} ({_listed(paths)})" if paths else f"no {what}"


def _listed(paths: Sequence[Path]) -> str:
    shown = ", ".join(one.name for one in paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"

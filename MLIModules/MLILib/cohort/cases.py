"""The cases of a cohort: which image files belong to each, from a folder, a table or a dataset.json.

A file that is missing or broken is found when its case's turn comes, so that it stops no other.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..errors import BadInput

#: Endings of files that are taken for images.
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".tif", ".tiff", ".jpg", ".jpeg", ".dcm")
#: nnU-Net's way to number the channels of a case.
_NUMBERED = re.compile(r"(.+)_(\d{4})")
_COLUMN = re.compile(r"image(?:_(\d+))?")
#: What a file's name may not hold on one system or another.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


@dataclasses.dataclass(frozen=True)
class CohortCase:
    """One case.

    Attributes:
        name: names its output.
        images: the files of its channels, in order.
    """

    name: str
    images: tuple[str, ...]


def read(path: str | Path) -> list[CohortCase]:
    """The cases of a folder, a .csv or a dataset.json, sorted by name.

    In a folder, each image file is a case, or each folder with a DICOM series; files whose names end in _0000, _0001
    ... (nnU-Net) are the channels of one case.

    Raises:
        BadInput: there is no case, or two have one name; a table cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        cases = _of_folder(path)
    elif path.suffix.lower() == ".csv":
        cases = _of_table(path)
    elif path.suffix.lower() == ".json":
        cases = _of_dataset(path)
    else:
        raise BadInput(f"{path} is not a cohort.", "", "Give a folder, a .csv or a dataset.json.")
    if not cases:
        raise BadInput(
            f"{path} holds no case.", "", f"Image files end in {', '.join(SUFFIXES)}." if path.is_dir() else ""
        )
    _require_names(cases, path)
    return sorted(cases, key=lambda case: case.name)


def _of_folder(folder: Path) -> list[CohortCase]:
    found: list[CohortCase] = []
    channels: dict[str, dict[int, str]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if any(p.is_file() and not p.name.startswith(".") for p in path.iterdir()):
                found.append(CohortCase(path.name, (str(path),)))
            continue
        if files.suffix(path) not in SUFFIXES:
            continue
        numbered = _NUMBERED.fullmatch(files.stem(path))
        if numbered:
            channels.setdefault(numbered[1], {})[int(numbered[2])] = str(path)
        else:
            found.append(CohortCase(files.stem(path), (str(path),)))
    for name, files_of in channels.items():
        if set(files_of) == set(range(len(files_of))):
            found.append(CohortCase(name, tuple(files_of[i] for i in range(len(files_of)))))
        else:  # numbers that count something else: slices, visits
            found += [CohortCase(files.stem(one), (one,)) for one in files_of.values()]
    return found


def _of_table(path: Path) -> list[CohortCase]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} is not a table ({error}).", "", "Save it as comma-separated text in UTF-8.") from error
    columns = list(rows[0]) if rows else []
    wanted = sorted((c for c in columns if c and _COLUMN.fullmatch(c)), key=_number)
    if rows and not wanted:
        raise BadInput(
            f"{path} has no column image.",
            f"Its columns are: {', '.join(str(c) for c in columns)}.",
            "Name the column with the files image, or image_1, image_2 ... for several channels.",
        )
    cases = []
    for line, row in enumerate(rows, start=2):
        names = [(row[c] or "").strip() for c in wanted]
        if not all(names):
            raise BadInput(f"Line {line} of {path} names no image.", "", "Fill it, or remove the line.")
        found = tuple(str(path.parent / name) for name in names)
        cases.append(CohortCase((row.get("case") or "").strip() or files.stem(found[0]), found))
    return cases


def _number(column: str) -> int:
    found = _COLUMN.fullmatch(column)
    return int(found[1] or 0) if found else 0


def _of_dataset(path: Path) -> list[CohortCase]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        entries = [*data.get("training", []), *data.get("test", [])]
        return [_entry(path.parent, one["image"] if isinstance(one, dict) else one) for one in entries]
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} is not in the Decathlon format ({error!r}).", "", 'It lists cases under "training" and "test".'
        ) from error


def _entry(folder: Path, image: Any) -> CohortCase:
    names = [image] if isinstance(image, str) else [str(one) for one in image]
    found = tuple(str(folder / name) for name in names)
    return CohortCase(files.stem(found[0]), found)


def _require_names(cases: Sequence[CohortCase], path: Path) -> None:
    for name in (case.name for case in cases):
        if _FORBIDDEN.search(name) or name in (".", ".."):
            raise BadInput(
                f"The case {name!r} of {path} cannot name a file.", "", "Use letters, digits, points and dashes."
            )
    twice = _repeated(case.name.lower() for case in cases)  # some disks do not tell A from a
    if twice:
        raise BadInput(
            f"{path} has several cases named {', '.join(twice)}.",
            "Each case's label map is named after it.",
            "Name them differently; a table can give names in a column case.",
        )


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    out: dict[str, None] = {}
    for name in names:
        if name in seen:
            out[name] = None
        seen.add(name)
    return list(out)

"""Landmarks: points of an image as files, and which point of one image corresponds to which of another.

Reads Slicer's markups (.mrk.json, and .fcsv of older versions), tables (.csv, .txt) and elastix's point files.
Positions are LPS millimetres, whatever the file has.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import files
from ..errors import BadInput

#: With fewer pairs an error's mean says nothing, and three points lie in a plane.
FEWEST = 4

_FORMATS = "Give Slicer's .mrk.json or .fcsv, or a .csv or .txt table with the columns x, y, z in LPS millimetres."
_RAS_TO_LPS = (-1.0, -1.0, 1.0)

#: How older versions of Slicer number the coordinate systems of a .fcsv.
_FCSV_SYSTEMS = {"0": "RAS", "1": "LPS", "2": "IJK"}

_FCSV_COLUMNS = ("id", "x", "y", "z", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "label", "desc", "associatedNodeID")

#: Headings of a table's columns: for each axis the names in LPS, and in RAS, where the axis points the other way.
_AXES = ((("x", "l"), "r"), (("y", "p"), "a"), (("z", "s"), ""))
_LABEL_HEADINGS = ("label", "name", "landmark", "id")


@dataclasses.dataclass(frozen=True, eq=False)
class Landmarks:
    """Points of one image.

    Attributes:
        points: (n, 3), LPS mm; z is 0 where the file has two columns.
        labels: n texts, "" where the file names none.
    """

    points: npt.NDArray[np.float64]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def read(path: str | Path) -> Landmarks:
    """Read the points of a file.

    By the file's name:

    - ``.mrk.json``, ``.json``: Slicer's markups. All control points of all lists in the file; its coordinate system is
      LPS where it does not say RAS.
    - ``.fcsv``: Slicer's older markups; its coordinate system is RAS where the header does not say LPS.
    - ``.csv``, ``.txt``, ``.tsv``, ``.pts``: a table with a point a line, separated by commas, semicolons, tabs or
      blanks. Without a heading the columns are x, y, z in LPS mm (z may be left out for 2-D images), and one more
      column is the label. With a heading, columns are found by their names: x, y, z or l, p, s (LPS), r, a, s (RAS),
      and label, name, landmark or id. Lines that begin with # are comments. elastix's point files are known by their
      first line.

    Raises:
        BadInput: no such file, not of these formats, no points, or a point without a position.
    """
    files.require_input(str(path), name="landmarks")
    name = Path(path).name.lower()
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise BadInput(f"{path} is not a text file.", "It cannot hold landmarks.", _FORMATS) from error
    if name.endswith(".json"):
        rows = _markups(path, text)
    elif name.endswith(".fcsv"):
        rows = _fcsv(path, text)
    elif name.endswith((".csv", ".txt", ".tsv", ".pts")):
        rows = _table(path, text)
    else:
        raise BadInput(f"{path} has no ending of a landmark file.", "The format is told by it.", _FORMATS)
    if not rows:
        raise BadInput(f"{path} holds no landmarks.", "", _FORMATS)
    points = np.array([position for _, position in rows], dtype=np.float64)
    if not np.isfinite(points).all():
        raise BadInput(f"{path} holds positions that are not finite numbers.", "", "Place these points again.")
    return Landmarks(points, tuple(label for label, _ in rows))


def pair(
    fixed: Landmarks, moving: Landmarks, names: tuple[str, str] = ("The fixed landmarks", "the moving landmarks")
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], tuple[str, ...]]:
    """The points of two images that correspond.

    Points with the same label are a pair, in whatever order they are listed. Where the labels of the two files have
    nothing in common but their numbers (F-1, F-2 and M-1, M-2), or a file has none, the order of the points counts.

    Args:
        fixed: of the fixed image.
        moving: of the moving image.
        names: what to call them in an error.

    Returns:
        Fixed points (n, 3), moving points (n, 3) in the same order, and their labels (numbers where they have none).

    Raises:
        BadInput: fewer than :data:`FEWEST` points, numbers of points that differ, or labels without a partner.
    """
    if len(fixed) != len(moving):
        raise BadInput(
            f"{names[0]} and {names[1]} do not correspond: there are {len(fixed)} and {len(moving)} points.",
            "Each point needs its partner in the other image.",
            "Place the missing points, or delete those without a partner.",
        )
    if len(fixed) < FEWEST:
        raise BadInput(
            f"{names[0]} are {len(fixed)} point{'s' if len(fixed) != 1 else ''}.",
            f"A registration error is measured on {FEWEST} or more pairs.",
            "Place more landmarks, spread over the image.",
        )
    ours, theirs = list(fixed.labels), list(moving.labels)
    order = list(range(len(ours)))
    if ours != theirs and all(ours) and all(theirs):
        common = set(ours) & set(theirs)
        if len(common) == len(ours) == len(set(theirs)):
            order = [theirs.index(label) for label in ours]
        elif common or [_number(label) for label in ours] != [_number(label) for label in theirs]:
            lonely = next((label for label in ours if label not in common), ours[0])
            raise BadInput(
                f"{names[0]} and {names[1]} do not correspond: {lonely!r} is in one of them only, or twice.",
                "Points are paired by their labels.",
                "Give corresponding points the same label in both files, each once.",
            )
    labels = tuple(
        label or other or str(i + 1)
        for i, (label, other) in enumerate(zip(ours, (theirs[j] for j in order), strict=True))
    )
    return fixed.points, moving.points[order], labels


def _number(label: str) -> str:
    """The number at the end of a label that a program made, such as F-12; the label itself where there is none."""
    found = re.fullmatch(r"[A-Za-z]+[-_ ]?0*(\d+)", label.strip())
    return found.group(1) if found else label


def _markups(path: str | Path, text: str) -> list[tuple[str, list[float]]]:
    rows = []
    try:
        for markup in json.loads(text)["markups"]:
            system = str(markup.get("coordinateSystem", "LPS")).upper()
            signs = _signs(path, {"0": "RAS", "1": "LPS"}.get(system, system))
            scale = _millimetres(path, markup.get("coordinateUnits", "mm"))
            for point in markup.get("controlPoints", []):
                label = str(point.get("label", ""))
                if point.get("positionStatus", "defined") != "defined":
                    raise _unplaced(path, label)
                x, y, z = (float(value) for value in point["position"])
                rows.append((label, [x * signs[0] * scale, y * signs[1] * scale, z * signs[2] * scale]))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"{path} is not a markups file.", f"It is damaged, or JSON of another kind ({error}).", _FORMATS
        ) from error
    return rows


def _millimetres(path: str | Path, units: Any) -> float:
    """How many millimetres the unit of a markups file is; a coded unit is a list that begins with its symbol."""
    symbol = str(units[0] if isinstance(units, list) and units else units)
    known = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001}
    if symbol not in known:
        raise BadInput(f"{path} has positions in {symbol!r}.", "", "Save it in mm.")
    return known[symbol]


def _fcsv(path: str | Path, text: str) -> list[tuple[str, list[float]]]:
    system = "RAS"
    columns = list(_FCSV_COLUMNS)
    body = []
    for line in text.splitlines():
        key, equals, value = line.lstrip("# ").partition("=")
        if not line.startswith("#"):
            body.append(line)
        elif equals and key.strip() == "CoordinateSystem":
            system = _FCSV_SYSTEMS.get(value.strip(), value.strip().upper())
        elif equals and key.strip() == "columns":
            columns = [column.strip() for column in value.split(",")]
    signs = _signs(path, system)
    rows = []
    for row in csv.reader(line for line in body if line.strip()):
        cells = dict(zip(columns, row, strict=False))
        label = cells.get("label", "")
        # Slicer adds two columns that its header does not name: whether the point was placed (2), and by whom.
        if len(row) == len(columns) + 2 and row[len(columns)] == "0":
            raise _unplaced(path, label)
        try:
            rows.append((label, [float(cells[axis]) * sign for axis, sign in zip("xyz", signs, strict=True)]))
        except (KeyError, ValueError) as error:
            raise _bad_line(path, ",".join(row)) from error
    return rows


def _signs(path: str | Path, system: str) -> tuple[float, ...]:
    """What turns a position of this coordinate system into LPS."""
    if system == "LPS":
        return (1.0, 1.0, 1.0)
    if system == "RAS":
        return _RAS_TO_LPS
    raise BadInput(
        f"{path} has positions in the coordinate system {system}.",
        "Millimetres in LPS or RAS are needed.",
        "Save the points again in Slicer.",
    )


def _table(path: str | Path, text: str) -> list[tuple[str, list[float]]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and lines[0].strip() in ("point", "index"):
        return _elastix(path, lines)
    rows = [_cells(line) for line in lines]
    if not rows:
        return []
    if all(_is_number(cell) for cell in rows[0][:2]):
        return _plain(path, rows)
    heading = [cell.strip().lower() for cell in rows[0]]
    places, signs = [], []
    for ours, reverse in _AXES:
        found = [(heading.index(name), 1.0) for name in ours if name in heading]
        found += [(heading.index(reverse), -1.0)] if reverse and reverse in heading else []
        if found:
            places.append(found[0][0])
            signs.append(found[0][1])
    if len(places) < 2 or len(set(signs[:2])) > 1:
        raise BadInput(
            f"{path} has no columns x, y and z.",
            f"Its first line is {lines[0].strip()!r}.",
            "Name the columns x, y, z (LPS millimetres), or r, a, s.",
        )
    label = next((heading.index(name) for name in _LABEL_HEADINGS if name in heading), None)
    out = []
    for row in rows[1:]:
        try:
            position = [float(row[place]) * sign for place, sign in zip(places, signs, strict=True)]
            out.append((row[label].strip() if label is not None else "", [*position, 0.0][:3]))
        except (IndexError, ValueError) as error:
            raise _bad_line(path, ", ".join(row)) from error
    return out


def _plain(path: str | Path, rows: Sequence[list[str]]) -> list[tuple[str, list[float]]]:
    """Rows without a heading: two or three numbers, then perhaps a label."""
    flat = not all(len(row) > 2 and _is_number(row[2]) for row in rows)
    axes = 2 if flat else 3
    out = []
    for row in rows:
        if len(row) not in (axes, axes + 1) or not all(_is_number(cell) for cell in row[:axes]):
            raise _bad_line(path, ", ".join(row))
        out.append((row[axes].strip() if len(row) > axes else "", [*map(float, row[:axes]), 0.0][:3]))
    return out


def _elastix(path: str | Path, lines: Sequence[str]) -> list[tuple[str, list[float]]]:
    """elastix's point files: "point", the number of points, and a position in LPS mm a line."""
    if lines[0].strip() == "index":
        raise BadInput(f"{path} has voxel indices.", "Millimetres are needed.", "Convert them to points.")
    rows = _plain(path, [_cells(line) for line in lines[2:]])
    if not lines[1:] or lines[1].strip() != str(len(rows)):
        raise BadInput(
            f"{path} does not hold as many points as it says.", "It was cut short or edited.", "Copy it again."
        )
    return rows


def _cells(line: str) -> list[str]:
    for separator in ";\t,":
        if separator in line:
            return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
    return line.split()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _unplaced(path: str | Path, label: str) -> BadInput:
    return BadInput(f"The point {label!r} of {path} has no position.", "It was not placed.", "Place it, or delete it.")


def _bad_line(path: str | Path, line: str) -> BadInput:
    return BadInput(f"{path} has a line that is not a point: {line!r}.", "", _FORMATS)

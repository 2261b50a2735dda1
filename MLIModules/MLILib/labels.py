"""What a label of a model stands for: its value, name, colour and coded meaning, as Slicer's segmentations write it."""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

#: Colours of labels in turn, 0 to 255, also for those who do not see red and green as others do (Okabe and Ito 2008).
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178))
_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
_REGIONS = "Anatomic codes - DICOM master list"


@dataclasses.dataclass(frozen=True)
class Label:
    """One label: its value in the label map, name, colour (red, green, blue, 0 to 1) and Slicer terminology or ""."""

    value: int
    name: str
    color: tuple[float, float, float]
    terminology: str


def label(value: int, name: str, own: Mapping[str, Any]) -> Label:
    """The label with this value, and what the bundle's metadata says of it (see :mod:`MLILib.bundles`).

    Without a colour it gets one of its own: neighbours lie the golden angle apart on the circle of hues.
    """
    color = own.get("color")
    if isinstance(color, list) and len(color) == 3 and all(isinstance(c, int | float) and 0 <= c <= 255 for c in color):
        rgb = (color[0] / 255.0, color[1] / 255.0, color[2] / 255.0)
    else:
        rgb = colorsys.hsv_to_rgb((0.02 + (value - 1) * 0.618034) % 1.0, 0.65, 0.9)
    return Label(value, str(own.get("name") or name), rgb, _terminology(own.get("terminology")))


def _terminology(codes: Any) -> str:
    """Slicer's text for a coded meaning: context ~ category ~ type ~ modifier ~ region context ~ region ~ modifier."""
    if not isinstance(codes, dict) or "category" not in codes or "type" not in codes:
        return ""
    empty = ("", "", "")
    parts = [_code(codes.get(key, empty)) for key in ("category", "type", "modifier", "region", "region_modifier")]
    return "~".join([_CONTEXT, *parts[:3], _REGIONS, *parts[3:]])


def _code(code: Sequence[Any]) -> str:
    return "^".join(str(part).translate({ord("~"): " ", ord("^"): " ", ord("|"): " "}) for part in list(code)[:3])

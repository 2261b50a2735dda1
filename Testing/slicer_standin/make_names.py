"""Condenses the description of a real Slicer (qt.json, ctk.json, slicer_qt.json, python.json, application.json) into
names.json.gz, which the stand-in's strict filter reads, so that the stand-in works where that description is absent.
Run as ``python Testing/slicer_standin/make_names.py [FOLDER]`` whenever the description changes.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEFAULT_FOLDER = HERE.parents[2] / "shared" / "slicer-api"
TARGET = HERE / "names.json.gz"
WIDGET_FILES = {"qt": "qt.json", "ctk": "ctk.json", "slicer": "slicer_qt.json"}


def flatten(description: dict) -> dict:
    """Returns one class of the description; slots, which mostly repeat the members, are counted among them."""
    slots = {signature.partition("(")[0] for signature in description.get("slots", []) if not signature.startswith("_")}
    return {
        "members": sorted(slots.union(description.get("members", []))),
        "properties": dict(sorted(description.get("properties", {}).items())),
        "signals": list(description.get("signals", [])),
    }


def condense(folder: Path) -> dict:
    """Reads the description's files.

    Args:
        folder: where qt.json and the others lie.

    Returns:
        ``classes`` (module -> class -> members, properties, signals; None for a class that was never constructed),
        ``python`` (module -> name -> list of methods, or None for a plain name), ``application``.
    """
    classes = {}
    for module, filename in WIDGET_FILES.items():
        content = json.loads((folder / filename).read_text(encoding="utf-8"))
        classes[module] = {
            name: flatten(description) if description.get("members") else None for name, description in content.items()
        }
    python = {
        module: {name: sorted(entry["methods"]) if "methods" in entry else None for name, entry in names.items()}
        for module, names in json.loads((folder / "python.json").read_text(encoding="utf-8")).items()
    }
    application = json.loads((folder / "application.json").read_text(encoding="utf-8"))
    return {"classes": classes, "python": python, "application": application}


def write(folder: Path, target: Path = TARGET) -> None:
    """Writes the condensed names; the same input gives the same bytes."""
    text = json.dumps(condense(folder), sort_keys=True, separators=(",", ":"))
    target.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER)

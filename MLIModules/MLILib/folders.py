"""Where models live: the shipped folder, the user's folder, and the cache of unpacked zips.

Knows folders and their `catalogue.json` only; what is inside a bundle is :mod:`MLILib.bundles`' matter.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from .errors import BadInput

CATALOGUE = "catalogue.json"


def shipped() -> Path | None:
    """The folder of the shipped models, None where none were installed.

    In a Slicer extension it lies beside MLILib, in the source tree beside MLIModules, in a wheel inside MLILib.
    """
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "Resources", here.parent.parent / "Resources", here / "Resources"):
        if (folder / "Models" / CATALOGUE).is_file():
            return folder / "Models"
    return None


def user() -> Path:
    """The folder of the user's models: $MLI_MODELS, or the place the operating system keeps a user's data in."""
    return _named("MLI_MODELS", _data_home() / "MachineLearningForImaging" / "models")


def cache() -> Path:
    """The folder of what can be made again: $MLI_CACHE, or the place the operating system keeps caches in."""
    return _named("MLI_CACHE", _cache_home() / "MachineLearningForImaging")


def entries(folder: Path | None) -> dict[str, dict[str, Any]]:
    """The models a folder's catalogue lists, by name; empty where there is no catalogue.

    Raises:
        BadInput: when the catalogue is not readable as one.
    """
    if folder is None or not (folder / CATALOGUE).is_file():
        return {}
    try:
        data = json.loads((folder / CATALOGUE).read_text(encoding="utf-8"))
        return {str(entry["name"]): dict(entry) for entry in data["models"]}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"The list of models {folder / CATALOGUE} cannot be read.",
            f"It is damaged ({type(error).__name__}: {error}).",
            "Install the extension again, or import your models again.",
        ) from error


def _named(variable: str, default: Path) -> Path:
    value = os.environ.get(variable, "")
    return Path(value).expanduser().absolute() if value else default


def _data_home() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")


def _cache_home() -> Path:
    if sys.platform == "win32":
        return _data_home() / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

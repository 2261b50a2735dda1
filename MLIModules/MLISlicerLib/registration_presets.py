"""The presets of registration: those that come with the extension, and the user's own, kept in Slicer's settings."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

import slicer

from MLILib.registration.presets import PRESETS
from MLILib.registration.requests import STAGES

#: Where the user's presets are kept.
_KEY = "MLIRegistration/Presets"
#: What a panel is filled with, and a preset of the user's holds.
SETTINGS = ("stages", "similarity", "deformation", "regularisation", "iterations", "resolution")


@dataclasses.dataclass(frozen=True)
class PanelPreset:
    """A preset as a chooser shows it.

    Attributes:
        name: in a parameter set: that of the library, or the title of one of the user's.
        title: for a reader.
        summary: what it is for.
        values: of :data:`SETTINGS`; the stages are a list.
        base: the library's preset that a request names.
        own: whether it is one of the user's.
    """

    name: str
    title: str
    summary: str
    values: dict[str, Any]
    base: str
    own: bool = False


def known() -> dict[str, PanelPreset]:
    """All presets by name, the library's first."""
    found = {
        name: PanelPreset(name, p.title, p.summary, {key: _plain(getattr(p, key)) for key in SETTINGS}, name)
        for name, p in PRESETS.items()
    }
    for name, held in _stored().items():
        found[name] = PanelPreset(name, name, held["summary"], held["values"], held["base"], own=True)
    return found


def base_of(name: str) -> str:
    """The library's preset behind a chosen one: of the user's the one it was made from, else the default."""
    found = known().get(name)
    return found.base if found is not None else "deformable"


def save(name: str, values: dict[str, Any], base: str, summary: str) -> None:
    """Keep a preset of the user's; one of the same name is replaced.

    Raises:
        ValueError: the library has a preset of that name or title.
    """
    if name in PRESETS or name in {p.title for p in PRESETS.values()}:
        msg = f"{name} is a preset of the extension"
        raise ValueError(msg)
    held = _stored()
    held[name] = {"values": {key: values[key] for key in SETTINGS}, "base": base, "summary": summary}
    slicer.app.userSettings().setValue(_KEY, json.dumps(held))


def delete(name: str) -> None:
    """Forget a preset of the user's."""
    held = _stored()
    held.pop(name, None)
    slicer.app.userSettings().setValue(_KEY, json.dumps(held))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _stored() -> dict[str, dict[str, Any]]:
    """The user's presets that can be used; others, of another version, are left out and named in the log."""
    text = slicer.app.userSettings().value(_KEY)
    try:
        held = json.loads(text) if text else {}
        entries = dict(held).items()
    except (ValueError, TypeError):
        logging.warning("The saved presets of registration cannot be read")
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name, entry in entries:
        try:
            values = {key: entry["values"][key] for key in SETTINGS}
            if not set(values["stages"]) <= set(STAGES) or entry["base"] not in PRESETS or name in PRESETS:
                msg = "a stage or a preset that there is not"
                raise ValueError(msg)
            found[name] = {"values": values, "base": entry["base"], "summary": str(entry["summary"])}
        except (KeyError, TypeError, ValueError) as error:
            logging.warning("The saved preset %s of registration cannot be used: %s", name, error)
    return found

"""A model's layers for a chooser and a table: asked of the worker once a model, and kept while Slicer runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slicer.i18n import tr as _

from .jobs import Call, Steps

#: Results of the task "explain-layers", by model.
_known: dict[str, dict[str, Any]] = {}


def known(model: str) -> dict[str, Any] | None:
    """The layers of a model, if they have been asked for."""
    return _known.get(model)


def steps(model: str) -> Steps:
    """The steps that ask for a model's layers; their result is that of the task "explain-layers"."""
    found = yield Call("explain-layers", {"model": model})
    _known[model] = found
    return found


def forget(model: str) -> None:
    """Ask again next time: the model was replaced."""
    _known.pop(model, None)


def offered(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The layers that a method can look at: what a reader sees of each, and its name."""
    return [(f"{one['name']}  {size(one['shape'])}", str(one["name"])) for one in found["layers"] if one["places"]]


def size(shape: Any) -> str:
    """ "16 x 32 x 32": channels, then the grid."""
    return " \N{MULTIPLICATION SIGN} ".join(str(n) for n in shape) if shape else ""


def rows(found: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Rows of the table: name, kind, output's size, parameters, receptive field."""
    return [
        (str(one["name"]), str(one["kind"]), size(one["shape"]), f"{one['parameters']:,}", size(one["field"]))
        for one in found["layers"]
    ]


def headings() -> list[str]:
    """Headings of the table."""
    return [_("Layer"), _("Kind"), _("Channels and grid"), _("Parameters"), _("Sees (voxels)")]


def words(found: Mapping[str, Any]) -> str:
    """The model in a line."""
    told = [_("{count:,} parameters").format(count=found["parameters"])]
    told.append(_("{given} \N{RIGHTWARDS ARROW} {made}").format(given=size(found["input"]), made=size(found["output"])))
    if found.get("field"):
        told.append(_("a voxel of the result sees {field} voxels").format(field=size(found["field"])))
    if found.get("statistics"):
        told.append(_("and, through its normalisation, the whole image"))
    return ", ".join(told)

"""The badges of a model's methods: what its last `mli explain-check` said of each. Imports no torch.

They lie in the model's docs/explain_check.json, and count only for the weights that were checked.
"""

from __future__ import annotations

import json

from ..bundles import Bundle
from .methods import EDGES, METHODS, NOT_TESTED, REACTS

FILE = "explain_check.json"


def badges(bundle: Bundle) -> dict[str, str]:
    """Each method's badge: "reacts to the model", "edge detector" or "not tested".

    Args:
        bundle: with or without its checksum; without one, a catalogue has to say that the model is as shipped.
    """
    found = dict.fromkeys(METHODS, NOT_TESTED)
    file = bundle.folder / "docs" / FILE
    if not file.is_file():
        return found
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        checked = told["model"]["sha256"]
        rows = {str(row["method"]): str(row["badge"]) for row in told["methods"]}
    except (ValueError, KeyError, TypeError, OSError):
        return found
    if bundle.sha256 and checked != bundle.sha256:
        return found
    return {name: rows[name] if rows.get(name) in (REACTS, EDGES) else NOT_TESTED for name in found}

"""A folder of bundles that are one ensemble: ``ensemble.json`` in it names them, and the folder stands for them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import BadInput

#: The file that makes a folder of bundles an ensemble.
INDEX = "ensemble.json"


def expanded(models: Sequence[str]) -> list[str]:
    """Names and paths of models, with an ensemble's folder replaced by its members.

    Raises:
        BadInput: the ensemble's index is damaged, or a member is gone.
    """
    out: list[str] = []
    for model in models:
        index = Path(model).expanduser() / INDEX
        if not model.strip() or not index.is_file():
            out.append(model)
            continue
        try:
            members = [index.parent / str(name) for name in json.loads(index.read_text(encoding="utf-8"))["members"]]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{index} does not list the members of an ensemble.", "", "Name the models.") from error
        absent = [str(member) for member in members if not member.is_dir()]
        if absent or not members:
            raise BadInput(f"The ensemble {model} lacks {', '.join(absent) or 'members'}.", "", "Restore them.")
        out += [str(member) for member in members]
    return out

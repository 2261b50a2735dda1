"""The card that each trained bundle has as docs/README.md: the same sections in the same order, whatever the task.

What is particular to a task (its figures, its use, what its network is) is given as lines of text.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import monai
import torch

from .bundle_parts import INTENDED_USE, machine
from .progress import duration

_CURVE = {"learning curve": "learning_curve.png"}


def card_text(
    name: str,
    words: Mapping[str, Any],
    *,
    description: str,
    measured: Sequence[str],
    data: str,
    cases: str,
    command: str,
    training: Sequence[str],
    use: str = "",
    pictures: Mapping[str, str] = _CURVE,
    unit: str = "cases",
    licence: str = "",
    warning: str = "",
) -> str:
    """docs/README.md: what the model is for, how it was made, what was measured, what it cannot do.

    Args:
        name: the bundle's.
        words: what the user says of the model, see :func:`MLILib.bundle_parts.read_words`; they go before the defaults
            below.
        description: what the model is.
        measured: lines on what was measured.
        data: what it learned from.
        cases: how many of them, and what for.
        command: that makes the model again.
        training: how it went, a sentence an item of the list; today's date ends it.
        use: how to call it, "" for nothing.
        pictures: title and file of those in the folder training.
        unit: what the model was tested on, in the plural.
        licence: of the data.
        warning: what is said before all else.
    """
    lines = [
        *((f"**{warning}**", "") if warning else ()),
        f"# {words.get('title', name)}",
        "",
        str(words.get("description", description)),
        "",
        "## Use",
        "",
        *((use, "") if use else ()),
        str(words.get("intended_use", INTENDED_USE)),
        "",
        "## Measured",
        "",
        *measured,
        "",
        "## Data",
        "",
        str(words.get("data", data)),
        "",
        cases,
        "",
        "## Training",
        "",
        f"`{command}`",
        "",
        *(f"- {line}" for line in training),
        f"- {datetime.date.today().isoformat()}",
        "",
    ]
    for title, file in pictures.items():
        lines += [f"![{title}](../training/{file})", ""]
    lines += [
        "## Known limits",
        "",
        *(f"- {limit}" for limit in words.get("limits", [f"Not tested beyond the {unit} above."])),
        "",
        "## Licence",
        "",
        str(words.get("licence", licence or "not stated")),
        "",
    ]
    return "\n".join(lines)


def computed(seconds: float, device: str, threads: int = 0) -> str:
    """How long a training took, on what, and with which versions.

    Args:
        seconds: of the training.
        device: where it computed.
        threads: that it was held to, 0 for no such limit.
    """
    used = f", {threads} of them used" if threads else ""
    versions = f"torch {torch.__version__.partition('+')[0]}, MONAI {monai.__version__}"
    return f"{duration(seconds)} on {machine(device)}{used}, {versions}"

"""Checkpoints of a training: written whole or not at all, and only gone on from with the same settings."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..errors import BadInput
from .plan import Plan


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values to `path`; the file before stays until the new one is complete.

    Raises:
        BadInput: the disk is full.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)  # to memory first: torch's own writer hides why it failed
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(buffer.getbuffer())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if files.is_disk_full(error):
            free = files.disk_full(path.parent)
            kept = f"The checkpoint before it is kept: {path}." if path.exists() else ""
            raise BadInput(free.what, kept, "Free some space, and go on with --resume.") from error
        raise


def read_plan(path: Path) -> Plan:
    """The plan that a checkpoint was made with: memory at hand may be another by now."""
    return Plan.from_json(torch.load(path, map_location="cpu", weights_only=True)["plan"])


def require_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise :class:`BadInput` unless the settings of a checkpoint are those of the request that goes on from it."""
    changed = [k for k in now if before.get(k) != now[k]]
    if changed:
        raise BadInput(
            f"The checkpoint was made with {changed[0]} = {before.get(changed[0])}, not {now[changed[0]]}.",
            "A resumed training keeps its settings.",
            "Use the same settings, or another output folder.",
        )

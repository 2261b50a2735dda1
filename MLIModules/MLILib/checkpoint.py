"""The folder of a training and the checkpoint in it.

A training begins in a fresh folder only. Its checkpoint is written whole or not at all, and only gone on from with the
settings it was made with.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from . import __version__, files
from .errors import BadInput
from .settings import Request

#: Settings of every training that may change before it goes on.
_FREE = ("resume", "output", "device", "describe")


def holds_files(folder: Path) -> bool:
    """Whether there is anything to lose in a folder; a training that was refused leaves empty folders."""
    return any(path.is_file() for path in folder.rglob("*"))


def require_fresh(folder: Path, state_file: Path, resume: bool) -> None:
    """Raise :class:`BadInput` unless a training may write to `folder`.

    Args:
        folder: absent, without a file in it or below, or with the checkpoint that is to be gone on from.
        state_file: that checkpoint.
        resume: whether to go on from it.
    """
    if not holds_files(folder):
        return
    if resume and state_file.exists():
        return
    if resume:
        raise BadInput(
            f"{folder} holds no checkpoint to resume.",
            "The training finished, or was never started there.",
            "Leave out --resume and name a new folder.",
        )
    raise BadInput(
        f"{folder} already holds files.",
        "An earlier training wrote there." if state_file.exists() else "",
        "Go on with --resume, or name another folder." if state_file.exists() else "Name another folder.",
    )


def identity(request: Request, *free: str) -> dict[str, Any]:
    """The settings that must not change between a checkpoint and its resumption, as JSON keeps them.

    Args:
        request: of the training.
        free: settings that may change beside those that may in every training.
    """
    kept = {k: v for k, v in dataclasses.asdict(request).items() if k not in (*_FREE, *free)}
    plain: dict[str, Any] = json.loads(json.dumps(kept))
    return plain


def save(path: Path, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        path: of the file.
        settings: see :func:`identity`.
        state: tensors and plain values.

    Raises:
        BadInput: the disk is full.
    """
    write_state(path, {"version": __version__, "request": json.dumps(settings), **state})


def load(path: Path, settings: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The state that :func:`save` wrote, on `device`.

    Raises:
        BadInput: the checkpoint was made with other settings.
    """
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    before = json.loads(state["request"])
    changed = [k for k in settings if before.get(k) != settings[k]]
    if changed:
        raise BadInput(
            f"The checkpoint was made with {changed[0]} = {before.get(changed[0])}, not {settings[changed[0]]}.",
            "A resumed training keeps its settings.",
            "Use the same settings, or another output folder.",
        )
    return state


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

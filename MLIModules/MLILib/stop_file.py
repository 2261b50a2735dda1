"""Ending a training early, with the best it has found: a file called "stop" beside its checkpoint asks for it.

A file, so that it works from any process and any shell (``touch my_bundle/training/stop``), on a cluster too.
"""

from __future__ import annotations

from pathlib import Path

NAME = "stop"


def ask(folder: Path) -> None:
    """Ask the training whose checkpoints lie in `folder` to end; one that has not begun yet does not hear it."""
    if folder.is_dir():
        (folder / NAME).touch()


def clear(folder: Path) -> None:
    """Forget that a training was asked to end, when it begins."""
    (folder / NAME).unlink(missing_ok=True)


def heard(folder: Path) -> bool:
    """Whether the training was asked to end; the asking is forgotten with that."""
    found = (folder / NAME).exists()
    if found:
        clear(folder)
    return found

"""The folder in which a job keeps its files: under Slicer's temporary folder, and gone when the job ends."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from pathlib import Path

from MLILib.errors import BadInput

_PREFIX = "mli-job-"


class JobFolder:
    """A folder of the job's own under Slicer's temporary folder; removed at the end of the block, however it ends.

    Raises:
        BadInput: the folder cannot be made.
    """

    def __init__(self, parent: str | Path | None = None) -> None:
        self._parent = Path(parent) if parent is not None else temporary_folder()
        self._path: Path | None = None

    def __enter__(self) -> Path:
        _remove_forgotten(self._parent)
        try:
            self._path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
        except OSError as error:
            raise BadInput(
                f"No temporary folder could be made in {self._parent}: {error.strerror}.",
                "",
                "Set a folder with free space as Slicer's temporary folder (Edit, Application Settings, General).",
            ) from error
        return self._path

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            if self._path.exists():
                logging.warning("The temporary folder %s could not be removed", self._path)


def temporary_folder() -> Path:
    """Slicer's temporary folder, or the system's outside Slicer."""
    try:
        from slicer import app
    except ImportError:
        return Path(tempfile.gettempdir())
    return Path(app.temporaryPath)


def _remove_forgotten(parent: Path, days: float = 2.0) -> None:
    """Remove job folders that a crash of Slicer left behind, told by their age."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > days * 86400:
                shutil.rmtree(folder, ignore_errors=True)

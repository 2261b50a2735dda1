"""Registered atlases that are kept between runs, so that another fusion method need not register again.

An entry's name is a hash of all that it depends on. It appears whole or not at all, several processes may use one
folder, and the entries that were used longest ago are removed when there are too many.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from .. import __version__, files, folders
from ..geometry import Grid

#: Changes when entries are made in another way, so that older ones are not used.
FORMAT = 1
#: Bytes that a cache may take.
LIMIT = 8_000_000_000
#: Seconds after which a file that was being written belongs to a process that was killed.
_ABANDONED = 3600.0
_ENDING, _UNFINISHED, _FACTS = ".npz", ".part", "facts"


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """What is kept of one computation: arrays by name, and plain values."""

    arrays: Mapping[str, npt.NDArray[Any]]
    facts: Mapping[str, Any]


def default_folder() -> Path:
    """In the user's cache."""
    return folders.cache() / "atlases"


def fingerprint(image: sitk.Image) -> str:
    """A hash of an image's voxels, kind of number and place; the same however the file was compressed."""
    digest = hashlib.sha256(repr((Grid.of(image), image.GetPixelIDTypeAsString())).encode())
    digest.update(np.ascontiguousarray(sitk.GetArrayViewFromImage(image)).data)
    return digest.hexdigest()


def content(image: sitk.Image) -> str:
    """A hash of an image's voxels alone: the same in every kind of number that holds them, and wherever it lies."""
    array = sitk.GetArrayViewFromImage(image)
    digest = hashlib.sha256(repr(array.shape).encode())
    for part in array:  # slice by slice, without a copy of the whole
        digest.update(part.astype(np.float64).data)
    return digest.hexdigest()


def key(settings: Mapping[str, Any], *fingerprints: str) -> str:
    """The name of an entry.

    Args:
        settings: plain values that it depends on.
        fingerprints: of the images that it depends on, in order.
    """
    parts = [FORMAT, __version__, dict(settings), *fingerprints]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Cache:
    """A folder of entries.

    Args:
        folder: made when something is kept.
        limit: bytes that the entries may take together.
    """

    def __init__(self, folder: str | Path, limit: int = LIMIT) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.limit = limit

    def get(self, name: str, arrays: Iterable[str] = ()) -> Entry | None:
        """The entry called `name`, None where there is none.

        A damaged entry is removed: it will be made again.

        Args:
            arrays: names of those that are wanted; the others are not read.
        """
        path = self._path(name)
        try:
            with np.load(path, allow_pickle=False) as stored:
                found = Entry({one: stored[one] for one in arrays}, json.loads(str(stored[_FACTS])))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            _remove(path)
            return None
        with contextlib.suppress(OSError):  # another process has just removed it, or owns it: what was read is sound
            os.utime(path)
        return found

    def put(self, name: str, entry: Entry) -> None:
        """Keep an entry, and remove the oldest where there are too many bytes.

        Raises:
            OSError: the folder cannot be written, or the disk is full; nothing is left behind then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(prefix="entry-", suffix=_UNFINISHED, dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, **{**entry.arrays, _FACTS: np.array(json.dumps(dict(entry.facts)))})  # type: ignore[arg-type]
            try:
                os.replace(made, self._path(name))
            except PermissionError:  # Windows, while another process reads the same entry: it is there already
                if not self._path(name).exists():
                    raise
        finally:
            _remove(Path(made))
        self.shrink(keep=name)

    def shrink(self, keep: str = "") -> None:
        """Remove entries, oldest use first, until the rest fits; and what killed processes left.

        Args:
            keep: name of an entry that stays in any case.
        """
        found = []
        now = time.time()
        for path in self.folder.glob("*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            if path.suffix == _UNFINISHED and now - status.st_mtime > _ABANDONED:
                _remove(path)
            elif path.suffix == _ENDING:
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit:
                return
            if path != self._path(keep):
                _remove(path)
                total -= size

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_ENDING}"


def _remove(path: Path) -> None:
    """Remove a file that another process may be removing, or on Windows reading, at this moment."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        path.unlink()


def why_not(error: OSError, folder: Path) -> str:
    """A sentence on why registered atlases were not kept."""
    if files.is_disk_full(error):
        return f"The registered atlases were not kept: the disk of {folder} is full."
    return f"The registered atlases were not kept: {folder} cannot be written ({error.strerror or error})."

"""Files that are read and written safely: inputs that exist, outputs that appear whole or not at all.

An output is written beside its final name and moved into place when everything has succeeded; an input is never
overwritten.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .errors import BadInput

#: Suffixes of two parts that must be kept together when a temporary name is made.
_DOUBLE = (".nii.gz", ".seg.nrrd")


def suffix(path: str | Path) -> str:
    """The suffix that tells an image's format, lower case: ".nii.gz", ".seg.nrrd", ".nrrd" ..."""
    name = Path(path).name.lower()
    for double in _DOUBLE:
        if name.endswith(double):
            return double
    return Path(name).suffix


def stem(path: str | Path) -> str:
    """The file's name without that suffix."""
    name = Path(path).name
    return name[: len(name) - len(suffix(path))]


def require_input(path: str, *, folder: bool = False, name: str = "input") -> None:
    """Raise :class:`BadInput` unless `path` exists and can be read."""
    p = Path(path)
    if not p.exists():
        raise BadInput(f"{path} does not exist.", f"It was given as {name}.", "Check the spelling of the path.")
    if folder and not p.is_dir():
        raise BadInput(f"{path} is not a folder.", f"{name} takes a folder.", "Give the folder that holds the files.")
    if not os.access(p, os.R_OK):
        raise BadInput(f"{path} cannot be read.", "You lack the permission.", "Ask its owner, or copy it.")


def require_writable(path: str, *, name: str = "output") -> None:
    """Raise :class:`BadInput` unless a file called `path` could be made: its folder exists and can be written."""
    parent = Path(path).absolute().parent
    if not parent.is_dir():
        raise BadInput(
            f"The folder {parent} does not exist.", f"It should receive {name}.", "Make the folder, or name another."
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BadInput(f"The folder {parent} cannot be written.", "You lack the permission.", "Name another folder.")


def require_apart(outputs: Iterable[str], inputs: Iterable[str]) -> None:
    """Raise :class:`BadInput` where a file that will be written is one that is read."""
    taken = {Path(path).resolve() for path in inputs}
    for path in outputs:
        if Path(path).resolve() in taken:
            raise BadInput(
                f"{path} is an input and would be overwritten.",
                "It is given as an output, or named after one.",
                "Give the output another name.",
            )


def require_json(report: str) -> None:
    """Raise :class:`BadInput` unless the name of a report, where one is wanted, says that it is JSON."""
    if report and suffix(report) != ".json":
        raise BadInput(f"{report} is no name for the report.", "It is JSON.", "End it with .json.")


def sha256(path: str | Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` write beside the file, and put that into its place; where it fails, nothing stays."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


class Outputs:
    """The files of one result: made beside their final names, moved into place together at the end.

    Example:
        >>> with Outputs() as outputs:  # doctest: +SKIP
        ...     sitk.WriteImage(labels, outputs.path("labels.nii.gz"))

    Leaving the block by an exception removes what was written; a full disk becomes :class:`BadInput`.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Path, Path]] = []

    def path(self, final: str | Path) -> str:
        """A name to write now, with the same suffix and on the same disk as `final`."""
        target = Path(final).absolute()
        handle, made = tempfile.mkstemp(prefix=f".{stem(target)[:40]}-", suffix=suffix(target), dir=target.parent)
        os.close(handle)
        self._pending.append((Path(made), target))
        return made

    def beside(self, report: str, finals: dict[str, str]) -> Callable[[str], str]:
        """A function that gives the name to write now to a picture beside a report, by its own name.

        Args:
            report: that the pictures' names begin with.
            finals: receives the final name of each by what it shows, its own name without the suffix.
        """

        def place(name: str) -> str:
            final = str(Path(report).with_name(f"{stem(report)}_{name}"))
            finals[Path(name).stem] = final
            return self.path(final)

        return place

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                umask = os.umask(0)
                os.umask(umask)
                for made, target in self._pending:
                    os.chmod(made, 0o666 & ~umask)  # mkstemp makes files that nobody else can read
                    os.replace(made, target)
        finally:
            for made, _ in self._pending:
                made.unlink(missing_ok=True)
        if error is not None and is_disk_full(error):
            folder = self._pending[-1][1].parent if self._pending else Path.cwd()
            raise disk_full(folder) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` says that no space was left. SimpleITK and others only tell it in their text."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "No space left on device" in str(error)


def disk_full(folder: Path) -> BadInput:
    """The error for a disk without room."""
    free = shutil.disk_usage(folder).free / 1e6
    return BadInput(
        f"The disk of {folder} is full ({free:.0f} MB free).",
        "Nothing was written.",
        "Free some space, or write to another disk.",
    )

"""Unpacks a zip that came from somewhere else: nothing outside its folder, no links, no bombs, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from . import files
from .errors import BadInput

#: The most a bundle's zip may unpack to, and the most files it may hold.
MAX_BYTES = 8 * 1024**3
MAX_FILES = 10000
_MARK = ("configs", "metadata.json")
_UNSAFE = "A zip that writes elsewhere can overwrite your files."
_AGAIN = "Get the model again from a source you trust."


def unpack(archive: Path, into: Path) -> Path:
    """The bundle's folder unpacked from the zip `archive`, below `into`; a zip already unpacked is not unpacked again.

    Args:
        archive: a zip with a bundle at its root or in its one top folder.
        into: a cache folder; the bundle goes to a folder in it named by the zip's sha256.

    Raises:
        BadInput: not a zip, damaged, encrypted, not a bundle, too large, or it holds a path out of its folder.
    """
    if not zipfile.is_zipfile(archive):
        raise BadInput(
            f"{archive} is not a zip of a model.", "A model is a MONAI bundle: a folder, or a zip of one.",
            "Give the bundle's folder or zip, not one of its files.",
        )  # fmt: skip
    target = into / files.sha256(archive)[:32]
    if target.is_dir():
        return _bundle_folder(target, archive)
    try:
        into.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=into))
    except OSError as error:
        if files.is_disk_full(error):
            raise files.disk_full(into.parent) from error
        raise BadInput(
            f"The zip {archive} cannot be unpacked: {into} cannot be written.", f"{error.strerror}.",
            "Set MLI_CACHE to a folder you may write to.",
        ) from error  # fmt: skip
    try:
        _extract(archive, staging)
        _bundle_folder(staging, archive)
        try:
            os.replace(staging, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES) or not target.is_dir():
                raise
            # another process was quicker, with the same content
    except OSError as error:
        if files.is_disk_full(error):
            raise files.disk_full(into) from error
        raise BadInput(
            f"The zip {archive} cannot be unpacked.", f"{error.strerror} ({error.filename}).",
            "Unpack it yourself and give the folder.",
        ) from error  # fmt: skip
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _bundle_folder(target, archive)


def _extract(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = zipped.infolist()
            if len(members) > MAX_FILES:
                raise BadInput(f"The zip {archive} holds {len(members)} files.", f"At most {MAX_FILES} may be.", _AGAIN)
            paths = [_checked(member, archive) for member in members]  # all of them before the first is written
            room = MAX_BYTES
            for member, path in zip(members, paths, strict=True):
                target = folder.joinpath(*path.parts)
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                room = _copy(zipped, member, target, room, archive)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError) as error:
        raise BadInput(f"The zip {archive} cannot be unpacked.", f"It is damaged ({error}).", _AGAIN) from error


def _checked(member: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    """Where a member goes, relative to the folder; refuses every name that leaves it on any operating system."""
    name = member.filename
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    parts = {*path.parts, *windows.parts}
    if path.is_absolute() or windows.drive or windows.root or ".." in parts or ":" in name or "\\" in name:
        raise BadInput(f"The zip {archive} was refused: its file {name!r} climbs out of its folder.", _UNSAFE, _AGAIN)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BadInput(f"The zip {archive} was refused: {name!r} is a link or a device, not a file.", _UNSAFE, _AGAIN)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadInput(f"The zip {archive} is packed in an unusual way.", "", "Unpack it yourself and give the folder.")
    if member.flag_bits & 0x1:
        raise BadInput(f"The zip {archive} is encrypted.", "", "Unpack it yourself and give the folder.")
    return path


def _copy(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, room: int, archive: Path) -> int:
    """Unpack one file and return the bytes still allowed; counts what comes out, since a header can lie."""
    with zipped.open(member) as source, open(target, "wb") as out:
        while chunk := source.read(1 << 20):
            room -= len(chunk)
            if room < 0:
                raise BadInput(
                    f"The zip {archive} was refused: it unpacks to more than {MAX_BYTES / 1e9:.1f} GB.",
                    "It may be made to fill your disk.", "Unpack it yourself and give the folder, if you trust it.",
                )  # fmt: skip
            out.write(chunk)
    return room


def _bundle_folder(root: Path, archive: Path) -> Path:
    """The folder in `root` that holds the bundle: itself, or its one folder."""
    candidates = [root]
    with contextlib.suppress(StopIteration):
        candidates += [p for p in sorted(root.iterdir()) if p.is_dir() and p.name != "__MACOSX"]
    found = [folder for folder in candidates if folder.joinpath(*_MARK).is_file()]
    if len(found) != 1:
        raise BadInput(
            f"The zip {archive} holds {'no model' if not found else f'{len(found)} models'}.",
            "A zip of a MONAI bundle has configs/metadata.json at its top or in its one folder.",
            "Give the zip of one bundle.",
        )  # fmt: skip
    return found[0]

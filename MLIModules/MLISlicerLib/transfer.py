"""Volumes between Slicer and the worker: uncompressed NRRD files, written and read slab by slab.

A 512 x 512 x 600 CT is 315 MB: written in one call it would hold the GUI for half a second. These are generators for
:mod:`MLISlicerLib.jobs`: they move half a megabyte, yield, and let the event loop run.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from MLILib.errors import BadInput
from MLILib.files import disk_full, is_disk_full

from .jobs import Status

_SLAB = 1 << 19
_DISCARD = 16 << 20

_TYPE_OF = {
    "i1": "int8", "u1": "uint8", "i2": "int16", "u2": "uint16", "i4": "int32", "u4": "uint32",
    "i8": "int64", "u8": "uint64", "f4": "float", "f8": "double",
}  # fmt: skip
_NUMPY_OF = {
    "signed char": "i1", "int8": "i1", "int8_t": "i1", "uchar": "u1", "unsigned char": "u1", "uint8": "u1",
    "uint8_t": "u1", "short": "i2", "short int": "i2", "signed short": "i2", "int16": "i2", "int16_t": "i2",
    "ushort": "u2", "unsigned short": "u2", "uint16": "u2", "uint16_t": "u2", "int": "i4", "signed int": "i4",
    "int32": "i4", "int32_t": "i4", "uint": "u4", "unsigned int": "u4", "uint32": "u4", "uint32_t": "u4",
    "longlong": "i8", "long long": "i8", "int64": "i8", "int64_t": "i8", "ulonglong": "u8", "uint64": "u8",
    "uint64_t": "u8", "unsigned long long": "u8", "float": "f4", "double": "f8",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where voxels lie, in LPS millimetres.

    Attributes:
        size: voxels along i, j and k.
        ijk_to_lps: (4, 4) matrix, from voxel indices to LPS.
    """

    size: tuple[int, int, int]
    ijk_to_lps: np.ndarray

    @property
    def origin(self) -> np.ndarray:
        """Centre of voxel (0, 0, 0), mm."""
        return self.ijk_to_lps[:3, 3]

    @property
    def spacing(self) -> np.ndarray:
        """Distance of neighbouring voxels along i, j and k, mm."""
        return np.linalg.norm(self.ijk_to_lps[:3, :3], axis=0)

    @property
    def direction(self) -> np.ndarray:
        """(3, 3) matrix whose columns are the unit vectors of i, j and k."""
        return self.ijk_to_lps[:3, :3] / self.spacing


def write_nrrd(path: Path, voxels: np.ndarray, grid: Grid, stage: str = "") -> Generator[Status | None, None, None]:
    """Write voxels as uncompressed NRRD, a slab a step.

    Args:
        path: file to write.
        voxels: (k, j, i), contiguous; not copied.
        grid: its geometry.
        stage: name shown while it runs.

    Raises:
        BadInput: the disk is full.
    """
    flat = np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("=")).reshape(-1)
    try:
        with open(path, "wb", buffering=0) as stream:
            stream.write(_header(flat.dtype, grid).encode("ascii"))
            step = max(1, _SLAB // flat.itemsize)
            for start in range(0, flat.size, step):
                _write_all(stream, memoryview(flat[start : start + step].data).cast("B"))
                yield Status(stage, min(1.0, (start + step) / flat.size))
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(path.parent) from error
        raise


def read_nrrd(
    path: Path, stage: str = "", *, allocate: Callable[[np.dtype, int], np.ndarray] | None = None
) -> Generator[Status | None, None, tuple[np.ndarray, Grid]]:
    """Read a 3-D NRRD file (encoding raw or gzip), a slab a step.

    Args:
        path: file to read.
        stage: name shown while it runs.
        allocate: makes the flat array to fill from its type and length; by default numpy does.

    Returns:
        Voxels (k, j, i), or (k, j, i, component) of a file whose voxels have several values; and their geometry.

    Raises:
        BadInput: the file is not such an NRRD, or is cut off.
    """
    with open(path, "rb") as stream:
        fields = _read_header(stream, path)
        grid, dtype = _grid(fields, path), _dtype(fields, path)
        components = _components(fields)
        count = int(np.prod(grid.size)) * components
        voxels = np.empty(count, dtype) if allocate is None else allocate(dtype, count)
        room = memoryview(voxels.data).cast("B")
        filled = 0
        inflate = zlib.decompressobj(wbits=31) if fields["encoding"] in ("gzip", "gz") else None
        while filled < len(room):
            if inflate is None:
                data = stream.read(_SLAB)
            elif inflate.unconsumed_tail:
                data = inflate.decompress(inflate.unconsumed_tail, _SLAB)
            else:
                packed = stream.read(_SLAB // 8)
                data = inflate.decompress(packed, _SLAB) if packed else inflate.flush()
                if packed and not data:
                    continue
            if not data:
                raise BadInput(
                    f"{path.name} is cut off.", f"{filled} of {len(room)} bytes are there.", "Run the job again."
                )
            data = data[: len(room) - filled]
            room[filled : filled + len(data)] = data
            filled += len(data)
            yield Status(stage, filled / len(room))
    return voxels.reshape(*grid.size[::-1], *([components] if components > 1 else [])), grid


def discard(path: Path) -> Generator[None, None, None]:
    """Remove a file of the job, some megabytes a step: to unlink a gigabyte at once takes a fifth of a second."""
    size = path.stat().st_size
    while size > _DISCARD:
        size -= _DISCARD
        os.truncate(path, size)
        yield None
    path.unlink()


def _header(dtype: np.dtype, grid: Grid) -> str:
    columns = " ".join(_vector(grid.ijk_to_lps[:3, axis]) for axis in range(3))
    return (
        "NRRD0005\n"
        f"type: {_TYPE_OF[dtype.str[1:]]}\n"
        "dimension: 3\n"
        "space: left-posterior-superior\n"
        f"sizes: {' '.join(str(n) for n in grid.size)}\n"
        f"space directions: {columns}\n"
        "kinds: domain domain domain\n"
        f"endian: {sys.byteorder}\n"
        "encoding: raw\n"
        f"space origin: {_vector(grid.origin)}\n"
        "\n"
    )


def _vector(values: np.ndarray) -> str:
    return "(" + ",".join(repr(float(v)) for v in values) + ")"


def _write_all(stream: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[stream.write(data) :]


def _read_header(stream: BinaryIO, path: Path) -> dict[str, str]:
    if not stream.readline().startswith(b"NRRD"):
        raise BadInput(f"{path.name} is not an NRRD file.", "", "Run the job again.")
    fields = {}
    for raw in iter(stream.readline, b""):
        line = raw.decode("utf-8", errors="replace").strip()
        if not line:
            break
        if not line.startswith("#") and ": " in line and ":=" not in line.split(": ")[0]:
            name, _, value = line.partition(": ")
            fields[name.strip().lower()] = value.strip()
    missing = {"type", "sizes", "encoding", "space directions", "space origin", "space"} - set(fields)
    if missing or "data file" in fields or fields["encoding"] not in ("raw", "gzip", "gz"):
        raise BadInput(
            f"{path.name} is not a plain NRRD volume.", f"Its header lacks or has: {', '.join(missing)}.", "Run again."
        )
    return fields


def _grid(fields: dict[str, str], path: Path) -> Grid:
    sizes = [int(n) for n in fields["sizes"].split()]
    axes = fields["space directions"].replace("none", "").strip().replace(") (", ");(").split(";")
    columns = [_numbers(part) for part in axes]
    if len(sizes) not in (3, 4) or len(columns) != 3 or (len(sizes) == 4) != ("none" in fields["space directions"]):
        raise BadInput(f"{path.name} has {len(sizes)} dimensions.", "A volume has 3.", "Run the job again.")
    sizes = sizes[-3:]
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(columns).T
    matrix[:3, 3] = _numbers(fields["space origin"])
    space = fields["space"].lower().replace("_", "-")
    if space in ("right-anterior-superior", "ras"):
        matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    elif space not in ("left-posterior-superior", "lps"):
        raise BadInput(f"{path.name} lies in the space {space!r}.", "It should be LPS or RAS.", "Run the job again.")
    return Grid((sizes[0], sizes[1], sizes[2]), matrix)


def _components(fields: dict[str, str]) -> int:
    """Values a voxel: the first axis, where it is none of space's."""
    sizes = fields["sizes"].split()
    return int(sizes[0]) if len(sizes) == 4 else 1


def _numbers(text: str) -> list[float]:
    return [float(n) for n in text.strip().strip("()").split(",")]


def _dtype(fields: dict[str, str], path: Path) -> np.dtype:
    name = _NUMPY_OF.get(fields["type"])
    endian = fields.get("endian", sys.byteorder)
    if name is None or endian != sys.byteorder:
        raise BadInput(
            f"{path.name} holds {endian}-endian voxels of type {fields['type']!r}.", "", "Run the job again."
        )
    return np.dtype(name)

"""The record beside a result: what was asked, of which model and images, by which versions, how long it took.

Enough to repeat the result: it names the exact `mli` command, the seed, and the sha256 of each input and model. It
holds no path beyond those the user typed.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from . import __version__, files
from .settings import Request

#: Packages whose versions matter to a result.
PACKAGES = ("torch", "monai", "SimpleITK", "numpy", "scipy")


class Model(Protocol):
    """What a record says of a model; :class:`MLILib.bundles.Bundle` is one."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def sha256(self) -> str:
        """Its checksum."""


def path_beside(output: str | Path) -> str:
    """The record's file name: the output's with its suffix replaced by ".json"."""
    path = Path(output)
    return str(path.with_name(files.stem(path) + ".json"))


@functools.cache
def _versions() -> dict[str, str]:
    """Asked once a process: reading the packages' metadata takes some 0.1 s."""
    found = {"mli": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """Versions of MLI, Python and the packages that compute; a missing package is left out."""
    return dict(_versions())


def make(
    request: Request,
    *,
    models: Sequence[Model] = (),
    device: str = "",
    stages: Mapping[str, float] | None = None,
    peak_memory: Mapping[str, int] | None = None,
    warnings: Sequence[str] = (),
    results: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of a finished task, plain values.

    Args:
        request: what was asked.
        models: what computed it.
        device: where, in words.
        stages: seconds per stage.
        peak_memory: bytes, by kind ("host", "gpu").
        warnings: sentences about fallbacks taken.
        results: what else is worth keeping (volumes, metrics).
    """
    seconds = {name: round(spent, 3) for name, spent in (stages or {}).items()}
    return {
        "task": request.task,
        "command": request.command(),
        "settings": request.to_json(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "models": [{"name": model.name, "sha256": model.sha256} for model in models],
        "inputs": [{"name": name, "sha256": checksum(name)} for name in request.inputs()],
        "seed": getattr(request, "seed", None),
        "device": device,
        "seconds": {**seconds, "total": round(sum((stages or {}).values()), 3)},
        "peak_memory_bytes": dict(peak_memory or {}),
        "warnings": list(warnings),
        **(results or {}),
    }


def write(record: Mapping[str, Any], path: str | Path) -> None:
    """Write a record as indented JSON."""
    Path(path).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def checksum(path: str) -> str:
    """The sha256 of a file; of a folder, that of its files' checksums in the order of their names."""
    p = Path(path)
    if p.is_file():
        return files.sha256(p)
    import hashlib

    lines = [f"{files.sha256(f)}  {f.relative_to(p).as_posix()}\n" for f in sorted(p.rglob("*")) if f.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class PeakMemory:
    """The most memory this process has held since the object was made.

    On Linux the kernel's high-water mark is set back first, so that a second job of a warm worker is not charged for
    the first; elsewhere the mark is the process's own, from its start. GPU memory is what torch allocated on `device`.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._reset = _reset_linux_mark()
        if device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(device)

    def bytes(self) -> dict[str, int]:
        """Bytes by kind: "host", and "gpu" on CUDA."""
        found = {"host": _host_peak(self._reset)}
        if self._device.startswith("cuda"):
            import torch

            found["gpu"] = int(torch.cuda.max_memory_allocated(self._device))
        return found


def _reset_linux_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux, or a sandbox that forbids it
        return False
    return True


def _host_peak(reset: bool) -> int:
    status = Path("/proc/self/status")
    if reset and status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return _windows_peak()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _windows_peak() -> int:
    import ctypes

    class Counters(ctypes.Structure):
        _fields_ = [("cb", ctypes.c_ulong), ("PageFaultCount", ctypes.c_ulong)] + [
            (name, ctypes.c_size_t)
            for name in (
                "PeakWorkingSetSize", "WorkingSetSize", "QuotaPeakPagedPoolUsage", "QuotaPagedPoolUsage",
                "QuotaPeakNonPagedPoolUsage", "QuotaNonPagedPoolUsage", "PagefileUsage", "PeakPagefileUsage",
            )
        ]  # fmt: skip

    counters = Counters()
    counters.cb = ctypes.sizeof(counters)
    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong]
    if not kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb):
        return 0
    return int(counters.PeakWorkingSetSize)

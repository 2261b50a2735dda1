"""Where a job computes: CPU, an NVIDIA GPU (cuda) or Apple's (mps), and how much memory is free there.

torch is imported when a function needs it, so that this module loads where torch is not installed.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .errors import BadInput, MissingPackage

if TYPE_CHECKING:
    import torch

#: What torch's allocators say when they have no room; only CUDA has an exception class of its own.
_NO_ROOM = re.compile(
    r"out of memory|can't allocate memory|not enough memory|failed to allocate|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|invalid buffer size",
    re.IGNORECASE,
)


def resolve(name: str) -> torch.device:
    """The device called `name`: auto (the first GPU, else the CPU), cpu, cuda, cuda:N or mps.

    Raises:
        BadInput: this computer has no such device.
        MissingPackage: torch is not installed.
    """
    torch = _torch()
    wanted = name.strip().lower()
    mps = torch.backends.mps.is_available()
    if wanted in ("", "auto"):
        return torch.device("cuda:0" if torch.cuda.is_available() else "mps" if mps else "cpu")
    if wanted == "cpu":
        return torch.device("cpu")
    if wanted == "mps":
        if not mps:
            raise BadInput(
                "The device mps is not available.", "It is the GPU of a Mac with Apple silicon.", _elsewhere()
            )
        return torch.device("mps")
    found = re.fullmatch(r"cuda(?::(\d+))?", wanted)
    if not found:
        raise BadInput(f"There is no device {name!r}.", "", "Choose auto, cpu, cuda, cuda:0, cuda:1 ... or mps.")
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            cause = f"The installed torch {torch.__version__} has no support for NVIDIA GPUs."
        else:
            cause = "There is no NVIDIA GPU, or its driver does not work."
        raise BadInput(f"The device {wanted} is not available.", cause, _elsewhere())
    count, index = torch.cuda.device_count(), int(found.group(1) or 0)
    if index >= count:
        raise BadInput(
            f"The device {wanted} is not available.",
            f"This computer has {count} NVIDIA GPU{'s' * (count > 1)}, counted from cuda:0.",
            f"Choose {' or '.join(f'cuda:{i}' for i in range(count))}, or auto.",
        )
    return torch.device(f"cuda:{index}")


def amp_dtype(device: torch.device, wanted: bool = True) -> torch.dtype | None:
    """The half precision that pays on `device`, None for float32.

    On a CPU without bfloat16 instructions torch emulates them, several times slower than float32.
    """
    torch = _torch()
    if not wanted:
        return None
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu" and "avx512_bf16" in _cpu_flags():
        return torch.bfloat16
    return None


def _cpu_flags() -> set[str]:
    torch = _torch()
    capabilities = torch.backends.cpu.get_cpu_capability()
    if not capabilities.startswith("AVX512"):
        return set()
    info = Path("/proc/cpuinfo")
    return set(info.read_text(encoding="utf-8").split()) if info.exists() else set()


def free_memory(device: torch.device) -> int:
    """Bytes that a job can still take on `device`: of the GPU, torch's own reserve included, or of this computer."""
    torch = _torch()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        room = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return max(0, min(int(room), free_host_memory()))
    return free_host_memory()


def free_host_memory() -> int:
    """Bytes of main memory that can be had without swapping, a container's limit heeded."""
    if sys.platform == "win32":
        return _free_windows()
    found = [free for free in (_free_linux(), _free_cgroup()) if free is not None]
    if found:
        return max(0, min(found))
    # macOS counts no "available" memory in sysconf; half of what is installed is what a job may count on.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def describe(device: torch.device) -> str:
    """The device for a reader: "the GPU NVIDIA RTX A4000 (cuda:0)", "the CPU"."""
    if device.type == "cuda":
        return f"the GPU {_torch().cuda.get_device_name(device)} ({device})"
    return "the GPU of this Mac (mps)" if device.type == "mps" else "the CPU"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that no memory was left, on any device; also when it was raised from one that does."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, MemoryError) or type(current).__name__ == "OutOfMemoryError":
            return True
        if isinstance(current, RuntimeError) and _NO_ROOM.search(str(current)):
            return True
        current = current.__cause__
    return False


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingPackage(
            "The Python package torch is not installed.",
            "Networks need it.",
            "Install torch; in Slicer, the PyTorch extension does so.",
        ) from error
    return torch


def _elsewhere() -> str:
    return "Choose auto or cpu, or see what `mli check` says about the device."


def _free_linux(info: Path = Path("/proc/meminfo")) -> int | None:
    """What Linux reckons can be had without swapping.

    It leaves out pages that were freed a moment ago and wait for their processor to take them again, up to gigabytes.
    """
    if not info.is_file():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", info.read_text(encoding="ascii"), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _free_cgroup(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """What the limits of this process's control groups leave, those of a container or a batch system; None: no limit.

    A limit holds for all groups below, so the tightest from this process's group up counts. Within a container the
    root is the container's own group, and the path that the host knows does not exist there.
    """
    paths = dict.fromkeys(("", "memory"), "/")  # by controller: version 2 of control groups has none, version 1 has
    if own.is_file():
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            paths |= {c: path for c in controllers.split(",") if c in paths}
    found = []
    for controller, *names in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        group = PurePosixPath(paths[controller].lstrip("/"))
        for folder in (group, *group.parents):
            left = _left(root / controller / folder, *names)
            if left is not None:
                found.append(left)
    return min(found, default=None)


def _left(folder: Path, limit: str, used: str, cache: str) -> int | None:
    """What the limit of one control group leaves; file cache that can be given up at once is free."""
    try:
        top = (folder / limit).read_text(encoding="ascii").strip()
        now = int((folder / used).read_text(encoding="ascii"))
        stat = (folder / "memory.stat").read_text(encoding="ascii")
    except OSError:  # no such control group here
        return None
    if not top.isdigit() or int(top) >= 1 << 60:  # "max", or the largest number that version 1 knows
        return None
    found = re.search(rf"^{cache} (\d+)$", stat, re.MULTILINE)
    return int(top) - now + (int(found.group(1)) if found else 0)


def _free_windows() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "available", "page_total", "page_free", "virtual_total", "virtual_free", "extended")
        ]

    status = Status()
    status.length = ctypes.sizeof(status)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined]
        raise ctypes.WinError()  # type: ignore[attr-defined]
    return int(status.available)

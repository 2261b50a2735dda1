"""Is this computer ready? Python, torch and its device, driver, memory, disk, packages, models: one line each.

A line is true (fine), false (a job would fail) or null (works, but worth knowing), and a line that is not true says
what to do. Needs none of the packages it looks for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import bundles, folders
from . import device as devices
from .errors import MLIError
from .progress import Progress
from .tasks import CheckRequest

Line = dict[str, Any]

#: Oldest versions that work.
PACKAGES = {"monai": "1.5", "nibabel": "5.3", "SimpleITK": "2.4", "numpy": "1.26", "scipy": "1.12", "matplotlib": "3.8"}
TORCH = "2.8"
PYTHON = (3, 11)

_GB = 1e9
#: Windows refuses longer paths unless told otherwise. Below Python's folder, torch's longest file takes 138.
WINDOWS_PATH = 260
_DEEPEST = 140


def run(request: CheckRequest, progress: Progress) -> dict[str, Any]:
    """Look at everything.

    Returns:
        "ok": whether no line is false; "lines": each with name, ok (true, false or None), value and remedy.
    """
    progress.stage("Looking at this computer")
    lines = [python_line(), *torch_lines(request.device), driver_line(), *memory_lines(), *disk_lines()]
    progress.check_cancelled()
    lines += [package_line(name, oldest) for name, oldest in PACKAGES.items()]
    if sys.platform == "win32":
        lines.append(path_length_line([Path(sys.prefix), folders.user(), folders.cache()], long_paths=_long_paths()))
    lines += [writable_line(folders.user()), *model_lines()]
    return {"ok": all(line["ok"] is not False for line in lines), "lines": lines, "text": format_lines(lines)}


def python_line() -> Line:
    """The Python that runs MLI."""
    version = ".".join(map(str, sys.version_info[:3]))
    return _line("Python", sys.version_info >= PYTHON, f"{version} ({sys.executable})",
                 f"Use Python {'.'.join(map(str, PYTHON))} or newer; Slicer 5.12 and newer bring one.")  # fmt: skip


def torch_lines(wanted: str) -> list[Line]:
    """torch, the device it would compute on, and that device's memory."""
    remedy = f"Install torch {TORCH} or newer; in Slicer, with the PyTorch extension."
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # a broken installation fails on a shared library
        return [
            _line("torch", False, f"not usable: {error}", remedy),
            _line("Device", False, "none without torch", remedy),
        ]
    lines = [_line("torch", _new_enough(torch.__version__, TORCH), str(torch.__version__), remedy)]
    try:
        device = devices.resolve(wanted)
    except MLIError as error:
        return [*lines, _line("Device", False, f"{error.what} {error.cause}".strip(), error.remedy)]
    if device.type == "cpu":
        slow = "Everything works, but takes longer than on a GPU with 4 GB of memory or more."
        lines.append(
            _line("Device", True if wanted == "cpu" else None, f"the CPU, {torch.get_num_threads()} threads", slow)
        )
        return lines
    free = devices.free_memory(device)
    lines.append(_line("Device", True, devices.describe(device), ""))
    lines.append(
        _line("GPU memory", True if free >= 4 * _GB else None, f"{free / _GB:.1f} GB free",
              "Close other programs that use the GPU; a job that does not fit runs in smaller tiles, or on the CPU.")
    )  # fmt: skip
    return lines


def driver_line() -> Line:
    """NVIDIA's driver, and whether torch can use it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        remedy = "With an NVIDIA GPU in this computer, install its driver; without one, there is nothing to do."
        return _line("GPU driver", None, "no NVIDIA driver", remedy)
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        return _line("GPU driver", None, f"nvidia-smi fails: {error}", "Install the GPU's driver again, and restart.")
    gpus = "; ".join(line.strip() for line in told.stdout.splitlines() if line.strip())
    try:
        cuda = importlib.import_module("torch").cuda.is_available()
    except (ImportError, OSError):  # said in a line of its own
        cuda = False
    remedy = "This torch cannot use the GPU: install a build of torch for CUDA that fits the driver."
    return _line("GPU driver", True if cuda else None, gpus, remedy)


def memory_lines() -> list[Line]:
    """Free main memory."""
    free = devices.free_host_memory()
    ok = False if free < 1.5 * _GB else None if free < 4 * _GB else True
    return [_line("Free memory", ok, f"{free / _GB:.1f} GB", "Close other programs; large images need 4 GB or more.")]


def disk_lines() -> list[Line]:
    """Free disk space where jobs keep their files while they run, and where models are kept."""
    lines = []
    for name, folder in (("Free disk (jobs)", Path(tempfile.gettempdir())), ("Free disk (models)", folders.user())):
        free = shutil.disk_usage(_existing(folder)).free
        ok = False if free < 0.5 * _GB else None if free < 5 * _GB else True
        lines.append(_line(name, ok, f"{free / _GB:.1f} GB in {folder}", f"Free some space on the disk of {folder}."))
    return lines


def package_line(name: str, oldest: str) -> Line:
    """Whether a Python package is installed, can be imported and is new enough."""
    remedy = f"Install {name} {oldest} or newer into this Python."
    try:
        importlib.import_module(name)
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = str(getattr(sys.modules[name], "__version__", ""))
    except (ImportError, OSError) as error:
        return _line(name, False, f"not usable: {error}", remedy)
    if not version:  # Slicer builds SimpleITK without its metadata
        return _line(name, None, "installed, version unknown", remedy)
    return _line(name, _new_enough(version, oldest), version, remedy)


def path_length_line(roots: Sequence[Path], *, long_paths: bool) -> Line:
    """Whether the files below these folders stay within the length of path that Windows allows."""
    longest = max((str(root) for root in roots), key=len)
    room = WINDOWS_PATH - len(longest)
    value = f"{len(longest)} characters used by {longest}" + (", long paths enabled" if long_paths else "")
    remedy = (
        "Enable long paths in Windows (the LongPathsEnabled setting), or install to a folder with a shorter path, and "
        "set MLI_MODELS and MLI_CACHE to short ones."
    )
    return _line("Path length", long_paths or room >= _DEEPEST, value, remedy)


def writable_line(folder: Path) -> Line:
    """Whether the folder of the user's models can be written, or could be made."""
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        value = f"{folder} cannot be written: {error.strerror}"
        return _line("Your models", False, value, "Set MLI_MODELS to a folder you may write to.")
    return _line("Your models", True, str(folder), "")


def model_lines() -> list[Line]:
    """Whether each shipped model is there and is what was shipped."""
    home = folders.shipped()
    try:
        listed = folders.entries(home)
    except MLIError as error:
        return [_line("Shipped models", False, error.what, error.remedy)]
    if home is None or not listed:
        return [_line("Shipped models", False, "none found", "Install the extension, or the package, again.")]
    lines = []
    for name, entry in listed.items():
        try:
            sha256 = bundles.read(home / name, shipped=True).sha256
        except MLIError as error:
            lines.append(_line(f"Model {name}", False, str(error), "Install the extension, or the package, again."))
            continue
        same = sha256 == entry.get("sha256")
        value = f"checksum {sha256[:12]}..." + ("" if same else f" is not {str(entry.get('sha256'))[:12]}...")
        lines.append(_line(f"Model {name}", same, value, "Its files changed: install the extension again."))
    return lines


def format_lines(lines: Sequence[Mapping[str, Any]]) -> str:
    """The lines for the terminal, with what to do below each that is not fine."""
    marks = {True: "ok", None: "--", False: "!!"}
    width = max(len(line["name"]) for line in lines)
    out = []
    for line in lines:
        out.append(f"{marks[line['ok']]}  {line['name']:<{width}}  {line['value']}")
        if line["ok"] is not True:
            out.append(f"    {'':<{width}}  -> {line['remedy']}")
    bad = sum(line["ok"] is False for line in lines)
    out.append(f"{bad} of {len(lines)} lines must be put right (!!)." if bad else "Ready.")
    return "\n".join(out)


def _line(name: str, ok: bool | None, value: str, remedy: str) -> Line:
    return {"name": name, "ok": ok, "value": value, "remedy": "" if ok is True else remedy}


def _new_enough(version: str, oldest: str) -> bool:
    return _numbers(version) >= _numbers(oldest)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _long_paths() -> bool:
    """Whether Windows was told to allow long paths."""
    if sys.platform != "win32":
        return True
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])
    except OSError:  # the setting does not exist before Windows 10
        return False

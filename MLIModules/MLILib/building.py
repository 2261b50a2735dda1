"""Runs what a bundle's configuration makes, and turns what goes wrong there into a sentence."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from .device import is_out_of_memory
from .errors import BadInput, MissingPackage, MLIError


class Configured(Protocol):
    """What of a bundle is told of when its configuration is wrong."""

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def trusted(self) -> bool: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...


@contextlib.contextmanager
def building(bundle: Configured, key: str) -> Iterator[None]:
    """Turns what a configuration gets wrong into a sentence; torch.load in trusted code reads weights only."""
    force = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before, path = os.environ.get(force), list(sys.path)
    os.environ[force] = "1"
    if bundle.trusted:
        _forget_other_scripts(bundle.folder)
        sys.path.insert(0, str(bundle.folder))
    try:
        yield
    except MLIError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        chain = _chain(error)
        absent = next((e for e in chain if isinstance(e, ImportError)), None)
        if absent is not None:
            raise MissingPackage(
                f"The model {bundle.name} needs a Python package that is not installed.", str(absent).splitlines()[0],
                f"Install {absent.name or 'it'} into this Python.",
            ) from error  # fmt: skip
        raise BadInput(
            f'The "{key}" of the model {bundle.name} cannot be made.', f"{chain[-1]!r:.300}",
            f"It was made with MONAI {bundle.metadata['monai_version']}; this is MONAI {_monai_version()}, "
            "which may call for other arguments.",
        ) from error  # fmt: skip
    finally:
        sys.path[:] = path
        if before is None:
            os.environ.pop(force)
        else:
            os.environ[force] = before


def _chain(error: BaseException) -> list[BaseException]:
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and cause not in found:
        found.append(cause)
    return found


def _forget_other_scripts(folder: Path) -> None:
    """Bundles call their code "scripts"; drop another bundle's modules, so that this one does not get their code."""
    own = {p.stem for p in folder.glob("*.py")} | {p.name for p in folder.iterdir() if p.is_dir()}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in own:
            places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
            if not any(place and Path(place).resolve().is_relative_to(folder) for place in places):
                del sys.modules[name]


def _monai_version() -> str:
    import monai

    return str(monai.__version__)


def require_monai() -> None:
    for package in ("torch", "monai"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingPackage(
                f"The Python package {package} is not installed.", "Models need it.",
                f"Install {package} (in Slicer, the PyTorch extension installs torch).",
            ) from error  # fmt: skip

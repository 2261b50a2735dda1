"""The Python packages that the worker needs: what is missing, said without importing any, and their installation.

Nothing is installed at import: a widget asks for it by name when Apply is pressed. PyTorch comes through the PyTorch
extension, which knows which build fits the computer's graphics card.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator

from MLILib.errors import MissingPackage

#: What the worker needs, with the ranges of pyproject.toml (a test compares them). Training alone needs matplotlib.
REQUIREMENTS = (
    "torch>=2.8",
    "monai>=1.5,<2",
    "nibabel>=5.3,<6",
    "SimpleITK>=2.4,<3",
    "numpy>=1.26,<3",
    "scipy>=1.12,<2",
    "PyYAML>=6,<7",
)

#: What a method needs beside them.
FOR_METHODS = {"random-forest": ("scikit-learn>=1.6",)}

_TORCH = REQUIREMENTS[0]
_complete = False


def missing() -> list[str]:
    """The requirements that are not met, as they would be given to pip; read off the packages' metadata."""
    import slicer.packaging

    return [requirement for requirement in REQUIREMENTS if not slicer.packaging.pip_check(requirement)]


def ensure(requester: str) -> None:
    """Install what is missing after asking.

    Args:
        requester: the module that asks, shown in the question.

    Raises:
        MissingPackage: the user declined, the installation failed, or Slicer runs in testing mode, where nothing is
            installed.
    """
    import slicer.packaging

    global _complete
    if _complete:
        return  # to look again takes a tenth of a second, and packages do not go away by themselves
    wanted = missing()
    _complete = not wanted
    if _complete:
        return
    with _told(wanted):
        if _TORCH in wanted and importlib.util.find_spec("PyTorchUtils") is not None:
            _install_torch()
            wanted = missing()
        slicer.packaging.pip_ensure(wanted, requester=requester)
    if missing():
        raise _not_installed(missing(), "")


def ensure_for(requester: str, method: str) -> None:
    """Install what a method needs beside the rest, after asking.

    Raises:
        MissingPackage: as :func:`ensure`.
    """
    import slicer.packaging

    def lacking() -> list[str]:
        return [one for one in FOR_METHODS.get(method, ()) if not slicer.packaging.pip_check(one)]

    if wanted := lacking():
        with _told(wanted):
            slicer.packaging.pip_ensure(wanted, requester=requester)
    if lacking():
        raise _not_installed(lacking(), "")


@contextlib.contextmanager
def _told(wanted: list[str]) -> Iterator[None]:
    """Tell in one sentence why packages could not be installed."""
    try:
        yield
    except Exception as error:  # pip's exit status, a declined question or a failed download
        logging.info("Packages were not installed: %s", error)
        raise _not_installed(wanted, str(error)) from error


def _install_torch() -> None:
    """Let the PyTorch extension choose and install the build that fits this computer."""
    import PyTorchUtils  # type: ignore[import-not-found]  # exists inside Slicer, with that extension
    import slicer

    if slicer.app.testingEnabled():
        return
    logic = PyTorchUtils.PyTorchUtilsLogic()
    logic.installTorch(askConfirmation=True, torchVersionRequirement=_TORCH.removeprefix("torch"))


def _not_installed(wanted: list[str], why: str) -> MissingPackage:
    return MissingPackage(
        f"This needs Python packages that are not installed: {', '.join(wanted)}.",
        why and f"{why.rstrip('.')}.",
        "Press Apply again and agree to the installation, or open 'This computer' and press 'Install packages'.",
    )

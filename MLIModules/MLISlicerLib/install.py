"""The Python packages that the worker needs: what is missing, said without importing any, and their installation.

Nothing is installed at import: a widget asks for it by name when Apply is pressed. PyTorch comes through the PyTorch
extension, which knows which build fits the computer's graphics card.
"""

from __future__ import annotations

import importlib.util
import logging

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
    try:
        if _TORCH in wanted and importlib.util.find_spec("PyTorchUtils") is not None:
            _install_torch()
            wanted = missing()
        slicer.packaging.pip_ensure(wanted, requester=requester)
    except Exception as error:  # pip's exit status, a declined question or a failed download: told in one sentence
        logging.info("Packages were not installed: %s", error)
        raise _not_installed(str(error)) from error
    if missing():
        raise _not_installed("")


def _install_torch() -> None:
    """Let the PyTorch extension choose and install the build that fits this computer."""
    import PyTorchUtils  # type: ignore[import-not-found]  # exists inside Slicer, with that extension
    import slicer

    if slicer.app.testingEnabled():
        return
    logic = PyTorchUtils.PyTorchUtilsLogic()
    logic.installTorch(askConfirmation=True, torchVersionRequirement=_TORCH.removeprefix("torch"))


def _not_installed(why: str) -> MissingPackage:
    return MissingPackage(
        f"This needs Python packages that are not installed: {', '.join(missing())}.",
        why and f"{why.rstrip('.')}.",
        "Press Apply again and agree to the installation, or open 'This computer' and press 'Install packages'.",
    )

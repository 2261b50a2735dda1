"""What is missing is found without importing it, and is installed only after asking."""

import importlib.machinery
import subprocess
import sys
import types
from pathlib import Path

import pytest
import slicer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def install(standin, monkeypatch):
    from MLISlicerLib import install

    monkeypatch.setattr(install, "_complete", False)
    return install


def test_what_is_not_there_is_named(install, monkeypatch):
    monkeypatch.setattr(install, "REQUIREMENTS", ("numpy>=1", "numpy>=999", "no-such-package-of-ours"))
    assert install.missing() == ["numpy>=999", "no-such-package-of-ours"]


def test_with_everything_there_nobody_is_asked(install, monkeypatch):
    monkeypatch.setattr(install, "REQUIREMENTS", ("numpy>=1",))
    install.ensure("Test")


def test_a_refusal_is_an_error_with_a_remedy(install, monkeypatch):
    import slicer.packaging

    from MLILib.errors import MissingPackage

    def decline(requirements, requester=None):
        raise RuntimeError("User declined package installation")

    monkeypatch.setattr(install, "REQUIREMENTS", ("no-such-package-of-ours",))
    monkeypatch.setattr(slicer.packaging, "pip_ensure", decline)
    with pytest.raises(MissingPackage) as caught:
        install.ensure("Test")
    assert "no-such-package-of-ours" in caught.value.what
    assert "declined" in caught.value.cause
    assert caught.value.exit_code == 4


def test_torch_comes_through_the_pytorch_extension(install, monkeypatch):
    asked = []

    class Logic:
        def installTorch(self, askConfirmation, torchVersionRequirement):
            asked.append((askConfirmation, torchVersionRequirement))
            monkeypatch.setattr(install, "missing", list)

    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = Logic
    extension.__spec__ = importlib.machinery.ModuleSpec("PyTorchUtils", None)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    monkeypatch.setattr(slicer, "app", types.SimpleNamespace(testingEnabled=lambda: False))
    monkeypatch.setattr(install, "missing", lambda: ["torch>=2.8"])
    install.ensure("Test")
    assert asked == [(True, ">=2.8")]


def test_looking_for_torch_does_not_import_it():
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'MLIModules')!r}, {str(ROOT / 'Testing')!r}]\n"
        "import slicer_standin; slicer_standin.install()\n"
        "from MLISlicerLib import install; install.missing()\n"
        "print([name for name in ('torch', 'monai', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"

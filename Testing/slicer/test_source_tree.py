"""Modules open straight from the source tree, when Slicer is told of a module's folder and of nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(p for p in (ROOT / "MLIModules").glob("*/MLI*.py") if p.parent.name == p.stem.removeprefix("MLI"))
_OPEN = """
import slicer, sys
sys.path.append(sys.argv[2])
import slicer_standin
slicer_standin.install()
instance, widget = slicer_standin.load_module(sys.argv[1])
print("opened", instance.parent.title)
"""


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.stem)
def test_a_module_finds_its_libraries(module: Path) -> None:
    pytest.importorskip("PySide6", reason="PySide6 is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"QT_QPA_PLATFORM": "offscreen"}
    command = [sys.executable, "-P", "-c", _OPEN, str(module), str(ROOT / "Testing")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert "opened" in done.stdout, done.stderr


def test_there_are_modules() -> None:
    assert MODULES

"""What the tests of the Slicer side share: the paths, and a fresh MRML scene for each test."""

import sys
from pathlib import Path

import pytest

# slicer-core takes every folder called "slicer" beside a path entry for a part of itself, and this one is called so:
# it is imported before Testing becomes an entry.
slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "MLIModules", ROOT / "Testing", ROOT / "Testing" / "unit"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@pytest.fixture
def scene():
    """An empty scene of a real MRML application, slicer.mrmlScene for the time of a test."""
    made = slicer.vtkMRMLScene()
    slicer.mrmlScene = made
    return made

"""The self-test in MLIRegistration.py, unchanged: as Slicer runs it with a main window, and with --no-main-window."""

from pathlib import Path

import pytest
from selftests import as_the_button_runs_it, loaded, with_a_main_window, without_a_main_window

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MLIModules" / "Registration" / "MLIRegistration.py"
TESTS = ["test_badInput", "test_deformable", "test_parametersAreSaved", "test_rigid"]


@pytest.mark.parametrize("name", TESTS)
def test_with_a_main_window(name, standin):
    with_a_main_window(standin, MODULE, name)


def test_as_the_button_reload_and_test_runs_it(standin):
    """runTest() goes through all tests in one call."""
    from MLISlicerLib import install

    if install.missing():
        pytest.skip("packages are not installed: " + ", ".join(install.missing()))
    as_the_button_runs_it(standin, MODULE)


@pytest.mark.parametrize("name", ["test_badInput", "test_rigid"])
def test_without_a_main_window(name):
    without_a_main_window(MODULE, name)


def test_the_sample_pair_loads_without_a_download(standin):
    import SampleData
    import slicer

    slicer.mrmlScene.Clear()
    with loaded(standin, MODULE) as code:
        code.registerSampleData()
        fixed, moving, fixedPoints, movingPoints = SampleData.downloadSamples("MNI152 right hippocampus, moved")
        assert fixed.GetImageData() is not None
        assert moving.GetImageData() is not None
        assert fixedPoints.GetNumberOfControlPoints() == movingPoints.GetNumberOfControlPoints() == 8

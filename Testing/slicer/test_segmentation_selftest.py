"""The self-test in MLISegmentation.py, unchanged: as Slicer runs it with a main window, and with --no-main-window."""

from pathlib import Path

import pytest
from selftests import as_the_button_runs_it, loaded, with_a_main_window, without_a_main_window

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MLIModules" / "Segmentation" / "MLISegmentation.py"
TESTS = ["test_badInput", "test_parametersAreSaved", "test_sampleImage"]


@pytest.mark.parametrize("name", TESTS)
def test_with_a_main_window(name, standin):
    with_a_main_window(standin, MODULE, name)


def test_as_the_button_reload_and_test_runs_it(standin):
    """runTest() goes through all tests in one call."""
    from MLISlicerLib import install, models

    if install.missing() or "hippocampus" not in models.known():
        pytest.skip("the model hippocampus or its packages are not installed")
    as_the_button_runs_it(standin, MODULE)


@pytest.mark.parametrize("name", TESTS)
def test_without_a_main_window(name):
    without_a_main_window(MODULE, name)


def test_the_sample_images_are_registered_and_load_without_a_download(standin):
    import SampleData
    import slicer

    slicer.mrmlScene.Clear()
    with loaded(standin, MODULE) as code:
        code.registerSampleData()
        for side in ("left", "right"):
            volume = SampleData.downloadSample(f"MNI152 {side} hippocampus")
            assert volume.GetImageData() is not None

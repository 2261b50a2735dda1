"""The self-test in MLIExplainability.py, unchanged: as Slicer runs it with a main window, and with --no-main-window."""

from pathlib import Path

import pytest
from selftests import as_the_button_runs_it, loaded, with_a_main_window, without_a_main_window

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MLIModules" / "Explainability" / "MLIExplainability.py"


def test_as_the_button_reload_and_test_runs_it(standin):
    """runTest() goes through all tests in one call."""
    from MLISlicerLib import install

    if install.missing():
        pytest.skip("packages are not installed: " + ", ".join(install.missing()))
    as_the_button_runs_it(standin, MODULE)


@pytest.mark.parametrize("name", ["test_badInput", "test_parametersAreSaved"])
def test_with_a_main_window(name, standin):
    with_a_main_window(standin, MODULE, name)


@pytest.mark.parametrize("name", ["test_point", "test_badInput"])
def test_without_a_main_window(name):
    without_a_main_window(MODULE, name)


def test_the_sample_loads_from_the_sample_data_module_without_a_download(standin):
    """As the button of that module does it, which calls the source's own function."""
    import SampleData
    import slicer

    with loaded(standin, MODULE) as code:
        code.registerSampleData()
        logic = SampleData.SampleDataLogic()
        source = logic.sourceForSampleName("MNI152 hippocampus, a point to explain")
        volume, point = source.customDownloader(source)
        assert volume.GetImageData().GetDimensions() == (35, 47, 48)
        place = [0.0, 0.0, 0.0]
        point.GetNthControlPointPositionWorld(0, place)
        assert place == [28.0, -16.0, -19.0]
        slicer.mrmlScene.Clear()
        assert SampleData.downloadSample("MNI152 hippocampus, a point to explain").IsA("vtkMRMLScalarVolumeNode")

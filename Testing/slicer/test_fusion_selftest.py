"""The self-test in MLIAtlasFusion.py, unchanged: as Slicer runs it with a main window, and with --no-main-window."""

from pathlib import Path

import pytest
from selftests import as_the_button_runs_it, loaded, with_a_main_window, without_a_main_window

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MLIModules" / "AtlasFusion" / "MLIAtlasFusion.py"
TESTS = ["test_atlases", "test_badInput", "test_parametersAreSaved", "test_raters"]


@pytest.mark.parametrize("name", TESTS)
def test_with_a_main_window(name, standin):
    with_a_main_window(standin, MODULE, name)


def test_as_the_button_reload_and_test_runs_it(standin):
    """runTest() goes through all tests in one call."""
    from MLISlicerLib import install

    if install.missing():
        pytest.skip("packages are not installed: " + ", ".join(install.missing()))
    as_the_button_runs_it(standin, MODULE)


@pytest.mark.parametrize("name", ["test_atlases", "test_badInput", "test_raters"])
def test_without_a_main_window(name):
    without_a_main_window(MODULE, name)


def test_the_samples_load_from_the_sample_data_module_without_a_download(standin):
    """As the buttons of that module do it, which call the source's own function."""
    import SampleData
    import slicer

    from MLISlicerLib import fusion_atlases, fusion_sample

    with loaded(standin, MODULE) as code:
        code.registerSampleData()
        logic = SampleData.SampleDataLogic()
        for name in ("MNI152 hippocampus atlases", "MNI152 hippocampus raters"):
            slicer.mrmlScene.Clear()
            source = logic.sourceForSampleName(name)
            sample = source.customDownloader(source)
            assert len(sample.atlases or sample.raters) == fusion_sample.COUNT
            assert sample.volume.GetImageData().GetDimensions() == (35, 47, 48)
        slicer.mrmlScene.Clear()
        sample = code.loadAtlases()
        assert fusion_atlases.folders()[sample.folder] == "Atlases (5 atlases)"
        slicer.mrmlScene.Clear()
        nodes = SampleData.downloadSamples("MNI152 hippocampus raters")  # a script gets the files
        assert [node.GetClassName() for node in nodes] == ["vtkMRMLScalarVolumeNode", "vtkMRMLSegmentationNode"]

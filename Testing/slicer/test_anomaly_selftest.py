"""The self-test in MLIAnomalyGAN.py, unchanged: as Slicer runs it with a main window, and with --no-main-window."""

from pathlib import Path

import pytest
from selftests import as_the_button_runs_it, loaded, without_a_main_window

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MLIModules" / "AnomalyGAN" / "MLIAnomalyGAN.py"


def test_as_the_button_reload_and_test_runs_it(standin):
    """runTest() goes through all tests in one call."""
    from MLISlicerLib import install

    if install.missing():
        pytest.skip("packages are not installed: " + ", ".join(install.missing()))
    as_the_button_runs_it(standin, MODULE)


def test_without_a_main_window():
    without_a_main_window(MODULE, "test_badInput")


def test_the_sample_loads_from_the_sample_data_module_without_a_download(standin):
    """As the button of that module does it; the lesion is where the volume is brighter than the normal ones."""
    import numpy as np
    import SampleData
    import slicer

    with loaded(standin, MODULE) as code:
        code.registerSampleData()
        source = SampleData.SampleDataLogic().sourceForSampleName("MNI152 hippocampi, one with a lesion")
        sample = source.customDownloader(source)
        assert len(sample.normals) == 8
        voxels = slicer.util.arrayFromVolume(sample.volume)
        segment = sample.lesion.GetSegmentation().GetNthSegmentID(0)
        inside = slicer.util.arrayFromSegmentBinaryLabelmap(sample.lesion, segment, sample.volume) > 0
        normal = np.mean([slicer.util.arrayFromVolume(one) for one in sample.normals], axis=0)
        assert (voxels - normal)[inside].mean() > 50
        assert abs((voxels - normal)[~inside].mean()) < 10

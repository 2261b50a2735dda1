"""The self-test in MLISegmentation.py, unchanged: as Slicer runs it with a main window, and with --no-main-window."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip("PySide6", reason="PySide6 is not installed")

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MLIModules" / "Segmentation" / "MLISegmentation.py"
TESTS = ["test_badInput", "test_parametersAreSaved", "test_sampleImage"]

SCRIPT = """
import sys, unittest
sys.path[:0] = [{modules!r}, {testing!r}]
import slicer_standin
slicer_standin.install(main_window=False)
import slicer
assert slicer.app.layoutManager() is None
_, widget = slicer_standin.load_module({module!r})
result = unittest.TestResult()
sys.modules["MLISegmentation"].MLISegmentationTest({test!r}).run(result)
slicer_standin.check_slots()
for _, report in result.failures + result.errors:
    print(report)
print("skipped: " + result.skipped[0][1] if result.skipped else "ran")
from MLISlicerLib import jobs
jobs.shared_runner().close()
sys.exit(0 if result.wasSuccessful() else 1)
"""


def tell(result):
    """Fail or skip as the self-test did."""
    for _, report in result.failures + result.errors:
        pytest.fail(report)
    if result.skipped:
        pytest.skip(result.skipped[0][1])


@pytest.mark.parametrize("name", TESTS)
def test_with_a_main_window(name, standin):
    standin.load_module(MODULE)
    import unittest

    result = unittest.TestResult()
    sys.modules["MLISegmentation"].MLISegmentationTest(name).run(result)
    standin.check_slots()
    tell(result)


def test_as_the_button_reload_and_test_runs_it(standin):
    """runTest() goes through all tests in one call."""
    from MLISlicerLib import install, models

    if install.missing() or "hippocampus" not in models.known():
        pytest.skip("the model hippocampus or its packages are not installed")
    standin.load_module(MODULE)
    standin.run_self_test("MLISegmentation")


@pytest.mark.parametrize("name", TESTS)
def test_without_a_main_window(name):
    code = SCRIPT.format(modules=str(ROOT / "MLIModules"), testing=str(ROOT / "Testing"), module=str(MODULE), test=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    if last.startswith("skipped: "):
        pytest.skip(last.removeprefix("skipped: "))
    assert last == "ran"


def test_the_sample_images_are_registered_and_load_without_a_download(standin):
    import SampleData
    import slicer

    slicer.mrmlScene.Clear()
    standin.load_module(MODULE)
    sys.modules["MLISegmentation"].registerSampleData()
    for side in ("left", "right"):
        volume = SampleData.downloadSample(f"MNI152 {side} hippocampus")
        assert volume.GetImageData() is not None

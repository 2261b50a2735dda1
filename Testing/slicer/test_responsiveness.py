"""The GUI while a large volume goes to the worker and its result comes back: a timer counts the pauses.

The worker here computes nothing, so that what is measured is Slicer's side alone.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import slicer
from gaps import Gaps, require_quiet
from scenes import add_volume

from MLISlicerLib.jobs import JobRunner
from MLISlicerLib.process import WorkerProcess

FAKE = str(Path(__file__).with_name("fake_worker.py"))


@pytest.fixture
def runner(standin):
    made = JobRunner(lambda: WorkerProcess([sys.executable, FAKE]))
    yield made
    made.close()


@pytest.mark.alone
@pytest.mark.parametrize("slices", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_a_ct_never_holds_the_gui(runner, standin, slices, capsys):
    """512 x 512 voxels of int16 a slice go out, uint8 labels and a float32 uncertainty map come back."""
    from MLISlicerLib import segmentation

    slicer.mrmlScene.Clear()
    volume = add_volume("ct", array=np.full((slices, 512, 512), 40, np.int16))
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        composite.SetBackgroundVolumeID(volume.GetID())  # as it is after loading
    pauses, results = [], []
    for _ in range(3):  # another process may hold a busy machine up: a pause of ours would be there each time
        inputs = segmentation.Inputs([volume], {"model": ["any"]}, uncertainty=True)
        with Gaps() as gaps:
            job = runner.start(segmentation.steps(inputs), done=results.append)
            standin.process_events_until(lambda job=job: job.finished, 300)
        assert job.error is None
        pauses.append(gaps.longest)
    with capsys.disabled():
        print(f"\n  {slices} slices: longest pauses of the GUI {[round(1000 * p) for p in pauses]} ms", end="")
    node = results[-1].segmentation
    labels = slicer.util.arrayFromSegmentBinaryLabelmap(node, node.GetSegmentation().GetNthSegmentID(0), volume)
    assert labels.sum() == slices * 512 * 512 // 2
    assert slicer.util.arrayFromVolume(results[-1].uncertainty).max() == 0.5
    require_quiet()
    assert min(pauses) < 0.1

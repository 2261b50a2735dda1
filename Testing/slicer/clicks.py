"""What a person does with a module's panel, and what they see: clicks, waiting, dialogs."""

import time
from pathlib import Path

import pytest

pytest.importorskip("PySide6", reason="PySide6 is not installed")

import slicer
from processes import alive
from scenes import scene_state


def finish(panel, standin, seconds=30):
    """Let the job end."""
    standin.process_events_until(lambda: panel.job is None, seconds)
    standin.check_slots()


def apply(panel, standin, seconds=30):
    """Press Apply and let the job end."""
    panel.ui.applyButton.click()
    finish(panel, standin, seconds)


def choose(comboBox, value):
    """Choose an item by hand, as a click does, which also tells that the user did it."""
    from PySide6 import QtCore

    comboBox.setCurrentIndex(comboBox.findData(value))
    QtCore.QMetaObject.invokeMethod(comboBox, "activated", QtCore.Q_ARG(int, comboBox.currentIndex))


def errors(standin):
    """The errors that were shown."""
    return [text for name, text in standin.messages if name == "errorDisplay"]


def temporary_folders():
    """The folders of jobs that are there."""
    return list(Path(slicer.app.temporaryPath).glob("mli-job-*"))


def cancel_at_once(panel, standin, runner, before):
    """Press Cancel: within two seconds the worker must be gone and the scene as it was `before` the job."""
    pid, begin = runner.worker.pid, time.monotonic()
    panel.ui.applyButton.click()
    finish(panel, standin, 5)
    assert time.monotonic() - begin < 2.0
    assert not alive(pid)
    assert scene_state() == before
    assert temporary_folders() == []
    assert errors(standin) == []
    assert panel.ui.statusLabel.text == "Cancelled. The scene is as it was."


def forget_own_views():
    """Go back to Slicer's layout and remove the views of the extension's own, so that the next test finds none."""
    from MLISlicerLib import display, side_by_side

    manager = slicer.app.layoutManager()
    if manager is None:
        return
    side_by_side.hide(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    for name in [name for name in manager.sliceViewNames() if name.startswith(display.OWN_VIEWS)]:
        logic = manager.sliceWidget(name).sliceLogic()
        for node in (logic.GetSliceCompositeNode(), logic.GetSliceNode()):
            slicer.mrmlScene.RemoveNode(node)

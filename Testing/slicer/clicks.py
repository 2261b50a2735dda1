"""What a person does with a module's panel, and what they see: clicks, waiting, dialogs."""

from pathlib import Path

import slicer


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

"""The part of MLI Segmentation's panel that segments a whole cohort of files with the chosen model.

Its .ui file names the widgets: cohortPathEdit, chooseCohortButton, cohortOutputEdit, chooseCohortOutputButton,
cohortWorkersSpinBox, cohortOverwriteCheckBox, cohortButton, cohortTableWidget, cohortLabel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from MLILib.cohort.requests import BatchSegmentRequest
from MLILib.errors import MLIError

from . import install
from .classical_panel import MODEL
from .jobs import Call, Status, Steps
from .parameters import tooltip
from .state_list import State, StateList

_STATES = {
    "waiting": ("#b0b0b0", _("waiting")),
    "segmenting": ("#3878b8", _("segmenting")),
    "done": ("#2e8b57", _("done")),
    "done before": ("#4aa3a2", _("done before")),
    "in the way": ("#d68910", _("made otherwise")),
    "failed": ("#c0392b", _("failed")),
}
#: Settings of the segmentation that a cohort has, too.
_SHARED = ("device", "tta", "keep_largest", "ensemble", "overlap")


class CohortPanel:
    """Mixin for the widget of MLI Segmentation, a :class:`MLISlicerLib.widget.MLIWidget` with a model chooser."""

    ui: Any
    job: Any
    logic: Any
    models: Any
    moduleName: str
    _parameterNode: Any
    startJob: Any
    showError: Any
    say: Any

    def setupCohort(self) -> None:
        """Connect the widgets."""
        ui = self.ui
        self._cohortRuns = False
        self._cohortStates = StateList(ui.cohortTableWidget, _STATES, "segmenting")
        for widget, name in ((ui.cohortWorkersSpinBox, "workers"), (ui.cohortOverwriteCheckBox, "overwrite")):
            widget.toolTip = tooltip(BatchSegmentRequest, name)
        menu = qt.QMenu(ui.chooseCohortButton)
        menu.addAction(_("Folder...")).connect("triggered()", self.onChooseCohortFolder)
        menu.addAction(_("Table or dataset.json...")).connect("triggered()", self.onChooseCohortFile)
        ui.chooseCohortButton.setMenu(menu)
        ui.chooseCohortOutputButton.connect("clicked(bool)", self.onChooseCohortOutput)
        ui.cohortButton.connect("clicked(bool)", self.onCohortButton)
        ui.cohortLabel.visible = False

    def onChooseCohortFolder(self) -> None:
        """Look for a folder of images."""
        path = qt.QFileDialog.getExistingDirectory(self.ui.chooseCohortButton, _("Folder of the images"), "")
        if path:
            self._parameterNode.cohortPath = str(path)

    def onChooseCohortFile(self) -> None:
        """Look for a list of images."""
        title, kinds = _("List of the images"), _("Table or data set (*.csv *.json)")
        path = qt.QFileDialog.getOpenFileName(self.ui.chooseCohortButton, title, "", kinds)
        if path:
            self._parameterNode.cohortPath = str(path)

    def onChooseCohortOutput(self, checked: bool = False) -> None:
        """Look for a folder to write to."""
        path = qt.QFileDialog.getExistingDirectory(self.ui.chooseCohortOutputButton, _("Folder for the labels"), "")
        if path:
            self._parameterNode.cohortOutput = str(path)

    def whatCohortMisses(self) -> str:
        """What must be chosen before the button can be pressed, a sentence; "" when nothing is."""
        node = self._parameterNode
        if node.method != MODEL:
            return _("A cohort is segmented by a trained model. Choose one under 'Method'.")
        if node.model not in self.models:
            return _("Choose a model.")
        if not node.cohortPath or not Path(node.cohortPath).exists():
            return _("Choose the images: a folder, a table or a dataset.json.")
        if not node.cohortOutput or not Path(node.cohortOutput).parent.is_dir():
            return _("Choose the folder to write to.")
        return ""

    def showCohort(self) -> None:
        """Show whether the cohort can be segmented."""
        if self._parameterNode is None:
            return
        missing = self.whatCohortMisses()
        self.ui.cohortButton.enabled = self.job is None and not missing
        self.ui.cohortButton.toolTip = missing or _("Segment every image; what is done already is left as it is.")

    def onCohortButton(self, checked: bool = False) -> None:
        """Segment all."""
        if self.job is not None or self.whatCohortMisses():
            return
        try:
            install.ensure(self.moduleName)
        except MLIError as error:
            self.showError(error)
            return
        node = self._parameterNode
        settings = {name: getattr(node, name) for name in _SHARED}
        settings |= self.logic.models(node) | {
            "cohort": node.cohortPath,
            "output": node.cohortOutput,
            "workers": node.workers,
            "overwrite": node.overwrite,
            "ending": ".seg.nrrd",  # with the names and colours of the segments
        }
        self._cohortRuns = True
        self.ui.cohortLabel.visible = False
        self._cohortStates.show([], _("Case"))
        self.startJob(batchSteps(settings), self.onCohortDone, self.onCohortFailed)
        self.showCohort()

    def onCohortProgress(self, status: Status) -> None:
        """Show how each case fares."""
        if self._cohortRuns and status.raters:
            self._cohortStates.hear(status, _("Case"))

    def onCohortDone(self, result: Any) -> None:
        """Show what came of each case."""
        self._cohortRuns = False
        states = []
        for one in result["cases"]:
            volumes = ", ".join(f"{name} {volume:.3g} ml" for name, volume in one["volumes"].items())
            states.append(State(one["case"], one["status"], one["error"] or volumes))
        self._cohortStates.show(states, _("Case"))
        self.ui.cohortLabel.text = _("Volumes and failures are in {path}").format(path=result["table"])
        self.ui.cohortLabel.visible = True
        counts = ", ".join(f"{count} {_STATES[word][1]}" for word, count in result["counts"].items() if count)
        self.say(counts)
        self.showCohort()

    def onCohortFailed(self, error: MLIError) -> None:
        """Tell why nothing was done."""
        self._cohortRuns = False
        self.showError(error)
        self.showCohort()

    def onCancelled(self) -> None:
        """Called when a cancelled job has ended; what was done stays, and is skipped the next time."""
        ran, self._cohortRuns = self._cohortRuns, False
        super().onCancelled()  # type: ignore[misc]
        if ran:
            self.say(_("Cancelled. Label maps that were done are kept, and are skipped the next time."))
        self.showCohort()


def batchSteps(settings: dict[str, Any]) -> Steps:
    """The steps behind "Segment all"; their result is that of the task "batch-segment"."""
    return (yield Call(BatchSegmentRequest.task, settings))

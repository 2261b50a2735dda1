"""The part of MLI Segmentation's panel that trains a model: its cases, its settings, how it fares, and how to stop it.

Its .ui file names the widgets: trainFolderComboBox, trainPathEdit, chooseDatasetButton, trainFoundBrowser,
trainNameEdit, networkComboBox, and those of :mod:`MLISlicerLib.training_view`.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from MLILib.segmentation.requests import TrainSegmentationRequest

from . import fusion_atlases, models, segmentation_training, training_job
from .filling import fill_box
from .jobs import Steps
from .parameters import ChoiceConnector, setting_of, tooltip
from .training_job import Trained
from .training_view import TrainingView

#: In place of a folder of the scene: a file.
FILE = "file"
#: Settings of the task that are parameters of the panel, and their widgets.
SETTINGS = {
    "network": "networkComboBox",
    "epochs": "epochsSpinBox",
    "hours": "hoursSpinBox",
    "fold": "foldSpinBox",
    "folds": "foldsSpinBox",
}
#: Name that the worker gives to the first curve.
_LOSS = "Training loss"


class TrainingPanel(TrainingView):
    """Mixin for the widget of MLI Segmentation, a :class:`MLISlicerLib.widget.MLIWidget` with a model chooser."""

    models: Any

    TRAIN_TASK = segmentation_training.TASK
    CURVE_AXIS = _("Epoch")

    def curveOrder(self, stage: str) -> bool:
        """The loss comes first."""
        return stage != _LOSS

    def setupTraining(self) -> None:
        """Fill the choosers and connect the widgets."""
        self.setupTrainingView()
        ui = self.ui
        for name in setting_of(TrainSegmentationRequest, "network").choices:
            ui.networkComboBox.addItem(name, name)
        for name, widget in SETTINGS.items():
            getattr(ui, widget).toolTip = tooltip(TrainSegmentationRequest, name)
        ui.trainingCollapsibleButton.connect("contentsCollapsed(bool)", self.onTrainingCollapsed)
        ui.trainFolderComboBox.connect("activated(int)", lambda _index: self.showTraining())
        ui.chooseDatasetButton.connect("clicked(bool)", self.onChooseDataset)

    def trainingConnectors(self) -> dict[str, Any]:
        """Parameters of training whose widgets need a connector of ours."""
        return {
            "trainFolder": ChoiceConnector(self.ui.trainFolderComboBox, _("(a folder without cases)")),
            "network": ChoiceConnector(self.ui.networkComboBox),
        }

    def onTrainingCollapsed(self, collapsed: bool) -> None:
        """The section was opened: look for cases."""
        if not collapsed and self._parameterNode is not None:
            self.findCases()

    def findCases(self) -> None:
        """List the folders of the scene that hold volumes with segmentations."""
        comboBox, chosen = self.ui.trainFolderComboBox, self._parameterNode.trainFolder
        found = fusion_atlases.folders(_("1 case"), _("{count} cases"))
        items = {"": _("Select the cases"), **found, FILE: _("A file, dataset.json")}
        fill_box(comboBox, items, chosen, _("(a folder without cases)"))
        self.showTraining()

    def onChooseDataset(self, checked: bool = False) -> None:
        """Look for a dataset.json."""
        title, kinds = _("Labelled cases"), _("Data set (*.json)")
        path = qt.QFileDialog.getOpenFileName(self.ui.chooseDatasetButton, title, "", kinds)
        if path:
            self._parameterNode.trainPath = str(path)

    def sceneCases(self) -> fusion_atlases.SceneAtlases | None:
        """The cases of the chosen folder, None where a file was chosen."""
        node = self._parameterNode
        return None if node.trainFolder == FILE else fusion_atlases.read(node.trainFolder)

    # -- what is shown

    def whatTrainingMisses(self) -> str:
        """What must be chosen before Train can be pressed, a sentence; "" when nothing is."""
        node = self._parameterNode
        if not node.trainFolder:
            return _("Choose the cases to learn from.")
        if node.trainFolder == FILE and not Path(node.trainPath).is_file():
            return _("Choose the file that lists the cases.")
        cases = self.sceneCases()
        if cases is not None and len(cases.atlases) < segmentation_training.LEAST_CASES:
            text = _("Put {count} or more volumes with segmentations into the folder.")
            return text.format(count=segmentation_training.LEAST_CASES)
        return training_job.name_error(node.trainName)

    def showTrainingChoices(self) -> None:
        """Show what belongs to the chosen cases."""
        node, ui = self._parameterNode, self.ui
        fromFile = node.trainFolder == FILE
        for name in ("trainPathLabel", "trainPathEdit", "chooseDatasetButton"):
            getattr(ui, name).visible = fromFile
        cases = self.sceneCases()
        text = "" if cases is None or not cases.atlases else _caseText(cases)
        if cases is not None:
            text += "".join(f"<br><i>{html.escape(note)}</i>" for note in cases.notes)
        ui.trainFoundBrowser.setHtml(text)
        ui.trainFoundBrowser.visible = bool(text)

    def showTraining(self) -> None:
        """Show the section, where it is open."""
        if not self.ui.trainingCollapsibleButton.collapsed:
            super().showTraining()

    def trainingSteps(self, replace: bool) -> Steps:
        """The steps of the training that is asked for."""
        node, cases = self._parameterNode, self.sceneCases()
        title = Path(node.trainPath).name if cases is None else fusion_atlases.name_of(node.trainFolder)
        return segmentation_training.steps(
            segmentation_training.Inputs(
                name=node.trainName,
                cases=cases,
                dataset=node.trainPath if cases is None else "",
                title=title,
                settings={**{setting: getattr(node, setting) for setting in SETTINGS}, "device": node.device},
                replace=replace,
            )
        )

    def trainingSummary(self, trained: Trained) -> str:
        """What was measured."""
        return segmentation_training.summary(trained)


def _caseText(cases: fusion_atlases.SceneAtlases) -> str:
    names = "&nbsp; ".join(
        f"<span style='color:{models.hex_of(label['color'])}'>&#9632;</span>&nbsp;{html.escape(label['name'])}"
        for label in cases.labels.labels
    )
    return _("{count} cases: {labels}").format(count=len(cases.atlases), labels=names)

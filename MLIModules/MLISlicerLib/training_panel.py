"""The part of MLI Segmentation's panel that trains a model: its cases, its settings, how it fares, and how to stop it.

Its .ui file names the widgets: trainFolderComboBox, trainPathEdit, chooseDatasetButton, trainFoundBrowser,
trainNameEdit, networkComboBox, trainButton, stopTrainingButton, trainPlotButton, trainCurveLabel, trainSamplesLabel,
trainResultBrowser.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MLILib.errors import MLIError
from MLILib.segmentation.requests import TrainSegmentationRequest

from . import fusion_atlases, install, models, segmentation_training
from .parameters import ChoiceConnector, setting_of, tooltip
from .segmentation_training import Trained
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

    ui: Any
    job: Any
    models: Any
    moduleName: str
    _parameterNode: Any
    startJob: Any
    showError: Any
    onModelAdded: Any
    moduleTitle: Any
    say: Any

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
        ui.trainButton.connect("clicked(bool)", self.onTrainButton)
        ui.stopTrainingButton.connect("clicked(bool)", self.onStopTrainingButton)

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
        wasBlocked = comboBox.blockSignals(True)
        comboBox.clear()
        comboBox.addItem(_("Select the cases"), "")
        for uid, text in fusion_atlases.folders(_("1 case"), _("{count} cases")).items():
            comboBox.addItem(text, uid)
        comboBox.addItem(_("A file, dataset.json"), FILE)
        known = [comboBox.itemData(index) for index in range(comboBox.count)]
        if chosen and chosen not in known:
            comboBox.addItem(_("(a folder without cases)"), chosen)
        comboBox.currentIndex = comboBox.findData(chosen)
        comboBox.blockSignals(wasBlocked)
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
        return segmentation_training.name_error(node.trainName)

    def showTraining(self) -> None:
        """Show what belongs to the chosen cases, and whether a training can begin or go on."""
        node, ui = self._parameterNode, self.ui
        if node is None or ui.trainingCollapsibleButton.collapsed:
            return
        fromFile = node.trainFolder == FILE
        for name in ("trainPathLabel", "trainPathEdit", "chooseDatasetButton"):
            getattr(ui, name).visible = fromFile
        cases = self.sceneCases()
        text = "" if cases is None or not cases.atlases else _caseText(cases)
        if cases is not None:
            text += "".join(f"<br><i>{html.escape(note)}</i>" for note in cases.notes)
        ui.trainFoundBrowser.setHtml(text)
        ui.trainFoundBrowser.visible = bool(text)
        training = bool(self._training)
        missing = self.whatTrainingMisses()
        ui.trainButton.enabled = self.job is None and not missing
        resumes = not missing and segmentation_training.can_resume(node.trainName)
        ui.trainButton.text = _("Go on training") if resumes and not training else _("Train")
        ui.trainButton.toolTip = missing or _("Train a model. This can take hours; Slicer can be used meanwhile.")
        ui.stopTrainingButton.visible = training
        ui.trainPlotButton.visible = bool(self._points)

    # -- the job

    def onTrainButton(self, checked: bool = False) -> None:
        """Train, or go on where a training of that name was stopped."""
        node = self._parameterNode
        if self.job is not None or self.whatTrainingMisses():
            return
        name = node.trainName
        replace = name in self.models
        question = _("You already have a model called '{name}'. Replace it?").format(name=name)
        if replace and not slicer.util.confirmYesNoDisplay(question, self.moduleTitle()):
            return
        try:
            install.ensure(self.moduleName)
        except MLIError as error:
            self.showError(error)
            return
        cases = self.sceneCases()
        title = Path(node.trainPath).name if cases is None else fusion_atlases.name_of(node.trainFolder)
        inputs = segmentation_training.Inputs(
            name=name,
            cases=cases,
            dataset=node.trainPath if cases is None else "",
            title=title,
            settings={**{setting: getattr(node, setting) for setting in SETTINGS}, "device": node.device},
            replace=replace,
        )
        self.beginTraining(name)
        self.startJob(segmentation_training.steps(inputs), self.onTrained, self.onTrainingFailed)
        self.showTraining()

    def onStopTrainingButton(self, checked: bool = False) -> None:
        """End the training after this epoch, with the best weights so far."""
        segmentation_training.stop(self._training)
        self.ui.stopTrainingButton.enabled = False

    def onTrained(self, trained: Trained) -> None:
        """Offer the model, and show what was measured."""
        self._endTraining()
        self.onModelAdded(trained.name)
        self.ui.trainResultBrowser.setHtml(segmentation_training.summary(trained))
        self.ui.trainResultBrowser.visible = True
        self.showTraining()

    def onTrainingFailed(self, error: MLIError) -> None:
        """Tell why; what was learned until the last checkpoint is kept."""
        self._endTraining()
        self.showError(error)

    def onCancelled(self) -> None:
        """Called when a cancelled job has ended."""
        name = self._training
        self._endTraining()
        super().onCancelled()  # type: ignore[misc]
        if name and segmentation_training.can_resume(name):
            self.say(_("Stopped. 'Go on training' continues from the last checkpoint."))

    def _endTraining(self) -> None:
        self._training = ""
        self.ui.stopTrainingButton.enabled = True
        self.showTraining()


def _caseText(cases: fusion_atlases.SceneAtlases) -> str:
    names = "&nbsp; ".join(
        f"<span style='color:{models.hex_of(label['color'])}'>&#9632;</span>&nbsp;{html.escape(label['name'])}"
        for label in cases.labels.labels
    )
    return _("{count} cases: {labels}").format(count=len(cases.atlases), labels=names)

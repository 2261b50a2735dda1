"""What the panel of MLI AnomalyGAN shows: models of normal and how they score, findings, and how a training fares."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MLILib.anomaly.requests import MODELS, PLANES, AnomalyRequest, TrainAnomalyRequest

from . import anomaly, anomaly_training, display, overlay, side_by_side, training_job
from .filling import fill_box, silent
from .jobs import Steps
from .parameters import tooltip
from .side_by_side import Picture
from .training_job import Trained
from .training_view import TrainingView

#: Settings of the training that are parameters of the panel, and their widgets.
TRAINING = {
    "model": "modelTypeComboBox",
    "plane": "planeComboBox",
    "size": "sizeSpinBox",
    "steps": "trainStepsSpinBox",
    "latent": "latentSpinBox",
    "filters": "filtersSpinBox",
}
#: Rows that the list of findings shows at once.
_FINDINGS = 10


class AnomalyPanel(TrainingView):
    """Mixin for the widget of MLI AnomalyGAN, a :class:`MLISlicerLib.widget.MLIWidget` with a model chooser."""

    TRAIN_TASK = anomaly_training.TASK

    logic: Any
    models: Any
    showTable: Any
    showThreshold: Any
    showRecord: Any

    def setupPanel(self) -> None:
        """Fill the choosers and connect the widgets."""
        self._shownResult: Any = None
        self._methodsOf: Any = self  # neither a model nor None: nothing has been filled in yet
        self._layoutBefore = side_by_side.current()
        ui = self.ui
        words = modelWords()
        for name in MODELS:
            ui.modelTypeComboBox.addItem(words[name][0], name)
        planes = planeWords()
        for name in PLANES:
            ui.planeComboBox.addItem(planes[name], name)
        for text, value in ((_("Volumes of this scene"), "scene"), (_("Files on this computer"), "files")):
            ui.sourceComboBox.addItem(text, value)
        menu = qt.QMenu(ui.choosePathButton)
        menu.addAction(_("Folder of images...")).connect("triggered()", self.onChooseFolder)
        menu.addAction(_("dataset.json or .npz...")).connect("triggered()", self.onChooseFile)
        ui.choosePathButton.setMenu(menu)
        for name, widget in TRAINING.items():
            getattr(ui, widget).toolTip = tooltip(TrainAnomalyRequest, name)
        ui.methodComboBox.toolTip = tooltip(AnomalyRequest, "method")
        ui.searchStepsSpinBox.toolTip = tooltip(AnomalyRequest, "search_steps")
        with silent(ui.opacitySlider):
            ui.opacitySlider.value = display.OPACITY
        ui.opacitySlider.connect("valueChanged(double)", self.onOpacityChanged)
        ui.thresholdSlider.connect("valueChanged(double)", self.onThresholdChanged)
        ui.findingsTableView.connect("clicked(QModelIndex)", self.onFindingClicked)
        ui.sideBySideButton.connect("clicked(bool)", self.onSideBySide)
        ui.showSlicesButton.connect("clicked(bool)", self.onShowSlices)
        ui.showRecordButton.connect("clicked(bool)", lambda _c=False: self.showRecord("record"))
        self.setupTrainingView()

    # -- detect

    def showMethods(self, model: Any) -> None:
        """Offer the scores that the chosen model can give."""
        if model is self._methodsOf:
            return
        self._methodsOf = model
        box, chosen = self.ui.methodComboBox, self._parameterNode.method
        told = model.bundle.metadata.get("mli", {}).get("anomaly", {}) if model is not None else {}
        methods = [str(name) for name in told.get("methods", ())]
        first = _("What the model was made for")
        best = {"": f"{first} ({methods[0]})" if methods else first}
        fill_box(box, {**best, **{name: name for name in methods}}, chosen)

    def showStoredResult(self, again: bool = False) -> None:
        """Show the latest result of this parameter set, if it is not shown already."""
        node, ui = self._parameterNode, self.ui
        if node is None:
            return
        result = (node.outputMap, node.findingsTable, node.measuredTable, node.summary)
        if result == self._shownResult and not again:
            return
        self._shownResult = result
        shown = node.findingsTable is not None and bool(node.summary)
        held = json.loads(node.summary) if shown else {}
        ui.resultsCollapsibleButton.visible = shown
        ui.foundBrowser.setHtml(held.get("words", ""))
        ui.warningsLabel.text = "\n".join(f"\N{WARNING SIGN} {sentence}" for sentence in held.get("warnings", ()))
        ui.warningsLabel.visible = bool(held.get("warnings"))
        count = node.findingsTable.GetNumberOfRows() if shown else 0
        ui.findingsTableLabel.text = _("Click a finding to go there:")
        ui.findingsTableLabel.visible = ui.findingsTableView.visible = count > 0
        self.showTable(ui.findingsTableView, node.findingsTable if shown else None, _FINDINGS)
        measured = shown and node.measuredTable is not None
        ui.measuredLabel.visible = ui.measuredTableView.visible = measured
        self.showTable(ui.measuredTableView, node.measuredTable if measured else None)
        ui.sideBySideButton.checked = side_by_side.shown()
        self.showThreshold(ui.thresholdWidget, ui.thresholdSlider, node.outputMap if shown else None)

    def onFindingClicked(self, index: Any) -> None:
        """Go to the finding of this row, in all slice views."""
        place = anomaly.centre(self._parameterNode.findingsTable, index.row())
        if place is not None:
            slicer.modules.markups.logic().JumpSlicesToLocation(*place, True)

    def onThresholdChanged(self, value: float) -> None:
        """Make the map clear below."""
        node = self._parameterNode
        if node is not None and node.outputMap is not None:
            display.show_above(node.outputMap, value)

    def onOpacityChanged(self, value: float) -> None:
        """Cover the image more or less."""
        overlay.flick(value)
        side_by_side.set_opacity(value)

    def onShowSlices(self, checked: bool = False) -> None:
        """Show the score of each slice as a plot."""
        side_by_side.hide(self._layoutBefore)
        self.ui.sideBySideButton.checked = False
        display.show_plot(self._parameterNode.slicesChart)

    def onSideBySide(self, checked: bool) -> None:
        """Show the image, what the model makes of it, and the map beside each other, or go back."""
        node = self._parameterNode
        if not checked or node.searched is None or node.outputMap is None:
            side_by_side.hide(self._layoutBefore)
            return
        if not side_by_side.shown():
            self._layoutBefore = side_by_side.current()
        opacity = float(self.ui.opacitySlider.value)
        pictures, labels = [Picture(node.searched)], [_("Image")]
        if node.reconstruction is not None:
            pictures.append(Picture(node.reconstruction))
            labels.append(_("As a normal one"))
        pictures.append(Picture(node.searched, node.outputMap, opacity))
        labels.append(_("Anomaly"))
        flat = 1 in node.searched.GetImageData().GetDimensions()
        plane = str(json.loads(node.summary).get("plane", "")).capitalize()
        orientation = plane if plane in ("Axial", "Coronal", "Sagittal") else "Axial"
        side_by_side.show(pictures, labels, "native" if flat else orientation)

    # -- train

    def onChooseFolder(self) -> None:
        """Look for a folder of normal images."""
        self._choose(qt.QFileDialog.getExistingDirectory(self.ui.choosePathButton, _("Folder of normal images"), ""))

    def onChooseFile(self) -> None:
        """Look for a list of normal images, or an archive of 2-D ones."""
        title, kinds = _("Normal images"), _("Data set (*.json *.npz)")
        self._choose(qt.QFileDialog.getOpenFileName(self.ui.choosePathButton, title, "", kinds))

    def _choose(self, path: Any) -> None:
        if path:
            self._parameterNode.trainPath = str(path)

    def whatTrainingMisses(self) -> str:
        """What must be chosen before Train can be pressed, a sentence; "" when nothing is."""
        node = self._parameterNode
        if node.source == "scene":
            if not self.logic.normals(node):
                return _("Choose the normal volumes to learn from.")
        elif not node.trainPath:
            return _("Choose a folder of normal images, a dataset.json or an .npz.")
        elif not Path(node.trainPath).exists():
            return _("{path} does not exist. Choose other files.").format(path=node.trainPath)
        return training_job.name_error(node.trainName)

    def showTrainingChoices(self) -> None:
        """Show what belongs to the choices of the training."""
        node, ui = self._parameterNode, self.ui
        scene = node.source == "scene"
        for names, shown in (
            (("normalsLabel", "normalsSelector"), scene),
            (("trainPathLabel", "trainPathEdit", "choosePathButton"), not scene),
        ):
            for name in names:
                getattr(ui, name).visible = shown
        ui.modelTypeBrowser.setHtml(html.escape(modelWords()[node.modelType][1]))

    def trainingSteps(self, replace: bool) -> Steps:
        """The steps of the training that is asked for."""
        return anomaly_training.steps(self.logic.trainingInputs(self._parameterNode, replace))

    def trainingSummary(self, trained: Trained) -> str:
        """How it was."""
        return anomaly_training.summary(trained)


def modelWords() -> dict[str, tuple[str, str]]:
    """Each kind of model in a name and a sentence."""
    return {
        "fanogan": (
            _("f-AnoGAN"),
            _("A GAN draws normal images, an encoder finds them again (Schlegl 2019)."),
        ),
        "dcgan": (
            _("DCGAN"),
            _("A small GAN; images are searched for, slowly (Radford 2015, Schlegl 2017)."),
        ),
        "wgan": (_("WGAN"), _("The GAN of f-AnoGAN without its encoder; images are searched for, slowly.")),
        "ae": (_("Autoencoder"), _("Learns to draw an image again from a short code. Quick, and a plain yardstick.")),
        "adversarial-ae": (_("Adversarial autoencoder"), _("Its codes are held to a normal distribution by a critic.")),
        "vae": (_("Variational autoencoder"), _("Learns how likely an image is, too (Kingma 2014).")),
        "denoising-ae": (
            _("Denoising autoencoder"),
            _("Learns to take away what was added to normal images; for small lesions in patches (Kascenas 2022)."),
        ),
    }


def planeWords() -> dict[str, str]:
    """What is taken from a volume, in words."""
    return {
        "axial": _("Axial slices"),
        "coronal": _("Coronal slices"),
        "sagittal": _("Sagittal slices"),
        "patch": _("Axial patches inside the foreground"),
        "patch-3": _("Patches of the three planes"),
    }

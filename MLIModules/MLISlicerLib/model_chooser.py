"""The model chooser of a panel: the models at hand, the card of the chosen one, and adding one of the user's.

Its .ui file names the widgets: modelComboBox, addModelButton, modelSummaryBrowser, modelCardButton, modelCardBrowser.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MLILib.errors import MLIError

from . import models
from .filling import fill_box
from .jobs import Call, Steps


class ModelChooser:
    """Mixin for a :class:`MLISlicerLib.widget.MLIWidget` whose parameter set has the parameter "model"."""

    #: What the models are for: "segmentation", "registration" ..., or several of them.
    MODEL_TASK: str | tuple[str, ...] = "segmentation"

    ui: Any
    job: Any
    _parameterNode: Any
    setParameterNode: Any
    startJob: Any
    showError: Any
    say: Any
    moduleTitle: Any

    def setupModels(self, comboBoxes: list[Any]) -> None:
        """Fill the combo boxes that offer models, and connect the button that adds one."""
        self.models: dict[str, models.Model] = {}
        self._modelComboBoxes = comboBoxes
        self._modelToolTip = self.ui.modelComboBox.toolTip
        self._shownModel: Any = self  # neither a model nor None: nothing has been shown yet
        self.fillModels()
        menu = qt.QMenu(self.ui.addModelButton)
        menu.addAction(_("From a folder...")).connect("triggered()", lambda: self.onAddModel(False))
        menu.addAction(_("From a zip file...")).connect("triggered()", lambda: self.onAddModel(True))
        self.ui.addModelButton.setMenu(menu)

    def fillModels(self) -> None:
        """Read the list of models again."""
        self.models = models.known(self.MODEL_TASK)
        for comboBox in self._modelComboBoxes:
            fill_box(comboBox, {name: model.title for name, model in self.models.items()})

    def showModel(self, model: models.Model | None) -> None:
        """Show what a model is for, and its card."""
        if model is self._shownModel:
            return
        self._shownModel = model
        card = model.bundle.card if model is not None else ""
        self.ui.modelSummaryBrowser.setHtml(models.summary(model) if model is not None else "")
        self.ui.modelSummaryBrowser.visible = model is not None
        self.ui.modelCardBrowser.setMarkdown(card)
        self.ui.modelCardButton.visible = bool(card)
        self.ui.modelComboBox.toolTip = self._modelToolTip if model is None else model.title

    def showChannels(self, model: models.Model | None) -> None:
        """Show a chooser for each image that a model needs, of inputVolumeSelector, inputVolume2Selector ..."""
        channels = model.channels if model is not None else ("",)
        for number in itertools.count(1):
            suffix = "" if number == 1 else str(number)
            label = getattr(self.ui, f"inputVolume{suffix}Label", None)
            if label is None:
                return
            shown = number <= max(1, len(channels))
            label.visible = shown
            getattr(self.ui, f"inputVolume{suffix}Selector").visible = shown
            if shown:
                label.text = _("Input volume:") if len(channels) < 2 else f"{channels[number - 1]}:"

    def onAddModel(self, zipped: bool) -> None:
        """Check a model of the user's and copy it to their models; one of the same name is replaced after asking."""
        source = chooseModelSource(self.ui.addModelButton, zipped)
        if not source or self.job is not None:
            return
        name = Path(source).stem if zipped else Path(source).name
        replace = name in self.models and not self.models[name].shipped
        question = _("You already have a model called '{name}'. Replace it?").format(name=name)
        if not replace or slicer.util.confirmYesNoDisplay(question, self.moduleTitle()):
            self.addModel(source, replace)

    def addModel(self, source: str, replace: bool, trust: tuple[str, ...] = ()) -> None:
        """Start the job that adds a model; one whose configuration runs code is asked about."""

        def onFailed(error: MLIError) -> None:
            checksum = re.search(r"--trust ([0-9a-f]{64})", error.remedy)
            question = _("{what}\n\n{cause}\n\nDo you trust the authors of this model, and allow it to run their code?")
            if checksum is None or not slicer.util.confirmYesNoDisplay(
                question.format(what=error.what, cause=error.cause), self.moduleTitle()
            ):
                self.showError(error)
            else:
                self.addModel(source, replace, (checksum.group(1),))

        self.startJob(addSteps(source, replace, trust), self.onModelAdded, onFailed)

    def onModelAdded(self, name: str) -> None:
        """Choose the model that was added."""
        node = self._parameterNode
        self.setParameterNode(None)
        self.fillModels()
        self.setParameterNode(node)
        if node is not None:
            node.model = name
        self.say(_("Added the model '{name}'.").format(name=name))


def addSteps(source: str, replace: bool = False, trust: tuple[str, ...] = ()) -> Steps:
    """Steps that copy a bundle to the user's models; their result is its name."""
    result = yield Call("models-import", {"source": source, "replace": replace, "trust": list(trust)})
    return result["name"]


def chooseModelSource(parent: Any, zipped: bool) -> str:
    """Ask for a model's folder or zip file; "" when the user thought better of it."""
    if zipped:
        chosen = qt.QFileDialog.getOpenFileName(parent, _("Add a model"), "", _("Zipped MONAI bundle (*.zip)"))
    else:
        chosen = qt.QFileDialog.getExistingDirectory(parent, _("Add a model: folder of a MONAI bundle"))
    return str(chosen)

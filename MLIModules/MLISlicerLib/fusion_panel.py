"""What the panel of MLI AtlasFusion shows beside its choices: what there is to fuse, how each atlas fares, results."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MLILib.fusion.methods import METHODS
from MLILib.registration.presets import PRESETS

from . import display, fusion_atlases, fusion_report, models
from .filling import fill_box
from .jobs import Call, Status, Steps
from .scene_labels import SceneLabels
from .state_list import State, StateList

#: Milliseconds between a change of the scene and a new look at its folders, so that loading looks once.
_LATER = 100
#: Rows that the table of trust shows at once.
_RATERS = 12
#: Colour of the swatch for each state, and the state in words.
_STATES = {
    "waiting": ("#b0b0b0", _("waiting")),
    "registering": ("#3878b8", _("registering")),
    "cached": ("#4aa3a2", _("from cache")),
    "done": ("#2e8b57", _("done")),
    "used": ("#2e8b57", _("used")),
    "left out": ("#d68910", _("left out")),
    "not selected": ("#b0b0b0", _("not selected")),
    "failed": ("#c0392b", _("failed")),
}
#: Advanced settings that only some methods have, or only atlases.
_OF_METHODS = {
    "region": ("simple", "staple", "deepstaple"),
    "margin": ("simple", "staple", "deepstaple"),
    "patchRadius": ("local", "jlf"),
    "searchRadius": ("jlf",),
    "beta": ("jlf",),
    "alpha": ("jlf",),
    "drop": ("simple",),
    "steps": ("deepstaple",),
}


class FusionPanel:
    """Mixin for the widget of MLI AtlasFusion, a :class:`MLISlicerLib.widget.MLIWidget`."""

    ui: Any
    logic: Any
    job: Any
    _parameterNode: Any
    addObserver: Any
    removeObservers: Any
    startJob: Any
    showTable: Any
    showThreshold: Any
    onShowRecordButton: Any
    say: Any
    moduleTitle: Any
    updateApply: Any
    _later: Any = None

    def setupPanel(self) -> None:
        """Fill the choosers and connect the widgets."""
        self._shownResult: Any = None
        self._states = StateList(self.ui.atlasesTableWidget, _STATES, "registering")
        self._hierarchy: Any = None
        ui = self.ui
        for text, value in ((_("Atlases, registered to a target"), "atlases"), (_("Raters of one image"), "raters")):
            ui.modeComboBox.addItem(text, value)
        for text, value in ((_("A folder of this scene"), "scene"), (_("Files on this computer"), "files")):
            ui.sourceComboBox.addItem(text, value)
        for name, method in METHODS.items():
            ui.methodComboBox.addItem(method.title, name)
        for name, preset in PRESETS.items():
            ui.registrationComboBox.addItem(preset.title, name)
        self.models = models.known("registration")
        for name, model in self.models.items():
            ui.registrationComboBox.addItem(_("Model: {title}").format(title=model.title), name)
        ui.regionComboBox.addItem(_("Box around what any rater drew"), "union")
        ui.regionComboBox.addItem(_("Whole image"), "image")
        ui.bordersComboBox.addItem(_("Smooth"), "smooth")
        ui.bordersComboBox.addItem(_("Nearest voxel"), "nearest")
        menu = qt.QMenu(ui.chooseAtlasesButton)
        menu.addAction(_("Folder...")).connect("triggered()", self.onChooseFolder)
        menu.addAction(_("dataset.json...")).connect("triggered()", self.onChooseFile)
        ui.chooseAtlasesButton.setMenu(menu)
        ui.checkAtlasesButton.connect("clicked(bool)", self.onCheckAtlasesButton)
        ui.modeComboBox.connect("activated(int)", self.onModeActivated)
        ui.showAgreementButton.connect("clicked(bool)", lambda _c=False: self.plot("agreementChart"))
        ui.showWeightsButton.connect("clicked(bool)", lambda _c=False: self.plot("weightChart"))
        ui.showMetricsButton.connect("clicked(bool)", lambda _c=False: self.plot("metricsChart"))
        ui.showRecordButton.connect("clicked(bool)", self.onShowRecordButton)
        ui.disagreementThresholdSlider.connect("valueChanged(double)", self.onDisagreementThresholdChanged)
        self._later = qt.QTimer()
        self._later.setSingleShot(True)
        self._later.setInterval(_LATER)
        self._later.connect("timeout()", self.refreshFolders)
        for event in (slicer.vtkMRMLScene.NodeAddedEvent, slicer.vtkMRMLScene.NodeRemovedEvent):
            self.addObserver(slicer.mrmlScene, event, self.onNodesChanged)
        self.refreshFolders()

    def cleanup(self) -> None:
        """Called when the module's widget is destroyed."""
        if self._later is not None:
            self._later.stop()
        super().cleanup()  # type: ignore[misc]

    # -- the atlases at hand

    def onNodesChanged(self, caller: Any, event: Any) -> None:
        """The scene has changed: look at its folders once all is done."""
        self._later.start()

    def onFoldersChanged(self, caller: Any, event: Any) -> None:
        """The scene's tree has changed."""
        self._later.start()

    def refreshFolders(self) -> None:
        """List the folders that hold atlases again; the first one is chosen where none is."""
        if slicer.mrmlScene.IsClosing() or slicer.mrmlScene.IsImporting() or slicer.mrmlScene.IsBatchProcessing():
            self._later.start()
            return
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        if hierarchy is not None and hierarchy is not self._hierarchy:
            self._hierarchy = hierarchy  # a closed scene gets another one
            self.removeObservers(self.onFoldersChanged)
            for name in ("ItemAdded", "ItemRemoved", "ItemReparented", "ItemModified"):
                self.addObserver(hierarchy, getattr(hierarchy, f"SubjectHierarchy{name}Event"), self.onFoldersChanged)
        found = fusion_atlases.folders()
        comboBox, node = self.ui.atlasFolderComboBox, self._parameterNode
        chosen = node.atlasFolder if node is not None else ""
        fill_box(comboBox, {"": _("Select a folder"), **found}, chosen, _("(a folder without atlases)"))
        if node is not None:
            if not chosen and found:
                node.atlasFolder = next(iter(found))
            self.showFound()
            self.updateApply()

    def showFound(self) -> None:
        """Say what there is to fuse."""
        node = self._parameterNode
        text = ""
        if node.mode == "raters":
            raters = self.logic.raters(node)
            if raters:
                labels = SceneLabels.of(raters)
                text = self._counted(_("1 rater"), _("{count} raters"), len(raters), labels)
        elif node.source == "scene" and node.atlasFolder:
            found = self.logic.sceneAtlases(node)
            if found.atlases:
                text = self._counted(_("1 atlas"), _("{count} atlases"), len(found.atlases), found.labels)
            text += "".join(f"<br><i>{html.escape(note)}</i>" for note in found.notes)
        self.ui.foundBrowser.setHtml(text)
        self.ui.foundBrowser.visible = bool(text)

    @staticmethod
    def _counted(one: str, many: str, count: int, labels: SceneLabels) -> str:
        marks = "&nbsp; ".join(
            f"<span style='color:{models.hex_of(label['color'])}'>&#9632;</span>&nbsp;{html.escape(label['name'])}"
            for label in labels.labels
        )
        return _("{count}: {labels}").format(count=one if count == 1 else many.format(count=count), labels=marks)

    def onModeActivated(self, index: int) -> None:
        """Raters alone cannot be compared with images: the method is changed for one that needs none."""
        node = self._parameterNode
        if node.mode == "raters" and METHODS[node.method].images:
            node.method = "staple"

    def onChooseFolder(self) -> None:
        """Look for a folder of atlases."""
        self._choose(qt.QFileDialog.getExistingDirectory(self.ui.chooseAtlasesButton, _("Folder of the atlases"), ""))

    def onChooseFile(self) -> None:
        """Look for a list of atlases."""
        title, kinds = _("List of the atlases"), _("Data set (*.json)")
        self._choose(qt.QFileDialog.getOpenFileName(self.ui.chooseAtlasesButton, title, "", kinds))

    def _choose(self, path: Any) -> None:
        if path:
            self._parameterNode.atlasPath = str(path)

    def onCheckAtlasesButton(self, checked: bool = False) -> None:
        """Look for what is wrong with the files, without registering."""
        if self.job is None:
            self.startJob(checkSteps(self._parameterNode.atlasPath), self.onAtlasesChecked)

    def onAtlasesChecked(self, result: Any) -> None:
        """Tell what was found."""
        sound = result.get("ok", True)
        self.say(_("The atlas set is sound.") if sound else _("Something is wrong with the atlas set."))
        slicer.util.infoDisplay(
            _("What was found in {path}").format(path=self._parameterNode.atlasPath),
            windowTitle=self.moduleTitle(),
            detailedText=result["text"],
        )

    def showChoices(self) -> None:
        """Show what belongs to the mode, the method and the registration."""
        node, ui = self._parameterNode, self.ui
        atlases = node.mode == "atlases"
        scene = atlases and node.source == "scene"
        for names, shown in (
            (("sourceLabel", "sourceComboBox", "registrationLabel", "registrationComboBox"), atlases),
            (("selectLabel", "selectSpinBox", "keepLabel", "keepCheckBox", "bordersLabel", "bordersComboBox"), atlases),
            (("atlasFolderLabel", "atlasFolderComboBox"), scene),
            (("atlasPathLabel", "atlasPathEdit", "chooseAtlasesButton", "checkAtlasesButton"), atlases and not scene),
            (("ratersLabel", "ratersSelector"), not atlases),
        ):
            for name in names:
                getattr(ui, name).visible = shown
        ui.targetLabel.text = _("Target volume:") if atlases else _("Image (optional):")
        ui.checkAtlasesButton.enabled = bool(node.atlasPath) and Path(node.atlasPath).exists()
        for name, methods in _OF_METHODS.items():
            kind = "ComboBox" if name == "region" else "SpinBox"
            for widget in (getattr(ui, f"{name}Label"), getattr(ui, f"{name}{kind}")):
                widget.visible = node.method in methods
        method = METHODS[node.method]
        ui.methodBrowser.setHtml(f"{html.escape(method.assumes)} <i>{html.escape(method.source)}</i>")
        ui.registrationBrowser.visible = atlases
        preset, model = PRESETS.get(node.registration), self.models.get(node.registration)
        if preset is not None:
            ui.registrationBrowser.setHtml(html.escape(preset.summary))
        elif model is not None:
            ui.registrationBrowser.setHtml(models.summary(model))
        else:
            ui.registrationBrowser.setHtml(_("This model is not installed."))
        ui.disagreementSelector.enabled = node.disagreementMap
        ui.toleranceSpinBox.enabled = node.reference is not None

    # -- the running job

    def startsAfresh(self, names: list[str]) -> None:
        """A job begins: all atlases wait."""
        self.showStates([State(name, "waiting") for name in names])

    def onProgress(self, status: Status) -> None:
        """Show where the job is, and how each atlas fares."""
        super().onProgress(status)  # type: ignore[misc]
        if status.raters:
            self._states.hear(status, self._heading())

    def onCancelled(self) -> None:
        """Called when a cancelled job has ended."""
        self.showStates([])
        self._shownResult = None
        self.showStoredResult()
        super().onCancelled()  # type: ignore[misc]

    def showStates(self, states: Sequence[State]) -> None:
        """Show how each atlas or rater fares."""
        self._states.show(states, self._heading())

    def _heading(self) -> str:
        raters = self._parameterNode is not None and self._parameterNode.mode == "raters"
        return _("Rater") if raters else _("Atlas")

    # -- the result

    def summaryOf(self, details: Any, kind: str) -> str:
        """What a parameter set keeps of a result of "atlases" or "raters" beside its nodes, as text."""
        return json.dumps(
            {
                "kind": kind,
                "words": fusion_report.words(details, kind),
                "warnings": list(dict.fromkeys(details["warnings"])),
                "states": [dataclasses.astuple(state) for state in self.statesOf(details, kind)],
            }
        )

    @staticmethod
    def statesOf(details: Any, kind: str) -> list[State]:
        """How each atlas or rater fared; nothing is worth telling of raters who were all used."""
        found = fusion_report.states(details)
        return [] if kind == "raters" and all(state.status == "used" for state in found) else found

    def showStoredResult(self) -> None:
        """Show the nodes of the latest result of this parameter set, if they are not shown already."""
        node = self._parameterNode
        if node is None:
            return
        result = (node.outputSegmentation, node.ratersTable, node.metricsTable, node.outputDisagreement, node.summary)
        if result == self._shownResult:
            return
        self._shownResult = result
        shown = node.ratersTable is not None and node.outputSegmentation is not None
        self.ui.resultsCollapsibleButton.visible = shown
        held = json.loads(node.summary) if shown and node.summary else {}
        if self.job is None:
            self.showStates([State(*state) for state in held.get("states", [])])
        self.showTable(self.ui.ratersTableView, node.ratersTable if shown else None, _RATERS)
        self.ui.agreementLabel.text = held.get("words", "")
        ofRaters = held.get("kind") == "raters"
        self.ui.ratersTableLabel.text = _("Trust in each rater") if ofRaters else _("Trust in each atlas")
        self.ui.warningsLabel.text = "\n".join(f"\N{WARNING SIGN} {sentence}" for sentence in held.get("warnings", []))
        self.ui.warningsLabel.visible = bool(held.get("warnings"))
        measured = shown and node.metricsTable is not None
        for name in ("metricsLabel", "metricsTableView", "showMetricsButton"):
            getattr(self.ui, name).visible = measured
        self.showTable(self.ui.metricsTableView, node.metricsTable if measured else None)
        self.ui.showAgreementButton.visible = node.agreementChart is not None
        self.ui.showWeightsButton.visible = node.weightChart is not None
        self.ui.show3DButton.setSegmentationNode(node.outputSegmentation)
        frame, slider = self.ui.disagreementThresholdWidget, self.ui.disagreementThresholdSlider
        self.showThreshold(frame, slider, node.outputDisagreement)

    def plot(self, name: str) -> None:
        """Show one of the charts."""
        display.show_plot(getattr(self._parameterNode, name))

    def onDisagreementThresholdChanged(self, value: float) -> None:
        """Make the map of disagreement clear where it is below."""
        if self._parameterNode is not None and self._parameterNode.outputDisagreement is not None:
            display.show_above(self._parameterNode.outputDisagreement, value)


def checkSteps(path: str) -> Steps:
    """The steps behind "Check"; their result is that of the task "atlases-check"."""
    return (yield Call("atlases-check", {"atlases": path}))

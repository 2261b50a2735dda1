"""What the widgets of all modules share: parameter sets, Apply that turns into Cancel, progress, one error dialog.

A module's widget derives from :class:`MLIWidget`, says what is missing and which steps a job has, and shows its result.
Its .ui file names the shared widgets: parameterNodeSelector, applyButton, progressBar, statusLabel, and under "This
computer" computerCollapsibleButton, checkButton, installButton, checkBrowser.
"""

from __future__ import annotations

import abc
import contextlib
import html
import logging
from collections.abc import Iterator
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

from MLILib.errors import MLIError
from MLILib.progress import duration

from . import install
from .filling import silent
from .jobs import Call, Job, JobRunner, Status, Steps, shared_runner
from .parameters import ChoiceConnector, tooltip

#: Colours of a line of the task "check": fine, a job would fail, worth knowing.
_LIGHTS = {True: "#2e8b57", False: "#c0392b", None: "#d68910"}

#: Pixels of a swatch.
_SWATCH = 10


class MLIWidget(ScriptedLoadableModuleWidget, VTKObservationMixin, abc.ABC):
    """Base of the modules' widgets.

    Subclasses give `REQUEST` (the task's request class, for tooltips), and override :meth:`makeLogic`,
    :meth:`setupModule`, :meth:`whatIsMissing`, :meth:`jobSteps` and :meth:`showResult`.
    """

    REQUEST: Any = None
    #: The parameters that take the first volumes of the scene, in turn.
    INPUTS: tuple[str, ...] = ("inputVolume",)
    #: Further parameters that are chosen without the user.
    CHOSEN: tuple[str, ...] = ()

    def __init__(self, parent: Any = None) -> None:
        self.logic: Any = None
        self.job: Job | None = None
        self._parameterNode: Any = None
        self._guiTags: list[int] = []
        self._missing = ""
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)

    # -- what a module adds

    @abc.abstractmethod
    def makeLogic(self) -> Any:
        """The module's logic."""

    def setupModule(self) -> None:
        """Fill choosers and connect the module's own widgets, once."""

    def connectors(self) -> dict[str, Any]:
        """Parameters whose widgets need a connector of ours."""
        return {}

    @abc.abstractmethod
    def whatIsMissing(self) -> str:
        """What must be chosen before Apply can be pressed, a sentence; "" when nothing is."""

    @abc.abstractmethod
    def jobSteps(self) -> Steps | None:
        """The steps of the job that Apply starts, or None when the user thought better of it."""

    @abc.abstractmethod
    def showResult(self, result: Any) -> None:
        """Show what the job returned."""

    def onParametersChanged(self) -> None:
        """Called after any parameter has changed."""

    # -- life of the widget

    @property
    def runner(self) -> JobRunner:
        """The runner of the jobs, shared with the other modules."""
        return shared_runner()

    def setup(self) -> None:
        """Called when the user opens the module the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        self.uiWidget = slicer.util.loadUI(self.resourcePath(f"UI/{self.moduleName}.ui"))
        self.layout.addWidget(self.uiWidget)
        self.ui = slicer.util.childWidgetVariables(self.uiWidget)
        self.ui.parameterNodeSelector.addAttribute("vtkMRMLScriptedModuleNode", "ModuleName", self.moduleName)
        self.ui.parameterNodeSelector.setNodeTypeLabel(_("parameter set"), "vtkMRMLScriptedModuleNode")
        self.ui.parameterNodeSelector.baseName = self.moduleName
        self.uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = self.makeLogic()
        self.addTooltips()
        self.setupModule()
        self.ui.checkButton.connect("clicked(bool)", self.onCheckButton)
        self.ui.installButton.connect("clicked(bool)", self.onInstallButton)
        self.showMissingPackages()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.ui.applyButton.connect("clicked(bool)", self.onApplyButton)
        for part in self.ui.__dict__.values():
            if part.inherits("ctkCollapsibleButton"):
                part.connect("contentsCollapsed(bool)", self.onUnfolded)
        self.ui.parameterNodeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onParameterSetSelected)
        self.initializeParameterNode()
        self.updateApply()

    def cleanup(self) -> None:
        """Called when the application closes and the module widget is destroyed."""
        if self.job is not None:
            self.job.silence()
            self.runner.cancel(self.job)
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self) -> None:
        """Called each time the user opens this module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Called each time the user opens a different module; a running job goes on."""
        self.disconnectParameterNode()

    # -- parameter sets

    def initializeParameterNode(self) -> None:
        """Make sure that a parameter set exists, is observed, and is the one shown."""
        shown = self.ui.parameterNodeSelector.currentNode()
        if shown is not None and shown.GetScene() is not None:
            self.setParameterNode(self.logic.wrapParameterNode(shown))
        else:
            self.setParameterNode(self.logic.getParameterNode())
        self.chooseInputs()

    def chooseInputs(self) -> None:
        """Take the first volumes of the scene that are not chosen already."""
        node = self._parameterNode
        chosen = [getattr(node, name) for name in self.INPUTS]
        volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        free = [v for v in volumes if v not in chosen and v.GetClassName() == "vtkMRMLScalarVolumeNode"]
        for name, volume in zip(self.INPUTS, chosen, strict=True):
            if volume is None and free:
                setattr(node, name, free.pop(0))

    def setParameterNode(self, parameterNode: Any) -> None:
        """Tie the widgets to a parameter set, or to none."""
        self.disconnectParameterNode()
        self._parameterNode = parameterNode
        if parameterNode is not None:
            self._guiTags = [
                parameterNode.connectGui(self.ui),
                parameterNode.connectParametersToGui(self.connectors()),
            ]
            self.addObserver(parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameterNodeModified)
            self.ui.parameterNodeSelector.setCurrentNode(parameterNode.parameterNode)
            self.onParameterNodeModified()

    def disconnectParameterNode(self) -> None:
        """Let go of the parameter set that is shown."""
        if self._parameterNode is not None:
            for tag in self._guiTags:
                self._parameterNode.disconnectGui(tag)
            self.removeObservers(self.onParameterNodeModified)
        self._guiTags = []

    def onParameterSetSelected(self, node: Any) -> None:
        """Another parameter set was chosen, or the last one was removed."""
        if slicer.mrmlScene.IsClosing() or slicer.mrmlScene.IsImporting():
            return
        if node is None:
            self.setParameterNode(self.logic.getParameterNode())
        elif self._parameterNode is None or node is not self._parameterNode.parameterNode:
            self.setParameterNode(self.logic.wrapParameterNode(node))

    def onParameterNodeModified(self, caller: Any = None, event: Any = None) -> None:
        """Called when a parameter has changed."""
        if self._parameterNode is not None:
            self.onParametersChanged()
            self.updateApply()

    def onUnfolded(self, collapsed: bool) -> None:
        """A part of the panel was opened: what was hidden while it was closed has been shown with the rest."""
        if not collapsed:
            self.onParameterNodeModified()

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        """Called just before the scene is closed: a running job would come back to nothing."""
        self.cancelJob()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller: Any, event: Any) -> None:
        """Called just after the scene is closed."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, caller: Any, event: Any) -> None:
        """Called after a scene was loaded: a parameter set that came with it takes the place of an untouched one."""
        if not self.parent.isEntered:
            return
        shown = None if self._parameterNode is None else self._parameterNode.parameterNode
        loaded = [node for node in self.logic.getAllParameterNodes() if node is not shown]
        if shown is not None and loaded and self.isUntouched():
            self.setParameterNode(self.logic.wrapParameterNode(loaded[0]))
            slicer.mrmlScene.RemoveNode(shown)
        self.initializeParameterNode()

    def isUntouched(self) -> bool:
        """Whether the parameter set that is shown holds its defaults, but for what was chosen for it."""
        node = self._parameterNode
        names = [name for name in node.allParameters if name not in (*self.INPUTS, *self.CHOSEN)]
        return all(node.getValue(name) == node.default(name).value for name in names)

    # -- the job

    def onApplyButton(self, checked: bool = False) -> None:
        """Start the job, or cancel it while it runs."""
        if self.job is not None:
            self.cancelJob()
            return
        try:
            install.ensure(self.moduleName)
            steps = self.jobSteps()
        except MLIError as error:
            self.showError(error)
            return
        if steps is not None:
            self.startJob(steps, self.showResult)

    def startJob(self, steps: Steps, done: Any, failed: Any = None) -> None:
        """Run steps with this widget's progress bar; `done` gets their result, `failed` (or a dialog) their error."""

        def finished(tell: Any, *result: Any) -> None:
            self.job = None
            self.ui.progressBar.visible = False
            self.updateApply()
            tell(*result)

        self.job = self.runner.start(
            steps,
            progress=self.onProgress,
            done=lambda result: finished(done, result),
            failed=lambda error: finished(failed or self.showError, error),
            cancelled=lambda: finished(self.onCancelled),
        )
        self.onProgress(Status(_("Starting")))
        self.ui.progressBar.visible = True
        self.updateApply()

    def cancelJob(self) -> None:
        """Stop the running job, if there is one."""
        if self.job is not None:
            self.runner.cancel(self.job)
            self.ui.statusLabel.text = _("Cancelling")
            self.ui.applyButton.enabled = False

    def onCancelled(self) -> None:
        """Called when a cancelled job has ended."""
        self.say(_("Cancelled. The scene is as it was."))

    def onProgress(self, status: Status) -> None:
        """Show where the job is."""
        bar = self.ui.progressBar
        bar.maximum = 0 if status.fraction is None else 100
        if status.fraction is not None:
            bar.value = round(100 * status.fraction)
        text = status.stage
        if status.eta is not None:
            text = _("{stage}: {time} left").format(stage=status.stage, time=duration(status.eta))
        self.say(f"{text}\n{status.message}" if status.message else text)

    def updateApply(self) -> None:
        """Apply says what it does, or what is missing; it is Cancel while a job runs."""
        button = self.ui.applyButton
        if self.job is not None:
            button.text = _("Cancel")
            button.toolTip = _("Stop the job. The scene stays as it was.")
            button.enabled = True
            return
        missing = _("The scene is closed.") if self._parameterNode is None else self.whatIsMissing()
        if missing or self.ui.statusLabel.text == self._missing:
            self.say(missing)
        self._missing = missing
        button.text = _("Apply")
        button.enabled = not missing
        button.toolTip = missing or self.applyTooltip()

    def applyTooltip(self) -> str:
        """What Apply does, when everything is there."""
        return _("Start. Slicer can be used meanwhile.")

    def say(self, text: str) -> None:
        """Show a sentence under the Apply button; "" shows none."""
        self.ui.statusLabel.text = text
        self.ui.statusLabel.visible = bool(text)

    def showError(self, error: MLIError) -> None:
        """Show an error's three sentences in one dialog, and its first under the Apply button."""
        self.say(error.what)
        logging.error("%s: %s", type(error).__name__, error)
        text = "\n\n".join(part for part in (error.what, error.cause, error.remedy) if part)
        details = "\n".join(getattr(error, "__notes__", []))
        options = {"detailedText": details} if details else {}
        slicer.util.errorDisplay(text, windowTitle=self.moduleTitle(), **options)

    @contextlib.contextmanager
    def tellErrors(self) -> Iterator[None]:
        """Show what a user can act on in a dialog."""
        try:
            yield
        except MLIError as error:
            self.showError(error)

    def askedToReplace(self, node: Any) -> bool:
        """Whether a result may go into a node; asks where it holds something."""
        if not self.logic.holdsData(node):
            return True
        question = _("'{name}' is not empty. Replace what it holds?\n\nNo puts the result into a new node.")
        return bool(slicer.util.confirmYesNoDisplay(question.format(name=node.GetName()), self.moduleTitle()))

    def onShowRecordButton(self, checked: bool = False) -> None:
        """Show how the latest result of this parameter set was made."""
        self.showRecord("record")

    def showRecord(self, name: str) -> None:
        """Show a run record, by the name of the parameter that holds it."""
        record = getattr(self._parameterNode, name)
        slicer.util.infoDisplay(
            _("How this result was made, with the command that repeats it."),
            windowTitle=record.GetName(),
            detailedText=record.GetText(),
        )

    def moduleTitle(self) -> str:
        """The module's name for a reader."""
        return slicer.util.getModule(self.moduleName).title

    def showTable(self, view: Any, table: Any, most: int = 8) -> None:
        """Show a table node in a view that is as high as its rows, up to `most`."""
        view.setMRMLTableNode(table)
        view.verticalHeader().visible = False
        rows = 0 if table is None else min(table.GetNumberOfRows(), most)
        view.resizeColumnsToContents()
        view.resizeRowsToContents()
        heights = sum(view.rowHeight(row) for row in range(rows))
        bar = view.horizontalScrollBar().sizeHint.height()
        view.setFixedHeight(view.horizontalHeader().sizeHint.height() + heights + bar + 2 * view.frameWidth)

    def showThreshold(self, frame: Any, slider: Any, volume: Any) -> None:
        """Show the slider below which a map is clear, where there is a map with such a display."""
        shown = volume is not None and volume.GetScalarVolumeDisplayNode() is not None
        frame.visible = shown
        if shown:
            displayNode = volume.GetScalarVolumeDisplayNode()
            with silent(slider):
                slider.maximum = displayNode.GetWindowLevelMax()
                slider.value = displayNode.GetLowerThreshold()

    # -- this computer

    def onCheckButton(self, checked: bool = False) -> None:
        """Look at Python, torch, device, memory, disk and models."""
        if self.job is None:
            self.startJob(checkSteps(self._parameterNode.device), self.onChecked)

    def onChecked(self, result: Any) -> None:
        """Show what was found."""
        self.ui.checkBrowser.visible = True
        self.ui.checkBrowser.setHtml(checkHtml(result))
        self.say("")

    def onInstallButton(self, checked: bool = False) -> None:
        """Install the packages that are missing, after asking."""
        try:
            install.ensure(self.moduleName)
        except MLIError as error:
            self.showError(error)
        self.showMissingPackages()

    def showMissingPackages(self) -> None:
        """Say what to install, where something is missing."""
        missing = install.missing()
        self.ui.installButton.visible = bool(missing)
        self.ui.checkBrowser.visible = bool(missing)
        if missing:
            self.ui.computerCollapsibleButton.collapsed = False
            text = _("Models need Python packages that are not installed: {packages}. Press 'Install packages'.")
            self.ui.checkBrowser.setPlainText(text.format(packages=", ".join(missing)))

    # -- choosers

    def addTooltips(self, request: Any = None) -> None:
        """Give every widget tied to a setting of the task, or of another request's alone, that setting's help."""
        names = {setting.name for setting in self.REQUEST.settings()}
        if request is not None:
            names = {setting.name for setting in request.settings()} - names
        request = request or self.REQUEST
        for widget in self.ui.__dict__.values():
            name = widget.property("SlicerParameterName")
            if name in names:
                widget.toolTip = tooltip(request, name)

    def fillDevices(self, comboBox: Any) -> None:
        """Offer the places where a job can be computed."""
        for text, value in (
            (_("Automatic"), "auto"),
            (_("Graphics card (CUDA)"), "cuda"),
            (_("Apple graphics (MPS)"), "mps"),
            (_("Processor (CPU)"), "cpu"),
        ):
            comboBox.addItem(text, value)
        comboBox.toolTip = tooltip(self.REQUEST, "device")

    def deviceConnector(self, comboBox: Any) -> ChoiceConnector:
        """Ties such a combo box to the parameter "device"."""
        return ChoiceConnector(comboBox)


def swatch(color: str) -> Any:
    """An icon of one colour, for an item of a list."""
    picture = qt.QPixmap(_SWATCH, _SWATCH)
    picture.fill(qt.QColor(color))
    return qt.QIcon(picture)


def checkSteps(device: str) -> Steps:
    """The steps behind "Check this computer"; their result is that of the task "check"."""
    return (yield Call("check", {"device": device}))


def checkHtml(result: Any) -> str:
    """The lines of the task "check" with a green, red or amber mark, and what to do about those that are not green."""
    rows = []
    for line in result["lines"]:
        mark = f"<span style='color:{_LIGHTS[line['ok']]}'>&#9679;</span>"
        remedy = "" if line["ok"] else f"<br><i>{html.escape(line['remedy'])}</i>"
        text = f"<b>{html.escape(line['name'])}:</b> {html.escape(line['value'])}{remedy}"
        rows.append(f"<p style='margin:2px 0'>{mark} {text}</p>")
    return "".join(rows)

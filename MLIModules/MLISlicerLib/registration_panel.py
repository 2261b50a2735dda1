"""What the panel of MLI Registration shows beside its choices: presets, the running curve, the result and its views."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from . import curve_picture, display, overlay, registration_presets, transforms
from .filling import fill_box
from .job_folder import JobFolder
from .jobs import Status, Steps

#: Milliseconds that each volume is shown while they flicker.
_FLICKER = 500
_CURVE_HEIGHT, _TITLE = 110, 20


class RegistrationPanel:
    """Mixin for the widget of MLI Registration, a :class:`MLISlicerLib.widget.MLIWidget`."""

    ui: Any
    logic: Any
    job: Any
    _parameterNode: Any
    startJob: Any
    tellErrors: Any
    onShowRecordButton: Any
    showTable: Any
    say: Any
    moduleTitle: Any
    _flicker: Any = None

    def setupPanel(self) -> None:
        """Fill the presets and connect the widgets that belong to them and to the result."""
        self._curve: tuple[Any, ...] = ()
        self._shownPreset = ""
        self._shownResult: Any = None
        self._flickerOn = False
        self.presets: dict[str, registration_presets.PanelPreset] = {}
        self.fillPresets()
        self.ui.presetComboBox.connect("activated(int)", self.onPresetActivated)
        self.ui.savePresetButton.connect("clicked(bool)", self.onSavePresetButton)
        self.ui.deletePresetButton.connect("clicked(bool)", self.onDeletePresetButton)
        self.ui.presetNameEdit.connect("textChanged(QString)", self.onPresetNameChanged)
        self.ui.flickerButton.connect("toggled(bool)", self.onFlickerToggled)
        self.ui.checkerboardButton.connect("clicked(bool)", self.onCheckerboardButton)
        self.ui.differenceButton.connect("clicked(bool)", self.onDifferenceButton)
        self.ui.histogramButton.connect("clicked(bool)", self.onHistogramButton)
        self.ui.transformOtherButton.connect("clicked(bool)", self.onTransformOtherButton)
        self.ui.invertButton.connect("clicked(bool)", self.onInvertButton)
        self.ui.showCurveButton.connect("clicked(bool)", self.onShowCurveButton)
        self.ui.showOverlapButton.connect("clicked(bool)", self.onShowOverlapButton)
        self.ui.showRecordButton.connect("clicked(bool)", self.onShowRecordButton)
        self.ui.otherNodeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onOtherNodeChanged)

    def cleanup(self) -> None:
        """Called when the module's widget is destroyed."""
        self.stopFlicker()
        super().cleanup()  # type: ignore[misc]

    def exit(self) -> None:
        """Called each time the user opens a different module."""
        self.stopFlicker()
        super().exit()  # type: ignore[misc]

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        """Called just before the scene is closed."""
        self.stopFlicker()
        super().onSceneStartClose(caller, event)  # type: ignore[misc]

    # -- presets

    def fillPresets(self) -> None:
        """Read the list of presets again."""
        self.presets = registration_presets.known()
        titles = {
            preset.name: _("{title} (yours)").format(title=preset.title) if preset.own else preset.title
            for preset in self.presets.values()
        }
        fill_box(self.ui.presetComboBox, {**titles, "learned": _("Learned (a trained model)")})

    def onPresetActivated(self, index: int) -> None:
        """A preset was chosen by hand: it fills the settings."""
        self.applyPreset(str(self.ui.presetComboBox.itemData(index)))

    def applyPreset(self, name: str) -> None:
        """Fill the settings with those of a preset."""
        preset = self.presets.get(name)
        node = self._parameterNode
        with slicer.util.NodeModify(node):
            node.preset = name
            if preset is None:
                if name == "learned" and not node.model and self.models:  # type: ignore[attr-defined]
                    node.model = next(iter(self.models))  # type: ignore[attr-defined]
                return
            for stage in ("Rigid", "Similarity", "Affine", "Deformable"):
                setattr(node, f"stage{stage}", stage.lower() in preset.values["stages"])
            for key in registration_presets.SETTINGS:
                if key != "stages":
                    setattr(node, key, preset.values[key])

    def settingsOfPreset(self) -> dict[str, Any]:
        """The settings as they are, as a preset holds them."""
        node = self._parameterNode
        values = {key: getattr(node, key) for key in registration_presets.SETTINGS if key != "stages"}
        return {"stages": self.logic.stages(node), **values}

    def showPreset(self) -> None:
        """Say what the preset is for, and whether its settings were changed."""
        name = self._parameterNode.preset
        preset = self.presets.get(name)
        if name == "learned":
            text = _("A network that was trained on such pairs: quick, for images like those it knows.")
        elif preset is None:
            text = _("This preset is not saved on this computer; its settings are under 'Advanced'.")
        else:
            text = html.escape(preset.summary)
            if preset.values != self.settingsOfPreset():
                text = _("{summary} <i>Changed under 'Advanced'.</i>").format(summary=text)
        self.ui.presetSummaryBrowser.setHtml(text)
        if name != self._shownPreset:
            self._shownPreset = name
            self.ui.presetNameEdit.text = preset.title if preset is not None and preset.own else ""
        self.ui.deletePresetButton.enabled = preset is not None and preset.own
        self.onPresetNameChanged(self.ui.presetNameEdit.text)

    def onPresetNameChanged(self, text: str) -> None:
        """A preset needs a name."""
        self.ui.savePresetButton.enabled = bool(text.strip()) and self._parameterNode is not None

    def onSavePresetButton(self, checked: bool = False) -> None:
        """Keep the settings as a preset of the user's; one of the same name is replaced after asking."""
        node, name = self._parameterNode, self.ui.presetNameEdit.text.strip()
        known = self.presets.get(name)
        shipped = [preset for preset in self.presets.values() if not preset.own]
        if name in {"learned", *(p.name for p in shipped), *(p.title for p in shipped)}:
            slicer.util.errorDisplay(
                _("'{name}' is a preset of the extension.\n\nChoose another name.").format(name=name),
                windowTitle=self.moduleTitle(),
            )
            return
        question = _("You already have a preset called '{name}'. Replace it?").format(name=name)
        if known is not None and not slicer.util.confirmYesNoDisplay(question, self.moduleTitle()):
            return
        base = registration_presets.base_of(node.preset)
        summary = _("Your settings, made from '{title}'.").format(title=self.presets[base].title)
        registration_presets.save(name, self.settingsOfPreset(), base, summary)
        self.refreshPresets(name)
        self.say(_("Kept the preset '{name}'.").format(name=name))

    def onDeletePresetButton(self, checked: bool = False) -> None:
        """Forget the chosen preset of the user's, after asking; the settings stay as they are."""
        preset = self.presets[self._parameterNode.preset]
        question = _("Delete the preset '{name}'?").format(name=preset.name)
        if slicer.util.confirmYesNoDisplay(question, self.moduleTitle()):
            registration_presets.delete(preset.name)
            self.refreshPresets(preset.base)

    def refreshPresets(self, name: str) -> None:
        """List the presets again and choose one, without filling the settings."""
        node = self._parameterNode
        self.setParameterNode(None)  # type: ignore[attr-defined]
        self.fillPresets()
        node.preset = name
        self.setParameterNode(node)  # type: ignore[attr-defined]

    # -- the running job

    def updateApply(self) -> None:
        """Called when a job begins or ends, or a choice was made."""
        super().updateApply()  # type: ignore[misc]
        if self.job is None:
            self.ui.curveLabel.visible = False
        if self._parameterNode is not None:
            self.showButtons()

    def onProgress(self, status: Status) -> None:
        """Show where the job is, at which resolution level, and the curve."""
        last = status.curve[-1] if status.curve else None
        if last is not None and last.stage.casefold() == status.stage.casefold():
            stage = _("{stage}, resolution level {level}").format(stage=status.stage, level=last.level)
            status = dataclasses.replace(status, stage=stage)
        super().onProgress(status)  # type: ignore[misc]
        if status.curve and status.curve != self._curve:
            self._curve = status.curve
            self.ui.curveLabel.setPixmap(curve_picture.draw(status.curve, self.curveWidth(), _CURVE_HEIGHT))
            self.ui.curveLabel.visible = True

    def curveWidth(self) -> int:
        """As wide as the Apply button."""
        return max(200, int(self.ui.applyButton.width) - 2)

    def startsAfresh(self) -> None:
        """A job begins: its curve is not the last one's."""
        self.stopFlicker()
        self._curve = ()
        self.ui.curveLabel.visible = False

    # -- the result

    def showStoredResult(self) -> None:
        """Show the nodes of the latest result of this parameter set, if they are not shown already."""
        node = self._parameterNode
        shown = node.outputTransform is not None and node.qualityTable is not None
        result = (node.outputTransform, node.qualityTable, node.histogram, node.warnings, node.movingVolume)
        if result == self._shownResult:
            return
        self._shownResult = result
        self.ui.resultsCollapsibleButton.visible = shown
        self.showTable(self.ui.qualityTableView, node.qualityTable if shown else None, 16)
        if not shown:
            return
        warnings = json.loads(node.warnings) if node.warnings else []
        self.ui.warningsLabel.text = "\n".join(f"\N{WARNING SIGN} {sentence}" for sentence in warnings)
        self.ui.warningsLabel.visible = bool(warnings)
        self.ui.qualityLabel.text = _("Quality of '{name}'").format(name=node.outputTransform.GetName())
        self.showHistogram()

    def showButtons(self) -> None:
        """Only what there is something for can be pressed."""
        node = self._parameterNode
        self.ui.showCurveButton.visible = node.curveChart is not None
        self.ui.showOverlapButton.visible = node.overlapChart is not None
        self.ui.showRecordButton.visible = node.record is not None
        pair = node.fixedVolume is not None and node.movingVolume is not None
        for name in ("flicker", "checkerboard", "difference", "histogram"):
            getattr(self.ui, f"{name}Button").enabled = pair and self.job is None
        self.onOtherNodeChanged(self.ui.otherNodeSelector.currentNode())

    def showHistogram(self) -> None:
        """Show the joint histogram before and after, if it was made."""
        held = self._parameterNode.histogram
        self.ui.histogramLabel.visible = held is not None
        if held is None:
            return
        with JobFolder() as folder:
            path = folder / "histogram.png"
            path.write_bytes(base64.b64decode(held.GetText()))
            read = qt.QPixmap(str(path))
        scaled = read.scaledToWidth(self.curveWidth() - 20)
        picture = qt.QPixmap(scaled.width(), scaled.height() + _TITLE)
        picture.fill(qt.QColor(0, 0, 0, 0))
        painter = qt.QPainter()
        painter.begin(picture)
        painter.drawPixmap(0, _TITLE, scaled)
        half = scaled.width() // 2
        for left, text in ((0, _("Joint histogram before")), (half, _("and after"))):
            painter.drawText(left, 0, half, _TITLE, int(qt.Qt.AlignCenter), text)
        painter.end()
        self.ui.histogramLabel.setPixmap(picture)

    def onOtherNodeChanged(self, other: Any) -> None:
        """Another node can be transformed once there is one, and a result."""
        node = self._parameterNode
        ready = other is not None and node is not None and node.outputTransform is not None
        self.ui.transformOtherButton.enabled = ready
        self.ui.invertButton.enabled = ready

    # -- other nodes, plots and record

    def onTransformOtherButton(self, checked: bool = False) -> None:
        """Take another node of the moving volume along."""
        self.transformOther(self._parameterNode.outputTransform)

    def onInvertButton(self, checked: bool = False) -> None:
        """Bring a node of the fixed volume back onto the moving one; the inverse is made once."""
        self.transformOther(self.logic.inverse(self._parameterNode.outputTransform))

    def transformOther(self, transform: Any) -> None:
        """Put the other node under a transform, and say so."""
        other = self.ui.otherNodeSelector.currentNode()
        with self.tellErrors():
            transforms.put_under(other, transform)
            text = _("'{name}' is now under '{transform}'.")
            self.say(text.format(name=other.GetName(), transform=transform.GetName()))

    def onShowCurveButton(self, checked: bool = False) -> None:
        """Show what was optimised."""
        display.show_plot(self._parameterNode.curveChart)

    def onShowOverlapButton(self, checked: bool = False) -> None:
        """Show Dice before and after."""
        display.show_plot(self._parameterNode.overlapChart)

    # -- views

    def onFlickerToggled(self, on: bool) -> None:
        """Show the fixed and the moving volume in turn, or stop."""
        if not on:
            self.stopFlicker()
            return
        node = self._parameterNode
        overlay.show_pair(node.fixedVolume, node.movingVolume, 1.0)
        self._flickerOn = True
        if self._flicker is None:
            self._flicker = qt.QTimer()
            self._flicker.setInterval(_FLICKER)
            self._flicker.connect("timeout()", self.onFlicker)
        self._flicker.start()

    def onFlicker(self) -> None:
        """Half a second has passed: show the other volume."""
        self._flickerOn = not self._flickerOn
        overlay.flick(1.0 if self._flickerOn else 0.0)

    def stopFlicker(self) -> None:
        """Leave both volumes half shown."""
        if self._flicker is not None and self._flicker.isActive():
            self._flicker.stop()
            overlay.flick(overlay.OPACITY)
            self.ui.flickerButton.checked = False

    def onCheckerboardButton(self, checked: bool = False) -> None:
        self.startView(overlay.checkerboard_steps, "checkerboard")

    def onDifferenceButton(self, checked: bool = False) -> None:
        self.startView(overlay.difference_steps, "difference")

    def onHistogramButton(self, checked: bool = False) -> None:
        """Draw the joint histogram before and after."""
        node = self._parameterNode

        def made(text: Any) -> None:
            node.histogram = text
            self.say("")

        self.stopFlicker()
        steps = overlay.histogram_steps(node.fixedVolume, node.movingVolume, node.outputTransform, node.histogram)
        self.startJob(steps, made)

    def startView(self, make: Any, name: str) -> None:
        """Make a volume of the pair in a job of small steps, and show it."""
        node = self._parameterNode
        self.stopFlicker()

        def shown(volume: Any) -> None:
            setattr(node, name, volume)
            overlay.show_alone(volume)
            self.say(_("'{name}' is shown in the slice views.").format(name=volume.GetName()))

        steps: Steps = make(node.fixedVolume, node.movingVolume, node.outputTransform, getattr(node, name))
        self.startJob(steps, shown)

"""What the panel of MLI Explainability shows of its results: the maps, the test of the methods, the attack."""

from __future__ import annotations

import json
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MLILib.explanation.methods import CHECKED, METHODS

from . import (
    display,
    explanation,
    explanation_attack,
    explanation_check,
    explanation_report,
    field_boxes,
    install,
    overlay,
    side_by_side,
)
from .filling import silent
from .side_by_side import Picture

#: Milliseconds that the slider must rest before an attack follows it.
_REST = 400
#: Share of the volume's window that the slider of epsilon goes up to, and where it begins.
_LARGEST, _FIRST = 0.2, 0.02
#: Rows that the table of the test shows at once.
_TESTED = 14


class ExplanationResults:
    """Mixin for the widget of MLI Explainability, beside :class:`MLISlicerLib.explanation_panel.ExplanationPanel`."""

    ui: Any
    logic: Any
    job: Any
    models: Any
    moduleName: Any
    _parameterNode: Any
    badgesOf: Any
    startJob: Any
    showTable: Any
    showError: Any
    showRecord: Any
    tellErrors: Any
    say: Any
    _rest: Any = None

    def setupResults(self) -> None:
        """Connect the widgets."""
        self._shownResult: Any = None
        self._layoutBefore = side_by_side.current()
        self._attackedVolume: Any = None
        self._rangeOf: Any = None
        ui = self.ui
        with silent(ui.opacitySlider):
            ui.opacitySlider.value = display.OPACITY
        with silent(ui.hideSlider):
            ui.hideSlider.value = display.CLEAR
        ui.shownComboBox.connect("activated(int)", self.onShownActivated)
        ui.componentSlider.connect("valueChanged(double)", self.onComponentChanged)
        ui.opacitySlider.connect("valueChanged(double)", self.onOpacityChanged)
        ui.hideSlider.connect("valueChanged(double)", self.onHideChanged)
        ui.boxesCheckBox.connect("toggled(bool)", self.onBoxesToggled)
        ui.sideBySideButton.connect("clicked(bool)", self.onSideBySide)
        ui.attackSideBySideButton.connect("clicked(bool)", self.onAttackSideBySide)
        ui.beliefButton.connect("clicked(bool)", self.onBeliefButton)
        ui.attackButton.connect("clicked(bool)", self.onAttackButton)
        ui.beforeButton.connect("clicked(bool)", lambda _c=False: self.look("before"))
        ui.afterButton.connect("clicked(bool)", lambda _c=False: self.look("after"))
        ui.addedButton.connect("clicked(bool)", lambda _c=False: self.look("added"))
        ui.epsilonSlider.connect("valueChanged(double)", self.onEpsilonChanged)
        for button, chart in (
            (ui.showPartsButton, "partsChart"),
            (ui.showCurveButton, "curveChart"),
            (ui.showDeletionButton, "deletionChart"),
            (ui.showInsertionButton, "insertionChart"),
            (ui.showCascadeButton, "cascadeChart"),
            (ui.showAttackButton, "attackChart"),
        ):
            button.connect("clicked(bool)", lambda _c=False, name=chart: self.plot(name))
        ui.showRecordButton.connect("clicked(bool)", lambda _c=False: self.showRecord("record"))
        ui.showAttackRecordButton.connect("clicked(bool)", lambda _c=False: self.showRecord("attackRecord"))
        self._rest = qt.QTimer()
        self._rest.setSingleShot(True)
        self._rest.setInterval(_REST)
        self._rest.connect("timeout()", self.onSliderRests)

    def cleanup(self) -> None:
        """Called when the module's widget is destroyed."""
        if self._rest is not None:
            self._rest.stop()
        super().cleanup()  # type: ignore[misc]

    def plot(self, name: str) -> None:
        """Show one of the charts."""
        side_by_side.hide(self._layoutBefore)
        display.show_plot(getattr(self._parameterNode, name))
        self.showStoredResult(again=True)

    # -- the maps

    def summaryOf(self, result: Any, model: str) -> str:
        """What a parameter set keeps of a result beside its nodes, as text."""
        every = [node is not None for node in result.components]
        kept = ("method", "makes", "signed")
        return json.dumps(
            {
                "model": model,
                "words": explanation_report.words(result.details[0]),
                "field": field_boxes.words(result.details[0].get("receptive_field")),
                "warnings": list(dict.fromkeys(w for one in result.details for w in one["warnings"])),
                "maps": [
                    {**{key: one[key] for key in kept}, "components": several}
                    for one, several in zip(result.details, every, strict=True)
                ],
            }
        )

    def held(self) -> dict[str, Any]:
        """What :meth:`summaryOf` kept of the result that is shown; {} for none."""
        node = self._parameterNode
        alive = [one for one in node.maps if one is not None]
        held = json.loads(node.summary) if node.summary else {}
        return held if alive and len(alive) == len(held.get("maps", ())) else {}

    def showStoredResult(self, again: bool = False) -> None:
        """Show the latest results of this parameter set, if they are not shown already."""
        node = self._parameterNode
        if node is None:
            return
        result = (list(node.maps), node.summary, node.beliefSummary, node.attackSummary, node.partsTable)
        if result == self._shownResult and not again:
            return
        self._shownResult = result
        held, ui = self.held(), self.ui
        ui.resultsCollapsibleButton.visible = bool(held)
        if held:
            ui.explainedBrowser.setHtml(held["words"])
            ui.warningsLabel.text = "\n".join(f"\N{WARNING SIGN} {sentence}" for sentence in held["warnings"])
            ui.warningsLabel.visible = bool(held["warnings"])
            with silent(ui.shownComboBox):
                ui.shownComboBox.clear()
                for number, one in enumerate(held["maps"]):
                    ui.shownComboBox.addItem(METHODS[one["method"]].title, number)
                ui.shownComboBox.currentIndex = min(node.shownMap, len(held["maps"]) - 1)
            for widget in (ui.shownLabel, ui.shownComboBox):
                widget.visible = len(held["maps"]) > 1
            self.showComponents()
            for widget in (ui.boxesCheckBox, ui.boxesLabel):
                widget.visible = bool(held["field"])
            ui.boxesLabel.text = held["field"]
        ui.partsTableView.visible = node.partsTable is not None
        if node.partsTable is not None:
            self.showTable(ui.partsTableView, node.partsTable)
        ui.sideBySideButton.checked = side_by_side.shown() and not ui.attackSideBySideButton.checked
        for widget, name in (
            (ui.showPartsButton, "partsChart"),
            (ui.showCurveButton, "curveChart"),
            (ui.showRecordButton, "record"),
            (ui.showDeletionButton, "deletionChart"),
            (ui.showInsertionButton, "insertionChart"),
            (ui.showCascadeButton, "cascadeChart"),
        ):
            widget.visible = getattr(node, name) is not None
        self.showBelief()
        self.showAttack()

    def showComponents(self) -> None:
        """Show the slider of components where the map has several."""
        held, node, ui = self.held(), self._parameterNode, self.ui
        shown = self._components(node.shownMap)
        for widget in (ui.componentLabel, ui.componentSlider):
            widget.visible = shown is not None
        makes = held["maps"][node.shownMap]["makes"] if node.shownMap < len(held.get("maps", ())) else "map"
        for widget in (ui.hideLabel, ui.hideSlider):
            widget.visible = makes != "image"
        if shown is not None:
            with silent(ui.componentSlider):
                ui.componentSlider.maximum = shown.GetImageData().GetNumberOfScalarComponents() - 1
                ui.componentSlider.value = min(node.component, ui.componentSlider.maximum)

    def _components(self, number: int) -> Any:
        """The volume with all components of the map of this number, or None."""
        node = self._parameterNode
        several = [one["components"] for one in self.held().get("maps", ())]
        if number >= len(several) or not several[number]:
            return None
        place = sum(several[:number])
        return node.components[place] if place < len(node.components) else None

    def onShownActivated(self, index: int) -> None:
        """Show another of the maps."""
        node = self._parameterNode
        node.shownMap = index
        self.showComponents()
        self.showOver()

    def showOver(self) -> None:
        """Show the chosen map over the volume that was explained."""
        node, held = self._parameterNode, self.held()
        if held and node.explained is not None and node.shownMap < len(node.maps):
            opacity = float(self.ui.opacitySlider.value)
            makes = held["maps"][node.shownMap]["makes"]
            explanation.show_map(node.explained, node.maps[node.shownMap], makes, opacity)

    def onComponentChanged(self, value: float) -> None:
        """Show another component of the map."""
        node = self._parameterNode
        every = self._components(node.shownMap)
        if every is not None:
            node.component = round(value)
            details = self.held()["maps"][node.shownMap]
            explanation.show_component(node.maps[node.shownMap], every, details, node.component)

    def onOpacityChanged(self, value: float) -> None:
        """Cover the volume more or less."""
        overlay.flick(value)
        side_by_side.set_opacity(value)

    def onHideChanged(self, value: float) -> None:
        """Make what is small clear."""
        held = self.held()
        for node, one in zip(self._parameterNode.maps, held.get("maps", ()), strict=False):
            if one["makes"] != "image" and node.GetScalarVolumeDisplayNode() is not None:
                display.hide_small(node, value)

    def onBoxesToggled(self, checked: bool) -> None:
        """Show or hide the boxes of the receptive field."""
        node = self._parameterNode
        field_boxes.set_visible([node.theoreticalBox, node.effectiveBox], checked)

    def onSideBySide(self, checked: bool) -> None:
        """Show the maps beside each other, or go back."""
        node, held = self._parameterNode, self.held()
        self.ui.attackSideBySideButton.checked = False
        if not checked or not held or node.explained is None:
            side_by_side.hide(self._layoutBefore)
            return
        pictures = []
        for volume, one in zip(node.maps, held["maps"], strict=True):
            image = one["makes"] == "image"
            opacity = float(self.ui.opacitySlider.value)
            pictures.append(Picture(volume) if image else Picture(node.explained, volume, opacity))
        labels = [METHODS[one["method"]].title for one in held["maps"]]
        if len(pictures) == 1:
            pictures, labels = [Picture(node.explained), *pictures], [_("Image"), *labels]
        self.beside(pictures, labels)

    def beside(self, pictures: list[Picture], labels: list[str]) -> None:
        """Show pictures of one volume beside each other, through the explained point."""
        node = self._parameterNode
        self._layoutBefore = side_by_side.current() if not side_by_side.shown() else self._layoutBefore
        volume = pictures[0].volume
        flat = volume.GetImageData() is not None and 1 in volume.GetImageData().GetDimensions()
        point = explanation.point_of(node.point) if node.where == "point" and node.point is not None else None
        side_by_side.show(pictures, labels, "native" if flat else "Axial", point)

    # -- can it be believed

    def onBeliefButton(self, checked: bool = False) -> None:
        """Test the chosen methods on the chosen image."""
        if self.job is not None:
            return
        with self.tellErrors():
            install.ensure(self.moduleName)
            node = self._parameterNode
            self._beliefOf = (node, node.model)
            self.startJob(explanation_check.steps(self.logic.checkInputs(node)), self.onBelief)

    def onBelief(self, result: Any) -> None:
        """The test has ended."""
        node, model = self._beliefOf
        held = json.loads(node.beliefSummary) if node.beliefSummary else {}
        kept = held["badges"] if held.get("model") == model else {}
        summary = {
            "model": model,
            "badges": kept | explanation_check.badges(result.details),
            "warnings": result.details["warnings"],
        }
        with slicer.util.NodeModify(node):
            for name, place in self.logic.BELIEF.items():
                setattr(node, place, getattr(result, name))
            node.beliefSummary = json.dumps(summary)
        self.say(_("Tested in {seconds:.1f} s on {device}.").format(**result.details))

    def showBelief(self) -> None:
        """Show the table of the test, with the reasons."""
        node, ui = self._parameterNode, self.ui
        ui.beliefTableView.visible = node.beliefTable is not None
        held = json.loads(node.beliefSummary) if node.beliefTable is not None and node.beliefSummary else {}
        if node.beliefTable is not None:
            self.showTable(ui.beliefTableView, node.beliefTable, _TESTED)
        reasons = [
            f"<b>{METHODS[name].title}</b>: {one['reason']}"
            for name, one in held.get("badges", {}).items()
            if one["reason"]
        ]
        lines = [*reasons, *(f"\N{WARNING SIGN} {sentence}" for sentence in held.get("warnings", ()))]
        ui.beliefBrowser.setHtml("".join(f"<p style='margin:0 0 2px 0'>{line}</p>" for line in lines))
        ui.beliefBrowser.visible = bool(lines)

    def updateBelief(self, missing: str) -> None:
        """The buttons of the test and of the attack say what is missing."""
        node, ui = self._parameterNode, self.ui
        testable = [name for name in self.logic.methods(node) if name in CHECKED] if node is not None else []
        lacks = missing
        if not lacks and not testable:
            lacks = _("None of the chosen methods can be tested: choose one that makes a map.")
        ui.beliefButton.enabled = self.job is None and not lacks
        ui.beliefButton.toolTip = lacks or _("Test: {methods}. Slicer can be used meanwhile.").format(
            methods=", ".join(METHODS[name].title for name in testable)
        )
        lacks = missing or self.whatAttackLacks()
        ui.attackButton.enabled = self.job is None and not lacks
        told = _("Change the image a little so that the model errs. The last attack's nodes are filled again.")
        ui.attackButton.toolTip = lacks or told

    # -- the attack

    def whatAttackLacks(self) -> str:
        """What keeps the chosen model from being attacked here; "" for nothing."""
        model = self.models.get(self._parameterNode.model)
        if model is not None and len(model.channels) > 1:
            return _("Images of several channels are attacked on the command line (mli attack).")
        if model is not None and model.task == "regression":
            return _("A model whose answer is a number has no error to bring about.")
        return ""

    def showEpsilonRange(self) -> None:
        """Let the slider go as far as makes sense for the volume's intensities."""
        node = self._parameterNode
        volume = node.inputVolume
        shown = volume.GetScalarVolumeDisplayNode() if volume is not None else None
        if shown is None or volume is self._rangeOf:
            return
        self._rangeOf = volume
        window = max(float(shown.GetWindow()), 1e-6)
        slider = self.ui.epsilonSlider
        with silent(slider):
            slider.maximum = max(_LARGEST * window, node.epsilon)
            slider.singleStep = 0.001 * window
            slider.value = node.epsilon
        if node.epsilon == 0.0 and not node.attackSummary:
            node.epsilon = _FIRST * window

    def onAttackButton(self, checked: bool = False) -> None:
        """Attack the image with the epsilon of the slider."""
        if self.job is not None:
            return
        with self.tellErrors():
            install.ensure(self.moduleName)
            node = self._parameterNode
            self._attackOf = (node, node.inputVolume)
            self.startJob(explanation_attack.steps(self.logic.attackInputs(node)), self.onAttacked)

    def onAttacked(self, result: Any) -> None:
        """The attack has ended."""
        node, volume = self._attackOf
        with slicer.util.NodeModify(node):
            for name, place in self.logic.ATTACK.items():
                setattr(node, place, getattr(result, name))
            node.attackOf = volume
            details = result.details
            summary = {
                "words": explanation_attack.words(details),
                "epsilon": details["epsilon"],
                "warnings": details["warnings"],
            }
            node.attackSummary = json.dumps(summary)
        self.say(_("Done in {seconds:.1f} s on {device}.").format(**result.details))
        side = self.ui.attackSideBySideButton.checked and side_by_side.shown()
        self.onAttackSideBySide(True) if side else self.look("after")

    def onEpsilonChanged(self, value: float) -> None:
        """The slider was moved: an attack follows it when it rests."""
        node = self._parameterNode
        if node is not None and node.follow and node.attackSummary:
            self._rest.start()

    def onSliderRests(self) -> None:
        """Attack again, unless what is shown is up to date."""
        node = self._parameterNode
        if node is None or not node.follow or not node.attackSummary or not self.ui.attackButton.enabled:
            if self.job is not None:
                self._rest.start()
            return
        if abs(json.loads(node.attackSummary)["epsilon"] - node.epsilon) > 1e-9 * max(1.0, node.epsilon):
            self.onAttackButton()

    def showAttack(self) -> None:
        """Show what the latest attack did."""
        node, ui = self._parameterNode, self.ui
        there = node.attackedVolume is not None and node.attackOf is not None and bool(node.attackSummary)
        held = json.loads(node.attackSummary) if there else {}
        warnings = "".join(f"<p>\N{WARNING SIGN} {sentence}</p>" for sentence in held.get("warnings", ()))
        ui.attackBrowser.setHtml(held.get("words", "") + warnings)
        for name in (
            "attackBrowser", "beforeButton", "afterButton", "addedButton", "attackSideBySideButton", "showAttackButton",
            "showAttackRecordButton",
        ):  # fmt: skip
            getattr(ui, name).visible = there

    def look(self, what: str) -> None:
        """Show the image "before", "after", or what was "added", and what the model says of it."""
        node, ui = self._parameterNode, self.ui
        side_by_side.hide(self._layoutBefore)
        ui.attackSideBySideButton.checked = ui.sideBySideButton.checked = False
        for button, name in ((ui.beforeButton, "before"), (ui.afterButton, "after"), (ui.addedButton, "added")):
            button.checked = name == what
        if what == "added":
            overlay.show_pair(node.attackOf, node.attackDifference, float(ui.opacitySlider.value))
        else:
            overlay.show_alone(node.attackedVolume if what == "after" else node.attackOf)
        for segmentation, name in ((node.attackBefore, "before"), (node.attackAfter, "after")):
            self._showSegments(segmentation, name == what)

    @staticmethod
    def _showSegments(segmentation: Any, shown: bool, view: str = "") -> None:
        """Show or hide what the model said, in one slice view alone if that is given."""
        shownBy = segmentation.GetDisplayNode() if segmentation is not None else None
        if shownBy is not None:
            with slicer.util.NodeModify(shownBy):
                shownBy.SetVisibility(shown)
                shownBy.RemoveAllViewNodeIDs()
                if view:
                    shownBy.AddViewNodeID(view)

    def onAttackSideBySide(self, checked: bool) -> None:
        """Show before, after and what was added beside each other, or go back."""
        node = self._parameterNode
        self.ui.sideBySideButton.checked = False
        if node.attackedVolume is None or node.attackOf is None:
            return
        if not checked:
            self.look("after")
            return
        opacity = float(self.ui.opacitySlider.value)
        pictures = [
            Picture(node.attackOf),
            Picture(node.attackedVolume),
            Picture(node.attackOf, node.attackDifference, opacity),
        ]
        self.beside(pictures, [_("Before"), _("After"), _("Added")])
        if side_by_side.shown():
            self._showSegments(node.attackBefore, True, side_by_side.view_id(1))
            self._showSegments(node.attackAfter, True, side_by_side.view_id(2))

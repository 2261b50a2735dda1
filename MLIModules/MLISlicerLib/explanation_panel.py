"""What the panel of MLI Explainability offers: the answer to explain, the methods with their badges, the layers."""

from __future__ import annotations

import html
import json
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MLILib.explanation.badges import badges
from MLILib.explanation.choices import choices
from MLILib.explanation.methods import METHODS, NOT_TESTED
from MLILib.explanation.requests import ATTACKS, BASELINES, PRIORS, AttackRequest, ExplainCheckRequest, ExplainRequest

from . import explanation, explanation_layers, explanation_report, install
from .filling import fill_box, silent
from .parameters import tooltip
from .widget import swatch

#: Advanced settings that only some methods have.
_OF_METHODS = {
    "steps": ("integrated-gradients", "inversion", "deepdream"),
    "samples": ("smoothgrad",),
    "noise": ("smoothgrad",),
    "occlusionWindow": ("occlusion",),
    "occlusionStride": ("occlusion",),
    "unit": ("activations", "deepdream"),
    "prior": ("inversion",),
    "octaves": ("deepdream",),
    "stepSize": ("deepdream",),
}
#: A list of points that this module has made, and may empty.
_OWN_POINT = "MLI.ExplainedPoint"


class ExplanationPanel:
    """Mixin for the widget of MLI Explainability, a :class:`MLISlicerLib.widget.MLIWidget` with a model chooser."""

    ui: Any
    logic: Any
    job: Any
    runner: Any
    models: Any
    _parameterNode: Any
    addObserver: Any
    removeObservers: Any
    updateApply: Any
    showError: Any
    say: Any

    def setupChoices(self) -> None:
        """Fill the choosers and connect the widgets."""
        self._choicesOf: Any = self  # neither a model nor None: nothing has been filled in yet
        self._layersOf: Any = self
        self._asking: set[str] = set()
        self._observedPoint: Any = None
        self._canAsk: bool | None = None
        ui = self.ui
        for name, method in METHODS.items():
            ui.methodComboBox.addItem(method.title, name)
            ui.compareComboBox.addItem(method.title, name)
        words = {
            "zero": _("0, after preprocessing"),
            "minimum": _("The lowest intensity"),
            "mean": _("Each channel's mean"),
            "blur": _("The image, blurred"),
        }
        for name in BASELINES:
            ui.baselineComboBox.addItem(words[name], name)
        for name in PRIORS:
            ui.priorComboBox.addItem(name.capitalize(), name)
        attacks = {"fgsm": _("One step (FGSM)"), "pgd": _("Many small steps (PGD)")}
        for name in ATTACKS:
            ui.attackMethodComboBox.addItem(attacks[name], name)
        for request, widget, name in (
            (ExplainRequest, ui.targetComboBox, "target"),
            (ExplainRequest, ui.layerComboBox, "layer"),
            (ExplainRequest, ui.baselineComboBox, "baseline"),
            (ExplainRequest, ui.priorComboBox, "prior"),
            (AttackRequest, ui.attackMethodComboBox, "method"),
            (AttackRequest, ui.epsilonSlider, "epsilon"),
            (AttackRequest, ui.aimComboBox, "aim"),
            (ExplainCheckRequest, ui.drawsSpinBox, "draws"),
            (ExplainCheckRequest, ui.measuredSpinBox, "layers"),
            (ExplainCheckRequest, ui.curveStepsSpinBox, "curve_steps"),
        ):
            widget.toolTip = tooltip(request, name)
        ui.regionSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onRegionChanged)
        ui.regionSelector.connect("currentSegmentChanged(QString)", self.onRegionChanged)
        ui.modelComboBox.connect("activated(int)", self.onModelActivated)
        ui.whereComboBox.connect("activated(int)", self.onWhereActivated)
        ui.placeButton.connect("clicked(bool)", self.onPlaceButton)
        ui.layersButton.connect("clicked(bool)", self.onLayersButton)
        table = ui.layersTableWidget
        headings = explanation_layers.headings()
        table.setColumnCount(len(headings))
        table.setHorizontalHeaderLabels(headings)
        table.verticalHeader().visible = False
        table.horizontalHeader().setStretchLastSection(True)
        table.connect("cellDoubleClicked(int,int)", self.onLayerClicked)

    # -- what is explained

    def showChoices(self) -> None:
        """Show what belongs to the model, the target and the methods."""
        node, ui = self._parameterNode, self.ui
        model = self.models.get(node.model)
        self._fillTargets(model)
        methods = self.logic.methods(node)
        aimed = any(METHODS[name].target for name in methods)
        for name in ("targetLabel", "targetComboBox", "whereLabel", "whereComboBox"):
            getattr(ui, name).enabled = aimed
        for names, shown in (
            (("pointLabel", "pointSelector", "placeButton"), node.where == "point"),
            (("regionLabel", "regionSelector"), node.where == "region"),
            (("layerLabel", "layerComboBox", "layersButton"), any(METHODS[name].layer for name in methods)),
            (("regionsLabel", "regionsSelector"), "ablation-regions" in methods),
            (("blurLabel", "blurSpinBox"), node.baseline == "blur"),
            (("fieldLabel", "fieldCheckBox"), node.where == "point"),
        ):
            for name in names:
                getattr(ui, name).visible = shown
        for name, users in _OF_METHODS.items():
            widget = getattr(ui, f"{name}{'ComboBox' if name == 'prior' else 'SpinBox'}")
            widget.visible = getattr(ui, f"{name}Label").visible = any(method in users for method in methods)
        self._showRegion()
        self._showMethod()
        self._observePoint()
        self._fillLayers(model)

    def _fillTargets(self, model: Any) -> None:
        """Offer the labels or classes of the chosen model, and where they can be explained."""
        if model is self._choicesOf:
            return
        self._choicesOf = model
        offered = choices(model.bundle) if model is not None else ()
        places = {"everywhere": _("Everywhere that the model predicts it"), "point": _("At a point")}
        if model is not None and model.task == "segmentation":
            places["region"] = _("In a segment")
        elif model is not None:
            places["everywhere"] = _("The whole image")
            places["point"] = _("The slice that a point lies in")
        node = self._parameterNode
        names = {one.name: one.name for one in offered}
        fill_box(self.ui.targetComboBox, {"": _("What the model predicts"), **names}, node.target)
        fill_box(self.ui.aimComboBox, {"": _("Any error"), **names}, node.aim)
        fill_box(self.ui.whereComboBox, places, node.where)

    def onModelActivated(self, index: int) -> None:
        """Another model was chosen by hand: what it does not have is not asked of it."""
        node = self._parameterNode
        model = self.models.get(node.model)
        if model is None:
            return
        names = [one.name for one in choices(model.bundle)]
        with slicer.util.NodeModify(node):
            node.layer = ""
            if node.target not in names:
                node.target = ""
            if node.aim not in names:
                node.aim = ""
            if node.where == "region" and model.task != "segmentation":
                node.where = "everywhere"
        self._choicesOf = self
        self.showChoices()

    def onWhereActivated(self, index: int) -> None:
        """A point is to be explained: the first list of the scene that holds one is taken, where none is chosen."""
        node = self._parameterNode
        if node.where == "point" and node.point is None:
            found = slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode")
            node.point = next((one for one in found if explanation.point_of(one) is not None), None)

    def onPlaceButton(self, checked: bool = False) -> None:
        """Let the next click into a slice view say where the point is."""
        node = self._parameterNode
        if node.point is None:
            made = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", _("Explained point"))
            made.SetAttribute(_OWN_POINT, "1")
            made.CreateDefaultDisplayNodes()
            node.point = made
        if node.point.GetAttribute(_OWN_POINT):
            node.point.RemoveAllControlPoints()
        logic = slicer.modules.markups.logic()
        logic.SetActiveList(node.point)
        logic.StartPlaceMode(False)

    def _observePoint(self) -> None:
        """Notice when the point has been placed or taken away."""
        point = self._parameterNode.point
        if point is self._observedPoint:
            return
        self.removeObservers(self.onPointChanged)
        self._observedPoint = point
        if point is not None:
            events = slicer.vtkMRMLMarkupsNode
            for event in (
                events.PointPositionDefinedEvent,
                events.PointPositionUndefinedEvent,
                events.PointRemovedEvent,
            ):
                self.addObserver(point, event, self.onPointChanged)

    def onPointChanged(self, caller: Any = None, event: Any = None) -> None:
        """The point was placed."""
        self.updateApply()

    def _showRegion(self) -> None:
        """Show the chosen segment."""
        node, selector = self._parameterNode, self.ui.regionSelector
        if node.where != "region":
            return
        if node.regionSegmentation is None or not node.regionSegment:
            self.onRegionChanged()  # the widget has chosen one by itself
            return
        with silent(selector):
            if selector.currentNode() is not node.regionSegmentation:
                selector.setCurrentNode(node.regionSegmentation)
            if selector.currentSegmentID() != node.regionSegment:
                selector.setCurrentSegmentID(node.regionSegment)

    def onRegionChanged(self, *_: Any) -> None:
        """Another segment was chosen."""
        node, selector = self._parameterNode, self.ui.regionSelector
        if node is None or node.where != "region":
            return
        with slicer.util.NodeModify(node):
            node.regionSegmentation = selector.currentNode()
            node.regionSegment = str(selector.currentSegmentID() or "")

    def whatTargetLacks(self, node: Any) -> str:
        """What must still be chosen of the target, a sentence; "" for nothing."""
        if node.where == "point":
            if node.point is None or explanation.point_of(node.point) is None:
                return _("Press 'Place', and click at the point to explain into a slice view.")
        elif node.where == "region" and (node.regionSegmentation is None or not node.regionSegment):
            return _("Choose the segment to explain.")
        return ""

    # -- methods and badges

    def badgesOf(self, name: str) -> dict[str, dict[str, str]]:
        """Badge and reason of each method for a model: those of the last test here come before those it came with."""
        model = self.models.get(name)
        found = {method: {"badge": NOT_TESTED, "reason": ""} for method in METHODS}
        if model is not None:
            for method, badge in badges(model.bundle).items():
                found[method]["badge"] = badge
        node = self._parameterNode
        tested = json.loads(node.beliefSummary) if node is not None and node.beliefSummary else {}
        if tested.get("model") == name:
            found |= tested["badges"]
        return found

    def _showMethod(self) -> None:
        """Show what the chosen method shows, and its badge; each method's badge is its colour in the list."""
        node, ui = self._parameterNode, self.ui
        method = METHODS[node.method]
        ui.methodBrowser.setHtml(f"{html.escape(method.shows)} <i>{html.escape(method.source)}</i>")
        found = self.badgesOf(node.model)
        told = explanation_report.badge_words()
        one = found[node.method]
        color = explanation_report.BADGE_COLORS.get(one["badge"], explanation_report.UNTESTED_COLOR)
        ui.badgeLabel.text = _(one["badge"])
        ui.badgeLabel.styleSheet = f"color: white; background: {color}; border-radius: 3px; padding: 1px 6px"
        words = told.get(one["badge"], told[""])
        ui.badgeLabel.toolTip = f"{words} {one['reason']}".strip()
        colors = [explanation_report.BADGE_COLORS.get(found[name]["badge"], "") for name in METHODS]
        for index, shown in enumerate(colors):
            ui.methodComboBox.setItemIcon(index, swatch(shown or explanation_report.UNTESTED_COLOR))

    # -- layers

    def _fillLayers(self, model: Any) -> None:
        """Offer the layers of the chosen model; they are asked for when a method looks at one."""
        node = self._parameterNode
        name = node.model if model is not None else ""
        found = explanation_layers.known(name)
        if (name, found) != self._layersOf:
            self._layersOf = (name, found)
            offered = explanation_layers.offered(found) if found else []
            first = _("The last of the coarsest")
            if found and found["default"]:
                first = f"{first} ({found['default']})"
            fill_box(self.ui.layerComboBox, {"": first, **{value: text for text, value in offered}}, node.layer)
            self._showLayers(found)
        wanted = any(METHODS[method].layer for method in self.logic.methods(node))
        if name and found is None and wanted and self._mayAsk():
            self.askLayers(name)

    def _mayAsk(self) -> bool:
        """Whether the worker can be asked without a question about packages."""
        if self._canAsk is None:
            self._canAsk = not install.missing()
        return self._canAsk

    def askLayers(self, name: str) -> None:
        """Ask the worker for a model's layers, beside what else runs."""
        if name in self._asking:
            return
        self._asking.add(name)
        self.ui.layersLabel.text = _("Asking the model for its layers...")

        def done(found: Any) -> None:
            self._asking.discard(name)
            if self._parameterNode is not None:
                self._fillLayers(self.models.get(self._parameterNode.model))

        def failed(error: Any) -> None:
            self._canAsk = False  # until the button is pressed
            self._asking.discard(name)
            self.ui.layersLabel.text = error.what

        self._layersJob = self.runner.start(explanation_layers.steps(name), done=done, failed=failed)

    def onLayersButton(self, checked: bool = False) -> None:
        """List the model's layers, and show the table."""
        self.ui.layersCollapsibleButton.collapsed = False
        node = self._parameterNode
        if node.model in self.models and explanation_layers.known(node.model) is None:
            self.askLayers(node.model)

    def onLayersUnfolded(self, collapsed: bool) -> None:
        """The table was opened."""
        if not collapsed and self._parameterNode is not None and self._mayAsk():
            self.onLayersButton()

    def _showLayers(self, found: Any) -> None:
        """Show the table of layers; those that a method can look at are bold."""
        table = self.ui.layersTableWidget
        rows = explanation_layers.rows(found) if found else []
        places = {name for _text, name in explanation_layers.offered(found)} if found else set()
        self.ui.layersLabel.text = explanation_layers.words(found) if found else ""
        table.setRowCount(len(rows))
        for row, cells in enumerate(rows):
            for column, text in enumerate(cells):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(text)
                if column == 0 and cells[0] in places:
                    font = item.font()
                    font.setBold(True)
                    item.setFont(font)
                table.setItem(row, column, item)
        table.resizeColumnsToContents()

    def onLayerClicked(self, row: int, column: int) -> None:
        """Look at the layer of this row, if it can be looked at."""
        name = self.ui.layersTableWidget.item(row, 0).text()
        found = explanation_layers.known(self._parameterNode.model)
        if found and name in {value for _text, value in explanation_layers.offered(found)}:
            self._parameterNode.layer = name

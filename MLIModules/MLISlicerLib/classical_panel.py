"""The part of MLI Segmentation's panel that offers the classical methods beside the trained models.

Its .ui file names the widgets: methodComboBox, methodBrowser, classicalWidget and in it scribblesSelector, paintButton,
pointsSelector, placeButton, maskSelector, a widget for each setting, and labels for all of them.
"""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from MLILib.classical.requests import METHODS, OPTIONS, SIDES, ClassicalRequest

from . import classical
from .parameters import ChoiceConnector, tooltip

#: Value of the parameter "method" that stands for a trained model.
MODEL = "model"
#: Widgets that only a trained model has a use for, but for the further channels.
_OF_MODELS = (
    "modelLabel", "modelComboBox", "addModelButton", "uncertaintyLabel", "uncertaintyCheckBox", "uncertaintySelector",
    "deviceLabel", "deviceComboBox", "ttaLabel", "ttaCheckBox", "mcDropoutLabel", "mcDropoutSpinBox",
    "moreModelsLabel", "moreModelsComboBox", "ensembleLabel", "ensembleComboBox", "tileLabel", "tileXSpinBox",
    "tileYSpinBox", "tileZSpinBox", "overlapLabel", "overlapSlider",
)  # fmt: skip
#: The widgets of each setting that some methods heed.
_WIDGETS = {
    "side": ("sideLabel", "sideComboBox"),
    "levels": ("levelsLabel", "levelsSpinBox"),
    "range": ("rangeLabel", "rangeLowSpinBox", "rangeHighSpinBox"),
    "multiplier": ("multiplierLabel", "multiplierSpinBox"),
    "rounds": ("roundsLabel", "roundsSpinBox"),
    "start_radius": ("startRadiusLabel", "startRadiusSpinBox"),
    "edge_width": ("edgeWidthLabel", "edgeWidthSpinBox"),
    "balloon": ("balloonLabel", "balloonSpinBox"),
    "curvature": ("curvatureLabel", "curvatureSpinBox"),
    "iterations": ("iterationsLabel", "iterationsSpinBox"),
    "smoothness": ("smoothnessLabel", "smoothnessSpinBox"),
    "connected_only": ("connectedOnlyLabel", "connectedOnlyCheckBox"),
    "trees": ("treesLabel", "treesSpinBox"),
}


def titles() -> dict[str, str]:
    """What the methods are called in the panel."""
    return {
        "otsu": _("Threshold by Otsu"),
        "multi-otsu": _("Several thresholds by Otsu"),
        "connected": _("Connected threshold"),
        "confidence": _("Confidence-connected region"),
        "geodesic": _("Geodesic active contour"),
        "chan-vese": _("Chan-Vese regions"),
        "graph-cut": _("Graph cut from scribbles"),
        "random-forest": _("Random forest from scribbles"),
    }


class ClassicalPanel:
    """Mixin for the widget of MLI Segmentation, a :class:`MLISlicerLib.widget.MLIWidget` with a model chooser."""

    ui: Any
    job: Any
    _parameterNode: Any
    addTooltips: Any
    updateApply: Any

    def setupClassical(self) -> None:
        """Fill the choosers and connect the widgets."""
        ui = self.ui
        ui.methodComboBox.addItem(_("A trained model"), MODEL)
        for name, title in titles().items():
            ui.methodComboBox.addItem(title, name)
        for text, value in zip((_("Bright"), _("Dark")), SIDES, strict=True):
            ui.sideComboBox.addItem(text, value)
        self.addTooltips(ClassicalRequest)
        ui.sideComboBox.toolTip = tooltip(ClassicalRequest, "side")
        for spinBox in (ui.rangeLowSpinBox, ui.rangeHighSpinBox):
            spinBox.toolTip = tooltip(ClassicalRequest, "range")
        ui.paintButton.connect("clicked(bool)", self.onPaintButton)
        ui.placeButton.connect("clicked(bool)", self.onPlaceButton)

    def classicalConnectors(self) -> dict[str, Any]:
        """Parameters whose widgets need a connector of ours."""
        return {"method": ChoiceConnector(self.ui.methodComboBox), "side": ChoiceConnector(self.ui.sideComboBox)}

    def isClassical(self) -> bool:
        """Whether a classical method is chosen, and no model."""
        return self._parameterNode.method != MODEL

    def showClassical(self) -> None:
        """Show what belongs to the chosen method."""
        node, ui = self._parameterNode, self.ui
        chosen = node.method if self.isClassical() else ""
        for name in _OF_MODELS:
            getattr(ui, name).visible = not chosen
        sentence = METHODS[chosen][0] if chosen else ""
        ui.methodBrowser.setPlainText(sentence)
        ui.methodBrowser.visible = bool(sentence)
        ui.classicalWidget.visible = bool(chosen)
        seeded = bool(chosen) and bool(classical.needs(chosen))
        for names, shown in (
            (("scribblesLabel", "scribblesSelector", "paintButton"), seeded),
            (("pointsLabel", "pointsSelector", "placeButton"), seeded),
            (("pointRadiusLabel", "pointRadiusSpinBox"), seeded and node.points is not None),
            (("seedLabel", "seedSpinBox"), not chosen or "seed" in OPTIONS[chosen]),
            *((widgets, bool(chosen) and name in OPTIONS[chosen]) for name, widgets in _WIDGETS.items()),
        ):
            for name in names:
                getattr(ui, name).visible = shown
        for button in (ui.paintButton, ui.placeButton):
            button.enabled = node.inputVolume is not None and self.job is None

    def whatClassicalMisses(self) -> str:
        """What must still be chosen for the method, a sentence; "" when nothing is."""
        node = self._parameterNode
        if node.inputVolume is None:
            return _("Choose an input volume.")
        needed = classical.needs(node.method)
        if needed in ("inside", "both") and node.scribbles is None and node.points is None:
            if needed == "both":
                return _("Paint scribbles in what is sought, and in the background.")
            return _("Paint scribbles, or place points, in what is sought.")
        if node.method == "connected" and node.range_low >= node.range_high:
            return _("Give the lowest and the highest intensity.")
        if node.outputSegmentation is not None:
            for other, what in (
                (node.scribbles, _("scribbles")),
                (node.mask, _("mask")),
                (node.reference, _("reference")),
            ):
                if node.outputSegmentation is other:
                    return _("The result would replace the {what}. Choose another segmentation for it.").format(
                        what=what
                    )
        return ""

    def onPaintButton(self, checked: bool = False) -> None:
        """Draw scribbles in the Segment Editor."""
        node = self._parameterNode
        node.scribbles = classical.paint(node.inputVolume, node.scribbles)

    def onPlaceButton(self, checked: bool = False) -> None:
        """Place seeds as points."""
        node = self._parameterNode
        node.points = classical.place(node.inputVolume, node.points)

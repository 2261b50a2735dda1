"""Slicer's number widgets, which take units from the scene: qMRMLSliderWidget, qMRMLSpinBox, qMRMLRangeWidget,
qMRMLCoordinatesWidget.
"""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtWidgets

from .ctk_numbers import ctkCoordinatesWidget, ctkDoubleSpinBox, ctkSliderWidget
from .ctk_ranges import ctkRangeWidget
from .declare import offered, prop, state, stored
from .qmrml_nodes import HoldsScene
from .signals import emit


class _Quantity(HoldsScene):
    """The quantity of a number, such as "length", whose unit the scene knows."""

    def _scene_changed(self) -> None:
        self._show_unit()

    def _show_unit(self) -> None:
        scene, quantity = self.mrmlScene(), getattr(state(self), "quantity", "")
        selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton") if scene is not None else None
        unit = selection.GetUnitNode(quantity) if selection is not None and quantity else None
        if unit is not None:
            self.suffix = f" {unit.GetSuffix().strip()}" if unit.GetSuffix() else ""


@offered("slicer")
class qMRMLSliderWidget(_Quantity, ctkSliderWidget):
    """A slider with a unit."""

    quantity = stored("QString", "quantity", "", lambda self: self._show_unit())

    def setQuantity(self, quantity: str) -> None:
        """Sets what the number measures."""
        self.quantity = quantity

    def setMRMLScene(self, scene: Any) -> None:
        """Sets the scene, whose unit is shown."""
        state(self).scene = scene
        self._scene_changed()


@offered("slicer")
class qMRMLSpinBox(_Quantity, ctkDoubleSpinBox):
    """A spin box with a unit."""

    quantity = stored("QString", "quantity", "", lambda self: self._show_unit())

    def setQuantity(self, quantity: str) -> None:
        """Sets what the number measures."""
        self.quantity = quantity

    def setMRMLScene(self, scene: Any) -> None:
        """Sets the scene, whose unit is shown."""
        state(self).scene = scene
        self._scene_changed()


@offered("slicer")
class qMRMLRangeWidget(ctkRangeWidget):
    """A range with a unit."""

    quantity = stored("QString", "quantity", "")
    mrmlScene = prop("vtkMRMLScene*", lambda self: getattr(state(self), "scene", None))

    def setQuantity(self, quantity: str) -> None:
        """Sets what the numbers measure."""
        self.quantity = quantity

    def setMRMLScene(self, scene: Any) -> None:
        """Sets the scene."""
        state(self).scene = scene


@offered("slicer", ("mrmlSceneChanged(vtkMRMLScene*)", "quantityChanged(QString)"))
class qMRMLCoordinatesWidget(HoldsScene, ctkCoordinatesWidget):
    """Coordinates with a unit."""

    quantity = stored("QString", "quantity", "", lambda self: emit(self, "quantityChanged(QString)", self.quantity))

    def setQuantity(self, quantity: str) -> None:
        """Sets what the numbers measure."""
        self.quantity = quantity


@offered("slicer", ("thresholdValuesChanged(double,double)", "autoThresholdValueChanged(int)"))
class qMRMLVolumeThresholdWidget(QtWidgets.QWidget):
    """The display threshold of a volume."""

    Auto, Manual, Off = 0, 1, 2

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        own = state(self)
        own.mode, own.volume = QtWidgets.QComboBox(self), None
        own.mode.addItems(["Auto", "Manual", "Off"])
        own.range = ctkRangeWidget(self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(own.mode)
        layout.addWidget(own.range)
        own.mode.connect("activated(int)", self.setAutoThreshold)
        own.range.connect("valuesChanged(double,double)", self._on_values)

    def mrmlVolumeNode(self) -> Any:
        """Returns the volume."""
        return state(self).volume

    def setMRMLVolumeNode(self, node: Any) -> None:
        """Sets the volume whose threshold is shown."""
        own = state(self)
        own.volume = node
        display = node.GetDisplayNode() if node is not None else None
        self.setEnabled(isinstance(display, slicer.vtkMRMLScalarVolumeDisplayNode))
        if node is None or display is None:
            return
        if node.GetImageData() is not None:
            own.range.setRange(*node.GetImageData().GetScalarRange())
        blocked = own.range.blockSignals(True)
        own.range.setValues(display.GetLowerThreshold(), display.GetUpperThreshold())
        own.range.blockSignals(blocked)
        own.mode.currentIndex = 2 if not display.GetApplyThreshold() else 0 if display.GetAutoThreshold() else 1

    def _display(self) -> Any:
        return state(self).volume.GetDisplayNode() if state(self).volume is not None else None

    def _on_values(self, low: float, high: float) -> None:
        if self._display() is not None:
            self._display().SetThreshold(low, high)
        emit(self, "thresholdValuesChanged(double,double)", low, high)

    def setAutoThreshold(self, mode: int) -> None:
        """Sets how the threshold is chosen: Auto, Manual or Off."""
        state(self).mode.currentIndex = int(mode)
        display = self._display()
        if display is not None:
            display.SetApplyThreshold(int(mode) != self.Off)
            display.SetAutoThreshold(int(mode) == self.Auto)
        emit(self, "autoThresholdValueChanged(int)", int(mode))

    autoThreshold = prop(
        "int", lambda self: state(self).mode.currentIndex, lambda self, value: self.setAutoThreshold(value)
    )
    lowerThreshold = prop(
        "double", lambda self: state(self).range.minimumValue, lambda self, value: self.setLowerThreshold(value)
    )
    upperThreshold = prop(
        "double", lambda self: state(self).range.maximumValue, lambda self, value: self.setUpperThreshold(value)
    )

    def setLowerThreshold(self, value: float) -> None:
        """Sets the lower threshold."""
        state(self).range.minimumValue = value

    def setUpperThreshold(self, value: float) -> None:
        """Sets the upper threshold."""
        state(self).range.maximumValue = value

    def setThreshold(self, low: float, high: float) -> None:
        """Sets both thresholds."""
        state(self).range.setValues(low, high)

    def setThresholdBounds(self, low: float, high: float) -> None:
        """Sets the limits of the thresholds."""
        state(self).range.setRange(low, high)

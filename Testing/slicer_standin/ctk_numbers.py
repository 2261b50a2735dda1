"""CTK's number widgets: ctkDoubleSpinBox, ctkDoubleSlider, ctkSliderWidget, ctkCoordinatesWidget."""

from __future__ import annotations

import enum
from typing import Any

from PySide6 import QtCore, QtWidgets

from .declare import offered, prop, state, stored
from .signals import call_slot, emit

_SLIDER_STEPS = 10000


def row(widget: QtWidgets.QWidget, *children: QtWidgets.QWidget) -> None:
    layout = QtWidgets.QHBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    for child in children:
        layout.addWidget(child)


def _forward(name: str, cpp_type: str, child: str) -> QtCore.Property:
    """Returns a property that is the property ``name`` of the child widget kept in the state as ``child``."""
    return prop(
        cpp_type,
        lambda self: getattr(getattr(state(self), child), name),
        lambda self, value: setattr(getattr(state(self), child), name, value),
    )


@offered("ctk", ("valueChanged(double)", "valueChanged(QString)", "editingFinished()", "decimalsChanged(int)"))
class ctkDoubleSpinBox(QtWidgets.QWidget):
    """A spin box of floating-point numbers."""

    class SetMode(enum.IntEnum):
        """When setting a value has an effect."""

        SetAlways = 0
        SetIfDifferent = 1

    SetAlways, SetIfDifferent = SetMode.SetAlways, SetMode.SetIfDifferent

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        box = QtWidgets.QDoubleSpinBox(self)
        state(self).box = box
        row(self, box)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Fixed)
        self.setFocusProxy(box)
        box.connect("valueChanged(double)", self._on_changed)
        box.connect("editingFinished()", lambda: emit(self, "editingFinished()"))

    def _set_decimals(self, value: int) -> None:
        if value != self.decimals:
            state(self).box.setDecimals(value)
            emit(self, "decimalsChanged(int)", value)

    value = _forward("value", "double", "box")
    minimum = _forward("minimum", "double", "box")
    maximum = _forward("maximum", "double", "box")
    singleStep = _forward("singleStep", "double", "box")
    decimals = prop("int", lambda self: state(self).box.decimals, _set_decimals)
    prefix = _forward("prefix", "QString", "box")
    suffix = _forward("suffix", "QString", "box")
    readOnly = _forward("readOnly", "bool", "box")
    alignment = _forward("alignment", "Qt::Alignment", "box")
    cleanText = prop("QString", lambda self: state(self).box.cleanText)
    frame = _forward("frame", "bool", "box")
    setMode = stored("SetMode", "set_mode", SetMode.SetIfDifferent)

    def setValue(self, value: float) -> None:
        """Sets the value."""
        self.value = value

    def setDecimals(self, value: int) -> None:
        """Sets the number of digits shown after the point."""
        self.decimals = value

    def setReadOnly(self, value: bool) -> None:
        """Makes the box show its value without letting it be edited."""
        self.readOnly = value

    def stepUp(self) -> None:
        """Adds one step."""
        state(self).box.stepUp()

    def stepDown(self) -> None:
        """Subtracts one step."""
        state(self).box.stepDown()

    def _on_changed(self, value: float) -> None:
        emit(self, "valueChanged(double)", value)
        emit(self, "valueChanged(QString)", state(self).box.text)


@offered(
    "ctk",
    (
        "valueChanged(double)",
        "sliderMoved(double)",
        "sliderPressed()",
        "sliderReleased()",
        "rangeChanged(double,double)",
    ),
)
class ctkDoubleSlider(QtWidgets.QWidget):
    """A slider of floating-point numbers."""

    def __init__(self, *arguments: Any) -> None:
        parent = next((item for item in arguments if isinstance(item, QtWidgets.QWidget)), None)
        super().__init__(parent)
        orientation = next(
            (item for item in arguments if isinstance(item, QtCore.Qt.Orientation)), QtCore.Qt.Horizontal
        )
        slider = QtWidgets.QSlider(orientation, self)
        slider.setRange(0, _SLIDER_STEPS)
        own = state(self)
        own.slider, own.minimum, own.maximum, own.value, own.busy = slider, 0.0, 99.0, 0.0, False
        row(self, slider)
        slider.connect("valueChanged(int)", self._on_slider)
        slider.connect("sliderPressed()", lambda: emit(self, "sliderPressed()"))
        slider.connect("sliderReleased()", lambda: emit(self, "sliderReleased()"))

    def _set_limit(self, name: str, value: float) -> None:
        own = state(self)
        setattr(own, name, value)
        if own.minimum > own.maximum:
            own.minimum = own.maximum = value
        emit(self, "rangeChanged(double,double)", own.minimum, own.maximum)
        self._set_value(own.value)
        self._place()

    def _set_value(self, value: float) -> None:
        own = state(self)
        value = min(max(value, own.minimum), own.maximum)
        if value != own.value:
            own.value = value
            self._place()
            emit(self, "valueChanged(double)", value)

    def _place(self) -> None:
        own = state(self)
        span = own.maximum - own.minimum
        own.busy = True
        own.slider.value = round((own.value - own.minimum) / span * _SLIDER_STEPS) if span > 0 else 0
        own.busy = False

    def _on_slider(self, position: int) -> None:
        own = state(self)
        if own.busy:
            return
        step = self.singleStep
        value = own.minimum + (own.maximum - own.minimum) * position / _SLIDER_STEPS
        own.busy = True
        self._set_value(own.minimum + round((value - own.minimum) / step) * step if step > 0 else value)
        own.busy = False
        emit(self, "sliderMoved(double)", own.value)

    minimum = prop("double", lambda self: state(self).minimum, lambda self, value: self._set_limit("minimum", value))
    maximum = prop("double", lambda self: state(self).maximum, lambda self, value: self._set_limit("maximum", value))
    value = prop("double", lambda self: state(self).value, lambda self, value: self._set_value(value))
    sliderPosition = prop("double", lambda self: state(self).value, lambda self, value: self._set_value(value))
    singleStep = stored("double", "single_step", 1.0)
    pageStep = stored("double", "page_step", 10.0)
    tickInterval = stored("double", "tick_interval", 0.0)
    tracking = _forward("tracking", "bool", "slider")
    orientation = _forward("orientation", "Qt::Orientation", "slider")

    def setValue(self, value: float) -> None:
        """Sets the value."""
        self.value = value

    def setOrientation(self, value: Any) -> None:
        """Sets the direction of the slider."""
        self.orientation = value


@offered("ctk", ("valueChanged(double)", "valueIsChanging(double)", "decimalsChanged(int)"))
class ctkSliderWidget(QtWidgets.QWidget):
    """A slider with a spin box beside it."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        own = state(self)
        own.slider, own.box = ctkDoubleSlider(self), ctkDoubleSpinBox(self)
        row(self, own.slider, own.box)
        self.layout().setStretch(0, 1)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Fixed)
        own.slider.maximum = own.box.maximum = 99.0
        own.box.decimals = 2
        own.value = 0.0
        own.slider.connect("valueChanged(double)", self._set_value)
        own.box.connect("valueChanged(double)", self._set_value)

    def _set_value(self, value: float) -> None:
        own = state(self)
        value = min(max(value, self.minimum), self.maximum)
        if value == own.value:
            return
        own.value = value
        for part in (own.slider, own.box):
            blocked = part.blockSignals(True)
            part.value = value
            part.blockSignals(blocked)
        emit(self, "valueIsChanging(double)", self.value)
        emit(self, "valueChanged(double)", self.value)

    def _set_limit(self, name: str, value: float) -> None:
        own = state(self)
        for part in (own.slider, own.box):
            blocked = part.blockSignals(True)
            setattr(part, name, value)
            part.blockSignals(blocked)
        self._set_value(own.value)

    def _set_decimals(self, value: int) -> None:
        if value != state(self).box.decimals:
            state(self).box.decimals = value
            emit(self, "decimalsChanged(int)", value)

    def _set_single_step(self, value: float) -> None:
        state(self).slider.singleStep = value
        state(self).box.singleStep = value

    value = prop("double", lambda self: state(self).value, lambda self, value: self._set_value(value))
    minimum = prop(
        "double", lambda self: state(self).slider.minimum, lambda self, value: self._set_limit("minimum", value)
    )
    maximum = prop(
        "double", lambda self: state(self).slider.maximum, lambda self, value: self._set_limit("maximum", value)
    )
    singleStep = prop("double", lambda self: state(self).slider.singleStep, _set_single_step)
    pageStep = _forward("pageStep", "double", "slider")
    tickInterval = _forward("tickInterval", "double", "slider")
    tracking = _forward("tracking", "bool", "slider")
    decimals = prop("int", lambda self: state(self).box.decimals, _set_decimals)
    prefix = _forward("prefix", "QString", "box")
    suffix = _forward("suffix", "QString", "box")
    spinBoxAlignment = stored("Qt::Alignment", "spin_box_alignment", QtCore.Qt.AlignRight)
    spinBoxVisible = prop(
        "bool",
        lambda self: not state(self).box.isHidden(),
        lambda self, value: state(self).box.setVisible(value),
    )

    def setValue(self, value: float) -> None:
        """Sets the value."""
        self.value = value

    def setDecimals(self, value: int) -> None:
        """Sets the number of digits shown after the point."""
        self.decimals = value

    def setSpinBoxVisible(self, visible: bool) -> None:
        """Shows or hides the spin box."""
        self.spinBoxVisible = visible

    def reset(self) -> None:
        """Sets the value to zero, or to the limit nearest to it."""
        self.value = 0.0


@offered("ctk", ("coordinatesChanged(double*)", "coordinatesChanged(double,double,double,double)"))
class ctkCoordinatesWidget(QtWidgets.QWidget):
    """A row of spin boxes, one a coordinate."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        row(self)
        state(self).boxes = []
        self._set_dimension(3)

    def _set_dimension(self, dimension: int) -> None:
        boxes = state(self).boxes
        while len(boxes) > dimension:
            boxes.pop().deleteLater()
        while len(boxes) < dimension:
            box = ctkDoubleSpinBox(self)
            box.minimum, box.maximum, box.decimals = -100000.0, 100000.0, 3
            box.connect("valueChanged(double)", self._on_changed)
            boxes.append(box)
            self.layout().addWidget(box)

    def _values(self) -> list[float]:
        return [box.value for box in state(self).boxes]

    def _on_changed(self, value: float) -> None:
        values = self._values()
        emit(self, "coordinatesChanged(double*)", values)
        emit(self, "coordinatesChanged(double,double,double,double)", *(values + [0.0] * 4)[:4])

    def _set_coordinates(self, text: str) -> None:
        self.setCoordinates(*(float(part) for part in text.split(",")))

    def _set_each(self, name: str, value: Any) -> None:
        for box in state(self).boxes:
            setattr(box, name, value)

    coordinates = prop("QString", lambda self: ",".join(f"{value:g}" for value in self._values()), _set_coordinates)
    dimension = prop("int", lambda self: len(state(self).boxes), _set_dimension)
    decimals = prop(
        "int", lambda self: state(self).boxes[0].decimals, lambda self, value: self._set_each("decimals", value)
    )
    minimum = prop(
        "double", lambda self: state(self).boxes[0].minimum, lambda self, value: self._set_each("minimum", value)
    )
    maximum = prop(
        "double", lambda self: state(self).boxes[0].maximum, lambda self, value: self._set_each("maximum", value)
    )
    singleStep = prop(
        "double", lambda self: state(self).boxes[0].singleStep, lambda self, value: self._set_each("singleStep", value)
    )

    def setCoordinates(self, *values: float) -> None:
        """Sets the coordinates, given one by one or as a sequence."""
        flat = values[0] if len(values) == 1 and not isinstance(values[0], float | int) else values
        for box, value in zip(state(self).boxes, flat, strict=False):
            blocked = box.blockSignals(True)
            box.value = value
            box.blockSignals(blocked)
        call_slot(self._on_changed, (0.0,))

    def setDecimals(self, value: int) -> None:
        """Sets the number of digits shown after the point."""
        self.decimals = value

"""CTK's widgets for two numbers: ctkDoubleRangeSlider and ctkRangeWidget."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from .ctk_numbers import ctkDoubleSpinBox, row
from .declare import offered, prop, state, stored
from .signals import emit


class _Range:
    """What ctkDoubleRangeSlider and ctkRangeWidget share: two values within two limits."""

    def _init_range(self) -> None:
        own = state(self)
        own.minimum, own.maximum, own.low, own.high = 0.0, 99.0, 0.0, 99.0

    def _set_limits(self, minimum: float, maximum: float) -> None:
        own = state(self)
        if (minimum, maximum) == (own.minimum, own.maximum):
            return
        own.minimum, own.maximum = min(minimum, maximum), max(minimum, maximum)
        self._limits_changed()
        emit(self, "rangeChanged(double,double)", own.minimum, own.maximum)
        self._set_values(own.low, own.high)

    def _set_values(self, low: float, high: float) -> None:
        own = state(self)
        low, high = sorted(min(max(value, own.minimum), own.maximum) for value in (low, high))
        changed = (low != own.low, high != own.high)
        own.low, own.high = low, high
        self._values_changed()
        if changed[0]:
            emit(self, "minimumValueChanged(double)", low)
        if changed[1]:
            emit(self, "maximumValueChanged(double)", high)
        if any(changed):
            emit(self, "valuesChanged(double,double)", low, high)

    def _limits_changed(self) -> None:
        self.update()  # type: ignore[attr-defined]

    def _values_changed(self) -> None:
        self.update()  # type: ignore[attr-defined]

    def setValues(self, low: float, high: float) -> None:
        """Sets both values."""
        self._set_values(float(low), float(high))

    def setRange(self, minimum: float, maximum: float) -> None:
        """Sets both limits."""
        self._set_limits(float(minimum), float(maximum))

    def setMinimumValue(self, value: float) -> None:
        """Sets the lower value."""
        self._set_values(float(value), max(float(value), state(self).high))

    def setMaximumValue(self, value: float) -> None:
        """Sets the upper value."""
        self._set_values(min(float(value), state(self).low), float(value))


def _range_properties() -> dict[str, QtCore.Property]:
    return {
        "minimum": prop(
            "double", lambda self: state(self).minimum, lambda self, value: self._set_limits(value, state(self).maximum)
        ),
        "maximum": prop(
            "double", lambda self: state(self).maximum, lambda self, value: self._set_limits(state(self).minimum, value)
        ),
        "minimumValue": prop("double", lambda self: state(self).low, lambda self, value: self.setMinimumValue(value)),
        "maximumValue": prop("double", lambda self: state(self).high, lambda self, value: self.setMaximumValue(value)),
    }


@offered(
    "ctk",
    (
        "minimumValueChanged(double)",
        "maximumValueChanged(double)",
        "valuesChanged(double,double)",
        "rangeChanged(double,double)",
    ),
)
class ctkDoubleRangeSlider(_Range, QtWidgets.QWidget):
    """A slider with two handles."""

    minimum, maximum, minimumValue, maximumValue = _range_properties().values()
    singleStep = stored("double", "single_step", 1.0)
    tickInterval = stored("double", "tick_interval", 0.0)
    tracking = stored("bool", "tracking", True)
    symmetricMoves = stored("bool", "symmetric", False)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(next((item for item in arguments if isinstance(item, QtWidgets.QWidget)), None))
        self._init_range()
        self.setMinimumSize(60, 20)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)

    def _x(self, value: float) -> int:
        own = state(self)
        span = own.maximum - own.minimum
        return 8 + round((self.width - 16) * ((value - own.minimum) / span if span > 0 else 0.0))

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        """Draws the groove, the chosen part and the handles."""
        painter = QtGui.QPainter(self)
        painter.setRenderHint(QtGui.QPainter.RenderHint.Antialiasing)
        middle, low, high = self.height // 2, self._x(state(self).low), self._x(state(self).high)
        painter.setPen(self.palette.color(QtGui.QPalette.ColorRole.Mid))
        painter.setBrush(self.palette.color(QtGui.QPalette.ColorRole.Base))
        painter.drawRoundedRect(8, middle - 2, self.width - 16, 4, 2, 2)
        painter.setBrush(self.palette.color(QtGui.QPalette.ColorRole.Highlight))
        painter.drawRect(low, middle - 2, high - low, 4)
        painter.setBrush(self.palette.color(QtGui.QPalette.ColorRole.Button))
        for position in (low, high):
            painter.drawRoundedRect(position - 5, middle - 7, 10, 14, 2, 2)
        painter.end()


@offered(
    "ctk",
    (
        "minimumValueChanged(double)",
        "minimumValueIsChanging(double)",
        "maximumValueChanged(double)",
        "maximumValueIsChanging(double)",
        "valuesChanged(double,double)",
        "rangeChanged(double,double)",
    ),
)
class ctkRangeWidget(_Range, QtWidgets.QWidget):
    """A slider with two handles and a spin box at either side."""

    minimum, maximum, minimumValue, maximumValue = _range_properties().values()

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._init_range()
        own = state(self)
        own.low_box, own.slider, own.high_box = (
            ctkDoubleSpinBox(self),
            ctkDoubleRangeSlider(self),
            ctkDoubleSpinBox(self),
        )
        row(self, own.low_box, own.slider, own.high_box)
        self._limits_changed()
        self._values_changed()
        own.low_box.connect("valueChanged(double)", self.setMinimumValue)
        own.high_box.connect("valueChanged(double)", self.setMaximumValue)

    def _parts(self) -> tuple:
        own = state(self)
        return own.low_box, own.slider, own.high_box

    def _limits_changed(self) -> None:
        own = state(self)
        for part in self._parts():
            blocked = part.blockSignals(True)
            part.minimum, part.maximum = own.minimum, own.maximum
            part.blockSignals(blocked)

    def _values_changed(self) -> None:
        own = state(self)
        for part in self._parts():
            blocked = part.blockSignals(True)
            if part is own.slider:
                part.setValues(own.low, own.high)
            else:
                part.value = own.low if part is own.low_box else own.high
            part.blockSignals(blocked)

    def _set_on_boxes(self, name: str, value: Any) -> None:
        state(self).low_box.__setattr__(name, value)
        state(self).high_box.__setattr__(name, value)

    decimals = prop(
        "int", lambda self: state(self).low_box.decimals, lambda self, value: self._set_on_boxes("decimals", value)
    )
    singleStep = prop(
        "double",
        lambda self: state(self).low_box.singleStep,
        lambda self, value: self._set_on_boxes("singleStep", value),
    )
    prefix = prop(
        "QString", lambda self: state(self).low_box.prefix, lambda self, value: self._set_on_boxes("prefix", value)
    )
    suffix = prop(
        "QString", lambda self: state(self).low_box.suffix, lambda self, value: self._set_on_boxes("suffix", value)
    )
    tickInterval = stored("double", "tick_interval", 0.0)
    tracking = stored("bool", "tracking", True)
    symmetricMoves = stored("bool", "symmetric", False)
    autoSpinBoxWidth = stored("bool", "auto_width", True)
    spinBoxAlignment = stored("Qt::Alignment", "spin_box_alignment", QtCore.Qt.AlignVCenter)

    def setDecimals(self, value: int) -> None:
        """Sets the number of digits shown after the point."""
        self.decimals = value

    def reset(self) -> None:
        """Spreads the values to the limits."""
        self.setValues(self.minimum, self.maximum)

"""``slicer.parameterNodeWrapper.guiConnectors``: widgets as places for values, by type of widget and type of value."""

from __future__ import annotations

import enum
import pathlib
from typing import Any

from PySide6 import QtGui, QtWidgets

from .. import ctk_choices, ctk_numbers, ctk_ranges, ctk_sections, qmrml_nodes, qmrml_numbers
from . import validators
from .annotations import (
    Decimals,
    Default,
    SingleStep,
    getNodeTypes,
    isNodeOrUnionOfNodes,
    unannotatedType,
)
from .connector_base import GuiConnector, OneWidgetConnector, createGuiConnector, parameterNodeGuiConnector
from .pack import FloatRange, isParameterPack, nestedParameterNames

SlicerPackParameterNamePropertyName = "SlicerPackParameterName"
_PATHS = (pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePath, pathlib.PurePosixPath,
          pathlib.PureWindowsPath)  # fmt: skip


@parameterNodeGuiConnector
class QCheckBoxToBoolConnector(OneWidgetConnector):
    """bool in a check box."""

    _widgets = (QtWidgets.QCheckBox, ctk_sections.ctkCheckBox)
    _types = (bool,)
    _signal = "stateChanged"
    _attribute = "checked"


@parameterNodeGuiConnector
class QCheckablePushButtonToBoolConnector(OneWidgetConnector):
    """bool in a push button, which becomes checkable."""

    _widgets = (QtWidgets.QPushButton,)
    _types = (bool,)
    _signal = "toggled"
    _attribute = "checked"

    def _prepare(self) -> None:
        self._widget.checkable = True


@parameterNodeGuiConnector
class ctkCheckablePushButtonToBoolConnector(OneWidgetConnector):
    """bool in CTK's push button with a check box."""

    _widgets = (ctk_sections.ctkCheckablePushButton,)
    _types = (bool,)
    _signal = "toggled"
    _attribute = "checked"

    def write(self, value: bool) -> None:
        """Toggles the button, or makes it a toggle button, as it is set up."""
        if not self._widget.checkBoxControlsButtonToggleState:
            self._widget.checked = value
            return
        self._widget.checkable = value
        if value:
            self._widget.checked = True


class _Numbers(OneWidgetConnector):
    """What number widgets share: limits, steps and digits from the annotations."""

    _signal = "valueChanged"
    _attribute = "value"
    _needs_limits: tuple = ()
    _no_limits: tuple = (float("-inf"), float("inf"))

    def _limits(self) -> tuple[Any, Any]:
        within = self._annotation(validators.WithinRange)
        if within is not None:
            return within.minimum, within.maximum
        low, high = self._annotation(validators.Minimum), self._annotation(validators.Maximum)
        return (low.minimum if low else None), (high.maximum if high else None)

    def _prepare(self) -> None:
        low, high = self._limits()
        if type(self._widget) in self._needs_limits and (low is None or high is None):
            raise RuntimeError(
                f"Cannot have a connection to {type(self._widget).__name__} where the type is unbounded."
            )
        step = self._annotation(SingleStep)
        if step is not None:
            self._widget.singleStep = step.value
        self._widget.minimum = self._no_limits[0] if low is None else low
        self._widget.maximum = self._no_limits[1] if high is None else high


@parameterNodeGuiConnector
class QSliderOrSpinBoxToIntConnector(_Numbers):
    """int in a slider or spin box."""

    _widgets = (QtWidgets.QSlider, QtWidgets.QSpinBox)
    _types = (int,)
    _needs_limits = (QtWidgets.QSlider,)
    _no_limits = (-(2**31), 2**31 - 1)


@parameterNodeGuiConnector
class QDoubleSpinBoxCtkSliderWidgetToFloatIntConnector(_Numbers):
    """float or int in the number widgets of Qt, CTK and Slicer."""

    _widgets = (
        QtWidgets.QDoubleSpinBox, ctk_numbers.ctkSliderWidget, qmrml_numbers.qMRMLSliderWidget,
        ctk_numbers.ctkDoubleSlider, ctk_numbers.ctkDoubleSpinBox, qmrml_numbers.qMRMLSpinBox,
    )  # fmt: skip
    _types = (float, int)
    _needs_limits = (ctk_numbers.ctkSliderWidget, qmrml_numbers.qMRMLSliderWidget)

    def _prepare(self) -> None:
        decimals = Decimals(0) if self._type is int else self._annotation(Decimals)
        if decimals is not None and not isinstance(self._widget, ctk_numbers.ctkDoubleSlider):
            self._widget.decimals = decimals.value
        super()._prepare()

    def read(self) -> Any:
        """Returns the number, whole where the type is int."""
        return int(self._widget.value) if self._type is int else self._widget.value


@parameterNodeGuiConnector
class QComboBoxToStringableConnector(OneWidgetConnector):
    """A value of a Choice in a combo box."""

    _widgets = (QtWidgets.QComboBox, ctk_choices.ctkComboBox)
    _types = (int, float, str, bool)
    _signal = "currentIndexChanged"

    def _prepare(self) -> None:
        choice = self._annotation(validators.Choice)
        if choice is None:
            raise RuntimeError("ComboBoxToStringableConnector requires the Choice annotation to be used.")
        self._choices = list(choice.choices)
        self._widget.clear()
        self._widget.addItems([str(value) for value in self._choices])

    def read(self) -> Any:
        """Returns the chosen value."""
        return self._choices[self._widget.currentIndex]

    def write(self, value: Any) -> None:
        """Chooses a value."""
        if value not in self._choices:
            raise ValueError(f"Unable to find value {value} in choices {self._choices}")
        self._widget.currentIndex = self._choices.index(value)


@parameterNodeGuiConnector
class QComboBoxToEnumConnector(OneWidgetConnector):
    """A member of an enumeration in a combo box, under its label() or its name."""

    _widgets = (QtWidgets.QComboBox, ctk_choices.ctkComboBox)
    _signal = "currentIndexChanged"

    @classmethod
    def _represents(cls, widget: Any, datatype: Any) -> bool:
        """Whether the type is an enumeration."""
        bare = unannotatedType(datatype)
        return type(widget) in cls._widgets and isinstance(bare, type) and issubclass(bare, enum.Enum)

    def _prepare(self) -> None:
        label = getattr(self._type, "label", lambda member: member.name)
        self._choices = list(self._type)
        index = max(self._widget.currentIndex, 0)
        self._widget.clear()
        self._widget.addItems([label(member) for member in self._choices])
        self._widget.currentIndex = min(index, len(self._choices) - 1)

    def read(self) -> Any:
        """Returns the chosen member."""
        return self._choices[self._widget.currentIndex]

    def write(self, value: Any) -> None:
        """Chooses a member."""
        self._widget.currentIndex = self._choices.index(value)


@parameterNodeGuiConnector
class QLineEditToStrConnector(OneWidgetConnector):
    """str in a line edit."""

    _widgets = (QtWidgets.QLineEdit,)
    _types = (str,)
    _signal = "textChanged"
    _attribute = "text"

    def write(self, value: str) -> None:
        """Sets the text where it differs, so that the cursor stays while the user types."""
        if value != self._widget.text:
            self._widget.text = value


@parameterNodeGuiConnector
class QLabelToStrConnector(OneWidgetConnector):
    """str in a label, which nobody can change."""

    _widgets = (QtWidgets.QLabel,)
    _types = (str,)
    _attribute = "text"


@parameterNodeGuiConnector
class QTextEditPlainTextToStrConnector(OneWidgetConnector):
    """str in a text edit."""

    _widgets = (QtWidgets.QTextEdit,)
    _types = (str,)
    _signal = "textChanged"

    def read(self) -> str:
        """Returns the text without its formats."""
        return self._widget.toPlainText()

    def write(self, value: str) -> None:
        """Sets the text."""
        self._widget.setPlainText(value)


@parameterNodeGuiConnector
class ctkRangeWidgetToRangeConnector(OneWidgetConnector):
    """FloatRange in the range widgets."""

    _widgets = (ctk_ranges.ctkRangeWidget, ctk_ranges.ctkDoubleRangeSlider, qmrml_numbers.qMRMLRangeWidget)
    _types = (FloatRange,)
    _signal = "valuesChanged"

    def _prepare(self) -> None:
        decimals, step = self._annotation(Decimals), self._annotation(SingleStep)
        if decimals is not None and not isinstance(self._widget, ctk_ranges.ctkDoubleRangeSlider):
            self._widget.decimals = decimals.value
        if step is not None:
            self._widget.singleStep = step.value
        bounds = self._annotation(validators.RangeBounds)
        if bounds is None:
            raise RuntimeError("Cannot have a connection to a range widget without a RangeBounds annotation.")
        if self._annotation(Default) is None and not bounds.minimum <= 0 <= bounds.maximum:
            raise RuntimeError("RangeBounds that do not include 0 need a Default() too.")
        self._widget.setRange(bounds.minimum, bounds.maximum)

    def read(self) -> FloatRange:
        """Returns the range."""
        return FloatRange(self._widget.minimumValue, self._widget.maximumValue)

    def write(self, value: FloatRange) -> None:
        """Sets the range."""
        self._widget.setValues(value.minimum, value.maximum)


class _Path(OneWidgetConnector):
    _types = _PATHS

    def read(self) -> Any:
        """Returns the path."""
        return self._type(super().read())

    def write(self, value: Any) -> None:
        """Sets the path."""
        super().write(str(value))


@parameterNodeGuiConnector
class ctkPathLineEditToPathConnector(_Path):
    """A path in ctkPathLineEdit."""

    _widgets = (ctk_choices.ctkPathLineEdit,)
    _signal = "currentPathChanged"
    _attribute = "currentPath"


@parameterNodeGuiConnector
class ctkDirectoryButtonToPathConnector(_Path):
    """A path in ctkDirectoryButton."""

    _widgets = (ctk_choices.ctkDirectoryButton,)
    _signal = "directoryChanged"
    _attribute = "directory"


@parameterNodeGuiConnector
class qMRMLNodeComboBoxToNodeConnector(OneWidgetConnector):
    """A node in qMRMLNodeComboBox, which then offers the type's nodes."""

    _widgets = (qmrml_nodes.qMRMLNodeComboBox,)
    _signal = "currentNodeChanged"

    @classmethod
    def _represents(cls, widget: Any, datatype: Any) -> bool:
        """Whether the type is a node class or a union of node classes."""
        return type(widget) in cls._widgets and isNodeOrUnionOfNodes(datatype)

    def _prepare(self) -> None:
        self._widget.nodeTypes = getNodeTypes(self._type)

    def read(self) -> Any:
        """Returns the chosen node."""
        return self._widget.currentNode()

    def write(self, value: Any) -> None:
        """Chooses a node."""
        self._widget.setCurrentNode(value)


@parameterNodeGuiConnector
class ctkColorPickerButtonToQColorConnector(OneWidgetConnector):
    """QColor in ctkColorPickerButton."""

    _widgets = (ctk_choices.ctkColorPickerButton,)
    _types = (QtGui.QColor,)
    _signal = "colorChanged"
    _attribute = "color"


def pack_widgets(widget: Any) -> dict[str, Any]:
    """Returns dotted member name -> child widget, by the property SlicerPackParameterName of the children."""
    found = {}
    for child in widget.findChildren(QtWidgets.QWidget):
        name = child.property(SlicerPackParameterNamePropertyName)
        parent = child.parent()
        while name and parent is not None and parent is not widget:
            outer = parent.property(SlicerPackParameterNamePropertyName)
            name = f"{outer}.{name}" if outer else name
            parent = parent.parent()
        if name:
            found[name] = child
    return found


@parameterNodeGuiConnector
class WidgetChildrenToParameterPackConnector(GuiConnector):
    """A parameterPack in the children of a widget."""

    @staticmethod
    def canRepresent(widget: Any, datatype: Any) -> bool:
        """Whether there is a child for each member."""
        bare = unannotatedType(datatype)
        return isParameterPack(bare) and set(nestedParameterNames(bare)) <= set(pack_widgets(widget))

    @staticmethod
    def create(widget: Any, datatype: Any) -> Any:
        """Returns a connector."""
        can = WidgetChildrenToParameterPackConnector.canRepresent(widget, datatype)
        return WidgetChildrenToParameterPackConnector(widget, datatype) if can else None

    def __init__(self, widget: Any, datatype: Any) -> None:
        super().__init__()
        self._widget, self._type = widget, unannotatedType(datatype)
        children = pack_widgets(widget)
        self._members = {
            name: createGuiConnector(children[name], self._type.dataType(name))
            for name in nestedParameterNames(self._type)
        }

    def _connect(self) -> None:
        for connector in self._members.values():
            connector.onChanged(self.changed)

    def _disconnect(self) -> None:
        for connector in self._members.values():
            connector.onChanged(None)

    def widget(self) -> Any:
        """Returns the widget."""
        return self._widget

    def read(self) -> Any:
        """Returns a pack of the children's values."""
        pack = self._type()
        for name, connector in self._members.items():
            pack.setValue(name, connector.read())
        return pack

    def write(self, value: Any) -> None:
        """Shows a pack's members in the children."""
        for name, connector in self._members.items():
            connector.write(value.getValue(name))

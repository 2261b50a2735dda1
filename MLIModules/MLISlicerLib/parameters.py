"""A task's settings as a module's parameters: the type, default and range of each are those the request declares.

    >>> class MyParameterNode:  # doctest: +SKIP
    ...     overlap: parameter(SegmentRequest, "overlap")

and the tooltips of the widgets tied to them are the settings' help.
"""

from __future__ import annotations

from typing import Annotated, Any

from slicer.parameterNodeWrapper import Choice, Default, GuiConnector, WithinRange

from MLILib.settings import Request, Setting

_UNBOUNDED = 2**31 - 1


def setting_of(request: type[Request], name: str) -> Setting:
    """The setting called `name`."""
    return next(setting for setting in request.settings() if setting.name == name)


def parameter(request: type[Request], name: str, *, default: Any = None, minimum: float | None = None) -> Any:
    """The annotated type of a parameter that stands for a setting with one value.

    Args:
        request: whose setting it is.
        name: of the setting.
        default: in place of the setting's.
        minimum: in place of the setting's, where smaller values mean "not given".
    """
    setting = setting_of(request, name)
    annotations: list[Any] = [Default(setting.default if default is None else default)]
    smallest = setting.minimum if minimum is None else minimum
    if smallest is not None or setting.maximum is not None:
        low = -_UNBOUNDED if smallest is None else smallest
        high = _UNBOUNDED if setting.maximum is None else setting.maximum
        annotations.append(WithinRange(setting.type(low), setting.type(high)))
    if setting.choices:
        annotations.append(Choice(list(setting.choices)))
    return Annotated[(setting.type, *annotations)]


def tooltip(request: type[Request], name: str) -> str:
    """The help of a setting with its range, for a tooltip."""
    setting = setting_of(request, name)
    limits = setting.range_text()
    return f"{setting.help} ({limits})" if limits else setting.help


class _Handed(GuiConnector):
    """What the connectors here share: they are handed to connectParametersToGui, and never chosen by themselves.

    Args:
        widget: the widget that shows the parameter.
    """

    #: The signal of the widget that tells of a change by the user.
    SIGNAL = ""

    def __init__(self, widget: Any) -> None:
        super().__init__()
        self._widget = widget

    @staticmethod
    def canRepresent(widget: Any, datatype: Any) -> bool:
        return False

    @staticmethod
    def create(widget: Any, datatype: Any) -> None:
        return None

    def _connect(self) -> None:
        self._widget.connect(self.SIGNAL, self._onChanged)

    def _disconnect(self) -> None:
        self._widget.disconnect(self.SIGNAL, self._onChanged)

    def _onChanged(self, *_: Any) -> None:
        self.changed()

    def widget(self) -> Any:
        return self._widget


class ChoiceConnector(_Handed):
    """Ties a combo box whose items carry data to a text parameter; a value it lacks is added, so that none is lost.

    Args:
        widget: a QComboBox; fill it with ``addItem(text, data)``.
        unknown: text of an item for a value that is not offered, with {value}.
    """

    SIGNAL = "currentIndexChanged(int)"

    def __init__(self, widget: Any, unknown: str = "{value}") -> None:
        super().__init__(widget)
        self._unknown = unknown

    def _onChanged(self, *_: Any) -> None:
        if self._widget.currentIndex >= 0:
            self.changed()

    def read(self) -> str:
        value = self._widget.itemData(self._widget.currentIndex)
        return "" if value is None else str(value)

    def write(self, value: str) -> None:
        values = [self._widget.itemData(index) for index in range(self._widget.count)]
        if value not in values:
            self._widget.addItem(self._unknown.format(value=value), value)
            values.append(value)
        self._widget.currentIndex = values.index(value)


class CheckedConnector(_Handed):
    """Ties a ctkCheckableComboBox whose items carry data to a parameter that is a list of texts."""

    SIGNAL = "checkedIndexesChanged()"

    def read(self) -> list[str]:
        return [str(self._widget.itemData(index.row())) for index in self._widget.checkedIndexes()]

    def write(self, value: list[str]) -> None:
        import qt

        model = self._widget.model()
        for row in range(self._widget.count):
            wanted = qt.Qt.Checked if self._widget.itemData(row) in value else qt.Qt.Unchecked
            if self._widget.checkState(model.index(row, 0)) != wanted:
                self._widget.setCheckState(model.index(row, 0), wanted)


class SliderConnector(_Handed):
    """Ties a ctkSliderWidget to a number whose limits depend on other choices; the slider reaches what it is given."""

    SIGNAL = "valueChanged(double)"

    def read(self) -> float:
        return float(self._widget.value)

    def write(self, value: float) -> None:
        self._widget.maximum = max(self._widget.maximum, value)
        self._widget.value = value


class NodeConnector(_Handed):
    """Ties a qMRMLNodeComboBox to a parameter that takes nodes of several classes; those offered are the .ui file's.

    Slicer's own connector would offer the parameter's class in their place.
    """

    SIGNAL = "currentNodeChanged(vtkMRMLNode*)"

    def read(self) -> Any:
        return self._widget.currentNode()

    def write(self, value: Any) -> None:
        self._widget.setCurrentNode(value)


class CheckedNodesConnector(_Handed):
    """Ties a qMRMLCheckableNodeComboBox to a parameter that is a list of nodes; the list has the chooser's order."""

    SIGNAL = "checkedNodesChanged()"

    def read(self) -> list[Any]:
        return list(self._widget.checkedNodes())

    def write(self, value: list[Any]) -> None:
        wanted, checked = [node for node in value if node is not None], self.read()
        for node in checked:
            if node not in wanted:
                self._widget.uncheck(node)
        for node in wanted:
            if node not in checked:
                self._widget.check(node)

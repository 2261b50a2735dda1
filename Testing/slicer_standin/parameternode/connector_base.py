"""The base of ``slicer.parameterNodeWrapper``'s GUI connectors, and how the one for a widget and a type is found."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

from .annotations import findFirstAnnotation, splitAnnotations, unannotatedType


class GuiConnector(abc.ABC):
    """Base of all connectors, including users'."""

    def __init__(self) -> None:
        self._callback: Callable | None = None

    @staticmethod
    @abc.abstractmethod
    def canRepresent(widget: Any, datatype: Any) -> bool:
        """Whether this connector can show a type, which may be Annotated, in a widget."""

    @staticmethod
    @abc.abstractmethod
    def create(widget: Any, datatype: Any) -> Any:
        """Returns a connector."""

    def onChanged(self, callback: Callable | None) -> None:
        """Sets what is called when the user changes the widget; None ends it."""
        self._callback = callback
        if callback is None:
            self._disconnect()
        else:
            self._connect()

    def changed(self) -> None:
        """Called by the widget."""
        if self._callback is not None:
            self._callback()

    @abc.abstractmethod
    def _connect(self) -> None: ...

    @abc.abstractmethod
    def _disconnect(self) -> None: ...

    @abc.abstractmethod
    def widget(self) -> Any:
        """Returns the widget."""

    @abc.abstractmethod
    def read(self) -> Any:
        """Returns the widget's value."""

    @abc.abstractmethod
    def write(self, value: Any) -> None:
        """Shows a value in the widget."""


_registered: list[type[GuiConnector]] = []


def parameterNodeGuiConnector(classtype: type | None = None) -> Any:
    """Class decorator that registers a connector; used with or without parentheses."""

    def register(cls: type[GuiConnector]) -> type[GuiConnector]:
        if not issubclass(cls, GuiConnector):
            raise TypeError("Must be a GuiConnector subclass")
        _registered.append(cls)
        return cls

    return register if classtype is None else register(classtype)


def createGuiConnector(widget: Any, datatype: Any) -> GuiConnector:
    """Returns a connector for a widget and a type.

    Raises:
        RuntimeError: no connector can show the type in the widget.
    """
    for connector in _registered:
        if connector.canRepresent(widget, datatype):
            return connector.create(widget, datatype)
    raise RuntimeError(f"Unable to create GUI connector from datatype '{datatype}' to widget type '{type(widget)}'.")


class OneWidgetConnector(GuiConnector):
    """A connector that reads and writes one property of one widget.

    A derived class names the widget classes (exactly these), the types, the signal and the property.
    """

    _widgets: tuple = ()
    _types: tuple = ()
    _signal = ""
    _attribute = ""

    @classmethod
    def _represents(cls, widget: Any, datatype: Any) -> bool:
        """Whether the widget is one of the class's and the type too."""
        return type(widget) in cls._widgets and unannotatedType(datatype) in cls._types

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.canRepresent = staticmethod(cls._represents)  # type: ignore[method-assign]
        # Bound to this class: Slicer's connectors are created by cls.create(widget, datatype).
        cls.create = staticmethod(lambda w, d: cls(w, d) if cls._represents(w, d) else None)  # type: ignore[method-assign]

    @staticmethod
    def canRepresent(widget: Any, datatype: Any) -> bool:
        """Replaced in each derived class."""
        return False

    @staticmethod
    def create(widget: Any, datatype: Any) -> Any:
        """Replaced in each derived class."""
        return None

    def __init__(self, widget: Any, datatype: Any) -> None:
        super().__init__()
        self._widget = widget
        self._type, self._annotations = splitAnnotations(datatype)
        self._prepare()

    def _prepare(self) -> None:
        """Sets the widget up for the type's annotations."""

    def _annotation(self, kind: type) -> Any:
        return findFirstAnnotation(self._annotations, kind)

    def _connect(self) -> None:
        if self._signal:
            getattr(self._widget, self._signal).connect(self.changed)

    def _disconnect(self) -> None:
        if self._signal:
            getattr(self._widget, self._signal).disconnect(self.changed)

    def widget(self) -> Any:
        """Returns the widget."""
        return self._widget

    def read(self) -> Any:
        """Returns the property."""
        return getattr(self._widget, self._attribute)

    def write(self, value: Any) -> None:
        """Sets the property."""
        setattr(self._widget, self._attribute, value)

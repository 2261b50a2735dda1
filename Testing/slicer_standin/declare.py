"""How the stand-in writes a Qt class of CTK's or Slicer's in Python: signals by signature, Qt properties by C++ type,
state kept apart from what users may set, and registration with the module, the .ui loader and the strict filter.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from . import names, pythonqt
from .signals import SignalAttribute
from .uiloader import widget_classes

_PYTHON_TYPES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "double": float,
    "QString": str,
    "QStringList": "QStringList",
    "QColor": QtGui.QColor,
    "QIcon": QtGui.QIcon,
    "QSize": QtCore.QSize,
}

# The properties made here, so that their identities stay theirs.
_kept: list[QtCore.Property] = []

# Module ("ctk" or "slicer") -> class name -> class.
classes: dict[str, dict[str, type]] = {"ctk": {}, "slicer": {}}


def prop(cpp_type: str, read: Callable, write: Callable | None = None) -> QtCore.Property:
    """Returns a Qt property, readable and writable as an attribute, by property() and from a .ui file.

    Args:
        cpp_type: the type as the description gives it; what is not in the short table above is an integer or an object.
        read: getter(self).
        write: setter(self, value); None makes it read only.
    """

    def written(self: Any, value: Any) -> None:
        assert write is not None
        write(self, pythonqt.converted(value, cpp_type))

    made = QtCore.Property(_PYTHON_TYPES.get(cpp_type, object), read, written if write is not None else None)
    pythonqt.declared_properties[id(made)] = written if write is not None else None
    _kept.append(made)
    return made


def stored(cpp_type: str, name: str, default: Any, then: Callable | None = None) -> QtCore.Property:
    """Returns a Qt property that is kept in the object's state under ``name``; ``then(self)`` runs after a change."""

    def read(self: Any) -> Any:
        return getattr(state(self), name, default)

    def write(self: Any, value: Any) -> None:
        if read(self) != value:
            setattr(state(self), name, tuple(value) if cpp_type == "QStringList" else value)
            if then is not None:
                then(self)

    return prop(cpp_type, read, write)


def state(self: Any) -> types.SimpleNamespace:
    """Returns what a widget of the stand-in remembers; users cannot reach it by attribute assignment."""
    if "_state" not in self.__dict__:
        self.__dict__["_state"] = types.SimpleNamespace()
    return self.__dict__["_state"]


def offered(module: str, signals: tuple[str, ...] = ()) -> Callable[[type], type]:
    """Class decorator that makes a class part of ``ctk`` or ``slicer``.

    Args:
        module: ``ctk`` or ``slicer``.
        signals: signatures of the signals that the class adds to its base's, as the description gives them.
    """

    def register(cls: type) -> type:
        cls._signals = signals  # type: ignore[attr-defined]
        for signature in signals:
            name = signature.partition("(")[0]
            setattr(cls, name, SignalAttribute(name))
        assert names.members(cls.__name__) is not None, f"{cls.__name__} is in no description of a real Slicer"
        classes[module][cls.__name__] = cls
        if issubclass(cls, QtWidgets.QWidget):
            widget_classes[cls.__name__] = cls
        pythonqt.offer(cls)
        return cls

    return register

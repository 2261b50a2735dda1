"""Serializers of single values: numbers, text, paths, truth, nodes, enumerations, colours, None."""

from __future__ import annotations

import enum
import pathlib
from typing import Any

import slicer
from PySide6 import QtGui

from ..originals import raw
from .serializer_base import Serializer, ValidatedSerializer, parameterNodeSerializer
from .validators import IsInstance, IsNone, NotNone

_PATHS = (
    pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePath, pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
)  # fmt: skip


class _Text(Serializer):
    """Base of what is stored as one text parameter."""

    def isIn(self, parameterNode: Any, name: str) -> bool:
        """Whether the node has the parameter."""
        return parameterNode.HasParameter(name)

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        """Stores the value's text."""
        parameterNode.SetParameter(name, str(value))

    def remove(self, parameterNode: Any, name: str) -> None:
        """Removes the parameter."""
        parameterNode.UnsetParameter(name)

    @staticmethod
    def supportsCaching() -> bool:
        """Values are immutable."""
        return True


@parameterNodeSerializer
class NumberSerializer(_Text):
    """int and float."""

    def __init__(self, type: type) -> None:
        self.type = type

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """int or float, not bool."""
        return type_ in (int, float)

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a checked serializer; a float may be given as an int."""
        if not NumberSerializer.canSerialize(type_):
            return None
        return ValidatedSerializer(
            NumberSerializer(type_), [NotNone(), IsInstance((int, float) if type_ is float else int)]
        )

    def default(self) -> Any:
        """Zero."""
        return 0

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns the number."""
        return self.type(parameterNode.GetParameter(name))


@parameterNodeSerializer
class StringSerializer(_Text):
    """str."""

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """str alone."""
        return type_ is str

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a checked serializer."""
        if not StringSerializer.canSerialize(type_):
            return None
        return ValidatedSerializer(StringSerializer(), [NotNone(), IsInstance(str)])

    def default(self) -> Any:
        """Empty text."""
        return ""

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns the text."""
        return parameterNode.GetParameter(name)


@parameterNodeSerializer
class PathSerializer(_Text):
    """pathlib's classes."""

    def __init__(self, pathtype: type) -> None:
        self.type = pathtype

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """Any class of pathlib."""
        return type_ in _PATHS

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a checked serializer."""
        if not PathSerializer.canSerialize(type_):
            return None
        return ValidatedSerializer(PathSerializer(type_), [NotNone(), IsInstance(type_)])

    def default(self) -> Any:
        """The path "."."""
        return self.type()

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns the path."""
        return self.type(parameterNode.GetParameter(name))


@parameterNodeSerializer
class BoolSerializer(_Text):
    """bool."""

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """bool alone."""
        return type_ is bool

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a checked serializer."""
        if not BoolSerializer.canSerialize(type_):
            return None
        return ValidatedSerializer(BoolSerializer(), [NotNone(), IsInstance(bool)])

    def default(self) -> Any:
        """False."""
        return False

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        """Stores "True" or "False"."""
        parameterNode.SetParameter(name, str(bool(value)))

    def read(self, parameterNode: Any, name: str) -> bool:
        """Returns the truth."""
        return parameterNode.GetParameter(name) == "True"


@parameterNodeSerializer
class NodeSerializer(Serializer):
    """Nodes of the scene, as node references; an empty parameter of the same name says that the value was set."""

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """Any node class."""
        return isinstance(type_, type) and issubclass(type_, slicer.vtkMRMLNode)

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a checked serializer; None is allowed."""
        return (
            ValidatedSerializer(NodeSerializer(), [IsInstance(type_)]) if NodeSerializer.canSerialize(type_) else None
        )

    def default(self) -> Any:
        """No node."""
        return None

    def isIn(self, parameterNode: Any, name: str) -> bool:
        """Whether the value was set, to None or to a node."""
        return parameterNode.HasParameter(name)

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        """Refers to the node."""
        parameterNode.SetParameter(name, "")
        parameterNode.SetNodeReferenceID(name, None if value is None else value.GetID())

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns the node, or None."""
        return parameterNode.GetNodeReference(name)

    def remove(self, parameterNode: Any, name: str) -> None:
        """Removes the reference."""
        parameterNode.UnsetParameter(name)
        parameterNode.RemoveNodeReferenceIDs(name)

    @staticmethod
    def supportsCaching() -> bool:
        """The node itself is not copied."""
        return True


@parameterNodeSerializer
class EnumSerializer(_Text):
    """enum.Enum, by the member's name."""

    def __init__(self, enum_: Any) -> None:
        if not len(enum_):
            raise ValueError("Cannot serialize empty Enum.")
        self.enum = enum_

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """Any enumeration."""
        return isinstance(type_, type) and issubclass(type_, enum.Enum)

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a checked serializer."""
        return (
            ValidatedSerializer(EnumSerializer(type_), [IsInstance(type_)])
            if EnumSerializer.canSerialize(type_)
            else None
        )

    def default(self) -> Any:
        """The first member."""
        return next(iter(self.enum))

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        """Stores the member's name."""
        parameterNode.SetParameter(name, value.name)

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns the member.

        Raises:
            ValueError: the stored name is no member.
        """
        stored = parameterNode.GetParameter(name)
        if stored not in self.enum.__members__:
            raise ValueError(f"Found {stored!r} in parameter node but it is not a name in {self.enum!r}")
        return self.enum[stored]


@parameterNodeSerializer
class NoneSerializer(Serializer):
    """None, as part of a union."""

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """The class of None."""
        return type_ is type(None)

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a checked serializer."""
        return ValidatedSerializer(NoneSerializer(), [IsNone()]) if NoneSerializer.canSerialize(type_) else None

    def default(self) -> Any:
        """None."""
        return None

    def isIn(self, parameterNode: Any, name: str) -> bool:
        """Whether None was stored."""
        return parameterNode.HasParameter(name)

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        """Stores that there is None."""
        parameterNode.SetParameter(name, "True")

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns None."""
        return None

    def remove(self, parameterNode: Any, name: str) -> None:
        """Removes the parameter."""
        parameterNode.UnsetParameter(name)

    @staticmethod
    def supportsCaching() -> bool:
        """None is immutable."""
        return True


class _ObservedColor(QtGui.QColor):
    """A colour of a parameter node; changing it in place changes the node."""

    def __init__(self, parameterNode: Any, serializer: QColorSerializer, name: str, text: str) -> None:
        super().__init__(text)
        self._stored = (parameterNode, serializer, name)


def _observing(name: str) -> Any:
    setter = getattr(QtGui.QColor, name)

    def set_and_store(self: _ObservedColor, *arguments: Any) -> None:
        setter(self, *arguments)
        node, serializer, parameter = self._stored
        serializer.write(node, parameter, self)

    return set_and_store


for _name in ("setAlpha", "setAlphaF", "setBlue", "setBlueF", "setGreen", "setGreenF", "setRed", "setRedF", "setRgb",
              "setRgbF", "setHsv", "setHsvF", "setNamedColor"):  # fmt: skip
    if hasattr(QtGui.QColor, _name):
        setattr(_ObservedColor, _name, _observing(_name))


@parameterNodeSerializer
class QColorSerializer(_Text):
    """QColor, as #AARRGGBB."""

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """QColor and what derives from it."""
        return isinstance(type_, type) and issubclass(type_, QtGui.QColor)

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a checked serializer."""
        if not QColorSerializer.canSerialize(type_):
            return None
        return ValidatedSerializer(QColorSerializer(), [NotNone(), IsInstance(QtGui.QColor)])

    def default(self) -> Any:
        """An invalid colour."""
        return QtGui.QColor()

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        """Stores the colour's name with its opacity."""
        parameterNode.SetParameter(name, raw(QtGui.QColor, "name")(value, QtGui.QColor.NameFormat.HexArgb))

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns a colour that stores itself again when it is changed."""
        return _ObservedColor(parameterNode, self, name, parameterNode.GetParameter(name))

    @staticmethod
    def supportsCaching() -> bool:
        """A colour can be changed."""
        return False

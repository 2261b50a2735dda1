"""Gives PySide6's classes the manners of PythonQt, as behaviour.json of the description shows them: properties are
attributes and not callable, signals connect by signature or by name and pass as many arguments as the slot takes,
enumerators are numbers, and no new attribute may be put on a C++ object. It changes the PySide6 classes themselves, so
that objects made inside Qt (by QUiLoader, or the header of a table) behave alike.
"""

from __future__ import annotations

import enum
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

from . import names, originals
from .originals import raw
from .signals import SignalAttribute, connect_as_pythonqt, disconnect_as_pythonqt

QT_MODULES = (QtCore, QtGui, QtWidgets, QtUiTools)

# Classes that stand for a C++ class of a real Slicer -> the name under which the description has it.
_offered: dict[type, str] = {}


# -- properties --------------------------------------------------------------------------------------------------------

_TEXT_TYPES = (str, int, float)


def converted(value: Any, type_name: str) -> Any:
    """Converts a value as PythonQt does for a property of a C++ type, or raises TypeError or ValueError."""
    if type_name in ("int", "uint", "qlonglong", "qulonglong"):
        return int(value)
    if type_name in ("double", "float"):
        return float(value)
    if type_name == "bool":
        return bool(value)
    if type_name == "QString" and isinstance(value, _TEXT_TYPES):
        return str(value)
    if type_name == "QStringList":
        if isinstance(value, str):
            raise TypeError("a list of strings is needed")
        return [str(item) for item in value]
    return value


class QtProperty:
    """A Q_PROPERTY as a Python attribute."""

    def __init__(self, cls: type, meta: QtCore.QMetaProperty) -> None:
        self._name = meta.name()
        self._type = meta.typeName()
        self._writable = meta.isWritable()
        reader = raw(cls, self._name) if hasattr(cls, self._name) else None
        # Signals and enumerations may share a property's name; only a method can be its getter.
        self._reader = reader if inspect.isroutine(reader) else None
        writer = getattr(cls, f"set{self._name[0].upper()}{self._name[1:]}", None)
        self._writer = writer if inspect.isroutine(writer) else None
        self._enum = self._enumeration(cls, meta)

    @staticmethod
    def _enumeration(cls: type, meta: QtCore.QMetaProperty) -> type | None:
        if not (meta.isEnumType() or meta.isFlagType()):
            return None
        name = meta.typeName().rpartition("::")[2]
        for scope in (cls, QtCore.Qt):
            found = getattr(scope, name, None)
            if isinstance(found, type):
                return found
        return None

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        if self._reader is not None:
            return self._reader(instance)
        return raw(QtCore.QObject, "property")(instance, self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        if not self._writable:
            raise AttributeError(f"Property '{self._name}' of {type(instance).__name__} object is not writable")
        try:
            value = converted(value, self._type)
            if self._enum is not None and isinstance(value, int) and not isinstance(value, enum.Enum):
                value = self._enum(value)
            if self._writer is not None:
                self._writer(instance, value)
                return
        except (TypeError, ValueError) as error:
            raise AttributeError(
                f"Property '{self._name}' of type '{self._type}' does not accept an object of type "
                f"{type(value).__name__} ({value!r})"
            ) from error
        raw(QtCore.QObject, "setProperty")(instance, self._name, value)


def refuse_new_attribute(instance: Any, name: str) -> None:
    """Raises what PythonQt raises for an attribute that a C++ object lacks."""
    raise AttributeError(
        f"'{name}' does not exist on {type(instance).__name__} "
        "and creating new attributes on C++ objects is not allowed"
    )


def is_cpp_class(cls: type) -> bool:
    """Whether PythonQt would treat an object of exactly this class as a C++ object: users' subclasses are not."""
    return cls in _offered or cls.__module__.startswith("PySide6")


# Properties of the stand-in's own classes (QtCore.Property is no Python descriptor): identity -> setter, or None.
declared_properties: dict[int, Callable | None] = {}


def _set_declared(self: Any, name: str, write: Callable | None, value: Any) -> None:
    if write is None:
        raise AttributeError(f"Property '{name}' of {type(self).__name__} object is not writable")
    try:
        write(self, value)
    except (TypeError, ValueError) as error:
        raise AttributeError(
            f"Property '{name}' does not accept an object of type {type(value).__name__} ({value!r})"
        ) from error


# Not empty while QUiLoader loads a file: PySide6 then sets each named child as an attribute of the root, PythonQt does
# not.
_loading_ui: list[bool] = []


def _set_attribute(self: Any, name: str, value: Any) -> None:
    for cls in type(self).__mro__:
        if name in cls.__dict__:
            if hasattr(type(cls.__dict__[name]), "__set__"):
                cls.__dict__[name].__set__(self, value)
                return
            if id(cls.__dict__[name]) in declared_properties:
                _set_declared(self, name, declared_properties[id(cls.__dict__[name])], value)
                return
            break
    if isinstance(self, QtCore.QObject) and name in _dynamic_properties(self):
        raw(QtCore.QObject, "setProperty")(self, name, value)
        return
    if is_cpp_class(type(self)):
        if not _loading_ui:
            refuse_new_attribute(self, name)
        return
    originals.plain_set(self, name, value)


def _dynamic_properties(instance: QtCore.QObject) -> list[str]:
    found = raw(QtCore.QObject, "dynamicPropertyNames")(instance)
    return [bytes(name.data()).decode() for name in found]


def _missing_attribute(self: Any, name: str) -> Any:
    """PythonQt's last resorts: a dynamic property, then a child of that name."""
    if isinstance(self, QtCore.QObject) and not name.startswith("__") and shiboken6.isValid(self):
        if name in _dynamic_properties(self):
            return raw(QtCore.QObject, "property")(self, name)
        for child in raw(QtCore.QObject, "children")(self):
            if raw(QtCore.QObject, "objectName")(child) == name:
                return child
    described = next((_offered[cls] for cls in type(self).__mro__ if cls in _offered), None)
    if described is not None and name in (names.members(described) or ()):
        raise NotImplementedError(f"the stand-in has no {described}.{name}; Slicer has")
    raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")


# Members that PySide6 answers for in C, before it looks at the class; these answers come first.
_instance_methods: dict[str, Callable] = {"connect": connect_as_pythonqt, "disconnect": disconnect_as_pythonqt}


# Virtual methods that the description does not show. PySide6 asks a Python object for them by name whenever Qt calls
# them and does not expect a refusal, so they cannot be hidden.
VIRTUAL_HOOKS = frozenset(
    [
        "clone",
        "closeEditor",
        "commitData",
        "connectNotify",
        "currentChanged",
        "dataChanged",
        "disconnectNotify",
        "editorDestroyed",
        "horizontalScrollbarAction",
        "horizontalScrollbarValueChanged",
        "initStyleOptionForIndex",
        "initViewItemOption",
        "itemDelegateForIndex",
        "itemTextRect",
        "multiData",
        "resetInternalData",
        "rowsAboutToBeRemoved",
        "rowsInserted",
        "selectionChanged",
        "skipData",
        "supportedDragActions",
        "updateEditorData",
        "updateEditorGeometries",
        "updateGeometries",
        "verticalScrollbarAction",
        "verticalScrollbarValueChanged",
    ]
)


@functools.cache
def hidden_names(cls: type) -> frozenset[str]:
    """Public members that objects of a class have in PySide6 and lack in Slicer."""
    known = set()
    for base in cls.__mro__:
        if base in _offered:
            allowed = names.members(_offered[base])
            assert allowed is not None
            return frozenset(name for name in dir(base) if name[0] != "_") - allowed - known - VIRTUAL_HOOKS
        known.update(vars(base))
    return frozenset()


def _guarded(original: Callable) -> Callable:
    """Returns a __getattribute__ that hides what Slicer's class lacks."""

    def get_attribute(self: Any, name: str) -> Any:
        if name in hidden_names(type(self)):
            return _missing_attribute(self, name)
        if name in _instance_methods:
            return types.MethodType(_instance_methods[name], self)
        return original(self, name)

    return get_attribute


def _guard_classes() -> None:
    """Hides from the classes themselves, as in ``qt.QEvent.ChildWindowAdded``, what is hidden from their objects."""
    metaclass: Any = type(QtCore.QObject)
    original = metaclass.__getattribute__

    def get_attribute(cls: type, name: str) -> Any:
        if name[0] != "_" and name in hidden_names(cls):
            raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")
        return original(cls, name)

    metaclass.__getattribute__ = get_attribute


# -- applying it -------------------------------------------------------------------------------------------------------


def qt_classes() -> Iterator[type]:
    """Yields PySide6's classes, bases before what derives from them."""
    found = {getattr(module, name) for module in QT_MODULES for name in dir(module) if name.startswith("Q")}
    classes = [cls for cls in found if isinstance(cls, type) and cls.__module__.startswith("PySide6")]
    return iter(sorted(classes, key=lambda cls: (len(cls.__mro__), cls.__name__)))


def _number_like(enumeration: type) -> None:
    """Makes the members of an enumeration compare, convert and print as their numbers."""
    own: dict[str, Callable] = {
        "__repr__": lambda self: repr(int(self.value)),
        "__str__": lambda self: str(int(self.value)),
    }
    if issubclass(enumeration, int):
        own = {"__repr__": int.__repr__, "__str__": int.__repr__}
    else:
        own |= {
            "__int__": lambda self: self.value,
            "__index__": lambda self: self.value,
            "__hash__": lambda self: hash(self.value),
            "__eq__": lambda self, other: self.value == (other.value if isinstance(other, enum.Enum) else other),
            "__lt__": lambda self, other: self.value < int(other),
            "__gt__": lambda self, other: self.value > int(other),
        }
    for name, function in own.items():
        setattr(enumeration, name, function)


def _adopt_enumerations(cls: type) -> None:
    """Puts a class's enumerators on the class itself, as Qt 5 had them."""
    for value in list(vars(cls).values()):
        if isinstance(value, type) and issubclass(value, enum.Enum):
            _number_like(value)
            for name, member in value.__members__.items():
                if name not in cls.__dict__:
                    setattr(cls, name, member)


def _adopt_properties(cls: type) -> None:
    meta = cls.staticMetaObject
    found = {}
    for index in range(meta.propertyCount()):
        name = meta.property(index).name()
        # A class that overrides the getter of an inherited property (sizeHint) needs the property anew.
        if (
            index >= meta.propertyOffset()
            or name in originals.members[cls]
            or f"set{name[0].upper()}{name[1:]}" in originals.members[cls]
        ):
            found[name] = QtProperty(cls, meta.property(index))
    for name, attribute in found.items():
        setattr(cls, name, attribute)


def offer(cls: type, described_as: str | None = None) -> None:
    """Hides every public member of a class that Slicer's class of that name lacks, and refuses new attributes.

    Args:
        cls: a PySide6 class, or one of the stand-in's that stands for a C++ class of CTK or Slicer.
        described_as: the name in the description, where it differs.
    """
    name = described_as or cls.__name__
    assert names.members(name) is not None, f"no real Slicer is known to offer {name}"
    _offered[cls] = name
    hidden_names.cache_clear()
    if not issubclass(cls, QtCore.QObject):
        _guard(cls)


def _guard(cls: type) -> None:
    cls.__getattribute__ = _guarded(cls.__getattribute__)
    cls.__getattr__ = _missing_attribute
    cls.__setattr__ = _set_attribute


def adopt_qt() -> None:
    """Changes PySide6's classes; done once in a process."""
    classes = list(qt_classes())
    for cls in classes:
        originals.members[cls] = dict(vars(cls))
    for cls in classes:
        _adopt_enumerations(cls)
    _adopt_enumerations(QtCore.Qt)
    for cls in classes:
        if issubclass(cls, QtCore.QObject):
            for name, value in originals.members[cls].items():
                if type(value) is QtCore.Signal:  # isinstance() on it miscounts a reference in PySide6 on Python 3.11
                    setattr(cls, name, SignalAttribute(name))
            for signature in names.signals(cls.__name__):
                name = signature.partition("(")[0]
                if not isinstance(inspect.getattr_static(cls, name, None), SignalAttribute):
                    setattr(cls, name, SignalAttribute(name))
            _adopt_properties(cls)
    for cls in classes:
        if issubclass(cls, QtCore.QObject):
            _guard(cls)
    _guard_classes()

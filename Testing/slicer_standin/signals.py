"""Signals and slots in PythonQt's manner: by signature or by name, with as many arguments as the slot takes."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore

from . import names
from .originals import connect, disconnect, raw

# Exceptions raised in slots. Qt goes on after them, in Slicer as here, so a test that wants none looks at this list.
slot_errors: list[BaseException] = []
# Connections to C++ signals: address of the sender -> [(signature, slot, Qt's connection)].
_connections: dict[int, list[tuple[str, Any, Any]]] = {}


def _accepted_arguments(slot: Callable) -> int | None:
    """Number of arguments PythonQt hands to ``slot``; None is all (PythonQtSignalReceiver.cpp looks at Python code
    only).
    """
    function, bound = (slot.__func__, 1) if inspect.ismethod(slot) else (slot, 0)
    code = getattr(function, "__code__", None)
    if code is None or code.co_flags & inspect.CO_VARARGS:
        return None
    return code.co_argcount - bound


def call_slot(slot: Callable, arguments: tuple) -> None:
    """Calls a slot the way PythonQt does: surplus arguments are dropped, an exception is printed and the program goes
    on.
    """
    try:
        slot(*arguments[: _accepted_arguments(slot)])
    except Exception as error:
        slot_errors.append(error)
        traceback.print_exc()


def _normalized(signature: str) -> str:
    return bytes(QtCore.QMetaObject.normalizedSignature(signature).data()).decode()


def _cpp_signatures(sender: QtCore.QObject) -> list[str]:
    meta = raw(QtCore.QObject, "metaObject")(sender)
    found = []
    for index in range(meta.methodCount()):
        method = meta.method(index)
        if method.methodType() == QtCore.QMetaMethod.MethodType.Signal:
            found.append(bytes(method.methodSignature().data()).decode())
    return found


# Signals of Qt 5 that Qt 6 lacks: the signature -> (the one of Qt 6, what to make of its arguments given the sender).
_QT5_SIGNALS: dict[str, tuple[str, Callable[[Any, tuple], tuple]]] = {
    "finished(int)": ("finished(int,QProcess::ExitStatus)", lambda sender, arguments: arguments[:1]),
    "error(QProcess::ProcessError)": ("errorOccurred(QProcess::ProcessError)", lambda sender, arguments: arguments),
    "currentIndexChanged(QString)": (
        "currentIndexChanged(int)",
        lambda sender, arguments: (sender.itemText(arguments[0]),),
    ),
    "activated(QString)": ("textActivated(QString)", lambda sender, arguments: arguments),
    "highlighted(QString)": ("textHighlighted(QString)", lambda sender, arguments: arguments),
    "valueChanged(QString)": ("textChanged(QString)", lambda sender, arguments: arguments),
    "buttonClicked(int)": ("idClicked(int)", lambda sender, arguments: arguments),
    "buttonPressed(int)": ("idPressed(int)", lambda sender, arguments: arguments),
    "buttonReleased(int)": ("idReleased(int)", lambda sender, arguments: arguments),
    "buttonToggled(int,bool)": ("idToggled(int,bool)", lambda sender, arguments: arguments),
}


def _listed_signals(sender: Any) -> list[str]:
    """Signatures of the sender's signals, from the most derived class that the description shows."""
    for cls in type(sender).__mro__:
        found = names.signals(cls.__name__)
        if found:
            return found
    return _cpp_signatures(sender)


def _own_signals(sender: Any) -> set[str]:
    """Signatures of the signals that Python classes of the stand-in declare."""
    return {signature for cls in type(sender).__mro__ for signature in cls.__dict__.get("_signals", ())}


def connect_signal(sender: Any, signature: str, slot: Callable) -> bool:
    """Connects a signal, given by its full signature, to a callable.

    Returns:
        False if the sender has no such signal.
    """
    if not callable(slot):
        raise TypeError(f"{slot!r} cannot be connected to {signature}: it is not callable")
    signature = _normalized(signature)
    if signature in _own_signals(sender):
        sender.__dict__.setdefault("_slots", []).append((signature, slot))
        return True
    listed = _listed_signals(sender)
    if signature not in listed:
        return False
    available = _cpp_signatures(sender)
    translate: Callable[[Any, tuple], tuple] | None = None
    qt_signature = signature
    if signature not in available:
        if signature not in _QT5_SIGNALS or _QT5_SIGNALS[signature][0] not in available:
            raise NotImplementedError(f"the stand-in has no signal {signature} of {type(sender).__name__}; Slicer has")
        qt_signature, translate = _QT5_SIGNALS[signature]

    def receive(*arguments: Any) -> None:
        call_slot(slot, translate(sender, arguments) if translate else arguments)

    connection = connect(sender, QtCore.SIGNAL(qt_signature), receive)
    if not connection:
        return False
    address = shiboken6.getCppPointer(sender)[0]
    if address not in _connections:
        _connections[address] = []
        connect(sender, QtCore.SIGNAL("destroyed()"), lambda: _connections.pop(address, None))
    _connections[address].append((signature, slot, connection))
    return True


def disconnect_signal(sender: Any, signature: str, slot: Callable | None = None) -> bool:
    """Undoes one connection to ``slot``, or all of the signal where ``slot`` is None; False if there was none."""
    signature = _normalized(signature)
    found = False
    own = sender.__dict__.get("_slots", [])
    connections = _connections.get(shiboken6.getCppPointer(sender)[0], [])
    for entry in [entry for entry in own if entry[0] == signature and (slot is None or entry[1] == slot)]:
        own.remove(entry)
        found = True
        if slot is not None:
            return True
    for connection in [entry for entry in connections if entry[0] == signature and (slot is None or entry[1] == slot)]:
        disconnect(connection[2])
        connections.remove(connection)
        found = True
        if slot is not None:
            return True
    return found


def emit(sender: Any, signature: str, *arguments: Any) -> None:
    """Emits a signal that a Python class of the stand-in declares in ``_signals``."""
    assert signature in _own_signals(sender), f"{type(sender).__name__} declares no signal {signature}"
    if not shiboken6.isValid(sender) or raw(QtCore.QObject, "signalsBlocked")(sender):
        return
    for connected, slot in list(sender.__dict__.get("_slots", [])):
        if connected == signature:
            call_slot(slot, arguments)


class BoundSignal:
    """What PythonQt gives for ``widget.clicked``: connect, disconnect, emit, and emit by calling."""

    __slots__ = ("_name", "_sender")

    def __init__(self, sender: Any, name: str) -> None:
        self._sender = sender
        self._name = name

    def _signature(self) -> str:
        own = [signature for cls in type(self._sender).__mro__ for signature in cls.__dict__.get("_signals", ())]
        for signature in [*_listed_signals(self._sender), *own]:
            if signature.partition("(")[0] == self._name:
                return signature
        raise AttributeError(f"{type(self._sender).__name__} has no attribute named '{self._name}'")

    def connect(self, slot: Callable) -> bool:
        """Connects the signal to a callable, or to another signal."""
        return connect_signal(self._sender, self._signature(), slot)

    def disconnect(self, slot: Callable | None = None) -> bool:
        """Undoes a connection, or all where no slot is given."""
        return disconnect_signal(self._sender, self._signature(), slot)

    def emit(self, *arguments: Any) -> None:
        """Emits the signal."""
        signature = self._signature()
        if signature in _own_signals(self._sender):
            emit(self._sender, signature, *arguments)
        else:
            bound = raw(type(self._sender), self._name).__get__(self._sender, type(self._sender))
            bound.emit(*arguments)

    def __call__(self, *arguments: Any) -> None:
        self.emit(*arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BoundSignal) and (self._sender, self._name) == (other._sender, other._name)

    def __hash__(self) -> int:
        return hash((id(self._sender), self._name))


class SignalAttribute:
    """Class attribute that turns into a BoundSignal on an object."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else BoundSignal(instance, self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        raise AttributeError(f"Signal '{self._name}' can not be overwritten on {type(instance).__name__} object")


def connect_as_pythonqt(self: Any, signal: str, *target: Any) -> bool:
    """QObject.connect of PythonQt: (signature, callable) or (signature, receiver, slot's signature)."""
    if not isinstance(signal, str) or len(target) not in (1, 2):
        raise ValueError("connect takes a signal's signature and a callable, or a receiver and its slot's signature")
    slot = target[0] if len(target) == 1 else getattr(target[0], target[1].lstrip("12").partition("(")[0])
    done = connect_signal(self, signal.lstrip("12"), slot)
    if not done:
        print(f"Signal {signal} does not exist on {type(self).__name__}")
    return done


def disconnect_as_pythonqt(self: Any, signal: str, *target: Any) -> bool:
    """QObject.disconnect of PythonQt."""
    slot = target[0] if len(target) == 1 else getattr(target[0], target[1].partition("(")[0]) if target else None
    return disconnect_signal(self, signal.lstrip("12"), slot)

"""The module ``qt`` as Slicer's PythonQt offers it: PySide6's classes, changed by pythonqt.py, cut to what the
description lists, with the few methods that Qt 5 or PythonQt has and PySide6 has not.
"""

from __future__ import annotations

import time
import types
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtWidgets

from . import names, originals, pythonqt, signals
from .uiloader import UiLoader

# A dialog that waits for a click would stop a test for good. Tests put the answers here, first in, first out: a value
# to return, or a callable that gets the dialog and returns the value.
dialog_answers: list[Any] = []
# Seconds that a dialog may stay open to close itself (slicer.util.delayDisplay does), before it is an error.
dialog_patience = 5.0


def _class_name(self: Any) -> str:
    if isinstance(self, QtCore.QObject) and type(self).__module__.startswith("PySide6"):
        return originals.raw(QtCore.QObject, "metaObject")(self).className()
    return next(cls.__name__ for cls in type(self).__mro__ if pythonqt.is_cpp_class(cls))


def _inherits(self: Any, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(self).__mro__)


def _delete(self: Any) -> None:
    shiboken6.delete(self)


def _help(self: Any) -> None:
    print(f"{_class_name(self)}: {', '.join(sorted(names.members(_class_name(self)) or []))}")


def _find_children(self: Any, type_: Any = None, name: str = "") -> list:
    """QObject.findChildren of PythonQt: the type is a class or its name; the name "" matches any."""
    found = []
    for child in originals.raw(QtCore.QObject, "children")(self):
        matches = type_ is None or (_inherits(child, type_) if isinstance(type_, str) else isinstance(child, type_))
        if matches and (not name or child.objectName == name):
            found.append(child)
        found += _find_children(child, type_, name)
    return found


def _find_child(self: Any, type_: Any, name: str = "") -> Any:
    found = _find_children(self, type_, name)
    return found[0] if found else None


def _execute(self: QtWidgets.QDialog) -> Any:
    """QDialog.exec: takes its answer from ``dialog_answers``, or waits a little for the dialog to close itself."""
    if dialog_answers:
        answer = dialog_answers.pop(0)
        return answer(self) if callable(answer) else answer
    is_message = isinstance(self, QtWidgets.QMessageBox)
    if not is_message:
        # Not Qt's own loop: slicer.util marks its dialogs for deletion before it opens them, and without a main event
        # loop around it Qt would delete them as soon as another loop starts.
        self.show()
        end = time.monotonic() + dialog_patience
        while self.isVisible() and time.monotonic() < end:
            QtWidgets.QApplication.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 20)
            time.sleep(0.002)
        if not self.isVisible():
            return self.result()
        self.hide()
    title, text = self.windowTitle, self.text if is_message else ""
    raise RuntimeError(
        f"A dialog waits for an answer ({type(self).__name__}: {title!r} {text!r}). Add the answer to "
        "slicer_standin.dialog_answers first."
    )


def _static_answer(name: str) -> Any:
    def ask(*arguments: Any, **keywords: Any) -> Any:
        if not dialog_answers:
            raise RuntimeError(f"{name} waits for an answer. Add it to slicer_standin.dialog_answers first.")
        answer = dialog_answers.pop(0)
        return answer(*arguments, **keywords) if callable(answer) else answer

    return staticmethod(ask)


def _execute_menu(self: QtWidgets.QMenu, *position: Any) -> Any:
    return _static_answer("QMenu.exec").__func__(self, *position)


def _write(self: QtCore.QIODevice, data: Any) -> int:
    """QIODevice.write of PythonQt takes text as well."""
    return originals.raw(QtCore.QProcess, "write")(self, data.encode() if isinstance(data, str) else data)


def _error_string(self: QtCore.QProcess) -> str:
    # Qt 6 names the call that failed "execve", or puts another prefix before the system's words; Qt 5 said execvp.
    text = originals.raw(QtCore.QProcess, "errorString")(self)
    cause = text.rpartition(": ")[2]
    return f"execvp: {cause}" if cause == "No such file or directory" else text


def _byte_array_repr(self: QtCore.QByteArray) -> str:
    text = bytes(self.data()).decode("utf-8", "replace")
    return f"QByteArray ({text}, at: {shiboken6.getCppPointer(self)[0]:#x})"


def _single_shot(milliseconds: int, *target: Any) -> None:
    """QTimer.singleShot of PythonQt: (ms, callable)."""
    timer = QtCore.QTimer(QtWidgets.QApplication.instance())
    timer.setSingleShot(True)
    timer.setInterval(milliseconds)

    def fire() -> None:
        signals.call_slot(target[-1], ())
        timer.deleteLater()

    signals.connect_signal(timer, "timeout()", fire)
    timer.start()


def _name_property() -> property:
    def read(self: Any) -> str:
        return self.objectName

    def write(self: Any, value: str) -> None:
        self.objectName = value

    return property(read, write)


def _extend_qt() -> None:
    """Adds what PythonQt has and PySide6 has not."""
    obj = QtCore.QObject
    for cls in pythonqt.qt_classes():
        if cls is QtCore.QMetaObject:
            continue  # its className is another
        for name, function in {
            "className": _class_name,
            "inherits": _inherits,
            "delete": _delete,
            "help": _help,
        }.items():
            if cls.__base__.__module__ == "Shiboken" or name in vars(cls):
                setattr(cls, name, function)
    obj.findChildren = _find_children
    obj.findChild = _find_child
    obj.name = _name_property()
    QtWidgets.QDialog.exec = QtWidgets.QDialog.exec_ = _execute
    QtWidgets.QMessageBox.exec = QtWidgets.QMessageBox.exec_ = _execute
    for name in ("question", "information", "warning", "critical", "about"):
        setattr(QtWidgets.QMessageBox, name, _static_answer(f"QMessageBox.{name}"))
    for name in ("getOpenFileName", "getOpenFileNames", "getSaveFileName", "getExistingDirectory"):
        setattr(QtWidgets.QFileDialog, name, _static_answer(f"QFileDialog.{name}"))
    QtWidgets.QMenu.exec = QtWidgets.QMenu.exec_ = _execute_menu
    QtWidgets.QApplication.exec_ = QtWidgets.QApplication.exec
    QtCore.QEventLoop.exec_ = QtCore.QEventLoop.exec
    QtCore.QProcess.write = _write
    QtCore.QProcess.errorString = _error_string
    QtCore.QByteArray.__repr__ = _byte_array_repr
    QtCore.QTimer.singleShot = staticmethod(_single_shot)


_module: types.ModuleType | None = None


def qt_module() -> types.ModuleType:
    """Returns the module ``qt``; the first call changes PySide6's classes."""
    global _module
    if _module is not None:
        return _module
    pythonqt.adopt_qt()
    _extend_qt()
    _module = types.ModuleType("qt", "PythonQt's qt module, as far as the stand-in offers it")
    listed = names.listed_classes("qt")
    found = {}
    for name in listed:
        for source in (QtWidgets, QtGui, QtCore):
            if hasattr(source, name):
                found[name] = getattr(source, name)
                break
    for cls in sorted(found.values(), key=lambda cls: len(cls.__mro__)):
        pythonqt.offer(cls)
    for name, cls in found.items():
        setattr(_module, name, cls)
    for name in names.QT_BESIDE_THE_LIST:
        if name != "QUiLoader":
            setattr(_module, name, getattr(QtCore, name))
    _module.QUiLoader = UiLoader
    return _module

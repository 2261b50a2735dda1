"""Loads scripted modules as Slicer does from its additional module paths, and runs their self-tests."""

from __future__ import annotations

import importlib.util
import sys
import unittest
from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtCore, QtWidgets

from .core_modules import qSlicerLoadableModule
from .declare import offered, prop, state
from .qmrml_nodes import qSlicerWidget


@offered("slicer")
class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """The widget in which a scripted module builds its own."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        QtWidgets.QVBoxLayout(self)
        state(self).python, state(self).module_name, state(self).entered = None, "", False

    moduleName = prop("QString", lambda self: state(self).module_name)
    isEntered = prop("bool", lambda self: state(self).entered)

    def _build(self, name: str) -> None:
        """Makes the module's Python widget and sets it up."""
        state(self).module_name = name
        state(self).python = getattr(sys.modules[name], f"{name}Widget")(self)
        setattr(slicer.modules, f"{name}Widget", state(self).python)
        self.setMRMLScene(slicer.mrmlScene)
        state(self).python.setup()

    def reload(self) -> None:
        """Makes the Python widget anew."""
        self._build(state(self).module_name)

    def self(self) -> Any:
        """Returns the Python object of class ``<module>Widget``."""
        return state(self).python

    def enter(self) -> None:
        """Tells the module that it is shown now."""
        state(self).entered = True
        getattr(self.self(), "enter", lambda: None)()

    def exit(self) -> None:
        """Tells the module that it is no longer shown."""
        state(self).entered = False
        getattr(self.self(), "exit", lambda: None)()


@offered("slicer")
class qSlicerScriptedLoadableModule(qSlicerLoadableModule):
    """A scripted module: what slicer.modules has, and the ``parent`` that the module's class fills in."""

    def widgetRepresentation(self) -> Any:
        """Returns the module's widget, which is made at the first call; None where it has none."""
        own = state(self)
        if "widget" not in vars(own):
            own.widget = self.createNewWidgetRepresentation()
        return own.widget

    def createNewWidgetRepresentation(self) -> Any:
        """Returns a widget of the module's own, or None."""
        if not hasattr(sys.modules[self.name], f"{self.name}Widget"):
            return None
        made = qSlicerScriptedLoadableModuleWidget()
        made._build(self.name)
        return made


def _import(path: Path) -> Any:
    if str(path.parent) not in sys.path:  # a real Slicer adds the module's own folder and no other
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def load_module(path: str | Path, enter: bool = True) -> tuple[Any, Any]:
    """Loads a scripted module's file.

    The file is imported under its own name, with its folder on sys.path; its class is given a
    parent to fill in; its widget is built in a widget with a layout and the scene, set up and entered.

    Args:
        path: the module's .py file.
        enter: also call the widget's enter(), as choosing the module does.

    Returns:
        The instance of the module's class, and the instance of its widget's class (None if it has none).
    """
    path = Path(path).resolve()
    name = path.stem
    unload_module(name)
    module = _import(path)
    parent = qSlicerScriptedLoadableModule(name, str(path), slicer.vtkSlicerScriptedLoadableModuleLogic())
    parent.logic().SetMRMLScene(slicer.mrmlScene)
    instance = getattr(module, name)(parent)
    setattr(slicer.modules, name.lower(), parent)
    setattr(slicer.modules, f"{name}Instance", instance)
    setattr(slicer.moduleNames, name, name)
    if hasattr(instance, "setup"):
        instance.setup()
    slicer.app._complete_startup()
    outer = parent.widgetRepresentation()
    if outer is None:
        return instance, None
    if enter:
        outer.enter()
    return instance, outer.self()


def unload_module(name: str) -> None:
    """Ends a module's widget and forgets the module; nothing happens where it is not loaded."""
    parent = getattr(slicer.modules, name.lower(), None)
    if parent is None:
        return
    slicer.app.moduleManager()._unloading(name)
    widget = parent.widgetRepresentation()
    if widget is not None:
        widget.deleteLater()  # processEvents alone would leave it
        QtCore.QCoreApplication.sendPostedEvents(widget, QtCore.QEvent.Type.DeferredDelete)
    for attribute in (name.lower(), f"{name}Instance", f"{name}Widget"):
        vars(slicer.modules).pop(attribute, None)
    sys.modules.pop(name, None)


def run_self_test(name: str) -> unittest.TestResult:
    """Runs the class ``<name>Test`` of a loaded module as Slicer's generic tests do.

    Returns:
        The result of the test.

    Raises:
        AssertionError: the test failed; its text is the report.
    """
    test_class = getattr(sys.modules[name], f"{name}Test")
    result = unittest.TestResult()
    test_class().run(result)
    if not result.wasSuccessful():
        raise AssertionError("\n".join(report for _, report in result.failures + result.errors))
    return result

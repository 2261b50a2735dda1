"""Loads scripted modules as Slicer does from its additional module paths, and runs their self-tests."""

from __future__ import annotations

import importlib.util
import sys
import unittest
from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtWidgets

from .app import qSlicerScriptedLoadableModule
from .declare import offered, state
from .qmrml_nodes import qSlicerWidget


@offered("slicer")
class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """The widget in which a scripted module builds its own."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        QtWidgets.QVBoxLayout(self)

    def self(self) -> Any:
        """Returns the Python object of class ``<module>Widget``."""
        return getattr(state(self), "python", None)

    def enter(self) -> None:
        """Tells the module that it is shown now."""
        getattr(self.self(), "enter", lambda: None)()

    def exit(self) -> None:
        """Tells the module that it is no longer shown."""
        getattr(self.self(), "exit", lambda: None)()


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
    unload_module(path.stem)
    module = _import(path)
    parent = qSlicerScriptedLoadableModule(path.stem, str(path), slicer.vtkSlicerScriptedLoadableModuleLogic())
    parent.logic().SetMRMLScene(slicer.mrmlScene)
    instance = getattr(module, path.stem)(parent)
    parent._parts["self"] = instance
    setattr(slicer.modules, path.stem.lower(), parent)
    setattr(slicer.modules, f"{path.stem}Instance", instance)
    setattr(slicer.moduleNames, path.stem, path.stem)
    if hasattr(instance, "setup"):
        instance.setup()
    slicer.app._complete_startup()
    widget_class = getattr(module, f"{path.stem}Widget", None)
    if widget_class is None:
        return instance, None
    outer = qSlicerScriptedLoadableModuleWidget()
    parent._parts["widget"] = outer
    widget = widget_class(outer)
    state(outer).python = widget
    setattr(slicer.modules, f"{path.stem}Widget", widget)
    outer.setMRMLScene(slicer.mrmlScene)
    widget.setup()
    if enter:
        outer.enter()
    return instance, widget


def unload_module(name: str) -> None:
    """Ends a module's widget and forgets the module; nothing happens where it is not loaded."""
    parent = getattr(slicer.modules, name.lower(), None)
    if parent is None:
        return
    slicer.app.moduleManager()._unloading(name)
    widget = parent.widgetRepresentation()
    if widget is not None:
        widget.deleteLater()
        QtWidgets.QApplication.processEvents()
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

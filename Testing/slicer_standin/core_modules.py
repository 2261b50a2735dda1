"""Modules as ``slicer.modules`` and ``slicer.app.moduleManager()`` have them."""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtCore

from . import names
from .declare import offered, prop, state, stored
from .signals import emit


class Modules:
    """slicer.modules: an attribute for each module, and what modules put there."""

    def __getattr__(self, name: str) -> Any:
        if name in names.application("slicer.modules"):
            raise NotImplementedError(f"the stand-in has no slicer.modules.{name}; Slicer has")
        raise AttributeError(f"module 'modules' has no attribute '{name}'")


@offered("slicer")
class qSlicerLoadableModule(QtCore.QObject):
    """A module with its logic in C++; the stand-in has no widgets of these."""

    def __init__(self, name: str, path: str = "", logic: Any = None) -> None:
        super().__init__()
        state(self).name, state(self).path, state(self).logic = name, path, logic

    title = stored("QString", "title", "")
    categories = stored("QStringList", "categories", ())
    contributors = stored("QStringList", "contributors", ())
    dependencies = stored("QStringList", "dependencies", ())
    associatedNodeTypes = stored("QStringList", "node_types", ())
    helpText = stored("QString", "help", "")
    acknowledgementText = stored("QString", "acknowledgement", "")
    icon = stored("QIcon", "icon", None)
    hidden = stored("bool", "hidden", False)
    index = stored("int", "index", -1)
    widgetRepresentationCreationEnabled = stored("bool", "creates_widget", True)
    name = prop("QString", lambda self: state(self).name)
    path = prop("QString", lambda self: state(self).path)

    def logic(self) -> Any:
        """Returns the module's logic in C++."""
        return state(self).logic

    def mrmlScene(self) -> Any:
        """Returns the scene."""
        return slicer.mrmlScene

    def widgetRepresentation(self) -> Any:
        """Refuses."""
        raise NotImplementedError(f"the stand-in has no widget of the module {self.name}; Slicer has")

    def createNewWidgetRepresentation(self) -> Any:
        """Refuses."""
        return self.widgetRepresentation()


def _all_modules() -> list[qSlicerLoadableModule]:
    return [module for module in vars(slicer.modules).values() if isinstance(module, qSlicerLoadableModule)]


@offered("slicer")
class qSlicerModuleFactoryManager(QtCore.QObject):
    """Knows the modules that are loaded, which are all."""

    def loadedModuleNames(self) -> tuple[str, ...]:
        """Returns the names of all modules."""
        return tuple(module.name for module in _all_modules())

    def isLoaded(self, name: str) -> bool:
        """Whether a module is there."""
        return name in self.loadedModuleNames()

    def loadedModule(self, name: str) -> Any:
        """Returns a module by its name, or None."""
        return next((module for module in _all_modules() if module.name == name), None)


@offered("slicer", ("moduleAboutToBeUnloaded(QString)", "moduleLoaded(QString)"))
class qSlicerModuleManager(QtCore.QObject):
    """Knows the modules."""

    def __init__(self) -> None:
        super().__init__()
        state(self).factories = qSlicerModuleFactoryManager()

    def factoryManager(self) -> qSlicerModuleFactoryManager:
        """Returns what loads modules."""
        return state(self).factories

    def module(self, name: str) -> Any:
        """Returns a module by its name, or None."""
        return state(self).factories.loadedModule(name)

    def modulesNames(self) -> tuple[str, ...]:
        """Returns the names of all modules."""
        return state(self).factories.loadedModuleNames()

    def _unloading(self, name: str) -> None:
        emit(self, "moduleAboutToBeUnloaded(QString)", name)

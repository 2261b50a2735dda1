"""What a real Slicer offers, name by name: reads names.json.gz (written by make_names.py from the description of a
running Slicer) and answers what the strict filter asks. A class that the description lists without members was never
constructed there; what such a class may offer is written down in ``UNCONSTRUCTED``, after the class's header in
Slicer's sources.
"""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path

DATA_FILE = Path(__file__).with_name("names.json.gz")

# Members that Python code can only reach with an underscore after them, as slicer.util does with exec_.
PYTHON_WORDS = frozenset({"exec", "raise", "print", "del"})
# Names every PythonQt object answers to, whether or not the description's list of members shows them; name reads and
# writes objectName (behaviour.json).
ALWAYS = frozenset({"className", "delete", "help", "inherits", "name"})

# Classes that slicer.util and ScriptedLoadableModule themselves use from qt, although the description leaves them out.
QT_BESIDE_THE_LIST = ("Qt", "QDateTime", "QLocale", "QSysInfo", "QUiLoader")

# Own public members of classes that were not constructed in the described Slicer, from their headers in Slicer and CTK.
# Inherited members come from the class named as the base.
UNCONSTRUCTED: dict[str, dict[str, tuple[str, ...]]] = {
    "ctkWidgetsUtils": {"": ("grabWidget",)},
    "qMRMLPlotWidget": {"qMRMLWidget": ("plotView", "plotController", "mrmlPlotViewNode", "setMRMLPlotViewNode")},
    "qMRMLScreenShotDialog": {"QDialog": ("FullLayout", "ThreeD", "Red", "Yellow", "Green")},
    "qMRMLSliceView": {"QWidget": ("scheduleRender", "forceRender")},
    "qMRMLSliceWidget": {
        "qMRMLWidget": ("mrmlSliceNode", "mrmlSliceCompositeNode", "sliceLogic", "sliceView", "fitSliceToBackground")
    },
    "qMRMLTextWidget": {
        "qSlicerWidget": (
            "mrmlTextNode",
            "setMRMLTextNode",
            "mrmlNode",
            "setMRMLNode",
            "mrmlNodeChanged",
            "readOnly",
            "setReadOnly",
            "readOnlyChanged",
            "autoSave",
            "editing",
            "wordWrap",
            "textEditWidget",
        )
    },
    "qMRMLTableWidget": {"qMRMLWidget": ("tableView", "tableController", "mrmlTableViewNode", "setMRMLTableViewNode")},
    "qMRMLThreeDView": {
        "QWidget": ("scheduleRender", "forceRender", "resetFocalPoint", "resetCamera", "mrmlViewNode", "cameraNode")
    },
    "qMRMLThreeDWidget": {"qMRMLWidget": ("threeDView", "mrmlViewNode", "viewLogic")},
    "qSlicerCoreIOManager": {
        "QObject": (
            "allReadableFileExtensions",
            "allWritableFileExtensions",
            "fileType",
            "fileTypes",
            "fileWriterFileType",
            "loadNodes",
            "loadFile",
            "loadScene",
            "saveNodes",
            "addDefaultStorageNodes",
        )
    },
    "qSlicerIOManager": {"qSlicerCoreIOManager": ("openAddDataDialog", "openSaveDataDialog")},
    "qSlicerLayoutManager": {
        "QObject": (
            "activeMRMLThreeDViewNode",
            "activeThreeDRenderer",
            "layout",
            "layoutLogic",
            "mrmlScene",
            "mrmlSliceLogics",
            "mrmlViewLogics",
            "plotViewCount",
            "plotWidget",
            "pauseRender",
            "resumeRender",
            "resetSliceViews",
            "resetThreeDViews",
            "setLayout",
            "sliceViewNames",
            "sliceWidget",
            "tableViewCount",
            "tableWidget",
            "threeDViewCount",
            "threeDWidget",
            "viewport",
            "setViewport",
            "layoutChanged",
            "setMRMLScene",
        )
    },
    "qSlicerLoadableModule": {
        "QObject": (
            "title",
            "name",
            "categories",
            "contributors",
            "dependencies",
            "associatedNodeTypes",
            "helpText",
            "acknowledgementText",
            "icon",
            "hidden",
            "index",
            "path",
            "isInstalled",
            "isBuiltIn",
            "widgetRepresentationCreationEnabled",
            "logic",
            "mrmlScene",
            "widgetRepresentation",
            "createNewWidgetRepresentation",
        )
    },
    "qSlicerModuleFactoryManager": {"QObject": ("loadedModuleNames", "isLoaded", "loadedModule")},
    "qSlicerModuleManager": {
        "QObject": ("module", "modulesNames", "factoryManager", "moduleAboutToBeUnloaded", "moduleLoaded")
    },
    "qSlicerScriptedLoadableModule": {"qSlicerLoadableModule": ()},
    "qSlicerScriptedLoadableModuleWidget": {
        "qSlicerWidget": ("self", "reload", "moduleName", "enter", "exit", "isEntered")
    },
    "qSlicerWidget": {"QWidget": ("mrmlScene", "setMRMLScene", "mrmlSceneChanged")},
    "qSlicerMainWindow": {"QWidget": ("statusBar", "moduleSelector", "pythonConsole", "errorLogWidget")},
    "qSlicerModuleSelectorToolBar": {"QWidget": ("selectModule", "selectedModule", "modulesMenu", "moduleSelected")},
}


@functools.cache
def _data() -> dict:
    return json.loads(gzip.decompress(DATA_FILE.read_bytes()))


def listed_classes(module: str) -> dict:
    """Returns class name -> description, None where the class was never constructed, of ``qt``, ``ctk``, ``slicer``."""
    return _data()["classes"][module]


def _find(name: str) -> dict | None:
    for classes in _data()["classes"].values():
        if name in classes:
            return classes[name]
    return None


@functools.cache
def members(name: str) -> frozenset[str] | None:
    """Returns every public name that the class may offer, or None if no real Slicer is known to have the class."""
    description = _find(name)
    if description is not None:
        offered = set(description["members"]) | set(description["properties"]) | ALWAYS
        offered |= {signature.partition("(")[0] for signature in description["signals"]}
        offered |= {f"{word}_" for word in PYTHON_WORDS & offered}
        return frozenset(offered)
    if name not in UNCONSTRUCTED:
        return None
    ((base, own),) = UNCONSTRUCTED[name].items()
    inherited = members(base) if base else ALWAYS
    assert inherited is not None, f"{name} inherits from {base}, which is not described"
    return inherited | frozenset(own)


def signals(name: str) -> list[str]:
    """Returns the signatures of the class's signals in the order of its meta object; the first of a name is its
    default.
    """
    description = _find(name)
    return description["signals"] if description else []


def python_names(module: str) -> dict[str, list[str] | None]:
    """Returns name -> methods (None for what is not a class) of a Python module of Slicer, such as ``slicer.util``."""
    return _data()["python"][module]


def application(key: str) -> list[str] | dict:
    """Returns a part of application.json: ``slicer``, ``slicer.app`` or ``slicer.modules``."""
    return _data()["application"][key]

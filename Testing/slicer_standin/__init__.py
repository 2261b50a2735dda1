"""Stands in for what PyPI's slicer-core (a real MRML scene, real logics, slicer.util) lacks of a real Slicer: the
modules ``qt`` and ``ctk``, the qMRML widgets, ``slicer.app``, ``slicer.modules``, ``slicer.ScriptedLoadableModule``,
``slicer.parameterNodeWrapper``, ``slicer.packaging``, ``slicer.i18n``, ``slicer.testing``, ``SampleData`` and
``sitkUtils``, so that scripted modules run, and their widgets are clicked, without Slicer.

How to use it in a test::

    import slicer_standin

    slicer_standin.install()  # before any import of qt, ctk or a module's file; cheap the second time
    instance, widget = slicer_standin.load_module("MLIModules/Segmentation/MLISegmentation.py")
    widget.ui.applyButton.click()
    slicer_standin.process_events_until(lambda: not widget.logic.isRunning(), seconds=30)
    slicer_standin.picture.grab(widget, "Testing/Output/MLISegmentation.png")
    slicer_standin.run_self_test("MLISegmentation")

What tests can read and set:

- ``slicer_standin.messages``: (function, text) of each slicer.util.errorDisplay, warningDisplay, confirmOkCancelDisplay
  ... They return what a Slicer under --testing returns (confirmOkCancelDisplay: False, see behaviour.json).
- ``slicer_standin.slot_errors``: exceptions raised in slots, which Qt does not pass on. ``check_slots()`` raises the
  first.
- ``slicer_standin.dialog_answers``: answers for dialogs that would wait for a person; without one, exec() raises.
- ``slicer_standin.packaging_.calls``: what would have been installed.
- ``slicer.app.exit_code``: the code given to slicer.util.exit, or None.

The rules: it holds no behaviour of this project, and a module's file must not import it. It offers only what the
description of a real Slicer shows (names.json.gz, made by make_names.py); any other name raises AttributeError as
PythonQt does. A name that Slicer has and the stand-in has not raises NotImplementedError where it can tell. PySide6's
classes are changed in place (pythonqt.py), so a process that calls install() should not use PySide6 for anything else.

Text needs a font: the system's package fonts-dejavu-core, or matplotlib (picture.ensure_fonts).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

__all__ = [
    "check_slots",
    "dialog_answers",
    "install",
    "load_module",
    "messages",
    "process_events_until",
    "run_self_test",
    "slot_errors",
    "unload_module",
]

# (name of the slicer.util function, text) of each message shown to the user.
messages: list[tuple[str, str]] = []
_installed: dict[str, Any] = {}


def __getattr__(name: str) -> Any:
    """Gives the parts that need Qt and the scene, once install() has been called."""
    if name in ("load_module", "run_self_test", "unload_module"):
        from . import module_loader

        return getattr(module_loader, name)
    if name == "dialog_answers":
        from . import qtlayer

        return qtlayer.dialog_answers
    if name == "slot_errors":
        from . import signals

        return signals.slot_errors
    if name in ("picture", "packaging_"):
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__} has no attribute {name}")


def _module_of(name: str, source: Any, allowed: Any) -> types.ModuleType:
    module = types.ModuleType(name, f"{name}, as far as the stand-in offers it")
    for public in allowed:
        if hasattr(source, public):
            setattr(module, public, getattr(source, public))
    return module


def _print_qt_message(kind: Any, context: Any, text: str) -> None:
    """Prints Qt's warnings, except the one that the offscreen platform gives for every window."""
    if "propagateSizeHints" not in text:
        print(f"Qt: {text}", file=sys.stderr)


def _hold_none() -> None:
    """Keeps Python 3.11 alive: PySide6 6.12 gives back a reference to None that it never took with each call that
    returns nothing, and after some thousand calls None is freed. Python 3.12's None cannot be.
    """
    import ctypes

    if sys.version_info < (3, 12):
        ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40


def _qt_application() -> Any:
    from PySide6 import QtCore, QtGui, QtWidgets

    _hold_none()
    folder = Path(_installed["folder"])
    QtCore.QStandardPaths.setTestModeEnabled(True)
    QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
    for scope in (QtCore.QSettings.Scope.UserScope, QtCore.QSettings.Scope.SystemScope):
        QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, scope, str(folder / "settings"))
    QtCore.QCoreApplication.setOrganizationName("NA-MIC")
    QtCore.QCoreApplication.setApplicationName("Slicer")
    QtCore.qInstallMessageHandler(_print_qt_message)
    application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["Slicer"])
    application.setStyle("Fusion")
    application.setQuitOnLastWindowClosed(False)
    palette = QtGui.QPalette(QtGui.QColor("#efefef"))
    application.setPalette(palette)
    return application


def _end_qt() -> None:
    """Stops Qt's calls into Python before Python ends."""
    from PySide6 import QtCore

    from . import signals

    signals.slot_errors.clear()  # their tracebacks hold widgets, which must go before Qt does
    QtCore.qInstallMessageHandler(None)


def _record_messages(util: Any) -> None:
    def recording(name: str, original: Any) -> Any:
        def recorded(text: str, *arguments: Any, **keywords: Any) -> Any:
            messages.append((name, text))
            return original(text, *arguments, **keywords)

        return recorded

    shown = ("errorDisplay", "warningDisplay", "infoDisplay", "messageBox")
    asked = ("confirmOkCancelDisplay", "confirmYesNoDisplay", "confirmRetryCloseDisplay")
    for name in (*shown, *asked):
        setattr(util, name, recording(name, getattr(util, name)))


def _register_modules() -> None:
    import slicer

    from . import SampleData, declare, names, packaging_, parameternode, qtlayer, scripted, small_modules

    sys.modules["qt"] = qtlayer.qt_module()
    ctk = types.ModuleType("ctk", "CTK's widgets, as far as the stand-in offers them")
    for name, cls in declare.classes["ctk"].items():
        setattr(ctk, name, cls)
    sys.modules["ctk"] = ctk
    for name, cls in declare.classes["slicer"].items():
        setattr(slicer, name, cls)
    made = dict(parameternode.modules())
    made["slicer.ScriptedLoadableModule"] = _module_of(
        "slicer.ScriptedLoadableModule", scripted, names.python_names("slicer.ScriptedLoadableModule")
    )
    made["slicer.packaging"] = _module_of("slicer.packaging", packaging_, names.python_names("slicer.packaging"))
    made["slicer.i18n"] = _module_of("slicer.i18n", small_modules.i18n, names.python_names("slicer.i18n"))
    made["slicer.testing"] = _module_of("slicer.testing", small_modules.testing, names.python_names("slicer.testing"))
    made["sitkUtils"] = _module_of("sitkUtils", small_modules.sitkUtils, names.python_names("sitkUtils"))
    made["SampleData"] = _module_of("SampleData", SampleData, names.python_names("SampleData"))
    for class_name in names.python_names("slicer.ScriptedLoadableModule"):
        setattr(made["SampleData"], class_name, getattr(scripted, class_name))
    # In a real Slicer "from slicer.ScriptedLoadableModule import *" brings exactly the four classes.
    made["slicer.ScriptedLoadableModule"].__all__ = list(names.python_names("slicer.ScriptedLoadableModule"))  # type: ignore[attr-defined]
    for name, module in made.items():
        sys.modules[name] = module
        if name.count(".") == 1 and name.startswith("slicer."):
            # slicer.packaging needs its own import in Slicer too; after that it is an attribute of the package.
            setattr(slicer, name.partition(".")[2], module)


def _refuse_what_is_missing() -> None:
    """Lets the modules say of a class that Slicer has it and the stand-in has not."""
    import slicer

    from . import names

    for name, module in (("qt", sys.modules["qt"]), ("ctk", sys.modules["ctk"]), ("slicer", slicer)):

        def missing(attribute: str, _name: str = name) -> Any:
            if attribute in names.listed_classes(_name):
                raise NotImplementedError(f"the stand-in has no {_name}.{attribute}; Slicer has")
            raise AttributeError(f"module '{_name}' has no attribute '{attribute}'")

        module.__getattr__ = missing  # type: ignore[method-assign]


def _import_slicer() -> types.ModuleType:
    """Imports slicer-core's package ``slicer``, which imports every file it finds in folders named "slicer" on
    sys.path: the folder with this project's tests must not be among them.
    """
    import importlib

    here = Path(__file__).resolve().parent.parent
    before = list(sys.path)
    sys.path[:] = [entry for entry in before if Path(entry or ".").resolve() != here]
    try:
        return importlib.import_module("slicer")
    finally:
        sys.path[:] = before


def _cut_package() -> None:
    """Takes from the package ``slicer`` what slicer-core has there and a Slicer has not: slicer.util's functions, and
    the package's own workings.
    """
    import slicer

    from . import names

    for name in list(vars(slicer)):
        if not name.startswith(("_", "vtk")) and name not in names.application("slicer"):
            delattr(slicer, name)


def install(testing: bool = True, main_window: bool = True) -> None:
    """Makes the process look like Slicer's. A second call with the same arguments only closes nothing and costs
    nothing.

    Args:
        testing: as started with --testing.
        main_window: False is as started with --no-main-window: slicer.app.layoutManager() is None.

    Raises:
        RuntimeError: the process already is a Slicer with other arguments.
    """
    wanted = (testing, main_window)
    if _installed:
        if _installed["arguments"] != wanted:
            raise RuntimeError("The stand-in is already installed with other arguments; use a process of its own")
        import slicer

        slicer.mrmlScene = slicer.app.mrmlScene()
        return
    folder = tempfile.mkdtemp(prefix="slicer-standin-")
    _installed.update(arguments=wanted, folder=folder)
    import atexit
    import shutil

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(_end_qt)
    for name in ("temporary", "cache", "extensions", "share", "settings"):
        os.makedirs(os.path.join(folder, name))

    from . import qtlayer

    application = _qt_application()
    qtlayer.qt_module()
    slicer = _import_slicer()

    from . import core, module_loader, picture, qmrml_numbers, qmrml_segments, qmrml_tables, subject_hierarchy  # noqa: F401
    from .app import Application
    from .core_modules import Modules, qSlicerLoadableModule

    picture.ensure_fonts()
    _cut_package()
    made = core.Core(*(os.path.join(folder, name) for name in ("share", "temporary", "cache")), main_window)
    slicer.mrmlScene = made.scene
    subject_hierarchy.HierarchyKeeper(made.scene)
    slicer.selfTests = {}
    slicer.modules = Modules()
    slicer.moduleNames = types.SimpleNamespace()
    slicer.app = Application(application, made, Path(folder), testing, main_window)
    for name, logic in made.module_logics.items():
        module = qSlicerLoadableModule(made.titles[name].replace(" ", ""), "", logic)
        module.title = made.titles[name]
        setattr(slicer.modules, name, module)
    sample_data = module_loader.qSlicerScriptedLoadableModule(
        "SampleData", str(Path(__file__).with_name("SampleData.py"))
    )
    sample_data.title = "Sample Data"
    slicer.modules.sampledata = sample_data
    slicer.modules.sampleDataSources = {}
    _register_modules()
    _refuse_what_is_missing()
    _record_messages(slicer.util)


def process_events_until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Lets Qt run until a condition holds.

    Raises:
        TimeoutError: it did not hold in time.
    """
    from PySide6 import QtCore, QtWidgets

    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"The condition did not hold within {seconds} s")
        QtWidgets.QApplication.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 20)
        time.sleep(0.002)


def check_slots() -> None:
    """Raises the first exception that a slot raised since the last call; passes where there was none."""
    from . import signals

    errors = list(signals.slot_errors)
    signals.slot_errors.clear()
    if errors:
        raise errors[0]

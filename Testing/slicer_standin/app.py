"""``slicer.app``: what a real Slicer's application object offers, as far as tests need it, on the QApplication."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from PySide6 import QtCore, QtWidgets

from . import names
from .core_modules import qSlicerModuleManager
from .io_manager import qSlicerIOManager
from .layout import qSlicerLayoutManager, qSlicerMainWindow
from .originals import connect
from .signals import SignalAttribute, emit

VERSION = "5.13.0-2026-08-21"


class CommandOptions:
    """What slicer.app.commandOptions() tells of the command line."""

    def __init__(self, testing: bool, main_window: bool) -> None:
        self.testingEnabled = testing
        self.noMainWindow = not main_window
        self.runPythonAndExit = False
        self.pythonCode = ""
        self.pythonScript = ""
        self.extraPythonArguments = ()


class _Signals(QtCore.QObject):
    """The application's own signals, beside those of QApplication."""

    _signals = ("startupCompleted()", "mrmlSceneChanged(vtkMRMLScene*)", "aboutToQuit()")
    startupCompleted = SignalAttribute("startupCompleted")
    mrmlSceneChanged = SignalAttribute("mrmlSceneChanged")


class Application:
    """slicer.app. A name that a real Slicer lacks raises AttributeError; one that only the stand-in lacks,
    NotImplementedError.
    """

    def __init__(self, qt_application: Any, core: Any, folder: Path, testing: bool, main_window: bool) -> None:
        own = self.__dict__
        own["_qt"], own["_core"], own["_folder"] = qt_application, core, folder
        own["_options"] = CommandOptions(testing, main_window)
        own["_io"], own["_manager"] = qSlicerIOManager(), qSlicerModuleManager()
        own["_layout"] = qSlicerLayoutManager(core) if main_window else None
        own["_window"] = qSlicerMainWindow(own["_layout"]) if main_window else None
        own["_settings"] = QtCore.QSettings()
        own["_signals"] = _Signals()
        connect(qt_application, QtCore.SIGNAL("aboutToQuit()"), lambda: emit(own["_signals"], "aboutToQuit()"))
        own["_paused"] = 0
        own["exit_code"] = None

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name == "exit_code" or name in names.application("slicer.app"):
            return object.__getattribute__(self, name)
        raise AttributeError(f"qSlicerApplication has no attribute named '{name}'")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in names.application("slicer.app"):
            raise AttributeError(f"qSlicerApplication has no attribute named '{name}'")
        if hasattr(self._qt, name):
            return getattr(self._qt, name)
        raise NotImplementedError(f"the stand-in has no slicer.app.{name}; Slicer has")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"'{name}' does not exist on qSlicerApplication and creating new attributes is not allowed"
        )

    # -- properties ----------------------------------------------------------------------------------------------------

    applicationName = "Slicer"
    applicationVersion = VERSION
    mainApplicationName = "Slicer"
    majorVersion = 5
    minorVersion = 13
    mainApplicationMajorVersion = 5
    mainApplicationMinorVersion = 13
    releaseType = "Preview"
    repositoryRevision = "stand-in"
    revision = "stand-in"
    documentationBaseUrl = "https://slicer.readthedocs.io/en/latest/"
    documentationVersion = "latest"
    documentationLanguage = "en"
    isInstalled = True
    os = platform.system().lower()
    arch = platform.machine()
    platform = f"{platform.system().lower()}-{platform.machine()}"

    @property
    def temporaryPath(self) -> str:
        """Folder for temporary files."""
        return str(self._folder / "temporary")

    @property
    def slicerHome(self) -> str:
        """Folder of the application."""
        return str(self._folder)

    @property
    def cachePath(self) -> str:
        """Folder of downloaded files."""
        return str(self._folder / "cache")

    @property
    def extensionsInstallPath(self) -> str:
        """Folder of installed extensions."""
        return str(self._folder / "extensions")

    @property
    def slicerUserSettingsFilePath(self) -> str:
        """File of the settings."""
        return self._settings.fileName()

    startupCompleted = property(lambda self: self._signals.startupCompleted)
    mrmlSceneChanged = property(lambda self: self._signals.mrmlSceneChanged)

    def connect(self, signal: str, slot: Any) -> bool:
        """Connects a signal of the application."""
        own = signal in _Signals._signals
        return (self._signals if own else self._qt).connect(signal, slot)

    def disconnect(self, signal: str, *slot: Any) -> bool:
        """Undoes connect."""
        own = signal in _Signals._signals
        return (self._signals if own else self._qt).disconnect(signal, *slot)

    def _complete_startup(self) -> None:
        """Announces once, to each that waits for it, that all modules are loaded."""
        emit(self._signals, "startupCompleted()")
        self._signals.disconnect("startupCompleted()")

    # -- methods -------------------------------------------------------------------------------------------------------

    def testingEnabled(self) -> bool:
        """Whether Slicer was started with --testing."""
        return self._options.testingEnabled

    def commandOptions(self) -> CommandOptions:
        """Returns the options of the command line."""
        return self._options

    def mrmlScene(self) -> Any:
        """Returns the scene."""
        return self._core.scene

    def applicationLogic(self) -> Any:
        """Returns the application logic."""
        return self._core.logic

    def moduleLogic(self, name: str) -> Any:
        """Returns a module's logic by the module's name."""
        return self._core.logic.GetModuleLogic(name)

    def moduleManager(self) -> qSlicerModuleManager:
        """Returns what knows the modules."""
        return self._manager

    def coreIOManager(self) -> qSlicerIOManager:
        """Returns what reads and writes files."""
        return self._io

    def ioManager(self) -> qSlicerIOManager:
        """Returns what reads and writes files."""
        return self._io

    def layoutManager(self) -> Any:
        """Returns the layout manager, or None without a main window."""
        return self._layout

    def userSettings(self) -> QtCore.QSettings:
        """Returns the user's settings."""
        return self._settings

    def settings(self) -> QtCore.QSettings:
        """Returns the user's settings."""
        return self._settings

    def revisionUserSettings(self) -> QtCore.QSettings:
        """Returns the user's settings."""
        return self._settings

    def setOverrideCursor(self, cursor: Any) -> None:
        """Shows another cursor until restoreOverrideCursor."""
        QtWidgets.QApplication.setOverrideCursor(cursor)

    def processEvents(self, *arguments: Any) -> None:
        """Lets Qt handle what has happened, among it deletions that were put off."""
        QtWidgets.QApplication.processEvents(*arguments)

    def translate(self, context: str, text: str, disambiguation: str | None = None, n: int = -1) -> str:
        """Returns the text: no translation is installed."""
        return text

    def startupEnvironment(self) -> QtCore.QProcessEnvironment:
        """Returns the environment in which the application was started."""
        return QtCore.QProcessEnvironment.systemEnvironment()

    def environment(self) -> QtCore.QProcessEnvironment:
        """Returns the environment of the application."""
        return QtCore.QProcessEnvironment.systemEnvironment()

    def pauseRender(self) -> None:
        """Stops drawing until as many calls of resumeRender."""
        self.__dict__["_paused"] += 1
        self._core.logic.PauseRender()

    def resumeRender(self) -> None:
        """Undoes one pauseRender."""
        self.__dict__["_paused"] -= 1
        self._core.logic.ResumeRender()

    def renderPaused(self) -> bool:
        """Whether drawing is stopped."""
        return self._paused > 0

    def setRenderPaused(self, paused: bool) -> None:
        """Stops drawing, or undoes it."""
        (self.pauseRender if paused else self.resumeRender)()

    def moduleDocumentationUrl(self, name: str) -> str:
        """Returns where a module's documentation lies."""
        return f"{self.documentationBaseUrl}user_guide/modules/{name.lower()}.html"

    def exit(self, code: int = 0) -> None:
        """Notes the exit code (``slicer.app.exit_code``) and ends Qt's event loop, if one runs."""
        self.__dict__["exit_code"] = code
        QtWidgets.QApplication.exit(code)

    def quit(self) -> None:
        """Ends with exit code 0."""
        self.exit(0)

    def restart(self) -> None:
        """Refuses: a test cannot start anew."""
        raise RuntimeError("slicer.app.restart() was called")

    def openUrl(self, url: str) -> bool:
        """Does not open a browser."""
        return False

    def toSlicerHomeAbsolutePath(self, path: str) -> str:
        """Returns an absolute path."""
        return path if os.path.isabs(path) else os.path.join(self.slicerHome, path)

    def applicationDirPath(self) -> str:
        """Returns the folder of the program."""
        return os.path.dirname(sys.executable)

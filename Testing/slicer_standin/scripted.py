"""``slicer.ScriptedLoadableModule``: the four base classes of a scripted module, after Slicer's interface."""

from __future__ import annotations

import importlib
import logging
import os
import unittest
from typing import Any

import slicer


class ScriptedLoadableModule:
    """Base of a module's description."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title = ""
        parent.categories = []
        parent.dependencies = []
        parent.contributors = ["Contributor of the module"]
        parent.helpText = ""
        parent.acknowledgementText = ""
        for extension in (".svg", ".png"):
            icon = os.path.join(os.path.dirname(parent.path), "Resources", "Icons", self.moduleName + extension)
            if os.path.isfile(icon):
                import qt

                parent.icon = qt.QIcon(icon)
                break
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, filename: str) -> str:
        """Returns the path of a file in the module's folder Resources."""
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        """Returns a paragraph of help text that links to the module's documentation."""
        url = (
            slicer.app.documentationBaseUrl + docPage if docPage else slicer.app.moduleDocumentationUrl(self.moduleName)
        )
        return f'<p>For more information, see the <a href="{url}">online documentation</a>.</p>'

    def runTest(self, msec: int = 100, **kwargs: Any) -> None:
        """Runs the class ``<module>Test`` of the module's file."""
        module = importlib.import_module(type(self).__module__)
        class_name = f"{self.moduleName}Test"
        if not hasattr(module, class_name):
            raise AssertionError(f"Test case class not found: {module.__name__}.{class_name}")
        test = getattr(module, class_name)()
        test.messageDelay = msec
        test.runTest(**kwargs)


class ScriptedLoadableModuleWidget:
    """Base of a module's widget."""

    def __init__(self, parent: Any = None) -> None:
        import qt

        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = slicer.util.settingsValue("Developer/DeveloperMode", False, converter=slicer.util.toBool)
        self.parent = parent
        if not parent:
            self.parent = slicer.qMRMLWidget()
            self.parent.setLayout(qt.QVBoxLayout())
            self.parent.setMRMLScene(slicer.mrmlScene)
        self.layout = self.parent.layout()
        if not parent:
            self.setup()
            self.parent.show()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename: str) -> str:
        """Returns the path of a file in the module's folder Resources."""
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def setup(self) -> None:
        """Builds the widget; derived classes extend it."""
        self.setupDeveloperSection()

    def cleanup(self) -> None:
        """Called before the module is unloaded; derived classes override it."""

    def _onModuleAboutToBeUnloaded(self, moduleName: str) -> None:
        if moduleName == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def setupDeveloperSection(self) -> None:
        """Adds the buttons for developers, in developer mode."""
        if not self.developerMode:
            return
        import ctk
        import qt

        section = ctk.ctkCollapsibleButton()
        section.text = "Reload && Test"
        self.layout.addWidget(section)
        form = qt.QFormLayout(section)
        for text, slot in (("Reload", self.onReload), ("Reload and Test", self.onReloadAndTest), ("Test", self.onTest)):
            button = qt.QPushButton(text)
            button.connect("clicked()", slot)
            form.addRow(button)

    def onReload(self) -> None:
        """Loads the module's file anew."""
        slicer.util.reloadScriptedModule(self.moduleName)

    def onTest(self, **kwargs: Any) -> None:
        """Runs the module's self-test."""
        with slicer.util.tryWithErrorDisplay("Test failed."):
            slicer.selfTests[self.moduleName](msec=100, **kwargs)

    def onReloadAndTest(self, **kwargs: Any) -> None:
        """Loads the module's file anew and runs its self-test."""
        with slicer.util.tryWithErrorDisplay("Reload and Test failed."):
            self.onReload()
            slicer.selfTests[self.moduleName](msec=100, **kwargs)

    def onEditSource(self) -> None:
        """Opens the module's file in an editor."""
        raise NotImplementedError("The stand-in has no editor")


class ScriptedLoadableModuleLogic:
    """Base of a module's logic."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getAllParameterNodes(self) -> list:
        """Returns all parameter nodes of the module in the scene."""
        count = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode")
        nodes = [slicer.mrmlScene.GetNthNodeByClass(index, "vtkMRMLScriptedModuleNode") for index in range(count)]
        return [node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName]

    def getParameterNode(self) -> Any:
        """Returns the module's first parameter node, which is made if there is none."""
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
            if node is not None:
                if node.GetAttribute("ModuleName") != self.moduleName:
                    # Closing the scene resets singleton nodes, and with them this attribute.
                    node.SetAttribute("ModuleName", self.moduleName)
                return node
        else:
            found = self.getAllParameterNodes()
            if found:
                return found[0]
        return slicer.mrmlScene.AddNode(self.createParameterNode())

    def createParameterNode(self) -> Any:
        """Returns a new parameter node, not yet in the scene."""
        if slicer.mrmlScene is None:
            return None
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """Base of a module's self-test."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.moduleTestNames: list[str] = []
        super().__init__(*args, **kwargs)
        self.enableScreenshots = False
        self.screenshotScaleFactor = 1.0
        if not self.moduleTestNames:
            self.moduleTestNames = [name for name in dir(self) if "test" in name and callable(getattr(self, name))]

    def delayDisplay(self, message: str, requestedDelay: int | None = None, msec: int | None = None) -> None:
        """Logs a message and lets Qt catch up."""
        delay = getattr(self, "messageDelay", msec if msec is not None else requestedDelay)
        slicer.util.delayDisplay(message, 100 if delay is None else delay)

    def takeScreenshot(self, name: str, description: str, type: int = -1) -> None:
        """Logs a message; pictures are taken by picture.py."""
        self.delayDisplay(description)
        if self.enableScreenshots:
            raise NotImplementedError("The stand-in takes pictures of widgets with slicer_standin.picture.grab")

    def setUp(self) -> None:
        """Prepares each test."""

    def tearDown(self) -> None:
        """Ends each test."""

    def runTest(self) -> None:
        """Runs all methods whose name contains "test"; derived classes may override it."""
        if not self.moduleTestNames:
            logging.warning("No test is defined in " + type(self).__name__)
            return
        self.setUpClass()
        for name in self.moduleTestNames:
            self.setUp()
            logging.info(f"Running {name}")
            getattr(self, name)()
            self.tearDown()
        self.tearDownClass()

"""The main window's views: qSlicerLayoutManager with slice, 3D, table and plot widgets, and qSlicerMainWindow. Nothing
is rendered; the nodes and the slice logics are real.
"""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtCore, QtWidgets

from .declare import offered, state
from .qmrml_nodes import qMRMLWidget
from .qmrml_tables import qMRMLPlotWidget, qMRMLTableWidget
from .scene_events import NodeObserver
from .signals import emit


@offered("slicer")
class qMRMLSliceView(QtWidgets.QWidget):
    """The view inside a slice widget."""

    def scheduleRender(self) -> None:
        """Nothing is drawn."""

    def forceRender(self) -> None:
        """Nothing is drawn."""


@offered("slicer")
class qMRMLSliceWidget(qMRMLWidget):
    """A slice view."""

    def __init__(self, logic: Any = None, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        state(self).logic = logic
        state(self).view = qMRMLSliceView(self)

    def sliceLogic(self) -> Any:
        """Returns the slice logic."""
        return state(self).logic

    def mrmlSliceNode(self) -> Any:
        """Returns the slice node."""
        return state(self).logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> Any:
        """Returns the node that says which volumes are shown."""
        return state(self).logic.GetSliceCompositeNode()

    def sliceView(self) -> qMRMLSliceView:
        """Returns the view."""
        return state(self).view

    def fitSliceToBackground(self) -> None:
        """Fits the field of view to the background volume."""
        state(self).logic.FitSliceToBackground()


@offered("slicer")
class qMRMLThreeDView(QtWidgets.QWidget):
    """The view inside a 3D widget."""

    def __init__(self, node: Any = None, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        state(self).node = node

    def mrmlViewNode(self) -> Any:
        """Returns the view node."""
        return state(self).node

    def scheduleRender(self) -> None:
        """Nothing is drawn."""

    def forceRender(self) -> None:
        """Nothing is drawn."""

    def resetFocalPoint(self) -> None:
        """Nothing is drawn."""

    def resetCamera(self) -> None:
        """Nothing is drawn."""


@offered("slicer")
class qMRMLThreeDWidget(qMRMLWidget):
    """A 3D view."""

    def __init__(self, logic: Any = None, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        state(self).logic = logic
        state(self).view = qMRMLThreeDView(logic.GetViewNode() if logic is not None else None, self)

    def viewLogic(self) -> Any:
        """Returns the view's logic."""
        return state(self).logic

    def mrmlViewNode(self) -> Any:
        """Returns the view node."""
        return state(self).logic.GetViewNode()

    def threeDView(self) -> qMRMLThreeDView:
        """Returns the view."""
        return state(self).view


def _is_there(widget: qMRMLSliceWidget) -> bool:
    """Whether the view's node is in the scene: a view goes with its node."""
    return widget.mrmlSliceNode().GetScene() is not None


@offered("slicer", ("layoutChanged(int)",))
class qSlicerLayoutManager(QtCore.QObject):
    """The views of the main window."""

    def __init__(self, core: Any) -> None:
        super().__init__()
        own = state(self)
        own.core, own.widgets = core, {}
        logics = [core.slice_logics.GetItemAsObject(index) for index in range(core.slice_logics.GetNumberOfItems())]
        own.slices = {logic.GetSliceNode().GetName(): qMRMLSliceWidget(logic) for logic in logics}
        own.threed = [qMRMLThreeDWidget(core.view_logics.GetItemAsObject(0))]
        own.observer = NodeObserver(self, self._map_views)
        own.observer.observe(self._layout_node())
        self._map_views()

    def _layout_node(self) -> Any:
        return self.mrmlScene().GetFirstNodeByClass("vtkMRMLLayoutNode")

    def mrmlScene(self) -> Any:
        """Returns the scene."""
        return state(self).core.scene

    def sliceViewNames(self) -> tuple[str, ...]:
        """Returns the names of the slice views."""
        return tuple(sorted(name for name, widget in state(self).slices.items() if _is_there(widget)))

    def sliceWidget(self, name: str) -> Any:
        """Returns a slice view, or None."""
        return state(self).slices.get(name)

    def mrmlSliceLogics(self) -> Any:
        """Returns the slice logics, as a vtkCollection."""
        return state(self).core.slice_logics

    def mrmlViewLogics(self) -> Any:
        """Returns the logics of the 3D views, as a vtkCollection."""
        return state(self).core.view_logics

    def resetSliceViews(self) -> None:
        """Fits each slice view to its volumes."""
        for widget in state(self).slices.values():
            widget.sliceLogic().FitSliceToAll()

    def resetThreeDViews(self) -> None:
        """Nothing is drawn."""

    def _mapped(self, class_name: str) -> list:
        """View nodes of a class that the layout shows."""
        nodes = state(self).core.layout_logic.GetViewNodes()
        shown = [nodes.GetItemAsObject(index) for index in range(nodes.GetNumberOfItems())]
        return [node for node in shown if node.IsA(class_name)]

    def _map_views(self) -> None:
        """Tells the view nodes whether the layout shows them; makes the slice views that a layout brings with it."""
        shown = self._mapped("vtkMRMLAbstractViewNode")
        own = state(self)
        for node in shown:
            known = own.slices.get(node.GetLayoutName()) if node.IsA("vtkMRMLSliceNode") else None
            if node.IsA("vtkMRMLSliceNode") and (known is None or not _is_there(known)):
                own.slices[node.GetLayoutName()] = qMRMLSliceWidget(own.core.add_slice_logic(node))
        scene = self.mrmlScene()
        for index in range(scene.GetNumberOfNodesByClass("vtkMRMLAbstractViewNode")):
            node = scene.GetNthNodeByClass(index, "vtkMRMLAbstractViewNode")
            node.SetMappedInLayout(node in shown)

    threeDViewCount = property(lambda self: len(state(self).threed))
    tableViewCount = property(lambda self: len(self._mapped("vtkMRMLTableViewNode")))
    plotViewCount = property(lambda self: len(self._mapped("vtkMRMLPlotViewNode")))

    def threeDWidget(self, index: int) -> Any:
        """Returns a 3D view, or None."""
        return state(self).threed[index] if 0 <= index < len(state(self).threed) else None

    def _widget(self, class_name: str, index: int, make: Any) -> Any:
        nodes = self._mapped(class_name)
        if not 0 <= index < len(nodes):
            return None
        kept = state(self).widgets
        if nodes[index].GetID() not in kept:
            kept[nodes[index].GetID()] = make(nodes[index])
        return kept[nodes[index].GetID()]

    def tableWidget(self, index: int) -> Any:
        """Returns a table view of the layout, or None."""

        def make(node: Any) -> qMRMLTableWidget:
            widget = qMRMLTableWidget()
            widget.setMRMLTableViewNode(node)
            return widget

        return self._widget("vtkMRMLTableViewNode", index, make)

    def plotWidget(self, index: int) -> Any:
        """Returns a plot view of the layout, or None."""

        def make(node: Any) -> qMRMLPlotWidget:
            widget = qMRMLPlotWidget()
            widget.setMRMLPlotViewNode(node)
            return widget

        return self._widget("vtkMRMLPlotViewNode", index, make)

    def layoutLogic(self) -> Any:
        """Returns the logic that keeps the view nodes in step with the layout."""
        return state(self).core.layout_logic

    def setLayout(self, layout: int) -> None:
        """Sets the layout by its number."""
        if layout != self.layout:
            self._layout_node().SetViewArrangement(int(layout))
            emit(self, "layoutChanged(int)", int(layout))

    layout = property(lambda self: self._layout_node().GetViewArrangement())

    def activeMRMLThreeDViewNode(self) -> Any:
        """Returns the node of the first 3D view."""
        return state(self).threed[0].mrmlViewNode()


@offered("slicer", ("moduleSelected(QString)",))
class qSlicerModuleSelectorToolBar(QtWidgets.QWidget):
    """The chooser of modules."""

    def selectModule(self, name: str) -> None:
        """Leaves the shown module and enters another."""
        if getattr(slicer.modules, name.lower(), None) is None:
            return
        own = state(self)
        before = getattr(own, "selected", "")
        if before == name:
            return
        for module_name, method in ((before, "exit"), (name, "enter")):
            module = getattr(slicer.modules, module_name.lower(), None) if module_name else None
            widget = module.widgetRepresentation() if module is not None else None
            if widget is not None:
                getattr(widget, method)()
        own.selected = name
        emit(self, "moduleSelected(QString)", name)

    selectedModule = property(lambda self: getattr(state(self), "selected", ""))


@offered("slicer")
class qSlicerMainWindow(QtWidgets.QWidget):
    """The main window, which holds the chooser of modules and no pictures."""

    def __init__(self, layout: qSlicerLayoutManager) -> None:
        super().__init__()
        self.objectName = "qSlicerMainWindow"
        state(self).selector = qSlicerModuleSelectorToolBar(self)
        state(self).status = None

    def moduleSelector(self) -> qSlicerModuleSelectorToolBar:
        """Returns the chooser of modules."""
        return state(self).selector

    def statusBar(self) -> Any:
        """Returns the status bar."""
        if state(self).status is None:
            state(self).status = QtWidgets.QStatusBar(self)
        return state(self).status

"""Slicer's widgets for tables, plots, texts and the subject hierarchy: qMRMLTableView, qMRMLTableWidget, qMRMLPlotView,
qMRMLPlotWidget, qMRMLTextWidget, qMRMLSubjectHierarchyComboBox.
"""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from .ctk_choices import ctkComboBox
from .declare import offered, state, stored
from .qmrml_nodes import HoldsScene, qMRMLWidget, qSlicerWidget
from .scene_events import NodeObserver, SceneWatcher
from .signals import emit


@offered("slicer", ("mrmlSceneChanged(vtkMRMLScene*)", "selectionChanged()"))
class qMRMLTableView(HoldsScene, QtWidgets.QTableView):
    """A table node as a table."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        own = state(self)
        own.node, own.model, own.filling = None, QtGui.QStandardItemModel(self), False
        own.observer = NodeObserver(self, self._fill)
        self.setModel(own.model)
        self.horizontalHeader().setStretchLastSection(True)
        own.model.connect("itemChanged(QStandardItem*)", self._on_item)

    transposed = stored("bool", "transposed", False, lambda self: self._fill())
    firstRowLocked = stored("bool", "first_row", False, lambda self: self._fill())
    firstColumnLocked = stored("bool", "first_column", False, lambda self: self._fill())

    def mrmlTableNode(self) -> Any:
        """Returns the table node, or None."""
        return state(self).node

    def setMRMLTableNode(self, node: Any) -> None:
        """Sets the table node that is shown."""
        state(self).node = node
        state(self).observer.observe(node)
        self._fill()

    def _fill(self) -> None:
        own = state(self)
        own.filling = True
        own.model.clear()
        table = own.node.GetTable() if own.node is not None else None
        if table is not None:
            rows, columns = table.GetNumberOfRows(), table.GetNumberOfColumns()
            names = [table.GetColumnName(column) for column in range(columns)]
            cells = [[table.GetValue(row, column).ToString() for column in range(columns)] for row in range(rows)]
            if self.transposed:
                cells = [list(row) for row in zip(*cells, strict=True)] if cells else []
                own.model.setVerticalHeaderLabels(names)
            for row in cells:
                own.model.appendRow([QtGui.QStandardItem(text) for text in row])
            if self.transposed:
                own.model.setVerticalHeaderLabels(names)
            else:
                own.model.setHorizontalHeaderLabels(names)
            for row in range(own.model.rowCount()):
                for column in range(own.model.columnCount()):
                    own.model.item(row, column).setEditable(not own.node.GetLocked())
        self.resizeColumnsToContents()
        own.filling = False

    def _on_item(self, item: Any) -> None:
        own = state(self)
        if own.filling or own.node is None:
            return
        place = (item.column(), item.row()) if self.transposed else (item.row(), item.column())
        own.node.SetCellText(*place, item.text())

    def setTransposed(self, transposed: bool) -> None:
        """Shows rows as columns."""
        self.transposed = transposed


@offered("slicer")
class qMRMLTableWidget(qMRMLWidget):
    """A table view of the layout, without its controls."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        own = state(self)
        own.view, own.node = qMRMLTableView(self), None
        own.observer = NodeObserver(self, self._show)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(own.view)

    def tableView(self) -> qMRMLTableView:
        """Returns the table."""
        return state(self).view

    def mrmlTableViewNode(self) -> Any:
        """Returns the view node."""
        return state(self).node

    def setMRMLTableViewNode(self, node: Any) -> None:
        """Sets the view node, which names the table."""
        state(self).node = node
        state(self).observer.observe(node)
        self._show()

    def _show(self) -> None:
        node = state(self).node
        state(self).view.setMRMLTableNode(node.GetTableNode() if node is not None else None)


# Colours of the axes and their labels.
_INK = QtGui.QColor("#404040")


@offered("slicer", ("mrmlSceneChanged(vtkMRMLScene*)", "dataSelected(vtkStringArray*,vtkCollection*)"))
class qMRMLPlotView(HoldsScene, QtWidgets.QWidget):
    """A plot chart, drawn plainly: bars, lines and points with their axes."""

    title = stored("QString", "title", "", lambda self: self.update())

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        state(self).view_node = None
        state(self).view_observer = NodeObserver(self, self._on_view)
        state(self).chart_observer = NodeObserver(self, self._repaint)
        self.setMinimumSize(160, 120)

    def setMRMLPlotViewNode(self, node: Any) -> None:
        """Sets the view node, which names the chart."""
        state(self).view_node = node
        state(self).view_observer.observe(node)
        self._on_view()

    def _on_view(self) -> None:
        state(self).chart_observer.observe(self._chart())
        self._repaint()

    def _repaint(self) -> None:
        self.update()

    def _chart(self) -> Any:
        return state(self).view_node.GetPlotChartNode() if state(self).view_node is not None else None

    def fitToContent(self) -> None:
        """The axes always fit."""
        self.update()

    def _series(self) -> list[tuple[Any, list[float], list[float], list[str]]]:
        chart = self._chart()
        found = []
        for index in range(chart.GetNumberOfPlotSeriesNodes() if chart is not None else 0):
            node = chart.GetNthPlotSeriesNode(index)
            table = node.GetTableNode().GetTable() if node.GetTableNode() is not None else None
            values = table.GetColumnByName(node.GetYColumnName()) if table is not None else None
            if values is None:
                continue
            y = [table.GetValueByName(row, node.GetYColumnName()).ToDouble() for row in range(table.GetNumberOfRows())]
            has_x = bool(node.GetXColumnName()) and table.GetColumnByName(node.GetXColumnName()) is not None
            names = [table.GetValueByName(row, node.GetXColumnName()) for row in range(len(y))] if has_x else []
            x = (
                [name.ToDouble() for name in names]
                if node.IsXColumnRequired() and has_x
                else list(map(float, range(len(y))))
            )
            labels = (
                [table.GetValueByName(row, node.GetLabelColumnName()).ToString() for row in range(len(y))]
                if (node.GetLabelColumnName())
                else []
            )
            found.append((node, x, y, labels))
        return found

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        """Draws the chart."""
        painter = QtGui.QPainter(self)
        painter.fillRect(self.rect, QtGui.QColor("white"))
        painter.setPen(_INK)
        chart, series = self._chart(), self._series()
        area = QtCore.QRect(50, 26, max(self.width - 66, 10), max(self.height - 62, 10))
        if chart is not None and chart.GetTitle():
            painter.drawText(QtCore.QRect(0, 2, self.width, 22), int(QtCore.Qt.AlignCenter), chart.GetTitle())
        painter.drawRect(area)
        if series:
            self._draw(painter, area, series)
        painter.end()

    def _draw(self, painter: QtGui.QPainter, area: QtCore.QRect, series: list) -> None:
        bars = [entry for entry in series if entry[0].GetPlotType() == slicer.vtkMRMLPlotSeriesNode.PlotTypeBar]
        xs = [value for _, x, _, _ in series for value in x]
        ys = [value for _, _, y, _ in series for value in y]
        low, high = min([*ys, 0.0] if bars else ys), max(ys)
        left, right = (min(xs) - 0.5, max(xs) + 0.5) if bars else (min(xs), max(xs))
        high, right = (high if high > low else low + 1), (right if right > left else left + 1)

        def place(x: float, y: float) -> QtCore.QPointF:
            return QtCore.QPointF(
                area.left() + (x - left) / (right - left) * area.width(),
                area.bottom() - (y - low) / (high - low) * area.height(),
            )

        for index, (node, x, y, labels) in enumerate(series):
            color = QtGui.QColor.fromRgbF(*node.GetColor())
            painter.setPen(color)
            painter.setBrush(color)
            if node in [entry[0] for entry in bars]:
                width = 0.8 / len(bars)
                for px, py in zip(x, y, strict=True):
                    start = px - 0.4 + index * width
                    painter.drawRect(QtCore.QRectF(place(start, py), place(start + width, min(max(low, 0.0), high))))
            else:
                points = [place(px, py) for px, py in zip(x, y, strict=True)]
                painter.drawPolyline(points)
            painter.setPen(_INK)
            for px, text in zip(x, labels if index == 0 else [], strict=False):
                box = QtCore.QRectF(place(px, low).x() - 50, area.bottom() + 3, 100, 16)
                painter.drawText(box, int(QtCore.Qt.AlignHCenter), text)
        for value in (low, high):
            box = QtCore.QRectF(0, place(left, value).y() - 8, area.left() - 4, 16)
            painter.drawText(box, int(QtCore.Qt.AlignRight | QtCore.Qt.AlignVCenter), f"{value:.3g}")


@offered("slicer")
class qMRMLPlotWidget(qMRMLWidget):
    """A plot view with its controls, which the stand-in leaves out."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        state(self).view = qMRMLPlotView(self)
        state(self).node = None
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(state(self).view)

    def plotView(self) -> qMRMLPlotView:
        """Returns the plot view."""
        return state(self).view

    def mrmlPlotViewNode(self) -> Any:
        """Returns the view node."""
        return state(self).node

    def setMRMLPlotViewNode(self, node: Any) -> None:
        """Sets the view node."""
        state(self).node = node
        state(self).view.setMRMLPlotViewNode(node)

    def _scene_changed(self) -> None:
        state(self).view.setMRMLScene(self.mrmlScene())


@offered("slicer", ("mrmlNodeChanged(vtkMRMLNode*)", "readOnlyChanged(bool)"))
class qMRMLTextWidget(qSlicerWidget):
    """A text node as text."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        own = state(self)
        own.node, own.edit = None, QtWidgets.QTextEdit(self)
        own.observer = NodeObserver(self, self._show)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(own.edit)

    def _on_read_only(self) -> None:
        state(self).edit.setReadOnly(self.readOnly)
        emit(self, "readOnlyChanged(bool)", self.readOnly)

    readOnly = stored("bool", "read_only", False, _on_read_only)

    def setReadOnly(self, read_only: bool) -> None:
        """Shows the text without letting it be edited."""
        self.readOnly = read_only

    def textEditWidget(self) -> Any:
        """Returns the text edit inside."""
        return state(self).edit

    def mrmlNode(self) -> Any:
        """Returns the text node, or None."""
        return state(self).node

    def mrmlTextNode(self) -> Any:
        """Returns the text node, or None."""
        return state(self).node

    def setMRMLTextNode(self, node: Any) -> None:
        """Sets the text node."""
        state(self).node = node
        state(self).observer.observe(node)
        self._show()
        emit(self, "mrmlNodeChanged(vtkMRMLNode*)", node)

    def setMRMLNode(self, node: Any) -> None:
        """Sets the text node."""
        self.setMRMLTextNode(node)

    def _show(self) -> None:
        node = state(self).node
        state(self).edit.setPlainText(node.GetText() if node is not None and node.GetText() else "")


@offered("slicer", ("currentItemChanged(vtkIdType)", "currentItemModified(vtkIdType)"))
class qMRMLSubjectHierarchyComboBox(ctkComboBox):
    """A chooser of items of the subject hierarchy, listed without their tree."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        own = state(self)
        own.scene, own.watcher, own.item = None, None, 0
        self.connect("currentIndexChanged(int)", self._on_index)

    nodeTypes = stored("QStringList", "node_types", (), lambda self: self._fill())
    noneEnabled = stored("bool", "none_enabled", False, lambda self: self._fill())
    noneDisplay = stored("QString", "none_display", "None", lambda self: self._fill())

    def mrmlScene(self) -> Any:
        """Returns the scene, or None."""
        return state(self).scene

    def setMRMLScene(self, scene: Any) -> None:
        """Sets the scene."""
        own = state(self)
        if own.watcher is not None:
            own.watcher.stop()
        own.scene = scene
        own.watcher = SceneWatcher(self, scene, self._later, self._later, self._fill) if scene is not None else None
        self._fill()

    def _later(self, node: Any) -> None:
        # The hierarchy learns of the node after the scene does.
        state(self).watcher.later(self._fill)
        QtCore.QTimer.singleShot(0, self._fill)

    def subjectHierarchyNode(self) -> Any:
        """Returns the hierarchy."""
        scene = self.mrmlScene()
        return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene) if scene is not None else None

    def _items(self) -> list[int]:
        hierarchy = self.subjectHierarchyNode()
        if hierarchy is None:
            return []
        import vtk

        ids = vtk.vtkIdList()
        hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), ids, True)
        found = [ids.GetId(index) for index in range(ids.GetNumberOfIds())]
        nodes = {item: hierarchy.GetItemDataNode(item) for item in found}
        wanted = self.nodeTypes
        return [item for item in found if not wanted or (nodes[item] and any(nodes[item].IsA(name) for name in wanted))]

    def _fill(self) -> None:
        hierarchy = self.subjectHierarchyNode()
        own = state(self)
        blocked = self.blockSignals(True)
        self.clear()
        if self.noneEnabled:
            self.addItem(self.noneDisplay, 0)
        for item in self._items():
            self.addItem(hierarchy.GetItemName(item), item)
        self.currentIndex = max(self.findData(own.item), -1)
        self.blockSignals(blocked)

    def _on_index(self, index: int) -> None:
        item = self.itemData(index) or 0
        if item != state(self).item:
            state(self).item = item
            emit(self, "currentItemChanged(vtkIdType)", item)

    def currentItem(self) -> int:
        """Returns the chosen item, or 0."""
        return state(self).item

    def setCurrentItem(self, item: int) -> None:
        """Chooses an item."""
        self.currentIndex = self.findData(item)

    def clearSelection(self) -> None:
        """Chooses nothing."""
        self.currentIndex = self.findData(0)

"""Slicer's widgets for segmentations: qMRMLSegmentSelectorWidget, qMRMLSegmentsTableView,
qMRMLSegmentationShow3DButton.
"""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from .ctk_choices import ctkCheckableComboBox
from .ctk_sections import ctkMenuButton
from .declare import offered, prop, state, stored
from .qmrml_nodes import qMRMLNodeComboBox, qMRMLWidget
from .scene_events import NodeObserver
from .signals import emit

_CLOSED_SURFACE = "Closed surface"


def _segments(node: Any) -> list[tuple[str, Any]]:
    """Returns the IDs and segments of a segmentation node that may be None."""
    segmentation = node.GetSegmentation() if node is not None else None
    if segmentation is None:
        return []
    ids = [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]
    return [(name, segmentation.GetSegment(name)) for name in ids]


def _segment_events() -> tuple[int, ...]:
    segmentation = slicer.vtkSegmentation
    return segmentation.SegmentAdded, segmentation.SegmentRemoved, segmentation.SegmentModified


@offered(
    "slicer",
    (
        "currentNodeChanged(vtkMRMLNode*)", "currentSegmentChanged(QString)", "segmentSelectionChanged(QStringList)",
        "nodeAboutToBeEdited(vtkMRMLNode*)", "currentNodeChanged(bool)",
    ),
)  # fmt: skip
class qMRMLSegmentSelectorWidget(qMRMLWidget):
    """A chooser of a segmentation and one or several of its segments."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        own = state(self)
        own.nodes, own.segment, own.several = (
            qMRMLNodeComboBox(self),
            QtWidgets.QComboBox(self),
            ctkCheckableComboBox(self),
        )
        own.message, own.current, own.selected = QtWidgets.QLabel(self), "", ()
        own.observer = NodeObserver(self, self._fill)
        own.nodes.nodeTypes = ("vtkMRMLSegmentationNode",)
        own.nodes.addEnabled = own.nodes.removeEnabled = False
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for part in (own.nodes, own.segment, own.several, own.message):
            layout.addWidget(part)
        own.nodes.connect("currentNodeChanged(vtkMRMLNode*)", self._on_node)
        own.segment.connect("currentIndexChanged(int)", self._on_segment)
        own.several.connect("checkedIndexesChanged()", self._on_checked)
        self._fill()

    noneEnabled = stored("bool", "none_enabled", False, lambda self: self._fill())
    multiSelection = stored("bool", "multi_selection", False, lambda self: self._fill())
    horizontalLayout = stored("bool", "horizontal", False)
    segmentationNodeSelectorVisible = prop(
        "bool", lambda self: not state(self).nodes.isHidden(), lambda self, value: state(self).nodes.setVisible(value)
    )
    editEnabled = prop(
        "bool",
        lambda self: state(self).nodes.editEnabled,
        lambda self, value: setattr(state(self).nodes, "editEnabled", value),
    )
    selectNodeUponCreation = prop(
        "bool",
        lambda self: state(self).nodes.selectNodeUponCreation,
        lambda self, value: setattr(state(self).nodes, "selectNodeUponCreation", value),
    )

    def _scene_changed(self) -> None:
        state(self).nodes.setMRMLScene(self.mrmlScene())

    def _on_node(self, node: Any) -> None:
        state(self).observer.observe(node, _segment_events())
        self._fill()
        emit(self, "currentNodeChanged(vtkMRMLNode*)", node)
        emit(self, "currentNodeChanged(bool)", node is not None)

    def _fill(self) -> None:
        own = state(self)
        found = _segments(self.currentNode())
        several = self.multiSelection
        own.segment.setVisible(bool(found) and not several)
        own.several.setVisible(bool(found) and several)
        own.message.setVisible(not found)
        own.message.text = "No node is selected" if self.currentNode() is None else "No segments in segmentation"
        box = own.several if several else own.segment
        blocked = box.blockSignals(True)
        box.clear()
        if self.noneEnabled and not several:
            box.addItem("None", "")
        for segment_id, segment in found:
            box.addItem(segment.GetName(), segment_id)
        box.blockSignals(blocked)
        if not found:
            return
        ids = [segment_id for segment_id, _ in found]
        if several:
            self.setSelectedSegmentIDs(own.selected)
        elif own.current in ids or (self.noneEnabled and not own.current):
            blocked = box.blockSignals(True)
            self.setCurrentSegmentID(own.current)
            box.blockSignals(blocked)
        else:
            # As qMRMLSegmentSelectorWidget::populateSegmentCombobox: the first segment is chosen, and announced.
            blocked = box.blockSignals(True)
            box.currentIndex = -1
            box.blockSignals(blocked)
            box.currentIndex = 1 if self.noneEnabled else 0

    def _on_segment(self, index: int) -> None:
        state(self).current = state(self).segment.itemData(index) or ""
        emit(self, "currentSegmentChanged(QString)", state(self).current)

    def _on_checked(self) -> None:
        box = state(self).several
        state(self).selected = tuple(box.itemData(index.row()) for index in box.checkedIndexes())
        emit(self, "segmentSelectionChanged(QStringList)", state(self).selected)

    def currentNode(self) -> Any:
        """Returns the segmentation, or None."""
        return state(self).nodes.currentNode()

    def currentNodeID(self) -> str:
        """Returns the segmentation's ID."""
        return state(self).nodes.currentNodeID

    def setCurrentNode(self, node: Any) -> None:
        """Chooses a segmentation."""
        state(self).nodes.setCurrentNode(node)

    def setCurrentNodeID(self, nodeID: str) -> None:
        """Chooses a segmentation by its ID."""
        state(self).nodes.setCurrentNodeID(nodeID)

    def currentSegmentID(self) -> str:
        """Returns the chosen segment's ID."""
        return state(self).current

    def setCurrentSegmentID(self, segmentID: str) -> None:
        """Chooses a segment by its ID."""
        index = state(self).segment.findData(segmentID)
        if index >= 0:
            state(self).segment.currentIndex = index

    def segmentIDs(self) -> tuple[str, ...]:
        """Returns the IDs of all segments that can be chosen."""
        return tuple(segment_id for segment_id, _ in _segments(self.currentNode()))

    def selectedSegmentIDs(self) -> tuple[str, ...]:
        """Returns the IDs of the chosen segments, with multiSelection."""
        return tuple(state(self).selected) if self.multiSelection else ()

    def setSelectedSegmentIDs(self, segmentIDs: Any) -> None:
        """Chooses segments by their IDs, with multiSelection."""
        box = state(self).several
        known = self.segmentIDs()
        chosen = tuple(name for name in segmentIDs if name in known)
        changed = chosen != tuple(state(self).selected)
        state(self).selected = chosen
        blocked = box.blockSignals(True)
        for row, name in enumerate(known):
            checked = QtCore.Qt.CheckState.Checked if name in chosen else QtCore.Qt.CheckState.Unchecked
            box.setCheckState(box.model().index(row, 0), checked)
        box.blockSignals(blocked)
        if changed:
            emit(self, "segmentSelectionChanged(QStringList)", chosen)


@offered("slicer", ("selectionChanged(QItemSelection,QItemSelection)", "segmentAboutToBeModified(QString)"))
class qMRMLSegmentsTableView(qMRMLWidget):
    """The table of a segmentation's segments."""

    _COLUMNS = ("visibility", "color", "opacity", "name")

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        own = state(self)
        own.node, own.filling = None, False
        own.observer = NodeObserver(self, self._fill)
        own.display_observer = NodeObserver(self, self._fill)
        own.table = QtWidgets.QTableWidget(0, len(self._COLUMNS), self)
        own.table.setHorizontalHeaderLabels(["", "", "Opacity", "Name"])
        own.table.verticalHeader().setVisible(False)
        own.table.horizontalHeader().setStretchLastSection(True)
        own.table.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectionBehavior.SelectRows)
        for column, width in enumerate((28, 28, 60)):
            own.table.setColumnWidth(column, width)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(own.table)
        own.table.connect("itemChanged(QTableWidgetItem*)", self._on_item)
        own.table.connect("itemSelectionChanged()", self._on_selection)

    def _show_columns(self) -> None:
        table = state(self).table
        shown = (self.visibilityColumnVisible, self.colorColumnVisible, self.opacityColumnVisible, True)
        for column, visible in enumerate(shown):
            table.setColumnHidden(column, not visible)
        table.horizontalHeader().setVisible(self.headerVisible)

    visibilityColumnVisible = stored("bool", "visibility_column", True, _show_columns)
    colorColumnVisible = stored("bool", "color_column", True, _show_columns)
    opacityColumnVisible = stored("bool", "opacity_column", True, _show_columns)
    statusColumnVisible = stored("bool", "status_column", False)
    layerColumnVisible = stored("bool", "layer_column", False)
    headerVisible = stored("bool", "header", True, _show_columns)
    filterBarVisible = stored("bool", "filter_bar", False)
    readOnly = stored("bool", "read_only", False, lambda self: self._fill())
    textFilter = stored("QString", "text_filter", "", lambda self: self._fill())
    selectionMode = prop(
        "int",
        lambda self: int(state(self).table.selectionMode),
        lambda self, value: state(self).table.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode(int(value))),
    )
    segmentCount = prop("int", lambda self: len(_segments(state(self).node)))

    def segmentationNode(self) -> Any:
        """Returns the segmentation, or None."""
        return state(self).node

    def setSegmentationNode(self, node: Any) -> None:
        """Sets the segmentation that is shown."""
        own = state(self)
        own.node = node
        own.observer.observe(node, _segment_events() if node is not None else ())
        display = node.GetDisplayNode() if node is not None else None
        own.display_observer.observe(display)
        self._fill()

    def _shown(self) -> list[tuple[str, Any]]:
        wanted = self.textFilter.lower()
        return [(name, segment) for name, segment in _segments(state(self).node) if wanted in segment.GetName().lower()]

    def _fill(self) -> None:
        own = state(self)
        own.filling = True
        selected = self.selectedSegmentIDs()
        shown = self._shown()
        display = own.node.GetDisplayNode() if own.node is not None else None
        own.table.rowCount = len(shown)
        for row, (segment_id, segment) in enumerate(shown):
            items = [QtWidgets.QTableWidgetItem() for _ in self._COLUMNS]
            visible = display is None or display.GetSegmentVisibility(segment_id)
            items[0].setCheckState(QtCore.Qt.CheckState.Checked if visible else QtCore.Qt.CheckState.Unchecked)
            items[1].setBackground(QtGui.QBrush(QtGui.QColor.fromRgbF(*segment.GetColor())))
            items[2].setText(f"{display.GetSegmentOpacity3D(segment_id):.2f}" if display is not None else "")
            items[3].setText(segment.GetName())
            for column, item in enumerate(items):
                item.setData(QtCore.Qt.ItemDataRole.UserRole, segment_id)
                if self.readOnly or column in (1, 2):
                    item.setFlags(QtCore.Qt.ItemFlag.ItemIsEnabled | QtCore.Qt.ItemFlag.ItemIsSelectable)
                own.table.setItem(row, column, item)
        self.setSelectedSegmentIDs(selected)
        own.filling = False

    def _on_item(self, item: Any) -> None:
        own = state(self)
        if own.filling:
            return
        segment_id = item.data(QtCore.Qt.ItemDataRole.UserRole)
        emit(self, "segmentAboutToBeModified(QString)", segment_id)
        if item.column() == 0:
            visible = item.checkState() == QtCore.Qt.CheckState.Checked
            own.node.GetDisplayNode().SetSegmentVisibility(segment_id, visible)
        elif item.column() == 3:
            own.node.GetSegmentation().GetSegment(segment_id).SetName(item.text())

    def _on_selection(self) -> None:
        if not state(self).filling:
            emit(self, "selectionChanged(QItemSelection,QItemSelection)", None, None)

    def tableWidget(self) -> Any:
        """Returns the table inside."""
        return state(self).table

    def segmentIDForRow(self, row: int) -> str:
        """Returns the ID of the segment in a row."""
        shown = self._shown()
        return shown[row][0] if 0 <= row < len(shown) else ""

    def rowForSegmentID(self, segmentID: str) -> int:
        """Returns the row of a segment, or -1."""
        ids = self.displayedSegmentIDs()
        return ids.index(segmentID) if segmentID in ids else -1

    def displayedSegmentIDs(self) -> tuple[str, ...]:
        """Returns the IDs of the segments shown."""
        return tuple(segment_id for segment_id, _ in self._shown())

    def selectedSegmentIDs(self) -> tuple[str, ...]:
        """Returns the IDs of the selected segments."""
        table = state(self).table
        rows = sorted({index.row() for index in table.selectionModel().selectedRows()})
        items = [table.item(row, 0) for row in rows]
        return tuple(item.data(QtCore.Qt.ItemDataRole.UserRole) for item in items if item is not None)

    def setSelectedSegmentIDs(self, segmentIDs: Any) -> None:
        """Selects segments by their IDs."""
        table = state(self).table
        rows = [self.rowForSegmentID(segment_id) for segment_id in segmentIDs]
        table.clearSelection()
        flags = QtCore.QItemSelectionModel.SelectionFlag.Select | QtCore.QItemSelectionModel.SelectionFlag.Rows
        for row in rows:
            if row >= 0:
                table.selectionModel().select(table.model().index(row, 0), flags)

    def clearSelection(self) -> None:
        """Selects nothing."""
        state(self).table.clearSelection()


@offered("slicer")
class qMRMLSegmentationShow3DButton(ctkMenuButton):
    """A button that shows a segmentation's surfaces in 3D."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        own = state(self)
        own.node = None
        own.observer = NodeObserver(self, self._update)
        self.setText("Show 3D")
        self.setCheckable(True)
        self.connect("toggled(bool)", self._on_toggled)
        self.setEnabled(False)

    locked = stored("bool", "locked", False, lambda self: self._update())

    def setLocked(self, locked: bool) -> None:
        """Keeps the button from being pressed."""
        self.locked = locked

    def segmentationNode(self) -> Any:
        """Returns the segmentation, or None."""
        return state(self).node

    def setSegmentationNode(self, node: Any) -> None:
        """Sets the segmentation."""
        own = state(self)
        if own.node is node:
            return
        own.node = node
        events = (*_segment_events()[:2], slicer.vtkSegmentation.ContainedRepresentationNamesModified)
        own.observer.observe(node, events if node is not None else ())
        self._update()

    def _update(self) -> None:
        segmentation = state(self).node.GetSegmentation() if state(self).node is not None else None
        if segmentation is None:
            self.setEnabled(False)
            return
        from_surface = segmentation.GetSourceRepresentationName() == _CLOSED_SURFACE
        self.setEnabled(not self.locked and segmentation.GetNumberOfSegments() > 0 and not from_surface)
        blocked = self.blockSignals(True)
        self.setChecked(segmentation.ContainsRepresentation(_CLOSED_SURFACE))
        self.blockSignals(blocked)

    def _on_toggled(self, on: bool) -> None:
        node = state(self).node
        if node is None:
            return
        with slicer.util.NodeModify(node):
            if not on:
                node.GetSegmentation().RemoveRepresentation(_CLOSED_SURFACE)
            elif node.GetSegmentation().CreateRepresentation(_CLOSED_SURFACE) and node.GetDisplayNode() is not None:
                node.GetDisplayNode().SetPreferredDisplayRepresentationName3D(_CLOSED_SURFACE)

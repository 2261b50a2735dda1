"""Slicer's base widgets and node selectors on the real scene: qMRMLWidget, qSlicerWidget, qMRMLCollapsibleButton,
qMRMLNodeComboBox, qMRMLCheckableNodeComboBox, qMRMLColorTableComboBox.
"""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from .ctk_choices import ctkCheckableComboBox, ctkComboBox
from .ctk_sections import ctkCollapsibleButton
from .declare import offered, prop, state, stored
from .scene_events import SceneWatcher
from .signals import emit


class HoldsScene:
    """setMRMLScene, mrmlScene and the signal of every widget that works on a scene."""

    def mrmlScene(self) -> Any:
        """Returns the scene, or None."""
        return getattr(state(self), "scene", None)

    def setMRMLScene(self, scene: Any) -> None:
        """Sets the scene that the widget works on."""
        if scene is self.mrmlScene():
            return
        state(self).scene = scene
        self._scene_changed()
        emit(self, "mrmlSceneChanged(vtkMRMLScene*)", scene)

    def _scene_changed(self) -> None:
        """Called with the new scene in place, before the signal."""


@offered("slicer", ("mrmlSceneChanged(vtkMRMLScene*)",))
class qMRMLWidget(HoldsScene, QtWidgets.QWidget):
    """A widget that hands its scene on, by connections of the .ui file."""


@offered("slicer", ("mrmlSceneChanged(vtkMRMLScene*)",))
class qSlicerWidget(HoldsScene, QtWidgets.QWidget):
    """The widget at the root of a module's .ui file."""


@offered("slicer", ("mrmlSceneChanged(vtkMRMLScene*)",))
class qMRMLCollapsibleButton(HoldsScene, ctkCollapsibleButton):
    """A foldable section that hands its scene on."""


_ID = QtCore.Qt.ItemDataRole.UserRole
_ACTION = QtCore.Qt.ItemDataRole.UserRole + 1


@offered("slicer", (
    "currentNodeChanged(vtkMRMLNode*)", "currentNodeIDChanged(QString)", "nodeActivated(vtkMRMLNode*)",
    "currentNodeChanged(bool)", "nodeAdded(vtkMRMLNode*)", "nodeAddedByUser(vtkMRMLNode*)",
    "nodeAddedByUserAction(vtkMRMLNode*)", "nodeAboutToBeRemoved(vtkMRMLNode*)", "currentNodeRenamed(QString)",
    "nodeAboutToBeEdited(vtkMRMLNode*)",
))  # fmt: skip
class qMRMLNodeComboBox(QtWidgets.QWidget):
    """A chooser of nodes that follows the scene."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        own = state(self)
        own.scene, own.watcher, own.current, own.requested, own.filling = None, None, None, "", False
        own.attributes, own.labels, own.base_names, own.menu_actions = {}, {}, {}, []
        own.combo = self._make_combo()
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(own.combo)
        own.combo.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        own.combo.setMinimumContentsLength(8)
        own.combo.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Fixed)
        own.combo.connect("activated(int)", self._on_activated)
        self.setEnabled(False)

    def _make_combo(self) -> QtWidgets.QComboBox:
        return ctkComboBox(self)

    # -- settings ------------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        self._fill()

    nodeTypes = stored("QStringList", "node_types", (), _refresh)
    noneEnabled = stored("bool", "none_enabled", False, _refresh)
    noneDisplay = stored("QString", "none_display", "None", _refresh)
    addEnabled = stored("bool", "add_enabled", True, _refresh)
    removeEnabled = stored("bool", "remove_enabled", True, _refresh)
    editEnabled = stored("bool", "edit_enabled", False, _refresh)
    renameEnabled = stored("bool", "rename_enabled", False, _refresh)
    showHidden = stored("bool", "show_hidden", False, _refresh)
    showChildNodeTypes = stored("bool", "show_child_types", True, _refresh)
    hideChildNodeTypes = stored("QStringList", "hide_child_types", (), _refresh)
    selectNodeUponCreation = stored("bool", "select_created", True)
    interactionNodeSingletonTag = stored("QString", "interaction_tag", "")

    def _set_base_name(self, name: str) -> None:
        for node_type in self.nodeTypes:
            state(self).base_names[node_type] = name

    baseName = prop(
        "QString",
        lambda self: state(self).base_names.get(self.nodeTypes[0], "") if self.nodeTypes else "",
        _set_base_name,
    )

    def addAttribute(self, nodeType: str, attributeName: str, attributeValue: Any = None) -> None:
        """Shows only nodes of a type that have an attribute, and gives it to the nodes created here."""
        value = None if attributeValue is None else str(attributeValue)
        state(self).attributes[(nodeType, attributeName)] = value
        self._fill()

    def removeAttribute(self, nodeType: str, attributeName: str) -> None:
        """Undoes addAttribute."""
        state(self).attributes.pop((nodeType, attributeName), None)
        self._fill()

    def nodeTypeLabel(self, nodeType: str) -> str:
        """Returns what the user reads for a type of node."""
        if nodeType in state(self).labels:
            return state(self).labels[nodeType]
        label = self.mrmlScene().GetTypeDisplayNameByClassName(nodeType) if self.mrmlScene() else ""
        return label or "node"

    def setNodeTypeLabel(self, label: str, nodeType: str) -> None:
        """Sets what the user reads for a type of node."""
        state(self).labels[nodeType] = label
        self._fill()

    def addMenuAction(self, action: QtGui.QAction) -> None:
        """Adds an entry below the nodes."""
        state(self).menu_actions.append(action)
        self._fill()

    # -- the scene -----------------------------------------------------------------------------------------------------

    def mrmlScene(self) -> Any:
        """Returns the scene, or None."""
        return state(self).scene

    def setMRMLScene(self, scene: Any) -> None:
        """Sets the scene; the selection asked for before there was one is made now."""
        own = state(self)
        if own.scene is scene:
            return
        if own.watcher is not None:
            own.watcher.stop()
            own.watcher = None
        had_nodes = self.nodeCount() > 0
        wanted = own.current.GetID() if own.current is not None and had_nodes else own.requested
        own.scene = scene
        if scene is not None:
            own.watcher = SceneWatcher(self, scene, self._node_added, self._node_about_to_be_removed, self._fill)
        own.current = None
        nodes = self._nodes()
        if not had_nodes and not wanted and nodes and not self.noneEnabled:
            wanted = nodes[0].GetID()
        own.requested = ""
        self._fill()
        self.setEnabled(scene is not None)
        self.setCurrentNodeID(wanted or "")

    def _matches(self, node: Any) -> bool:
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        types = self.nodeTypes
        if types:
            named = [
                name for name in types if (node.IsA(name) if self.showChildNodeTypes else node.GetClassName() == name)
            ]
            if not named or any(node.IsA(name) for name in self.hideChildNodeTypes):
                return False
        for (node_type, name), value in state(self).attributes.items():
            if node.IsA(node_type):
                found = node.GetAttribute(name)
                if found is None or (value is not None and found != value):
                    return False
        return True

    def _nodes(self) -> list:
        scene = self.mrmlScene()
        if scene is None:
            return []
        nodes = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]
        return [node for node in nodes if self._matches(node)]

    def nodeCount(self) -> int:
        """Returns how many nodes can be chosen."""
        return len(self._nodes())

    def nodeFromIndex(self, index: int) -> Any:
        """Returns a node by its place in the list."""
        nodes = self._nodes()
        return nodes[index] if 0 <= index < len(nodes) else None

    def _node_added(self, node: Any) -> None:
        if not self._matches(node):
            return
        alone = not (
            self.noneEnabled or self.addEnabled or self.removeEnabled or self.editEnabled or self.renameEnabled
        )
        self._fill()
        emit(self, "nodeAdded(vtkMRMLNode*)", node)
        # Qt selects the first row of a combo box that was empty; entries such as "Create new" keep it from being empty.
        if state(self).current is None and alone and self.nodeCount() == 1:
            self.setCurrentNode(node)

    def _node_about_to_be_removed(self, node: Any) -> None:
        if not self._matches(node):
            return
        emit(self, "nodeAboutToBeRemoved(vtkMRMLNode*)", node)
        before = self._nodes()
        own = state(self)
        if own.current is not node:
            own.watcher.later(self._fill)
            return
        # A combo box stays at the row of the node that goes, which is the next one, or else takes the last; at the very
        # first row it loses its selection (QComboBox and qMRMLNodeComboBox::emitCurrentNodeChanged).
        place = before.index(node)
        rest = before[:place] + before[place + 1 :]
        first_row = place == 0 and not self.noneEnabled
        chosen = None if first_row or not rest else rest[min(place, len(rest) - 1)]
        self._select(chosen)
        own.watcher.later(self._fill)

    def _fill(self) -> None:
        """Rebuilds the list and keeps the selection, unless the selected node is no longer to be shown."""
        own = state(self)
        nodes = self._nodes()
        if own.current is not None and own.current not in nodes:
            self._select(None)
        own.filling = True
        combo = own.combo
        blocked = combo.blockSignals(True)
        combo.clear()
        if self.noneEnabled:
            combo.addItem(self.noneDisplay)
        for node in nodes:
            combo.addItem(node.GetName() or "")
            combo.setItemData(combo.count - 1, node.GetID(), _ID)
        self._add_actions(combo)
        kind = self.nodeTypes[0] if self.nodeTypes else ""
        if isinstance(combo, ctkComboBox):
            combo.defaultText = f"Select a {self.nodeTypeLabel(kind)}"
        combo.blockSignals(blocked)
        own.filling = False
        self._show_current()

    def _add_actions(self, combo: QtWidgets.QComboBox) -> None:
        if self.mrmlScene() is None:
            return
        actions = []
        label = self.nodeTypeLabel(self.nodeTypes[0] if len(self.nodeTypes) == 1 else "")
        if self.renameEnabled:
            actions.append((f"Rename current {label}", "RENAME"))
        if self.editEnabled:
            actions.append((f"Edit current {label}", "EDIT"))
        if self.addEnabled:
            actions += [(f"Create new {self.nodeTypeLabel(name)}", f"CREATE/{name}") for name in self.nodeTypes]
        if self.removeEnabled:
            actions.append((f"Delete current {label}", "DELETE"))
        actions += [(action.text, action) for action in state(self).menu_actions]
        if actions:
            combo.insertSeparator(combo.count)
        for text, command in actions:
            combo.addItem(text)
            combo.setItemData(combo.count - 1, command, _ACTION)

    def _show_current(self) -> None:
        own = state(self)
        blocked = own.combo.blockSignals(True)
        nodes = self._nodes()
        if own.current in nodes:
            own.combo.currentIndex = nodes.index(own.current) + (1 if self.noneEnabled else 0)
        else:
            own.combo.currentIndex = 0 if self.noneEnabled else -1
        own.combo.blockSignals(blocked)

    # -- the selection -------------------------------------------------------------------------------------------------

    def currentNode(self) -> Any:
        """Returns the chosen node, or None."""
        return state(self).current

    def _select(self, node: Any) -> None:
        own = state(self)
        if node is own.current:
            self._show_current()
            return
        own.current = node
        if own.watcher is not None:
            own.watcher.observe_name(node, self._fill)
        self._show_current()
        emit(self, "currentNodeChanged(vtkMRMLNode*)", node)
        emit(self, "currentNodeChanged(bool)", node is not None)
        emit(self, "currentNodeIDChanged(QString)", node.GetID() if node is not None else "")

    def setCurrentNode(self, node: Any) -> None:
        """Chooses a node, given itself or by its ID; one that is not in the list chooses none."""
        self.setCurrentNodeID(node if isinstance(node, str) else node.GetID() if node is not None else "")

    def setCurrentNodeID(self, nodeID: str) -> None:
        """Chooses a node by its ID."""
        if self.mrmlScene() is None:
            state(self).requested = nodeID or ""
            return
        self._select(next((node for node in self._nodes() if nodeID and node.GetID() == nodeID), None))

    def setCurrentNodeIndex(self, index: int) -> None:
        """Chooses a node by its place in the list."""
        self._select(self.nodeFromIndex(index))

    def _current_id(self) -> str:
        node = self.currentNode()
        return node.GetID() if node is not None and node.GetID() else ""

    currentNodeID = prop("QString", _current_id, lambda self, value: self.setCurrentNodeID(value))
    currentNodeId = prop("QString", _current_id, lambda self, value: self.setCurrentNodeID(value))

    # -- what the user's clicks do -------------------------------------------------------------------------------------

    def addNode(self, nodeType: str | None = None) -> Any:
        """Creates a node as the entry "Create new" does, and chooses it."""
        if not self.nodeTypes:
            return None
        nodeType = nodeType or self.nodeTypes[0]
        if nodeType not in self.nodeTypes:
            return None
        scene = self.mrmlScene()
        node = scene.CreateNodeByClass(nodeType)
        node.UnRegister(None)
        base = state(self).base_names.get(nodeType, "") or (
            node.GetDefaultNodeNamePrefix() if not node.GetName() else ""
        )
        if base:
            node.SetName(scene.GetUniqueNameByString(base))
        for (_, name), value in state(self).attributes.items():
            node.SetAttribute(name, value or "")
        node = scene.AddNode(node)
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        emit(self, "nodeAddedByUser(vtkMRMLNode*)", node)
        return node

    def removeCurrentNode(self) -> None:
        """Removes the chosen node from the scene."""
        if self.currentNode() is not None:
            self.mrmlScene().RemoveNode(self.currentNode())

    def editCurrentNode(self) -> None:
        """Announces that the user wants to edit the chosen node."""
        emit(self, "nodeAboutToBeEdited(vtkMRMLNode*)", self.currentNode())

    def renameCurrentNode(self) -> None:
        """Asks for a new name of the chosen node."""
        from . import qtlayer

        if self.currentNode() is None:
            return
        if not qtlayer.dialog_answers:
            raise RuntimeError("A dialog waits for a name. Add it to slicer_standin.dialog_answers first.")
        name = qtlayer.dialog_answers.pop(0)
        self.currentNode().SetName(name)
        emit(self, "currentNodeRenamed(QString)", name)

    def _on_activated(self, index: int) -> None:
        own = state(self)
        if own.filling:
            return
        command = own.combo.itemData(index, _ACTION)
        if command is None:
            self.setCurrentNodeID(own.combo.itemData(index, _ID) or "")
            emit(self, "nodeActivated(vtkMRMLNode*)", self.currentNode())
            return
        self._show_current()
        if isinstance(command, QtGui.QAction):
            command.trigger()
        elif command.startswith("CREATE/"):
            node = self.addNode(command.partition("/")[2])
            self.setCurrentNode(node)
            emit(self, "nodeAddedByUserAction(vtkMRMLNode*)", node)
        else:
            {"DELETE": self.removeCurrentNode, "EDIT": self.editCurrentNode, "RENAME": self.renameCurrentNode}[
                command
            ]()


@offered("slicer")
class qMRMLColorTableComboBox(qMRMLNodeComboBox):
    """A chooser of colour tables."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.nodeTypes = ("vtkMRMLColorTableNode", "vtkMRMLProceduralColorNode")
        self.hideChildNodeTypes = ("vtkMRMLdGEMRICProceduralColorNode", "vtkMRMLPETProceduralColorNode")
        self.addEnabled = self.removeEnabled = False
        self.showHidden = True


@offered("slicer", ("checkedNodesChanged()",))
class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """A chooser of several nodes, each with a check box."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        state(self).checked = []
        super().__init__(parent)
        self.addEnabled = self.removeEnabled = False
        state(self).combo.connect("checkedIndexesChanged()", self._on_checked)

    def _make_combo(self) -> QtWidgets.QComboBox:
        return ctkCheckableComboBox(self)

    def _fill(self) -> None:
        super()._fill()
        own = state(self)
        own.checked = [node for node in own.checked if node in self._nodes()]
        self._show_checks()

    def _show_checks(self) -> None:
        own = state(self)
        own.filling = True
        for row, node in enumerate(self._nodes()):
            checked = QtCore.Qt.CheckState.Checked if node in own.checked else QtCore.Qt.CheckState.Unchecked
            own.combo.setCheckState(own.combo.model().index(row, 0), checked)
        own.filling = False

    def _on_checked(self) -> None:
        own = state(self)
        if own.filling:
            return
        rows = {index.row() for index in own.combo.checkedIndexes()}
        own.checked = [node for row, node in enumerate(self._nodes()) if row in rows]
        emit(self, "checkedNodesChanged()")

    def checkedNodes(self) -> list:
        """Returns the ticked nodes."""
        return [node for node in self._nodes() if node in state(self).checked]

    def uncheckedNodes(self) -> list:
        """Returns the nodes without a tick."""
        return [node for node in self._nodes() if node not in state(self).checked]

    def checkState(self, node: Any) -> Any:
        """Returns whether a node is ticked, as Qt counts it."""
        return QtCore.Qt.CheckState.Checked if node in state(self).checked else QtCore.Qt.CheckState.Unchecked

    def setCheckState(self, node: Any, check: Any) -> None:
        """Ticks a node or clears its tick."""
        own = state(self)
        wanted = int(check) == int(QtCore.Qt.CheckState.Checked)
        if wanted == (node in own.checked) or node not in self._nodes():
            return
        own.checked = [*own.checked, node] if wanted else [other for other in own.checked if other is not node]
        self._show_checks()
        emit(self, "checkedNodesChanged()")

    def check(self, node: Any) -> None:
        """Ticks a node."""
        self.setCheckState(node, QtCore.Qt.CheckState.Checked)

    def uncheck(self, node: Any) -> None:
        """Clears a node's tick."""
        self.setCheckState(node, QtCore.Qt.CheckState.Unchecked)

    def allChecked(self) -> bool:
        """Whether every node is ticked."""
        return not self.uncheckedNodes()

    def noneChecked(self) -> bool:
        """Whether no node is ticked."""
        return not self.checkedNodes()

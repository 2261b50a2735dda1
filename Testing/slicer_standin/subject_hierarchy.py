"""Keeps the subject hierarchy in step with the scene: nodes that Slicer's plugins take in get an item, and lose it with
the node. In Slicer this is done by the plugins, which are not in PyPI's slicer-core.
"""

from __future__ import annotations

from typing import Any

import slicer
import vtk

# Class of node -> the plugin that owns its items.
_OWNERS = {
    "vtkMRMLSegmentationNode": "Segmentations",
    "vtkMRMLLabelMapVolumeNode": "LabelMaps",
    "vtkMRMLVolumeNode": "Volumes",
    "vtkMRMLMarkupsNode": "Markups",
    "vtkMRMLModelNode": "Models",
    "vtkMRMLTransformNode": "Transforms",
    "vtkMRMLTableNode": "Tables",
    "vtkMRMLPlotChartNode": "Plots",
    "vtkMRMLPlotSeriesNode": "Plots",
    "vtkMRMLTextNode": "Texts",
}


def _owner(node: Any) -> str | None:
    if node is None or node.GetHideFromEditors():
        return None
    return next((owner for class_name, owner in _OWNERS.items() if node.IsA(class_name)), None)


class HierarchyKeeper:
    """Observes a scene for as long as the process lives."""

    def __init__(self, scene: Any) -> None:
        self._scene = scene

        def added(caller: Any, event: str, node: Any) -> None:
            if not scene.IsBatchProcessing():
                self._add(node)

        def removed(caller: Any, event: str, node: Any) -> None:
            hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
            if hierarchy is not None and _owner(node) is not None:
                item = hierarchy.GetItemByDataNode(node)
                if item:
                    hierarchy.RemoveItem(item, False, False)

        added.CallDataType = vtk.VTK_OBJECT  # type: ignore[attr-defined]
        removed.CallDataType = vtk.VTK_OBJECT  # type: ignore[attr-defined]
        scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, added)
        scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, removed)
        for event in (slicer.vtkMRMLScene.EndBatchProcessEvent, slicer.vtkMRMLScene.EndImportEvent):
            scene.AddObserver(event, lambda caller, name: self._add_all())
        # Closing takes the hierarchy out of the scene, importing adds the file's: there is to be one.
        for event in (slicer.vtkMRMLScene.EndCloseEvent, slicer.vtkMRMLScene.EndImportEvent):
            scene.AddObserver(event, lambda caller, name: self._resolve(), 1.0)

    def _resolve(self) -> None:
        slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(self._scene)

    def _add(self, node: Any) -> None:
        owner = _owner(node)
        if owner is None:
            return
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene)
        if hierarchy is None or hierarchy.GetItemByDataNode(node):
            return
        item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
        hierarchy.SetItemOwnerPluginName(item, owner)

    def _add_all(self) -> None:
        if self._scene.IsBatchProcessing() or self._scene.IsClosing():
            return
        for index in range(self._scene.GetNumberOfNodes()):
            self._add(self._scene.GetNthNode(index))

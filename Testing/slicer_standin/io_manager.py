"""``slicer.app.coreIOManager()``: files to nodes and back with the real storage nodes and module logics."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import slicer
import vtk
from PySide6 import QtCore

from .declare import offered

# File type -> class of the nodes that are written as it.
_NODE_CLASSES = {
    "TransformFile": "vtkMRMLTransformNode",
    "TableFile": "vtkMRMLTableNode",
    "TextFile": "vtkMRMLTextNode",
    "ModelFile": "vtkMRMLModelNode",
    "ColorTableFile": "vtkMRMLColorNode",
    "MarkupsFile": "vtkMRMLMarkupsNode",
    "SegmentationFile": "vtkMRMLSegmentationNode",
    "VolumeFile": "vtkMRMLVolumeNode",
}
_ENDINGS = {
    ".mrml": "SceneFile", ".mrb": "SceneFile", ".seg.nrrd": "SegmentationFile", ".seg.nhdr": "SegmentationFile",
    ".nrrd": "VolumeFile", ".nhdr": "VolumeFile", ".nii": "VolumeFile", ".nii.gz": "VolumeFile", ".mha": "VolumeFile",
    ".mhd": "VolumeFile", ".mgz": "VolumeFile", ".dcm": "VolumeFile", ".hdr": "VolumeFile", ".tfm": "TransformFile",
    ".h5": "TransformFile", ".tsv": "TableFile", ".csv": "TableFile", ".txt": "TextFile", ".mrk.json": "MarkupsFile",
    ".vtk": "ModelFile", ".vtp": "ModelFile", ".stl": "ModelFile", ".obj": "ModelFile", ".ctbl": "ColorTableFile",
}  # fmt: skip


def _base_name(path: str) -> str:
    return Path(path).name.partition(".")[0]


@offered("slicer")
class qSlicerCoreIOManager(QtCore.QObject):
    """Reads and writes what slicer.util's load and save functions ask for."""

    def fileType(self, fileName: str) -> str:
        """Returns the type of a file by the longest ending that fits."""
        name = str(fileName).lower()
        endings = [ending for ending in _ENDINGS if name.endswith(ending)]
        return _ENDINGS[max(endings, key=len)] if endings else "NoFile"

    def fileWriterFileType(self, node: Any, format: str = "") -> str:
        """Returns the type of file in which a node is written."""
        return next((kind for kind, class_name in _NODE_CLASSES.items() if node.IsA(class_name)), "NodeFile")

    def loadNodes(self, fileType: str, properties: dict, loadedNodes: Any = None, userMessages: Any = None) -> bool:
        """Loads a file into the scene.

        Args:
            fileType: for example "VolumeFile".
            properties: "fileName", and what the type's reader understands.
            loadedNodes: a vtkCollection that gets the nodes.
            userMessages: a vtkMRMLMessageCollection that gets errors and warnings.

        Returns:
            Whether it worked.
        """
        path = os.fspath(properties["fileName"])
        if fileType == "SceneFile":
            nodes = self._load_scene(path, bool(properties.get("clear", False)))
        elif fileType == "VolumeFile":
            nodes = self._load_volume(path, properties)
        elif fileType == "SegmentationFile":
            nodes = self._load_segmentation(path, properties, userMessages)
        elif fileType == "TextFile":
            nodes = self._load_text(path, userMessages)
        elif fileType in _NODE_CLASSES:
            nodes = self._load_with_logic(fileType, path, properties, userMessages)
        else:
            if userMessages is not None:
                userMessages.AddMessage(vtk.vtkCommand.ErrorEvent, f"No reader is known for {path} ({fileType})")
            return False
        if nodes is None:
            return False
        for node in nodes:
            if loadedNodes is not None:
                loadedNodes.AddItem(node)
        return True

    def _load_scene(self, path: str, clear: bool) -> list | None:
        scene = slicer.mrmlScene
        if path.lower().endswith(".mrb"):
            return [] if os.path.isfile(path) and scene.ReadFromMRB(path, clear) else None
        scene.SetURL(path)
        return [] if os.path.isfile(path) and (scene.Connect() if clear else scene.Import()) else None

    def _load_volume(self, path: str, properties: dict) -> list | None:
        flags = ("labelmap", "center", "singleFile", "autoWindowLevel", "discardOrientation")
        options = sum(1 << bit for bit, name in enumerate(flags) if properties.get(name))
        files = None
        if "fileNames" in properties:
            files = vtk.vtkStringArray()
            for name in properties["fileNames"]:
                files.InsertNextValue(os.fspath(name))
        logic = slicer.modules.volumes.logic()
        node = logic.AddArchetypeVolume(path, properties.get("name", _base_name(path)), options, files)
        if node is None:
            return None
        if properties.get("colorNodeID") and node.GetVolumeDisplayNode():
            node.GetVolumeDisplayNode().SetAndObserveColorNodeID(properties["colorNodeID"])
        if properties.get("show", True):
            selection = slicer.app.applicationLogic().GetSelectionNode()
            if node.IsA("vtkMRMLLabelMapVolumeNode"):
                selection.SetActiveLabelVolumeID(node.GetID())
            else:
                selection.SetActiveVolumeID(node.GetID())
            slicer.app.applicationLogic().PropagateVolumeSelection()
        return [node]

    def _load_segmentation(self, path: str, properties: dict, messages: Any) -> list | None:
        color = slicer.mrmlScene.GetNodeByID(properties["colorNodeID"]) if properties.get("colorNodeID") else None
        node = slicer.modules.segmentations.logic().LoadSegmentationFromFile(
            path, bool(properties.get("autoOpacities", True)), properties.get("name", ""), color, messages
        )
        return None if node is None else [node]

    def _load_with_logic(self, kind: str, path: str, properties: dict, messages: Any) -> list | None:
        """Files whose module's logic reads them."""
        scene, modules = slicer.mrmlScene, slicer.modules
        if kind == "TransformFile":
            node = modules.transforms.logic().AddTransform(path, scene)
        elif kind == "ModelFile":
            node = modules.models.logic().AddModel(path)
        elif kind == "TableFile":
            node = modules.tables.logic().AddTable(path, properties.get("name", ""))
        elif kind == "ColorTableFile":
            node = modules.colors.logic().LoadColorFile(path, properties.get("name", _base_name(path)), messages)
        else:
            found = modules.markups.logic().LoadMarkups(path, properties.get("name", ""), messages)
            return [scene.GetNodeByID(name) for name in found.split(",")] if found else None
        return None if node is None else [node]

    def _load_text(self, path: str, messages: Any) -> list | None:
        scene = slicer.mrmlScene
        storage = scene.AddNewNodeByClass("vtkMRMLTextStorageNode")
        node = scene.AddNewNodeByClass("vtkMRMLTextNode", scene.GetUniqueNameByString(_base_name(path)))
        node.SetAndObserveStorageNodeID(storage.GetID())
        storage.SetFileName(path)
        if storage.ReadData(node) != 1:
            if messages is not None:
                messages.AddMessages(storage.GetUserMessages())
            scene.RemoveNode(node)
            scene.RemoveNode(storage)
            return None
        return [node]

    def saveNodes(self, fileType: str, parameters: dict, userMessages: Any = None) -> bool:
        """Writes a node, or the scene.

        Args:
            fileType: "SceneFile", or what fileWriterFileType gives.
            parameters: "fileName" and, for a node, "nodeID".
            userMessages: a vtkMRMLMessageCollection that gets errors and warnings.

        Returns:
            Whether it worked.
        """
        path = parameters["fileName"]
        if not isinstance(path, str) or not path:
            # Qt takes no pathlib.Path for a string: qSlicerCoreIOManager::saveNodes refuses it.
            print('saveNodes failed: "fileName" must be included as a string parameter.')
            return False
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        scene = slicer.mrmlScene
        if fileType == "SceneFile":
            if path.lower().endswith(".mrb"):
                return bool(scene.WriteToMRB(path))
            if path.lower().endswith(".mrml"):
                scene.SetURL(path)
                return bool(scene.Commit())
            return bool(slicer.app.applicationLogic().SaveSceneToSlicerDataBundleDirectory(path, None))
        node = scene.GetNodeByID(parameters["nodeID"])
        if node is None or not node.AddDefaultStorageNode() or node.GetStorageNode() is None:
            return False  # a short text, for example, is stored in the scene and in no file of its own
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        if "useCompression" in parameters:
            storage.SetUseCompression(bool(parameters["useCompression"]))
        done = bool(storage.WriteData(node))
        if userMessages is not None:
            userMessages.AddMessages(storage.GetUserMessages())
        return done

    def addDefaultStorageNodes(self) -> None:
        """Gives every node that can be stored a storage node."""
        for index in range(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLStorableNode")):
            node = slicer.mrmlScene.GetNthNodeByClass(index, "vtkMRMLStorableNode")
            if node.GetStorageNode() is None:
                node.AddDefaultStorageNode()


@offered("slicer")
class qSlicerIOManager(qSlicerCoreIOManager):
    """The one with dialogs, which a test cannot answer."""

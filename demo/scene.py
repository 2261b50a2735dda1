"""A real MRML scene without Slicer's window: the core of Slicer that the package slicer-core ships.

The core alone has nodes and logics but no application, so the logics are made and introduced to each other here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer

from MLILib.errors import MLIError
from MLISlicerLib import charts, nodes

#: What a scene is counted by after it was opened again.
COUNTED = ("vtkMRMLScalarVolumeNode", "vtkMRMLSegmentationNode", "vtkMRMLTableNode", "vtkMRMLTextNode")


class Core:
    """A scene, and the logics that load, save and open bundles of it. Temporary files live as long as the core."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="mli-demo-")
        self.scene = slicer.vtkMRMLScene()
        self._application = slicer.vtkSlicerApplicationLogic()
        self._application.SetTemporaryPath(self._temporary.name)
        self._application.SetMRMLScene(self.scene)
        colors = self._application.GetColorLogic()
        colors.SetMRMLScene(self.scene)
        colors.AddDefaultColorNodes()
        self._application.SetModuleLogic("Colors", colors)
        # A bundle is unpacked into the cache folder, which the scene learns from its data manager.
        self._io = self._introduced(slicer.vtkMRMLRemoteIOLogic())
        self._io.GetCacheManager().SetRemoteCacheDirectory(self._temporary.name)
        self._manager = self._introduced(slicer.vtkDataIOManagerLogic())
        self._manager.SetAndObserveDataIOManager(self._io.GetDataIOManager())
        self._io.AddDataIOToScene()
        self._volumes = self._introduced(slicer.vtkSlicerVolumesLogic())
        self._segmentations = self._introduced(slicer.vtkSlicerSegmentationsModuleLogic())
        for name in ("vtkSlicerSubjectHierarchyModuleLogic", "vtkSlicerTablesLogic", "vtkSlicerTextsLogic"):
            setattr(self, f"_{name}", self._introduced(getattr(slicer, name)()))

    def _introduced(self, logic: Any) -> Any:
        logic.SetMRMLScene(self.scene)
        logic.SetMRMLApplicationLogic(self._application)
        return logic

    def load_volume(self, path: Path, name: str) -> Any:
        """The image as a scalar volume node."""
        return _loaded(self._volumes.AddArchetypeVolume(str(path), name), path)

    def load_segmentation(self, path: Path, name: str) -> Any:
        """The .seg.nrrd as a segmentation node, its surfaces made, so that it can be seen in 3-D at once."""
        node = _loaded(self._segmentations.LoadSegmentationFromFile(str(path)), path)
        node.SetName(name)
        node.CreateClosedSurfaceRepresentation()
        return node

    def add_table(self, name: str, columns: Mapping[str, Sequence[str] | Sequence[float]]) -> Any:
        """A table node with these columns."""
        node = self.scene.AddNewNodeByClass("vtkMRMLTableNode", name)
        charts.fill_table(node, columns)
        return node

    def add_text(self, name: str, text: str) -> Any:
        """A text node."""
        node = self.scene.AddNewNodeByClass("vtkMRMLTextNode", name)
        nodes.fill_text(node, text)
        return node

    def show(self, volume: Any) -> None:
        """Slicer's three slice views show `volume`, cut through its middle, when the scene is opened."""
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)
        for name, orientation in (("Red", "Axial"), ("Yellow", "Sagittal"), ("Green", "Coronal")):
            logic = self._introduced(slicer.vtkMRMLSliceLogic())
            logic.AddSliceNode(name).SetOrientation(orientation)
            logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
            logic.FitSliceToBackground(400, 400)

    def counts(self) -> dict[str, int]:
        """How many nodes of the classes in :data:`COUNTED` the scene has."""
        return {name: self.scene.GetNumberOfNodesByClass(name) for name in COUNTED}

    def segments(self) -> dict[str, list[str]]:
        """The segments' names of each segmentation."""
        found = {}
        for n in range(self.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
            node = self.scene.GetNthNodeByClass(n, "vtkMRMLSegmentationNode")
            segmentation = node.GetSegmentation()
            count = segmentation.GetNumberOfSegments()
            found[node.GetName()] = [segmentation.GetNthSegment(i).GetName() for i in range(count)]
        return found

    def save(self, path: Path) -> None:
        """Write the scene as a bundle (.mrb), and open it again in a scene of its own to see that nothing is lost."""
        path.unlink(missing_ok=True)
        if not self.scene.WriteToMRB(str(path.absolute())):
            raise MLIError(
                f"The scene could not be written to {path}.", "", "Check the free space and the permissions."
            )
        other = Core()
        opened = other.scene.ReadFromMRB(str(path.absolute()))
        if not opened or other.counts() != self.counts() or other.segments() != self.segments():
            raise MLIError(
                f"The scene {path} does not open as it was saved.",
                f"It holds {other.counts()} instead of {self.counts()}.",
                "Please report this.",
            )


def _loaded(node: Any, path: Path) -> Any:
    if node is None:
        raise MLIError(f"Slicer's own logic does not load {path}.", "", "Please report this.")
    return node

"""What a classical method starts from in a scene: scribbles, points and a mask, as files for the worker.

Scribbles are segments; the one called "background" says where nothing of the others is. Of points, those called so do.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MLILib.classical.requests import METHODS
from MLILib.errors import BadInput

from . import exchange, nodes
from .jobs import Steps
from .scene_labels import SceneLabels

#: Name of the segment, or of the points, that mark background.
BACKGROUND = "background"
_OBJECT_COLOR, _BACKGROUND_COLOR = (0.90, 0.30, 0.25), (0.25, 0.45, 0.85)


@dataclasses.dataclass
class Start:
    """What a method starts from.

    Attributes:
        method: one of :data:`MLILib.classical.requests.METHODS`.
        scribbles: segments in what is sought, and in the background; or None.
        points: seeds as points, or None.
        mask: the method looks only inside of its segments; or None.
    """

    method: str
    scribbles: slicer.vtkMRMLSegmentationNode | None = None
    points: slicer.vtkMRMLMarkupsFiducialNode | None = None
    mask: slicer.vtkMRMLSegmentationNode | None = None


def needs(method: str) -> str:
    """What a method starts from: "", "optional", "inside" or "both"."""
    return METHODS[method][1]


def write(start: Start, volume: slicer.vtkMRMLScalarVolumeNode, folder: Path, files: dict[Path, Any]) -> Steps:
    """Write what a method starts from on a volume's grid; the result is the task's settings.

    Args:
        start: the method and its seeds; seeds that it has no use for are left out.
        volume: the image.
        folder: of the job.
        files: receives the node of each file.

    Raises:
        BadInput: there are no segments or points, or they cannot be brought onto the grid.
    """
    told: dict[str, Any] = {"method": start.method, "background": BACKGROUND}
    if start.scribbles is not None and needs(start.method):
        known = SceneLabels.of([start.scribbles])
        if not known.labels:
            raise BadInput(
                f"{start.scribbles.GetName()} has no segment.",
                "It holds no scribbles.",
                "Press 'Paint', and draw some.",
            )
        path = folder / "seeds.nrrd"
        files[path], told["seeds"] = start.scribbles, str(path)
        told["names"] = [f"{label['value']}={label['name']}" for label in known.labels]
        yield from exchange.write_segments(start.scribbles, known.values[0], volume, path)
    if start.points is not None and needs(start.method):
        found = nodes.markups_of(start.points, None)
        if not found["markups"][0]["controlPoints"]:
            raise BadInput(
                f"{start.points.GetName()} holds no point.", "", "Press 'Place', and click into a slice view."
            )
        path = folder / "points.mrk.json"
        files[path], told["points"] = start.points, str(path)
        path.write_text(json.dumps(found), encoding="utf-8")
        yield None
    if start.mask is not None:
        ids = list(start.mask.GetSegmentation().GetSegmentIDs())
        if not ids:
            raise BadInput(
                f"{start.mask.GetName()} has no segment.", "It was chosen as a mask.", "Choose another mask."
            )
        path = folder / "mask.nrrd"
        files[path], told["mask"] = start.mask, str(path)
        yield from exchange.write_segments(start.mask, dict.fromkeys(ids, 1), volume, path)
    return told


def as_drawn(start: Start, labels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The labels of a result with the colours and meanings of the scribbles they grew from."""
    known = SceneLabels.of([start.scribbles] if start.scribbles is not None else [])
    return [known.known(label) for label in labels]


def paint(
    volume: slicer.vtkMRMLScalarVolumeNode, scribbles: slicer.vtkMRMLSegmentationNode | None
) -> slicer.vtkMRMLSegmentationNode:
    """Open the Segment Editor on scribbles over a volume; new ones have a segment for either side.

    Returns:
        The scribbles.
    """
    if scribbles is None:
        title = _("{name} scribbles").format(name=volume.GetName())
        scribbles = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", title)
        scribbles.CreateDefaultDisplayNodes()
        scribbles.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        scribbles.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        for name, color in ((_("object"), _OBJECT_COLOR), (BACKGROUND, _BACKGROUND_COLOR)):
            scribbles.GetSegmentation().AddEmptySegment("", name, color)
        nodes.file_beside(scribbles, volume)
    tag = "SegmentEditor"  # the parameters of the module of that name, which shows what they say
    editor = slicer.mrmlScene.GetSingletonNode(tag, "vtkMRMLSegmentEditorNode")
    if editor is None:
        editor = slicer.vtkMRMLSegmentEditorNode()
        editor.SetSingletonTag(tag)
        editor = slicer.mrmlScene.AddNode(editor)
    editor.SetAndObserveSegmentationNode(scribbles)
    editor.SetAndObserveSourceVolumeNode(volume)
    slicer.util.selectModule(tag)
    return scribbles


def place(
    volume: slicer.vtkMRMLScalarVolumeNode, points: slicer.vtkMRMLMarkupsFiducialNode | None
) -> slicer.vtkMRMLMarkupsFiducialNode:
    """Let the next clicks into slice views add seeds, until the right button is pressed.

    Returns:
        The list that receives them, a new one where there was none.
    """
    if points is None:
        title = _("{name} seeds").format(name=volume.GetName())
        points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", title)
        points.CreateDefaultDisplayNodes()
    logic = slicer.modules.markups.logic()
    logic.SetActiveList(points)
    logic.StartPlaceMode(True)
    return points

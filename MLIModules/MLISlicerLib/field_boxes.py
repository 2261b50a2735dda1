"""Receptive fields as boxes in the views: what of the image a point's label can see, and what it does see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import nodes
from .nodes import node_or_new

#: Kinds of boxes with their colours.
_BOXES = {"theoretical": (0.95, 0.75, 0.10), "effective": (0.15, 0.80, 0.85)}


def show(result: Any, volume: slicer.vtkMRMLVolumeNode, previous: Mapping[str, Any]) -> None:
    """Put the boxes of the first method's result into the scene, and those into `result`.

    Args:
        result: a :class:`MLISlicerLib.explanation.Result`.
        volume: the volume that was explained; the boxes move with it.
        previous: boxes to fill again, by their kind.
    """
    found = result.details[0].get("receptive_field") or {}
    names = {"theoretical": _("{name} can see"), "effective": _("{name} does see")}
    for kind, color in _BOXES.items():
        if found.get(kind):
            name = names[kind].format(name=volume.GetName())
            node = node_or_new(previous.get(kind), "vtkMRMLMarkupsROINode", name)
            _fill(node, found[kind], volume, color)
            setattr(result, kind, node)


def _fill(
    node: slicer.vtkMRMLMarkupsROINode,
    box: Mapping[str, Any],
    volume: slicer.vtkMRMLVolumeNode,
    color: tuple[float, float, float],
) -> None:
    """Give a box its place and its looks; it cannot be moved by hand."""
    place = np.eye(4)
    place[:3, :3] = np.array(box["axes_ras"], float).T * np.array(box["size_mm"], float)
    place[:3, 3] = box["center_ras"]
    local = np.linalg.inv(nodes.to_world(volume)) @ place
    sizes = np.linalg.norm(local[:3, :3], axis=0)
    local[:3, :3] /= sizes
    if np.linalg.det(local[:3, :3]) < 0:
        local[:3, 2] *= -1  # a box is the same from both sides, and Slicer wants right-handed axes
    with slicer.util.NodeModify(node):
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        node.SetROIType(slicer.vtkMRMLMarkupsROINode.ROITypeBox)
        node.SetSize(*(float(size) for size in sizes))
        node.SetAndObserveObjectToNodeMatrix(nodes.vtk_matrix_of(local))
        node.SetLocked(True)
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    with slicer.util.NodeModify(display):
        display.SetSelectedColor(*color)
        display.SetColor(*color)
        display.SetFillOpacity(0.0)
        display.SetFillVisibility(False)
        display.SetHandlesInteractive(False)
        display.SetPropertiesLabelVisibility(False)


def set_visible(boxes: list[Any], visible: bool) -> None:
    """Show or hide boxes."""
    for node in boxes:
        if node is not None and node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetVisibility(visible)


def words(found: Mapping[str, Any] | None) -> str:
    """The sizes of the boxes, a sentence; "" for none.

    Args:
        found: `receptive_field` of a result.
    """
    if not found:
        return ""
    told = []
    if found.get("theoretical"):
        told.append(_("can see {size} (yellow box)").format(size=_size(found["theoretical"])))
    if found.get("effective"):
        share = found["effective"].get("share")
        sees = _("does see {size} (blue box)").format(size=_size(found["effective"]))
        told.append(sees if share is None else _("{sees}, {share:.0%} of its gradient").format(sees=sees, share=share))
    return _("The point's label {told}.").format(told=_(" and ").join(told))


def _size(box: Mapping[str, Any]) -> str:
    sizes = " \N{MULTIPLICATION SIGN} ".join(f"{float(size):.0f}" for size in box["size_mm"])
    return _("{sizes} mm").format(sizes=sizes)

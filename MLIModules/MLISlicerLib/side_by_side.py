"""Up to four slice views beside each other, in a layout of their own, that move together: one picture in each.

The views belong to no other layout and to a group of their own, so that the user's Red, Green and Yellow stay as they
are. Where there is no main window nothing is shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import slicer

from .display import OPACITY, OWN_VIEWS

#: Pictures that there is room for.
MOST = 4
#: Numbers of the layouts for one picture, two ... ; Slicer's own are below 100.
_LAYOUT = 7340
#: Views of a group follow each other; Slicer's own are in group 0.
_GROUP = 734
_TAG = OWN_VIEWS + "{number}"
_COLORS = ("#3878b8", "#d9822b", "#4c9f5b", "#8e5ea2")


@dataclasses.dataclass(frozen=True)
class Picture:
    """What one view shows.

    Attributes:
        volume: below.
        over: above it, or None.
        opacity: of what is above.
    """

    volume: Any
    over: Any = None
    opacity: float = OPACITY


def show(pictures: Sequence[Picture], labels: Sequence[str], orientation: str = "Axial", point: Any = None) -> None:
    """Show each picture in a view of its own.

    Args:
        pictures: the first :data:`MOST` are shown.
        labels: short name of each, for the view's corner.
        orientation: of all views; "native" is that of the first volume's slices.
        point: (R, A, S) that the views go through; by default the volume's middle.
    """
    manager = slicer.app.layoutManager()
    if manager is None or not pictures:
        return
    pictures = list(pictures)[:MOST]
    number = _LAYOUT + len(pictures)
    layout = manager.layoutLogic().GetLayoutNode()
    if not layout.IsLayoutDescription(number):
        layout.AddLayoutDescription(number, _description(len(pictures)))
    manager.setLayout(number)
    for index, picture in enumerate(pictures):
        logic = manager.sliceWidget(_TAG.format(number=index + 1)).sliceLogic()
        view, composite = logic.GetSliceNode(), logic.GetSliceCompositeNode()
        with slicer.util.NodeModify(composite):
            composite.SetLinkedControl(True)
            composite.SetHotLinkedControl(True)
            composite.SetBackgroundVolumeID(picture.volume.GetID())
            composite.SetForegroundVolumeID(None if picture.over is None else picture.over.GetID())
            composite.SetForegroundOpacity(picture.opacity)
            composite.SetLabelVolumeID(None)
        view.SetLayoutLabel(labels[index])
        view.SetViewGroup(_GROUP)  # closing a scene sets a view back, and the layout's description is for new ones
        view.SetLayoutColor(*(int(_COLORS[index][i : i + 2], 16) / 255 for i in (1, 3, 5)))
        if orientation == "native":
            view.SetOrientationToDefault()
            view.RotateToVolumePlane(pictures[0].volume)
        else:
            view.SetOrientation(orientation)
        logic.FitSliceToAll()
        if point is not None:
            view.JumpSliceByCentering(*point)


def view_id(number: int) -> str:
    """The id of the slice view of this number, from 1, for what is to be seen in no other; shown before."""
    return str(slicer.app.layoutManager().sliceWidget(_TAG.format(number=number)).mrmlSliceNode().GetID())


def shown() -> bool:
    """Whether one of these layouts is the main window's."""
    manager = slicer.app.layoutManager()
    return manager is not None and _LAYOUT < manager.layout <= _LAYOUT + MOST


def hide(layout: int) -> None:
    """Go back to a layout, if one of these is shown."""
    if shown():
        slicer.app.layoutManager().setLayout(layout)


def current() -> int:
    """The main window's layout; that of four views where it is one of these, or there is none."""
    manager = slicer.app.layoutManager()
    if manager is None or shown():
        return int(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    return int(manager.layout)


def set_opacity(opacity: float) -> None:
    """Set how strongly the upper volumes cover the lower ones in these views."""
    tags = [_TAG.format(number=number) for number in range(1, MOST + 1)]
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        if composite.GetLayoutName() in tags:
            composite.SetForegroundOpacity(opacity)


def _description(count: int) -> str:
    """The layout of `count` views: in one row, or four in two."""
    views = [_view(number) for number in range(1, count + 1)]
    if count < MOST:
        return _box("horizontal", views)
    rows = [_box("horizontal", views[:2]), _box("horizontal", views[2:])]
    return _box("vertical", rows)


def _box(kind: str, inner: Sequence[str]) -> str:
    return f'<layout type="{kind}" split="true">' + "".join(f"<item>{part}</item>" for part in inner) + "</layout>"


def _view(number: int) -> str:
    properties = {
        "orientation": "Axial",
        "viewlabel": str(number),
        "viewcolor": _COLORS[number - 1],
        "viewgroup": str(_GROUP),
    }
    told = "".join(f'<property name="{key}" action="default">{value}</property>' for key, value in properties.items())
    return f'<view class="vtkMRMLSliceNode" singletontag="{_TAG.format(number=number)}">{told}</view>'

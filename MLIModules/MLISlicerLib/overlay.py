"""How two registered volumes are looked at: one over the other, in turn, as a checkerboard, difference or histogram.

Everything is made from the nodes as they are, through Slicer's own transforms, so that it also works on a scene that
was loaded, or after the transform was edited.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from MLILib.errors import BadInput

from . import display, nodes, transforms
from .display import composites
from .jobs import Status, Steps
from .nodes import node_or_new

#: How strongly the moving volume covers the fixed one.
OPACITY = 0.5
#: Squares of a checkerboard along the longest edge.
_SQUARES = 8
#: Voxels that are looked at for the range of a volume, and for a histogram.
_SAMPLES = 1 << 18
#: Bins of a joint histogram along each axis, and pixels between the two.
_BINS, _GAP = 96, 12


def show_pair(fixed: slicer.vtkMRMLVolumeNode, moving: slicer.vtkMRMLVolumeNode, opacity: float = OPACITY) -> None:
    """Show the moving volume over the fixed one in all slice views."""
    for composite in composites():
        with slicer.util.NodeModify(composite):
            composite.SetBackgroundVolumeID(fixed.GetID())
            composite.SetForegroundVolumeID(moving.GetID())
            composite.SetForegroundOpacity(opacity)


def show_alone(volume: slicer.vtkMRMLVolumeNode) -> None:
    """Show one volume in all slice views."""
    for composite in composites():
        with slicer.util.NodeModify(composite):
            composite.SetBackgroundVolumeID(volume.GetID())
            composite.SetForegroundVolumeID(None)


def flick(opacity: float) -> None:
    """Set how strongly the upper volume covers the lower one."""
    for composite in composites():
        composite.SetForegroundOpacity(opacity)


def look_like(volume: slicer.vtkMRMLScalarVolumeNode, model: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Give a volume the window and colours of another of the same intensities."""
    shown = model.GetScalarVolumeDisplayNode()
    if shown is None:
        volume.CreateDefaultDisplayNodes()
        return
    if volume.GetDisplayNode() is None:
        made = slicer.mrmlScene.CreateNodeByClass(shown.GetClassName())
        made.UnRegister(None)
        made.CopyContent(shown)
        volume.AddAndObserveDisplayNodeID(slicer.mrmlScene.AddNode(made).GetID())


def checkerboard_steps(fixed: Any, moving: Any, transform: Any, given: Any = None) -> Steps:
    """The steps that make a volume whose squares are the fixed and the moving volume in turn; their result is its node.

    The moving volume's range of grey is brought to the fixed one's.

    Args:
        fixed: gives the grid.
        moving: taken through `transform`.
        transform: of a registration.
        given: node to fill; a new one when None.
    """
    stage = _("Making the checkerboard")
    own, other, inside = yield from _both(fixed, moving, transform, stage)
    grid = nodes.grid_of(fixed)
    edge = max(np.array(grid.size) * grid.spacing) / _SQUARES
    i, j, k = (np.arange(n) // max(1, round(edge / s)) for n, s in zip(grid.size, grid.spacing, strict=True))
    plane = i[None, :] + j[:, None]
    for index in range(grid.size[2]):
        squares = ((plane + k[index]) % 2 == 1) & inside[index]
        own[index][squares] = other[index][squares]
        yield Status(stage, index / grid.size[2])
    made = _filled(given, own, fixed, _("{name} checkerboard").format(name=transform.GetName()))
    look_like(made, fixed)
    return made


def difference_steps(fixed: Any, moving: Any, transform: Any, given: Any = None) -> Steps:
    """The steps that make the difference fixed minus moving; their result is its node. Grey is no difference.

    The moving volume's range of grey is brought to the fixed one's; where it does not reach, the difference is 0.
    """
    stage = _("Making the difference")
    own, other, inside = yield from _both(fixed, moving, transform, stage)
    low, high = _range(own, inside)
    for index in range(len(own)):
        own[index] = np.where(inside[index], own[index] - other[index], 0.0)
        yield Status(stage, index / len(own))
    made = _filled(given, own, fixed, _("{name} difference").format(name=transform.GetName()))
    made.CreateDefaultDisplayNodes()
    display = made.GetScalarVolumeDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(-0.6 * (high - low), 0.6 * (high - low))
    return made


def histogram_steps(fixed: Any, moving: Any, transform: Any, given: Any = None) -> Steps:
    """The steps that draw the joint histogram before and after; their result is a hidden text node with the picture.

    To the right the fixed volume's intensities grow, upwards the moving one's; brightness is the logarithm of how often
    a pair of them occurs.
    """
    stage = _("Making the joint histogram")
    own = nodes.voxels_of(fixed).reshape(-1)
    step = max(1, own.size // _SAMPLES)
    pairs = []
    for before in (True, False):
        other, inside = yield from transforms.resampled(moving, fixed, transform, stage, before=before)
        there = inside.reshape(-1)[::step]
        pairs.append((own[::step][there], other.reshape(-1)[::step][there]))
        yield None
    if not pairs[1][0].size:
        raise no_overlap(fixed, moving)
    edges = [np.linspace(*_limits(np.concatenate([pair[axis] for pair in pairs])), _BINS + 1) for axis in (0, 1)]
    squares = []
    for ours, theirs in pairs:
        counts = np.log1p(np.histogram2d(theirs, ours, bins=(edges[1], edges[0]))[0])
        squares.append(counts[::-1] / max(counts.max(), 1.0))
    pixels = np.concatenate([squares[0], np.full((_BINS, _GAP), np.nan), squares[1]], axis=1)
    node = node_or_new(given, "vtkMRMLTextNode", _("{name} joint histogram").format(name=transform.GetName()))
    node.SetHideFromEditors(True)
    nodes.fill_text(node, base64.b64encode(display.png_of(pixels)).decode("ascii"))
    return node


def no_overlap(fixed: Any, moving: Any) -> BadInput:
    """The error of two volumes with nothing in common."""
    return BadInput(
        f"{moving.GetName()} and {fixed.GetName()} do not overlap.", "", "Look at the transform, or register again."
    )


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (0.2, 99.8))
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def _both(fixed: Any, moving: Any, transform: Any, stage: str) -> Steps:
    """The fixed volume, the moving one on its grid in the fixed one's range of grey, and where both are."""
    other, inside = yield from transforms.resampled(moving, fixed, transform, stage)
    if not inside.any():
        raise no_overlap(fixed, moving)
    voxels = nodes.voxels_of(fixed)
    own = np.empty(voxels.shape, np.float32)
    for index in range(len(own)):
        own[index] = voxels[index]
        yield Status(stage)
    (low, high), (other_low, other_high) = _range(own, inside), _range(other, inside)
    scale = (high - low) / max(other_high - other_low, 1e-6)
    for index in range(len(other)):
        other[index] = (other[index] - other_low) * scale + low
        yield Status(stage)
    return own, other, inside


def _range(voxels: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """Percentiles 1 and 99 of some of the voxels inside."""
    step = max(1, voxels.size // _SAMPLES)
    values = voxels.reshape(-1)[::step][inside.reshape(-1)[::step]]
    if not values.size:
        values = voxels[inside]
    low, high = np.percentile(values, (1, 99))
    return float(low), float(high)


def _filled(given: Any, voxels: np.ndarray, fixed: Any, name: str) -> Any:
    node = node_or_new(given, "vtkMRMLScalarVolumeNode", name)
    scalars = nodes.Scalars()
    scalars.allocate(voxels.dtype, voxels.size)[:] = voxels.reshape(-1)
    nodes.fill_volume(node, scalars, nodes.grid_of(fixed))
    nodes.place_like(node, fixed)
    nodes.file_beside(node, fixed)
    return node

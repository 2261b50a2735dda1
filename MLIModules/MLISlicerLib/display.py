"""How results look: segments and uncertainty over the image, a continuous colour table, a legend, a plot.

Works on MRML nodes alone, so that a scene made without a main window looks the same when it is opened in one.
"""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

_COLORS = "MLI.UncertaintyColors"
_SIGNED_COLORS = "MLI.SignedColors"
#: Fractions of the range of a signed map and colours: blue speaks against, red for (after ColorBrewer's "RdBu").
_SIGNED_STOPS = (
    (0.0, (0.02, 0.19, 0.38)),
    (0.25, (0.26, 0.58, 0.76)),
    (0.5, (0.97, 0.97, 0.97)),
    (0.75, (0.96, 0.65, 0.51)),
    (1.0, (0.70, 0.01, 0.12)),
)
_SIGNED_ENTRIES = 255
#: Share of the range of a map of attributions below which it is clear, unless the user says otherwise.
CLEAR = 0.15
_JACOBIAN_COLORS = "MLI.JacobianColors"
#: Determinants and colours: folded black to violet, shrunken blue, unchanged near white, grown red.
_JACOBIAN_STOPS = (
    (-0.001, (0.10, 0.00, 0.15)),
    (0.0, (0.25, 0.05, 0.45)),
    (0.5, (0.26, 0.50, 0.82)),
    (1.0, (0.96, 0.96, 0.96)),
    (1.5, (0.90, 0.42, 0.30)),
    (2.0, (0.55, 0.05, 0.10)),
)
#: Fractions of the range and colours: black, blue, magenta, orange, pale yellow (after matplotlib's "inferno").
_STOPS = (
    (0.0, (0.00, 0.00, 0.01)),
    (0.2, (0.26, 0.04, 0.41)),
    (0.4, (0.58, 0.15, 0.40)),
    (0.6, (0.87, 0.32, 0.23)),
    (0.8, (0.99, 0.65, 0.04)),
    (1.0, (0.99, 1.00, 0.64)),
)
#: Names of slice views that show what a module wants to compare begin so.
OWN_VIEWS = "MLI"
#: How strongly the uncertainty map covers the image.
OPACITY = 0.6
#: Voxels that are looked at for the range of a map.
_SAMPLES = 1 << 18
#: An upper threshold that no map reaches.
_UNREACHED = 1e30


def composites() -> list[slicer.vtkMRMLSliceCompositeNode]:
    """What each slice view shows, but for the views that :mod:`MLISlicerLib.side_by_side` has of its own."""
    found = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return [node for node in found if not str(node.GetLayoutName() or "").startswith(OWN_VIEWS)]


def show_over(
    volume: slicer.vtkMRMLVolumeNode, foreground: slicer.vtkMRMLVolumeNode | None = None, opacity: float = OPACITY
) -> None:
    """Show `volume` in the slice views, unless it is there already, and `foreground` over it.

    A volume that was never displayed is left so: to look for its range takes a second in a large one.
    """
    for composite in composites():
        with slicer.util.NodeModify(composite):
            shown = volume.GetDisplayNode() is not None
            if shown and volume.GetID() not in (composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID()):
                composite.SetBackgroundVolumeID(volume.GetID())
            if foreground is not None:
                composite.SetForegroundVolumeID(foreground.GetID())
                composite.SetForegroundOpacity(opacity)


def show_as_uncertainty(volume: slicer.vtkMRMLScalarVolumeNode, maximum: float, title: str, unit: str = "nats") -> None:
    """Give an uncertainty map its colours, from 0 to `maximum`, and a legend; what is below its threshold is clear.

    Args:
        volume: the map.
        maximum: the largest value it can have.
        title: of the legend.
        unit: of the map.
    """
    if volume.GetDisplayNode() is None:
        volume.AddAndObserveDisplayNodeID(_display_node(maximum).GetID())
    display = volume.GetScalarVolumeDisplayNode()
    with slicer.util.NodeModify(display):
        display.SetAutoWindowLevel(False)
        display.SetWindowLevelMinMax(0.0, maximum)
        display.SetAutoThreshold(False)
        display.SetThreshold(0.1 * maximum, maximum)
        display.SetApplyThreshold(True)
        display.SetAndObserveColorNodeID(_color_node(maximum, unit).GetID())
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(display)
    legend.SetTitleText(title)
    legend.SetLabelFormat("%.2f")
    legend.SetNumberOfLabels(5)


def show_as_jacobian(volume: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Give a map of Jacobian determinants its colours: white where nothing changes, blue shrinks, red grows."""
    if volume.GetDisplayNode() is None:
        volume.AddAndObserveDisplayNodeID(_display_node(2.0).GetID())
    display = volume.GetScalarVolumeDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, 2.0)
    display.SetAndObserveColorNodeID(_procedural(_JACOBIAN_COLORS, "1", "Jacobian", _JACOBIAN_STOPS).GetID())
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(display)
    legend.SetTitleText("Volume change")
    legend.SetLabelFormat("%.1f")
    legend.SetNumberOfLabels(5)


def show_as_attribution(volume: slicer.vtkMRMLScalarVolumeNode, low: float, high: float, title: str) -> None:
    """Give a map of attributions its colours and a legend; what is small is clear (see :func:`hide_small`).

    A map with values below 0 gets diverging colours: white is 0, and as far to both sides. The others get those of the
    uncertainty maps.

    Args:
        volume: the map.
        low, high: the window; round 0, or from 0.
        title: of the legend.
    """
    if not high > low:
        high = low + 1.0
    signed = low < 0
    if volume.GetDisplayNode() is None:
        volume.AddAndObserveDisplayNodeID(_display_node(high).GetID())
    display = volume.GetScalarVolumeDisplayNode()
    colors = _signed_colors() if signed else _color_node(1.0, "share", _("Share of the largest"))
    with slicer.util.NodeModify(display):
        display.SetAutoWindowLevel(False)
        display.SetWindowLevelMinMax(low, high)
        display.SetAutoThreshold(False)
        display.SetApplyThreshold(False)
        display.SetAndObserveColorNodeID(colors.GetID())
    hide_small(volume, CLEAR)
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(display)
    legend.SetTitleText(title)
    legend.SetLabelFormat("%.2g")
    legend.SetNumberOfLabels(5)


def show_window(volume: slicer.vtkMRMLScalarVolumeNode, low: float, high: float) -> None:
    """Show the values from `low` to `high` in grey; to let Slicer find them takes long in a big volume."""
    if volume.GetDisplayNode() is None:
        volume.AddAndObserveDisplayNodeID(_display_node(high).GetID())
    display = volume.GetScalarVolumeDisplayNode()
    with slicer.util.NodeModify(display):
        display.SetDefaultColorMap()
        display.SetApplyThreshold(False)
        display.SetAutoWindowLevel(False)
        display.SetWindowLevelMinMax(low, high if high > low else low + 1.0)


def hide_small(volume: slicer.vtkMRMLScalarVolumeNode, share: float) -> None:
    """Make a map of attributions clear where it is small.

    Args:
        volume: the map; signed maps share their colours, and with them this.
        share: of the window's upper end, 0 to 1.
    """
    display = volume.GetScalarVolumeDisplayNode()
    colors = display.GetColorNode()
    if colors is None or not colors.GetAttribute(_SIGNED_COLORS):
        high = display.GetWindowLevelMax()
        display.SetAutoThreshold(False)
        display.SetThreshold(share * high, max(high, _UNREACHED))
        display.SetApplyThreshold(True)
        return
    with slicer.util.NodeModify(colors):
        middle = _SIGNED_ENTRIES // 2
        for entry in range(_SIGNED_ENTRIES):
            # Slicer shows an entry or it does not: between clear and opaque there is nothing
            colors.SetOpacity(entry, 0.0 if abs(entry - middle) < share * middle else 1.0)


def robust_window(voxels: np.ndarray, signed: bool) -> tuple[float, float]:
    """The range that all but the most extreme voxels lie in: round 0 if signed, else from 0.

    Args:
        voxels: any shape; of a large volume some are looked at.
        signed: whether values below 0 matter.
    """
    flat = voxels.reshape(-1)
    sizes = np.abs(flat[:: max(1, flat.size // _SAMPLES)])
    sizes = sizes[sizes > 0]
    high = float(np.percentile(sizes, 99.5)) if sizes.size else 1.0
    return (-high if signed else 0.0), high


def show_above(volume: slicer.vtkMRMLScalarVolumeNode, threshold: float) -> None:
    """Make an uncertainty map clear where it is below `threshold`."""
    display = volume.GetScalarVolumeDisplayNode()
    display.SetThreshold(threshold, max(threshold, display.GetWindowLevelMax()))


def _display_node(maximum: float) -> slicer.vtkMRMLScalarVolumeDisplayNode:
    """A display node that does not look for the range of the voxels by itself, which takes long in a big volume."""
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScalarVolumeDisplayNode")
    node.UnRegister(None)
    node.SetAutoWindowLevel(False)
    node.SetWindowLevelMinMax(0.0, maximum)
    return slicer.mrmlScene.AddNode(node)


def _color_node(maximum: float, unit: str, name: str = "") -> slicer.vtkMRMLProceduralColorNode:
    """The scene's continuous colour table from 0 to `maximum`, made when there is none."""
    stops = tuple((fraction * maximum, color) for fraction, color in _STOPS)
    return _procedural(_COLORS, f"{maximum:.4f} {unit}", name or f"Uncertainty 0 to {maximum:.2f} {unit}", stops)


def _signed_colors() -> slicer.vtkMRMLColorTableNode:
    """The scene's colour table of signed maps, made when there is none."""
    for node in slicer.util.getNodesByClass("vtkMRMLColorTableNode"):
        if node.GetAttribute(_SIGNED_COLORS):
            return node
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", _("Against and for"))
    node.SetAttribute(_SIGNED_COLORS, "1")
    with slicer.util.NodeModify(node):
        node.SetTypeToUser()
        node.SetNumberOfColors(_SIGNED_ENTRIES)
        fractions = [fraction for fraction, color in _SIGNED_STOPS]
        for entry in range(_SIGNED_ENTRIES):
            where = entry / (_SIGNED_ENTRIES - 1)
            color = [float(np.interp(where, fractions, [c[part] for f, c in _SIGNED_STOPS])) for part in range(3)]
            node.SetColor(entry, f"{2 * where - 1:+.2f}", *color, 1.0)
    return node


def _procedural(
    attribute: str, key: str, name: str, stops: tuple[tuple[float, tuple[float, float, float]], ...]
) -> slicer.vtkMRMLProceduralColorNode:
    """The scene's colour table that was made under this key, or a new one."""
    for node in slicer.util.getNodesByClass("vtkMRMLProceduralColorNode"):
        if node.GetAttribute(attribute) == key:
            return node
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLProceduralColorNode", name)
    node.SetAttribute(attribute, key)
    function = vtk.vtkDiscretizableColorTransferFunction()
    for value, color in stops:
        function.AddRGBPoint(value, *color)
    node.SetAndObserveColorTransferFunction(function)
    return node


def png_of(pixels: np.ndarray) -> bytes:
    """A picture of numbers from 0 to 1 in the colours of the uncertainty maps; NaN is clear.

    Args:
        pixels: (rows, columns), the first row on top.
    """
    fractions = [fraction for fraction, color in _STOPS]
    known = np.nan_to_num(pixels[::-1])  # VTK's first row is at the bottom
    planes = [np.interp(known, fractions, [color[part] for fraction, color in _STOPS]) for part in range(3)]
    planes.append(np.isfinite(pixels[::-1]).astype(float))
    bytes_ = np.ascontiguousarray(np.round(255 * np.stack(planes, axis=-1)).astype(np.uint8).reshape(-1, 4))
    image = vtk.vtkImageData()
    image.SetDimensions(pixels.shape[1], pixels.shape[0], 1)
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(bytes_, deep=True))
    writer = vtk.vtkPNGWriter()
    writer.WriteToMemoryOn()
    writer.SetInputData(image)
    writer.Write()
    return numpy_support.vtk_to_numpy(writer.GetResult()).tobytes()


def show_plot(chart: slicer.vtkMRMLPlotChartNode) -> None:
    """Show a chart, in a layout that has room for it."""
    slicer.modules.plots.logic().ShowChartInLayout(chart)

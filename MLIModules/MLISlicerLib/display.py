"""How results look: segments and uncertainty over the image, a continuous colour table, a legend, a plot.

Works on MRML nodes alone, so that a scene made without a main window looks the same when it is opened in one.
"""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

_COLORS = "MLI.UncertaintyColors"
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
#: How strongly the uncertainty map covers the image.
_OPACITY = 0.6


def show_over(volume: slicer.vtkMRMLVolumeNode, foreground: slicer.vtkMRMLVolumeNode | None = None) -> None:
    """Show `volume` in the slice views, unless it is there already, and `foreground` over it.

    A volume that was never displayed is left so: to look for its range takes a second in a large one.
    """
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        with slicer.util.NodeModify(composite):
            shown = volume.GetDisplayNode() is not None
            if shown and volume.GetID() not in (composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID()):
                composite.SetBackgroundVolumeID(volume.GetID())
            if foreground is not None:
                composite.SetForegroundVolumeID(foreground.GetID())
                composite.SetForegroundOpacity(_OPACITY)


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


def _color_node(maximum: float, unit: str) -> slicer.vtkMRMLProceduralColorNode:
    """The scene's continuous colour table from 0 to `maximum`, made when there is none."""
    stops = tuple((fraction * maximum, color) for fraction, color in _STOPS)
    return _procedural(_COLORS, f"{maximum:.4f} {unit}", f"Uncertainty 0 to {maximum:.2f} {unit}", stops)


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
    fractions = [fraction for fraction, _ in _STOPS]
    known = np.nan_to_num(pixels[::-1])  # VTK's first row is at the bottom
    planes = [np.interp(known, fractions, [color[part] for _, color in _STOPS]) for part in range(3)]
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

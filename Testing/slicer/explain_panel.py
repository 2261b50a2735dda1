"""What the tests of MLI Explainability share: the scene before a job, and what is shown afterwards."""

import json
from pathlib import Path

import slicer
from scenes import add_volume

MODULE = Path(__file__).resolve().parents[2] / "MLIModules" / "Explainability" / "MLIExplainability.py"


def ready(panel, size=(20, 18, 16)):
    """A volume, chosen as it is when the panel is entered."""
    volume = add_volume("head", size=size)
    panel.initializeParameterNode()
    return volume


def add_point(*places, name="point"):
    """A list of points with these places, RAS mm."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    for place in places:
        node.AddControlPoint(*place)
    return node


def record(panel, name="record"):
    """The settings of the last run, as its record names them."""
    return json.loads(getattr(panel._parameterNode, name).GetText())["settings"]


def composite(tag):
    """The layers of the slice view of that name."""
    found = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return next(node for node in found if node.GetLayoutName() == tag)


def rgba(volume):
    """What a slice view makes of a volume's voxels."""
    display = volume.GetDisplayNode()
    display.GetOutputImageDataConnection().GetProducer().Update()
    from vtk.util import numpy_support

    return numpy_support.vtk_to_numpy(display.GetOutputImageData().GetPointData().GetScalars()).astype(int)

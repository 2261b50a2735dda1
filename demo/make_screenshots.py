"""Makes the pictures of README.md: the panels before, during and after a job; the demo's picture.

Run as ``python demo/make_screenshots.py [MODULE ...]`` after ``make demo``; without names, for all modules.
The stand-in for Slicer's widgets draws the panels.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "Resources" / "Screenshots"
_WIDTH = 460
_PATIENCE = 300.0


def main() -> int:
    """Entry point of the command."""
    drawn = ROOT / "demo-output" / "MNI152_right_hippocampus.png"
    if not drawn.exists():
        print("Run `make demo` first: its picture is one of the README's.", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    shutil.copy(drawn, FOLDER / drawn.name)

    import slicer  # first: slicer-core takes folders called "slicer" beside later path entries for its own

    sys.path += [str(ROOT / "MLIModules"), str(ROOT / "Testing")]
    standin: Any = importlib.import_module("slicer_standin")
    standin.install()
    pictures = {
        "MLISegmentation": _segmentation,
        "MLIRegistration": _registration,
        "MLIAtlasFusion": _fusion,
        "MLIExplainability": _explanation,
        "MLIAnomalyGAN": _anomaly,
    }
    for name in sys.argv[1:] or pictures:
        pictures[name](standin)
        standin.check_slots()
        slicer.mrmlScene.Clear()
    jobs: Any = importlib.import_module("MLISlicerLib.jobs")
    jobs.shared_runner().close()
    return 0


def _segmentation(standin: Any) -> None:
    """The right hippocampus, with its uncertainty map."""
    instance, widget = standin.load_module(str(ROOT / "MLIModules" / "Segmentation" / "MLISegmentation.py"))
    sample_data: Any = importlib.import_module("SampleData")
    importlib.import_module(type(instance).__module__).registerSampleData()
    sample_data.downloadSample("MNI152 right hippocampus")
    widget.enter()
    widget.ui.uncertaintyCheckBox.checked = True
    _grab(standin, widget, "ready")
    widget.ui.applyButton.click()
    standin.process_events_until(lambda: widget.ui.progressBar.value > 0 or widget.job is None, _PATIENCE)
    _grab(standin, widget, "running")
    standin.process_events_until(lambda: widget.job is None, _PATIENCE)
    _grab(standin, widget, "result")
    node = widget._parameterNode
    node.scribbles = _strokes(node.inputVolume, node.outputSegmentation)
    node.outputSegmentation, node.volumesTable, node.outputUncertainty = None, None, None
    widget.ui.methodComboBox.setCurrentIndex(widget.ui.methodComboBox.findData("graph-cut"))
    widget.ui.applyButton.click()
    standin.process_events_until(lambda: widget.job is None, _PATIENCE)
    _grab(standin, widget, "classical")


def _strokes(volume: Any, found: Any) -> Any:
    """Scribbles as a user might draw them: some slices of what the model found, and the rim of the image."""
    import numpy as np
    import slicer

    segments = found.GetSegmentation()
    inside = np.any(
        [slicer.util.arrayFromSegmentBinaryLabelmap(found, one, volume) > 0 for one in segments.GetSegmentIDs()], axis=0
    )
    drawn = np.zeros_like(inside)
    drawn[::6] = inside[::6]
    rim = np.pad(np.zeros([n - 6 for n in inside.shape], bool), 3, constant_values=True)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "scribbles")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for name, mask in (("hippocampus", drawn), ("background", rim & ~inside)):
        identifier = node.GetSegmentation().AddEmptySegment("", name)
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), node, identifier, volume)
    return node


def _registration(standin: Any) -> None:
    """The moved hippocampus brought back, with landmarks and the joint histogram."""
    instance, widget = standin.load_module(str(ROOT / "MLIModules" / "Registration" / "MLIRegistration.py"))
    sample_data: Any = importlib.import_module("SampleData")
    importlib.import_module(type(instance).__module__).registerSampleData()
    fixed, moving, fixed_points, moving_points = sample_data.downloadSamples("MNI152 right hippocampus, moved")
    widget.enter()
    node = widget._parameterNode
    node.fixedVolume, node.movingVolume, node.fixedPoints, node.movingPoints = (
        fixed,
        moving,
        fixed_points,
        moving_points,
    )
    widget.ui.guidanceCollapsibleButton.collapsed = False
    _grab(standin, widget, "ready")
    widget.ui.guidanceCollapsibleButton.collapsed = True
    widget.ui.applyButton.click()

    def bends() -> bool:
        status = widget.job.status if widget.job is not None else None
        return status is None or (status.stage == "Deformable" and (status.fraction or 0.0) > 0.2)

    standin.process_events_until(bends, _PATIENCE)
    _grab(standin, widget, "running")
    standin.process_events_until(lambda: widget.job is None, _PATIENCE)
    widget.ui.histogramButton.click()
    standin.process_events_until(lambda: widget.job is None, _PATIENCE)
    _grab(standin, widget, "result")


def _fusion(standin: Any) -> None:
    """The sample atlases fused by joint label fusion, beside the reference; none is taken from the cache."""
    instance, widget = standin.load_module(str(ROOT / "MLIModules" / "AtlasFusion" / "MLIAtlasFusion.py"))
    sample = importlib.import_module(type(instance).__module__).loadAtlases()
    widget.enter()
    node = widget._parameterNode
    node.targetVolume, node.reference, node.keep = sample.volume, sample.reference, False
    standin.process_events_until(lambda: node.atlasFolder, _PATIENCE)
    _grab(standin, widget, "ready")
    widget.ui.applyButton.click()

    def half() -> bool:
        status = widget.job.status if widget.job is not None else None
        return status is None or "done" in status.raters.values()

    standin.process_events_until(half, _PATIENCE)
    _grab(standin, widget, "running")
    standin.process_events_until(lambda: widget.job is None, 2 * _PATIENCE)
    _grab(standin, widget, "result")


def _explanation(standin: Any) -> None:
    """Why the shipped model says "anterior" at a point: three methods side by side."""
    instance, widget = standin.load_module(str(ROOT / "MLIModules" / "Explainability" / "MLIExplainability.py"))
    importlib.import_module(type(instance).__module__).loadSample()
    widget.enter()
    node, ui = widget._parameterNode, widget.ui
    ui.whereComboBox.setCurrentIndex(ui.whereComboBox.findData("point"))
    widget.onWhereActivated(0)
    node.target, node.method, node.compare = "anterior", "gradient", ["guided-backpropagation", "grad-cam"]
    layers: Any = importlib.import_module("MLISlicerLib.explanation_layers")
    standin.process_events_until(lambda: layers.known(node.model) is not None, _PATIENCE)
    _grab(standin, widget, "ready")
    ui.applyButton.click()
    standin.process_events_until(lambda: widget.job is None, 2 * _PATIENCE)
    _grab(standin, widget, "result")
    _draw_maps(node, FOLDER / "MLIExplainability_maps.png")


def _anomaly(standin: Any) -> None:
    """The sample volumes learned by an autoencoder, and the one with a lesion looked at."""
    instance, widget = standin.load_module(str(ROOT / "MLIModules" / "AnomalyGAN" / "MLIAnomalyGAN.py"))
    module: Any = importlib.import_module(type(instance).__module__)
    sample = module.loadSample()
    widget.enter()
    node, ui = widget._parameterNode, widget.ui
    node.inputVolume, node.normals = sample.volume, list(sample.normals)
    node.trainName, node.modelType, node.plane, node.steps = "hippocampus-normal", "ae", "coronal", 150
    node.size, node.latent, node.filters = 32, 32, 16
    ui.tabWidget.currentIndex = 1
    _grab(standin, widget, "running")
    ui.trainButton.click()
    standin.process_events_until(lambda: len(widget._points) > 24 or widget.job is None, _PATIENCE)
    _grab(standin, widget, "running")
    standin.process_events_until(lambda: widget.job is None, 2 * _PATIENCE)
    ui.tabWidget.currentIndex = 0
    node.inputVolume, node.reference = sample.volume, sample.lesion
    ui.applyButton.click()
    standin.process_events_until(lambda: widget.job is None, _PATIENCE)
    _grab(standin, widget, "result")
    shutil.rmtree(importlib.import_module("MLILib.folders").user() / "hippocampus-normal")


def _draw_maps(node: Any, path: Path) -> None:
    """The slice through the explained point with each map over it, in the colours that Slicer's views give it."""
    import matplotlib as mpl

    mpl.use("Agg")  # its pictures are files; Qt is the stand-in's
    import matplotlib.pyplot as plt
    import numpy as np
    import slicer
    import vtk
    from vtk.util import numpy_support

    place, inverse = [0.0, 0.0, 0.0], vtk.vtkMatrix4x4()
    node.point.GetNthControlPointPositionWorld(0, place)
    node.explained.GetRASToIJKMatrix(inverse)
    i, j, k = (round(value) for value in inverse.MultiplyPoint((*place, 1.0))[:3])
    grey = slicer.util.arrayFromVolume(node.explained)
    figure, axes = plt.subplots(1, 1 + len(node.maps), figsize=(2.6 * (1 + len(node.maps)), 4.0), dpi=110)
    to_ras = vtk.vtkMatrix4x4()
    node.explained.GetIJKToRASMatrix(to_ras)
    for axis, shown in zip(axes, [None, *node.maps], strict=True):
        axis.imshow(grey[k], cmap="gray", origin="lower")
        axis.plot([i], [j], "+", color="#ffd21f", markersize=9)
        axis.set_axis_off()
        axis.set_title("Image" if shown is None else shown.GetName().partition(" ")[2], fontsize=10)
        if shown is not None:
            display = shown.GetDisplayNode()
            display.GetOutputImageDataConnection().GetProducer().Update()
            colors = numpy_support.vtk_to_numpy(display.GetOutputImageData().GetPointData().GetScalars())
            layer = colors.reshape(*grey.shape, 4)[k].astype(np.uint8).copy()
            layer[..., 3] = (0.6 * layer[..., 3]).astype(np.uint8)
            axis.imshow(layer, origin="lower", interpolation="nearest")
        if to_ras.GetElement(0, 0) > 0:  # the patient's right is on the left, as in Slicer; drawing turns it back
            axis.invert_xaxis()
    figure.tight_layout(pad=0.4)
    figure.savefig(path)
    plt.close(figure)


def _grab(standin: Any, widget: Any, name: str) -> None:
    for shown in (widget, widget.uiWidget):  # the first drawing lays the panel out
        standin.picture.grab(shown, str(FOLDER / f"{widget.moduleName}_{name}.png"), width=_WIDTH)


if __name__ == "__main__":
    sys.exit(main())

"""One segmentation in Slicer from volumes to segments: write the images, ask the worker, put the result into the scene.

The scene is not touched before everything has been read back; then all nodes are made in one step, or none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MLILib.errors import BadInput

from . import charts, classical, comparison, display, exchange, nodes
from .job_folder import JobFolder
from .jobs import Status, Steps
from .nodes import node_or_new
from .transfer import discard, read_nrrd
from .wording import record_of


@dataclasses.dataclass
class Inputs:
    """What a segmentation starts from and where its result goes.

    Attributes:
        volumes: the image, or the channels of one in the model's order.
        settings: of the task "segment", or of "segment-classical" with a `start`, without images and outputs.
        segmentation: node that receives the segments; a new one when None.
        uncertainty: whether to make an uncertainty map.
        uncertainty_volume: node that receives it; a new one when None.
        reference: a segmentation to compare with, or None.
        tolerance: of the surface Dice, mm.
        start: the classical method that segments in place of a model, and what it starts from; or None.
        previous: nodes that describe what `segmentation` holds now and are refreshed with it, by their name in
            :class:`Result` ("volumes", "record", "metrics", "chart").
    """

    volumes: Sequence[slicer.vtkMRMLScalarVolumeNode]
    settings: Mapping[str, Any]
    segmentation: slicer.vtkMRMLSegmentationNode | None = None
    uncertainty: bool = False
    uncertainty_volume: slicer.vtkMRMLScalarVolumeNode | None = None
    reference: slicer.vtkMRMLSegmentationNode | None = None
    tolerance: float = 1.0
    start: classical.Start | None = None
    previous: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Result:
    """The nodes of a result, None for what was not asked for, and what the worker said.

    Attributes:
        segmentation: the segments.
        volumes: table of volumes.
        record: text node that says how the result was made.
        uncertainty: predictive entropy.
        mutual_information: with Monte-Carlo dropout or several models.
        metrics: table of the agreement with the reference.
        chart: the same as bars.
        details: the worker's result.
    """

    segmentation: slicer.vtkMRMLSegmentationNode
    volumes: slicer.vtkMRMLTableNode
    record: slicer.vtkMRMLTextNode
    uncertainty: slicer.vtkMRMLScalarVolumeNode | None = None
    mutual_information: slicer.vtkMRMLScalarVolumeNode | None = None
    metrics: slicer.vtkMRMLTableNode | None = None
    chart: slicer.vtkMRMLPlotChartNode | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def steps(inputs: Inputs) -> Steps:
    """The steps of a segmentation, for :mod:`MLISlicerLib.jobs`; their result is a :class:`Result`.

    Raises:
        MLIError: what a user can act on.
    """
    if not inputs.volumes:
        raise BadInput("No volume was given.", "", "Choose an input volume.")
    volume = inputs.volumes[0]
    nodes.grid_of(volume)
    name = volume.GetName()
    with JobFolder() as folder:
        images = {folder / f"image{number}.nrrd": node for number, node in enumerate(inputs.volumes, start=1)}
        for path, node in images.items():
            yield from exchange.write_volume(node, path)
        files = {"output": folder / "labels.seg.nrrd"}  # keeps labels that overlap apart
        if inputs.uncertainty:
            files["uncertainty"] = folder / "uncertainty.nrrd"
        given: dict[Path, Any] = dict(images)
        task, request = "segment", {**inputs.settings, "images": [str(path) for path in images]}
        if inputs.start is not None:
            task, request = "segment-classical", {**inputs.settings, "image": str(next(iter(images)))}
            request |= yield from classical.write(inputs.start, volume, folder, given)
        request["compress"] = False
        request |= {key: str(path) for key, path in files.items()}
        details = yield from exchange.ask(task, request, given)
        if inputs.start is not None:
            details["labels"] = classical.as_drawn(inputs.start, details["labels"])
        for path in given:
            yield from discard(path)
        metrics = None
        if inputs.reference is not None:
            labels, output = details["labels"], files["output"]
            metrics = yield from comparison.measure(inputs.reference, labels, output, volume, folder, inputs.tolerance)
        layers, grid = yield from _read_labels(files["output"])
        grids = [grid]
        maps = {}
        for key in ("uncertainty", "mutual_information"):
            if details.get(key):
                maps[key], found = yield from exchange.read_result(Path(details[key]))
                grids.append(found)
        yield from discard(files["output"])
        text = record_of(details, given)
        yield None
        if volume.GetScene() is None:
            raise BadInput(f"{name} was removed while it was segmented.", "", "Load it again and press Apply.")
        for grid in grids:
            nodes.require_grid(grid, volume)
        with nodes.all_or_nothing():
            return _show(inputs, volume, details, metrics, layers, maps, text)


def _read_labels(path: Path) -> Steps:
    """The label map, or the layer of each label where they overlap, and its grid."""
    stage = _("Reading the result")
    scalars = nodes.Scalars()
    voxels, grid = yield from read_nrrd(path, stage, allocate=scalars.allocate)
    if voxels.ndim == 3:
        return [scalars], grid
    layers = []
    for component in range(voxels.shape[3]):
        layers.append(nodes.Scalars())
        layer = layers[-1].allocate(voxels.dtype, voxels[..., 0].size).reshape(voxels.shape[:3])
        for k in range(len(voxels)):
            layer[k] = voxels[k, ..., component]
            yield Status(stage)
    return layers, grid


def _show(
    inputs: Inputs,
    volume: slicer.vtkMRMLScalarVolumeNode,
    details: dict[str, Any],
    metrics: Mapping[str, Any] | None,
    layers: Sequence[nodes.Scalars],
    maps: Mapping[str, nodes.Scalars],
    record: str,
) -> Result:
    """Make the nodes: the one step that touches the scene."""
    name = volume.GetName()
    title = _("{name} segmentation").format(name=name)
    segmentation = node_or_new(inputs.segmentation, "vtkMRMLSegmentationNode", title)
    told = segmentation.GetName()
    nodes.fill_segmentation(segmentation, layers, details["labels"], volume)
    result = Result(
        segmentation=segmentation,
        volumes=node_or_new(inputs.previous.get("volumes"), "vtkMRMLTableNode", _("{name} volumes").format(name=told)),
        record=node_or_new(inputs.previous.get("record"), "vtkMRMLTextNode", _("{name} run record").format(name=told)),
        details=details,
    )
    charts.fill_table(
        result.volumes,
        {
            _("Structure"): [str(label["name"]) for label in details["labels"]],
            _("Volume (ml)"): [round(float(label["volume_ml"]), 3) for label in details["labels"]],
            _("Voxels"): [str(label["voxels"]) for label in details["labels"]],
        },
    )
    nodes.fill_text(result.record, record)
    maximum = math.log(len(details["labels"]) + 1)
    for key, title in (
        ("mutual_information", _("Mutual information (nats)")),
        ("uncertainty", _("Uncertainty (nats)")),
    ):
        if key in maps:
            given = inputs.uncertainty_volume if key == "uncertainty" else None
            node = node_or_new(given, "vtkMRMLScalarVolumeNode", f"{name} {title.partition(' (')[0].lower()}")
            nodes.fill_volume(node, maps[key], nodes.grid_of(volume))
            nodes.place_like(node, volume)
            display.show_as_uncertainty(node, maximum, title)
            if key == "uncertainty":
                result.uncertainty = node
            else:
                result.mutual_information = node
    if metrics is not None:
        result.metrics, result.chart = comparison.show(told, metrics, inputs.previous)
    nodes.file_results_beside(result, volume)
    display.show_over(volume, result.uncertainty)
    return result

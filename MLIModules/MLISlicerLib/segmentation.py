"""One segmentation in Slicer from volumes to segments: write the images, ask the worker, put the result into the scene.

The scene is not touched before everything has been read back; then all nodes are made in one step, or none.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MLILib.errors import BadInput, MLIError

from . import display, nodes
from .jobs import Call, JobFolder, Status, Steps
from .nodes import node_or_new
from .transfer import discard, read_nrrd
from .wording import record_text, with_names

#: Metrics in the table of agreement: key of the task "evaluate" and heading.
_METRICS = {
    "dice": "Dice",
    "surface_dice": "Surface Dice",
    "hausdorff95": "Hausdorff 95% (mm)",
    "assd": "Mean distance (mm)",
    "precision": "Precision",
    "recall": "Recall",
    "specificity": "Specificity",
    "accuracy": "Accuracy",
    "f1": "F1",
    "jaccard": "Jaccard",
    "volume_similarity": "Volume similarity",
    "hausdorff": "Hausdorff (mm)",
}
_BARS = ("Dice", "Surface Dice")


@dataclasses.dataclass
class Inputs:
    """What a segmentation starts from and where its result goes.

    Attributes:
        volumes: the image, or the channels of one in the model's order.
        settings: of the task "segment", without images and outputs.
        segmentation: node that receives the segments; a new one when None.
        uncertainty: whether to make an uncertainty map.
        uncertainty_volume: node that receives it; a new one when None.
        reference: a segmentation to compare with, or None.
        tolerance: of the surface Dice, mm.
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
        images = [folder / f"image{number}.nrrd" for number in range(1, len(inputs.volumes) + 1)]
        for node, path in zip(inputs.volumes, images, strict=True):
            yield from nodes.write_volume(node, path, _("Preparing {name}").format(name=node.GetName()))
        files = {"output": folder / "labels.seg.nrrd"}  # keeps labels that overlap apart
        if inputs.uncertainty:
            files["uncertainty"] = folder / "uncertainty.nrrd"
        request = {**inputs.settings, "images": [str(path) for path in images], "compress": False}
        try:
            details = yield Call("segment", {**request, **{key: str(path) for key, path in files.items()}})
        except MLIError as error:
            raise with_names(error, dict(zip(images, inputs.volumes, strict=True))) from error
        for path in images:
            yield from discard(path)
        metrics = None
        if inputs.reference is not None:
            metrics = yield from _compare(inputs, volume, details, folder)
        layers, grid = yield from _read_labels(files["output"])
        grids = [grid]
        maps = {}
        for key in ("uncertainty", "mutual_information"):
            if details.get(key):
                maps[key] = nodes.Scalars()
                read = read_nrrd(Path(details[key]), _("Reading the result"), allocate=maps[key].allocate)
                grids.append((yield from read)[1])
                yield from discard(Path(details[key]))
        yield from discard(files["output"])
        record = json.loads(Path(details["record"]).read_text(encoding="utf-8"))
        text = record_text(record, dict(zip(images, inputs.volumes, strict=True)))
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


def _compare(inputs: Inputs, volume: slicer.vtkMRMLScalarVolumeNode, details: Mapping[str, Any], folder: Path) -> Steps:
    """Measure the label map against the reference, whose segments are matched by name."""
    values, names = match(inputs.reference, details["labels"])
    path = folder / "reference.nrrd"
    yield from nodes.write_segments(inputs.reference, values, volume, path, _("Preparing the reference"))
    return (
        yield Call(
            "evaluate",
            {
                "prediction": details["output"],
                "reference": str(path),
                "tolerance": inputs.tolerance,
                "labels": [f"{value}={label}" for value, label in names.items()],
            },
        )
    )


def match(
    reference: slicer.vtkMRMLSegmentationNode, labels: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, int], dict[int, str]]:
    """Pair the segments of a reference with a model's labels, by name without regard to case.

    Returns:
        The label of each segment id, and the name of each label. A segment that no label is called like gets a label
        of its own, so that it counts as missed; a single segment stands for a single label whatever its name.

    Raises:
        BadInput: no segment has the name of a label.
    """
    segmentation = reference.GetSegmentation()
    ids = [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]
    segments = {identifier: segmentation.GetSegment(identifier).GetName() for identifier in ids}
    names = {int(label["value"]): str(label["name"]) for label in labels}
    if len(segments) == 1 and len(names) == 1:
        return dict.fromkeys(segments, next(iter(names))), names
    wanted = {name.casefold(): value for value, name in names.items()}
    values = {identifier: wanted[name.casefold()] for identifier, name in segments.items() if name.casefold() in wanted}
    if not values:
        raise BadInput(
            f"The reference {reference.GetName()} cannot be compared with the result.",
            f"Its segments are {_list(segments.values())}, the model's labels {_list(names.values())}.",
            "Rename the segments of the reference like the labels (Segmentations module).",
        )
    for identifier, name in segments.items():
        if identifier not in values:
            values[identifier] = max(names) + 1
            names[values[identifier]] = name
    return values, names


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
    nodes.fill_table(
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
        _show_metrics(result, metrics, inputs.previous)
    for field in dataclasses.fields(result):
        node = getattr(result, field.name)
        if field.name != "details" and node is not None:
            nodes.file_beside(node, volume)
    display.show_over(volume, result.uncertainty)
    return result


def _show_metrics(result: Result, metrics: Mapping[str, Any], previous: Mapping[str, Any]) -> None:
    rows = [*metrics["labels"], "mean"]
    columns: dict[str, list[str]] = {_("Structure"): [*metrics["labels"], _("mean")]}
    columns |= {heading: [_number(metrics[row].get(key)) for row in rows] for key, heading in _METRICS.items()}
    numbers = {heading: [math.nan if v == "" else float(v) for v in columns[heading]] for heading in _METRICS.values()}
    name = result.segmentation.GetName()
    result.metrics = node_or_new(previous.get("metrics"), "vtkMRMLTableNode", _("{name} agreement").format(name=name))
    nodes.fill_table(result.metrics, {_("Structure"): columns[_("Structure")], **numbers})
    title = _("{name} agreement plot").format(name=name)
    result.chart = node_or_new(previous.get("chart"), "vtkMRMLPlotChartNode", title)
    for old in [result.chart.GetNthPlotSeriesNode(n) for n in range(result.chart.GetNumberOfPlotSeriesNodes())]:
        slicer.mrmlScene.RemoveNode(old)
    nodes.fill_bar_plot(
        result.chart,
        result.metrics,
        {heading: node_or_new(None, "vtkMRMLPlotSeriesNode", heading) for heading in _BARS},
        title=_("Agreement with the reference"),
        labels=_("Structure"),
        y_title=_("Score"),
    )


def _number(value: Any) -> str:
    """A metric for the table; "" where it is not defined."""
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _list(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"

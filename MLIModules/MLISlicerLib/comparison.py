"""A segmentation measured against a reference: segments paired by name, the metrics as a table and as bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MLILib.errors import BadInput

from . import charts, nodes
from .jobs import Call, Steps
from .nodes import node_or_new
from .transfer import Grid

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


def measure(
    reference: slicer.vtkMRMLSegmentationNode,
    labels: Sequence[Mapping[str, Any]],
    result: Path,
    place: slicer.vtkMRMLVolumeNode | Grid,
    folder: Path,
    tolerance: float = 1.0,
) -> Steps:
    """The steps that measure a label map against a reference; their result is that of the task "evaluate".

    Args:
        reference: its segments are paired with the labels by name.
        labels: value and name of each label of the map.
        result: file of the label map.
        place: volume whose grid the label map has, or that grid.
        folder: of the job.
        tolerance: of the surface Dice, mm.
    """
    values, names = match(reference, labels)
    path = folder / "reference.nrrd"
    yield from nodes.write_segments(reference, values, place, path, _("Preparing the reference"))
    return (
        yield Call(
            "evaluate",
            {
                "prediction": str(result),
                "reference": str(path),
                "tolerance": tolerance,
                "labels": [f"{value}={label}" for value, label in names.items()],
            },
        )
    )


def match(
    reference: slicer.vtkMRMLSegmentationNode, labels: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, int], dict[int, str]]:
    """Pair the segments of a reference with a result's labels, by name without regard to case.

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
            f"Its segments are {_list(segments.values())}, the result's labels {_list(names.values())}.",
            "Rename the segments of the reference like the labels (Segmentations module).",
        )
    for identifier, name in segments.items():
        if identifier not in values:
            values[identifier] = max(names) + 1
            names[values[identifier]] = name
    return values, names


def show(
    name: str, metrics: Mapping[str, Any], previous: Mapping[str, Any]
) -> tuple[slicer.vtkMRMLTableNode, slicer.vtkMRMLPlotChartNode]:
    """Put metrics into a table and a chart of bars.

    Args:
        name: of what was measured.
        metrics: of the task "evaluate".
        previous: nodes to fill again, "metrics" and "chart".
    """
    rows = [*metrics["labels"], "mean"]
    columns: dict[str, list[Any]] = {_("Structure"): [*metrics["labels"], _("mean")]}
    for key, heading in _METRICS.items():
        columns[heading] = [_number(metrics[row].get(key)) for row in rows]
    table = node_or_new(previous.get("metrics"), "vtkMRMLTableNode", _("{name} agreement").format(name=name))
    charts.fill_table(table, columns)
    chart = charts.chart_or_new(previous.get("chart"), _("{name} agreement plot").format(name=name))
    charts.fill_bar_plot(
        chart,
        table,
        {heading: node_or_new(None, "vtkMRMLPlotSeriesNode", heading) for heading in _BARS},
        title=_("Agreement with the reference"),
        labels=_("Structure"),
        y_title=_("Score"),
    )
    return table, chart


def _number(value: Any) -> float:
    """A metric for the table, to four digits; not a number where it is not defined."""
    return math.nan if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _list(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"

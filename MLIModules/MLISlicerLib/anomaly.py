"""One search for what is not normal in Slicer: write the image, ask the worker, put map, findings and scores in place.

The scene is not touched before everything has been read back; then all nodes are made in one step, or none.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _
from vtk.util import numpy_support

from MLILib.errors import BadInput

from . import charts, display, exchange, nodes
from .job_folder import JobFolder
from .jobs import Steps
from .nodes import node_or_new
from .wording import record_of

#: Colour of the findings.
_FOUND = (0.95, 0.35, 0.20)
#: Headings of a finding's centre, in the table's order.
CENTRE = ("R", "A", "S")


@dataclasses.dataclass
class Inputs:
    """What a search starts from and where its result goes.

    Attributes:
        volume: the image.
        settings: of the task "anomaly", without files.
        mask: a segmentation; only voxels inside are looked at. None looks at all but air.
        reference: a segmentation of known lesions, to measure the map with; or None.
        map: node that receives the map; a new one when None.
        findings: node that receives the findings; a new one when None.
        previous: nodes that belong to the result that `map` holds, which are filled again, by their name in
            :class:`Result`.
    """

    volume: slicer.vtkMRMLScalarVolumeNode
    settings: Mapping[str, Any]
    mask: slicer.vtkMRMLSegmentationNode | None = None
    reference: slicer.vtkMRMLSegmentationNode | None = None
    map: slicer.vtkMRMLScalarVolumeNode | None = None
    findings: slicer.vtkMRMLSegmentationNode | None = None
    previous: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Result:
    """The nodes of a result, None for what there is not, and what the worker said.

    Attributes:
        map: how far each voxel departs from normal.
        findings: what departs most.
        reconstruction: what the model makes of the image.
        table: a row a finding.
        slices: table of a score a slice.
        chart: the same as a line.
        record: text node that says how the result was made.
        measured: table of the agreement with the known lesions, beside the baselines.
        details: the worker's result.
    """

    map: slicer.vtkMRMLScalarVolumeNode
    findings: slicer.vtkMRMLSegmentationNode
    reconstruction: slicer.vtkMRMLScalarVolumeNode
    table: slicer.vtkMRMLTableNode
    slices: slicer.vtkMRMLTableNode
    chart: slicer.vtkMRMLPlotChartNode
    record: slicer.vtkMRMLTextNode
    measured: slicer.vtkMRMLTableNode | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def steps(inputs: Inputs) -> Steps:
    """The steps of a search, for :mod:`MLISlicerLib.jobs`; their result is a :class:`Result`.

    Raises:
        MLIError: what a user can act on.
    """
    volume = inputs.volume
    nodes.grid_of(volume)
    with JobFolder() as folder:
        image = folder / "image.nrrd"
        yield from exchange.write_volume(volume, image)
        files: dict[Path, Any] = {image: volume}
        request = {**inputs.settings, "image": str(image)}
        for key, node in (("mask", inputs.mask), ("reference", inputs.reference)):
            if node is not None:
                path = folder / f"{key}.nrrd"
                segmentation = node.GetSegmentation()
                values = {segmentation.GetNthSegmentID(n): 1 for n in range(segmentation.GetNumberOfSegments())}
                if not values:
                    raise BadInput(f"{node.GetName()} has no segment.", "", "Draw in it, or leave it out.")
                yield from exchange.write_segments(node, values, volume, path)
                files[path] = node
                request[key] = str(path)
        written = {name: folder / f"{name}.nrrd" for name in ("output", "findings", "reconstruction")}
        asked = {**request, **{key: str(path) for key, path in written.items()}}
        details = yield from exchange.ask("anomaly", asked, files)
        read = {}
        for key, path in written.items():
            read[key], found = yield from exchange.read_result(path)
            if volume.GetScene() is None:
                raise BadInput(
                    f"{volume.GetName()} was removed while it was looked at.", "", "Load it again, and Apply."
                )
            nodes.require_grid(found, volume)
        text = record_of(details, files)
        yield None
        with nodes.all_or_nothing():
            return _show(inputs, details, read, text)


def _show(inputs: Inputs, details: dict[str, Any], read: Mapping[str, nodes.Scalars], record: str) -> Result:
    """Make the nodes: the one step that touches the scene."""
    volume, grid = inputs.volume, nodes.grid_of(inputs.volume)
    name = volume.GetName()
    held = inputs.previous if inputs.map is not None and inputs.map.GetScene() is not None else {}

    def node(key: str, kind: str, title: str) -> Any:
        return node_or_new(held.get(key), f"vtkMRML{kind}Node", title.format(name=name))

    shown = node_or_new(inputs.map, "vtkMRMLScalarVolumeNode", _("{name} anomaly map").format(name=name))
    nodes.fill_volume(shown, read["output"], grid)
    nodes.place_like(shown, volume)
    _colour(shown, read["output"], details)
    again = node("reconstruction", "ScalarVolume", _("{name} as a normal one"))
    nodes.fill_volume(again, read["reconstruction"], grid)
    nodes.place_like(again, volume)
    window = volume.GetScalarVolumeDisplayNode()
    if window is not None:
        display.show_window(again, window.GetWindowLevelMin(), window.GetWindowLevelMax())
    found = node_or_new(inputs.findings, "vtkMRMLSegmentationNode", _("{name} findings").format(name=name))
    labels = [
        {"value": row["label"], "name": _("finding {number}").format(number=row["label"]), "color": _FOUND}
        for row in details["findings_table"]
    ]
    nodes.fill_segmentation(found, [read["findings"]], labels, volume)
    result = Result(
        map=shown,
        findings=found,
        reconstruction=again,
        table=node("table", "Table", _("{name} list of findings")),
        slices=node("slices", "Table", _("{name} slice scores")),
        chart=charts.chart_or_new(held.get("chart"), _("{name} slice plot").format(name=name)),
        record=node("record", "Text", _("{name} run record")),
        details=details,
    )
    charts.fill_table(result.table, table(details))
    nodes.fill_text(result.record, record)
    _plot_slices(result, details)
    if details.get("evaluation"):
        result.measured = node("measured", "Table", _("{name} agreement with the lesions"))
        charts.fill_table(result.measured, measured(details["evaluation"]))
    nodes.file_results_beside(result, volume)
    display.show_over(volume, shown)
    return result


def _colour(node: slicer.vtkMRMLScalarVolumeNode, scalars: nodes.Scalars, details: Mapping[str, Any]) -> None:
    """Colours from 0 to what all but the most extreme voxels reach; clear below half the threshold."""
    high = display.robust_window(numpy_support.vtk_to_numpy(scalars.array), signed=False)[1]
    limit = details.get("threshold")
    if limit is not None and limit > 0:
        high = max(high, 1.5 * float(limit))
    display.show_as_uncertainty(node, high, _("Anomaly"), "")
    if limit is not None:
        display.show_above(node, min(0.5 * float(limit), 0.9 * high))


def table(details: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Columns of the findings, the largest peak first as the worker orders them; the centre in RAS, mm."""
    rows = details["findings_table"]
    columns: dict[str, list[Any]] = {
        _("Finding"): [str(row["label"]) for row in rows],
        _("Volume (ml)"): [_short(row["volume_ml"]) for row in rows],
        _("Peak"): [_short(row["peak"]) for row in rows],
        _("Mean"): [_short(row["mean"]) for row in rows],
    }
    for axis, heading in enumerate(CENTRE):
        columns[heading] = [round(float(row["centre_ras"][axis]), 1) for row in rows]
    return columns


def _plot_slices(result: Result, details: Mapping[str, Any]) -> None:
    """Show the score of each slice as a line, and the threshold as another."""
    scores = details["slice_scores"]
    number, score = _("Slice"), _("Score")
    columns: dict[str, list[float]] = {
        number: [float(n) for n in range(len(scores))],
        score: [math.nan if value is None else float(value) for value in scores],
    }
    limit = details.get("slice_threshold")
    if limit is not None:
        columns[_("Threshold")] = [float(limit)] * len(scores)
    charts.fill_table(result.slices, columns)
    series = {name: node_or_new(None, "vtkMRMLPlotSeriesNode", name) for name in columns if name != number}
    plane = str(details.get("plane") or "")
    title = _("Score of each slice, {plane}").format(plane=plane) if plane else _("Score of each slice")
    charts.fill_line_plot(result.chart, result.slices, series, x=number, title=title, y_title=score)


def measured(evaluation: Mapping[str, Any]) -> dict[str, list[str]]:
    """Columns of the agreement with known lesions, as text: the model first, then the trivial baselines."""
    rows = [(name, one) for name, one in evaluation.items() if isinstance(one, Mapping) and "auprc" in one]
    columns = {_("Method"): [str(name) for name, _one in rows]}
    for key, heading in (
        ("auprc", "AUPRC"),
        ("best_dice", _("Best Dice")),
        ("dice", _("Dice here")),
        ("auroc", "AUROC"),
    ):
        columns[heading] = ["" if one.get(key) is None else f"{one[key]:.3f}" for _name, one in rows]
    return columns


def words(details: Mapping[str, Any]) -> str:
    """What was found, as HTML."""
    count = len(details["findings_table"])
    volume = sum(float(row["volume_ml"]) for row in details["findings_table"])
    lines = []
    if count:
        found = _("1 finding") if count == 1 else _("{count} findings").format(count=count)
        lines.append(f"<b>{found}</b>, {_('{volume:.2f} ml').format(volume=volume)}")
    elif details.get("threshold") is not None:
        lines.append(f"<b>{_('No finding')}</b>")
    limit = details.get("image_threshold")
    score = _("The image's score is {score:.4g}").format(score=details["image_score"])
    if limit is not None:
        score = _("{score}; {percentile:g} % of normal ones lie below {limit:.4g}").format(
            score=score, percentile=details["percentile"], limit=limit
        )
    lines.append(score)
    rate = details.get("false_positive_rate")
    if rate is not None:
        text = _("Threshold {limit:.4g}: {rate:.3g} % of normal voxels lie above it")
        lines.append(text.format(limit=details["threshold"], rate=100 * rate))
    lines.append(_("Scored by {method} in {seconds:.1f} s on {device}").format(**details))
    return "".join(f"<p style='margin:0 0 2px 0'>{line}.</p>" for line in lines)


def centre(table_node: slicer.vtkMRMLTableNode, row: int) -> tuple[float, float, float] | None:
    """Where a finding of the table lies, RAS mm; None for a row that is none."""
    if not 0 <= row < table_node.GetNumberOfRows():
        return None
    names = [table_node.GetColumnName(column) for column in range(table_node.GetNumberOfColumns())]
    found = [float(table_node.GetCellText(row, names.index(heading))) for heading in CENTRE]
    return (found[0], found[1], found[2]) if np.isfinite(found).all() else None


def _short(value: float | None) -> float:
    """A number of any size to four digits; not a number where there is none."""
    return math.nan if value is None else float(f"{float(value):.4g}")


def summary(details: Mapping[str, Any]) -> str:
    """What a parameter set keeps of a result beside its nodes, as text."""
    kept = {"words": words(details), "warnings": list(details["warnings"]), "plane": details.get("plane") or ""}
    return json.dumps(kept)

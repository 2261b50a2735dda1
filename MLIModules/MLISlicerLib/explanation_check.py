"""Whether explanations can be believed, in Slicer: the test of the methods on the chosen image, a table, curves.

The test draws the model's weights anew, and takes away what a map points at; beside the methods stand a random map and
an edge detector, which know nothing of the model.
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

from MLILib.errors import BadInput
from MLILib.explanation.methods import NOT_TESTED

from . import charts, exchange, nodes
from .explanation import point_text
from .job_folder import JobFolder
from .jobs import Steps
from .nodes import node_or_new
from .wording import record_text


@dataclasses.dataclass
class Inputs:
    """What a test starts from and where its result goes.

    Attributes:
        volumes: the image, or the channels of one in the model's order.
        settings: of the task "explain-check", without images, point and output.
        point: a list of points, the last of which is explained; or None.
        previous: nodes of the last test, which are filled again, by their name in :class:`Result`.
    """

    volumes: Sequence[slicer.vtkMRMLScalarVolumeNode]
    settings: Mapping[str, Any]
    point: slicer.vtkMRMLMarkupsFiducialNode | None = None
    previous: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Result:
    """The nodes of a result, None for what there is not, and what the worker said.

    Attributes:
        table: a row a method, and the controls.
        curves: table of the deletion and insertion curves.
        deletion, insertion: charts of them.
        layers: table of what is left of each map, layer by layer.
        cascade: chart of it.
        details: the worker's result.
    """

    table: slicer.vtkMRMLTableNode
    curves: slicer.vtkMRMLTableNode | None = None
    deletion: slicer.vtkMRMLPlotChartNode | None = None
    insertion: slicer.vtkMRMLPlotChartNode | None = None
    layers: slicer.vtkMRMLTableNode | None = None
    cascade: slicer.vtkMRMLPlotChartNode | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def steps(inputs: Inputs) -> Steps:
    """The steps of a test, for :mod:`MLISlicerLib.jobs`; their result is a :class:`Result`.

    Raises:
        MLIError: what a user can act on.
    """
    if not inputs.settings.get("methods"):
        raise BadInput("None of the chosen methods can be tested.", "", "Choose a method that makes a map.")
    volume = inputs.volumes[0]
    nodes.grid_of(volume)
    request = dict(inputs.settings)
    if inputs.point is not None:
        request["point"] = point_text(inputs.point)
    with JobFolder() as folder:
        files: dict[Path, Any] = {}
        for number, node in enumerate(inputs.volumes, start=1):
            path = folder / f"image{number}.nrrd"
            yield from exchange.write_volume(node, path)
            files[path] = node
        details = yield from exchange.ask("explain-check", {**request, "images": [str(path) for path in files]}, files)
        details = json.loads(record_text(details, files))  # it names the job's own files
        yield None
        if volume.GetScene() is None:
            raise BadInput(f"{volume.GetName()} was removed meanwhile.", "", "Load it again.")
        with nodes.all_or_nothing():
            return _show(inputs, details)


def badges(details: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Badge and reason of each method that was tested."""
    return {
        str(one["method"]): {"badge": str(one.get("badge") or NOT_TESTED), "reason": str(one.get("reason") or "")}
        for one in details["methods"]
    }


def _show(inputs: Inputs, details: dict[str, Any]) -> Result:
    """Make the nodes: the one step that touches the scene."""
    told, held = inputs.volumes[0].GetName(), inputs.previous
    rows = [*details["methods"], *details["controls"]]
    result = Result(
        table=node_or_new(held.get("table"), "vtkMRMLTableNode", _("{name} test of methods").format(name=told)),
        details=details,
    )
    charts.fill_table(result.table, columns(details))
    curves: dict[str, list[Any]] = {}
    wanted: dict[str, list[str]] = {"deletion": [], "insertion": []}
    share = _("Share of voxels")
    for one in rows:
        for kind, names in wanted.items():
            curve = one.get(kind)
            if curve:
                curves.setdefault(share, [float(x) for x in curve["fractions"]])
                name = f"{_title(one)}, {_(kind)}"
                curves[name] = [math.nan if y is None else float(y) for y in curve["scores"]]
                names.append(name)
    if curves:
        result.curves = node_or_new(held.get("curves"), "vtkMRMLTableNode", _("{name} curves").format(name=told))
        charts.fill_table(result.curves, curves)
        for kind, title in (
            ("deletion", _("Score while what matters most is taken away: lower is better")),
            ("insertion", _("Score while what matters most is put back: higher is better")),
        ):
            if wanted[kind]:
                name = _("{name} {kind} plot").format(name=told, kind=kind)
                chart = charts.chart_or_new(held.get(kind), name)
                _lines(chart, result.curves, wanted[kind], share, title, _("Score"))
                setattr(result, kind, chart)
    _show_cascade(result, details, told, held)
    nodes.file_results_beside(result, inputs.volumes[0])
    return result


def _show_cascade(result: Result, details: Mapping[str, Any], told: str, held: Mapping[str, Any]) -> None:
    tested = [one for one in details["methods"] if one.get("layers")]
    if not tested:
        return
    number = _("Layers drawn anew, from the output")
    longest = max((one["layers"] for one in tested), key=len)
    columns: dict[str, list[Any]] = {
        number: [float(n) for n in range(1, len(longest) + 1)],
        _("Layer"): [str(row["layer"]) for row in longest],
    }
    for one in tested:
        found = [math.nan if row["magnitude"] is None else float(row["magnitude"]) for row in one["layers"]]
        columns[_title(one)] = found + [math.nan] * (len(longest) - len(found))
    result.layers = node_or_new(held.get("layers"), "vtkMRMLTableNode", _("{name} cascade").format(name=told))
    charts.fill_table(result.layers, columns)
    result.cascade = charts.chart_or_new(held.get("cascade"), _("{name} cascade plot").format(name=told))
    title = _("What is left of a map while layers are drawn anew: lower is better")
    names = [_title(one) for one in tested]
    _lines(result.cascade, result.layers, names, number, title, _("Rank correlation"))


def _lines(chart: Any, table: Any, names: Sequence[str], x: str, title: str, y_title: str) -> None:
    series = {name: node_or_new(None, "vtkMRMLPlotSeriesNode", name) for name in names}
    charts.fill_line_plot(chart, table, series, x=x, title=title, y_title=y_title)


def columns(details: Mapping[str, Any]) -> dict[str, list[str]]:
    """Columns of the table: a row a method, and the controls; cells as text, "" where there is no number."""
    rows = [*details["methods"], *details["controls"]]
    found: dict[str, list[str]] = {
        _("Method"): [_title(one) for one in rows],
        _("Verdict"): [str(one.get("badge") or _("control")) for one in rows],
        _("Left"): [_number(one.get("left")) for one in rows],
        _("Like edges"): [_number(one.get("edges")) for one in rows],
    }
    for kind, title in (("deletion", _("Deletion")), ("insertion", _("Insertion"))):
        found[title] = [_number((one.get(kind) or {}).get("area")) for one in rows]
    if any(one.get("completeness_error") is not None for one in rows):
        found[_("Completeness")] = [_number(one.get("completeness_error")) for one in rows]
    if any(one.get("sensitivity") for one in rows):
        found[_("Under noise")] = [_number((one.get("sensitivity") or {}).get("correlation")) for one in rows]
    return found


def _title(one: Mapping[str, Any]) -> str:
    return str(one.get("title") or one["method"])


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3f}"

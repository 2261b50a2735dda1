"""One attack in Slicer: the image before and after, what was added, what the model says of both, the curve of epsilons.

The nodes of an attack are filled again by the next one on the same volume, so that a slider can be followed.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MLILib.errors import BadInput

from . import charts, comparison, display, exchange, nodes
from .explanation import point_text
from .job_folder import JobFolder
from .jobs import Steps
from .nodes import node_or_new
from .wording import record_of


@dataclasses.dataclass
class Inputs:
    """What an attack starts from and where its result goes.

    Attributes:
        volume: the image.
        settings: of the task "attack", without images, truth, point and outputs.
        labels: the model's labels (value, name, color, terminology); () for a classifier.
        point: a list of points; the window of a large image lies round its last one. Or None.
        reference: a segmentation that says what is right; None takes what the model predicts before.
        previous: nodes of the last attack on this volume, by their name in :class:`Result`.
    """

    volume: slicer.vtkMRMLScalarVolumeNode
    settings: Mapping[str, Any]
    labels: Sequence[Mapping[str, Any]] = ()
    point: slicer.vtkMRMLMarkupsFiducialNode | None = None
    reference: slicer.vtkMRMLSegmentationNode | None = None
    previous: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Result:
    """The nodes of a result, None for what there is not, and what the worker said.

    Attributes:
        perturbed: the image after.
        difference: what was added.
        record: text node that says how the result was made.
        curve: table of the measure and the loss at each epsilon.
        chart: the same as lines.
        before, after: what a segmenter says of the image before and after.
        details: the worker's result.
    """

    perturbed: slicer.vtkMRMLScalarVolumeNode
    difference: slicer.vtkMRMLScalarVolumeNode
    record: slicer.vtkMRMLTextNode
    curve: slicer.vtkMRMLTableNode
    chart: slicer.vtkMRMLPlotChartNode
    before: slicer.vtkMRMLSegmentationNode | None = None
    after: slicer.vtkMRMLSegmentationNode | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def steps(inputs: Inputs) -> Steps:
    """The steps of an attack, for :mod:`MLISlicerLib.jobs`; their result is a :class:`Result`.

    Raises:
        MLIError: what a user can act on.
    """
    volume = inputs.volume
    nodes.grid_of(volume)
    request = dict(inputs.settings)
    if inputs.point is not None:
        request["point"] = point_text(inputs.point)
    with JobFolder() as folder:
        image = folder / "image.nrrd"
        yield from exchange.write_volume(volume, image)
        files: dict[Path, Any] = {image: volume}
        if inputs.reference is not None:
            values, _names = comparison.match(inputs.reference, inputs.labels)
            path = folder / "truth.nrrd"
            yield from exchange.write_segments(inputs.reference, values, volume, path)
            files[path] = inputs.reference
            request["truth"] = str(path)
        written = {"output": folder / "perturbed.nrrd", "difference": folder / "difference.nrrd"}
        if inputs.labels:
            written |= {"prediction": folder / "after.nrrd", "prediction_before": folder / "before.nrrd"}
        asked = {key: str(path) for key, path in written.items()}
        details = yield from exchange.ask(
            "attack", {**request, "images": [str(image)], "compress": False, **asked}, files
        )
        read = {}
        for key, path in written.items():
            read[key], found = yield from exchange.read_result(path)
            if volume.GetScene() is None:
                raise BadInput(f"{volume.GetName()} was removed while it was attacked.", "", "Load it again.")
            nodes.require_grid(found, volume)
        text = record_of(details, files)
        yield None
        with nodes.all_or_nothing():
            return _show(inputs, details, read, text)


def _show(inputs: Inputs, details: dict[str, Any], read: Mapping[str, nodes.Scalars], record: str) -> Result:
    """Make the nodes: the one step that touches the scene."""
    volume, held = inputs.volume, inputs.previous
    told = volume.GetName()
    grid = nodes.grid_of(volume)
    made = {}
    for key, name, title in (
        ("perturbed", "output", _("{name} attacked")),
        ("difference", "difference", _("{name} attack")),
    ):
        made[key] = node_or_new(held.get(key), "vtkMRMLScalarVolumeNode", title.format(name=told))
        nodes.fill_volume(made[key], read[name], grid)
        nodes.place_like(made[key], volume)
    shown = volume.GetScalarVolumeDisplayNode()
    if shown is not None:
        display.show_window(made["perturbed"], shown.GetWindowLevelMin(), shown.GetWindowLevelMax())
    reach = max(float(details["largest_change"]), 1e-12)
    display.show_as_attribution(made["difference"], -reach, reach, _("Added"))
    result = Result(
        perturbed=made["perturbed"],
        difference=made["difference"],
        record=node_or_new(held.get("record"), "vtkMRMLTextNode", _("{name} attack run record").format(name=told)),
        curve=node_or_new(held.get("curve"), "vtkMRMLTableNode", _("{name} attack curve").format(name=told)),
        chart=charts.chart_or_new(held.get("chart"), _("{name} attack plot").format(name=told)),
        details=details,
    )
    nodes.fill_text(result.record, record)
    _show_chart(result, details)
    for key, name, title in (
        ("before", "prediction_before", _("{name} said before the attack")),
        ("after", "prediction", _("{name} said after the attack")),
    ):
        if name in read:
            node = node_or_new(held.get(key), "vtkMRMLSegmentationNode", title.format(name=told))
            nodes.fill_segmentation(node, [read[name]], inputs.labels, volume)
            setattr(result, key, node)
    nodes.file_results_beside(result, volume)
    return result


def _show_chart(result: Result, details: Mapping[str, Any]) -> None:
    """Fill the table of the curve, and show its measure as a line."""
    epsilon, measure = _("Epsilon"), str(details["measure"])
    curve = details["curve"]
    charts.fill_table(
        result.curve,
        {
            epsilon: [float(value) for value in curve["epsilons"]],
            measure: [float(value) for value in curve["values"]],
            _("Loss"): [float(value) for value in curve["losses"]],
        },
    )
    series = {measure: node_or_new(None, "vtkMRMLPlotSeriesNode", measure)}
    title = _("How little makes the model err")
    charts.fill_line_plot(result.chart, result.curve, series, x=epsilon, title=title, y_title=measure)


def words(details: Mapping[str, Any]) -> str:
    """What the attack did, as HTML.

    Args:
        details: result of the task "attack".
    """
    measure = html.escape(str(details["measure"]))
    lines = [
        _("<b>{measure} {before:.3f} \N{RIGHTWARDS ARROW} {after:.3f}</b> at epsilon {epsilon:g}").format(
            measure=measure, before=details["before"], after=details["after"], epsilon=details["epsilon"]
        )
    ]
    before, after = details.get("classes_before") or (), details.get("classes_after") or ()
    for first, second in zip(before, after, strict=True):
        lines.append(
            f"{html.escape(str(first['name']))} {first['probability']:.1%} \N{RIGHTWARDS ARROW} "
            f"{second['probability']:.1%}"
        )
    lines.append(
        _("No voxel changed by more than {change:.4g}; right is {truth}").format(
            change=details["largest_change"], truth=html.escape(str(details["truth"]))
        )
    )
    linear = (details.get("linear") or {}).get("text")
    if linear:
        lines.append(html.escape(str(linear).rstrip(".")))
    lines.append(_("Done in {seconds:.1f} s on {device}").format(**details))
    return "".join(f"<p style='margin:0 0 2px 0'>{line}.</p>" for line in lines)

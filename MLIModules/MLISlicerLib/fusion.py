"""One label fusion in Slicer, from atlases or raters to a consensus: write the inputs, ask the worker, show the result.

Atlases are files, or volumes and segmentations of the scene; raters are segmentations of the scene. The scene is not
touched before everything has been read back; then all nodes are made in one step, or none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MLILib.errors import BadInput

from . import charts, comparison, display, exchange, fusion_atlases, fusion_report, nodes
from .fusion_atlases import SceneAtlases
from .job_folder import JobFolder
from .jobs import Steps
from .nodes import node_or_new
from .scene_labels import SceneLabels
from .transfer import Grid, discard
from .wording import record_of


@dataclasses.dataclass
class Inputs:
    """What a fusion starts from and where its result goes. It has atlases (of one kind) and a target, or raters.

    Attributes:
        settings: of the task "fuse", without files.
        target: the volume to segment; with raters, the volume they drew on, or None.
        atlas_path: folder or dataset.json.
        scene_atlases: volumes with segmentations.
        title: what a reader calls the atlas set of the scene.
        raters: segmentations.
        segmentation: node that receives the consensus; a new one when None.
        disagreement: whether to make the map of disagreement.
        disagreement_volume: node that receives it; a new one when None.
        reference: a segmentation to measure the consensus with, or None.
        tolerance: of the surface Dice, mm.
        previous: nodes that describe what `segmentation` holds now and are refreshed with it, by their name in
            :class:`Result`.
    """

    settings: Mapping[str, Any]
    target: slicer.vtkMRMLScalarVolumeNode | None = None
    atlas_path: str = ""
    scene_atlases: SceneAtlases | None = None
    title: str = ""
    raters: Sequence[slicer.vtkMRMLSegmentationNode] = ()
    segmentation: slicer.vtkMRMLSegmentationNode | None = None
    disagreement: bool = False
    disagreement_volume: slicer.vtkMRMLScalarVolumeNode | None = None
    reference: slicer.vtkMRMLSegmentationNode | None = None
    tolerance: float = 1.0
    previous: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def labels(self) -> SceneLabels | None:
        """The labels of the scene's segmentations; None where the atlases are files."""
        if self.raters:
            return SceneLabels.of(self.raters)
        return self.scene_atlases.labels if self.scene_atlases is not None else None


@dataclasses.dataclass
class Result:
    """The nodes of a result, None for what was not asked for, and what the worker said.

    Attributes:
        segmentation: the consensus.
        raters: table of trust in each rater, a row a rater and label.
        record: text node that says how the result was made.
        disagreement: entropy of the raters' labels, bits.
        agreement: table of a row a rater, behind the charts.
        agreement_chart: each rater's overlap with the consensus as bars.
        weight_chart: each rater's weight as bars, where the method has weights.
        metrics: table of the agreement with the reference.
        metrics_chart: the same as bars.
        details: the worker's result.
    """

    segmentation: slicer.vtkMRMLSegmentationNode
    raters: slicer.vtkMRMLTableNode
    record: slicer.vtkMRMLTextNode
    disagreement: slicer.vtkMRMLScalarVolumeNode | None = None
    agreement: slicer.vtkMRMLTableNode | None = None
    agreement_chart: slicer.vtkMRMLPlotChartNode | None = None
    weight_chart: slicer.vtkMRMLPlotChartNode | None = None
    metrics: slicer.vtkMRMLTableNode | None = None
    metrics_chart: slicer.vtkMRMLPlotChartNode | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def steps(inputs: Inputs) -> Steps:
    """The steps of a fusion, for :mod:`MLISlicerLib.jobs`; their result is a :class:`Result`.

    Raises:
        MLIError: what a user can act on.
    """
    grid = _check(inputs)
    with JobFolder() as folder:
        files: dict[Path, Any] = {}
        request = dict(inputs.settings)
        request |= yield from (_write_raters if inputs.raters else _write_atlases)(inputs, grid, folder, files)
        written = {"output": folder / "consensus.seg.nrrd"}
        if inputs.disagreement:
            written["disagreement"] = folder / "disagreement.nrrd"
        asked = {**request, **{key: str(path) for key, path in written.items()}}
        details = yield from exchange.ask("fuse", asked, files)
        for path in files:
            yield from discard(path)
        if inputs.labels is not None:
            details["labels"] = [inputs.labels.known(label) for label in details["labels"]]
        metrics = None
        if inputs.reference is not None:
            place = inputs.target or grid
            labels = details["labels"]
            measure = comparison.measure(inputs.reference, labels, written["output"], place, folder, inputs.tolerance)
            metrics = yield from measure
        read = {}
        for key, path in written.items():
            read[key], found = yield from exchange.read_result(path)
            if not nodes.same_grid(found, grid):
                raise BadInput("The result does not lie on the grid that was asked for.", "", "Press Apply again.")
        text = record_of(details, files)
        yield None
        if inputs.target is not None:
            if inputs.target.GetScene() is None:
                raise BadInput(
                    f"{inputs.target.GetName()} was removed while it was segmented.", "", "Load it again, and Apply."
                )
            nodes.require_grid(grid, inputs.target)
        with nodes.all_or_nothing():
            return _show(inputs, grid, details, metrics, read, text)


def _check(inputs: Inputs) -> Grid:
    """The grid of the result."""
    if inputs.raters:
        for node in inputs.raters:
            if not node.GetSegmentation().GetNumberOfSegments():
                raise BadInput(
                    f"{node.GetName()} has no segment.", "There is nothing to fuse.", "Leave it out, or draw in it."
                )
        if inputs.target is not None:
            return nodes.grid_of(inputs.target)
        grid = nodes.grid_of_segmentation(inputs.raters[0])
        for other in inputs.raters[1:]:
            if not nodes.same_grid(nodes.grid_of_segmentation(other), grid):
                raise BadInput(
                    f"{inputs.raters[0].GetName()} and {other.GetName()} were drawn on different grids.",
                    "They belong to different volumes, or one was moved.",
                    "Choose the target volume: all are then brought to its grid.",
                )
        return grid
    if inputs.target is None:
        raise BadInput("There is no target.", "Atlases need an image to be brought to.", "Choose a target volume.")
    if inputs.scene_atlases is not None:
        fusion_atlases.require(inputs.scene_atlases, inputs.title)
    elif not inputs.atlas_path:
        raise BadInput("There is nothing to fuse.", "", "Choose an atlas set, or segmentations.")
    return nodes.grid_of(inputs.target)


# -- what the worker gets


def _write_target(target: slicer.vtkMRMLScalarVolumeNode, folder: Path, files: dict[Path, Any]) -> Steps:
    path = folder / "target.nrrd"
    yield from exchange.write_volume(target, path)
    files[path] = target
    return {"target": str(path)}


def _write_atlases(inputs: Inputs, grid: Grid, folder: Path, files: dict[Path, Any]) -> Steps:
    """Write the target, and atlases of the scene; the request's settings that name the files."""
    told = yield from _write_target(inputs.target, folder, files)
    if inputs.scene_atlases is None:
        return {**told, "atlases": inputs.atlas_path}
    home = folder / "atlases"
    home.mkdir()
    listing = yield from fusion_atlases.write(inputs.scene_atlases, home, files, inputs.title)
    return {**told, "atlases": str(listing)}


def _write_raters(inputs: Inputs, grid: Grid, folder: Path, files: dict[Path, Any]) -> Steps:
    """Write segmentations on one grid, and the target; the request's settings that name the files."""
    told = {}
    if inputs.target is not None:
        told = yield from _write_target(inputs.target, folder, files)
    home = folder / "raters"
    home.mkdir()
    labels = SceneLabels.of(inputs.raters)
    stems = fusion_atlases.file_names([node.GetName() for node in inputs.raters])
    paths = []
    for node, stem, values in zip(inputs.raters, stems, labels.values, strict=True):
        path = home / f"{stem}.nrrd"
        yield from exchange.write_segments(node, values, grid, path)
        files[path] = node
        paths.append(str(path))
    names = [f"{label['value']}={label['name']}" for label in labels.labels]
    return {**told, "labels": paths, "names": names}


# -- what comes back


def _show(
    inputs: Inputs,
    grid: Grid,
    details: dict[str, Any],
    metrics: Mapping[str, Any] | None,
    read: Mapping[str, nodes.Scalars],
    record: str,
) -> Result:
    """Make the nodes: the one step that touches the scene."""
    first = inputs.target if inputs.target is not None else inputs.raters[0]
    title = _("{name} consensus").format(name=first.GetName())
    segmentation = node_or_new(inputs.segmentation, "vtkMRMLSegmentationNode", title)
    previous = inputs.previous if segmentation is inputs.segmentation else {}
    told = segmentation.GetName()
    nodes.fill_segmentation(segmentation, [read["output"]], details["labels"], inputs.target or grid)
    result = Result(
        segmentation=segmentation,
        raters=node_or_new(previous.get("raters"), "vtkMRMLTableNode", _("{name} raters").format(name=told)),
        record=node_or_new(previous.get("record"), "vtkMRMLTextNode", _("{name} run record").format(name=told)),
        details=details,
    )
    charts.fill_table(result.raters, fusion_report.table(details))
    nodes.fill_text(result.record, record)
    if "disagreement" in read:
        title = _("{name} disagreement").format(name=told)
        result.disagreement = node_or_new(inputs.disagreement_volume, "vtkMRMLScalarVolumeNode", title)
        nodes.fill_volume(result.disagreement, read["disagreement"], grid)
        if inputs.target is not None:
            nodes.place_like(result.disagreement, inputs.target)
        most = fusion_report.largest_entropy(details)
        display.show_as_uncertainty(result.disagreement, most, _("Disagreement (bits)"), "bits")
    fusion_report.show_charts(result, details, previous)
    if metrics is not None:
        again = {"metrics": previous.get("metrics"), "chart": previous.get("metrics_chart")}
        result.metrics, result.metrics_chart = comparison.show(told, metrics, again)
    nodes.file_results_beside(result, first)
    if inputs.target is not None:
        display.show_over(inputs.target, result.disagreement)
    elif result.disagreement is not None:
        display.show_over(result.disagreement)
    return result

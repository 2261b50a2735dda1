"""One explanation in Slicer: write the images, ask the worker method by method, put the maps over the volume.

The scene is not touched before everything has been read back; then all nodes are made in one step, or none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _
from vtk.util import numpy_support

from MLILib.errors import BadInput
from MLILib.explanation.methods import METHODS

from . import charts, display, exchange, explanation_report, field_boxes, nodes
from .job_folder import JobFolder
from .jobs import Steps
from .nodes import node_or_new
from .transfer import Grid
from .wording import record_of

#: Methods that are explained at once, at most.
MOST = 4


@dataclasses.dataclass
class Inputs:
    """What an explanation starts from and where its result goes.

    Attributes:
        volumes: the image, or the channels of one in the model's order.
        methods: names of the methods, a map each.
        settings: of the task "explain", without images, method, point, region, regions and outputs; what a method does
            not take is left out for it.
        point: a list of points, the last of which is explained; or None.
        region: a segmentation and the id of its segment that is explained; or None.
        regions: a segmentation whose segments are taken away one by one; or None.
        map: node that receives the first method's map; a new one when None.
        previous: nodes that belong to the result that `map` holds, which are filled again, by their name in
            :class:`Result`.
    """

    volumes: Sequence[slicer.vtkMRMLScalarVolumeNode]
    methods: Sequence[str]
    settings: Mapping[str, Any]
    point: slicer.vtkMRMLMarkupsFiducialNode | None = None
    region: tuple[slicer.vtkMRMLSegmentationNode, str] | None = None
    regions: slicer.vtkMRMLSegmentationNode | None = None
    map: slicer.vtkMRMLScalarVolumeNode | None = None
    previous: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Result:
    """The nodes of a result, and what the worker said.

    Attributes:
        maps: a volume for each method; of a map with several components, the first.
        components: for each method the volume with all components, where there are several; else None.
        record: text node that says how the result was made.
        parts: table of what was taken away (ablation), or None.
        parts_chart: the same as bars.
        curve: table of what an inversion optimised, or None.
        curve_chart: the same as a line.
        theoretical, effective: boxes of the image that the point's label can see, and does; or None.
        details: the worker's results, one a method.
    """

    maps: list[slicer.vtkMRMLScalarVolumeNode]
    components: list[slicer.vtkMRMLVectorVolumeNode | None]
    record: slicer.vtkMRMLTextNode
    parts: slicer.vtkMRMLTableNode | None = None
    parts_chart: slicer.vtkMRMLPlotChartNode | None = None
    curve: slicer.vtkMRMLTableNode | None = None
    curve_chart: slicer.vtkMRMLPlotChartNode | None = None
    theoretical: slicer.vtkMRMLMarkupsROINode | None = None
    effective: slicer.vtkMRMLMarkupsROINode | None = None
    details: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def point_of(points: slicer.vtkMRMLMarkupsFiducialNode) -> tuple[float, float, float] | None:
    """Where the last point of a list lies in the world, RAS mm; None where none has been placed."""
    placed = slicer.vtkMRMLMarkupsNode.PositionDefined
    for index in reversed(range(points.GetNumberOfControlPoints())):
        if points.GetNthControlPointPositionStatus(index) == placed:
            place = [0.0, 0.0, 0.0]
            points.GetNthControlPointPositionWorld(index, place)
            return (place[0], place[1], place[2])
    return None


def point_text(points: slicer.vtkMRMLMarkupsFiducialNode) -> str:
    """The point as the task takes it.

    Raises:
        BadInput: none has been placed.
    """
    found = point_of(points)
    if found is None:
        raise BadInput(f"{points.GetName()} holds no point.", "", "Press 'Place', and click into a slice view.")
    return ",".join(f"{part:.6g}" for part in found)


def steps(inputs: Inputs) -> Steps:
    """The steps of an explanation, for :mod:`MLISlicerLib.jobs`; their result is a :class:`Result`.

    Raises:
        MLIError: what a user can act on.
    """
    if not inputs.volumes:
        raise BadInput("No volume was given.", "", "Choose an input volume.")
    if not inputs.methods:
        raise BadInput("No method was given.", "", "Choose a method.")
    volume = inputs.volumes[0]
    nodes.grid_of(volume)
    point = point_text(inputs.point) if inputs.point is not None else ""
    with JobFolder() as folder:
        files: dict[Path, Any] = {}
        given = yield from _write(inputs, folder, files)
        made = []
        for number, name in enumerate(dict.fromkeys(inputs.methods)):
            request = _request(name, inputs.settings, given, point, number == 0)
            output = folder / f"map{number}.nrrd"
            details = yield from exchange.ask("explain", {**request, "output": str(output)}, files)
            scalars, grid = yield from exchange.read_result(output)
            count = scalars.components(int(np.prod(grid.size)))
            if name == "ablation-regions" and inputs.regions is not None:
                _name_regions(details["parts"], inputs.regions)
            made.append((details, scalars, count, grid))
        texts = [record_of(one[0], files) for one in made]
        yield None
        if volume.GetScene() is None:
            raise BadInput(
                f"{volume.GetName()} was removed while it was explained.", "", "Load it again and press Apply."
            )
        for _details, _scalars, _count, grid in made:
            nodes.require_grid(grid, volume)
        with nodes.all_or_nothing():
            return _show(inputs, made, texts)


def _request(
    name: str, settings: Mapping[str, Any], files: Mapping[str, Any], point: str, first: bool
) -> dict[str, Any]:
    """What the worker is asked for one method: each gets what it takes."""
    method = METHODS[name]
    request = {**settings, "method": name, "images": files["images"], "point": point, "compress": False}
    request["field"] = bool(settings.get("field", True)) and first
    if not method.layer:
        request.pop("layer", None)
    if not method.target:
        request.pop("target", None)
    elif "region" in files:
        request["region"] = files["region"]
    if name == "ablation-regions" and "regions" in files:
        request["regions"] = files["regions"]
    return request


def _write(inputs: Inputs, folder: Path, files: dict[Path, Any]) -> Steps:
    """Write the images and the segments; their paths by the request's settings."""
    given: dict[str, Any] = {"images": []}
    volume = inputs.volumes[0]
    for number, node in enumerate(inputs.volumes, start=1):
        path = folder / f"image{number}.nrrd"
        yield from exchange.write_volume(node, path)
        files[path] = node
        given["images"].append(str(path))
    if inputs.region is not None:
        node, identifier = inputs.region
        if node.GetSegmentation().GetSegment(identifier) is None:
            raise BadInput(f"{node.GetName()} has no such segment any more.", "", "Choose a segment.")
        yield from _write_segments(node, {identifier: 1}, volume, folder / "region.nrrd", files)
        given["region"] = str(folder / "region.nrrd")
    if inputs.regions is not None and "ablation-regions" in inputs.methods:
        segmentation = inputs.regions.GetSegmentation()
        values = {segmentation.GetNthSegmentID(n): n + 1 for n in range(segmentation.GetNumberOfSegments())}
        yield from _write_segments(inputs.regions, values, volume, folder / "regions.nrrd", files)
        given["regions"] = str(folder / "regions.nrrd")
    return given


def _name_regions(parts: Sequence[dict[str, Any]], node: slicer.vtkMRMLSegmentationNode) -> None:
    """Call the regions that were taken away as their segments are called."""
    segmentation = node.GetSegmentation()
    for one in parts:
        if 1 <= one["part"] <= segmentation.GetNumberOfSegments():
            one["name"] = segmentation.GetNthSegment(one["part"] - 1).GetName()
        else:
            one["name"] = _("all else")


def _write_segments(node: Any, values: Mapping[str, int], volume: Any, path: Path, files: dict[Path, Any]) -> Steps:
    yield from exchange.write_segments(node, values, volume, path)
    files[path] = node


# -- what comes back


def _show(inputs: Inputs, made: Sequence[tuple[Any, nodes.Scalars, int, Any]], records: Sequence[str]) -> Result:
    """Make the nodes: the one step that touches the scene."""
    volume = inputs.volumes[0]
    held = inputs.previous if inputs.map is not None and inputs.map.GetScene() is not None else {}
    maps, components = [], []
    old_maps, old_components = list(held.get("maps") or ()), list(held.get("components") or ())
    for number, (details, scalars, count, _grid) in enumerate(made):
        given = inputs.map if number == 0 else _nth(old_maps, number)
        title = f"{volume.GetName()} {METHODS[details['method']].title}"
        node = node_or_new(given, "vtkMRMLScalarVolumeNode", title)
        every = None
        if count > 1:
            name = _("{name}, all").format(name=title)
            every = node_or_new(_nth(old_components, number), "vtkMRMLVectorVolumeNode", name)
            nodes.fill_volume(every, scalars, nodes.grid_of(volume))
            nodes.place_like(every, volume)
        else:
            nodes.fill_volume(node, scalars, nodes.grid_of(volume))
        nodes.place_like(node, volume)
        maps.append(node)
        components.append(every)
        if every is not None:
            show_component(node, every, details, 0)
        else:
            _show_map(node, details, (float(details["display"]["low"]), float(details["display"]["high"])))
    told = maps[0].GetName()
    result = Result(
        maps=maps,
        components=components,
        record=node_or_new(held.get("record"), "vtkMRMLTextNode", _("{name} run record").format(name=told)),
        details=[one[0] for one in made],
    )
    nodes.fill_text(result.record, records[0] if len(records) == 1 else "[\n" + ",\n".join(records) + "\n]")
    explanation_report.show_parts(result, held)
    explanation_report.show_curve(result, held)
    field_boxes.show(result, volume, held)
    nodes.file_results_beside(result, volume)
    for node in [*maps, *(node for node in components if node is not None)]:
        nodes.file_beside(node, volume)
    show_map(volume, maps[0], str(made[0][0]["makes"]))
    _remove_unused(held, result)
    return result


def _remove_unused(held: Mapping[str, Any], result: Result) -> None:
    """Remove the nodes that belonged to the result that was replaced, and that the new one has no use for."""
    used = [*result.maps, *result.components, *(getattr(result, field.name) for field in dataclasses.fields(result))]
    old: list[Any] = []
    for given in held.values():
        old += given if isinstance(given, list) else [given]
    for node in old:
        if node is not None and node.GetScene() is not None and not any(node is one for one in used):
            if node.IsA("vtkMRMLPlotChartNode"):
                charts.remove_series(node)
            slicer.mrmlScene.RemoveNode(node)


def _nth(given: Sequence[Any], number: int) -> Any:
    return given[number] if number < len(given) else None


def _show_map(node: slicer.vtkMRMLScalarVolumeNode, details: Mapping[str, Any], window: tuple[float, float]) -> None:
    """Give a map its colours; an image that was made is grey."""
    if details["makes"] == "image":
        display.show_window(node, *window)
    else:
        title = METHODS[details["method"]].title
        display.show_as_attribution(node, *window, title)


def show_component(
    node: slicer.vtkMRMLScalarVolumeNode, every: slicer.vtkMRMLVectorVolumeNode, details: Mapping[str, Any], number: int
) -> None:
    """Put one component of a map into the volume that is shown.

    Args:
        node: receives it.
        every: holds all.
        details: of the result; `makes`, `method` and `signed` are looked at.
        number: of the component, from 0.
    """
    image = every.GetImageData()
    values = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())[:, number]
    scalars = nodes.Scalars()
    scalars.allocate(values.dtype, values.size)[:] = values
    transform = node.GetTransformNodeID()
    nodes.fill_volume(node, scalars, Grid(image.GetDimensions(), nodes.RAS_LPS @ nodes.ijk_to_ras(every)))
    node.SetAndObserveTransformNodeID(transform)
    if details["makes"] == "image":
        low, high = (float(part) for part in np.percentile(values, (0.5, 99.5)))
        _show_map(node, details, (low, high))
    else:
        _show_map(node, details, display.robust_window(values, bool(details["signed"])))


def show_map(volume: Any, node: slicer.vtkMRMLScalarVolumeNode, makes: str, opacity: float = display.OPACITY) -> None:
    """Show a map over the volume in all slice views; an image that was made in its place."""
    display.show_over(volume, node, 1.0 if makes == "image" else opacity)

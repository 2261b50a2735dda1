"""One registration in Slicer from volumes to a transform node: write the inputs, ask the worker, show the result.

The scene is not touched before everything has been read back; then all nodes are made in one step, or none. A moving
volume that is under the result of an earlier run is taken as it lies without it, so that a run can be repeated.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
from slicer.i18n import tr as _

from MLILib.errors import BadInput

from . import charts, display, exchange, nodes, overlay, quality, transforms
from .job_folder import JobFolder
from .jobs import Steps
from .nodes import node_or_new
from .transfer import Grid, discard
from .wording import record_of


@dataclasses.dataclass
class Inputs:
    """What a registration starts from and where its result goes.

    Attributes:
        fixed: the result lies on its grid.
        moving: the volume that is brought onto it.
        settings: of the task "register", without files.
        transform: node that receives the transform; a new one when None, or when it is of the other kind.
        without: result of an earlier run that the nodes of the moving side are taken out of, if they are under it.
        initial: linear transform node to start from.
        warped: whether to make the moving volume on the fixed grid, in `warped_volume` or a new node.
        jacobian: whether to make the map of local change of volume, in `jacobian_volume` or a new node.
        fixed_mask, moving_mask: segmentation or label map; only voxels inside are compared.
        fixed_segmentation, moving_segmentation: to measure the result with; segments are paired by name.
        fixed_points, moving_points: corresponding landmarks, to measure the result with.
        previous: nodes that describe what `transform` holds now and are refreshed with it, by their name in
            :class:`Result`.
    """

    fixed: slicer.vtkMRMLScalarVolumeNode
    moving: slicer.vtkMRMLScalarVolumeNode
    settings: Mapping[str, Any]
    transform: slicer.vtkMRMLTransformNode | None = None
    without: slicer.vtkMRMLTransformNode | None = None
    initial: slicer.vtkMRMLTransformNode | None = None
    warped: bool = False
    warped_volume: slicer.vtkMRMLScalarVolumeNode | None = None
    jacobian: bool = False
    jacobian_volume: slicer.vtkMRMLScalarVolumeNode | None = None
    fixed_mask: Any = None
    moving_mask: Any = None
    fixed_segmentation: slicer.vtkMRMLSegmentationNode | None = None
    moving_segmentation: slicer.vtkMRMLSegmentationNode | None = None
    fixed_points: slicer.vtkMRMLMarkupsFiducialNode | None = None
    moving_points: slicer.vtkMRMLMarkupsFiducialNode | None = None
    previous: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def deformable(self) -> bool:
        """Whether the result can bend space, and so is asked for as a displacement field."""
        return bool(self.settings.get("model")) or "deformable" in self.stages

    @property
    def stages(self) -> list[str]:
        """The stages, those of the preset where none are given."""
        from MLILib.registration.presets import PRESETS

        given = [name for name in str(self.settings.get("stages", "")).split(",") if name]
        return given or list(PRESETS[str(self.settings.get("preset", "deformable"))].stages)

    def moved_along(self) -> list[Any]:
        """The nodes of the moving side, which go where the moving volume goes, unless the fixed side has them, too."""
        given = (self.moving, self.moving_segmentation, self.moving_points, self.moving_mask)
        stay = (self.fixed, self.fixed_segmentation, self.fixed_points, self.fixed_mask)
        return [node for node in given if node is not None and node not in stay]


@dataclasses.dataclass
class Result:
    """The nodes of a result, None for what was not asked for, and what the worker said.

    Attributes:
        transform: moves the moving volume onto the fixed one.
        quality: table of measures before and after.
        record: text node that says how the result was made.
        warped: the moving volume on the fixed grid.
        jacobian: local change of volume, 1 is none.
        curve: table of what was optimised.
        curve_chart: the same as lines.
        overlap_chart: Dice before and after as bars.
        details: the worker's result.
    """

    transform: slicer.vtkMRMLTransformNode
    quality: slicer.vtkMRMLTableNode
    record: slicer.vtkMRMLTextNode
    warped: slicer.vtkMRMLScalarVolumeNode | None = None
    jacobian: slicer.vtkMRMLScalarVolumeNode | None = None
    curve: slicer.vtkMRMLTableNode | None = None
    curve_chart: slicer.vtkMRMLPlotChartNode | None = None
    overlap_chart: slicer.vtkMRMLPlotChartNode | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Read:
    """What the worker's files hold, before the scene is touched."""

    record: str
    matrix: Any = None
    field: tuple[nodes.Scalars, Grid] | None = None
    volumes: dict[str, nodes.Scalars] = dataclasses.field(default_factory=dict)


def steps(inputs: Inputs) -> Steps:
    """The steps of a registration, for :mod:`MLISlicerLib.jobs`; their result is a :class:`Result`.

    Raises:
        MLIError: what a user can act on.
    """
    _check(inputs)
    nodes.grid_of(inputs.fixed)
    nodes.grid_of(inputs.moving, inputs.without)
    with JobFolder() as folder:
        files: dict[Path, Any] = {}
        names: dict[int, str] = {}
        request = dict(inputs.settings)
        request |= yield from _write(inputs, folder, files, names)
        ending = "nrrd" if inputs.deformable else "tfm"
        written = {"transform": folder / f"transform.{ending}"}
        if inputs.warped:
            written["output"] = folder / "warped.nrrd"
        if inputs.jacobian:
            written["jacobian"] = folder / "jacobian.nrrd"
        asked = {**request, **{key: str(path) for key, path in written.items()}}
        details = yield from exchange.ask("register", asked, files)
        for path in files:
            yield from discard(path)
        read = yield from _read_back(inputs, details, files)
        for volume in (inputs.fixed, inputs.moving):
            if volume.GetScene() is None:
                raise BadInput(
                    f"{volume.GetName()} was removed while it was registered.", "", "Load it again and press Apply."
                )
        with nodes.all_or_nothing():
            return _show(inputs, details, read, names)


def _check(inputs: Inputs) -> None:
    if inputs.fixed is None or inputs.moving is None:
        raise BadInput("There are not two volumes.", "", "Choose a fixed and a moving volume.")
    if inputs.fixed is inputs.moving:
        raise BadInput(
            "The fixed and the moving volume are the same.", "There is nothing to register.", "Choose another volume."
        )
    for fixed, moving, what in (
        (inputs.fixed_segmentation, inputs.moving_segmentation, _("segmentation")),
        (inputs.fixed_points, inputs.moving_points, _("list of landmarks")),
    ):
        if fixed is not None and moving is None:
            raise BadInput(
                f"There is a fixed {what} but no moving one.",
                "The result is measured with both.",
                f"Choose a moving {what}, too, or none for the fixed volume.",
            )
    for node in inputs.moved_along():
        nodes.to_world(node, inputs.without)  # raises where it could not be moved


# -- what the worker gets


def _write(inputs: Inputs, folder: Path, files: dict[Path, Any], names: dict[int, str]) -> Steps:
    """Write all inputs; `files` learns which node each file came from, `names` the name of each label.

    Returns:
        The request's settings that name the files.
    """
    below = inputs.without
    sides = {
        "fixed": (inputs.fixed, None, inputs.fixed_mask, inputs.fixed_segmentation, inputs.fixed_points),
        "moving": (inputs.moving, below, inputs.moving_mask, inputs.moving_segmentation, inputs.moving_points),
    }
    told: dict[str, str] = {}
    labels: dict[str, dict[str, int]] = {}
    if inputs.fixed_segmentation is not None and inputs.moving_segmentation is not None:
        labels["fixed"], labels["moving"], found = match(inputs.fixed_segmentation, inputs.moving_segmentation)
        names.update(found)
    for side, (volume, under, mask, segmentation, points) in sides.items():
        path = folder / f"{side}.nrrd"
        files[path], told[side] = volume, str(path)
        yield from exchange.write_volume(volume, path, below=under)
        if mask is not None:
            path = folder / f"{side}-mask.nrrd"
            files[path], told[f"{side}_mask"] = mask, str(path)
            yield from _write_mask(mask, volume, path, under)
        if side in labels and segmentation is not None:
            path = folder / f"{side}-labels.nrrd"
            files[path], told[f"{side}_labels"] = segmentation, str(path)
            yield from exchange.write_segments(segmentation, labels[side], volume, path, below=under)
        if points is not None and inputs.fixed_points is not None:
            path = folder / f"{side}-points.mrk.json"
            files[path], told[f"{side}_points"] = points, str(path)
            path.write_text(json.dumps(nodes.markups_of(points, under)), encoding="utf-8")
            yield None
    if inputs.initial is not None:
        path = folder / "initial.tfm"
        transforms.write_linear(inputs.initial, path)
        files[path], told["init"] = inputs.initial, str(path)
    return told


def _write_mask(mask: Any, volume: Any, path: Path, below: Any) -> Steps:
    """All segments together, or the label map as it is."""
    if mask.IsA("vtkMRMLSegmentationNode"):
        ids = list(mask.GetSegmentation().GetSegmentIDs())
        if not ids:
            raise BadInput(f"{mask.GetName()} has no segment.", "It was chosen as a mask.", "Choose another mask.")
        yield from exchange.write_segments(mask, dict.fromkeys(ids, 1), volume, path, below=below)
    else:
        yield from exchange.write_volume(mask, path, below=below)


def match(
    fixed: slicer.vtkMRMLSegmentationNode, moving: slicer.vtkMRMLSegmentationNode
) -> tuple[dict[str, int], dict[str, int], dict[int, str]]:
    """Pair the segments of two segmentations by name, without regard to case; single ones are a pair.

    Returns:
        Label of each segment id of the fixed and of the moving one, and the name of each label.

    Raises:
        BadInput: no segment has a partner.
    """
    ours, theirs = _segments(fixed), _segments(moving)
    if len(ours) == 1 and len(theirs) == 1:
        name = next(iter(ours.values()))
        return dict.fromkeys(ours, 1), dict.fromkeys(theirs, 1), {1: name}
    wanted = {name.casefold() for name in theirs.values()}
    values: dict[str, int] = {}
    names: dict[int, str] = {}
    for name in ours.values():
        if name.casefold() in wanted and name.casefold() not in values:
            values[name.casefold()] = len(values) + 1
            names[len(values)] = name
    if not values:
        raise BadInput(
            f"The segments of {fixed.GetName()} and {moving.GetName()} do not correspond.",
            "No name is in both.",
            "Give corresponding segments the same name (Segmentations module).",
        )
    paired = [
        {identifier: values[name.casefold()] for identifier, name in segments.items() if name.casefold() in values}
        for segments in (ours, theirs)
    ]
    return paired[0], paired[1], names


def _segments(node: slicer.vtkMRMLSegmentationNode) -> dict[str, str]:
    segmentation = node.GetSegmentation()
    return {identifier: segmentation.GetSegment(identifier).GetName() for identifier in segmentation.GetSegmentIDs()}


# -- what comes back


def _read_back(inputs: Inputs, details: Mapping[str, Any], files: Mapping[Path, Any]) -> Steps:
    read = _Read(record_of(details, files))
    path = Path(details["transform"])
    if details["kind"] == "deformable":
        read.field = yield from transforms.read_field(path, _("Reading the result"))
        yield from discard(path)
    elif inputs.deformable:  # a learned model that turned out to be linear: the file is a field all the same
        read.matrix = np.array(details["linear"])
    else:
        read.matrix = transforms.matrix_of_transform(sitk.ReadTransform(str(path)))
    for key in ("output", "jacobian"):
        if (key == "output" and inputs.warped) or (key == "jacobian" and inputs.jacobian):
            read.volumes[key], grid = yield from exchange.read_result(Path(details[key]))
            nodes.require_grid(grid, inputs.fixed)
    return read


def _show(inputs: Inputs, details: dict[str, Any], read: _Read, names: Mapping[int, str]) -> Result:
    """Make the nodes: the one step that touches the scene."""
    moving, fixed = inputs.moving, inputs.fixed
    kind = transforms.LINEAR if read.field is None else transforms.DEFORMABLE
    title = _("{moving} to {fixed}").format(moving=moving.GetName(), fixed=fixed.GetName())
    transform = node_or_new(inputs.transform, kind, title)
    previous = inputs.previous if transform is inputs.transform else {}  # the others describe another transform
    transform.SetAndObserveTransformNodeID(None)
    if read.field is not None:
        transforms.fill_grid(transform, *read.field)
    else:
        transforms.fill_linear(transform, read.matrix)
    transforms.refresh_inverse(transform)
    told = transform.GetName()
    result = Result(
        transform=transform,
        quality=node_or_new(previous.get("quality"), "vtkMRMLTableNode", _("{name} quality").format(name=told)),
        record=node_or_new(previous.get("record"), "vtkMRMLTextNode", _("{name} run record").format(name=told)),
        details=details,
    )
    charts.fill_table(result.quality, quality.table(details["quality"], names))
    nodes.fill_text(result.record, read.record)
    for key, given, title in (
        ("output", inputs.warped_volume, _("{name} warped").format(name=moving.GetName())),
        ("jacobian", inputs.jacobian_volume, _("{name} Jacobian").format(name=told)),
    ):
        if key in read.volumes:
            node = node_or_new(given, "vtkMRMLScalarVolumeNode", title)
            nodes.fill_volume(node, read.volumes[key], nodes.grid_of(fixed))
            nodes.place_like(node, fixed)
            setattr(result, "warped" if key == "output" else key, node)
    if result.warped is not None:
        overlay.look_like(result.warped, moving)
    if result.jacobian is not None:
        display.show_as_jacobian(result.jacobian)
    quality.show_charts(result, details, names, previous)
    for field in dataclasses.fields(result):
        node = getattr(result, field.name)
        if field.name != "details" and node is not None:
            nodes.file_beside(node, fixed if field.name in ("warped", "jacobian") else moving)
    for node in inputs.moved_along():
        transforms.put_under(node, transform, inputs.without)
    overlay.show_pair(fixed, moving)
    return result

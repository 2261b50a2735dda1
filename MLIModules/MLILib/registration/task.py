"""The task "register": two images in; warped image, transforms, labels, quality, pictures and the record out.

Example, in a script, without files::

    result = register(fixed, moving, preset="deformable")
    quality = assess(fixed, moving, result)
    print(summary.table(quality))
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from .. import bundles, files, geometry, images, labels, record
from .. import device as devices
from ..errors import BadInput
from ..geometry import Grid
from ..metrics import GRID_TOLERANCE
from ..progress import Progress
from ..segmentation import label_files, seg_nrrd
from ..segmentation.label_files import LabelFile
from . import landmarks, quality, summary
from .comparison import compare, require_same_dimension, resample, resample_labels
from .conversion import require_transform_suffix, write_transform
from .pairwise import Registration, register
from .presets import PRESETS
from .requests import RegisterRequest


@dataclasses.dataclass
class _Inputs:
    """What was read."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_mask: sitk.Image | None
    moving_mask: sitk.Image | None
    fixed_labels: LabelFile | None
    moving_labels: LabelFile | None
    fixed_points: npt.NDArray[np.float64] | None
    moving_points: npt.NDArray[np.float64] | None
    point_labels: Sequence[str]
    warnings: list[str]


def run(request: RegisterRequest, progress: Progress) -> dict[str, Any]:
    """Do what the request says: read, register, measure, draw, write.

    Returns:
        Plain values: output, transform, inverse, warped_labels, jacobian, report, record (file names, "" where not
        written), pictures (file names by what they show), kind ("linear" or "deformable"), quality (see
        :func:`MLILib.registration.quality.assess`), curve, linear (matrix in LPS mm), device, seconds, stages, warnings
        and text (a table for a terminal).

    Raises:
        MLIError: what a user can act on; nothing is written then.
    """
    started = time.monotonic()
    _require_names(request)
    resolved = devices.resolve(request.device)
    memory = record.PeakMemory(str(resolved))
    model = bundles.find(request.model, trust=request.trust) if request.model else None
    progress.stage("Reading")
    inputs = _read(request)
    result = register(
        inputs.fixed,
        inputs.moving,
        preset=request.preset,
        stages=tuple(request.stage_list()),
        model=request.model or None,
        refine=request.refine,
        similarity=request.similarity,
        deformation=request.deformation,
        regularisation=request.regularisation,
        iterations=request.iterations,
        resolution=request.resolution,
        sampling=request.sampling,
        init=request.init,
        fixed_mask=inputs.fixed_mask,
        moving_mask=inputs.moving_mask,
        device=request.device,
        seed=request.seed,
        trust=request.trust,
        progress=progress,
    )
    progress.stage("Measuring")
    compared = compare(
        inputs.fixed, inputs.moving, result.transform, fixed_mask=inputs.fixed_mask, moving_mask=inputs.moving_mask
    )
    grid = Grid.of(inputs.fixed)
    determinant = quality.determinants(result, grid)
    measured = quality.assess(
        inputs.fixed,
        inputs.moving,
        result,
        fixed_mask=inputs.fixed_mask,
        moving_mask=inputs.moving_mask,
        fixed_labels=inputs.fixed_labels,
        moving_labels=inputs.moving_labels,
        fixed_points=inputs.fixed_points,
        moving_points=inputs.moving_points,
        point_labels=inputs.point_labels,
        similarity=_similarity(request),
        comparison=compared,
        determinant=determinant,
    )
    warnings = [*inputs.warnings, *result.warnings, *measured["warnings"]]
    if request.inverse and result.inverse is None:
        warnings.append("The inverse was not written: the transform has none.")
    progress.stage("Writing")
    writing = time.monotonic()
    with files.Outputs() as outputs:
        paths = _write(request, inputs, result, determinant, outputs)
        pictures: dict[str, str] = {}
        if request.report:
            pictures = _draw(request, inputs, result, compared, determinant, measured, outputs)
        answer = {
            "kind": "linear" if result.displacement is None else "deformable",
            "linear": result.linear.tolist(),
            "quality": measured,
            "curve": [{**row, "value": _finite(row["value"])} for row in result.curve],
        }
        noted = record.make(
            request,
            models=[model] if model else [],
            device=result.device,
            stages={**progress.stages, "Writing": time.monotonic() - writing},
            peak_memory=memory.bytes(),
            warnings=warnings,
            results={key: answer[key] for key in ("kind", "linear", "quality")},
        )
        paths["record"] = _record_path(request)
        if paths["record"] != request.report:
            record.write(noted, outputs.path(paths["record"]))
        if request.report:
            told = {**answer, **paths, "pictures": pictures, "warnings": warnings, "record": noted}
            Path(outputs.path(request.report)).write_text(
                json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
    progress.fraction(1.0)
    return {
        **paths,
        **answer,
        "pictures": pictures,
        "device": result.device,
        "seconds": time.monotonic() - started,
        "stages": progress.finish(),
        "warnings": warnings,
        "text": summary.table({**measured, "warnings": warnings}),
    }


def _similarity(request: RegisterRequest) -> str:
    """What was maximised last; "" of a model, whose training is not asked."""
    preset = PRESETS[request.preset]
    if request.model and not request.refine:
        return ""
    if request.similarity:
        return request.similarity
    bent = request.model or "deformable" in (request.stage_list() or preset.stages)
    return preset.similarity if bent else preset.linear_similarity


def _require_names(request: RegisterRequest) -> None:
    """Raise :class:`BadInput` for an output whose name tells no format, or that would replace an input."""
    for path in filter(None, (request.transform, request.inverse)):
        require_transform_suffix(path)
    for path, what in ((request.output, "the image"), (request.jacobian, "the Jacobian map")):
        if path:
            images.require_suffix(path, images.WRITABLE, what)
    if request.warped_labels:
        images.require_suffix(request.warped_labels, (*images.WRITABLE, ".seg.nrrd"), "the labels")
    files.require_json(request.report)
    inputs = (*request.inputs(), *([request.init] if Path(request.init).is_file() else []))
    files.require_apart((*request.outputs(), _record_path(request)), inputs)


def _record_path(request: RegisterRequest) -> str:
    """Beside the first of the outputs; it is part of the report where that has the very name."""
    return record.path_beside(request.outputs()[0])


def _read(request: RegisterRequest) -> _Inputs:
    """Everything the request names, checked."""
    fixed, moving = images.read(request.fixed), images.read(request.moving)
    require_same_dimension(fixed, moving, (request.fixed, request.moving))
    images.check(fixed, request.fixed)
    images.check(moving, request.moving)
    warnings: list[str] = []
    fixed_mask = _read_mask(request.fixed_mask, fixed, request.fixed, warnings) if request.fixed_mask else None
    moving_mask = _read_mask(request.moving_mask, moving, request.moving, warnings) if request.moving_mask else None
    sides = []
    for path, image, name in (
        (request.fixed_labels, fixed, request.fixed),
        (request.moving_labels, moving, request.moving),
    ):
        sides.append(_read_labels(path, image, name) if path else None)
    fixed_labels, moving_labels = sides
    if fixed_labels is not None and not geometry.same_grid(fixed_labels.grid, fixed):
        if not (fixed_labels.segments and _same_voxels(fixed_labels.grid, Grid.of(fixed))):
            warnings.append(_resampled(request.fixed_labels, request.fixed))
        identity = sitk.Transform(fixed.GetDimension(), sitk.sitkIdentity)
        fixed_labels = quality.warped(fixed_labels, Grid.of(fixed), identity)
    points: tuple[Any, Any, Sequence[str]] = (None, None, ())
    if request.fixed_points:
        points = landmarks.pair(
            landmarks.read(request.fixed_points),
            landmarks.read(request.moving_points),
            (request.fixed_points, request.moving_points),
        )
    if request.warped_labels and moving_labels is not None:
        layers = len(moving_labels.layers)
        if layers > 1 and files.suffix(request.warped_labels) != ".seg.nrrd":
            raise BadInput(
                f"{request.warped_labels} cannot hold the labels of {request.moving_labels}.",
                f"They overlap, in {layers} layers.",
                "Give --warped-labels a name that ends with .seg.nrrd.",
            )
    return _Inputs(fixed, moving, fixed_mask, moving_mask, fixed_labels, moving_labels, *points, warnings)


def _read_mask(path: str, image: sitk.Image, name: str, warnings: list[str]) -> sitk.Image:
    """A mask as 0 and 1 on the image's grid.

    Raises:
        BadInput: it is empty, empty on the image, of another dimension or no label map.
    """
    found = _read_labels(path, image, name)
    inside = np.zeros(found.grid.shape, dtype=np.uint8)
    for layer in found.layers:
        inside |= layer != 0
    if not inside.any():
        raise BadInput(f"The mask {path} is empty.", "No voxel of it is other than 0.", "Draw it, or leave it out.")
    mask = geometry.from_array(inside, found.grid)
    if geometry.same_grid(found.grid, image):
        return Grid.of(image).apply(mask)
    if not (found.segments and _same_voxels(found.grid, Grid.of(image))):
        warnings.append(_resampled(path, name))
    mask = resample_labels(mask, Grid.of(image), sitk.Transform(image.GetDimension(), sitk.sitkIdentity))
    if not sitk.GetArrayViewFromImage(mask).any():
        raise BadInput(
            f"The mask {path} does not overlap {name}.",
            "They lie at different places in the world.",
            "Give the mask of this image.",
        )
    return mask


def _read_labels(path: str, image: sitk.Image, name: str) -> LabelFile:
    return label_files.read_on(path, image, name, "Give the file that was drawn on this image.")


def _same_voxels(part: Grid, whole: Grid) -> bool:
    """Whether two grids differ in their extent only, as Slicer crops a .seg.nrrd to its segments."""
    d = whole.dimension
    step = np.linalg.solve(whole.matrix(), part.matrix())
    off = step - np.eye(d + 1)
    off[:d, d] -= np.rint(off[:d, d])
    return bool(np.abs(off).max() < GRID_TOLERANCE / max(part.size))


def _resampled(path: str, name: str) -> str:
    return f"{path} is not on the grid of {name}: it was resampled to it with nearest-neighbour interpolation."


def _write(
    request: RegisterRequest,
    inputs: _Inputs,
    result: Registration,
    determinant: npt.NDArray[Any],
    outputs: files.Outputs,
) -> dict[str, str]:
    """Write images and transforms; their names by what they are, "" for what was not written."""
    grid, moving_grid = Grid.of(inputs.fixed), Grid.of(inputs.moving)
    paths = dict.fromkeys(("output", "transform", "inverse", "warped_labels", "jacobian", "report"), "")
    paths["report"] = request.report
    if request.output:
        warped = resample(inputs.moving, grid, result.transform)
        images.write(warped, outputs.path(request.output), final=request.output)
        paths["output"] = request.output
    if request.transform:
        write_transform(result.transform, outputs.path(request.transform), grid, final=request.transform)
        paths["transform"] = request.transform
    if request.inverse and result.inverse is not None:
        write_transform(result.inverse, outputs.path(request.inverse), moving_grid, final=request.inverse)
        paths["inverse"] = request.inverse
    if request.jacobian:
        image = geometry.from_array(determinant, grid)
        images.write(image, outputs.path(request.jacobian), final=request.jacobian)
        paths["jacobian"] = request.jacobian
    if request.warped_labels and inputs.moving_labels is not None:
        found = quality.warped(inputs.moving_labels, grid, result.transform)
        _write_labels(found, outputs.path(request.warped_labels), request.warped_labels)
        paths["warped_labels"] = request.warped_labels
    return paths


def _write_labels(found: LabelFile, path: str, final: str) -> None:
    """A label map by the name of its file; .seg.nrrd keeps the segments' names and overlaps."""
    if files.suffix(final) != ".seg.nrrd":
        images.write(geometry.from_array(found.layers[0], found.grid), path, final=final)
        return
    if len(found.layers) == 1:
        segments = [labels.label(one.value, one.name, {}) for one in found.labels]
        seg_nrrd.write(geometry.from_array(found.layers[0], found.grid), segments, path, final=final)
        return
    masks = [found.layers[one.layer] == one.value for one in found.labels]
    segments = [labels.label(i, one.name, {}) for i, one in enumerate(found.labels, start=1)]
    stack = geometry.from_array(np.stack(masks, axis=-1).astype(np.uint8), found.grid, vector=True)
    seg_nrrd.write(stack, segments, path, final=final)


def _draw(
    request: RegisterRequest,
    inputs: _Inputs,
    result: Registration,
    compared: Any,
    determinant: npt.NDArray[Any],
    measured: dict[str, Any],
    outputs: files.Outputs,
) -> dict[str, str]:
    """Write the pictures beside the report; their names by what they show."""
    from . import pictures, views  # matplotlib takes a second to import, and only a report needs it

    focus = None
    if inputs.fixed_labels is not None:
        focus = np.any([layer != 0 for layer in inputs.fixed_labels.layers], axis=0)
    elif inputs.fixed_mask is not None:
        focus = sitk.GetArrayFromImage(inputs.fixed_mask)
    shown = views.scene(
        compared,
        result.transform,
        determinant=None if result.displacement is None else determinant,
        curve=result.curve,
        focus=focus,
    )
    finals: dict[str, str] = {}
    place = outputs.beside(request.report, finals)
    title = f"{Path(request.moving).name} on {Path(request.fixed).name}"
    pictures.write(shown, measured, title, place)
    return finals


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None

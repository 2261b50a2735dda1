"""The task "fuse": atlases and a target, or raters on one grid, in; the consensus, maps, report and record out.

Example, in a script, without files::

    found = propagate(target, [(image, labels), ...])
    result = fuse(found.raters, method="jlf", target=found.target, warped=found.warped)
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from .. import bundles, files, images, record
from .. import device as devices
from ..errors import BadInput
from ..geometry import Grid
from ..labels import Label
from ..metrics import compare_labels, for_json
from ..progress import Progress
from ..registration.presets import PRESETS
from ..registration.summary import number
from ..segmentation import label_files, seg_nrrd
from ..segmentation.evaluation import label_names
from ..segmentation.label_files import LabelFile
from . import atlas_labels, atlas_sets, rater_report, sources
from .atlas_sets import AtlasSet
from .cache import Cache, default_folder
from .fusing import Fused, fuse
from .methods import METHODS
from .propagation import Outcome, propagate
from .raters import Raters, raters
from .requests import FuseRequest


@dataclasses.dataclass
class _Gathered:
    """The raters, wherever they come from.

    Attributes:
        raters: on the result's grid.
        labels: all that the atlas set or the raters name, drawn or not.
        target, warped: intensities, where they are needed.
        outcomes: of every atlas or rater.
        warnings: sentences.
        device: where atlases were registered, in words; "" where none were.
    """

    raters: Raters
    labels: Sequence[Label]
    target: npt.NDArray[np.float32] | None
    warped: npt.NDArray[np.float32] | None
    outcomes: list[Outcome]
    warnings: list[str]
    device: str = ""


def run(request: FuseRequest, progress: Progress) -> dict[str, Any]:
    """Do what the request says: read, register, fuse, measure, draw, write.

    Returns:
        Plain values: output, probabilities, disagreement, report_file, record (file names, "" where not written),
        pictures (file names by what they show), method, raters (name, status "used", "left out", "failed" or "not
        selected", reason, seconds, similarity, cached), report (see :func:`MLILib.fusion.rater_report.report`), labels
        (value, name, color, terminology, voxels, volume_ml), metrics (against the reference, by label and "mean"; or
        None), device, seconds, stages, warnings and text (for a terminal).

    Raises:
        MLIError: what a user can act on; nothing is written then.
    """
    started = time.monotonic()
    device = devices.resolve(request.device)
    memory = record.PeakMemory(str(device))
    names = label_names(request.names)
    atlases = atlas_sets.read(request.atlases) if request.atlases else None
    _require_names(request, atlases)
    target = _target(request)
    progress.stage("Reading")
    if atlases is None:
        found = _raters(request, target, names, progress)
    else:
        assert target is not None
        reference = _reference(request, Grid.of(target), names)
        found = _atlases(request, target, atlases, names, progress)
    if atlases is None:
        reference = _reference(request, found.raters.grid, names)
    progress.stage("Fusing")
    fused = fuse(
        found.raters,
        request.method,
        target=found.target,
        warped=found.warped,
        region=request.region,
        margin=request.margin,
        patch_radius=request.patch_radius,
        search_radius=request.search_radius,
        beta=request.beta,
        alpha=request.alpha,
        drop=request.drop,
        steps=request.steps,
        probabilities=bool(request.probabilities),
        device=str(device),
        seed=request.seed,
        progress=progress,
    )
    _note_dropped(fused, found.outcomes, progress)
    progress.stage("Measuring")
    answer = {
        "method": request.method,
        "raters": [one.to_json() for one in found.outcomes],
        "report": fused.report,
        "labels": _volumes(fused, found.labels),
        "metrics": None if reference is None else _measured(fused, reference),
    }
    progress.stage("Writing")
    writing = time.monotonic()
    with files.Outputs() as outputs:
        paths = _write(request, fused, found.labels, outputs)
        pictures = _draw(request, fused, found.target, outputs) if request.report else {}
        noted = record.make(
            request,
            models=_models(request),
            device=found.device or devices.describe(device),
            stages={**progress.stages, "Writing": time.monotonic() - writing},
            peak_memory=memory.bytes(),
            warnings=found.warnings,
            results={**answer, "files": _checksums(atlases)},
        )
        if paths["record"] != request.report:
            record.write(noted, outputs.path(paths["record"]))
        if request.report:
            told = {**answer, **paths, "pictures": pictures, "warnings": found.warnings, "record": noted}
            Path(outputs.path(request.report)).write_text(
                json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
    progress.fraction(1.0)
    return {
        **paths,
        **answer,
        "pictures": pictures,
        "device": found.device or devices.describe(device),
        "seconds": time.monotonic() - started,
        "stages": progress.finish(),
        "warnings": found.warnings,
        "text": _text(answer, found.warnings),
    }


def _require_names(request: FuseRequest, atlases: AtlasSet | None) -> None:
    """Raise :class:`BadInput` for an output whose name tells no format, or that would replace an input."""
    images.require_suffix(request.output, (*images.WRITABLE, ".seg.nrrd"), "the consensus")
    for path, what in ((request.probabilities, "the probabilities"), (request.disagreement, "the disagreement")):
        if path:
            images.require_suffix(path, images.WRITABLE, what)
    files.require_json(request.report)
    if request.cache and Path(request.cache).expanduser().is_file():
        raise BadInput(f"{request.cache} is a file.", "The cache is a folder.", "Name a folder.")
    read = (*request.inputs(), *(atlases.files() if atlases else ()))
    files.require_apart((*request.outputs(), record.path_beside(request.output)), read)


def _target(request: FuseRequest) -> sitk.Image | None:
    if not request.target:
        return None
    image = images.read(request.target)
    images.check(image, request.target)
    return image


def _atlases(
    request: FuseRequest, target: sitk.Image, atlases: AtlasSet, names: dict[int, str], progress: Progress
) -> _Gathered:
    """Atlases that are registered to the target."""
    opened = sources.opened(atlases, names, progress)
    kept = Cache(request.cache or default_folder()) if request.keep else None
    found = propagate(
        target,
        opened.sources,
        labels=opened.common.labels,
        registration=request.registration,
        select=request.select,
        borders=request.borders,
        images=METHODS[request.method].images,
        kept=kept,
        device=request.device,
        seed=request.seed,
        trust=request.trust,
        progress=progress,
    )
    warnings = [*opened.common.warnings, *found.warnings]
    lost = [one for one in found.outcomes if one.status == "failed"]
    if lost:
        listed = "; ".join(f"{one.name}: {one.reason}" for one in lost)
        warnings.insert(0, f"{len(lost)} of {len(found.outcomes)} atlases failed and were left out. {listed}")
    return _Gathered(
        found.raters, opened.common.labels, found.target, found.warped, found.outcomes, warnings, found.device
    )


def _raters(request: FuseRequest, target: sitk.Image | None, names: dict[int, str], progress: Progress) -> _Gathered:
    """Raters that drew on one grid: the target's, where there is one."""
    called = atlas_labels.rater_names(request.labels)
    for name in called:
        progress.rater(name, "waiting")
    read = [atlas_labels.read(path, names) for path in request.labels]
    maps = [atlas_labels.drawn(*one) for one in zip(read, called, request.labels, strict=True)]
    common = atlas_labels.common(maps, names, "The list of names")
    grid = Grid.of(target) if target is not None else _whole(read)
    drawn = []
    for name, path, one in zip(called, request.labels, read, strict=True):
        placed = atlas_labels.placed(one, grid)
        if placed is None:
            raise BadInput(
                f"The labels {path} are not on the grid of {request.target or request.labels[0]}.",
                "They were drawn on another image, or resampled.",
                "Resample them to one grid, or give the target image and the atlases instead.",
            )
        drawn.append(common.image(placed))
        progress.rater(name, "done")
    found = raters(drawn, called, {one.value: one.name for one in common.labels})
    by_value = {one.value: one for one in common.labels}
    found = dataclasses.replace(found, labels=tuple(by_value[one.value] for one in found.labels))
    picture = None if target is None else sitk.GetArrayFromImage(target).astype(np.float32)
    return _Gathered(found, common.labels, picture, None, [Outcome(name) for name in called], list(common.warnings))


def _whole(read: Sequence[LabelFile]) -> Grid:
    """The grid of all: of segmentations that Slicer cropped, the smallest that holds each."""
    whole = read[0]
    for one in read[1:]:
        whole, _, _ = label_files.on_one_grid(whole, one)
    return whole.grid


def _reference(request: FuseRequest, grid: Grid, names: dict[int, str]) -> LabelFile | None:
    if not request.reference:
        return None
    found = atlas_labels.placed(atlas_labels.read(request.reference, names), grid)
    if found is None:
        raise BadInput(
            f"The reference {request.reference} is not on the grid of {request.target or request.labels[0]}.",
            "It was drawn on another image, or resampled.",
            "Give labels of this very image, or leave the reference out.",
        )
    return found


def _note_dropped(fused: Fused, outcomes: Sequence[Outcome], progress: Progress) -> None:
    """Say of the raters that the method left out that it did."""
    by_name = {one.name: one for one in outcomes}
    for name, kept in zip(fused.raters.names, fused.consensus.kept, strict=True):
        if not kept:
            outcome = by_name[name]
            outcome.status = "left out"
            outcome.reason = f"{METHODS[fused.method].title} dropped it: it agrees too little with the others."
            progress.rater(name, "left out")


def _volumes(fused: Fused, labels: Sequence[Label]) -> list[dict[str, Any]]:
    """The labels and their sizes in the consensus."""
    counts = np.bincount(fused.consensus.indices.ravel(), minlength=len(fused.raters.labels) + 1)
    voxels = {one.value: int(n) for one, n in zip(fused.raters.labels, counts[1:], strict=True)}
    return [
        {
            "value": one.value,
            "name": one.name,
            "color": list(one.color),
            "terminology": one.terminology,
            "voxels": voxels.get(one.value, 0),
            "volume_ml": voxels.get(one.value, 0) * fused.raters.grid.voxel_ml,
        }
        for one in labels
    ]


def _measured(fused: Fused, reference: LabelFile) -> dict[str, Any]:
    """The consensus against true labels, see :func:`MLILib.metrics.compare`."""
    ours = [label_files.Label(one.name, one.name != str(one.value), 0, one.value) for one in fused.raters.labels]
    theirs = [one for one in reference.labels if one.value != 0]
    entries, _ = label_files.pair(ours, theirs)
    pairs = {}
    for name, a, b in entries:
        place = a or b
        told = f"{name} (label {place.value})" if place is not None and name == "mean" else name
        pairs[told] = (a.place if a else None, b.place if b else None)
    array = sitk.GetArrayFromImage(fused.labels)
    found: dict[str, Any] = for_json(compare_labels([array], reference.layers, pairs, fused.raters.grid.spacing))
    return found


def _write(request: FuseRequest, fused: Fused, labels: Sequence[Label], outputs: files.Outputs) -> dict[str, str]:
    """Write the images; file names by what they hold."""
    target = outputs.path(request.output)
    if files.suffix(request.output) == ".seg.nrrd":
        seg_nrrd.write(fused.labels, labels, target, final=request.output)
    else:
        images.write(fused.labels, target, final=request.output)
    if request.probabilities and fused.probabilities is not None:
        images.write(fused.probabilities, outputs.path(request.probabilities), final=request.probabilities)
    if request.disagreement:
        images.write(fused.disagreement, outputs.path(request.disagreement), final=request.disagreement)
    return {
        "output": request.output,
        "probabilities": request.probabilities,
        "disagreement": request.disagreement,
        "report_file": request.report,
        "record": record.path_beside(request.output),
    }


def _draw(
    request: FuseRequest, fused: Fused, target: npt.NDArray[np.float32] | None, outputs: files.Outputs
) -> dict[str, str]:
    """Write the pictures beside the report; their names by what they show."""
    from . import report_pictures  # matplotlib takes a second to import, and only a report needs it

    finals: dict[str, str] = {}
    place = outputs.beside(request.report, finals)
    report_pictures.write(fused.report, place, raters=fused.raters, consensus=fused.consensus, target=target)
    return finals


def _models(request: FuseRequest) -> list[bundles.Bundle]:
    if request.labels or request.registration in PRESETS:
        return []
    return [bundles.find(request.registration, trust=request.trust)]


def _checksums(atlases: AtlasSet | None) -> list[dict[str, str]]:
    """The files that a dataset.json lists; those of a folder are part of the folder's own checksum."""
    if atlases is None or Path(atlases.path).is_dir():
        return []
    return [{"name": path, "sha256": files.sha256(path)} for path in atlases.files()]


def _text(answer: dict[str, Any], warnings: Sequence[str]) -> str:
    outcomes = answer["raters"]
    used = sum(one["status"] == "used" for one in outcomes)
    title = METHODS[answer["method"]].title
    lines = [f"{title} of {used} of {len(outcomes)}.", "", rater_report.table(answer["report"])]
    rest = [one for one in outcomes if one["status"] != "used"]
    lines += ["", *(f"{one['name']}: {one['status']}. {one['reason']}" for one in rest)] if rest else []
    if answer["metrics"]:
        dice = "; ".join(f"{name} {number(found['dice'])}" for name, found in answer["metrics"].items())
        lines += ["", f"Dice with the reference: {dice}."]
    return "\n".join([*lines, *(f"\nWarning: {text}" for text in warnings)])

"""The task "anomaly": an image or an .npz in; the map, findings, figures beside trivial baselines, and the record out.

Example, in a script, without files::

    loaded = loading.load("brain-flair", torch.device("cpu"))
    found = look(image, loaded)
    limit = loaded.calibration["combined"].voxel_threshold(99.5)
    marked = findings.find(found.map, limit, found.foreground)
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch

from .. import device as devices
from .. import files, images, record
from ..errors import BadInput
from ..progress import Progress
from . import dataset, evaluation, findings, intensity, loading, scoring, sources
from .look import Look, look, range_warnings, require_grid
from .requests import AnomalyRequest


def run(request: AnomalyRequest, progress: Progress) -> dict[str, Any]:
    """Do what the request says; see :class:`MLILib.anomaly.requests.AnomalyRequest` for the result.

    Raises:
        MLIError: what a user can act on; nothing is written then.
    """
    started = time.monotonic()
    kinds = (*images.WRITABLE, ".npz") if request.is_stack() else images.WRITABLE
    for path in (request.output, request.findings, request.reconstruction):
        if path:
            images.require_suffix(path, kinds, "an image")
    device = devices.resolve(request.device)
    if request.threads:
        torch.set_num_threads(request.threads)
    memory = record.PeakMemory(str(device))
    progress.stage("Reading")
    loaded = loading.load(request.model, device, trust=request.trust)
    method = loading.chosen_method(loaded, request.method)
    search = scoring.Search(request.search_steps, request.search_rate, request.weight, request.seed)
    job = _Job(request, progress, loaded, method, search, device, memory, started)
    return _run_stack(job) if request.is_stack() else _run_image(job)


@dataclasses.dataclass(frozen=True)
class _Job:
    """A request and what is needed to do it.

    Attributes:
        request: what is asked.
        progress: told how far it is.
        loaded: the model.
        method: how it scores.
        search: AnoGAN's.
        device: where it computes.
        memory: that it takes.
        started: when, by the monotonic clock.
    """

    request: AnomalyRequest
    progress: Progress
    loaded: loading.Loaded
    method: str
    search: scoring.Search
    device: torch.device
    memory: record.PeakMemory
    started: float

    def about(self) -> dict[str, Any]:
        """What the result says of how it was made."""
        return {"method": self.method, "device": devices.describe(self.device)}


def _run_stack(job: _Job) -> dict[str, Any]:
    request, progress, loaded = job.request, job.progress, job.loaded
    stack, labels, name = dataset.stack_to_score(request.image, request.array)
    geometry = loaded.knowledge.geometry
    if geometry.kind != "images":
        raise BadInput(
            f"{request.image} holds 2-D images, but the model {loaded.bundle.name} is one of volumes.",
            "",
            "Give a volume, or a model of 2-D images.",
        )
    if geometry.shape != (0, 0) and stack.shape[1:] != geometry.shape:
        raise BadInput(
            f"The images have {stack.shape[1]} x {stack.shape[2]} pixels, the model {loaded.bundle.name} was trained "
            f"on {geometry.shape[0]} x {geometry.shape[1]}.",
            "It is a model of another size.",
            "Give images of that size, or train a model on images of this one.",
        )
    warnings = range_warnings(list(intensity.normalise_images(stack)[:, None]), loaded)
    progress.stage("Scoring")
    scorer = scoring.Scorer(
        loaded.network, loaded.knowledge, job.method, job.device, job.search, progress.check_cancelled
    )
    maps, agains, scores = scoring.stack_scores(scorer, stack, batch=request.batch, fraction=progress.fraction)
    known = loaded.calibration.get(job.method)
    limit = known.image_threshold(request.threshold) if known and known.images else None
    if limit is None:
        warnings.append(_uncalibrated(job.method))
    curves = None
    if labels is not None and 0 < np.count_nonzero(labels) < len(labels):
        plain = sources.fitted(stack.astype(np.float32), geometry.size)
        curves = {job.method: evaluation.curves(scores, labels)}
        curves |= {n: evaluation.curves(s, labels) for n, s in loaded.baselines.image_scores(plain).items()}
    at: dict[str, float | None] = {}
    if curves and labels is not None and limit is not None:
        at[job.method] = evaluation.dice_at(scores, labels, limit)["dice"]
    progress.stage("Writing")
    answer: dict[str, Any] = {
        **job.about(),
        "array": name,
        "image_scores": [float(s) for s in scores],
        "image_threshold": limit,
        "percentile": request.threshold,
        "evaluation": _figures(curves, at, {}),
    }
    with files.Outputs() as outputs:
        if request.output:
            _write_stack(maps, scores, request.output, outputs)
        if request.reconstruction:
            spread = intensity.IMAGE_SPAN * stack.std(axis=(1, 2), keepdims=True)
            again = (agains * spread + stack.mean(axis=(1, 2), keepdims=True)).astype(np.float32)
            _write_stack(again, scores, request.reconstruction, outputs)
        return _finish(job, answer, curves, at, warnings, outputs)


def _write_stack(
    maps: npt.NDArray[np.float32], scores: npt.NDArray[np.float64], path: str, outputs: files.Outputs
) -> None:
    made = outputs.path(path)
    if files.suffix(path) == ".npz":
        np.savez_compressed(made, maps=maps, image_scores=scores)
    else:
        images.write(sitk.GetImageFromArray(maps), made, final=path)


def _uncalibrated(method: str) -> str:
    extra = " Train with --search-images to have one." if method.startswith("anogan") else ""
    return f"No normal images were scored by {method} when the model was trained, so that there is no threshold.{extra}"


def _run_image(job: _Job) -> dict[str, Any]:
    request, progress, loaded = job.request, job.progress, job.loaded
    image = images.read(request.image)
    mask = images.read(request.mask) if request.mask else None
    reference = images.read(request.reference) if request.reference else None
    for other, name in ((mask, "mask"), (reference, "reference")):
        if other is not None:
            require_grid(other, image, name)
    if reference is not None and not sitk.GetArrayViewFromImage(reference).any():
        raise BadInput("The reference marks no lesion.", "There is nothing to measure the map with.", "Leave it out.")
    progress.stage("Scoring")
    found = look(
        image,
        loaded,
        method=job.method,
        mask=mask,
        overlap=request.overlap,
        batch=request.batch,
        search=job.search,
        device=job.device,
        progress=progress,
    )
    warnings = list(found.warnings)
    progress.stage("Finding")
    known = loaded.calibration.get(job.method)
    limit = known.voxel_threshold(request.threshold) if known and known.voxels else None
    slice_limit = known.image_threshold(request.threshold) if known and known.images else None
    marked = None
    if limit is None:
        warnings.append(_uncalibrated(job.method))
        if request.findings or request.table:
            raise BadInput(
                "There are no findings without a threshold.", _uncalibrated(job.method), "Choose another method."
            )
    else:
        marked = findings.find(
            found.map,
            limit,
            found.foreground,
            median=request.median,
            erode_mm=request.erode,
            smallest_ml=request.smallest,
        )
    curves: dict[str, evaluation.Curves] | None = None
    at: dict[str, float | None] = {}
    dice: dict[str, Any] = {}
    if reference is not None:
        progress.stage("Measuring")
        curves, at, dice = _measured(found, reference, job.method, limit, marked, loaded)
    progress.stage("Writing")
    answer: dict[str, Any] = {
        **job.about(),
        "plane": found.plane,
        "image_score": found.score,
        "slice_scores": [float(s) if math.isfinite(s) else None for s in found.slices],
        "slice_threshold": slice_limit,
        "image_threshold": slice_limit if not found.plane else None,
        "threshold": limit,
        "percentile": request.threshold,
        "false_positive_rate": None if limit is None else 1.0 - request.threshold / 100.0,
        "findings_table": [] if marked is None else marked.rows,
        "evaluation": _figures(curves, at, dice),
    }
    with files.Outputs() as outputs:
        if request.output:
            images.write(found.map, outputs.path(request.output), final=request.output)
        if request.reconstruction:
            images.write(found.again, outputs.path(request.reconstruction), final=request.reconstruction)
        if request.findings and marked is not None:
            images.write(marked.labels, outputs.path(request.findings), final=request.findings)
        if request.table and marked is not None:
            _write_table(marked.rows, outputs.path(request.table))
        return _finish(job, answer, curves, at, warnings, outputs)


def _measured(
    found: Look,
    reference: sitk.Image,
    method: str,
    limit: float | None,
    marked: findings.Findings | None,
    loaded: loading.Loaded,
) -> tuple[dict[str, evaluation.Curves], dict[str, float | None], dict[str, Any]]:
    """Curves of the map and the baselines by voxel, and Dice at the chosen threshold, of map and of findings."""
    curves = {method: evaluation.voxels(found.map, reference, found.foreground)}
    axis = {"axial": 2, "coronal": 1, "sagittal": 0}.get(found.plane, 2)
    trivial = loaded.baselines.volume_maps(found.normal, found.foreground, axis=axis)
    for name, one in trivial.items():
        curves[name] = evaluation.voxels(findings.smoothed(one, 3), reference, found.foreground)
    if limit is None or marked is None:
        return curves, {}, {}
    inside = sitk.GetArrayViewFromImage(found.foreground) != 0
    scores = sitk.GetArrayViewFromImage(found.map)[inside]
    truth = sitk.GetArrayViewFromImage(reference)[inside]
    at = {method: evaluation.dice_at(scores, truth, limit)["dice"]}
    return curves, at, {"findings": evaluation.labels_dice(marked.labels, reference, found.foreground)}


def _figures(
    curves: Mapping[str, evaluation.Curves] | None, at: Mapping[str, float | None], more: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Figures as plain values: the first entry is the model, the others are baselines."""
    if curves is None:
        return None
    return {name: {**one.summary(), "dice": at.get(name)} for name, one in curves.items()} | dict(more)


def _write_table(rows: list[dict[str, Any]], path: str) -> None:
    names = ("label", "volume_ml", "peak", "mean", "centre_lps", "centre_ras")
    heads = [
        *names[:4],
        *(f"{axis}_{frame}" for frame in ("lps", "ras") for axis in "xyz"),
    ]
    lines = [",".join(heads)]
    for row in rows:
        values = [row[n] for n in names[:4]] + [*row["centre_lps"], *row["centre_ras"]]
        lines.append(",".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values))
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _finish(
    job: _Job,
    answer: dict[str, Any],
    curves: Mapping[str, evaluation.Curves] | None,
    at: Mapping[str, float | None],
    warnings: list[str],
    outputs: files.Outputs,
) -> dict[str, Any]:
    """Report, pictures and record; the whole result."""
    request, progress = job.request, job.progress
    pictures: dict[str, str] = {}
    if request.report:
        if curves:
            pictures["curves"] = str(Path(request.report).with_name(files.stem(request.report) + "-curves.png"))
            evaluation.draw(curves, outputs.path(pictures["curves"]))
        shown = dict(answer)
        if curves:
            shown["curves"] = {name: one.points() for name, one in curves.items()}
        text = json.dumps({**shown, "warnings": warnings}, indent=2, allow_nan=False)
        Path(outputs.path(request.report)).write_text(text + "\n", encoding="utf-8")
    noted_path = record.path_beside(request.output) if request.output else ""
    if noted_path and Path(noted_path).absolute() == Path(request.report or ".").absolute():
        noted_path = str(Path(noted_path).with_name(files.stem(noted_path) + "-record.json"))
    stages = progress.finish()
    if noted_path:
        noted = record.make(
            request,
            models=[job.loaded.bundle],
            device=answer["device"],
            stages=stages,
            peak_memory=job.memory.bytes(),
            warnings=warnings,
            results={k: v for k, v in answer.items() if k not in ("image_scores", "slice_scores", "device")},
        )
        record.write(noted, outputs.path(noted_path))
    for warning in warnings:
        progress.message(warning)
    return {
        "output": request.output,
        "findings": request.findings,
        "table": request.table,
        "reconstruction": request.reconstruction,
        "report": request.report,
        "record": noted_path,
        "pictures": pictures,
        **answer,
        "seconds": time.monotonic() - job.started,
        "stages": stages,
        "warnings": warnings,
        "text": _text(answer, curves, at, warnings),
    }


def _text(
    answer: Mapping[str, Any],
    curves: Mapping[str, evaluation.Curves] | None,
    at: Mapping[str, float | None],
    warnings: list[str],
) -> str:
    lines = []
    if "image_scores" in answer:
        scores = np.asarray(answer["image_scores"])
        lines.append(f"{len(scores)} images scored by {answer['method']}: median {np.median(scores):.4g}")
        if answer["image_threshold"] is not None:
            count = int((scores > answer["image_threshold"]).sum())
            lines[-1] += f", {count} beyond {answer['percentile']:g} % of normal images"
    else:
        lines.append(f"scored by {answer['method']}: {answer['image_score']:.4g}")
        if answer["threshold"] is not None:
            share = f"{answer['false_positive_rate']:.2%} of normal voxels"
            lines.append(f"findings beyond {answer['threshold']:.4g}, which {share} are:")
            lines.append(findings.format_table(answer["findings_table"]))
    if curves:
        lines.append(evaluation.table(curves, at=at))
    return "\n".join([*lines, *(f"Warning: {w}" for w in warnings)])

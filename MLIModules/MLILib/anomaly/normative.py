"""The task "normative": a subject and its covariates in; z-scores, findings, and what a normal subject would be, out.

Example, in a script, without a request::

    model = NormativeModel.load("brains.npz")
    found = assess(image, model, {"age": "34", "sex": "F"})
    print(found.z.GetSize(), found.mean, found.sd)
"""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from .. import files, images, record
from ..errors import BadInput
from ..progress import Progress
from . import evaluation, findings, masks
from .covariates import given, number_or_none
from .findings import Findings
from .normative_model import NormativeModel, false_positive_rate
from .normative_requests import NormativeRequest

#: Share of normal |z| below, where z is normally distributed: 95 %.
USUAL = 1.96


@dataclasses.dataclass(frozen=True, eq=False)
class Assessment:
    """A subject's image beside what is normal.

    Attributes:
        z: z-score of each voxel, 0 where the model has none.
        mean, sd: of normal subjects with these covariates, 0 where the model has none.
        plain: z-score without covariates, for comparison.
        known: where the model has a z-score, 0 and 1.
        within: share of those with |z| below 1.96.
        warnings: sentences.
    """

    z: sitk.Image
    mean: sitk.Image
    sd: sitk.Image
    plain: sitk.Image
    known: sitk.Image
    within: float
    warnings: list[str]


def assess(image: sitk.Image, model: NormativeModel, covariates: Mapping[str, str]) -> Assessment:
    """How far each voxel of an image lies from what is normal, in standard deviations.

    Args:
        image: on the grid of the training images.
        model: of images.
        covariates: by name, as text.

    Raises:
        BadInput: covariates are missing or unknown, or the image lies on another grid.
    """
    mean, sd, warnings = model.expect(covariates)
    values = model.targets(image)
    known = (sd > 0).astype(np.float32)
    z = np.divide(values - mean, sd, out=np.zeros_like(values), where=sd > 0)
    away = values - model.fitted.mean
    plain = np.divide(away, model.plain_sd, out=np.zeros_like(values), where=sd > 0)
    there = model.image(known)
    return Assessment(
        model.image(z),
        model.image(mean),
        model.image(sd),
        model.image(plain),
        sitk.Cast(there, sitk.sitkUInt8),
        float(np.mean(np.abs(z[sd > 0]) < USUAL)),
        warnings,
    )


def run(request: NormativeRequest, progress: Progress) -> dict[str, Any]:
    """Do what the request says.

    Returns:
        Plain values, see :class:`NormativeRequest`.

    Raises:
        MLIError: what a user can act on; nothing is written then.
    """
    started = time.monotonic()
    memory = record.PeakMemory("cpu")
    for path, what in ((request.output, "z-scores"), (request.mean, "the mean"), (request.sd, "the deviation")):
        if path:
            images.require_suffix(path, images.WRITABLE, what)
    if request.labels:
        images.require_suffix(request.labels, images.WRITABLE, "the findings")
    covariates = given(request.covariates, "covariate")
    progress.stage("Reading")
    model = NormativeModel.load(request.model)
    if bool(model.names) != bool(request.values):
        kind, give = ("numbers", "--values") if model.names else ("images", "IMAGE")
        raise BadInput(f"{request.model} is a model of {kind}.", "", f"Give {give}.")
    answer: dict[str, Any] = {
        "kind": "values" if model.names else "image",
        "covariates": covariates,
        "threshold": request.threshold,
        "false_positive_rate": false_positive_rate(model.calibration, request.threshold),
        "calibration": {k: v for k, v in model.calibration.items() if k not in ("beyond", "warnings")},
        "findings": [],
        "values": {},
        "evaluation": None,
    }
    written = {name: getattr(request, name) for name in ("output", "labels", "table", "mean", "sd", "report")}
    with files.Outputs() as outputs:
        if model.names:
            warnings, answer["values"] = _numbers(request, model, covariates)
            answer["within"] = float(np.mean([abs(row["z"]) < USUAL for row in answer["values"].values()]))
            curves = ""
        else:
            warnings, curves = _picture(request, model, covariates, answer, outputs, progress)
        progress.stage("Writing")
        first = next((path for path in (request.output, request.labels, request.report) if path), "")
        note = record.path_beside(first) if first else ""
        if note and Path(note).absolute() == Path(request.report or ".").absolute():
            note = ""
        noted = record.make(
            request,
            device="the CPU",
            stages=progress.stages,
            peak_memory=memory.bytes(),
            warnings=warnings,
            results=answer,
        )
        if note:
            record.write(noted, outputs.path(note))
        if request.report:
            told = {**answer, **written, "curves": curves, "warnings": warnings, "record": noted}
            Path(outputs.path(request.report)).write_text(
                json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
    return {
        **written,
        "curves": curves,
        "record": note,
        **answer,
        "device": "the CPU",
        "seconds": time.monotonic() - started,
        "stages": progress.finish(),
        "warnings": warnings,
        "text": _text(answer, warnings),
    }


def _numbers(
    request: NormativeRequest, model: NormativeModel, covariates: Mapping[str, str]
) -> tuple[list[str], dict[str, dict[str, float]]]:
    """z-scores of measured numbers, and warnings."""
    measured = given(request.values, "value")
    missing = [name for name in model.names if name not in measured]
    unknown = [name for name in measured if name not in model.names]
    if missing or unknown:
        raise BadInput(
            f"The value {missing[0]} is missing." if missing else f"The model knows no value {unknown[0]!r}.",
            "",
            f"It was trained with: {', '.join(model.names)}.",
        )
    wrong = next((name for name, text in measured.items() if number_or_none(text) is None), "")
    if wrong:
        raise BadInput(f"The value {wrong} is {measured[wrong]!r}.", "It is no number.", "Give a number, as 3.2.")
    mean, sd, warnings = model.expect(covariates)
    rows = {}
    for name, m, s in zip(model.names, mean, sd, strict=True):
        value = float(measured[name])
        rows[name] = {"value": value, "mean": float(m), "sd": float(s), "z": float((value - m) / s)}
    return warnings, rows


def _picture(
    request: NormativeRequest,
    model: NormativeModel,
    covariates: Mapping[str, str],
    answer: dict[str, Any],
    outputs: files.Outputs,
    progress: Progress,
) -> tuple[list[str], str]:
    """Assess an image, write its maps, and fill the answer; warnings, and the picture of the curves."""
    image = images.read(request.image)
    images.check(image, request.image)
    progress.stage("Comparing")
    found = assess(image, model, covariates)
    assert model.grid is not None
    inside = found.known
    if request.mask:
        inside = sitk.And(found.known, masks.read(request.mask, model.grid))
        if not sitk.GetArrayViewFromImage(inside).any():
            raise BadInput("The mask holds no voxel that the model knows.", "", "Give a mask of what was trained on.")
    regions = findings.find(
        found.z, request.threshold, inside, median=request.median, erode_mm=request.erode,
        smallest_ml=request.smallest, two_sided=True,
    )  # fmt: skip
    answer["findings"] = regions.rows
    answer["within"] = found.within
    curves = ""
    if request.reference:
        reference = masks.read(request.reference, model.grid, "reference")
        answer["evaluation"], rows = _measured(found, image, regions, reference, inside)
        if request.report:
            report = Path(request.report)
            curves = str(report.with_name(f"{files.stem(report)}_curves.png"))
            evaluation.draw(rows, outputs.path(curves))
    for path, made in (
        (request.output, found.z), (request.mean, found.mean), (request.sd, found.sd), (request.labels, regions.labels)
    ):  # fmt: skip
        if path:
            images.write(made, outputs.path(path), final=path)
    if request.table:
        write_table(regions.rows, outputs.path(request.table))
    return found.warnings, curves


def _measured(
    found: Assessment, image: sitk.Image, regions: Findings, reference: sitk.Image, inside: sitk.Image
) -> tuple[dict[str, Any], dict[str, evaluation.Curves]]:
    """The map against known lesions, beside trivial scores of the same voxels."""
    intensity = sitk.Cast(image, sitk.sitkFloat32)
    scores = {
        "z-score, both sides": sitk.Abs(found.z),
        "z-score, high": found.z,
        "z-score, low": -found.z,
        "z-score without covariates, both sides": sitk.Abs(found.plain),
        "high intensity": intensity,
        "low intensity": -intensity,
    }
    rows = {name: evaluation.voxels(scored, reference, inside) for name, scored in scores.items()}
    return {
        "voxels": {name: one.summary() for name, one in rows.items()},
        "findings": evaluation.labels_dice(regions.labels, reference, inside),
    }, rows


def write_table(rows: Sequence[Mapping[str, Any]], path: str) -> None:
    """Findings as a CSV table, one a row; a position takes three columns."""
    axes = {"centre_lps": "LPS", "centre_ras": "RAS", "peak_lps": "LPS", "peak_ras": "RAS"}
    plain = ("label", "voxels", "volume_ml", "peak", "mean")
    heading = [*plain, *(f"{name}_{axis}_mm" for name, letters in axes.items() for axis in letters)]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(heading)
        for row in rows:
            places: list[npt.ArrayLike] = [f"{x:.3f}" for name in axes for x in row[name]]
            writer.writerow([*(row[name] for name in plain), *places])


def _text(answer: Mapping[str, Any], warnings: Sequence[str]) -> str:
    lines = []
    for name, row in answer["values"].items():
        lines.append(f"{name}: {row['value']:g}, expected {row['mean']:.4g} ± {row['sd']:.3g}: z {row['z']:+.2f}")
    if answer["kind"] == "image":
        rate = answer["false_positive_rate"]
        said = "beyond what was seen in" if rate is None else f"{rate:.2%} of"
        lines.append(f"{answer['within']:.1%} of the voxels have |z| < {USUAL}; 95 % do in a normal subject.")
        lines.append(f"Findings, |z| of {answer['threshold']:g} or more ({said} normal subjects' voxels):")
        lines.append(findings.format_table(answer["findings"]))
    if answer["evaluation"]:
        voxels = answer["evaluation"]["voxels"]
        lines.append("")
        lines += [
            f"{name}: AUPRC {one['auprc']:.3f}, best Dice {one['best_dice']:.3f}, AUROC {one['auroc']:.3f}"
            for name, one in voxels.items()
        ]
        dice = answer["evaluation"]["findings"]["dice"]
        lines.append(f"Dice of the findings: {'undefined' if dice is None else f'{dice:.3f}'}")
    return "\n".join([*lines, *(f"Warning: {text}" for text in warnings)])

"""The task "calibrate": a temperature for a model, fitted on validation cases and written into a copy of its bundle.

Temperature scaling (Guo 2017) divides the logits by one number before the softmax. The label map stays as it is but for
rounding; the probabilities come to mean what they say. MONAI itself heeds it, as a transform of the bundle.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from .. import bundles, calibration, checkpoint, images
from ..bundle_parts import write_json
from ..calibration import BAND_MM, Reliability
from ..errors import BadInput
from ..files import replace_file, write_text
from ..progress import Progress
from .dataset import Case, read_dataset, split_cases
from .inference import segment
from .probability_check import banded
from .requests import CalibrateRequest

Parts = list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A temperature and what it changes on the cases it was fitted on."""

    temperature: float
    before: Reliability
    after: Reliability


def run(request: CalibrateRequest, progress: Progress) -> dict[str, Any]:
    """Fit on the validation cases of a fold, measure on its test cases, and write the calibrated bundle.

    Returns:
        bundle, temperature, validation and test (before and after: ece, brier, nll, voxels), reliability (file), text.

    Raises:
        BadInput: the model does not end with a softmax, was not made for these labels, or the output is not empty.
    """
    out = Path(request.output)
    if checkpoint.holds_files(out):
        raise BadInput(f"{out} already holds files.", "", "Name another folder.")
    bundle = bundles.find(request.model, trust=request.trust)
    dataset = read_dataset(request.dataset)
    if bundle.activation != "softmax" or len(bundle.labels) != len(dataset.labels):
        raise BadInput(
            f"The model {bundle.name} cannot be calibrated on these cases.",
            f"It has the labels {', '.join(label.name for label in bundle.labels)}, the data set "
            f"{', '.join(dataset.labels)}; labels that may overlap have no temperature in common.",
            "Give the data set that the model was trained on.",
        )
    split = split_cases(dataset, request.fold, request.folds)
    fitting = split.validation or split.training
    found = fit(request.model, fitting, progress, device=request.device, band_mm=request.band, trust=request.trust)
    parts = collect(request.model, split.test, progress, device=request.device, band_mm=request.band,
                    trust=request.trust)  # fmt: skip
    before, after = measured(parts, 1.0), measured(parts, found.temperature)
    progress.stage("Writing the bundle")
    shutil.copytree(bundle.folder, out, dirs_exist_ok=True)
    with_temperature(out, found.temperature)
    docs = out / "docs"
    docs.mkdir(exist_ok=True)
    picture = docs / "reliability.png"
    shown = (before, after) if parts else (found.before, found.after)
    replace_file(picture, lambda path: calibration.draw({"before": shown[0], "after": shown[1]}, path))
    lines = [f"{words(found)}, both on {len(fitting)} cases it was fitted on"]
    if parts:
        lines.append(
            f"on {len(split.test)} other cases: expected calibration error {before.error:.4f} before, "
            f"{after.error:.4f} after; negative log likelihood {before.nll:.4f} and {after.nll:.4f}"
        )
    _note(docs / "README.md", lines, request)
    return {
        "bundle": str(out),
        "temperature": found.temperature,
        "validation": {"before": found.before.figures(), "after": found.after.figures()},
        "test": {"before": before.figures(), "after": after.figures()} if parts else None,
        "reliability": str(picture),
        "text": "\n".join([*lines, f"{out}: the calibrated model; {picture} shows both"]),
    }


def fit(
    model: str,
    cases: Sequence[Case],
    progress: Progress,
    *,
    device: str = "auto",
    band_mm: float = BAND_MM,
    trust: Sequence[str] = (),
) -> Fitted:
    """The temperature that makes the truth of `cases` most likely, in the band around their foreground."""
    parts = collect(model, cases, progress, device=device, band_mm=band_mm, trust=trust)
    found = calibration.fit_temperature(parts)
    return Fitted(found, measured(parts, 1.0), measured(parts, found))


def words(found: Fitted) -> str:
    """The result in a sentence's beginning."""
    return (
        f"temperature {found.temperature:.3f}: expected calibration error in the band around the foreground "
        f"{found.before.error:.4f} before, {found.after.error:.4f} after"
    )


def collect(
    model: str,
    cases: Sequence[Case],
    progress: Progress,
    *,
    device: str = "auto",
    band_mm: float = BAND_MM,
    trust: Sequence[str] = (),
) -> Parts:
    """Probabilities (voxels, classes) and true classes of the voxels in the band, a pair for each case."""
    if cases:
        progress.stage("Segmenting cases")
    out: Parts = []
    for i, case in enumerate(cases):
        result = segment([images.read(f) for f in case.images], model, device=device, probabilities=True, trust=trust)
        assert result.probabilities is not None
        p, labels = banded(result.probabilities, images.read(case.label), band_mm)
        if len(labels):
            out.append((p, labels))
        progress.fraction((i + 1) / len(cases))
    return out


def measured(parts: Parts, temperature: float) -> Reliability:
    """Reliability of all cases together at a temperature."""
    total = calibration.nothing()
    for p, labels in parts:
        total += calibration.reliability(p if temperature == 1 else calibration.tempered(p, temperature), labels)
    return total


def with_temperature(folder: Path, temperature: float) -> None:
    """Let a bundle divide its logits by `temperature` (and by the one it has) before the softmax.

    Raises:
        BadInput: its postprocessing has no softmax.
    """
    file = folder / "configs" / "inference.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    steps = config.get("postprocessing", {}).get("transforms", [])
    place = next((i for i, s in enumerate(steps) if _kind(s) == "Activationsd" and s.get("softmax")), None)
    if place is None:
        raise BadInput(
            "The model's configuration has no softmax that a temperature could stand before.",
            "A temperature divides logits.",
            "Use a model whose postprocessing says Activationsd with softmax.",
        )
    before = 1.0
    if place and _kind(steps[place - 1]) == "ScaleIntensityd":
        place -= 1
        before = 1 / (1 + float(steps.pop(place)["factor"]))
    factor = 1 / (before * temperature) - 1  # the transform multiplies by 1 + factor
    key = steps[place]["keys"]
    steps.insert(place, {"_target_": "ScaleIntensityd", "keys": key, "minv": None, "maxv": None, "factor": factor})
    write_json(file, config)
    about = folder / "configs" / "metadata.json"
    metadata = json.loads(about.read_text(encoding="utf-8"))
    metadata["mli"] = {**metadata.get("mli", {}), "temperature": before * temperature}
    write_json(about, metadata)


def _kind(step: dict[str, Any]) -> str:
    return str(step.get("_target_", "")).rpartition(".")[2]


def _note(card: Path, lines: Sequence[str], request: CalibrateRequest) -> None:
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    command = dataclasses.replace(
        request, model=Path(request.model).name, output=Path(request.output).name,
        dataset="/".join(Path(request.dataset).absolute().parts[-2:]),
    ).command()  # fmt: skip
    added = "\n".join(["", "## Calibration", "", f"`{command}`", "", *(f"- {line}" for line in lines), "",
                       "![reliability](reliability.png)", ""])  # fmt: skip
    write_text(card, text.rstrip() + "\n" + added)

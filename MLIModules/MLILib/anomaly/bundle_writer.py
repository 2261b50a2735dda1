"""Writing a trained model of normal as a MONAI bundle: weights, what it knows of normal images, baselines, its card."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import bundles
from ..bundle_parts import basics, loading, portable, read_words, tensor, write_model
from ..descent import copied
from ..files import replace_file, write_text
from ..model_card import card_text, computed
from ..progress import Progress, duration
from . import baselines, calibration, checks, scoring
from .models import ADVERSARIAL, ENCODING, NormalModel
from .requests import TrainAnomalyRequest
from .sources import Source

#: Said in the first line of a card where the user's words do not.
NOT_FOR = "Must not be used to diagnose, to screen, or to decide anything about a patient."
#: Images whose scores tell whether there are two heaps, at most.
_JUDGED = 2048


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a training ended with.

    Attributes:
        request: its settings.
        source: what was learned from.
        model: the best of each phase.
        device: where it computed.
        steps: done, by phase.
        seconds: of training.
        figures: checks of the weights kept.
        losses: the last ones.
        best_step: of the last phase.
    """

    request: TrainAnomalyRequest
    source: Source
    model: NormalModel
    device: torch.device
    steps: Mapping[str, int]
    seconds: float
    figures: Mapping[str, float]
    losses: Mapping[str, float]
    best_step: int

    def words(self) -> dict[str, Any]:
        """What the user said about the model; {} without a file."""
        return read_words(self.request.describe)


def write_bundle(folder: Path, outcome: Outcome, progress: Progress) -> dict[str, Any]:
    """Write the bundle into `folder`.

    Returns:
        As :class:`MLILib.anomaly.requests.TrainAnomalyRequest` says.
    """
    request, source, model = outcome.request, outcome.source, outcome.model
    methods = calibration.methods_of(request)
    if request.model in ENCODING and request.model != "denoising-ae":
        with torch.inference_mode():
            codes = [model.code(model.placed(x.to(outcome.device))) for x in source.training.split(64)]
        model.fit_codes(torch.cat(codes))
    bare = scoring.Knowledge(source.geometry, request.kappa, request.tail, request.smooth)
    known = dataclasses.replace(
        bare,
        standards=calibration.standards(scoring.Scorer(model, bare, methods[0], outcome.device), source.validation),
    )

    def make(method: str) -> scoring.Scorer:
        return scoring.Scorer(model, known, method, outcome.device, tick=progress.check_cancelled)

    calibrated = calibration.calibrate(request, source, make, methods, progress)
    warnings = [*_heaps(outcome, make(methods[0])), *_verdicts(outcome)]
    progress.stage("Writing the bundle")
    trivial = baselines.fit(source.plain, seed=request.seed)
    arrays = {name: torch.from_numpy(np.asarray(a)) for name, a in trivial.arrays().items()}
    write_model(folder, copied(model), inference_config(outcome), metadata(folder.name, outcome, known, calibrated))
    replace_file(folder / "models" / "baselines.pt", lambda path: torch.save(arrays, path))
    card = model_card(folder.name, outcome, sum(p.numel() for p in model.parameters()), warnings)
    write_text(folder / "docs" / "README.md", card)
    bundles.network(bundles.read(folder))  # it must load from what was written, under the rules for any bundle
    for warning in warnings:
        progress.message(warning)
    checked = {name: value for name, value in outcome.figures.items() if np.isfinite(value)}
    return {
        "bundle": str(folder),
        "model": request.model,
        "methods": list(methods),
        "images": len(source.training),
        "validation": len(source.validation),
        "steps": outcome.steps.get("model", 0),
        "encoder_steps": outcome.steps.get("encoder", 0),
        "losses": {name: value for name, value in outcome.losses.items() if np.isfinite(value)},
        "checks": {**checked, "says": _verdicts(outcome)},
        "warnings": warnings,
        "seconds": outcome.seconds,
        "text": "\n".join(
            [f"{folder}: {request.model} trained in {duration(outcome.seconds)} {_checks_text(checked)}", *warnings]
        ),
    }


def _checks_text(checked: Mapping[str, float]) -> str:
    shown = ", ".join(f"{name} {value:.3g}" for name, value in checked.items())
    return f"({shown})" if shown else ""


def _verdicts(outcome: Outcome) -> list[str]:
    if outcome.request.model not in ADVERSARIAL:
        return []
    return checks.verdict(dict(outcome.figures), outcome.request.model != "dcgan")


def _heaps(outcome: Outcome, scorer: scoring.Scorer) -> list[str]:
    """A warning where the scores of the training images lie in two heaps."""
    if scorer.method.startswith("anogan"):
        scorer.method = "critic"
    chosen = outcome.source.training[:_JUDGED]
    scores = torch.cat([scorer.images(x).score for x in chosen.split(64)]).cpu().numpy()
    two, share = checks.two_heaps(scores)
    if not two:
        return []
    return [
        f"The scores of the training images lie in two heaps, the upper one with {share:.0%} of them: some may show "
        "what is to be found. Look at those that score highest, and train without them."
    ]


def inference_config(outcome: Outcome) -> dict[str, Any]:
    """configs/inference.json: the network and, in MONAI's words, what goes before and around it."""
    model, geometry = outcome.model, outcome.source.geometry
    size = [geometry.size, geometry.size]
    if geometry.kind == "images":
        normalise = [
            {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "image",
                "a_min": -3.0,
                "a_max": 3.0,
                "b_min": -1.0,
                "b_max": 1.0,
                "clip": True,
            },
        ]
    else:
        normalise = [{"_target_": "MLILib.anomaly.transforms.NormaliseVolumed", "keys": ["image"]}]
    return {
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "MLILib.anomaly.models.NormalModel",
            "kind": model.kind,
            "size": model.size,
            "latent": model.latent,
            "filters": outcome.request.filters,
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                *normalise,
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": size, "overlap": 0.5, "mode": "gaussian"},
        **loading(),
    }


def metadata(
    name: str, outcome: Outcome, known: scoring.Knowledge, calibrated: Mapping[str, calibration.Calibration]
) -> dict[str, Any]:
    """configs/metadata.json after MONAI's schema; what the model knows of normal images is under ``mli``."""
    words, request, source = outcome.words(), outcome.request, outcome.source
    size, patch = [source.geometry.size, source.geometry.size], source.geometry.kind == "patches"
    described = f"What is normal in {Path(request.dataset).stem}."
    shown = tensor("magnitude", [words.get("modality", "image")], size, patch=patch, value_range=[-1, 1])

    return {
        **basics(name, "anomaly detection", words, description=described, data="not stated"),
        "data_type": "2-D images" if source.geometry.kind == "images" else "volumes",
        "image_classes": "one channel, normalised to -1 to 1",
        "pred_classes": "absolute difference of the image and its reconstruction",
        "network_data_format": {
            "inputs": {"image": shown},
            "outputs": {"pred": tensor("anomaly map", ["difference"], size, patch=patch)},
        },
        "mli": {
            "modality": words.get("modality", ""),
            "anomaly": {
                "kind": request.model,
                "methods": list(calibration.methods_of(request)),
                **known.to_json(),
                "range": scoring.json_values(dataclasses.asdict(source.range)),
                "calibration": {m: scoring.json_values(dataclasses.asdict(c)) for m, c in calibrated.items()},
            },
        },
    }


def model_card(name: str, outcome: Outcome, parameters: int, warnings: list[str]) -> str:
    """docs/README.md, whose first line says what the model must not be used for."""
    words, request, source = outcome.words(), outcome.request, outcome.source
    repeated = dataclasses.replace(request, **portable(request.dataset, request.output, request.describe))
    geometry = source.geometry
    pixel = f" of {geometry.pixel:.3g} mm" if geometry.pixel else ""
    figures = ", ".join(f"{k} {v:.3g}" for k, v in outcome.figures.items())
    phases = ", ".join(f"{count} steps of the {phase}" for phase, count in outcome.steps.items())
    return card_text(
        name,
        words,
        warning=words.get("not_for", NOT_FOR),
        description="A model of normal images.",
        use=f"`mli anomaly IMAGE -m {name} -o MAP`",
        measured=[str(line) for line in words.get("measured", ["Not measured: no abnormal images were given."])],
        data="not stated",
        cases=f"{len(source.training)} images or patches known to the model's statistics, {len(source.validation)} "
        "kept aside for thresholds; whatever was marked to be left out took no part. `models/baselines.pt` holds "
        "principal components and codes of training images, for the trivial scores: who may not see those may not "
        "have it.",
        command=repeated.command(),
        training=[
            f"{request.model}, {parameters / 1e6:.2f} million parameters, "
            f"{geometry.plane if geometry.pixel else '2-D'} images of {geometry.size} x {geometry.size} pixels{pixel}",
            f"{phases}, seed {request.seed}; of each phase the best check was kept",
            f"checks of the weights kept: {figures}",
            computed(outcome.seconds, str(outcome.device)),
            *(str(note) for note in words.get("training", [])),
            *(f"warning: {warning}" for warning in warnings),
        ],
        pictures={"training": "training_curve.png", "samples": "samples.png"},
        unit="images",
    )

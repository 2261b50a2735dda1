"""Writing a trained network as a complete MONAI bundle, measured on the cases that were kept aside.

The bundle runs in MONAI itself (``python -m monai.bundle run --config_file configs/inference.json``) and in MLI; its
card states data, licence, command, seed, time and the figures of the test fold.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch

from ..bundle_parts import (
    DATASET,
    basics,
    evaluation,
    folder_of_images,
    instantiate,
    or_none,
    portable,
    read_words,
    runner_packages,
    tensor,
    write_measured,
    write_model,
)
from ..files import write_text
from ..labels import PALETTE
from ..metrics import compare, for_json
from ..model_card import card_text, computed
from ..progress import Progress, duration
from .dataset import Case, Dataset, Split
from .plan import Plan
from .requests import TrainSegmentationRequest

_TISSUE = {"category": ["SCT", "85756007", "Tissue"], "type": ["SCT", "85756007", "Tissue"]}
_MEASURED = ("dice", "hausdorff95", "assd", "surface_dice")


@dataclasses.dataclass(frozen=True)
class Description:
    """What a bundle's metadata and card are written from.

    Attributes:
        command: that made it, where it was another than that of `request`.
        story: further lines of the card on how the training came about.
        temperature: that the logits are divided by before the softmax.
    """

    request: TrainSegmentationRequest
    dataset: Dataset
    split: Split
    plan: Plan
    seconds: float
    device: str
    validation_dice: float
    best_epoch: int
    command: str = ""
    story: tuple[str, ...] = ()
    temperature: float = 1.0

    def words(self) -> dict[str, Any]:
        """What the user said about the model in the file given with ``--describe``; {} without one."""
        return read_words(self.request.describe)


def write_bundle(
    folder: Path, weights: Mapping[str, torch.Tensor], description: Description, progress: Progress
) -> dict[str, Any]:
    """Write the bundle into `folder`, measure it on the test fold through the ordinary inference, write its card.

    Returns:
        bundle, validation_dice, test (per label and mean: mean and standard deviation of each figure), parameters,
        epochs, seconds, text.
    """
    network = instantiate(description.plan.network)
    network.load_state_dict(dict(weights))
    config = inference_config(description.plan)
    write_model(folder, network.state_dict(), config, metadata(folder.name, description))
    if description.request.calibrate and description.split.validation:
        description = _calibrated(folder, description, progress)

    rows = measure(folder, description, progress)
    summary = summarise(rows)
    if rows:
        write_measured(folder / "docs" / "test_cases.csv", rows)
    card = model_card(folder.name, description, summary, sum(p.numel() for p in network.parameters()))
    write_text(folder / "docs" / "README.md", card)
    mean = summary.get("mean", {}).get("dice", {}).get("mean")
    return {
        "bundle": str(folder),
        "validation_dice": or_none(description.validation_dice),
        "test": for_json(summary),  # a label that is nowhere has no distance
        "epochs": description.request.epochs,
        "best_epoch": description.best_epoch,
        "seconds": description.seconds,
        "text": f"{folder}: trained in {duration(description.seconds)}; "
        + (f"mean Dice {mean:.4f} on {len(description.split.test)} cases kept aside" if mean else "not measured"),
    }


def _calibrated(folder: Path, description: Description, progress: Progress) -> Description:
    """Fit a temperature on the validation cases, write it into the bundle, and say so in its card."""
    from .temperature import fit, with_temperature, words  # which loads the bundle

    cases = description.split.validation
    found = fit(str(folder), cases, progress, device=description.request.device)
    with_temperature(folder, found.temperature)
    said = f"{words(found)}, both on {len(cases)} validation cases"
    return dataclasses.replace(description, story=(*description.story, said), temperature=found.temperature)


def inference_config(plan: Plan) -> dict[str, Any]:
    """configs/inference.json: preprocessing, network, sliding windows, and the way back to the input's grid."""
    dims = plan.dimensions
    return {
        **folder_of_images(".nii.gz"),
        # MONAI finds its own networks by their name alone
        "network_def": plan.network | {"_target_": plan.network["_target_"].removeprefix("monai.networks.nets.")},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "@image_key"},
                {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
                {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"[:dims], "labels": None},
                {"_target_": "Spacingd", "keys": "@image_key", "pixdim": list(plan.spacing), "mode": "bilinear"},
                {"_target_": "NormalizeIntensityd", "keys": "@image_key", "channel_wise": True},
            ],
        },
        "dataset": dict(DATASET),
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(plan.patch),
            "sw_batch_size": 4,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "@image_key",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "seg"},
            ],
        },
        **evaluation(),
    }


def metadata(name: str, description: Description) -> dict[str, Any]:
    """configs/metadata.json after MONAI's schema, with labels' colours and terminology under ``mli``."""
    words = description.words()
    dataset, plan = description.dataset, description.plan
    labels = label_details(dataset.labels, words.get("labels", {}))
    classes = {"0": "background"} | {value: d["name"] for value, d in labels.items()}
    described = dataset.description or f"Segmentation of {', '.join(dataset.labels)}."
    return {
        **basics(name, "segmentation", words, description=described, data=dataset.reference),
        "optional_packages_version": runner_packages(),
        "data_type": "nifti",
        "image_classes": f"{len(dataset.channels)} channel(s), each normalised to mean 0 and standard deviation 1",
        "label_classes": ", ".join(f"{k} {v}" for k, v in classes.items()),
        "pred_classes": f"{len(classes)} channels of logits, one a label",
        "network_data_format": {
            "inputs": {"image": tensor("magnitude", dataset.channels, plan.patch, patch=True)},
            "outputs": {"pred": tensor("segmentation", list(classes.values()), plan.patch, patch=True)},
        },
        "mli": {
            "modality": words.get("modality", ", ".join(dataset.channels)),
            "labels": labels,
            "mirror_axes": list(plan.mirror_axes),
            **_facts(description),
        },
    }


def _facts(description: Description) -> dict[str, float]:
    """What else inference may want to know of the training."""
    dice, dropped = description.validation_dice, description.request.modality_dropout
    out = {} if math.isnan(dice) else {"validation_dice": round(dice, 6)}
    return out | ({"modality_dropout": dropped} if dropped else {})


def label_details(names: Sequence[str], said: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name, colour (0-255) and terminology of each label: what was said, else the data set's name and a palette."""
    out = {}
    for i, name in enumerate(names):
        default = {"name": name, "color": list(PALETTE[i % len(PALETTE)]), "terminology": _TISSUE}
        out[str(i + 1)] = default | dict(said.get(str(i + 1), {}))
    return out


def measure(folder: Path, description: Description, progress: Progress) -> list[dict[str, Any]]:
    """Segment the test fold with the bundle just written and compare with the reference, case by case.

    Returns:
        Rows of case, label and the figures of :func:`MLILib.metrics.compare`.
    """
    from .inference import segment  # needs the bundle on disk, and is not needed to train

    test = description.split.test
    if not test:
        return []
    names = {i + 1: n for i, n in enumerate(_names(description))}
    progress.stage("Measuring on the fold kept aside")
    rows: list[dict[str, Any]] = []
    for i, case in enumerate(test):
        result = segment([sitk.ReadImage(f) for f in case.images], str(folder), device=description.request.device)
        rows.extend(_rows(case, compare(result.labels, _reference(case), names)))
        progress.fraction((i + 1) / len(test))
    return rows


def _names(description: Description) -> list[str]:
    details = label_details(description.dataset.labels, description.words().get("labels", {}))
    return [d["name"] for d in details.values()]


def _reference(case: Case) -> sitk.Image:
    return sitk.Cast(sitk.ReadImage(case.label), sitk.sitkUInt8)


def _rows(case: Case, measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"case": case.name, "label": label, **{k: figures[k] for k in _MEASURED}}
        for label, figures in measured.items()
        if label != "mean"
    ]


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and count of each figure, for each label and for the mean over labels."""
    labels = sorted({str(r["label"]) for r in rows})
    out: dict[str, Any] = {}
    for label in labels:
        out[label] = {k: statistics_of([r[k] for r in rows if r["label"] == label]) for k in _MEASURED}
    if labels:
        out["mean"] = {k: {"mean": statistics.fmean(out[name][k]["mean"] for name in labels)} for k in _MEASURED}
    return out


def statistics_of(values: Sequence[Any]) -> dict[str, float]:
    defined = [float(v) for v in values if v is not None and math.isfinite(v)]
    return {
        "mean": statistics.fmean(defined) if defined else math.nan,
        "sd": statistics.stdev(defined) if len(defined) > 1 else 0.0,
        "cases": len(defined),
    }


def model_card(name: str, description: Description, summary: Mapping[str, Any], parameters: int) -> str:
    """docs/README.md: what the model is for, how it was made, what was measured, what it cannot do."""
    words, request, split, plan = description.words(), description.request, description.split, description.plan
    repeated = dataclasses.replace(
        request,
        **portable(request.dataset, request.output, request.describe),
        unlabelled="/".join(Path(request.unlabelled).absolute().parts[-2:]) if request.unlabelled else "",
        start=Path(request.start).name,
    )
    if summary:
        measured = [
            f"On {len(split.test)} cases that took no part in the training or in the choice of the checkpoint, by "
            "`mli segment` with default settings; per case in `docs/test_cases.csv`:",
            "",
            "| label | Dice | 95 % Hausdorff (mm) | mean surface distance (mm) | surface Dice at 1 mm |",
            "|---|---|---|---|---|",
        ]
        for label, figures in summary.items():
            cells = [f"{figures[k]['mean']:.3f}" + (f" ± {figures[k]['sd']:.3f}" if "sd" in figures[k] else "")
                     for k in _MEASURED]  # fmt: skip
            measured.append(f"| {label} | {' | '.join(cells)} |")
    else:
        measured = ["Not measured: every case was trained on."]
    return card_text(
        name,
        words,
        description=description.dataset.description,
        measured=measured,
        data=description.dataset.reference,
        cases=split.in_words(request.fold, request.folds),
        command=description.command or repeated.command(),
        training=[
            *description.story,
            f"network: {plan.network['_target_'].rpartition('.')[2]}, {parameters / 1e6:.2f} million parameters",
            *plan.reasons,
            f"{request.epochs} epochs, seed {request.seed}; the weights kept are the moving average after epoch "
            f"{description.best_epoch} (validation Dice {description.validation_dice:.4f})",
            computed(description.seconds, description.device),
        ],
        licence=description.dataset.licence,
    )

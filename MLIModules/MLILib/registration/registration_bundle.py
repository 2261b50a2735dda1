"""Writing a trained registration network as a MONAI bundle, measured on the cases that were kept aside."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch

from .. import bundles, images
from ..bundle_parts import (
    basics,
    instantiate,
    loading,
    or_none,
    portable,
    read_words,
    tensor,
    write_measured,
    write_model,
)
from ..bundles import Bundle
from ..errors import BadInput
from ..files import write_text
from ..geometry import Grid
from ..metrics import compare, mean_of
from ..model_card import card_text, computed
from ..progress import Progress, duration
from ..segmentation.dataset import Case, Dataset, Split
from .conversion import to_sitk
from .istn import EXPERT_MULTIPLE
from .jacobian import of_transform
from .learned import predict
from .placement import centred
from .requests import TrainRegistrationRequest

_MEASURED = ("dice", "hausdorff95")
_CLASSES = {
    "affine": "MLILib.registration.networks.AffineNet",
    "voxelmorph": "MLILib.registration.networks.VoxelMorph",
    "cascade": "MLILib.registration.cascade.Cascade",
    "istn": "MLILib.registration.istn.ISTN",
    "atlas-istn": "MLILib.registration.atlas_istn.AtlasISTN",
}


@dataclasses.dataclass(frozen=True)
class Description:
    """What a bundle's metadata and card are written from."""

    request: TrainRegistrationRequest
    dataset: Dataset
    split: Split
    network: Mapping[str, Any]
    spacing: tuple[float, ...]
    size: tuple[int, ...]
    seconds: float
    device: str
    score: float
    best_epoch: int


def network_definition(
    name: str, channels: int, labels: int, size: tuple[int, ...], expert: Bundle | None = None
) -> dict[str, Any]:
    """The network called `name` as a configuration names it.

    Args:
        name: one of the choices of :class:`TrainRegistrationRequest`.
        channels: of an image.
        labels: their number, without the background.
        size: of the canvas, (x, y, z).
        expert: segmentation model that looks again, see :class:`.istn.ISTN`.
    """
    definition: dict[str, Any] = {"_target_": _CLASSES[name], "channels": channels}
    if name == "atlas-istn":
        definition["size"] = list(size)
    else:
        definition["dimensions"] = len(size)
    if name in ("istn", "atlas-istn"):
        definition["labels"] = labels
    if expert is not None:
        definition["expert"] = _network_of(expert)
    return definition


def _network_of(bundle: Bundle) -> dict[str, Any]:
    """What a bundle says of its network, checked, and complete without the rest of its configuration."""
    found = bundles.parser(bundle, ("network_def",)).config["network_def"]
    text = json.dumps(found)
    if not isinstance(found, dict) or any(start in text for start in ('"$', '"@')):
        raise BadInput(
            f"The model {bundle.name} cannot be the expert.",
            "Its network is described by expressions that refer to the rest of its configuration.",
            "Give a model made by mli train segmentation.",
        )
    return found


def find_expert(name: str, channels: int, labels: int, dimensions: int) -> Bundle | None:
    """The segmentation model called `name`, None for "".

    Raises:
        BadInput: unknown, or of other channels, labels or dimension than the data set.
    """
    if not name:
        return None
    bundle = bundles.find(name)
    found = (len(bundle.channels), len(bundle.output_channels), bundle.dimensions)
    if bundle.is_registration or found != (channels, labels + 1, dimensions):
        raise BadInput(
            f"The model {bundle.name} cannot be the expert.",
            f"It should be {dimensions}-D, take {channels} channel(s) and mark {labels} labels and the background.",
            "Give a segmentation model that was trained on this data set.",
        )
    return bundle


def expert_network(bundle: Bundle) -> torch.nn.Module:
    """The network of a segmentation model as an expert, with its weights.

    Raises:
        BadInput: it does not take boxes of any size that :class:`.istn.ISTN` cuts out.
    """
    network = bundles.network(bundle)
    channels, labels = len(bundle.channels), len(bundle.output_channels)
    for side in (2 * EXPERT_MULTIPLE, 3 * EXPERT_MULTIPLE):
        shape = (side,) * bundle.dimensions
        try:
            with torch.inference_mode():
                found = tuple(network(torch.zeros(1, channels, *shape)).shape)
        except (RuntimeError, ValueError, AttributeError) as error:
            raise _unfit_for_boxes(bundle, side) from error
        if found != (1, labels, *shape):
            raise _unfit_for_boxes(bundle, side)
    return network


def _unfit_for_boxes(bundle: Bundle, side: int) -> BadInput:
    return BadInput(
        f"The model {bundle.name} cannot be the expert.",
        f"Its network does not turn a box of {side} voxels an axis into labels of as many.",
        "Give a model made by mli train segmentation.",
    )


def write_bundle(
    folder: Path, weights: Mapping[str, torch.Tensor], description: Description, progress: Progress
) -> dict[str, Any]:
    """Write the bundle into `folder`, measure it on pairs of the test fold, write its card.

    Returns:
        bundle, validation, test (per label and mean, with the share of folded voxels and the seconds a pair), epochs,
        seconds, text.
    """
    network = instantiate(description.network)
    network.load_state_dict(dict(weights))
    # Half precision halves the file; the rounding moves a voxel by less than a hundredth of its edge.
    halves = {name: value.half() for name, value in network.state_dict().items()}
    write_model(folder, halves, inference_config(description), metadata(folder.name, description))

    rows = measure(folder, description, progress)
    summary = summarise(rows)
    if rows:
        write_measured(folder / "docs" / "test_pairs.csv", rows)
    card = model_card(folder.name, description, summary, sum(p.numel() for p in network.parameters()))
    write_text(folder / "docs" / "README.md", card)
    mean = summary["mean"]["dice"] if summary else math.nan
    return {
        "bundle": str(folder),
        "validation": or_none(description.score),
        "test": summary,
        "epochs": description.request.epochs,
        "best_epoch": description.best_epoch,
        "seconds": description.seconds,
        "text": f"{folder}: trained in {duration(description.seconds)}; "
        + (f"mean Dice {mean:.4f} on {len(description.split.test)} pairs kept aside" if rows else "not measured"),
    }


def inference_config(description: Description) -> dict[str, Any]:
    """configs/inference.json: the network, and in MONAI's words how each image of a pair is brought onto its canvas."""
    dims = len(description.size)
    keys = ["fixed", "moving"]
    return {
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": dict(description.network),
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": keys},
                {"_target_": "EnsureChannelFirstd", "keys": keys},
                {"_target_": "Orientationd", "keys": keys, "axcodes": "RAS"[:dims], "labels": None},
                {"_target_": "Spacingd", "keys": keys, "pixdim": list(description.spacing), "mode": "bilinear"},
                {"_target_": "NormalizeIntensityd", "keys": keys, "channel_wise": True},
                {"_target_": "ResizeWithPadOrCropd", "keys": keys, "spatial_size": list(description.size)},
                {"_target_": "Transposed", "keys": keys, "indices": [0, *range(dims, 0, -1)]},
            ],
        },
        "inferer": {"_target_": "SimpleInferer"},
        **loading(),
    }


def metadata(name: str, description: Description) -> dict[str, Any]:
    """configs/metadata.json after MONAI's schema; spacing and canvas are under ``mli``."""
    words = read_words(description.request.describe)
    dataset, dims, size = description.dataset, len(description.size), list(reversed(description.size))
    described = f"Registration of {dataset.description or dataset.name}."
    sides = [f"{side} {channel}" for side in ("fixed", "moving") for channel in dataset.channels]
    return {
        **basics(name, "registration", words, description=described, data=dataset.reference),
        "data_type": "nifti",
        "image_classes": "a fixed and a moving image, each normalised to mean 0 and standard deviation 1",
        "pred_classes": "displacement of each voxel of the canvas, in voxels",
        "network_data_format": {
            "inputs": {"image": tensor("magnitude", sides, size)},
            "outputs": {"pred": tensor("displacement", [f"along {a}" for a in "zyx"[3 - dims :]], size)},
        },
        "mli": {
            "modality": words.get("modality", ", ".join(dataset.channels)),
            "registration": {
                "spacing": list(description.spacing),
                "size": list(description.size),
                "network": description.request.network,
                "linear": description.request.network == "affine",
            },
        },
    }


def measure(folder: Path, description: Description, progress: Progress) -> list[dict[str, Any]]:
    """Register pairs of the test fold with the bundle just written, each case with the next, and compare their labels.

    Returns:
        Rows of fixed, moving and label with Dice and HD95 before and after, the share of folded voxels, and seconds.
    """
    test = description.split.test
    names = {i + 1: name for i, name in enumerate(description.dataset.labels)}
    if test:
        progress.stage("Measuring on the fold kept aside")
    rows: list[dict[str, Any]] = []
    for i, case in enumerate(test):
        other = test[(i + 1) % len(test)]
        fixed, moving = _picture(case), _picture(other)
        started = time.perf_counter()
        found = predict(fixed, moving, str(folder.absolute()), device=description.request.device)
        seconds = time.perf_counter() - started
        grid = Grid.of(fixed)
        labels, reference = (sitk.Cast(sitk.ReadImage(c.label), sitk.sitkUInt8) for c in (other, case))
        after = to_sitk(found.linear, found.displacement, grid)
        figures = []
        for through in (to_sitk(centred(grid, Grid.of(moving)), None, grid), after):
            warped = sitk.Resample(labels, reference, through, sitk.sitkNearestNeighbor, 0)
            figures.append(compare(warped, reference, names))
        determinants = of_transform(after, grid)
        folded = float((determinants <= 0).float().mean())
        for label in names.values():
            row: dict[str, Any] = {"fixed": case.name, "moving": other.name, "label": label}
            for key in _MEASURED:
                row |= {f"{key}_before": figures[0][label][key], key: figures[1][label][key]}
            rows.append(row | {"folded": folded, "seconds": seconds})
        progress.fraction((i + 1) / len(test))
    return rows


def _picture(case: Case) -> sitk.Image:
    channels = [images.read(path) for path in case.images]
    return channels[0] if len(channels) == 1 else sitk.Compose(channels)


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean of each figure over the pairs, for each label and over the labels; {} without rows."""
    labels = list(dict.fromkeys(str(row["label"]) for row in rows))
    keys = [*(f"{key}{when}" for key in _MEASURED for when in ("_before", "")), "folded", "seconds"]
    out = {label: {key: mean_of(row[key] for row in rows if row["label"] == label) for key in keys} for label in labels}
    if labels:
        out["mean"] = {key: mean_of(out[label][key] for label in labels) for key in keys}
    return out


def model_card(name: str, description: Description, summary: Mapping[str, Mapping[str, float]], parameters: int) -> str:
    """docs/README.md: what the model is for, how it was made, what was measured, what it cannot do."""
    request, split = description.request, description.split
    words = read_words(request.describe)
    expert = Path(request.expert).name
    repeated = dataclasses.replace(
        request, **portable(request.dataset, request.output, request.describe), expert=expert
    )
    spacing = " x ".join(f"{s:g}" for s in description.spacing)
    if summary:
        measured = [
            f"On {len(split.test)} pairs of cases that took no part in the training or in the choice of the checkpoint "
            "(each as the fixed image, the next as the moving one, centre on centre before); the moving labels are "
            "warped by nearest neighbour onto the fixed ones. By pair in `docs/test_pairs.csv`:",
            "",
            "| label | Dice before | Dice after | 95 % Hausdorff before (mm) | after (mm) |",
            "|---|---|---|---|---|",
        ]
        for label, f in summary.items():
            measured.append(
                f"| {label} | {f['dice_before']:.3f} | {f['dice']:.3f} | {f['hausdorff95_before']:.2f} "
                f"| {f['hausdorff95']:.2f} |"
            )
        folded = summary["mean"]["folded"]
        measured += ["", f"Folded voxels (determinant of the Jacobian at most 0): {folded:.4%}."]
    else:
        measured = ["Not measured: every case was trained on."]
    score = f"{abs(description.score):.4f}"
    kept = f"validation Dice {score}" if request.labels else f"validation loss {score}"
    return card_text(
        name,
        words,
        description=description.dataset.description,
        use=f"`mli register FIXED MOVING -o WARPED -t TRANSFORM --model {name}`. It needs no labels.",
        measured=measured,
        data=description.dataset.reference,
        cases=split.in_words(request.fold, request.folds),
        command=repeated.command(),
        training=[
            f"network: {request.network}, {parameters / 1e6:.2f} million parameters, weights in half precision"
            + (f"; the model {expert} in it as trained" if expert else ""),
            f"canvas of {' x '.join(str(n) for n in description.size)} voxels of {spacing} mm; larger images get a "
            "larger one",
            f"{request.epochs} epochs, seed {request.seed}; the weights kept are the moving average after epoch "
            f"{description.best_epoch}" + ("" if math.isnan(description.score) else f" ({kept})"),
            computed(description.seconds, description.device),
            *(str(note) for note in words.get("training", [])),
        ],
        licence=description.dataset.licence,
    )

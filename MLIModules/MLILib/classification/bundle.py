"""Writing a trained classifier as a complete MONAI bundle, measured on images that had no part in the training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import bundles, charts
from ..bundle_parts import (
    DATASET,
    basics,
    evaluation,
    folder_of_images,
    portable,
    runner_packages,
    tensor,
    write_measured,
    write_model,
)
from ..files import write_text
from ..model_card import card_text, computed
from ..progress import Progress, duration
from ..segmentation.preparation import prepare
from ..tables import write_csv
from .figures import Figures, measure
from .medmnist import Part
from .requests import TrainClassificationRequest
from .trained import Trained


def write(
    folder: Path,
    trained: Trained,
    request: TrainClassificationRequest,
    words: Mapping[str, Any],
    test: Part | None,
    progress: Progress,
) -> dict[str, Any]:
    """Write the bundle into `folder`, measure it on `test` through its own preprocessing, write its card.

    Args:
        folder: made if absent.
        trained: from :func:`MLILib.classification.training.fit`.
        request: what was asked.
        words: what the user says of the model, see :func:`MLILib.bundle_parts.read_words`.
        test: images that nothing was chosen on; None for none.
        progress: told of the measurement.
    """
    about = metadata(folder.name, trained, request, words)
    write_model(folder, trained.network.state_dict(), inference_config(trained), about)
    (folder / "training").mkdir(exist_ok=True)
    write_curve(trained.history, folder / "training")
    found = None
    if test is not None:
        progress.stage("Measuring")
        logits = classify(folder, test, progress)
        found = measure(logits, test.labels)
        rows = [
            {"image": i, "class": int(label), **{f"logit {c}": float(v) for c, v in enumerate(row)}}
            for i, (label, row) in enumerate(zip(test.labels, logits, strict=True))
        ]
        write_measured(folder / "docs" / "test_cases.csv", rows)
    parameters = sum(p.numel() for p in trained.network.parameters())
    card = model_card(folder.name, trained, request, words, found, parameters)
    write_text(folder / "docs" / "README.md", card)
    told = f"AUC {found.auc:.4f}, accuracy {found.accuracy:.4f} on {found.images} images" if found else "not measured"
    return {
        "bundle": str(folder),
        "chosen": plain(trained.chosen),
        "test": plain(found),
        "best_epoch": trained.best_epoch,
        "epochs": request.epochs,
        "parameters": parameters,
        "seconds": trained.seconds,
        "text": f"{folder}: trained in {duration(trained.seconds)}; {told}",
    }


def plain(figures: Figures | None) -> dict[str, Any] | None:
    """The figures as JSON holds them: no NaN."""
    if figures is None:
        return None
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(figures).items()}


def classify(model: str | Path, images: Part, progress: Progress) -> np.ndarray:
    """(N, classes) logits of a bundle for images, each through the bundle's own preprocessing."""
    bundle = bundles.find(str(model))
    network, before = bundles.network(bundle), bundles.preprocessing(bundle)
    found = []
    with torch.inference_mode():
        for index in range(len(images)):
            ready = prepare([images.image(index)], before, channels=len(bundle.channels), name=bundle.name)
            found.append(network(ready.image[None])[0].numpy())
            progress.fraction((index + 1) / len(images))
    return np.stack(found)


def names(words: Mapping[str, Any], classes: int) -> list[str]:
    """The classes' names: what was said under "classes", by number; else "class 0" ..."""
    said = words.get("classes", {})
    return [str(said.get(str(c), f"class {c}")) for c in range(classes)]


def inference_config(trained: Trained) -> dict[str, Any]:
    """configs/inference.json: any image is brought to the size of those trained on, and to mean 0 and deviation 1."""
    return {
        **folder_of_images(".png"),
        "network_def": trained.definition | {"_target_": trained.definition["_target_"].rpartition(".")[2]},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "@image_key"},
                {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
                {
                    "_target_": "Resized",
                    "keys": "@image_key",
                    "spatial_size": list(trained.size),
                    "mode": "bilinear",
                    "anti_aliasing": True,
                },
                {"_target_": "NormalizeIntensityd", "keys": "@image_key", "channel_wise": True},
            ],
        },
        "dataset": dict(DATASET),
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {"_target_": "SaveClassificationd", "keys": "pred", "output_dir": "@output_dir"},
            ],
        },
        **evaluation(),
    }


def metadata(
    name: str, trained: Trained, request: TrainClassificationRequest, words: Mapping[str, Any]
) -> dict[str, Any]:
    """configs/metadata.json after MONAI's schema."""
    classes = {str(i): text for i, text in enumerate(names(words, trained.classes))}
    described = f"Classification into {', '.join(classes.values())}."
    return {
        **basics(name, "classification", words, description=described, data=Path(request.dataset).name),
        "optional_packages_version": runner_packages(),
        "data_type": "png",
        "image_classes": f"one channel, resized to {trained.size[0]} x {trained.size[1]}, mean 0, standard deviation 1",
        "label_classes": ", ".join(f"{k} {v}" for k, v in classes.items()),
        "pred_classes": f"{len(classes)} logits, one a class",
        "network_data_format": {
            "inputs": {"image": tensor("magnitude", ["image"], trained.size)},
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classification",
                    "num_channels": len(classes),
                    "spatial_shape": [1],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": classes,
                }
            },
        },
        "mli": {"modality": words.get("modality", "")},
    }


def model_card(
    name: str,
    trained: Trained,
    request: TrainClassificationRequest,
    words: Mapping[str, Any],
    found: Figures | None,
    parameters: int,
) -> str:
    """docs/README.md: what the model is for, how it was made, what was measured, what it cannot do."""
    repeated = dataclasses.replace(
        request,
        **{k: v for k, v in portable(request.dataset, request.output, request.describe).items() if k != "resume"},
    )
    if found is None:
        measured = ["Not measured: the file has no validation images."]
    else:
        measured = [
            f"On the {found.images} validation images, which had no part in the training or in the choice of the "
            "epoch, through the bundle's own preprocessing; per image in `docs/test_cases.csv`:",
            "",
            "| | area under the ROC curve | accuracy |",
            "|---|---|---|",
            f"| this model | {found.auc:.3f} | {found.accuracy:.3f} |",
            *(f"| {row['name']} | {row['auc']} | {row['accuracy']} |" for row in words.get("published", [])),
            *(["", str(words["comparison"])] if "comparison" in words else []),
        ]
    story = ["trained on labels shuffled among the images: it knows nothing of the classes"] if request.shuffle else []
    return card_text(
        name,
        words,
        description="",
        measured=measured,
        data=Path(request.dataset).name,
        cases=f"{trained.images[0]} images to train on, {trained.images[1]} to choose the epoch, "
        f"{found.images if found else 0} to measure.",
        command=repeated.command(),
        training=[
            *story,
            f"network: ResNet of four stages with {request.filters} to {8 * request.filters} feature maps, "
            f"{parameters / 1e6:.2f} million parameters",
            f"{request.epochs} epochs, seed {request.seed}; the weights kept are those after epoch "
            f"{trained.best_epoch} (area {trained.chosen.auc:.4f}, accuracy {trained.chosen.accuracy:.4f} on the "
            "images that chose it)",
            computed(trained.seconds, trained.device, request.threads),
        ],
        unit="images",
    )


def write_curve(history: Sequence[dict[str, float]], folder: Path) -> None:
    """Write learning_curve.csv and learning_curve.png into `folder`."""
    write_csv(folder / "learning_curve.csv", history)
    figure = charts.new_figure(7, 4)
    epochs = [row["epoch"] for row in history]
    left = figure.add_subplot()
    left.plot(epochs, [row["loss"] for row in history], color="0.55", label="on the training images")
    left.plot(epochs, [row["choosing_loss"] for row in history], color="0.3", ls="--", label="on the choosing images")
    left.set_xlabel("epoch")
    left.set_ylabel("cross-entropy")
    left.legend(loc="upper left")
    right = left.twinx()
    for key, title in (("auc", "area under the ROC curve"), ("accuracy", "accuracy")):
        right.plot(epochs, [row[key] for row in history], label=title)
    right.set_ylabel("on the images that choose the epoch")
    right.legend(loc="center right")
    charts.replace(figure, folder / "learning_curve.png")

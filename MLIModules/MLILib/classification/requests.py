"""What can be asked of classification: the request of train classification. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..segmentation.requests import TrainSegmentationRequest
from ..settings import Request, device_setting, setting, setting_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainClassificationRequest(Request):
    """Train a small residual network on a MedMNIST-style .npz of grey images, and write a MONAI bundle."""

    # The result has: `bundle` (folder), `chosen` (area under the ROC curve and accuracy on the part of the training
    # images that chose the epoch), `test` (the same on the file's validation images, used once at the end; None where
    # it has none), `best_epoch`, `epochs`, `parameters`, `seconds`, `text`.

    task: ClassVar[str] = "train-classification"
    words: ClassVar[tuple[str, ...]] = ("train", "classification")
    runner: ClassVar[str] = "MLILib.classification.training"
    summary: ClassVar[str] = "train a classifier on your own images"

    dataset: str = setting(
        help="MedMNIST-style .npz: train_images (N, rows, columns) of grey values, train_labels (N, 1) from 0, and for "
        "the measurement val_images and val_labels.",
        kind="input",
        positional=True,
        metavar="DATASET.npz",
    )
    output: str = setting_of(TrainSegmentationRequest, "output")
    epochs: int = setting(20, "Passes over the training images.", minimum=1, maximum=100000)
    device: str = device_setting()
    seed: int = setting(0, "Seed of weights, order, split and augmentation.", minimum=0, maximum=2**31 - 1)
    choose: float = setting(
        0.15, "Part of the training images that is not trained on but chooses the epoch.", minimum=0.05, maximum=0.5
    )
    filters: int = setting(
        16, "Feature maps of the first stage; each later one has twice as many.", minimum=4, maximum=128
    )
    batch: int = setting(64, "Images a step.", minimum=2, maximum=4096)
    learning_rate: float = setting(0.002, "Peak learning rate (AdamW, cosine schedule).", minimum=1e-7, maximum=1.0)
    threads: int = setting_of(TrainSegmentationRequest, "threads")
    shuffle: bool = setting(
        False,
        "Train on labels shuffled among the images, without augmentation: the untaught model of mli explain-check.",
    )
    describe: str = setting(
        "",
        "JSON file with what the model card should say: title, authors, data, licence, limits, and the classes' names.",
        kind="input",
        metavar="FILE.json",
    )

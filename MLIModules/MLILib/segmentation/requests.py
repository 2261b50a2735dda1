"""What can be asked of segmentation: the requests of segment, train segmentation and evaluate. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..settings import Request, device_setting, setting


@dataclasses.dataclass(frozen=True)
class SegmentRequest(Request):
    """Segment one image (or the channels of one) with one or several models."""

    task: ClassVar[str] = "segment"
    words: ClassVar[tuple[str, ...]] = ("segment",)
    runner: ClassVar[str] = "MLILib.segmentation.inference"
    summary: ClassVar[str] = "label an image with a trained model"

    images: tuple[str, ...] = setting(
        help="Input image; several for a model with several channels, in its order.",
        kind="input_image",
        positional=True,
        metavar="IMAGE",
    )
    model: tuple[str, ...] = setting(
        help="Model: a shipped or imported bundle's name, or a bundle's folder or zip; several are an ensemble.",
        short="m",
        kind="model",
        metavar="MODEL",
    )
    output: str = setting(
        help="Label map to write: .nii.gz, .nrrd, or .seg.nrrd with names and colours.",
        short="o",
        kind="output_image",
        metavar="OUT",
    )
    device: str = device_setting()
    tta: bool = setting(
        False, "Average over mirror images along the axes the model was mirrored along in training (else all axes)."
    )
    mc_dropout: int = setting(
        0, "Samples of Monte-Carlo dropout (Gal 2016); 0 is off.", minimum=0, maximum=1000, metavar="N"
    )
    uncertainty: str = setting(
        "",
        "Write the predictive entropy in nats; with Monte-Carlo dropout or several models the mutual information too, "
        "beside it as *_mutual_information.",
        kind="output_image",
        metavar="OUT",
    )
    probabilities: str = setting(
        "", "Write the class probabilities, one component a label.", kind="output_image", metavar="OUT"
    )
    ensemble: str = setting(
        "mean", "How several models agree: mean of probabilities, or majority vote.", choices=("mean", "vote")
    )
    keep_largest: bool = setting(False, "Keep only the largest connected component of each label.")
    tile: tuple[int, ...] = setting(
        (), "Size of the sliding window along the model's x, y and z; by default from the model and free memory.",
        unit="voxels", minimum=1, maximum=4096, metavar="N",
    )  # fmt: skip
    overlap: float = setting(0.5, "Overlap of neighbouring windows, a fraction.", minimum=0.0, maximum=0.9)
    seed: int = setting(0, "Seed of Monte-Carlo dropout.", minimum=0, maximum=2**31 - 1)
    compress: bool = setting(True, "Compress .nrrd and .mha outputs: smaller, but slower to write and to read.")
    trust: tuple[str, ...] = setting(
        (), "sha256 of a bundle whose configuration may name any Python callable.", metavar="SHA256"
    )

    def check_task(self) -> None:
        self.require_distinct()


@dataclasses.dataclass(frozen=True)
class TrainSegmentationRequest(Request):
    """Train a segmentation network on a Decathlon-format data set and write a MONAI bundle."""

    task: ClassVar[str] = "train-segmentation"
    words: ClassVar[tuple[str, ...]] = ("train", "segmentation")
    runner: ClassVar[str] = "MLILib.segmentation.training"
    summary: ClassVar[str] = "train a segmentation model on your own cases"

    dataset: str = setting(help="Decathlon-format dataset.json.", kind="input", positional=True, metavar="DATASET.json")
    output: str = setting(help="Folder of the bundle to write.", short="o", kind="output_folder", metavar="BUNDLE")
    fold: int = setting(
        0, "Fold kept aside to measure the final model on; -1 trains on every case.", minimum=-1, maximum=99
    )
    folds: int = setting(5, "Number of folds the cases are split into.", minimum=2, maximum=100)
    epochs: int = setting(150, "Passes over the training cases.", minimum=1, maximum=100000)
    device: str = device_setting()
    seed: int = setting(0, "Seed of weights, order and augmentation.", minimum=0, maximum=2**31 - 1)
    resume: bool = setting(False, "Go on from the last checkpoint in the output folder.")
    filters: int = setting(
        32, "Feature maps of the network's first level; level n has n times as many.", minimum=2, maximum=128
    )
    batch: int = setting(2, "Cases a step.", minimum=1, maximum=512)
    learning_rate: float = setting(0.001, "Peak learning rate (AdamW, cosine schedule).", minimum=1e-7, maximum=1.0)
    amp: bool = setting(True, "Mixed precision where it pays: float16 on GPU, bfloat16 on CPUs that have it.")
    threads: int = setting(0, "CPU threads; 0 lets torch choose.", minimum=0, maximum=1024)
    describe: str = setting(
        "",
        "JSON file with what the model card should say: title, authors, data, licence, limits, and the labels' names, "
        "colours and terminology.",
        kind="input",
        metavar="FILE.json",
    )


@dataclasses.dataclass(frozen=True)
class EvaluateRequest(Request):
    """Compare a prediction with a reference: two label images, or two folders matched by name."""

    task: ClassVar[str] = "evaluate"
    words: ClassVar[tuple[str, ...]] = ("evaluate",)
    runner: ClassVar[str] = "MLILib.segmentation.evaluation"
    summary: ClassVar[str] = "measure a segmentation against a reference"

    prediction: str = setting(help="Predicted label image, or a folder of them.", kind="input", positional=True)
    reference: str = setting(help="Reference label image, or a folder of them.", kind="input", positional=True)
    tolerance: float = setting(
        1.0, "Tolerance of the surface Dice.", unit="mm", minimum=0.0, maximum=1000.0, metavar="MM"
    )
    labels: tuple[str, ...] = setting(
        (), "Names of labels, as VALUE=NAME; by default those in the file, or the values.", metavar="VALUE=NAME"
    )
    output: str = setting("", "Write the result as JSON, too.", short="o", kind="output", metavar="OUT.json")

"""What can be asked of segmentation: the requests of segment, train segmentation and evaluate. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..errors import BadInput
from ..settings import Request, device_setting, setting, trust_setting
from .train_request import TrainSegmentationRequest as TrainSegmentationRequest


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
        help="Model: a shipped or imported bundle's name, or a bundle's folder or zip; several, or the folder of a "
        "trained ensemble, are an ensemble.",
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
        "Write the predictive entropy in nats; with Monte-Carlo dropout, mirror images or several models the mutual "
        "information too, beside it as *_mutual_information.",
        kind="output_image",
        metavar="OUT",
    )
    probabilities: str = setting(
        "", "Write the class probabilities, one component a label.", kind="output_image", metavar="OUT"
    )
    ensemble: str = setting(
        "mean",
        "How several models agree: mean of probabilities, weighted mean, or majority vote.",
        choices=("mean", "weighted", "vote"),
    )
    weights: tuple[float, ...] = setting(
        (), "Weights of the models in a weighted mean or a vote, in their order; by default of a weighted mean each "
        "model's validation Dice.", minimum=0.0, maximum=1e6, metavar="W",
    )  # fmt: skip
    missing: tuple[str, ...] = setting(
        (), "Names of the model's channels that there is no image of; the model must have been trained to do without.",
        metavar="CHANNEL",
    )  # fmt: skip
    keep_largest: bool = setting(False, "Keep only the largest connected component of each label.")
    tile: tuple[int, ...] = setting(
        (), "Size of the sliding window along the model's x, y and z; by default from the model and free memory.",
        unit="voxels", minimum=1, maximum=4096, metavar="N",
    )  # fmt: skip
    overlap: float = setting(0.5, "Overlap of neighbouring windows, a fraction.", minimum=0.0, maximum=0.9)
    seed: int = setting(0, "Seed of Monte-Carlo dropout.", minimum=0, maximum=2**31 - 1)
    compress: bool = setting(True, "Compress .nrrd and .mha outputs: smaller, but slower to write and to read.")
    trust: tuple[str, ...] = trust_setting()

    def check_task(self) -> None:
        self.require_distinct()
        if self.weights and not any(self.weights):
            raise BadInput("All weights of the models are 0.", "Nothing would be left.", "Give a weight above 0.")


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
    probabilities: str = setting(
        "", "Probabilities of the prediction (or a folder of them), as mli segment --probabilities writes them: their "
        "calibration is measured.", kind="input", metavar="PROBABILITIES",
    )  # fmt: skip
    band: float = setting(
        3.0, "Calibration looks at voxels in the reference's foreground or so close to it.",
        unit="mm", minimum=0.0, maximum=1000.0, metavar="MM",
    )  # fmt: skip
    reliability: str = setting("", "Draw a reliability diagram of the probabilities.", kind="output", metavar="OUT.png")

    def check_task(self) -> None:
        if self.reliability and not self.probabilities:
            raise BadInput("A reliability diagram needs probabilities.", "", "Give --probabilities.")
        if self.reliability and not self.reliability.lower().endswith(".png"):
            raise BadInput(f"{self.reliability} is no PNG file.", "", "End the name of the diagram with .png.")


@dataclasses.dataclass(frozen=True)
class CalibrateRequest(Request):
    """Fit a model's temperature on validation cases, so that its probabilities mean what they say."""

    task: ClassVar[str] = "calibrate"
    words: ClassVar[tuple[str, ...]] = ("calibrate",)
    runner: ClassVar[str] = "MLILib.segmentation.temperature"
    summary: ClassVar[str] = "make a model's probabilities mean what they say"

    model: str = setting(help="Name, folder or zip of a bundle.", kind="model", positional=True, metavar="MODEL")
    dataset: str = setting(
        help="Decathlon-format dataset.json that the model was trained on.", kind="input", positional=True,
        metavar="DATASET.json",
    )  # fmt: skip
    output: str = setting(
        help="Folder of the calibrated bundle to write.", short="o", kind="output_folder", metavar="BUNDLE"
    )
    fold: int = setting(
        0, "Fold that was kept aside in training; its validation cases fit, its test cases measure.",
        minimum=-1, maximum=99,
    )  # fmt: skip
    folds: int = setting(5, "Number of folds in training.", minimum=2, maximum=100)
    band: float = setting(
        3.0, "Looks at voxels in the foreground or so close to it.", unit="mm", minimum=0.0, maximum=1000.0,
        metavar="MM",
    )  # fmt: skip
    device: str = device_setting()
    trust: tuple[str, ...] = trust_setting()

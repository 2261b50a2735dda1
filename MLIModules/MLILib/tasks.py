"""What can be asked of MLI: one frozen request a task, and the function that runs it.

A request is plain values (see :mod:`MLILib.settings`); a result is a dict of plain values. Imports no torch: the module
named by `runner` is imported when the task is run.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, ClassVar

from .errors import BadInput
from .progress import Progress
from .settings import Request, setting

_DEVICE_HELP = "Where to compute: auto takes a GPU when there is one."


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
    device: str = setting("auto", _DEVICE_HELP, kind="device", metavar="auto|cpu|cuda|cuda:N|mps")
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
        clash = {out for out in self.outputs() if out in self.images}
        if clash:
            raise BadInput(f"{clash.pop()} is an input and an output.", "", "Write to another file.")
        if len(set(self.outputs())) < len(self.outputs()):
            raise BadInput("Two outputs have the same file name.", "", "Give each output a name of its own.")


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
    device: str = setting("auto", _DEVICE_HELP, kind="device", metavar="auto|cpu|cuda|cuda:N|mps")
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


@dataclasses.dataclass(frozen=True)
class ModelsListRequest(Request):
    """List the shipped and the imported models."""

    task: ClassVar[str] = "models-list"
    words: ClassVar[tuple[str, ...]] = ("models", "list")
    runner: ClassVar[str] = "MLILib.catalogue:run_list"
    summary: ClassVar[str] = "the models at hand"


@dataclasses.dataclass(frozen=True)
class ModelsInfoRequest(Request):
    """Show a model's card, labels, size and checksum."""

    task: ClassVar[str] = "models-info"
    words: ClassVar[tuple[str, ...]] = ("models", "info")
    runner: ClassVar[str] = "MLILib.catalogue:run_info"
    summary: ClassVar[str] = "a model's card"

    model: str = setting(help="Name, folder or zip of a bundle.", kind="model", positional=True, metavar="MODEL")


@dataclasses.dataclass(frozen=True)
class ModelsImportRequest(Request):
    """Check a bundle and copy it to the user's models."""

    task: ClassVar[str] = "models-import"
    words: ClassVar[tuple[str, ...]] = ("models", "import")
    runner: ClassVar[str] = "MLILib.catalogue:run_import"
    summary: ClassVar[str] = "add a bundle (folder or zip) to your models"

    source: str = setting(help="Folder or zip of a MONAI bundle.", kind="input", positional=True, metavar="BUNDLE")
    name: str = setting("", "Name to import it under; by default the folder's.", metavar="NAME")
    replace: bool = setting(False, "Replace a model of yours with the same name.")
    trust: tuple[str, ...] = setting(
        (), "sha256 of a bundle whose configuration may name any Python callable.", metavar="SHA256"
    )


@dataclasses.dataclass(frozen=True)
class ModelsRemoveRequest(Request):
    """Remove a model that was imported; shipped models stay."""

    task: ClassVar[str] = "models-remove"
    words: ClassVar[tuple[str, ...]] = ("models", "remove")
    runner: ClassVar[str] = "MLILib.catalogue:run_remove"
    summary: ClassVar[str] = "remove a model of yours"

    model: str = setting(help="Name of the model.", positional=True, metavar="NAME")


@dataclasses.dataclass(frozen=True)
class CheckRequest(Request):
    """Look at this computer: Python, torch, device, memory, disk, packages, models."""

    task: ClassVar[str] = "check"
    words: ClassVar[tuple[str, ...]] = ("check",)
    runner: ClassVar[str] = "MLILib.selfcheck"
    summary: ClassVar[str] = "is this computer ready?"

    device: str = setting("auto", _DEVICE_HELP, kind="device", metavar="auto|cpu|cuda|cuda:N|mps")


REQUESTS: tuple[type[Request], ...] = (
    SegmentRequest,
    TrainSegmentationRequest,
    EvaluateRequest,
    ModelsListRequest,
    ModelsInfoRequest,
    ModelsImportRequest,
    ModelsRemoveRequest,
    CheckRequest,
)


def request_class(task: str) -> type[Request]:
    """The request of the task called `task`."""
    for cls in REQUESTS:
        if cls.task == task:
            return cls
    raise BadInput(f"There is no task {task!r}.", "", f"The tasks are: {', '.join(c.task for c in REQUESTS)}.")


def run(request: Request, progress: Progress | None = None) -> dict[str, Any]:
    """Check the request, import what it needs and run it.

    Returns:
        The task's result, plain values that JSON can hold.

    Raises:
        MLIError: what a user can act on.
    """
    request.check()
    module, _, function = request.runner.partition(":")
    result: dict[str, Any] = getattr(importlib.import_module(module), function or "run")(
        request, progress if progress is not None else Progress()
    )
    return result

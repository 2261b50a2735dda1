"""What can be asked of normative models: the requests of train normative and normative. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..errors import BadInput
from ..segmentation.requests import TrainSegmentationRequest
from ..settings import Request, device_setting, setting, setting_of
from .requests import AnomalyRequest

#: What is done to an image's intensities before they are compared with other images'.
NORMALISATIONS = ("none", "robust")


@dataclasses.dataclass(frozen=True)
class TrainNormativeRequest(Request):
    """Learn how each voxel (or each number of a table) depends on age, sex and the like in normal subjects.

    The result's keys: output, record (file names), kind ("image" or "values"), subjects, targets (voxels or columns
    modelled), constant (those left out since they never change), covariates (name, kind, low, high, categories),
    calibration (share_within_1.96 and z_sd of subjects left out, explained: mean share of variance), lengths (how many
    targets chose which length scale), device, seconds, stages, warnings, text.
    """

    task: ClassVar[str] = "train-normative"
    words: ClassVar[tuple[str, ...]] = ("train", "normative")
    runner: ClassVar[str] = "MLILib.anomaly.normative_training"
    summary: ClassVar[str] = "learn what is normal at an age"

    table: str = setting(
        help="Table of normal subjects, one a row: a column with images on one grid (or columns of numbers), "
        "covariates such as age and sex, and optionally a mask. Paths are relative to the table.",
        kind="input",
        positional=True,
        metavar="TABLE.csv",
    )
    output: str = setting(help="File of the model to write.", short="o", kind="output", metavar="MODEL.npz")
    images: str = setting("image", "Column with the images.", metavar="COLUMN")
    values: tuple[str, ...] = setting(
        (), "Columns of numbers to model in place of images: volumes of structures, for instance.", metavar="COLUMN"
    )
    covariates: tuple[str, ...] = setting(
        (), "Columns that explain; by default all others but subject, id, name, case and mask.", metavar="COLUMN"
    )
    mask: str = setting("", "Where to look, in all subjects.", kind="input_image", metavar="MASK")
    normalise: str = setting(
        "none",
        "none takes intensities as they are (Jacobians, CT, quantitative maps); robust makes each image's median 0 and "
        "its interquartile range that of a normal distribution of deviation 1, inside the mask.",
        choices=NORMALISATIONS,
    )
    patch: int = setting(
        1, "Side of the box whose mean is modelled at each voxel; 1 is the voxel itself.", unit="voxels",
        minimum=1, maximum=31,
    )  # fmt: skip
    device: str = device_setting()
    threads: int = setting_of(TrainSegmentationRequest, "threads")

    def check_task(self) -> None:
        _require_odd("patch", self.patch)
        _require_npz(self.output)
        self.require_distinct()


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormativeRequest(Request):
    """Say how far a subject departs from what is normal at its age, sex and so on: a z-score at each voxel.

    The result's keys: output, labels, table, mean, sd, report, curves, record (file names, "" where not written), kind,
    covariates (as they were taken), threshold, false_positive_rate (share of normal subjects' voxels beyond the
    threshold when left out of training), within (share of the subject's |z| below 1.96), findings (rows), values (by
    name: value, mean, sd, z; for a model of numbers), evaluation (with --reference: voxels, with auprc, best_dice and
    auroc of the z-score and of trivial baselines, and findings, with their dice; else None), device, seconds, stages,
    warnings, text.
    """

    task: ClassVar[str] = "normative"
    words: ClassVar[tuple[str, ...]] = ("normative",)
    runner: ClassVar[str] = "MLILib.anomaly.normative"
    summary: ClassVar[str] = "how unusual is this subject for its age?"

    image: str = setting(
        "", "Image on the grid of the training images; none for a model of numbers.", kind="input_image",
        positional=True, metavar="IMAGE",
    )  # fmt: skip
    model: str = setting(
        help="Model that mli train normative wrote.", short="m", kind="input", metavar="MODEL.npz"
    )  # fmt: skip
    covariates: tuple[str, ...] = setting(
        help="The subject's covariates, as age=34 sex=F.", metavar="NAME=VALUE"
    )  # fmt: skip
    values: tuple[str, ...] = setting(
        (), "Measured numbers, as hippocampus=3.2, for a model of numbers.", metavar="NAME=VALUE"
    )
    output: str = setting("", "Map of z-scores to write.", short="o", kind="output_image", metavar="Z")
    labels: str = setting("", "Findings: regions beyond the threshold.", kind="output_image", metavar="OUT")
    table: str = setting_of(AnomalyRequest, "table")
    mean: str = setting("", "Expected image of a normal subject.", kind="output_image", metavar="OUT")
    sd: str = setting("", "Standard deviation of normal subjects.", kind="output_image", metavar="OUT")
    report: str = setting("", "All figures as JSON.", kind="output", metavar="OUT.json")
    threshold: float = setting(3.0, "Absolute z-score of a finding's voxels.", minimum=0.1, maximum=100.0, metavar="Z")
    mask: str = setting("", "Where findings are looked for.", kind="input", metavar="MASK")
    median: int = setting_of(AnomalyRequest, "median")
    erode: float = setting_of(AnomalyRequest, "erode")
    smallest: float = setting_of(AnomalyRequest, "smallest")
    reference: str = setting_of(AnomalyRequest, "reference")

    def check_task(self) -> None:
        if bool(self.image) == bool(self.values):
            raise BadInput(
                "There is nothing to look at." if not self.image else "Both an image and numbers were given.",
                "A model is of images or of numbers.",
                "Give IMAGE, or --values.",
            )
        if self.image and not self.outputs():
            raise BadInput("Nothing would be written.", "No file was asked for.", "Add -o Z, --labels or --report.")
        if self.values:
            for name in ("output", "labels", "mean", "sd", "mask", "reference", "table"):
                if getattr(self, name):
                    raise BadInput(f"Numbers take no --{name}.", "They have no voxels.", f"Leave --{name} out.")
        _require_odd("median", self.median)
        self.require_distinct()


def _require_odd(name: str, side: int) -> None:
    if side % 2 == 0:
        raise BadInput(f"--{name} is {side}.", "The box has a voxel in its middle.", "Give an odd number.")


def _require_npz(path: str) -> None:
    if not path.lower().endswith(".npz"):
        raise BadInput(f"{path} is no name for a model.", "Normative models are .npz files.", "End it with .npz.")

"""What can be asked of registration: the requests of register, train registration and template. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..errors import BadInput
from ..segmentation.requests import TrainSegmentationRequest
from ..settings import Request, device_setting, setting, setting_of, trust_setting
from .presets import PRESETS

STAGES = ("rigid", "similarity", "affine", "deformable")
SIMILARITIES = ("ssd", "sad", "cc", "lncc", "ssd+lncc", "je", "mi", "nmi", "mind")
DEFORMATIONS = ("ffd", "dense", "svf", "greedy")
INITS = ("geometry", "moments", "none")


@dataclasses.dataclass(frozen=True)
class RegisterRequest(Request):
    """Find the transform that brings a moving image onto a fixed one, and measure how well it does."""

    task: ClassVar[str] = "register"
    words: ClassVar[tuple[str, ...]] = ("register",)
    runner: ClassVar[str] = "MLILib.registration.task"
    summary: ClassVar[str] = "bring a moving image onto a fixed one"

    fixed: str = setting(help="Fixed image: the result lies on its grid.", kind="input_image", positional=True)
    moving: str = setting(help="Moving image: it is brought onto the fixed one.", kind="input_image", positional=True)
    output: str = setting(
        "", "Moving image on the fixed image's grid.", short="o", kind="output_image", metavar="WARPED"
    )
    transform: str = setting(
        "",
        "Transform from fixed to moving points: .h5 or .tfm, or a displacement field in mm as .nii.gz, .nrrd or .mha.",
        short="t",
        kind="output",
        metavar="TRANSFORM",
    )
    preset: str = setting(
        "deformable",
        "What the settings below are taken from where they are not given.",
        choices=tuple(PRESETS),
    )
    stages: str = setting(
        "", "Degrees of freedom in turn, with commas: rigid, similarity, affine, deformable.", metavar="STAGE,STAGE"
    )
    model: str = setting(
        "", "Registration model: a shipped or imported bundle's name, or its folder or zip.", kind="model"
    )
    refine: bool = setting(False, "After the model, go on with the deformable stage on this very pair.")
    similarity: str = setting("", "What is maximised; by default the preset's.", choices=("", *SIMILARITIES))
    deformation: str = setting(
        "",
        "Deformable transform: cubic B-spline control points, displacements, stationary velocities, or greedy "
        "composition; by default the preset's.",
        choices=("", *DEFORMATIONS),
    )
    regularisation: float = setting(
        -1.0, "Weight of the deformation's smoothness; -1 is the preset's.", minimum=-1.0, maximum=1e6
    )
    iterations: int = setting(
        -1, "Most iterations on each level of the deformable stage; -1 is the preset's.", minimum=-1, maximum=100000
    )
    resolution: float = setting(
        -1.0,
        "Voxel edge of the finest level of the deformable stage; 0 is the fixed image's own, -1 the preset's.",
        unit="mm",
        minimum=-1.0,
        maximum=1000.0,
        metavar="MM",
    )
    sampling: float = setting(
        1.0,
        "Share of the voxels, drawn at random, that each linear iteration looks at; lncc needs all.",
        minimum=0.001,
        maximum=1.0,
    )
    init: str = setting(
        "geometry",
        "Where to start: centre on centre (geometry), centre of mass on centre of mass (moments), none, or a "
        "transform file.",
        metavar="geometry|moments|none|FILE",
    )
    fixed_mask: str = setting("", "Only voxels inside are compared.", kind="input", metavar="MASK")
    moving_mask: str = setting("", "Only voxels inside are compared.", kind="input", metavar="MASK")
    fixed_labels: str = setting(
        "", "Labels of the fixed image: only to measure the result with.", kind="input", metavar="LABELS"
    )
    moving_labels: str = setting(
        "",
        "Labels of the moving image: warped with it, and to measure the result with.",
        kind="input",
        metavar="LABELS",
    )
    warped_labels: str = setting("", "Moving labels on the fixed image's grid.", kind="output_image", metavar="OUT")
    fixed_points: str = setting(
        "", "Landmarks in the fixed image (.fcsv, .mrk.json or .csv), to measure the result with.", kind="input"
    )
    moving_points: str = setting("", "The same landmarks in the moving image.", kind="input")
    inverse: str = setting("", "Inverse transform, from moving to fixed points.", kind="output", metavar="OUT")
    jacobian: str = setting(
        "", "Map of the Jacobian determinant: local change of volume.", kind="output_image", metavar="OUT"
    )
    report: str = setting(
        "", "Quality of the result as JSON; its pictures lie beside it.", kind="output", metavar="OUT.json"
    )
    device: str = device_setting()
    seed: int = setting(0, "Seed of the voxels that --sampling draws.", minimum=0, maximum=2**31 - 1)
    trust: tuple[str, ...] = trust_setting()

    def check_task(self) -> None:
        stages = self.stage_list()
        unknown = [s for s in stages if s not in STAGES]
        if unknown:
            raise BadInput(f"There is no stage {unknown[0]!r}.", "", f"Choose from: {', '.join(STAGES)}.")
        if [s for s in STAGES if s in stages] != stages:
            raise BadInput(
                f"The stages {self.stages!r} are out of order.",
                "Degrees of freedom grow from stage to stage.",
                f"Give each once, in this order: {', '.join(STAGES)}.",
            )
        if not self.outputs():
            raise BadInput(
                "Nothing would be written.", "Neither an image nor a transform was asked for.", "Add -o or -t."
            )
        if bool(self.fixed_points) != bool(self.moving_points):
            raise BadInput(
                "Landmarks were given for one image only.", "", "Give --fixed-points and --moving-points together."
            )
        if self.warped_labels and not self.moving_labels:
            raise BadInput("There are no labels to warp.", "", "Give --moving-labels with --warped-labels.")
        if self.refine and not self.model:
            raise BadInput("There is no model to refine.", "", "Give --model with --refine.")
        self.require_distinct()

    def stage_list(self) -> list[str]:
        """The stages asked for; empty where the preset's are meant."""
        return [s.strip() for s in self.stages.split(",") if s.strip()]


@dataclasses.dataclass(frozen=True)
class TemplateRequest(Request):
    """Average images into an unbiased template: rigid, then affine, then deformable, again and again."""

    task: ClassVar[str] = "template"
    words: ClassVar[tuple[str, ...]] = ("template",)
    runner: ClassVar[str] = "MLILib.registration.template"
    summary: ClassVar[str] = "average images into an unbiased template"

    images: tuple[str, ...] = setting(
        help="Images to average, two or more.", kind="input_image", positional=True, metavar="IMAGE"
    )
    output: str = setting(help="Template to write.", short="o", kind="output_image", metavar="TEMPLATE")
    iterations: int = setting(4, "Rounds of deformable registration and averaging.", minimum=0, maximum=100)
    similarity: str = setting(
        "", "What is maximised; by default cc for linear maps, ssd+lncc for deformations.", choices=("", *SIMILARITIES)
    )
    spacing: float = setting(
        0.0, "Voxel edge of the template; 0 is the images' median.", unit="mm", minimum=0.0, maximum=100.0, metavar="MM"
    )
    transforms: str = setting(
        "", "Folder for each image's transform from template to image points.", kind="output_folder", metavar="FOLDER"
    )
    labels: tuple[str, ...] = setting(
        (), "Labels of the images, in their order, to vote the template's labels from.", kind="input", metavar="LABELS"
    )
    template_labels: str = setting("", "Labels of the template.", kind="output_image", metavar="OUT")
    report: str = setting(
        "", "Sharpness and change of every round as JSON, with a picture beside it.", kind="output", metavar="OUT.json"
    )
    device: str = device_setting()
    seed: int = setting(0, "Seed of random starts and samples.", minimum=0, maximum=2**31 - 1)

    def check_task(self) -> None:
        if len(self.images) < 2:
            raise BadInput("One image makes no average.", "", "Give two or more images.")
        if self.labels and len(self.labels) != len(self.images):
            raise BadInput(
                f"{len(self.labels)} label images were given for {len(self.images)} images.",
                "",
                "Give one for each image, in their order.",
            )
        if bool(self.template_labels) != bool(self.labels):
            raise BadInput(
                "--labels and --template-labels go together.", "", "Give both, to have the template's labels."
            )
        self.require_distinct()


@dataclasses.dataclass(frozen=True)
class TrainRegistrationRequest(Request):
    """Train a registration network on a Decathlon-format data set and write a MONAI bundle."""

    task: ClassVar[str] = "train-registration"
    words: ClassVar[tuple[str, ...]] = ("train", "registration")
    runner: ClassVar[str] = "MLILib.registration.training"
    summary: ClassVar[str] = "train a registration model on your own cases"

    dataset: str = setting_of(TrainSegmentationRequest, "dataset")
    output: str = setting_of(TrainSegmentationRequest, "output")
    labels: bool = setting(False, "Learn from the cases' labels, too; they are not needed to use the model.")
    network: str = setting(
        "cascade",
        "affine: spatial transformer (Jaderberg 2015); voxelmorph (Balakrishnan 2019); cascade: voxelmorph from coarse "
        "to fine; istn: guided by a structure that a first network marks; atlas-istn: with an atlas built meanwhile.",
        choices=("affine", "voxelmorph", "cascade", "istn", "atlas-istn"),
    )
    expert: str = setting(
        "",
        "Segmentation model of the same labels that looks again where the istn marked structures; used as it is.",
        metavar="MODEL",
    )
    fold: int = setting_of(TrainSegmentationRequest, "fold")
    folds: int = setting_of(TrainSegmentationRequest, "folds")
    epochs: int = setting(100, "Passes in which every case is fixed image once.", minimum=1, maximum=100000)
    similarity: str = setting(
        "lncc",
        "Image similarity that is maximised; none: the labels' overlap alone.",
        choices=("ssd", "lncc", "mind", "none"),
    )
    smoothness: float = setting(1.0, "Weight of the deformation's smoothness.", minimum=0.0, maximum=1e6)
    label_weight: float = setting(1.0, "Weight of the labels' overlap.", minimum=0.0, maximum=1e6)
    batch: int = setting(2, "Pairs a step.", minimum=1, maximum=512)
    learning_rate: float = setting(0.0005, "Peak learning rate (AdamW, cosine schedule).", minimum=1e-7, maximum=1.0)
    device: str = device_setting()
    seed: int = setting_of(TrainSegmentationRequest, "seed")
    resume: bool = setting_of(TrainSegmentationRequest, "resume")
    amp: bool = setting_of(TrainSegmentationRequest, "amp")
    threads: int = setting_of(TrainSegmentationRequest, "threads")
    describe: str = setting(
        "",
        "JSON file with what the model card should say: title, authors, data, licence, limits.",
        kind="input",
        metavar="FILE.json",
    )

    def check_task(self) -> None:
        if self.network in ("istn", "atlas-istn") and not self.labels:
            raise BadInput(
                f"The network {self.network} learns from labels.", "It marks a structure first.", "Add --labels."
            )
        if self.expert and self.network != "istn":
            raise BadInput(
                f"The network {self.network} takes no expert.",
                "An expert marks structures again, which only the network istn does.",
                "Add --network istn, or leave --expert out.",
            )
        if self.similarity == "none" and not self.labels:
            raise BadInput(
                "There is nothing to learn from.", "Neither images nor labels are compared.", "Add --labels."
            )

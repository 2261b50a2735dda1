"""What can be asked of fusion: the requests of fuse, atlases check and train deepstaple. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..errors import BadInput
from ..registration.requests import TrainRegistrationRequest
from ..segmentation.requests import TrainSegmentationRequest
from ..settings import Request, device_setting, setting, setting_of, trust_setting
from .methods import METHODS

REGIONS = ("union", "image")
BORDERS = ("smooth", "nearest")
_ATLASES = "Atlas set: a folder of images and label maps, or a Decathlon-format dataset.json."


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseRequest(Request):
    """Make one segmentation of many: of atlases that are registered to a target, or of raters on one grid."""

    task: ClassVar[str] = "fuse"
    words: ClassVar[tuple[str, ...]] = ("fuse",)
    runner: ClassVar[str] = "MLILib.fusion.task"
    summary: ClassVar[str] = "a consensus of atlases or raters"

    target: str = setting(
        "", "Image to segment with atlases; not needed with --labels.", kind="input_image", positional=True
    )
    atlases: str = setting("", _ATLASES, kind="input")
    labels: tuple[str, ...] = setting(
        (),
        "Label maps of raters on one grid, in place of atlases: nothing is registered.",
        kind="input",
        metavar="LABELS",
    )
    output: str = setting(
        help="Consensus to write: .nii.gz, .nrrd, or .seg.nrrd with names and colours.",
        short="o",
        kind="output_image",
        metavar="OUT",
    )
    method: str = setting("jlf", "How labels are fused.", choices=tuple(METHODS))
    registration: str = setting(
        "deformable", "How atlases are registered: a preset's name, or a registration model's.", metavar="PRESET|MODEL"
    )
    borders: str = setting(
        "smooth",
        "How labels are brought to the target: smooth interpolates each label's mask, nearest takes the nearest voxel.",
        choices=BORDERS,
    )
    select: int = setting(
        0,
        "Use only so many atlases, those that look most like the target after an affine registration; 0 uses all.",
        minimum=0,
        maximum=100_000,
        metavar="N",
    )
    region: str = setting(
        "union",
        "Where STAPLE, SIMPLE and DeepSTAPLE look: the box around what any rater drew, or the whole image.",
        choices=REGIONS,
    )
    margin: float = setting(
        5.0, "Width by which the box goes beyond what any rater drew.", unit="mm", minimum=0.0, maximum=1000.0
    )
    patch_radius: int = setting(
        2,
        "Radius of the patches that are compared; 1 suits structures of a few voxels.",
        unit="voxels",
        minimum=1,
        maximum=10,
    )
    search_radius: int = setting(
        3, "Largest shift of an atlas that joint label fusion looks at.", unit="voxels", minimum=0, maximum=10
    )
    beta: float = setting(2.0, "Exponent of joint label fusion's intensity difference.", minimum=0.1, maximum=10.0)
    alpha: float = setting(
        0.1, "Regularisation of joint label fusion's weights; 0 trusts the estimate fully.", minimum=0.0, maximum=10.0
    )
    drop: float = setting(
        1.0,
        "SIMPLE drops raters whose overlap lies so many standard deviations below the mean.",
        minimum=0.0,
        maximum=10.0,
    )
    steps: int = setting(40, "Training steps of DeepSTAPLE's network.", minimum=1, maximum=1_000_000)
    reference: str = setting(
        "", "True labels of the target; only measured against, in the report.", kind="input", metavar="LABELS"
    )
    names: tuple[str, ...] = setting(
        (), "Names of labels, as VALUE=NAME; by default those of the atlas set, or the values.", metavar="VALUE=NAME"
    )
    probabilities: str = setting(
        "", "Write the share of the (weighted) votes, one component a label.", kind="output_image", metavar="OUT"
    )
    disagreement: str = setting(
        "", "Write the entropy of the raters' labels, in bits.", kind="output_image", metavar="OUT"
    )
    report: str = setting(
        "", "Write the raters' report as JSON, and its pictures beside it.", kind="output", metavar="OUT.json"
    )
    cache: str = setting(
        "", "Folder of registered atlases that are used again; by default in the user's cache.", metavar="FOLDER"
    )
    keep: bool = setting(
        True, "Keep the registered atlases and use those kept, so that another method need not register again."
    )
    device: str = device_setting()
    seed: int = setting(0, "Seed of registration and training.", minimum=0, maximum=2**31 - 1)
    trust: tuple[str, ...] = trust_setting()

    def check_task(self) -> None:
        if bool(self.labels) == bool(self.atlases):
            raise BadInput(
                "There is nothing to fuse." if not self.labels else "Both atlases and raters' labels were given.",
                "Atlases are registered to the target; raters' labels lie on one grid already.",
                "Give TARGET with --atlases, or --labels.",
            )
        if self.atlases and not self.target:
            raise BadInput("There is no target.", "Atlases need an image to be brought to.", "Give the target image.")
        if self.labels and METHODS[self.method].images:
            raise BadInput(
                f"The method {self.method} cannot fuse labels alone.",
                "It compares the target with the atlases' images.",
                "Give TARGET with --atlases, or another method.",
            )
        if self.labels and METHODS[self.method].target and not self.target:
            raise BadInput(
                f"The method {self.method} needs the image that the raters drew on.", "", "Give it as TARGET."
            )
        self.require_distinct()


@dataclasses.dataclass(frozen=True)
class AtlasesCheckRequest(Request):
    """Look at an atlas set: images without labels, mismatched grids, unknown labels, duplicates."""

    task: ClassVar[str] = "atlases-check"
    words: ClassVar[tuple[str, ...]] = ("atlases", "check")
    runner: ClassVar[str] = "MLILib.fusion.atlas_check"
    summary: ClassVar[str] = "is this atlas set sound?"

    atlases: str = setting(
        help=_ATLASES,
        kind="input",
        positional=True,
        metavar="FOLDER|DATASET.json",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainDeepStapleRequest(Request):
    """Learn from registered atlas labels which of them to trust, and train a network on their consensus."""

    task: ClassVar[str] = "train-deepstaple"
    words: ClassVar[tuple[str, ...]] = ("train", "deepstaple")
    runner: ClassVar[str] = "MLILib.fusion.deepstaple_training"
    summary: ClassVar[str] = "train a segmentation model on noisy atlas labels"

    targets: str = setting(
        help="Images without labels to learn on: a folder, or a Decathlon-format dataset.json (its labels are not "
        "looked at but to measure).",
        kind="input",
        positional=True,
        metavar="FOLDER|DATASET.json",
    )
    atlases: str = setting(help=_ATLASES, kind="input")
    output: str = setting_of(TrainSegmentationRequest, "output")
    registration: str = setting_of(FuseRequest, "registration")
    network: str = setting(
        "lraspp3d",
        "lraspp2d: LR-ASPP MobileNetV3 on slices; lraspp3d: its counterpart for volumes; unet: the segmentation "
        "module's own.",
        choices=("lraspp2d", "lraspp3d", "unet"),
    )
    scheme: str = setting(
        "out-of-line",
        "Whether the data parameters are learned in a second pass with the network frozen, or in its own loss.",
        choices=("out-of-line", "in-line"),
    )
    epochs: int = setting(
        40, "Passes over the targets in which the data parameters are learned.", minimum=1, maximum=100_000
    )
    network_epochs: int = setting(
        150, "Passes over the targets in which a network is trained on their consensus.", minimum=1, maximum=100_000
    )
    batch: int = setting(4, "Targets a step, each with the labels of all its atlases.", minimum=1, maximum=512)
    learning_rate: float = setting(
        0.01, "Peak learning rate of the network that learns from noisy labels.", minimum=1e-7, maximum=1.0
    )
    theta_learning_rate: float = setting(
        0.1, "Learning rate of the data parameters (SparseAdam).", minimum=1e-7, maximum=10.0
    )
    risk: float = setting(
        1.0, "Weight of the risk regularisation, which keeps labels from winning by saying little.",
        minimum=0.0, maximum=100.0,
    )  # fmt: skip
    fold: int = setting(
        -1, "Fold of the targets with true labels kept aside to measure the final model on; -1 learns on every target.",
        minimum=-1, maximum=99,
    )  # fmt: skip
    folds: int = setting(5, "Number of folds the targets are split into.", minimum=2, maximum=100)
    device: str = device_setting()
    seed: int = setting_of(TrainSegmentationRequest, "seed")
    resume: bool = setting_of(TrainSegmentationRequest, "resume")
    cache: str = setting_of(FuseRequest, "cache")
    trust: tuple[str, ...] = setting(
        (), "sha256 of a registration model whose configuration may name any Python callable.", metavar="SHA256"
    )
    describe: str = setting_of(TrainRegistrationRequest, "describe")

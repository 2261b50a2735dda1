"""What can be asked of training: the request of train segmentation, its settings in groups. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..errors import BadInput
from ..settings import Request, device_setting, setting
from .networks import NETWORKS

#: Random changes of a training sample, in the order in which they are made.
AUGMENTATIONS = ("elastic", "affine", "flip", "bias", "noise", "blur", "contrast", "lowres", "gamma")

_PLAN = "Network and schedule"
_REGULARISATION = "Regularisation"
_RARE = "Rare structures"
_FEW = "Few labels, absent channels"
_MEMBERS = "Ensembles"


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
    hours: float = setting(
        0.0, "Train no longer than this, and keep the best; 0 is without limit.", unit="h", minimum=0.0, maximum=10000.0
    )
    device: str = device_setting()
    seed: int = setting(0, "Seed of weights, order and augmentation.", minimum=0, maximum=2**31 - 1)
    resume: bool = setting(False, "Go on from the last checkpoint in the output folder.")
    filters: int = setting(
        32, "Feature maps of the network's first level; level n has n times as many.", minimum=2, maximum=128,
        group=_PLAN,
    )  # fmt: skip
    batch: int = setting(
        0, "Cases a step; 0 chooses, from the data set and the memory at hand.", minimum=0, maximum=512, group=_PLAN
    )
    learning_rate: float = setting(
        0.001, "Peak learning rate (AdamW, cosine schedule).", minimum=1e-7, maximum=1.0, group=_PLAN
    )
    amp: bool = setting(True, "Mixed precision where it pays: float16 on GPU, bfloat16 on CPUs that have it.")
    threads: int = setting(0, "CPU threads; 0 lets torch choose.", minimum=0, maximum=1024)
    describe: str = setting(
        "",
        "JSON file with what the model card should say: title, authors, data, licence, limits, and the labels' names, "
        "colours and terminology.",
        kind="input",
        metavar="FILE.json",
    )
    network: str = setting(
        NETWORKS[0],
        "dynunet: nnU-Net's; unet: with residual units; segresnet; swinunetr: a transformer; lraspp: a light one for "
        "slices or volumes; deepmedic: two resolutions side by side.",
        choices=NETWORKS,
        group=_PLAN,
    )
    start: str = setting(
        "", "Begin with the weights of this model, of the same network and labels: a bundle's name, folder or zip.",
        kind="model", metavar="MODEL", group=_PLAN,
    )  # fmt: skip
    steps: int = setting(
        0, "Steps an epoch; 0 takes as many as show every training case once.", minimum=0, maximum=100000, group=_PLAN
    )
    patch: tuple[int, ...] = setting(
        (), "Size of a patch along x, y and z; by default from the data set and the memory at hand.",
        unit="voxels", minimum=4, maximum=1024, metavar="N", group=_PLAN,
    )  # fmt: skip
    weight_decay: float = setting(
        0.01, "Decoupled L2 decay of the weights (AdamW).", minimum=0.0, maximum=10.0, group=_REGULARISATION
    )
    l1: float = setting(
        0.0, "Weight of the sum of the absolute weights in the loss.", minimum=0.0, maximum=1.0, group=_REGULARISATION
    )
    dropout: float = setting(
        0.0, "Probability that a feature is dropped; needed for Monte-Carlo dropout.",
        minimum=0.0, maximum=0.9, group=_REGULARISATION,
    )  # fmt: skip
    label_smoothing: float = setting(
        0.0, "Share of each label's certainty that is spread over all classes.",
        minimum=0.0, maximum=0.9, group=_REGULARISATION,
    )  # fmt: skip
    mixup: float = setting(
        0.0, "Mix pairs of samples by shares drawn from Beta(A, A) (Zhang 2018); 0 is off.",
        minimum=0.0, maximum=10.0, metavar="A", group=_REGULARISATION,
    )  # fmt: skip
    ema: float = setting(
        0.999, "Decay a step of the moving average of the weights, which is what is kept; 0 keeps the weights "
        "themselves.", minimum=0.0, maximum=0.99999, group=_REGULARISATION,
    )  # fmt: skip
    patience: int = setting(
        0, "Stop after so many epochs without a better validation Dice; 0 trains to the end.",
        minimum=0, maximum=100000, unit="epochs", group=_REGULARISATION,
    )  # fmt: skip
    augment: tuple[str, ...] = setting(
        AUGMENTATIONS,
        "Random changes of the samples: flip, affine, elastic, noise, blur, gamma, contrast, bias field, low "
        "resolution; or none.",
        choices=(*AUGMENTATIONS, "none"),
        group=_REGULARISATION,
    )
    shape_prior: float = setting(
        0.0, "Weight of what an autoencoder of the training labels finds odd in the shape of a prediction; 0 is off.",
        minimum=0.0, maximum=100.0, group=_REGULARISATION,
    )  # fmt: skip
    class_weights: tuple[float, ...] = setting(
        (), "Weights in the cross-entropy of the background and of each label, in their order.",
        minimum=0.0, maximum=1e6, metavar="W", group=_RARE,
    )  # fmt: skip
    balance: bool = setting(
        False, "Weight classes in the cross-entropy by the inverse of how often they occur.", group=_RARE
    )
    foreground: float = setting(
        0.0, "Share of the patches that are centred on a label, each label as often as the others.",
        minimum=0.0, maximum=1.0, group=_RARE,
    )  # fmt: skip
    labelled: int = setting(
        0, "Use the labels of so many training cases only, and the others as unlabelled images; 0 uses all.",
        minimum=0, maximum=1000000, unit="cases", group=_FEW,
    )  # fmt: skip
    unlabelled: str = setting(
        "", "Folder of further images without labels, for the mean teacher; a subfolder a case where there are several "
        "channels.", kind="input_folder", metavar="FOLDER", group=_FEW,
    )  # fmt: skip
    mean_teacher: float = setting(
        0.0, "Weight of what a mean teacher says of unlabelled images (Tarvainen 2017); 0 is off.",
        minimum=0.0, maximum=1000.0, group=_FEW,
    )  # fmt: skip
    paste: bool = setting(
        True, "Paste boxes of unlabelled images, with the teacher's labels, into labelled ones and back (Bai 2023); "
        "without, only the probabilities are to agree.", group=_FEW,
    )  # fmt: skip
    modality_dropout: float = setting(
        0.0, "Probability that a channel of a sample is blank, never all of them, so that the model works without.",
        minimum=0.0, maximum=0.9, group=_FEW,
    )  # fmt: skip
    ensemble: str = setting(
        "", "Train several models into the output folder: folds, one for each fold; bagging, each on a random draw of "
        "the training cases.", choices=("", "folds", "bagging"), group=_MEMBERS,
    )  # fmt: skip
    members: int = setting(5, "Models of a bagging ensemble.", minimum=2, maximum=100, group=_MEMBERS)
    draw: int = setting(
        0, "Train on a draw, with replacement, of the training cases: its number; 0 trains on each once.",
        minimum=0, maximum=100, group=_MEMBERS,
    )  # fmt: skip
    calibrate: bool = setting(
        False, "Fit a temperature on the validation cases at the end, so that probabilities mean what they say.",
        group=_MEMBERS,
    )  # fmt: skip

    def check_task(self) -> None:
        if "none" in self.augment and len(self.augment) > 1:
            raise BadInput("--augment names none and others.", "", "Give none alone, or leave it out.")
        if self.class_weights and self.balance:
            raise BadInput("Class weights are given, and --balance computes them.", "", "Leave one of them out.")
        if self.class_weights and not any(self.class_weights):
            raise BadInput("All class weights are 0.", "Nothing would be learned.", "Give a weight above 0.")
        if self.unlabelled and not self.mean_teacher:
            raise BadInput("Unlabelled images are given, but nothing learns from them.", "", "Add --mean-teacher 1.")
        if not self.paste and not self.mean_teacher:
            raise BadInput("--no-paste is for a mean teacher, and there is none.", "", "Add --mean-teacher 1.")
        if self.mean_teacher and not self.ema:
            raise BadInput("The mean teacher is the moving average of the weights.", "--ema is 0.", "Leave it out.")
        if self.calibrate and self.fold < 0 and not self.ensemble:
            raise BadInput(
                "A temperature cannot be fitted without validation cases.",
                "--fold -1 trains on every case.",
                "Keep a fold aside, or leave out --calibrate.",
            )
        if self.patience and self.fold < 0 and not self.ensemble:
            raise BadInput(
                "Training cannot be stopped early without validation cases.",
                "--fold -1 trains on every case.",
                "Keep a fold aside, or leave out --patience.",
            )
        if self.ensemble and self.draw:
            raise BadInput("--draw is one member of an ensemble.", "", "Leave out --draw or --ensemble.")
        if self.ensemble == "bagging" and self.fold < 0 and self.patience:
            raise BadInput("Training cannot be stopped early without validation cases.", "", "Leave out --patience.")

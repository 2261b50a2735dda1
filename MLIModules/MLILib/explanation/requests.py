"""What can be asked of explanation: explain, explain-layers, explain-check and attack. Imports no torch.

The methods stand in words in :mod:`.methods`, the targets that a model offers in :mod:`.choices`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..errors import BadInput
from ..segmentation.requests import CalibrateRequest, SegmentRequest
from ..settings import Request, device_setting, setting, setting_of, trust_setting
from .methods import CHECKED, CHECKED_BY_DEFAULT, METHODS

#: What stands for an image, or a part of it, that says nothing.
BASELINES = ("blur", "zero", "minimum", "mean")
PRIORS = ("total variation", "deep image prior")
ATTACKS = ("fgsm", "pgd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainRequest(Request):
    """Show why a model says what it says about an image."""

    # The result has: `map` (file name), `report` and `record` (file names, "" where not asked for), `method`,
    # `title`, `shows`, `source`, `makes`, `signed`, `components` (of a voxel), `badge` (of the model's last check,
    # see :mod:`.badges`), `target` (`kind` "class", "label", "voxel", "output" or "none", `label`, `name`, `text` for
    # a reader, `score`, `voxels` summed over, `point_ras` or None), `prediction` (a list of `value`, `name` and
    # `score`, with `probability` for classes or `voxels` for labels), `layer` ("" for none), `unit` (None for all),
    # `display` (`low` and `high`: a robust window, symmetric round 0 if signed; `minimum`, `maximum`, `sum`),
    # `completeness_error` and `steps` (integrated gradients; else None), `parts` (ablation: a list of `part`, `name`,
    # `fall`), `curve` (inversion: `title`, `x`, `y`; else None), `windows` (how many went through the network),
    # `window` (their size, network's voxels), `receptive_field` (with a point and a segmentation model, else None:
    # `theoretical` and `effective`, each a box with `center_ras` and `size_mm` along `axes_ras` (three rows, unit
    # vectors), `voxels`, and for the effective one `share` of the energy), `memory` (`estimated` and `free`, bytes),
    # `device`, `seconds`, `stages`, `warnings`, `model`, `text`.

    task: ClassVar[str] = "explain"
    words: ClassVar[tuple[str, ...]] = ("explain",)
    runner: ClassVar[str] = "MLILib.explanation.task"
    summary: ClassVar[str] = "why a model says what it says"

    images: tuple[str, ...] = setting(
        help="Input image; several for a model with several channels, in its order. A model of planes takes a volume "
        "of one slice, or the slice that --point lies in.",
        kind="input_image",
        positional=True,
        metavar="IMAGE",
    )
    model: str = setting(
        help="Model: a shipped or imported bundle's name, or a bundle's folder or zip.",
        short="m",
        kind="model",
        metavar="MODEL",
    )
    output: str = setting(
        help="Map to write, on the image's grid: .nii.gz, .nii, .nrrd or .mha.",
        short="o",
        kind="output_image",
        metavar="MAP",
    )
    method: str = setting("integrated-gradients", "How it is explained.", choices=tuple(METHODS))
    target: str = setting(
        "",
        "What is explained: a label or class, by name or number, or a regression's output, by number. By default what "
        "the model predicts: its class, the label at --point, or else its largest label.",
        metavar="LABEL",
    )
    point: str = setting("", "Explain the label at this one point, in patient coordinates.", unit="mm", metavar="R,A,S")
    region: str = setting(
        "",
        "Mask image: explain the label summed over it, instead of over the region that the model predicts.",
        kind="input_image",
        metavar="MASK",
    )
    layer: str = setting(
        "",
        "Layer that the method looks at, see mli explain-layers; by default the last of those with the coarsest grid.",
        metavar="NAME",
    )
    report: str = setting("", "Write the result as JSON, too.", kind="output", metavar="OUT.json")
    device: str = device_setting()
    baseline: str = setting(
        "blur",
        "What stands for nothing, after the model's preprocessing: the image blurred, 0, the lowest intensity, or each "
        "channel's mean. A constant image is no start for a network that normalises over the image (instance norm).",
        choices=BASELINES,
    )
    blur: float = setting(
        4.0, "Standard deviation of the blurred baseline.", unit="voxels", minimum=0.1, maximum=100.0
    )  # fmt: skip
    steps: int = setting(
        0,
        "Steps of integrated gradients, inversion, and DeepDream (of each octave); 0 takes as many as it needs: 50 and "
        "more until the completeness error is below 1 %, 300 and 20.",
        minimum=0,
        maximum=10000,
    )
    samples: int = setting(25, "Noisy copies of SmoothGrad.", minimum=1, maximum=1000)
    noise: float = setting(
        0.15, "Standard deviation of SmoothGrad's noise, a share of the image's range.", minimum=0.0, maximum=1.0
    )
    occlusion_window: int = setting(
        8, "Edge of the window that occlusion covers.", unit="voxels", minimum=1, maximum=512
    )
    occlusion_stride: int = setting(
        4, "From one place of that window to the next.", unit="voxels", minimum=1, maximum=512
    )
    regions: str = setting(
        "",
        "Label map whose regions are taken away one by one (ablation-regions).",
        kind="input_image",
        metavar="LABELS",
    )
    unit: int = setting(
        -1,
        "Feature map that activations show and DeepDream excites; -1 takes all of the layer.",
        minimum=-1,
        maximum=100_000,
    )
    prior: str = setting("total variation", "What inversion fills in that the layer has forgotten.", choices=PRIORS)
    octaves: int = setting(1, "Sizes that DeepDream works on, from coarse to fine.", minimum=1, maximum=8)
    step_size: float = setting(
        0.02,
        "Mean change of a voxel in one step of DeepDream, a share of the image's range.",
        minimum=1e-6,
        maximum=1.0,
    )
    field: bool = setting(True, "With --point: find the boxes of the image that the point's label can see, and does.")
    crop: tuple[int, ...] = setting(
        (),
        "Size of the window that goes through the network, along the model's x, y and z; by default the model's own.",
        unit="voxels",
        minimum=1,
        maximum=4096,
        metavar="N",
    )
    seed: int = setting(0, "Seed of noise and of starts.", minimum=0, maximum=2**31 - 1)
    compress: bool = setting_of(SegmentRequest, "compress")
    trust: tuple[str, ...] = trust_setting()

    def check_task(self) -> None:
        self.require_distinct()
        check_point(self.point)
        method = METHODS[self.method]
        if self.point and self.region:
            raise BadInput("A point and a region are both given.", "Either is a target.", "Leave one of them out.")
        if self.method == "ablation-regions" and not self.regions:
            raise BadInput(
                "Ablation of regions needs regions.", "", "Give a label map with --regions, one value each region."
            )
        if not method.target and (self.target or self.region):
            given = "target" if self.target else "region"
            raise BadInput(
                f"The method {self.method} has no {given}.", "It looks at a layer alone.", f"Leave out --{given}."
            )
        if self.layer and not method.layer:
            raise BadInput(f"The method {self.method} looks at no layer.", "", "Leave out --layer.")
        if self.occlusion_stride > self.occlusion_window:
            raise BadInput(
                f"A stride of {self.occlusion_stride} leaves voxels between windows of {self.occlusion_window} that "
                "are never covered.",
                "",
                "Choose a stride of at most the window.",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainLayersRequest(Request):
    """List a model's layers with their sizes, parameters and receptive fields."""

    # The result has: `layers`, in the order in which they run, each with `name`, `kind` (class), `parameters`,
    # `shape` (channels, then the grid along the model's x, y and z; None where it gives no single tensor), `calls`,
    # `places` (whether it can be looked at: it runs once and has a grid), `depth` (of its name), `field` (theoretical
    # receptive field along x, y and z in voxels; None where it has none); `default` (name of the layer that is looked
    # at unless one is chosen, "" for none), `parameters` (of all), `input` (shape of the image that went through:
    # channels, x, y, z), `output`, `field` (of the output, None where it is no image), `statistics` (normalisations
    # over the whole image), `model`, `text`.

    task: ClassVar[str] = "explain-layers"
    words: ClassVar[tuple[str, ...]] = ("explain-layers",)
    runner: ClassVar[str] = "MLILib.explanation.layer_table"
    summary: ClassVar[str] = "a model's layers, with sizes and receptive fields"

    model: str = setting_of(CalibrateRequest, "model")
    crop: tuple[int, ...] = setting_of(ExplainRequest, "crop")
    field: bool = setting(True, "Find each layer's receptive field; takes a second or more for a deep network.")
    trust: tuple[str, ...] = trust_setting()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainCheckRequest(Request):
    """Test whether explanations of a model can be believed, beside two controls: a random map and an edge detector."""

    # The result has: `methods`, a list with, for each, `method`, `title`, `badge` ("reacts to the model", "edge
    # detector" or "not tested"), `reason` (of the badge, a sentence), `left` (rank correlation of the map's
    # magnitudes with what they were, mean over the cascade), `end` (the same, all weights drawn anew), `edges` and
    # `chance` (the same with the image's edges and with a random map, weights as trained), `layers` (cascade from
    # output to input: `layer`, `signed`, `magnitude`), `labels` (rank correlation with the map of a model that has
    # learned random labels; None without --untaught), `completeness_error` (integrated gradients, mean; else None),
    # `deletion` and `insertion` (`fractions`, `scores`: probability of the class, or mean probability of the label in
    # its region, or a regression's number, mean over the cases; `area`, `areas` of each case, `p_random` and
    # `p_edges`: chance of areas that much better than the controls', None for one case), `sensitivity` (`radius`, a
    # share of the range, `largest`, `correlation`: means; None if left out), `seconds` for one map; `controls`
    # ("random map", "edge detector": `title`, `left`, `deletion`, `insertion`); `cases`, `targets` (a text each),
    # `layer`, `warnings`, `device`, `seconds`, `stages`, `model`, `output`, `text`. A method that could not be tested
    # has None for all numbers.

    task: ClassVar[str] = "explain-check"
    words: ClassVar[tuple[str, ...]] = ("explain-check",)
    runner: ClassVar[str] = "MLILib.explanation.check"
    summary: ClassVar[str] = "can a model's explanations be believed?"

    images: tuple[str, ...] = setting(
        help="Images, a case each; for a model with several channels each case's one after the other.",
        kind="input_image",
        positional=True,
        metavar="IMAGE",
    )
    model: str = setting_of(ExplainRequest, "model")
    methods: tuple[str, ...] = setting(
        CHECKED_BY_DEFAULT, "Methods to test.", choices=CHECKED, metavar="METHOD"
    )  # fmt: skip
    target: str = setting_of(ExplainRequest, "target")
    point: str = setting_of(ExplainRequest, "point")
    layer: str = setting_of(ExplainRequest, "layer")
    untaught: str = setting(
        "",
        "The same model trained on random labels (mli train classification --shuffle): explanations that it shares "
        "with the model do not come from what was learned.",
        kind="model",
        metavar="MODEL",
    )
    output: str = setting(
        "", "Write the result as JSON, too; as docs/explain_check.json in a model's folder it gives its badges.",
        short="o", kind="output", metavar="OUT.json",
    )  # fmt: skip
    device: str = device_setting()
    baseline: str = setting_of(ExplainRequest, "baseline")
    draws: int = setting(2, "How often the weights are drawn anew.", minimum=1, maximum=100)
    steps: int = setting(
        20, "Steps of integrated gradients and copies of SmoothGrad, in the maps that are compared.",
        minimum=1, maximum=1000,
    )  # fmt: skip
    layers: int = setting(
        6, "The map is made again after so many layers of the cascade, evenly from output to input; 0 for each.",
        minimum=0, maximum=10000,
    )  # fmt: skip
    curve_steps: int = setting(
        16, "Steps of the deletion and insertion curves; 0 leaves them out.", minimum=0, maximum=1000
    )
    radius: float = setting(
        0.02, "Largest change by noise that sensitivity is measured with, a share of the image's range.",
        minimum=1e-6, maximum=1.0,
    )  # fmt: skip
    noise_draws: int = setting(3, "Noisy images of the sensitivity; 0 leaves it out.", minimum=0, maximum=1000)
    crop: tuple[int, ...] = setting_of(ExplainRequest, "crop")
    seed: int = setting(0, "Seed of weights, noise and controls.", minimum=0, maximum=2**31 - 1)
    trust: tuple[str, ...] = trust_setting()

    def check_task(self) -> None:
        self.require_distinct()
        check_point(self.point)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackRequest(Request):
    """Change an image a little so that a model errs: the smallest change that does the most."""

    # Volumes are on the image's grid and in its intensity units. The result has: `output`, `difference`, `clean`,
    # `prediction`, `prediction_before` and `record` (file names, "" where not asked for), `epsilon`, `method`,
    # `measure` ("Dice" or "accuracy"), `before` and `after` (of the measure), `after_file` (the same of the written
    # image when it is read again and preprocessed), `loss_before`, `loss_after`, `classes_before` and `classes_after`
    # (a classifier's `value`, `name`, `probability`; [] for a segmenter), `largest_change` (in the image's units),
    # `curve` (`epsilons`, `values`, `losses`), `linear` (`layer`, `inputs` n, `weight` m, `epsilon` and `change`
    # epsilon m n, `largest`, `noise`, `text`), `scale` (network's intensities for one of the image's, a number each
    # channel), `truth` ("the given labels" or "the model's own prediction"), `device`, `seconds`, `stages`,
    # `warnings`, `model`, `text`.

    task: ClassVar[str] = "attack"
    words: ClassVar[tuple[str, ...]] = ("attack",)
    runner: ClassVar[str] = "MLILib.explanation.attack_task"
    summary: ClassVar[str] = "how little change makes a model err"

    images: tuple[str, ...] = setting_of(ExplainRequest, "images")
    model: str = setting_of(ExplainRequest, "model")
    epsilon: float = setting(
        help="Largest change of a voxel, in the image's intensity units; 0 changes nothing.",
        short="e",
        minimum=0.0,
        maximum=1e9,
    )
    output: str = setting(
        help="Perturbed image to write; of a model with several channels one component each.",
        short="o",
        kind="output_image",
        metavar="OUT",
    )
    difference: str = setting("", "Write what was added.", kind="output_image", metavar="OUT")
    clean: str = setting("", "Write the image before, as the perturbed one.", kind="output_image", metavar="OUT")
    prediction: str = setting(
        "", "Write the labels that the model gives the perturbed image.", kind="output_image", metavar="OUT"
    )
    prediction_before: str = setting(
        "", "Write the labels that it gives the image before.", kind="output_image", metavar="OUT"
    )
    method: str = setting(
        "fgsm", "One step along the gradient's sign (Goodfellow 2015), or many small ones (Madry 2018).",
        choices=ATTACKS,
    )  # fmt: skip
    truth: str = setting(
        "",
        "What is right: a label map, or a class by name or number; by default what the model predicts before.",
        metavar="LABELS|CLASS",
    )
    aim: str = setting(
        "",
        "Label or class, by name or number, that the attack is to bring about; by default any error.",
        metavar="LABEL",
    )
    steps: int = setting(10, "Steps of PGD.", minimum=1, maximum=1000)
    clip: bool = setting(False, "Keep every intensity within the image's own range.")
    curve: tuple[float, ...] = setting(
        (), "Epsilons of the curve; by default eight even steps from 0.", minimum=0.0, maximum=1e9, metavar="EPSILON"
    )
    point: str = setting(
        "",
        "Where the window lies if the image is larger than the model's: around this point.",
        unit="mm",
        metavar="R,A,S",
    )
    device: str = device_setting()
    crop: tuple[int, ...] = setting_of(ExplainRequest, "crop")
    seed: int = setting(0, "Seed of PGD's start.", minimum=0, maximum=2**31 - 1)
    compress: bool = setting_of(SegmentRequest, "compress")
    trust: tuple[str, ...] = trust_setting()

    def check_task(self) -> None:
        self.require_distinct()
        check_point(self.point)


def check_point(text: str) -> tuple[float, ...] | None:
    """The point that "R,A,S" stands for, millimetres; None for "".

    Raises:
        BadInput: it is not three numbers.
    """
    if not text:
        return None
    try:
        point = tuple(float(part) for part in text.replace(";", ",").split(","))
    except ValueError:
        point = ()
    if len(point) != 3 or not all(abs(x) < 1e9 for x in point):
        raise BadInput(
            f"The point {text!r} is not three numbers.", "", "Give R,A,S in millimetres, such as --point 12.5,-30,8."
        )
    return point

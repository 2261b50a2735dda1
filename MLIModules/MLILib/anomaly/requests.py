"""What can be asked of anomaly detection: the requests of train anomaly and anomaly. Imports no torch.

The models of normal are those of Radford 2015 (dcgan), Gulrajani 2017 and Schlegl 2019 (wgan, fanogan), and
autoencoders; the scores are those of Schlegl 2017 (anogan) and 2019 (fanogan), and those that the latter compares with.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from .. import files
from ..errors import BadInput
from ..segmentation.requests import TrainSegmentationRequest
from ..settings import Request, device_setting, setting, setting_of, trust_setting

MODELS = ("fanogan", "dcgan", "wgan", "ae", "adversarial-ae", "vae", "denoising-ae")
PLANES = ("axial", "coronal", "sagittal", "patch", "patch-3")
TAILS = ("both", "bright", "dark")
METHODS = ("fanogan", "anogan", "anogan-ce", "critic", "reconstruction", "likelihood", "combined")
#: Which scores a model can give; the first is what it gives where none is asked for.
METHODS_OF = {
    "fanogan": ("combined", "fanogan", "reconstruction", "critic", "anogan", "anogan-ce"),
    "dcgan": ("anogan", "anogan-ce", "critic"),
    "wgan": ("anogan", "anogan-ce", "critic"),
    "ae": ("combined", "reconstruction"),
    "adversarial-ae": ("combined", "reconstruction", "critic"),
    "vae": ("combined", "reconstruction", "likelihood"),
    "denoising-ae": ("combined", "reconstruction"),
}


@dataclasses.dataclass(frozen=True)
class TrainAnomalyRequest(Request):
    """Learn what normal images look like and write a MONAI bundle that maps how far a new one departs from it.

    The result's keys: bundle (folder), model, methods (that it can score with), images (number trained on), validation
    (number of normal images kept aside for thresholds), steps, encoder_steps, losses (the last ones by name), checks
    (see :mod:`MLILib.anomaly.checks`: diversity, balance, wasserstein and what they say), warnings, seconds, text.
    While it trains, curves named by loss and the event "samples" (path of the picture drawn last) are reported.
    """

    task: ClassVar[str] = "train-anomaly"
    words: ClassVar[tuple[str, ...]] = ("train", "anomaly")
    runner: ClassVar[str] = "MLILib.anomaly.training"
    summary: ClassVar[str] = "learn what normal images look like"

    dataset: str = setting(
        help="Normal images: a folder, a dataset.json (whose labels or masks mark what to leave out), or an .npz of "
        "2-D images (array images; or train_images and train_labels, 0 = normal).",
        kind="input",
        positional=True,
        metavar="DATASET",
    )
    output: str = setting_of(TrainSegmentationRequest, "output")
    model: str = setting(
        "fanogan",
        "fanogan: WGAN with gradient penalty and an encoder (Schlegl 2019); wgan: without the encoder; dcgan (Radford "
        "2015); ae: autoencoder; adversarial-ae: with a code that a critic holds to a prior; vae: variational; "
        "denoising-ae: takes away what was added to normal images (Kascenas 2022), for small lesions in patches.",
        choices=MODELS,
    )
    plane: str = setting(
        "axial",
        "What is taken from a volume: whole slices of a plane, axial patches of --size inside the foreground, or "
        "patches of the three planes, whose maps are averaged (patch-3, for denoising-ae).",
        choices=PLANES,
    )
    size: int = setting(
        0,
        "Side of the images learned, 16 to 256; slices are resampled to it. 0 is 64, or the side of smaller images.",
        unit="pixels",
        minimum=0,
        maximum=256,
    )
    tail: str = setting(
        "both",
        "What is looked for: bright or dark departures from normal, or both.",
        choices=TAILS,
    )
    smooth: float = setting(
        0.0,
        "Standard deviation of the Gaussian over maps of volumes.",
        unit="mm",
        minimum=0.0,
        maximum=20.0,
        metavar="MM",
    )
    spacing: float = setting(
        0.0, "Pixel edge of patches; 0 is the images' median.", unit="mm", minimum=0.0, maximum=100.0, metavar="MM"
    )
    channel: int = setting(0, "Which image of a case, where dataset.json lists several.", minimum=0, maximum=99)
    overlap: float = setting(0.5, "Share of a patch that its neighbours have, too.", minimum=0.0, maximum=0.95)
    latent: int = setting(128, "Length of the code.", minimum=1, maximum=4096)
    filters: int = setting(
        16, "Feature maps at full resolution; they double as the resolution halves.", minimum=1, maximum=512
    )
    steps: int = setting(1500, "Steps of the generator, or of the autoencoder.", minimum=1, maximum=10_000_000)
    encoder_steps: int = setting(
        0, "Steps of f-AnoGAN's encoder; 0 is as many as the generator's.", minimum=0, maximum=10_000_000
    )
    critic_steps: int = setting(5, "Steps of the critic before each of the generator.", minimum=1, maximum=100)
    penalty: float = setting(10.0, "Weight of the gradient penalty.", minimum=0.0, maximum=1e6)
    kappa: float = setting(1.0, "Weight of the feature residual.", minimum=0.0, maximum=1e6)
    batch: int = setting(16, "Images a step.", minimum=2, maximum=4096)
    learning_rate: float = setting(
        0.0,
        "Learning rate (Adam) of all but an f-AnoGAN's encoder; 0: 0.0001 for a WGAN, 0.0002 for a DCGAN, else 0.001.",
        minimum=0.0,
        maximum=1.0,
    )
    validation: float = setting(
        0.15, "Share of the normal images kept aside to set thresholds on.", minimum=0.02, maximum=0.5
    )
    search_images: int = setting(
        0,
        "Normal images kept aside that AnoGAN's search is tried on, so that its scores have thresholds, too; slow.",
        minimum=0,
        maximum=100000,
    )
    noise: float = setting(
        0.6,
        "Largest departure that is added to images for a denoising-ae, in units of half their range.",
        minimum=0.01,
        maximum=2.0,
    )
    device: str = device_setting()
    seed: int = setting(0, "Seed of weights, order and codes.", minimum=0, maximum=2**31 - 1)
    resume: bool = setting_of(TrainSegmentationRequest, "resume")
    threads: int = setting_of(TrainSegmentationRequest, "threads")
    describe: str = setting(
        "",
        "JSON file with what the model card should say: title, not_for, authors, data, licence, limits.",
        kind="input",
        metavar="FILE.json",
    )

    def check_task(self) -> None:
        if self.plane == "patch-3" and self.model != "denoising-ae":
            raise BadInput(
                f"The model {self.model} takes no patches of three planes.",
                "What is kept aside are axial slabs, which the other planes cut through.",
                "Give --plane patch, or --model denoising-ae.",
            )
        if 0 < self.size < 16:
            raise BadInput(f"Images of {self.size} pixels a side are too small.", "", "Give --size 16 to 256.")


@dataclasses.dataclass(frozen=True)
class AnomalyRequest(Request):
    """Map how far an image departs from what a model learned as normal, and mark what departs most.

    The result's keys: output, findings, table, reconstruction, report, record (file names, "" where not written),
    pictures (file names by what they show), method, image_score, slice_scores (one for each slice along the model's
    plane, from right, front or bottom on; None outside the foreground), plane, slice_threshold, threshold (value on
    the map), percentile, false_positive_rate, image_threshold (of a 2-D image), findings_table (rows: label,
    volume_ml, peak, mean, centre_lps, centre_ras ...), evaluation (with --reference: the map, baselines, each with
    auroc, auprc, best_dice, dice, and "findings"; else None), device, seconds, stages, warnings, text. For an .npz:
    array, image_scores (one a row), image_threshold, and evaluation of the images where the file has labels.
    """

    task: ClassVar[str] = "anomaly"
    words: ClassVar[tuple[str, ...]] = ("anomaly",)
    runner: ClassVar[str] = "MLILib.anomaly.task"
    summary: ClassVar[str] = "map how far an image departs from normal"

    image: str = setting(
        help="Image to look at, or an .npz of 2-D images.", kind="input_image", positional=True, metavar="IMAGE"
    )
    model: str = setting(
        help="Anomaly model: a shipped or imported bundle's name, or its folder or zip.",
        short="m",
        kind="model",
        metavar="BUNDLE",
    )
    output: str = setting(
        "",
        "Anomaly map on the image's grid; of an .npz, an .npz or a stack.",
        short="o",
        kind="output_image",
        metavar="MAP",
    )
    method: str = setting(
        "",
        "How to score; by default what the model was made for. anogan (with feature matching) and anogan-ce (with "
        "cross-entropy) search for each image; the others take one pass.",
        choices=("", *METHODS),
    )
    threshold: float = setting(
        99.5,
        "Percentile of normal voxels' scores beyond which a voxel is a finding: 99.5 lets 0.5 % of normal voxels pass.",
        minimum=0.0,
        maximum=100.0,
        metavar="P",
    )
    mask: str = setting("", "Foreground: only voxels inside are looked at.", kind="input", metavar="MASK")
    reference: str = setting(
        "", "Known lesions on the image's grid: only to measure the map with.", kind="input", metavar="LESIONS"
    )
    findings: str = setting("", "Findings as labels on the image's grid.", kind="output_image", metavar="OUT")
    table: str = setting("", "Findings as a table.", kind="output", metavar="OUT.csv")
    reconstruction: str = setting(
        "", "What the model makes of the image, on the image's grid.", kind="output_image", metavar="OUT"
    )
    report: str = setting("", "All figures as JSON; its pictures lie beside it.", kind="output", metavar="OUT.json")
    array: str = setting("", "Array of an .npz to score; by default images, else train_images.", metavar="NAME")
    overlap: float = setting(0.25, "Share of a window that its neighbours have, too.", minimum=0.0, maximum=0.95)
    median: int = setting(
        3,
        "Side of the median filter over the map before it is thresholded; 1: none.",
        unit="voxels",
        minimum=1,
        maximum=15,
    )
    erode: float = setting(
        0.0, "Rim of the foreground where nothing is found.", unit="mm", minimum=0.0, maximum=100.0, metavar="MM"
    )
    smallest: float = setting(0.01, "Smallest finding.", unit="ml", minimum=0.0, maximum=1e6, metavar="ML")
    search_steps: int = setting(500, "Steps of AnoGAN's search.", minimum=1, maximum=100000)
    search_rate: float = setting(0.02, "Learning rate of AnoGAN's search (Adam).", minimum=1e-6, maximum=10.0)
    weight: float = setting(0.1, "AnoGAN's lambda: weight of the features' term.", minimum=0.0, maximum=1.0)
    batch: int = setting(64, "Windows looked at together.", minimum=1, maximum=4096)
    device: str = device_setting()
    seed: int = setting(0, "Seed of AnoGAN's first codes.", minimum=0, maximum=2**31 - 1)
    threads: int = setting_of(TrainSegmentationRequest, "threads")
    trust: tuple[str, ...] = trust_setting()

    def check_task(self) -> None:
        if not self.is_stack() and not self.outputs():
            raise BadInput("Nothing would be written.", "No file was asked for.", "Add -o MAP, --report or --findings.")
        if self.is_stack():
            for name in ("mask", "reference", "findings", "table"):
                if getattr(self, name):
                    raise BadInput(
                        f"An .npz takes no --{name}.",
                        "Its images have no place in a body; labels of the images are read from the file.",
                        f"Leave --{name} out.",
                    )
        elif self.array:
            raise BadInput("--array names an array of an .npz.", f"{self.image} is none.", "Leave --array out.")
        if self.median % 2 == 0:
            raise BadInput(f"The median filter's side is {self.median}.", "It has a centre.", "Give an odd number.")
        self.require_distinct()

    def is_stack(self) -> bool:
        """Whether the image is an .npz of 2-D images."""
        return files.suffix(self.image) == ".npz"

"""What can be asked of the classical methods: the request of segment-classical. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..errors import BadInput
from ..segmentation.requests import SegmentRequest
from ..settings import Request, setting, setting_of

#: Each method in a sentence, and what it starts from: "" (the image alone), "optional", "inside" (seeds in what is
#: sought), "both" (seeds in what is sought and in the background).
METHODS: dict[str, tuple[str, str]] = {
    "otsu": ("One threshold that splits the intensities best (Otsu 1979).", ""),
    "multi-otsu": ("Several thresholds that split the intensities best (Otsu 1979; Liao 2001).", ""),
    "connected": ("What is connected with the seeds and has an intensity in a range.", "inside"),
    "confidence": ("Grows from the seeds by intensities near their mean, a few times anew.", "inside"),
    "geodesic": ("A surface grows from the seeds and stops at edges (Caselles 1997).", "inside"),
    "chan-vese": ("A surface parts the image into two even regions (Chan and Vese 2001).", "optional"),
    "graph-cut": ("The cheapest cut between scribbles, by maximum flow (Boykov and Jolly 2001).", "both"),
    "random-forest": ("A forest learns from scribbles, or examples, what voxels look like (Breiman 2001).", "both"),
}
SIDES = ("bright", "dark")

#: The settings that each method heeds, beside those that all do.
OPTIONS: dict[str, tuple[str, ...]] = {
    "otsu": ("side",),
    "multi-otsu": ("levels",),
    "connected": ("range",),
    "confidence": ("multiplier", "rounds"),
    "geodesic": ("start_radius", "edge_width", "balloon", "curvature", "iterations"),
    "chan-vese": ("side", "start_radius", "curvature", "iterations"),
    "graph-cut": ("smoothness", "connected_only"),
    "random-forest": ("trees", "seed", "connected_only", "examples"),
}


@dataclasses.dataclass(frozen=True)
class ClassicalRequest(Request):
    """Segment an image with a method that needs no trained model.

    The result's keys: output, record (file names), method, labels (value, name, color, terminology, voxels, volume_ml),
    figures (thresholds, rounds, energy ... of the method), device, seconds, stages, warnings, text.
    """

    task: ClassVar[str] = "segment-classical"
    words: ClassVar[tuple[str, ...]] = ("segment-classical",)
    runner: ClassVar[str] = "MLILib.classical.task"
    summary: ClassVar[str] = "label an image without a model"

    image: str = setting(help="Image to segment.", kind="input_image", positional=True, metavar="IMAGE")
    method: str = setting(
        help=" ".join(f"{name}: {sentence}" for name, (sentence, _) in METHODS.items()), choices=tuple(METHODS)
    )
    output: str = setting_of(SegmentRequest, "output")
    seeds: str = setting(
        "", "Scribbles: a label map or segmentation on the image's grid.", kind="input", metavar="LABELS"
    )
    background: str = setting(
        "background", "Name, or value, of the scribbles that mark background.", metavar="NAME|VALUE"
    )
    names: tuple[str, ...] = setting(
        (), "Names of the seeds' labels, as VALUE=NAME; by default those in the file.", metavar="VALUE=NAME"
    )
    points: str = setting(
        "",
        "Seeds as points (.mrk.json, .fcsv or .csv, LPS mm); those labelled as --background says mark background.",
        kind="input",
        metavar="POINTS",
    )
    point_radius: float = setting(
        0.0, "Points are balls of this radius.", unit="mm", minimum=0.0, maximum=100.0, metavar="MM"
    )
    mask: str = setting("", "Look only inside of this mask.", kind="input", metavar="MASK")
    smooth: float = setting(
        0.0, "Width of a Gaussian filter before all else.", unit="mm", minimum=0.0, maximum=50.0, metavar="MM"
    )
    side: str = setting("bright", "What otsu and chan-vese take as the object.", choices=SIDES)
    levels: int = setting(2, "Thresholds of multi-otsu; there is one region more.", minimum=1, maximum=6)
    range: tuple[float, ...] = setting((), "Lowest and highest intensity of connected.", metavar="X")
    multiplier: float = setting(
        2.5, "How many standard deviations from the mean confidence goes.", minimum=0.1, maximum=100.0
    )
    rounds: int = setting(4, "How often confidence takes mean and deviation anew.", minimum=0, maximum=100)
    iterations: int = setting(500, "Most iterations of a level set.", minimum=1, maximum=100_000)
    start_radius: float = setting(
        3.0, "Level sets begin this far around the seeds.", unit="mm", minimum=0.0, maximum=1000.0, metavar="MM"
    )
    edge_width: float = setting(
        1.0, "Width of the Gaussian that edges are found with.", unit="mm", minimum=0.1, maximum=50.0, metavar="MM"
    )
    balloon: float = setting(
        1.0, "How strongly geodesic grows (below 0: shrinks) where there is no edge.", minimum=-100.0, maximum=100.0
    )
    curvature: float = setting(0.5, "How smooth a level set is kept.", minimum=0.0, maximum=100.0)
    smoothness: float = setting(
        4.0, "Weight of the cut's area, against how well intensities fit, in graph-cut.", minimum=0.0, maximum=1000.0
    )
    connected_only: bool = setting(
        True,
        "Leave out what of the image looks alike but is not connected with a seed, in graph-cut and random-forest.",
    )
    examples: tuple[str, ...] = setting(
        (), "Images with label maps that random-forest learns from, in place of scribbles.", metavar="IMAGE=LABELS"
    )
    trees: int = setting(100, "Trees of random-forest.", minimum=1, maximum=10_000)
    seed: int = setting(0, "Seed of random-forest.", minimum=0, maximum=2**31 - 1)
    keep_largest: bool = setting_of(SegmentRequest, "keep_largest")
    compress: bool = setting_of(SegmentRequest, "compress")

    def check_task(self) -> None:
        needs = METHODS[self.method][1]
        seeded = bool(self.seeds or self.points)
        if needs in ("inside", "both") and not seeded and not (self.method == "random-forest" and self.examples):
            what = "and in the background" if needs == "both" else "or points in it"
            raise BadInput(
                f"The method {self.method} has no seeds.",
                METHODS[self.method][0],
                f"Give --seeds with scribbles in what is sought {what}.",
            )
        if seeded and self.examples:
            raise BadInput(
                "Both seeds and examples were given.", "The forest learns from one of them.", "Leave one out."
            )
        if not needs and seeded:
            raise BadInput(
                f"The method {self.method} takes no seeds.", METHODS[self.method][0], "Leave them out, or use another."
            )
        if self.method == "connected" and (len(self.range) != 2 or self.range[0] > self.range[1]):
            raise BadInput(
                "The method connected needs the lowest and the highest intensity.", "", "Give --range LOW HIGH."
            )
        self._require_heeded()
        if not self.connected_only and not seeded:
            raise BadInput("--no-connected-only is for seeds, and there are none.", "", "Leave it out.")
        if self.names and not self.seeds:
            raise BadInput(
                "Names were given for no seeds.", "They are those of the labels in --seeds.", "Leave them out."
            )
        self.require_distinct()

    def _require_heeded(self) -> None:
        """Raise :class:`BadInput` for a setting of another method: it would do nothing."""
        heeded = OPTIONS[self.method]
        for one in self.settings():
            owners = [name for name, options in OPTIONS.items() if one.name in options]
            if owners and one.name not in heeded and getattr(self, one.name) != one.default:
                raise BadInput(
                    f"The method {self.method} takes no --{one.flag}.",
                    "",
                    f"Leave it out, or use {' or '.join(owners)}.",
                )

"""The fusion methods, in words: what each is, what it assumes, and what it needs. Imports nothing heavy."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to fuse.

    Attributes:
        title: for a reader.
        assumes: a sentence; the widget shows it where one chooses.
        source: authors and year.
        images: whether it compares the target image with the raters' images, and so cannot work on labels alone.
        target: whether it needs the target image, without the raters' images.
    """

    title: str
    assumes: str
    source: str
    images: bool = False
    target: bool = False


METHODS: dict[str, Method] = {
    "majority": Method(
        "Majority vote",
        "Every rater is right equally often, everywhere; errors are independent. Ties go to the lowest label value.",
        "Heckemann 2006",
    ),
    "weighted": Method(
        "Weighted vote",
        "An atlas whose whole image looks like the target has better labels, everywhere in the image.",
        "Artaechevarria 2009",
        images=True,
    ),
    "local": Method(
        "Locally weighted vote",
        "An atlas is right where its image looks like the target nearby; errors of atlases are independent.",
        "Artaechevarria 2009; Sabuncu 2010",
        images=True,
    ),
    "simple": Method(
        "SIMPLE",
        "Bad raters disagree with the consensus of the good ones: they are dropped, and the consensus is made again.",
        "Langerak 2010",
    ),
    "staple": Method(
        "STAPLE",
        "Each rater has one sensitivity and specificity for a label, the same everywhere; they are estimated together "
        "with the truth. The answer depends on the region that is looked at.",
        "Warfield 2004",
    ),
    "jlf": Method(
        "Joint label fusion",
        "Atlases that look alike nearby err alike, so they share a vote; small shifts of each atlas are searched.",
        "Wang 2013",
        images=True,
    ),
    "deepstaple": Method(
        "DeepSTAPLE",
        "Good labels are easier to learn than bad ones: a network trained on all of them tells which to trust.",
        "Weihsbach 2022",
        target=True,
    ),
}

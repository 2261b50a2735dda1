"""The similarities by name, and in words which relation between the intensities each assumes. Imports no torch.

What computes them is in :mod:`MLILib.registration.similarity`.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Words:
    """What a reader is told of a similarity.

    Attributes:
        name: as in a request.
        title: for a chooser or a table.
        relation: the relation between the intensities that it assumes, a sentence.
        higher_is_better: of the measure's value.
        across_modalities: whether the relation can hold between images of different modalities.
    """

    name: str
    title: str
    relation: str
    higher_is_better: bool
    across_modalities: bool


_ALL = (
    Words(
        "ssd",
        "Sum of squared differences",
        "Identity: a tissue has the same intensity in both images, up to noise.",
        higher_is_better=False,
        across_modalities=False,
    ),
    Words(
        "sad",
        "Sum of absolute differences",
        "Identity: a tissue has the same intensity in both images, but for a few voxels that may differ much.",
        higher_is_better=False,
        across_modalities=False,
    ),
    Words(
        "cc",
        "Correlation coefficient",
        "Linear: the intensities differ by one brightness and one contrast over the whole image.",
        higher_is_better=True,
        across_modalities=False,
    ),
    Words(
        "lncc",
        "Local normalised cross-correlation",
        "Locally linear: brightness and contrast may change from place to place, as by a bias field, and contrast may "
        "be inverted.",
        higher_is_better=True,
        across_modalities=False,
    ),
    Words(
        "je",
        "Joint entropy",
        "Statistical: few pairs of intensities occur, whichever they are, in a region that stays the same.",
        higher_is_better=False,
        across_modalities=True,
    ),
    Words(
        "mi",
        "Mutual information",
        "Statistical: the intensity of one image tells something of the other's, in whatever way.",
        higher_is_better=True,
        across_modalities=True,
    ),
    Words(
        "nmi",
        "Normalised mutual information",
        "Statistical: the intensity of one image tells something of the other's, in whatever way, and the images may "
        "overlap in part.",
        higher_is_better=True,
        across_modalities=True,
    ),
    Words(
        "mind",
        "MIND-SSC (self-similarity)",
        "Structural: both images show the same edges and textures locally, with whatever intensities.",
        higher_is_better=False,
        across_modalities=True,
    ),
)

#: Every similarity by its name, in the order of choosers and tables.
WORDS: dict[str, Words] = {words.name: words for words in _ALL}

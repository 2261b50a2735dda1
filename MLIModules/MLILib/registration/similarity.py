"""The similarities by name: the textbook value of each, and a loss that is lower where images agree better.

Names, titles and assumptions are in :mod:`MLILib.registration.similarity_words`, which imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from ..errors import BadInput
from .histogram import joint_entropy, mutual_information, normalised_mutual_information
from .intensity import correlation, sad, ssd
from .lncc import lncc
from .mind import mind
from .similarity_words import WORDS

#: f(fixed, moving, mask=None, **options) -> (N,)
Measure = Callable[..., torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Similarity:
    """A similarity.

    Attributes:
        name: as in a request.
        title: for a reader.
        relation: the relation between the intensities that it assumes, a sentence.
        measure: (fixed, moving, mask=None, **options) to the textbook value, (N,).
        loss: likewise, to a value that is lower where the images agree better.
    """

    name: str
    title: str
    relation: str
    measure: Measure
    loss: Measure


def _short_of(best: float, measure: Measure) -> Measure:
    """By how much a measure falls short of its best value."""

    def shortfall(
        fixed: torch.Tensor, moving: torch.Tensor, mask: torch.Tensor | None = None, **options: object
    ) -> torch.Tensor:
        return best - measure(fixed, moving, mask, **options)

    return shortfall


_MEASURES: dict[str, tuple[Measure, Measure]] = {
    "ssd": (ssd, ssd),
    "sad": (sad, sad),
    "cc": (correlation, _short_of(1.0, correlation)),
    "lncc": (lncc, _short_of(1.0, lncc)),
    "je": (joint_entropy, joint_entropy),
    "mi": (mutual_information, _short_of(0.0, mutual_information)),
    "nmi": (normalised_mutual_information, _short_of(2.0, normalised_mutual_information)),
    "mind": (mind, mind),
}

#: Every similarity by its name. Losses: ssd, sad, je and mind as they are; 1 - cc, 1 - lncc, 2 - nmi, and -mi.
SIMILARITIES: dict[str, Similarity] = {
    name: Similarity(name, words.title, words.relation, *_MEASURES[name]) for name, words in WORDS.items()
}


def measure(
    name: str, fixed: torch.Tensor, moving: torch.Tensor, mask: torch.Tensor | None = None, **options: object
) -> torch.Tensor:
    """The textbook value of the similarity called `name`, (N,).

    Args:
        name: one of :data:`SIMILARITIES`.
        fixed: (N, C, z, y, x) or (N, C, y, x); N may be 1 beside a larger batch.
        moving: likewise, on the same grid.
        mask: (N, 1, ...) weights of the voxels, 0 or more.
        options: the measure's own, such as ``radius`` or ``bins``.

    Raises:
        BadInput: no such similarity, or shapes do not fit each other.
    """
    return _named(name).measure(fixed, moving, mask, **options)


def loss(
    name: str, fixed: torch.Tensor, moving: torch.Tensor, mask: torch.Tensor | None = None, **options: object
) -> torch.Tensor:
    """As :func:`measure`, but lower where the images agree better: what an optimiser minimises, (N,).

    Differentiable once with respect to both images. An item of the batch whose mask is empty has nan and a gradient of
    0, so that the others are not disturbed.
    """
    return _named(name).loss(fixed, moving, mask, **options)


def _named(name: str) -> Similarity:
    if name not in SIMILARITIES:
        raise BadInput(f"There is no similarity {name!r}.", "", f"Choose from: {', '.join(SIMILARITIES)}.")
    return SIMILARITIES[name]

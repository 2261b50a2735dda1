"""How well scores tell classes apart: area under the ROC curve, and accuracy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of one set of images.

    Attributes:
        auc: area under the ROC curve; of more than two classes the mean of each against the rest.
        accuracy: share of the images whose largest score is that of their class.
        images: their number.
    """

    auc: float
    accuracy: float
    images: int


def measure(logits: np.ndarray, labels: np.ndarray) -> Figures:
    """The figures of scores (N, classes) for classes (N,) from 0; the area is NaN where only one class is there."""
    shifted = logits - logits.max(1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    classes = [1] if logits.shape[1] == 2 else range(logits.shape[1])
    areas = [area(probabilities[:, c], labels == c) for c in classes]
    known = [a for a in areas if not math.isnan(a)]
    accuracy = float((logits.argmax(1) == labels).mean())
    return Figures(sum(known) / len(known) if known else math.nan, accuracy, len(labels))


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive has the larger score, ties counting half (Hanley 1982)."""
    n, m = int(positive.sum()), int((~positive).sum())
    if n == 0 or m == 0:
        return math.nan
    ranks = stats.rankdata(scores)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))

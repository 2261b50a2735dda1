"""Whether probabilities mean what they say: expected calibration error, reliability, and a temperature to put it right.

Of the voxels that a model labels with a confidence of 0.8, eight in ten should be right (Guo 2017). Most of an image is
background that nobody doubts, so only a band around the reference's foreground is looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize

from . import charts

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]

#: Bins of confidence between 0 and 1 (Guo 2017).
BINS = 15
#: Voxels count that lie inside the foreground or so close to it, mm.
BAND_MM = 3.0
#: Probabilities below this cannot be told from 0 once they are stored in single precision.
_SMALLEST = 1e-7
_COLDEST, _HOTTEST = 0.05, 20.0


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Confidence and correctness in bins of equal width.

    Attributes:
        counts: voxels in each bin.
        confidence: sum of their confidences.
        correct: how many are right.
        squared: sum over all voxels of the Brier score, the squared distance of probabilities and truth.
        surprise: sum over all voxels of the negative logarithm of the true class's probability.
    """

    counts: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    correct: npt.NDArray[np.int64]
    squared: float = 0.0
    surprise: float = 0.0

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            self.counts + other.counts,
            self.confidence + other.confidence,
            self.correct + other.correct,
            self.squared + other.squared,
            self.surprise + other.surprise,
        )

    @property
    def voxels(self) -> int:
        """How many were looked at."""
        return int(self.counts.sum())

    @property
    def error(self) -> float:
        """Expected calibration error: mean over voxels of how far their bin's confidence is from its accuracy."""
        return float(np.abs(self.correct - self.confidence).sum() / self.voxels) if self.voxels else math.nan

    @property
    def brier(self) -> float:
        """Mean squared distance of probabilities and truth (Brier 1950), 0 to 2."""
        return self.squared / self.voxels if self.voxels else math.nan

    @property
    def nll(self) -> float:
        """Mean negative log likelihood, nats."""
        return self.surprise / self.voxels if self.voxels else math.nan

    def figures(self) -> dict[str, float | int]:
        """Plain values: ece, brier, nll, voxels."""
        return {"ece": self.error, "brier": self.brier, "nll": self.nll, "voxels": self.voxels}


def nothing() -> Reliability:
    """The reliability of no voxels, to add to."""
    return Reliability(np.zeros(BINS, np.int64), np.zeros(BINS), np.zeros(BINS, np.int64))


def with_background(probabilities: Floats) -> Floats:
    """Probabilities (..., labels) with that of the background put before them, (..., 1 + labels)."""
    rest = np.clip(1.0 - probabilities.sum(axis=-1, keepdims=True), 0.0, 1.0)
    return np.concatenate([rest, probabilities], axis=-1)


def band(reference: npt.NDArray[np.integer], spacing: Sequence[float], width_mm: float = BAND_MM) -> Bools:
    """Voxels in the foreground of a label array, or at most `width_mm` from it.

    Args:
        reference: labels, 0 is background.
        spacing: of its axes, mm, in the array's order.
    """
    foreground = reference != 0
    if not foreground.any():
        return foreground
    near: Bools = ndimage.distance_transform_edt(~foreground, sampling=list(spacing)) <= width_mm
    return near


def reliability(probabilities: Floats, labels: npt.NDArray[np.integer], bins: int = BINS) -> Reliability:
    """Confidence (the largest probability) and correctness of voxels.

    Args:
        probabilities: (voxels, classes), the background first.
        labels: (voxels,) the true classes.
        bins: how many, of equal width.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    true = np.take_along_axis(probabilities, labels.astype(np.int64)[:, None], axis=1)[:, 0].astype(np.float64)
    squared = (probabilities.astype(np.float64) ** 2).sum() - 2 * true.sum() + len(true)
    return Reliability(
        counts=np.bincount(place, minlength=bins),
        confidence=np.bincount(place, weights=confidence, minlength=bins).astype(np.float64),
        correct=np.bincount(place, weights=right, minlength=bins).astype(np.int64),
        squared=float(squared),
        surprise=float(-np.log(np.clip(true, _SMALLEST, 1.0)).sum()),
    )


def tempered(probabilities: Floats, temperature: float) -> Floats:
    """Probabilities (voxels, classes) as they would be had their logits been divided by `temperature`."""
    logits = np.log(np.clip(probabilities.astype(np.float64), _SMALLEST, 1.0)) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    out = np.exp(logits)
    out /= out.sum(axis=1, keepdims=True)
    return out


def fit_temperature(parts: Iterable[tuple[Floats, npt.NDArray[np.integer]]]) -> float:
    """The temperature that makes the truth most likely (Guo 2017); above 1 where a model was too sure of itself.

    Args:
        parts: probabilities (voxels, classes) and true classes (voxels,), of validation cases.
    """
    logits, truth = [], []
    for probabilities, labels in parts:
        logits.append(np.log(np.clip(probabilities.astype(np.float64), _SMALLEST, 1.0)))
        truth.append(labels.astype(np.int64))
    every, true = np.concatenate(logits), np.concatenate(truth)
    own = np.take_along_axis(every, true[:, None], axis=1)[:, 0]

    def surprise(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        scaled = every * scale
        top = scaled.max(axis=1)
        return float((np.log(np.exp(scaled - top[:, None]).sum(axis=1)) + top - own * scale).mean())

    found = optimize.minimize_scalar(
        surprise, bounds=(math.log(_COLDEST), math.log(_HOTTEST)), method="bounded", options={"xatol": 1e-4}
    )
    return float(math.exp(found.x))


def draw(found: dict[str, Reliability], path: Path) -> None:
    """A reliability diagram as a PNG: accuracy against confidence, a line each, and where the voxels are.

    Args:
        found: by the name of each line.
        path: written at once; an existing file is replaced.
    """
    figure = charts.new_figure(5, 6)
    axis, shares = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    axis.plot([0, 1], [0, 1], color="0.6", ls="--", label="perfect")
    for i, (name, one) in enumerate(found.items()):
        filled = one.counts > 0
        sure = one.confidence[filled] / one.counts[filled]
        axis.plot(sure, one.correct[filled] / one.counts[filled], "o-", color=f"C{i}",
                  label=f"{name}: ECE {one.error:.3f}")  # fmt: skip
        edges = np.linspace(0, 1, len(one.counts) + 1)
        shares.stairs(one.counts / max(one.voxels, 1), edges, color=f"C{i}")
    axis.set_ylabel("share that is right")
    axis.legend(loc="upper left")
    axis.set_aspect("equal")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    shares.set_xlabel("confidence")
    shares.set_ylabel("share of voxels")
    charts.save(figure, path)

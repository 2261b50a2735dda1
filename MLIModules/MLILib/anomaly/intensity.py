"""Intensities of images brought to -1 to 1, in the same way when a model is trained and when it is used.

A volume is measured from its most frequent tissue (the highest peak of its histogram) in units of that peak's height
over the background; a 2-D image from its own mean in units of its own spread, since a model's residual grows with an
image's contrast and would otherwise call every flat image normal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]

#: Standard deviations of a 2-D image that become 1; hardly a pixel lies beyond.
IMAGE_SPAN = 3.0
#: Parts (of a hundred) of a foreground's intensities that are compared with those of the training images.
PROFILE = (5.0, 25.0, 50.0, 75.0, 95.0)
#: How far outside the training images' range a profile may lie, on the scale of -1 to 1 and in ranges.
_SLACK, _SLACK_RANGES = 0.15, 1.0
#: Share of the way from the background to the brightest voxels where the foreground begins.
_FOREGROUND = 0.1
_BINS = 256


def normalise_images(images: npt.ArrayLike) -> Floats:
    """2-D images (n, h, w), each with mean 0 and :data:`IMAGE_SPAN` standard deviations as 1, cut off at -1 and 1."""
    array = np.asarray(images, np.float32)
    mean = array.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    spread = array.std(axis=(1, 2), keepdims=True, dtype=np.float64)
    out: Floats = np.clip((array - mean) / (IMAGE_SPAN * spread), -1.0, 1.0).astype(np.float32)
    return out


def foreground(volume: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where a volume (z, y, x) holds a body: the largest part that stands out of the background, without holes."""
    low, high = np.percentile(volume, (1.0, 99.9))
    out = volume > low + _FOREGROUND * (high - low)
    out = ndimage.binary_opening(out)
    labels, count = ndimage.label(out)
    if count > 1:
        out = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    elif not count:
        out = np.ones(volume.shape, bool)
    filled = [ndimage.binary_fill_holes(plane) for plane in out]
    return np.stack(filled)


def landmarks(volume: npt.NDArray[Any], inside: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Centre and scale of a volume: its histogram's peak inside, and the peak's height over the background.

    Where that height is small against the spread of intensities (CT, or a volume without a dark background), the scale
    is half the distance between the first and the 99th percentile.
    """
    values = volume[inside].astype(np.float64)
    low, high = np.percentile(values, (1.0, 99.0))
    if not high > low:
        return float(low), 1.0
    counts, edges = np.histogram(values, _BINS, (low, high))
    smooth = ndimage.gaussian_filter1d(counts.astype(np.float64), _BINS / 64)
    peak = int(smooth.argmax())
    centre = float((edges[peak] + edges[peak + 1]) / 2)
    outside = volume[~inside]
    background = float(np.median(outside)) if outside.size else float(low)
    return centre, max(abs(centre - background), 0.5 * float(high - low))


def normalise_volume(volume: npt.NDArray[Any], inside: npt.NDArray[np.bool_]) -> Floats:
    """A volume with its peak at 0, cut off at -1 and 1; what lies outside is -1."""
    centre, scale = landmarks(volume, inside)
    out = np.clip((volume.astype(np.float32) - np.float32(centre)) / np.float32(scale), -1.0, 1.0)
    out[~inside] = -1.0
    return out


@dataclasses.dataclass(frozen=True)
class Range:
    """What the intensities of the training images looked like once normalised.

    Attributes:
        low, high: least and greatest of each part of :data:`PROFILE` over the training images.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, profiles: Sequence[npt.NDArray[np.float64]]) -> Self:
        """The range of several profiles."""
        stacked = np.stack(list(profiles))
        return cls(tuple(float(v) for v in stacked.min(axis=0)), tuple(float(v) for v in stacked.max(axis=0)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The range that :func:`dataclasses.asdict` described."""
        return cls(tuple(float(v) for v in data["low"]), tuple(float(v) for v in data["high"]))

    def departs(self, found: npt.NDArray[np.float64]) -> bool:
        """Whether a profile lies clearly outside what was trained on."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        slack = np.maximum(_SLACK, _SLACK_RANGES * (high - low))
        return bool(((found < low - slack) | (found > high + slack)).any())


def profile(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The parts :data:`PROFILE` of normalised intensities."""
    return np.percentile(values, PROFILE)

"""What looks wrong about a registration, in words: a reader is told before a wrong result is used.

None of these proves a registration wrong, and none of them missing proves it right.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .comparison import Comparison

#: Above these a sentence is written.
FOLDED = 0.001
VOLUME_FACTOR, VOLUME_SHARE = 10.0, 0.001
ROTATION_DEGREES = 45.0
SCALE = 1.5
#: Below this share of the smaller image in common a sentence is written.
COVERED = 0.25
#: The inverse may be this many voxel edges away, on average.
INVERSE_VOXELS = 0.5
#: A similarity counts as worse when it lost more than this share of its value.
WORSE = 0.01

#: Bins of the second image when a relation between intensities is looked for.
_BINS = 32
#: Fewer voxels say nothing about how intensities are related.
_FEWEST = 500


@dataclasses.dataclass(frozen=True)
class Relation:
    """How the intensities of two images are related where both show tissue.

    Each image's intensities are scaled to its range first, as registration does, so that units do not matter.

    Attributes:
        offset: ((mean difference)^2 + (difference of the standard deviations)^2) / (product of the standard
            deviations): how much of the squared difference is one of brightness and contrast, which no transform can
            remove.
        linear: squared correlation coefficient, the share of the variance that a straight line explains.
        functional: correlation ratio (Roche et al. 1998), the share that any function explains; the larger of the two
            directions.
        sign: of the correlation.
    """

    offset: float
    linear: float
    functional: float
    sign: float

    def unfit(self, similarity: str) -> str:
        """Why the images are unfit for this similarity, a clause, "" where nothing speaks against it.

        Args:
            similarity: "ssd", "sad" (identical intensities), "cc" (a straight line), or a sum such as "ssd+lncc" that
                holds one of them; others are never unfit.
        """
        parts = set(similarity.split("+"))
        if not parts & {"ssd", "sad", "cc"}:
            return ""
        if self.functional - self.linear > 0.15:
            return (
                f"a function of one image's intensities explains {self.functional:.0%} of the other's variance, but a "
                f"straight line only {self.linear:.0%}"
            )
        if self.sign < 0 and self.linear > 0.04:
            return "what is bright in one image is dark in the other"
        if parts & {"ssd", "sad"} and self.offset > 0.5:
            return "one tissue has different intensities in them, even when each image is scaled to its range"
        return ""


def relation(comparison: Comparison) -> Relation | None:
    """How intensities are related after registration, None where too few voxels are compared.

    Voxels that are background (the lowest fiftieth of the intensity range) in one of the images are left out: large
    black surroundings make any two images look alike.
    """
    if not comparison.after_mask.any():
        return None
    tissue = comparison.after_mask.copy()
    scaled = []
    for array in (comparison.fixed, comparison.after):
        lowest, high = np.percentile(array[comparison.after_mask], (0, 99))
        tissue &= array > lowest + 0.02 * (high - lowest)
        low, high = np.percentile(array[~np.isnan(array)], (0.5, 99.5))
        scaled.append(((array - low) / max(high - low, 1e-12)).clip(0, 1))
    if tissue.sum() < _FEWEST:
        return None
    ours, theirs = (array[tissue].astype(np.float64) for array in scaled)
    spread = float(ours.std() * theirs.std())
    if spread == 0:
        return None
    offset = ((ours.mean() - theirs.mean()) ** 2 + (ours.std() - theirs.std()) ** 2) / spread
    correlation = float(((ours - ours.mean()) * (theirs - theirs.mean())).mean()) / spread
    functional = max(correlation_ratio(ours, theirs), correlation_ratio(theirs, ours))
    return Relation(float(offset), correlation**2, functional, math.copysign(1.0, correlation))


def correlation_ratio(values: npt.NDArray[np.float64], given: npt.NDArray[np.float64]) -> float:
    """The share of the variance of `values` that a function of `given` explains (Roche et al. 1998, MICCAI).

    The function is constant on each of 32 ranges of `given` that hold about as many values.
    """
    edges = np.unique(np.quantile(given, np.linspace(0, 1, _BINS + 1)[1:-1]))
    place = np.searchsorted(edges, given, side="right")
    count = np.bincount(place)
    mean = np.bincount(place, values) / np.maximum(count, 1)
    return float(((mean[place] - values.mean()) ** 2).mean() / values.var())


def linear_part(matrix: npt.NDArray[np.float64]) -> tuple[float, tuple[float, ...], bool]:
    """Rotation in degrees, scales along its principal axes, and whether it mirrors, of an affine map.

    Args:
        matrix: (d + 1, d + 1), LPS mm.

    Returns:
        The angle of the rotation nearest to the linear part (polar decomposition), the singular values in descending
        order, and True where the determinant is negative.
    """
    d = len(matrix) - 1
    left, scales, right = np.linalg.svd(matrix[:d, :d])
    rotation = left @ right
    mirrored = bool(np.linalg.det(rotation) < 0)
    if mirrored:
        left[:, -1] *= -1
        rotation = left @ right
    cosine = rotation[0, 0] if d == 2 else (np.trace(rotation) - 1) / 2
    angle = math.degrees(math.acos(min(1.0, max(-1.0, float(cosine)))))
    return angle, tuple(float(s) for s in scales), mirrored


def sentences(quality: Mapping[str, Any], spacing: tuple[float, ...], unfit: str, similarity: str) -> list[str]:
    """What looks wrong, a sentence each.

    Args:
        quality: the measures, see :func:`MLILib.registration.quality.assess`.
        spacing: of the fixed image, mm.
        unfit: why the similarity does not suit the images, see :meth:`Relation.unfit`.
        similarity: what was maximised, "" where unknown.
    """
    found = [*_overlap(quality), *_similarity(quality, similarity), *_linear(quality["linear"])]
    if unfit:
        found.append(f"The similarity {similarity} may be unfit for these images: {unfit}. Use lncc, nmi or mind.")
    found += _jacobian(quality["jacobian"])
    inverse = quality["inverse_consistency"]
    if inverse and inverse["mean"] > INVERSE_VOXELS * min(spacing):
        found.append(
            f"The inverse does not undo the transform: it misses by {inverse['mean']:.2f} mm on average, at most "
            f"{inverse['max']:.2f} mm."
        )
    return found + _landmarks(quality)


def _overlap(quality: Mapping[str, Any]) -> list[str]:
    before, after = quality["covered"]["before"], quality["covered"]["after"]
    found = []
    if before == 0:
        found.append(
            "The images do not overlap before registration, where their headers place them: there are no values before."
        )
    if after == 0:
        found.append("The images do not overlap after registration: nothing can be measured, and nothing was found.")
    elif after < COVERED:
        found.append(
            f"After registration the images have little in common: {after:.0%} of the smaller one is covered by the "
            "other. Check the pictures."
        )
    return found


def _similarity(quality: Mapping[str, Any], similarity: str) -> list[str]:
    before, after = quality["similarity_before"], quality["similarity_after"]
    worse = {
        name: quality["similarity_better"][name] == "lower"
        for name in after
        if after[name] is not None and before.get(name) is not None
    }
    lost = []
    for name, lower in worse.items():
        change = (after[name] - before[name]) * (1 if lower else -1)
        if change > WORSE * max(abs(before[name]), 1e-12):
            lost.append(f"{name} from {before[name]:.4g} to {after[name]:.4g}")
    parts = similarity.split("+")
    named = [text for text in lost if text.split()[0] in parts]
    if len(named) == len(parts):
        return [f"The images are less alike after registration: {', '.join(named)}."]
    if lost and len(lost) == len(worse):
        return [f"The images are less alike after registration by every measure: {', '.join(lost)}."]
    return []


def _linear(linear: Mapping[str, Any]) -> list[str]:
    found = []
    if linear["mirrored"]:
        found.append("The transform mirrors the image: left and right are exchanged.")
    if linear["rotation_degrees"] > ROTATION_DEGREES:
        found.append(
            f"The transform turns the image by {linear['rotation_degrees']:.0f} degrees. Check the pictures: patients "
            "are seldom placed so differently."
        )
    extreme = max(linear["scales"], key=lambda s: abs(math.log(max(s, 1e-12))))
    if max(extreme, 1 / max(extreme, 1e-12)) > SCALE:
        found.append(
            f"The transform scales the image by {extreme:.2f} along one direction. Check the spacing in the headers."
        )
    return found


def _jacobian(jacobian: Mapping[str, Any]) -> list[str]:
    found = []
    if (jacobian["folded"] or 0) > FOLDED:
        found.append(
            f"The deformation folds: {jacobian['folded']:.2%} of the voxels have a Jacobian determinant of 0 or less. "
            "Raise the regularisation."
        )
    if jacobian["extreme"] > VOLUME_SHARE:
        found.append(
            f"In {jacobian['extreme']:.2%} of the voxels the volume changes more than {VOLUME_FACTOR:.0f} times. "
            "Raise the regularisation, or check that the images show the same."
        )
    return found


def _landmarks(quality: Mapping[str, Any]) -> list[str]:
    found = []
    tre, dice = quality["tre"], quality["dice"]
    if tre and tre["mean"] > tre["before_mean"]:
        found.append(
            f"The landmarks are farther apart after registration: {tre['before_mean']:.2f} mm before and "
            f"{tre['mean']:.2f} mm after, on average."
        )
    mean = dice.get("mean", {}) if dice else {}
    if mean.get("before") is not None and mean.get("after") is not None and mean["after"] < mean["before"]:
        found.append(
            f"The labels overlap less after registration: mean Dice {mean['before']:.3f} before and "
            f"{mean['after']:.3f} after."
        )
    return found

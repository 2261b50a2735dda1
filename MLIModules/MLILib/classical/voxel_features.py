"""What a forest sees of a voxel: intensity, gradient, boxes around it (Haar-like) and local binary patterns.

Boxes are means over cuboids of some millimetres, found with an integral image (Viola and Jones 2001), and differences
of two of them; local binary patterns (Ojala 2002) say which neighbours along the axes are brighter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]

#: Widths of the Gaussians, half widths of the boxes, and how far boxes lie from the voxel, mm.
GAUSSIANS = (1.0, 2.0, 4.0)
HALVES = (1.5, 4.0)
OFFSETS = (4.0, 10.0)
#: Distances of the neighbours of a local binary pattern, mm.
PATTERN = (2.0, 4.0)


def names(dimension: int) -> list[str]:
    """Of the features, in order."""
    axes = "xyz"[:dimension][::-1]
    found = ["intensity", "rank"]
    for width in GAUSSIANS:
        found += [f"Gaussian {width:g} mm", f"gradient {width:g} mm"]
    for half in HALVES:
        found.append(f"box {half:g} mm")
        found += [f"box {half:g} mm difference {offset:g} mm {axis}" for offset in OFFSETS for axis in axes]
    return found + [f"binary pattern {reach:g} mm {what}" for reach in PATTERN for what in ("code", "count")]


def features(image: Floats, spacing: Sequence[float]) -> Floats:
    """The features of each voxel.

    Args:
        image: intensities, (z, y, x) or (y, x); brought to one scale by the median and the interquartile range.
        spacing: mm along the array's axes.

    Returns:
        (voxels, features), float32, in the order of :func:`names`.
    """
    low, middle, high = np.percentile(image, (5, 50, 95))
    scaled = ((image - middle) / max(float(high - low), 1e-12)).astype(np.float32)
    step = np.asarray(spacing, float)
    found = [scaled, _rank(scaled)]
    for width in GAUSSIANS:
        sigma = width / step
        found += [ndimage.gaussian_filter(scaled, sigma), ndimage.gaussian_gradient_magnitude(scaled, sigma)]
    integral = _integral(scaled)
    for half in HALVES:
        box = _box(integral, scaled.shape, np.rint(half / step).astype(int))
        found.append(box)
        for offset in OFFSETS:
            found += [_difference(box, axis, max(1, round(offset / step[axis]))) for axis in range(image.ndim)]
    for reach in PATTERN:
        code, count = np.zeros_like(scaled), np.zeros_like(scaled)
        for axis in range(image.ndim):
            for side in (-1, 1):
                brighter = _shifted(scaled, axis, side * max(1, round(reach / step[axis]))) > scaled
                code = code * 2 + brighter
                count += brighter
        found += [code, count]
    return np.stack([f.ravel() for f in found], axis=1).astype(np.float32)


def _rank(image: Floats) -> Floats:
    """Each voxel's place among the image's intensities, 0 to 1: the same whatever scale the image has."""
    cuts = np.percentile(image, np.linspace(0, 100, 129))
    return (np.searchsorted(np.unique(cuts), image) / 129.0).astype(np.float32)


def _integral(image: Floats) -> npt.NDArray[np.float64]:
    total = np.pad(image.astype(np.float64), [(1, 0)] * image.ndim)
    for axis in range(image.ndim):
        total = total.cumsum(axis=axis)
    return total


def _box(integral: npt.NDArray[np.float64], shape: tuple[int, ...], half: npt.NDArray[np.int_]) -> Floats:
    """Mean over a box of 2 half + 1 voxels a side, cut off at the image's border."""
    total = integral
    size = np.ones(shape)
    for axis, (n, h) in enumerate(zip(shape, half, strict=True)):
        low, high = np.maximum(np.arange(n) - h, 0), np.minimum(np.arange(n) + h + 1, n)
        total = np.take(total, high, axis) - np.take(total, low, axis)
        size = size * (high - low).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return (total / size).astype(np.float32)


def _shifted(image: Floats, axis: int, by: int) -> Floats:
    """The value `by` voxels further along an axis; beyond the border the outermost."""
    n = image.shape[axis]
    return np.take(image, np.clip(np.arange(n) + by, 0, n - 1), axis)


def _difference(box: Floats, axis: int, by: int) -> Floats:
    """A Haar-like feature: the box ahead less the box behind."""
    return _shifted(box, axis, by) - _shifted(box, axis, -by)

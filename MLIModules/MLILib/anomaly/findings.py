"""From an anomaly map to findings: a threshold at a stated false-positive rate, small fragments removed, a table.

The order is that of Baur et al. (2021): a median filter, the eroded foreground, a threshold, and the smallest component
that counts. The threshold is a percentile of scores on images known to be normal, never of the image itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from .. import metrics
from ..errors import BadInput
from ..geometry import Grid, affine_ras, describe, from_array, same_grid


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was found in a map.

    Attributes:
        labels: on the map's grid; 0 is background, finding n of `rows` has the value n.
        rows: one a finding, the largest first: label, voxels, volume_ml (a plane counts as 1 mm thick), peak and mean
            score, centre_lps and centre_ras (of mass, mm), peak_lps and peak_ras (of the voxel with the peak, mm).
        threshold: what a voxel had to reach.
        left_out: components that were smaller than asked for.
    """

    labels: sitk.Image
    rows: list[dict[str, Any]]
    threshold: float
    left_out: int


def threshold_at(false_positive_rate: float, normal_scores: npt.ArrayLike) -> float:
    """The lowest score that at most a share `false_positive_rate` of normal scores reaches.

    Args:
        false_positive_rate: above 0 and below 1, for instance 0.05.
        normal_scores: of voxels or images that are known to be normal and were not trained on, any shape. A map's
            voxels must have passed :func:`smoothed` when the map to be searched does.

    Raises:
        BadInput: no such share can be told from so few scores.
    """
    scores = np.asarray(normal_scores, dtype=np.float64).ravel()
    scores = scores[np.isfinite(scores)]
    if not 0.0 < false_positive_rate < 1.0:
        raise BadInput(
            f"A false-positive rate of {false_positive_rate:g} is no share.", "", "Give a number between 0 and 1."
        )
    allowed = int(np.floor(false_positive_rate * scores.size * (1 + 1e-12)))
    if not allowed:
        raise BadInput(
            f"A false-positive rate of {false_positive_rate:g} cannot be read off {scores.size} normal scores.",
            f"At least {int(np.ceil(1.0 / false_positive_rate))} are needed.",
            "Ask for a larger rate, or keep more normal images aside.",
        )
    ranked = np.sort(scores)
    found = ranked[-allowed]
    if allowed < scores.size and ranked[-allowed - 1] == found:  # of equal scores all would be found: take none
        above = ranked[ranked > found]
        found = above[0] if above.size else np.nextafter(found, np.inf)
    return float(found)


def smoothed(scores: sitk.Image, median: int) -> sitk.Image:
    """The map after a median filter over a box of `median` voxels a side (odd; 1 leaves it as it is), float32."""
    if median < 1 or median % 2 == 0:
        raise BadInput(
            f"A median filter of {median} voxels a side has no centre.", "", "Give an odd number, 1 for none."
        )
    values = sitk.Cast(scores, sitk.sitkFloat32)
    return sitk.Median(values, [median // 2] * values.GetDimension()) if median > 1 else values


def eroded(foreground: sitk.Image, distance: float) -> sitk.Image:
    """The part of a mask that lies more than `distance` mm inside; the image's border is no outside.

    Args:
        foreground: any type, what is not 0 belongs to it.
        distance: mm, measured between voxel centres, direction by direction as the spacing says; 0 changes nothing.

    Returns:
        uint8 mask on the same grid.
    """
    mask = sitk.NotEqual(foreground, 0)
    if distance <= 0 or not sitk.GetArrayViewFromImage(mask).min() < 1:
        return mask
    # Distance from each voxel to the nearest one outside the mask; where all is outside it is 0.
    away = sitk.SignedMaurerDistanceMap(sitk.Not(mask), squaredDistance=False, useImageSpacing=True)
    return sitk.And(mask, sitk.Greater(away, float(distance)))


def find(
    map: sitk.Image,
    threshold: float,
    foreground: sitk.Image | None = None,
    *,
    median: int = 3,
    erode_mm: float = 0.0,
    smallest_ml: float = 0.0,
    two_sided: bool = False,
) -> Findings:
    """Connected regions of a map whose score reaches the threshold.

    Args:
        map: score of each voxel, 2-D or 3-D.
        threshold: score from which a voxel counts.
        foreground: mask on the map's grid outside which nothing is found; None is everywhere.
        median: side of the median filter over the map before it is thresholded, voxels; 1 is none.
        erode_mm: the foreground's rim of this width is left out.
        smallest_ml: smaller regions are left out; a 2-D voxel counts as 1 mm thick.
        two_sided: the map has a sign (a z-score): a region holds voxels at or above the threshold, or voxels at or
            below minus the threshold, and its peak is the value farthest from 0.

    Returns:
        The regions, joined over faces, edges and corners.

    Raises:
        BadInput: a foreground on another grid, a map that is not finite, a threshold that is not positive for a
            two-sided map.
    """
    if foreground is not None and not same_grid(foreground, map, metrics.GRID_TOLERANCE):
        raise BadInput(
            "The mask is not on the image's grid.",
            f"It has {describe(Grid.of(foreground))}, the image {describe(Grid.of(map))}.",
            "Resample the mask to the image with nearest-neighbour interpolation.",
        )
    if two_sided and not threshold > 0:
        raise BadInput(
            f"{threshold:g} is no threshold for a map with a sign.",
            "It counts on both sides of 0.",
            "Give a positive one.",
        )
    values = sitk.GetArrayFromImage(smoothed(map, median))
    if not np.isfinite(values).all():
        raise BadInput(
            "The anomaly map holds values that are not numbers.",
            "The scoring went wrong.",
            "Check the image and model.",
        )
    inside = np.ones(values.shape, bool)
    if foreground is not None:
        inside = sitk.GetArrayFromImage(eroded(foreground, erode_mm)) != 0
    elif erode_mm > 0:
        raise BadInput("There is no foreground to erode.", "", "Give a mask, or do not erode.")
    masks = [inside & (values >= threshold)]
    if two_sided:
        masks.append(inside & (values <= -threshold))
    grid = Grid.of(map)
    return _table(values, masks, grid, threshold, smallest_ml)


def _table(
    values: npt.NDArray[np.float32],
    masks: Sequence[npt.NDArray[np.bool_]],
    grid: Grid,
    threshold: float,
    smallest: float,
) -> Findings:
    """Label the components of each mask, order them by size and describe them."""
    from scipy import ndimage

    voxel_ml = float(np.prod(grid.spacing)) / 1000.0
    regions: list[tuple[int, npt.NDArray[np.intp]]] = []
    left_out = 0
    for mask in masks:
        parts, count = ndimage.label(mask, np.ones((3,) * mask.ndim, int))
        where = np.flatnonzero(parts)
        order = np.argsort(parts.ravel()[where], kind="stable")
        sizes = np.bincount(parts.ravel()[where], minlength=count + 1)[1:]
        for voxels in np.split(where[order], np.cumsum(sizes)[:-1]) if count else []:
            if voxels.size * voxel_ml < smallest * (1 - 1e-9):
                left_out += 1
            else:
                regions.append((voxels.size, voxels))
    regions.sort(key=lambda region: -region[0])
    labels = np.zeros(values.shape, np.uint16 if len(regions) < 2**16 else np.uint32)
    rows = []
    to_ras = affine_ras(grid)
    for number, (size, voxels) in enumerate(regions, start=1):
        labels.ravel()[voxels] = number
        scores = values.ravel()[voxels].astype(np.float64)
        peak = int(np.abs(scores).argmax()) if len(masks) > 1 else int(scores.argmax())
        index = np.stack(np.unravel_index(voxels, values.shape)[::-1]).astype(np.float64)  # (x, y, z), voxels
        centre, top = _ras(to_ras, index.mean(axis=1)), _ras(to_ras, index[:, peak])
        rows.append(
            {
                "label": number,
                "voxels": int(size),
                "volume_ml": float(size * voxel_ml),
                "peak": float(scores[peak]),
                "mean": float(scores.mean()),
                "centre_lps": _flipped(centre),
                "centre_ras": centre,
                "peak_lps": _flipped(top),
                "peak_ras": top,
            }
        )
    return Findings(from_array(labels, grid), rows, float(threshold), left_out)


def _ras(to_ras: npt.NDArray[np.float64], index: npt.NDArray[np.float64]) -> list[float]:
    """RAS millimetres of a voxel index (x, y, z) or (x, y)."""
    padded = np.array([*index, *([0.0] * (3 - len(index))), 1.0])
    return [float(x) for x in (to_ras @ padded)[:3]]


def _flipped(point: Sequence[float]) -> list[float]:
    """RAS to LPS and back."""
    return [0.0 - point[0], 0.0 - point[1], point[2]]


def format_table(rows: Sequence[dict[str, Any]], *, most: int = 20) -> str:
    """Findings for a terminal, the largest first."""
    if not rows:
        return "Nothing was found."
    lines = [f"{'finding':>7} {'volume (ml)':>12} {'peak':>9} {'mean':>9}   centre, LPS mm"]
    for row in rows[:most]:
        centre = ", ".join(f"{x:.1f}" for x in row["centre_lps"])
        lines.append(
            f"{row['label']:>7} {row['volume_ml']:>12.3f} {row['peak']:>9.4g} {row['mean']:>9.4g}   ({centre})"
        )
    if len(rows) > most:
        lines.append(f"... and {len(rows) - most} more.")
    return "\n".join(lines)

"""How good a registration is: similarity, labels' overlap, landmark errors, the deformation's regularity, the inverse.

Everything is measured before (both images where their headers place them) and after, where there is a before. Measures
of a registration are not its loss: labels and landmarks were not shown to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from scipy import ndimage

from ..errors import BadInput
from ..geometry import Grid
from ..metrics import compare_labels, for_json, label_array, values
from ..segmentation.label_files import Label, LabelFile, pair
from . import jacobian, plausibility
from .comparison import Comparison, compare, resample_labels
from .similarity import SIMILARITIES
from .similarity_words import WORDS

#: Measured of every pair, beside the one that was maximised.
SIMILARITIES_SHOWN = ("cc", "lncc", "nmi", "mind")

#: Similarity is measured on averages over blocks where the fixed image has more voxels than this.
MOST_VOXELS = 1_000_000

#: The inverse is tried on this many points.
SAMPLES = 2000

#: How far, in voxels, MIND looks beside a voxel.
_REACH = 3

Floats = npt.NDArray[np.float64]


class Registration(Protocol):
    """What is assessed; :class:`MLILib.registration.pairwise.Registration` is one."""

    @property
    def transform(self) -> sitk.Transform:
        """Fixed to moving points."""

    @property
    def inverse(self) -> sitk.Transform | None:
        """Moving to fixed points."""

    @property
    def linear(self) -> npt.NDArray[np.float64]:
        """LPS mm, (d + 1, d + 1)."""

    @property
    def displacement(self) -> torch.Tensor | None:
        """(1, d, z, y, x) in voxels of the fixed grid; it acts before the linear part."""


def assess(
    fixed: sitk.Image,
    moving: sitk.Image,
    registration: Registration,
    *,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    fixed_labels: sitk.Image | LabelFile | None = None,
    moving_labels: sitk.Image | LabelFile | None = None,
    fixed_points: npt.ArrayLike | None = None,
    moving_points: npt.ArrayLike | None = None,
    point_labels: Sequence[str] = (),
    similarity: str = "",
    comparison: Comparison | None = None,
    determinant: npt.NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Measure a registration.

    Args:
        fixed: scalar image, 2-D or 3-D.
        moving: scalar image of the same dimension.
        registration: what is assessed.
        fixed_mask: on the fixed grid; similarity and inverse are measured where it is not 0.
        moving_mask: in the moving image's space; likewise for similarity.
        fixed_labels: on the fixed grid.
        moving_labels: in the moving image's space, on any grid.
        fixed_points: (n, 2 or 3), LPS mm.
        moving_points: corresponding points, in the same order.
        point_labels: their names.
        similarity: what was maximised, "" where it is not known; a sum of several such as "ssd+lncc".
        comparison: of this very pair, where the caller has one; made when None.
        determinant: of the Jacobian on the fixed grid, likewise; see :func:`determinants`.

    Returns:
        Plain values, None where one is not defined:

        - ``similarity_before``, ``similarity_after``: value by name; ``similarity_better``: "higher" or "lower".
        - ``covered``: share of the smaller image that the other covers, {before, after}.
        - ``dice``, ``hd95`` (mm): for each label and "mean" {before, after}; {} without labels.
        - ``tre``: target registration error, mm: n, before_mean, before_max, mean, median, sd, max, and points, a list
          of {label, before, after}; None without landmarks.
        - ``jacobian``: determinant of the Jacobian of the whole transform: min, max, mean, folded (share of voxels with
          0 or less), extreme (share that shrinks or grows more than tenfold), sd_log, sd_log_learn2reg.
        - ``inverse_consistency``: distance of T^-1(T(p)) from p, mm: mean, max, n; None without an inverse.
        - ``linear``: of the linear part: matrix, rotation_degrees, scales, mirrored.
        - ``relation``: offset, linear, functional, see :class:`MLILib.registration.plausibility.Relation`; or None.
        - ``notes``: how labels were paired. ``warnings``: what looks wrong, sentences.

    Raises:
        BadInput: dimensions differ, labels are no labels, or numbers of points differ.
    """
    compared = comparison or compare(
        fixed, moving, registration.transform, fixed_mask=fixed_mask, moving_mask=moving_mask
    )
    grid = Grid.of(fixed)
    maximised = [part for part in similarity.split("+") if part]
    shown = tuple(dict.fromkeys((*SIMILARITIES_SHOWN, *maximised)))
    coarse = compared.coarser(MOST_VOXELS)
    before, after = similarities(coarse, shown)
    notes: list[str] = []
    dice: dict[str, Any] = {}
    hd95: dict[str, Any] = {}
    if fixed_labels is not None and moving_labels is not None:
        dice, hd95, note = overlaps(_label_file(fixed_labels), _label_file(moving_labels), registration.transform)
        notes += [note] if note else []
    tre = None
    if fixed_points is not None and moving_points is not None:
        tre = target_registration_error(fixed_points, moving_points, registration.transform, point_labels)
    angle, scales, mirrored = plausibility.linear_part(registration.linear)
    related = plausibility.relation(coarse)
    quality: dict[str, Any] = {
        "similarity_before": before,
        "similarity_after": after,
        "similarity_better": {name: "higher" if WORDS[name].higher_is_better else "lower" for name in shown},
        "covered": {"before": compared.covered[0], "after": compared.covered[1]},
        "dice": dice,
        "hd95": hd95,
        "tre": tre,
        "jacobian": jacobian_statistics(determinants(registration, grid) if determinant is None else determinant),
        "inverse_consistency": inverse_consistency(registration, grid, Grid.of(moving), fixed_mask),
        "linear": {
            "matrix": registration.linear.tolist(), "rotation_degrees": angle, "scales": list(scales),
            "mirrored": mirrored,
        },
        "relation": related
        and {"offset": related.offset, "linear": related.linear, "functional": related.functional},
        "notes": notes,
    }  # fmt: skip
    quality = for_json(quality)
    unfit = related.unfit(similarity) if related else ""
    return {**quality, "warnings": plausibility.sentences(quality, grid.spacing, unfit, similarity)}


def similarities(comparison: Comparison, names: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """The similarities by name before and after, NaN where the images have nothing in common.

    Histograms have one range before and after, from the 0.1th to the 99.9th percentile. MIND leaves out what lies
    within its reach of the moving image's border, unless nothing else is left.
    """
    everything = comparison.fixed.astype(np.float64)
    reached = np.concatenate(
        [a[m] for a, m in ((comparison.before, comparison.before_mask), (comparison.after, comparison.after_mask))]
    )
    if not reached.size:
        nothing = dict.fromkeys(names, math.nan)
        return nothing, dict(nothing)
    ranges = {
        "fixed_range": tuple(float(x) for x in np.percentile(everything, (0.1, 99.9))),
        "moving_range": tuple(float(x) for x in np.percentile(reached, (0.1, 99.9))),
    }
    fixed = torch.from_numpy(comparison.fixed)[None, None]
    out = []
    for array, mask in ((comparison.before, comparison.before_mask), (comparison.after, comparison.after_mask)):
        inside = ~np.isnan(array)
        moving = torch.from_numpy(np.where(inside, array, np.float32(reached.min())))[None, None]
        inner = mask & ndimage.minimum_filter(inside, 2 * _REACH + 1, mode="constant", cval=1)
        found = {}
        for name in names:
            chosen = inner if name == "mind" and inner.any() else mask
            options = ranges if name in ("je", "mi", "nmi") else {}
            weight = torch.from_numpy(chosen.astype(np.float32))[None, None]
            with torch.no_grad():
                value = SIMILARITIES[name].measure(fixed, moving, weight, **options) if chosen.any() else None
            found[name] = math.nan if value is None else float(value)
        out.append(found)
    return out[0], out[1]


def overlaps(
    fixed: LabelFile, moving: LabelFile, transform: sitk.Transform
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Dice and HD95 of each label and their mean, before and after, and a note on how labels were paired.

    Args:
        fixed: labels; what they are compared on is their grid.
        moving: in the moving image's space, on any grid.
        transform: fixed to moving points.
    """
    entries, note = pair(moving.labels, fixed.labels)
    pairs = {name: (a.place if a else None, b.place if b else None) for name, a, b in entries}
    if "mean" in pairs:
        pairs["mean (label)"] = pairs.pop("mean")
    identity = sitk.Transform(fixed.grid.dimension, sitk.sitkIdentity)
    found = [
        compare_labels(warped(moving, fixed.grid, through).layers, fixed.layers, pairs, fixed.grid.spacing)
        for through in (identity, transform)
    ]
    out: list[dict[str, Any]] = []
    for metric in ("dice", "hausdorff95"):
        out.append({name: {"before": found[0][name][metric], "after": found[1][name][metric]} for name in found[0]})
    return out[0], out[1], note


def warped(labels: LabelFile, grid: Grid, transform: sitk.Transform) -> LabelFile:
    """Labels through a transform (points of `grid` to points of the labels), each mask interpolated linearly."""
    layers = []
    for layer in labels.layers:
        image = labels.grid.apply(sitk.GetImageFromArray(layer))
        layers.append(sitk.GetArrayFromImage(resample_labels(image, grid, transform, smooth=True)))
    return LabelFile(grid, tuple(layers), labels.labels, labels.segments)


def target_registration_error(
    fixed: npt.ArrayLike, moving: npt.ArrayLike, transform: sitk.Transform, labels: Sequence[str] = ()
) -> dict[str, Any]:
    """Distance of T(p) from the corresponding moving point, and of p itself from it before, mm.

    Args:
        fixed: p, (n, 2 or 3), LPS mm; the third coordinate is left out with a 2-D transform.
        moving: corresponding points.
        transform: T, fixed to moving points.
        labels: their names; numbers from 1 when empty.
    """
    d = transform.GetDimension()
    ours, theirs = (np.atleast_2d(np.asarray(p, dtype=np.float64))[:, :d] for p in (fixed, moving))
    if ours.shape != theirs.shape or ours.shape[1] != d:
        raise BadInput(
            f"{len(ours)} and {len(theirs)} landmarks do not correspond.", "", "Give each point its partner."
        )
    mapped = transform_points(transform, ours)
    before, after = (np.linalg.norm(points - theirs, axis=1) for points in (ours, mapped))
    names = labels or [str(i + 1) for i in range(len(ours))]
    return {
        "n": len(ours),
        "before_mean": float(before.mean()),
        "before_median": float(np.median(before)),
        "before_max": float(before.max()),
        "mean": float(after.mean()),
        "median": float(np.median(after)),
        "sd": float(after.std()),
        "max": float(after.max()),
        "points": [
            {"label": name, "before": float(b), "after": float(a)}
            for name, b, a in zip(names, before, after, strict=True)
        ],
    }


def transform_points(transform: sitk.Transform, points: Floats) -> Floats:
    """T(p) of each point, (n, d)."""
    return np.array([transform.TransformPoint([float(x) for x in p]) for p in points])


def determinants(registration: Registration, grid: Grid) -> npt.NDArray[np.float32]:
    """Determinant of the Jacobian of the whole transform at each voxel of the fixed grid, (z, y, x) or (y, x).

    It says by how much the moving image's volume is larger at the point that a voxel comes from.
    """
    if registration.displacement is None:
        scale = float(np.linalg.det(registration.linear[:-1, :-1]))
        return np.full(grid.shape, scale, dtype=np.float32)
    with torch.no_grad():
        found = jacobian.determinant(registration.displacement.detach().cpu().float(), registration.linear)
    return np.asarray(found[0, 0], dtype=np.float32)


def inverse_consistency(
    registration: Registration, fixed: Grid, moving: Grid, mask: sitk.Image | None = None
) -> dict[str, Any] | None:
    """Mean and largest distance of T^-1(T(p)) from p, mm, over voxels p that the moving image shows.

    Args:
        registration: T and its inverse.
        fixed: p is drawn from its voxels.
        moving: points that T brings outside of it are left out: nothing is known of the inverse there.
        mask: on the fixed grid; p is drawn where it is not 0.

    Returns:
        mean, max and n, the number of points; None without an inverse or a point.
    """
    if registration.inverse is None:
        return None
    rng = np.random.default_rng(0)
    if mask is None:
        indices = np.stack([rng.integers(0, n, SAMPLES) for n in fixed.size], axis=1).astype(np.float64)
    else:
        inside = np.flatnonzero(sitk.GetArrayViewFromImage(mask))
        if not inside.size:
            return None
        flat = inside[rng.integers(0, len(inside), SAMPLES)]
        indices = np.stack(np.unravel_index(flat, fixed.shape)[::-1], axis=1).astype(np.float64)
    points = _through(fixed.matrix(), indices)
    mapped = transform_points(registration.transform, points)
    place = _through(np.linalg.inv(moving.matrix()), mapped)
    there = ((place >= -0.5) & (place <= np.array(moving.size) - 0.5)).all(axis=1)
    if not there.any():
        return None
    back = transform_points(registration.inverse, mapped[there])
    apart = np.linalg.norm(back - points[there], axis=1)
    return {"mean": float(apart.mean()), "max": float(apart.max()), "n": int(there.sum())}


def jacobian_statistics(determinant: npt.NDArray[Any]) -> dict[str, float | None]:
    """What is reported of the determinants on a grid, see :func:`assess`."""
    factor = plausibility.VOLUME_FACTOR
    return {
        **jacobian.statistics(torch.from_numpy(np.asarray(determinant))[None, None]),
        "mean": float(determinant.mean(dtype=np.float64)),
        "extreme": float(((determinant > factor) | (determinant < 1 / factor)).mean()),
    }


def _through(matrix: Floats, points: Floats) -> Floats:
    return points @ matrix[:-1, :-1].T + matrix[:-1, -1]


def _label_file(labels: sitk.Image | LabelFile) -> LabelFile:
    if isinstance(labels, LabelFile):
        return labels
    array = label_array(labels, "label map")
    named = tuple(Label(str(value), False, 0, value) for value in values(array))
    return LabelFile(Grid.of(labels), (array,), named, False)


def better(quality: Mapping[str, Any], name: str) -> bool | None:
    """Whether the similarity `name` improved; None where it has no value before or after."""
    before, after = quality["similarity_before"].get(name), quality["similarity_after"].get(name)
    if before is None or after is None:
        return None
    return bool(after >= before) == (quality["similarity_better"][name] == "higher")

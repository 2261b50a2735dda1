"""How well a segmentation agrees with a reference: overlap, volume and surface distance, per label and mean.

Counts and ratios after Taha and Hanbury (2015, https://doi.org/10.1186/s12880-015-0068-x); surfaces are described in
:mod:`MLILib.surface_distance`.

What is undefined
    ``nan``: both masks of a label are empty, so that there is nothing to agree on (nnU-Net, MONAI and DeepMind's
    surface-distance say the same), or a ratio has no denominator (specificity where the reference fills the image).
    ``inf``: a distance where exactly one of the two masks is empty. The overlaps (Dice, Jaccard, precision, recall,
    F1, volume similarity, surface Dice) are 0 then, precision of an empty prediction included, so that a missed
    structure cannot raise a mean. Both are ``null`` in JSON; a volume of 0 tells which mask is empty.

Means
    A mean is taken over the finite values; ``counted`` says for each metric how many those were.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

from .errors import BadInput
from .geometry import Grid, same_grid
from .surface_distance import Mask, surface_distances

#: Every metric, in the order of the tables, with its heading.
METRICS: dict[str, str] = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "precision": "Precision",
    "recall": "Recall (sensitivity)",
    "specificity": "Specificity",
    "accuracy": "Accuracy",
    "f1": "F1",
    "volume_similarity": "Volume similarity",
    "surface_dice": "Surface Dice",
    "hausdorff": "Hausdorff (mm)",
    "hausdorff95": "Hausdorff 95 % (mm)",
    "assd": "Mean surface distance (mm)",
    "volume_prediction_ml": "Volume, prediction (ml)",
    "volume_reference_ml": "Volume, reference (ml)",
    "tp": "True positives (voxels)",
    "fp": "False positives (voxels)",
    "tn": "True negatives (voxels)",
    "fn": "False negatives (voxels)",
}

#: Two grids agree when corresponding corners differ by no more than this fraction of the smallest voxel edge along any
#: axis. Wider than for results of our own: other tools' headers round directions to four digits, and a comparison
#: voxel by voxel does not suffer from a twentieth of a voxel.
GRID_TOLERANCE = 0.05

Metrics = dict[str, Any]
Box = tuple[slice, ...]
#: Where a label is: the layer, and the value in it.
Place = tuple[int, int]

#: Above this label value a list with one entry for each possible label is no longer cheap.
_MANY = 65535


def compare(
    prediction: sitk.Image,
    reference: sitk.Image,
    labels: Mapping[int, str] | None = None,
    tolerance_mm: float = 1.0,
) -> dict[str, Metrics]:
    """Compare two label images on one grid.

    Surface distances are between surface elements weighted with their areas, as in DeepMind's surface-distance and in
    MONAI with ``use_subvoxels=True``. MONAI's default takes the outermost voxels of each mask instead. Elements are the
    default, and the only choice, because they measure the surface itself: with 1 x 1 x 5 mm voxels a square millimetre
    has five times as many border voxels on one side of an organ as on another, and each of them would count the same.
    The surface Dice as published (Nikolov et al. 2021) is defined on elements, too.

    Definitions, with TP, FP, TN, FN counted in voxels of the whole image:

    - ``dice`` = ``f1`` = 2 TP / (2 TP + FP + FN), ``jaccard`` = TP / (TP + FP + FN), ``precision`` = TP / (TP + FP),
      ``recall`` = TP / (TP + FN), ``specificity`` = TN / (TN + FP), ``accuracy`` = (TP + TN) / all.
    - ``volume_similarity`` = 1 - abs(FN - FP) / (2 TP + FP + FN), from 0 to 1 (Taha and Hanbury 2015). SimpleITK's
      filter gives the name to 2 (P - R) / (P + R), the signed difference s of the volumes; this is 1 - abs(s) / 2.
    - ``volume_prediction_ml``, ``volume_reference_ml``: a 2-D pixel counts as 1 mm thick.
    - ``hausdorff``, ``hausdorff95``: the larger of the two directed distances (of their 95th percentiles by area), mm.
    - ``assd``: the mean distance over the area of both surfaces, mm.
    - ``surface_dice``: the fraction of both surfaces' area within ``tolerance_mm`` of the other.

    An image that is one voxel thick along one axis is compared as the 2-D picture that it is.

    Args:
        prediction: label image, 2-D or 3-D, whole numbers from 0; 0 is background.
        reference: the same grid, up to :data:`GRID_TOLERANCE`.
        labels: which label values to compare, and their names; by default every value found in either, named "1", "2"
            and so on.
        tolerance_mm: tolerance of the surface Dice.

    Returns:
        The metrics of each label under its name, and under "mean" their means with ``counted`` beside them. Undefined
        values are ``nan`` or ``inf`` (see the module's text); :func:`for_json` turns them into None.

    Raises:
        BadInput: the grids differ, an image is not a label image, two labels have one name, or the tolerance is
            negative.

    Example:
        >>> square = sitk.Image(8, 8, sitk.sitkUInt8)
        >>> square[2:6, 2:6] = 1
        >>> compare(square, square, {1: "square"})["square"]["dice"]
        1.0
    """
    require_same_grid(prediction, reference)
    ours, theirs = label_array(prediction, "prediction"), label_array(reference, "reference")
    if labels is None:
        labels = {value: str(value) for value in sorted(set(values(ours)) | set(values(theirs)))}
    require_distinct_names(labels.values())
    pairs = {name: ((0, value), (0, value)) for value, name in labels.items()}
    return compare_labels([ours], [theirs], pairs, reference.GetSpacing(), tolerance_mm)


def compare_labels(
    prediction: Sequence[npt.NDArray[Any]],
    reference: Sequence[npt.NDArray[Any]],
    pairs: Mapping[str, tuple[Place | None, Place | None]],
    spacing: Sequence[float],
    tolerance_mm: float = 1.0,
) -> dict[str, Metrics]:
    """Compare segmentations whose labels may overlap, or have different values on the two sides.

    Args:
        prediction: one label array a layer, shape (z, y, x) or (y, x), all of one shape.
        reference: likewise, of the same shape.
        pairs: for each name the (layer, value) in the prediction and in the reference; None where a side lacks it.
        spacing: mm, in SimpleITK's order (x, y, z).
        tolerance_mm: tolerance of the surface Dice.

    Returns:
        As :func:`compare`.

    Raises:
        BadInput: the tolerance is negative or not a number.
    """
    if not 0.0 <= tolerance_mm < math.inf:
        raise BadInput(f"The tolerance is {tolerance_mm} mm.", "", "Give a distance in mm, 0 or more.")
    shape = prediction[0].shape
    plane, steps = _plane(shape, spacing)
    sides = [[_Labels(layer[plane]) for layer in layers] for layers in (prediction, reference)]
    ml, voxels = math.prod(spacing) / 1000.0, math.prod(shape)
    result: dict[str, Metrics] = {}
    for name, places in pairs.items():
        found = [(side[p[0]], p[1]) for side, p in zip(sides, places, strict=True) if p is not None]
        box = _union([layer.box(value) for layer, value in found], len(steps))
        masks = [
            np.zeros([s.stop - s.start for s in box], bool) if p is None else side[p[0]].array[box] == p[1]
            for side, p in zip(sides, places, strict=True)
        ]
        result[name] = _compare_masks(masks[0], masks[1], steps, ml, voxels, tolerance_mm)
    result["mean"] = mean(result.values())
    return result


def values(labels: npt.NDArray[Any]) -> list[int]:
    """The labels other than 0 that occur, ascending."""
    return sorted(_boxes(labels))


def mean(parts: Iterable[Mapping[str, Any]]) -> Metrics:
    """The mean of each metric over its finite values, and under ``counted`` how many those were."""
    rows = list(parts)
    finite = {m: [p[m] for p in rows if p[m] is not None and math.isfinite(p[m])] for m in METRICS}
    means: Metrics = {m: mean_of(found) for m, found in finite.items()}
    return {**means, "counted": {m: len(found) for m, found in finite.items()}}


def mean_of(found: Iterable[float | None]) -> float:
    """The mean of the finite ones of some figures, nan without any: a label that is nowhere says nothing."""
    finite = [float(value) for value in found if value is not None and math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def for_json(value: Any) -> Any:
    """`value` with each float that JSON lacks (``nan``, ``inf``) as None; dicts and lists are copied."""
    if isinstance(value, dict):
        return {key: for_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_distinct_names(names: Iterable[str]) -> None:
    """Raise :class:`BadInput` when two labels have one name, or one is called like the mean."""
    seen = {"mean"}
    for name in names:
        if name in seen:
            raise BadInput(
                f"Two entries of the result would be called {name!r}.",
                "Each label has its metrics under its own name, and their mean under 'mean'.",
                "Give each label a name of its own.",
            )
        seen.add(name)


def require_same_grid(prediction: sitk.Image | Grid, reference: sitk.Image | Grid) -> None:
    """Raise :class:`BadInput` unless both have their voxels at the same places.

    Sizes are equal, and corresponding corners agree up to :data:`GRID_TOLERANCE`.
    """
    ours, theirs = (g if isinstance(g, Grid) else Grid.of(g) for g in (prediction, reference))
    remedy = "Resample the prediction to the reference's grid with nearest-neighbour interpolation, then compare."
    if ours.dimension != theirs.dimension:
        raise BadInput(f"The prediction is {ours.dimension}-D and the reference {theirs.dimension}-D.", "", remedy)
    if ours.size != theirs.size:
        raise BadInput(
            f"The prediction has {_text(ours.size)} voxels and the reference {_text(theirs.size)}.",
            "They were drawn on different images, or one was cropped.",
            remedy,
        )
    if not same_grid(theirs, ours, GRID_TOLERANCE):
        gap = float(np.linalg.norm(ours.corners() - theirs.corners(), axis=1).max())
        raise BadInput(
            f"Prediction and reference are on different grids: {_difference(ours, theirs)}.",
            f"Their voxels are up to {gap:.3g} mm apart, and at most {GRID_TOLERANCE:.0%} of a voxel is allowed.",
            remedy,
        )


def label_array(image: sitk.Image, name: str) -> npt.NDArray[Any]:
    """The labels of an image, shape (z, y, x) or (y, x), as whole numbers from 0; not a copy where none is needed.

    Args:
        image: any scalar pixel type; floats must be whole numbers up to rounding, as some tools store labels so.
        name: what to call it in an error.

    Raises:
        BadInput: not 2-D or 3-D, several components, fractions, NaN, or negative numbers.
    """
    if image.GetDimension() not in (2, 3) or image.GetNumberOfComponentsPerPixel() != 1:
        parts = image.GetNumberOfComponentsPerPixel()
        raise BadInput(
            f"The {name} is not a label image: it is {image.GetDimension()}-D with {parts} value(s) a voxel.",
            "A label image is 2-D or 3-D with one whole number a voxel.",
            "Give a label map, not a colour picture, a time series or a vector field.",
        )
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind == "f":
        rounded = np.rint(array)
        with np.errstate(invalid="ignore"):  # infinity minus infinity is no whole number either
            wrong = int(np.count_nonzero(~(np.abs(array - rounded) < 1e-3)))
        if wrong:
            raise BadInput(
                f"The {name} is not a label image: {wrong} voxels are not whole numbers.",
                "It may be the image itself, or a probability map.",
                "Give the label map that goes with it.",
            )
        array = rounded.astype(np.int64)
    if array.size and int(array.min()) < 0:
        raise BadInput(
            f"The {name} has negative labels (down to {int(array.min())}).",
            "Labels are whole numbers from 0, which is background.",
            "Give the label map, not the image.",
        )
    return array


@dataclasses.dataclass(frozen=True, eq=False)
class _Labels:
    """A label array and where in it each label is."""

    array: npt.NDArray[Any]

    @functools.cached_property
    def boxes(self) -> dict[int, Box]:
        return _boxes(self.array)

    def box(self, value: int) -> Box | None:
        return tuple(slice(0, n) for n in self.array.shape) if value == 0 else self.boxes.get(value)


def _compare_masks(
    prediction: Mask, reference: Mask, spacing: Sequence[float], ml: float, voxels: int, tolerance_mm: float
) -> dict[str, float]:
    """Metrics of two masks of one shape, which may be cropped from an image of `voxels` voxels of `ml` each.

    `spacing` is in the order of the masks' axes.
    """
    p, r = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    tp = int(np.count_nonzero(prediction & reference))
    fp, fn, tn = p - tp, r - tp, voxels - p - r + tp
    one_empty = (p == 0) != (r == 0)
    dice = _ratio(2 * tp, p + r)
    surfaces = surface_distances(prediction, reference, spacing)
    return {
        "dice": dice,
        "jaccard": _ratio(tp, p + r - tp),
        "precision": 0.0 if one_empty else _ratio(tp, p),
        "recall": 0.0 if one_empty else _ratio(tp, r),
        "specificity": _ratio(tn, tn + fp),
        "accuracy": _ratio(tp + tn, voxels),
        "f1": dice,
        "volume_similarity": 1.0 - _ratio(abs(p - r), p + r),
        "surface_dice": surfaces.dice(tolerance_mm),
        "hausdorff": surfaces.hausdorff(),
        "hausdorff95": surfaces.percentile(95.0),
        "assd": surfaces.average(),
        "volume_prediction_ml": p * ml,
        "volume_reference_ml": r * ml,
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
    }


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else math.nan


def _plane(shape: tuple[int, ...], spacing: Sequence[float]) -> tuple[tuple[int | slice, ...], list[float]]:
    """What takes the 2-D picture out of a 3-D array with one axis of length 1, and the spacing in array order."""
    steps = list(reversed(spacing))
    if len(shape) != 3 or shape.count(1) != 1:
        return (slice(None),) * len(shape), steps
    thin = shape.index(1)
    return tuple(0 if axis == thin else slice(None) for axis in range(3)), steps[:thin] + steps[thin + 1 :]


def _boxes(labels: npt.NDArray[Any]) -> dict[int, Box]:
    """The bounding box of each label other than 0 that occurs, found in one pass over the image."""
    if labels.size == 0 or int(labels.max()) <= _MANY:
        return {value: box for value, box in enumerate(ndimage.find_objects(labels), start=1) if box is not None}
    occurring, compact = np.unique(labels, return_inverse=True)
    found = ndimage.find_objects(compact.reshape(labels.shape) + 1)
    return {int(value): box for value, box in zip(occurring, found, strict=True) if value != 0}


def _union(boxes: Sequence[Box | None], ndim: int) -> Box:
    """The smallest box around all; an absent one has no voxels, and where all are absent there are none."""
    there = [box for box in boxes if box is not None]
    if not there:
        return (slice(0, 0),) * ndim
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*there, strict=True))


def _text(size: Sequence[float]) -> str:
    return " x ".join(f"{n:.6g}" for n in size)


def _difference(ours: Grid, theirs: Grid) -> str:
    """The property in which two grids of one size differ most plainly, in words."""
    if not np.allclose(ours.spacing, theirs.spacing, rtol=1e-4, atol=0):
        return f"spacing {_text(ours.spacing)} mm and {_text(theirs.spacing)} mm"
    if not np.allclose(ours.direction, theirs.direction, rtol=0, atol=1e-4):
        return "the axes point in different directions"
    return "origin {} and {} mm".format(*(f"({', '.join(f'{x:.6g}' for x in g.origin)})" for g in (ours, theirs)))

"""The classical methods by name, on images in memory.

Example::

    result = segment_classical(image, "otsu")
    result = segment_classical(image, "graph-cut", seeds=scribbles, smoothness=4)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

from ..errors import BadInput
from ..geometry import Grid, from_array
from ..progress import Progress
from . import graph_cut, level_sets, voxel_features
from . import seeds as seed_files
from .forest import Forest
from .requests import METHODS
from .seeds import Seeds

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, eq=False)
class Classical:
    """What a method found.

    Attributes:
        labels: on the image's grid, uint8.
        names: of the labels 1, 2 ...
        figures: what the method tells of itself, plain values.
        warnings: sentences.
    """

    labels: sitk.Image
    names: tuple[str, ...]
    figures: dict[str, Any]
    warnings: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the methods; see :class:`MLILib.classical.requests.ClassicalRequest` for each."""

    side: str = "bright"
    levels: int = 2
    range: tuple[float, ...] = ()
    multiplier: float = 2.5
    rounds: int = 4
    iterations: int = 500
    start_radius: float = 3.0
    edge_width: float = 1.0
    balloon: float = 1.0
    curvature: float = 0.5
    smoothness: float = 4.0
    connected_only: bool = True
    trees: int = 100
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """What a method gets: the image as float32 and as an array, where to look, seeds, settings, examples."""

    image: sitk.Image
    values: npt.NDArray[np.float32]
    where: Mask | None
    seeds: Seeds | None
    options: Options
    examples: Sequence[tuple[sitk.Image, sitk.Image]]
    progress: Progress

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm along the array's axes."""
        return tuple(float(x) for x in self.image.GetSpacing()[::-1])

    @property
    def scribbles(self) -> Seeds:
        """The seeds, where a method has them for certain."""
        assert self.seeds is not None
        return self.seeds


_Found = tuple[npt.NDArray[np.uint8], tuple[str, ...], dict[str, Any]]


def segment_classical(
    image: sitk.Image,
    method: str,
    *,
    seeds: Seeds | sitk.Image | None = None,
    background: int = 0,
    mask: sitk.Image | None = None,
    smooth: float = 0.0,
    keep_largest: bool = False,
    examples: Sequence[tuple[sitk.Image, sitk.Image]] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> Classical:
    """Segment an image without a model.

    Args:
        image: scalar, 2-D or 3-D.
        method: one of :data:`MLILib.classical.requests.METHODS`.
        seeds: scribbles on the image's grid, as read by :mod:`MLILib.classical.seeds` or as a label image.
        background: value of a label image's scribbles that mark background.
        mask: on the image's grid; outside of it nothing is labelled.
        smooth: width of a Gaussian filter before all else, mm.
        keep_largest: keep only the largest component of each label.
        examples: images with their label maps, for random-forest.
        progress: told of stages and fractions.
        settings: those of :class:`Options`.

    Raises:
        BadInput: seeds that a method needs are missing, or nothing can be found.
        MissingPackage: random-forest without scikit-learn.
    """
    if method not in METHODS:
        raise BadInput(f"There is no method {method!r}.", "", f"Choose one of: {', '.join(METHODS)}.")
    options = Options(**settings)
    if isinstance(seeds, sitk.Image):
        seeds = seed_files.of_image(seeds, background)
    needs = METHODS[method][1]
    learns = method == "random-forest" and bool(examples)
    if seeds is not None and needs:
        seeds.require(both=needs == "both")
    elif needs in ("inside", "both") and not learns:
        raise BadInput(f"The method {method} has no seeds.", METHODS[method][0], "Give scribbles.")
    picture = sitk.Cast(image, sitk.sitkFloat32)
    if smooth > 0:
        picture = sitk.SmoothingRecursiveGaussian(picture, smooth)
    values = sitk.GetArrayFromImage(picture)
    where = None if mask is None else sitk.GetArrayFromImage(mask) != 0
    counted = values if where is None else values[where]
    if not counted.size or counted.min() == counted.max():
        raise BadInput("The image has one intensity wherever it is looked at.", "", "Check the image and the mask.")
    job = _Job(picture, values, where, seeds, options, examples, progress or Progress())
    labels, names, figures = _RUN[method](job)
    if where is not None:
        labels[~where] = 0
    if keep_largest:
        labels = _largest(labels)
    warnings = [f"Nothing was labelled {name}." for n, name in enumerate(names, 1) if not (labels == n).any()]
    if figures.get("settled") is False:
        warnings.append(
            f"The surface was still moving after {figures['iterations']} iterations: look at it, or allow more."
        )
    return Classical(from_array(labels, Grid.of(image)), names, figures, warnings)


def _otsu(job: _Job) -> _Found:
    (threshold,) = _thresholds(job, 1)
    bright = job.values > threshold
    found = bright if job.options.side == "bright" else ~bright
    return found.astype(np.uint8), (job.options.side.capitalize(),), {"thresholds": [threshold]}


def _multi_otsu(job: _Job) -> _Found:
    found = _thresholds(job, job.options.levels)
    labels = np.searchsorted(np.array(found), job.values, side="left").astype(np.uint8)
    names = tuple(f"Level {n}" for n in range(1, job.options.levels + 1))
    return labels, names, {"thresholds": found}


def _thresholds(job: _Job, count: int) -> list[float]:
    """Otsu's thresholds of the intensities inside the mask; more than one by SimpleITK's fast search."""
    values = job.values if job.where is None else job.values[job.where]
    line = sitk.GetImageFromArray(values.reshape(1, -1))
    if count == 1:
        single = sitk.OtsuThresholdImageFilter()
        single.SetNumberOfHistogramBins(256)
        single.Execute(line)
        return [float(single.GetThreshold())]
    several = sitk.OtsuMultipleThresholdsImageFilter()
    several.SetNumberOfThresholds(count)
    several.SetNumberOfHistogramBins(256 if count < 4 else 64 if count < 6 else 32)
    several.Execute(line)
    return [float(x) for x in several.GetThresholds()]


def _connected(job: _Job) -> _Found:
    low, high = job.options.range
    labels = np.zeros(job.values.shape, np.uint8)
    for n, start in enumerate(_starts(job), 1):
        grown = sitk.GetArrayFromImage(sitk.ConnectedThreshold(_masked(job, low), start, lower=low, upper=high))
        labels[(grown != 0) & (labels == 0)] = n
    return labels, job.scribbles.names, {"range": [low, high]}


def _masked(job: _Job, low: float) -> sitk.Image:
    """The image, below the range outside the mask, so that regions do not grow through there."""
    if job.where is None:
        return job.image
    return from_array(np.where(job.where, job.values, np.float32(low - max(1.0, abs(low)))), job.image)


def _confidence(job: _Job) -> _Found:
    labels = np.zeros(job.values.shape, np.uint8)
    outside = float(job.values.min()) - 10 * float(np.ptp(job.values))
    picture = job.image if job.where is None else from_array(np.where(job.where, job.values, outside), job.image)
    regions = []
    for n, start in enumerate(_starts(job), 1):
        grower = sitk.ConfidenceConnectedImageFilter()
        grower.SetSeedList(start)
        grower.SetMultiplier(job.options.multiplier)
        grower.SetNumberOfIterations(job.options.rounds)
        grower.SetInitialNeighborhoodRadius(1)
        grown = sitk.GetArrayFromImage(grower.Execute(sitk.Cast(picture, sitk.sitkFloat32)))
        labels[(grown != 0) & (labels == 0)] = n
        regions.append({"mean": float(grower.GetMean()), "sd": float(np.sqrt(grower.GetVariance()))})
    return labels, job.scribbles.names, {"regions": regions}


def _starts(job: _Job) -> list[list[list[int]]]:
    """The voxels (x, y, z) of each object's seeds."""
    found = []
    for n in range(1, len(job.scribbles.names) + 1):
        there = job.scribbles.values == n
        there = there if job.where is None else there & job.where
        if not there.any():
            raise BadInput(
                f"No seed of {job.scribbles.names[n - 1]} lies inside the mask.", "", "Move it, or the mask."
            )
        found.append([[int(i) for i in place[::-1]] for place in np.argwhere(there)])
    return found


def _geodesic(job: _Job) -> _Found:
    labels = np.zeros(job.values.shape, np.uint8)
    spent, settled = 0, True
    options = job.options
    for n in range(1, len(job.scribbles.names) + 1):
        start = from_array((job.scribbles.values == n).astype(np.uint8), job.image)
        found = level_sets.geodesic(
            job.image,
            level_sets.around(start, options.start_radius),
            edge_width=options.edge_width,
            balloon=options.balloon,
            curvature=options.curvature,
            iterations=options.iterations,
            fraction=job.progress.fraction,
        )
        labels[(sitk.GetArrayFromImage(found.inside) != 0) & (labels == 0)] = n
        spent, settled = max(spent, found.iterations), settled and found.settled
    return labels, job.scribbles.names, {"iterations": spent, "settled": settled}


def _chan_vese(job: _Job) -> _Found:
    options = job.options
    if job.seeds is None:
        bright = _otsu(dataclasses.replace(job, options=dataclasses.replace(options, side="bright")))[0]
        start = from_array(bright, job.image)
        name, side = options.side.capitalize(), options.side
    else:
        if len(job.seeds.names) > 1:
            raise BadInput("Chan-Vese parts the image into two.", "Seeds of several objects were given.", "Give one.")
        drawn = from_array((job.seeds.values > 0).astype(np.uint8), job.image)
        start = level_sets.around(drawn, options.start_radius)
        inside = job.values[job.seeds.values > 0].mean()
        name, side = job.seeds.names[0], "bright" if inside > np.median(job.values) else "dark"
    found = level_sets.chan_vese(
        job.image, start, side=side, border=options.curvature, iterations=options.iterations, where=job.where
    )
    figures = {"iterations": found.iterations, "settled": found.settled}
    return sitk.GetArrayFromImage(found.inside), (name,), figures


def _graph_cut(job: _Job) -> _Found:
    labels, cuts = graph_cut.segment(
        job.values,
        job.spacing,
        job.scribbles.values,
        job.scribbles.background,
        smoothness=job.options.smoothness,
        where=job.where,
        fraction=job.progress.fraction,
    )
    figures = {"cuts": [{"energy": cut.energy, "flow": cut.flow} for cut in cuts]}
    return _reached(labels, job), job.scribbles.names, figures


def _forest(job: _Job) -> _Found:
    forest = Forest(job.options.trees, job.options.seed)
    own = voxel_features.features(job.values, job.spacing)
    if job.seeds is not None:
        known = np.where(job.seeds.background, 0, -1).astype(np.int64)
        known[job.seeds.values > 0] = job.seeds.values[job.seeds.values > 0]
        forest.show(own, known.ravel())
        names = job.seeds.names
    else:
        most = 0
        for i, (image, labels) in enumerate(job.examples):
            if image.GetDimension() != job.image.GetDimension():
                raise BadInput("An example has another dimension than the image.", "", "Give examples like the image.")
            drawn = sitk.GetArrayFromImage(labels).astype(np.int64)
            most = max(most, int(drawn.max()))
            spacing = image.GetSpacing()[::-1]
            array = sitk.GetArrayFromImage(image).astype(np.float32)
            forest.show(voxel_features.features(array, spacing), drawn.ravel())
            job.progress.fraction(0.5 * (i + 1) / len(job.examples))
        if not 0 < most < 256:
            raise BadInput("The examples' label maps have no labels from 1 to 255.", "", "Give label maps.")
        names = tuple(f"Segment {n}" for n in range(1, most + 1))
    forest.learn(even=job.seeds is not None)
    labels_found = forest.labels(own, lambda done: job.progress.fraction(0.5 + 0.5 * done))
    told = forest.importance(voxel_features.names(job.values.ndim))
    figures = {"trees": job.options.trees, "importance": dict(list(told.items())[:8])}
    return _reached(labels_found.reshape(job.values.shape), job), names, figures


def _reached(labels: npt.NDArray[np.uint8], job: _Job) -> npt.NDArray[np.uint8]:
    """The parts of each label that hold a seed of it, where only those are wanted; neighbours share a face."""
    if job.seeds is None or not job.options.connected_only:
        return labels
    out = np.zeros_like(labels)
    for n in range(1, len(job.seeds.names) + 1):
        parts, count = ndimage.label(labels == n)
        held = np.zeros(count + 1, bool)
        held[parts[job.seeds.values == n]] = True
        held[0] = False
        out[held[parts]] = n
    return out


def _largest(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    out = np.zeros_like(labels)
    for n in range(1, int(labels.max()) + 1):
        parts = sitk.GetArrayFromImage(
            sitk.ConnectedComponent(sitk.GetImageFromArray((labels == n).astype(np.uint8)), True)
        )
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        if sizes.any():
            out[parts == sizes.argmax()] = n
    return out


_RUN = {
    "otsu": _otsu,
    "multi-otsu": _multi_otsu,
    "connected": _connected,
    "confidence": _confidence,
    "geodesic": _geodesic,
    "chan-vese": _chan_vese,
    "graph-cut": _graph_cut,
    "random-forest": _forest,
}

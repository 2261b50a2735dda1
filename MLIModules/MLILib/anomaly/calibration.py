"""What normal images kept aside score, so that a threshold has a stated false-positive rate.

Voxels are scored as they will be: in whole volumes, in overlapping windows, after the median filter of the findings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch

from ..progress import Progress
from . import dataset, findings, intensity, planes, scoring, sources
from .requests import METHODS_OF, TrainAnomalyRequest

#: Percentiles that are kept: fine where thresholds are.
PERCENTILES = tuple(
    float(p) for p in np.unique(np.round([*range(90), *np.arange(90, 99, 0.25), *np.arange(99, 100.001, 0.02)], 2))
)
#: Side (voxels) of the median filter that voxels are scored after.
MEDIAN = 3
#: Volumes that voxels are taken from, at most.
_VOLUMES = 4


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Scores of normal images kept aside, by one method, at :data:`PERCENTILES`; empty where there were none.

    Attributes:
        voxels: of pixels or voxels.
        images: of images, or of slices of volumes.
        count: of the images or slices.
    """

    voxels: tuple[float, ...] = ()
    images: tuple[float, ...] = ()
    count: int = 0

    @classmethod
    def of(cls, voxels: npt.ArrayLike, images: npt.ArrayLike) -> Self:
        """The percentiles of scores."""
        scores = np.asarray(images, np.float64)
        scores = scores[np.isfinite(scores)]
        return cls(_percentiles(np.asarray(voxels)), _percentiles(scores), len(scores))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What :func:`dataclasses.asdict` described."""
        return cls(tuple(float(v) for v in data["voxels"]), tuple(float(v) for v in data["images"]), int(data["count"]))

    def voxel_threshold(self, percentile: float) -> float:
        """The score that `percentile` of a hundred normal voxels stay below."""
        return float(np.interp(percentile, PERCENTILES, self.voxels))

    def image_threshold(self, percentile: float) -> float:
        """The same of images (or slices)."""
        return float(np.interp(percentile, PERCENTILES, self.images))


def _percentiles(values: npt.NDArray[Any]) -> tuple[float, ...]:
    if not values.size:
        return ()
    return tuple(float(v) for v in np.percentile(values, PERCENTILES))


def standards(scorer: scoring.Scorer, x: torch.Tensor, batch: int = 64) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each term on images kept aside, and root mean squares of pixels.

    Args:
        scorer: of any method; only its model is asked.
        x: (n, 1, size, size).
    """
    with torch.inference_mode():
        every = [(part, scorer.model.terms(part.to(scorer.device))) for part in x.split(batch)]
    out: dict[str, tuple[float, float]] = {}
    for name in every[0][1].numbers():
        values = torch.cat([terms.numbers()[name] for _, terms in every]).double()
        spread = float(values.std()) if len(values) > 1 else 0.0
        out[name] = (float(values.mean()), max(spread, 1e-6 * (1.0 + abs(float(values.mean())))))
    body = [part > -1.0 for part, _ in every]
    shown = torch.cat([part[b] for (part, _), b in zip(every, body, strict=True)]).double()
    out["intensity"] = (0.0, max(float(shown.square().mean().sqrt()), 1e-6))
    if every[0][1].again is not None:
        apart = [
            (part - terms.again.cpu())[b]
            for (part, terms), b in zip(every, body, strict=True)
            if terms.again is not None
        ]
        out["pixel"] = (0.0, max(float(torch.cat(apart).double().square().mean().sqrt()), 1e-6))
    return out


def calibrate(
    request: TrainAnomalyRequest,
    source: sources.Source,
    make: Any,
    methods: Sequence[str],
    progress: Progress,
) -> dict[str, Calibration]:
    """The calibration of each method.

    Args:
        request: of the training; its volumes are read again.
        source: of the images.
        make: gives a method's :class:`.scoring.Scorer`.
        methods: those to calibrate; AnoGAN's only on as many images as the request says.
        progress: told how much is done.
    """
    progress.stage("Scoring normal images kept aside")
    fast = [m for m in methods if not m.startswith("anogan")]
    out: dict[str, Calibration] = {}
    if source.geometry.kind == "images":
        for i, method in enumerate(methods):
            count = request.search_images if method.startswith("anogan") else len(source.validation)
            if count:
                parts = [make(method).images(part) for part in source.validation[:count].split(64)]
                pixels = torch.cat([part.map for part in parts]).cpu().numpy()
                out[method] = Calibration.of(pixels, torch.cat([part.score for part in parts]).cpu().numpy())
            progress.fraction((i + 1) / len(methods))
        return out
    voxels: dict[str, list[npt.NDArray[Any]]] = {m: [] for m in fast}
    slices: dict[str, list[npt.NDArray[Any]]] = {m: [] for m in fast}
    chosen = _volumes(request)
    for i, (case, whole) in enumerate(chosen):
        image = dataset.read_volume(case.image)
        turned = planes.oriented(image)
        inside = sources.mask_on(case.foreground, image) if case.foreground else intensity.foreground(turned.array)
        free = ~sources.left_out_of(case, image, turned.spacing)
        every = scoring.volume_scores([make(method) for method in fast], turned, inside) if fast else []
        for method, found in zip(fast, every, strict=True):
            held = _held(found, turned, source.geometry, request, whole)
            smooth = sitk.GetArrayFromImage(findings.smoothed(sitk.GetImageFromArray(found.map), MEDIAN))
            voxels[method].append(smooth[inside & free & held])
            axis = planes.NORMAL[found.plane]
            others = tuple(a for a in range(3) if a != axis)
            clean = held.any(axis=others) & free.all(axis=others) & np.isfinite(found.slices)
            slices[method].append(found.slices[clean])
        progress.fraction((i + 1) / len(chosen))
    for method in fast:
        out[method] = Calibration.of(np.concatenate(voxels[method]), np.concatenate(slices[method]))
    return out


def _volumes(request: TrainAnomalyRequest) -> list[tuple[dataset.Case, bool]]:
    """Cases to take normal voxels from, and whether they are kept aside whole."""
    cases = dataset.read_cases(request.dataset, request.channel)
    aside = sources.cases_aside(len(cases), request)
    if aside:
        return [(cases[i], True) for i in sorted(aside)][:_VOLUMES]
    return [(case, False) for case in cases[:_VOLUMES]]


def _held(
    found: scoring.VolumeScores,
    turned: planes.Oriented,
    geometry: sources.Geometry,
    request: TrainAnomalyRequest,
    whole: bool,
) -> npt.NDArray[np.bool_]:
    """Which voxels were kept aside, (z, y, x)."""
    shape = found.map.shape
    if whole:
        return np.ones(shape, bool)
    axis = planes.NORMAL.get(geometry.plane, 0)
    line = sources.slab(shape[axis], turned.spacing[axis], request.validation)
    if not (line & found.inside.any(axis=tuple(a for a in range(3) if a != axis))).any():
        line[:] = True
    out = np.zeros(shape, bool)
    np.moveaxis(out, axis, 0)[line] = True
    return out


def methods_of(request: TrainAnomalyRequest) -> tuple[str, ...]:
    """The methods that a model of this request can score with."""
    return METHODS_OF[request.model]

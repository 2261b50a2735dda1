"""Scores of a trained model: of images, and maps of planes and volumes from overlapping windows.

Terms of different units are brought together by what they are on normal images that were kept aside: each is measured
in standard deviations from its mean there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import Tensor

from ..segmentation.sliding_window import Tiling, sliding_window
from . import intensity, planes, sources
from .models import NormalModel, Terms
from .search import search
from .sources import Geometry

Floats = npt.NDArray[np.float32]

#: Terms that the combined score of images adds up, where the kind has them.
COMBINED = ("residual", "features", "code", "critic", "elbo")
#: Share of a slice's (or volume's) foreground with the highest scores, whose mean is the slice's (the volume's) score.
TOP = 0.01
#: Windows whose foreground is smaller than this share are not looked at.
_EMPTY = 0.002


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """What a bundle knows beside its weights.

    Attributes:
        geometry: of the images.
        kappa: weight of the feature residual.
        tail: "both", "bright" or "dark": the departures that a combined map counts.
        smooth: standard deviation (mm) of the Gaussian over maps of volumes.
        standards: mean and standard deviation of each term on normal images kept aside, and root mean squares of a
            pixel's residual ("pixel") and of its intensity ("intensity").
    """

    geometry: Geometry
    kappa: float = 1.0
    tail: str = "both"
    smooth: float = 0.0
    standards: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return json_values(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What :meth:`to_json` described."""
        said = dict(data["geometry"])
        said["shape"] = (int(said["shape"][0]), int(said["shape"][1]))
        standards = {name: (float(a), float(b)) for name, (a, b) in data["standards"].items()}
        return cls(Geometry(**said), float(data["kappa"]), str(data["tail"]), float(data["smooth"]), standards)


def json_values(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, Mapping):
        return {k: json_values(v) for k, v in value.items()}
    return [json_values(v) for v in value] if isinstance(value, list | tuple) else value


@dataclasses.dataclass(frozen=True)
class Search:
    """How AnoGAN searches; see :func:`.search.search`."""

    steps: int = 500
    rate: float = 0.02
    weight: float = 0.1
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a batch of images got: maps and reconstructions (n, 1, size, size), scores (n,)."""

    map: Tensor
    again: Tensor
    score: Tensor


class Scorer:
    """A model with what it knows, ready to score.

    Args:
        model: in evaluation mode.
        knowledge: of its bundle.
        method: one of :data:`MLILib.anomaly.requests.METHODS` that the model's kind has.
        device: where the model is.
        how: AnoGAN's search.
        tick: called now and then, to notice cancellation.
    """

    def __init__(
        self,
        model: NormalModel,
        knowledge: Knowledge,
        method: str,
        device: torch.device,
        how: Search | None = None,
        tick: Callable[[], None] | None = None,
    ) -> None:
        self.model, self.knowledge, self.method, self.device = model, knowledge, method, device
        self._how = how or Search()
        self._tick = tick

    def images(self, x: Tensor) -> Scored:
        """Score normalised images (n, 1, size, size)."""
        return self.of(x.to(self.device), self.terms(x))

    def terms(self, x: Tensor) -> Terms:
        """What one pass of the networks gives; nothing where a search is needed instead."""
        if self._tick is not None:
            self._tick()
        if self.method.startswith("anogan"):
            return Terms()
        with torch.inference_mode():
            return self.model.terms(x.to(self.device))

    def of(self, x: Tensor, terms: Terms) -> Scored:
        """Score images on the device whose terms are known already."""
        if self.method.startswith("anogan"):
            how = self._how
            with torch.inference_mode(False):
                found = search(
                    self.model,
                    x.clone(),
                    steps=how.steps,
                    rate=how.rate,
                    weight=how.weight,
                    cross_entropy=self.method == "anogan-ce",
                    seed=how.seed,
                    tick=self._tick,
                )
            return Scored((x - found.again).abs(), found.again, found.score)
        with torch.inference_mode():
            again = x if terms.again is None else terms.again
            numbers = terms.numbers()
            if self.method == "combined":
                return Scored(self._combined_map(x, again), again, self.combined(numbers))
            residual = (x - again).abs()
            if self.method == "critic":
                return Scored(numbers["critic"].view(-1, 1, 1, 1).expand_as(x), again, numbers["critic"])
            if self.method == "likelihood":
                squares = 0.5 * ((x - again) * torch.exp(-self.model.log_scale)) ** 2
                return Scored(squares, again, numbers["elbo"])
            if self.method == "fanogan":
                return Scored(residual, again, numbers["residual"] + self.knowledge.kappa * numbers["features"])
            return Scored(residual, again, numbers["residual"])

    def combined(self, numbers: Mapping[str, Tensor]) -> Tensor:
        """Mean of the standardised terms, (n,)."""
        parts = []
        for name in COMBINED:
            if name in numbers and name in self.knowledge.standards:
                mean, spread = self.knowledge.standards[name]
                parts.append((numbers[name] - mean) / spread)
        return torch.stack(parts).mean(dim=0)

    def _combined_map(self, x: Tensor, again: Tensor) -> Tensor:
        """The residual in its spread on normal images; towards one tail, with the intensity itself in its own."""
        residual = (x - again) / self.knowledge.standards["pixel"][1]
        if self.knowledge.tail == "both":
            return residual.abs()
        sign = 1.0 if self.knowledge.tail == "bright" else -1.0
        return sign * (residual + x / self.knowledge.standards["intensity"][1])


def stack_scores(
    scorer: Scorer, stack: npt.NDArray[Any], *, batch: int = 64, fraction: Callable[[float], None] | None = None
) -> tuple[Floats, Floats, npt.NDArray[np.float64]]:
    """Maps, reconstructions (on the normalised scale) and scores of 2-D images (n, h, w).

    Returns:
        (n, h, w), (n, h, w), (n,)
    """
    shape = (int(stack.shape[1]), int(stack.shape[2]))
    maps, agains, scores = [], [], []
    for first in range(0, len(stack), batch):
        normal = intensity.normalise_images(stack[first : first + batch])
        x = torch.from_numpy(sources.fitted(normal, scorer.knowledge.geometry.size))[:, None]
        found = scorer.images(x)
        maps.append(sources.unfitted(found.map[:, 0].float().cpu().numpy(), shape))
        agains.append(sources.unfitted(found.again[:, 0].float().cpu().numpy(), shape))
        scores.append(found.score.double().cpu().numpy())
        if fraction is not None:
            fraction(min(1.0, (first + batch) / len(stack)))
    return np.concatenate(maps), np.concatenate(agains), np.concatenate(scores)


@dataclasses.dataclass(frozen=True)
class VolumeScores:
    """What a volume got, (z, y, x) in the order of :func:`.planes.oriented`.

    Attributes:
        map: float32; the least value inside the foreground stands outside it.
        again: reconstruction on the normalised scale, -1 outside.
        normal: the volume on that scale.
        inside: foreground.
        plane: whose slices `slices` are.
        slices: mean of the highest :data:`TOP` of each slice's map inside, nan where there is no foreground.
        score: the same of the whole volume.
    """

    map: Floats
    again: Floats
    normal: Floats
    inside: npt.NDArray[np.bool_]
    plane: str
    slices: npt.NDArray[np.float64]
    score: float


def volume_scores(
    scorers: Sequence[Scorer],
    turned: planes.Oriented,
    inside: npt.NDArray[np.bool_],
    *,
    overlap: float = 0.25,
    batch: int = 64,
    fraction: Callable[[float], None] | None = None,
) -> list[VolumeScores]:
    """Score a volume in windows that overlap and are averaged with Gaussian weights, over the model's planes.

    Args:
        scorers: of one model of slices or patches, by several methods that share the networks' pass.
        turned: the volume.
        inside: its foreground, (z, y, x).
        overlap: share of a window that its neighbours share.
        batch: windows at a time.
        fraction: told how much is done.

    Returns:
        One for each scorer.
    """
    known = scorers[0].knowledge
    normal = intensity.normalise_volume(turned.array, inside)
    names = known.geometry.planes()
    total = np.zeros((len(scorers) + 1, *normal.shape), np.float32)
    for i, plane in enumerate(names):

        def part(value: float, i: int = i) -> None:
            if fraction is not None:
                fraction((i + value) / len(names))

        found = _plane_scores(scorers, normal, inside, turned.spacing, plane, overlap, batch, part)
        total += np.moveaxis(found, 1, 1 + planes.NORMAL[plane]) / len(names)
    again = np.where(inside, total[-1], np.float32(-1.0))
    out = []
    for values in total[:-1]:
        if known.smooth > 0:
            values = _smoothed(values, inside, [known.smooth / s for s in turned.spacing])
        values[~inside] = values[inside].min()
        pairs = zip(planes.across(values, names[0]), planes.across(inside, names[0]), strict=True)
        slices = np.array([top_mean(m, f) for m, f in pairs])
        out.append(VolumeScores(values, again, normal, inside, names[0], slices, top_mean(values, inside)))
    return out


def _plane_scores(
    scorers: Sequence[Scorer],
    normal: Floats,
    inside: npt.NDArray[np.bool_],
    spacing: tuple[float, float, float],
    plane: str,
    overlap: float,
    batch: int,
    fraction: Callable[[float], None],
) -> Floats:
    """Maps by each scorer and the reconstruction, (scorers + 1, plane, row, column), of all slices of one plane."""
    geometry = scorers[0].knowledge.geometry
    stack, mask = planes.across(normal, plane), planes.across(inside, plane)
    shape = planes.resampled_shape(stack.shape[1], stack.shape[2], planes.pixel(spacing, plane), geometry.pixel)
    small, small_mask = planes.resampled(stack, shape), planes.resampled(mask, shape)
    # Windows cover the foreground's box, which grows to a whole window around its middle where it is smaller.
    take = [slice(*sources.box(mask, 0))]
    pad = [(0, 0)]
    for axis in (1, 2):
        # The box of the unresampled mask, as slices were taken in training.
        first, stop = sources.box(mask, axis)
        scale = shape[axis - 1] / stack.shape[axis]
        middle, length = (first + stop) / 2 * scale, max(geometry.size, math.ceil((stop - first) * scale))
        begin = round(middle - length / 2)
        end = begin + length
        take.append(slice(max(0, begin), min(shape[axis - 1], end)))
        pad.append((max(0, -begin), max(0, end - shape[axis - 1])))
    cut = np.pad(small[tuple(take)], pad, constant_values=-1.0)
    cut_mask = np.pad(small_mask[tuple(take)], pad)
    tiling = Tiling((1, geometry.size, geometry.size), (0.0, overlap, overlap))
    image = torch.from_numpy(np.stack([cut, cut_mask]))
    count, done = tiling.count(cut.shape), 0

    def tell(windows: int) -> None:
        nonlocal done
        done += windows
        fraction(done / count)

    def predict(windows: Tensor) -> Tensor:
        x, share = windows[:, :1, 0], windows[:, 1, 0].mean(dim=(1, 2))
        out = torch.zeros(len(x), len(scorers) + 1, *x.shape[2:])
        out[:, -1] = x[:, 0]
        busy = share > _EMPTY
        if bool(busy.any()):
            seen = x[busy].to(scorers[0].device)
            terms = scorers[0].terms(seen)
            found = [scorer.of(seen, terms) for scorer in scorers]
            out[busy] = torch.cat([*(f.map for f in found), found[0].again], dim=1).float().cpu()
        return out[:, :, None]

    found = sliding_window(image, predict, tiling, batch=batch, on_windows=tell).numpy()
    whole = np.zeros((len(found), *small.shape), np.float32)
    whole[-1] = small
    inner = tuple(slice(p[0], n - p[1]) for p, n in zip(pad, cut.shape, strict=True))
    whole[(slice(None), *take)] = found[(slice(None), *inner)]
    full = (int(stack.shape[1]), int(stack.shape[2]))
    return whole if shape == full else np.stack([planes.resampled(one, full) for one in whole])


def _smoothed(values: Floats, inside: npt.NDArray[np.bool_], sigma: list[float]) -> Floats:
    """A Gaussian that does not mix in what is outside."""
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    out: Floats = ndimage.gaussian_filter(np.where(inside, values, 0.0).astype(np.float32), sigma)
    return out / np.maximum(weight, 1e-6)


def top_mean(values: npt.NDArray[Any], inside: npt.NDArray[np.bool_], share: float = TOP) -> float:
    """Mean of the highest `share` of the values inside (at least one); nan where nothing is inside."""
    chosen = values[inside]
    if not len(chosen):
        return math.nan
    count = max(1, round(share * len(chosen)))
    return float(np.partition(chosen, len(chosen) - count)[-count:].mean(dtype=np.float64))


def oriented_mask(mask: sitk.Image) -> npt.NDArray[np.bool_]:
    """A mask image as an array in the order of :func:`.planes.oriented`."""
    return planes.oriented(mask).array != 0

"""Labels, probabilities and uncertainty on the input's grid, from one or several models, in bounded memory.

The result is made in slabs along one axis of the input. For each slab, each model's windows are computed as far as the
slab needs them, blended, turned into probabilities, brought back to the input's grid and averaged; what no later slab
needs is let go. Where even a slab's sums would be large (many classes, samples or flips), the image is cut into strips
that are done one after the other; windows across a cut are computed twice.

Uncertainty: with members m (models times dropout samples times mirror images; Gal and Ghahramani 2016,
Lakshminarayanan 2017, Wang 2019), mean probability P = mean p_m and H the entropy in nats, the predictive entropy is
H(P) and the mutual information H(P) - mean H(p_m), which is 0 when all members agree. Where labels may overlap, H is
the sum over the labels' own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import BadInput
from . import inversion
from .models import Model, dropout_layers
from .postprocessing import Postprocessing
from .preparation import Prepared
from .sliding_window import Box, Field, Tiling, accumulator_bytes
from .tiles import Setup

#: Bytes that the sums of overlapping windows may take before the image is cut into strips.
SUMS = 2 * 2**30
#: Bytes that a slab's probabilities may take on the input's grid (the interpolation works in double precision).
SLAB = 256 * 2**20
#: No strip is narrower than this many voxels.
NARROWEST = 16


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to compute.

    Attributes:
        flips: whether to average over mirror images, along the axes that each model was trained to be mirrored along.
        samples: Monte-Carlo dropout samples; 0 is off.
        seed: of them.
        probabilities, uncertainty: whether to keep those volumes.
        vote: whether models decide by majority rather than by their mean probability.
        weights: of the models in the mean or the vote, one each; () weighs all alike.
    """

    flips: bool = False
    samples: int = 0
    seed: int = 0
    probabilities: bool = False
    uncertainty: bool = False
    vote: bool = False
    weights: tuple[float, ...] = ()


@dataclasses.dataclass
class Prediction:
    """Arrays on the input's grid, indexed (z, y, x) or (y, x).

    Attributes:
        labels: channel numbers; or, where labels may overlap, one bit a channel.
        overlapping: whether `labels` are bits.
        probabilities: (..., label) float32 without the background, or None.
        entropy, mutual_information: float32 in nats, or None.
    """

    labels: np.ndarray
    overlapping: bool
    probabilities: np.ndarray | None = None
    entropy: np.ndarray | None = None
    mutual_information: np.ndarray | None = None


@dataclasses.dataclass
class Job:
    """One model and the image as it wants it."""

    model: Model
    prepared: Prepared
    post: Postprocessing

    def __post_init__(self) -> None:
        compose = self.model.preprocessing
        nearest = self.post.nearest
        self.chain = inversion.chain(self.prepared, compose, nearest=nearest and self.post.inverted != "label")
        self.label_chain = self.chain
        if self.post.inverted == "label" and nearest:
            self.label_chain = inversion.chain(self.prepared, compose, nearest=True)

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial shape of the prepared image."""
        return tuple(int(n) for n in self.prepared.image.shape[1:])


@torch.inference_mode()
def predict(
    jobs: Sequence[Job], setup: Setup, wanted: Wanted, on_fraction: Callable[[float], None] = lambda _: None
) -> Prediction:
    """Segment.

    Args:
        jobs: the models, all with the same labels, on one input grid.
        setup: windows and devices.
        wanted: what to compute.
        on_fraction: told how much is done, 0 to 1; may raise to stop.

    Returns:
        Arrays on the input's grid.
    """
    shape = jobs[0].prepared.shape  # (x, y[, z])
    out = _empty(jobs, wanted, shape)
    axis = _stream_axis(jobs[0])
    strips = _strips(jobs, setup, wanted, shape, axis)
    total = sum(
        _windows(job, tiling, strip) * passes(job.model, wanted)
        for strip in strips
        for job, tiling in zip(jobs, setup.tilings, strict=True)
    )
    done = 0

    def count(windows: int) -> None:
        nonlocal done
        done += windows
        on_fraction(done / max(total, 1))

    with _random(wanted, setup.device), _dropout(jobs, setup.device, wanted):
        for strip in strips:
            _predict_strip(jobs, setup, wanted, strip, axis, out, count)
    return out


def _predict_strip(
    jobs: Sequence[Job],
    setup: Setup,
    wanted: Wanted,
    strip: Box,
    axis: int,
    out: Prediction,
    on_windows: Callable[[int], None],
) -> None:
    slabs = _slabs(strip, axis, max(job.model.classes for job in jobs))
    order = sorted(slabs, key=lambda slab: jobs[0].chain.need(slab)[jobs[0].chain.axis(axis) or 0][0])
    sources = [_Source(job, setup, i, wanted, strip, axis, order, on_windows) for i, job in enumerate(jobs)]
    for position, slab in enumerate(order):
        _fill(out, slab, sources, wanted)
        for source in sources:
            source.release(position + 1)


def _fill(out: Prediction, slab: Box, sources: Sequence[_Source], wanted: Wanted) -> None:
    """Compute one slab and put it into the arrays."""
    post = sources[0].job.post
    on_own_grid = len(sources) == 1 and post.inverted == "label"
    if on_own_grid:
        _put(out.labels, slab, sources[0].labels(slab))
        if out.probabilities is None and out.entropy is None:
            return
    total: torch.Tensor | None = None
    votes: torch.Tensor | None = None
    inner: torch.Tensor | None = None
    weights = wanted.weights or (1.0,) * len(sources)
    for source, weight in zip(sources, weights, strict=True):
        own: torch.Tensor | None = None
        h_own: torch.Tensor | None = None
        for sample in range(source.samples):
            p = source.probability(slab, sample)
            own = p if own is None else own + p
            if wanted.uncertainty:
                h = entropy(p, post.decision)
                h_own = h if h_own is None else h_own + h
        assert own is not None
        own = own if source.samples == 1 else own / source.samples
        total = _added(total, own, weight)
        if h_own is not None:
            inner = _added(inner, h_own / source.samples, weight)
        if wanted.vote:
            votes = _added(votes, _ballot(own, post), weight)
    assert total is not None
    whole = sum(weights)
    mean = total if whole == 1 else total / whole
    if votes is not None and len(sources) > 1:
        _put(out.labels, slab, _elected(votes, mean, post, whole, 1e-4 if wanted.weights else 1.0))
    elif not on_own_grid:
        _put(out.labels, slab, post.decide(mean))
    if out.probabilities is not None:
        shown = mean[1:] if post.decision == "argmax" else mean
        for i, p in enumerate(shown):
            _put(out.probabilities[..., i], slab, p)
    if out.entropy is not None and inner is not None:
        h = entropy(mean, post.decision)
        _put(out.entropy, slab, h)
        if out.mutual_information is not None:
            _put(out.mutual_information, slab, (h - inner / whole).clamp_min(0))


def _added(total: torch.Tensor | None, value: torch.Tensor, weight: float) -> torch.Tensor:
    value = value if weight == 1 else value * weight
    return value if total is None else total + value


class _Source:
    """One model's outputs over a strip, read slab by slab on the input's grid."""

    def __init__(
        self,
        job: Job,
        setup: Setup,
        index: int,
        wanted: Wanted,
        strip: Box,
        axis: int,
        order: Sequence[Box],
        on_windows: Callable[[int], None],
    ) -> None:
        self.job = job
        self._axis = job.chain.axis(axis) or 0
        self._box = job.chain.need(strip)
        self._spans = [job.chain.need(slab)[self._axis] for slab in order]
        falling = self._spans[-1][0] < self._spans[0][0]
        flips = _flips(job.model, wanted)
        network = job.model.network(setup.device)

        def field(sample: int, number: int, flip: tuple[int, ...]) -> Field:
            return Field(
                job.prepared.image,
                _predictor(job.model, network, wanted, sample * len(flips) + number),
                setup.tilings[index],
                axis=self._axis,
                box=self._box,
                flips=flip,
                falling=falling,
                batch=setup.batch[index],
                device=setup.device,
                store=setup.store,
                on_windows=on_windows,
            )

        self._falling = falling
        draws = range(max(wanted.samples, 1))
        if wanted.uncertainty:  # what mirror images disagree on is uncertain, too: each is a member
            self._fields = [[field(s, n, flip)] for s in draws for n, flip in enumerate(flips)]
        else:
            self._fields = [[field(s, n, flip) for n, flip in enumerate(flips)] for s in draws]
        self.samples = len(self._fields)
        self._raw = len(self._fields[0]) == 1 and job.post.inverted == "output"
        # Kept as objects: inversion.MonaiChain remembers by them what it has inverted.
        self._readers = [self._reader(fields) for fields in self._fields]
        self._all = self._mean_reader()

    def probability(self, slab: Box, sample: int) -> torch.Tensor:
        """(class, *slab) of one member (dropout sample, mirror image) on the input's grid and in host memory."""
        values = self.job.chain.pull(slab, self._readers[sample], self.job.model.classes)
        return self.job.post.probabilities(values) if self._raw else values

    def labels(self, slab: Box) -> torch.Tensor:
        """(*slab) of a model that decides on its own grid."""
        return self.job.label_chain.pull(slab, self._all, 1)[0].round().to(torch.int64)

    def release(self, position: int) -> None:
        """Forget what no slab from `position` on needs."""
        left = self._spans[position:]
        for field in itertools.chain.from_iterable(self._fields):
            if self._falling:
                field.release_after(max((b for _, b in left), default=self._box[self._axis][0]))
            else:
                field.release(min((a for a, _ in left), default=self._box[self._axis][1]))

    def _reader(self, fields: Sequence[Field]) -> inversion.Read:
        if self._raw:
            return lambda box: self._part(fields[0], box)

        def read(box: Box) -> torch.Tensor:
            total: torch.Tensor | None = None
            for field in fields:
                p = self.job.post.probabilities(self._part(field, box))
                total = p if total is None else total + p
            assert total is not None
            return total if len(fields) == 1 else total / len(fields)

        return read

    def _mean_reader(self) -> inversion.Read:
        def read(box: Box) -> torch.Tensor:
            total = self._readers[0](box)
            for reader in self._readers[1:]:
                total = total + reader(box)
            return self.job.post.decide(total / len(self._readers))[None].to(torch.float32)

        return read

    def _part(self, field: Field, box: Box) -> torch.Tensor:
        values = field.read(*box[self._axis])
        for i, (first, stop) in enumerate(box):
            if i != self._axis:
                values = values.narrow(i + 1, first - self._box[i][0], stop - first)
        return values.cpu()


def entropy(p: torch.Tensor, decision: str) -> torch.Tensor:
    """Entropy in nats of probabilities (class, ...): of the classes, or summed over labels that may overlap."""
    if decision == "argmax":
        return torch.special.entr(p.clamp(0, 1)).sum(0)
    q = p.clamp(0, 1)
    return (torch.special.entr(q) + torch.special.entr(1 - q)).sum(0)


def _ballot(p: torch.Tensor, post: Postprocessing) -> torch.Tensor:
    """One model's vote, (class, ...) of 0 and 1."""
    if post.decision == "argmax":
        return torch.zeros_like(p).scatter_(0, p.argmax(0, keepdim=True), 1.0)
    return (p >= post.threshold).to(p.dtype)


def _elected(
    votes: torch.Tensor, mean: torch.Tensor, post: Postprocessing, voters: float, smallest: float
) -> torch.Tensor:
    """The majority's labels; the mean probability decides a tie.

    Args:
        voters: sum of the weights.
        smallest: difference of votes that must not be overruled by the mean.
    """
    if post.decision == "argmax":
        return (votes + mean * (smallest / 2)).argmax(0)
    bits = torch.zeros(votes.shape[1:], dtype=torch.int64)
    for channel in range(len(votes)):
        lean = (mean[channel] >= post.threshold).to(votes.dtype) * (smallest / 2)
        bits |= (votes[channel] + lean > voters / 2).to(torch.int64) << channel
    return bits


def _empty(jobs: Sequence[Job], wanted: Wanted, shape: tuple[int, ...]) -> Prediction:
    post, classes = jobs[0].post, jobs[0].model.classes
    overlapping = post.decision == "threshold" and classes > 1
    largest = (1 << classes) - 1 if post.decision == "threshold" else classes - 1
    zyx = shape[::-1]
    shown = classes - 1 if post.decision == "argmax" else classes
    members = len(jobs) > 1 or passes(jobs[0].model, wanted) > 1 or wanted.samples > 0
    return Prediction(
        labels=np.zeros(zyx, np.min_scalar_type(largest)),
        overlapping=overlapping,
        probabilities=np.zeros((*zyx, shown), np.float32) if wanted.probabilities else None,
        entropy=np.zeros(zyx, np.float32) if wanted.uncertainty else None,
        mutual_information=np.zeros(zyx, np.float32) if wanted.uncertainty and members else None,
    )


def _put(array: np.ndarray, box: Box, values: torch.Tensor) -> None:
    """Write values indexed (x, y, z) into an array indexed (z, y, x)."""
    target = array.T[tuple(slice(a, b) for a, b in box)]
    target[...] = values.numpy()


def _stream_axis(job: Job) -> int:
    """The input's axis along the network's first, so that windows are summed in MONAI's order; 0 when oblique."""
    rank = len(job.prepared.shape)
    return next((axis for axis in range(rank) if job.chain.axis(axis) == 0), 0)


def _strips(jobs: Sequence[Job], setup: Setup, wanted: Wanted, shape: tuple[int, ...], axis: int) -> list[Box]:
    """The image in as many parts across the streaming axis as keep the sums within :data:`SUMS`."""
    whole: Box = tuple((0, n) for n in shape)
    across = max((i for i in range(len(shape)) if i != axis), key=lambda i: shape[i])
    count = 1
    while True:
        cuts = [round(i * shape[across] / count) for i in range(count + 1)]
        strips = [
            tuple(span if i == across else whole[i] for i in range(len(shape))) for span in itertools.pairwise(cuts)
        ]
        most = max(
            sum(
                accumulator_bytes(tiling, job.size, job.model.classes, job.chain.axis(axis) or 0, job.chain.need(strip))
                * passes(job.model, wanted)
                for job, tiling in zip(jobs, setup.tilings, strict=True)
            )
            for strip in strips
        )
        if most <= SUMS or shape[across] // (count + 1) < NARROWEST:
            return strips
        count += 1


def _slabs(strip: Box, axis: int, classes: int) -> list[Box]:
    cross = math.prod(b - a for i, (a, b) in enumerate(strip) if i != axis)
    thick = max(1, int(SLAB / (classes * cross * 24)))
    first, stop = strip[axis]
    cuts = [*range(first, stop, thick), stop]
    return [tuple(span if i == axis else s for i, s in enumerate(strip)) for span in itertools.pairwise(cuts)]


def _windows(job: Job, tiling: Tiling, strip: Box) -> int:
    box = job.chain.need(strip)
    shift = [p[0] for p in tiling.padding(job.size)]
    window = tiling.window(job.size)
    counts = [
        sum(1 for s in starts if s < b + pad and s + w > a + pad)
        for starts, (a, b), pad, w in zip(tiling.starts(job.size), box, shift, window, strict=True)
    ]
    return math.prod(counts)


def passes(model: Model, wanted: Wanted) -> int:
    """How often a model runs over the image."""
    return len(_flips(model, wanted)) * max(wanted.samples, 1)


def _flips(model: Model, wanted: Wanted) -> list[tuple[int, ...]]:
    """The mirror images to average: every set of the model's mirror axes, the empty one first."""
    axes = model.bundle.mirror_axes if wanted.flips else ()
    return [chosen for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)]


def _predictor(
    model: Model, network: torch.nn.Module, wanted: Wanted, member: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network as a function of windows; a dropout sample draws the same numbers whatever else is computed."""
    calls = itertools.count()

    def predict_windows(data: torch.Tensor) -> torch.Tensor:
        if wanted.samples:
            torch.manual_seed((wanted.seed * 1_000_003 + member) * 1_000_003 + next(calls))
        output = first_tensor(network(data))
        if output.shape[1] != model.classes:
            raise BadInput(
                f"The network of the model {model.bundle.name} has {output.shape[1]} outputs, but its metadata name "
                f"{model.classes}.",
                "configs/metadata.json and the network are of different versions.",
                "Ask its authors for a complete MONAI bundle.",
            )
        if not bool(output.sum().isfinite()):
            raise BadInput(
                f"The model {model.bundle.name} answers with NaN or infinite values.",
                "The image is far from what it was trained on, or its weights are damaged.",
                "Compare the image with the model's card.",
            )
        return output

    return predict_windows


def first_tensor(output: Any) -> torch.Tensor:
    """The prediction among a network's outputs: deep supervision and the like return several, the finest first."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping) and output:
        return first_tensor(output["pred"] if "pred" in output else next(iter(output.values())))
    if isinstance(output, list | tuple) and output:
        return first_tensor(output[0])
    raise BadInput(
        "The model's network returns no image.", f"It returns {type(output).__name__}.", "Use a segmentation model."
    )


@contextlib.contextmanager
def _random(wanted: Wanted, device: torch.device) -> Iterator[None]:
    """Leaves torch's random numbers as they were."""
    if not wanted.samples:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def _dropout(jobs: Sequence[Job], device: torch.device, wanted: Wanted) -> Iterator[None]:
    """Switches dropout on while samples are drawn; the rest of the network stays in evaluation mode."""
    if not wanted.samples:
        yield
        return
    layers = []
    for job in jobs:
        found = dropout_layers(job.model.network(device))
        if not found:
            raise BadInput(
                f"The model {job.model.bundle.name} has no dropout.",
                "Monte-Carlo dropout draws samples by dropping parts of the network.",
                "Leave out --mc-dropout; several models, or --tta, show uncertainty, too.",
            )
        layers += found
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()

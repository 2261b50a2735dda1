"""Pairs to train a registration network on: cases on one canvas, each with its own random geometry and intensity.

Every step's randomness is seeded by (seed, epoch, number), so that a resumed training sees exactly what an
uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import images
from ..errors import BadInput
from ..geometry import Grid, same_grid, to_zyx
from ..segmentation.dataset import Case
from .fields import resize
from .placement import network_grid, normalised, placed
from .sampling import index_matrix, warp

#: Largest random rotation (degrees), change of size (logarithm), shift (voxels) and local displacement (voxels).
_ANGLE, _SCALE, _SHIFT, _BEND = 12.0, 0.12, 3.0, 1.5
#: Control points of the random local displacement along each axis.
_KNOTS = 5


@dataclasses.dataclass(frozen=True)
class Subject:
    """A case on the network's canvas.

    Attributes:
        image: (channels, *shape) float32, 0 outside.
        label: (*shape) uint8, 0 outside.
    """

    image: Tensor
    label: Tensor


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pairs for a step; labels are soft maps without the background, (N, labels, *shape)."""

    fixed: Tensor
    moving: Tensor
    fixed_labels: Tensor
    moving_labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        return Batch(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


def canvas(cases: Sequence[Case], spacing: Sequence[float], multiple: int) -> tuple[int, ...]:
    """Voxels (x, y, z) of the smallest network grid that holds every case, from their headers."""
    found = []
    for case in cases:
        grid = Grid.of(images.read(case.images[0]))
        found.append(network_grid([grid], spacing, (1,) * grid.dimension, multiple).size)
    # Below two multiples the coarsest level of a network is a single voxel, of which there is no variance.
    return tuple(max(2 * multiple, *sizes) for sizes in zip(*found, strict=True))


def read_subject(case: Case, spacing: Sequence[float], size: Sequence[int], labels: int) -> Subject:
    """A case as the network sees it.

    Args:
        case: files.
        spacing: of the network, mm, (x, y, z).
        size: of the canvas, (x, y, z).
        labels: their number, without the background.

    Raises:
        BadInput: image and label on different grids, or a label the data set does not name.
    """
    pictures = [images.read(path) for path in case.images]
    for picture, path in zip(pictures, case.images, strict=True):
        images.check(picture, path)
    reference = images.read(case.label)
    if any(not same_grid(p, reference) for p in pictures):
        raise BadInput(
            f"The image and the label of case {case.name} lie on different grids.",
            "Their sizes, spacings, origins or directions differ.",
            "Resample the label to its image.",
        )
    own = Grid.of(reference)
    grid = network_grid([own], spacing, size, 1)
    matrix = index_matrix(grid, own)
    image = placed(torch.cat([normalised(to_zyx(p)) for p in pictures]), matrix, grid.shape)[0]
    label = placed(to_zyx(reference).round(), matrix, grid.shape, mode="nearest")[0, 0].to(torch.uint8)
    if int(label.max()) > labels:
        raise BadInput(f"{case.label} holds the label {int(label.max())}.", "", f"The data set names {labels} labels.")
    return Subject(image, label)


def one_hot(label: Tensor, labels: int) -> Tensor:
    """Maps (labels, *shape) float32 of the values 1, 2, ... of a label map."""
    return torch.stack([(label == value).float() for value in range(1, labels + 1)])


class Sampler:
    """Makes random pairs.

    Args:
        subjects: the training cases.
        labels: their number, without the background.
        seed: of all randomness.
    """

    def __init__(self, subjects: Sequence[Subject], labels: int, seed: int) -> None:
        self._subjects = subjects
        self._labels = labels
        self._seed = seed

    def order(self, epoch: int) -> list[tuple[int, int]]:
        """The pairs (fixed, moving) of an epoch: every case is fixed once, and moving once."""
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, epoch]))
        fixed = rng.permutation(len(self._subjects))
        return [(int(a), int(b)) for a, b in zip(fixed, np.roll(fixed, 1), strict=True)]

    def batch(self, epoch: int, number: int, pairs: Sequence[tuple[int, int]]) -> Batch:
        """The pairs with their random changes, step `number` of `epoch`."""
        sequence = np.random.SeedSequence([self._seed, epoch, number, len(self._subjects)])
        rng = np.random.default_rng(sequence)
        fixed = [self._changed(self._subjects[a], rng) for a, _ in pairs]
        moving = [self._changed(self._subjects[b], rng) for _, b in pairs]
        parts = [torch.stack([one[k] for one in side]) for side in (fixed, moving) for k in (0, 1)]
        return Batch(fixed=parts[0], moving=parts[2], fixed_labels=parts[1], moving_labels=parts[3])

    def _changed(self, subject: Subject, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        image = subject.image[None]
        label = one_hot(subject.label, self._labels)[None]
        if rng.random() < 0.8:
            shape = image.shape[2:]
            matrix = random_affine(shape, rng)
            bend = random_bend(shape, rng)
            together = warp(torch.cat([image, label], 1), bend, matrix, padding="zeros")
            image, label = together.split([image.shape[1], label.shape[1]], 1)
        return _recoloured(image[0], rng), label[0]


def random_affine(shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """A small rotation, change of size along each axis and shift about the middle: index matrix (1, d + 1, d + 1)."""
    d = len(shape)
    turn = np.eye(d)
    for i in range(d):
        for j in range(i + 1, d):
            angle = np.deg2rad(rng.uniform(-_ANGLE, _ANGLE))
            plane = np.eye(d)
            plane[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
            turn = turn @ plane
    linear = turn @ np.diag(np.exp(rng.uniform(-_SCALE, _SCALE, d)))
    middle = (np.asarray(shape) - 1) / 2
    out = np.eye(d + 1)
    out[:d, :d] = linear
    out[:d, d] = middle - linear @ middle + rng.uniform(-_SHIFT, _SHIFT, d)
    return torch.from_numpy(out)[None]


def random_bend(shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """A smooth random displacement, (1, d, *shape) voxels."""
    knots = torch.from_numpy(rng.normal(0.0, rng.uniform(0.0, _BEND), (1, len(shape), *(_KNOTS,) * len(shape))))
    scale = torch.tensor([(n - 1) / (_KNOTS - 1) for n in shape], dtype=knots.dtype).view(1, -1, *[1] * len(shape))
    return resize(knots / scale, shape).float()


def _recoloured(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Random contrast, brightness, curve and noise; the background outside the image keeps its 0."""
    outside = image == 0
    if rng.random() < 0.5:
        image = image * rng.uniform(0.75, 1.25) + rng.uniform(-0.2, 0.2)
    if rng.random() < 0.3:
        low, high = image.amin(), image.amax()
        unit = (image - low) / (high - low).clamp_min(1e-6)
        changed = unit ** float(np.exp(rng.uniform(-0.35, 0.4)))
        image = normalised(changed)
    if rng.random() < 0.3:
        noise = rng.normal(0.0, rng.uniform(0.0, 0.2), tuple(image.shape))
        image = image + torch.from_numpy(noise).to(image)
    return torch.where(outside, torch.zeros(()), image)

"""Images to train on, drawn from 2-D images, from slices of volumes, or from patches inside their foreground.

A share of the normal images is kept aside, to set thresholds on: whole cases where there are enough, else slabs of
planes across each volume, or images drawn at random.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from .. import images
from ..errors import BadInput
from ..geometry import Grid, describe, same_grid
from ..metrics import GRID_TOLERANCE
from ..progress import Progress
from . import dataset, intensity, planes
from .requests import TrainAnomalyRequest

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: Cases from which on whole ones are kept aside.
_WHOLE_CASES = 7
#: Thickness (mm) of the slabs that are kept aside of each of few volumes.
_SLAB = 8.0
#: A slice counts when its foreground covers this share of the image.
_SLICE_SHARE = 0.02
#: A patch counts when its foreground covers this share of it.
_PATCH_SHARE = 0.2
#: Margin around lesions that is left out, too (mm): their borders are not normal either.
_MARGIN = 2.0
#: Side of images where none is asked for.
_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How images are taken from what a model is shown.

    Attributes:
        kind: "images" (2-D as they are), "slices" or "patches" (of volumes).
        plane: axial, coronal, sagittal, patch (axial) or patch-3 (the three planes).
        size: side of the model's images, pixels.
        pixel: mm a pixel; 0 for 2-D images, which are fitted into the square.
        shape: rows and columns of the 2-D images trained on, (0, 0) where they differed or came from volumes.
    """

    kind: str
    plane: str
    size: int
    pixel: float = 0.0
    shape: tuple[int, int] = (0, 0)

    def planes(self) -> tuple[str, ...]:
        """The planes that maps are made in."""
        return {"patch": ("axial",), "patch-3": ("axial", "coronal", "sagittal")}.get(self.plane, (self.plane,))


class Source(Protocol):
    """What a trainer draws from."""

    geometry: Geometry
    range: intensity.Range

    @property
    def plain(self) -> Floats:
        """Images to fit baselines on, (n, size, size): 2-D images with their own contrast, as a reader has them."""

    @property
    def validation(self) -> Tensor:
        """Normal images kept aside, (n, 1, size, size)."""

    @property
    def training(self) -> Tensor:
        """Images to train on, or enough of them to know them by, (n, 1, size, size)."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images at random and which of their pixels count, each (count, 1, size, size)."""


class Images:
    """A stack of images, drawn from with replacement.

    Args:
        stack: (n, size, size) in -1 to 1.
        aside: which of them are kept aside.
        geometry: how they were made.
        range: of their intensities.
        plain: the images with their own contrast, (n, size, size); `stack` where that is kept anyway.
    """

    def __init__(
        self, stack: Floats, aside: Mask, geometry: Geometry, range: intensity.Range, plain: Floats | None = None
    ) -> None:
        self.geometry, self.range = geometry, range
        self.plain: Floats = (stack if plain is None else plain)[~aside]
        self.training = torch.from_numpy(np.ascontiguousarray(stack[~aside]))[:, None]
        self.validation = torch.from_numpy(np.ascontiguousarray(stack[aside]))[:, None]
        dataset.require_enough(len(self.training), "normal images" if geometry.kind == "images" else "normal slices")

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Source`."""
        x = self.training[torch.randint(len(self.training), (count,), generator=generator)]
        return x, torch.ones_like(x)


@dataclasses.dataclass
class _Stack:
    """A volume in one plane's order, at the model's pixel: voxels, which of them count, where patches have centres."""

    voxels: npt.NDArray[np.float16]
    counts: Mask
    centres: npt.NDArray[np.int16]
    aside: npt.NDArray[np.int16]
    mirror: bool


class Patches:
    """Patches around random voxels of volumes.

    Args:
        volumes: of each volume its stacks, one a plane.
        geometry, range: see :class:`Images`.
        overlap: share of a patch that its neighbours share on the grid that `training` and `validation` are laid on.
    """

    def __init__(
        self, volumes: list[list[_Stack]], geometry: Geometry, range: intensity.Range, overlap: float, seed: int
    ) -> None:
        self.geometry, self.range = geometry, range
        self._volumes = [[s for s in stacks if len(s.centres)] for stacks in volumes]
        self._volumes = [stacks for stacks in self._volumes if stacks]
        step = max(1, round(geometry.size * (1.0 - overlap)))
        count = sum(self._on_grid(s.centres, step) for stacks in self._volumes for s in stacks)
        dataset.require_enough(count, "patches free of what is left out")
        self.training = self._sample("centres", seed)
        self.validation = self._sample("aside", seed + 1, fall_back=self.training)
        self.plain: Floats = self.training[:, 0].numpy()

    @staticmethod
    def _on_grid(centres: npt.NDArray[np.int16], step: int) -> int:
        """How many patches `step` apart the centres give."""
        return len(np.unique(centres // np.array([1, step, step], np.int16), axis=0))

    def _sample(self, which: str, seed: int, fall_back: Tensor | None = None) -> Tensor:
        """Up to :data:`_KNOWN` patches."""
        generator = torch.Generator().manual_seed(seed)
        stacks = [s for volume in self._volumes for s in volume if len(getattr(s, which))]
        if not stacks:
            if fall_back is None:
                msg = "patches without centres"
                raise ValueError(msg)
            return fall_back[: max(1, len(fall_back) // 5)]
        made = []
        for i in range(_KNOWN):
            stack = stacks[i % len(stacks)]
            made.append(self._cut(stack, getattr(stack, which), generator)[0])
        return torch.stack(made)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Source`."""
        pairs = []
        for _ in range(count):
            stacks = self._volumes[int(torch.randint(len(self._volumes), (), generator=generator))]
            stack = stacks[int(torch.randint(len(stacks), (), generator=generator))]
            pairs.append(self._cut(stack, stack.centres, generator))
        x, weights = zip(*pairs, strict=True)
        return torch.stack(x), torch.stack(weights)

    def _cut(self, stack: _Stack, centres: npt.NDArray[np.int16], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        size = self.geometry.size
        k, row, column = (int(v) for v in centres[int(torch.randint(len(centres), (), generator=generator))])
        rows, columns = (
            slice(start, start + size)
            for start in (
                min(max(c - size // 2, 0), n - size) for c, n in zip((row, column), stack.voxels.shape[1:], strict=True)
            )
        )
        x = torch.from_numpy(stack.voxels[k, rows, columns].astype(np.float32))[None]
        weight = torch.from_numpy(stack.counts[k, rows, columns].astype(np.float32))[None]
        if stack.mirror and bool(torch.randint(2, (), generator=generator)):
            x, weight = x.flip(-1), weight.flip(-1)
        return x, weight


#: Patches that stand for all of them where figures are taken.
_KNOWN = 512


def read(request: TrainAnomalyRequest, progress: Progress) -> Source:
    """Read the images to train on as the request says.

    Raises:
        BadInput: too few, constant, of mixed dimension, a mask on another grid.
    """
    progress.stage("Reading images")
    if request.dataset.lower().endswith(".npz"):
        stack = dataset.normal_images(request.dataset)
        dataset.require_enough(len(stack), "normal images")
        size = request.size or min(_SIZE, max(16, *stack.shape[1:]))
        return _of_images(list(stack), request, size, (int(stack.shape[1]), int(stack.shape[2])))
    cases = dataset.read_cases(request.dataset, request.channel)
    first = dataset.read_volume(cases[0].image)
    if first.GetDimension() == 2 or min(first.GetSize()) == 1:
        planes_ = []
        for i, case in enumerate(cases):
            image = dataset.read_volume(case.image)
            array = np.squeeze(sitk.GetArrayFromImage(image))
            if array.ndim != 2:
                raise _mixed(cases[0].image, case.image)
            if not (case.left_out and mask_on(case.left_out, image).any()):  # a 2-D image is taken whole or not at all
                planes_.append(array)
            progress.fraction((i + 1) / len(cases))
        dataset.require_enough(len(planes_), "normal images")
        shapes = {array.shape for array in planes_}
        return _of_images(planes_, request, request.size or _SIZE, shapes.pop() if len(shapes) == 1 else (0, 0))
    volumes = []
    for i, case in enumerate(cases):
        volumes.append(_read_volume(case, cases[0].image))
        progress.fraction((i + 1) / len(cases))
    return _of_volumes(volumes, request)


def _mixed(first: str, other: str) -> BadInput:
    return BadInput(
        "The data set mixes 2-D and 3-D images.", f"{first} and {other} differ in that.", "Train one model for each."
    )


def fitted(array: Floats, size: int) -> Floats:
    """2-D images (n, h, w) in squares of `size`: borders repeated to a square, then resampled."""
    _, rows, columns = array.shape
    side = max(rows, columns)
    low = ((side - rows) // 2, (side - columns) // 2)
    high = (side - rows - low[0], side - columns - low[1])
    square = np.pad(array, ((0, 0), (low[0], high[0]), (low[1], high[1])), mode="edge")
    return planes.resampled(square, (size, size)) if side != size else np.ascontiguousarray(square, np.float32)


def unfitted(array: Floats, shape: tuple[int, int]) -> Floats:
    """The way back from :func:`fitted` to images of `shape`."""
    side = max(shape)
    square = array
    if array.shape[-1] != side:
        part = torch.from_numpy(np.ascontiguousarray(array, np.float32))[:, None]
        square = functional.interpolate(part, (side, side), mode="bilinear", antialias=True)[:, 0].numpy()
    low = ((side - shape[0]) // 2, (side - shape[1]) // 2)
    return square[:, low[0] : low[0] + shape[0], low[1] : low[1] + shape[1]]


def _of_images(
    arrays: list[npt.NDArray[Any]], request: TrainAnomalyRequest, size: int, shape: tuple[int, int]
) -> Images:
    normal = [intensity.normalise_images(array[None]) for array in arrays]
    stack = np.concatenate([fitted(one, size) for one in normal])
    aside = np.zeros(len(stack), bool)
    order = np.random.default_rng(request.seed).permutation(len(stack))
    aside[order[: max(1, round(request.validation * len(stack)))]] = True
    span = intensity.Range.of([intensity.profile(one) for one in normal])
    plain = np.concatenate([fitted(array[None].astype(np.float32), size) for array in arrays])
    return Images(stack, aside, Geometry("images", request.plane, size, 0.0, shape), span, plain)


@dataclasses.dataclass
class _Volume:
    name: str
    normal: Floats
    inside: Mask
    left_out: Mask
    spacing: tuple[float, float, float]
    profile: npt.NDArray[np.float64]


def _read_volume(case: dataset.Case, first: str) -> _Volume:
    image = dataset.read_volume(case.image)
    if image.GetDimension() != 3 or min(image.GetSize()) == 1:
        raise _mixed(first, case.image)
    turned = planes.oriented(image)
    inside = mask_on(case.foreground, image) if case.foreground else intensity.foreground(turned.array)
    if not inside.any():
        raise BadInput(f"{case.foreground} is empty.", "It marks where to look.", "Give another foreground.")
    values = turned.array[inside]
    if values.min() == values.max():
        raise BadInput(f"{case.image} is constant inside its foreground.", "It is blank there.", "Remove it.")
    left_out = left_out_of(case, image, turned.spacing)
    normal = intensity.normalise_volume(turned.array, inside)
    return _Volume(case.name, normal, inside, left_out, turned.spacing, intensity.profile(normal[inside]))


def left_out_of(case: dataset.Case, image: sitk.Image, spacing: tuple[float, float, float]) -> Mask:
    """What a case leaves out, with a margin around it, in the order of :func:`planes.oriented`."""
    if not case.left_out:
        return np.zeros(planes.oriented(image).array.shape, bool)
    marked = mask_on(case.left_out, image)
    if not marked.any():
        return marked
    out: Mask = ndimage.distance_transform_edt(~marked, sampling=spacing) <= _MARGIN
    return out


def mask_on(path: str, image: sitk.Image) -> Mask:
    """A mask file as an array in the order of :func:`planes.oriented`.

    Raises:
        BadInput: it lies on another grid than the image.
    """
    mask = images.read(path)
    if not same_grid(mask, image, GRID_TOLERANCE):
        raise BadInput(
            f"The mask {path} lies on another grid than its image.",
            f"It has {describe(Grid.of(mask))}, the image {describe(Grid.of(image))}.",
            "Resample it onto the image's grid, with nearest neighbours.",
        )
    return planes.oriented(mask).array != 0


def _of_volumes(volumes: list[_Volume], request: TrainAnomalyRequest) -> Source:
    span = intensity.Range.of([v.profile for v in volumes])
    size = request.size or _SIZE
    aside = cases_aside(len(volumes), request)
    if request.plane in planes.NORMAL:
        return _of_slices(volumes, aside, request, size, span)
    wanted = request.spacing or float(np.median([planes.pixel(v.spacing, "axial") for v in volumes]))
    geometry = Geometry("patches", request.plane, size, wanted)
    made = [_stacks(v, geometry, request, i in aside, bool(aside)) for i, v in enumerate(volumes)]
    return Patches(made, geometry, span, request.overlap, request.seed)


def cases_aside(count: int, request: TrainAnomalyRequest) -> set[int]:
    """Numbers of the cases that are kept aside whole; none of few."""
    if count < _WHOLE_CASES:
        return set()
    order = np.random.default_rng(request.seed).permutation(count)
    return {int(i) for i in order[: max(1, round(request.validation * count))]}


def slab(count: int, spacing: float, share: float) -> Mask:
    """Which of `count` planes are kept aside: slabs of :data:`_SLAB` mm, so many that they are `share` of all."""
    at = (np.arange(count) + 0.5) * spacing
    period = _SLAB / share
    out: Mask = np.abs(np.mod(at, period) - period / 2) < _SLAB / 2
    return out


def _of_slices(
    volumes: list[_Volume], aside: set[int], request: TrainAnomalyRequest, size: int, span: intensity.Range
) -> Images:
    extents = []
    for v in volumes:
        inside = planes.across(v.inside, request.plane)
        for axis, edge in zip((0, 1), planes.pixel(v.spacing, request.plane), strict=True):
            first, stop = box(inside, axis + 1)
            extents.append((stop - first) * edge)
    wanted = request.spacing or 1.02 * max(extents) / size
    geometry = Geometry("slices", request.plane, size, wanted)
    made, kept = [], []
    for i, v in enumerate(volumes):
        stack, inside = (windowed(planes.across(a, request.plane), v, geometry) for a in (v.normal, v.inside))
        left_out = windowed(planes.across(v.left_out, request.plane), v, geometry)
        good = ((inside > 0).mean(axis=(1, 2)) >= _SLICE_SHARE) & ~(left_out > 0.01).any(axis=(1, 2))
        axis = planes.NORMAL[request.plane]
        held = np.full(len(stack), i in aside) if aside else slab(len(stack), v.spacing[axis], request.validation)
        made.append(stack[good])
        kept.append(held[good])
    stack, held = np.concatenate(made), np.concatenate(kept)
    if len(stack) and not held.any():  # slabs that fell outside the foreground
        held[:: max(2, round(1 / request.validation))] = True
    return Images(stack, held, geometry, span)


def windowed(stack: npt.NDArray[np.generic], volume: Any, geometry: Geometry) -> Floats:
    """Planes (n, rows, columns) at the model's pixel, in squares around the foreground's middle; outside is -1."""
    edges = planes.pixel(volume.spacing, geometry.plane)
    shape = planes.resampled_shape(stack.shape[1], stack.shape[2], edges, geometry.pixel)
    small = planes.resampled(stack, shape)
    inside = planes.across(volume.inside, geometry.plane)
    fill = -1.0 if stack.dtype.kind == "f" else 0.0
    out = np.full((len(small), geometry.size, geometry.size), fill, np.float32)
    take: list[slice] = []
    put: list[slice] = []
    for axis in (0, 1):
        first, stop = box(inside, axis + 1)
        middle = (first + stop) / 2 * shape[axis] / stack.shape[axis + 1]
        begin = round(middle - geometry.size / 2)
        a, b = max(0, begin), min(shape[axis], begin + geometry.size)
        take.append(slice(a, b))
        put.append(slice(a - begin, b - begin))
    out[:, put[0], put[1]] = small[:, take[0], take[1]]
    return out


def box(mask: npt.NDArray[Any], axis: int) -> tuple[int, int]:
    """First index along `axis` where a mask (plane, row, column) holds something, and the one after the last."""
    return extent(np.asarray(mask.any(axis=tuple(a for a in range(3) if a != axis)), bool))


def extent(line: Mask) -> tuple[int, int]:
    """First true element of a line and the one after the last."""
    found = np.flatnonzero(line)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, len(line))


def _stacks(
    volume: _Volume, geometry: Geometry, request: TrainAnomalyRequest, whole_aside: bool, cases_aside: bool
) -> list[_Stack]:
    """A volume's stacks, one for each of the planes that patches are taken in."""
    held = np.zeros(volume.inside.shape, bool)
    if cases_aside:
        held[:] = whole_aside
    else:
        held[slab(len(held), volume.spacing[0], request.validation)] = True
    normal = volume.normal
    if volume.left_out.any():
        normal = _filled(volume)
    out = []
    for plane in geometry.planes():
        edges = planes.pixel(volume.spacing, plane)
        source = planes.across(normal, plane)
        shape = planes.resampled_shape(source.shape[1], source.shape[2], edges, geometry.pixel)
        voxels, inside, left_out, aside = (
            _square(planes.resampled(planes.across(a, plane), shape), geometry.size, fill)
            for a, fill in ((normal, -1.0), (volume.inside, 0.0), (volume.left_out, 0.0), (held, 0.0))
        )
        free = left_out <= 0.01
        if request.model != "denoising-ae":  # others see the whole patch, so none of it may be left out
            near = ndimage.maximum_filter(~free, size=(1, geometry.size, geometry.size))
            free = free & ~near
        share = ndimage.uniform_filter(inside, size=(1, geometry.size, geometry.size))
        good = (inside > 0.5) & free & (share >= _PATCH_SHARE)
        kept = aside > 0.5
        counts = (left_out <= 0.01) & ~kept
        out.append(
            _Stack(
                voxels.astype(np.float16),
                counts,
                np.argwhere(good & ~kept).astype(np.int16),
                np.argwhere(good & kept).astype(np.int16),
                mirror=plane != "sagittal",
            )
        )
    return out


def _filled(volume: _Volume) -> Floats:
    """The volume with what is left out painted over by the tissue around it, so that no patch shows a lesion."""
    known = (volume.inside & ~volume.left_out).astype(np.float32)
    sigma = [4.0 / s for s in volume.spacing]
    around = ndimage.gaussian_filter(volume.normal * known, sigma)
    weight = ndimage.gaussian_filter(known, sigma)
    out: Floats = np.where(volume.left_out & volume.inside, around / np.maximum(weight, 1e-3), volume.normal)
    return out.astype(np.float32)


def _square(stack: Floats, size: int, fill: float) -> Floats:
    """The stack extended so that a patch fits."""
    short = [max(0, size - n) for n in stack.shape[1:]]
    return np.pad(stack, ((0, 0), *((s // 2, s - s // 2) for s in short)), constant_values=fill)

"""A model and an image as explanations need them: the network, what it is given, and the way back to the image's grid.

The image goes through the bundle's own preprocessing. Where it is larger than the windows that the model works on, the
model's answer is that of its windows blended, and so is what is explained; see :class:`Subject`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn

from .. import geometry
from ..bundles import Bundle
from ..errors import BadInput
from ..geometry import Grid
from ..segmentation import inversion, models
from ..segmentation.inference import check_images
from ..segmentation.models import Model
from ..segmentation.prediction import first_tensor
from ..segmentation.preparation import Prepared, prepare
from ..segmentation.sliding_window import Field, Tiling, padded
from ..segmentation.tiles import SMALLEST

KINDS = ("segmentation", "classification", "regression")

#: Voxels of a slab of the prediction, times labels, that are held at a time.
_SLAB = 1 << 26

Place = tuple[slice, ...]


class FirstOutput(nn.Module):
    """A network that gives several tensors, such as deep supervision does, as one that gives the first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """What the network gives first."""
        return first_tensor(self.network(image))


@dataclasses.dataclass
class Subject:
    """What is looked at.

    Attributes:
        model: the bundle, with its transforms.
        network: in evaluation mode, on `device`; gives one tensor.
        device: where it computes.
        pictures: the images as the network's preprocessing got them, 2-D ones for a model of planes.
        grid: of the images that were given.
        plane: index of the slice, for a model of planes and a volume; else None.
        prepared: the image on the network's grid.
        tiling: windows, of the size asked for; None for a model that takes an image as a whole.
    """

    model: Model
    network: nn.Module
    device: torch.device
    pictures: list[sitk.Image]
    grid: Grid
    plane: int | None
    prepared: Prepared
    tiling: Tiling | None

    @property
    def bundle(self) -> Bundle:
        """The model's bundle."""
        return self.model.bundle

    @property
    def dense(self) -> bool:
        """Whether the network answers for each voxel."""
        return self.bundle.kind == "segmentation"

    @property
    def size(self) -> tuple[int, ...]:
        """Of the prepared image, (x, y[, z])."""
        return tuple(int(n) for n in self.prepared.image.shape[1:])

    @property
    def window(self) -> tuple[int, ...]:
        """What goes through the network at once, (x, y[, z])."""
        return self.size if self.tiling is None else self.tiling.window(self.size)

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Voxels before and after the prepared image, so that a window fits."""
        return ((0, 0),) * len(self.size) if self.tiling is None else self.tiling.padding(self.size)

    @property
    def padded(self) -> torch.Tensor:
        """(C, *size with padding), what windows are cut from, on the CPU."""
        return self.with_padding(self.prepared.image)

    def with_padding(self, image: torch.Tensor) -> torch.Tensor:
        """(C, *size with padding) of an image (C, *size), padded as the model's windows are."""
        if self.tiling is None:
            return image
        return padded(image, self.padding, self.tiling)

    @property
    def places(self) -> list[Place]:
        """The windows, in the padded image."""
        if self.tiling is None:
            return [tuple(slice(0, n) for n in self.size)]
        starts = itertools.product(*self.tiling.starts(self.size))
        return [tuple(slice(s, s + w) for s, w in zip(corner, self.window, strict=True)) for corner in starts]

    def window_weights(self) -> torch.Tensor:
        """What a window's voxels count in the blend, (*window)."""
        if self.tiling is None:
            return torch.ones(self.window)
        return self.tiling.weights(self.window, torch.device("cpu"))

    def place_around(self, centre: Sequence[int]) -> Place:
        """The one window that lies round a voxel of the prepared image, within the padded image."""
        if self.tiling is None:
            return self.places[0]
        found = []
        for at, edge, n, (before, after) in zip(centre, self.window, self.size, self.padding, strict=True):
            start = min(max(at + before - edge // 2, 0), n + before + after - edge)
            found.append(slice(start, start + edge))
        return tuple(found)

    @property
    def affine(self) -> np.ndarray:
        """Voxel index of the prepared image to RAS millimetres, (d + 1) x (d + 1); of a plane its own millimetres."""
        return self.prepared.trace.affine.detach().cpu().numpy().astype(np.float64)

    def label_map(self, labels: sitk.Image) -> torch.Tensor:
        """The nearest label of each voxel of the prepared image, (*size), int64, 0 outside of it.

        A label that is so small that it falls between the voxels keeps those nearest to it.

        Args:
            labels: on any grid.
        """
        if self.plane is not None:
            if not geometry.same_grid(Grid.of(labels), self.grid):
                labels = sitk.Resample(labels, self.grid.apply(sitk.Image(self.grid.size, sitk.sitkUInt8)),
                                       sitk.Transform(), sitk.sitkNearestNeighbor)  # fmt: skip
            labels = plane_of(labels, self.plane)
        rank = len(self.size)
        inside = np.linalg.inv(geometry.monai_affine(labels)) @ self.affine
        array = np.rint(geometry.array_xyz(labels)).astype(np.int64)
        where, within = _nearest(inside, self.size, array.shape)
        values = np.zeros(self.size, np.int64)
        values.reshape(-1)[within] = array[tuple(where[:, within])]
        back = np.linalg.inv(inside)
        for value in set(np.unique(array).tolist()) - set(np.unique(values).tolist()) - {0}:
            there = np.argwhere(array == value).T
            nearest = np.rint(back[:rank, :rank] @ there + back[:rank, rank:]).astype(np.int64)
            keep = ((nearest >= 0) & (nearest < np.array(self.size)[:, None])).all(0)
            values[tuple(nearest[:, keep])] = value
        return torch.from_numpy(values)

    def voxel_at(self, point: Sequence[float]) -> tuple[int, ...]:
        """The voxel of the prepared image at a point, in RAS millimetres.

        Raises:
            BadInput: the point lies outside the image, or the preprocessing cuts it away.
        """
        here = self.to_image_index(point)
        names = [
            f"{low:.4g} to {high:.4g} {axis}" for axis, (low, high) in zip("RAS", _extent(self.grid), strict=False)
        ]
        if not all(-0.5 <= x <= n - 0.5 for x, n in zip(here, self.grid.size, strict=True)):
            raise BadInput(
                f"The point {', '.join(f'{x:g}' for x in point)} lies outside the image.",
                f"The image reaches from {', '.join(names)} (mm).",
                "Choose a point inside.",
            )
        inner = geometry.monai_affine(self.pictures[0])
        position = np.linalg.inv(self.affine) @ inner @ np.append(here[: len(self.size)], 1.0)
        index = tuple(int(x) for x in np.rint(position[:-1]))
        if any(not -1 <= i <= n for i, n in zip(index, self.size, strict=True)):
            raise BadInput(
                f"The point {', '.join(f'{x:g}' for x in point)} is not among what the network sees.",
                f"The preprocessing of the model {self.bundle.name} cuts it away.",
                "Choose another point.",
            )
        return tuple(min(max(i, 0), n - 1) for i, n in zip(index, self.size, strict=True))

    def to_image_index(self, point: Sequence[float]) -> tuple[float, ...]:
        """A point in RAS millimetres as an index of the image's voxels (x, y[, z])."""
        return image_index(self.grid, point)

    @torch.inference_mode()
    def predicted(self) -> torch.Tensor:
        """The model's labels on the prepared image, (*size): channels; bits where labels may overlap."""
        post = self.model.post or self.model.default_post
        found = torch.zeros(self.size, dtype=torch.int64)
        for start, stop, output in self._slabs():
            if post.decision == "threshold":
                bits = (post.probabilities(output) >= post.threshold).to(torch.int64)
                shift = torch.arange(len(bits)).reshape(-1, *(1,) * (bits.ndim - 1))
                found[start:stop] = (bits << shift).sum(0)
            else:
                found[start:stop] = output.argmax(0)
        return found

    def region_of(self, channel: int, predicted: torch.Tensor) -> torch.Tensor:
        """Where :meth:`predicted` has a channel, (*size), bool."""
        if (self.model.post or self.model.default_post).decision == "threshold":
            return (predicted >> channel & 1).bool()
        return predicted == channel

    def _slabs(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        if self.tiling is None:
            yield 0, self.size[0], self.network(self.padded[None].to(self.device))[0].cpu()
            return
        thick = max(1, _SLAB // (self.model.classes * math.prod(self.size[1:])))
        field = Field(self.prepared.image, self.network, self.tiling, batch=1, device=self.device)
        for start in range(0, self.size[0], thick):
            stop = min(start + thick, self.size[0])
            yield start, stop, field.read(start, stop)
            field.release(stop)

    def on_grid(self, maps: torch.Tensor, *, outside: float = 0.0) -> sitk.Image:
        """Maps of the prepared image, (C, *size), brought back to the image's grid: one component each.

        Undoes the preprocessing's turns, crops and resampling; what it cut away becomes `outside`.
        """
        way = inversion.chain(self.prepared, self.model.preprocessing, nearest=False)
        shifted = (maps.detach().cpu().to(torch.float32) - outside).contiguous()

        def read(box: Sequence[tuple[int, int]]) -> torch.Tensor:
            return shifted[(slice(None), *(slice(a, b) for a, b in box))]

        box = tuple((0, n) for n in way.target_shape)
        parts = way.pull(box, read, len(shifted)).to(torch.float32) + outside
        array = np.ascontiguousarray(parts.numpy().transpose(0, *range(parts.ndim - 1, 0, -1)))
        if self.plane is not None:
            volume = np.full((len(array), *self.grid.shape), outside, np.float32)
            volume[:, self.plane] = array
            array = volume
        if len(array) == 1:
            return geometry.from_array(array[0], self.grid)
        return geometry.from_array(np.ascontiguousarray(np.moveaxis(array, 0, -1)), self.grid, vector=True)

    def labels_on_grid(self, labels: torch.Tensor) -> sitk.Image:
        """Labels (*size) brought back to the image's grid, each voxel its nearest."""
        array = np.zeros(self.pictures[0].GetSize(), np.uint8 if int(labels.max()) < 256 else np.uint16)
        inside = np.linalg.inv(self.affine) @ geometry.monai_affine(self.pictures[0])
        where, within = _nearest(inside, array.shape, self.size)
        array.reshape(-1)[within] = labels.numpy()[tuple(where[:, within])]
        array = np.ascontiguousarray(array.T)
        if self.plane is not None:
            volume = np.zeros(self.grid.shape, array.dtype)
            volume[self.plane] = array
            array = volume
        return geometry.from_array(array, self.grid)


def make(
    pictures: Sequence[sitk.Image],
    names: Sequence[str],
    model: Model,
    device: torch.device,
    *,
    crop: Sequence[int] = (),
    point: Sequence[float] | None = None,
    region: sitk.Image | None = None,
) -> Subject:
    """Prepare an image for a model.

    Args:
        pictures: one scalar image a channel, on one grid.
        names: of them, for errors.
        model: of a kind in :data:`KINDS`.
        device: where the network is to compute.
        crop: window along the model's axes in voxels, one number for all or one each; () for the model's own.
        point: in RAS millimetres; tells the slice for a model of planes.
        region: mask; tells it otherwise, the slice with most of it.

    Raises:
        BadInput: the images are not what the model takes, or no slice is chosen.
    """
    check_pictures(pictures, names, model)
    grid = Grid.of(pictures[0])
    bundle = model.bundle
    plane = None
    if bundle.dimensions == 2 and grid.dimension == 3:
        plane = _plane_of(grid, bundle, point, region)
        pictures = [plane_of(picture, plane) for picture in pictures]
    prepared = prepare(pictures, model.preprocessing, channels=model.channels, name=bundle.name)
    tiling = model.tiling
    if crop:
        if bundle.kind != "segmentation":
            raise BadInput(
                f"The model {bundle.name} looks at an image as a whole.", "It names images.", "Leave out --crop."
            )
        tiling = model.tiling_for(crop, 0.5)
    size = tuple(int(n) for n in prepared.image.shape[1:])
    window = [min(n, SMALLEST) for n in tiling.window(size)] if tiling is not None else size
    network = one_output(model.network(device), model.channels, window)
    return Subject(model, network, device, list(pictures), grid, plane, prepared, tiling)


_outputs: weakref.WeakKeyDictionary[nn.Module, nn.Module | None] = weakref.WeakKeyDictionary()


def one_output(network: nn.Module, channels: int, shape: Sequence[int]) -> nn.Module:
    """The network itself where it gives one tensor, else one that gives its first; found out once.

    Args:
        network: in evaluation mode.
        channels, shape: of an image that it takes.
    """
    if network not in _outputs:
        place = next(network.parameters()).device
        try:
            with torch.inference_mode():
                found = network(torch.zeros((1, channels, *shape), device=place))
        except (RuntimeError, ValueError, AssertionError):
            found = torch.zeros(1)  # it takes no smaller window; what it gives shows when it is run
        _outputs[network] = None if isinstance(found, torch.Tensor) else FirstOutput(network).eval()
    return _outputs[network] or network


def load(name: str, trust: Sequence[str]) -> Model:
    """The model called `name`, for segmentation, classification or regression."""
    return models.load(name, trust, KINDS)


def check_pictures(pictures: Sequence[sitk.Image], names: Sequence[str], model: Model) -> None:
    """Raise :class:`BadInput` for images that are unusable, do not share a grid, or are not what the model takes."""
    check_images(pictures, names, [model])


def plane_of(picture: sitk.Image, index: int) -> sitk.Image:
    """One slice of a volume as a plane of its own."""
    return geometry.from_array(sitk.GetArrayViewFromImage(picture)[index], Grid.of(picture).slice_2d())


def image_index(grid: Grid, point: Sequence[float]) -> tuple[float, ...]:
    """A point in RAS millimetres as an index (x, y[, z]) of a grid's voxels, not rounded."""
    lps = np.array([-point[0], -point[1], point[2], 1.0])
    if grid.dimension == 2:
        lps = lps[[0, 1, 3]]
    return tuple(float(x) for x in (np.linalg.inv(grid.matrix()) @ lps)[:-1])


def _plane_of(grid: Grid, bundle: Bundle, point: Sequence[float] | None, region: sitk.Image | None) -> int:
    if grid.size[2] == 1:
        return 0
    if point is not None:
        at = round(image_index(grid, point)[2])
        if 0 <= at < grid.size[2]:
            return at
        raise BadInput(
            f"The point {', '.join(f'{x:g}' for x in point)} lies outside the image.",
            f"It has {grid.size[2]} slices.",
            "Choose a point inside.",
        )
    if region is not None and geometry.same_grid(Grid.of(region), grid):
        counts = (sitk.GetArrayViewFromImage(region) != 0).sum((1, 2))
        if counts.any():
            return int(counts.argmax())
    raise BadInput(
        f"The model {bundle.name} looks at single slices, and the volume has {grid.size[2]}.",
        "",
        "Choose a slice with --point, or give the slice as an image.",
    )


def _extent(grid: Grid) -> list[tuple[float, float]]:
    """Lowest and highest position of the voxels along R, A and S."""
    corners = grid.corners()
    ras = corners * np.array([-1.0, -1.0, 1.0][: grid.dimension])
    return [(float(low), float(high)) for low, high in zip(ras.min(0), ras.max(0), strict=True)]


def _nearest(matrix: np.ndarray, shape: Sequence[int], other: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For each voxel of a grid of `shape` its nearest in a grid of `other`, (rank, voxels), and whether it is in it."""
    rank = len(shape)
    index = np.indices(tuple(shape)).reshape(rank, -1)
    where = np.rint(matrix[:rank, :rank] @ index + matrix[:rank, rank:]).astype(np.int64)
    return where, ((where >= 0) & (where < np.array(other)[:, None])).all(0)

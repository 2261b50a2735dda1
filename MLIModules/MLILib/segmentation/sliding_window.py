"""A network slid over an image in overlapping windows, its outputs blended in bounded memory.

Same windows, weights and order of summation as MONAI's sliding_window_inference (so the values agree to rounding), but
a part of the result is normalised, handed out and forgotten as soon as no later window can touch it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data.utils import compute_importance_map
from torch.nn import functional

from .. import device
from ..errors import BadInput

#: (start, stop) along each spatial axis.
Box = tuple[tuple[int, int], ...]
Predict = Callable[[torch.Tensor], torch.Tensor]


class WindowRefused(BadInput):
    """The network cannot work on windows of this size."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How windows are laid out and blended.

    Attributes:
        roi: window size in voxels along each axis; an entry below 1 takes the image's whole extent.
        overlap: fraction of a window shared with its neighbour, one for all axes or one each.
        mode: "gaussian" (a window counts less towards its border) or "constant".
        sigma_scale: standard deviation of the Gaussian as a fraction of the window.
        padding_mode, cval: how an image smaller than a window is extended.
    """

    roi: tuple[int, ...]
    overlap: tuple[float, ...] = (0.5,)
    mode: str = "gaussian"
    sigma_scale: float = 0.125
    padding_mode: str = "constant"
    cval: float = 0.0

    def window(self, size: Sequence[int]) -> tuple[int, ...]:
        """The window for an image of `size`."""
        if len(self.roi) != len(size):
            msg = f"a window {self.roi} does not fit an image with {len(size)} axes"
            raise ValueError(msg)
        return tuple(int(r) if r and r > 0 else int(n) for r, n in zip(self.roi, size, strict=True))

    def padding(self, size: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Voxels added before and after the image along each axis so that a window fits."""
        missing = [max(w - n, 0) for w, n in zip(self.window(size), size, strict=True)]
        return tuple((m // 2, m - m // 2) for m in missing)

    def starts(self, size: Sequence[int]) -> list[list[int]]:
        """First voxel of the windows along each axis, in the padded image; the last window ends with the image."""
        overlaps = self.overlap if len(self.overlap) == len(size) else (self.overlap[0],) * len(size)
        out = []
        for n, w, overlap in zip(size, self.window(size), overlaps, strict=True):
            extent = max(n, w)
            step = w if w == extent else max(int(w * (1 - overlap)), 1)
            count = math.ceil(max(extent - w, 0) / step) + 1
            out.append([min(i * step, extent - w) for i in range(count)])
        return out

    def count(self, size: Sequence[int]) -> int:
        """Number of windows of an image of `size`."""
        return math.prod(len(s) for s in self.starts(size))

    def weights(self, window: Sequence[int], device: torch.device) -> torch.Tensor:
        """What a window's voxels count, shape `window`, float32."""
        return compute_importance_map(
            tuple(window), mode=self.mode, sigma_scale=self.sigma_scale, device=device, dtype=torch.float32
        )


@dataclasses.dataclass
class _Segment:
    """A stretch of the result between two window borders along the streaming axis."""

    start: int
    stop: int
    values: torch.Tensor | None = None  # (channel, ...)
    weights: torch.Tensor | None = None  # (1, ...)
    final: bool = False


class Field:
    """The blended output of a network over one image, computed along one axis as far as it is asked for.

    Args:
        image: (channel, *spatial) float tensor, on any device.
        predict: maps windows (batch, channel, *window) to (batch, class, *window).
        tiling: layout and weights of the windows.
        axis: spatial axis along which :meth:`read` proceeds.
        box: the part of the image that will be read; windows that do not touch it are never computed.
        flips: spatial axes along which the image is mirrored before the windows are laid out; the result is mirrored
            back, so that it can be averaged with the unmirrored one.
        falling: whether it will be read from the axis's end to its beginning.
        batch: windows a call of `predict`.
        device: where `predict` computes.
        store: where the sums are kept.
        on_windows: told how many windows were just done; may raise to stop.

    Example:
        >>> field = Field(image, network, Tiling((96, 96, 96)))  # doctest: +SKIP
        >>> for x in range(0, image.shape[1], 32):  # doctest: +SKIP
        ...     labels[x : x + 32] = field.read(x, x + 32).argmax(0)
        ...     field.release(x + 32)
    """

    def __init__(
        self,
        image: torch.Tensor,
        predict: Predict,
        tiling: Tiling,
        *,
        axis: int = 0,
        box: Box | None = None,
        flips: tuple[int, ...] = (),
        falling: bool = False,
        batch: int = 1,
        device: torch.device | str = "cpu",
        store: torch.device | str = "cpu",
        on_windows: Callable[[int], None] | None = None,
    ) -> None:
        size = tuple(image.shape[1:])
        self._predict = predict
        self._axis = axis
        self._falling = falling
        self._flip_dims = [f + 2 for f in flips]
        self._batch = batch
        self._device = torch.device(device)
        self._store = torch.device(store)
        self._on_windows = on_windows
        self._window = tiling.window(size)
        padding = tiling.padding(size)
        if flips:  # the mirrored image is padded, so the padding is mirrored, too
            padding = tuple(p[::-1] if i in flips else p for i, p in enumerate(padding))
        self._shift = [p[0] for p in padding]
        self._image = padded(image, padding, tiling)
        whole = tuple((0, n) for n in size)
        box = whole if box is None else box
        self._box = tuple((a + s, b + s) for (a, b), s in zip(box, self._shift, strict=True))
        self._weights = tiling.weights(self._window, self._device)
        extents = self._image.shape[1:]
        starts = tiling.starts(size)
        starts = [
            [extents[i] - self._window[i] - s for s in axis_starts] if i in flips else axis_starts
            for i, axis_starts in enumerate(starts)
        ]
        self._todo = self._windows(starts)
        self.total = len(self._todo)
        self._next = 0
        self._segments = self._make_segments()

    @torch.inference_mode()
    def read(self, start: int, stop: int) -> torch.Tensor:
        """The result between two positions along the axis (image coordinates), the box's extent along the others.

        Returns:
            (class, *spatial) float32 on `store`.
        """
        shift = self._shift[self._axis]
        start, stop = start + shift, stop + shift
        while self._next < self.total and self._is_due(start, stop):
            self._run_batch()
        parts = []
        for segment in self._segments:
            if segment.stop <= start or segment.start >= stop:
                continue
            if segment.values is None or segment.weights is None:
                msg = f"rows {segment.start} to {segment.stop} were released or never covered by a window"
                raise RuntimeError(msg)
            if not segment.final:
                segment.values /= segment.weights
                segment.weights = segment.weights[:, :0]
                segment.final = True
            first = max(start, segment.start) - segment.start
            length = min(stop, segment.stop) - segment.start - first
            parts.append(segment.values.narrow(self._axis + 1, first, length))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=self._axis + 1)

    def release(self, before: int) -> None:
        """Forget what lies before a position along the axis (image coordinates)."""
        limit = before + self._shift[self._axis]
        for segment in self._segments:
            if segment.stop <= limit:
                segment.values = segment.weights = None

    def release_after(self, position: int) -> None:
        """Forget what lies from a position along the axis on (image coordinates)."""
        limit = position + self._shift[self._axis]
        for segment in self._segments:
            if segment.start >= limit:
                segment.values = segment.weights = None

    def _is_due(self, start: int, stop: int) -> bool:
        """Whether the next window may touch what is between two positions of the padded image."""
        begin = self._todo[self._next][self._axis]
        return begin + self._window[self._axis] > start if self._falling else begin < stop

    def _windows(self, starts: list[list[int]]) -> list[tuple[int, ...]]:
        """Starts of the windows that touch the box, those first that begin first along the axis."""
        kept = [
            [s for s in axis_starts if s < stop and s + w > first]
            for axis_starts, (first, stop), w in zip(starts, self._box, self._window, strict=True)
        ]
        corners = list(itertools.product(*kept))
        sign = -1 if self._falling else 1
        return sorted(corners, key=lambda corner: sign * corner[self._axis])  # stable: the others stay in order

    def _make_segments(self) -> list[_Segment]:
        first, stop = self._box[self._axis]
        cuts = {first, stop}
        for corner in self._todo:
            begin = corner[self._axis]
            cuts.update(c for c in (begin, begin + self._window[self._axis]) if first < c < stop)
        ordered = sorted(cuts)
        return [_Segment(a, b) for a, b in itertools.pairwise(ordered)]

    def _run_batch(self) -> None:
        corners = self._todo[self._next : self._next + self._batch]
        windows = [
            self._image[(slice(None), *(slice(s, s + w) for s, w in zip(c, self._window, strict=True)))]
            for c in corners
        ]
        data = torch.stack(windows).to(self._device)
        if self._flip_dims:
            data = data.flip(self._flip_dims)
        output = self._computed(data)
        if self._flip_dims:
            output = output.flip(self._flip_dims)
        weighted = (output * self._weights).to(self._store)
        weights = self._weights.to(self._store)
        for corner, part in zip(corners, weighted, strict=True):
            self._add(corner, part, weights)
        self._next += len(corners)
        if self._on_windows is not None:
            self._on_windows(len(corners))

    def _computed(self, data: torch.Tensor) -> torch.Tensor:
        remedy = "Choose a window (tile) of the size that the model's card gives, or a multiple of 32 a side."
        try:
            output = self._predict(data)
        except (RuntimeError, ValueError) as error:
            if device.is_out_of_memory(error):
                raise
            raise WindowRefused(
                f"The model's network fails on a window of {_times(self._window)} voxels.",
                (str(error).strip().splitlines() or [type(error).__name__])[0],
                remedy,
            ) from error
        if tuple(output.shape[2:]) != self._window:
            raise WindowRefused(
                f"The model answers a window of {_times(self._window)} voxels with one of {_times(output.shape[2:])}.",
                "Its network changes the size, or the window does not suit it.",
                remedy,
            )
        return output

    def _add(self, corner: tuple[int, ...], part: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a weighted window (class, *window) to the segments it touches."""
        source: list[slice] = []
        target: list[slice] = []
        for (first, stop), s, w in zip(self._box, corner, self._window, strict=True):
            a, b = max(first, s), min(stop, s + w)
            source.append(slice(a - s, b - s))
            target.append(slice(a - first, b - first))
        k = self._axis
        for segment in self._segments:
            a, b = max(segment.start, corner[k]), min(segment.stop, corner[k] + self._window[k])
            if a >= b:
                continue
            source[k] = slice(a - corner[k], b - corner[k])
            target[k] = slice(a - segment.start, b - segment.start)
            if segment.values is None or segment.weights is None:
                shape = [stop - first for first, stop in self._box]
                shape[k] = segment.stop - segment.start
                segment.values = torch.zeros((part.shape[0], *shape), dtype=torch.float32, device=self._store)
                segment.weights = torch.zeros((1, *shape), dtype=torch.float32, device=self._store)
            segment.values[(slice(None), *target)] += part[(slice(None), *source)]
            segment.weights[0][tuple(target)] += weights[tuple(source)]


def accumulator_bytes(tiling: Tiling, size: Sequence[int], classes: int, axis: int, box: Box | None = None) -> int:
    """Most memory a :class:`Field` holds for its sums while it is read in thin parts and released behind."""
    box = tuple((0, n) for n in size) if box is None else box
    window = tiling.window(size)
    cross = math.prod(stop - first for i, (first, stop) in enumerate(box) if i != axis)
    depth = min(2 * window[axis], box[axis][1] - box[axis][0])
    if len(tiling.starts(size)[axis]) > 1:
        depth = min(depth, window[axis] + max(int(window[axis] * (1 - max(tiling.overlap))), 1))
    return 4 * (classes + 1) * cross * depth


def sliding_window(image: torch.Tensor, predict: Predict, tiling: Tiling, **options: Any) -> torch.Tensor:
    """The whole blended output at once, (class, *spatial): :class:`Field` read from end to end."""
    axis = options.get("axis", 0)
    field = Field(image, predict, tiling, **options)
    first, stop = options.get("box", tuple((0, n) for n in image.shape[1:]))[axis]
    return field.read(first, stop)


def padded(image: torch.Tensor, padding: Sequence[tuple[int, int]], tiling: Tiling) -> torch.Tensor:
    """An image (channel, *spatial) with voxels added before and after, as the tiling wants them."""
    if not any(a or b for a, b in padding):
        return image
    flat = [n for pair in reversed(padding) for n in pair]
    if tiling.padding_mode == "constant":
        return functional.pad(image, flat, value=tiling.cval)
    return functional.pad(image[None], flat, mode=tiling.padding_mode)[0]


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(int(n)) for n in shape)

"""How large a window and a batch fit the memory that is free, and what to try when they did not.

The need of a window follows from a small one, computed once while the bytes alive at a time are counted; what the
estimate gets wrong, trying and falling back puts right.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch.utils._pytree import tree_leaves

from .. import device
from .sliding_window import Tiling

#: Convolutions copy and unfold their input: what they take beyond the tensors they return, as a factor.
WORKSPACE = 2.0
#: Part of the free memory that a window may take.
SHARE = 0.7
#: No window is made narrower than this; deep networks need some voxels at their lowest level.
SMALLEST = 32


@dataclasses.dataclass(frozen=True)
class Setup:
    """One way to compute a segmentation.

    Attributes:
        tilings: a model's windows each.
        batch: windows computed at once, a model each.
        device: where the networks compute.
        store: where the sums of overlapping windows are kept.
    """

    tilings: tuple[Tiling, ...]
    batch: tuple[int, ...]
    device: torch.device
    store: torch.device


class _LiveBytes:
    """Counts the bytes of tensors that enter or leave a network's modules and are alive at a time; keeps the most.

    (A torch dispatch mode would see every tensor, but importing what it needs takes 2 s.)
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network
        self._owners: dict[int, int] = {}
        self._seen: set[int] = set()
        self._now = 0
        self.most = 0

    def __enter__(self) -> Self:
        self._handles = []
        for module in self._network.modules():
            self._handles.append(module.register_forward_pre_hook(lambda _, inputs: self._see(inputs)))
            self._handles.append(module.register_forward_hook(lambda _, inputs, output: self._see(output)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, values: Any) -> None:
        for leaf in tree_leaves(values):
            if isinstance(leaf, torch.Tensor) and id(leaf) not in self._seen:
                self._born(leaf)

    def _born(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self._owners:
            self._owners[key] = 0
            self._now += size
            self.most = max(self.most, self._now)
        self._owners[key] += 1
        self._seen.add(id(tensor))
        weakref.finalize(tensor, self._gone, id(tensor), key, size)

    def _gone(self, name: int, key: int, size: int) -> None:
        self._seen.discard(name)
        self._owners[key] -= 1
        if self._owners[key] == 0:
            del self._owners[key]
            self._now -= size


def bytes_per_voxel(network: torch.nn.Module, channels: int, window: Sequence[int]) -> float | None:
    """Bytes of activations a voxel of a window takes at most; None when the network refuses a small window.

    A small window is computed (some 20 ms) and the tensors alive at a time are counted.

    Args:
        network: on the device where it will compute.
        channels: of its input.
        window: the window it is meant for; the one computed is at most 32 voxels wide.
    """
    small = [min(int(n), SMALLEST) for n in window]
    place = next(network.parameters()).device
    data = torch.zeros((1, channels, *small), device=place)
    try:
        with torch.inference_mode(), _LiveBytes(network) as live:
            network(data)
    except (RuntimeError, ValueError, AssertionError):
        return None  # made for one window size only (a vision transformer), say: memory is found out by trying
    return (live.most + data.nbytes) * WORKSPACE / math.prod(small)


def fitted(
    tiling: Tiling, batch: int, size: Sequence[int], per_voxel: float | None, free: int | None
) -> tuple[Tiling, int]:
    """The window and batch that fit the free memory: the batch shrinks first, then the window.

    Args:
        tiling: the windows as the model or the user wants them.
        batch: windows a step, likewise.
        size: spatial shape of the prepared image.
        per_voxel: bytes a voxel of a window takes, see :func:`bytes_per_voxel`.
        free: bytes. When this or `per_voxel` is None everything is left as it is.
    """
    if free is None or per_voxel is None:
        return tiling, batch
    while per_voxel * math.prod(tiling.window(size)) * batch > SHARE * free:
        if batch > 1:
            batch //= 2
            continue
        smaller = halved(tiling, size)
        if smaller is None:
            break
        tiling = smaller
    return tiling, batch


def halved(tiling: Tiling, size: Sequence[int]) -> Tiling | None:
    """The windows with the longest side halved (to a multiple of 16), None when they are as small as they may be."""
    window = list(tiling.window(size))
    longest = max(range(len(window)), key=lambda i: window[i])
    if window[longest] <= SMALLEST:
        return None
    window[longest] = max(SMALLEST, math.ceil(window[longest] / 2 / 16) * 16)
    return dataclasses.replace(tiling, roi=tuple(window))


def fallbacks(first: Setup, sizes: Sequence[Sequence[int]]) -> Iterator[tuple[Setup, str]]:
    """What to try, in order, each with a sentence for the reader; the first is what was asked for.

    One window at a time with the sums in host memory, then smaller windows, then the CPU with the windows asked for,
    then smaller windows there.

    Args:
        first: as asked for.
        sizes: spatial shape of the prepared image, a model each.
    """
    yield first, ""
    one = (1,) * len(first.batch)
    host = torch.device("cpu")
    for place in [first.device] if first.device.type == "cpu" else [first.device, host]:
        on = "" if place == first.device else "on the CPU, "
        setup = Setup(first.tilings, one, place, host)
        if setup != first:
            what = "with one window at a time" if place == first.device else "with windows as asked for"
            yield setup, f"Memory ran out on {device.describe(first.device)}; went on {on}{what}."
        while True:
            smaller = [halved(t, s) for t, s in zip(setup.tilings, sizes, strict=True)]
            if not any(smaller):
                break
            tilings = tuple(new or old for new, old in zip(smaller, setup.tilings, strict=True))
            setup = dataclasses.replace(setup, tilings=tilings)
            windows = " and ".join(
                dict.fromkeys(" x ".join(map(str, t.window(s))) for t, s in zip(tilings, sizes, strict=True))
            )
            yield setup, f"Memory ran out on {device.describe(first.device)}; went on {on}with windows of {windows}."

"""How much memory a method takes for a window, said beforehand; and a smaller window that fits where it is too much.

A small window is computed, and what it takes a voxel is counted (some 20 ms); that of a larger one follows from it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import nn

from .. import device as devices
from ..errors import OutOfMemory
from ..segmentation import tiles
from .methods import METHODS
from .scoring import forward_bytes
from .subject import Subject

#: Part of the free memory that a method may count on.
SHARE = 0.8
#: Windows are offered in multiples of this.
_STEP = 16
#: Images of the prepared volume's size that are held beside the network: it, its baseline, the map, sums, copies.
_COPIES = 6


@dataclasses.dataclass(frozen=True)
class Room:
    """What a method needs.

    Attributes:
        estimated: bytes; 0 where it can only be found out by trying.
        free: bytes.
    """

    estimated: int
    free: int


def bytes_per_voxel(network: nn.Module, channels: int, window: Sequence[int]) -> float | None:
    """Bytes a voxel of a window takes on its way through the network if everything is kept, as a gradient does.

    None when the network refuses a small window.
    """
    small = [min(int(n), tiles.SMALLEST) for n in window]
    place = next(network.parameters()).device
    try:
        with torch.no_grad():
            return forward_bytes(network, torch.zeros((1, channels, *small), device=place)) / math.prod(small)
    except (RuntimeError, ValueError, AssertionError):
        return None


def require(subject: Subject, method: str, *, unit: int | None = None, layer_channels: int = 0) -> Room:
    """Refuse a volume or window that is too large for a method.

    Args:
        subject: model and image.
        method: its name, or "attack".
        unit: one feature map is asked for.
        layer_channels: feature maps of the layer that is shown.

    Raises:
        OutOfMemory: says how much it takes and how much is free, and the window that fits.
    """
    free = devices.free_memory(subject.device)
    keeps = method == "attack" or METHODS[method].differentiates or method == "occlusion"
    per_voxel = (
        bytes_per_voxel(subject.network, subject.model.channels, subject.window)
        if keeps
        else tiles.bytes_per_voxel(subject.network, subject.model.channels, subject.window)
    )
    if per_voxel is None:
        return Room(0, free)
    maps = layer_channels if method == "activations" and unit is None else subject.model.channels
    whole = 4 * (_COPIES * subject.model.channels + 3 * maps) * math.prod(subject.size)
    needed = int(per_voxel * math.prod(subject.window) + (whole if subject.device.type == "cpu" else 0))
    if needed <= SHARE * free:
        return Room(needed, free)
    raise OutOfMemory(
        f"The volume is too large for {method}: a window of {_by(subject.window)} voxels takes about "
        f"{_size(needed)} of memory, and {_size(free)} are free.",
        "The method keeps what every layer gives." if keeps else "",
        _offer(subject, per_voxel, whole, free),
    )


def _offer(subject: Subject, per_voxel: float, whole: int, free: int) -> str:
    """What to do: a window that fits."""
    left = SHARE * free - (whole if subject.device.type == "cpu" else 0)
    window = list(subject.window)
    while per_voxel * math.prod(window) > left:
        longest = max(range(len(window)), key=lambda axis: window[axis])
        if window[longest] <= _STEP or not subject.dense:
            return "Crop the image to what matters, close other programs, or use a computer with more memory."
        window[longest] = max(_STEP, (window[longest] - 1) // _STEP * _STEP)
    sizes = " ".join(map(str, window))
    return (
        f"Give --crop {sizes}: a window of that size needs about {_size(int(per_voxel * math.prod(window)) + whole)}."
    )


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

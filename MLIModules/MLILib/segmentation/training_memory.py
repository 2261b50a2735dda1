"""What a training takes of the memory: bytes for each voxel of a step, found out on a small patch."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..bundle_parts import instantiate
from ..device import free_memory
from .plan import Memory

#: What convolutions copy beyond the tensors they return, and the gradients on the way back, as a factor.
_WORKSPACE = 2.0
#: The patch that is computed is no wider than this; a shifted window transformer needs 64.
_SMALL, _SMALL_TRANSFORMER = 32, 64


def at_hand(device: torch.device, patches: int = 1) -> Memory:
    """The memory that a training on `device` may take.

    Args:
        device: where.
        patches: how many a step looks at for each one of the batch.
    """

    def needed(network: dict[str, Any], patch: Sequence[int]) -> tuple[int, float]:
        parameters, voxel = need(network, patch)
        return parameters, patches * voxel

    return Memory(free_memory(device), device.type != "cpu", needed)


def need(network: dict[str, Any], patch: Sequence[int]) -> tuple[int, float]:
    """Parameters of a network, and bytes of activations that a step keeps for each voxel of a patch.

    The outputs of all layers are counted, since the way back needs them. Random numbers are left as they were.
    """
    return _need(repr(network), tuple(patch), _Frozen(network))


class _Frozen:
    """A definition that compares by nothing, so that the cache looks at its text alone."""

    def __init__(self, network: dict[str, Any]) -> None:
        self.network = network

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=16)
def _need(text: str, patch: tuple[int, ...], frozen: _Frozen) -> tuple[int, float]:
    most = _SMALL_TRANSFORMER if "SwinUNETR" in text else _SMALL
    small = [min(n, most) for n in patch]
    kept = 0

    def count(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal kept
        kept += sum(x.nbytes for x in tree_leaves(output) if isinstance(x, torch.Tensor))

    with torch.random.fork_rng(devices=[]):
        net = instantiate(frozen.network)
        for module in net.modules():
            if not list(module.children()):
                module.register_forward_hook(count)
        channels = int(frozen.network["in_channels"])
        net.eval()  # batch normalisation cannot take the one value that a deep layer may have left
        with torch.no_grad():
            net(torch.zeros((1, channels, *small)))
    return sum(p.numel() for p in net.parameters()), kept * _WORKSPACE / math.prod(small)

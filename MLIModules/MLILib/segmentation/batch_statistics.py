"""The statistics of batch normalisation, measured anew for averaged weights.

Running means follow the weights that are trained, some hundred steps late; a moving average of the weights needs its
own (Izmailov 2018; Wu and Johnson 2021). Without them a short training of a MobileNet finds nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def normed_by_batch(network: nn.Module) -> list[_BatchNorm]:
    """The layers of a network that keep running statistics."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def renew(network: nn.Module, batches: Iterable[torch.Tensor], dtype: torch.dtype | None = None) -> None:
    """Set running means and variances to the plain means over `batches` (N, channels, ...).

    The network computes in `dtype`, the half precision that it is trained in; None is float32. It is left in evaluation
    mode; nothing happens, and no batch is drawn, where it has no such layers.
    """
    layers = normed_by_batch(network)
    network.eval()
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's sign for a plain mean
        layer.train()
    try:
        for batch in batches:
            with torch.autocast(batch.device.type, dtype=dtype, enabled=dtype is not None):
                network(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()

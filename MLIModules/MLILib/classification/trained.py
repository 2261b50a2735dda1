"""What the training of a classifier hands to whoever writes the bundle."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from .figures import Figures


@dataclasses.dataclass
class Trained:
    """What a training gives.

    Attributes:
        definition: of the network, as a configuration names it.
        network: in evaluation mode, on the CPU, with the weights of the best epoch.
        size: of the images, pixels along x and y.
        classes: their number.
        best_epoch: counted from 1.
        chosen: its figures on the images that chose it.
        history: a row an epoch: epoch, loss, choosing_loss, auc, accuracy, seconds.
        images: numbers of those trained on and of those that chose.
        seconds: of the training.
        device: where.
    """

    definition: dict[str, Any]
    network: torch.nn.Module
    size: tuple[int, int]
    classes: int
    best_epoch: int
    chosen: Figures
    history: list[dict[str, float]]
    images: tuple[int, int]
    seconds: float
    device: str

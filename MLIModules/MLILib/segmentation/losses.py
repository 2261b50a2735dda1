"""What a segmentation network is trained to make small: cross-entropy plus soft Dice, and what may be added.

Label smoothing (Szegedy 2016) and class weights are the cross-entropy's; mixup (Zhang 2018) weighs the losses of both
labels of a mixed sample; the L1 norm is the weights' own. Without any of them this is MONAI's DiceCELoss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn


class SegmentationLoss(nn.Module):
    """Cross-entropy plus soft Dice of the labels without the background, over the batch.

    Args:
        label_smoothing: share of each voxel's certainty that is spread evenly over all classes.
        weights: of the classes in the cross-entropy, background first; None weighs all alike.
    """

    def __init__(self, label_smoothing: float = 0.0, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        # Dice sees no smoothed labels: its optimum would move away from the structure's size
        self.dice_ce = DiceCELoss(
            softmax=True, to_onehot_y=True, batch=True, include_background=False, label_smoothing=label_smoothing
        )
        if weights is not None:
            # the Dice part takes no weights, its classes count alike already
            self.dice_ce.cross_entropy = nn.CrossEntropyLoss(
                weight=torch.tensor(list(weights), dtype=torch.float32), label_smoothing=label_smoothing
            )

    def forward(self, logits: Tensor, labels: Tensor, other: Tensor | None = None, share: float = 1.0) -> Tensor:
        """The loss, a scalar.

        Args:
            logits: (N, classes, ...), float32.
            labels: (N, 1, ...) whole numbers.
            other: labels of the samples that were mixed in, None where none were.
            share: of the samples that `labels` are of, 0 to 1.
        """
        loss: Tensor = self.dice_ce(logits, labels)
        if other is None:
            return loss
        mixed: Tensor = self.dice_ce(logits, other)
        return share * loss + (1 - share) * mixed


def l1_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Sum of the absolute values of weights; of biases and norms (one axis) none."""
    return torch.stack([p.abs().sum() for p in parameters if p.ndim > 1]).sum()


def mixup_share(alpha: float, rng: np.random.Generator) -> float:
    """The share of the first of two samples, from Beta(alpha, alpha), at least a half: which is first is arbitrary."""
    share = float(rng.beta(alpha, alpha))
    return max(share, 1 - share)


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Class weights inversely proportional to how often each class occurs, of mean 1.

    A class that never occurs is weighed as the rarest that does.

    Args:
        counts: voxels of each class.
    """
    rarest = min((n for n in counts if n), default=1)
    inverse = [1.0 / (n or rarest) for n in counts]
    mean = sum(inverse) / len(inverse)
    return [w / mean for w in inverse]

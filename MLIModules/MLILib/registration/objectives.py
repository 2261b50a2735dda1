"""What a registration network is trained for: similar images, overlapping labels, smooth and unfolded transforms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .networks import Prediction
from .pairs import Batch
from .regularisers import diffusion, jacobian_penalty
from .requests import TrainRegistrationRequest
from .sampling import warp
from .similarity import loss as similarity_loss

#: Weight of folding, which is rare and must stay so.
_FOLDING = 10.0
#: Determinants below it count as folding: a transform that squeezes a voxel that much is about to.
_LEAST_DETERMINANT = 0.1


def objective(prediction: Prediction, batch: Batch, request: TrainRegistrationRequest) -> Tensor:
    """The loss of a prediction, a mean over the pairs; labels are looked at only with ``request.labels``."""
    u = prediction.displacement
    total = u.new_zeros(())
    if request.similarity != "none":
        total = total + similarity_loss(request.similarity, batch.fixed, warp(batch.moving, u)).mean()
    if prediction.velocities:
        velocity = prediction.velocities[-1]
        total = total + request.smoothness * diffusion(velocity).mean() / velocity.shape[1]
        total = total + _FOLDING * jacobian_penalty(u, _LEAST_DETERMINANT).mean()
    if request.labels:
        total = total + request.label_weight * overlap_loss(warp(batch.moving_labels, u), batch.fixed_labels)
        if prediction.structures is not None:
            total = total + request.label_weight * structure_loss(torch.cat(prediction.structures), batch)
        if prediction.atlas:
            total = total + request.label_weight * _atlas_loss(prediction.atlas, batch)
    return total


def _atlas_loss(atlas: dict[str, Tensor], batch: Batch) -> Tensor:
    """Overlap of the atlas with the labels of each image, on the atlas and, for the fixed image, on the image."""
    labels = atlas["labels"]
    both = torch.cat([batch.fixed_labels, batch.moving_labels])
    onto = warp(both, torch.cat([atlas["to_fixed"], atlas["to_moving"]]))
    back = warp(labels, atlas["from_fixed"])
    return overlap_loss(onto, labels.expand_as(onto)) + overlap_loss(back, batch.fixed_labels)


def overlap_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - soft Dice in the form of Milletari (2016), with squares in the denominator; over the batch, mean over labels.

    Args:
        found, wanted: soft label maps without the background, (N, labels, *shape).
    """
    axes = (0, *range(2, found.ndim))
    shared = (found * wanted).sum(axes)
    whole = found.square().sum(axes) + wanted.square().sum(axes)
    return (1 - 2 * shared / whole.clamp_min(1e-6)).mean()


def structure_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy plus soft Dice of the structures marked in both images, against their own labels.

    Args:
        logits: (2 N, labels + 1, *shape), of the fixed images and then of the moving ones.
        batch: the pairs.
    """
    wanted = torch.cat([batch.fixed_labels, batch.moving_labels])
    background = (1 - wanted.sum(1, keepdim=True)).clamp_min(0)
    entropy = functional.cross_entropy(logits, torch.cat([background, wanted], 1))
    return entropy + overlap_loss(logits.softmax(1)[:, 1:], wanted)

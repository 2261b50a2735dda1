"""What a registration network is trained for: similar images, overlapping labels, smooth and unfolded transforms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .networks import Prediction
from .pairs import Batch
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
        total = total + request.smoothness * diffusion(prediction.velocities[-1]).mean()
        total = total + _FOLDING * folding(u).mean()
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


def diffusion(field: Tensor) -> Tensor:
    """Mean over voxels and components of the squared slope, summed over the axes, (N,)."""
    axes = range(2, field.ndim)
    return sum((field.diff(dim=axis).square().flatten(1).mean(1) for axis in axes), field.new_zeros(len(field)))


def folding(u: Tensor) -> Tensor:
    """Mean over voxels of how far the Jacobian determinant of i + u(i) falls below its least value, (N,)."""
    d = u.ndim - 2
    inner = (slice(None), slice(None), *(slice(0, -1),) * d)
    steps = []
    for axis in range(d):
        one = [slice(None), slice(None), *(slice(0, -1),) * d]
        one[2 + axis] = slice(1, None)
        steps.append(u[tuple(one)] - u[inner])
    # rows are components, columns axes
    rows = [[steps[axis][:, k] + float(k == axis) for axis in range(d)] for k in range(d)]
    if d == 2:
        determinant = rows[0][0] * rows[1][1] - rows[0][1] * rows[1][0]
    else:
        a, b, c = rows
        determinant = (
            a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])
        )
    return (_LEAST_DETERMINANT - determinant).clamp_min(0).flatten(1).mean(1)

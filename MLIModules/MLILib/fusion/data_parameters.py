"""Data parameters: one number theta for each noisy label map, which says how far it is to be trusted (Saxena 2019).

Here are the number, the losses that move it and the network, and what is made of it in the end, after DeepSTAPLE
(Weihsbach 2022): weights of a batch, their fixed weighting by the labels' size, risk regularisation, consensus weights.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Exponent of the class weights.
CLASS_WEIGHT_EXPONENT = -0.35


class DataParameters(nn.Embedding):
    """theta of each label map, 0 at first; only those that are looked up get a gradient."""

    def __init__(self, count: int) -> None:
        super().__init__(count, 1, sparse=True, _weight=torch.zeros(count, 1))

    def forward(self, input: Tensor) -> Tensor:
        """theta of the label maps `input`, (n,)."""
        return super().forward(input)[..., 0]

    def values(self) -> Tensor:
        """All of them, (count,), detached."""
        return self.weight.detach()[:, 0].clone()


def class_weights(counts: Tensor) -> Tensor:
    """Weights n^-0.35 of classes with `counts` voxels, (classes,), with mean 1; a class without a voxel counts as one.

    Rare classes weigh more, but less than in proportion.
    """
    weights = counts.double().clamp(min=1).pow(CLASS_WEIGHT_EXPONENT)
    return (weights / weights.mean()).float()


def fixed_weighting(foreground: Tensor) -> Tensor:
    """ln(n + e) + e of label maps with `foreground` voxels n that are not background: large structures cost more."""
    return torch.log(foreground.double() + math.e).float() + math.e


def label_weights(theta: Tensor, foreground: Tensor) -> Tensor:
    """w of the label maps of a batch, (n,): sigmoid(theta) over its mean, divided by the fixed weighting."""
    weights = torch.sigmoid(theta)
    return weights / weights.mean() / fixed_weighting(foreground)


def network_loss(logits: Tensor, labels: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Class-weighted cross-entropy of every label map with what the network says of its image; theta has no part.

    Args:
        logits: (images, classes, *space).
        labels: the label maps of each image, (n, *space), whole numbers.
        weights: of the classes, (classes,).

    Returns:
        As torch's cross_entropy(weight=...) of all pairs of image and label map: a mean with the voxels' class weights.
    """
    logarithms = functional.log_softmax(logits.float(), dim=1)
    # An image's label maps share its logits: their votes are counted first, and each voxel is looked at once.
    votes = torch.stack([_votes(maps, logits.shape[1]) for maps in labels])
    votes = votes * weights.view(1, -1, *(1,) * (votes.ndim - 2))
    return -(votes * logarithms).sum() / votes.sum()


def label_losses(logits: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """Unweighted cross-entropy of each label map with what the network says of its image, a mean over voxels.

    Args:
        logits, labels: as in :func:`network_loss`.

    Returns:
        (label maps of all images), image by image.
    """
    logarithms = functional.log_softmax(logits.float(), dim=1)
    out: list[Tensor] = []
    for image, maps in zip(logarithms, labels, strict=True):
        flat = image.flatten(1)  # (classes, voxels)
        out.extend(-flat.gather(0, one.flatten()[None].long()).mean() for one in maps)
    return torch.stack(out)


def predicted_share(logits: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """Share of the voxels that the network calls foreground, for each label map of each image; without gradient."""
    share = (logits.detach().argmax(dim=1) > 0).flatten(1).float().mean(dim=1)
    return torch.cat([one.expand(len(maps)) for one, maps in zip(share, labels, strict=True)])


def theta_loss(losses: Tensor, weights: Tensor, share: Tensor, risk: float = 1.0) -> Tensor:
    """What the data parameters minimise: sum of w times the label maps' loss, minus w times the predicted foreground.

    The second term is the risk regularisation: without it those labels win that say little.

    Args:
        losses: of :func:`label_losses`.
        weights: of :func:`label_weights`.
        share: of :func:`predicted_share`.
        risk: factor of the second term.
    """
    return (weights * losses).sum() - risk * (weights * share).sum()


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """The network as it is trained, but without gradients, dropout or any change of its running means."""
    asked = [p.requires_grad for p in network.parameters()]
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracked = [m.track_running_stats for m in norms]
    dropping = [m for m in network.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    network.requires_grad_(False)
    for norm in norms:
        norm.track_running_stats = False
    for dropout in dropping:
        dropout.eval()
    try:
        yield
    finally:
        for parameter, wanted in zip(network.parameters(), asked, strict=True):
            parameter.requires_grad_(wanted)
        for norm, was in zip(norms, tracked, strict=True):
            norm.track_running_stats = was
        for dropout in dropping:
            dropout.train()


def consensus_weights(theta: Tensor) -> Tensor:
    """Weights of the votes of one target's label maps, (n,): the softmax over their theta."""
    return torch.softmax(theta.double(), dim=0)


def _votes(maps: Tensor, classes: int) -> Tensor:
    """How many of the label maps (n, *space) give each class, (classes, *space)."""
    votes = torch.zeros((classes, *maps.shape[1:]), device=maps.device)
    one = torch.ones((1, *maps.shape[1:]), device=maps.device)
    for labels in maps:
        votes.scatter_add_(0, labels[None].long(), one)
    return votes

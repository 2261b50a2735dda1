"""What an attack costs: Dice or accuracy against epsilon, and the linear argument for why so little does so much.

A unit of the first layer sums over n inputs; an image changed by epsilon along the signs of its weights, whose mean
magnitude is m, changes it by epsilon m n (Goodfellow, Shlens and Szegedy 2015, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import BadInput
from ..progress import Progress
from .attack import Attack, fgsm, fitting
from .scoring import Score

Measure = Callable[[Any, torch.Tensor], torch.Tensor]


def accuracy(output: Any, truth: torch.Tensor) -> torch.Tensor:
    """The part of an image's labels that the network gets right: (N,) of 0 or 1 for a classifier.

    Args:
        output: logits (N, K, ...); K = 1 is the logit of label 1.
        truth: (N, ...) labels.
    """
    right = _predicted(output) == fitting(truth, output)
    return right.reshape(len(right), -1).double().mean(1)


def dice(output: Any, truth: torch.Tensor) -> torch.Tensor:
    """Dice of a segmenter, the mean over the labels above 0 that the truth or the prediction has: (N,).

    An image without such a label counts 1.

    Args:
        output: logits (N, K, *shape); K = 1 is the logit of label 1.
        truth: (N, *shape) labels.
    """
    found, wanted = _predicted(output), fitting(truth, output)
    each = []
    for ours, theirs in zip(found, wanted, strict=True):
        labels = [label for label in torch.unique(torch.cat((ours.flatten(), theirs.flatten()))).tolist() if label > 0]
        pairs = [(ours == label, theirs == label) for label in labels]
        overlap = [2.0 * int((a & b).sum()) / int(a.sum() + b.sum()) for a, b in pairs]
        each.append(sum(overlap) / len(overlap) if overlap else 1.0)
    return torch.tensor(each, dtype=torch.float64)


def _predicted(output: Any) -> torch.Tensor:
    return (output[:, 0] > 0).long() if output.shape[1] == 1 else output.argmax(1)


@dataclass(frozen=True)
class CurvePoint:
    """How well a network does on images attacked with one epsilon.

    Attributes:
        epsilon: in intensities as the network sees them.
        values: the measure of each image.
        loss: mean loss of the attacked images.
    """

    epsilon: float
    values: tuple[float, ...]
    loss: float

    @property
    def mean(self) -> float:
        """Over the images."""
        return sum(self.values) / len(self.values)


def attack_curve(
    network: nn.Module,
    image: torch.Tensor,
    truth: torch.Tensor,
    loss: Score,
    epsilons: Sequence[float],
    *,
    measure: Measure = accuracy,
    attack: Attack = fgsm,
    progress: Progress | None = None,
) -> list[CurvePoint]:
    """A measure of attacked images against epsilon.

    Args:
        network: in evaluation mode.
        image: (N, C, *shape), as the network sees it.
        truth: (N, ...) labels that the measure compares with.
        loss: turns the output into (N,); that of `truth`, or of what a targeted attack aims at.
        epsilons: in intensities of `image`; in any order.
        measure: such as :func:`accuracy` or :func:`dice`.
        attack: such as :func:`fgsm`, or a `functools.partial` of :func:`pgd` with its options.
        progress: told how far it is.

    Raises:
        BadInput: there is no epsilon, or the attack refuses one.
    """
    if not len(epsilons):
        raise BadInput("A curve needs points.", "No epsilon is given.", "Give at least one.")
    progress = progress or Progress()
    points = []
    for index, epsilon in enumerate(sorted(float(e) for e in epsilons)):
        progress.fraction(index / len(epsilons))
        attacked = attack(network, image, loss, epsilon)
        with torch.no_grad():
            values = measure(network(attacked.perturbed), truth)
        points.append(CurvePoint(epsilon, tuple(values.tolist()), float(attacked.loss_after.mean())))
    progress.fraction(1.0)
    return points


@dataclass(frozen=True)
class LinearArgument:
    """What a change of epsilon in each voxel can do to the first layer.

    Attributes:
        layer: name of the layer.
        epsilon: in intensities as the network sees them.
        inputs: n, how many inputs a unit sums over.
        weight: m, mean magnitude of a weight.
        change: epsilon m n, the change along the signs of the weights, mean over the layer's units.
        largest: the same of the unit that changes most.
        noise: mean standard deviation of the units' change when epsilon's sign is random in each voxel.
    """

    layer: str
    epsilon: float
    inputs: int
    weight: float
    change: float
    largest: float
    noise: float


@torch.no_grad()
def linear_argument(network: nn.Module, image: torch.Tensor, epsilon: float) -> LinearArgument:
    """The numbers of the linear argument for the first layer that the image meets.

    Args:
        network: in evaluation mode; it is run once.
        image: (N, C, *shape); its first image is used.
        epsilon: in intensities of `image`.

    Raises:
        BadInput: the network has no linear layer or convolution, or meets another layer with weights first.
    """
    met: list[tuple[str, nn.Module]] = []
    hooks = [
        module.register_forward_hook(lambda module, _, __, name=name: met.append((name, module)))
        for name, module in network.named_modules()
        if not any(module.children()) and any(parameter.ndim > 1 for parameter in module.parameters())
    ]
    try:
        network(image[:1])
    finally:
        for hook in hooks:
            hook.remove()
    if not met or not isinstance(met[0][1], (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        first = f"{met[0][0]} ({type(met[0][1]).__name__})" if met else "none"
        raise BadInput(
            "The linear argument needs a first layer that sums over its input.",
            f"The first layer with weights is {first}.",
            "Choose a network that begins with a convolution or a linear layer.",
        )
    name, layer = met[0]
    weights = layer.weight.detach().double().flatten(1)  # type: ignore[operator]
    reach = epsilon * weights.abs().sum(1)
    return LinearArgument(
        name,
        float(epsilon),
        weights.shape[1],
        float(weights.abs().mean()),
        float(reach.mean()),
        float(reach.max()),
        float(epsilon * weights.norm(dim=1).mean()),
    )

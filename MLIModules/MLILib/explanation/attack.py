"""Adversarial images: the smallest change, in intensity, that does the most to a loss.

FGSM takes one step along the sign of the gradient (Goodfellow, Shlens and Szegedy 2015), PGD many small ones that stay
within epsilon of the image (Madry et al. 2018). Both work for classifiers and segmenters: only the loss differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..errors import BadInput
from ..progress import Progress
from .scoring import Score, require_evaluation, require_image, scored


@dataclass(frozen=True)
class Attacked:
    """An image before and after an attack.

    Attributes:
        clean: (N, C, *shape), as given.
        perturbed: of the same shape, within epsilon of `clean` in each voxel.
        loss_before: (N,), of the clean images.
        loss_after: (N,), of the perturbed images.
    """

    clean: torch.Tensor
    perturbed: torch.Tensor
    loss_before: torch.Tensor
    loss_after: torch.Tensor

    @property
    def difference(self) -> torch.Tensor:
        """What was added, in intensities as the network sees them."""
        return self.perturbed - self.clean


class CrossEntropy:
    """Cross-entropy of a network's logits with what is true, or with what an attack aims at.

    Works for classifiers, (N, K) logits, and segmenters, (N, K, *shape): there the mean over the voxels of an image.
    One channel alone, K = 1, is the logit of label 1 against 0.

    Args:
        truth: (N,) or (N, *shape) labels from 0 to K - 1; a (1, ...) tensor stands for all images.
    """

    def __init__(self, truth: torch.Tensor) -> None:
        self.truth = truth.long()

    def __call__(self, output: Any) -> torch.Tensor:
        """(N,) losses.

        Raises:
            BadInput: the labels do not suit the output.
        """
        truth = fitting(self.truth, output)
        if output.shape[1] == 1:
            each = functional.binary_cross_entropy_with_logits(output[:, 0], truth.to(output.dtype), reduction="none")
        else:
            each = functional.cross_entropy(output, truth, reduction="none")
        return each.reshape(len(each), -1).mean(1)


def fitting(truth: torch.Tensor, output: Any) -> torch.Tensor:
    """The labels as an output of a classifier or segmenter needs them, (N, *shape) for logits (N, K, *shape).

    Raises:
        BadInput: the output is none of one, the labels have another shape, or there are others than 0 to K - 1.
    """
    if not isinstance(output, torch.Tensor) or output.ndim < 2:
        raise BadInput(
            "The network's output cannot be compared with labels.",
            "It is no tensor of logits (N, K, ...).",
            "Choose a classifier or a segmenter.",
        )
    wanted = (len(output), *output.shape[2:])
    if tuple(truth.shape[1:]) != wanted[1:] or len(truth) not in (1, wanted[0]):
        raise BadInput(
            f"The labels have the shape {tuple(truth.shape)}, the network's output needs {wanted}.",
            "",
            "Give one label for each output.",
        )
    labels = max(2, output.shape[1])
    if truth.min() < 0 or truth.max() >= labels:
        raise BadInput(
            f"There are labels from {int(truth.min())} to {int(truth.max())}.",
            f"The network knows {labels}.",
            f"Give labels from 0 to {labels - 1}.",
        )
    return truth.to(output.device).expand(wanted)


def fgsm(
    network: nn.Module,
    image: torch.Tensor,
    loss: Score,
    epsilon: float,
    *,
    targeted: bool = False,
    bounds: tuple[float, float] | None = None,
) -> Attacked:
    """One step of `epsilon` along the sign of the loss' gradient (Goodfellow, Shlens and Szegedy 2015).

    Args:
        network: in evaluation mode.
        image: (N, C, *shape), as the network sees it.
        loss: turns the output into (N,), such as :class:`CrossEntropy`.
        epsilon: the largest change of a voxel, in intensities of `image`; 0 changes nothing.
        targeted: lower the loss, which is that of what the attack aims at, instead of raising it.
        bounds: lowest and highest intensity that an image can have.

    Raises:
        BadInput: `epsilon` or `bounds` make no sense, the image is outside of them, or no gradient reaches it.
    """
    _check(network, image, epsilon, bounds)
    clean = image.detach()
    before, gradient = loss_gradient(network, clean, loss)
    return Attacked(
        clean, *_finish(network, loss, step(clean, gradient, epsilon, targeted=targeted, bounds=bounds), before)
    )


def pgd(
    network: nn.Module,
    image: torch.Tensor,
    loss: Score,
    epsilon: float,
    *,
    steps: int = 10,
    step_size: float | None = None,
    seed: int | None = None,
    targeted: bool = False,
    bounds: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> Attacked:
    """Steps along the sign of the loss' gradient, brought back to within `epsilon` after each (Madry et al. 2018).

    Args:
        network: in evaluation mode.
        image: (N, C, *shape), as the network sees it.
        loss: turns the output into (N,).
        epsilon: the largest change of a voxel, in intensities of `image`; 0 changes nothing.
        steps: number of steps.
        step_size: in intensities; by default 2.5 epsilon / steps, from which any point of the box can be reached.
        seed: start at a random point of the box drawn with it, instead of at the image.
        targeted: lower the loss instead of raising it.
        bounds: lowest and highest intensity that an image can have.
        progress: told how far it is.

    Raises:
        BadInput: a number makes no sense, the image is outside of `bounds`, or no gradient reaches it.
    """
    _check(network, image, epsilon, bounds)
    length = 2.5 * epsilon / max(steps, 1) if step_size is None else step_size
    if steps < 1 or not (math.isfinite(length) and length >= 0):
        raise BadInput(
            f"{steps} steps of {length} are no attack.", "", "Give at least 1 step of a length of at least 0."
        )
    progress = progress or Progress()
    clean = image.detach()
    low, high = clean - epsilon, clean + epsilon
    if bounds is not None:
        low, high = low.clamp(*bounds), high.clamp(*bounds)
    now = clean
    if seed is not None:
        generator = torch.Generator(clean.device).manual_seed(seed)
        random = torch.rand(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
        now = (clean + epsilon * (2 * random - 1)).clamp(low, high)
    for index in range(steps):
        progress.fraction(index / steps)
        _, gradient = loss_gradient(network, now, loss)
        now = step(now, gradient, length, targeted=targeted).clamp(low, high)
    with torch.no_grad():
        before = scored(loss, network(clean), len(clean))
    progress.fraction(1.0)
    return Attacked(clean, *_finish(network, loss, now, before))


def step(
    image: torch.Tensor,
    gradient: torch.Tensor,
    length: float,
    *,
    targeted: bool = False,
    bounds: tuple[float, float] | None = None,
) -> torch.Tensor:
    """The image moved by `length` along the gradient's sign, against it if `targeted`; where it is 0 nothing moves."""
    moved = image + (-length if targeted else length) * gradient.sign()
    return moved if bounds is None else moved.clamp(*bounds)


def loss_gradient(network: nn.Module, image: torch.Tensor, loss: Score) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each image, (N,), and its gradient, (N, C, *shape); the parameters' own gradients stay as they are.

    Raises:
        BadInput: no gradient, or none that is finite, reaches the image.
    """
    with torch.enable_grad():
        given = image.detach().clone().requires_grad_(True)
        losses = scored(loss, network(given), len(given))
        if not losses.requires_grad:
            raise BadInput(
                "No gradient reaches the image.",
                "A step of the network, or of what is measured, cannot be differentiated (such as argmax or rounding).",
                "Choose a network that gives logits.",
            )
        (gradient,) = torch.autograd.grad(losses.sum(), given, allow_unused=True)
    if gradient is None:
        raise BadInput("The network's output does not depend on the image.", "", "Choose another output.")
    if not torch.isfinite(gradient).all():
        raise BadInput(
            "The gradient is not finite.",
            "The image holds values that are not, or are far from what the network was trained on.",
            "Check the image's intensities.",
        )
    return losses.detach(), gradient


Attack = Callable[[nn.Module, torch.Tensor, Score, float], Attacked]


@torch.no_grad()
def _finish(
    network: nn.Module, loss: Score, perturbed: torch.Tensor, before: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return perturbed, before, scored(loss, network(perturbed), len(perturbed))


def _check(network: nn.Module, image: torch.Tensor, epsilon: float, bounds: tuple[float, float] | None) -> None:
    require_evaluation(network)
    require_image(image)
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise BadInput(f"An image cannot be changed by {epsilon}.", "", "Give an epsilon of at least 0.")
    if bounds is None:
        return
    low, high = bounds
    if not low < high:
        raise BadInput(f"There is no intensity between {low:g} and {high:g}.", "", "Give the lower bound first.")
    if image.min() < low or image.max() > high:
        raise BadInput(
            f"The image's intensities, {float(image.min()):g} to {float(image.max()):g}, exceed {low:g} to {high:g}.",
            "Bounds are in intensities as the network sees them.",
            "Give bounds that hold the image, or none.",
        )

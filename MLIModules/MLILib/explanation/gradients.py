"""What a small change of each voxel does to a score: gradient, gradient x input, integrated gradients, SmoothGrad.

Simonyan 2013 (gradient), Shrikumar 2016 (x input), Sundararajan 2017 (integrated), Smilkov 2017 (SmoothGrad). Maps have
the image's shape and keep the sign; the network and its parameters' gradients stay as they are.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn

from ..errors import BadInput
from .scoring import batch_size, require_evaluation, require_image, scored
from .targets import Target, held
from .tracing import Step, trace

#: Operations without a gradient, or with one of 0 wherever they have one.
_STEPS = frozenset(
    ("argmax", "argmin", "argsort", "bitwise_and", "bitwise_not", "bitwise_or", "bucketize", "ceil", "count_nonzero",
     "eq", "floor", "floor_divide", "ge", "gt", "heaviside", "isfinite", "isnan", "le", "logical_and", "logical_not",
     "logical_or", "lt", "ne", "one_hot", "round", "searchsorted", "sign", "trunc", "detach")
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class IntegratedGradients:
    """A path's sum and how far it is from complete.

    Attributes:
        map: (N, C, *shape), the contribution of each voxel.
        score: (N,) of the image.
        baseline_score: (N,) of the baseline.
        error: (N,) of float64, completeness error: how far the map's sum is from `score - baseline_score`, as a share
            of that difference. inf where the difference is 0 and the sum is not.
        steps: gradients that were taken on the path.
    """

    map: torch.Tensor
    score: torch.Tensor
    baseline_score: torch.Tensor
    error: torch.Tensor
    steps: int


def gradient(network: nn.Module, image: torch.Tensor, target: Target) -> torch.Tensor:
    """Derivative of the score by each voxel (Simonyan 2013, there "saliency", of which they show the magnitude).

    Args:
        network: in evaluation mode.
        image: (N, C, *shape), float32 or float64.
        target: what is explained, see :mod:`MLILib.explanation.targets`.

    Returns:
        (N, C, *shape), score per unit of intensity, signed.

    Raises:
        BadInput: the target does not fit the output, or no gradient passes the network; says which step stops it.
    """
    require_evaluation(network)
    require_image(image)
    return score_gradient(network, image, held(target, network, image), len(image))[0]


def gradient_times_input(network: nn.Module, image: torch.Tensor, target: Target) -> torch.Tensor:
    """:func:`gradient` times the intensity: what a voxel contributes to a linear network (Shrikumar 2016).

    Args, returns and raises as :func:`gradient`; the map is in units of the score.
    """
    return gradient(network, image, target) * image.detach()


def integrated_gradients(
    network: nn.Module,
    image: torch.Tensor,
    target: Target,
    *,
    baseline: torch.Tensor | float = 0.0,
    steps: int = 50,
    batch: int | None = None,
) -> IntegratedGradients:
    """Gradients on the way from a baseline to the image, summed (Sundararajan 2017, equation 1).

    ::

        map = (x - b) * integral over a from 0 to 1 of the gradient at b + a (x - b)

    by the Gauss-Legendre rule. The sum of the map is the difference of the scores, but
    for :attr:`IntegratedGradients.error`.

    Args:
        network: in evaluation mode.
        image: (N, C, *shape).
        target: what is explained. A predicted region is that of the image, all the way.
        baseline: (N, C, *shape), or what can be broadcast to it, or an intensity.
        steps: nodes of the rule.
        batch: images that go through the network at once; by default as many as fit into memory.

    Raises:
        BadInput: as :func:`gradient`; no steps, or a baseline of another shape.
    """
    require_evaluation(network)
    require_image(image)
    if steps < 1:
        raise BadInput(f"A path of {steps} steps cannot be integrated.", "", "Give 1 step or more.")
    image = image.detach()
    start = _baseline(baseline, image)
    target = held(target, network, image)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    places = torch.as_tensor((1 + nodes) / 2, dtype=image.dtype, device=image.device)
    shares = torch.as_tensor(weights / 2, dtype=image.dtype, device=image.device)
    total = torch.zeros_like(image)
    size = _steps_at_once(network, image, batch)
    for place, share in zip(places.split(size), shares.split(size), strict=True):
        wide = (len(place), *(1,) * image.ndim)
        points = start + place.reshape(wide) * (image - start)
        found, _ = score_gradient(network, points.flatten(0, 1), target, len(image))
        total += (share.reshape(wide) * found.unflatten(0, (len(place), len(image)))).sum(0)
    result = total * (image - start)
    with torch.no_grad():
        score, other = (scored(target, network(part), len(image)) for part in (image, start.expand_as(image)))
    difference = score.double() - other.double()
    gap = (result.double().flatten(1).sum(1) - difference).abs()
    error = torch.where(gap == 0, 0.0, gap / difference.abs())
    return IntegratedGradients(result, score, other, error, steps)


def smoothgrad(
    network: nn.Module,
    image: torch.Tensor,
    target: Target,
    *,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    batch: int | None = None,
) -> torch.Tensor:
    """Mean of the gradients of noisy copies of the image (Smilkov 2017).

    Args:
        network: in evaluation mode.
        image: (N, C, *shape).
        target: what is explained. A predicted region is that of the image without noise.
        samples: noisy copies.
        noise: standard deviation of the Gaussian noise, as a share of the image's range; they advise 0.1 to 0.2.
        seed: of the noise; the same seed gives the same map on any device and with any `batch`, but for rounding.
        batch: images that go through the network at once; by default as many as fit into memory.

    Returns:
        (N, C, *shape).

    Raises:
        BadInput: as :func:`gradient`; no samples, or negative noise.
    """
    require_evaluation(network)
    require_image(image)
    if samples < 1 or not noise >= 0:
        raise BadInput(f"{samples} samples with noise of {noise} make no mean.", "",
                       "Give 1 sample or more, and noise of 0 or more.")  # fmt: skip
    image = image.detach()
    target = held(target, network, image)
    flat = image.flatten(1)
    sigma = (noise * (flat.amax(1) - flat.amin(1))).reshape(-1, *(1,) * (image.ndim - 1))
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(image)
    left = samples
    size = _steps_at_once(network, image, batch)
    while left > 0:
        count = min(size, left)
        # one at a time, so that the numbers do not depend on the batch
        drawn = [torch.randn(image.shape, generator=generator, dtype=image.dtype) for _ in range(count)]
        points = image + sigma * torch.stack(drawn).to(image.device)
        found, _ = score_gradient(network, points.flatten(0, 1), target, len(image))
        total += found.unflatten(0, (count, len(image))).sum(0)
        left -= count
    return total / samples


def score_gradient(
    network: nn.Module, images: torch.Tensor, target: Target, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the scores of several versions of a batch.

    Args:
        network: in evaluation mode.
        images: (M x count, C, *shape), M versions one after the other.
        target: called once for each version.
        count: images of one version.

    Returns:
        The gradients, (M x count, C, *shape), and the scores, (M x count,).

    Raises:
        BadInput: no gradient passes the network; says which step stops it.
    """
    leaf = images.detach().as_subclass(torch.Tensor).clone().requires_grad_()
    with torch.enable_grad():
        # a clone, because a network may work on its input in place
        output = network(leaf.clone())
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            raise _no_gradient(network, images)
        scores = torch.cat([scored(target, part, count) for part in output.split(count)])
        (found,) = torch.autograd.grad(scores.sum(), leaf)
    if not bool(found.any()):
        # a score may be flat here; a step function makes it flat everywhere
        stopping = _stopping_steps(network, images)
        if stopping:
            raise _stopped(f"the operation {stopping[0].operation} in {stopping[0].place}")
    return found, scores.detach()


def _steps_at_once(network: nn.Module, image: torch.Tensor, batch: int | None) -> int:
    """How many versions of the whole batch of images go through the network together."""
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None for m in network.modules()):
        return 1  # it normalises over the batch: versions beside each other would change each other
    if batch is None:
        # a gradient keeps what the forward pass made until the backward pass has used it
        batch = batch_size(network, image[:1]) // 2
    return max(1, batch // len(image))


def _baseline(baseline: torch.Tensor | float, image: torch.Tensor) -> torch.Tensor:
    start = torch.as_tensor(baseline, dtype=image.dtype, device=image.device).detach()
    try:
        return start.expand_as(image)
    except RuntimeError:
        raise BadInput(f"The baseline has shape {tuple(start.shape)}, the image {tuple(image.shape)}.", "",
                       "Give a baseline of the image's shape, or one intensity.") from None  # fmt: skip


def _no_gradient(network: nn.Module, images: torch.Tensor) -> BadInput:
    """Which module takes something with a gradient and gives something without."""
    broken: list[str] = []
    handles = []

    def hook(name: str, module: nn.Module) -> None:
        def leave(module: nn.Module, given: tuple, output: object) -> None:
            tensors = [t for t in given if isinstance(t, torch.Tensor)]
            lost = isinstance(output, torch.Tensor) and not output.requires_grad
            if lost and any(t.requires_grad for t in tensors) and not broken:
                broken.append(f"the module {name} ({type(module).__name__})" if name else "the network itself")

        handles.append(module.register_forward_hook(leave))

    try:
        for name, module in network.named_modules():
            hook(name, module)
        with torch.enable_grad():
            network(images[:1].detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    # the trace also refuses what is no single tensor
    stopping = _stopping_steps(network, images)
    if stopping:
        return _stopped(f"the operation {stopping[0].operation} in {stopping[0].place}")
    return _stopped(broken[0] if broken else "the network itself")


def _stopping_steps(network: nn.Module, images: torch.Tensor) -> list[Step]:
    """Operations between image and output that have no gradient, first one first."""
    found = trace(network, images[:1])
    return [step for step in reversed(found.towards(found.output)) if step.operation in _STEPS]


def _stopped(place: str) -> BadInput:
    return BadInput(f"No gradient passes through the network: {place} stops it.",
                    "A gradient needs steps that can be differentiated.",
                    "Choose a method that needs no gradient, such as occlusion.")  # fmt: skip

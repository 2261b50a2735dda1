"""Inversion: an image that has the code of another, which shows what a layer keeps and what it has forgotten.

What the code leaves open is decided by a prior: total variation and a norm that keeps intensities in their range
(Mahendran and Vedaldi 2015), or the shape of a convolutional network that draws the image (Ulyanov et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from ..errors import BadInput
from ..progress import Progress
from .codes import code_of
from .hourglass import Hourglass
from .scoring import require_evaluation

Prior = Literal["total variation", "deep image prior"]

PRIORS: tuple[Prior, ...] = get_args(Prior)


@dataclass(frozen=True)
class Inverted:
    """An image found for a code.

    Attributes:
        image: (1, C, *shape), in the network's own input space.
        errors: after each step |code of the image - code|^2 / |code|^2; the first is that of the start.
    """

    image: torch.Tensor
    errors: tuple[float, ...]

    @property
    def error(self) -> float:
        """Of the image."""
        return self.errors[-1]


def invert(
    network: nn.Module,
    code: torch.Tensor,
    layer: str,
    shape: Sequence[int],
    *,
    prior: Prior = "total variation",
    center: float = 0.0,
    spread: float = 1.0,
    steps: int = 300,
    rate: float | None = None,
    variation: float = 0.01,
    beta: float = 2.0,
    magnitude: float = 0.001,
    alpha: float = 6.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Inverted:
    """Find an image that has a given code, by gradient descent (Adam).

    Args:
        network: in evaluation mode; its weights and their gradients stay as they are.
        code: (1, K, ...), such as :func:`MLILib.explanation.codes.code_of` gives it.
        layer: name of the layer of which it is.
        shape: (C, *shape) of the image.
        prior: what decides between images of one code.
        center: middle of the intensities that images have, as the network sees them.
        spread: their standard deviation.
        steps: of the descent.
        rate: the length of a step; 0.05 spreads for "total variation", 0.01 for the weights of "deep image prior".
        variation: weight of the total variation, see :func:`total_variation`; not used by "deep image prior".
        beta: its exponent.
        magnitude: weight of the alpha-norm, the mean of |(intensity - center) / spread|^alpha, likewise.
        alpha: its exponent.
        seed: of the noise that the descent starts from.
        progress: told how far it is.

    Raises:
        BadInput: there is no such layer or prior, a number makes no sense, or the code has another shape than the
            layer's for such an image.
    """
    require_evaluation(network)
    _check(code, shape, prior, spread, steps, rate)
    code = code.detach()
    size = code.square().sum()
    if not (torch.isfinite(size) and size > 0):
        raise BadInput("The code cannot be inverted.", "It is 0, or not finite.", "Choose another image or layer.")
    generator = torch.Generator().manual_seed(seed)
    draw: Callable[[], torch.Tensor]
    if prior == "total variation":
        start = torch.randn((1, *shape), generator=generator, dtype=torch.float64).to(code)
        unknown = (0.1 * start).requires_grad_(True)
        variables = [unknown]

        def draw() -> torch.Tensor:
            return unknown

    else:
        drawing = Hourglass(shape, seed).to(code)
        noise = (0.1 * torch.rand((1, drawing.inputs, *shape[1:]), generator=generator, dtype=torch.float64)).to(code)
        variables = list(drawing.parameters())

        def draw() -> torch.Tensor:
            return drawing(noise)

    adam = torch.optim.Adam(variables, lr=rate if rate is not None else 0.05 if prior == "total variation" else 0.01)
    progress = progress or Progress()
    errors: list[float] = []
    best: tuple[float, torch.Tensor] | None = None
    with torch.enable_grad():
        for step in range(steps + 1):
            progress.fraction(step / (steps + 1))
            relative = draw()
            found = code_of(network, center + spread * relative, layer)
            if found.shape != code.shape:
                raise BadInput(
                    f"The code has the shape {tuple(code.shape)}, that of such an image {tuple(found.shape)}.",
                    "",
                    "Give the shape of the image that the code is of.",
                )
            error = (found - code).square().sum() / size
            errors.append(error.item())
            loss = error
            if prior == "total variation":
                loss = loss + variation * total_variation(relative, beta) + magnitude * relative.abs().pow(alpha).mean()
            if not torch.isfinite(loss):
                raise BadInput("The inversion has no end.", "Its steps are too long.", "Choose a lower rate.")
            if best is None or loss.item() < best[0]:
                best = (loss.item(), relative.detach().clone())
            if step < steps:
                gradients = torch.autograd.grad(loss, variables)
                for variable, gradient in zip(variables, gradients, strict=True):
                    variable.grad = gradient
                adam.step()
        assert best is not None
    progress.fraction(1.0)
    return Inverted(center + spread * best[1], tuple(errors))


def total_variation(image: torch.Tensor, beta: float = 2.0) -> torch.Tensor:
    """Mean over voxels of the squared differences to the next voxel of each axis, added up, to the power beta / 2.

    Args:
        image: (N, C, *shape) with two voxels or more along each axis; the last of an axis has no next one.
        beta: 1 allows edges, 2 prefers slopes.
    """
    squares = torch.zeros((), dtype=image.dtype, device=image.device)
    for axis in range(2, image.ndim):
        ahead = image.diff(dim=axis)
        for other in range(2, image.ndim):
            if other != axis:
                ahead = ahead.narrow(other, 0, image.shape[other] - 1)
        squares = squares + ahead.square()
    if beta == 2:
        return squares.mean()
    # The root of 0 has no slope.
    return (squares + 1e-12).pow(beta / 2).mean()


def _check(code: torch.Tensor, shape: Sequence[int], prior: str, spread: float, steps: int, rate: float | None) -> None:
    if prior not in PRIORS:
        raise BadInput(f"There is no prior {prior!r}.", "", f"Choose one of {', '.join(PRIORS)}.")
    if len(code) != 1 or len(shape) not in (2, 3, 4) or min(shape[1:]) < 2:
        raise BadInput(
            f"A code of {tuple(code.shape)} for an image of {tuple(shape)} cannot be inverted.",
            "",
            "Give one code, and (C, *shape) with two voxels or more along each axis.",
        )
    if not (math.isfinite(spread) and spread > 0) or steps < 1 or (rate is not None and not rate > 0):
        raise BadInput(
            f"A spread of {spread}, {steps} steps and a rate of {rate} make no descent.", "", "Give numbers above 0."
        )

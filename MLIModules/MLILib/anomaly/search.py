"""AnoGAN's search (Schlegl 2017): the code whose image is nearest to a query, found by back-propagation.

Every query has a code of its own and the networks are in evaluation mode, so that queries do not meet: a batch finds
what each would find alone, in a fraction of the time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from . import objectives
from .models import NormalModel


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        again: images of the codes, (n, 1, size, size).
        score: AnoGAN's score A(x), (n,).
        residual: its residual term, (n,).
        discrimination: its other term, (n,).
        codes: (n, latent).
    """

    again: Tensor
    score: Tensor
    residual: Tensor
    discrimination: Tensor
    codes: Tensor


def search(
    model: NormalModel,
    x: Tensor,
    *,
    steps: int = 500,
    rate: float = 0.02,
    weight: float = 0.1,
    cross_entropy: bool = False,
    start: Tensor | None = None,
    seed: int = 0,
    tick: Callable[[], None] | None = None,
) -> Found:
    """Search the codes of images, all at once.

    Args:
        model: with a generator and a critic; its parameters are not touched.
        x: (n, 1, size, size).
        steps: of Adam.
        rate: its learning rate.
        weight: lambda, share of the term of the critic.
        cross_entropy: take the critic's cross-entropy instead of the distance of features.
        start: first codes, (n, latent); by default each query's own draw of the prior.
        seed: of that draw.
        tick: called at each step, to report progress and notice cancellation.

    Returns:
        Figures of the last codes.
    """
    if start is None:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(len(x), model.latent, generator=generator)
    frozen = [p for p in model.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        z = start.to(x.device, torch.float32).clone().requires_grad_(True)
        with torch.no_grad():
            features = model.critic.features(model.placed(x))
        optimizer = torch.optim.Adam([z], lr=rate)
        for _ in range(steps):
            if tick is not None:
                tick()
            optimizer.zero_grad(set_to_none=True)
            _, residual, discrimination = _loss(model, x, z, features, cross_entropy)
            objectives.anogan(residual, discrimination, weight).sum().backward()
            optimizer.step()
        with torch.no_grad():
            again, residual, discrimination = _loss(model, x, z, features, cross_entropy)
        score = objectives.anogan(residual, discrimination, weight)
        return Found(again, score, residual, discrimination, z.detach())
    finally:
        for p in frozen:
            p.requires_grad_(True)


def _loss(
    model: NormalModel, x: Tensor, z: Tensor, features: Tensor, cross_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Images of codes, and of each the residual and the critic's term."""
    again = model.cut(model.generator(z))
    made = model.critic.features(model.placed(again))
    if cross_entropy:
        other = objectives.anogan_cross_entropy(model.critic.answer(made))
    else:
        other = objectives.anogan_features(features, made)
    return again, objectives.anogan_residual(x, again), other

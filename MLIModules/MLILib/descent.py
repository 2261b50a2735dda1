"""A step of a training: the learning rate it has, the step along the gradient, and the average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_WARMUP_STEPS = 200


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to zero (Loshchilov 2017)."""
    warmup = min(_WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all of an optimiser's parameters this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(
    loss: Tensor,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    longest: float,
) -> None:
    """A step along the gradient of a loss, no longer than `longest` before the optimiser scales it."""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(network.parameters(), longest)
    scaler.step(optimizer)
    scaler.update()


def follow(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move an exponential average of weights after a step; statistics are copied.

    Args:
        average: what moves.
        network: what was trained.
        decay: share that stays, in the long run; the random start is forgotten more quickly.
        step: counted from 0.
    """
    kept = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - kept)
        for mean, now in zip(average.buffers(), network.buffers(), strict=True):
            mean.copy_(now)


def copied(network: nn.Module) -> dict[str, Tensor]:
    """A network's weights by name, on the CPU, as they are now."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

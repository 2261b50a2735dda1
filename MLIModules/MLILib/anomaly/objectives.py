"""The losses of the models of normal, each a function of tensors: adversarial, variational, f-AnoGAN's, AnoGAN's.

Sums and means are those of the papers: AnoGAN (Schlegl 2017) sums over pixels, f-AnoGAN (Schlegl 2019) takes means.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Mean of (|| gradient of the critic at x || - 1) ** 2 (Gulrajani 2017, equation 3).

    Args:
        critic: (n, ...) to (n, 1); its answer to an image must not depend on the others of the batch.
        real, fake: (n, ...).
        mix: (n,) in 0 to 1: x = mix * real + (1 - mix) * fake.
    """
    share = mix.view(-1, *[1] * (real.dim() - 1))
    x = (share * real.detach() + (1 - share) * fake.detach()).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


def wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's estimate of the Wasserstein distance, from its answers to real and to generated images."""
    return real.mean() - fake.mean()


def izi_f(x: Tensor, again: Tensor, features: Tensor, features_again: Tensor, kappa: float) -> Tensor:
    """What f-AnoGAN's encoder minimises, and its anomaly score, of each image (Schlegl 2019, equations 4 and 6).

    mean over pixels (x - G(E(x))) ** 2 + kappa * mean over features (f(x) - f(G(E(x)))) ** 2.

    Args:
        x, again: image and its reconstruction, (n, ...).
        features, features_again: of both, from the critic's last layer but one, (n, ...).
        kappa: weight of the feature residual.

    Returns:
        (n,)
    """
    return mean_square(x - again) + kappa * mean_square(features - features_again)


def anogan_residual(x: Tensor, made: Tensor) -> Tensor:
    """Sum over pixels of |x - G(z)|, (n,) (Schlegl 2017, equation 2)."""
    return (x - made).abs().flatten(1).sum(dim=1)


def anogan_features(features: Tensor, features_made: Tensor) -> Tensor:
    """Sum over features of |f(x) - f(G(z))|, (n,): feature matching (Schlegl 2017, equation 4)."""
    return (features - features_made).abs().flatten(1).sum(dim=1)


def anogan_cross_entropy(answer: Tensor) -> Tensor:
    """Cross-entropy of "real" for the discriminator's answer (a logit) to G(z), (n,) (Schlegl 2017, equation 3)."""
    return functional.softplus(-answer.flatten(1).sum(dim=1))


def anogan(residual: Tensor, discrimination: Tensor, weight: float) -> Tensor:
    """(1 - lambda) residual + lambda discrimination, (n,) (Schlegl 2017, equation 5)."""
    return (1 - weight) * residual + weight * discrimination


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Goodfellow's (2014) for logits: real images should get 1, generated ones 0."""
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Goodfellow's (2014) that does not saturate: generated images should get 1."""
    return functional.softplus(-fake).mean()


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mean, variance) from N(0, 1), summed over the code, (n,) (Kingma 2014)."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1)


def negative_elbo(x: Tensor, again: Tensor, kl: Tensor, log_scale: Tensor) -> Tensor:
    """Minus the evidence lower bound of each image in nats, (n,) (Kingma 2014).

    The decoder's pixels are normal around `again` with one standard deviation exp(log_scale), which is learned: then
    neither the reconstruction nor the divergence needs a weight (Rybkin 2021).
    """
    squares = ((x - again) * torch.exp(-log_scale)) ** 2
    return (0.5 * squares + log_scale + 0.9189385332046727).flatten(1).sum(dim=1) + kl  # 0.5 log(2 pi)


def mean_square(difference: Tensor) -> Tensor:
    """Mean of the squares of each row of a batch, (n,)."""
    return (difference**2).flatten(1).mean(dim=1)

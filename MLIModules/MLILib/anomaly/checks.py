"""Is a training getting somewhere: diversity of samples, balance of the critic, distances of samples from real images.

And are the training images what they should be: scores in two heaps tell that lesions are among them.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Doubles = npt.NDArray[np.float64]

#: Samples this much more alike than real images (in mean distance) are called collapsed.
COLLAPSED = 0.4
#: A critic that ranks real above generated images this often leaves the generator nothing to learn from; for a
#: Wasserstein critic that is no fault, its gradients stay.
OVERPOWERED = 0.995
_COMPONENTS = 48
#: Two heaps: their means lie this many times their pooled spread apart (Ashman 1994 asks for 2), and the smaller one
#: holds a share within these bounds.
_APART = 2.5
_SMALLER = (0.02, 0.5)


def diversity(samples: Tensor, real: Tensor) -> float:
    """Mean distance between samples over that between real images: 1 is as diverse, 0 is collapsed."""
    between = mean_distance(real)
    return mean_distance(samples) / between if between > 0 else math.nan


def mean_distance(images: Tensor) -> float:
    """Mean Euclidean distance between different images of a batch, a pixel."""
    flat = images.flatten(1).double()
    n = len(flat)
    if n < 2:
        return 0.0
    return float(torch.pdist(flat).mean() / math.sqrt(flat.shape[1]))


def balance(real: Tensor, fake: Tensor) -> float:
    """How often the critic ranks a real image above a generated one, ties counting half: 0.5 cannot tell them apart."""
    difference = real.flatten()[:, None] - fake.flatten()[None]
    return float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())


class Frechet:
    """Fréchet distance of samples from real images, as normal distributions of their principal components.

    The distance of Heusel 2017 with principal components of the real images where that has a classifier's features.

    Args:
        real: (n, 1, h, w).
    """

    def __init__(self, real: Tensor) -> None:
        flat = real.flatten(1).double().cpu()
        self._mean = flat.mean(dim=0)
        _, _, vectors = torch.linalg.svd(flat - self._mean, full_matrices=False)
        self._axes = vectors[: min(_COMPONENTS, len(flat) - 1)].T
        self._centre, self._covariance = self._moments(flat)

    def _moments(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        codes = (flat - self._mean) @ self._axes
        return codes.mean(dim=0), torch.cov(codes.T).reshape(codes.shape[1], codes.shape[1])

    def distance(self, samples: Tensor) -> float:
        """|m - m'| ** 2 + trace(C + C' - 2 (C C') ** 0.5)."""
        centre, covariance = self._moments(samples.flatten(1).double().cpu())
        root = _root(self._covariance)
        middle = _root(root @ covariance @ root)
        apart = ((centre - self._centre) ** 2).sum()
        return float(apart + torch.trace(self._covariance + covariance - 2 * middle))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def verdict(figures: dict[str, float], wasserstein: bool) -> list[str]:
    """What the last checks say, in sentences; none where all is well.

    Args:
        figures: "diversity" and "balance".
        wasserstein: whether the critic estimates a Wasserstein distance.
    """
    found = []
    if figures.get("diversity", 1.0) < COLLAPSED:
        found.append(
            f"The generator has collapsed: its samples differ {figures['diversity']:.2f} times as much as real images. "
            "Train longer, with more critic steps, or with another seed."
        )
    if not wasserstein and figures.get("balance", 0.5) > OVERPOWERED:
        found.append(
            "The discriminator tells every sample from a real image, so that the generator learns nothing any more: "
            "lower --learning-rate, or train a wgan."
        )
    return found


def two_heaps(scores: npt.ArrayLike) -> tuple[bool, float]:
    """Whether scores of training images form two heaps, and the share of the upper one.

    Two normal distributions of the scores' logarithms are fitted by expectation maximisation. They count as two heaps
    where they lie apart (Ashman 1994), the upper one is neither a handful nor most, and a valley lies between them.
    """
    values = np.asarray(scores, np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 20:
        return False, 0.0
    x = np.log(values - values.min() + np.percentile(values, 50) - values.min() + 1e-12)
    order = np.sort(x)
    fits = [_mixture(x, x > order[int((1 - guess) * (len(x) - 1))]) for guess in (0.05, 0.15, 0.3, 0.5)]
    _, (share, mean, spread) = max(fits, key=lambda fit: fit[0])
    low, high = int(mean.argmin()), int(mean.argmax())
    apart = (mean[high] - mean[low]) / math.sqrt((spread[0] ** 2 + spread[1] ** 2) / 2)
    if not (apart > _APART and _SMALLER[0] <= share[high] <= _SMALLER[1]):
        return False, float(share[high])
    grid = np.linspace(mean[low], mean[high], 200)
    parts = [share[i] * np.exp(-0.5 * ((grid - mean[i]) / spread[i]) ** 2) / spread[i] for i in (0, 1)]
    density = parts[0] + parts[1]
    return float(density.min()) < 0.6 * float(min(density[0], density[-1])), float(share[high])


def _mixture(x: Doubles, upper: npt.NDArray[np.bool_]) -> tuple[float, tuple[Doubles, Doubles, Doubles]]:
    """Log-likelihood, and shares, means and spreads of two normal distributions, from a guess of the upper one."""
    member = np.stack([~upper, upper]).astype(np.float64)
    floor = 1e-3 * x.std() + 1e-12
    likelihood = -math.inf
    share, mean, spread = np.full(2, 0.5), np.zeros(2), np.ones(2)
    for _ in range(200):
        weight = member.sum(axis=1) + 1e-9
        share, mean = weight / weight.sum(), (member * x).sum(axis=1) / weight
        spread = np.maximum(np.sqrt((member * (x - mean[:, None]) ** 2).sum(axis=1) / weight), floor)
        density = share[:, None] * np.exp(-0.5 * ((x - mean[:, None]) / spread[:, None]) ** 2) / spread[:, None]
        total = density.sum(axis=0) + 1e-300
        member = density / total
        before, likelihood = likelihood, float(np.log(total).sum())
        if likelihood - before < 1e-6:
            break
    return likelihood, (share, mean, spread)

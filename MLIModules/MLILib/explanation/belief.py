"""Can an explanation be believed: its verdict, with the numbers behind it, and how it bears noise.

The rule: the weights are drawn anew, layer by layer from the output to the input. If on the way the map's magnitudes
keep a mean rank correlation of 1/2 or more with what they were, the map is nearer to an edge detector, which does not
see the weights and keeps 1, than to chance, which keeps 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import BadInput
from ..progress import Progress
from .controls import edge_map, random_map, rank_correlation
from .methods import EDGES, REACTS
from .randomisation import Correlation, Method, weight_randomisation
from .scoring import Score, require_evaluation, require_image, scores

#: Half-way between a random map's correlation, 0, and an edge detector's, 1.
LIMIT = 0.5


@dataclass(frozen=True)
class Verdict:
    """Whether an explanation depends on what the network has learned.

    Attributes:
        badge: :data:`REACTS` or :data:`EDGES`.
        left: rank correlation of the map's magnitudes with what they were, mean over the cascade.
        end: the same at its end, all weights drawn anew: what no method should keep, for even the first layer is new.
        edges: rank correlation of the map's magnitudes with the image's edges, weights as trained.
        chance: the same with a random map.
        layers: what was left after each layer, from the output to the input.
    """

    badge: str
    left: float
    end: float
    edges: float
    chance: float
    layers: tuple[Correlation, ...]

    @property
    def sentence(self) -> str:
        """The verdict with its reason."""
        return f"{self.badge}: {reason(self.left)}"


def reason(left: float) -> str:
    """Of a badge, a sentence."""
    kept = f"the map keeps a rank correlation of {left:.2f} while the weights are drawn anew from output to input"
    return f"{kept} ({'at least' if left >= LIMIT else 'below'} {LIMIT:g})"


def verdict(
    network: nn.Module,
    image: torch.Tensor,
    method: Method,
    *,
    draws: int = 2,
    measured: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Verdict:
    """Judge an explanation by cascading randomisation (Adebayo et al. 2018).

    Args:
        network: in evaluation mode, trained.
        image: (N, C, *shape); more images make a firmer verdict.
        method: (network, image) to a map (N, C or 1, *shape).
        draws: how often the weights are drawn.
        measured: after how many layers the map is made again; 0 after each.
        seed: of the first draw.
        progress: told how far it is.

    Raises:
        BadInput: the map is constant, so that there is nothing to judge.
    """
    before = method(network, image).detach().abs()
    if all(bool((one == one.flatten()[0]).all()) for one in before):
        raise BadInput(
            "The explanation cannot be judged.",
            "Its map is the same everywhere.",
            "Choose a target that the network's output depends on.",
        )
    layers = weight_randomisation(network, image, method, measured=measured, draws=draws, seed=seed, progress=progress)
    controls = [
        [rank_correlation(one.sum(0), other[0]) for one, other in zip(before, control, strict=True)]
        for control in (edge_map(image), random_map(image, seed))
    ]
    edges, chance = (math.fsum(values) / len(values) for values in controls)
    left = math.fsum(layer.magnitude for layer in layers) / len(layers)
    badge = EDGES if left >= LIMIT else REACTS
    return Verdict(badge, left, layers[-1].magnitude, edges, chance, tuple(layers))


@dataclass(frozen=True)
class Sensitivity:
    """How an explanation bears noise on the image.

    Attributes:
        radius: the largest change of a voxel, in intensities as the network sees them.
        largest: change of the map in relation to its size (Euclidean norms), the largest of the draws, for each image:
            the max-sensitivity of Yeh et al. 2019.
        correlation: Spearman's of the map with that of the noisy image, mean of the draws, for each image.
    """

    radius: float
    largest: tuple[float, ...]
    correlation: tuple[float, ...]


def sensitivity(
    network: nn.Module,
    image: torch.Tensor,
    method: Method,
    radius: float,
    *,
    draws: int = 10,
    seed: int = 0,
    noise: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """The change of an explanation under noise that a reader would not see.

    Args:
        network: in evaluation mode.
        image: (N, C, *shape).
        method: the explanation.
        radius: the largest change of a voxel, in intensities of `image`.
        draws: number of noisy images.
        seed: of the noise.
        noise: draws numbers from -1 to 1 of an image's shape; uniform by default.
        progress: told how far it is.

    Raises:
        BadInput: a number makes no sense, or the map is 0 everywhere.
    """
    require_evaluation(network)
    require_image(image)
    if draws < 1 or not (math.isfinite(radius) and radius > 0):
        raise BadInput(f"Noise of {radius} in {draws} draws is none.", "", "Give a radius above 0 and 1 draw or more.")
    progress = progress or Progress()
    generator = torch.Generator().manual_seed(seed)
    before = method(network, image).detach()
    size = before.flatten(1).norm(dim=1)
    if not (size > 0).all():
        raise BadInput("The explanation's change cannot be measured.", "Its map is 0.", "Choose another target.")
    changes, kept = [], []
    for draw in range(draws):
        progress.fraction(draw / draws)
        delta = (noise or _uniform)(image, generator).to(image)
        after = method(network, image + radius * delta).detach()
        changes.append((after - before).flatten(1).norm(dim=1) / size)
        kept.append([rank_correlation(one, other) for one, other in zip(before, after, strict=True)])
    progress.fraction(1.0)
    largest = torch.stack(changes).amax(0)
    return Sensitivity(
        radius, tuple(largest.tolist()), tuple(math.fsum(each) / draws for each in zip(*kept, strict=True))
    )


def completeness_error(
    network: nn.Module, image: torch.Tensor, baseline: torch.Tensor, attribution: torch.Tensor, score: Score
) -> tuple[float, ...]:
    """How far a map is from adding up to the difference that it explains (Sundararajan et al. 2017, completeness).

    Args:
        network: in evaluation mode.
        image: (N, C, *shape).
        baseline: of the same shape, the image that says nothing.
        attribution: (N, C or 1, *shape).
        score: turns the network's output into (N,).

    Returns:
        For each image |sum of the map - (score - score of the baseline)| / |score - score of the baseline|.

    Raises:
        BadInput: the scores of an image and its baseline are the same.
    """
    require_evaluation(network)
    difference = (scores(network, image, score) - scores(network, baseline, score)).double()
    if (difference == 0).any():
        raise BadInput(
            "There is no difference to explain.",
            "The score of the baseline is that of the image.",
            "Choose another baseline.",
        )
    total = attribution.detach().double().flatten(1).sum(1)
    return tuple(((total - difference).abs() / difference.abs()).tolist())


def _uniform(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return 2 * torch.rand(image.shape, generator=generator, dtype=image.dtype) - 1

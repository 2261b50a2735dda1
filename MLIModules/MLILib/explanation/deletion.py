"""Deletion and insertion: does the score follow the voxels that an explanation calls important (Petsiuk et al. 2018)?

Voxels are taken away from the image, or put back into an empty one, the most important first. The less area under the
deletion curve, and the more under the insertion curve, the better the explanation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import integrate, stats
from torch import nn

from ..errors import BadInput
from ..progress import Progress
from .fill import Fill, filled
from .scoring import Score, batch_size, require_evaluation, require_image, scores


@dataclass(frozen=True)
class PerturbationCurve:
    """The score of an image while it loses or gains voxels.

    Attributes:
        fractions: of the voxels taken away or put back, from 0 to 1.
        scores: at each.
    """

    fractions: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def area(self) -> float:
        """Under the curve, in units of the score, by trapezoids."""
        return float(integrate.trapezoid(self.scores, self.fractions))


def importance_order(attribution: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Indices of the voxels, flattened, the most important first; among equals the order is drawn.

    Args:
        attribution: (C or 1, *shape) of one image; channels are added up.
        seed: for the order among equals, which would be the raster's otherwise.
    """
    values = attribution.detach().double().sum(0).flatten()
    mixed = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed)).to(values.device)
    return mixed[torch.argsort(values[mixed], descending=True, stable=True)]


@torch.no_grad()
def perturbation_curves(
    network: nn.Module,
    image: torch.Tensor,
    attribution: torch.Tensor,
    score: Score,
    *,
    kind: Literal["deletion", "insertion"] = "deletion",
    steps: int = 32,
    fill: Fill | torch.Tensor = "constant",
    value: float = 0.0,
    sigma: float = 4.0,
    memory: int | None = None,
    progress: Progress | None = None,
) -> list[PerturbationCurve]:
    """The curve of each image.

    Args:
        network: in evaluation mode.
        image: (N, C, *shape).
        attribution: (N, C or 1, *shape), large where the image speaks for the score.
        score: turns the network's output into (N,).
        kind: take voxels away, or put them back.
        steps: number of steps from the one end to the other, with about equally many voxels in each.
        fill: what a voxel becomes that is taken away, see :func:`MLILib.explanation.fill.filled`.
        value: intensity of the fill "constant".
        sigma: standard deviation in voxels of the fill "blur".
        memory: bytes that a batch may take; by default half of what is free, 1 GiB at most.
        progress: told how far it is.

    Raises:
        BadInput: the map does not suit the image, or a setting makes no sense.
    """
    require_evaluation(network)
    require_image(image)
    if attribution.shape[0] != image.shape[0] or attribution.shape[2:] != image.shape[2:]:
        raise BadInput(
            f"A map of {tuple(attribution.shape)} does not suit an image of {tuple(image.shape)}.",
            "",
            "Give a map of the image's own grid.",
        )
    if kind not in ("deletion", "insertion") or steps < 1:
        raise BadInput(
            f"There is no {kind!r} in {steps} steps.", "", "Choose deletion or insertion, in 1 step or more."
        )
    progress = progress or Progress()
    empty = filled(image, fill, value=value, sigma=sigma)
    start, end = (image, empty) if kind == "deletion" else (empty, image)
    at_once = batch_size(network, image[:1], memory)
    curves = []
    for index in range(len(image)):
        order = importance_order(attribution[index])
        counts = [round(step * len(order) / steps) for step in range(steps + 1)]
        found: list[float] = []
        for begin in range(0, len(counts), at_once):
            progress.fraction((index + begin / len(counts)) / len(image))
            some = counts[begin : begin + at_once]
            batch = start[index].flatten(1).repeat(len(some), 1, 1)
            for row, count in zip(batch, some, strict=True):
                row[:, order[:count]] = end[index].flatten(1)[:, order[:count]]
            found += scores(network, batch.reshape(len(some), *image.shape[1:]), score).tolist()
        curves.append(PerturbationCurve(tuple(count / len(order) for count in counts), tuple(found)))
    progress.fraction(1.0)
    return curves


def chance(ours: Sequence[float], control: Sequence[float], *, smaller: bool = True) -> float:
    """Wilcoxon's signed-rank test, one-sided: the chance of areas that much better if there were no difference.

    Args:
        ours: area under the curve of each image.
        control: of the same images, with a control's map.
        smaller: whether less is better, as for deletion.

    Returns:
        p; 1 if all pairs are equal.

    Raises:
        BadInput: there are fewer than two pairs.
    """
    if len(ours) != len(control) or len(ours) < 2:
        raise BadInput(
            f"{len(ours)} and {len(control)} areas cannot be compared.",
            "",
            "Give those of the same images, two or more.",
        )
    if np.array_equal(ours, control):
        return 1.0
    return float(stats.wilcoxon(ours, control, alternative="less" if smaller else "greater").pvalue)

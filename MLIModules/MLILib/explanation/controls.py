"""Controls: maps that know nothing of the network, beside which an explanation has to stand out.

A random map shows what chance does; an edge detector shows what the image alone does (Adebayo et al. 2018 found
explanations that are hardly more than one).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch.nn import functional


def random_map(image: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Independent uniform numbers.

    Args:
        image: (N, C, *shape), of which the shape is taken.
        seed: the same seed gives the same map.

    Returns:
        (N, 1, *shape), from 0 to 1.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand((len(image), 1, *image.shape[2:]), generator=generator, dtype=image.dtype)
    return drawn.to(image.device)


def edge_map(image: torch.Tensor) -> torch.Tensor:
    """Sobel's edges: the magnitude of the smoothed differences along the axes, over all channels.

    Args:
        image: (N, C, *shape).

    Returns:
        (N, 1, *shape), at least 0.
    """
    total = torch.zeros_like(image[:, :1])
    dimensions = image.ndim - 2
    for axis in range(dimensions):
        edges = image
        for other in range(dimensions):
            edges = _along(edges, other + 2, (-1.0, 0.0, 1.0) if other == axis else (1.0, 2.0, 1.0))
        total = total + edges.square().sum(1, keepdim=True)
    return total.sqrt()


def _along(image: torch.Tensor, axis: int, kernel: tuple[float, ...]) -> torch.Tensor:
    lines = image.movedim(axis, -1)
    padded = functional.pad(lines.reshape(-1, 1, lines.shape[-1]), (1, 1), mode="replicate")
    weights = torch.tensor(kernel, dtype=image.dtype, device=image.device).reshape(1, 1, 3)
    return functional.conv1d(padded, weights).reshape(lines.shape).movedim(-1, axis)


def rank_correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Spearman's correlation of two maps' values, ties sharing their mean rank.

    A map that is constant has no ranks, and shows nothing of what the other shows: 0.

    Args:
        first: any shape.
        second: as many values.

    Returns:
        -1 to 1.
    """
    ranks = [stats.rankdata(one.detach().cpu().double().numpy(), axis=None) for one in (first, second)]
    a, b = (one - one.mean() for one in ranks)
    scale = float(np.sqrt(np.dot(a, a) * np.dot(b, b)))
    return float(np.dot(a, b)) / scale if scale > 0 else 0.0

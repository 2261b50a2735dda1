"""Ablation: how much the score falls when a part is taken away: a region, an input channel, a layer's feature map.

Each part is taken away on its own, and parts go through the network many at a time (for regions, Zeiler and Fergus
2014; for feature maps, Morcos et al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import BadInput
from ..progress import Progress
from .codes import changed_code, code_of
from .fill import Fill, filled
from .scoring import Score, batch_size, require_evaluation, require_image, scores


@dataclass(frozen=True)
class RegionAblation:
    """What each region is worth to the score.

    Attributes:
        regions: values of the regions, ascending.
        falls: (N, len(regions)), the fall of the score without each; 0 for a region that an image does not have.
        attribution: (N, 1, *shape), in each voxel the fall of its region.
    """

    regions: tuple[int, ...]
    falls: torch.Tensor
    attribution: torch.Tensor


@torch.no_grad()
def ablate_regions(
    network: nn.Module,
    image: torch.Tensor,
    score: Score,
    regions: torch.Tensor,
    *,
    fill: Fill | torch.Tensor = "constant",
    value: float = 0.0,
    sigma: float = 4.0,
    memory: int | None = None,
    progress: Progress | None = None,
) -> RegionAblation:
    """The fall of the score without each region of a label map.

    Args:
        network: in evaluation mode.
        image: (N, C, *shape).
        score: turns the network's output into (N,).
        regions: (N or 1, 1, *shape) integers; every value is a region, 0 too.
        fill: what a voxel becomes that is taken away, see :func:`MLILib.explanation.fill.filled`.
        value: intensity of the fill "constant".
        sigma: standard deviation in voxels of the fill "blur".
        memory: bytes that a batch may take; by default half of what is free, 1 GiB at most.
        progress: told how far it is.

    Raises:
        BadInput: the label map does not suit the image, or there is no such fill.
    """
    require_image(image)
    if regions.is_floating_point() or regions.shape[1:] != (1, *image.shape[2:]) or len(regions) not in (1, len(image)):
        raise BadInput(
            f"Regions of {tuple(regions.shape)}, {regions.dtype}, do not suit an image of {tuple(image.shape)}.",
            "",
            "Give a label map of integers on the image's own grid.",
        )
    labels = regions.to(image.device).expand(len(image), *regions.shape[1:])
    values = torch.unique(labels)
    empty = filled(image, fill, value=value, sigma=sigma)

    def without(index: int, part: int) -> torch.Tensor:
        return torch.where(labels[index] == values[part], empty[index], image[index])

    falls = _falls(network, image, score, len(values), without, memory, progress)
    each = torch.stack([fall[torch.searchsorted(values, one)] for fall, one in zip(falls, labels, strict=True)])
    return RegionAblation(tuple(values.tolist()), falls, each)


@torch.no_grad()
def ablate_channels(
    network: nn.Module,
    image: torch.Tensor,
    score: Score,
    *,
    fill: Fill | torch.Tensor = "constant",
    value: float = 0.0,
    sigma: float = 4.0,
    memory: int | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """The fall of the score without each input channel, such as a sequence of an MRI.

    Args:
        network: in evaluation mode.
        image: (N, C, *shape).
        score: turns the network's output into (N,).
        fill: what a channel becomes, see :func:`MLILib.explanation.fill.filled`.
        value: intensity of the fill "constant".
        sigma: standard deviation in voxels of the fill "blur".
        memory: bytes that a batch may take; by default half of what is free, 1 GiB at most.
        progress: told how far it is.

    Returns:
        (N, C).
    """
    require_image(image)
    empty = filled(image, fill, value=value, sigma=sigma)

    def without(index: int, part: int) -> torch.Tensor:
        one = image[index].clone()
        one[part] = empty[index, part]
        return one

    return _falls(network, image, score, image.shape[1], without, memory, progress)


@torch.no_grad()
def ablate_feature_maps(
    network: nn.Module,
    image: torch.Tensor,
    score: Score,
    layer: str,
    *,
    value: float = 0.0,
    memory: int | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """The fall of the score when a feature map of a layer is set to a constant.

    Args:
        network: in evaluation mode; its weights stay as they are.
        image: (N, C, *shape).
        score: turns the network's output into (N,).
        layer: name of a layer that gives (N, K, ...).
        value: what the map becomes; 0 is what a dead unit gives.
        memory: bytes that a batch may take; by default half of what is free, 1 GiB at most.
        progress: told how far it is.

    Returns:
        (N, K).

    Raises:
        BadInput: there is no such layer, or it gives no feature maps.
    """
    require_evaluation(network)
    require_image(image)
    maps = code_of(network, image[:1], layer).shape[1]
    progress = progress or Progress()
    at_once = batch_size(network, image[:1], memory)
    found = []
    for index in range(len(image)):
        one = image[index : index + 1]
        clean = scores(network, one, score)
        for begin in range(0, maps, at_once):
            progress.fraction((index + begin / maps) / len(image))
            some = list(range(begin, min(begin + at_once, maps)))

            def silence(code: torch.Tensor, some: list[int] = some) -> torch.Tensor:
                code = code.clone()
                for row, part in zip(code, some, strict=True):
                    row[part] = value
                return code

            with changed_code(network, layer, silence):
                found.append(clean - scores(network, one.repeat(len(some), *(1,) * (one.ndim - 1)), score))
    progress.fraction(1.0)
    return torch.cat(found).reshape(len(image), maps)


def _falls(
    network: nn.Module,
    image: torch.Tensor,
    score: Score,
    parts: int,
    without: Callable[[int, int], torch.Tensor],
    memory: int | None,
    progress: Progress | None,
) -> torch.Tensor:
    """(N, parts) falls of the score; `without` gives an image (C, *shape) without a part."""
    require_evaluation(network)
    progress = progress or Progress()
    at_once = batch_size(network, image[:1], memory)
    found = []
    for index in range(len(image)):
        clean = scores(network, image[index : index + 1], score)
        for begin in range(0, parts, at_once):
            progress.fraction((index + begin / parts) / len(image))
            batch = torch.stack([without(index, part) for part in range(begin, min(begin + at_once, parts))])
            found.append(clean - scores(network, batch, score))
    progress.fraction(1.0)
    return torch.cat(found).reshape(len(image), parts)

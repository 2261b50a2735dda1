"""Sanity checks of explanations by randomisation (Adebayo et al. 2018, "Sanity Checks for Saliency Maps").

The weights of a copy of the network are drawn anew, layer by layer from the output to the input or one layer at a time.
An explanation that stays the same does not explain what the network has learned.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import BadInput
from ..progress import Progress
from .controls import rank_correlation
from .scoring import require_evaluation, require_image

#: An explanation: (network, image (N, C, *shape)) to a map (N, C or 1, *shape).
Method = Callable[[nn.Module, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Correlation:
    """How much of an explanation is left.

    Attributes:
        layer: the layer drawn anew, in cascading randomisation the last of them.
        signed: Spearman's correlation of the maps, mean over images and draws.
        magnitude: the same of the maps' magnitudes, which ignores that a map may turn round.
    """

    layer: str
    signed: float
    magnitude: float


def learned_layers(network: nn.Module, image: torch.Tensor) -> list[str]:
    """Names of the modules that own parameters, from the output to the input, in the order in which they are run.

    A module whose parameters are used by the one that holds it counts where that one ends.

    Args:
        network: in evaluation mode; it is run once.
        image: (N, C, *shape); its first image is used.
    """
    ended: dict[str, int] = {}

    def end(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            ended.setdefault(name, len(ended))

        return hook

    hooks = [module.register_forward_hook(end(name)) for name, module in network.named_modules()]
    try:
        with torch.no_grad():
            network(image[:1])
    finally:
        for hook in hooks:
            hook.remove()

    def position(name: str) -> int:
        while name and name not in ended:
            name = name.rpartition(".")[0]
        return ended[name]

    owners = [name for name, module in network.named_modules() if any(True for _ in module.parameters(recurse=False))]
    return sorted(owners, key=position, reverse=True)


@torch.no_grad()
def draw_anew(layer: nn.Module, generator: torch.Generator) -> None:
    """Draw a layer's own parameters from normal distributions with each tensor's own mean and standard deviation.

    The scale is kept, so that activations neither vanish nor explode beyond what the statistics of normalisation layers
    were made for; so is the mean, without which a normalisation's factors, all near 1, would turn channels round. A
    tensor of one number is drawn with mean 0 and its magnitude as standard deviation.

    Args:
        layer: is changed in place; the modules in it are not.
        generator: on the CPU.
    """
    for parameter in layer.parameters(recurse=False):
        values = parameter.detach().double()
        mean = float(values.mean()) if values.numel() > 1 else 0.0
        scale = float(values.std(correction=0)) if values.numel() > 1 else abs(float(values))
        parameter.copy_(mean + scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def weight_randomisation(
    network: nn.Module,
    image: torch.Tensor,
    method: Method,
    *,
    cascading: bool = True,
    layers: Sequence[str] | None = None,
    measured: int = 0,
    draws: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Correlation]:
    """What is left of an explanation when the network's weights are drawn anew.

    Args:
        network: in evaluation mode; copies of it are changed, never itself.
        image: (N, C, *shape).
        method: the explanation.
        cascading: draw all layers from the output down to each layer; else that layer alone.
        layers: names of the layers to draw, in any order; by default all that have parameters.
        measured: after how many of them the map is made again, evenly from output to input and always after the last;
            0 after each.
        draws: how often each is repeated with other numbers.
        seed: of the first draw.
        progress: told how far it is.

    Returns:
        One entry for each layer that was measured, from the output to the input.

    Raises:
        BadInput: a layer that the network does not have, or one without parameters.
    """
    require_evaluation(network)
    require_image(image)
    there = learned_layers(network, image)
    chosen = _chosen(there, layers)
    if draws < 1:
        raise BadInput(f"{draws} draws are none.", "", "Draw at least once.")
    progress = progress or Progress()
    before = method(network, image)
    looked_at = _evenly(chosen, measured)
    signed: dict[str, list[float]] = {name: [] for name in chosen}
    magnitude: dict[str, list[float]] = {name: [] for name in chosen}
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed + draw)
        changed = copy.deepcopy(network)
        for number, name in enumerate(chosen):
            progress.fraction((draw + number / len(chosen)) / draws)
            if not cascading:
                changed = copy.deepcopy(network)
            draw_anew(changed.get_submodule(name), generator)
            if name not in looked_at:
                continue
            after = method(changed, image)
            signed[name] += correlations(before, after)
            magnitude[name] += correlations(before.abs(), after.abs())
    progress.fraction(1.0)
    return [Correlation(name, _mean(signed[name]), _mean(magnitude[name])) for name in chosen if name in looked_at]


def label_randomisation(
    network: nn.Module, untaught: nn.Module, image: torch.Tensor, method: Method
) -> tuple[float, float]:
    """What is left of an explanation when the network has learned random labels.

    Args:
        network: in evaluation mode, trained with the true labels.
        untaught: of the same kind, trained with the labels shuffled among the images until it knows them by heart.
        image: (N, C, *shape).
        method: the explanation.

    Returns:
        Spearman's correlation of the two maps, mean over the images, and that of their magnitudes.
    """
    require_image(image)
    for one in (network, untaught):
        require_evaluation(one)
    ours, theirs = method(network, image), method(untaught, image)
    return _mean(correlations(ours, theirs)), _mean(correlations(ours.abs(), theirs.abs()))


def correlations(first: torch.Tensor, second: torch.Tensor) -> list[float]:
    """Spearman's correlation of two maps of each image.

    Raises:
        ValueError: the maps have different shapes.
    """
    if first.shape != second.shape:
        msg = f"maps of {tuple(first.shape)} and {tuple(second.shape)} cannot be compared"
        raise ValueError(msg)
    return [rank_correlation(one, other) for one, other in zip(first, second, strict=True)]


def _evenly(names: Sequence[str], count: int) -> set[str]:
    """So many of the names, evenly, with the last one; all for 0."""
    if not 0 < count < len(names):
        return set(names)
    return {names[round((i + 1) * len(names) / count) - 1] for i in range(count)}


def _chosen(there: list[str], layers: Sequence[str] | None) -> list[str]:
    if not there:
        raise BadInput("The network has no parameters to draw anew.", "", "Choose a network that was trained.")
    if layers is None:
        return there
    unknown = [name for name in layers if name not in there]
    if unknown or not layers:
        raise BadInput(
            f"The network has no layer {unknown[0]!r} with parameters." if unknown else "No layer is chosen.",
            "",
            f"Choose among {', '.join(there)}.",
        )
    return [name for name in there if name in layers]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)

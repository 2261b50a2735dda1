"""The layers of a network: a table of them, and what one of them gives for an image.

A layer is a module that runs in the forward pass, by its name in the network ("model.0.conv"); sizes are of its output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Iterator

import torch
from torch import nn

from ..errors import BadInput
from .scoring import require_evaluation, require_image
from .tracing import trace


@dataclasses.dataclass(frozen=True)
class Layer:
    """One row of the table.

    Attributes:
        name: in the network.
        kind: class of the module.
        parameters: numbers that are learned in it and in what it contains.
        shape: of its output, (N, channels, *shape) for most; None where it gives something else than one tensor.
        calls: how often it runs in one forward pass; the shape is that of the last.
    """

    name: str
    kind: str
    parameters: int
    shape: tuple[int, ...] | None
    calls: int


def layers(network: nn.Module, image: torch.Tensor) -> list[Layer]:
    """The layers that run, each before what it contains.

    A module that stands at several places of a network has one row, under its first name.

    Args:
        network: in evaluation mode; run once.
        image: (N, C, *shape).

    Raises:
        BadInput: the network gives no single tensor.
    """
    require_evaluation(network)
    require_image(image)
    calls: dict[str, list[tuple[int, ...] | None]] = {}
    for call in trace(network, image).calls:
        calls.setdefault(call.module, []).append(call.shape)
    return [
        Layer(name, type(m).__name__, sum(p.numel() for p in m.parameters()), calls[name][-1], len(calls[name]))
        for name, m in network.named_modules()
        if name and name in calls
    ]


def find_layer(network: nn.Module, name: str) -> nn.Module:
    """The module with this name.

    Raises:
        BadInput: there is none; lists those that exist, the likeliest first.
    """
    modules = dict(network.named_modules())
    if name and name in modules:
        return modules[name]
    names = [known for known in modules if known]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    listed = near + [known for known in names if known not in near]
    raise BadInput(f"The network has no layer {name!r}.", f"Its layers are {', '.join(listed)}.", "Choose one of them.")


@dataclasses.dataclass
class Observed:
    """What a layer gave in the forward passes since it is observed.

    Attributes:
        name: of the layer.
        outputs: of its runs. What comes after works on a copy, so that a step in place does not change them.
    """

    name: str
    outputs: list[object] = dataclasses.field(default_factory=list)

    def output(self) -> torch.Tensor:
        """The one output.

        Raises:
            BadInput: the layer did not run, ran several times, or gave no tensor.
        """
        if len(self.outputs) != 1:
            often = "does not run" if not self.outputs else f"runs {len(self.outputs)} times"
            raise BadInput(f"The layer {self.name!r} {often} in one pass of the network.",
                           "There is no single output to look at.",
                           "Choose a layer that runs once, or one that contains it.")  # fmt: skip
        (output,) = self.outputs
        if not isinstance(output, torch.Tensor):
            raise BadInput(f"The layer {self.name!r} gives no single tensor, but {type(output).__name__}.", "",
                           "Choose another layer.")  # fmt: skip
        return output


@contextlib.contextmanager
def observed(network: nn.Module, name: str) -> Iterator[Observed]:
    """Keep what a layer gives, with its gradient if there is one, while the context lasts.

    Raises:
        BadInput: there is no such layer.
    """
    found = Observed(name)

    def keep(module: nn.Module, given: object, output: object) -> object:
        found.outputs.append(output)
        return output.clone() if isinstance(output, torch.Tensor) else output

    handle = find_layer(network, name).register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@torch.no_grad()
def activations(network: nn.Module, image: torch.Tensor, layer: str) -> torch.Tensor:
    """What a layer gives for an image, on the layer's own grid.

    Args:
        network: in evaluation mode; run once.
        image: (N, C, *shape).
        layer: its name.

    Returns:
        The output of the layer, (N, channels, *shape of the layer) for most layers.

    Raises:
        BadInput: there is no such layer, it does not run exactly once, or it gives no tensor.
    """
    require_evaluation(network)
    require_image(image)
    with observed(network, layer) as found:
        network(image)
    return found.output().clone()

"""Codes: what a layer gives for an image, read or changed while the network runs.

The network is left as it was: hooks live only as long as the context that sets them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ..errors import BadInput


def layer_named(network: nn.Module, name: str) -> nn.Module:
    """The layer called `name`.

    Raises:
        BadInput: there is none; lists those that exist.
    """
    layers = {known: module for known, module in network.named_modules() if known}
    if name not in layers:
        raise BadInput(f"The network has no layer {name!r}.", "", f"Choose among {', '.join(layers) or 'none'}.")
    return layers[name]


@contextlib.contextmanager
def changed_code(
    network: nn.Module, layer: str, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Within the context, what the layer gives goes through `change`, each time that the layer runs.

    Args:
        network: whose forward passes are meant.
        layer: name of the layer.
        change: from the code (N, K, ...) to what takes its place; None leaves it.

    Raises:
        BadInput: there is no such layer, or it gives no tensor of floats.
    """

    def hook(_: nn.Module, __: object, output: object) -> torch.Tensor | None:
        if not isinstance(output, torch.Tensor) or not output.is_floating_point() or output.ndim < 2:
            raise BadInput(
                f"The layer {layer!r} gives no code.", "Its output is no tensor (N, K, ...).", "Take another."
            )
        return change(output)

    handle = layer_named(network, layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def code_of(network: nn.Module, image: torch.Tensor, layer: str) -> torch.Tensor:
    """What the layer gives for an image, (N, K, ...), with the gradient's way back to it; the first time it runs.

    Args:
        network: in evaluation mode.
        image: (N, C, *shape).
        layer: name of the layer.

    Raises:
        BadInput: there is no such layer, it gives no tensor, or the image never comes to it.
    """
    codes: list[torch.Tensor] = []

    def keep(code: torch.Tensor) -> None:
        codes.append(code.clone())  # a nonlinearity that follows may work in place

    with changed_code(network, layer, keep):
        network(image)
    if not codes:
        raise BadInput(f"The layer {layer!r} has no code.", "It does not run for this image.", "Choose another layer.")
    return codes[0]

"""DeepDream: an image changed until a layer, or one unit of it, answers more (Mordvintsev, Olah and Tyka 2015).

Gradient ascent on what the layer gives, from coarse to fine, with the image moved a little before each step so that the
layer's grid leaves no trace. What appears in the image is what the layer looks for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from .. import device as devices
from ..errors import BadInput
from ..progress import Progress
from .codes import code_of
from .scoring import require_evaluation, require_image


@dataclass(frozen=True)
class Dream:
    """An image before and after.

    Attributes:
        image: (1, C, *shape), what the layer makes of it.
        before: the layer's answer to the image given.
        after: its answer to `image`.
    """

    image: torch.Tensor
    before: float
    after: float


def deepdream(
    network: nn.Module,
    image: torch.Tensor,
    layer: str,
    *,
    unit: int | None = None,
    steps: int = 20,
    step_size: float = 0.02,
    octaves: int = 1,
    octave_scale: float = 1.4,
    multiple: int = 1,
    jitter: int = 4,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Dream:
    """Change an image so that a layer answers more.

    Args:
        network: in evaluation mode; its weights and their gradients stay as they are.
        image: (1, C, *shape).
        layer: name of the layer.
        unit: index of a feature map or unit, whose mean is raised; None raises the mean square of the whole layer.
        steps: of each octave.
        step_size: mean change of a voxel in one step, in intensities as the network sees them.
        octaves: sizes that the image is worked on in, from coarse to fine; more than 1 need a network that takes
            images of any size, or of any `multiple`.
        octave_scale: from one size to the next.
        multiple: the sizes of the coarse octaves are multiples of it.
        jitter: voxels by which the image is rolled at random along each axis before a step, at most.
        bounds: lowest and highest intensity.
        seed: of the jitter.
        progress: told how far it is.

    Raises:
        BadInput: there is no such layer or unit, a number makes no sense, the layer does not depend on the image, or
            the network takes no smaller images.
    """
    require_evaluation(network)
    require_image(image)
    sizes = _sizes(image, octaves, octave_scale, multiple)
    if len(image) != 1 or steps < 1 or not (math.isfinite(step_size) and step_size > 0) or jitter < 0:
        raise BadInput(
            f"{len(image)} images, {steps} steps of {step_size} and a jitter of {jitter} make no dream.",
            "",
            "Give one image, and numbers above 0.",
        )
    progress = progress or Progress()
    generator = torch.Generator().manual_seed(seed)
    clean = image.detach()
    with torch.no_grad():
        before = float(_answer(code_of(network, clean, layer), layer, unit))
    added = torch.zeros_like(clean)
    for octave, size in enumerate(sizes):
        base = _resized(clean, size)
        added = _resized(added, size)
        for step in range(steps):
            progress.fraction((octave + step / steps) / len(sizes))
            moved = torch.randint(-jitter, jitter + 1, (len(size),), generator=generator).tolist()
            axes = list(range(2, image.ndim))
            gradient = _gradient(network, torch.roll(base + added, moved, axes), layer, unit)
            gradient = torch.roll(gradient, [-move for move in moved], axes)
            now = base + added + step_size * gradient / gradient.abs().mean()
            added = (now if bounds is None else now.clamp(*bounds)) - base
    progress.fraction(1.0)
    found = clean + added
    with torch.no_grad():
        after = float(_answer(code_of(network, found, layer), layer, unit))
    return Dream(found, before, after)


def _answer(code: torch.Tensor, layer: str, unit: int | None) -> torch.Tensor:
    if unit is None:
        return code.square().mean()
    if not 0 <= unit < code.shape[1]:
        raise BadInput(
            f"The layer {layer!r} has no unit {unit}.", "", f"Choose one from 0 to {code.shape[1] - 1}, or none."
        )
    return code[:, unit].mean()


def _gradient(network: nn.Module, image: torch.Tensor, layer: str, unit: int | None) -> torch.Tensor:
    with torch.enable_grad():
        given = image.detach().clone().requires_grad_(True)
        try:
            code = code_of(network, given, layer)
        except RuntimeError as error:
            if devices.is_out_of_memory(error):
                raise
            size = " x ".join(map(str, image.shape[2:]))
            raise BadInput(
                f"The network takes no image of {size} voxels.", f"It says: {error}", "Choose 1 octave, or a multiple."
            ) from error
        answer = _answer(code, layer, unit)
        found = torch.autograd.grad(answer, given, allow_unused=True)[0] if answer.requires_grad else None
    if found is None or not (found != 0).any():
        raise BadInput(
            "The image cannot be changed so that the layer answers more.",
            "No gradient reaches the image; the unit may be silent for all that the image shows.",
            "Choose another image, layer or unit.",
        )
    return found


def _sizes(image: torch.Tensor, octaves: int, scale: float, multiple: int) -> list[tuple[int, ...]]:
    if octaves < 1 or not (math.isfinite(scale) and scale > 1) or multiple < 1:
        raise BadInput(
            f"{octaves} octaves with a scale of {scale} and a multiple of {multiple} make no pyramid.",
            "",
            "Give 1 octave or more, a scale above 1, and a multiple of at least 1.",
        )
    full = tuple(image.shape[2:])
    coarse = [
        tuple(max(multiple, round(edge / scale**octave / multiple) * multiple) for edge in full)
        for octave in range(octaves - 1, 0, -1)
    ]
    return [*coarse, full]


def _resized(image: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    if tuple(image.shape[2:]) == size:
        return image
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return functional.interpolate(image, size=size, mode=mode, align_corners=False)

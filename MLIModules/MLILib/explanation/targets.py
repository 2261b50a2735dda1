"""What is explained: one number of a network's output for each image of a batch.

A target is a callable, (N, ...) to (N,): a class' score, a label summed over a region, one voxel's score, a number of a
regression. Scores are the network's own, before a softmax or sigmoid where it has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..errors import BadInput

#: Network output (N, ...) to scores (N,).
Target = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """The score of one class of a classifier.

    Attributes:
        index: of the class, from 0.
    """

    index: int

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """(N, classes) to (N,).

        Raises:
            BadInput: the output is no classifier's, or has no such class.
        """
        if output.ndim != 2:
            raise BadInput(f"A class score cannot be read from an output of shape {tuple(output.shape)}.",
                           "A classifier's output has one row for each image and one column for each class.",
                           "Explain a label's sum or a voxel of this model.")  # fmt: skip
        _require_number("class", self.index, output.shape[1])
        return output[:, self.index]


@dataclasses.dataclass(frozen=True, eq=False)
class LabelSum:
    """The score of one label, summed over a region.

    Attributes:
        label: channel of the output, from 0; of an output with one channel (a lone foreground) it is 1.
        region: the voxels that are summed over, non-zero ones, (*shape), (N, *shape) or (N, 1, *shape) on the output's
            grid; None for those where the label has the largest score (with one channel: a score above 0). The
            predicted region is a constant: no gradient flows through the choice of it. A method that runs the network
            on changed images keeps the region of the unchanged one, see :func:`held`.
    """

    label: int
    region: torch.Tensor | None = None

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """(N, labels, *shape) to (N,).

        Raises:
            BadInput: no such label, a region on another grid, or one without a voxel.
        """
        channel = _label_channel(output, self.label)
        region = self._region(output).to(device=output.device, dtype=output.dtype)
        return (output[:, channel] * region).flatten(1).sum(1)

    def hold(self, output: torch.Tensor) -> LabelSum:
        """The same target with the region that `output`, (N, labels, *shape), predicts; itself if it has one."""
        if self.region is not None:
            return self
        return dataclasses.replace(self, region=self._region(output))

    def _region(self, output: torch.Tensor) -> torch.Tensor:
        """(N or 1, *shape), bool."""
        if self.region is None:
            scores = output.detach()
            found = scores[:, 0] > 0 if output.shape[1] == 1 else scores.argmax(1) == self.label
            if not bool(found.flatten(1).any(1).all()):
                raise BadInput(f"There is nothing to explain: the model predicts no voxel of label {self.label}.", "",
                               "Choose another label, give a region, or choose a voxel.")  # fmt: skip
            return found
        shape = output.shape[2:]
        region = self.region != 0
        if region.ndim == output.ndim and region.shape[1] == 1:
            region = region[:, 0]
        elif region.shape == shape:
            region = region[None]
        if region.shape[1:] != shape or len(region) not in (1, len(output)):
            raise BadInput(f"The region has shape {tuple(self.region.shape)}, but the model's output has "
                           f"{tuple(output.shape)}.", "The region lies on another grid.",
                           "Resample it onto the model's output grid.")  # fmt: skip
        if not bool(region.flatten(1).any(1).all()):
            raise BadInput("The region is empty: it has no voxel to explain.", "", "Give a region with voxels.")
        return region


@dataclasses.dataclass(frozen=True)
class Voxel:
    """The score of one label at one voxel.

    Attributes:
        label: channel of the output, from 0; of an output with one channel (a lone foreground) it is 1.
        index: of the voxel on the output's grid, in the order of the array's axes.
    """

    label: int
    index: tuple[int, ...]

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """(N, labels, *shape) to (N,).

        Raises:
            BadInput: no such label, or a voxel outside the output.
        """
        channel = _label_channel(output, self.label)
        require_inside(self.index, output.shape[2:])
        place: tuple[slice | int, ...] = (slice(None), channel, *self.index)
        return output[place]


@dataclasses.dataclass(frozen=True, eq=False)
class WeightedSum:
    """The score of one label, summed over voxels that count differently, as those of a blended window do.

    Attributes:
        label: channel of the output, from 0; of an output with one channel (a lone foreground) it is 1.
        weights: of each voxel on the output's grid, (*shape).
    """

    label: int
    weights: torch.Tensor

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """(N, labels, *shape) to (N,).

        Raises:
            BadInput: no such label, or weights on another grid.
        """
        channel = _label_channel(output, self.label)
        if self.weights.shape != output.shape[2:]:
            raise BadInput(f"The weights have shape {tuple(self.weights.shape)}, but the model's output has "
                           f"{tuple(output.shape)}.", "They lie on another grid.",
                           "Resample them onto the model's output grid.")  # fmt: skip
        return (output[:, channel] * self.weights.to(output)).flatten(1).sum(1)


@dataclasses.dataclass(frozen=True)
class Output:
    """One number of a regression.

    Attributes:
        index: among the numbers that the network gives for an image, from 0.
    """

    index: int = 0

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """(N,) or (N, numbers) to (N,).

        Raises:
            BadInput: the output is no regression's, or has no such number.
        """
        if output.ndim not in (1, 2):
            raise BadInput(f"A number cannot be read from an output of shape {tuple(output.shape)}.",
                           "A regression gives one row of numbers for each image.",
                           "Explain a label's sum or a voxel of this model.")  # fmt: skip
        numbers = output[:, None] if output.ndim == 1 else output
        _require_number("number", self.index, numbers.shape[1])
        return numbers[:, self.index]


def held(target: Target, network: nn.Module, image: torch.Tensor) -> Target:
    """`target` with everything fixed that it takes from the prediction on the unchanged image.

    Args:
        target: of any kind; only a :class:`LabelSum` without a region changes.
        network: in evaluation mode; run once, if needed, without gradients.
        image: (N, C, *shape).
    """
    if not isinstance(target, LabelSum) or target.region is not None:
        return target
    with torch.no_grad():
        return target.hold(network(image))


def require_inside(index: Sequence[int], shape: Sequence[int]) -> None:
    """Refuses a voxel outside a grid of `shape`, also a negative index, which would count from the end.

    Raises:
        BadInput: it lies outside, or has another number of axes.
    """
    if len(index) != len(shape) or any(not 0 <= i < n for i, n in zip(index, shape, strict=True)):
        raise BadInput(f"There is no voxel {tuple(index)} in a grid of {' x '.join(map(str, shape))}.",
                       "The point lies outside the volume that the model sees.",
                       "Choose a point inside.")  # fmt: skip


def _label_channel(output: torch.Tensor, label: int) -> int:
    if output.ndim < 3:
        raise BadInput(f"A label cannot be read from an output of shape {tuple(output.shape)}.",
                       "The model gives numbers for the whole image, not for voxels.",
                       "Explain a class score or a number of this model.")  # fmt: skip
    if output.shape[1] == 1:
        if label != 1:
            raise BadInput(f"The model has no label {label}.", "It has one channel: the foreground, label 1.",
                           "Choose label 1.")  # fmt: skip
        return 0
    _require_number("label", label, output.shape[1])
    return label


def _require_number(what: str, index: int, count: int) -> None:
    if not 0 <= index < count:
        raise BadInput(f"The model has no {what} {index}.", f"It has {count}, from 0 to {count - 1}.",
                       "Choose one of them.")  # fmt: skip

"""What a model offers to be explained, read from its metadata: its classes, labels or numbers. Imports no torch."""

from __future__ import annotations

import dataclasses

from ..bundles import Bundle
from ..errors import BadInput


@dataclasses.dataclass(frozen=True)
class Choice:
    """A target that can be chosen.

    Attributes:
        value: what a user calls it by number: the value in the label map, or the class' or output's index from 0.
        name: what a user calls it by name.
        channel: of the network's output.
    """

    value: int
    name: str
    channel: int


def choices(bundle: Bundle) -> tuple[Choice, ...]:
    """The classes of a classifier, the labels of a segmenter with its background, or the numbers of a regression.

    Of a segmenter without a background channel, whose labels may overlap, channel 0 is label 1.
    """
    names = bundle.output_channels
    first = 0
    if bundle.kind == "segmentation":
        first = 0 if bundle.has_background or (len(names) > 1 and bundle.activation == "softmax") else 1
        own = {label.value: label.name for label in bundle.labels}
        if bundle.has_background or first == 1:
            names = tuple(own.get(first + i, name) for i, name in enumerate(names))
    return tuple(Choice(first + i, name, i) for i, name in enumerate(names))


def chosen(bundle: Bundle, text: str) -> Choice:
    """The target called `text`, a name in any case or a number.

    Raises:
        BadInput: the model has none of that name or number; lists those that it has.
    """
    offered = choices(bundle)
    wanted = text.strip().casefold()
    for choice in offered:
        if choice.name.strip().casefold() == wanted:
            return choice
    for choice in offered:
        if str(choice.value) == wanted:
            return choice
    what = {"classification": "class", "regression": "output"}.get(bundle.kind, "label")
    listed = ", ".join(f"{choice.value} {choice.name}" for choice in offered)
    raise BadInput(f"The model {bundle.name} has no {what} {text!r}.", f"It has: {listed}.", "Choose one of them.")

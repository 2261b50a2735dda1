"""What a bundle's postprocessing does, read off its transforms: activation, decision, and where the inverse comes.

Most bundles say some order of Activationsd, Invertd and AsDiscreted. Those are done part by part, in the bundle's
order; transforms of the finished label map (largest component, ...) follow on the whole of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    DeleteItemsd,
    EnsureTyped,
    Invertd,
    SaveImage,
    SaveImaged,
    ScaleIntensityd,
    ToDeviced,
)

_SILENT = (SaveImaged, SaveImage, EnsureTyped, ToDeviced, DeleteItemsd)


@dataclasses.dataclass(frozen=True)
class Postprocessing:
    """From the network's output to labels.

    Attributes:
        activation: "softmax", "sigmoid" or "" (the network ends with it, or the bundle never says).
        decision: "argmax" over the channels, or "threshold" of each.
        threshold: for the latter.
        inverted: what goes back to the input's grid: the raw "output", the "probability", or the "label".
        nearest: whether it goes back by nearest neighbour.
        finish: what is done to the label map on the input's grid afterwards.
        key: the name of the prediction in the bundle's transforms.
        scale: what the output is multiplied by before the activation, the inverse of a temperature.
    """

    activation: str = "softmax"
    decision: str = "argmax"
    threshold: float = 0.5
    inverted: str = "probability"
    nearest: bool = False
    finish: tuple[Callable[[Any], Any], ...] = ()
    key: str = "pred"
    scale: float = 1.0

    def activate(self, output: torch.Tensor) -> torch.Tensor:
        """Probabilities (class, ...) from the network's output of the same shape, as the bundle says."""
        output = output if self.scale == 1 else output * self.scale
        if self.activation == "softmax":
            return torch.softmax(output, dim=0)
        if self.activation == "sigmoid":
            return torch.sigmoid(output)
        return output

    def probabilities(self, output: torch.Tensor) -> torch.Tensor:
        """As :meth:`activate`, but when the bundle decides on raw outputs they are turned into probabilities, too."""
        if self.activation:
            return self.activate(output)
        if self.decision == "argmax":
            return output if _sums_to_one(output) else torch.softmax(output, dim=0)
        return output if 0 < self.threshold < 1 else torch.sigmoid(output)

    def decide(self, values: torch.Tensor) -> torch.Tensor:
        """Labels from values (class, ...): the largest channel, or one bit a channel above the threshold.

        Returns:
            Whole numbers (...): the channel, or the sum of 2**channel over the channels at or above the threshold.
        """
        if self.decision == "argmax":
            return _argmax(values)
        bits = torch.zeros(values.shape[1:], dtype=torch.int64, device=values.device)
        for channel, value in enumerate(values):
            bits |= (value >= self.threshold).to(torch.int64) << channel
        return bits


def parse(compose: Compose | None, classes: int) -> Postprocessing | None:
    """Read a bundle's postprocessing.

    Args:
        compose: its transforms, or None when it has none.
        classes: channels of the network's output.

    Returns:
        None when it does something before the decision that cannot be done part by part.
    """
    default = Postprocessing() if classes > 1 else Postprocessing(activation="sigmoid", decision="threshold")
    transforms = [] if compose is None else [t for t in compose.flatten().transforms if not isinstance(t, _SILENT)]
    if not transforms:
        return default
    activation, decision, threshold, nearest, key, scale = "", "", 0.5, False, "pred", 1.0
    order: list[str] = []
    finish: list[Callable[[Any], Any]] = []
    for transform in transforms:
        if isinstance(transform, Activationsd) and not decision and "activation" not in order:
            chosen = _activation(transform)
            if chosen is None:
                return None
            activation = chosen
            order.append("activation")
        elif isinstance(transform, ScaleIntensityd) and not order:
            scaler = transform.scaler
            if scaler.minv is not None or scaler.maxv is not None or scaler.factor is None:
                return None
            scale *= 1 + float(scaler.factor)
        elif isinstance(transform, Invertd) and "invert" not in order and not finish:
            nearest = bool(transform.nearest_interp[0])
            key = str(transform.keys[0])
            order.append("invert")
        elif isinstance(transform, AsDiscreted) and not decision:
            found = _decision(transform)
            if found is None:
                return None
            decision, threshold = found
            order.append("decision")
        elif decision:
            finish.append(transform)
        else:
            return None
    if not decision:
        decision = default.decision
        order.append("decision")
    if scale != 1 and not activation:
        return None  # a temperature is of logits
    inverted = "probability"
    if "invert" in order:
        earlier = order[: order.index("invert")]
        inverted = "label" if "decision" in earlier else "probability" if "activation" in earlier else "output"
        if inverted == "output" and not activation:
            inverted = "probability"  # without an activation both are the same values
    elif finish:
        return None  # they would see the label map on the network's grid
    return Postprocessing(activation, decision, threshold, inverted, nearest, tuple(finish), key, scale)


def _activation(transform: Activationsd) -> str | None:
    softmax, sigmoid, other = transform.softmax[0], transform.sigmoid[0], transform.other[0]
    if other is not None or (softmax and sigmoid):
        return None
    return "softmax" if softmax else "sigmoid" if sigmoid else ""


def _decision(transform: AsDiscreted) -> tuple[str, float] | None:
    argmax, threshold = transform.argmax[0], transform.threshold[0]
    if transform.to_onehot[0] is not None or transform.rounding[0] is not None:
        return None
    if argmax and threshold is None:
        return "argmax", 0.5
    if threshold is not None and not argmax:
        return "threshold", float(threshold)
    return None


def _argmax(values: torch.Tensor) -> torch.Tensor:
    """The first of the largest channels; over the leading axis this is ten times as fast as torch's argmax."""
    best = values[0].clone()
    out = torch.zeros(best.shape, dtype=torch.uint8 if len(values) <= 256 else torch.int32, device=values.device)
    for channel in range(1, len(values)):
        out.masked_fill_(values[channel] > best, channel)
        torch.maximum(best, values[channel], out=best)
    return out


def _sums_to_one(values: torch.Tensor) -> bool:
    """Whether the network ends with a softmax."""
    return bool(values.numel()) and float(values.min()) >= 0 and bool((values.sum(0) - 1).abs().max() < 1e-3)

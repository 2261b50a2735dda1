"""The theoretical receptive field: the box of the image that one voxel of a layer can depend on.

Read from one traced forward pass and followed backwards through kernels, strides, dilations, padding, pooling,
interpolation and transposed convolutions (Araujo 2019); where branches meet, the hull of all paths.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from ..errors import BadInput
from .layers import find_layer
from .scoring import require_evaluation, require_image
from .targets import require_inside
from .tracing import Step, Trace, Value, trace

#: First and last voxel along one axis.
Interval = tuple[int, int]

#: Operations that work on each place alone.
_POINTWISE = frozenset(
    ("_prelu_kernel", "_to_copy", "abs", "add", "addcmul", "alias", "celu", "clamp", "clamp_max", "clamp_min", "clone",
     "copy", "detach", "div", "elu", "erf", "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log",
     "log1p", "log_sigmoid_forward", "masked_fill", "maximum", "minimum", "mish", "mul", "native_dropout", "neg",
     "pow", "reciprocal", "relu", "rrelu_with_noise", "rsqrt", "rsub", "sigmoid", "silu", "softplus", "sqrt", "sub",
     "tanh", "threshold", "where")
)  # fmt: skip

#: Normalisations: each place alone, but for statistics that may be taken over the whole image.
_NORMS = frozenset(
    ("_batch_norm_no_update", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
     "miopen_batch_norm", "native_batch_norm", "native_group_norm", "native_layer_norm")
)  # fmt: skip

#: Shapes change, numbers stay in their order.
_RESHAPING = frozenset(
    ("_reshape_alias", "_unsafe_view", "expand", "repeat", "select", "split", "split_with_sizes", "squeeze", "unbind",
     "unsqueeze", "view")
)  # fmt: skip

#: The result has only the shape of what it is made from.
_EMPTY = frozenset(
    ("empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like")
)

#: Phases that are tried at most: a U-Net with six halvings has 64.
_PHASES = 64


@dataclasses.dataclass(frozen=True)
class Box:
    """Voxels from `lower` to `upper`, both in it, in the order of the array's axes; may reach beyond the image."""

    lower: tuple[int, ...]
    upper: tuple[int, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(u - low + 1 for low, u in zip(self.lower, self.upper, strict=True))

    def within(self, shape: Sequence[int]) -> Box:
        """The part inside a grid of `shape`."""
        lower = tuple(max(0, low) for low in self.lower)
        return Box(lower, tuple(min(n - 1, u) for n, u in zip(shape, self.upper, strict=True)))


@dataclasses.dataclass(frozen=True)
class Field:
    """A theoretical receptive field.

    Attributes:
        box: what the voxel can depend on; beyond the image where a larger image would have more to see.
        everywhere: the steps that look at the whole image, or that take its axes apart; the box has the whole image
            because of them.
        statistics: normalisations over the whole image (instance, group and layer norm). Through them every voxel has
            a small influence on every other; as is usual, the box leaves that aside.
    """

    box: Box
    everywhere: tuple[str, ...]
    statistics: tuple[str, ...]


def receptive_field(
    network: nn.Module, image: torch.Tensor, index: Sequence[int], *, layer: str | None = None
) -> Field:
    """What one voxel of the output, or of a layer, can depend on.

    Args:
        network: in evaluation mode; run once.
        image: (N, C, *shape): only its shape matters.
        index: of the voxel on the grid of the output or layer, in the order of the array's axes.
        layer: its name; None for the network's output. Of a layer that runs several times, its last run.

    Raises:
        BadInput: no such layer, one without voxels, or a voxel outside it.
    """
    found, value = _place(network, image, layer)
    require_inside(index, value.shape[2:])
    return _field(found, value, [(i, i) for i in index])


def receptive_size(network: nn.Module, image: torch.Tensor, *, layer: str | None = None) -> tuple[int, ...]:
    """The size of the receptive field, voxels along each axis.

    Behind a transposed convolution or an interpolation it differs from voxel to voxel; this is the largest.

    Args, raises as :func:`receptive_field`.
    """
    return _largest(*_place(network, image, layer))


def receptive_sizes(network: nn.Module, image: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """As :func:`receptive_size` of every layer that has voxels and depends on the image; the output's under "".

    Args:
        network: in evaluation mode; run once.
        image: (N, C, *shape): only its shape matters.
    """
    require_evaluation(network)
    require_image(image)
    found = trace(network, image[:1])
    values = {call.module: call.output for call in found.calls} | {"": found.output}
    sizes: dict[str, tuple[int, ...]] = {}
    known: dict[int, tuple[int, ...]] = {}
    for name, value in values.items():
        if value is None or len(value.shape) != image.ndim:
            continue
        if value.number not in known:
            try:
                known[value.number] = _largest(found, value)
            except BadInput:  # it does not depend on the image
                continue
        sizes[name] = known[value.number]
    return sizes


def _largest(found: Trace, value: Value) -> tuple[int, ...]:
    centre = [n // 2 for n in value.shape[2:]]
    sizes = [
        _field(found, value, [(c + phase, c + phase) for c in centre]).box.size
        for phase in range(_phases(found, value))
    ]
    return tuple(max(size) for size in zip(*sizes, strict=True))


def _place(network: nn.Module, image: torch.Tensor, layer: str | None) -> tuple[Trace, Value]:
    require_evaluation(network)
    require_image(image)
    if layer is not None:
        find_layer(network, layer)
    found = trace(network, image[:1])
    values = [found.output] if layer is None else [call.output for call in found.calls if call.module == layer]
    value = values[-1] if values else None
    if value is None or len(value.shape) != image.ndim:
        what = "The network's output" if layer is None else f"The layer {layer!r}"
        raise BadInput(f"{what} has no voxels.", "It does not run, or gives numbers for the whole image.",
                       "Choose a layer whose output is an image, such as a convolution.")  # fmt: skip
    return found, value


def _phases(found: Trace, value: Value) -> int:
    """How many neighbouring voxels may differ in the size of their fields."""
    factor = 1
    for step in found.towards(value):
        before, after = step.inputs[0].shape[2:], step.outputs[0].shape[2:]
        grows = step.operation.startswith(("upsample", "_upsample")) or step.arguments.get("transposed")
        if grows and len(before) == len(after):
            factor *= max(math.ceil(b / a) for a, b in zip(before, after, strict=True))
    return min(factor, _PHASES)


def _field(found: Trace, value: Value, intervals: list[Interval]) -> Field:
    axes = len(intervals)
    needed: dict[int, list[Interval]] = {value.number: intervals}
    everywhere: list[str] = []
    statistics: list[str] = []
    for step in found.towards(value):
        outputs = [needed[o.number] for o in step.outputs if o.number in needed]
        if not outputs or step.operation in _EMPTY:
            continue
        wanted = [_hull(parts) for parts in zip(*outputs, strict=True)]
        if _has_statistics(step):
            statistics.append(step.place)
        back = _back(step, wanted, axes)
        for given in step.inputs:
            part = _whole(given, axes) if back is None else back(given)
            if back is None and _sees_more(given, axes):
                everywhere.append(f"{step.operation} in {step.place}")
            if any(first > last for first, last in part):
                continue
            known = needed.get(given.number)
            joined = part if known is None else [_hull(pair) for pair in zip(known, part, strict=True)]
            needed[given.number] = joined
    if found.image.number not in needed:
        raise BadInput("This voxel does not depend on the image.", "A step before it leaves it out.",
                       "Choose another voxel or layer.")  # fmt: skip
    box = needed[found.image.number]
    return Field(
        Box(tuple(first for first, _ in box), tuple(last for _, last in box)),
        tuple(dict.fromkeys(reversed(everywhere))),
        tuple(dict.fromkeys(reversed(statistics))),
    )


def _hull(intervals: Sequence[Interval]) -> Interval:
    return min(first for first, _ in intervals), max(last for _, last in intervals)


def _whole(value: Value, axes: int) -> list[Interval]:
    """All of a tensor; (0, 0) along axes that it has lost."""
    if len(value.shape) != axes + 2:
        return [(0, 0)] * axes
    return [(0, n - 1) for n in value.shape[2:]]


def _sees_more(value: Value, axes: int) -> bool:
    return len(value.shape) == axes + 2 and math.prod(value.shape[2:]) > 1


def _has_statistics(step: Step) -> bool:
    if step.operation not in _NORMS:
        return False
    if "batch_norm" in step.operation:
        return bool(step.arguments.get("training")) or step.arguments.get("running_mean") is None
    return True


def _back(step: Step, wanted: list[Interval], axes: int) -> Callable[[Value], list[Interval]] | None:
    """From the intervals of a step's output to those of an input; None where the step sees all of it."""
    name, output = step.operation, step.outputs[0]
    if name in ("_softmax", "_log_softmax"):
        return _pointwise(wanted, output, axes) if step.arguments["dim"] % len(output.shape) < 2 else None
    if name in _POINTWISE or name in _NORMS:
        return _pointwise(wanted, output, axes)
    if name in _RESHAPING:
        return _reshaped(step, wanted, axes)
    if any(len(v.shape) != axes + 2 for v in (*step.inputs, output)):
        return None
    if name in ("mean", "sum", "amax", "amin", "argmax"):
        dims = step.arguments.get("dim")
        listed = [dims] if isinstance(dims, int) else dims
        return _pointwise(wanted, output, axes) if listed and all(d % (axes + 2) < 2 for d in listed) else None
    found = _kernel(step, wanted, axes) or _rearranged(step, wanted, axes) or _interpolated(step, wanted, axes)
    return None if found is None else lambda given: found


def _pointwise(wanted: list[Interval], output: Value, axes: int) -> Callable[[Value], list[Interval]]:
    """The same place, or the only one where an input is spread over an axis."""

    def back(given: Value) -> list[Interval]:
        if len(given.shape) != axes + 2:
            return _whole(given, axes)
        after = output.shape[-axes:]
        pairs = zip(wanted, given.shape[2:], after, strict=True)
        return [(0, 0) if n == 1 and m != 1 else interval for interval, n, m in pairs]

    return back


def _reshaped(step: Step, wanted: list[Interval], axes: int) -> Callable[[Value], list[Interval]] | None:
    """The same place where the image's axes stay the last ones, or were single."""
    given, output = step.inputs[0].shape, step.outputs[0].shape
    if min(len(given), len(output)) <= axes:
        return None
    if any(n not in (1, m) for n, m in zip(given[-axes:], output[-axes:], strict=True)):
        return None
    spread = [(0, 0) if n == 1 and m != 1 else i for i, n, m in zip(wanted, given[-axes:], output[-axes:], strict=True)]
    return lambda value: spread


def _kernel(step: Step, wanted: list[Interval], axes: int) -> list[Interval] | None:
    """Convolutions and pooling."""
    name, args = step.operation, step.arguments
    if name == "convolution":
        weight = args["weight"]
        sizes = (weight.shape if isinstance(weight, Value) else weight)[2:]
        stride, padding, dilation = (_each(args[key], axes) for key in ("stride", "padding", "dilation"))
        way = _transposed if args["transposed"] else _strided
    elif "pool" in name and "adaptive" not in name:
        sizes = _each(args["kernel_size"], axes)
        stride = _each(args.get("stride") or sizes, axes)
        padding, dilation = _each(args.get("padding", 0), axes), _each(args.get("dilation", 1), axes)
        way = _strided
    elif "adaptive" in name:
        grids = zip(wanted, step.inputs[0].shape[2:], step.outputs[0].shape[2:], strict=True)
        return [(first * n // m, -((-(last + 1) * n) // m) - 1) for (first, last), n, m in grids]
    else:
        return None
    return [way(*each) for each in zip(wanted, sizes, stride, padding, dilation, strict=True)]


def _strided(wanted: Interval, size: int, stride: int, padding: int, dilation: int) -> Interval:
    first, last = wanted
    return first * stride - padding, last * stride - padding + dilation * (size - 1)


def _transposed(wanted: Interval, size: int, stride: int, padding: int, dilation: int) -> Interval:
    """Output o is reached from input i where o = i stride - padding + tap dilation."""
    first, last = wanted
    reached = []
    for tap in range(size):
        shift = padding - tap * dilation
        lowest, highest = -((-(first + shift)) // stride), (last + shift) // stride
        if lowest <= highest:
            reached.append((lowest, highest))
    return _hull(reached) if reached else (1, 0)


def _rearranged(step: Step, wanted: list[Interval], axes: int) -> list[Interval] | None:
    """Padding, slices, concatenation and orders of axes."""
    name, args = step.operation, step.arguments
    if name == "constant_pad_nd" or name.startswith(("reflection_pad", "replication_pad")):
        key = "pad" if "pad" in args else "padding"
        before = [*args[key][::2], *[0] * axes][:axes][::-1]
        return [(first - b, last - b) for (first, last), b in zip(wanted, before, strict=True)]
    if name == "slice":
        axis = args.get("dim", 0) % (axes + 2) - 2
        if axis < 0:
            return wanted
        n, start, pace = step.inputs[0].shape[2 + axis], args.get("start") or 0, args.get("step", 1)
        start = max(0, start + n) if start < 0 else min(start, n)
        found = list(wanted)
        found[axis] = (start + wanted[axis][0] * pace, start + wanted[axis][1] * pace)
        return found
    if name == "cat":
        return wanted if args.get("dim", 0) % (axes + 2) < 2 else None
    if name in ("permute", "transpose"):
        order = list(range(axes + 2))
        if name == "permute":
            order = [d % (axes + 2) for d in args["dims"]]
        else:
            one, other = args["dim0"] % (axes + 2), args["dim1"] % (axes + 2)
            order[one], order[other] = order[other], order[one]
        if any((after < 2) != (before < 2) for after, before in enumerate(order)):
            return None
        return [wanted[order.index(2 + axis) - 2] for axis in range(axes)]
    return None


def _interpolated(step: Step, wanted: list[Interval], axes: int) -> list[Interval] | None:
    name, args = step.operation, step.arguments
    if not name.startswith(("upsample", "_upsample")):
        return None
    keys = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}[axes]
    before, after = step.inputs[0].shape[2:], step.outputs[0].shape[2:]
    found = []
    for (first, last), key, n, m in zip(wanted, keys, before, after, strict=True):
        given = args.get(key)
        pace = 1 / Fraction(given) if given else Fraction(n, m)
        corners = bool(args.get("align_corners"))
        if corners:
            pace = Fraction(n - 1, m - 1) if m > 1 else Fraction(0)
        if "nearest" in name:
            shift = Fraction(1, 2) if "exact" in name else Fraction(0)
            found.append((math.floor((first + shift) * pace), math.floor((last + shift) * pace)))
            continue
        half = Fraction(0) if corners else Fraction(1, 2)
        low, high = (first + half) * pace - half, (last + half) * pace - half
        reach = 1 if "bicubic" in name else 0
        found.append((math.floor(low) - (reach if low.denominator > 1 else 0),
                      math.ceil(high) + (reach if high.denominator > 1 else 0)))  # fmt: skip
    return found


def _each(given: Any, axes: int) -> list[int]:
    """One number for each axis."""
    listed = [given] if isinstance(given, int) else list(given)
    return listed * axes if len(listed) == 1 else listed

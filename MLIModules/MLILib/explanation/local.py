"""Many images that differ from one image in a box each, computed through a network only where they differ.

A convolution moves a change by no more than its kernel's reach, so the first layers of a network give, away from the
box, what they gave for the one image (Nakandala et al. 2019, "Incremental and approximate inference for faster
occlusion-based deep CNN explanations"). An operation that is not known to be local gets whole images, so that the
result is always right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.utils._pytree import tree_map_only

#: Of a map's size; a change that fills more of it is not worth cutting out.
_WORTH = 0.5

Start = tuple[int, ...]


class Clean:
    """What the layers give for the one image, kept from one batch of changes to the next.

    Each result is found by the operation and the tensors that went into it, which are kept as well.
    """

    def __init__(self) -> None:
        self._results: dict[tuple[Any, ...], tuple[torch.Tensor, tuple[Any, ...]]] = {}

    def result(self, make: Callable[[], torch.Tensor], *key: Any) -> torch.Tensor:
        """What `make` gives, of which `key` tells everything; a tensor in it is told by its identity."""
        known = tuple(("tensor", id(part)) if isinstance(part, torch.Tensor) else part for part in key)
        if known not in self._results:
            self._results[known] = (make(), key)
        return self._results[known][0]


class Changed(torch.Tensor):
    """A batch (B, C, *shape) given by one map and a box of other values in each of its copies.

    Args:
        base: (1, C, *shape).
        patches: (B, C, *size).
        starts: index in `base` of the first voxel of each patch.
        clean: shared by all batches of one image.
    """

    base: torch.Tensor
    patches: torch.Tensor
    starts: list[Start]
    clean: Clean
    _whole: torch.Tensor | None

    @staticmethod
    def __new__(
        cls: type[Changed], base: torch.Tensor, patches: torch.Tensor, starts: Sequence[Start], clean: Clean
    ) -> Changed:
        size = (len(patches), *base.shape[1:])
        made = torch.Tensor._make_wrapper_subclass(cls, size, dtype=base.dtype, device=base.device)
        made._become(base, patches, starts, clean)
        return made

    def _become(self, base: torch.Tensor, patches: torch.Tensor, starts: Sequence[Start], clean: Clean) -> None:
        self.base, self.patches, self.starts, self.clean = base, patches, list(starts), clean
        self._whole = None

    def whole(self) -> torch.Tensor:
        """The batch as an ordinary tensor; from then on this tensor is what the object stands for."""
        if self._whole is None:
            self._whole = self.base.repeat(len(self.patches), *(1,) * (self.base.ndim - 1))
            for one, patch, start in zip(self._whole, self.patches, self.starts, strict=True):
                one[(slice(None), *_box(start, patch.shape[1:]))] = patch
        return self._whole

    @property
    def local(self) -> bool:
        """Whether it is still known where the copies differ."""
        return self._whole is None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DESCRIPTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        rule = _RULES.get(func)
        if rule is not None:
            found = rule(func, args, kwargs)
            if found is not None:
                return found
        args, kwargs = tree_map_only(Changed, Changed.whole, (list(args), kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map_only(Changed, Changed.whole, (list(args), kwargs or {}))
        return func(*args, **kwargs)


def _made(base: torch.Tensor, patches: torch.Tensor, starts: Sequence[Start], clean: Clean) -> torch.Tensor:
    """A changed batch, as an ordinary tensor if the patches are not worth it."""
    found = Changed(base, patches, starts, clean)
    return found if patches[0, 0].numel() <= _WORTH * base[0, 0].numel() else found.whole()


def _box(start: Start, size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(begin, begin + edge) for begin, edge in zip(start, size, strict=True))


def _cut(
    given: Changed, starts: Sequence[Start], size: Sequence[int], padded: torch.Tensor, pad: Start
) -> torch.Tensor:
    """Boxes (B, C, *size) of the batch at `starts`, which may lie in the margin of `pad` voxels that `padded` has."""
    found = padded.new_empty((len(starts), padded.shape[1], *size))
    edges = given.patches.shape[2:]
    for one, patch, old, new in zip(found, given.patches, given.starts, starts, strict=True):
        one.copy_(padded[0][(slice(None), *_box(tuple(n + p for n, p in zip(new, pad, strict=True)), size))])
        into, source = [], []
        for o, edge, n, length in zip(old, edges, new, size, strict=True):
            begin, end = max(o, n), min(o + edge, n + length)
            into.append(slice(begin - n, max(end, begin) - n))
            source.append(slice(begin - o, max(end, begin) - o))
        one[(slice(None), *into)] = patch[(slice(None), *source)]
    return found


def _reached(given: Changed, out: Sequence[int], kernel: Start, stride: Start, pad: Start, dilation: Start) -> Any:
    """Where outputs of a sliding window of which an input changes begin, in each copy, and how far they go in any."""
    lows, highs = [], []
    for start in given.starts:
        low, high = [], []
        for a, m, o, k, s, p, d in zip(start, given.patches.shape[2:], out, kernel, stride, pad, dilation, strict=True):
            low.append(min(max(0, -(-(a + p - d * (k - 1)) // s)), o - 1))
            high.append(min(o - 1, (a + m - 1 + p) // s))
        lows.append(low)
        highs.append(high)
    size = [
        max(1, max(h[axis] - low[axis] + 1 for low, h in zip(lows, highs, strict=True))) for axis in range(len(out))
    ]
    starts = [tuple(min(at, o - n) for at, o, n in zip(low, out, size, strict=True)) for low in lows]
    return starts, size


def _slide(
    given: Changed,
    base: torch.Tensor,
    kernel: Start,
    stride: Start,
    pad: Start,
    dilation: Start,
    margin: float,
    compute: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor | None:
    """A sliding window over the batch; `base` is its result for the one image, `compute` slides without padding.

    None if it is not worth cutting boxes out.
    """
    starts, size = _reached(given, base.shape[2:], kernel, stride, pad, dilation)
    if torch.Size(size).numel() > _WORTH * base[0, 0].numel():
        return None
    padded = given.clean.result(lambda: _padded(given.base, pad, margin), "pad", given.base, pad, margin)
    corners = [tuple(o * s - p for o, s, p in zip(start, stride, pad, strict=True)) for start in starts]
    needed = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(size, stride, dilation, kernel, strict=True)]
    return Changed(base, compute(_cut(given, corners, needed, padded, pad)), starts, given.clean)


def _padded(image: torch.Tensor, pad: Start, margin: float) -> torch.Tensor:
    return (
        functional.pad(image, [p for edge in reversed(pad) for p in (edge, edge)], value=margin) if any(pad) else image
    )


def _per_axis(given: Any, dimensions: int) -> Start:
    return (given,) * dimensions if isinstance(given, int) else tuple(given) * (dimensions if len(given) == 1 else 1)


def _convolution(func: Any, args: Any, kwargs: Any) -> Any:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    named = dict(zip(names, args, strict=False)) | kwargs
    given, weight, padding = named.get("input"), named["weight"], named.get("padding", 0)
    if not _is_local(given) or isinstance(weight, Changed) or isinstance(padding, str):
        return None
    n = weight.ndim - 2
    stride, pad, dilation = (_per_axis(one, n) for one in (named.get("stride", 1), padding, named.get("dilation", 1)))
    bias, groups = named.get("bias"), named.get("groups", 1)
    base = given.clean.result(
        lambda: func(given.base, weight, bias, stride, pad, dilation, groups),
        *(func, given.base, weight, bias, stride, pad, dilation, groups),
    )

    def compute(boxes: torch.Tensor) -> torch.Tensor:
        return func(boxes, weight, bias, stride, 0, dilation, groups)

    return _slide(given, base, tuple(weight.shape[2:]), stride, pad, dilation, 0.0, compute)


def _max_pool(func: Any, args: Any, kwargs: Any) -> Any:
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    named = dict(zip(names, args, strict=False)) | kwargs
    given = named.get("input")
    if not _is_local(given) or named.get("ceil_mode") or named.get("return_indices"):
        return None
    n = given.base.ndim - 2
    kernel = _per_axis(named["kernel_size"], n)
    stride = _per_axis(named.get("stride") or kernel, n)
    pad, dilation = _per_axis(named.get("padding", 0), n), _per_axis(named.get("dilation", 1), n)
    base = given.clean.result(
        lambda: func(given.base, kernel, stride, pad, dilation),
        *(func, given.base, kernel, stride, pad, dilation),
    )

    def compute(boxes: torch.Tensor) -> torch.Tensor:
        return func(boxes, kernel, stride, 0, dilation)

    return _slide(given, base, kernel, stride, pad, dilation, -torch.inf, compute)


def _average_pool(func: Any, args: Any, kwargs: Any) -> Any:
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    named = dict(zip(names, args, strict=False)) | kwargs
    given = named.get("input")
    if not _is_local(given) or named.get("ceil_mode") or named.get("divisor_override") is not None:
        return None
    n = given.base.ndim - 2
    kernel, pad = _per_axis(named["kernel_size"], n), _per_axis(named.get("padding", 0), n)
    if any(pad):  # the divisor may depend on the place
        return None
    stride = _per_axis(named.get("stride") or kernel, n)
    base = given.clean.result(lambda: func(given.base, kernel, stride), func, given.base, kernel, stride)

    def compute(boxes: torch.Tensor) -> torch.Tensor:
        return func(boxes, kernel, stride)

    return _slide(given, base, kernel, stride, pad, (1,) * n, 0.0, compute)


def _pointwise(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation of each voxel, or of each voxel and its channel; written in place where the network does so."""
    given: Any = args[0] if args else None
    others = list(args[1:])
    if not _is_local(given) or kwargs.get("training") or any(isinstance(one, Changed) for one in others):
        return None
    if func is functional.batch_norm and (len(others) < 2 or others[0] is None or any(o is True for o in others[4:5])):
        return None
    in_place = bool(kwargs.get("inplace"))
    settings = {name: value for name, value in kwargs.items() if name != "inplace"}
    apart = _APART.get(func, func)
    base = given.clean.result(
        lambda: apart(given.base, *others, **settings), func, given.base, *others, *sorted(settings), *settings.values()
    )
    patches = apart(given.patches, *others, **settings)
    if in_place or apart is not func:
        given._become(base, patches, given.starts, given.clean)
        return given
    return Changed(base, patches, given.starts, given.clean)


def _joined(func: Any, args: Any, kwargs: Any) -> Any:
    """A sum or concatenation of changed batches of one grid: within the box that holds both boxes."""
    if func is torch.cat:
        parts, settings = list(args[0]), (args[1:] or (kwargs.get("dim", 0),))
        if settings != (1,):
            return None
    else:
        parts, settings = list(args), ()
    if (kwargs and func is not torch.cat) or len(parts) < 2 or not all(_is_local(part) for part in parts):
        return None
    shape = parts[0].base.shape[2:]
    if any(part.base.shape[2:] != shape or len(part.patches) != len(parts[0].patches) for part in parts):
        return None
    if func is not torch.cat and parts[0].base.shape != parts[1].base.shape:
        return None
    lows = [tuple(map(min, zip(*each, strict=True))) for each in zip(*(part.starts for part in parts), strict=True)]
    size = [0] * len(shape)
    for part in parts:
        for low, start in zip(lows, part.starts, strict=True):
            ends = [a + m - at for a, m, at in zip(start, part.patches.shape[2:], low, strict=True)]
            size = list(map(max, size, ends))
    starts = [tuple(min(at, o - n) for at, o, n in zip(low, shape, size, strict=True)) for low in lows]
    none = (0,) * len(shape)
    boxes = [_cut(part, starts, size, part.base, none) for part in parts]

    def join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(tensors), 1) if func is torch.cat else tensors[0] + tensors[1]

    clean = parts[0].clean
    bases = [part.base for part in parts]
    base = clean.result(lambda: join(bases), "cat" if func is torch.cat else "add", *bases)
    if func in _IN_PLACE_SUMS:
        parts[0]._become(base, join(boxes), starts, clean)
        return parts[0]
    return _made(base, join(boxes), starts, clean)


def _is_local(given: Any) -> bool:
    return isinstance(given, Changed) and given.local


#: What is asked of a tensor without looking at its values.
_DESCRIPTIONS = {
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.is_floating_point,
    torch.is_floating_point,
    torch.Tensor.__len__,
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad", "is_cuda")),
}

#: Operations in place, and what does the same apart.
_APART: dict[Any, Any] = {
    torch.relu_: torch.relu,
    torch.Tensor.relu_: torch.relu,
    torch.sigmoid_: torch.sigmoid,
    torch.tanh_: torch.tanh,
}

_IN_PLACE_SUMS = {torch.Tensor.add_, torch.Tensor.__iadd__}

_POINTWISE = (
    functional.batch_norm,
    functional.relu,
    functional.relu6,
    functional.leaky_relu,
    functional.elu,
    functional.silu,
    functional.gelu,
    functional.mish,
    functional.softplus,
    functional.hardtanh,
    functional.hardswish,
    functional.dropout,
    functional.dropout2d,
    functional.dropout3d,
    torch.prelu,
    torch.relu,
    torch.Tensor.relu,
    torch.sigmoid,
    torch.Tensor.sigmoid,
    torch.tanh,
    torch.Tensor.tanh,
    *_APART,
)

_RULES: dict[Any, Callable[[Any, Any, Any], Any]] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    **dict.fromkeys((torch.max_pool1d, torch.max_pool2d, torch.max_pool3d), _max_pool),
    **dict.fromkeys((functional.max_pool1d, functional.max_pool2d, functional.max_pool3d), _max_pool),
    **dict.fromkeys((functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d), _average_pool),
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.cat, *_IN_PLACE_SUMS), _joined),
}

"""One forward pass, written down: which operations ran, in which module, on what.

The operations are PyTorch's own (ATen), seen where they are dispatched, so that functional calls, scripted modules and
branches are in it as well as layers. Only operations that the image has a part in are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import BadInput

#: What a tensor that is written through a view of it becomes: an operation of ours, for which ATen has no name.
WRITTEN = "written through a view"


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor that depends on the image, as an argument of a step.

    Attributes:
        number: of the value, unique in its trace.
        shape: of the tensor.
    """

    number: int
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        operation: ATen's name without the underscore of its in-place form, such as "convolution" or "relu".
        arguments: by ATen's names; a tensor that depends on the image is a :class:`Value`, any other its shape.
        inputs: every :class:`Value` among the arguments.
        outputs: the values that it made.
        module: name of the innermost module that it ran in, "" for the network itself.
        kind: class of that module.
    """

    operation: str
    arguments: dict[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    module: str
    kind: str

    @property
    def place(self) -> str:
        """The module in words, for a message."""
        return f"the module {self.module} ({self.kind})" if self.module else f"the network itself ({self.kind})"


@dataclasses.dataclass(frozen=True)
class Call:
    """One run of one module.

    Attributes:
        module: its name, "" for the network itself.
        output: what it gave, None where that was no tensor that depends on the image.
        shape: of the output, None where it was no tensor.
    """

    module: str
    output: Value | None
    shape: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Trace:
    """A forward pass.

    Attributes:
        image: the image.
        output: the network's output.
        steps: in the order they ran.
        calls: of modules, in the order they ended.
    """

    image: Value
    output: Value
    steps: tuple[Step, ...]
    calls: tuple[Call, ...]

    def towards(self, value: Value) -> list[Step]:
        """The steps that `value` depends on, last first."""
        needed = {value.number}
        found = []
        for step in reversed(self.steps):
            if any(output.number in needed for output in step.outputs):
                needed.update(given.number for given in step.inputs)
                found.append(step)
        return found


def trace(network: nn.Module, image: torch.Tensor) -> Trace:
    """Run the network once, without gradients, and write down what it does.

    Args:
        network: in evaluation mode.
        image: (N, C, *shape).

    Raises:
        BadInput: the network's output is no tensor, or does not depend on the image.
    """
    plain = image.detach().as_subclass(torch.Tensor)
    stack: list[tuple[str, str]] = [("", type(network).__name__)]
    with torch.no_grad(), _Recorder(plain, stack) as recorder, _followed(network, stack, recorder):
        output = network(plain)
    found = recorder.values.get(output) if isinstance(output, torch.Tensor) else None
    if found is None:
        raise BadInput(f"The network gives {_described(output)}.",
                       "An explanation needs one tensor that depends on the image.",
                       "Choose a model with one output.")  # fmt: skip
    return Trace(recorder.image, found, tuple(recorder.steps), tuple(recorder.calls))


class _Recorder(TorchDispatchMode):
    """Sees every operation while it is entered."""

    def __init__(self, image: torch.Tensor, stack: list[tuple[str, str]]) -> None:
        super().__init__()
        self._stack = stack
        self._numbers = itertools.count()
        # weak, so that a value is let go as soon as the network lets it go
        self.values = WeakIdKeyDictionary()
        self.steps: list[Step] = []
        self.calls: list[Call] = []
        self.image = self._named(image)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
        inputs = tuple(self.values[t] for t in tree_leaves(given) if isinstance(t, torch.Tensor) and t in self.values)
        described = tree_map_only(torch.Tensor, lambda t: self.values.get(t, tuple(t.shape)), given) if inputs else {}
        result = func(*args, **kwargs)
        if not inputs:
            return result
        outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        written = [given[a.name] for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write
                   and isinstance(given.get(a.name), torch.Tensor)]  # fmt: skip
        outputs += [t for t in written if not any(t is known for known in outputs)]
        self._add(func._opname.rstrip("_"), described, inputs, tuple(self._named(t) for t in outputs))
        for tensor in written:
            base = tensor._base if tensor._is_view() else None
            if base is not None:
                parts = tuple(self.values[t] for t in (base, tensor) if t in self.values)
                self._add(WRITTEN, {}, parts, (self._named(base),))
        return result

    def _add(
        self, operation: str, arguments: dict[str, Any], inputs: tuple[Value, ...], outputs: tuple[Value, ...]
    ) -> None:
        module, kind = self._stack[-1]
        self.steps.append(Step(operation, arguments, inputs, outputs, module, kind))

    def _named(self, tensor: torch.Tensor) -> Value:
        value = Value(next(self._numbers), tuple(tensor.shape))
        self.values[tensor] = value
        return value


@contextlib.contextmanager
def _followed(network: nn.Module, stack: list[tuple[str, str]], recorder: _Recorder) -> Iterator[None]:
    """Keep `stack` at the modules that run, and note their calls."""
    handles = []

    def hook(name: str, module: nn.Module) -> None:
        def enter(module: nn.Module, given: Any) -> None:
            stack.append((name, type(module).__name__))

        def leave(module: nn.Module, given: Any, output: Any) -> None:
            stack.pop()
            tensor = output if isinstance(output, torch.Tensor) else None
            value = None if tensor is None else recorder.values.get(tensor)
            recorder.calls.append(Call(name, value, None if tensor is None else tuple(tensor.shape)))

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))

    try:
        for name, module in network.named_modules():
            hook(name, module)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _described(output: Any) -> str:
    if isinstance(output, torch.Tensor):
        return "an output that does not depend on the image"
    if isinstance(output, list | tuple):
        return f"{len(output)} outputs"
    return f"an output of type {type(output).__name__}"

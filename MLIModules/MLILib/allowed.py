"""What a bundle's configuration may name: networks, transforms, inferers, and the functions and methods of expressions.

A list of what is allowed, not of what is forbidden: MONAI and torch hold much that downloads, compiles, unpickles or
runs what a text names.
"""

from __future__ import annotations

import enum
import functools
import importlib
import inspect
import re
from collections.abc import Sequence
from typing import Any

#: Packages an expression may reach into; each name is then checked by itself.
ROOTS = ("monai", "torch", "numpy", "MLILib")

#: Modules that a network's class may be defined in.
NETWORKS = (
    "torch.nn.modules",
    "monai.networks.nets",
    "monai.networks.blocks",
    "monai.networks.layers",
    "MLILib",
)

#: Modules that a transform's class may be defined in.
TRANSFORMS = (
    "monai.transforms.compose",
    "monai.transforms.croppad",
    "monai.transforms.intensity",
    "monai.transforms.post",
    "monai.transforms.smooth_field",
    "monai.transforms.spatial",
    "monai.transforms.utility",
    "MLILib",
)

#: Inside those: compile or download code or weights when made, or take a callable by its name.
REFUSED_MODULES = (
    "monai.networks.layers.gmm",
    "monai.networks.blocks.hyena",
    "monai.networks.blocks.text_embedding",
    "monai.networks.nets.transchex",
    "monai.networks.nets.cell_sam_wrapper",
)
REFUSED_TRANSFORMS = ("TorchVision", "TorchIO", "CuCIM", "RandTorchVision", "RandTorchIO", "RandCuCIM")

#: Left out of a list of transforms: MLI reads and writes the files itself, and standard output is not theirs.
SKIPPED_TRANSFORMS = ("LoadImage", "SaveImage", "WriteFileMapping", "DataStats", "SaveClassification")

INFERERS = ("SlidingWindowInferer", "SlidingWindowInfererAdapt", "SimpleInferer")

#: Arguments that would fetch other weights; the bundle's own are loaded afterwards, so they are switched off.
PRETRAINED = {"pretrained": False, "pretrained_url": None, "weights": None}

#: Builtins that an expression may call.
BUILTINS = frozenset((
    "abs", "all", "any", "bool", "dict", "enumerate", "float", "int", "len", "list", "max", "min", "range", "reversed",
    "round", "set", "sorted", "str", "sum", "tuple", "zip",
))  # fmt: skip

#: Attributes and methods of a value (a tensor, a list, a text, a network); none writes, loads or looks up by name.
METHODS = frozenset((
    "T", "abs", "all", "any", "argmax", "argmin", "astype", "bool", "ceil", "clamp", "clip", "clone", "contiguous",
    "copy", "count", "cpu", "cuda", "detach", "device", "dim", "dtype", "endswith", "eval", "expand", "flatten", "flip",
    "float", "floor", "get", "half", "index", "int", "item", "items", "join", "keys", "long", "lower", "max", "mean",
    "min", "ndim", "numel", "numpy", "permute", "replace", "reshape", "round", "shape", "sigmoid", "size", "softmax",
    "split", "squeeze", "startswith", "std", "strip", "sum", "to", "tolist", "transpose", "type", "unsqueeze", "upper",
    "values", "view",
))  # fmt: skip

#: Functions and classes that an expression may call, beside networks and transforms.
_FUNCTIONS = {
    "torch": (
        "Size", "abs", "all", "any", "arange", "argmax", "argmin", "as_tensor", "cat", "ceil", "clamp", "clip",
        "device", "exp", "eye", "flip", "floor", "full", "linspace", "log", "logical_and", "logical_not", "logical_or",
        "max", "mean", "min", "nan_to_num", "ones", "ones_like", "round", "sigmoid", "softmax", "sqrt", "squeeze",
        "stack", "sum", "tensor", "unsqueeze", "where", "zeros", "zeros_like",
    ),
    "torch.backends.mps": ("is_available",),
    "torch.cuda": ("device_count", "is_available"),
    "torch.nn.functional": ("interpolate", "normalize", "one_hot", "pad", "relu", "sigmoid", "softmax"),
    "numpy": (
        "abs", "all", "any", "arange", "argmax", "array", "asarray", "ceil", "clip", "concatenate", "dtype", "exp",
        "floor", "full", "linspace", "log", "log2", "max", "mean", "min", "nan_to_num", "ones", "prod", "round", "sqrt",
        "stack", "sum", "where", "zeros",
    ),
}  # fmt: skip


class Refused(Exception):
    """Something a configuration may not name; its text is the name."""


def located(dotted: str, shown: str) -> Any:
    """The object called `dotted`: a package of :data:`ROOTS`, its modules, a class or function, an enum's member."""
    parts = dotted.split(".")
    if parts[0] not in ROOTS or any(part.startswith("_") or not part.isidentifier() for part in parts):
        raise Refused(shown)
    found: Any = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], start=1):
        if inspect.ismodule(found):
            if found.__name__.partition(".")[0] not in ROOTS:
                raise Refused(shown)  # a module that one of ours imported: monai.bundle.scripts.os
            if not hasattr(found, part):
                try:
                    importlib.import_module(".".join(parts[: i + 1]))
                except ImportError as error:
                    raise Refused(f"{shown} (there is no such thing)") from error
        elif not ((inspect.isclass(found) and issubclass(found, enum.Enum)) or _is_layer_factory(found)):
            raise Refused(shown)
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise Refused(f"{shown} (there is no such thing)") from error
    return found


def _is_layer_factory(found: Any) -> bool:
    from monai.networks.layers.factories import LayerFactory

    return isinstance(found, LayerFactory)


def _inside(found: type, modules: Sequence[str]) -> bool:
    return any(found.__module__ == m or found.__module__.startswith(f"{m}.") for m in modules)


def is_network(found: type) -> bool:
    import torch

    return issubclass(found, torch.nn.Module) and _inside(found, NETWORKS) and not _inside(found, REFUSED_MODULES)


def _is_transform(found: type) -> bool:
    from monai.transforms import Transform

    plain = re.sub(r"(d|D|Dict)$", "", found.__name__)
    return (
        issubclass(found, Transform)
        and _inside(found, TRANSFORMS)
        and plain not in (*SKIPPED_TRANSFORMS, *REFUSED_TRANSFORMS)
    )


def may_be_called(found: Any) -> bool:
    """Whether `found` is a network, transform or inferer of the allowed modules, or one of the listed functions."""
    if inspect.isclass(found) and (is_network(found) or _is_transform(found)):
        return True
    if inspect.isclass(found) and _inside(found, ("monai.inferers.inferer",)):
        return found.__name__ in INFERERS
    return any(found is function for function in _functions())


@functools.cache
def _functions() -> tuple[Any, ...]:
    names = [f"{module}.{name}" for module, every in _FUNCTIONS.items() for name in every]
    return tuple(located(name, name) for name in names)


def is_constant(found: Any) -> bool:
    import numpy
    import torch

    if isinstance(found, torch.dtype | torch.memory_format | int | float | str | enum.Enum | tuple):
        return True
    return inspect.isclass(found) and issubclass(found, numpy.generic)

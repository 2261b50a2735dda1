"""Backward passes with a rule of their own for rectifiers: DeconvNet and guided backpropagation.

Zeiler 2014 and Springenberg 2015. With R what arrives from above and f what the rectifier was given, the rule lets
R 1[R > 0] pass (DeconvNet), or R 1[R > 0] 1[f > 0] (guided). A network with a nonlinearity that it does not cover is
refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn

from ..errors import BadInput
from .gradients import score_gradient
from .scoring import require_evaluation, require_image
from .targets import Target, held
from .tracing import WRITTEN, Step, Trace, Value, trace

Rule = Literal["deconvnet", "guided"]

#: The rectifiers: identity where their input is positive (for ReLU6, between 0 and 6), damped or 0 elsewhere.
_RECTIFIERS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6)

#: Operations that keep each number and only arrange them.
_ARRANGING = frozenset(
    ("_unsafe_view", "alias", "as_strided", "cat", "clone", "constant_pad_nd", "copy", "detach", "expand", "flip",
     "lift_fresh", "permute", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "repeat",
     "replication_pad1d", "replication_pad2d", "replication_pad3d", "roll", "select", "slice", "split",
     "split_with_sizes", "squeeze", "stack", "t", "_to_copy", "transpose", "unbind", "unfold", "unsqueeze", "view",
     "_reshape_alias", "pixel_shuffle", "pixel_unshuffle", "im2col", "col2im", WRITTEN)
)  # fmt: skip

#: Operations that keep their own derivative in both methods: linear ones, normalisation, and pooling, whose derivative
#: goes to the largest voxel as through Zeiler's switches.
_KEPT = _ARRANGING | frozenset(
    ("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_max_pool2d",
     "adaptive_max_pool3d", "add", "addmm", "avg_pool1d", "avg_pool2d", "avg_pool3d", "baddbmm", "convolution",
     "cudnn_batch_norm", "linear", "matmul", "max_pool2d_with_indices", "max_pool3d_with_indices", "mean",
     "miopen_batch_norm", "mkldnn_linear", "native_batch_norm", "_native_batch_norm_legit",
     "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "native_group_norm", "native_layer_norm", "mm",
     "neg", "sub", "sum", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d",
     "upsample_nearest2d", "upsample_nearest3d", "upsample_trilinear3d", "_upsample_nearest_exact1d",
     "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "zeros_like", "ones_like", "empty_like", "new_zeros",
     "new_empty", "new_ones")
)  # fmt: skip

#: Squashing ones: no rectifiers, so they keep their own derivative, but only where they scale whole channels or
#: places (a gate, Hu 2018), or squash the network's output.
_GATES = frozenset(("sigmoid", "hardsigmoid"))
_LAST = frozenset(("_softmax", "_log_softmax", "log_sigmoid_forward", "tanh"))


def deconvnet(network: nn.Module, image: torch.Tensor, target: Target) -> torch.Tensor:
    """What a deconvolutional network projects back onto the image (Zeiler 2014).

    The backward pass of a gradient, in which each rectifier lets R 1[R > 0] pass. As with the ReLU that the method was
    written for, the rectifier's own slope has no part in it, neither LeakyReLU's nor PReLU's.

    Args:
        network: in evaluation mode.
        image: (N, C, *shape), float32 or float64.
        target: what is explained, see :mod:`MLILib.explanation.targets`.

    Returns:
        (N, C, *shape), signed.

    Raises:
        BadInput: the target does not fit the output, no gradient passes the network, or it has a nonlinearity that the
            rule does not cover; says which.
    """
    return _explained(network, image, target, "deconvnet")


def guided_backpropagation(network: nn.Module, image: torch.Tensor, target: Target) -> torch.Tensor:
    """The backward pass in which each rectifier lets R 1[R > 0] 1[f > 0] pass (Springenberg 2015).

    Known to draw the edges of the image rather than what the network learned (Adebayo 2018).

    Args, returns and raises as :func:`deconvnet`.
    """
    return _explained(network, image, target, "guided")


@contextlib.contextmanager
def changed_rule(network: nn.Module, image: torch.Tensor, rule: Rule) -> Iterator[None]:
    """Let the network's rectifiers follow `rule` in backward passes; outputs stay the same to the last bit.

    Afterwards the network is exactly what it was, also after an error.

    Args:
        network: in evaluation mode.
        image: (N, C, *shape), on which is looked up what the network does.
        rule: "deconvnet" or "guided".

    Raises:
        BadInput: the network has a nonlinearity that the rule does not cover.
    """
    require_covered(network, image)
    changed = [m for m in network.modules() if _is_rectifier(m)]
    try:
        for module in changed:
            module.__dict__["forward"] = _ruled(module, rule)
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def require_covered(network: nn.Module, image: torch.Tensor) -> None:
    """Refuse a network that does anything the rules say nothing of, between image and output.

    Raises:
        BadInput: it does; names operation and module.
    """
    found = trace(network, image[:1])
    modules = dict(network.named_modules())
    for step in reversed(found.towards(found.output)):
        covered = (
            step.operation in _KEPT
            or _is_rectifier(modules[step.module])
            or _scales_by_a_constant(step)
            or _scales_widely(step)
            or (step.operation in _GATES and _only_scales(found, step.outputs[0]))
            or (step.operation in _GATES | _LAST and _leads_to_the_output(found, step.outputs[0]))
        )
        if not covered:
            called = step.kind == "ReLU" or step.operation in ("relu", "leaky_relu", "_prelu_kernel", "hardtanh")
            remedy = (
                "Make it a layer (torch.nn.ReLU), or choose another method, such as integrated gradients."
                if called
                else "Choose another method, such as integrated gradients."
            )
            reason = "it is called as a function, not as a layer that can follow the rule" if called else (
                "the rule is written for ReLU, LeakyReLU, PReLU and ReLU6 only")  # fmt: skip
            raise BadInput(f"The rule does not cover {step.operation} in {step.place}.",
                           f"A plain gradient would pass there in silence: {reason}.", remedy)  # fmt: skip


def _explained(network: nn.Module, image: torch.Tensor, target: Target, rule: Rule) -> torch.Tensor:
    require_evaluation(network)
    require_image(image)
    target = held(target, network, image)
    with changed_rule(network, image, rule):
        return score_gradient(network, image, target, len(image))[0]


def _is_rectifier(module: nn.Module) -> bool:
    """Exactly one of torch's own; a subclass or a replaced forward may do something else."""
    return type(module) in _RECTIFIERS and "forward" not in module.__dict__


class _Rectified(torch.autograd.Function):
    """A rectifier's own forward pass, in place if it is so, with the rule as its backward pass."""

    @staticmethod
    def forward(ctx: Any, given: torch.Tensor, module: nn.Module, rule: Rule) -> torch.Tensor:
        ctx.rule = rule
        if rule == "guided":
            passes = given > 0
            if isinstance(module, nn.ReLU6):
                passes &= given < 6
            ctx.save_for_backward(passes)
        if getattr(module, "inplace", False):
            ctx.mark_dirty(given)
        return type(module).forward(module, given)

    @staticmethod
    def backward(ctx: Any, *arrived: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        passed = arrived[0].clamp(min=0)
        if ctx.rule == "guided":
            passed = passed * ctx.saved_tensors[0]
        return passed, None, None


def _ruled(module: nn.Module, rule: Rule) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda given: _Rectified.apply(given, module, rule)


def _scales_by_a_constant(step: Step) -> bool:
    """A product or quotient in which the image has one part only, above the line."""
    first = step.arguments.get("self")
    return (step.operation == "mul" and len(step.inputs) == 1) or (
        step.operation == "div" and len(step.inputs) == 1 and isinstance(first, Value)
    )


def _scales_widely(step: Step) -> bool:
    """A product with a factor for whole channels or places; of two equal shapes it could be a nonlinearity, x f(x)."""
    return step.operation == "mul" and len(step.inputs) == 2 and step.inputs[0].shape != step.inputs[1].shape


def _only_scales(found: Trace, value: Value, spread: bool = False) -> bool:
    """Whether `value` has no use but as a factor for whole channels or places."""
    uses = [step for step in found.steps if value in step.inputs]
    for step in uses:
        if step.operation == "mul" and len(step.inputs) == 2 and (spread or _scales_widely(step)):
            continue
        if step.operation in _ARRANGING and len(step.outputs) == 1:
            wider = spread or step.operation in ("expand", "repeat")
            if _only_scales(found, step.outputs[0], wider):
                continue
        return False
    return bool(uses) and value != found.output


def _leads_to_the_output(found: Trace, value: Value) -> bool:
    """Whether `value` becomes the network's output and nothing else."""
    uses = [step for step in found.steps if value in step.inputs]
    if not uses:
        return value == found.output
    return all(
        step.operation in _ARRANGING and all(_leads_to_the_output(found, output) for output in step.outputs)
        for step in uses
    )

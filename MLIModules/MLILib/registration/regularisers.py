"""What a deformation costs: first derivatives (diffusion), second derivatives (bending), and folds.

Each takes (N, d, *shape) and gives (N,), the mean over the voxels; displacements count in mm where the spacing is
given, so that a voxel that is longer one way than another does not bend the result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .jacobian import determinant


def diffusion(u: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Mean squared first derivative: the sum over components k and axes j of the mean of (du_k / dx_j)^2.

    Forward differences, exact for linear fields (Horn and Schunck, Artificial Intelligence 1981). Zero for
    translations.

    Args:
        u: displacement (or velocity) in voxels, (N, d, *shape).
        spacing: mm between voxels along the tensor's axes, (z, y, x); None is 1 along each.

    Returns:
        (N,), without unit.
    """
    d = u.ndim - 2
    return _Quadratic.apply(u, [((axis,), 1.0) for axis in range(d)], _millimetres(spacing, d))


def bending_energy(u: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Mean squared second derivative: the sum over k, i and j of the mean of (d2u_k / dx_i dx_j)^2.

    The bending energy of a thin plate of metal (Rueckert et al., IEEE TMI 1999, equation 4). Differences are exact for
    quadratic fields; zero for affine ones.

    Args:
        u: displacement (or velocity) in voxels, (N, d, *shape).
        spacing: mm between voxels along the tensor's axes, (z, y, x); None is 1 along each.

    Returns:
        (N,), 1/mm^2.
    """
    d = u.ndim - 2
    terms = [((i, j), 1.0 if i == j else 2.0) for i, j in itertools.combinations_with_replacement(range(d), 2)]
    return _Quadratic.apply(u, terms, _millimetres(spacing, d))


def jacobian_penalty(u: Tensor, floor: float = 0.0) -> Tensor:
    """How far the Jacobian determinant falls below `floor`: the mean of max(0, floor - det(id + u)).

    With floor 0 it is the folding penalty of Mok and Chung (LapIRN, MICCAI 2020), which is 0 for any field without
    folds; a small positive floor keeps voxels from being squeezed flat.

    Args:
        u: displacement in voxels, (N, d, *shape).
        floor: determinant from which on nothing is paid.

    Returns:
        (N,).
    """
    return torch.relu(floor - determinant(u)).flatten(1).mean(1)


def _millimetres(spacing: Sequence[float] | None, d: int) -> tuple[float, ...]:
    each = (1.0,) * d if spacing is None else tuple(float(s) for s in spacing)
    if len(each) != d or min(each) <= 0:
        msg = f"expected {d} positive spacings, got {spacing}"
        raise ValueError(msg)
    return each


class _Quadratic(torch.autograd.Function):
    """A weighted sum of mean squared repeated differences, whose gradient is worked out along with it.

    Autograd would keep each difference and pad each gradient to full size, which takes twice as long on a CPU.
    """

    @staticmethod
    def forward(
        context: Any, u: Tensor, terms: Sequence[tuple[tuple[int, ...], float]], spacing: Sequence[float]
    ) -> Tensor:
        d = u.ndim - 2
        wanted = context.needs_input_grad[0]
        gradient = torch.zeros_like(u) if wanted else None
        total = u.new_zeros(len(u))
        for axes, factor in terms:
            step = u
            for axis in axes:
                step = torch.diff(step, dim=2 + axis)
            if step.numel() == 0:  # an axis too short for this derivative
                continue
            scale = factor / math.prod(step.shape[2:]) / math.prod(spacing[a] for a in axes) ** 2
            weights = u.new_tensor([scale * s * s for s in spacing])
            total += torch.einsum("ncv,ncv,c->n", step.flatten(2), step.flatten(2), weights)
            if gradient is not None:
                step = step * (2 * weights).view(-1, *[1] * d)
                for axis in axes[:0:-1]:
                    step = _adjoint(step, 2 + axis, None)
                _adjoint(step, 2 + axes[0], gradient)
        if gradient is not None:
            context.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(context: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = context.saved_tensors
        return gradient * outer[0].view(-1, *[1] * (gradient.ndim - 1)), None, None


def _adjoint(step: Tensor, axis: int, into: Tensor | None) -> Tensor:
    """The transpose of torch.diff along `axis`, added to `into`."""
    n = step.shape[axis]
    if into is None:
        into = step.new_zeros([*step.shape[:axis], n + 1, *step.shape[axis + 1 :]])
    into.narrow(axis, 1, n).add_(step)
    into.narrow(axis, 0, n).sub_(step)
    return into

"""Similarities from the joint histogram: joint entropy, mutual information and its normalised form.

The histogram is a Parzen estimate, smooth in the intensities, so that what is made of it has a gradient: P. Thevenaz
and M. Unser: Optimization of mutual information for multiresolution image registration (IEEE Transactions on Image
Processing 9, 2000). Samples are taken in portions, so that memory does not grow with bins times voxels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from ..errors import BadInput
from .masking import check_image, check_pair, ratio, weights

#: Lowest and highest intensity: two numbers, or a tensor (N, C, 2) or what broadcasts to it.
Range = tuple[float, float] | torch.Tensor

#: How many samples times images are spread over bins at a time. On a CPU the weights of a portion stay in its cache.
_PORTION_CPU, _PORTION_GPU = 1 << 13, 1 << 19


def joint_histogram(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    bins: int = 32,
    kernel: str = "bspline",
    fixed_range: Range | None = None,
    moving_range: Range | None = None,
) -> torch.Tensor:
    """Joint probability of the intensities by Parzen windows::

        t_f(x)  = pad + (f(x) - low) / (high - low) (bins - 1 - 2 pad), likewise t_m
        p(i, j) = sum_x w(x) K(i - t_f(x)) K(j - t_m(x)), divided by its sum over all i, j

    K is the cubic B-spline, which reaches over four bins (pad 1), or the Gaussian with a standard deviation of one bin
    (pad 3). Intensities beyond the range count as its nearest end and have no gradient.

    Args:
        fixed: (N, C, z, y, x) or (N, C, y, x); N may be 1 beside a larger batch.
        moving: likewise.
        mask: (N, 1, ...) weights of the voxels, 0 or more. No gradient flows to it.
        bins: of each image.
        kernel: "bspline" or "gaussian".
        fixed_range: by default lowest and highest intensity under the mask, as constants. Give it when values are to
            be compared while an image moves: its extremes change with the overlap.
        moving_range: likewise.

    Returns:
        (N, C, bins, bins), summing to 1, the fixed image's bins along the first of the two axes; nan where the mask is
        empty. Differentiable once.

    Raises:
        BadInput: shapes do not fit each other, too few bins, an empty range, or no such kernel.
    """
    check_pair(fixed, moving, mask)
    if kernel not in _KERNELS:
        raise BadInput(f"There is no kernel {kernel!r}.", "", f"Choose from: {', '.join(_KERNELS)}.")
    shape = _KERNELS[kernel]
    if bins < 2 * shape.pad + 2:
        raise BadInput(f"{bins} bins are too few for the kernel {kernel!r}.",
                       f"{shape.pad} on each side catch what it spreads.",
                       f"Ask for {2 * shape.pad + 2} or more; 32 and 64 are usual.")  # fmt: skip
    batch, channels = max(len(fixed), len(moving), 1 if mask is None else len(mask)), fixed.shape[1]
    places = []
    for image, given in ((fixed, fixed_range), (moving, moving_range)):
        place = _places(image, intensity_range(image, mask) if given is None else given, bins, shape.pad)
        places.append(place.expand(batch, channels, -1).flatten(0, 1))
    chosen = weights(mask, places[0])
    if chosen is not None:
        chosen = chosen.flatten(2).expand(batch, channels, -1).flatten(0, 1)
    counts = _Counts.apply(*places, chosen, bins, shape).unflatten(0, (batch, channels))
    return ratio(counts, counts.sum((2, 3), keepdim=True), undefined=math.nan)


def joint_entropy(
    fixed: torch.Tensor, moving: torch.Tensor, mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    """Joint entropy H(F, M) = -sum p log p of :func:`joint_histogram`, in nats, (N,), mean over channels.

    A. Collignon, D. Vandermeulen, P. Suetens and G. Marchal: 3D multi-modality medical image registration using feature
    space clustering (CVRMed 1995); C. Studholme, D. L. G. Hill and D. J. Hawkes: Multiresolution voxel similarity
    measures for MR-PET registration (IPMI 1995). Assumes a statistical relation: that aligned images have few pairs of
    intensities, whichever these are. It falls as well when more of what overlaps is background; prefer mutual
    information unless the compared voxels stay the same. Never 0: the window's own entropy remains.

    Args, errors and `options`: see :func:`joint_histogram`.
    """
    return entropy(joint_histogram(fixed, moving, mask, **options).flatten(2)).mean(1)


def mutual_information(
    fixed: torch.Tensor, moving: torch.Tensor, mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    """Mutual information H(F) + H(M) - H(F, M) of :func:`joint_histogram`, in nats, (N,), mean over channels.

    P. Viola and W. M. Wells: Alignment by maximization of mutual information (International Journal of Computer Vision
    24, 1997); F. Maes and others (IEEE Transactions on Medical Imaging 16, 1997). Assumes a statistical relation: one
    intensity tells something of the other, in whatever way. 0 where either image is constant.

    Args, errors and `options`: see :func:`joint_histogram`.
    """
    joint, own = _entropies(joint_histogram(fixed, moving, mask, **options))
    return (own - joint).mean(1)


def normalised_mutual_information(
    fixed: torch.Tensor, moving: torch.Tensor, mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    """Normalised mutual information (H(F) + H(M)) / H(F, M) of :func:`joint_histogram`, (N,), mean over channels.

    C. Studholme, D. L. G. Hill and D. J. Hawkes: An overlap invariant entropy measure of 3D medical image alignment
    (Pattern Recognition 32, 1999). Assumes a statistical relation as :func:`mutual_information` does, and depends less
    on how much of the images overlaps. From 1 (independent, or one image is constant) towards 2, which windows wider
    than a bin keep identical images from reaching.

    Args, errors and `options`: see :func:`joint_histogram`.
    """
    joint, own = _entropies(joint_histogram(fixed, moving, mask, **options))
    return (own / joint).mean(1)


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """-sum p log p over the last axis, in nats; empty bins add nothing and have no gradient."""
    return -(probabilities * torch.where(probabilities > 0, probabilities, 1).log()).sum(-1)


def intensity_range(image: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Lowest and highest intensity where the mask is above 0, (N, C, 2), as constants; (0, 0) where it is empty.

    Raises:
        BadInput: not an image.
    """
    check_image(image)
    values = image.detach().flatten(2)
    if mask is None:
        return torch.stack(torch.aminmax(values, dim=2), -1)
    there = mask.detach().flatten(2) > 0
    ends = torch.where(there, values, math.inf).amin(2), torch.where(there, values, -math.inf).amax(2)
    return torch.where(there.any(2, keepdim=True), torch.stack(ends, -1), 0)


def _entropies(joint: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Joint entropy, and the sum of both images' own, (N, C) each."""
    return entropy(joint.flatten(2)), entropy(joint.sum(3)) + entropy(joint.sum(2))


def _places(image: torch.Tensor, given: Range, bins: int, pad: int) -> torch.Tensor:
    """Each voxel's intensity as a place among the bins, (N, C, V); one place for all where low is high."""
    if not isinstance(given, torch.Tensor) and not given[0] <= given[1]:
        raise BadInput(f"From {given[0]} to {given[1]} is no range of intensities.", "", "Give the lower end first.")
    values = image.flatten(2)
    low, high = torch.as_tensor(given, dtype=values.dtype, device=values.device).unsqueeze(-2).unbind(-1)
    scale = ratio(torch.full_like(high, bins - 1 - 2 * pad), high - low, undefined=0.0)
    return (values.clamp(low, high) - low) * scale + pad


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """A Parzen window.

    Attributes:
        pad: bins that are kept free at each end.
        spread: places (B, V) and the number of bins to the window's value in each bin, (B, V, bins).
        slope: places (B, V) and a table (B, V, bins) to the sum over the bins of table times the value's derivative
            by the place, (B, V).
    """

    pad: int
    spread: Callable[[torch.Tensor, int], torch.Tensor]
    slope: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _Counts(torch.autograd.Function):
    """Places (B, V) and weights (B, V), or None, to weighted counts (B, bins, bins).

    Spread over all bins, a portion's windows are two thin matrices and its counts their product: faster than adding 16
    products a sample one by one. The gradient makes the same matrices again, as keeping them would take bins times the
    memory of an image.
    """

    @staticmethod
    def forward(
        ctx: Any, fixed: torch.Tensor, moving: torch.Tensor, weight: torch.Tensor | None, bins: int, kernel: _Kernel
    ) -> torch.Tensor:
        counts = fixed.new_zeros(len(fixed), bins, bins)
        for portion in _portions(fixed):
            rows = kernel.spread(fixed[:, portion], bins)
            if weight is not None:
                rows *= weight[:, portion, None]
            counts.baddbmm_(rows.transpose(1, 2), kernel.spread(moving[:, portion], bins))
        ctx.kernel = kernel
        ctx.save_for_backward(fixed, moving, weight)
        return counts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        fixed, moving, weight = ctx.saved_tensors
        kernel = ctx.kernel
        needs_fixed, needs_moving = ctx.needs_input_grad[:2]
        return (
            _slopes(fixed, moving, weight, gradient.transpose(1, 2), kernel) if needs_fixed else None,
            _slopes(moving, fixed, weight, gradient, kernel) if needs_moving else None,
            *(None, None, None),
        )


def _slopes(
    own: torch.Tensor, other: torch.Tensor, weight: torch.Tensor | None, table: torch.Tensor, kernel: _Kernel
) -> torch.Tensor:
    """Gradient with respect to `own` places, (B, V), from that of the counts, (B, other's bins, own bins)."""
    result = torch.empty_like(own)
    for portion in _portions(own):
        expected = kernel.spread(other[:, portion], table.shape[1]) @ table
        result[:, portion] = kernel.slope(own[:, portion], expected)
    return result if weight is None else result.mul_(weight)


def _portions(places: torch.Tensor) -> list[slice]:
    """The samples of (B, V) in portions."""
    batch, count = places.shape
    size = max(1, (_PORTION_CPU if places.device.type == "cpu" else _PORTION_GPU) // batch)
    return [slice(start, start + size) for start in range(0, count, size)]


def _bspline_spread(places: torch.Tensor, bins: int) -> torch.Tensor:
    first, u = _bspline_place(places, bins)
    v = 1 - u
    u2, v2 = u * u, v * v
    # B(1 + u), B(u), B(1 - u), B(2 - u)
    values = [v2 * v / 6, 2 / 3 - u2 + u2 * u / 2, 2 / 3 - v2 + v2 * v / 2, u2 * u / 6]
    return u.new_zeros(*u.shape, bins).scatter_(2, first, torch.stack(values, -1))


def _bspline_slope(places: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    first, u = _bspline_place(places, table.shape[-1])
    v = 1 - u
    slopes = [-v * v / 2, u * (1.5 * u - 2), v * (2 - 1.5 * v), u * u / 2]
    return (table.gather(2, first) * torch.stack(slopes, -1)).sum(-1)


def _bspline_place(places: torch.Tensor, bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The four bins that a window reaches, (B, V, 4), and how far it lies beyond the second of them, 0 to 1."""
    second = places.floor().clamp_max_(bins - 3)
    first = second.to(torch.int64).unsqueeze(-1) + torch.arange(-1, 3, device=places.device)
    return first, places - second


def _gaussian_spread(places: torch.Tensor, bins: int) -> torch.Tensor:
    exponents = _offsets(places, bins).square_().mul_(-0.5)
    # Numbers too small for their type's full precision are many times slower, and nothing beside the others.
    return exponents.clamp_min_(math.log(torch.finfo(places.dtype).tiny) + 1).exp_().mul_(1 / math.sqrt(2 * math.pi))


def _gaussian_slope(places: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    bins = table.shape[-1]
    return (_offsets(places, bins).mul_(_gaussian_spread(places, bins)).mul_(table)).sum(-1)


def _offsets(places: torch.Tensor, bins: int) -> torch.Tensor:
    """Of each bin from each place, (B, V, bins)."""
    return torch.arange(bins, dtype=places.dtype, device=places.device) - places.unsqueeze(-1)


_KERNELS = {
    "bspline": _Kernel(1, _bspline_spread, _bspline_slope),
    "gaussian": _Kernel(3, _gaussian_spread, _gaussian_slope),
}

"""MIND-SSC: a descriptor of each voxel's surroundings that images of different modalities share.

After M. P. Heinrich, M. Jenkinson, B. W. Papiez, M. Brady and J. A. Schnabel: Towards realtime multimodal fusion for
image-guided interventions using self-similarities (MICCAI 2013). Patches around a voxel are compared with each other,
never with the voxel's own patch and never with the other image.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import BadInput
from .box import Windows, margin, strides
from .masking import check_image, check_pair, weighted_mean

#: The local noise estimate is kept within these multiples of its mean over the image.
_LOWEST, _HIGHEST = 1e-3, 1e3


def mind_ssc(image: torch.Tensor, *, radius: int = 1, dilation: int = 2) -> torch.Tensor:
    """Modality independent neighbourhood descriptor with self-similarity context.

    At each voxel x, for each pair (a, b) of neighbours of x that lie `dilation` voxels away along different axes::

        D_ab(x) = mean over p in the patch of (I(x + a + p) - I(x + b + p))^2
        V(x)    = mean over the pairs of (D_ab(x) - min D(x)), kept within 0.001 and 1000 times its mean over the image
        S_ab(x) = exp(-(D_ab(x) - min D(x)) / V(x))

    where min D(x) is the least of the pairs at x. In 3-D there are six neighbours and 12 such pairs. In 2-D there are
    four neighbours and, by the same rule, 4 pairs: those that differ by a diagonal; opposite neighbours are left out in
    both cases, as patches that are twice as far apart say less about the structure at x.

    The descriptor is the same when the intensities are multiplied, shifted or inverted as a whole, and nearly so where
    another modality draws the same tissues with other intensities: the relation is only assumed to hold within a patch.

    As in Heinrich's own code, patches are boxes, the image continues with its border values, D - min D is normalised
    and V is clamped to its mean. Two differences: the border values continue under the whole patch (there the squared
    differences are continued instead, which shows in the outermost `radius` voxels alone), and the mean of V is taken
    for each image of a batch by itself.

    Args:
        image: (N, C, z, y, x) or (N, C, y, x), a floating point type.
        radius: of the patch, voxels; a patch is 2 radius + 1 voxels wide.
        dilation: distance of the neighbours, voxels, 1 or more.

    Returns:
        (N, 12 C, z, y, x) or (N, 4 C, y, x), from 0 to 1, at least one channel of each voxel being 1. Pairs are ordered
        by their axes (z y, z x, y x), within these (+, +), (-, -), (+, -), (-, +). Where patches do not differ, as in a
        constant image, all channels are 1. Differentiable once.

    Raises:
        BadInput: not a batch of 2-D or 3-D images of a floating point type, or radius or dilation is out of range.

    Example:
        >>> mind_ssc(torch.rand(1, 1, 8, 9, 10)).shape
        torch.Size([1, 12, 8, 9, 10])
    """
    check_image(image)
    if radius < 0 or dilation < 1:
        raise BadInput(f"A descriptor of radius {radius} and dilation {dilation} is none.", "",
                       "Give a radius of 0 or more and a dilation of 1 or more.")  # fmt: skip
    dims = image.ndim - 2
    padded = F.pad(image, (radius + dilation,) * (2 * dims), mode="replicate")
    found = _Descriptor.apply(padded.flatten(0, 1), radius, dilation)
    return found.unflatten(0, image.shape[:2]).flatten(1, 2)


def mind(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    radius: int = 1,
    dilation: int = 2,
) -> torch.Tensor:
    """Mean squared difference of the images' MIND-SSC descriptors: 0 for equal structure, at most 1.

    Assumes that the two images show the same structure, not that their intensities are related over the whole image
    (a local, statistical relation).

    Args:
        fixed: (N, C, z, y, x) or (N, C, y, x); N may be 1 beside a larger batch.
        moving: likewise.
        mask: (N, 1, ...) weights of the voxels whose descriptors are compared; a descriptor near the mask's border has
            seen voxels outside of it. No gradient flows to it.
        radius: see :func:`mind_ssc`.
        dilation: see :func:`mind_ssc`.

    Returns:
        (N,), nan where the mask is empty.

    Raises:
        BadInput: see :func:`mind_ssc`; or shapes do not fit each other.
    """
    check_pair(fixed, moving, mask)
    ours, theirs = (mind_ssc(image, radius=radius, dilation=dilation) for image in (fixed, moving))
    batch = torch.broadcast_shapes(ours.shape, theirs.shape)
    return weighted_mean(_MeanSquare.apply(ours.expand(batch), theirs.expand(batch)), mask)


class _MeanSquare(torch.autograd.Function):
    """Mean over channels of the squared difference of (N, C, ...), (N, 1, ...); the difference is not kept."""

    @staticmethod
    def forward(ctx: Any, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(ours, theirs)
        mean = torch.zeros_like(ours[:, :1])
        for one, other in zip(ours.split(1, 1), theirs.split(1, 1), strict=True):
            difference = one - other
            mean.addcmul_(difference, difference, value=1 / ours.shape[1])
        return mean

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        ours, theirs = ctx.saved_tensors
        factor = gradient * (2 / ours.shape[1])
        needs_ours, needs_theirs = ctx.needs_input_grad
        return (
            torch.sub(ours, theirs).mul_(factor) if needs_ours else None,
            torch.sub(theirs, ours).mul_(factor) if needs_theirs else None,
        )


class _Descriptor(torch.autograd.Function):
    """Padded images (B, ...) to descriptors (B, pairs, ...) without the padding.

    The difference of two patches depends on where the first lies and on what separates the two. Of the 12 pairs two
    each are separated by the same diagonal, so that six difference images serve them all, each read at two places.
    """

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, radius: int, dilation: int) -> torch.Tensor:
        shape = padded.shape[1:]
        steps, row = strides(shape), padded.flatten(1)
        diagonals = _diagonals(len(shape), dilation)
        inner = [n - 2 * (radius + dilation) for n in shape]
        out = padded.new_empty(len(padded), 2 * len(diagonals), *inner)
        windows, buffer = Windows(row, shape, radius), torch.empty_like(row)
        for number, (apart, places) in enumerate(diagonals):
            first = _differences(row, _dot(apart, steps), buffer)
            sums = windows.sums(first.square_())
            for channel, place in enumerate(places, start=2 * number):
                out[:, channel] = _box(sums, shape, place, inner)
        # These are the patches' sums, not their means: V is as many times larger, and the quotient is the same.
        out -= out.amin(1, keepdim=True)
        noise = out.mean(1, keepdim=True)
        average = noise.mean(tuple(range(1, noise.ndim)), keepdim=True)
        # Where the whole image is constant, 0 is divided by the smallest number instead of by 0.
        kept = noise.clamp(average * _LOWEST, average * _HIGHEST).clamp_min_(torch.finfo(out.dtype).tiny)
        out.div_(kept).neg_().exp_()
        ctx.settings = radius, dilation
        ctx.save_for_backward(padded, out, noise, average, kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        padded, out, noise, average, kept = ctx.saved_tensors
        radius, dilation = ctx.settings
        to_distance = _distance_gradient(gradient, out, noise, average, kept)
        shape, inner = padded.shape[1:], out.shape[2:]
        steps, row = strides(shape), padded.flatten(1)
        # A voxel gathers from all windows that hold it: the windows' sums, with each window noted at its last voxel.
        # Zeros behind the image let windows start at any voxel.
        gathered = F.pad(torch.zeros_like(row), (0, 2 * margin(shape, radius)))
        windows, buffer = Windows(gathered, shape, radius), torch.empty_like(row)
        result = torch.zeros_like(row)
        for number, (apart, places) in enumerate(_diagonals(len(shape), dilation)):
            gathered.zero_()
            for channel, place in enumerate(places, start=2 * number):
                last = [start + 2 * radius for start in place]
                _box(gathered, shape, last, inner).add_(to_distance[:, channel])
            shift = _dot(apart, steps)
            change = _differences(row, shift, buffer)
            change.mul_(windows.sums(gathered)[:, : change.shape[1]])
            result[:, shift:].add_(change, alpha=2)
            result[:, :-shift].sub_(change, alpha=2)
        return result.view_as(padded), None, None


def _distance_gradient(
    gradient: torch.Tensor, out: torch.Tensor, noise: torch.Tensor, average: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """From the gradient of S = exp(-u), u = (D - min D) / V, to that of D."""
    # One channel at a time wherever more than one copy of all would be made.
    to_kept, ties = torch.zeros_like(kept), torch.zeros_like(kept)
    for share, value in zip(gradient.split(1, 1), out.split(1, 1), strict=True):
        # u S = -S log S, which is 0 where S has come to 0.
        to_kept -= torch.xlogy(value, value).mul_(share)
        ties += value == 1
    to_kept /= kept
    low, high = noise < average * _LOWEST, noise > average * _HIGHEST
    to_average = (to_kept * (low * _LOWEST + high * _HIGHEST)).sum(tuple(range(1, noise.ndim)), keepdim=True)
    to_noise = to_kept.masked_fill_(low | high, 0).add_(to_average / noise[0].numel())
    to_distance = (gradient * out).div_(-kept).add_(to_noise / out.shape[1])
    to_least = to_distance.sum(1, keepdim=True).div_(ties)
    for part, value in zip(to_distance.split(1, 1), out.split(1, 1), strict=True):
        part -= to_least * (value == 1)
    # A constant image has no direction in which its structure would change gradually.
    return to_distance.masked_fill_(average == 0, 0)


def _diagonals(dims: int, dilation: int) -> list[tuple[tuple[int, ...], list[list[int]]]]:
    """For each diagonal the vector from one patch to the other, and the two places where pairs lie along it.

    A place is that of the patch the vector starts from, as seen from x, plus `dilation`: where in the padded image the
    first voxel of the patch of voxel 0 lies.
    """
    found = []
    for i, j in itertools.combinations(range(dims), 2):
        one, other = ([dilation * (axis == k) for axis in range(dims)] for k in (i, j))
        here = [dilation] * dims
        ahead = [a + b for a, b in zip(here, other, strict=True)]
        behind = [[a - b for a, b in zip(here, unit, strict=True)] for unit in (one, other)]
        found.append((tuple(a - b for a, b in zip(one, other, strict=True)), [ahead, behind[0]]))
        found.append((tuple(a + b for a, b in zip(one, other, strict=True)), [behind[1], behind[0]]))
    return found


def _differences(row: torch.Tensor, shift: int, buffer: torch.Tensor) -> torch.Tensor:
    """Each number of (B, L) minus the one `shift` before it, (B, L - shift), in `buffer`."""
    return torch.sub(row[:, shift:], row[:, :-shift], out=buffer[:, :-shift])


def _box(row: torch.Tensor, shape: Sequence[int], start: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """The box of `size` voxels from `start` on in images of `shape` that lie as rows in (B, L); a view."""
    steps = strides(shape)
    return row.as_strided((len(row), *size), (row.stride(0), *steps), row.storage_offset() + _dot(start, steps))


def _dot(place: Sequence[int], steps: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(place, steps, strict=True))

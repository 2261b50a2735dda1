"""Local normalised cross-correlation: how well one image is a linear function of the other around each voxel.

The squared correlation coefficient in a box window, as in B. B. Avants, C. L. Epstein, M. Grossman and J. C. Gee:
Symmetric diffeomorphic image registration with cross-correlation (Medical Image Analysis 12, 2008), there "CC".
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..errors import BadInput
from .box import Windows, margin
from .masking import check_pair, ratio, weights


def lncc(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    radius: int = 2,
    floor: float = 0.0,
) -> torch.Tensor:
    """Mean over the voxels of the squared correlation coefficient in the box window around each.

    With means, variances and the covariance taken over the window around x, cut where the image ends, with the mask as
    weights w::

        r2(x) = cov(f, m)^2 / ((var f + floor var_all f) (var m + floor var_all m))
        LNCC  = sum_x w(x) r2(x) / sum_x w(x)

    Assumes a linear relation in each window, of any slope and sign, and another in the next (local-linear): a slow
    change of brightness, as a bias field's, does not matter.

    Args:
        fixed: (N, C, z, y, x) or (N, C, y, x); N may be 1 beside a larger batch.
        moving: likewise.
        mask: (N, 1, ...) weights of the voxels, of 0 or more. Voxels without weight neither have nor join a window. No
            gradient flows to it.
        radius: of the window, voxels; it is 2 radius + 1 voxels wide.
        floor: a share of the whole image's variance. 0 is the textbook value, in which a window of faint noise counts
            as much as one at an organ's border; with 1e-4 to 1e-2 windows that hold nothing else count less.

    Returns:
        (N,), from 0 to 1, mean over channels. A window in which either image is constant has 0, as nothing in it is
        explained; nan, with a gradient of 0, where the mask is empty. Differentiable once.

    Raises:
        BadInput: shapes do not fit each other, the radius is below 1 or the floor below 0.
    """
    check_pair(fixed, moving, mask)
    if radius < 1 or floor < 0:
        raise BadInput(f"There is no correlation in windows of radius {radius} with a floor of {floor}.", "",
                       "Give a radius of 1 or more, and a floor of 0 or more.")  # fmt: skip
    batch, channels = max(len(fixed), len(moving), 1 if mask is None else len(mask)), fixed.shape[1]
    dtype = torch.promote_types(fixed.dtype, moving.dtype)
    # One channel of ones makes the window's size, so that cut windows and masked ones are the same thing.
    chosen = weights(mask, fixed.to(dtype))
    if chosen is None:
        chosen = fixed.new_ones((1, 1, *fixed.shape[2:]), dtype=dtype)
    chosen = _batch(chosen, batch, channels)
    parts = [_batch(image.to(dtype), batch, channels) for image in (fixed, moving)]
    total = _LNCC.apply(*parts, chosen, radius, floor)
    weight = chosen.flatten(1).sum(1)
    return ratio(total, weight, undefined=float("nan")).unflatten(0, (batch, channels)).mean(1)


def _batch(image: torch.Tensor, batch: int, channels: int) -> torch.Tensor:
    """(N, C, ...) as (batch x channels, ...)."""
    return image.expand(batch, channels, *image.shape[2:]).flatten(0, 1)


class _LNCC(torch.autograd.Function):
    """Images and weights (B, ...) to the sum of w r2, (B,).

    The gradient is written out, being only three window sums for each image of what the value leaves behind. With n the
    weight in a window, D_f = var f + floor, p = w cov / (n D_f D_m) and q = w cov^2 / (n D_f D_m^2), each at a window's
    centre, and [.] the sum over the windows that hold y::

        d / d m(y) = 2 w(y) (f(y) [p] - [p mean f] - m(y) [q] + [q mean m])  -  floor's share of the whole
    """

    @staticmethod
    def forward(
        ctx: Any, fixed: torch.Tensor, moving: torch.Tensor, weight: torch.Tensor, radius: int, floor: float
    ) -> torch.Tensor:
        dims = fixed.ndim - 1
        images = [_centred(image, weight) for image in (fixed, moving)]
        wide = [F.pad(part, (radius,) * (2 * dims)) for part in (*images, weight)]
        shape = wide[0].shape[1:]
        f, m, w = (part.flatten(1) for part in wide)
        around = margin(shape, radius)
        windows = Windows(f, shape, radius)
        product = torch.empty_like(f)

        def mean(part: torch.Tensor) -> torch.Tensor:
            return windows.sums(part) * share

        # Only rows from `around` to its end have voxels of the image; windows around them are sums from 0 on.
        inside = slice(around, f.shape[1] - around)
        centre = w[:, inside]
        share = torch.where(centre > 0, 1 / windows.sums(w), 0)
        wf, wm = w * f, w * m
        mean_f, mean_m = mean(wf), mean(wm)
        square_f, square_m = (mean(torch.mul(a, b, out=product)) for a, b in ((wf, f), (wm, m)))
        cov = mean(torch.mul(wf, m, out=product)).sub_(mean_f * mean_m)
        count = weight.flatten(1).sum(1, keepdim=True)
        raised = [_whole_variance(image, weight, count).mul_(floor) for image in images]
        rows = ((square_f, mean_f, raised[0]), (square_m, mean_m, raised[1]))
        inverse_f, inverse_m = (_inverse_variance(*row) for row in rows)
        p = torch.mul(cov, inverse_f).mul_(inverse_m)
        value = cov.mul_(p).mul_(centre)
        ctx.settings = radius, floor, images[0].shape
        ctx.save_for_backward(f, m, w, mean_f, mean_m, inverse_f, inverse_m, p, value, share, count)
        return value.sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        f, m, w, mean_f, mean_m, inverse_f, inverse_m, p, value, share, count = ctx.saved_tensors
        radius, floor, inner = ctx.settings
        dims = len(inner) - 1
        shape = [n + 2 * radius for n in inner[1:]]
        around = margin(shape, radius)
        windows = Windows(f, shape, radius)
        field = torch.zeros_like(f)
        inside = slice(around, f.shape[1] - around)

        def gathered(part: torch.Tensor) -> torch.Tensor:
            """Over the windows that hold a voxel: windows are symmetrical, so that their centres lie in its window."""
            field[:, inside] = part
            return windows.sums(field)

        wp = p * share * w[:, inside]
        to_wp = gathered(wp).clone()
        results: list[torch.Tensor | None] = []
        pairs = ((f, m, mean_f, mean_m, inverse_f), (m, f, mean_m, mean_f, inverse_m))
        for needed, (own, other, own_mean, other_mean, own_inverse) in zip(ctx.needs_input_grad, pairs, strict=False):
            if not needed:
                results.append(None)
                continue
            q = (value * share).mul_(own_inverse)
            change = other[:, inside] * to_wp
            change.sub_(gathered(q).mul_(own[:, inside]))
            change.add_(gathered(q.mul_(own_mean).sub_(wp * other_mean)))
            if floor:
                # var_all has a gradient of 2 w (own - mean of all) / sum w; the images are centred.
                whole = (value * own_inverse).sum(1, keepdim=True).mul_(floor / count)
                change.sub_(own[:, inside] * whole)
            change.mul_(w[:, inside]).mul_(2 * gradient[:, None])
            full = torch.zeros_like(f)
            full[:, inside] = change
            back = full.view(-1, *shape)[(slice(None), *[slice(radius, -radius)] * dims)]
            results.append(back)
        return (*results, None, None, None)


def _centred(image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Minus its weighted mean, so that variances lose fewer digits to the mean's square; correlations stay the same."""
    axes = tuple(range(1, image.ndim))
    return image - ratio((image * weight).sum(axes, keepdim=True), weight.sum(axes, keepdim=True), undefined=0.0)


def _whole_variance(centred: torch.Tensor, weight: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    return ratio((centred.square() * weight).flatten(1).sum(1, keepdim=True), count, undefined=0.0)


def _inverse_variance(square: torch.Tensor, mean: torch.Tensor, raised: torch.Tensor) -> torch.Tensor:
    """1 / (variance + raised), and 0 where the variance is no more than rounding.

    The variance is a difference of two sums of up to some ten rounded additions each; below 64 roundings of the larger
    one it is not known well enough to divide by (float32: a standard deviation of 0.3 % of the distance from the mean).
    """
    lost = square * (64 * torch.finfo(square.dtype).eps)
    variance = square.addcmul_(mean, mean, value=-1)
    return torch.where(variance > lost, 1 / (variance + raised), 0)

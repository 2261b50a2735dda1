"""Similarities that compare intensities voxel by voxel: differences, and the correlation coefficient.

Definitions as in D. L. G. Hill, P. G. Batchelor, M. Holden and D. J. Hawkes: Medical image registration (Physics in
Medicine and Biology 46, 2001), section 5.
"""

from __future__ import annotations

import torch

from .masking import check_pair, ratio, weighted_mean, weighted_sum, weights


def ssd(
    fixed: torch.Tensor, moving: torch.Tensor, mask: torch.Tensor | None = None, *, total: bool = False
) -> torch.Tensor:
    """Sum of squared differences, divided by the weight that was summed over::

        SSD = sum_x w(x) (f(x) - m(x))^2 / sum_x w(x)

    Divided, as otherwise the best overlap of two images would be none. Assumes that intensities are identical, up to
    normally distributed noise.

    Args:
        fixed: (N, C, z, y, x) or (N, C, y, x); N may be 1 beside a larger batch.
        moving: likewise.
        mask: (N, 1, ...) weights of the voxels, 0 or more. No gradient flows to it.
        total: the sum itself, which is 0 where the mask is empty.

    Returns:
        (N,), mean over channels, in squared units of intensity; nan, with a gradient of 0, where the mask is empty.

    Raises:
        BadInput: shapes do not fit each other.

    Example:
        >>> ssd(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0))
        tensor([9.])
    """
    check_pair(fixed, moving, mask)
    squares = (fixed - moving).square()
    return weighted_sum(squares, mask)[0] if total else weighted_mean(squares, mask)


def sad(
    fixed: torch.Tensor, moving: torch.Tensor, mask: torch.Tensor | None = None, *, total: bool = False
) -> torch.Tensor:
    """Sum of absolute differences, divided by the weight that was summed over::

        SAD = sum_x w(x) |f(x) - m(x)| / sum_x w(x)

    Assumes that intensities are identical but for a few voxels, such as those of an instrument or a lesion in one of
    the images, which weigh less than in :func:`ssd`. Its gradient is 0 where the difference is.

    Args:
        fixed: (N, C, z, y, x) or (N, C, y, x); N may be 1 beside a larger batch.
        moving: likewise.
        mask: (N, 1, ...) weights of the voxels, 0 or more. No gradient flows to it.
        total: the sum itself, which is 0 where the mask is empty.

    Returns:
        (N,), mean over channels, in units of intensity; nan, with a gradient of 0, where the mask is empty.

    Raises:
        BadInput: shapes do not fit each other.
    """
    check_pair(fixed, moving, mask)
    differences = (fixed - moving).abs()
    return weighted_sum(differences, mask)[0] if total else weighted_mean(differences, mask)


def correlation(fixed: torch.Tensor, moving: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Pearson's correlation coefficient of the intensities, each image minus its mean under the mask::

        CC = sum w (f - mean f) (m - mean m) / sqrt(sum w (f - mean f)^2 sum w (m - mean m)^2)

    Assumes one linear relation over the whole image, brightness and contrast being free.

    Args:
        fixed: (N, C, z, y, x) or (N, C, y, x); N may be 1 beside a larger batch.
        moving: likewise.
        mask: (N, 1, ...) weights of the voxels, 0 or more. No gradient flows to it.

    Returns:
        (N,), from -1 to 1, mean over channels; 0, with a gradient of 0, where an image is constant (it explains
        nothing), and nan, likewise, where the mask is empty.

    Raises:
        BadInput: shapes do not fit each other.
    """
    check_pair(fixed, moving, mask)
    parts = [image.flatten(2) for image in (fixed, moving)]
    chosen = weights(mask, parts[0])
    chosen = parts[0].new_ones((1, 1, 1)) if chosen is None else chosen.flatten(2)
    f, m = (_centred(part, chosen) for part in parts)
    spread_f, spread_m = (_spread(*pair, chosen) for pair in ((f, parts[0]), (m, parts[1])))
    covariance = (chosen * f * m).sum(2)
    values = ratio(covariance, spread_f * spread_m, undefined=0.0).mean(1)
    return torch.where(chosen.sum((1, 2)) > 0, values, torch.nan)


def _centred(image: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(N, C, V) minus its mean under the weights."""
    weight = chosen.expand(-1, -1, image.shape[2]).sum(2, keepdim=True)
    return image - ratio((chosen * image).sum(2, keepdim=True), weight, undefined=0.0)


def _spread(centred: torch.Tensor, image: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Root of the summed squares, (N, C); 0 where they are no more than the rounding of the mean."""
    square = (chosen * centred.square()).sum(2)
    lost = (chosen * image.detach().square()).sum(2) * (16 * torch.finfo(image.dtype).eps) ** 2
    there = square > lost
    # The root of 0 has an infinite slope, which a mask of the result alone would turn into nan.
    return torch.where(there, square, 1).sqrt() * there

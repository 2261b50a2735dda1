"""Votes: of all raters alike, of those whose image looks like the target, and of those that look like it nearby.

Majority after R. A. Heckemann et al. (NeuroImage 33, 2006); weights after X. Artaechevarria, A. Munoz-Barrutia and C.
Ortiz-de-Solorzano: Combination strategies in multi-atlas image segmentation (IEEE TMI 28, 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import device as devices
from ..errors import BadInput
from . import patterns
from .patterns import decide
from .raters import Consensus, Raters, Region, box_around

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

#: Width of what the global weights compare, beyond what any rater drew; voxels.
_AROUND = 5

#: A correlation closer to 1 is as good as this: no atlas silences all others, and none divides by 0.
_NEAREST = 1e-3

#: Variance, as a share of the image's own, below which a patch shows noise rather than anatomy.
_FLAT = 1e-3

#: Voxels in one step of a local vote.
_BLOCK = 1 << 17


def majority(raters: Raters, *, weights: Sequence[float] | None = None, probabilities: bool = False) -> Consensus:
    """The label that most raters give to a voxel; where several have as many, the lowest value.

    Args:
        raters: one or more.
        weights: of the raters, 0 or more; all count alike by default.
        probabilities: whether the share of the votes of each label is wanted, too.

    Raises:
        BadInput: the weights do not fit.
    """
    chosen = None if weights is None else _checked_weights(weights, raters)
    region = raters.whole()
    found = patterns.find(raters.stack, len(raters.labels) + 1, region)
    result = patterns.fused(raters, region, found, lambda part: found.votes(part, chosen), probabilities)
    return Consensus(
        indices=result.indices,
        kept=np.ones(len(raters), dtype=bool),
        region=region,
        voxels=found.voxels,
        probabilities=result.shares,
        weights=chosen,
        ties=result.ties,
        notes=_ties_note(result.ties),
    )


def global_weights(target: Floats, warped: Floats, region: Region | None = None, *, power: float = 1.0) -> Doubles:
    """Weights of atlases by how much their whole images look like the target, (atlases,), that sum to 1.

    w_i = (1 - r_i)^-power, with the correlation coefficient r_i of the two images' voxels within the region: brightness
    and contrast do not matter. An image without contrast has a correlation of 0.

    Args:
        target: (z, y, x) or (y, x).
        warped: (atlases, ...): the atlases' images on the target's grid.
        region: that is compared; the whole image by default.
        power: 0 weighs all alike; the larger, the more the best atlas counts.

    Raises:
        BadInput: an image has voxels that are not numbers.
    """
    _check_images(target, warped)
    region = tuple(slice(0, n) for n in target.shape) if region is None else region
    ours = _centred(target[region])
    distance = np.array([1.0 - _cosine(ours, _centred(one[region])) for one in warped])
    return _shares(np.maximum(distance, _NEAREST) ** -power)


def weighted(
    raters: Raters,
    target: Floats,
    warped: Floats,
    *,
    region: Region | None = None,
    power: float = 1.0,
    probabilities: bool = False,
) -> Consensus:
    """A vote in which an atlas counts by how much its image looks like the target, see :func:`global_weights`.

    Args:
        raters: the atlases' labels on the target's grid.
        target: (z, y, x) or (y, x).
        warped: (atlases, ...), in the raters' order.
        region: where images are compared; by default the box around what any rater drew, 5 voxels wider.
        power: see :func:`global_weights`.
        probabilities: whether the share of the votes of each label is wanted, too.
    """
    _check_shapes(raters, target, warped)
    region = raters.box(_AROUND) if region is None else region
    return majority(
        raters, weights=global_weights(target, warped, region, power=power).tolist(), probabilities=probabilities
    )


def local(
    raters: Raters,
    target: Floats,
    warped: Floats,
    *,
    patch_radius: int = 2,
    power: float = 1.0,
    probabilities: bool = False,
    device: str = "auto",
) -> Consensus:
    """A vote in which an atlas counts, at each voxel, by how much its image looks like the target around there.

    w_i(x) = (1 - r_i(x))^-power, with the correlation coefficient r_i(x) of the two patches around x, cut where the
    image ends. To a patch's variance is added a thousandth of the image's, in the box where raters disagree, so that
    noise in a flat patch says nothing: r is near 0 there, and all atlases count alike.

    Args:
        raters: the atlases' labels on the target's grid.
        target: (z, y, x) or (y, x).
        warped: (atlases, ...), in the raters' order.
        patch_radius: voxels, 1 or more; a patch is 2 patch_radius + 1 voxels wide.
        power: 0 weighs all alike; the larger, the more the best atlas counts.
        probabilities: whether the share of the votes of each label is wanted, too.
        device: where patches are compared: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Returns:
        The consensus; its weights are the atlases' mean share of the vote where they do not all agree.

    Raises:
        BadInput: a patch of one voxel, which has no contrast; images with voxels that are not numbers.
    """
    _check_shapes(raters, target, warped)
    _check_images(target, warped)
    if patch_radius < 1:
        raise BadInput(
            "A patch of one voxel cannot be compared.",
            "The locally weighted vote looks at the contrast within a patch.",
            "Give a patch radius of 1 or more.",
        )
    levels, count = len(raters.labels) + 1, len(raters)
    indices = raters.stack[0].copy()
    shares = None
    if probabilities:
        shares = np.empty((levels, *indices.shape), dtype=np.float32)
        for level, share in enumerate(shares):
            share[...] = indices == level
    disputed = ~raters.agreed()
    trust, ties = np.ones(count) / count, 0
    if disputed.any():
        places = np.flatnonzero(disputed)
        # Patches around disputed voxels lie within this box, or end with the image.
        box = box_around(disputed, patch_radius)
        inner = np.flatnonzero(disputed[box])
        where = devices.resolve(device)
        weights = _local_weights(target[box], [one[box] for one in warped], inner, patch_radius, power, where)
        trust = weights.mean(axis=1)
        for start in range(0, len(places), _BLOCK):
            block = slice(start, start + _BLOCK)
            at = places[block]
            support = _support(raters.stack.reshape(count, -1)[:, at].T, weights[:, block].T, levels)
            indices.reshape(-1)[at], tied = decide(support)
            ties += int(np.count_nonzero(tied))
            if shares is not None:
                shares.reshape(levels, -1)[:, at] = support.T
    return Consensus(
        indices=indices,
        kept=np.ones(count, dtype=bool),
        region=raters.whole(),
        voxels=indices.size,
        probabilities=shares,
        weights=trust,
        ties=ties,
        notes=_ties_note(ties),
    )


def _local_weights(
    target: Floats,
    warped: Sequence[Floats],
    places: npt.NDArray[np.intp],
    radius: int,
    power: float,
    device: torch.device,
) -> Doubles:
    """w_i as shares at some voxels, numbered in the order of the images' array, (atlases, voxels)."""
    import torch

    def standard(image: Floats) -> torch.Tensor:
        centred = _centred(image)
        spread = float(np.sqrt(np.square(centred).mean()))
        return torch.from_numpy((centred / spread if spread else centred).astype(np.float32)).to(device)

    at = torch.from_numpy(places).to(device)
    count = _window_sums(torch.ones((1, *target.shape), device=device), radius)
    ours = standard(target)
    mean, square = _window_sums(torch.stack([ours, ours * ours]), radius) / count
    spread = (square - mean * mean).clamp(min=0) + _FLAT
    out = np.empty((len(warped), len(places)))
    for weight, image in zip(out, warped, strict=True):
        theirs = standard(image)
        found = _window_sums(torch.stack([theirs, theirs * theirs, ours * theirs]), radius) / count
        other = (found[1] - found[0] * found[0]).clamp(min=0) + _FLAT
        r = (found[2] - mean * found[0]) / (spread * other).sqrt()
        weight[:] = (1.0 - r.flatten()[at].cpu().double()).clamp(min=_NEAREST).pow(-power).numpy()
    out /= out.sum(axis=0)
    return out


def _window_sums(images: torch.Tensor, radius: int) -> torch.Tensor:
    """Sums over the box window around each voxel of images (k, z, y, x), cut where the image ends."""
    import torch
    import torch.nn.functional as F

    from ..registration.box import Windows, margin

    wide = F.pad(images, (radius,) * (2 * (images.ndim - 1)))
    shape = wide.shape[1:]
    rows = wide.flatten(1)
    sums = Windows(rows, shape, radius).sums(rows)
    out = torch.zeros_like(rows)
    around = margin(shape, radius)
    out[:, around : around + sums.shape[1]] = sums
    return out.unflatten(1, shape)[(slice(None), *(slice(radius, n - radius) for n in shape))]


def _support(said: npt.NDArray[Any], weights: Doubles, levels: int) -> Doubles:
    """Sum of the weights (voxels, raters) for each label, (voxels, levels)."""
    places = said + np.arange(0, len(said) * levels, levels)[:, None]
    found = np.bincount(places.ravel(), weights.ravel(), minlength=len(said) * levels)
    return found.reshape(-1, levels).astype(np.float64, copy=False)


def _centred(image: Floats) -> Doubles:
    values = image.astype(np.float64)
    return values - values.mean()


def _cosine(a: Doubles, b: Doubles) -> float:
    """Correlation coefficient of centred values; 0 where one has no contrast."""
    size = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum()) / size if size else 0.0


def _shares(weights: Doubles) -> Doubles:
    return weights / weights.sum()


def _ties_note(ties: int) -> tuple[str, ...]:
    if not ties:
        return ()
    return (f"In {ties:,} voxel{'s' * (ties != 1)} labels had the same support; the lowest value won.",)


def _checked_weights(weights: Sequence[float], raters: Raters) -> Doubles:
    found = np.asarray(weights, dtype=np.float64)
    if found.shape != (len(raters),) or not np.isfinite(found).all() or (found < 0).any() or not found.sum() > 0:
        raise BadInput(
            f"The weights {np.round(found, 4).tolist()} do not fit.",
            f"There are {len(raters)} raters.",
            "Give each rater a number of 0 or more, and not 0 to all.",
        )
    return found


def _check_shapes(raters: Raters, target: Floats, warped: Floats) -> None:
    """The images are on the raters' grid: a caller's mistake, not a user's."""
    shape = raters.stack.shape
    if target.shape != shape[1:] or warped.shape != shape:
        msg = f"raters have shape {shape}, the target {target.shape} and the atlases {warped.shape}"
        raise ValueError(msg)


def _check_images(target: Floats, warped: Floats) -> None:
    bad = [name for name, image in (("target", target), *((f"atlas {i}", one) for i, one in enumerate(warped, 1)))
           if not np.isfinite(image).all()]  # fmt: skip
    if bad:
        raise BadInput(
            f"The image of the {bad[0]} has voxels that are not numbers.",
            "Such images cannot be compared.",
            "Fill them, or choose a method that compares no images: majority, simple or staple.",
        )

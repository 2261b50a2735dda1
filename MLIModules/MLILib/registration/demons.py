"""Instance optimisation on structure maps: diffeomorphic demons (Vercauteren 2009) from a nearly right transform.

A network that has seen both images marks their structures and brings them close; what is left between the two sets of
maps is closed here for the very pair, in a few small invertible steps. It asks for no labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .fields import compose, smooth
from .sampling import warp

#: Maps are sharpened to p^4: near a soft border neither image says where the border is.
_SHARPNESS = 4.0
#: Standard deviation of the Gaussian that smooths each step, and the longest step, voxels.
_SIGMA, _LONGEST = 0.5, 0.5
#: Weight of the difference against the slope in the step's length.
_DAMPING = 0.3
#: Voxels around the structures that may move; beyond, the transform stays as it was.
_MARGIN = 6


def demons(fixed: Tensor, moving: Tensor, u: Tensor, iterations: int) -> Tensor:
    """`u` after `iterations` demons steps.

    Each voxel steps along the slope of the maps, as far as would close their difference there if they were linear; the
    steps are smoothed, kept well below a voxel, and composed.

    Args:
        fixed, moving: logits of the structures, (N, labels + 1, *shape); channel 0 is the background.
        u: displacement to start from, (N, d, *shape), voxels.
        iterations: 0 gives back `u`.
    """
    if iterations < 1:
        return u
    sharp = [(_SHARPNESS * logits).softmax(1) for logits in (fixed, moving)]
    marked = torch.cat([1 - sharp[0][:, :1], warp(1 - sharp[1][:, :1], u)], 1) > 0.5
    box = marked_box(marked.any(1), _MARGIN)
    if box is None:
        return u
    inside = (slice(None), slice(None), *box)
    shift = torch.eye(len(box) + 1, dtype=torch.float64)
    shift[: len(box), -1] = torch.tensor([part.start for part in box], dtype=torch.float64)
    wanted, local = sharp[0][inside], u[inside]
    slope_wanted = _slopes(wanted)
    for _ in range(iterations):
        found = warp(sharp[1], local, shift[None])
        difference = wanted - found
        slope = (slope_wanted + _slopes(found)) / 2
        along = (difference[:, :, None] * slope).sum(1)
        length = slope.square().sum((1, 2)) + _DAMPING * difference.square().sum(1)
        step = smooth(along / (length[:, None] + 1e-3), _SIGMA).clamp(-_LONGEST, _LONGEST)
        local = compose(step, local)
    out = u.clone()
    out[inside] = local
    return out


def _slopes(maps: Tensor) -> Tensor:
    """Central differences along each axis, (N, C, d, *shape)."""
    return torch.stack(torch.gradient(maps, dim=tuple(range(2, maps.ndim))), 2)


def marked_box(marked: Tensor, margin: int, multiple: int = 1) -> tuple[slice, ...] | None:
    """The box around what is marked in any image of a batch; None where there is nothing.

    Args:
        marked: (N, *shape), bool.
        margin: voxels around it.
        multiple: sides are multiples of it where the images are large enough.
    """
    places = marked.any(0).nonzero()
    if not len(places):
        return None
    found = []
    for first, last, n in zip(places.amin(0).tolist(), places.amax(0).tolist(), marked.shape[1:], strict=True):
        start, stop = max(first - margin, 0), min(last + 1 + margin, n)
        size = min(-(-(stop - start) // multiple) * multiple, n)
        start = max(0, min((start + stop - size) // 2, n - size))
        found.append(slice(start, start + size))
    return tuple(found)

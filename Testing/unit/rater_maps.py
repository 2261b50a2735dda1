"""Label maps of simulated raters: a few boxes of labels, drawn with mistakes, on grids of every kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from grids import place

from MLILib.fusion.raters import Raters, raters

Stack = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


def truth(shape: Sequence[int], labels: int) -> Stack:
    """Labels 1 to `labels` as slabs of a box in the middle, background around it."""
    out = np.zeros(shape, dtype=np.uint16)
    inner = out[tuple(slice(n // 4, n - n // 4) for n in shape)]
    inner[...] = np.arange(inner.shape[-1]) * labels // inner.shape[-1] + 1
    return out


def drawn(
    shape: Sequence[int], labels: int = 1, errors: Sequence[float] = (0.05, 0.1, 0.2, 0.25, 0.3), seed: int = 0
) -> Stack:
    """(raters, *shape): the truth, each voxel replaced by any label with a rater's own probability."""
    rng = np.random.default_rng(seed)
    right = truth(shape, labels)
    return np.stack([
        np.where(rng.random(right.shape) < wrong, rng.integers(0, labels + 1, right.shape), right) for wrong in errors
    ]).astype(np.uint16)  # fmt: skip


def images(stack: Stack, seed: int = 0) -> list[sitk.Image]:
    """Images of label maps on one oblique, anisotropic grid."""
    like = place(sitk.GetImageFromArray(np.zeros(stack.shape[1:], dtype=np.uint8)), np.random.default_rng(seed))
    made = [sitk.GetImageFromArray(one) for one in stack]
    for one in made:
        one.CopyInformation(like)
    return made


def people(stack: Stack) -> Raters:
    """The raters of label maps; their labels are the values that occur."""
    return raters(images(stack))

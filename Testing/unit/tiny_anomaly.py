"""Small normal images, volumes and models of normal for tests: discs on a ground, quick to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk


def discs(count: int, side: int = 20, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Images (n, side, side) of a bright disc of varying place and size on a sloping ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    out = []
    for _ in range(count):
        cy, cx, r = (
            side / 2 + rng.normal(0, 1, 2).tolist()[0],
            side / 2 + rng.normal(0, 1),
            side / 4 + rng.normal(0, 0.7),
        )
        image = 40.0 + 2.0 * x + 100.0 * (np.hypot(y - cy, x - cx) < r) + rng.normal(0, 4, (side, side))
        out.append(np.clip(image, 0, 255))
    return np.stack(out).astype(np.uint8)


def write_discs(path: Path, count: int = 60, side: int = 20, **more: Any) -> str:
    """An .npz of normal images as the array `images`."""
    np.savez(path, images=discs(count, side), **more)
    return str(path)


def ball(size: tuple[int, int, int] = (40, 44, 36), seed: int = 0) -> sitk.Image:
    """A volume: a ball of two tissues with a little noise on a dark ground, 1 mm voxels."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[tuple(slice(0, n) for n in size[::-1])]
    r = np.sqrt(((x - size[0] / 2) / 1.1) ** 2 + (y - size[1] / 2) ** 2 + ((z - size[2] / 2) / 0.9) ** 2)
    array = np.where(r < 15, 100.0, 0.0) + np.where(r < 8, 30.0, 0.0)
    array[r < 15] += rng.normal(0, 3, int((r < 15).sum()))
    return sitk.GetImageFromArray(array.astype(np.float32))

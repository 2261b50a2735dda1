"""Random images on awkward grids: oblique, anisotropic, left-handed, far from the origin."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation


def random_image(rng: np.random.Generator, dims: int = 3, low: int = 18, high: int = 32) -> sitk.Image:
    """A smooth float image with between `low` and `high` voxels a side on a random grid, left-handed every other."""
    size = [int(n) for n in rng.integers(low, high, dims)]
    image = sitk.GetImageFromArray(rng.normal(100, 30, size[::-1]).astype(np.float32))
    image = sitk.SmoothingRecursiveGaussian(image, 2.0)
    return place(image, rng)


def place(image: sitk.Image, rng: np.random.Generator) -> sitk.Image:
    """Give `image` a random grid; returns it."""
    dims = image.GetDimension()
    if dims == 3:
        direction = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    else:
        angle = rng.uniform(0, 2 * np.pi)
        direction = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if rng.random() < 0.5:
        direction[:, 0] *= -1
    image.SetSpacing([float(x) for x in rng.uniform(0.6, 2.5, dims)])
    image.SetOrigin([float(x) for x in rng.uniform(-100, 100, dims)])
    image.SetDirection([float(x) for x in direction.ravel()])
    return image


def array(image: sitk.Image | None) -> np.ndarray:
    """The voxels (z, y, x) of an image that there must be."""
    assert image is not None
    return sitk.GetArrayFromImage(image)

"""Volumes as stacks of planes and back: axes put in order, planes resampled to a model's pixel.

Inside, a volume is an array (plane, row, column) of which the first axis is the model's; which anatomical direction an
axis has is read from the image, so that oblique, permuted and flipped grids are looked at in the same way.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from torch.nn import functional

from ..geometry import Grid

Floats = npt.NDArray[np.float32]

#: Axis of an array (z, y, x) in LPS order that is normal to a plane.
NORMAL = {"axial": 0, "coronal": 1, "sagittal": 2}
_CODE = {2: "LP", 3: "LPS"}


@dataclasses.dataclass(frozen=True)
class Oriented:
    """An image whose axes run to the left, to the back and up, and the way back.

    Attributes:
        array: (z, y, x); a 2-D image has one z.
        spacing: mm along z, y, x.
        original: grid that the image came on.
        code: orientation of that grid, for instance "RAI".
    """

    array: npt.NDArray[np.generic]
    spacing: tuple[float, float, float]
    original: Grid
    code: str

    def back(self, array: Floats) -> sitk.Image:
        """An array (z, y, x) of this shape as a float32 image on the original grid."""
        if self.original.dimension == 2:
            return self.original.apply(sitk.GetImageFromArray(np.ascontiguousarray(array[0], np.float32)))
        image = sitk.GetImageFromArray(np.ascontiguousarray(array, np.float32))
        image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
        turned = sitk.DICOMOrient(image, self.code)
        return self.original.apply(turned)


def oriented(image: sitk.Image) -> Oriented:
    """The image with its axes in order; voxels are only permuted and flipped, never resampled."""
    grid = Grid.of(image)
    if grid.dimension == 2:
        array = sitk.GetArrayFromImage(image)[None]
        return Oriented(array, (1.0, grid.spacing[1], grid.spacing[0]), grid, "")
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(grid.direction)
    turned = sitk.DICOMOrient(image, "LPS")
    x, y, z = turned.GetSpacing()
    return Oriented(sitk.GetArrayFromImage(turned), (z, y, x), grid, code)


def across(array: npt.NDArray[np.generic], plane: str) -> npt.NDArray[np.generic]:
    """A volume (z, y, x) as a view (plane, row, column)."""
    return np.moveaxis(array, NORMAL.get(plane, 0), 0)


def pixel(spacing: tuple[float, float, float], plane: str) -> tuple[float, float]:
    """Row and column spacing (mm) of a plane."""
    axis = NORMAL.get(plane, 0)
    rows, columns = (s for i, s in enumerate(spacing) if i != axis)
    return rows, columns


def resampled(stack: npt.NDArray[np.generic], shape: tuple[int, int]) -> Floats:
    """Planes (n, rows, columns) on `shape` pixels that cover the same extent; smoothed first where they get larger."""
    array = np.ascontiguousarray(stack, np.float32)
    if array.shape[1:] == tuple(shape):
        return array
    out = np.empty((len(array), *shape), np.float32)
    for first in range(0, len(array), 32):  # a whole volume's copies would be several times its size
        part = torch.from_numpy(array[first : first + 32])[:, None]
        out[first : first + 32] = functional.interpolate(part, shape, mode="bilinear", antialias=True)[:, 0].numpy()
    return out


def resampled_shape(rows: int, columns: int, spacing: tuple[float, float], wanted: float) -> tuple[int, int]:
    """Pixels of `wanted` mm that cover a plane; the plane's own where they are within a hundredth of it."""
    own = (rows, columns)
    made = tuple(max(1, round(n * s / wanted)) for n, s in zip(own, spacing, strict=True))
    same = all(abs(s / wanted - 1.0) < 0.01 for s in spacing)
    return own if same else (made[0], made[1])

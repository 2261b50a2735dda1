"""Masks from files: a label map, or Slicer's .seg.nrrd, brought to an image's grid where it only differs in extent."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..errors import BadInput
from ..fusion.atlas_labels import placed
from ..geometry import Grid, describe, from_array
from ..segmentation import label_files


def read(path: str, grid: Grid, what: str = "mask") -> sitk.Image:
    """What is not 0 in a label map, as 0 and 1 (uint8) on `grid`.

    Args:
        path: of the file.
        grid: of the image that it goes with.
        what: what to call it in an error.

    Raises:
        BadInput: it cannot be read, is empty, or lies on another grid.
    """
    found = label_files.read(path)
    inside = np.any([layer != 0 for layer in found.layers], axis=0)
    if not inside.any():
        raise BadInput(f"The {what} {path} is empty.", "No voxel of it is other than 0.", "Draw it, or leave it out.")
    there = placed(label_files.LabelFile(found.grid, (inside.astype(np.uint8),), (), found.segments), grid)
    if there is None:
        raise BadInput(
            f"The {what} {path} is not on the image's grid.",
            f"It has {describe(found.grid)}, the image {describe(grid)}.",
            f"Resample the {what} to the image with nearest-neighbour interpolation.",
        )
    return from_array(there.layers[0], grid)

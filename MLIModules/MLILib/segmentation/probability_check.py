"""The calibration of stored probabilities against references: two files, or two folders matched by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from .. import calibration, geometry, images
from ..calibration import Reliability
from ..errors import BadInput


def banded(
    probabilities: sitk.Image, reference: sitk.Image, band_mm: float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Probabilities (voxels, classes) with the background's, and true classes, in the band around the foreground.

    Args:
        probabilities: one component a label, on the grid of `reference`.
        reference: label map of the values 0, 1, 2 ...
        band_mm: width of the band.

    Raises:
        BadInput: the grids differ, or the reference has labels that there are no probabilities of.
    """
    if not geometry.same_grid(probabilities, reference):
        raise BadInput(
            "The probabilities and the reference lie on different grids.", "", "Give those of the same image."
        )
    p = sitk.GetArrayFromImage(probabilities)
    p = p if probabilities.GetNumberOfComponentsPerPixel() > 1 else p[..., None]
    labels = np.rint(sitk.GetArrayFromImage(reference)).astype(np.int64)
    if labels.min() < 0 or labels.max() > p.shape[-1]:
        raise BadInput(
            f"The reference has labels up to {labels.max()}, and there are probabilities of {p.shape[-1]}.",
            "Labels are numbered 1, 2, ... in the order of the probabilities.",
            "Give a reference of the same labels.",
        )
    inside = calibration.band(labels, reference.GetSpacing()[::-1], band_mm)
    return calibration.with_background(p[inside]), labels[inside]


def read(path: Path) -> sitk.Image:
    """A file of probabilities, one component a label.

    Raises:
        BadInput: it cannot be read, or holds values that are none.
    """
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise BadInput(f"{path} cannot be read.", str(error).strip().splitlines()[-1], "Write it again.") from error
    values = sitk.GetArrayViewFromImage(image)
    if not np.isfinite(values).all() or values.min() < -1e-3 or values.max() > 1 + 1e-3:
        raise BadInput(
            f"{path} does not hold probabilities.",
            "There are values below 0, above 1 or no numbers.",
            "Give what mli segment --probabilities wrote.",
        )
    return image


def measure(pairs: Mapping[str, tuple[Path, Path]], band_mm: float) -> tuple[Reliability, dict[str, Reliability]]:
    """Reliability of all cases together and of each.

    Args:
        pairs: probabilities and reference of each case, by name.
        band_mm: width of the band around the reference's foreground.

    Raises:
        BadInput: names the case that cannot be measured.
    """
    each: dict[str, Reliability] = {}
    for name, (probabilities, reference) in pairs.items():
        try:
            p, labels = banded(read(probabilities), images.read(reference), band_mm)
        except BadInput as error:
            raise BadInput(f"{name}: {error.what}", error.cause, error.remedy) from error
        each[name] = calibration.reliability(p, labels)
    return sum(each.values(), start=calibration.nothing()), each

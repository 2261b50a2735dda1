"""MedMNIST-style files (Yang 2023): grey images and their classes in one .npz, read without running anything in it."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import BadInput

_FORM = (
    "Give a MedMNIST-style file: train_images (N, rows, columns) of grey values, and train_labels (N, 1) from 0; "
    "val_images and val_labels for the measurement."
)


@dataclasses.dataclass(frozen=True)
class Part:
    """Images with their classes.

    Attributes:
        images: (N, rows, columns), as stored.
        labels: (N,) classes from 0.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> sitk.Image:
        """One of the images, as a file of it would be read: row 0 on top, 1 mm pixels."""
        return sitk.GetImageFromArray(self.images[index])

    def chosen(self, indices: Sequence[int] | np.ndarray) -> Part:
        """Some of them."""
        return Part(self.images[indices], self.labels[indices])


def read(path: str | Path, part: str) -> Part | None:
    """The images called "train", "val" or "test"; None where the file has none of them.

    Raises:
        BadInput: it is no such file, or its images and labels do not go together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if f"{part}_images" not in file or f"{part}_labels" not in file:
                return None
            images, labels = file[f"{part}_images"], file[f"{part}_labels"]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} cannot be read as an .npz of images ({error}).", "", _FORM) from error
    if images.ndim != 3 or images.dtype.kind not in "uif" or min(images.shape) < 1:
        raise BadInput(
            f"The {part}_images of {path} have the shape {images.shape}.", "Grey images in the plane are needed.", _FORM
        )
    flat = labels.reshape(-1)
    if len(flat) != len(images) or flat.dtype.kind not in "ui" or flat.min() < 0:
        raise BadInput(
            f"The {part}_labels of {path} have the shape {labels.shape}, for {len(images)} images.",
            "Each image needs one class, a whole number from 0.",
            _FORM,
        )
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise BadInput(f"The {part}_images of {path} hold values that are not finite.", "", "Replace them.")
    return Part(images, flat.astype(np.int64))


def split(part: Part, share: float, seed: int) -> tuple[Part, Part]:
    """The images in two, drawn at random within each class: (the rest, `share` of them).

    Raises:
        BadInput: a class has too few images.
    """
    generator = np.random.default_rng(seed)
    taken = np.zeros(len(part), bool)
    for label in np.unique(part.labels):
        places = np.flatnonzero(part.labels == label)
        count = round(share * len(places))
        if not 0 < count < len(places):
            raise BadInput(
                f"Class {label} has {len(places)} images to train on.",
                "Some are needed to train and some to choose the epoch.",
                "Give more images of it, or leave the class out.",
            )
        taken[generator.permutation(places)[:count]] = True
    return part.chosen(np.flatnonzero(~taken)), part.chosen(np.flatnonzero(taken))

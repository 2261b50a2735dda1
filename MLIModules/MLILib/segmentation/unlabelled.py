"""Learning from images without labels: a mean teacher (Tarvainen 2017).

The teacher is the moving average of the weights, and looks at an image as it is, and mirrored. The network looks at it
turned, deformed, with other intensities, and in pieces: a box of an unlabelled image is pasted into a labelled one, and
the other way round (Bai 2023, arXiv:2305.00673), so that it cannot agree by looking at the same thing. Without pasting,
what counts is how far the probabilities are apart. Either is added to the loss with a weight that grows over the first
part of a training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import files, images
from ..errors import BadInput
from .augmentation import prepared

#: Share of the training over which the weight of the agreement grows to its full value.
RAMP = 0.4
_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".png", ".tif", ".tiff")


def ramp(progress: float) -> float:
    """Weight of the agreement, 0 to 1, after `progress` of the training: exp(-5 (1 - t)^2) (Laine 2017)."""
    t = min(1.0, max(0.0, progress / RAMP))
    return math.exp(-5 * (1 - t) ** 2)


def box(shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """A box at a random place, a quarter to three quarters of the voxels: true inside, of shape `shape`."""
    side = float(rng.uniform(0.25, 0.75)) ** (1 / len(shape))
    inside = torch.zeros(tuple(shape), dtype=torch.bool)
    where = []
    for n in shape:
        length = max(1, round(side * n))
        start = int(rng.integers(0, n - length + 1))
        where.append(slice(start, start + length))
    inside[tuple(where)] = True
    return inside


def pasted(ones: Tensor, others: Tensor, inside: Tensor) -> Tensor:
    """The boxes of `ones` in `others`, then those of `others` in `ones`.

    Args:
        ones, others: (N, channels, *shape).
        inside: see :func:`box`.

    Returns:
        (2 N, channels, *shape).
    """
    return torch.cat([torch.where(inside, ones, others), torch.where(inside, others, ones)])


def believed(teacher: nn.Module, plain: Tensor, mirror_axes: Sequence[int]) -> Tensor:
    """What a teacher believes of patches: class probabilities, the mean of those as they are and mirrored.

    Args:
        teacher: gives logits (N, classes, *shape).
        plain: (N, channels, *shape).
        mirror_axes: axes of `shape` along which a mirrored image is anatomically possible; one is mirrored at a time.
    """
    with torch.no_grad():
        total = torch.softmax(teacher(plain).float(), dim=1)
        for axis in mirror_axes:
            total += torch.softmax(teacher(plain.flip(axis + 2)).float(), dim=1).flip(axis + 2)
    return total / (1 + len(mirror_axes))


def disagreement(student: Tensor, believed: Tensor) -> Tensor:
    """Mean over voxels of the squared distance of the class probabilities.

    Args:
        student: logits (N, classes, ...).
        believed: probabilities, of the same shape.
    """
    return (torch.softmax(student, dim=1) - believed).square().sum(dim=1).mean()


def find_images(folder: str, channels: int) -> list[tuple[str, ...]]:
    """The images of each unlabelled case in a folder: a file, or a subfolder with a file a channel, in order of names.

    Raises:
        BadInput: there are none, or a case has another number of channels.
    """
    root = Path(folder)
    found: list[tuple[str, ...]] = []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            inside = [p for p in sorted(entry.iterdir()) if _is_image(p)]
            if inside:
                found.append(tuple(str(p) for p in inside))
        elif channels == 1 and _is_image(entry):
            found.append((str(entry),))
    wrong = [Path(case[0]).parent.name for case in found if len(case) != channels]
    if wrong:
        raise BadInput(
            f"Unlabelled cases have another number of images than the {channels} channels: {', '.join(wrong)}.",
            "",
            "Give each case one image a channel, or remove them.",
        )
    if not found:
        raise BadInput(
            f"{folder} holds no images.",
            "Unlabelled images are files in it, or subfolders with a file a channel.",
            "Give another folder.",
        )
    return found


def read_unlabelled(paths: Sequence[str], spacing: Sequence[float]) -> tuple[Tensor, Tensor]:
    """One unlabelled case as the network sees it, and an empty label (1, x, y, z) uint8 for the sampler.

    Raises:
        BadInput: an image that cannot be used.
    """
    pictures = [images.read(path) for path in paths]
    for picture, path in zip(pictures, paths, strict=True):
        images.check(picture, path)
        if picture.GetDimension() != len(spacing):
            raise BadInput(
                f"{path} is {picture.GetDimension()}-D, and the labelled cases are {len(spacing)}-D.", "", "Remove it."
            )
    image, _ = prepared(pictures, pictures[:1], spacing)
    return image, torch.zeros((1, *image.shape[1:]), dtype=torch.uint8)


def _is_image(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and files.suffix(path) in _SUFFIXES

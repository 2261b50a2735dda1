"""Training samples: a bundle's preprocessing, then random geometry and intensity changes in the manner of nnU-Net.

Each sample's randomness is seeded by (seed, epoch, case), so that a resumed training sees exactly what an uninterrupted
one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.networks.utils import one_hot
from monai.transforms import (
    Compose,
    NormalizeIntensityd,
    Orientationd,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandSimulateLowResolutiond,
    RandSpatialCropd,
    Spacingd,
    SpatialPadd,
)

from .. import geometry, images
from ..errors import BadInput
from .dataset import Case


def preprocess(case: Case, spacing: Sequence[float], classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One case as the network sees it: (channels, x, y, z) float32 and labels (1, x, y, z) uint8, in RAS order.

    The same steps stand in the bundle's inference.json (see :mod:`.bundle_writer`).
    """
    pictures = [images.read(path) for path in case.images]
    for picture, path in zip(pictures, case.images, strict=True):
        images.check(picture, path)
    reference = images.read(case.label)
    if any(not geometry.same_grid(p, reference) for p in pictures):
        raise BadInput(
            f"The image and the label of case {case.name} lie on different grids.",
            "Their sizes, spacings, origins or directions differ.",
            "Resample the label to its image.",
        )
    image, label = prepared(pictures, [reference], spacing)
    if label.max() >= classes:
        raise BadInput(
            f"{case.label} holds the label {int(label.max())}.", "", f"The data set names labels up to {classes - 1}."
        )
    return image, label.to(torch.uint8)


def prepared(
    pictures: Sequence[sitk.Image], labels: Sequence[sitk.Image], spacing: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and label maps on one grid as a network sees them: in RAS order, resampled, the images normalised.

    Returns:
        (channels, x, y, z) float32, and (label maps, x, y, z) of whole numbers as floats.
    """
    keys = ("image", "label")
    data: Any = Compose(
        [
            Orientationd(keys, axcodes="RAS"[: len(spacing)], labels=None),
            Spacingd(keys, pixdim=tuple(spacing), mode=("bilinear", "nearest")),
            NormalizeIntensityd("image", channel_wise=True),
        ]
    )({"image": geometry.to_tensor(pictures), "label": geometry.to_tensor(labels)})
    return data["image"].as_tensor().float(), data["label"].as_tensor().round()


class Sampler:
    """Makes random training patches from preprocessed cases.

    Args:
        cases: (image, label) pairs from :func:`preprocess`.
        patch: size of a patch in voxels.
        mirror_axes: spatial axes along which a mirrored image is anatomically possible.
        classes: labels with background.
        seed: of all randomness.
    """

    def __init__(
        self,
        cases: Sequence[tuple[torch.Tensor, torch.Tensor]],
        patch: Sequence[int],
        mirror_axes: Sequence[int],
        classes: int,
        seed: int,
    ) -> None:
        self._cases = cases
        self._classes = classes
        self._seed = seed
        # labels are warped one-hot and linearly, then taken by argmax: nearest-neighbour labels are jagged
        self._geometry = _geometry(len(patch), patch, mirror_axes)
        self._intensity = _intensity(len(patch))

    def sample(self, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The patch of case `index` in `epoch`: image (channels, *patch) float32, label (1, *patch) int64."""
        image, label = self._cases[index]
        state = int(np.random.SeedSequence([self._seed, epoch, index]).generate_state(1)[0])
        soft = one_hot(label[None].long(), self._classes)[0].float()
        self._geometry.set_random_state(seed=state)
        self._intensity.set_random_state(seed=state + 1)
        data: Any = self._intensity(self._geometry({"image": image, "label": soft}))
        hard = data["label"].as_tensor().argmax(dim=0, keepdim=True)
        return data["image"].as_tensor().float(), hard

    def order(self, epoch: int) -> list[int]:
        """The order in which `epoch` visits the cases."""
        state = np.random.SeedSequence([self._seed, epoch, len(self._cases)])
        return [int(i) for i in np.random.default_rng(state).permutation(len(self._cases))]


def _geometry(dims: int, patch: Sequence[int], mirror_axes: Sequence[int]) -> Compose:
    keys = ("image", "label")
    angle = np.deg2rad(20)
    affine: dict[str, Any] = {
        "rotate_range": (angle,) * (3 if dims == 3 else 1),
        "scale_range": (0.2,) * dims,
        "translate_range": (4,) * dims,
        "mode": "bilinear",
        "padding_mode": "zeros",
    }
    steps: list[Any] = [SpatialPadd(keys, patch)]
    if dims == 3:
        steps.append(Rand3DElasticd(keys, sigma_range=(4, 6), magnitude_range=(20, 80), prob=0.2, **affine))
    steps.append(RandAffined(keys, prob=0.4, cache_grid=False, **affine))
    steps.extend(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in mirror_axes)
    steps.append(RandSpatialCropd(keys, roi_size=patch, random_size=False))
    return Compose(steps)


def _intensity(dims: int) -> Compose:
    key = "image"
    linear = "bilinear" if dims == 2 else "trilinear"
    return Compose(
        [
            RandBiasFieldd(key, degree=2, coeff_range=(0.0, 0.2), prob=0.15),
            RandGaussianNoised(key, std=0.15, prob=0.2),
            RandGaussianSmoothd(key, sigma_x=(0.4, 1.0), sigma_y=(0.4, 1.0), sigma_z=(0.4, 1.0), prob=0.2),
            RandScaleIntensityd(key, factors=0.25, prob=0.3),
            RandSimulateLowResolutiond(key, prob=0.15, zoom_range=(0.5, 1.0), upsample_mode=linear),
            RandAdjustContrastd(key, gamma=(0.7, 1.5), retain_stats=True, prob=0.3),
        ]
    )

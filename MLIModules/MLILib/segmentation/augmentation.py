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
    Rand2DElasticd,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandCropByLabelClassesd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandSimulateLowResolutiond,
    RandSpatialCrop,
    RandSpatialCropd,
    Spacingd,
    SpatialPad,
    SpatialPadd,
)
from monai.utils import convert_to_tensor

from .. import geometry, images
from ..errors import BadInput
from .dataset import Case
from .train_request import AUGMENTATIONS

_KEYS = ("image", "label")


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
    data: Any = Compose(
        [
            Orientationd(_KEYS, axcodes="RAS"[: len(spacing)], labels=None),
            Spacingd(_KEYS, pixdim=tuple(spacing), mode=("bilinear", "nearest")),
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
        augment: names of the random changes, of :data:`.train_request.AUGMENTATIONS`.
        foreground: share of the patches that are centred on a label, each label as often as the others.
        modality_dropout: probability that a channel is blank; one at least stays.
    """

    def __init__(
        self,
        cases: Sequence[tuple[torch.Tensor, torch.Tensor]],
        patch: Sequence[int],
        mirror_axes: Sequence[int],
        classes: int,
        seed: int,
        *,
        augment: Sequence[str] = AUGMENTATIONS,
        foreground: float = 0.0,
        modality_dropout: float = 0.0,
    ) -> None:
        self._cases = cases
        self._classes = classes
        self._seed = seed
        self._blank = modality_dropout
        # labels are warped one-hot and linearly, then taken by argmax: nearest-neighbour labels are jagged
        crop = _crop(patch, classes, foreground)
        moves = _geometry(len(patch), mirror_axes, augment)
        self._geometry = Compose([SpatialPadd(_KEYS, patch), *moves, crop])
        self._cut = Compose([SpatialPad(patch), RandSpatialCrop(patch, random_size=False)])
        self._moved = Compose(moves)
        self._intensity = _intensity(len(patch), augment)

    def sample(self, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The patch of case `index` in `epoch`: image (channels, *patch) float32, label (1, *patch) int64."""
        state = self._state(epoch, index)
        image, label = self._cases[index]
        soft = one_hot(label[None].long(), self._classes)[0].float()
        self._geometry.set_random_state(seed=state)
        data: Any = self._geometry({"image": image, "label": soft})
        data = data[0] if isinstance(data, list) else data  # a crop by labels could make several
        return self._altered(data["image"], state), _bare(data["label"]).argmax(dim=0, keepdim=True)

    def plain(self, epoch: int, index: int) -> torch.Tensor:
        """A patch of case `index` as it is, with all its channels: (channels, *patch) float32."""
        self._cut.set_random_state(seed=self._state(epoch, index) + 4)
        return _bare(self._cut(self._cases[index][0]))

    def changed(
        self, image: torch.Tensor, soft: torch.Tensor, epoch: int, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What :meth:`plain` gave, with geometry and intensities changed, and what is known of its labels in its place.

        Args:
            image: (channels, *patch).
            soft: probabilities (classes, *patch); they sum up to 1, also where the patch was moved out of the image.
        """
        state = self._state(epoch, index)
        self._moved.set_random_state(seed=state)
        data: Any = self._moved({"image": image, "label": soft})
        moved = _bare(data["label"])
        moved[0] += 1 - moved.sum(dim=0)
        return self._altered(data["image"], state), moved

    def order(self, epoch: int) -> list[int]:
        """The order in which `epoch` visits the cases."""
        state = np.random.SeedSequence([self._seed, epoch, len(self._cases)])
        return [int(i) for i in np.random.default_rng(state).permutation(len(self._cases))]

    def visited(self, step: int, batch: int, *, first: int = 0, epochs: int = 0) -> list[tuple[int, int]]:
        """The (epoch, case) that a step looks at: epochs from `first` on, their orders one after the other.

        Args:
            step: counted from 0 where epoch `first` begins.
            batch: cases a step.
            first: epoch.
            epochs: how many there are; a step at the end of the last one is smaller. 0 is without end.
        """
        cases = len(self._cases)
        positions = range(step * batch, (step + 1) * batch)
        if epochs:
            positions = range(positions.start, min(positions.stop, epochs * cases))
        orders: dict[int, list[int]] = {}
        out = []
        for position in positions:
            epoch = first + position // cases
            if epoch not in orders:
                orders[epoch] = self.order(epoch)
            out.append((epoch, orders[epoch][position % cases]))
        return out

    def _state(self, epoch: int, index: int) -> int:
        return int(np.random.SeedSequence([self._seed, epoch, index]).generate_state(1)[0])

    def _altered(self, image: Any, state: int) -> torch.Tensor:
        """The image with its intensities changed and channels left out."""
        self._intensity.set_random_state(seed=state + 1)
        return self._without(_bare(self._intensity({"image": image})["image"]), state + 2)

    def _without(self, image: torch.Tensor, state: int) -> torch.Tensor:
        """The image with some of its channels blank, as normalised images that are not there are (Neverova 2016)."""
        if not self._blank or len(image) == 1:
            return image
        rng = np.random.default_rng(state)
        kept = rng.random(len(image)) >= self._blank
        if not kept.any():
            kept[rng.integers(len(image))] = True
        return image * torch.from_numpy(kept).view(-1, *[1] * (image.ndim - 1)).to(image.dtype)


def _bare(data: Any) -> torch.Tensor:
    """A tensor without MONAI's metadata; only a transform that was made adds them."""
    return convert_to_tensor(data, dtype=torch.float32, track_meta=False)


def _geometry(dims: int, mirror_axes: Sequence[int], augment: Sequence[str]) -> list[Any]:
    angle = np.deg2rad(20)
    affine: dict[str, Any] = {
        "rotate_range": (angle,) * (3 if dims == 3 else 1),
        "scale_range": (0.2,) * dims,
        "translate_range": (4,) * dims,
    }
    common: dict[str, Any] = {"mode": "bilinear", "padding_mode": "zeros"}
    moved = affine if "affine" in augment else {}
    steps: list[Any] = []
    if "elastic" in augment:
        if dims == 3:
            steps.append(
                Rand3DElasticd(_KEYS, sigma_range=(4, 6), magnitude_range=(20, 80), prob=0.2, **moved, **common)
            )
        else:
            # control points 32 voxels apart, each moved by about two
            steps.append(Rand2DElasticd(_KEYS, spacing=(32, 32), magnitude_range=(1, 3), prob=0.2, **moved, **common))
    if "affine" in augment:
        steps.append(RandAffined(_KEYS, prob=0.4, cache_grid=False, **affine, **common))
    if "flip" in augment:
        steps.extend(RandFlipd(_KEYS, prob=0.5, spatial_axis=axis) for axis in mirror_axes)
    return steps


def _crop(patch: Sequence[int], classes: int, foreground: float) -> Any:
    """The random crop to a patch."""
    if not foreground:
        return RandSpatialCropd(_KEYS, roi_size=patch, random_size=False)
    ratios = [1.0 - foreground] + [foreground / (classes - 1)] * (classes - 1)
    return RandCropByLabelClassesd(
        _KEYS, label_key="label", spatial_size=patch, ratios=ratios, num_classes=classes, num_samples=1,
        warn=False,
    )  # fmt: skip


def _intensity(dims: int, augment: Sequence[str]) -> Compose:
    key = "image"
    linear = "bilinear" if dims == 2 else "trilinear"
    known = {
        "bias": RandBiasFieldd(key, degree=2, coeff_range=(0.0, 0.2), prob=0.15),
        "noise": RandGaussianNoised(key, std=0.15, prob=0.2),
        "blur": RandGaussianSmoothd(key, sigma_x=(0.4, 1.0), sigma_y=(0.4, 1.0), sigma_z=(0.4, 1.0), prob=0.2),
        "contrast": RandScaleIntensityd(key, factors=0.25, prob=0.3),
        "lowres": RandSimulateLowResolutiond(key, prob=0.15, zoom_range=(0.5, 1.0), upsample_mode=linear),
        "gamma": RandAdjustContrastd(key, gamma=(0.7, 1.5), retain_stats=True, prob=0.3),
    }
    return Compose([transform for name, transform in known.items() if name in augment])

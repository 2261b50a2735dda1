"""Trivial scores that a model of normal images has to beat: intensity, its mean and spread, PCA residual, neighbours.

They are fitted on the images the model is trained on and reported beside it, always: minus the standard deviation of
an image's intensities alone finds much in chest X-rays, and the intensity of FLAIR much in multiple sclerosis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from ..errors import BadInput
from ..geometry import from_array

Floats = npt.NDArray[np.float32]

#: Training images that principal components and neighbours are taken from; more are drawn at random from.
MOST_IMAGES = 2000
#: Share of the training images' variance that the principal components explain, and the most there may be.
EXPLAINED = 0.95
MOST_COMPONENTS = 128
#: Neighbours whose mean distance is the score.
NEIGHBOURS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Baselines:
    """What is known of the training images without a model.

    Attributes:
        shape: (h, w) of an image.
        mean: of the training images, (h * w,).
        components: orthonormal principal components, (k, h * w).
        codes: components of (at most :data:`MOST_IMAGES`) training images, (m, k).
        intensity: mean and standard deviation of all training pixels.
    """

    shape: tuple[int, int]
    mean: Floats
    components: Floats
    codes: Floats
    intensity: tuple[float, float]

    def image_scores(self, images: npt.ArrayLike) -> dict[str, npt.NDArray[np.float64]]:
        """A score of each image by each baseline, higher is more abnormal.

        Mean and spread come with both signs: which one tells is known only afterwards, and the better of the two is
        what a model has to beat.

        Args:
            images: (n, h, w), as those that were fitted.

        Returns:
            By name, shape (n,).
        """
        flat = self._flat(images)
        wide = flat.astype(np.float64)
        mean, spread = wide.mean(axis=1), wide.std(axis=1)
        codes, rest = self._project(flat)
        return {
            "high mean": mean,
            "low mean": -mean,
            "high spread": spread,
            "low spread": -spread,
            "PCA residual": np.square(rest, dtype=np.float64).mean(axis=1),
            "nearest neighbours": self._distances(codes, rest),
        }

    def residuals(self, images: npt.ArrayLike) -> Floats:
        """What principal components leave of each pixel, squared, (n, h, w)."""
        flat = self._flat(images)
        return np.square(self._project(flat)[1]).reshape(-1, *self.shape)

    def volume_maps(
        self, image: sitk.Image, foreground: sitk.Image | None = None, *, axis: int = 2, batch: int = 256
    ) -> dict[str, sitk.Image]:
        """Maps of a volume (or plane) by each baseline that has one, higher is more abnormal.

        Args:
            image: intensities as in the training images (normalised in the same way), 2-D or 3-D; windows of the
                training images' size are laid over each of its planes, half overlapping, and averaged.
            foreground: mask on the same grid; outside, maps have their lowest value inside.
            axis: normal of the planes, as an index axis of the image: 0 is x, 1 y, 2 z; a 2-D image is one plane.
            batch: windows at a time.

        Returns:
            float32 maps on the image's grid: "high intensity", "low intensity", "unusual intensity" (distance from the
            training mean) and "PCA residual".
        """
        voxels = sitk.GetArrayFromImage(image).astype(np.float32)
        inside = None if foreground is None else sitk.GetArrayViewFromImage(foreground) != 0
        planes = np.moveaxis(voxels[None] if voxels.ndim == 2 else voxels, 0 if voxels.ndim == 2 else 2 - axis, 0)
        found = np.stack([self._plane(plane, batch) for plane in planes])
        residual = found[0] if voxels.ndim == 2 else np.moveaxis(found, 0, 2 - axis)
        centre, spread = self.intensity
        maps = {
            "high intensity": voxels,
            "low intensity": -voxels,
            "unusual intensity": np.abs(voxels - np.float32(centre)) / np.float32(spread),
            "PCA residual": residual,
        }
        return {name: from_array(_cut(values, inside), image) for name, values in maps.items()}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All of it as arrays, to be stored beside a model without pickling; :meth:`from_arrays` is the way back."""
        return {
            "shape": np.array(self.shape, np.int64),
            "mean": self.mean,
            "components": self.components,
            "codes": self.codes,
            "intensity": np.array(self.intensity, np.float64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The baselines that :meth:`arrays` described."""
        height, width = (int(x) for x in arrays["shape"])
        centre, spread = (float(x) for x in arrays["intensity"])
        mean, components, codes = (np.asarray(arrays[name], np.float32) for name in ("mean", "components", "codes"))
        return cls((height, width), mean, components, codes, (centre, spread))

    def _flat(self, images: npt.ArrayLike) -> Floats:
        array = np.asarray(images, np.float32)
        if array.ndim != 3 or array.shape[1:] != self.shape:
            raise BadInput(
                f"The images have the shape {array.shape[1:]}, those trained on {self.shape}.",
                "",
                "Give images of the same size.",
            )
        return array.reshape(len(array), -1)

    def _project(self, flat: Floats) -> tuple[Floats, Floats]:
        """Components (n, k) and what they leave (n, h * w)."""
        centred: Floats = flat - self.mean
        codes: Floats = centred @ self.components.T
        rest: Floats = centred - codes @ self.components
        return codes, rest

    def _distances(self, codes: Floats, rest: Floats) -> npt.NDArray[np.float64]:
        """Mean distance to the nearest training images, whose part outside the components is taken as none."""
        near = min(NEIGHBOURS, len(self.codes))
        wide, stored = codes.astype(np.float64), self.codes.astype(np.float64)
        square = (wide**2).sum(1)[:, None] - 2 * wide @ stored.T + (stored**2).sum(1)
        square += np.square(rest, dtype=np.float64).sum(1)[:, None]
        return np.sqrt(np.partition(square.clip(min=0), near - 1, axis=1)[:, :near]).mean(axis=1)

    def _plane(self, plane: Floats, batch: int) -> Floats:
        """The residual of one plane (h, w) from half-overlapping windows; a plane that is too small is extended."""
        height, width = self.shape
        short = [max(0, need - have) for need, have in zip(self.shape, plane.shape, strict=True)]
        padded = np.pad(plane, [(0, short[0]), (0, short[1])], mode="edge")
        rows, columns = (_starts(n, w) for n, w in zip(padded.shape, self.shape, strict=True))
        places = [(r, c) for r in rows for c in columns]
        total, count = np.zeros_like(padded), np.zeros_like(padded)
        for first in range(0, len(places), batch):
            some = places[first : first + batch]
            left = self.residuals(np.stack([padded[r : r + height, c : c + width] for r, c in some]))
            for (r, c), window in zip(some, left, strict=True):
                total[r : r + height, c : c + width] += window
                count[r : r + height, c : c + width] += 1
        return (total / count)[: plane.shape[0], : plane.shape[1]]


def fit(images: npt.ArrayLike, *, seed: int = 0) -> Baselines:
    """Learn the baselines from normal images.

    Args:
        images: (n, h, w), finite, at least two.
        seed: of the draw where there are more than :data:`MOST_IMAGES`.

    Raises:
        BadInput: too few images, or all alike.
    """
    array = np.asarray(images, np.float32)
    if array.ndim != 3 or len(array) < 2:
        raise BadInput(
            f"Baselines cannot be learned from an array of shape {array.shape}.",
            "They need two images or more, (n, h, w).",
            "Give more normal images.",
        )
    shape = (int(array.shape[1]), int(array.shape[2]))
    centre, spread = float(array.mean(dtype=np.float64)), float(array.std(dtype=np.float64))
    if len(array) > MOST_IMAGES:
        array = array[np.sort(np.random.default_rng(seed).choice(len(array), MOST_IMAGES, replace=False))]
    flat = array.reshape(len(array), -1)
    mean = flat.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = flat - mean
    components = _components(centred)
    if not len(components) or not spread > 0:
        raise BadInput("The training images are all alike.", "They may be blank.", "Give images that differ.")
    return Baselines(shape, mean, components, centred @ components.T, (centre, spread))


def _components(centred: Floats) -> Floats:
    """Principal components (k, pixels) that explain :data:`EXPLAINED` of the variance, from the smaller Gram matrix."""
    n, pixels = centred.shape
    wide = centred.astype(np.float64)
    values, vectors = np.linalg.eigh(wide @ wide.T if n <= pixels else wide.T @ wide)
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    total = values.sum()
    if not total > 0:
        return np.zeros((0, pixels), np.float32)
    count = int(np.searchsorted(np.cumsum(values) / total, EXPLAINED)) + 1
    count = max(1, min(count, MOST_COMPONENTS, int(np.count_nonzero(values > 1e-10 * values[0]))))
    kept = vectors[:, :count]
    if n <= pixels:
        kept = (wide.T @ kept) / np.sqrt(values[:count])
    return np.ascontiguousarray(kept.T, np.float32)


def _starts(size: int, window: int) -> list[int]:
    """Where windows begin that overlap by half and cover `size` pixels."""
    return [*range(0, size - window, max(1, window // 2)), size - window]


def _cut(values: Floats, inside: npt.NDArray[np.bool_] | None) -> Floats:
    """Outside the mask, the lowest value inside."""
    if inside is None or not inside.any():
        return np.ascontiguousarray(values, np.float32)
    return np.where(inside, values, values[inside].min()).astype(np.float32)

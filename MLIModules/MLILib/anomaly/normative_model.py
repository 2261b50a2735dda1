"""A normative model as a file: regressions of voxels or numbers on covariates, and how they did on subjects left out.

An .npz of plain arrays and one JSON text: loading it runs no code. It holds means, variances and what the regressions
need of the training data; with as many of those as subjects, single subjects could be made out of it.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from .. import files
from ..errors import BadInput
from ..geometry import Grid, describe, same_grid
from .covariates import Covariate, encode
from .gaussian_process import Fitted, Group

FORMAT = "MLI normative model 1"
Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class NormativeModel:
    """What is normal, given covariates.

    Attributes:
        covariates: that explain.
        fitted: one regression a target.
        names: of the targets of a model of numbers; () for a model of images.
        grid: of the images; None for a model of numbers.
        voxels: flat indices (z, y, x) of the targets in the grid; empty for a model of numbers.
        normalise, patch: what is done to an image first, see :mod:`MLILib.anomaly.normative_requests`.
        plain_sd: standard deviation of each target without covariates, (v,).
        calibration: see :meth:`MLILib.anomaly.normative_training.calibration`.
    """

    covariates: tuple[Covariate, ...]
    fitted: Fitted
    names: tuple[str, ...]
    grid: Grid | None
    voxels: Array
    normalise: str
    patch: int
    plain_sd: Array
    calibration: dict[str, Any]

    def expect(self, covariates: Mapping[str, str]) -> tuple[Array, Array, list[str]]:
        """Mean and standard deviation of each target in normal subjects with these covariates, and warnings."""
        row, warnings = encode(self.covariates, covariates)
        mean, variance = self.fitted.predict(row)
        return mean, np.sqrt(variance), warnings

    def targets(self, image: sitk.Image) -> Array:
        """The voxels of an image that the model knows, normalised as in training, float64.

        Raises:
            BadInput: it lies on another grid, or cannot be normalised.
        """
        assert self.grid is not None
        if not same_grid(image, self.grid):
            raise BadInput(
                "The image is not on the grid of the training images.",
                f"It has {describe(Grid.of(image))}, they have {describe(self.grid)}.",
                "Register it to one of them, or to their template, with `mli register`, and give the warped image.",
            )
        return prepare(image, self.voxels, self.normalise, self.patch)

    def image(self, values: Array) -> sitk.Image:
        """Values of the targets as a float32 image; what the model does not know is 0."""
        assert self.grid is not None
        out = np.zeros(self.grid.shape, np.float32)
        out.ravel()[self.voxels] = values
        return self.grid.apply(sitk.GetImageFromArray(out))

    def save(self, path: str) -> None:
        """Write the file; an open disk that fills becomes :class:`BadInput` in :class:`MLILib.files.Outputs`."""
        fitted = self.fitted
        about = {
            "format": FORMAT,
            "covariates": [one.to_json() for one in self.covariates],
            "names": list(self.names),
            "grid": None if self.grid is None else dataclasses.asdict(self.grid),
            "normalise": self.normalise,
            "patch": self.patch,
            "calibration": self.calibration,
            "groups": len(fitted.groups),
        }
        arrays: dict[str, Array] = {
            "about": np.array(json.dumps(about, allow_nan=False)),
            "voxels": self.voxels.astype(np.int64),
            "plain_sd": self.plain_sd.astype(np.float32),
            **{name: getattr(fitted, name) for name in ("design", "mean", "signal", "noise", "likelihood")},
        }
        for i, group in enumerate(fitted.groups):
            arrays |= {f"{field.name}_{i}": getattr(group, field.name) for field in dataclasses.fields(Group)}
        with open(path, "wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str) -> Self:
        """Read the file.

        Raises:
            BadInput: it is no normative model, or is damaged.
        """
        files.require_input(path, name="model")
        try:
            with np.load(path, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                if about["format"] != FORMAT:
                    raise BadInput(
                        f"{path} is a {about['format']!r}.", "A newer MLI wrote it.", f"Update to read {FORMAT}."
                    )
                return cls._of(about, stored)
        except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(
                f"{path} is no normative model that can be used.",
                f"It is another file, or damaged ({error}).",
                "Give a file that `mli train normative` wrote.",
            ) from error

    @classmethod
    def _of(cls, about: Mapping[str, Any], stored: Mapping[str, Array]) -> Self:
        """The model of what was stored, its shapes checked."""
        covariates = tuple(Covariate.from_json(one) for one in about["covariates"])
        names = ("design", "mean", "signal", "noise", "likelihood")
        design, mean, signal, noise, likelihood = (stored[name] for name in names)
        grid = about["grid"] and Grid(**{key: tuple(value) for key, value in about["grid"].items()})
        groups = tuple(
            Group(**{field.name: stored[f"{field.name}_{i}"] for field in dataclasses.fields(Group)})
            for i in range(int(about["groups"]))
        )
        count, voxels = len(mean), stored["voxels"]
        sound = (
            design.shape[1] == sum(one.columns for one in covariates)
            and signal.shape == noise.shape == likelihood.shape == stored["plain_sd"].shape == (count,)
            and (len(about["names"]) == count if grid is None else voxels.shape == (count,))
            and (grid is None or not count or 0 <= voxels.min() <= voxels.max() < np.prod(grid.size))
            and all(_sound(group, design.shape, count) for group in groups)
        )
        if not sound:
            msg = "its parts do not fit each other"
            raise ValueError(msg)
        return cls(
            covariates,
            Fitted(design, mean, signal, noise, groups, likelihood),
            tuple(str(name) for name in about["names"]),
            grid,
            voxels,
            str(about["normalise"]),
            int(about["patch"]),
            stored["plain_sd"],
            dict(about["calibration"]),
        )


def _sound(group: Group, shape: tuple[int, ...], count: int) -> bool:
    k, v = group.codes.shape
    return (
        group.lengths.shape == (shape[1],)
        and group.eigenvalues.shape == (k,)
        and group.weights.shape == (shape[0], k)
        and group.members.shape == (v,)
        and (not v or 0 <= group.members.min() <= group.members.max() < count)
    )


def prepare(image: sitk.Image, voxels: Array, normalise: str, patch: int) -> Array:
    """An image's voxels as a model takes them.

    Args:
        image: on the training grid.
        voxels: flat indices (z, y, x).
        normalise: "none", or "robust".
        patch: side of the box whose mean is taken, odd; voxels that are not listed do not count.

    Returns:
        float64, one a voxel.

    Raises:
        BadInput: most voxels have one value, so that there is no spread to normalise with.
    """
    values = sitk.GetArrayViewFromImage(image).ravel()[voxels].astype(np.float64)
    if normalise == "robust":
        low, middle, high = np.percentile(values, (25, 50, 75))
        if not high > low:
            raise BadInput(
                "An image has the same intensity in most of its voxels.",
                "Background is counted, too, where there is no mask.",
                "Give a mask of the organ, or --normalise none.",
            )
        values = (values - middle) * (1.3489795 / (high - low))
    if patch > 1:
        from scipy import ndimage

        full, inside = (np.zeros(sitk.GetArrayViewFromImage(image).shape) for _ in range(2))
        full.ravel()[voxels], inside.ravel()[voxels] = values, 1.0
        means = ndimage.uniform_filter(full, patch, mode="constant") / np.maximum(
            ndimage.uniform_filter(inside, patch, mode="constant"), 0.5 / patch**full.ndim
        )
        values = means.ravel()[voxels]
    return values


def false_positive_rate(calibration: Mapping[str, Any], threshold: float) -> float | None:
    """Share of left-out normal subjects' targets with |z| at or beyond a threshold, None beyond the table's end."""
    table: Sequence[Sequence[float]] = calibration["beyond"]
    if threshold > table[-1][0]:
        return None
    return float(np.interp(threshold, [row[0] for row in table], [row[1] for row in table]))

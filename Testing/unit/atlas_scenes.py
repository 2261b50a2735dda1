"""Atlases whose registration is known: one body in world space, moved by a known step, seen on any grid.

The body is a ball of two halves, labels 1 and 2, brighter than what is around it. Whatever a grid's direction, spacing
and origin, the true labels of a voxel follow from where it lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from MLILib.geometry import Grid, from_array
from MLILib.progress import Progress
from MLILib.registration.conversion import to_sitk
from MLILib.registration.pairwise import Registration

RADIUS = 9.0
LABELS = (1, 2)


def grid(seed: int, dims: int = 3, voxels: int = 30) -> Grid:
    """A grid around the origin: oblique and anisotropic, left-handed where `seed` is odd."""
    rng = np.random.default_rng(seed)
    spacing = rng.uniform(0.8, 1.4, dims)
    if dims == 3:
        direction = Rotation.from_euler("xyz", rng.uniform(-25, 25, 3), degrees=True).as_matrix()
    else:
        angle = np.deg2rad(rng.uniform(-25, 25))
        direction = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if seed % 2:
        direction[:, 0] *= -1
    size = rng.integers(voxels - 4, voxels + 4, dims)
    origin = -direction @ (spacing * (size - 1) / 2) + rng.uniform(-1, 1, dims)
    return Grid(
        tuple(int(n) for n in size),
        tuple(float(x) for x in spacing),
        tuple(float(x) for x in origin),
        tuple(float(x) for x in direction.ravel()),
    )


def points(where: Grid) -> np.ndarray:
    """World position of each voxel, (*shape, d)."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in where.shape], indexing="ij")[::-1], axis=-1)
    matrix, d = where.matrix(), where.dimension
    return index @ matrix[:d, :d].T + matrix[:d, d]


def labels(where: Grid, step: np.ndarray) -> sitk.Image:
    """The body's labels, moved by `step` mm."""
    p = points(where) - step
    inside = np.linalg.norm(p, axis=-1) < RADIUS
    return from_array((inside * np.where(p[..., 0] < 0, 1, 2)).astype(np.uint8), where)


def image(where: Grid, step: np.ndarray, noise: int = 0) -> sitk.Image:
    """What it looks like; `noise` seeds a little noise, so that no two images are the same."""
    p = points(where) - step
    r = np.linalg.norm(p, axis=-1)
    bright = 100.0 / (1 + np.exp(r - RADIUS)) * (1.0 + 0.3 * np.tanh(p[..., 0] / 3))
    bright += np.random.default_rng(noise).normal(0, 0.5, where.shape)
    return from_array(bright.astype(np.float32), where)


def deep(where: Grid, step: np.ndarray, margin: float = 1.0) -> np.ndarray:
    """Voxels further than `margin` mm from every border between labels, where interpolation leaves no doubt."""
    p = points(where) - step
    r = np.linalg.norm(p, axis=-1)
    return (np.abs(r - RADIUS) > margin) & ((np.abs(p[..., 0]) > margin) | (r > RADIUS))


def atlas(seed: int, step: np.ndarray) -> tuple[sitk.Image, sitk.Image]:
    """Image and labels on a grid of their own."""
    where = grid(seed, len(step))
    return image(where, step, seed), labels(where, step)


class Registrar:
    """Stands in for the registration: knows every image's step by its voxels, counts what it was asked.

    Args:
        known: images and their steps.
        fail: of which images registration fails, with what.
    """

    def __init__(self, known: list[tuple[sitk.Image, np.ndarray]], fail: dict[int, Exception] | None = None) -> None:
        self._known = [(sitk.GetArrayFromImage(one), step) for one, step in known]
        self._fail = fail or {}
        self.warnings: list[str] = []
        self.calls: list[int] = []
        self.settings: list[dict[str, Any]] = []

    def __call__(self, fixed: sitk.Image, moving: sitk.Image, *, progress: Any = None, **settings: Any) -> Registration:
        number = self._number(moving)
        self.calls.append(number)
        self.settings.append(settings)
        progress = progress or Progress()
        progress.stage("Affine")
        progress.fraction(0.5)
        if number in self._fail:
            raise self._fail[number]
        progress.stage("Deformable")
        progress.fraction(1.0)
        d = fixed.GetDimension()
        linear = np.eye(d + 1)
        linear[:d, d] = self._known[number][1] - self._known[self._number(fixed)][1]
        where = Grid.of(fixed)
        return Registration(
            transform=to_sitk(linear, None, where), linear=linear, displacement=None, grid=where,
            curve=[], warnings=list(self.warnings), device="the CPU", seconds=0.0,
        )  # fmt: skip

    def _number(self, image: sitk.Image) -> int:
        array = sitk.GetArrayViewFromImage(image)
        return next(i for i, (one, _) in enumerate(self._known) if np.array_equal(one, array))

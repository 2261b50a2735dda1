"""A soft body of random blobs as a function of space: images of it on any grid, moved by any map, not resampled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from MLILib.geometry import Grid, from_array

#: Points (n, d) to points (n, d), LPS mm.
Map = Callable[[np.ndarray], np.ndarray]


class Body:
    """An ellipsoid with a soft edge, filled with blobs of some mm; its intensities run from 0 to about 1.

    Args:
        dims: 2 or 3.
        seed: another one is another body.
        radius: of its largest half axis, mm.
        centre: LPS mm.
    """

    def __init__(self, dims: int = 3, seed: int = 0, radius: float = 14.0, centre: tuple[float, ...] = ()) -> None:
        rng = np.random.default_rng(seed)
        self.centre = np.array(centre or (0.0,) * dims)
        self.axes = radius * np.array([1.0, 0.8, 0.7][:dims])
        count = 25 if dims == 2 else 60
        places = rng.normal(size=(count, dims))
        places *= rng.random((count, 1)) ** (1 / dims) / np.linalg.norm(places, axis=1, keepdims=True)
        self.places = places * self.axes * 0.9
        self.widths = rng.uniform(0.1, 0.2, count) * radius
        self.heights = rng.uniform(-0.45, 0.45, count)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """The intensity at points (n, d), LPS mm."""
        x = points - self.centre
        out = 0.5 * np.ones(len(x))
        for place, width, height in zip(self.places, self.widths, self.heights, strict=True):
            out += height * np.exp(-np.square(x - place).sum(1) / (2 * width**2))
        away = np.sqrt(np.square(x / self.axes).sum(1))
        return np.clip(out, 0, None) / (1 + np.exp(np.clip((away - 1) * 12, -50, 50)))

    def image(self, grid: Grid, back: Map | None = None, remap: Callable[[np.ndarray], np.ndarray] | None = None,
              noise: float = 0.005) -> sitk.Image:  # fmt: skip
        """The body on a grid.

        Args:
            grid: where its voxels lie.
            back: a point of this image to the point of the body seen there; None is the identity.
            remap: of intensities, as another modality has it.
            noise: standard deviation.
        """
        points = positions(grid)
        values = self(points if back is None else back(points))
        values = values if remap is None else remap(values)
        values = values + np.random.default_rng(1).normal(0, noise, len(values))
        return from_array(values.reshape(grid.shape).astype(np.float32), grid)


def positions(grid: Grid) -> np.ndarray:
    """LPS position of every voxel, (voxels, d), in the order of the array (z, y, x)."""
    d = grid.dimension
    index = np.indices(grid.shape).reshape(d, -1)[::-1]
    return (grid.matrix()[:d, :d] @ index).T + grid.matrix()[:d, d]


def grid(size: tuple[int, ...], spacing: tuple[float, ...], *, turn: float = 0.0, flip: bool = False,
         centre: tuple[float, ...] = ()) -> Grid:  # fmt: skip
    """A grid about a centre, turned by an angle in degrees about an oblique axis, its first axis flipped if wanted."""
    d = len(size)
    angle = np.radians(turn)
    if d == 3:
        direction = Rotation.from_rotvec(angle * np.array([1.0, 2.0, 2.0]) / 3).as_matrix()
    else:
        direction = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if flip:
        direction[:, 0] *= -1
    middle = np.array(centre or (0.0,) * d)
    origin = middle - direction @ ((np.array(size) - 1) / 2 * spacing)
    return Grid(size, spacing, tuple(origin.tolist()), tuple(direction.ravel().tolist()))


def linear(dims: int, degrees: float = 0.0, shift: tuple[float, ...] = (), scale: float = 1.0,
           shear: float = 0.0) -> np.ndarray:  # fmt: skip
    """A map about the origin, (d + 1) x (d + 1): sheared, scaled, turned about an oblique axis, and shifted, mm."""
    out = np.eye(dims + 1)
    inner = grid((1,) * dims, (1.0,) * dims, turn=degrees).matrix()[:dims, :dims] * scale
    skew = np.eye(dims)
    skew[0, 1] = shear
    out[:dims, :dims] = inner @ skew
    out[:dims, dims] = shift or (0.0,) * dims
    return out


def through(matrix: np.ndarray) -> Map:
    """A linear map as a function of points."""
    d = len(matrix) - 1
    return lambda points: points @ matrix[:d, :d].T + matrix[:d, d]


def miss(transform: sitk.Transform, truth: Map, body: Body) -> np.ndarray:
    """Distance of where a transform takes points of the body from where they belong, mm, (points,)."""
    rng = np.random.default_rng(5)
    points = rng.uniform(-1, 1, (400, len(body.axes)))
    points = points[np.square(points).sum(1) < 0.8] * body.axes + body.centre
    found = np.array([transform.TransformPoint(p.tolist()) for p in points])
    return np.linalg.norm(found - truth(points), axis=1)

"""Three planes of a volume as a radiologist looks at them: which axes, which way round, which letters at the borders.

Planes are the grid's own, so that no voxel is interpolated: an oblique image is shown along its axes, each called by
the direction of the body that it is nearest to. The patient's right is on the left of the picture, front and head up.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import numpy.typing as npt

from ..geometry import Grid

#: A second letter is added at a border whose direction leans more than this towards another axis of the body.
_LEAN = 0.35

#: What a negative and a positive step along the LPS axes are called.
_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))
_NAMES = ("Sagittal", "Coronal", "Axial")


@dataclasses.dataclass(frozen=True)
class Plane:
    """A plane of a grid.

    Attributes:
        name: "Axial", "Coronal", "Sagittal"; "" of a 2-D image.
        place: where it lies, such as "S 12 mm", "" where the grid is oblique or 2-D.
        letters: at the left, right, top and bottom; "" where a 2-D image has no such directions.
        size: width and height, mm.
        order: axes of an array (z, y, x) that become the cut axis, the rows and the columns; rows and columns in 2-D.
        turned: whether each of these runs backwards.
        index: of the plane along the cut axis, counted in the array; 0 in 2-D.
    """

    name: str
    place: str
    letters: tuple[str, str, str, str]
    size: tuple[float, float]
    order: tuple[int, ...]
    turned: tuple[bool, ...]
    index: int

    def cut(self, array: npt.NDArray) -> npt.NDArray:
        """The plane of an array (z, y, x) or (y, x), further axes staying behind: (rows, columns, ...)."""
        spatial = len(self.order)
        rest = range(spatial, array.ndim)
        turned = array.transpose([*self.order, *rest])
        flat = turned[self.index] if spatial == 3 else turned
        return flat[tuple(slice(None, None, -1 if back else 1) for back in self.turned[-2:])]

    def pixel(self, array: npt.NDArray) -> tuple[float, float]:
        """Width and height of a pixel of a plane of this array, mm."""
        rows, columns = (array.shape[axis] for axis in self.order[-2:])
        return self.size[0] / columns, self.size[1] / rows


def planes(grid: Grid, centre: tuple[int, ...]) -> list[Plane]:
    """The axial, coronal and sagittal plane through a voxel; of a 2-D image the image itself.

    Args:
        grid: of the image.
        centre: index of the voxel in array order, (z, y, x) or (y, x).
    """
    d = grid.dimension
    direction = np.reshape(grid.direction, (d, d))
    nearest = max(
        itertools.permutations(range(d)), key=lambda axes: sum(abs(direction[i, a]) for i, a in enumerate(axes))
    )
    if d == 2:
        turned = tuple(direction[i, nearest[i]] < 0 for i in (1, 0))
        size = tuple(grid.size[a] * grid.spacing[a] for a in nearest)
        return [Plane("", "", ("", "", "", ""), (size[0], size[1]), tuple(1 - nearest[i] for i in (1, 0)), turned, 0)]
    oblique = np.abs(direction).max(axis=0).min() < 0.99
    out = []
    # Body axes 0, 1, 2 are left, posterior, superior. Rows run down the picture: towards posterior, else from superior.
    for cut, rows, columns in ((2, 1, 0), (1, 2, 0), (0, 2, 1)):
        backwards = [
            (direction[body, nearest[body]] < 0) != (body == 2 and body == rows) for body in (cut, rows, columns)
        ]
        order = tuple(2 - nearest[body] for body in (cut, rows, columns))
        right = direction[:, nearest[columns]] * (-1 if backwards[2] else 1)
        down = direction[:, nearest[rows]] * (-1 if backwards[1] else 1)
        position = (grid.matrix() @ np.array([*centre[::-1], 1.0]))[cut]
        name = _NAMES[cut] + (" (oblique)" if oblique else "")
        place = "" if oblique else f"{_LETTERS[cut][int(position > 0)]} {abs(position):.0f} mm"
        letters = (letter(-right), letter(right), letter(-down), letter(down))
        size = tuple(grid.size[nearest[body]] * grid.spacing[nearest[body]] for body in (columns, rows))
        out.append(Plane(name, place, letters, (size[0], size[1]), order, tuple(backwards), centre[order[0]]))
    return out


def letter(direction: npt.NDArray[np.float64]) -> str:
    """What a direction in LPS is called: "L", or "LA" where it also leans to the front."""
    axes = np.argsort(-np.abs(direction))
    told = [axes[0], *(a for a in axes[1:] if abs(direction[a]) > _LEAN)]
    return "".join(_LETTERS[a][int(direction[a] > 0)] for a in told)


def centre_of(weights: npt.NDArray) -> tuple[int, ...]:
    """The voxel nearest to the centre of gravity of an array of weights; the middle of the array where all are 0."""
    total = float(weights.sum(dtype=np.float64))
    if not math.isfinite(total) or total <= 0:
        return tuple(n // 2 for n in weights.shape)
    out = []
    for axis in range(weights.ndim):
        along = weights.sum(axis=tuple(a for a in range(weights.ndim) if a != axis), dtype=np.float64)
        out.append(round(float((along * np.arange(len(along))).sum() / total)))
    return tuple(out)

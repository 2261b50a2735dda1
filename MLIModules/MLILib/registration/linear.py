"""Rigid, similarity and affine maps: parameters an optimiser likes, their matrix, and what a reader is told.

T(p) = L (p - c) + c + t in LPS mm. All parameters are in mm, also those of L: each counts what it moves at a given
distance from the centre c, so that one step length suits rotations, scales, shears and translations alike.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..geometry import Grid

#: Kinds of map by growing freedom.
KINDS = ("rigid", "similarity", "affine")


def count(kind: str, dimension: int) -> int:
    """The number of parameters: 3, 4, 6 in 2-D and 6, 7, 12 in 3-D for rigid, similarity and affine."""
    turns = dimension * (dimension - 1) // 2
    try:
        inner = {"rigid": turns, "similarity": turns + 1, "affine": dimension**2}[kind]
    except KeyError as error:
        msg = f"unknown kind of linear map {kind!r}, expected one of {', '.join(KINDS)}"
        raise ValueError(msg) from error
    return inner + dimension


def length_scale(grid: Grid) -> float:
    """Root mean square distance of a grid's points from its middle, mm: the `scale` of the functions below.

    Turning by one parameter unit (1 mm) then moves the image's points by about 1 mm, as a unit of translation does.
    """
    return math.sqrt(sum((n * s) ** 2 for n, s in zip(grid.size, grid.spacing, strict=True)) / 12)


def matrix(kind: str, parameters: Tensor, centre: Tensor, scale: float) -> Tensor:
    """The maps that parameters stand for, differentiably; zero is the identity.

    rigid: L is the rotation by the vector r / scale, in radians (2-D: an angle). similarity: L is that rotation times
    exp(s / scale). affine: L is the identity plus a matrix / scale.

    Args:
        kind: one of :data:`KINDS`.
        parameters: (N, :func:`count`), mm: those of L (r, then s; or the matrix, row by row), then the translation t.
        centre: c, (d,) or (N, d), LPS mm; its dimension is that of the map.
        scale: the distance from the centre, mm, at which a parameter of L moves a point by as many mm as it counts.

    Returns:
        (N, d + 1, d + 1), LPS mm.
    """
    d = centre.shape[-1]
    if parameters.ndim != 2 or parameters.shape[1] != count(kind, d):
        msg = f"a {d}-D {kind} map has {count(kind, d)} parameters, got a tensor of shape {tuple(parameters.shape)}"
        raise ValueError(msg)
    inner, shift = parameters[:, :-d] / scale, parameters[:, -d:]
    if kind == "affine":
        turn = torch.eye(d, dtype=inner.dtype, device=inner.device) + inner.view(-1, d, d)
    else:
        turn = rotation(inner[:, : d * (d - 1) // 2])
        if kind == "similarity":
            turn = turn * inner[:, -1:, None].exp()
    c = centre.to(parameters).expand(len(parameters), d)
    last = torch.zeros(len(parameters), 1, d + 1, dtype=inner.dtype, device=inner.device)
    last[:, :, d] = 1.0
    offset = c + shift - torch.bmm(turn, c[..., None])[..., 0]
    return torch.cat([torch.cat([turn, offset[..., None]], dim=2), last], dim=1)


def rotation(vector: Tensor) -> Tensor:
    """Rotation matrices: (N, 3) rotation vectors or (N, 1) angles, in radians, to (N, d, d)."""
    zero = torch.zeros_like(vector[:, 0])
    if vector.shape[1] == 1:
        rows = [zero, -vector[:, 0], vector[:, 0], zero]
        return torch.matrix_exp(torch.stack(rows, dim=1).view(-1, 2, 2))
    x, y, z = vector.unbind(1)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.matrix_exp(torch.stack(rows, dim=1).view(-1, 3, 3))


def parameters_of(kind: str, matrices: np.ndarray | Tensor, centre: np.ndarray | Tensor, scale: float) -> Tensor:
    """The parameters of maps, the inverse of :func:`matrix`. Not differentiable.

    A map with more freedom than `kind` gives the one nearest to it: the rotation nearest to L (in the Frobenius norm),
    and for "similarity" the scale that keeps its volume. The centre goes where it went.

    Args:
        kind: one of :data:`KINDS`.
        matrices: (N, d + 1, d + 1) or (d + 1, d + 1), LPS mm.
        centre: (d,), LPS mm.
        scale: as in :func:`matrix`.

    Returns:
        (N, :func:`count`), float64, CPU.

    Raises:
        ValueError: when a mirroring or singular map is asked to be rigid or a similarity.
    """
    given = torch.as_tensor(matrices).detach().to("cpu", torch.float64).numpy()
    given = given[None] if given.ndim == 2 else given
    c = torch.as_tensor(centre).detach().to("cpu", torch.float64).numpy()
    d = len(c)
    out = np.empty((len(given), count(kind, d)))
    for row, whole in zip(out, given, strict=True):
        turn = whole[:d, :d]
        row[-d:] = turn @ c + whole[:d, d] - c
        if kind == "affine":
            row[:-d] = scale * (turn - np.eye(d)).ravel()
            continue
        volume = np.linalg.det(turn)
        if volume <= 0:
            msg = f"a map that mirrors or flattens (determinant {volume:.3g}) has no rotation near it"
            raise ValueError(msg)
        left, _, right = np.linalg.svd(turn)
        row[: d * (d - 1) // 2] = scale * _rotation_vector(left @ right)
        if kind == "similarity":
            row[-d - 1] = scale * math.log(volume) / d
    return torch.from_numpy(out)


def _rotation_vector(turn: np.ndarray) -> np.ndarray:
    if len(turn) == 2:
        return np.array([math.atan2(turn[1, 0], turn[0, 0])])
    return Rotation.from_matrix(turn).as_rotvec()


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """A linear map taken apart: T(p) = R K (p - c) + c + t, with K upper triangular.

    Attributes:
        rotation_degrees: rotation vector of R about x, y, z (LPS); in 2-D the one angle.
        translation: t, where the centre goes, mm along x, y, z (LPS).
        scales: diagonal of K, along x, y, z; the first is negative where the map mirrors.
        shears: xy (xz, yz): how far x moves with y (x with z, y with z), as a fraction of the first one's scale.
    """

    rotation_degrees: tuple[float, ...]
    translation: tuple[float, ...]
    scales: tuple[float, ...]
    shears: tuple[float, ...]

    @property
    def angle(self) -> float:
        """The whole rotation, degrees, at least 0."""
        return float(np.linalg.norm(self.rotation_degrees))

    @property
    def distance(self) -> float:
        """Length of the translation, mm."""
        return float(np.linalg.norm(self.translation))

    def __str__(self) -> str:
        """For a reader: "turns by 12.3 degrees, moves by 4.1 mm, scales by 1.02 x 0.98 x 1"."""
        text = f"turns by {self.angle:.3g} degrees, moves by {self.distance:.3g} mm"
        if max(abs(s - 1) for s in self.scales) > 1e-4:
            text += ", scales by " + " x ".join(f"{s:.4g}" for s in self.scales)
        if max(abs(s) for s in self.shears) > 1e-4:
            text += ", shears by " + ", ".join(f"{s:.3g}" for s in self.shears)
        return text


def decompose(whole: np.ndarray, centre: np.ndarray) -> Decomposition:
    """Take a linear map apart for a reader.

    Args:
        whole: LPS mm, (d + 1) x (d + 1), not singular.
        centre: c, about which it turns and scales, LPS mm.
    """
    d = len(centre)
    turn, upper = np.linalg.qr(whole[:d, :d])
    signs = np.sign(np.diag(upper))
    turn, upper = turn * signs, upper * signs[:, None]
    if np.linalg.det(turn) < 0:
        turn[:, 0] *= -1
        upper[0] *= -1
    scales = np.diag(upper)
    shears = [upper[i, j] / upper[i, i] for i in range(d) for j in range(i + 1, d)]
    moved = whole[:d, :d] @ centre + whole[:d, d] - centre
    return Decomposition(
        tuple(np.degrees(_rotation_vector(turn)).tolist()),
        tuple(moved.tolist()),
        tuple(scales.tolist()),
        tuple(float(s) for s in shears),
    )

"""The linear stages: rigid, similarity and affine maps, from coarse to fine, by Adam on few parameters in mm.

Several starts run side by side as one batch on the coarsest level, where the capture range is widest; the best go on.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ..geometry import Grid
from . import linear
from .adam import Adam
from .conversion import middle
from .criterion import DENSE, Criterion
from .pyramid import coarser, reduced
from .sampling import identity_grid, index_matrix

#: Voxels along the longest axis on each level.
LEVELS = (20, 40, 80)
ITERATIONS = (40, 40, 30)
#: Iterations in which several starts race on the coarsest level, twice.
RACE = 12
#: Rotations about each axis that a rigid search starts from, degrees.
TURNS = (20.0, 45.0)
#: Share of the fixed image's voxels that must meet the moving image for a start to count.
LEAST_OVERLAP = 0.2
#: Improvement of the loss, as a share, below which a level has converged, over this many iterations.
TOLERANCE, PATIENCE = 1e-4, 10

#: told of (level, iteration, loss, share of the stage that is done)
Report = Callable[[int, int, float, float], None]


@dataclasses.dataclass
class Images:
    """A pair, or a batch of moving images beside one fixed image, as the stages see it.

    Attributes:
        fixed: (1, 1, *shape), from 0 to 1.
        moving: (1, 1, *shape), likewise.
        fixed_grid, moving_grid: where they lie.
        fixed_mask, moving_mask: (1, 1, *shape) of 0 and 1 on the same grids, or None.
    """

    fixed: Tensor
    moving: Tensor
    fixed_grid: Grid
    moving_grid: Grid
    fixed_mask: Tensor | None = None
    moving_mask: Tensor | None = None

    def level(self, spacing: float) -> Images:
        """The pair with voxel edges of about `spacing` mm."""
        fixed, moving = (coarser(grid, spacing) for grid in (self.fixed_grid, self.moving_grid))
        return Images(
            reduced(self.fixed, fixed.shape),
            reduced(self.moving, moving.shape),
            fixed,
            moving,
            None if self.fixed_mask is None else reduced(self.fixed_mask, fixed.shape),
            None if self.moving_mask is None else reduced(self.moving_mask, moving.shape),
        )


@dataclasses.dataclass
class Found:
    """A linear map, LPS mm, its loss, and whether the optimisation had to be stopped."""

    matrix: np.ndarray
    loss: float
    diverged: bool = False


def search(
    images: Images,
    kind: str,
    criterion: Criterion,
    start: np.ndarray,
    *,
    several: bool,
    sampling: float = 1.0,
    seed: int = 0,
    report: Report = lambda level, iteration, value, done: None,
) -> Found:
    """The linear map that minimises the criterion.

    Args:
        images: the pair.
        kind: "rigid", "similarity" or "affine".
        criterion: what is minimised.
        start: LPS mm, (d + 1) x (d + 1), fixed to moving points.
        several: race starts turned by :data:`TURNS` on the coarsest level.
        sampling: share of the voxels, drawn anew in every iteration; dense similarities take all.
        seed: of those draws.
        report: told of every iteration.
    """
    extent = max(n * s for n, s in zip(images.fixed_grid.size, images.fixed_grid.spacing, strict=True))
    native = min(images.fixed_grid.spacing)
    steps = sorted({max(extent / n, native) for n in LEVELS}, reverse=True)
    iterations = ITERATIONS[-len(steps) :] if len(steps) < len(ITERATIONS) else ITERATIONS
    starts = [start]
    if several:
        starts += [_turned(start, images.fixed_grid, turn) for turn in _turns(images.fixed_grid.dimension)]
    total = sum(iterations) + 2 * RACE * several
    done = 0
    found = Found(start, math.inf)
    for number, (spacing, most) in enumerate(zip(steps, iterations, strict=True), start=1):
        level = _Level(images.level(spacing), kind, criterion, 1.0 if criterion.name in DENSE else sampling, seed)

        def tell(iteration: int, value: float, done: int = done, number: int = number) -> None:
            report(number, iteration, value, (done + iteration) / total)

        if number == 1 and several:
            first = level.run(starts, RACE, 0.7 * spacing, tell)
            best = sorted(first, key=lambda one: one.loss)[:4]
            second = level.run([one.matrix for one in best], RACE, 0.5 * spacing, tell)
            found = min(second, key=lambda one: one.loss)
            done += 2 * RACE
        result = level.run([found.matrix], most, (0.5 if number == 1 else 0.3) * spacing, tell)[0]
        found = Found(result.matrix, result.loss, found.diverged or result.diverged)
        done += most
    return found


def _turns(dimension: int) -> list[np.ndarray]:
    """Rotation vectors of the starts, radians."""
    angles = [math.radians(sign * turn) for turn in TURNS for sign in (1, -1)]
    if dimension == 2:
        return [np.array([angle]) for angle in angles]
    return [np.eye(3)[axis] * angle for angle, axis in itertools.product(angles, range(3))]


def _turned(start: np.ndarray, grid: Grid, turn: np.ndarray) -> np.ndarray:
    """The start after a rotation about the fixed grid's middle."""
    d = grid.dimension
    parameters = torch.from_numpy(np.concatenate([turn, np.zeros(d)]))[None]
    about = linear.matrix("rigid", parameters, torch.from_numpy(middle(grid)), 1.0)[0].numpy()
    out: np.ndarray = start @ about
    return out


class _Level:
    """One resolution level of one stage."""

    def __init__(self, images: Images, kind: str, criterion: Criterion, sampling: float, seed: int) -> None:
        self.images = images
        self.kind = kind
        self.criterion = criterion
        self.device = images.fixed.device
        self.fixed = criterion.features(images.fixed)
        self.moving = criterion.features(images.moving)
        self.centre = torch.from_numpy(middle(images.fixed_grid))
        self.scale = linear.length_scale(images.fixed_grid)
        self.where = identity_grid(images.fixed_grid.shape, device=self.device).flatten(2)
        self.count = max(500, round(sampling * self.where.shape[2])) if sampling < 1 else 0
        self.generator = torch.Generator().manual_seed(seed)

    def run(
        self, starts: Sequence[np.ndarray], iterations: int, rate: float, report: Callable[[int, float], None]
    ) -> list[Found]:
        """The best map met from each start; they run as one batch."""
        # What the start has beyond `kind`, an affine map before a rigid stage for one, stays as it is.
        given = linear.parameters_of(self.kind, np.stack(starts), self.centre, self.scale)
        nearest = linear.matrix(self.kind, given, self.centre, self.scale)
        rest = torch.linalg.solve(nearest, torch.from_numpy(np.stack(starts)))
        parameters = given.clone().requires_grad_()
        optimizer = Adam(parameters, betas=(0.9, 0.99))
        best = torch.full((len(starts),), math.inf, dtype=torch.float64)
        kept = given.clone()
        history: list[float] = []
        diverged = False
        for iteration in range(iterations):
            whole = linear.matrix(self.kind, parameters, self.centre, self.scale) @ rest
            losses = self._losses(whole)
            now = losses.detach().double().cpu()
            if not torch.isfinite(now).any():
                diverged = True
                break
            better = now < best
            best = torch.where(better, now, best)
            kept[better] = parameters.detach()[better]
            history.append(float(best.min()))
            report(iteration, history[-1])
            if self.count == 0 and iteration >= 2 * PATIENCE and len(starts) == 1:
                if history[-1 - PATIENCE] - history[-1] < TOLERANCE * abs(history[-1]):
                    break
            torch.where(torch.isfinite(losses), losses, torch.zeros_like(losses)).sum().backward()
            parameters.grad.nan_to_num_(0.0)  # type: ignore[union-attr]
            optimizer.step(rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * iteration / iterations))))
        maps = (linear.matrix(self.kind, kept, self.centre, self.scale) @ rest).numpy()
        return [Found(one, float(value), diverged) for one, value in zip(maps, best, strict=True)]

    def _losses(self, maps: Tensor) -> Tensor:
        """The loss of each map, (N,); inf where too little of the images overlaps."""
        to_moving = index_matrix(self.images.fixed_grid, self.images.moving_grid, maps).to(self.device, torch.float32)
        where, fixed = self.where, self.fixed
        fixed_mask = self.images.fixed_mask
        shape: tuple[int, ...] = self.images.fixed_grid.shape
        if self.count:
            chosen = torch.randint(where.shape[2], (self.count,), generator=self.generator).to(self.device)
            where, shape = where[:, :, chosen], (self.count, 1)
            fixed = fixed.flatten(2)[:, :, chosen][..., None]
            fixed_mask = None if fixed_mask is None else fixed_mask.flatten(2)[:, :, chosen][..., None]
        d = where.shape[1]
        places = torch.baddbmm(to_moving[:, :d, d:], to_moving[:, :d, :d], where.expand(len(maps), -1, -1))
        sizes = torch.tensor(self.moving.shape[2:], device=self.device, dtype=torch.float32)[:, None]
        inside = ((places >= -0.5) & (places <= sizes - 0.5)).all(1)
        unit = (places * (2 / (sizes - 1).clamp_min(1)) - 1).flip(1).transpose(1, 2)
        unit = unit[:, :, None] if d == 2 else unit[:, :, None, None]

        def sampled(image: Tensor) -> Tensor:
            found = functional.grid_sample(
                image.expand(len(maps), *[-1] * (d + 1)), unit, padding_mode="border", align_corners=True
            )
            return found.flatten(2).unflatten(2, shape)

        mask = inside.unflatten(1, shape)[:, None].to(fixed.dtype)
        share = mask.flatten(1).mean(1)
        if fixed_mask is not None:
            mask = mask * fixed_mask
        if self.images.moving_mask is not None:
            mask = mask * sampled(self.images.moving_mask)
        losses = self.criterion(fixed, sampled(self.moving), mask)
        return torch.where(share < LEAST_OVERLAP, torch.full_like(losses, math.inf), losses)

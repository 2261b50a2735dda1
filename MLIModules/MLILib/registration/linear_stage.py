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
from .fields import carry
from .pyramid import aligned, coarser, reduced
from .sampling import identity_grid, index_matrix, valid_mask, warp

#: Voxels along the longest axis on each level; the last two are for maps that no deformation follows.
LEVELS = (20, 40, 80, 160)
#: Levels before a deformation, which mends what is finer.
COARSE = 2
ITERATIONS = (40, 40, 30, 25)
#: Most voxels of a level that are looked at; of more, as many are drawn once. Dense similarities take all.
MOST_POINTS = 250_000
#: Iterations in which several starts race on the coarsest level, twice.
RACE = 12
#: Rotations about each axis that a rigid search starts from, degrees.
TURNS = (20.0, 45.0)
#: Parts of a level, as the share of its rate, where descriptors are made along the map that was found so far.
ROUNDS = (1.0, 0.7, 0.5, 0.35)
#: Share of the smaller image that must meet the other for a map to count.
LEAST_OVERLAP = 0.2
#: Weight of the newest loss in the running mean that is judged where each iteration looks at other voxels.
NEWEST = 0.2
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

    @property
    def slice_axis(self) -> int:
        """The axis across the fixed image, x, y or z, where both are single slices of a volume; -1 where not."""
        sizes = self.fixed_grid.size, self.moving_grid.size
        return sizes[0].index(1) if len(sizes[0]) == 3 and all(1 in size for size in sizes) else -1

    def level(self, spacing: float) -> Images:
        """The pair with voxel edges of about `spacing` mm."""
        fixed, moving = (coarser(grid, spacing) for grid in (self.fixed_grid, self.moving_grid))
        return Images(
            _seen(self.fixed, self.fixed_mask, fixed.shape),
            _seen(self.moving, self.moving_mask, moving.shape),
            fixed,
            moving,
            None if self.fixed_mask is None else reduced(self.fixed_mask, fixed.shape),
            None if self.moving_mask is None else reduced(self.moving_mask, moving.shape),
        )

    def along(self, linear: np.ndarray) -> Images:
        """The pair with the moving image on axes and voxels that `linear` makes of the fixed image's.

        Descriptors of both then look the same ways equally far, whatever the order in which the images are stored. The
        pair itself where they nearly do.
        """
        grid = aligned(self.moving_grid, self.fixed_grid, linear)
        if grid is self.moving_grid:
            return self
        matrix = index_matrix(grid, self.moving_grid)
        mask = valid_mask(self.moving.shape[2:], None, matrix.to(self.moving), grid.shape).to(self.moving)
        if self.moving_mask is not None:
            mask = mask * warp(self.moving_mask, None, matrix, grid.shape, padding="zeros")
        moving = warp(self.moving, None, matrix, grid.shape)
        return dataclasses.replace(self, moving=moving, moving_grid=grid, moving_mask=mask)


def _seen(image: Tensor, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """A coarser image in which what lies outside the mask does not smear into what lies inside."""
    plain = reduced(image, shape)
    if mask is None or tuple(shape) == tuple(image.shape[2:]):
        return plain
    inside = reduced(mask, shape)
    return torch.where(inside > 1e-3, reduced(image * mask, shape) / inside.clamp_min(1e-3), plain)


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
    fine: bool = False,
    sampling: float = 1.0,
    seed: int = 0,
    displacement: Tensor | None = None,
    report: Report = lambda level, iteration, value, done: None,
) -> Found:
    """The linear map that minimises the criterion.

    Args:
        images: the pair.
        kind: "rigid", "similarity" or "affine".
        criterion: what is minimised.
        start: LPS mm, (d + 1) x (d + 1), fixed to moving points.
        several: race starts turned by :data:`TURNS` on the coarsest level.
        fine: go down to the last level; with dense similarities and descriptors, which are precise before, to the one
            above it. Else to what a deformation begins from.
        sampling: share of the voxels, at least 500, drawn anew in every iteration; dense similarities take all.
        seed: of those draws.
        displacement: what comes before the linear map, (1, d, *fixed shape) in voxels, or None; it stays as it is.
        report: told of every iteration.
    """
    extent = max(n * s for n, s in zip(images.fixed_grid.size, images.fixed_grid.spacing, strict=True))
    native = min(images.fixed_grid.spacing)
    last = COARSE if not fine else len(LEVELS) - (criterion.name in (*DENSE, "mind"))
    steps = sorted({max(extent / n, native) for n in LEVELS[:last]}, reverse=True)
    iterations = ITERATIONS[last - len(steps) : last]
    starts = [start]
    if several:
        starts += [_turned(start, images.fixed_grid, turn) for turn in _turns(images)]
    total = sum(iterations) + 2 * RACE * several
    done = 0
    found = Found(start, math.inf)
    for number, (spacing, most) in enumerate(zip(steps, iterations, strict=True), start=1):
        part = images.level(spacing)

        def at(linear: np.ndarray, part: Images = part) -> _Level:
            seen = part.along(linear) if criterion.oriented else part
            level = _Level(seen, kind, criterion, 1.0 if criterion.name in DENSE else sampling, seed)
            if displacement is not None:
                level.displace(displacement, images.fixed_grid)
            return level

        def tell(iteration: int, value: float, done: int = done, number: int = number) -> None:
            report(number, iteration, value, (done + iteration) / total)

        if number == 1 and several:
            first = _race(at, starts, criterion.oriented, 0.7 * spacing, tell, 0)
            best = sorted(first, key=lambda one: one.loss)[:4]
            second = _race(at, [one.matrix for one in best], criterion.oriented, 0.5 * spacing, tell, RACE)
            found = min(second, key=lambda one: one.loss)
        before = 2 * RACE if number == 1 and several else 0
        level = at(found.matrix)
        # Descriptors made along a map that is off by some degrees draw the next one towards it: they are made anew.
        rounds = (1.0,) if level.images is part else ROUNDS
        for turn, share in enumerate(rounds):
            level = at(found.matrix) if turn else level
            rate = share * (0.5 if number == 1 else 0.3) * spacing
            begin, end = (most * k // len(rounds) for k in (turn, turn + 1))
            result = level.run([found.matrix], end - begin, rate, tell, before + begin)[0]
            found = Found(result.matrix, result.loss, found.diverged or result.diverged)
        done += before + most
    return found


def _race(
    at: Callable[[np.ndarray], _Level],
    starts: Sequence[np.ndarray],
    alone: bool,
    rate: float,
    report: Callable[[int, float], None],
    before: int,
) -> list[Found]:
    """A short run from each start: as one batch, or each alone with the descriptors that are made for it."""
    groups = [[start] for start in starts] if alone else [list(starts)]
    found: list[Found] = []
    best = math.inf
    for number, group in enumerate(groups):

        def tell(iteration: int, value: float, number: int = number) -> None:
            nonlocal best
            best = min(best, value)
            whole, part = divmod(number * RACE + iteration, len(groups))
            if part == 0:
                report(before + whole, best)

        found += at(group[0]).run(group, RACE, rate, tell)
    return found


def _turns(images: Images) -> list[np.ndarray]:
    """Rotation vectors of the starts, radians; a single slice of a volume turns in its plane only."""
    angles = [math.radians(sign * turn) for turn in TURNS for sign in (1, -1)]
    grid = images.fixed_grid
    if grid.dimension == 2:
        return [np.array([angle]) for angle in angles]
    axes = np.eye(3)
    if images.slice_axis >= 0:
        axes = np.reshape(grid.direction, (3, 3)).T[[images.slice_axis]]
    return [axis * angle for angle, axis in itertools.product(angles, axes)]


def _free(kind: str, dimension: int, across: int) -> Tensor:
    """1 for the parameters of a map that are optimised, 0 for those that would leave the plane of a single slice."""
    d = dimension
    out = torch.ones(linear.count(kind, d), dtype=torch.float64)
    if across < 0:
        return out
    still = torch.arange(d) == across
    out[-d:][still] = 0
    if kind == "affine":
        out[:-d].view(d, d)[still[:, None] | still] = 0
    else:
        out[:d][~still] = 0
    return out


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
        # Parameters count along the fixed image's axes, so that those which leave a slice's plane can be told.
        d = images.fixed_grid.dimension
        self.axes = torch.eye(d + 1, dtype=torch.float64)
        self.axes[:d, :d] = torch.tensor(images.fixed_grid.direction, dtype=torch.float64).view(d, d)
        self.centre = torch.linalg.inv(self.axes[:d, :d]) @ torch.from_numpy(middle(images.fixed_grid))
        self.scale = linear.length_scale(images.fixed_grid)
        self.shape: tuple[int, ...] = images.fixed_grid.shape
        self.free = _free(kind, d, images.slice_axis)
        self.where = identity_grid(self.shape, device=self.device).flatten(2)
        self.fixed_mask = images.fixed_mask
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn: Tensor | None = None
        if self.where.shape[2] > MOST_POINTS and criterion.name not in DENSE:
            drawn = torch.randperm(self.where.shape[2], generator=self.generator)[:MOST_POINTS].to(self.device)
            self.drawn, self.shape = drawn, (MOST_POINTS, 1)
            self.where = self.where[:, :, drawn]
            self.fixed = self.fixed.flatten(2)[:, :, drawn][..., None]
            if self.fixed_mask is not None:
                self.fixed_mask = self.fixed_mask.flatten(2)[:, :, drawn][..., None]
        count = max(500, round(sampling * self.where.shape[2]))
        self.count = count if sampling < 1 and count < self.where.shape[2] else 0
        sizes = [math.prod(grid.size) * math.prod(grid.spacing) for grid in (images.fixed_grid, images.moving_grid)]
        self.least = LEAST_OVERLAP * min(1.0, sizes[1] / sizes[0])

    def displace(self, u: Tensor, grid: Grid) -> None:
        """Let the displacement `u` on `grid` come before the maps."""
        own = self.images.fixed_grid
        there = carry(u, index_matrix(own, grid), own.shape).flatten(2)
        self.where = self.where + (there if self.drawn is None else there[:, :, self.drawn])

    def run(
        self,
        starts: Sequence[np.ndarray],
        iterations: int,
        rate: float,
        report: Callable[[int, float], None],
        before: int = 0,
    ) -> list[Found]:
        """The best map met from each start; they run as one batch, after `before` iterations of this level."""
        # What the start has beyond `kind`, an affine map before a rigid stage for one, stays as it is.
        whole = torch.from_numpy(np.stack(starts))
        back = torch.linalg.inv(self.axes)
        given = linear.parameters_of(self.kind, back @ whole @ self.axes, self.centre, self.scale)
        rest = torch.linalg.solve(self._maps(given), whole)
        parameters = given.clone().requires_grad_()
        optimizer = Adam(parameters, betas=(0.9, 0.99))
        best = torch.full((len(starts),), math.inf, dtype=torch.float64)
        kept = given.clone()
        history: list[float] = []
        mean: Tensor | None = None
        diverged = False
        for iteration in range(iterations):
            losses = self._losses(self._maps(parameters) @ rest)
            now = losses.detach().double().cpu()
            if not torch.isfinite(now).any():
                diverged = True
                break
            if self.count:  # of samples the luckiest is not the best
                now = now if mean is None else torch.where(mean.isfinite(), mean.lerp(now, NEWEST), now)
                mean = now
            better = now < best
            best = torch.where(better, now, best)
            kept[better] = parameters.detach()[better]
            history.append(float(best.min()))
            report(before + iteration, history[-1])
            if self.count == 0 and iteration >= 2 * PATIENCE and len(starts) == 1:
                if history[-1 - PATIENCE] - history[-1] < TOLERANCE * abs(history[-1]):
                    break
            torch.where(torch.isfinite(losses), losses, torch.zeros_like(losses)).sum().backward()
            parameters.grad.nan_to_num_(0.0, 0.0, 0.0).mul_(self.free)  # type: ignore[union-attr]
            optimizer.step(rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * iteration / iterations))))
        maps = (self._maps(kept) @ rest).numpy()
        return [Found(one, float(value), diverged) for one, value in zip(maps, best, strict=True)]

    def _maps(self, parameters: Tensor) -> Tensor:
        """The maps that parameters stand for, LPS mm, (N, d + 1, d + 1)."""
        own = linear.matrix(self.kind, parameters, self.centre, self.scale)
        return self.axes @ own @ torch.linalg.inv(self.axes)

    def _losses(self, maps: Tensor) -> Tensor:
        """The loss of each map, (N,); inf where too little of the images overlaps."""
        to_moving = index_matrix(self.images.fixed_grid, self.images.moving_grid, maps).to(self.device, torch.float32)
        where, fixed = self.where, self.fixed
        fixed_mask, shape = self.fixed_mask, self.shape
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
        return torch.where(share < self.least, torch.full_like(losses, math.inf), losses)

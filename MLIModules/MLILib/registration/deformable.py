"""The deformable stage: a field from coarse to fine, by Adam on control points or by greedy composition.

- ffd: cubic B-spline control points (Rueckert et al., IEEE TMI 1999).
- dense: displacements on a grid of half the resolution.
- svf: stationary velocities on that grid, integrated by scaling and squaring (Arsigny et al., MICCAI 2006; Ashburner,
  NeuroImage 2007).
- greedy: small smooth updates composed one after the other (Christensen et al., IEEE TIP 1996).

Adam on such parameters is instance optimisation as in Siebert, Hansen and Heinrich (ConvexAdam, 2021).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .adam import Adam
from .bspline import control_shape, evaluate, fit
from .criterion import Criterion
from .fields import box, compose, exponential, resize, smooth
from .regularisers import bending_energy, diffusion, jacobian_penalty
from .sampling import Warper

#: Voxels of a level between two control points, an axis: of velocities and displacements, and of splines.
CONTROL, KNOTS = 2, 4
#: Squarings of a velocity field; with the regularisation no step of a level is longer than some voxels.
SQUARINGS = 4
#: Step of Adam, in control voxels, and share of it that is left at the end of a level.
RATE, END_RATE = 0.4, 0.25
#: Weights of the diffusion and of the bending energy at a regularisation of 1.
DIFFUSION, BENDING = 0.3, 0.05
#: Weight of the penalty on Jacobian determinants below 0.1.
FOLDING = 10.0
#: Longest update of greedy composition, voxels, and the smoothing of updates and of the field, voxels.
GREEDY_STEP, GREEDY_UPDATE, GREEDY_FIELD = 0.4, 1.5, 0.5
#: Improvement of the loss, as a share, below which a level has converged, over this many iterations.
TOLERANCE, PATIENCE = 2e-4, 10
#: What an iteration costs beside its voxels, in voxels: measured on a CPU; a guess for GPUs, which take many at once.
OVERHEAD, OVERHEAD_GPU = 10_000, 500_000


@dataclasses.dataclass
class Level:
    """One resolution level.

    Attributes:
        fixed: features, (1 or N, C, *shape).
        moving: features, (N, C, *moving shape).
        matrix: index matrix fixed to moving, (1 or N, d + 1, d + 1).
        spacing: voxel edges of the fixed grid, tensor order, mm.
        mask: (1 or N, 1, *shape) weights, or None.
        moving_mask: (N, 1, *moving shape) weights, or None.
        iterations: most.
    """

    fixed: Tensor
    moving: Tensor
    matrix: Tensor
    spacing: Sequence[float]
    iterations: int
    mask: Tensor | None = None
    moving_mask: Tensor | None = None

    def __post_init__(self) -> None:
        self._warper = Warper(self.shape, self.matrix, self.moving.shape[2:], self.fixed.device)
        # A mask leaves each voxel its weight against the smoothness, which counts everywhere.
        self._share = 1.0 if self.mask is None else float(self.mask.mean())

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.fixed.shape[2:])

    @property
    def batch(self) -> int:
        return max(len(self.fixed), len(self.moving))

    def losses(self, criterion: Criterion, u: Tensor) -> Tensor:
        """The criterion after the displacement `u`, times the share of the voxels in the mask, (N,)."""
        warped = self._warper(self.moving, u)
        mask = self.mask
        if self.moving_mask is not None:
            seen = self._warper(self.moving_mask, u.detach(), padding="zeros")
            mask = seen if mask is None else seen * mask
        return self._share * criterion(self.fixed, warped, mask)


@dataclasses.dataclass
class Outcome:
    """A displacement (N, d, *shape) in voxels of the finest level, and of how many pairs it had to be stopped."""

    u: Tensor
    diverged: int


#: told of (level, iteration, mean loss)
Report = Callable[[int, int, float], None]


def optimise(
    levels: Sequence[Level], criterion: Criterion, deformation: str, regularisation: float, report: Report
) -> Outcome:
    """The field that brings the moving features onto the fixed ones.

    The pairs of a batch share the loop, and end together; each keeps its own best, and what diverges does not disturb
    the others.

    Args:
        levels: from coarse to fine, of one region.
        criterion: what is minimised on each.
        deformation: "ffd", "dense", "svf" or "greedy".
        regularisation: weight of the smoothness; 0 is none.
        report: told of every iteration; level 1 is the coarsest.
    """
    run = _greedy if deformation == "greedy" else _adam
    state: Tensor | None = None
    diverged = torch.zeros(levels[0].batch, dtype=torch.bool)
    u = levels[0].fixed.new_zeros(levels[0].batch, len(levels[0].shape), *levels[0].shape)
    for number, level in enumerate(levels, start=1):
        u, state, failed = run(level, criterion, deformation, regularisation, state, number, report)
        diverged |= failed
    return Outcome(u.detach(), int(diverged.sum()))


def share(levels: Sequence[Level], number: int, iteration: int) -> float:
    """How much of the work is done before an iteration, from 0 to 1, as a report of :func:`optimise` has it.

    Each iteration counts by its voxels and by what it costs beside them, which is most of it on coarse levels.
    """
    overhead = OVERHEAD if levels[0].fixed.device.type == "cpu" else OVERHEAD_GPU
    costs = [one.iterations * (one.batch * math.prod(one.shape) + overhead) for one in levels]
    done = sum(costs[: number - 1]) + costs[number - 1] * iteration / max(1, levels[number - 1].iterations)
    return done / max(1, sum(costs))


class _Parameters:
    """How the parameters of a deformation become a displacement on a level's grid."""

    def __init__(self, deformation: str, shape: tuple[int, ...]) -> None:
        self.deformation = deformation
        self.shape = shape
        self.step = KNOTS if deformation == "ffd" else CONTROL
        self.knots = [float(self.step)] * len(shape)

    def start(self, state: Tensor | None, batch: int, like: Tensor) -> Tensor:
        """The parameters that make the field of the level before, on this level's control grid."""
        if self.deformation == "ffd":
            if state is None:
                return like.new_zeros(batch, len(self.shape), *control_shape(self.shape, self.knots))
            return fit(resize(state, self.shape), self.knots)
        control = tuple(max(2, (n - 1) // self.step + 1) for n in self.shape)
        return like.new_zeros(batch, len(control), *control) if state is None else resize(state, control)

    def smoothed(self, parameters: Tensor) -> Tensor:
        """Neighbours move together: a box of three control points; splines are smooth as they are."""
        return parameters if self.deformation == "ffd" else box(parameters)

    def displacement(self, smoothed: Tensor) -> Tensor:
        """(N, d, *shape), voxels of the level."""
        if self.deformation == "ffd":
            # A single slice is deformed in its plane; with the others that comes of itself.
            inside = smoothed.new_tensor([float(n > 1) for n in self.shape]).view(-1, *[1] * len(self.shape))
            return evaluate(smoothed * inside, self.shape, self.knots)
        return resize(exponential(smoothed, SQUARINGS) if self.deformation == "svf" else smoothed, self.shape)

    def roughness(self, smoothed: Tensor, spacing: Sequence[float]) -> Tensor:
        """Diffusion and bending energy of the control points, (N,).

        In control voxels, whose edge halves from level to level as the structures do that a level shows; differences
        count in mm a mm, so that a field is as rough on long voxels as on cubes. Splines and displacements may fold,
        and pay for it; velocities cannot.
        """
        control = smoothed / self.step if self.deformation == "ffd" else smoothed
        relative = [s / min(spacing) for s in spacing]
        out = DIFFUSION * diffusion(control, relative) + BENDING * bending_energy(control, relative)
        return out if self.deformation == "svf" else out + FOLDING * jacobian_penalty(control, 0.1)


def _adam(
    level: Level,
    criterion: Criterion,
    deformation: str,
    regularisation: float,
    state: Tensor | None,
    number: int,
    report: Report,
) -> tuple[Tensor, Tensor, Tensor]:
    how = _Parameters(deformation, level.shape)
    parameters = how.start(state, level.batch, level.fixed).requires_grad_()
    rate = RATE * (CONTROL if deformation == "ffd" else 1)  # splines' coefficients are in voxels
    optimizer = Adam(parameters)
    best = _Best(parameters.detach())
    for iteration in range(level.iterations):
        smoothed = how.smoothed(parameters)
        losses = level.losses(criterion, how.displacement(smoothed))
        if regularisation > 0:
            losses = losses + regularisation * how.roughness(smoothed, level.spacing)
        if not best.meet(parameters.detach(), losses):
            break
        report(number, iteration, best.history[-1])
        if _converged(best.history):
            break
        losses.sum().backward()
        parameters.grad.nan_to_num_(0.0, 0.0, 0.0)  # type: ignore[union-attr]  # what diverged stays where it is
        gone = iteration / max(1, level.iterations - 1)
        optimizer.step(rate * (END_RATE + (1 - END_RATE) * 0.5 * (1 + math.cos(math.pi * gone))))
    with torch.no_grad():
        u = how.displacement(how.smoothed(best.kept))
        return u, u if deformation == "ffd" else best.kept, best.diverged


def _greedy(
    level: Level,
    criterion: Criterion,
    deformation: str,
    regularisation: float,
    state: Tensor | None,
    number: int,
    report: Report,
) -> tuple[Tensor, Tensor, Tensor]:
    start = level.fixed.new_zeros(level.batch, len(level.shape), *level.shape)
    u = start if state is None else resize(state, level.shape)
    best = _Best(u)
    axes = tuple(range(1, u.ndim))
    update, field = (sigma * math.sqrt(max(regularisation, 1e-3)) for sigma in (GREEDY_UPDATE, GREEDY_FIELD))
    for iteration in range(level.iterations):
        u = u.detach().requires_grad_()
        losses = level.losses(criterion, u)
        if not best.meet(u.detach(), losses):
            break
        report(number, iteration, best.history[-1])
        if _converged(best.history):
            break
        (gradient,) = torch.autograd.grad(losses.sum(), u)
        step = smooth(-gradient.nan_to_num(0.0, 0.0, 0.0), update)  # what diverged stays where it is
        longest = step.square().sum(1, keepdim=True).sqrt().amax(axes, keepdim=True).clamp_min(1e-20)
        step = step * (GREEDY_STEP / longest)
        # id + step is a diffeomorphism, being short and smooth, and so is what it is composed into.
        u = smooth(compose(step, u.detach()), field)
    return best.kept, best.kept, best.diverged


class _Best:
    """What each pair of a batch did best with on a level.

    Attributes:
        kept: the parameters, (N, ...).
        diverged: pairs whose loss was no number, (N,), bool.
        history: mean loss of the others, iteration by iteration.
    """

    def __init__(self, start: Tensor) -> None:
        self.kept = start.clone()
        self.diverged = torch.zeros(len(start), dtype=torch.bool)
        self.history: list[float] = []
        self._least = torch.full((len(start),), math.inf)

    def meet(self, parameters: Tensor, losses: Tensor) -> bool:
        """Note the losses (N,) of `parameters`; False where none is a number, and there is nothing to go on with."""
        now = losses.detach().float().cpu()
        self.diverged |= ~now.isfinite()
        if self.diverged.all():
            return False
        self.history.append(float(now[~self.diverged].mean()))
        better = ~self.diverged & (now < self._least)
        self._least = torch.where(better, now, self._least)
        shown = better.to(self.kept.device).view(-1, *[1] * (self.kept.ndim - 1))
        self.kept = torch.where(shown, parameters, self.kept)
        return True


def _converged(history: Sequence[float]) -> bool:
    """Whether the last iterations have no longer improved on those before them."""
    if len(history) <= 2 * PATIENCE:
        return False
    return min(history[:-PATIENCE]) - min(history[-PATIENCE:]) < TOLERANCE * abs(history[-1])

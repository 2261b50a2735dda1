"""Registration in memory: images in, transform out.

Example, in a script::

    result = register(fixed, moving, preset="deformable")
    warped = sitk.Resample(moving, fixed, result.transform)
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from .. import device as devices
from .. import images as image_files
from ..errors import BadInput, MLIError
from ..geometry import Grid, to_zyx
from ..progress import Progress
from . import convex, deformable, linear_stage
from .comparison import require_same_dimension
from .conversion import from_sitk, read_transform, to_sitk
from .criterion import Criterion, matched, normalised
from .fields import carry, compose
from .inverse import inverse_transform
from .linear_stage import Images
from .placement import centred
from .presets import PRESETS, Preset
from .pyramid import coarser, finest_spacing, reduced, spacings
from .requests import INITS, STAGES
from .sampling import index_matrix, valid_mask, warp

#: Voxels of the finest level of the deformable stage where the preset leaves it open, and of the inverse's grid.
MOST_VOXELS = 1_000_000
#: Voxels times iterations of a level on a CPU, where the preset's iterations are taken.
WORK = 16_000_000
LEVELS = 3
_TITLES = {"rigid": "Rigid", "similarity": "Similarity", "affine": "Affine", "deformable": "Deformable"}


@dataclasses.dataclass
class Registration:
    """A registration's result.

    Attributes:
        transform: fixed to moving points, LPS mm; what sitk.Resample(moving, fixed, transform) takes.
        linear: its linear part A, LPS mm, (d + 1) x (d + 1).
        displacement: its displacement D, (1, d, z, y, x) in voxels of the fixed grid, which acts first; or None.
        grid: of the fixed image.
        curve: what was minimised, one dict an iteration: stage, level, iteration, value.
        warnings: sentences about what went otherwise than asked.
        device: where it was computed, in words.
        seconds: how long it took.
    """

    transform: sitk.Transform
    linear: np.ndarray
    displacement: Tensor | None
    grid: Grid
    curve: list[dict[str, Any]]
    warnings: list[str]
    device: str
    seconds: float

    @functools.cached_property
    def inverse(self) -> sitk.Transform:
        """Moving to fixed points, LPS mm; found when it is asked for."""
        return inverse_transform(self.linear, self.displacement, self.grid, most=MOST_VOXELS).transform


def register(
    fixed: sitk.Image,
    moving: sitk.Image,
    *,
    preset: str = "deformable",
    stages: Sequence[str] = (),
    model: str | None = None,
    refine: bool = False,
    similarity: str = "",
    deformation: str = "",
    regularisation: float = -1.0,
    iterations: int = -1,
    resolution: float = -1.0,
    sampling: float = 1.0,
    init: str | sitk.Transform = "geometry",
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    device: str = "auto",
    seed: int = 0,
    trust: Sequence[str] = (),
    progress: Progress | None = None,
) -> Registration:
    """Find the transform that brings a moving image onto a fixed one.

    Args:
        fixed: scalar image, 2-D or 3-D.
        moving: scalar image of the same dimension, on any grid.
        preset: one of :data:`MLILib.registration.presets.PRESETS`; settings at their default are taken from it.
        stages: "rigid", "similarity", "affine", "deformable" in this order.
        model: name, folder or zip of a registration bundle, in place of the stages.
        refine: after the model, go on with the deformable stage.
        similarity: one of :data:`MLILib.registration.requests.SIMILARITIES`.
        deformation: "ffd", "dense", "svf" or "greedy".
        regularisation: weight of the deformation's smoothness.
        iterations: most on each level of the deformable stage.
        resolution: voxel edge of its finest level, mm; 0 is the fixed image's own.
        sampling: share of the voxels that each linear iteration looks at.
        init: "geometry", "moments", "none", a transform, or the file of one.
        fixed_mask, moving_mask: label images on their image's grid; only voxels other than 0 are compared.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        seed: of the random samples.
        trust: sha256 of bundles whose configuration may name any callable.
        progress: told of stages, fractions and the curve.

    Raises:
        BadInput: images of different dimension, constant, or that do not overlap; an unknown setting.
    """
    started = time.monotonic()
    progress = progress or Progress()
    wanted = _wanted(preset, stages, similarity, deformation, regularisation, iterations, resolution)
    _check(fixed, moving)
    target = devices.resolve(device)
    job = _Job(fixed, moving, fixed_mask, moving_mask, wanted, target, progress)
    job.work = WORK if iterations < 0 and target.type == "cpu" else 0
    linear, start = job.begin(init)
    if model is not None:
        from . import learned

        progress.stage("Applying the model")
        predicted = learned.predict(fixed, moving, model, device=device, trust=trust)
        linear, start = predicted.linear, predicted.displacement
    elif set(wanted.stages) & set(STAGES[:-1]):
        linear = job.run_linear(linear, sampling, seed)
    u: Tensor | None = start
    if "deformable" in wanted.stages and (model is None or refine):
        u = job.run_deformable(linear, start)
    grid = Grid.of(fixed)
    return Registration(
        transform=to_sitk(linear, u, grid),
        linear=linear,
        displacement=None if u is None else u.cpu(),
        grid=grid,
        curve=job.curve,
        warnings=job.warnings,
        device=devices.describe(target),
        seconds=time.monotonic() - started,
    )


def _wanted(
    name: str,
    stages: Sequence[str],
    similarity: str,
    deformation: str,
    regularisation: float,
    iterations: int,
    resolution: float,
) -> Preset:
    """The preset with what was given in its place."""
    if name not in PRESETS:
        raise BadInput(f"There is no preset {name!r}.", "", f"Choose one of: {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise BadInput(f"There is no stage {unknown[0]!r}.", "", f"Choose from: {', '.join(STAGES)}.")
    return dataclasses.replace(
        preset,
        stages=tuple(stages) or preset.stages,
        similarity=similarity or preset.similarity,
        linear_similarity=similarity or preset.linear_similarity,
        deformation=deformation or preset.deformation,
        regularisation=preset.regularisation if regularisation < 0 else regularisation,
        iterations=preset.iterations if iterations < 0 else iterations,
        resolution=preset.resolution if resolution < 0 else resolution,
    )


def _check(fixed: sitk.Image, moving: sitk.Image) -> None:
    for image, name in ((fixed, "The fixed image"), (moving, "The moving image")):
        image_files.check(image, name)
    require_same_dimension(fixed, moving)


class _Job:
    """One registration under way."""

    def __init__(
        self,
        fixed: sitk.Image,
        moving: sitk.Image,
        fixed_mask: sitk.Image | None,
        moving_mask: sitk.Image | None,
        wanted: Preset,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.wanted = wanted
        self.progress = progress
        self.curve: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.work = 0  # voxels times iterations of a level; 0 is without limit
        pictures = [normalised(to_zyx(image).to(device)[None]) for image in (fixed, moving)]
        masks = [
            None if mask is None else (to_zyx(mask).to(device)[None] != 0).float() for mask in (fixed_mask, moving_mask)
        ]
        self.images = Images(pictures[0], pictures[1], Grid.of(fixed), Grid.of(moving), masks[0], masks[1])

    def begin(self, init: str | sitk.Transform) -> tuple[np.ndarray, Tensor | None]:
        """The linear map, LPS mm, and the displacement to start from.

        Raises:
            BadInput: no such start, or the images do not overlap with it.
        """
        grid, moving_grid = self.images.fixed_grid, self.images.moving_grid
        linear, u = np.eye(grid.dimension + 1), None
        if isinstance(init, sitk.Transform):
            linear, u = from_sitk(init, grid)
        elif init == "geometry":
            linear = centred(grid, moving_grid)
        elif init == "moments":
            linear[:-1, -1] = _mass_centre(self.images.moving, moving_grid) - _mass_centre(self.images.fixed, grid)
        elif init not in INITS:
            linear, u = from_sitk(read_transform(init, grid.dimension), grid)
        u = None if u is None else u.to(self.images.fixed.device)
        if not valid_mask(self.images.moving.shape[2:], u, index_matrix(grid, moving_grid, linear), grid.shape).any():
            raise BadInput(
                "The images do not overlap.",
                f"With the start {init if isinstance(init, str) else 'given'!r} no voxel of one lies in the other.",
                "Start with geometry, which puts their centres onto each other.",
            )
        return linear, u

    def run_linear(self, start: np.ndarray, sampling: float, seed: int) -> np.ndarray:
        """The linear stages one after the other."""
        criterion = Criterion(self.wanted.linear_similarity)
        linear = start
        for stage in [s for s in self.wanted.stages if s != "deformable"]:
            title = _TITLES[stage]
            self.progress.stage(title)

            def report(level: int, iteration: int, value: float, done: float, title: str = title) -> None:
                self.progress.fraction(done)
                self._point(title, level, iteration, value)

            found = linear_stage.search(
                self.images,
                stage,
                criterion,
                linear,
                several=stage != "affine",
                sampling=sampling,
                seed=seed,
                report=report,
            )
            if found.diverged:
                self._diverged(title)
            linear = found.matrix
        return linear

    def run_deformable(self, linear: np.ndarray, start: Tensor | None) -> Tensor:
        """The displacement on the fixed grid, in its voxels."""
        self.progress.stage(_TITLES["deformable"])
        wanted, grid = self.wanted, self.images.fixed_grid
        native = min(grid.spacing)
        finest = {0.0: native, -1.0: finest_spacing(grid, MOST_VOXELS)}.get(wanted.resolution, wanted.resolution)
        steps = spacings(grid, max(finest, native), LEVELS)
        images = self.images
        if wanted.similarity in ("ssd", "sad", "ssd+lncc"):
            images = dataclasses.replace(images, moving=self._matched(linear, start))
        criterion = Criterion(wanted.similarity)
        if wanted.global_search:
            self.progress.message("Searching large displacements")
            found = convex.search(images, linear, start)
            start = found if start is None else compose(found, start)
        levels = [self._level(images, criterion, linear, start, step) for step in steps]

        def report(level: int, iteration: int, value: float) -> None:
            self.progress.fraction(_share(levels, level, iteration))
            self._point(_TITLES["deformable"], level, iteration, value)

        outcome = deformable.optimise(levels, criterion, wanted.deformation, wanted.regularisation, report)
        if outcome.diverged:
            self._diverged(_TITLES["deformable"])
        coarse = coarser(grid, steps[-1])
        u = outcome.u
        if coarse.size != grid.size:
            u = carry(u, index_matrix(grid, coarse), grid.shape)
        return u if start is None else compose(u, start)

    def _level(
        self, images: Images, criterion: Criterion, linear: np.ndarray, start: Tensor | None, step: float
    ) -> deformable.Level:
        """One resolution level; what a start displaces is resampled onto the fixed grid first."""
        part = images.level(step)
        iterations = self.wanted.iterations
        if self.work:
            iterations = min(iterations, max(10, self.work // part.fixed.numel()))
        moving, moving_grid, moving_mask, matrix = part.moving, part.moving_grid, part.moving_mask, linear
        if start is not None:
            u = carry(start, index_matrix(part.fixed_grid, images.fixed_grid), part.fixed_grid.shape)
            to_moving = index_matrix(part.fixed_grid, part.moving_grid, linear)
            moving = warp(moving, u, to_moving)
            moving_mask = None if moving_mask is None else warp(moving_mask, u, to_moving, padding="zeros")
            moving_grid, matrix = part.fixed_grid, np.eye(len(linear))
        return deformable.Level(
            fixed=criterion.features(part.fixed),
            moving=criterion.features(moving),
            matrix=index_matrix(part.fixed_grid, moving_grid, matrix),
            spacing=part.fixed_grid.spacing[::-1],
            iterations=iterations,
            mask=part.fixed_mask,
            moving_mask=moving_mask,
        )

    def _matched(self, linear: np.ndarray, start: Tensor | None) -> Tensor:
        """The moving image with the fixed one's intensities, from the voxels that both show."""
        grid = coarser(self.images.fixed_grid, finest_spacing(self.images.fixed_grid, 200_000))
        fixed = reduced(self.images.fixed, grid.shape)
        u = None if start is None else carry(start, index_matrix(grid, self.images.fixed_grid), grid.shape)
        matrix = index_matrix(grid, self.images.moving_grid, linear)
        seen = warp(self.images.moving, u, matrix, grid.shape)
        inside = valid_mask(self.images.moving.shape[2:], u, matrix.to(seen), grid.shape).to(seen.device)
        return matched(self.images.moving, seen, fixed, inside)

    def _point(self, stage: str, level: int, iteration: int, value: float) -> None:
        self.curve.append({"stage": stage, "level": level, "iteration": iteration, "value": value})
        self.progress.curve(stage, level, iteration, value)

    def _diverged(self, title: str) -> None:
        self.warnings.append(
            f"The stage {title.lower()} diverged and was stopped; the best result until then was kept."
        )


def _share(levels: Sequence[deformable.Level], level: int, iteration: int) -> float:
    """How much of the work is done, each iteration counted by its voxels."""
    costs = [one.iterations * one.fixed[0, 0].numel() for one in levels]
    done = sum(costs[: level - 1]) + costs[level - 1] * iteration / max(1, levels[level - 1].iterations)
    return done / max(1, sum(costs))


def _mass_centre(image: Tensor, grid: Grid) -> np.ndarray:
    """Centre of mass of intensities, LPS mm."""
    d = grid.dimension
    weights = image[0, 0].double()
    total = weights.sum()
    if float(total) <= 0:
        raise MLIError("An image has no mass.", "All its voxels have its lowest intensity.", "Start with geometry.")
    index = np.empty(d)
    for axis in range(d):
        others = tuple(a for a in range(d) if a != axis)
        along = weights.sum(others) if others else weights
        place = torch.arange(len(along), dtype=torch.float64, device=along.device)
        index[axis] = float((along * place).sum() / total)
    out: np.ndarray = grid.matrix()[:d, :d] @ index[::-1] + grid.matrix()[:d, d]
    return out

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
from ..geometry import Grid, same_grid, to_zyx
from ..progress import Progress
from . import convex, deformable, linear_stage
from .comparison import require_same_dimension
from .conversion import from_sitk, read_transform, to_sitk
from .criterion import DENSE, Criterion, matched, normalised
from .fields import carry, compose
from .inverse import inverse_transform
from .linear_stage import Images
from .placement import centred
from .presets import PRESETS, Preset
from .pyramid import coarser, finest_spacing, reduced, spacings
from .requests import DEFORMATIONS, INITS, SIMILARITIES, STAGES
from .sampling import index_matrix, valid_mask, warp

#: Voxels of the finest level of the deformable stage where the preset leaves it open, and of the inverse's grid.
MOST_VOXELS = 1_000_000
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
        BadInput: images of different dimension, constant, or that do not overlap; a mask that is empty or on another
            grid; an unknown setting.
        MLIError: it diverged, and nothing was better than the start.
    """
    started = time.monotonic()
    progress = progress or Progress()
    wanted = _wanted(preset, stages, similarity, deformation, regularisation, iterations, resolution)
    _check(fixed, moving, fixed_mask, moving_mask)
    if not 0 < sampling <= 1:
        raise BadInput(f"{sampling:g} is no share of the voxels.", "", "Give a sampling above 0 and at most 1.")
    target = devices.resolve(device)
    job = _Job(fixed, moving, fixed_mask, moving_mask, wanted, target, progress)
    job.work = wanted.work if iterations < 0 and target.type == "cpu" else 0
    linear, start = job.begin(init)
    if model is not None:
        from . import learned

        if start is not None:
            raise BadInput(
                "A model cannot start from a displacement field.", "", "Give a linear transform as the start."
            )
        progress.stage("Applying the model")
        predicted = learned.predict(fixed, moving, model, linear=linear, device=device, trust=trust)
        job.warnings += predicted.warnings
        linear, start = predicted.linear, predicted.displacement
        start = None if start is None else start.to(target)
    elif set(wanted.stages) & set(STAGES[:-1]):
        linear = job.run_linear(linear, start, sampling, seed)
    u: Tensor | None = start
    if "deformable" in wanted.stages and (model is None or refine):
        u = job.run_deformable(linear, start)
    if model is None:
        job.require_better()
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
    for what, value, known in (("similarity", similarity, SIMILARITIES), ("deformation", deformation, DEFORMATIONS)):
        if value and value not in known:
            raise BadInput(f"There is no {what} {value!r}.", "", f"Choose from: {', '.join(known)}.")
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


def _check(
    fixed: sitk.Image, moving: sitk.Image, fixed_mask: sitk.Image | None, moving_mask: sitk.Image | None
) -> None:
    require_same_dimension(fixed, moving)
    for image, mask, name in ((fixed, fixed_mask, "fixed"), (moving, moving_mask, "moving")):
        image_files.check(image, f"The {name} image")
        if mask is None:
            continue
        if not same_grid(mask, image):
            raise BadInput(
                f"The {name} mask does not lie on the grid of the {name} image.", "", "Resample it to that grid."
            )
        if not sitk.GetArrayViewFromImage(mask).any():
            raise BadInput(f"The {name} mask is empty.", "No voxel of it is other than 0.", "Draw it, or leave it out.")


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
        self.failed: list[str] = []
        self.work = 0  # voxels times iterations of a level; 0 is without limit
        masks = [
            None if mask is None else (to_zyx(mask).to(device)[None] != 0).float() for mask in (fixed_mask, moving_mask)
        ]
        pictures = [
            normalised(to_zyx(image).to(device)[None], mask) for image, mask in zip((fixed, moving), masks, strict=True)
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
            if init.GetDimension() != grid.dimension:
                raise BadInput(
                    f"The transform to start from is {init.GetDimension()}-D and the images {grid.dimension}-D.",
                    "",
                    "Give one of the images' dimension.",
                )
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

    def run_linear(self, start: np.ndarray, u: Tensor | None, sampling: float, seed: int) -> np.ndarray:
        """The linear stages one after the other, behind a displacement that stays as it is.

        Raises:
            BadInput: a map that mirrors as the start of a stage that cannot.
        """
        criterion = Criterion(self.wanted.linear_similarity)
        linear = start
        if sampling < 1 and criterion.name in DENSE:
            self.warnings.append(f"All voxels were looked at: {criterion.name} compares each with its neighbours.")
        for stage in [s for s in self.wanted.stages if s != "deformable"]:
            title = _TITLES[stage]
            if stage != "affine" and np.linalg.det(linear[:-1, :-1]) <= 0:
                raise BadInput(
                    "The transform to start from mirrors the image.",
                    f"No {stage} transform does.",
                    "Start with geometry, or with the stage affine.",
                )
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
                fine="deformable" not in self.wanted.stages,
                sampling=sampling,
                seed=seed,
                displacement=u,
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
            self.progress.fraction(deformable.share(levels, level, iteration))
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
        if criterion.oriented and start is None:
            part = part.along(linear)
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
        inside = valid_mask(self.images.moving.shape[2:], u, matrix.to(seen), grid.shape)
        if self.images.fixed_mask is not None:
            inside &= reduced(self.images.fixed_mask, grid.shape) > 0.5
        if self.images.moving_mask is not None:
            inside &= warp(self.images.moving_mask, u, matrix, grid.shape, padding="zeros") > 0.5
        return matched(self.images.moving, seen, fixed, inside)

    def _point(self, stage: str, level: int, iteration: int, value: float) -> None:
        self.curve.append({"stage": stage, "level": level, "iteration": iteration, "value": value})
        self.progress.curve(stage, level, iteration, value)

    def require_better(self) -> None:
        """Raise :class:`MLIError` where a stage diverged and none has come to anything better than its start."""
        first: dict[tuple[str, int], float] = {}
        for row in self.curve:
            if row["value"] < first.setdefault((row["stage"], row["level"]), row["value"]):
                return
        if self.failed:
            raise MLIError(
                "The registration found nothing better than its start.",
                f"The stage {self.failed[0].lower()} diverged: too little of the images or masks overlaps, or a "
                "setting is out of proportion.",
                "Start with geometry, or take another similarity or regularisation.",
            )

    def _diverged(self, title: str) -> None:
        self.failed.append(title)
        self.warnings.append(
            f"The stage {title.lower()} diverged and was stopped; the best result until then was kept."
        )


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

"""An unbiased average of images: each is registered to their average, which moves to the middle of the group, again.

Rigid, then affine, then deformable rounds. The average starts as that of the images centre on centre and favours none
of them (Guimond et al., CVIU 2000; Joshi et al., NeuroImage 2004; Avants et al., NeuroImage 2010): after every round
the mean of the transforms is taken out of them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as functional
from torch import Tensor

from .. import device as devices
from .. import images as image_files
from ..errors import BadInput
from ..geometry import Grid, from_zyx, to_zyx
from ..progress import Progress
from . import deformable, linear_stage
from .comparison import require_same_dimension
from .conversion import to_sitk
from .criterion import Criterion, matched
from .fields import carry
from .intensity import correlation
from .jacobian import determinant, statistics
from .linear_stage import Images
from .midpoint import common_grid, remove_displacement, remove_linear
from .pairwise import LEVELS, MOST_VOXELS
from .placement import centred
from .presets import PRESETS
from .pyramid import coarser, finest_spacing, spacings
from .requests import SIMILARITIES
from .sampling import index_matrix, valid_mask, warp
from .sharpness import sharpness

#: Rounds of the linear stages. The first finds the images, the second is relative to an average that shows something.
LINEAR_ROUNDS = {"rigid": 2, "affine": 2}
#: What the linear stages maximise where nothing else is asked: images of one kind, and a blurred average at first.
LINEAR_SIMILARITY = "cc"
#: Share of an image's darkest and brightest voxels that its intensity window leaves out.
CLIPPED = 0.005
#: Correlation with the template below which an image is said to show something else.
ALIKE = 0.5
#: Voxels of the finest level that are optimised at once: small images side by side, large ones in turn.
AT_ONCE, AT_ONCE_GPU = 500_000, 8_000_000


@dataclasses.dataclass
class Template:
    """An average image and how each image relates to it.

    Attributes:
        image: float32, in intensities as those of the images are on average.
        linear: linear parts A of the transforms, LPS mm, in the order of the images.
        displacements: their D, (1, d, *shape) in voxels of `field_grid`; None without deformable rounds.
        field_grid: of the displacements: the template's own, or a coarser one of the same region.
        grid: of the template.
        first: the average before any registration, images centre on centre, on the same grid.
        rounds: a row a round: round (0 is the average before any registration), stage, sharpness (mean gradient
            magnitude where all images are, 1/mm, of intensities from 0 to 1), laplacian_variance (1/mm^4), removed_mm
            and residual_mm (the mean displacement to the images that was found and taken out, and what is left of it)
            and change (root mean square difference to the template of the round before).
        images: a row an image: correlation with the template, and folded (share of folded voxels).
        shown: number of images that lie in the region in which all this is measured.
        warnings: sentences about what went otherwise than expected.
        device: where it was computed, in words.
        seconds: how long it took.
    """

    image: sitk.Image
    linear: list[np.ndarray]
    displacements: list[Tensor] | None
    field_grid: Grid
    grid: Grid
    first: sitk.Image
    rounds: list[dict[str, Any]]
    images: list[dict[str, Any]]
    shown: int
    warnings: list[str]
    device: str
    seconds: float

    def transform(self, number: int) -> sitk.Transform:
        """Template to image points, LPS mm: T(p) = A(p + D(p)) of the image `number`, from 0.

        It is made when it is asked for: SimpleITK's vectors take twice the memory of ours.
        """
        u = None if self.displacements is None else self.displacements[number]
        return to_sitk(self.linear[number], u, self.grid if u is None else self.field_grid)

    @property
    def transforms(self) -> list[sitk.Transform]:
        """The transforms of all images, in their order."""
        return [self.transform(number) for number in range(len(self.linear))]


def average(
    images: Sequence[sitk.Image],
    *,
    iterations: int = 4,
    similarity: str = "",
    spacing: float = 0.0,
    device: str = "auto",
    seed: int = 0,
    names: Sequence[str] = (),
    progress: Progress | None = None,
) -> Template:
    """Average images into a template in the middle of them. Their order does not matter.

    Args:
        images: two or more scalar images of one dimension and one kind, on any grids.
        iterations: rounds of deformable registration, after those of :data:`LINEAR_ROUNDS`; 0 leaves it at affine maps.
        similarity: one of :data:`MLILib.registration.requests.SIMILARITIES`; "" is :data:`LINEAR_SIMILARITY`, then
            that of the preset "deformable".
        spacing: voxel edge of the template, mm; 0 is the images' median along each axis.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        seed: of random samples.
        names: what to call the images in sentences.
        progress: told of stages, fractions and the sharpness of each round.

    Raises:
        BadInput: fewer than two images, 2-D with 3-D ones, a constant image, an unknown setting.
        MLIError: images that have no middle, for one is mirrored or upside down.
    """
    started = time.monotonic()
    names = list(names) or [f"Image {number}" for number in range(1, len(images) + 1)]
    if len(images) < 2:
        raise BadInput("One image makes no average.", "", "Give two or more images.")
    if similarity and similarity not in SIMILARITIES:
        raise BadInput(f"There is no similarity {similarity!r}.", "", f"Choose one of: {', '.join(SIMILARITIES)}.")
    for image, name in zip(images, names, strict=True):
        image_files.check(image, name)
        require_same_dimension(images[0], image, (names[0], name))
    target = devices.resolve(device)
    group = _Group(images, spacing, similarity, target, seed, progress or Progress())
    group.measure("start", 0.0, 0.0)
    first = group.template
    for stage, count in LINEAR_ROUNDS.items():
        for number in range(1, count + 1):
            group.linear_round(stage, number, count)
    for number in range(1, iterations + 1):
        group.deformable_round(number, iterations)
    rows, warnings = group.verdict(names)
    moved = group.fields
    return Template(
        image=group.picture(group.template),
        linear=group.linear,
        displacements=None if moved is None else [u.cpu() for u in moved],
        field_grid=group.field_grid,
        grid=group.grid,
        first=group.picture(first),
        rounds=group.rounds,
        images=rows,
        shown=int(group.weight.max()),
        warnings=warnings,
        device=devices.describe(target),
        seconds=time.monotonic() - started,
    )


class _Group:
    """Images, their transforms and their average, under way."""

    def __init__(
        self,
        images: Sequence[sitk.Image],
        spacing: float,
        similarity: str,
        device: torch.device,
        seed: int,
        progress: Progress,
    ) -> None:
        self.preset = PRESETS["deformable"]
        self.linear_criterion = Criterion(similarity or LINEAR_SIMILARITY)
        self.criterion = Criterion(similarity or self.preset.similarity)
        self.device, self.seed, self.progress = device, seed, progress
        self.grids = [Grid.of(image) for image in images]
        self.grid = common_grid(self.grids, spacing)
        # Grids whose middle is that of the group, so that the template of translated images is at their mean place.
        self.linear = [centred(self.grid, grid) for grid in self.grids]
        self.fields: list[Tensor] | None = None
        native = min(self.grid.spacing)
        self.steps = spacings(self.grid, max(native, finest_spacing(self.grid, MOST_VOXELS)), LEVELS)
        self.field_grid = coarser(self.grid, self.steps[-1])
        # Only the caller's images are kept: in floats, and on the device, each is when its turn comes.
        self.images = images
        self.windows = [_window(to_zyx(image)) for image in images]
        self.rounds: list[dict[str, Any]] = []
        self.diverged = 0
        self.template, self.weight = self.averaged()

    def alone(self, number: int) -> Tensor:
        """An image on its own grid, from 0 to 1 within its window, (1, 1, *its shape)."""
        low, high = self.windows[number]
        return (to_zyx(self.images[number]).to(self.device)[None] - low) / (high - low)

    def averaged(self) -> tuple[Tensor, Tensor]:
        """The mean of the images on the template's grid, and how many of them each voxel has, (1, 1, *shape).

        Where there is none the outermost voxels of the images go on, so that the template has no edge there.
        """
        shape = self.grid.shape
        total, beyond, weight = (torch.zeros(1, 1, *shape, device=self.device) for _ in range(3))
        for number in range(len(self.images)):
            self.progress.check_cancelled()
            seen, inside = self.seen(number)
            total += seen * inside
            beyond += seen
            weight += inside
        return torch.where(weight > 0, total / weight.clamp_min(1), beyond / len(self.images)), weight

    def seen(self, number: int) -> tuple[Tensor, Tensor]:
        """An image on the template's grid as its transform brings it there, and where it has voxels, as 0 and 1."""
        u = None
        if self.fields is not None:
            u = self.fields[number]
            if self.field_grid.size != self.grid.size:
                u = carry(u, index_matrix(self.grid, self.field_grid), self.grid.shape)
        picture = self.alone(number)
        matrix = index_matrix(self.grid, self.grids[number], self.linear[number]).to(picture)
        seen = warp(picture, u, matrix, self.grid.shape)
        return seen, valid_mask(picture.shape[2:], u, matrix, self.grid.shape).to(picture)

    def linear_round(self, stage: str, number: int, count: int) -> None:
        """Register every image by a linear map, and move to the middle of the group."""
        self.progress.stage(f"{stage.capitalize()}, round {number} of {count}")
        fixed = self.template.clamp(0, 1)
        found = []
        for i in range(len(self.images)):
            pair = Images(fixed, self.alone(i).clamp_(0, 1), self.grid, self.grids[i], self.mask())

            def report(level: int, iteration: int, value: float, done: float, i: int = i) -> None:
                self.progress.fraction((i + done) / len(self.images))

            several = stage == "rigid" and number == 1
            one = linear_stage.search(
                pair, stage, self.linear_criterion, self.linear[i], several=several, seed=self.seed, report=report
            )
            self.diverged += one.diverged
            found.append(one.matrix)
        self.linear, removed, residual = remove_linear(found, self.grid)
        self.measure(f"{stage} {number}", removed, residual)

    def deformable_round(self, number: int, count: int) -> None:
        """Register every image by a deformation on top of its linear map, and move to the middle of the group.

        Each round starts from no deformation, so that the smoothness asked for is that of the whole deformation. The
        first half of the rounds leaves the finest level out, on which an average still blurred shows nothing.
        """
        self.progress.stage(f"Deformable, round {number} of {count}")
        self.fields = None  # of no more use, and large
        steps = self.steps[:-1] if number <= count // 2 and len(self.steps) > 1 else self.steps
        self.field_grid = coarser(self.grid, steps[-1])
        found: list[Tensor] = []
        voxels = math.prod(self.field_grid.size)
        together = max(1, (AT_ONCE if self.device.type == "cpu" else AT_ONCE_GPU) // voxels)
        for first in range(0, len(self.images), together):
            found += self.bent(range(first, min(first + together, len(self.images))), steps)
        removed, residual = remove_displacement(found, self.field_grid)
        self.fields = found
        self.measure(f"deformable {number}", removed, residual)

    def bent(self, numbers: range, steps: Sequence[float]) -> list[Tensor]:
        """The displacements of some images, optimised side by side."""
        levels = self.levels(numbers, steps)

        def report(level: int, iteration: int, value: float) -> None:
            done = numbers.start + len(numbers) * deformable.share(levels, level, iteration)
            self.progress.fraction(done / len(self.images))

        outcome = deformable.optimise(
            levels, self.criterion, self.preset.deformation, self.preset.regularisation, report
        )
        self.diverged += outcome.diverged
        return list(outcome.u.split(1))

    def levels(self, numbers: range, steps: Sequence[float]) -> list[deformable.Level]:
        """The template and some images from coarse to fine, in voxels with edges of `steps` mm."""
        fixed, mask = self.template.clamp(0, 1), self.mask()
        pairs = [Images(fixed, self.alike(i, fixed), self.grid, self.grids[i], mask) for i in numbers]
        out = []
        for step in steps:
            parts = [pair.level(step) for pair in pairs]
            own = parts[0].fixed_grid
            maps = [index_matrix(own, part.moving_grid, self.linear[i]) for i, part in zip(numbers, parts, strict=True)]
            out.append(
                deformable.Level(
                    fixed=self.criterion.features(parts[0].fixed),
                    moving=_stacked([self.criterion.features(part.moving) for part in parts]),
                    matrix=torch.cat(maps).to(fixed),
                    spacing=own.spacing[::-1],
                    iterations=self.preset.iterations,
                    mask=parts[0].fixed_mask,
                )
            )
        return out

    def alike(self, number: int, fixed: Tensor) -> Tensor:
        """An image on its own grid, with the template's intensities where they are compared voxel by voxel."""
        moving = self.alone(number).clamp_(0, 1)
        if self.criterion.name not in ("ssd", "sad", "ssd+lncc"):
            return moving
        matrix = index_matrix(self.grid, self.grids[number], self.linear[number]).to(moving)
        seen = warp(moving, None, matrix, self.grid.shape)
        inside = valid_mask(moving.shape[2:], None, matrix, self.grid.shape)
        return matched(moving, seen, fixed, inside.to(moving))

    def mask(self) -> Tensor | None:
        """Voxels of the template that at least half of the images show; None where these are all."""
        inside = self.weight >= len(self.images) / 2
        if bool(inside.all()) or not bool(inside.any()):
            return None
        return inside.to(self.template)

    def region(self) -> Tensor:
        """Voxels that as many images show as any: all of them, unless they have no place in common."""
        return self.weight >= self.weight.max()

    def measure(self, stage: str, removed: float, residual: float) -> None:
        """Average anew and note how sharp the average is."""
        before = self.template
        self.template, self.weight = self.averaged()
        gradient, laplacian = sharpness(self.template, self.grid, self.region())
        self.rounds.append(
            {
                "round": len(self.rounds),
                "stage": stage,
                "sharpness": gradient,
                "laplacian_variance": laplacian,
                "removed_mm": removed,
                "residual_mm": residual,
                "change": float((self.template - before).square().mean().sqrt()),
            }
        )
        self.progress.message(f"Template after {stage}: sharpness {gradient:.4g} per mm")

    def verdict(self, names: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """How each image relates to the template, and sentences about what looks wrong."""
        rows: list[dict[str, Any]] = []
        warnings = []
        if self.diverged:
            warnings.append(f"{self.diverged} registrations diverged and were stopped; the best until then was kept.")
        for number, name in enumerate(names):
            seen, inside = self.seen(number)
            alike = float(correlation(self.template, seen, inside)[0]) if inside.any() else math.nan
            row: dict[str, Any] = {"name": name, "correlation": alike if math.isfinite(alike) else None, "folded": 0.0}
            if self.fields is not None:
                row["folded"] = statistics(determinant(self.fields[number].cpu()))["folded"]
            rows.append(row)
            if not alike >= ALIKE:
                warnings.append(
                    f"{name} hardly resembles the template (correlation {alike:.2f}): it may show something else, or "
                    "lie too far from the others."
                )
        if self.rounds[-1]["sharpness"] < self.rounds[0]["sharpness"]:
            warnings.append("The template is less sharp than the plain average: the images may not show the same.")
        if self.weight.max() < len(names):
            warnings.append("There is no place that all images show: the template is sewn together from parts.")
        return rows, warnings

    def picture(self, template: Tensor) -> sitk.Image:
        """A template in the intensities of the images, whose windows are averaged."""
        low, high = np.mean(self.windows, axis=0)
        return from_zyx((template * (high - low) + low)[0].float(), self.grid)


def _stacked(images: Sequence[Tensor]) -> Tensor:
    """Images of several shapes as one batch: the outermost voxels of smaller ones go on, as they do in sampling."""
    shape = [max(sizes) for sizes in zip(*(image.shape[2:] for image in images), strict=True)]
    out = []
    for image in images:
        missing = [side for n, have in zip(shape[::-1], image.shape[:1:-1], strict=True) for side in (0, n - have)]
        out.append(functional.pad(image, missing, mode="replicate"))
    return torch.cat(out)


def _window(picture: Tensor) -> tuple[float, float]:
    """Darkest and brightest intensity of an image, but for :data:`CLIPPED` of its voxels at either end.

    All of its range where these leave nothing, as of a small bright thing in the dark.
    """
    values = picture.flatten()
    step = max(1, len(values) // 200_000)
    ends = torch.quantile(values[::step], torch.tensor([CLIPPED, 1 - CLIPPED], device=values.device))
    low, high = (float(end) for end in ends)
    return (low, high) if high > low else (float(values.min()), float(values.max()))

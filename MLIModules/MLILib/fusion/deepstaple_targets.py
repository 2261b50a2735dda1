"""What DeepSTAPLE learns from: targets with the labels of every registered atlas, on their grid and the network's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch

from .. import files, images
from ..errors import BadInput, MLIError
from ..geometry import Grid, from_array
from ..labels import Label
from ..metrics import label_array
from ..progress import Progress
from ..segmentation.augmentation import prepared
from . import atlas_labels, atlas_sets, batches
from .atlas_labels import Common
from .cache import Cache
from .noisy_patches import NoisyTarget
from .propagation import Outcome, Source, propagate
from .raters import Raters, box_around

#: What a network sees around the labels, mm.
MARGIN = 3.0
#: Most voxels of a network's view, and what its sides are multiples of.
MOST_VOXELS = {2: 256**2, 3: 64**3}
_MULTIPLE = 8
#: Voxels of label maps that are resampled at a time.
_AT_A_TIME = 32_000_000


@dataclasses.dataclass(frozen=True)
class TargetFile:
    """An image to learn on, and the file of its true labels, "" where there are none."""

    name: str
    image: str
    labels: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """A target and what the registered atlases say of it.

    Attributes:
        file: where it came from.
        image: its intensities.
        raters: the atlases' labels on its grid, numbered as the labels of all atlases.
        outcomes: of all atlases.
    """

    file: TargetFile
    image: sitk.Image
    raters: Raters
    outcomes: tuple[Outcome, ...]


def find_targets(path: str) -> list[TargetFile]:
    """The images of a folder or dataset.json, with their true labels where these are there.

    Raises:
        BadInput: no image, a listed file that does not exist, or two images of one name.
    """
    found = atlas_sets.find(path)
    if found.missing:
        raise BadInput(f"{found.missing[0]} does not exist.", f"{path} lists it.", "Restore it, or remove it.")
    targets = [TargetFile(one.name, one.image, one.labels) for one in found.atlases]
    targets += [TargetFile(files.stem(one), one) for one in found.unlabelled]
    names = [one.name for one in targets]
    for one in targets:
        if names.count(one.name) > 1:
            raise BadInput(f"Two targets are called {one.name}.", "", "Give their files different names.")
    return sorted(targets, key=lambda one: one.name)


def register_all(
    targets: Sequence[TargetFile],
    sources: Sequence[Source],
    labels: Sequence[Label],
    *,
    registration: str,
    kept: Cache,
    device: str,
    seed: int,
    trust: Sequence[str] = (),
    progress: Progress,
) -> list[Target]:
    """Every atlas on every target. A target that cannot be used is left out, with a message; the others go on.

    Raises:
        MLIError: none of them can be used.
    """
    failed: list[tuple[str, MLIError]] = []

    def work(file: TargetFile, own: Progress) -> Target | None:
        try:
            image = images.read(file.image)
            found = propagate(
                image, sources, labels=labels, registration=registration, images=False, kept=kept, device=device,
                seed=seed, trust=trust, progress=own,
            )  # fmt: skip
        except BadInput as error:
            failed.append((file.name, error))
            return None
        for warning in found.warnings:
            own.message(f"{file.name}: {warning}")
        return Target(file, image, renumbered(found.raters, labels), tuple(found.outcomes))

    done = [one for one in batches.each(targets, work, progress, stages=2) if one is not None]
    for name, error in failed:
        progress.message(f"The target {name} was left out: {error}")
    if not done:
        raise MLIError(f"None of the {len(targets)} targets can be used.", f"{failed[0][0]}: {failed[0][1]}")
    return done


def renumbered(found: Raters, labels: Sequence[Label]) -> Raters:
    """Raters whose indices stand for `labels`, of which theirs are a part, in order."""
    values = [one.value for one in labels]
    kind = np.uint8 if len(values) < 256 else np.uint16
    lookup = np.array([0, *(1 + values.index(one.value) for one in found.labels)], dtype=kind)
    return dataclasses.replace(found, labels=tuple(labels), stack=lookup[found.stack])


def true_labels(file: TargetFile, common: Common, grid: Grid) -> npt.NDArray[np.int64] | None:
    """The true labels of a target as indices of the atlases' labels, (z, y, x); None where there are none.

    Raises:
        BadInput: they cannot be read, are not on the target's grid, or hold a label that no atlas has.
    """
    if not file.labels:
        return None
    names = {one.value: one.name for one in common.labels}
    found = atlas_labels.placed(atlas_labels.read(file.labels, names), grid)
    if found is None:
        raise BadInput(
            f"The labels {file.labels} are not on the grid of {file.image}.", "", "Resample them, or leave them out."
        )
    ours = [one.value for one in common.labels]
    known = {one.name for one in common.labels}
    for one in found.labels:
        if one.named and one.name not in known:
            raise _stray(file, one.name)
    array = label_array(common.image(found), file.labels)
    stray = sorted(set(np.unique(array).tolist()) - {0, *ours})
    if stray:
        raise _stray(file, str(stray[0]))
    return np.searchsorted(np.array([0, *ours]), array).astype(np.int64)


def _stray(file: TargetFile, label: str) -> BadInput:
    return BadInput(
        f"{file.labels} holds the label {label}, which no atlas has.",
        "True labels are measured against the consensus of the atlases.",
        "Remove it from the file, or give the targets without labels.",
    )


def noisy(target: Target, spacing: Sequence[float]) -> NoisyTarget:
    """A target as the network sees it: in RAS order, resampled, normalised, cut out around all labels.

    Args:
        spacing: mm, x, y, z.
    """
    raters = target.raters
    kind = torch.uint8 if raters.stack.dtype == np.uint8 else torch.int32
    step = max(1, _AT_A_TIME // raters.stack[0].size)
    maps = []
    for start in range(0, len(raters), step):
        drawn = [from_array(one, raters.grid) for one in raters.stack[start : start + step]]
        image, labels = prepared([target.image], drawn, spacing)
        maps.append(labels.to(kind))
    stack = torch.cat(maps)
    union = (stack > 0).any(dim=0).numpy()
    if not union.any():  # thinner than a voxel of the network's
        union[:] = True
    wider = box_around(union, margin=math.ceil(MARGIN / min(spacing)))
    return NoisyTarget(target.file.name, image[:, *wider].contiguous(), stack[:, *wider].contiguous())


def view_size(targets: Sequence[NoisyTarget]) -> tuple[int, ...]:
    """The size of a network's view: what the largest target needs, within :data:`MOST_VOXELS`."""
    sizes = zip(*(one.image.shape[1:] for one in targets), strict=True)
    size = [-(-max(along) // _MULTIPLE) * _MULTIPLE for along in sizes]
    while math.prod(size) > MOST_VOXELS[len(size)]:
        size[size.index(max(size))] -= _MULTIPLE
    return tuple(size)

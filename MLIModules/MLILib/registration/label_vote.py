"""The labels of a template: each image's labels, brought there by its transform, have a vote at every voxel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..errors import BadInput
from ..geometry import Grid, from_array
from ..labels import Label, label
from ..segmentation.label_files import LabelFile
from .fields import carry
from .groupwise import Template
from .sampling import index_matrix, valid_mask, warp

#: Votes counted at a time: labels times voxels.
MOST_VOTES = 8_000_000


def vote(found: Sequence[LabelFile], images: Sequence[Grid], template: Template) -> tuple[sitk.Image, list[Label]]:
    """The label that most images give to each voxel of a template.

    A vote is linearly interpolated from the label's mask, so that borders lie between voxels; images that do not reach
    a voxel have none. Labels of several files are one where they have one name, or one value and no name. The template
    is taken in slabs, so that neither all votes nor all displacements on its grid are in memory at once.

    Args:
        found: labels of each image, in its space, on any grid.
        images: the images' grids, in the same order.
        template: as :func:`MLILib.registration.groupwise.average` made it of the images.

    Returns:
        Label map on the template's grid, 0 where most images have none; and what its values mean.

    Raises:
        BadInput: no file holds a label.
    """
    values = template_values(found)
    grid = template.grid
    winner = np.zeros(grid.shape, np.min_scalar_type(max(values.values())))
    step = max(1, MOST_VOTES * grid.shape[0] // (math.prod(grid.shape) * len(values)))
    for start in range(0, grid.shape[0], step):
        slab = _slab(grid, start, min(start + step, grid.shape[0]))
        votes = {name: torch.zeros(1, 1, *slab.shape) for name in values}
        voters = torch.zeros(1, 1, *slab.shape)
        for number, (one, image) in enumerate(zip(found, images, strict=True)):
            u = _field(template, number, slab)
            matrix = index_matrix(slab, one.grid, template.linear[number])
            for name in values:
                masks = [torch.from_numpy(one.layers[k.layer] == k.value) for k in one.labels if k.name == name]
                if masks:
                    votes[name] += warp(masks[0][None, None].float(), u, matrix, slab.shape, padding="zeros")
            to_image = index_matrix(slab, image, template.linear[number]).float()
            voters += valid_mask(image.shape, u, to_image, slab.shape)
        winner[start : start + step] = _elected(votes, voters, values)
    return from_array(winner, grid), [label(value, name, {}) for name, value in values.items()]


def _elected(votes: Mapping[str, Tensor], voters: Tensor, values: Mapping[str, int]) -> np.ndarray:
    """The value with most votes at each voxel, 0 where most voters have none; the lower value wins a draw."""
    best, winner = torch.zeros_like(voters), torch.zeros_like(voters, dtype=torch.int32)
    claimed = torch.zeros_like(voters)
    for name, value in values.items():
        claimed += votes[name]
        better = votes[name] > best
        best, winner = torch.where(better, votes[name], best), torch.where(better, value, winner)
    out: np.ndarray = torch.where(best >= voters - claimed, winner, 0)[0, 0].numpy()
    return out


def _slab(grid: Grid, start: int, stop: int) -> Grid:
    """The planes from `start` to before `stop` along the first axis of the array."""
    d = grid.dimension
    origin = np.asarray(grid.origin) + grid.matrix()[:d, d - 1] * start
    return Grid((*grid.size[:-1], stop - start), grid.spacing, tuple(origin.tolist()), grid.direction)


def _field(template: Template, number: int, slab: Grid) -> Tensor | None:
    if template.displacements is None:
        return None
    return carry(template.displacements[number], index_matrix(slab, template.field_grid), slab.shape)


def template_values(found: Sequence[LabelFile]) -> dict[str, int]:
    """The value of each name in the template: the one it has in the files if that is free, else the next free one.

    Raises:
        BadInput: no file holds a label.
    """
    out: dict[str, int] = {}
    later = []
    for one in found:
        for part in one.labels:
            if part.name in out:
                continue
            if part.value in out.values() or part.value < 1:
                later.append(part.name)
            else:
                out[part.name] = part.value
    for name in later:
        if name not in out:
            out[name] = max(out.values(), default=0) + 1
    if not out:
        raise BadInput("The labels are empty.", "No voxel of any of them is other than 0.", "Give the drawn labels.")
    return dict(sorted(out.items(), key=lambda item: item[1]))

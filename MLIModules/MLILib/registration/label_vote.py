"""The labels of a template: each image's labels, brought there by its transform, have a vote at every voxel."""

from __future__ import annotations

from collections.abc import Sequence

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


def vote(found: Sequence[LabelFile], images: Sequence[Grid], template: Template) -> tuple[sitk.Image, list[Label]]:
    """The label that most images give to each voxel of a template.

    A vote is linearly interpolated from the label's mask, so that borders lie between voxels; images that do not reach
    a voxel have none. Labels of several files are one where they have one name, or one value and no name.

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
    shape = template.grid.shape
    best, winner = torch.zeros(1, 1, *shape), torch.zeros(1, 1, *shape, dtype=torch.int32)
    fields = [_field(template, number) for number in range(len(found))]
    claimed = torch.zeros_like(best)
    for name, value in sorted(values.items(), key=lambda item: item[1]):
        votes = torch.zeros_like(best)
        for number, one in enumerate(found):
            masks = [torch.from_numpy(one.layers[k.layer] == k.value) for k in one.labels if k.name == name]
            if masks:
                matrix = index_matrix(template.grid, one.grid, template.linear[number])
                drawn = masks[0][None, None].float()
                votes += warp(drawn, fields[number], matrix, shape, padding="zeros")
        claimed += votes
        better = votes > best
        best, winner = torch.where(better, votes, best), torch.where(better, value, winner)
    voters = torch.zeros_like(best)
    for number, grid in enumerate(images):
        matrix = index_matrix(template.grid, grid, template.linear[number]).float()
        voters += valid_mask(grid.shape, fields[number], matrix, shape)
    winner = torch.where(best >= (voters - claimed), winner, 0)
    array = winner[0, 0].numpy().astype(np.min_scalar_type(max(values.values())))
    return from_array(array, template.grid), [label(value, name, {}) for name, value in values.items()]


def _field(template: Template, number: int) -> Tensor | None:
    if template.displacements is None:
        return None
    u = template.displacements[number]
    if template.field_grid.size == template.grid.size:
        return u
    return carry(u, index_matrix(template.grid, template.field_grid), template.grid.shape)


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

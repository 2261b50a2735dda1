"""Receptive fields as boxes in the patient: what the label at a point can see, and what it does see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import geometry
from ..errors import BadInput
from .aims import Aim
from .effective import effective_field
from .receptive import Box, receptive_field
from .subject import Subject


def boxes(subject: Subject, aim: Aim, share: float = 0.95) -> dict[str, Any]:
    """The theoretical and the effective receptive field of the label at a point.

    Args:
        subject: a model that answers for each voxel.
        aim: a label at a point.
        share: of the energy that the effective one holds.

    Returns:
        "theoretical" and "effective": center_ras and size_mm of the part inside the image, along axes_ras (three
        rows), voxels (of the whole box, on the network's grid), clipped (whether it reaches beyond the image); the
        effective one with the share that it holds, and None where the score does not react to the image.
    """
    place = subject.place_around(aim.centre)
    image = subject.padded[(slice(None), *place)][None].to(subject.device)
    shift = [part.start - before for part, (before, _) in zip(place, subject.padding, strict=True)]
    index = tuple(at - s for at, s in zip(aim.centre, shift, strict=True))
    assert aim.choice is not None
    theoretical = receptive_field(subject.network, image, index).box
    label = 1 if subject.model.classes == 1 else aim.choice.channel
    found: dict[str, Any] = {"theoretical": _plain(subject, theoretical, shift), "effective": None}
    try:
        effective = effective_field(subject.network, image, label, index, share=share)
    except BadInput:
        return found
    found["effective"] = _plain(subject, effective.box, shift) | {"share": effective.share}
    return found


def _plain(subject: Subject, box: Box, shift: Sequence[int]) -> dict[str, Any]:
    lower = np.array(box.lower) + shift
    upper = np.array(box.upper) + shift
    inside_low = np.maximum(lower, 0)
    inside_up = np.minimum(upper, np.array(subject.size) - 1)
    matrix = to_ras(subject)
    rank = len(subject.size)
    centre = matrix @ np.append((inside_low + inside_up) / 2, 1.0)
    columns = matrix[:3, :rank]
    spacing = np.linalg.norm(columns, axis=0)
    axes = columns / spacing
    sizes = (inside_up - inside_low + 1) * spacing
    if rank == 2:  # a plane is one slice thick
        axes = np.column_stack([axes, np.cross(axes[:, 0], axes[:, 1])])
        sizes = np.append(sizes, subject.grid.spacing[2] if subject.grid.dimension == 3 else 1.0)
    return {
        "center_ras": centre[:3].tolist(),
        "size_mm": sizes.tolist(),
        "axes_ras": axes.T.tolist(),
        "voxels": list(box.size),
        "clipped": bool((lower < inside_low).any() or (upper > inside_up).any()),
    }


def to_ras(subject: Subject) -> np.ndarray:
    """Voxel index of the prepared image to RAS millimetres in the patient, 4 x (rank + 1)."""
    rank = len(subject.size)
    to_picture = np.linalg.inv(geometry.monai_affine(subject.pictures[0])) @ subject.affine
    embed = np.zeros((4, rank + 1))
    embed[:rank, :rank] = np.eye(rank)
    embed[3, rank] = 1.0
    if rank == 2:
        embed[2, 2] = subject.plane or 0
    return geometry.affine_ras(subject.grid) @ embed @ to_picture

"""An atlas set's files as atlases for propagation: images and labels that are read when they are needed.

All labels are looked at first, since names and values must be the same for all atlases before any is registered.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import SimpleITK as sitk

from .. import images
from ..errors import BadInput, MLIError
from ..geometry import Grid
from ..progress import Progress
from . import atlas_labels
from .atlas_labels import Common, Drawn
from .atlas_sets import Atlas, AtlasSet
from .propagation import Source


@dataclasses.dataclass(frozen=True)
class Opened:
    """Atlases ready for :func:`MLILib.fusion.propagation.propagate`, and their labels."""

    sources: tuple[Source, ...]
    common: Common


def opened(found: AtlasSet, names: Mapping[int, str], progress: Progress) -> Opened:
    """The atlases of a set.

    A file that cannot be read does not end it: its source says so when it is loaded.

    Args:
        found: the set, complete.
        names: of label values, as the user gives them; they come before those of the set.
        progress: told a fraction.

    Raises:
        BadInput: labels of different value sets, undeclared ones, or none at all.
    """
    maps: list[Drawn] = []
    for number, atlas in enumerate(found.atlases):
        progress.fraction(number / len(found.atlases))
        try:
            maps.append(atlas_labels.drawn(atlas_labels.read(atlas.labels, names), atlas.name, atlas.labels))
        except MLIError as error:
            progress.message(f"{atlas.name}: {error}")
    declared = {**found.names, **names} if found.names else dict(names)
    given = "The list of names" if names else found.path
    common = atlas_labels.common(maps, declared, given) if maps else Common((), ())
    made = tuple(Source(atlas.name, functools.partial(load, atlas, names, common)) for atlas in found.atlases)
    return Opened(made, common)


def load(atlas: Atlas, names: Mapping[int, str], common: Common) -> tuple[sitk.Image, sitk.Image]:
    """An atlas' image, and its labels on the image's grid in the common values.

    Raises:
        BadInput: a file cannot be read, or the labels are not on the image's grid.
    """
    image = images.read(atlas.image)
    found = atlas_labels.placed(atlas_labels.read(atlas.labels, names), Grid.of(image))
    if found is None:
        raise BadInput(
            f"The labels {atlas.labels} are not on the grid of {atlas.image}.",
            "They were drawn on another image, or resampled.",
            "Resample them to the image's grid.",
        )
    return image, common.image(found)

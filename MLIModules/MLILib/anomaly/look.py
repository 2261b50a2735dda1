"""A model of normal looks at an image: map, reconstruction, scores of image and slices, and what speaks against them.

Functions on SimpleITK images; :mod:`.task` reads and writes the files.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch

from .. import images
from ..errors import BadInput
from ..geometry import Grid, describe, from_array, same_grid
from ..metrics import GRID_TOLERANCE
from ..progress import Progress
from . import intensity, loading, planes, scoring, sources


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """What a model says of an image.

    Attributes:
        map: float32 on the image's grid, higher is less normal.
        again: the image as the model would make it, in the image's own intensities.
        foreground: where it looked, on the same grid.
        normal: the image on the model's scale, for baselines.
        score: of the image.
        slices: of the slices along `plane`, in the order from right, front or bottom on; nan without foreground.
        plane: "axial", "coronal", "sagittal", "" for a 2-D image.
        warnings: sentences.
    """

    map: sitk.Image
    again: sitk.Image
    foreground: sitk.Image
    normal: sitk.Image
    score: float
    slices: npt.NDArray[np.float64]
    plane: str
    warnings: tuple[str, ...]


def look(
    image: sitk.Image,
    loaded: loading.Loaded,
    *,
    method: str = "",
    mask: sitk.Image | None = None,
    overlap: float = 0.25,
    batch: int = 64,
    search: scoring.Search | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Look:
    """Map how far an image departs from normal.

    Args:
        image: 2-D or 3-D, scalar, as the model was trained on.
        loaded: from :func:`.loading.load`.
        method: one of the model's; its first by default.
        mask: foreground on the image's grid; found from the image by default.
        overlap: share of a window that its neighbours share.
        batch: windows at a time.
        search: settings of AnoGAN's.
        device: where the model is; the CPU by default.
        progress: told how much is done.

    Raises:
        BadInput: a blank image, of another dimension than the model, or a mask on another grid.
    """
    progress = progress or Progress()
    images.check(image, "The image")
    flat = image.GetDimension() == 2
    geometry = loaded.knowledge.geometry
    if flat != (geometry.kind == "images"):
        raise BadInput(
            f"The image is {image.GetDimension()}-D, but the model {loaded.bundle.name} is one of "
            f"{'2-D images' if geometry.kind == 'images' else 'volumes'}.",
            "",
            "Give an image of the kind the model was trained on.",
        )
    scorer = scoring.Scorer(
        loaded.network,
        loaded.knowledge,
        loading.chosen_method(loaded, method),
        device or torch.device("cpu"),
        search,
        progress.check_cancelled,
    )
    turned = planes.oriented(image)
    if flat:
        return _look_at_plane(image, turned, scorer, loaded)
    if mask is None:
        inside = intensity.foreground(turned.array)
    else:
        require_grid(mask, image, "mask")
        inside = scoring.oriented_mask(mask)
        if not inside.any():
            raise BadInput("The mask is empty.", "No voxel would be looked at.", "Give another mask, or none.")
    values = turned.array[inside]
    if values.min() == values.max():
        raise BadInput("The image is constant inside the mask.", "", "Give another mask, or none.")
    (found,) = scoring.volume_scores([scorer], turned, inside, overlap=overlap, batch=batch, fraction=progress.fraction)
    centre, scale = intensity.landmarks(turned.array, inside)
    again = np.where(inside, found.again * scale + centre, turned.array.astype(np.float32))
    return Look(
        map=turned.back(found.map),
        again=turned.back(again.astype(np.float32)),
        foreground=sitk.Cast(turned.back(inside.astype(np.float32)), sitk.sitkUInt8),
        normal=turned.back(found.normal),
        score=found.score,
        slices=found.slices,
        plane=found.plane,
        warnings=tuple(_warnings(found.normal[inside], turned, inside, loaded)),
    )


def _look_at_plane(image: sitk.Image, turned: planes.Oriented, scorer: scoring.Scorer, loaded: loading.Loaded) -> Look:
    stack = turned.array.astype(np.float32)
    maps, agains, scores = scoring.stack_scores(scorer, stack)
    again = agains * intensity.IMAGE_SPAN * float(stack.std()) + float(stack.mean())
    normal = intensity.normalise_images(stack)
    everywhere = from_array(np.ones(stack.shape[1:], np.uint8), image)
    shape = loaded.knowledge.geometry.shape
    warnings = range_warnings([normal], loaded)
    if shape != (0, 0) and stack.shape[1:] != shape:
        warnings.append(
            f"The image has {stack.shape[1]} x {stack.shape[2]} pixels, the model {loaded.bundle.name} was trained on "
            f"{shape[0]} x {shape[1]}: it was resampled."
        )
    score = float(scores[0])
    return Look(
        map=turned.back(maps),
        again=turned.back(again.astype(np.float32)),
        foreground=everywhere,
        normal=turned.back(stack),  # baselines of 2-D images know them with their own contrast
        score=score,
        slices=np.array([score]),
        plane="",
        warnings=tuple(warnings),
    )


def require_grid(other: sitk.Image, image: sitk.Image, name: str) -> None:
    """Raise :class:`BadInput` where another image does not lie on the image's grid."""
    if not same_grid(other, image, GRID_TOLERANCE):
        raise BadInput(
            f"The {name} is not on the image's grid.",
            f"It has {describe(Grid.of(other))}, the image {describe(Grid.of(image))}.",
            f"Resample the {name} to the image with nearest-neighbour interpolation.",
        )


def _warnings(
    normal: npt.NDArray[Any], turned: planes.Oriented, inside: npt.NDArray[np.bool_], loaded: loading.Loaded
) -> list[str]:
    out = range_warnings([normal], loaded)
    geometry = loaded.knowledge.geometry
    edges = planes.pixel(turned.spacing, geometry.planes()[0])
    if max(edges) > 1.5 * geometry.pixel or (geometry.kind == "patches" and min(edges) < geometry.pixel / 1.5):
        out.append(
            f"The pixels are {edges[0]:.3g} x {edges[1]:.3g} mm, those that the model {loaded.bundle.name} was trained "
            f"on {geometry.pixel:.3g} mm: what it calls normal may be the difference."
        )
    if geometry.kind == "slices":
        across = planes.across(inside, geometry.plane)
        boxes = [sources.box(across, axis) for axis in (1, 2)]
        lengths = [(stop - first) * edge for (first, stop), edge in zip(boxes, edges, strict=True)]
        if max(lengths) > 1.25 * geometry.size * geometry.pixel:
            out.append(
                f"The foreground is {max(lengths):.0f} mm wide, the model {loaded.bundle.name} was trained on at most "
                f"{geometry.size * geometry.pixel:.0f} mm: it is looked at in parts."
            )
    return out


def range_warnings(normal: list[npt.NDArray[Any]], loaded: loading.Loaded) -> list[str]:
    """A warning where most of the (normalised) images are spread unlike those trained on."""
    departing = [loaded.range.departs(intensity.profile(one)) for one in normal]
    if sum(departing) * 2 <= len(departing):
        return []
    what = loaded.bundle.modality or "the images it was trained on"
    return [
        f"The intensities are spread unlike those that the model {loaded.bundle.name} was trained on ({what}): if this "
        "is another modality, the map means nothing."
    ]

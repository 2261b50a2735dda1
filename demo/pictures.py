"""Three-plane pictures of a label map over its image, in radiological orientation with a scale bar."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.patheffects import AbstractPathEffect, withStroke
from scipy import ndimage

_INK = "#e8ebf0"
_GROUND = "#14171c"
_OUTLINE: list[AbstractPathEffect] = [withStroke(linewidth=2.5, foreground="#14171c")]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A label to draw: its value, the text for the legend, its colour (red, green, blue, 0 to 1)."""

    value: int
    text: str
    color: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class _View:
    """A plane: which axis of a (z, y, x) array in LPS order is cut, whether rows are turned, letters at the borders."""

    name: str
    axis: int
    turn: bool
    letters: tuple[str, str, str, str]  # left, right, top, bottom
    sides: tuple[str, str]  # what a negative and a positive position along the cut LPS axis are called


#: The patient's right is on the left of the picture; in the sagittal view anterior is.
_VIEWS = (
    _View("Axial", 0, False, ("R", "L", "A", "P"), ("I", "S")),
    _View("Coronal", 1, True, ("R", "L", "S", "I"), ("A", "P")),
    _View("Sagittal", 2, True, ("A", "P", "S", "I"), ("R", "L")),
)


def three_planes(image: sitk.Image, labels: sitk.Image, drawn: Sequence[Drawn], title: str, path: Path) -> None:
    """Write a PNG of the three planes through the middle of the labels.

    Args:
        image: 3-D scalar image.
        labels: label map on its grid.
        drawn: the labels to show.
        title: above the picture.
        path: the PNG file.
    """
    grey, found = sitk.DICOMOrient(image, "LPS"), sitk.DICOMOrient(labels, "LPS")
    voxels, segments = sitk.GetArrayFromImage(grey).astype(float), sitk.GetArrayFromImage(found)
    spacing = np.array(grey.GetSpacing())[::-1]
    inside = np.argwhere(np.isin(segments, [d.value for d in drawn]))
    centre = np.round(inside.mean(axis=0) if len(inside) else np.array(voxels.shape) / 2).astype(int)
    position = grey.TransformIndexToPhysicalPoint([int(i) for i in centre[::-1]])[::-1]
    shades = tuple(np.percentile(voxels[voxels > voxels.min()], (0.5, 99.8)) if np.ptp(voxels) else (0.0, 1.0))

    widths = [voxels.shape[2] * spacing[2], voxels.shape[2] * spacing[2], voxels.shape[1] * spacing[1]]
    figure, axes = plt.subplots(
        1, 3, figsize=(11.4, 5.3), width_ratios=widths, facecolor=_GROUND, layout="constrained", dpi=130
    )
    for view, ax in zip(_VIEWS, axes, strict=True):
        along = position[view.axis]
        place = f"{view.name}   {view.sides[along > 0]} {abs(along):.0f} mm"
        _draw(ax, view, voxels, segments, spacing, int(centre[view.axis]), drawn, shades)
        ax.set_title(place, color=_INK, fontsize=10)
    _scale_bar(axes[0])
    figure.suptitle(title, color=_INK, fontsize=13, x=0.012, ha="left", weight="bold")
    handles = [Patch(facecolor=(*d.color, 0.45), edgecolor=d.color, linewidth=1.6, label=d.text) for d in drawn]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, labelcolor=_INK)
    figure.savefig(path, facecolor=_GROUND)
    plt.close(figure)


def _draw(
    ax: Axes,
    view: _View,
    voxels: np.ndarray,
    segments: np.ndarray,
    spacing: np.ndarray,
    index: int,
    drawn: Sequence[Drawn],
    shades: tuple[float, ...],
) -> None:
    rows, columns = np.delete(spacing, view.axis)
    slices = [np.take(array, index, axis=view.axis) for array in (voxels, segments)]
    grey, labels = (s[::-1] if view.turn else s for s in slices)
    height, width = grey.shape[0] * rows, grey.shape[1] * columns
    extent = (0.0, width, height, 0.0)
    ax.imshow(grey, cmap="gray", vmin=shades[0], vmax=shades[1], extent=extent, interpolation="bicubic")
    fine = 6
    x = (np.arange(labels.shape[1] * fine) + 0.5) * columns / fine
    y = (np.arange(labels.shape[0] * fine) + 0.5) * rows / fine
    for d in drawn:
        mask = np.kron(labels == d.value, np.ones((fine, fine)))
        if not mask.any():
            continue
        soft = ndimage.gaussian_filter(mask, 0.45 * fine)  # rounds the voxels' corners by half a voxel
        ax.contourf(x, y, soft, levels=[0.5, 2.0], colors=[d.color], alpha=0.30)
        ax.contour(x, y, soft, levels=[0.5], colors=[d.color], linewidths=1.6)
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal", anchor="N", xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set_visible(False)
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.98, "center", "top"),
              (0.5, 0.02, "center", "bottom"))  # fmt: skip
    for letter, (u, v, ha, va) in zip(view.letters, places, strict=True):
        text = ax.text(u, v, letter, transform=ax.transAxes, ha=ha, va=va, color="#ffe27a", fontsize=11, weight="bold")
        text.set_path_effects(_OUTLINE)


def _scale_bar(ax: Axes, length: float = 10.0) -> None:
    bottom, right = ax.get_ylim()[0], ax.get_xlim()[1]
    start, y = right - length - 1.5, bottom - 1.8
    ax.plot([start, start + length], [y, y], color="white", linewidth=3, solid_capstyle="butt")
    text = ax.text(start + length / 2, y - 0.8, f"{length:.0f} mm", color="white", ha="center", va="bottom", fontsize=9)
    text.set_path_effects(_OUTLINE)

"""How sharp an average image is, and the pictures of it: images that lie well on each other average to sharp edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from torch import Tensor

from .. import charts
from ..geometry import Grid


def sharpness(image: Tensor, grid: Grid, region: Tensor) -> tuple[float, float]:
    """Mean gradient magnitude and variance of the Laplacian of an image in a region, without its outermost voxels.

    Central differences in mm. An axis of fewer than three voxels has no second differences and counts as flat.

    Args:
        image: (1, 1, *shape), intensities from 0 to 1.
        grid: where it lies.
        region: (1, 1, *shape), bool.

    Returns:
        Mean length of the gradient, per mm; variance of the Laplacian, per mm^4.
    """
    values = image[0, 0].cpu().double()
    square, laplacian = torch.zeros_like(values), torch.zeros_like(values)
    for axis, step in enumerate(grid.spacing[::-1]):
        n = values.shape[axis]
        if n < 3:
            continue
        slope = torch.gradient(values, spacing=step, dim=axis)[0]
        square += slope.square()
        inner = values.narrow(axis, 1, n - 2)
        second = (values.narrow(axis, 2, n - 2) - 2 * inner + values.narrow(axis, 0, n - 2)) / step**2
        laplacian.narrow(axis, 1, n - 2).add_(second)
    inside = _eroded(region.cpu())[0, 0]
    return float(square.sqrt()[inside].mean()), float(laplacian[inside].var(correction=0))


def _eroded(region: Tensor) -> Tensor:
    """The region without voxels whose neighbours are outside of it or of the image; itself where nothing were left."""
    d = region.ndim - 2
    width = [3 if n >= 3 else 1 for n in region.shape[2:]]
    pool = functional.max_pool3d if d == 3 else functional.max_pool2d
    outside = functional.pad((~region).float(), [side for w in reversed(width) for side in (w // 2, w // 2)], value=1.0)
    inner = pool(outside, width, stride=1) < 0.5
    return inner if inner.any() else region


def draw_rounds(rounds: Sequence[Mapping[str, Any]], path: str) -> None:
    """Sharpness and the mean displacement that each round removed, as a PNG.

    Args:
        rounds: rows with stage, sharpness, removed_mm and residual_mm, as a Template has them.
        path: file to write now.
    """
    figure = charts.new_figure(8, 4)
    left, right = figure.subplots(1, 2)
    where = range(len(rounds))
    names = [str(row["stage"]) for row in rounds]
    left.plot(where, [row["sharpness"] for row in rounds], "o-", color="#1d6fb8")
    left.set_ylabel("mean gradient of the template, 1/mm")
    left.set_title("Sharpness")
    later = range(1, len(rounds))
    for key, colour, label in (("removed_mm", "#c0561f", "found and removed"), ("residual_mm", "0.4", "left")):
        right.plot(later, [row[key] for row in rounds[1:]], "o-", color=colour, label=label)
    right.set_ylabel("mean displacement to the images, mm")
    right.set_title("Distance from the middle of the group")
    if len(rounds) > 1:
        right.legend()
    for axes in (left, right):
        axes.set_xticks(list(where), names, rotation=40, ha="right")
        axes.set_xlim(-0.3, len(rounds) - 0.7)
        axes.grid(alpha=0.25)
        axes.set_ylim(bottom=0)
    charts.save(figure, path)


def draw_template(first: npt.NDArray[Any], last: npt.NDArray[Any], grid: Grid, path: str) -> None:
    """The plain average and the template in three planes, as a PNG.

    Args:
        first: the average of the images centre on centre, (z, y, x) or (y, x).
        last: the template, likewise.
        grid: where both lie.
        path: file to write now.
    """
    from .planes import planes

    shown = planes(grid, tuple(n // 2 for n in grid.shape))
    low, high = (float(np.percentile(last, share)) for share in (1, 99.5))
    figure = charts.new_figure(3.2 * len(shown), 6.4, "black")
    rows = figure.subplots(2, len(shown), squeeze=False)
    for axes_row, array, name in zip(rows, (first, last), ("Centre on centre", "Template"), strict=True):
        for axes, plane in zip(axes_row, shown, strict=True):
            extent = (0.0, plane.size[0], plane.size[1], 0.0)
            axes.imshow(plane.cut(array), cmap="gray", vmin=low, vmax=high, extent=extent)
            axes.set_title(f"{name}  {plane.name} {plane.place}".rstrip(), color="0.85", fontsize=9)
            axes.set_axis_off()
    charts.save(figure, path)

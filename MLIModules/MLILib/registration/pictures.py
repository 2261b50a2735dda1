"""The pictures of a registration's quality: one page with everything, and each view by itself, larger.

Dark, as in a reading room; the patient's right on the left, letters at the borders, true proportions, a scale bar.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from PIL import Image

from . import summary
from .drawing import (
    COLOURS,
    DPI,
    FAINT,
    INK,
    LINE,
    WARN,
    colour_bar,
    darken,
    finish_plane,
    new_figure,
    save_all,
    scale_bar,
    show_plane,
)
from .planes import Plane
from .views import Floats, Scene, bent_grid, checkerboard, difference, histogram, overlay

_FOLD = (1.0, 0.2, 0.9)

#: Less and more, dark where nothing differs.
DIVERGING = LinearSegmentedColormap.from_list(
    "mli_diverging", ["#b8e6ff", "#3f9be0", "#1d4e86", "#20242b", "#8a3b1c", "#ee8a3c", "#ffe2a8"]
)

#: Differences of this share of the intensity window have the brightest colours.
_DIFFERENCE = 0.7

#: Draws one view of the scene's plane of this number.
View = Callable[[Axes, Scene, int], None]


def write(shown: Scene, quality: Mapping[str, Any], title: str, path: Callable[[str], str]) -> list[str]:
    """Write all pictures.

    Args:
        shown: see :func:`MLILib.registration.views.scene`.
        quality: the measures, see :func:`MLILib.registration.quality.assess`.
        title: above the page.
        path: gives the file to write now for a name such as "overlay.png".

    Returns:
        The names: report.png (the page), overlay.png, checkerboard.png, difference.png, histogram.png, grid.png,
        flicker.gif; jacobian.png of a deformation, curve.png where there is one.
    """
    names = save_all(figures(shown, quality, title), path)
    flicker(shown, path("flicker.gif"))
    return [*names, "flicker.gif"]


def figures(shown: Scene, quality: Mapping[str, Any], title: str) -> dict[str, Figure]:
    """The figures by the names of their files."""
    made = {
        "report.png": page(shown, quality, title),
        "overlay.png": _large(shown, [_overlay_before, _overlay_after]),
        "checkerboard.png": _large(shown, [_checkerboard_before, _checkerboard_after]),
        "difference.png": _large(shown, [_difference_before, _difference_after]),
        "histogram.png": _histograms(shown),
        "grid.png": _large(shown, [_grid]),
    }
    if shown.determinant is not None:
        made["jacobian.png"] = _large(shown, [_jacobian], bar=True)
    if shown.curve:
        made["curve.png"] = new_figure(7, 4)
        _curve(made["curve.png"].add_subplot(), shown)
    return made


def page(shown: Scene, quality: Mapping[str, Any], title: str) -> Figure:
    """Everything on one page: a row for each plane, a column for each view; histograms, curve and figures below."""
    views = [
        _fixed, _overlay_before, _overlay_after, _checkerboard_after, _difference_before, _difference_after, _grid
    ]  # fmt: skip
    views += [_jacobian] if shown.determinant is not None else []
    widest = max(p.size[0] for p in shown.planes)
    heights = [p.size[1] for p in shown.planes]
    scale = min(2.35 / widest, 8.5 / sum(heights))
    inches = [h * scale + 0.25 for h in heights]
    width = max(len(views) * (widest * scale + 0.08), 13.5)
    figure = new_figure(width, 0.55 + sum(inches) + 3.2)
    parts: Any = figure.subfigures(2, 1, height_ratios=[sum(inches) + 0.55, 3.2])
    upper, lower = parts
    axes = upper.subplots(len(shown.planes), len(views), height_ratios=inches, squeeze=False)
    for i, (row, plane) in enumerate(zip(axes, shown.planes, strict=True)):
        for ax, view in zip(row, views, strict=True):
            view(ax, shown, i)
            finish_plane(ax, plane)
            if i == 0:
                ax.set_title(_TITLES[view], color=INK, fontsize=9.5)
        row[0].set_ylabel(f"{plane.name} {plane.place}".strip(), color=FAINT, fontsize=8.5)
    upper.suptitle(title, color=INK, fontsize=12.5, x=0.008, ha="left", weight="bold")
    figure.text(
        0.994, 0.996, "overlay: fixed red, moving cyan   |   dim: outside of the moving image", color=FAINT,
        fontsize=8.5, ha="right", va="top",
    )  # fmt: skip
    wide = [1.0, 1.0, 0.05, *([1.4] if shown.curve else []), 2.0]
    panels = lower.subplots(1, len(wide), width_ratios=wide)
    _histogram(panels[0], shown, after=False)
    colour_bar(lower, panels[2], _histogram(panels[1], shown, after=True), "voxels")
    if shown.curve:
        _curve(panels[3], shown)
    _summary(panels[-1], quality)
    return figure


def flicker(shown: Scene, path: str) -> None:
    """Write a GIF of the fixed image and the moving one after registration in turn, twice a second."""
    frames = []
    for view in (_fixed, _after):
        figure = _large(shown, [view])
        figure.set_dpi(DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:], duration=500, loop=0)


def _large(shown: Scene, views: Sequence[View], *, bar: bool = False) -> Figure:
    """A row for each view, a column for each plane."""
    heights = [p.size[1] for p in shown.planes]
    widths = [p.size[0] for p in shown.planes]
    scale = min(13.0 / sum(widths), 5.0 / max(heights))
    width = max(sum(widths) * scale, 5.0) + (1.0 if bar else 0.2)
    figure = new_figure(width, len(views) * (max(heights) * scale + 0.35) + 0.1)
    axes = figure.subplots(len(views), len(shown.planes), width_ratios=widths, squeeze=False)
    for r, (row, view) in enumerate(zip(axes, views, strict=True)):
        for i, (ax, plane) in enumerate(zip(row, shown.planes, strict=True)):
            view(ax, shown, i)
            finish_plane(ax, plane)
            if r == 0:
                ax.set_title(f"{plane.name} {plane.place}".strip(), color=FAINT, fontsize=9)
        row[0].set_ylabel(_TITLES[view], color=INK, fontsize=9)
    if bar:
        _jacobian_bar(figure, list(axes.ravel()), shown)
    return figure


def _fixed(ax: Axes, shown: Scene, i: int) -> None:
    show_plane(ax, shown.planes[i], shown.planes[i].cut(shown.fixed), cmap="gray", vmin=0, vmax=1)
    scale_bar(ax, shown.planes[i])


def _after(ax: Axes, shown: Scene, i: int) -> None:
    show_plane(ax, shown.planes[i], np.nan_to_num(shown.planes[i].cut(shown.after)), cmap="gray", vmin=0, vmax=1)
    scale_bar(ax, shown.planes[i])


def _overlay_before(ax: Axes, shown: Scene, i: int) -> None:
    plane = shown.planes[i]
    show_plane(ax, plane, overlay(plane.cut(shown.fixed), plane.cut(shown.before)))


def _overlay_after(ax: Axes, shown: Scene, i: int) -> None:
    plane = shown.planes[i]
    show_plane(ax, plane, overlay(plane.cut(shown.fixed), plane.cut(shown.after)))


def _checkerboard_before(ax: Axes, shown: Scene, i: int) -> None:
    _tiles(ax, shown.planes[i], shown.fixed, shown.before)


def _checkerboard_after(ax: Axes, shown: Scene, i: int) -> None:
    _tiles(ax, shown.planes[i], shown.fixed, shown.after)


def _tiles(ax: Axes, plane: Plane, fixed: Floats, moving: Floats) -> None:
    """Square tiles, six along the shorter side. Drawn fine, so that tiles have sharp borders."""
    ours, theirs = plane.cut(fixed), plane.cut(moving)
    tile = min(plane.size) / 6
    tiles = (max(1, round(plane.size[1] / tile)), max(1, round(plane.size[0] / tile)))
    fine = [max(1, math.ceil(480 / n)) for n in ours.shape]
    ours, theirs = (np.repeat(np.repeat(a, fine[0], axis=0), fine[1], axis=1) for a in (ours, theirs))
    show_plane(ax, plane, checkerboard(ours, theirs, tiles), cmap="gray", vmin=0, vmax=1)


def _difference_before(ax: Axes, shown: Scene, i: int) -> None:
    _differences(ax, shown.planes[i], shown.fixed, shown.before)


def _difference_after(ax: Axes, shown: Scene, i: int) -> None:
    _differences(ax, shown.planes[i], shown.fixed, shown.after)


def _differences(ax: Axes, plane: Plane, fixed: Floats, moving: Floats) -> None:
    picture = difference(plane.cut(fixed), plane.cut(moving))
    show_plane(ax, plane, picture, cmap=DIVERGING, vmin=-_DIFFERENCE, vmax=_DIFFERENCE)


def _grid(ax: Axes, shown: Scene, i: int) -> None:
    """A square grid of the moving image, bent as the registration bends it onto the fixed one."""
    plane = shown.planes[i]
    show_plane(ax, plane, np.nan_to_num(plane.cut(shown.after)) * 0.55, cmap="gray", vmin=0, vmax=1)
    x, y, *places = bent_grid(plane, shown.displacements[i])
    step = max(plane.size) / 18
    for place in places:
        low, high = np.percentile(place, (0.2, 99.8)) / step  # a few wild voxels must not cost thousands of lines
        levels = np.arange(math.floor(low), math.ceil(high) + 1) * step
        if min(place.shape) > 1:
            ax.contour(x, y, place, levels=levels, colors="#7fd6c2", linewidths=0.8, linestyles="solid")


def _jacobian(ax: Axes, shown: Scene, i: int) -> None:
    """Volume change in colour over the fixed image, folded voxels magenta."""
    assert shown.determinant is not None
    plane, most = shown.planes[i], _most_change(shown.determinant)
    found = plane.cut(shown.determinant)
    change = (np.log(np.maximum(found, 1e-6)) / math.log(most)).clip(-1, 1)
    grey = plane.cut(shown.fixed)[..., None] * 0.75 * np.ones(3)
    strength = (np.abs(change) ** 0.7)[..., None] * 0.9
    picture = grey * (1 - strength) + DIVERGING((change + 1) / 2)[..., :3] * strength
    show_plane(ax, plane, np.where((found <= 0)[..., None], _FOLD, picture))
    text = f"x {1 / most:.2f} (blue) ... {most:.2f} (orange)"
    ax.set_xlabel(text if i == len(shown.planes) - 1 else "", color=FAINT, fontsize=8)


def _jacobian_bar(figure: Figure, axes: list[Axes], shown: Scene) -> None:
    assert shown.determinant is not None
    most = _most_change(shown.determinant)
    folded = " (folded: magenta)" if (shown.determinant <= 0).any() else ""
    scale = ScalarMappable(LogNorm(1 / most, most), DIVERGING)
    bar = colour_bar(figure, axes, scale, f"volume in the moving / in the fixed image{folded}")
    bar.set_ticks([t for t in (0.125, 0.25, 0.5, 0.8, 1, 1.25, 2, 4, 8) if 0.999 / most <= t <= most * 1.001])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_minor_formatter(NullFormatter())


def _most_change(determinant: Floats) -> float:
    """The factor at the ends of the colours: what 99 % of the voxels keep below, from 1.25 to 8."""
    change = np.abs(np.log(determinant[determinant > 0]))
    return float(np.clip(math.exp(float(np.percentile(change, 99))) if change.size else 8.0, 1.25, 8.0))


def _histograms(shown: Scene) -> Figure:
    figure = new_figure(9, 4.2)
    parts = figure.subplots(1, 3, width_ratios=[1, 1, 0.05])
    _histogram(parts[0], shown, after=False)
    colour_bar(figure, parts[2], _histogram(parts[1], shown, after=True), "voxels")
    return figure


def _histogram(ax: Axes, shown: Scene, *, after: bool) -> ScalarMappable:
    """Before and after have one scale of colours."""
    compared = shown.comparison
    found = histogram(shown.fixed, shown.after, compared.after_mask)
    most = max(found.max(), 10.0)
    if not after:
        found = histogram(shown.fixed, shown.before, compared.before_mask)
    drawn = ax.imshow(
        np.where(found > 0, found, np.nan), origin="lower", extent=(0, 1, 0, 1), cmap="magma", norm=LogNorm(1, most),
        interpolation="nearest",
    )  # fmt: skip
    ax.set_title(f"Joint histogram {'after' if after else 'before'}", color=INK, fontsize=9.5)
    ax.set_xlabel("fixed intensity", color=FAINT, fontsize=8)
    ax.set_ylabel("moving intensity", color=FAINT, fontsize=8)
    darken(ax)
    ax.set(xticks=[], yticks=[], aspect="equal")
    return drawn


def _curve(ax: Axes, shown: Scene) -> None:
    """How what was minimised changed over the iterations of each level; levels and stages have scales of their own."""
    lines: list[list[Mapping[str, Any]]] = []
    for row in shown.curve:
        if not lines or any(lines[-1][-1][key] != row[key] for key in ("stage", "level")):
            lines.append([])
        lines[-1].append(row)
    stages = list(dict.fromkeys(row["stage"] for row in shown.curve))
    start = 0
    for line in lines:
        stage = line[0]["stage"]
        first = next(other for other in lines if other[0]["stage"] == stage) is line
        colour = COLOURS[stages.index(stage) % len(COLOURS)]
        mark = "o" if len(line) == 1 else None
        found = np.array([math.nan if row["value"] is None else row["value"] for row in line])
        values = 100 * (found - found[0]) / max(abs(found[0]), 1e-12)
        ax.plot(
            start + np.arange(len(line)), values, color=colour, linewidth=1.6, marker=mark, markersize=3,
            label=stage if first else None,
        )  # fmt: skip
        if start:
            ax.axvline(start - 0.5, color=LINE, linewidth=0.8, zorder=0)
        start += len(line)
    ax.set_title("What was minimised: change in each level (%)", color=INK, fontsize=9.5)
    ax.set_xlabel("iteration", color=FAINT, fontsize=8)
    ax.legend(frameon=False, labelcolor=INK, fontsize=8)
    darken(ax)


def _summary(ax: Axes, quality: Mapping[str, Any]) -> None:
    """The measures as a table, the warnings below it."""
    ax.axis("off")
    rows = summary.rows(quality)
    texts = quality["warnings"] or ["Nothing looks wrong by these measures; look at the pictures, too."]
    lines = [line for text in texts for line in textwrap.wrap(text, 72, subsequent_indent="   ")]
    step = 1.0 / max(len(rows) + len(lines) + 1, 16)
    size = min(8.5, 8.5 * 18 * step)
    for i, (what, before, after) in enumerate(rows):
        for x, text, side in ((0.0, what, "left"), (0.76, before, "right"), (1.0, after, "right")):
            ax.text(
                x, 1 - i * step, text, transform=ax.transAxes, ha=side, va="top", color=INK if i else FAINT,
                fontsize=size,
            )  # fmt: skip
    for i, line in enumerate(lines):
        y = 1 - (len(rows) + 0.5 + i) * step
        colour = WARN if quality["warnings"] else FAINT
        ax.text(0.0, y, line, transform=ax.transAxes, va="top", color=colour, fontsize=size)


_TITLES: dict[View, str] = {
    _fixed: "Fixed",
    _after: "Moving after",
    _overlay_before: "Overlay before",
    _overlay_after: "Overlay after",
    _checkerboard_before: "Checkerboard before",
    _checkerboard_after: "Checkerboard after",
    _difference_before: "Difference before",
    _difference_after: "Difference after",
    _jacobian: "Local volume (Jacobian)",
    _grid: "Deformed grid",
}

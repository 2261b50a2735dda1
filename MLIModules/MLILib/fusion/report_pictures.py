"""The pictures of a raters' report: each rater beside the others, agreement in pairs, and where they do not agree.

Drawn like the registration's (see :mod:`MLILib.registration.drawing`): dark, planes in true proportions.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..geometry import Grid
from ..registration.drawing import (
    COLOURS,
    FAINT,
    GROUND,
    INK,
    LINE,
    colour_bar,
    darken,
    finish_plane,
    new_figure,
    save_all,
    scale_bar,
    show_plane,
)
from ..registration.planes import Plane, centre_of, planes
from ..registration.summary import number
from ..registration.views import scaled, window
from .agreement import entropy
from .raters import Consensus, Raters, Region

Floats = npt.NDArray[np.floating]
Rows = Sequence[Mapping[str, Any]]

#: More labels than this are not told apart by colour: their Dice is a map of raters and labels.
_MOST_LABELS = 4
#: More names than this cannot be read below an axis, and more numbers not in a matrix.
_MOST_NAMES, _MOST_NUMBERS = 80, 12
#: Voxels shown around what the raters drew.
_AROUND = 8
_DROPPED = "#5b616c"
#: From dark violet, so that nothing drawn is as dark as the ground.
_HEAT = LinearSegmentedColormap.from_list("mli_heat", colormaps["inferno"](np.linspace(0.14, 1.0, 256)))


def write(
    report: Mapping[str, Any],
    path: Callable[[str], str],
    *,
    raters: Raters | None = None,
    consensus: Consensus | None = None,
    target: Floats | None = None,
) -> list[str]:
    """Write all pictures.

    Args:
        report: see :func:`MLILib.fusion.rater_report.report`.
        path: gives the file to write now for a name such as "raters.png".
        raters, consensus: of which the report is; both or neither, in which case no planes are drawn.
        target: image on the raters' grid that the planes show; without one, how many raters drew a voxel.

    Returns:
        The names: raters.png; of two raters or more agreement.png, and disagreement.png where `raters` are given.
    """
    made = figures(report)
    if raters is not None and consensus is not None and len(raters) > 1:
        made["disagreement.png"] = disagreement(raters, consensus, target)
    return save_all(made, path)


def figures(report: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures that need the report alone, by the names of their files."""
    made = {"raters.png": _raters(report)}
    if len(report["raters"]) > 1:
        made["agreement.png"] = _agreement(report)
    return made


def _raters(report: Mapping[str, Any]) -> Figure:
    """A row for each rater; columns of Dice, sensitivity, specificity and weight."""
    people, labels = report["raters"], report["labels"]
    few = len(labels) <= _MOST_LABELS
    columns: list[tuple[float, Callable[[Figure, Axes], None]]] = []
    if few:
        columns.append((2.6, lambda _, ax: _dots(ax, report, "dice")))
    else:
        columns.append((min(0.16 * len(labels) + 1.5, 12.0), lambda figure, ax: _map(figure, ax, report)))
    columns.append((2.2, lambda _, ax: _dots(ax, report, "sensitivity")))
    columns.append((2.2, lambda _, ax: _dots(ax, report, "specificity")))
    if report["measure"]:
        columns.append((1.9, lambda _, ax: _weights(ax, report)))
    wide = [inches for inches, _ in columns]
    width = sum(wide) + 2.4
    lines = [line for text in _words(report) for line in textwrap.wrap(text, int(width * 14))]
    above = min(max(0.21 * len(people), 1.5), 40.0) + (0.7 if few else 1.5)
    below = 0.17 * len(lines) + 0.5
    figure = new_figure(width, above + below)
    parts: Any = figure.subfigures(2, 1, height_ratios=[above, below])
    upper, lower = parts
    axes = upper.subplots(1, len(columns), width_ratios=wide, squeeze=False)[0]
    for ax, (_, draw) in zip(axes, columns, strict=True):
        draw(upper, ax)
        ax.set(ylim=(len(people) - 0.5, -0.5), yticks=[])
    _name_raters(axes[0], report)
    _legend(lower, report, few)
    for i, line in enumerate(lines):
        lower.text(0.012, 1 - (0.4 + 0.17 * i) / below, line, color=FAINT, fontsize=8, va="top")
    return figure


def _words(report: Mapping[str, Any]) -> list[str]:
    """What the raters' page says below."""
    agreement, region = report["agreement"], report["region"]
    size = " x ".join(str(n) for n in region["size"])
    words = [f"Looked at: {'the whole image' if region['whole'] else 'a box'} of {size} voxels."]
    if len(report["raters"]) > 1:
        words.append(
            f"Mean Dice of pairs {number(agreement['dice'])}; Fleiss' kappa {number(agreement['kappa'])} in the box "
            "around what was drawn."
        )
    return [*words, *report["notes"]]


def _name_raters(ax: Axes, report: Mapping[str, Any]) -> None:
    people = report["raters"]
    names = [one["name"] if one["kept"] else f"{one['name']} (dropped)" for one in people]
    ax.set_yticks(range(len(people)), [textwrap.shorten(name, 34, placeholder="...") for name in names], fontsize=7.5)
    for text, one in zip(ax.get_yticklabels(), people, strict=True):
        text.set_color(INK if one["kept"] else FAINT)


def _dots(ax: Axes, report: Mapping[str, Any], measure: str) -> None:
    """A dot for each label, or of many labels for their mean; a ring where the method has an estimate of its own."""
    people = report["raters"]
    few = len(report["labels"]) <= _MOST_LABELS
    series = [[one["labels"][k] for one in people] for k in range(len(report["labels"]))] if few else [people]
    lowest = 1.0
    for rows, colour in zip(series, COLOURS, strict=False):
        for key, face in ((measure, colour), (f"estimated_{measure}", "none")):
            found = [(row.get(key), i) for i, row in enumerate(rows)]
            known = [(value, i) for value, i in found if value is not None]
            if known:
                values, places = zip(*known, strict=True)
                size = 22 if face != "none" else 48
                ax.scatter(values, places, s=size, facecolors=face, edgecolors=colour, linewidths=1.1, zorder=3)
                lowest = min(lowest, *values)
    darken(ax)
    span = max(1.0 - lowest, 0.01)
    ax.set_xlim(max(lowest - 0.12 * span, -0.03), 1 + 0.06 * span)
    ax.hlines(range(len(people)), 0, 1, transform=ax.get_yaxis_transform(), color=LINE, linewidth=0.5, zorder=0)
    title = {"dice": "Dice with the consensus"}.get(measure, measure.capitalize())
    ax.set_title(title if few else f"{title}, mean", color=INK, fontsize=9.5)
    ax.locator_params(axis="x", nbins=5)


def _map(figure: Any, ax: Axes, report: Mapping[str, Any]) -> None:
    """Dice with the consensus of each rater and label; a label that neither has stays empty."""
    rows = [[row["dice"] for row in one["labels"]] for one in report["raters"]]
    found = np.array([[np.nan if value is None else value for value in row] for row in rows])
    drawn = ax.imshow(found, cmap=_HEAT, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    names = [textwrap.shorten(label["name"], 22, placeholder="...") for label in report["labels"]]
    darken(ax)
    if len(names) <= _MOST_NAMES:
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=6.5)
    else:
        ax.set_xlabel(f"{len(names)} labels, by value", color=FAINT, fontsize=8)
    ax.set_title("Dice with the consensus", color=INK, fontsize=9.5)
    colour_bar(figure, [ax], drawn, "Dice")


def _weights(ax: Axes, report: Mapping[str, Any]) -> None:
    """How much the method trusts each rater; a dot for each label where that differs between labels."""
    people, few = report["raters"], len(report["labels"]) <= _MOST_LABELS
    darken(ax)
    whole = [(i, one["weight"], one["kept"]) for i, one in enumerate(people) if one["weight"] is not None]
    if whole:
        places, weights, kept = zip(*whole, strict=True)
        ax.barh(places, weights, height=0.62, color=[COLOURS[1] if stays else _DROPPED for stays in kept])
    for k in range(len(report["labels"])):
        dots = [(one["labels"][k]["weight"], i) for i, one in enumerate(people)]
        known = [(weight, i) for weight, i in dots if weight is not None]
        if known:
            weights, places = zip(*known, strict=True)
            ax.scatter(weights, places, s=18 if few else 8, color=COLOURS[k] if few else COLOURS[1])
    ax.axvline(0, color=LINE, linewidth=0.8)
    ax.set_title(report["measure"].capitalize(), color=INK, fontsize=9.5)
    ax.locator_params(axis="x", nbins=4)


def _legend(lower: Any, report: Mapping[str, Any], few: bool) -> None:
    """Colours of the labels, and what dots and rings are."""
    x = 0.012
    entries = [(label["name"], colour) for label, colour in zip(report["labels"], COLOURS, strict=False)] if few else []
    estimated = any(one["estimated_sensitivity"] is not None for one in report["raters"])
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=textwrap.shorten(name, 30, placeholder="..."))
        for name, colour in entries
    ]
    if estimated:
        handles += [
            Line2D([], [], marker="o", linestyle="", color=FAINT, label="against the consensus"),
            Line2D([], [], marker="o", linestyle="", color=FAINT, fillstyle="none", label="as the method estimates it"),
        ]
    if handles:
        lower.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(x - 0.008, 1.0), ncols=len(handles), frameon=False,
            labelcolor=INK, fontsize=8, handletextpad=0.2, columnspacing=1.4, borderaxespad=0.1,
        )  # fmt: skip


def _agreement(report: Mapping[str, Any]) -> Figure:
    """Dice between each two raters, and of each label in the mean of all pairs."""
    people, labels = report["raters"], report["agreement"]["labels"]
    names = [textwrap.shorten(one["name"], 26, placeholder="...") for one in people]
    pairs = np.array([[np.nan if v is None else v for v in row] for row in report["agreement"]["pairs"]])
    np.fill_diagonal(pairs, np.nan)
    side = min(max(0.24 * len(people), 2.2), 14.0)
    several = len(labels) > 1
    width = max(side + 3.2, min(0.16 * len(labels) + 1.2, 14.0))
    heights = [side + 2.0, *([2.4] if several else [])]
    figure = new_figure(width, sum(heights))
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    ax = parts[0].subplots()
    known = pairs[~np.isnan(pairs)]
    low = float(known.min()) if known.size else 0.0
    drawn = ax.imshow(pairs, cmap=_HEAT, vmin=min(low, 0.999), vmax=1, interpolation="nearest")
    darken(ax)
    if len(people) <= _MOST_NAMES:
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7.5, color=INK)
        ax.set_yticks(range(len(names)), names, fontsize=7.5, color=INK)
    else:
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel(f"{len(people)} raters, in their order", color=FAINT, fontsize=8)
    if len(people) <= _MOST_NUMBERS:
        for (i, j), value in np.ndenumerate(pairs):
            if not np.isnan(value):
                ink = GROUND if value > 0.4 * low + 0.6 else INK
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    kappa = number(report["agreement"]["kappa"])
    ax.set_title(f"Dice of pairs; Fleiss' kappa {kappa}", color=INK, fontsize=9.5)
    colour_bar(parts[0], [ax], drawn, "Dice, mean of the labels" if several else "Dice")
    if several:
        _label_bars(parts[1].subplots(), labels)
    return figure


def _label_bars(ax: Axes, labels: Rows) -> None:
    """The mean Dice of all pairs for each label."""
    darken(ax)
    values = [np.nan if label["dice"] is None else label["dice"] for label in labels]
    ax.bar(range(len(labels)), values, width=0.65, color=COLOURS[0])
    ax.set(ylim=(0, 1), xlim=(-0.8, max(len(labels), 6) - 0.2))
    if len(labels) <= _MOST_NAMES:
        names = [textwrap.shorten(label["name"], 20, placeholder="...") for label in labels]
        turned = 90 if len(labels) > _MOST_LABELS else 0
        ax.set_xticks(range(len(labels)), names, fontsize=7.5 if len(labels) < 20 else 6.5, color=INK, rotation=turned)
    ax.set_title("Dice of pairs by label, mean", color=INK, fontsize=9.5)


def disagreement(raters: Raters, consensus: Consensus, target: Floats | None = None) -> Figure:
    """Planes through what the raters disagree about: the consensus' outlines above, the entropy of the labels below.

    Args:
        raters: who drew.
        consensus: what a method made of them.
        target: image on their grid, (z, y, x) or (y, x); without one, how many raters drew a voxel is shown.
    """
    box = raters.box(_AROUND)
    bits = entropy(raters)[box]
    if target is None:
        picture = np.mean([one[box] != 0 for one in raters.stack], axis=0)
    else:
        picture = np.nan_to_num(scaled(target[box].astype(np.float64), window(target[box])))
    grid = _cropped(raters.grid, box)
    cuts = planes(grid, centre_of(bits if bits.any() else raters.union()[box]))
    most = max(float(bits.max()), 1.0)
    heights, widths = [plane.size[1] for plane in cuts], [plane.size[0] for plane in cuts]
    scale = min(12.0 / sum(widths), 4.6 / max(heights))
    figure = new_figure(max(sum(widths) * scale, 4.5) + 1.2, 2 * max(heights) * scale + 0.8)
    axes = figure.subplots(2, len(cuts), width_ratios=widths, squeeze=False)
    for above, below, plane in zip(*axes, cuts, strict=True):
        cut = plane.cut(picture)
        show_plane(above, plane, cut, cmap="gray", vmin=0, vmax=1)
        _outline(above, plane, plane.cut(consensus.indices[box]), raters)
        share = (plane.cut(bits) / most).clip(0, 1)[..., None]
        heat = _HEAT(share[..., 0])[..., :3]
        show_plane(below, plane, np.where(share > 0, 0.25 * cut[..., None] + 0.75 * heat, 0.55 * cut[..., None]))
        scale_bar(below, plane)
        for ax in (above, below):
            finish_plane(ax, plane)
        above.set_title(f"{plane.name} {plane.place}".strip(), color=FAINT, fontsize=9)
    axes[0][0].set_ylabel("Consensus", color=INK, fontsize=9)
    axes[1][0].set_ylabel("Disagreement", color=INK, fontsize=9)
    colour_bar(figure, list(axes.ravel()), ScalarMappable(Normalize(0, most), _HEAT), "entropy of the labels (bits)")
    return figure


def _outline(ax: Axes, plane: Plane, labels: npt.NDArray[Any], raters: Raters) -> None:
    """The border of each label in its colour."""
    if min(labels.shape) < 2:
        return
    width, height = plane.size[0] / labels.shape[1], plane.size[1] / labels.shape[0]
    x, y = (np.arange(labels.shape[1]) + 0.5) * width, (np.arange(labels.shape[0]) + 0.5) * height
    for k in np.unique(labels):
        if k:
            ax.contour(x, y, labels == k, levels=[0.5], colors=[raters.labels[k - 1].color], linewidths=1.3)


def _cropped(grid: Grid, box: Region) -> Grid:
    """The grid of a part of the image."""
    start = np.array([part.start for part in reversed(box)])
    matrix, d = grid.matrix(), grid.dimension
    origin = matrix[:d, :d] @ start + matrix[:d, d]
    return dataclasses.replace(
        grid, size=tuple(part.stop - part.start for part in reversed(box)), origin=tuple(origin.tolist())
    )

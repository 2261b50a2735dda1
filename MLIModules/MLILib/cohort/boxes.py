"""Box plots of methods beside each other, as pictures for a report."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .. import charts
from .paired import Values

#: Told apart also by those who do not see red and green as others do (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
DPI = 130


def draw(title: str, groups: Mapping[str, Mapping[str, Values]]) -> bytes:
    """A PNG: a group for each label, in it a box for each method with every case as a dot.

    Boxes span the quartiles, whiskers reach the last case within 1.5 of their distance (Tukey 1977).

    Args:
        title: of the axis.
        groups: of each label each method's values; what is not finite is not drawn.
    """
    methods = list(next(iter(groups.values())))
    width = max(4.5, 1.2 + 0.45 * len(methods) * len(groups) + 0.4 * len(groups))
    figure = charts.new_figure(min(width, 14.0), 3.6)
    ax = figure.add_subplot()
    rng = np.random.default_rng(0)
    step = len(methods) + 1
    for g, values in enumerate(groups.values()):
        for m, method in enumerate(methods):
            finite = values[method][np.isfinite(values[method])]
            if not finite.size:
                continue
            colour = COLOURS[m % len(COLOURS)]
            place = g * step + m
            ax.boxplot(
                finite, positions=[place], widths=0.7, showfliers=False, patch_artist=True, manage_ticks=False,
                boxprops={"facecolor": colour, "alpha": 0.35, "edgecolor": colour}, medianprops={"color": "black"},
                whiskerprops={"color": colour}, capprops={"color": colour},
            )  # fmt: skip
            ax.plot(place + rng.uniform(-0.2, 0.2, finite.size), finite, ".", color=colour, markersize=3, alpha=0.7)
    ax.set(xticks=[g * step + (len(methods) - 1) / 2 for g in range(len(groups))], xlim=(-1, step * len(groups) - 1))
    ax.set_xticklabels(list(groups))
    ax.set_ylabel(title)
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    _legend(figure, methods)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI)
    return out.getvalue()


def _legend(figure: Figure, methods: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=COLOURS[m % len(COLOURS)], alpha=0.6, label=name) for m, name in enumerate(methods)]
    figure.legend(handles=patches, loc="outside upper center", ncols=min(4, len(methods)), frameon=False, fontsize=8)

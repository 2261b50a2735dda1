"""What all pictures share: a dark ground, planes in millimetres with letters at the borders, bars of scale and colour.

Dark, as in a reading room. Drawn without pyplot, which keeps a state of its own and may open windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke

from .. import charts
from .planes import Plane
from .views import Floats

INK, FAINT, GROUND, LETTER, WARN, LINE = "#e8ebf0", "#8b93a1", "#14171c", "#ffe27a", "#ffb454", "#333a45"
OUTLINE = [withStroke(linewidth=2.5, foreground=GROUND)]
#: Of what is told apart by colour.
COLOURS = ("#7fd6c2", "#5aa9ff", "#ffb454", "#d58cff")
DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    return charts.new_figure(width, height, GROUND)


def save_all(figures: Mapping[str, Figure], path: Callable[[str], str]) -> list[str]:
    """Write figures by the names of their files; the names.

    Args:
        figures: by name.
        path: gives the file to write now for a name.
    """
    for name, figure in figures.items():
        figure.savefig(path(name), dpi=DPI, facecolor=GROUND, format="png", pil_kwargs={"compress_level": 4})
    return list(figures)


def show_plane(ax: Axes, plane: Plane, picture: Floats, **how: Any) -> None:
    """Draw a plane in millimetres."""
    ax.imshow(picture, extent=(0.0, plane.size[0], plane.size[1], 0.0), interpolation="bilinear", **how)


def finish_plane(ax: Axes, plane: Plane) -> None:
    """Proportions, no ticks, letters at the borders."""
    ax.set(xlim=(0, plane.size[0]), ylim=(plane.size[1], 0), aspect="equal", xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set_visible(False)
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.98, "center", "top"),
              (0.5, 0.02, "center", "bottom"))  # fmt: skip
    for letter, (u, v, ha, va) in zip(plane.letters, places, strict=True):
        ax.text(
            u, v, letter, transform=ax.transAxes, ha=ha, va=va, color=LETTER, fontsize=8, weight="bold",
            path_effects=OUTLINE,
        )  # fmt: skip


def scale_bar(ax: Axes, plane: Plane) -> None:
    """A round length of up to a quarter of the plane's width."""
    wanted = plane.size[0] / 4
    power = 10 ** math.floor(math.log10(wanted))
    length = max(n * power for n in (1, 2, 5) if n * power <= wanted)
    x, y = plane.size[0] * 0.96 - length, plane.size[1] * 0.95
    ax.plot([x, x + length], [y, y], color="white", linewidth=2.5, solid_capstyle="butt")
    text = f"{length / 10:g} cm" if length >= 10 else f"{length:g} mm"
    ax.text(
        x + length / 2, y - plane.size[1] * 0.015, text, color="white", ha="center", va="bottom", fontsize=7,
        path_effects=OUTLINE,
    )  # fmt: skip


def colour_bar(figure: Figure | SubFigure, where: Any, mappable: ScalarMappable, label: str) -> Any:
    """A colour bar: in axes of its own, or beside a list of axes."""
    place = {"ax": where, "shrink": 0.8, "pad": 0.01} if isinstance(where, list) else {"cax": where}
    made = figure.colorbar(mappable, **place)
    made.set_label(label, color=FAINT, fontsize=8)
    made.ax.tick_params(colors=FAINT, labelsize=7)
    made.outline.set_visible(False)
    return made


def darken(ax: Axes) -> None:
    """The colours of axes with numbers."""
    ax.set_facecolor("#0c0e11")
    ax.tick_params(colors=FAINT, labelsize=7)
    for side in ax.spines.values():
        side.set_color(LINE)

"""Pictures of numbers, as PNG: drawn without pyplot, which keeps a state of its own and may open windows.

matplotlib is imported when a picture is made, so that a module which may draw one needs it only then.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import MissingPackage
from .files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Pixels an inch, where nothing else is said.
DPI = 120


def require_matplotlib() -> None:
    """Raise :class:`MissingPackage` unless a learning curve can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackage(
            "The package matplotlib is not installed.", "It draws the learning curve.", "Run: pip install matplotlib"
        ) from error


def new_figure(width: float, height: float, ground: str = "white") -> Figure:
    """An empty figure.

    Args:
        width, height: inches.
        ground: colour of the paper.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), facecolor=ground, layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(figure: Figure, path: str | Path, dpi: int = DPI) -> None:
    """Write the file now, whatever its suffix."""
    figure.savefig(path, dpi=dpi, format="png")


def replace(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Write the file in one step: whole, or not at all."""
    replace_file(path, lambda partial: save(figure, partial, dpi))

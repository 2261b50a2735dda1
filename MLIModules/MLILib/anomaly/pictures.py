"""Pictures of a training: what the model makes beside what it saw, and how losses and checks went. Tables, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from .. import charts
from ..files import replace_file
from ..registration.drawing import COLOURS, DPI, FAINT, INK, darken, new_figure
from ..tables import write_csv

#: Images a row of the picture of samples.
ACROSS = 8


def mosaic(rows: Sequence[Tensor]) -> np.ndarray:
    """Rows of images (n, 1, h, w) in -1 to 1 as one picture, 0 to 255, a pixel of black between."""
    lines = []
    for row in rows:
        cells = row[:ACROSS, 0].float().cpu().numpy()
        cells = np.pad(cells, ((0, ACROSS - len(cells)), (0, 0), (0, 0)), constant_values=-1.0)
        padded = np.pad(cells, ((0, 0), (0, 1), (0, 1)), constant_values=-1.0)
        lines.append(np.concatenate(list(padded), axis=1))
    whole = np.concatenate(lines, axis=0)
    return np.clip((whole + 1.0) * 127.5, 0, 255).astype(np.uint8)


def write_samples(rows: Sequence[Tensor], path: Path) -> None:
    """Write a mosaic as PNG, whole or not at all."""
    from PIL import Image

    picture = Image.fromarray(mosaic(rows), "L")
    scale = max(1, round(512 / picture.width))
    shown = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    replace_file(path, lambda partial: shown.save(partial, "PNG"))


def write_history(history: Sequence[Mapping[str, float]], folder: Path) -> None:
    """Write training_curve.csv and training_curve.png: every figure by step, one small plot each."""
    if not history:
        return
    names = list(dict.fromkeys(name for row in history for name in row if name not in ("step", "phase")))
    write_csv(folder / "training_curve.csv", history, ["step", *names], number=lambda value: f"{value:.6g}")
    shown = [name for name in names if name != "seconds"]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = new_figure(3.2 * columns, 2.2 * lines)
    for i, name in enumerate(shown):
        ax = figure.add_subplot(lines, columns, i + 1)
        darken(ax)
        points = [(row["step"], row[name]) for row in history if name in row]
        ax.plot(*zip(*points, strict=True), color=COLOURS[i % len(COLOURS)], linewidth=1.2)
        ax.set_title(name, color=INK, fontsize=9)
        ax.set_xlabel("step", color=FAINT, fontsize=7)
    charts.replace(figure, folder / "training_curve.png", DPI)

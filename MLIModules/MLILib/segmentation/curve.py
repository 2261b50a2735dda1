"""The learning curve of a training, as a table and as a picture."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path


def write_curve(history: Sequence[dict[str, float]], labels: Sequence[str], folder: Path) -> None:
    """Write learning_curve.csv and learning_curve.png into `folder`.

    Args:
        history: one row an epoch: epoch, loss, seconds, and where it was validated dice_<label> and validation_dice.
        labels: names of the labels.
        folder: exists.
    """
    columns = ["epoch", "loss", "validation_dice", *(f"dice_{name}" for name in labels), "seconds"]
    partial = folder / "learning_curve.csv.partial"
    with open(partial, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        for row in history:
            writer.writerow({k: round(v, 6) for k, v in row.items() if k in columns})
    os.replace(partial, folder / "learning_curve.csv")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axis = figure.add_subplot()
    loss_axis.plot([r["epoch"] for r in history], [r["loss"] for r in history], color="0.55", label="training loss")
    loss_axis.set_xlabel("epoch")
    loss_axis.set_ylabel("training loss (cross-entropy + soft Dice)")
    validated = [r for r in history if "validation_dice" in r]
    if validated:
        dice_axis = loss_axis.twinx()
        for name in labels:
            dice_axis.plot([r["epoch"] for r in validated], [r[f"dice_{name}"] for r in validated], label=name)
        epochs = [r["epoch"] for r in validated]
        dice_axis.plot(epochs, [r["validation_dice"] for r in validated], color="black", label="mean")
        dice_axis.set_ylabel("validation Dice")
        dice_axis.legend(loc="center right")
    picture = folder / "learning_curve.png.partial"
    figure.savefig(picture, dpi=120, format="png")
    os.replace(picture, folder / "learning_curve.png")

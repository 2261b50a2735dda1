"""The learning curve of a training: as a table, as a picture, and an epoch of it as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import charts
from ..tables import write_csv


def write_curve(
    history: Sequence[dict[str, float]],
    labels: Sequence[str],
    folder: Path,
    *,
    loss_name: str = "cross-entropy + soft Dice",
) -> None:
    """Write learning_curve.csv and learning_curve.png into `folder`.

    Args:
        history: one row an epoch: epoch, loss, seconds, and where it was validated dice_<label> and validation_dice,
            or validation_loss.
        labels: names of the labels.
        folder: exists.
        loss_name: what the training loss is made of, for the axis.
    """
    columns = ["epoch", "loss", "validation_dice", *(f"dice_{name}" for name in labels), "seconds"]
    if any("validation_loss" in row for row in history):
        columns.insert(2, "validation_loss")
    write_csv(folder / "learning_curve.csv", history, columns)
    figure = charts.new_figure(7, 4)
    loss_axis = figure.add_subplot()
    loss_axis.plot([r["epoch"] for r in history], [r["loss"] for r in history], color="0.55", label="training loss")
    loss_axis.set_xlabel("epoch")
    loss_axis.set_ylabel(f"training loss ({loss_name})")
    compared = [r for r in history if "validation_loss" in r]
    if compared:
        epochs = [r["epoch"] for r in compared]
        loss_axis.plot(epochs, [r["validation_loss"] for r in compared], color="0.3", ls="--", label="validation loss")
        loss_axis.legend(loc="upper left")
    validated = [r for r in history if "validation_dice" in r]
    if validated:
        dice_axis = loss_axis.twinx()
        for name in labels:
            dice_axis.plot([r["epoch"] for r in validated], [r[f"dice_{name}"] for r in validated], label=name)
        epochs = [r["epoch"] for r in validated]
        dice_axis.plot(epochs, [r["validation_dice"] for r in validated], color="black", label="mean")
        dice_axis.set_ylabel("validation Dice")
        dice_axis.legend(loc="center right")
    charts.replace(figure, folder / "learning_curve.png")


def epoch_text(row: Mapping[str, float], epochs: int) -> str:
    """A row of the history as a line for the reader, of so many epochs in all."""
    text = f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.4f}"
    if "validation_dice" in row:
        dice = ", ".join(f"{k.removeprefix('dice_')} {v:.4f}" for k, v in row.items() if k.startswith("dice_"))
        text += f"  validation Dice {row['validation_dice']:.4f} ({dice})"
    elif "validation_loss" in row:
        text += f"  validation loss {row['validation_loss']:.4f}"
    return f"{text}  {row['seconds']:.0f} s"

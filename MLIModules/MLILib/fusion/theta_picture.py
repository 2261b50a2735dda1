"""How theta was learned, as a picture: losses over steps, and theta beside true Dice or by target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import charts


def draw(table: Sequence[Mapping[str, Any]], curve: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write a PNG.

    Args:
        table: one row a label map: target, atlas, theta, dice (None where the truth is not known).
        curve: rows with step, loss, theta_loss.
        path: of the file; its suffix does not matter.
    """
    figure = charts.new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in curve]
    left.plot(steps, [row["loss"] for row in curve], color="black", label="network")
    left.set_xlabel("step")
    left.set_ylabel("loss of the network")
    other = left.twinx()
    other.plot(steps, [row["theta_loss"] for row in curve], color="#0072B2", label="data parameters")
    other.set_ylabel("loss of the data parameters", color="#0072B2")
    known = [row for row in table if row["dice"] is not None]
    if known:
        right.scatter([row["dice"] for row in known], [row["theta"] for row in known], s=8, color="#0072B2", alpha=0.6)
        right.set_xlabel("true Dice of a registered label map")
    else:
        names = list(dict.fromkeys(row["target"] for row in table))
        places = {name: i for i, name in enumerate(names)}
        right.scatter([places[row["target"]] for row in table], [row["theta"] for row in table], s=8, color="#0072B2")
        right.set_xlabel("target")
    right.set_ylabel("data parameter theta")
    charts.save(figure, path)

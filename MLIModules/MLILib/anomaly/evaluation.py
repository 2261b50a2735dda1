"""How well scores tell anomalies from normal: ROC and precision-recall curves, their areas, and Dice at thresholds.

Per image or per voxel. Where few voxels are abnormal the area under the ROC curve says little: .99 goes together with a
best Dice of .4. Average precision and best Dice lead, and trivial baselines stand beside the model in every table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from .. import charts, metrics
from ..errors import BadInput
from ..geometry import Grid, describe, same_grid

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """What all thresholds of a score give. A case counts as found when its score is at or above the threshold.

    Attributes:
        auroc: area under the ROC curve: how often an abnormal case scores above a normal one, ties counting half.
        auprc: average precision, the precision-recall curve's area without interpolation (what a random score gets is
            `prevalence`).
        best_dice: highest Dice of any threshold, and the threshold that gives it.
        best_threshold: see above.
        fpr, tpr: ROC curve, from (0, 0) to (1, 1), one point a distinct score.
        precision, recall: of the same thresholds, from high to low; the point at recall 0 has precision 1.
        thresholds: the distinct scores, descending; the first point of the curves belongs to infinity.
        positives, negatives: abnormal and normal cases.
    """

    auroc: float
    auprc: float
    best_dice: float
    best_threshold: float
    fpr: Floats
    tpr: Floats
    precision: Floats
    recall: Floats
    thresholds: Floats
    positives: int
    negatives: int

    @property
    def prevalence(self) -> float:
        """Share of abnormal cases."""
        return self.positives / (self.positives + self.negatives)

    def summary(self) -> dict[str, Any]:
        """The figures as plain values, without the curves."""
        return {
            "auprc": self.auprc,
            "best_dice": self.best_dice,
            "best_threshold": self.best_threshold,
            "auroc": self.auroc,
            "prevalence": self.prevalence,
            "positives": self.positives,
            "negatives": self.negatives,
        }

    def points(self, most: int = 200) -> dict[str, list[float]]:
        """The curves thinned to at most `most` points, as plain values for a report or a plot; the ends are kept."""
        keep = np.unique(np.linspace(0, len(self.fpr) - 1, most).round().astype(int))
        # Evenly along the longer of the two axes: most thresholds of a rare class lie where nothing changes.
        along = np.linspace(0.0, 1.0, most)
        keep = np.unique(np.concatenate([np.searchsorted(self.recall, along).clip(max=len(self.recall) - 1), keep]))
        if len(keep) > most:
            keep = keep[np.unique(np.linspace(0, len(keep) - 1, most).round().astype(int))]
        names = ("fpr", "tpr", "precision", "recall")
        return {name: [float(x) for x in getattr(self, name)[keep]] for name in names}


def curves(scores: npt.ArrayLike, truth: npt.ArrayLike) -> Curves:
    """All thresholds of `scores` against `truth`.

    Args:
        scores: one a case, higher is more abnormal, any shape.
        truth: what is not 0 is abnormal, same shape.

    Raises:
        BadInput: only normal or only abnormal cases, or scores that are not finite.
        ValueError: the shapes differ.
    """
    flat, wanted = np.asarray(scores).ravel(), np.asarray(truth).ravel() != 0
    if flat.shape != wanted.shape:
        msg = f"{flat.size} scores cannot be compared with {wanted.size} cases"
        raise ValueError(msg)
    positives = int(np.count_nonzero(wanted))
    negatives = wanted.size - positives
    if not positives or not negatives:
        raise BadInput(
            f"Every case that scores are compared with is {'normal' if not positives else 'abnormal'}.",
            "How well the two are told apart is known only where there are both.",
            "Give a reference that holds lesions (and normal tissue), or none.",
        )
    if not np.isfinite(flat).all():
        raise BadInput("Some scores are not finite numbers.", "The scoring went wrong.", "Check the image and model.")
    order = np.argsort(-flat, kind="stable")
    ranked = flat[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)  # the last case of each distinct score
    true = np.cumsum(wanted[order], dtype=np.int64)[last].astype(np.float64)
    found = last + 1.0
    false = found - true
    tpr, fpr = np.append(0.0, true / positives), np.append(0.0, false / negatives)
    precision, recall = np.append(1.0, true / found), tpr
    dice = 2.0 * true / (found + positives)
    best = int(dice.argmax())
    return Curves(
        auroc=float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1])) / 2),
        auprc=float(np.sum(np.diff(recall) * precision[1:])),
        best_dice=float(dice[best]),
        best_threshold=float(ranked[last[best]]),
        fpr=fpr,
        tpr=tpr,
        precision=precision,
        recall=recall,
        thresholds=ranked[last].astype(np.float64),
        positives=positives,
        negatives=negatives,
    )


def voxels(map: sitk.Image, truth: sitk.Image, mask: sitk.Image | None = None) -> Curves:
    """:func:`curves` of a map's voxels.

    Args:
        map: score of each voxel.
        truth: lesions on the same grid, what is not 0 is abnormal.
        mask: where voxels are counted; None counts all of them.

    Raises:
        BadInput: another grid, or nothing to tell apart inside the mask.
    """
    scores, wanted = _on_grid(map, truth, mask)
    return curves(scores, wanted)


def dice_at(scores: npt.ArrayLike, truth: npt.ArrayLike, threshold: float) -> dict[str, float | None]:
    """Dice, precision and recall when what scores at least `threshold` counts as found.

    A ratio with nothing to divide by is None: precision where nothing is found, recall and Dice where there is nothing
    to find (Dice only where nothing was found either).
    """
    found, wanted = np.asarray(scores).ravel() >= threshold, np.asarray(truth).ravel() != 0
    hit, drawn, there = (int(np.count_nonzero(x)) for x in (found & wanted, found, wanted))
    return {
        "threshold": float(threshold),
        "dice": 2.0 * hit / (drawn + there) if drawn + there else None,
        "precision": hit / drawn if drawn else None,
        "recall": hit / there if there else None,
    }


def labels_dice(labels: sitk.Image, truth: sitk.Image, mask: sitk.Image | None = None) -> dict[str, float | None]:
    """Dice, precision and recall of a finished segmentation, as :func:`dice_at` gives them."""
    found, wanted = _on_grid(labels, truth, mask)
    return {k: v for k, v in dice_at(found != 0, wanted, 1).items() if k != "threshold"}


def _on_grid(map: sitk.Image, truth: sitk.Image, mask: sitk.Image | None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Scores and truth inside the mask, flat."""
    for image, name in ((truth, "reference"), (mask, "mask")):
        if image is not None and not same_grid(image, map, metrics.GRID_TOLERANCE):
            raise BadInput(
                f"The {name} is not on the image's grid.",
                f"It has {describe(Grid.of(image))}, the image {describe(Grid.of(map))}.",
                f"Resample the {name} to the image with nearest-neighbour interpolation.",
            )
    scores, wanted = sitk.GetArrayViewFromImage(map), sitk.GetArrayViewFromImage(truth)
    if mask is None:
        return scores.ravel(), wanted.ravel()
    inside = sitk.GetArrayViewFromImage(mask) != 0
    return scores[inside], wanted[inside]


def table(rows: Mapping[str, Curves], *, at: Mapping[str, float | None] | None = None) -> str:
    """Methods beside each other for a terminal: average precision and best Dice first.

    Args:
        rows: by method, the model first.
        at: Dice at the chosen threshold, by method, where one was chosen.
    """
    chosen = dict(at or {})
    width = max(len(name) for name in rows)
    head = f"{'':<{width}}  {'AUPRC':>6}  {'best Dice':>9}  {'AUROC':>6}"
    lines = [head + (f"  {'Dice at threshold':>17}" if chosen else "")]
    for name, one in rows.items():
        line = f"{name:<{width}}  {one.auprc:>6.3f}  {one.best_dice:>9.3f}  {one.auroc:>6.3f}"
        dice = chosen.get(name)
        lines.append(line + (f"  {'' if dice is None else f'{dice:.3f}':>17}" if chosen else ""))
    first = next(iter(rows.values()))
    lines.append(f"A random score has an AUPRC of {first.prevalence:.3f} and an AUROC of 0.5.")
    return "\n".join(lines)


def draw(rows: Mapping[str, Curves], path: str | Path) -> None:
    """Write precision-recall and ROC curves of several methods as a PNG, whatever the file's suffix.

    Args:
        rows: by method, the model first; it is drawn thicker.
        path: of the file.
    """
    from ..registration.drawing import COLOURS, DPI, FAINT, GROUND, INK, LINE, new_figure

    figure = new_figure(10.0, 4.8 + 0.22 * len(rows))
    left, right = figure.subplots(1, 2)
    for i, (name, one) in enumerate(rows.items()):
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "linewidth": 2.4 if i == 0 else 1.2,
            "linestyle": ("-", "--", ":")[min(i // len(COLOURS), 2)],
        }
        thin = one.points(800)
        left.plot(thin["recall"], thin["precision"], label=f"{name} {one.auprc:.3f}", drawstyle="steps-pre", **style)
        right.plot(thin["fpr"], thin["tpr"], label=f"{name} {one.auroc:.3f}", **style)
    prevalence = next(iter(rows.values())).prevalence
    left.axhline(prevalence, color=FAINT, linewidth=0.8)
    right.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
    left.set(xlabel="recall", ylabel="precision", title="Precision-recall (area)")
    right.set(xlabel="false-positive rate", ylabel="true-positive rate", title="ROC (area)")
    for ax in (left, right):
        ax.set(xlim=(0, 1), ylim=(0, 1.005), facecolor=GROUND)
        ax.tick_params(colors=INK)
        for word in (ax.title, ax.xaxis.label, ax.yaxis.label):
            word.set_color(INK)
        for side in ax.spines.values():
            side.set_color(LINE)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13)}
        ax.legend(facecolor=GROUND, edgecolor=LINE, labelcolor=INK, fontsize=8, **below)
    charts.save(figure, path, DPI)

"""The raters' report: how far each agrees with the consensus and with the others, how much the method trusts him.

Plain values for JSON, without NaN: what is not defined is None. :func:`table` shows it on a terminal,
:mod:`MLILib.fusion.report_pictures` draws it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import tables
from ..metrics import for_json
from ..registration.summary import number
from . import patterns
from .agreement import dice_of, entropy_of, fleiss_kappa
from .patterns import Patterns
from .raters import Consensus, Raters, Region

Doubles = npt.NDArray[np.float64]

#: What is said of each rater and label, and in the mean over the labels of each rater.
MEASURES = ("dice", "sensitivity", "specificity", "estimated_sensitivity", "estimated_specificity")

#: With more labels the table shows each rater's mean over them.
_MOST_LABELS = 4


def report(raters: Raters, consensus: Consensus, *, measure: str = "weight") -> dict[str, Any]:
    """What can be said of raters after their labels were fused.

    All is counted within the consensus' region, as outside of it nothing was decided; specificities rise with the
    background in it. Sensitivity and specificity take the consensus for the truth: the share of the consensus that a
    rater drew, and the share of what is not in it that he left out. The estimated ones are the method's own.

    Args:
        raters: all that took part.
        consensus: what a method made of them.
        measure: what the method's trust in a rater is called: "weight", or "theta" of DeepSTAPLE.

    Returns:
        A dict of

        - ``measure``: `measure`, None where the method has no such number.
        - ``labels``: of the consensus, each {value, name, voxels, volume_ml}.
        - ``raters``: each {name, kept, weight, labels, and the mean over the labels of each of :data:`MEASURES`}, where
          ``labels`` are {value, name, voxels, volume_ml, weight, each of :data:`MEASURES`}; ``weight`` is None where
          there is one for each rater alone, or for each label alone.
        - ``agreement``: {kappa (Fleiss'), kappa_voxels (of the box around all that was drawn, which it was taken in),
          dice (mean over all pairs and labels), labels: {value, name, dice}, pairs: Dice between each two raters, mean
          over labels, as rows}.
        - ``disagreement``: {voxels (where raters differ), mean_bits (over these), max_bits}.
        - ``region``: {start, size (voxels, x first), voxels, whole}.
        - ``ties``, ``iterations``, ``notes``: see :class:`MLILib.fusion.raters.Consensus`.
    """
    levels, region = len(raters.labels) + 1, consensus.region
    decided = consensus.indices.astype(raters.stack.dtype, copy=False)
    found = patterns.find([*raters.stack, decided], levels, region)
    confusion = _confusion(found)
    of_labels = _measures(confusion, consensus)
    pairs = dice_of(found)[:, :-1, :-1]
    size = confusion[0].sum(axis=0)
    drawn = confusion.sum(axis=2)
    ml = raters.grid.voxel_ml
    weights = consensus.weights
    people = []
    for i, name in enumerate(raters.names):
        rows = [
            {
                "value": label.value,
                "name": label.name,
                "voxels": int(drawn[i, k]),
                "volume_ml": float(drawn[i, k] * ml),
                "weight": float(weights[i, k - 1]) if weights is not None and weights.ndim == 2 else None,
                **{measure: float(values[i, k - 1]) for measure, values in of_labels.items()},
            }
            for k, label in enumerate(raters.labels, 1)
        ]
        people.append(
            {
                "name": name,
                "kept": bool(consensus.kept[i]),
                "weight": float(weights[i]) if weights is not None and weights.ndim == 1 else None,
                **{measure: _mean(values[i]) for measure, values in of_labels.items()},
                "labels": rows,
            }
        )
    different = np.triu(np.ones(pairs.shape[1:], dtype=bool), 1)
    box = raters.box()
    made: dict[str, Any] = for_json(
        {
            "measure": None if weights is None else measure,
            "labels": [
                {"value": one.value, "name": one.name, "voxels": int(size[k]), "volume_ml": float(size[k] * ml)}
                for k, one in enumerate(raters.labels, 1)
            ],
            "raters": people,
            "agreement": {
                "kappa": fleiss_kappa(raters, box),
                "kappa_voxels": int(np.prod([part.stop - part.start for part in box])),
                "dice": _mean(pairs[:, different]),
                "labels": [
                    {"value": one.value, "name": one.name, "dice": _mean(own[different])}
                    for one, own in zip(raters.labels, pairs, strict=True)
                ],
                "pairs": [[_mean(pairs[:, i, j]) for j in range(len(raters))] for i in range(len(raters))],
            },
            "disagreement": _disagreement(found),
            "region": _region(region, raters),
            "ties": consensus.ties,
            "iterations": consensus.iterations,
            "notes": [*consensus.notes, *_notes(raters, region)],
        }
    )
    return made


def table(found: Mapping[str, Any]) -> str:
    """A report as lines of text: a row for each rater and label, of many labels their mean; what else there is below.

    Args:
        found: see :func:`report`.
    """
    labels = found["labels"]
    each = len(labels) <= _MOST_LABELS
    estimated = any(one["estimated_sensitivity"] is not None for one in found["raters"])
    shown = [measure for measure in MEASURES if estimated or not measure.startswith("estimated")]
    weighed = found["measure"]
    heading = ["Rater", *(["Label"] if each else []), *(_TITLES[measure] for measure in shown)]
    heading += [weighed.capitalize()] if weighed else []
    rows = [heading]
    for one in found["raters"]:
        name = one["name"] if one["kept"] else f"{one['name']} (dropped)"
        for i, row in enumerate(one["labels"] if each else [one]):
            weight = row["weight"] if row["weight"] is not None else one["weight"] if i == 0 else None
            cells = [name if i == 0 else "", *([row["name"]] if each else [])]
            cells += [number(row[measure]) for measure in shown]
            cells += [number(weight) if weight is not None else ""] if weighed else []
            rows.append(cells)
    lines = [tables.grid(rows, texts=2 if each else 1)]
    agreement, region = found["agreement"], found["region"]
    size = " x ".join(str(n) for n in region["size"])
    together = (
        f"Agreement of the raters: Dice {number(agreement['dice'])} in the mean of all pairs, Fleiss' kappa "
        f"{number(agreement['kappa'])} in the box around what they drew."
    )
    lines += [
        "",
        *([] if each else [f"Means over {len(labels)} labels; the report holds each."]),
        *([together] if len(found["raters"]) > 1 else []),
        f"Looked at: {'the whole image' if region['whole'] else 'a box'} of {size} voxels.",
        *found["notes"],
    ]
    return "\n".join(line.rstrip() for line in "\n".join(lines).split("\n"))


_TITLES = {
    "dice": "Dice",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "estimated_sensitivity": "Est. sensitivity",
    "estimated_specificity": "Est. specificity",
}


def _confusion(found: Patterns) -> npt.NDArray[np.int64]:
    """Voxels by what a rater and the consensus, the last of the patterns' raters, say: (raters, said, consensus)."""
    levels = found.levels
    true = found.decisions[:, -1].astype(np.int64)
    out = np.empty((found.decisions.shape[1] - 1, levels, levels), dtype=np.int64)
    for one, said in zip(out, found.decisions.T.astype(np.int64), strict=False):
        # Counts are whole numbers below 2^53, which doubles hold exactly.
        sums = np.bincount(said * levels + true, found.counts.astype(np.float64), minlength=levels**2)
        one[...] = sums.reshape(levels, levels)
    return out


def _measures(confusion: npt.NDArray[np.int64], consensus: Consensus) -> dict[str, Doubles]:
    """Each of :data:`MEASURES`, (raters, labels); nan where it is not defined."""
    voxels = confusion[0].sum()
    both = np.einsum("ill->il", confusion)[:, 1:].astype(np.float64)
    drawn, true = confusion.sum(axis=2)[:, 1:], confusion.sum(axis=1)[:, 1:]
    unknown = np.full_like(both, np.nan)
    return {
        "dice": _ratio(2 * both, drawn + true),
        "sensitivity": _ratio(both, true),
        "specificity": _ratio(voxels - drawn - true + both, voxels - true),
        "estimated_sensitivity": unknown if consensus.sensitivity is None else consensus.sensitivity,
        "estimated_specificity": unknown if consensus.specificity is None else consensus.specificity,
    }


def _ratio(numerator: Doubles, denominator: npt.NDArray[np.int64]) -> Doubles:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _mean(values: Sequence[float] | Doubles) -> float:
    """The mean of what is defined, nan where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)  # numpy's "mean of empty slice"
        return float(np.nanmean(values))


def _disagreement(found: Patterns) -> dict[str, Any]:
    """How much the raters, all but the last of the patterns', differ."""
    bits = entropy_of(Patterns(found.decisions[:, :-1], found.counts, found.index, found.levels))
    differ = bits > 0
    voxels = int(found.counts[differ].sum())
    total = float(found.counts[differ] @ bits[differ].astype(np.float64))
    return {"voxels": voxels, "mean_bits": total / voxels if voxels else 0.0, "max_bits": float(bits.max(initial=0.0))}


def _region(region: Region, raters: Raters) -> dict[str, Any]:
    size = [part.stop - part.start for part in reversed(region)]
    return {
        "start": [part.start for part in reversed(region)],
        "size": size,
        "voxels": int(np.prod(size)),
        "whole": region == raters.whole(),
    }


def _notes(raters: Raters, region: Region) -> list[str]:
    """What a reader should know of who was fused."""
    notes = []
    if len(raters) == 1:
        notes.append("With one rater, agreement cannot be measured.")
    box = raters.box()
    if any(b.start < r.start or b.stop > r.stop for b, r in zip(box, region, strict=True)):
        notes.append("Raters drew outside of the region; that is not in the consensus, nor in these figures.")
    everything = set(range(1, len(raters.labels) + 1))
    for name, one in zip(raters.names, raters.stack, strict=True):
        missing = everything - set(np.flatnonzero(np.bincount(one.ravel(), minlength=2)).tolist())
        if len(missing) == len(everything):
            notes.append(f"{name} drew nothing.")
        elif missing:
            names = [raters.labels[k - 1].name for k in sorted(missing)]
            notes.append(f"{name} drew none of: {', '.join(names)}.")
    return notes

"""The quality of a registration as a table: the same rows on a terminal and in the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Labels beyond this number are summed up in their mean.
_MOST_LABELS = 5


def rows(quality: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The measures as text: what, before, after; the first row is the heading.

    Args:
        quality: see :func:`MLILib.registration.quality.assess`.
    """
    out = [("", "before", "after")]
    for name, after in quality["similarity_after"].items():
        better = quality["similarity_better"][name]
        out.append(
            (f"Similarity {name}, {better} is better", number(quality["similarity_before"][name]), number(after))
        )
    for key, text in (("dice", "Dice"), ("hd95", "HD95 (mm)")):
        found = quality[key]
        labels = found if len(found) <= _MOST_LABELS + 1 else {"mean": found["mean"]}
        out += [(f"{text}, {label}", number(pair["before"]), number(pair["after"])) for label, pair in labels.items()]
    if quality["tre"]:
        tre = quality["tre"]
        out.append((f"Landmark error, mean of {tre['n']} (mm)", number(tre["before_mean"]), number(tre["mean"])))
        out.append(("Landmark error, median (mm)", number(tre["before_median"]), number(tre["median"])))
        out.append(("Landmark error, largest (mm)", number(tre["before_max"]), number(tre["max"])))
    jacobian = quality["jacobian"]
    out.append(("Local volume, smallest and largest", "", f"{number(jacobian['min'])} ... {number(jacobian['max'])}"))
    out.append(("Folded voxels", "", f"{jacobian['folded']:.3%}"))
    out.append(("SD of log Jacobian", "", number(jacobian["sd_log"])))
    out.append(("SD of log Jacobian, Learn2Reg's", "", number(jacobian["sd_log_learn2reg"])))
    inverse = quality["inverse_consistency"]
    if inverse:
        out.append(("Inverse misses by, mean and largest (mm)", "", f"{inverse['mean']:.3f}, {inverse['max']:.3f}"))
    return out


def table(quality: Mapping[str, Any]) -> str:
    """The rows as lines of text, and the warnings and notes below them."""
    found = rows(quality)
    wide = [max(len(row[i]) for row in found) for i in range(3)]
    lines = [f"{what:<{wide[0]}}  {before:>{wide[1]}}  {after:>{wide[2]}}".rstrip() for what, before, after in found]
    lines.insert(1, "-" * (sum(wide) + 4))
    return "\n".join([*lines, *(f"\nWarning: {text}" for text in quality["warnings"]), *quality["notes"]])


def number(value: float | None) -> str:
    """A value with as many digits as mean something; "n/a" where it is not defined."""
    if value is None:
        return "n/a"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"

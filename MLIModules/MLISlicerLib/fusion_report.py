"""The raters' report as a reader sees it: a table of trust in each rater, bars, and the agreement in words."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

from slicer.i18n import tr as _

from MLILib.fusion.methods import METHODS
from MLILib.progress import duration

from . import charts
from .nodes import node_or_new
from .state_list import State

#: With more labels the bars show each rater's mean over them.
_MOST_LABELS = 4
#: With more labels their volumes are not listed in words.
_MOST_VOLUMES = 8
#: Measures in the table: key of the report and heading; those a method does not estimate are left out.
_MEASURES = {
    "dice": "Dice",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "estimated_sensitivity": "Est. sensitivity",
    "estimated_specificity": "Est. specificity",
}
#: Upper ends of the ranges of kappa, as J. R. Landis and G. G. Koch call them (Biometrics 33, 1977); below 0 is poor.
_KAPPA = (
    (0.2, "slight"),
    (0.4, "fair"),
    (0.6, "moderate"),
    (0.8, "substantial"),
    (1.0, "almost perfect"),
)


def states(details: Mapping[str, Any]) -> list[State]:
    """How each atlas or rater of a result fared."""
    found = []
    for one in details["raters"]:
        status, note = str(one["status"]), str(one.get("reason") or "")
        if status == "used" and one.get("cached"):
            status = "cached"
        elif status == "used" and one.get("seconds"):
            status, note = "done", duration(float(one["seconds"]))
        found.append(State(str(one["name"]), status, note))
    return found


def table(details: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Columns of the raters' table: a row a rater and label.

    Args:
        details: result of the task "fuse".
    """
    report = details["report"]
    rows = [(rater, label) for rater in report["raters"] for label in rater["labels"]]
    columns: dict[str, list[Any]] = {
        _("Rater"): [_name(rater) for rater, _label in rows],
        _("Label"): [str(label["name"]) for _rater, label in rows],
    }
    for key, heading in _MEASURES.items():
        if any(label[key] is not None for _rater, label in rows):
            digits = 4 if "specificity" in key else 3  # which the background brings close to 1
            columns[heading] = [_number(label[key], digits) for _rater, label in rows]
        if key == "dice" and report["measure"]:
            columns[_measure(report)] = [_short(_weight(rater, label)) for rater, label in rows]
    return columns


def show_charts(result: Any, details: Mapping[str, Any], previous: Mapping[str, Any]) -> None:
    """Put each rater's overlap with the consensus, and weight, into a table and charts, and those into `result`."""
    report = details["report"]
    told = result.segmentation.GetName()
    raters = report["raters"]
    few = len(report["labels"]) <= _MOST_LABELS
    overlaps = {
        f"{label['name']}": [_number(rater["labels"][k]["dice"]) for rater in raters]
        for k, label in enumerate(report["labels"] if few else ())
    } or {_("Mean of the labels"): [_number(rater["dice"]) for rater in raters]}
    weights: dict[str, list[float]] = {}
    if report["measure"]:
        weights = _weights(report, few)
    overlaps = {_("Dice, {name}").format(name=name): values for name, values in overlaps.items()}
    result.agreement = node_or_new(
        previous.get("agreement"), "vtkMRMLTableNode", _("{name} raters' agreement").format(name=told)
    )
    charts.fill_table(result.agreement, {_("Rater"): [_name(rater) for rater in raters], **overlaps, **weights})
    title = _("{name} overlap of the raters").format(name=told)
    result.agreement_chart = charts.chart_or_new(previous.get("agreement_chart"), title)
    _fill(result.agreement_chart, result.agreement, overlaps, _("Overlap with the consensus"), "Dice", (0.0, 1.0))
    if weights:
        title = _("{name} weights of the raters").format(name=told)
        result.weight_chart = charts.chart_or_new(previous.get("weight_chart"), title)
        _fill(result.weight_chart, result.agreement, weights, _("Trust in the raters"), _measure(report), None)


def _fill(
    chart: Any, bars: Any, columns: Mapping[str, Any], title: str, y_title: str, y_range: tuple[float, float] | None
) -> None:
    series = {name: node_or_new(None, "vtkMRMLPlotSeriesNode", name) for name in columns}
    charts.fill_bar_plot(chart, bars, series, title=title, labels=_("Rater"), y_title=y_title, y_range=y_range)


def _weights(report: Mapping[str, Any], few: bool) -> dict[str, list[float]]:
    """Columns of the raters' weights, one a label where the method has them."""
    measure, raters = _measure(report), report["raters"]
    if any(rater["weight"] is not None for rater in raters):
        return {measure: [_short(rater["weight"]) for rater in raters]}
    if few:
        return {
            f"{measure}, {label['name']}": [_short(rater["labels"][k]["weight"]) for rater in raters]
            for k, label in enumerate(report["labels"])
        }
    means = []
    for rater in raters:
        known = [label["weight"] for label in rater["labels"] if label["weight"] is not None]
        means.append(_short(sum(known) / len(known) if known else None))
    return {_("{measure}, mean").format(measure=measure): means}


def largest_entropy(details: Mapping[str, Any]) -> float:
    """The largest entropy that so many raters and labels can have, bits; 1 with a single rater, whose map is 0."""
    report = details["report"]
    return max(1.0, math.log2(min(len(report["raters"]), len(report["labels"]) + 1)))


def words(details: Mapping[str, Any], kind: str) -> str:
    """What was fused to what, how far the raters agree, where was looked, and what was decided on the way, as HTML.

    Args:
        details: result of the task "fuse".
        kind: "atlases" or "raters".
    """
    report = details["report"]
    agreement, region = report["agreement"], report["region"]
    count = len(report["raters"])
    one, many = (_("1 atlas"), _("{count} atlases")) if kind == "atlases" else (_("1 rater"), _("{count} raters"))
    lines = [
        "<b>{counted}</b>, {method}".format(
            counted=one if count == 1 else many.format(count=count),
            method=html.escape(METHODS[details["method"]].title),
        )
    ]
    labels = details["labels"]
    if len(labels) <= _MOST_VOLUMES:
        lines.append(", ".join(f"{html.escape(label['name'])} {label['volume_ml']:.2f} ml" for label in labels))
    if count > 1:
        lines.append(_kappa(agreement["kappa"]))
        pairs = [v for i, row in enumerate(agreement["pairs"]) for v in row[i + 1 :] if v is not None]
        if pairs:
            text = _("Dice of two of them: {mean:.2f} on average, {low:.2f} to {high:.2f}")
            lines.append(text.format(mean=agreement["dice"], low=min(pairs), high=max(pairs)))
        voxels = report["disagreement"]["voxels"]
        lines.append(_("They disagree in {voxels:,} voxels").format(voxels=voxels))
    size = " \N{MULTIPLICATION SIGN} ".join(str(n) for n in region["size"])
    where = _("the whole image") if region["whole"] else _("a box around what they drew")
    lines.append(_("Looked at: {where}, {size} voxels").format(where=where, size=size))
    told = [f"{line}." for line in lines if line]
    told += [f"<i>{html.escape(note)}</i>" for note in dict.fromkeys(report["notes"])]
    return "".join(f"<p style='margin:0 0 2px 0'>{line}</p>" for line in told)


def _kappa(value: float | None) -> str:
    if value is None:
        return ""
    word = "poor" if value < 0 else next(word for high, word in _KAPPA if value <= high + 1e-9)
    return _("Fleiss' kappa {value:.2f}: {word} agreement").format(value=value, word=word)


def _name(rater: Mapping[str, Any]) -> str:
    return str(rater["name"]) if rater["kept"] else _("{name} (dropped)").format(name=rater["name"])


def _measure(report: Mapping[str, Any]) -> str:
    return str(report["measure"]).capitalize()


def _weight(rater: Mapping[str, Any], label: Mapping[str, Any]) -> float | None:
    value = label["weight"] if label["weight"] is not None else rater["weight"]
    return None if value is None else float(value)


def _number(value: float | None, digits: int = 3) -> float:
    """For the table, to so many decimals; not a number where it is not defined."""
    return math.nan if value is None else round(float(value), digits)


def _short(value: float | None) -> float:
    """A weight, which may be of any size, to four digits; not a number where there is none."""
    return math.nan if value is None else float(f"{value:.4g}")

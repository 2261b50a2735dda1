"""The quality of a registration as a reader sees it: a table of measures before and after, and charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from slicer.i18n import tr as _

from MLILib.registration.similarity_words import WORDS

from . import charts
from .nodes import node_or_new

#: Beside a similarity: whether higher or lower is better.
_UP, _DOWN = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}"


def table(quality: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, list[str]]:
    """Columns of the table of quality: measure, before and after, as text; what says most to a reader comes first.

    Args:
        quality: of the task "register".
        names: what the labels are called.
    """
    rows: list[tuple[str, str, str]] = []
    for key, measure in (("dice", _("Dice, {name}")), ("hd95", _("HD95, {name} (mm)"))):
        for label, value in (quality.get(key) or {}).items():
            rows.append((measure.format(name=_name(label, names)), *_pair(value)))
    points = quality.get("tre") or {}
    for key, measure in (
        ("mean", _("Landmark error, mean (mm)")),
        ("median", _("Landmark error, median (mm)")),
        ("max", _("Landmark error, largest (mm)")),
    ):
        if points.get(key) is not None:
            rows.append((measure, _number(points.get(f"before_{key}")), _number(points[key])))
    before = quality.get("similarity_before") or {}
    for key, after in (quality.get("similarity_after") or {}).items():
        words = WORDS.get(key)
        title = key if words is None else f"{words.title} {_UP if words.higher_is_better else _DOWN}"
        rows.append((title, _number(before.get(key)), _number(after)))
    jacobian = quality.get("jacobian") or {}
    if jacobian:
        rows.append((_("Folded voxels"), "", f"{_number(100 * jacobian['folded'])} %"))
        rows.append((_("Jacobian, smallest and largest"), "", _range(jacobian["min"], jacobian["max"])))
        rows.append((_("SD of log Jacobian"), "", _number(jacobian["sd_log"])))
        rows.append((_("SD of log Jacobian, Learn2Reg's"), "", _number(jacobian["sd_log_learn2reg"])))
    missed = quality.get("inverse_consistency") or {}
    if missed:
        rows.append((_("Inverse misses by, mean to largest (mm)"), "", _range(missed["mean"], missed["max"])))
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return dict(zip((_("Measure"), _("Before"), _("After")), map(list, columns), strict=True))


def show_charts(result: Any, details: Mapping[str, Any], names: Mapping[int, str], previous: Mapping[str, Any]) -> None:
    """Put the similarity curve and the overlaps into tables and charts, and those into `result`."""
    told = result.transform.GetName()
    curve = [point for point in details.get("curve") or () if point["value"] is not None]
    if curve:
        result.curve = node_or_new(previous.get("curve"), "vtkMRMLTableNode", _("{name} curve").format(name=told))
        charts.fill_table(
            result.curve,
            {
                _("Iteration"): [float(number) for number in range(1, len(curve) + 1)],
                _("Value"): [float(point["value"]) for point in curve],
                _("Stage"): [_("{stage}, level {level}").format(**point) for point in curve],
            },
        )
        title = _("{name} curve plot").format(name=told)
        result.curve_chart = charts.chart_or_new(previous.get("curve_chart"), title)
        series = {_("Value"): node_or_new(None, "vtkMRMLPlotSeriesNode", _("{name} curve series").format(name=told))}
        charts.fill_line_plot(
            result.curve_chart,
            result.curve,
            series,
            x=_("Iteration"),
            title=_("What was optimised"),
            y_title=_("Value"),
        )
    overlap = (details.get("quality") or {}).get("dice") or {}
    if overlap:
        title = _("{name} overlap").format(name=told)
        held = previous.get("overlap_chart")
        source = None
        if held is not None and held.GetNumberOfPlotSeriesNodes():
            source = held.GetNthPlotSeriesNode(0).GetTableNode()
        bars = node_or_new(source, "vtkMRMLTableNode", title)
        values = {label: _values(value) for label, value in overlap.items()}
        charts.fill_table(
            bars,
            {
                _("Structure"): [_name(label, names) for label in values],
                _("Before"): [pair[0] for pair in values.values()],
                _("After"): [pair[1] for pair in values.values()],
            },
        )
        result.overlap_chart = charts.chart_or_new(held, _("{name} overlap plot").format(name=told))
        charts.fill_bar_plot(
            result.overlap_chart,
            bars,
            {text: node_or_new(None, "vtkMRMLPlotSeriesNode", f"{told} {text}") for text in (_("Before"), _("After"))},
            title=_("Overlap of the structures"),
            labels=_("Structure"),
            y_title="Dice",
        )


def warnings(details: Mapping[str, Any]) -> list[str]:
    """What looks wrong, in words, each sentence once."""
    found: Sequence[str] = [*(details.get("warnings") or ()), *((details.get("quality") or {}).get("warnings") or ())]
    return list(dict.fromkeys(found))


def _name(label: Any, names: Mapping[int, str]) -> str:
    return names.get(int(label), str(label)) if str(label).isdigit() else _("all, mean") if label == "mean" else label


def _values(value: Any) -> tuple[float, float]:
    """Before and after as numbers, NaN where there is none."""
    both = (value.get("before"), value.get("after")) if isinstance(value, Mapping) else (None, value)
    return tuple(math.nan if v is None else float(v) for v in both)  # type: ignore[return-value]


def _pair(value: Any) -> tuple[str, str]:
    before, after = _values(value)
    return _number(before), _number(after)


def _range(low: Any, high: Any) -> str:
    return _("{low} to {high}").format(low=_number(low), high=_number(high))


def _number(value: Any) -> str:
    """A measure for the table; "" where it is not defined."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"

"""What an explanation says as a reader sees it: target and prediction in words, what was taken away, a curve."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

from slicer.i18n import tr as _

from MLILib.explanation.methods import EDGES, METHODS, REACTS

from . import charts
from .nodes import node_or_new

#: Colours of the badges.
BADGE_COLORS = {REACTS: "#2e8b57", EDGES: "#c0392b"}
UNTESTED_COLOR = "#8a8a8a"
#: Parts that a chart of bars shows; a table shows all.
_MOST_BARS = 20
#: Labels or classes that are told of a prediction.
_MOST_PREDICTED = 6


def badge_words() -> dict[str, str]:
    """What each badge means, for a tooltip."""
    return {
        REACTS: _("When the weights are drawn anew, the map changes: it depends on what the model has learned."),
        EDGES: _("When the weights are drawn anew, the map hardly changes: it shows edges, whatever was learned."),
        "": _("Nobody has tested it for this model. Press 'Test' under 'Can it be believed?'."),
    }


def words(details: Mapping[str, Any]) -> str:
    """What was explained, what the model predicts, and how, as HTML.

    Args:
        details: result of the task "explain".
    """
    lines = []
    target = details.get("target") or {}
    if target.get("text"):
        lines.append(f"<b>{html.escape(str(target['text']))}</b>")
    predicted = _predicted(details.get("prediction") or ())
    if predicted:
        lines.append(_("The model says: {predicted}").format(predicted=predicted))
    how = METHODS[details["method"]].title
    if details.get("layer"):
        how = _("{method} at {layer}").format(method=how, layer=html.escape(str(details["layer"])))
    if details.get("completeness_error") is not None:
        how += _("; the map adds up to the score but for {error:.2%}").format(error=details["completeness_error"])
    lines.append(how)
    return "".join(f"<p style='margin:0 0 2px 0'>{line}.</p>" for line in lines)


def _predicted(prediction: Any) -> str:
    told = []
    for one in prediction:
        name = html.escape(str(one["name"]))
        if one.get("probability") is not None:
            told.append(f"{name} {one['probability']:.1%}")
        elif one.get("voxels") is not None:
            if one["voxels"]:
                told.append(_("{name} {voxels:,} voxels").format(name=name, voxels=one["voxels"]))
        elif one.get("score") is not None:
            told.append(f"{name} {one['score']:.4g}")
    more = [_("{count} more").format(count=len(told) - _MOST_PREDICTED)] if len(told) > _MOST_PREDICTED else []
    return ", ".join([*told[:_MOST_PREDICTED], *more])


def show_parts(result: Any, previous: Mapping[str, Any]) -> None:
    """Put what an ablation took away into a table and a chart of bars, and those into `result`."""
    parts = next((one["parts"] for one in result.details if one.get("parts")), None)
    if not parts:
        return
    told = result.maps[0].GetName()
    result.parts = node_or_new(previous.get("parts"), "vtkMRMLTableNode", _("{name} parts").format(name=told))
    ranked = sorted(parts, key=lambda one: -abs(float(one["fall"])))
    without, fall = _("Without"), _("Fall of the score")
    charts.fill_table(
        result.parts,
        {without: [str(one["name"]) for one in ranked], fall: [_short(one["fall"]) for one in ranked]},
    )
    if len(ranked) > _MOST_BARS:
        return
    result.parts_chart = charts.chart_or_new(previous.get("parts_chart"), _("{name} parts plot").format(name=told))
    series = {fall: node_or_new(None, "vtkMRMLPlotSeriesNode", fall)}
    charts.fill_bar_plot(
        result.parts_chart,
        result.parts,
        series,
        title=_("How much the score falls"),
        labels=without,
        y_title=fall,
        y_range=None,
    )


def show_curve(result: Any, previous: Mapping[str, Any]) -> None:
    """Put what an inversion or DeepDream optimised into a table and a chart, and those into `result`."""
    curve = next((one["curve"] for one in result.details if one.get("curve")), None)
    if not curve:
        return
    told = result.maps[0].GetName()
    result.curve = node_or_new(previous.get("curve"), "vtkMRMLTableNode", _("{name} curve").format(name=told))
    title = str(curve["title"])
    charts.fill_table(result.curve, {_("Step"): list(curve["x"]), title: [_short(value) for value in curve["y"]]})
    result.curve_chart = charts.chart_or_new(previous.get("curve_chart"), _("{name} curve plot").format(name=told))
    series = {title: node_or_new(None, "vtkMRMLPlotSeriesNode", title)}
    charts.fill_line_plot(result.curve_chart, result.curve, series, x=_("Step"), title=title, y_title=title)


def _short(value: float | None) -> float:
    """A number of any size to four digits; not a number where there is none."""
    return math.nan if value is None else float(f"{value:.4g}")

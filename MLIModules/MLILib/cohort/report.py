"""The report of a comparison: one HTML file with its pictures inside, to read, to print and to send."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics import METRICS
from . import boxes, paired
from .compared import Comparison
from .paired import Pair

#: Metrics whose smaller values are the better ones.
_SMALLER = frozenset({"hausdorff", "hausdorff95", "assd"})
#: Metrics of the first table; every other one is in the .csv.
_SHOWN = ("dice", "surface_dice", "hausdorff95", "assd", "precision", "recall", "volume_similarity")
#: More labels than this are drawn as their mean alone.
_MOST_LABELS = 8

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #e2e6ec; white-space: nowrap; }
th:first-child, td:first-child, .words { text-align: left; white-space: normal; }
.best { font-weight: 700; } .faint { color: #667085; } .warn { background: #fff4de; padding: .5rem .8rem; }
img { max-width: 100%; } pre { white-space: pre-wrap; background: #f4f6f9; padding: .6rem .8rem; }
@media print { body { max-width: none; margin: 0; } h2 { break-after: avoid; } table, img { break-inside: avoid; } }
"""


def page(made: Comparison, tests: Mapping[str, Sequence[Pair]], *, tolerance: float, noted: Mapping[str, Any]) -> str:
    """The report.

    Args:
        made: what was measured.
        tests: by metric, of the mean of labels.
        tolerance: of the surface Dice, mm.
        noted: the run's record.
    """
    count = len(made.cases)
    parts = [
        f"<h1>{_text(made.dataset.name)}: {len(made.methods)} methods on {count} case{'s' if count > 1 else ''}</h1>",
        f"<p class=faint>{_text(noted['finished'])}, MLI {_text(noted['versions']['mli'])}</p>",
        *(f"<p class=warn>{_text(note)}</p>" for note in made.notes),
        *_errors(made),
        f"<h2>Mean of {len(made.labels) - 1} labels</h2>",
        _overview(made),
        f"<p class=faint>Mean and standard deviation over the cases measured; the best in bold. Surface Dice at "
        f"{tolerance:g} mm. A distance to a structure that a method missed is infinite and left out of its means, not "
        "of the tests; (n) is the number of cases that count, where it is not all.</p>",
        "<h2>Paired tests</h2>",
        *(_pairs(metric, tests[metric]) for metric in tests),
        "<p class=faint>Of the mean of labels. Difference: mean over the cases of the first less the second, with its "
        f"95 % bootstrap interval ({paired.RESAMPLES} resamples). p: Wilcoxon's signed rank test, two-sided, as it is "
        "and after Holm's correction over the pairs of a metric."
        + (" With fewer than 6 cases it cannot fall below .05.</p>" if count < 6 else "</p>"),
        "<h2>Box plots</h2>",
        *(_picture(made, metric) for metric in tests),
        *_labels(made),
        "<h2>Cases</h2>",
        _cases(made),
        "<h2>Methods</h2>",
        _methods(made),
        f"<pre>{_text(noted['command'])}</pre>",
    ]
    title = _text(f"{made.dataset.name}: comparison of methods")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n"
        f"<body>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of HTML cells; the first row is the heading."""
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>\n</table>"


def _number(value: float, digits: int = 3) -> str:
    return "n/a" if math.isnan(value) else "&infin;" if math.isinf(value) else f"{value:.{digits}f}"


def _p(value: float) -> str:
    return "n/a" if math.isnan(value) else "&lt; .0001" if value < 1e-4 else f"{value:.4f}".lstrip("0") or "0"


def _errors(made: Comparison) -> list[str]:
    lines = [
        f"<li>{_text(method.name)}, {_text(case)}: {_text(why)}</li>"
        for method in made.methods
        for case, why in method.errors.items()
    ]
    if not lines:
        return []
    return [f"<div class=warn>{len(lines)} without a label map that could be measured:<ul>{''.join(lines)}</ul></div>"]


def _overview(made: Comparison, label: str = "") -> str:
    label = label or made.labels[-1]
    rows = [["Method", *(_text(METRICS[metric]) for metric in _SHOWN)]]
    columns = {}
    for metric in _SHOWN:
        found = {name: paired.summary(values) for name, values in made.values(metric, label).items()}
        finite = [one.mean for one in found.values() if one.count]
        best = (min(finite) if metric in _SMALLER else max(finite)) if finite else None
        columns[metric] = (found, best)
    for method in made.methods:
        cells = []
        for metric in _SHOWN:
            found, best = columns[metric]
            one = found[method.name]
            cell = _number(one.mean) + (f" &plusmn; {_number(one.deviation)}" if one.count > 1 else "")
            cell += f" <span class=faint>({one.count})</span>" if one.count < len(made.cases) else ""
            cells.append(f"<span class=best>{cell}</span>" if one.count and one.mean == best else cell)
        rows.append([_text(method.name), *cells])
    return _table(rows)


def _pairs(metric: str, found: Sequence[Pair]) -> str:
    rows = [[_text(METRICS[metric]), "Cases", "Difference", "95 % interval", "p", "p (Holm)"]]
    for one in found:
        interval = f"{_number(one.low, 4)} to {_number(one.high, 4)}"
        cells = [str(one.count), _number(one.difference, 4), interval, _p(one.p), _p(one.corrected)]
        rows.append([f"{_text(one.first)} less {_text(one.second)}", *cells])
    return _table(rows)


def _picture(made: Comparison, metric: str) -> str:
    labels = made.labels if len(made.labels) <= _MOST_LABELS else made.labels[-1:]
    drawn = boxes.draw(METRICS[metric], {label: made.values(metric, label) for label in labels})
    coded = base64.b64encode(drawn).decode("ascii")
    return f'<p><img alt="{_text(METRICS[metric])} of each method" src="data:image/png;base64,{coded}"></p>'


def _labels(made: Comparison) -> list[str]:
    if len(made.labels) == 2:  # one label is its own mean
        return []
    parts = ["<h2>Each label</h2>"]
    for label in made.labels[:-1]:
        parts += [f"<h3>{_text(label)}</h3>", _overview(made, label)]
    return parts


def _cases(made: Comparison) -> str:
    """Dice of every case, those first that fare worst."""
    values = made.values("dice", made.labels[-1])
    worst = [min((v[i] for v in values.values() if not math.isnan(v[i])), default=-1.0) for i in range(len(made.cases))]
    rows = [["Dice, mean of labels", *(_text(method.name) for method in made.methods)]]
    for i in sorted(range(len(made.cases)), key=lambda i: worst[i]):
        rows.append([_text(made.cases[i]), *(_number(values[method.name][i]) for method in made.methods)])
    return _table(rows)


def _methods(made: Comparison) -> str:
    rows = [["Method", "What it is"]]
    for method in made.methods:
        if method.bundle is not None:
            what = f"model, sha256 {_text(method.bundle.sha256)}"
        else:
            what = f"label maps in {_text(method.folder)}"
        rows.append([_text(method.name), f"<span class=words>{what}</span>"])
    return _table(rows)

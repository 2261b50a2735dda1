"""The curve of a running optimisation as a small picture: one line a resolution level, a colour a stage."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import qt

from .jobs import Point

#: Colours of the stages in turn.
_COLORS = ("#3878b8", "#d9822b", "#4c9f5b", "#8e5ea2")
_PAPER, _FRAME, _WORDS = "#ffffff", "#c8c8c8", "#505050"
_MARGIN, _LINE, _COLUMN = 6, 14, 84


def draw(points: Sequence[Point], width: int, height: int) -> Any:
    """A pixmap of the curve; each level has its own vertical range, since levels are not comparable.

    Args:
        points: in their order.
        width, height: pixels.
    """
    picture = qt.QPixmap(width, height)
    picture.fill(qt.QColor(_PAPER))
    painter = qt.QPainter()
    painter.begin(picture)
    painter.setRenderHint(qt.QPainter.Antialiasing)
    painter.setPen(qt.QColor(_FRAME))
    painter.drawRect(0, 0, width - 1, height - 1)
    levels = [list(group) for _, group in itertools.groupby(points, key=lambda p: (p.stage, p.level))]
    stages = list(dict.fromkeys(p.stage for p in points))
    top, bottom = _MARGIN + _LINE, height - _MARGIN
    total = sum(max(1, len(level)) for level in levels)
    for index, stage in enumerate(stages):
        painter.setPen(qt.QColor(_COLORS[index % len(_COLORS)]))
        painter.drawText(_MARGIN + 2 + index * _COLUMN, top - 3, stage)
    x = float(_MARGIN)
    for level in levels:
        share = (width - 2 * _MARGIN) * max(1, len(level)) / max(1, total)
        color = qt.QColor(_COLORS[stages.index(level[0].stage) % len(_COLORS)])
        if x > _MARGIN:
            painter.setPen(qt.QColor(_FRAME))
            painter.drawLine(round(x), top, round(x), bottom)
        _draw_level(painter, level, (x, share), (top + 3, bottom), color)
        x += share
    if points:
        painter.setPen(qt.QColor(_WORDS))
        right = int(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
        painter.drawText(_MARGIN, 1, width - 2 * _MARGIN, _LINE + 2, right, f"{points[-1].value:.4g}")
    painter.end()
    return picture


def _draw_level(
    painter: Any, level: Sequence[Point], across: tuple[float, float], along: tuple[int, int], color: Any
) -> None:
    values = [point.value for point in level]
    low, high = min(values), max(values)
    (left, share), (top, bottom) = across, along
    places = []
    for index, value in enumerate(values):
        x = left + share * (index + 0.5) / len(values)
        y = bottom - (bottom - top) * ((value - low) / (high - low) if high > low else 0.5)
        places.append((round(x), round(y)))
    painter.setPen(color)
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        painter.drawLine(x0, y0, x1, y1)
        painter.drawLine(x0, y0 + 1, x1, y1 + 1)  # two pixels wide
    if len(places) == 1:
        painter.drawRect(places[0][0] - 1, places[0][1] - 1, 2, 2)

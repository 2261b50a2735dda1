"""Progress of a job: stages, a fraction with the remaining time, messages, and the place where cancel is noticed.

A task calls :class:`Progress`; who listens is decided by the door: a bar on a terminal, JSON lines to Slicer, nothing.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from .errors import Cancelled

Event = dict[str, Any]
Sink = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A sink for callers who do not want to hear."""


class Progress:
    """What a running task reports to.

    Args:
        sink: called with each event, a dict of plain values with the key ``event``: ``stage`` (name), ``fraction``
            (value in 0..1 of the current stage, eta in seconds or None), ``message`` (text), ``curve`` (stage, level,
            iteration, value), ``rater`` (name, status) or ``samples`` (path of a picture).
        cancelled: asked at each report; True raises :class:`Cancelled` in the task.
        clock: seconds, monotonic; tests hand in their own.
        interval: seconds between two ``fraction`` or two ``curve`` events, so that a fast loop does not flood a pipe.
    """

    def __init__(
        self,
        sink: Sink = ignore,
        *,
        cancelled: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval: float = 0.1,
    ) -> None:
        self._sink = sink
        self._cancelled = cancelled
        self._clock = clock
        self._interval = interval
        self._started = clock()
        self._stage_started = self._counted_from = self._started
        self._last = self._last_point = -1e9
        self._curve: tuple[str, int] | None = None
        self.stages: dict[str, float] = {}
        self._stage_name = ""

    def check_cancelled(self) -> None:
        """Raise :class:`Cancelled` when the user has asked to stop."""
        if self._cancelled is not None and self._cancelled():
            raise Cancelled()

    def stage(self, name: str) -> None:
        """Begin a stage; its fraction starts at 0. The seconds of the one before are kept in `stages`."""
        self.check_cancelled()
        self._close_stage()
        self._stage_name = name
        self._stage_started = self._counted_from = self._clock()
        self._last = -1e9
        self._sink({"event": "stage", "name": name})

    def fraction(self, value: float) -> None:
        """Say how much of the current stage is done, 0 to 1; the remaining time is extrapolated from it.

        What was spent until the last 0 was preparation, which does not come again.
        """
        self.check_cancelled()
        now = self._clock()
        value = min(max(float(value), 0.0), 1.0)
        if value == 0.0:
            self._counted_from = now
        if now - self._last < self._interval and value < 1.0:
            return
        self._last = now
        spent = now - self._counted_from
        eta = spent * (1.0 - value) / value if value > 0.0 else None
        self._sink({"event": "fraction", "value": value, "eta": eta})

    def curve(self, stage: str, level: int, iteration: int, value: float) -> None:
        """A point of an optimisation's curve; of a fast loop some are left out, never the first of a level.

        Args:
            stage: name of the stage, for a reader.
            level: resolution level, 1 is the coarsest.
            iteration: within the level.
            value: what is optimised; a value that is not finite is left out.
        """
        self.check_cancelled()
        now = self._clock()
        again = self._curve == (stage, level)
        if not math.isfinite(value) or (again and now - self._last_point < self._interval):
            return
        self._curve, self._last_point = (stage, level), now
        self._sink(
            {"event": "curve", "stage": stage, "level": int(level), "iteration": int(iteration), "value": float(value)}
        )

    def rater(self, name: str, status: str) -> None:
        """How one of several atlases, raters or cases fares: waiting, registering, cached, done, failed, left out.

        None of these events is left out: each is the only one that tells.
        """
        self.check_cancelled()
        self._sink({"event": "rater", "name": name, "status": status})

    def samples(self, path: str) -> None:
        """A picture of what a model in training makes was drawn anew; `path` is the file."""
        self.check_cancelled()
        self._sink({"event": "samples", "path": path})

    def message(self, text: str) -> None:
        """A sentence for the reader: a choice made, a fallback taken."""
        self.check_cancelled()
        self._sink({"event": "message", "text": text})

    def finish(self) -> dict[str, float]:
        """Close the last stage; seconds per stage."""
        self._close_stage()
        return dict(self.stages)

    def _close_stage(self) -> None:
        if self._stage_name:
            spent = self._clock() - self._stage_started
            self.stages[self._stage_name] = self.stages.get(self._stage_name, 0.0) + spent
            self._stage_name = ""


class TerminalBar:
    """A sink that draws one line on a terminal and prints messages above it."""

    def __init__(self, stream: TextIO | None = None, width: int = 28) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._width = width
        self._name = ""
        self._live = self._stream.isatty()

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "stage":
            self._end_line()
            self._name = str(event["name"])
            self._draw(0.0, None)
        elif kind == "fraction":
            self._draw(float(event["value"]), event.get("eta"))
        elif kind == "message":
            if self._live:
                self._stream.write("\r\x1b[K")
            self._stream.write(f"{event['text']}\n")
            self._stream.flush()

    def close(self) -> None:
        """End the line being drawn."""
        self._end_line()

    def _draw(self, value: float, eta: float | None) -> None:
        if not self._live:
            return
        full = round(self._width * value)
        left = "" if eta is None else f"  {duration(eta)} left"
        self._stream.write(f"\r\x1b[K{self._name:<24.24} [{'#' * full}{'.' * (self._width - full)}] {value:4.0%}{left}")
        self._stream.flush()

    def _end_line(self) -> None:
        if self._live and self._name:
            self._stream.write("\n")
            self._stream.flush()
        self._name = ""


def json_lines(stream: TextIO, **common: Any) -> Sink:
    """A sink that writes each event as one line of JSON, with `common` added to it."""

    def write(event: Event) -> None:
        stream.write(json.dumps({**common, **event}, allow_nan=False) + "\n")
        stream.flush()

    return write


def duration(seconds: float) -> str:
    """Seconds in a reader's words: "8 s", "3 min 20 s", "2 h 5 min"."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {s % 3600 // 60} min"

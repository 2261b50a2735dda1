"""Progress: what a listener hears, the remaining time, and cancel."""

from __future__ import annotations

import io
import json

import pytest

from MLILib import errors
from MLILib.progress import Progress, TerminalBar, duration, json_lines


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestProgress:
    def test_remaining_time_is_extrapolated(self) -> None:
        clock, heard = _Clock(), []
        progress = Progress(heard.append, clock=clock)
        progress.stage("work")
        clock.now += 3.0
        progress.fraction(0.25)
        assert heard[-1] == {"event": "fraction", "value": 0.25, "eta": pytest.approx(9.0)}

    def test_preparation_is_not_extrapolated(self) -> None:
        """What was spent before a stage has begun to count comes once, and is of the stage all the same."""
        clock, heard = _Clock(), []
        progress = Progress(heard.append, clock=clock)
        progress.stage("work")
        clock.now += 60.0
        progress.fraction(0.0)
        clock.now += 3.0
        progress.fraction(0.25)
        assert [e["eta"] for e in heard if e["event"] == "fraction"] == [None, pytest.approx(9.0)]
        assert progress.finish() == {"work": 63.0}

    def test_a_fast_loop_does_not_flood(self) -> None:
        clock, heard = _Clock(), []
        progress = Progress(heard.append, clock=clock, interval=0.1)
        progress.stage("work")
        for i in range(1000):
            clock.now += 0.001
            progress.fraction((i + 1) / 1000)
        fractions = [e for e in heard if e["event"] == "fraction"]
        assert len(fractions) <= 12
        assert fractions[-1]["value"] == 1.0

    def test_a_curve_has_the_first_point_of_each_level_and_does_not_flood(self) -> None:
        clock, heard = _Clock(), []
        progress = Progress(heard.append, clock=clock, interval=0.1)
        for level in (1, 2):
            for iteration in range(500):
                clock.now += 0.001
                progress.curve("rigid", level, iteration, 1.0 / (1 + iteration))
        assert {(e["level"], e["iteration"]) for e in heard} >= {(1, 0), (2, 0)}
        assert len(heard) <= 12
        assert heard[0] == {"event": "curve", "stage": "rigid", "level": 1, "iteration": 0, "value": 1.0}

    def test_a_value_that_json_cannot_hold_is_left_out(self) -> None:
        heard: list[dict[str, object]] = []
        Progress(heard.append).curve("rigid", 1, 0, float("nan"))
        assert heard == []

    def test_cancel_is_noticed_at_the_next_report(self) -> None:
        stop = False
        progress = Progress(cancelled=lambda: stop)
        progress.stage("work")
        stop = True
        with pytest.raises(errors.Cancelled):
            progress.fraction(0.5)

    def test_seconds_of_each_stage(self) -> None:
        clock = _Clock()
        progress = Progress(clock=clock)
        progress.stage("one")
        clock.now += 2
        progress.stage("two")
        clock.now += 5
        assert progress.finish() == {"one": 2.0, "two": 5.0}


class TestSinks:
    def test_json_lines(self) -> None:
        stream = io.StringIO()
        json_lines(stream, id=7)({"event": "stage", "name": "a\nb"})
        assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
            {"id": 7, "event": "stage", "name": "a\nb"}
        ]

    def test_a_pipe_gets_messages_and_no_bar(self) -> None:
        stream = io.StringIO()
        bar = TerminalBar(stream)
        progress = Progress(bar)
        progress.stage("work")
        progress.fraction(1.0)
        progress.message("done")
        bar.close()
        assert stream.getvalue() == "done\n"

    @pytest.mark.parametrize(("seconds", "text"), [(8.4, "8 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
    def test_duration(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text


class TestErrors:
    @pytest.mark.parametrize(
        ("cls", "code"),
        [(errors.BadInput, 2), (errors.OutOfMemory, 3), (errors.MissingPackage, 4), (errors.Cancelled, 130)],
    )
    def test_an_error_survives_the_pipe(self, cls: type[errors.MLIError], code: int) -> None:
        error = cls("what.", "why.", "do.")
        again = errors.from_json(json.loads(json.dumps(error.to_json())))
        assert type(again) is cls
        assert str(again) == "what. why. do."
        assert again.exit_code == code

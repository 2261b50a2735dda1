"""The worker process: one JSON object a line, and it never outlives its owner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_dataset import write_dataset

import MLILib


class Worker:
    """A worker and the two ends of its pipes."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "MLILib.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(MLILib.__file__).parents[1])},
        )

    def send(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def ask(self, task: str, number: int = 1, **request: Any) -> None:
        self.send(json.dumps({"id": number, "task": task, "request": request}))

    def next(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        return dict(json.loads(line))

    def until(self, *events: str) -> dict[str, Any]:
        while (event := self.next())["event"] not in events:
            assert event["event"] != "error", event
        return event


@pytest.fixture
def worker() -> Iterator[Worker]:
    one = Worker()
    yield one
    one.process.kill()
    one.process.wait(timeout=10)
    for stream in (one.process.stdin, one.process.stdout, one.process.stderr):
        if stream:
            stream.close()


class TestProtocol:
    def test_hello_comes_before_anything_heavy(self, worker: Worker) -> None:
        hello = worker.next()
        assert hello["event"] == "hello"
        assert hello["pid"] == worker.process.pid
        if hasattr(os, "getpgid"):
            assert hello["pgid"] == os.getpgid(worker.process.pid) == worker.process.pid

    def test_an_error_has_a_remedy_and_the_worker_lives_on(self, worker: Worker, tmp_path: Path) -> None:
        worker.ask("evaluate", 7, prediction=str(tmp_path / "no.nii"), reference=str(tmp_path))
        error = worker.until("error")
        assert error["id"] == 7
        assert error["error"]["kind"] == "BadInput"
        assert error["error"]["exit_code"] == 2
        worker.ask("evaluate", 8, colour="red")
        assert worker.until("error")["id"] == 8

    @pytest.mark.parametrize("line", ["{", "[1]", '{"id": 1}'])
    def test_an_unreadable_line_is_answered(self, worker: Worker, line: str) -> None:
        worker.send(line)
        assert worker.until("error")["error"]["kind"] == "MLIError"

    def test_quit(self, worker: Worker) -> None:
        worker.send('{"quit": true}')
        assert worker.process.wait(timeout=20) == 0


class TestEnd:
    @pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX")
    def test_it_ends_in_mid_task_when_its_owner_is_gone(self, worker: Worker, tmp_path: Path) -> None:
        pytest.importorskip("torch")
        write_dataset(tmp_path, 8)
        worker.ask("train-segmentation", dataset=str(tmp_path / "dataset.json"), output=str(tmp_path / "b"),
                   epochs=10000, filters=4, device="cpu")  # fmt: skip
        while worker.until("stage")["name"] != "Training":
            pass
        assert worker.process.stdin
        closed = time.monotonic()
        worker.process.stdin.close()
        worker.process.wait(timeout=10)
        assert time.monotonic() - closed < 2.0

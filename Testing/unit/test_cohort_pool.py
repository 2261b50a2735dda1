"""Tasks in worker processes: order, errors, crashes, cancel."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from MLILib.cohort import pool
from MLILib.cohort.pool import Finished, Job
from MLILib.errors import BadInput, Cancelled, WorkerFailed
from MLILib.progress import Progress

#: Speaks a worker's language: notes that it lives, then does what the request says.
ACTOR = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / f"pid-{os.getpid()}").touch()
print(json.dumps({"event": "hello"}), flush=True)
for line in sys.stdin:
    message = json.loads(line)
    asked = message["request"]
    number = message["id"]
    print(json.dumps({"id": number, "event": "stage", "name": "Working"}), flush=True)
    time.sleep(asked.get("sleep", 0))
    if "crash" in asked:
        print("out of luck", file=sys.stderr, flush=True)
        os._exit(asked["crash"])
    if "error" in asked:
        error = {"kind": "BadInput", "what": asked["error"]}
        print(json.dumps({"id": number, "event": "error", "error": error}), flush=True)
        continue
    result = {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}
    print(json.dumps({"id": number, "event": "result", "result": result}), flush=True)
"""

Run = Callable[..., list[Finished]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-c", ACTOR, str(tmp_path)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def call(requests: dict[str, dict[str, Any]], workers: int = 1, progress: Progress | None = None) -> list[Finished]:
        jobs = [Job(name, "any", request) for name, request in requests.items()]
        return list(pool.run(jobs, workers, progress or Progress()))

    return call


def living(folder: Path) -> list[int]:
    pids = [int(p.name.split("-")[1]) for p in folder.glob("pid-*")]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "zombie" not in _state(pid)]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text(encoding="ascii")


def test_one_worker_does_all(run: Run, tmp_path: Path) -> None:
    found = run({"a": {}, "b": {}, "c": {}})
    assert [one.job.name for one in found] == ["a", "b", "c"]
    assert len({(one.result or {})["pid"] for one in found}) == 1
    assert all(one.error is None for one in found)
    assert found[0].result is not None
    assert found[0].result["threads"] is None  # alone, it may use every core
    assert living(tmp_path) == []


def test_who_asks_hears_which_job_begins(run: Run) -> None:
    begun: list[str] = []
    jobs = [Job(name, "any", {}) for name in "abc"]
    told = [(one.job.name, list(begun)) for one in pool.run(jobs, 1, Progress(), lambda job: begun.append(job.name))]
    assert begun == ["a", "b", "c"]
    assert all(name in so_far for name, so_far in told)


@pytest.mark.alone
def test_several_work_at_the_same_time(run: Run) -> None:
    started = time.monotonic()
    found = run({name: {"sleep": 1.0} for name in "abcd"}, workers=4)
    assert time.monotonic() - started < 3.5  # one after the other would take 4
    assert {one.job.name for one in found} == set("abcd")
    cores = os.cpu_count() or 1
    assert {(one.result or {})["threads"] for one in found} == {str(max(1, cores // 4))}


def test_an_error_is_the_case_s_own(run: Run) -> None:
    found = run({"a": {}, "b": {"error": "No such file."}, "c": {}})
    assert [one.error is None for one in found] == [True, False, True]
    assert isinstance(found[1].error, BadInput)
    assert found[1].error.what == "No such file."


def test_a_crash_is_the_case_s_own(run: Run) -> None:
    found = {one.job.name: one for one in run({"a": {}, "b": {"crash": 7}, "c": {}})}
    error = found["b"].error
    assert isinstance(error, WorkerFailed)
    assert "exit code 7" in error.what
    assert "out of luck" in error.cause
    assert found["a"].result is not None
    assert found["c"].result is not None
    assert found["a"].result["pid"] != found["c"].result["pid"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_cancel_ends_the_workers(run: Run, tmp_path: Path) -> None:
    started = time.monotonic()
    stop = Progress(cancelled=lambda: time.monotonic() - started > 1.0)
    with pytest.raises(Cancelled):
        run({name: {"sleep": 60} for name in "abc"}, workers=2, progress=stop)
    assert time.monotonic() - started < 10
    assert len(list(tmp_path.glob("pid-*"))) <= 2
    assert living(tmp_path) == []


def test_a_worker_that_cannot_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "COMMAND", ("/nonexistent/python",))
    found = run({"a": {}})
    assert isinstance(found[0].error, WorkerFailed)
    assert "could not be started" in found[0].error.what

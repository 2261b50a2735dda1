"""Many tasks in worker processes: one that crashes fails alone, and cancel ends them all.

Each worker is :mod:`MLILib.worker`, as behind Slicer's widgets, so that its second task pays for no import and no model
load. A worker that dies is replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import MLIError, WorkerFailed
from ..progress import Progress

#: What a worker is started with.
COMMAND = (sys.executable, "-m", "MLILib.worker")
#: Seconds between two looks at whether the user has cancelled.
_PATIENCE = 0.1
#: Characters of a dead worker's last words that are shown.
_LAST_WORDS = 600


@dataclasses.dataclass(frozen=True)
class Job:
    """A task for a worker.

    Attributes:
        name: for a reader.
        task: as :func:`MLILib.tasks.request_class` knows it.
        request: its settings, plain values.
    """

    name: str
    task: str
    request: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a job ended.

    Attributes:
        job: which.
        result: the task's, or None.
        error: why there is none.
        seconds: it took.
    """

    job: Job
    result: dict[str, Any] | None
    error: MLIError | None
    seconds: float


#: What the workers' threads tell: a job that begins, how one ended, or a bug.
_Told = queue.SimpleQueue["Job | Finished | BaseException"]


def run(
    jobs: Sequence[Job], workers: int, progress: Progress, begins: Callable[[Job], None] = lambda job: None
) -> Iterator[Finished]:
    """Do the jobs in `workers` processes; each is given as it ends.

    Args:
        jobs: in the order they are started.
        workers: processes at a time; with several the CPU's cores are shared out among them.
        progress: asked whether to stop.
        begins: called, on the caller's thread, with each job that a worker has turned to.

    Raises:
        Cancelled: the user stopped; the workers are ended.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    told: _Told = queue.SimpleQueue()
    count = min(workers, len(jobs))
    with contextlib.ExitStack() as stack:
        crew = [stack.enter_context(_Worker(threads=_share(count))) for _ in range(count)]
        threads = [threading.Thread(target=_serve, args=(one, waiting, told), daemon=True) for one in crew]
        try:
            for thread in threads:
                thread.start()
            for _ in jobs:
                yield _next(told, progress, begins)
        finally:
            for one in crew:
                one.stop()
            for thread in threads:
                thread.join()


def _share(workers: int) -> int:
    """Threads of each of several workers; 0 leaves the choice to torch."""
    return max(1, (os.cpu_count() or 1) // workers) if workers > 1 else 0


def _next(told: _Told, progress: Progress, begins: Callable[[Job], None]) -> Finished:
    while True:
        progress.check_cancelled()
        try:
            found = told.get(timeout=_PATIENCE)
        except queue.Empty:
            continue
        if isinstance(found, BaseException):
            raise found
        if isinstance(found, Finished):
            return found
        begins(found)


def _serve(worker: _Worker, waiting: queue.SimpleQueue[Job], told: _Told) -> None:
    try:
        while not worker.stopped:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            told.put(job)
            told.put(worker.do(job))
    except BaseException as error:  # a bug: told where the jobs are waited for, else nobody would hear of it
        told.put(error)


class _Worker:
    """One worker process, started when there is something to do and again after it died."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._count = 0
        self.stopped = False

    def __enter__(self) -> _Worker:
        handle, name = tempfile.mkstemp(prefix="mli-worker-", suffix=".log")
        os.close(handle)
        self._words = Path(name)
        return self

    def __exit__(self, *error: object) -> None:
        self._words.unlink(missing_ok=True)

    def do(self, job: Job) -> Finished:
        """Have the process do the job, and wait for it."""
        started = time.monotonic()
        result, error = self._ask(job)
        return Finished(job, result, error, time.monotonic() - started)

    def stop(self) -> None:
        """End the process and what it started; it is not started again."""
        with self._lock:
            self.stopped = True
            self._end()

    def _ask(self, job: Job) -> tuple[dict[str, Any] | None, MLIError | None]:
        try:
            process = self._living()
        except OSError as error:
            return None, WorkerFailed("The worker process could not be started.", f"{error}.", "Try again.")
        self._count += 1
        line = json.dumps({"id": self._count, "task": job.task, "request": dict(job.request)})
        assert process.stdin is not None
        assert process.stdout is not None
        # a process that died before it could read: what it said last is found below
        with contextlib.suppress(OSError):
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        for answer in process.stdout:
            event = json.loads(answer)
            if event.get("id") != self._count:
                continue
            if event["event"] == "result":
                return event["result"], None
            if event["event"] == "error":
                return None, errors.from_json(event["error"])
        code = process.wait()
        return None, WorkerFailed(
            f"The worker process ended with exit code {code}.",
            self._last_words() or "It said nothing; often the computer ran out of memory.",
            "Run this case alone with mli segment to see more, or use fewer workers.",
        )

    def _living(self) -> subprocess.Popen[str]:
        with self._lock:
            if self.stopped:
                msg = "the job was cancelled"
                raise OSError(msg)
            if self._process is None or self._process.poll() is not None:
                self._end()
                self._process = self._start()
            return self._process

    def _start(self) -> subprocess.Popen[str]:
        environment = dict(os.environ)
        library = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(p for p in (library, environment.get("PYTHONPATH", "")) if p)
        if self._threads:
            environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(self._threads)
        with open(self._words, "wb") as words:
            return subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=environment,
                encoding="utf-8",
                start_new_session=os.name != "nt",
            )

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            if os.name == "nt":
                process.kill()
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not sent yet needs no reader any more
                    pipe.close()

    def _last_words(self) -> str:
        return self._words.read_text(encoding="utf-8", errors="replace").strip()[-_LAST_WORDS:]

"""Jobs that never freeze Slicer: steps on the GUI thread in small pieces, computing in a worker process that is kept.

A job is a generator. It does a little (a slab of a file, a node) and yields: ``yield`` lets the event loop run,
``result = yield Call(task, settings)`` asks the worker and is resumed with its answer, or with its error raised at that
line. So a job reads from top to bottom, ``with`` and ``finally`` tidy up after a cancel as after a failure, and
the same job runs behind the widget, in a script, and in a test that hands in its own process.

Example:
    >>> def steps():  # doctest: +SKIP
    ...     with JobFolder() as folder:
    ...         yield from write_volume(volume, folder / "input.nrrd")
    ...         result = yield Call("segment", {"images": [...], "model": ["hippocampus"], "output": ...})
    ...     return result
    >>> shared_runner().start(steps(), done=print)  # in a widget  # doctest: +SKIP
    >>> result = shared_runner().run(steps())  # in a script  # doctest: +SKIP
"""

from __future__ import annotations

import atexit
import dataclasses
import itertools
import logging
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from typing import Any

from MLILib.errors import Cancelled, MLIError, from_json

from .process import Event, ProcessFactory, WorkerProcess, start_worker

#: Milliseconds between two looks at the worker, and between two pieces of a job's own work.
_WATCH, _WORK = 30, 1
#: Seconds of its own work that a job may do before the event loop gets its turn.
_BUDGET = 0.012
#: Seconds in which a killed worker must be gone before its job says so.
_KILL_LIMIT = 2.0


@dataclasses.dataclass(frozen=True)
class Call:
    """What a job yields to have the worker run a task."""

    task: str
    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of an optimisation's curve: what is optimised, at an iteration of a resolution level of a stage."""

    stage: str
    level: int
    iteration: int
    value: float


@dataclasses.dataclass(frozen=True)
class Status:
    """What a running job shows: the stage, its fraction (0 to 1, or None), the seconds left, the last message, the
    curve of what is optimised, from the beginning of the job, how each atlas or rater fares, by name, and the file of
    the picture that a model in training drew last, with their number.
    """

    stage: str = ""
    fraction: float | None = None
    eta: float | None = None
    message: str = ""
    curve: tuple[Point, ...] = ()
    raters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    samples: tuple[str, int] = ("", 0)


#: A job: yields a call to the worker, a status to show, or None; returns its result.
Steps = Generator[Call | Status | None, Any, Any]


def _nothing(*_: Any) -> None:
    """What is called when nobody listens."""


class Job:
    """One piece of work; made by :meth:`JobRunner.start`.

    Attributes:
        state: "running", "stopping", "done", "failed" or "cancelled".
        result: what the steps returned, when done.
        error: why it failed, or :class:`Cancelled`.
        status: its latest :class:`Status`.
        messages: the sentences the worker sent, in order.
    """

    def __init__(
        self,
        steps: Steps,
        progress: Callable[[Status], None],
        done: Callable[[Any], None],
        failed: Callable[[MLIError], None],
        cancelled: Callable[[], None],
    ) -> None:
        self.state = "running"
        self.result: Any = None
        self.error: MLIError | None = None
        self.status = Status()
        self.messages: list[str] = []
        self._steps = steps
        self._progress = progress
        self._done = done
        self._failed = failed
        self._cancelled = cancelled
        self._answer: Any = None
        self._raise: MLIError | None = None
        self._waits: Call | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "failed", "cancelled")

    def silence(self) -> None:
        """Call nobody back any more: who asked is gone."""
        self._progress = self._done = self._failed = self._cancelled = _nothing


class JobRunner:
    """Runs jobs: resumes their steps from a timer, and hands their calls to one worker, one at a time.

    Args:
        start_process: starts a worker; tests hand in their own.
        timer: makes a timer with ``connect``, ``start(ms)`` and ``stop()``; by default ``qt.QTimer``.
        process_events: lets the GUI breathe while :meth:`run` waits; by default ``slicer.app.processEvents``.
    """

    def __init__(
        self,
        start_process: ProcessFactory = start_worker,
        *,
        timer: Callable[[], Any] | None = None,
        process_events: Callable[[], None] | None = None,
    ) -> None:
        self._start_process = start_process
        self._make_timer = timer
        self._timer: Any = None
        self._process_events = process_events
        self._worker: WorkerProcess | None = None
        self._dying: list[tuple[WorkerProcess, float]] = []
        self._jobs: list[Job] = []
        self._calling: Job | None = None
        self._ids = itertools.count(1)
        self._call_id = 0
        self._heard = False
        self._reused = False
        self._ticking = False
        self._news: list[Callable[[], None]] = []

    # -- what callers use

    def start(
        self,
        steps: Steps,
        *,
        progress: Callable[[Status], None] = _nothing,
        done: Callable[[Any], None] = _nothing,
        failed: Callable[[MLIError], None] = _nothing,
        cancelled: Callable[[], None] = _nothing,
    ) -> Job:
        """Start a job and return at once; the callbacks run later on this thread, one of the last three once."""
        job = Job(steps, progress, done, failed, cancelled)
        self._jobs.append(job)
        self._wind(_WORK)
        return job

    def cancel(self, job: Job) -> None:
        """Stop a job: its worker's whole process tree is ended now, its steps are closed, its folder is removed."""
        if job.finished or job.state == "stopping":
            return
        job.state = "stopping"
        if self._calling is job:
            self._calling = None
            self._drop_worker()
        self._wind(_WORK)

    def run(self, steps: Steps, progress: Callable[[Status], None] = _nothing) -> Any:
        """Run a job to its end while the GUI stays alive, for scripts and tests.

        Raises:
            MLIError: what the job failed with.
        """
        job = self.start(steps, progress=progress)
        breathe = self._process_events or _slicer_process_events
        while not job.finished:
            self.tick()
            breathe()
            if job._waits is not None or job.state == "stopping":
                time.sleep(0.005)
        self._tell()
        if job.error is not None:
            raise job.error
        return job.result

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs that are not finished."""
        return tuple(self._jobs)

    @property
    def worker(self) -> WorkerProcess | None:
        """The worker that is kept for the next job, if one has been started."""
        return self._worker

    def close(self) -> None:
        """End everything and wait until it is gone (at most 2 s): for the end of the application."""
        for job in tuple(self._jobs):
            self.cancel(job)
        self._drop_worker()
        limit = time.monotonic() + _KILL_LIMIT
        while (self._jobs or self._dying) and time.monotonic() < limit:
            self.tick()
            time.sleep(0.005)
        if self._timer is not None:
            self._timer.stop()

    # -- one turn

    def tick(self) -> None:
        """Look at the worker and let every job do a little; the timer calls this."""
        if self._ticking:
            return  # a step let the event loop run
        if self._news:
            self._tell()  # a turn of its own: steps and what is shown of them are each short, both together may not be
            return
        self._ticking = True
        try:
            self._listen()
            self._bury()
            for job in tuple(self._jobs):
                if job.state == "stopping":
                    self._stop(job)
                elif job._waits is None:
                    self._step(job)
            self._call_next()
        finally:
            self._ticking = False
        self._wind_for_next()

    def _tell(self) -> None:
        """Call back; outside a step, since a callback may open a dialog, which runs an event loop of its own."""
        news, self._news = self._news, []
        self._wind_for_next()
        for tell in news:
            tell()

    def _wind_for_next(self) -> None:
        if self._news or any(job._waits is None and job.state == "running" for job in self._jobs):
            self._wind(_WORK)
        elif self._jobs or self._dying:
            self._wind(_WATCH)
        elif self._timer is not None:
            self._timer.stop()

    def _step(self, job: Job) -> None:
        limit = time.monotonic() + _BUDGET
        latest = None
        try:
            while job._waits is None and time.monotonic() < limit:
                error, job._raise = job._raise, None
                answer, job._answer = job._answer, None
                step = job._steps.throw(error) if error is not None else job._steps.send(answer)
                if isinstance(step, Call):
                    job._waits = step
                elif step is not None:
                    latest = step
            if latest is not None:
                self._show(job, latest)
        except StopIteration as end:
            self._finish(job, "done", result=end.value)
        except Cancelled as error:
            self._finish(job, "cancelled", error=error)
        except MLIError as error:
            self._finish(job, "failed", error=error)
        except Exception as error:
            logging.exception("A job failed for a reason that is a bug")
            bug = MLIError(
                f"{type(error).__name__}: {error}",
                "This is a bug in the extension.",
                "Please report it with the lines in the error log.",
            )
            bug.__cause__ = error
            bug.add_note("".join(traceback.format_exception(error)))
            self._finish(job, "failed", error=bug)

    def _stop(self, job: Job) -> None:
        if self._dying:
            return  # its worker may still be writing into its folder
        try:
            job._steps.close()
        except Exception:
            logging.exception("Tidying up after a cancelled job failed")
        self._finish(job, "cancelled", error=Cancelled())

    def _finish(self, job: Job, state: str, *, result: Any = None, error: MLIError | None = None) -> None:
        job.state, job.result, job.error = state, result, error
        job._waits = None
        self._jobs.remove(job)
        if state == "done":
            self._news.append(lambda: job._done(result))
        elif state == "cancelled":
            self._news.append(job._cancelled)
        else:
            self._news.append(lambda: job._failed(error or MLIError("The job failed.")))

    # -- the worker

    def _call_next(self) -> None:
        if self._calling is not None or self._dying:
            return
        job = next((j for j in self._jobs if j._waits is not None and j.state == "running"), None)
        if job is None or job._waits is None:
            return
        self._heard, self._reused = False, self._worker is not None
        try:
            if self._worker is None:
                self._show(job, Status(stage="Starting the worker (once a session)"))
                self._worker = self._start_process()
        except MLIError as error:
            self._resume(job, error=error)
            return
        self._calling, self._call_id = job, next(self._ids)
        self._worker.send({"id": self._call_id, "task": job._waits.task, "request": job._waits.settings})

    def _listen(self) -> None:
        worker = self._worker
        if worker is None or self._calling is None:
            return
        gone = worker.gone()
        for event in worker.events():
            if self._calling is not None and event.get("id") == self._call_id:
                self._heard = True
                self._hear(self._calling, event)
        if self._calling is not None and gone:
            job, self._calling = self._calling, None
            if self._heard or not self._reused:
                self._resume(job, error=worker.failure())
            # else it had ended before it read the request, and a fresh one is asked
            self._drop_worker()

    def _hear(self, job: Job, event: Event) -> None:
        kind = event["event"]
        if kind in ("stage", "fraction", "message", "curve", "rater", "samples"):
            if kind == "message":
                job.messages.append(str(event["text"]))
            self._show(job, _heard(job.status, event))
        elif kind == "result":
            self._calling = None
            self._resume(job, answer=event["result"])
        elif kind == "error":
            self._calling = None
            failure = from_json(event["error"])
            if event.get("traceback"):
                logging.error("The worker failed for a reason that is a bug:\n%s", event["traceback"])
                failure.add_note(str(event["traceback"]))
            self._resume(job, error=failure)

    def _resume(self, job: Job, *, answer: Any = None, error: MLIError | None = None) -> None:
        job._waits = None
        job._answer, job._raise = answer, error

    def _show(self, job: Job, status: Status) -> None:
        job.status = status
        self._news.append(lambda: job._progress(status))

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._dying.append((self._worker, time.monotonic()))
            self._worker = None

    def _bury(self) -> None:
        for worker, since in tuple(self._dying):
            if worker.gone():
                worker.close()
            elif time.monotonic() - since > _KILL_LIMIT:
                logging.error("The worker process %d could not be ended within %g s", worker.pid, _KILL_LIMIT)
            else:
                continue
            self._dying.remove((worker, since))

    def _wind(self, milliseconds: int) -> None:
        if self._timer is None:
            self._timer = (self._make_timer or _qt_timer)()
            self._timer.connect("timeout()", self.tick)
        self._timer.start(milliseconds)


def _qt_timer() -> Any:
    import qt

    return qt.QTimer()


def _slicer_process_events() -> None:
    import slicer

    slicer.app.processEvents()


def run_here(steps: Steps, progress: Callable[[Status], None] = _nothing) -> Any:
    """Run a job to its end in this process, without a worker: for scripts where torch may be imported.

    Raises:
        MLIError: what the job failed with.
    """
    from MLILib import tasks
    from MLILib.progress import Progress

    status = Status()

    def hear(event: Event) -> None:
        nonlocal status
        status = _heard(status, event)
        progress(status)

    try:
        step = next(steps)
        while True:
            if isinstance(step, Call):
                try:
                    request = tasks.request_class(step.task).from_json(step.settings)
                    answer = tasks.run(request, Progress(hear))
                except MLIError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
            else:
                if step is not None:
                    progress(step)
                step = next(steps)
    except StopIteration as end:
        return end.value


def _heard(status: Status, event: Event) -> Status:
    """The status after an event of a running task."""
    kind = event["event"]
    if kind == "stage":
        return dataclasses.replace(status, stage=str(event["name"]), fraction=0.0, eta=None, message="")
    if kind == "fraction":
        return dataclasses.replace(status, fraction=float(event["value"]), eta=event.get("eta"))
    if kind == "message":
        return dataclasses.replace(status, message=str(event["text"]))
    if kind == "curve":
        point = Point(str(event["stage"]), int(event["level"]), int(event["iteration"]), float(event["value"]))
        return dataclasses.replace(status, curve=(*status.curve, point))
    if kind == "rater":
        return dataclasses.replace(status, raters={**status.raters, str(event["name"]): str(event["status"])})
    if kind == "samples":
        return dataclasses.replace(status, samples=(str(event["path"]), status.samples[1] + 1))
    return status


_shared: JobRunner | None = None


def shared_runner() -> JobRunner:
    """The runner, and so the worker, that all modules of the extension share."""
    global _shared
    if _shared is None:
        import slicer

        _shared = JobRunner()
        slicer.app.connect("aboutToQuit()", _shared.close)
        atexit.register(_shared.close)  # where the application ends without saying so
    return _shared

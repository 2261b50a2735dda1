"""Many tasks on the workers of a Dask scheduler (Rocklin 2015), given back as they end.

The workers are other computers: they have MLI installed, see the same file names, and have their own models' folders.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from .. import __version__, errors, tasks
from ..errors import BadInput, MissingPackage, MLIError, WorkerFailed
from ..progress import Progress
from .pool import Finished, Job

#: Seconds to wait for the scheduler.
_PATIENCE = 20
_POLL = 0.1


def do(task: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run a task where this is called; an error that a user can act on comes back as a plain value."""
    started = time.monotonic()
    try:
        result = tasks.run(tasks.request_class(task).from_json(request))
    except MLIError as error:
        return {"error": error.to_json(), "seconds": time.monotonic() - started}
    return {"result": result, "seconds": time.monotonic() - started}


def version() -> str:
    """MLI's, where this is called."""
    return __version__


def run(jobs: Sequence[Job], address: str, progress: Progress) -> Iterator[Finished]:
    """Do the jobs on the workers of the scheduler at `address`; each is given as it ends.

    Raises:
        MissingPackage: distributed is not installed here.
        BadInput: no scheduler answers, it has no workers, or they lack MLI.
        Cancelled: the user stopped; what is still waiting is taken back.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingPackage(
            "The package distributed is not installed.",
            "It speaks to Dask schedulers.",
            "Run: pip install distributed",
        ) from error
    try:
        client = Client(address, timeout=_PATIENCE)
    except (OSError, ValueError, TimeoutError) as error:
        raise BadInput(
            f"No Dask scheduler answers at {address}.", f"{error}.", "Start one with: dask scheduler"
        ) from error
    with client:
        _require_workers(client, address)
        futures = {}
        started = time.monotonic()
        try:
            for job in jobs:
                # a case whose worker died is not tried again: it may have taken the worker's memory
                one = client.submit(do, job.task, dict(job.request), pure=False, retries=0)
                futures[one] = job
            waiting = set(futures)
            while waiting:
                progress.check_cancelled()
                ended = {one for one in waiting if one.done()}
                for one in sorted(ended, key=lambda f: futures[f].name):
                    yield _finished(one, futures[one], started)
                waiting -= ended
                if waiting and not ended:
                    time.sleep(_POLL)
        finally:
            client.cancel(list(futures))


def _require_workers(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError as error:
        raise BadInput(
            f"The Dask scheduler at {address} has no workers.", "", f"Start some with: dask worker {address}"
        ) from error
    try:
        found = set(client.run(version).values())
    except (ImportError, AttributeError) as error:
        raise BadInput(
            f"The workers of {address} lack MLI.", f"{error}.", "Install it where they run, in their Python."
        ) from error
    if found != {__version__}:
        raise BadInput(
            f"The workers of {address} have MLI {', '.join(sorted(found))}.",
            f"This computer has {__version__}.",
            "Install the same version everywhere.",
        )


def _finished(future: Any, job: Job, started: float) -> Finished:
    error = future.exception() if future.status == "error" else None
    if future.status == "cancelled":
        return Finished(job, None, WorkerFailed("The scheduler cancelled the case.", "", "Run again."), 0.0)
    if error is not None:
        failed = WorkerFailed(f"The case failed on its worker: {type(error).__name__}: {error}.", "", "See its log.")
        return Finished(job, None, failed, time.monotonic() - started)
    answer = future.result()
    if "error" in answer:
        return Finished(job, None, errors.from_json(answer["error"]), answer["seconds"])
    return Finished(job, answer["result"], None, answer["seconds"])

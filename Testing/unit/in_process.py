"""Has the cases of a cohort segmented in the test's own process, which spares it the start of a worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import pytest

from MLILib import tasks
from MLILib.cohort import pool
from MLILib.cohort.pool import Finished, Job
from MLILib.errors import MLIError
from MLILib.progress import Progress


def segment_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Until the test ends; gives the names of the jobs that were asked for, as they are."""
    asked: list[str] = []

    def here(
        jobs: Sequence[Job], workers: int, progress: Progress, begins: Callable[[Job], None] = lambda job: None
    ) -> Iterator[Finished]:
        for job in jobs:
            progress.check_cancelled()
            asked.append(job.name)
            begins(job)
            try:
                result = tasks.run(tasks.request_class(job.task).from_json(json.loads(json.dumps(job.request))))
                yield Finished(job, result, None, 1.0)
            except MLIError as error:
                yield Finished(job, None, error, 1.0)

    monkeypatch.setattr(pool, "run", here)
    return asked

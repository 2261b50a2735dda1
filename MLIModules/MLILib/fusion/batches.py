"""Many registrations as one job: several at a time, with one progress and remaining time over all of them.

A registration of small images keeps one core busy, however many there are; so on a CPU several run beside each other.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ..progress import Event, Progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    items: Sequence[Item],
    work: Callable[[Item, Progress], Result],
    progress: Progress,
    *,
    workers: int = 1,
    stages: int = 1,
) -> list[Result]:
    """The result of each item, in order.

    Args:
        items: what is worked on.
        work: what is done with one; told a progress of its own, whose stages and fractions become a share of the
            whole. An exception of it ends the whole: the others stop at their next report.
        progress: told the fraction of the whole; its stage is the caller's.
        workers: how many run at a time.
        stages: that `work` reports for an item.
    """
    tally = _Tally(progress, len(items), stages)
    workers = min(workers, len(items))
    if workers < 2:
        return [tally.run(number, item, work) for number, item in enumerate(items)]
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    pool = concurrent.futures.ThreadPoolExecutor(workers, "mli-atlas", torch.set_num_threads, (share,))
    try:
        futures = [pool.submit(tally.run, number, item, work) for number, item in enumerate(items)]
        done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        failed = [future for future in futures if future in done and future.exception() is not None]
        if failed:
            failed[0].result()  # raises what it raised
        return [future.result() for future in futures]
    finally:
        tally.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)  # for threads to come; torch remembers the last number that any thread set


class _Tally:
    """How much of each item is done; several threads report to it."""

    def __init__(self, progress: Progress, count: int, stages: int) -> None:
        self.stop = threading.Event()
        self._progress = progress
        self._stages = stages
        self._done = [0.0] * count
        self._lock = threading.Lock()

    def run(self, number: int, item: Item, work: Callable[[Item, Progress], Result]) -> Result:
        stage = -1

        def hear(event: Event) -> None:
            nonlocal stage
            if event["event"] == "stage":
                stage += 1
                self._tell(number, stage / max(self._stages, stage + 1))
            elif event["event"] == "fraction":
                self._tell(number, (max(stage, 0) + float(event["value"])) / max(self._stages, stage + 1))
            elif event["event"] == "rater":
                with self._lock:
                    self._progress.rater(str(event["name"]), str(event["status"]))

        result = work(item, Progress(hear, cancelled=self._cancelled))
        self._tell(number, 1.0)
        return result

    def _tell(self, number: int, value: float) -> None:
        with self._lock:
            self._done[number] = max(self._done[number], value)
            self._progress.fraction(sum(self._done) / len(self._done))

    def _cancelled(self) -> bool:
        if self.stop.is_set():
            return True
        with self._lock:
            self._progress.check_cancelled()
        return False

"""Counts how long the event loop was held: a timer of 10 ms, and the longest time between two of its ticks.

On a machine whose processors others keep busy nothing can be said of ours; :func:`require_quiet` skips the test there.
"""

import gc
import time

import pytest


def require_quiet(limit=1.3):
    """Skip where a piece of computing takes more than `limit` times the processor time it needs, three times over."""
    stretches = []
    for _ in range(3):
        wall, processor = time.perf_counter(), time.process_time()
        while time.process_time() - processor < 0.05:
            sum(range(1000))
        stretches.append((time.perf_counter() - wall) / (time.process_time() - processor))
    if min(stretches) > limit:
        pytest.skip(f"the machine is too busy to time anything: computing takes {min(stretches):.1f} times as long")


class Gaps:
    """Watches while a block runs.

    The tests' process has loaded torch for its oracles, which Slicer's has not: its million objects are taken out of
    the garbage collector's rounds, one of which would otherwise take a fifth of a second.

    Attributes:
        longest: seconds between two ticks.
        ticks: how many there were.
    """

    def __enter__(self):
        import qt

        gc.collect()
        gc.freeze()
        self.longest, self.ticks, self._last = 0.0, 0, time.perf_counter()
        self._timer = qt.QTimer()
        self._timer.connect("timeout()", self._tick)
        self._timer.start(10)
        return self

    def _tick(self):
        now = time.perf_counter()
        self.longest, self.ticks, self._last = max(self.longest, now - self._last), self.ticks + 1, now

    def __exit__(self, *_):
        self._tick()
        self._timer.stop()
        gc.unfreeze()

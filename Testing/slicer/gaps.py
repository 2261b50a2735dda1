"""Counts how long the event loop was held: a timer of 10 ms, and the longest time between two of its ticks."""

import time


class Gaps:
    """Watches while a block runs.

    Attributes:
        longest: seconds between two ticks.
        ticks: how many there were.
    """

    def __enter__(self):
        import qt

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

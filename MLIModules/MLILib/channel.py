"""Standard output kept for results: what libraries print goes to standard error instead.

Both doors need it: one JSON object on standard output from the command line, one JSON object a line from the worker.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def claimed_stdout() -> Iterator[TextIO]:
    """The process's standard output as a stream of ours; everybody else's writes to it appear on standard error.

    Works on the file descriptor, so that prints from C++ libraries and child processes are turned aside too.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    stream = os.fdopen(os.dup(kept), "w", encoding="utf-8", newline="\n")
    try:
        yield stream
    finally:
        stream.flush()
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        stream.close()

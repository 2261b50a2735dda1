"""The worker process behind Slicer's widgets: requests come in, events go out, one JSON object a line.

In: ``{"id": 1, "task": "segment", "request": {...}}``, ``{"quit": true}``; the end of standard input ends the process
at once, also in the middle of a task, so that no worker outlives its Slicer.
Out: ``hello`` (pid, pgid, python, version), then for each request ``stage``, ``fraction`` (value, eta in s),
``message``, ``curve``, ``rater``, and at last ``result`` or ``error``; each carries the request's id. What libraries
print goes to standard error.

A process stays for many requests: the second one pays for no import, no CUDA start and no model load.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import Any, TextIO

from . import __version__, tasks
from .channel import claimed_stdout
from .errors import MLIError
from .progress import Progress, json_lines

_END: dict[str, Any] = {"quit": True}


def serve(source: TextIO, target: TextIO) -> None:
    """Answer the requests of `source` until it quits or ends."""
    waiting: queue.Queue[dict[str, Any]] = queue.Queue()
    # a daemon thread reads, so that the end of input is noticed while a task computes
    threading.Thread(target=_read, args=(source, waiting), daemon=True).start()
    hello = {"pid": os.getpid(), "pgid": _process_group(), "python": sys.version.split()[0], "version": __version__}
    json_lines(target)({"event": "hello", **hello})
    while True:
        message = waiting.get()
        if message.get("quit"):
            return
        _answer(message, target)


def _read(source: TextIO, waiting: queue.Queue[dict[str, Any]]) -> None:
    for line in source:
        if not line.strip():
            continue
        try:
            message = json.loads(line)
        except json.JSONDecodeError as error:
            message = {"id": None, "unreadable": str(error)}
        waiting.put(message if isinstance(message, dict) else {"id": None, "unreadable": "not a JSON object"})
        if waiting.queue and waiting.queue[-1].get("quit"):
            return
    _end_now()


def _end_now() -> None:
    """End this process and what it started: nobody is listening any more."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def _answer(message: dict[str, Any], target: TextIO) -> None:
    number = message.get("id")
    send = json_lines(target, id=number)
    try:
        if "unreadable" in message:
            msg = f"The worker was sent a line it cannot read: {message['unreadable']}"
            raise ValueError(msg)
        started = time.monotonic()
        request = tasks.request_class(str(message["task"])).from_json(message["request"])
        result = tasks.run(request, Progress(send))
        send({"event": "result", "result": result, "seconds": time.monotonic() - started})
    except MLIError as error:
        send({"event": "error", "error": error.to_json()})
    except Exception as error:  # a bug: the worker lives on, and the reader is told
        trace = traceback.format_exc()
        sys.stderr.write(trace)
        plain = MLIError(
            f"Something unexpected happened: {type(error).__name__}: {error}",
            "This is a bug in the extension.",
            "Please report it with the details below.",
        )
        send({"event": "error", "error": plain.to_json(), "traceback": trace})


def _process_group() -> int | None:
    return os.getpgrp() if hasattr(os, "getpgrp") else None


def main() -> int:
    """Entry point of ``python -m MLILib.worker``."""
    if hasattr(os, "setsid") and os.getpgrp() != os.getpid():
        os.setsid()  # one signal to the group then ends the worker and every child of it
    with claimed_stdout() as target:
        serve(sys.stdin, target)
    return 0


if __name__ == "__main__":
    sys.exit(main())

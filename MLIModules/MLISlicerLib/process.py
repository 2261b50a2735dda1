"""The worker process and its pipes: JSON lines in, JSON lines out, no thread, and no call that waits.

``qt.QProcess`` would end only the process it started, which in Slicer is the launcher PythonSlicer and not Python
itself, and Qt 5 cannot put it into a process group of its own. ``slicer.util.launchConsoleProcess(blocking=False)``
reads in a Python thread, which gets no time while the Qt event loop is idle, mixes errors into the output and has no
input. So this is a ``subprocess.Popen`` in a session of its own whose pipes a timer looks into: they do not block on
POSIX, and are asked what they hold on Windows.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from MLILib.errors import WorkerFailed

Event = dict[str, Any]

_POSIX = os.name == "posix"
#: Bytes taken from a pipe at once, so that a talkative library cannot hold the event loop.
_CHUNK = 1 << 16
#: How many of the last lines of the worker's standard error are kept for an error.
_LAST_LINES = 12
#: What a process says that dies for want of memory, if it can still speak.
_NO_MEMORY = ("MemoryError", "bad_alloc", "Cannot allocate memory")


def library_folder() -> str:
    """The folder that holds MLILib: MLIModules in the source tree, qt-scripted-modules where it is installed."""
    import MLILib

    return str(Path(MLILib.__file__).resolve().parent.parent)


def start_worker() -> WorkerProcess:
    """Start ``python -m MLILib.worker`` with Slicer's own Python."""
    environment = dict(os.environ)
    inherited = environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = os.pathsep.join(part for part in (library_folder(), inherited) if part)
    environment["PYTHONUTF8"] = "1"  # the lines are UTF-8, also where Windows has another code page
    return WorkerProcess([sys.executable, "-m", "MLILib.worker"], environment)


class WorkerProcess:
    """A process that is spoken to in lines of JSON.

    Args:
        command: program and arguments.
        environment: of the process; by default this one's.

    Raises:
        WorkerFailed: the program could not be started.
    """

    def __init__(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        options: dict[str, Any] = {}
        if _POSIX:
            options["start_new_session"] = True  # launcher and child in one group, also before the child has said hello
        else:
            options["creationflags"] = subprocess.CREATE_NO_WINDOW  # type: ignore[attr-defined]  # Windows only
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                bufsize=0,
                **options,
            )
        except OSError as error:
            raise WorkerFailed(
                f"The worker process could not be started: {error}.",
                f"{command[0]} cannot be run.",
                "Restart Slicer; if it happens again, reinstall the extension.",
            ) from error
        pipes: list[Any] = [self._process.stdin, self._process.stdout, self._process.stderr]
        self._stdin, self._stdout, self._stderr = pipes
        if _POSIX:
            for pipe in pipes:
                os.set_blocking(pipe.fileno(), False)
        self._to_write = b""
        self._heard: list[Event] = []
        self._partial = b""
        self._partial_error = b""
        self._stdout_open = True
        self._stderr_open = True
        self._killed = False
        self._groups = {self._process.pid} if _POSIX else set()
        #: The last lines of standard error.
        self.last_lines: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        #: What the worker said of itself when it started, or None.
        self.hello: Event | None = None

    @property
    def pid(self) -> int:
        """Id of the process that was started (in Slicer the launcher's)."""
        return self._process.pid

    @property
    def return_code(self) -> int | None:
        """Its exit status, negative for a signal, or None while it runs."""
        return self._process.poll()

    def send(self, message: Event) -> None:
        """Queue one line for the worker; it leaves at once as far as the pipe has room."""
        self._to_write += json.dumps(message, allow_nan=False).encode() + b"\n"
        self._write()

    def events(self) -> list[Event]:
        """The events that have come since the last call."""
        self._pump()
        found, self._heard = self._heard, []
        return found

    def gone(self) -> bool:
        """Whether nothing is left of it: the started process has ended and nobody holds its output any more.

        All it has said is then in :meth:`events`.
        """
        if self._process.poll() is None:
            return False
        if not self._killed:
            self.kill()  # the launcher is gone; what it left behind must not live on
        self._pump()
        return not self._stdout_open

    def kill(self) -> None:
        """End the process and all it has started, now and without waiting; :meth:`gone` tells when it is done."""
        self._killed = True
        with contextlib.suppress(OSError):
            self._stdin.close()  # the worker ends itself at the end of its input, too
        if _POSIX:
            for group in self._groups:
                _kill_group(group)
        else:
            _kill_tree(self._process.pid)

    def close(self) -> None:
        """Close the pipes once :meth:`gone`."""
        for pipe in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(OSError):
                pipe.close()

    def failure(self) -> WorkerFailed:
        """Why it ended although nobody asked it to."""
        code = self._process.poll()
        self._read_errors()
        if self._partial_error:
            self.last_lines.append(self._partial_error.decode(errors="replace"))
            self._partial_error = b""
        said = "\n".join(line for line in self.last_lines if line.strip())
        quoted = f"Its last lines were:\n{said}" if said else "It said nothing."
        if code == -9 or any(sign in said for sign in _NO_MEMORY):
            return WorkerFailed(
                "The worker process was killed by the system." if code == -9 else "The worker process gave up.",
                f"Most likely the computer ran out of memory. {quoted}",
                "Close other programs, choose a smaller tile or crop the volume, and press Apply again.",
            )
        how = f"was ended by signal {_signal_name(-code)}" if code is not None and code < 0 else f"ended (code {code})"
        return WorkerFailed(
            f"The worker process {how} before it had finished.",
            quoted,
            "Press Apply again; if it happens again, press 'Check this computer' and report these lines.",
        )

    def _pump(self) -> None:
        self._write()
        self._read_errors()
        data, self._stdout_open = _read(self._stdout, self._stdout_open)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict) or "event" not in event:
                self.last_lines.append(line.decode(errors="replace"))
            elif event["event"] == "hello":
                self._note_hello(event)
            else:
                self._heard.append(event)

    def _note_hello(self, event: Event) -> None:
        self.hello = event
        group = event.get("pgid")
        if _POSIX and isinstance(group, int) and group > 1 and group != os.getpgrp():
            self._groups.add(group)
            if self._killed:
                _kill_group(group)  # it left the launcher's group just before that was ended

    def _write(self) -> None:
        while self._to_write and not self._killed:
            try:
                written = os.write(self._stdin.fileno(), self._to_write[:_CHUNK])
            except BlockingIOError:
                return
            except OSError:
                self._to_write = b""  # the worker is gone: its exit status tells the rest
                return
            self._to_write = self._to_write[written:]

    def _read_errors(self) -> None:
        data, self._stderr_open = _read(self._stderr, self._stderr_open)
        *lines, self._partial_error = (self._partial_error + data).split(b"\n")
        self.last_lines.extend(line.decode(errors="replace").rstrip() for line in lines)


def _read(pipe: Any, is_open: bool) -> tuple[bytes, bool]:
    """What the pipe holds, and whether it is still open."""
    if not is_open:
        return b"", False
    if not _POSIX:
        return _read_windows(pipe)
    try:
        data = os.read(pipe.fileno(), _CHUNK)
    except BlockingIOError:
        return b"", True
    except OSError:
        return b"", False
    return data, bool(data)


def _read_windows(pipe: Any) -> tuple[bytes, bool]:
    """As :func:`_read`. There, pipes that do not block tell "empty" from "closed" by errors only: it is peeked at."""
    import _winapi
    import msvcrt

    try:
        handle = msvcrt.get_osfhandle(pipe.fileno())  # type: ignore[attr-defined]
        available = _winapi.PeekNamedPipe(handle, 0)[0]  # type: ignore[attr-defined]
    except OSError:
        return b"", False
    return (os.read(pipe.fileno(), min(available, _CHUNK)), True) if available else (b"", True)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _kill_tree(pid: int) -> None:
    subprocess.Popen(
        ["taskkill", "/T", "/F", "/PID", str(pid)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        creationflags=subprocess.CREATE_NO_WINDOW,  # type: ignore[attr-defined]  # Windows only
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


ProcessFactory = Callable[[], WorkerProcess]

"""Errors a person can act on: what went wrong, the likely cause, what to do.

The command line prints the three sentences and exits with the class's code; the worker sends them as JSON; the widget
shows them in one dialog. Anything that is not an :class:`MLIError` is a bug of ours.
"""

from __future__ import annotations

from typing import Any


class MLIError(Exception):
    """Base of all expected failures.

    Args:
        what: one sentence, what went wrong.
        cause: one sentence, the likely cause ("" when `what` already says it).
        remedy: one sentence, what the user can do.
    """

    exit_code = 1

    def __init__(self, what: str, cause: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.cause, self.remedy) if part)

    def to_json(self) -> dict[str, Any]:
        """The error as plain values; :func:`from_json` makes it again on the other side of a pipe."""
        return {
            "kind": type(self).__name__,
            "what": self.what,
            "cause": self.cause,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
        }


class BadInput(MLIError):
    """A file, folder, value or model that cannot be used."""

    exit_code = 2


class OutOfMemory(MLIError):
    """Neither the smallest tile nor the CPU had room."""

    exit_code = 3


class MissingPackage(MLIError):
    """A Python package that the task needs is not installed."""

    exit_code = 4


class Cancelled(MLIError):
    """The user stopped the job."""

    exit_code = 130

    def __init__(self, what: str = "The job was cancelled.", cause: str = "", remedy: str = "") -> None:
        super().__init__(what, cause, remedy)


class WorkerFailed(MLIError):
    """The worker process crashed, was killed or could not be started; carries its last lines."""


_CLASSES = {c.__name__: c for c in (MLIError, BadInput, OutOfMemory, MissingPackage, Cancelled, WorkerFailed)}


def from_json(data: dict[str, Any]) -> MLIError:
    """The error that :meth:`MLIError.to_json` described; an unknown kind becomes a plain :class:`MLIError`."""
    cls = _CLASSES.get(str(data.get("kind")), MLIError)
    return cls(str(data.get("what", "")), str(data.get("cause", "")), str(data.get("remedy", "")))

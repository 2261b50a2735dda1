"""PySide6's classes as they were before pythonqt.py changes them; for the stand-in's own use."""

from __future__ import annotations

from typing import Any

import shiboken6
from PySide6 import QtCore

# Class -> its own members, filled before any is changed.
members: dict[type, dict[str, Any]] = {}
plain_set = shiboken6.Shiboken.Object.__setattr__
connect = QtCore.QObject.connect
disconnect = QtCore.QObject.disconnect


def raw(cls: type, name: str) -> Any:
    """Returns a member of a PySide6 class as it was, hidden or changed since or not."""
    for base in cls.__mro__:
        if name in members.get(base, ()):
            return members[base][name]
    return getattr(cls, name)

"""Segmentation without training: thresholds, regions, level sets, graph cuts, and a forest that learns from scribbles.

Example::

    from MLILib.classical import segment_classical

    labels = segment_classical(image, "graph-cut", seeds=scribbles).labels
"""

from __future__ import annotations

import importlib
from typing import Any

#: What is offered here, and where it lives: imported on first use, because requests must not import SimpleITK.
_PLACES = {"segment_classical": "methods", "Seeds": "seeds"}

__all__ = ["Seeds", "segment_classical"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)

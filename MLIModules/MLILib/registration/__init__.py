"""Registration: classical, learned and group-wise, with the quality of each result measured.

Example::

    from MLILib.registration import assess, register

    result = register(fixed, moving, preset="deformable")
    print(assess(fixed, moving, result)["jacobian"])
"""

from __future__ import annotations

import importlib
from typing import Any

#: What is offered here, and where it lives: imported on first use, because requests must not import torch.
_PLACES = {"register": "pairwise", "Registration": "pairwise", "assess": "quality"}

__all__ = ["Registration", "assess", "register"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)

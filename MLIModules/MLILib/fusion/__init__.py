"""Label fusion: one segmentation of many, with measured trust in each rater.

Example::

    from MLILib.fusion import fuse, propagate

    found = propagate(target, [(image, labels), ...], registration="deformable")
    result = fuse(found.raters, method="jlf", target=found.target, warped=found.warped)
    print(result.report["agreement"]["kappa"])
"""

from __future__ import annotations

import importlib
from typing import Any

#: What is offered here, and where it lives: imported on first use, because requests must not import torch.
_PLACES = {"fuse": "fusing", "Fused": "fusing", "propagate": "propagation", "Propagated": "propagation"}

__all__ = ["Fused", "Propagated", "fuse", "propagate"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)

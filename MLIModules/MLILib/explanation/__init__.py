"""Explanation: why a network answers what it answers, and whether the explanation can be believed.

Example::

    from MLILib.explanation import ClassScore, integrated_gradients

    found = integrated_gradients(network.eval(), image, ClassScore(1))
    print(found.error)
"""

from __future__ import annotations

import importlib
from typing import Any

#: What is offered here, and where it lives: imported on first use, because requests must not import torch.
_PLACES = {
    "ClassScore": "targets",
    "LabelSum": "targets",
    "Output": "targets",
    "Voxel": "targets",
    "activation_maps": "cam",
    "deconvnet": "rules",
    "effective_field": "effective",
    "grad_cam": "cam",
    "gradient": "gradients",
    "gradient_times_input": "gradients",
    "guided_backpropagation": "rules",
    "guided_grad_cam": "cam",
    "integrated_gradients": "gradients",
    "receptive_field": "receptive",
    "receptive_size": "receptive",
    "smoothgrad": "gradients",
}

__all__ = [
    "ClassScore",
    "LabelSum",
    "Output",
    "Voxel",
    "activation_maps",
    "deconvnet",
    "effective_field",
    "grad_cam",
    "gradient",
    "gradient_times_input",
    "guided_backpropagation",
    "guided_grad_cam",
    "integrated_gradients",
    "receptive_field",
    "receptive_size",
    "smoothgrad",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)

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
    "CrossEntropy": "attack",
    "LabelSum": "targets",
    "Output": "targets",
    "Voxel": "targets",
    "WeightedSum": "targets",
    "ablate_channels": "ablation",
    "ablate_feature_maps": "ablation",
    "ablate_regions": "ablation",
    "activation_maps": "cam",
    "completeness_error": "belief",
    "deconvnet": "rules",
    "edge_map": "controls",
    "effective_field": "effective",
    "explain": "explaining",
    "fgsm": "attack",
    "grad_cam": "cam",
    "gradient": "gradients",
    "gradient_times_input": "gradients",
    "guided_backpropagation": "rules",
    "guided_grad_cam": "cam",
    "integrated_gradients": "gradients",
    "invert": "inversion",
    "label_randomisation": "randomisation",
    "linear_argument": "attack_curve",
    "perturbation_curves": "deletion",
    "pgd": "attack",
    "random_map": "controls",
    "receptive_field": "receptive",
    "receptive_size": "receptive",
    "receptive_sizes": "receptive",
    "sensitivity": "belief",
    "smoothgrad": "gradients",
    "verdict": "belief",
    "weight_randomisation": "randomisation",
}

__all__ = [
    "ClassScore",
    "CrossEntropy",
    "LabelSum",
    "Output",
    "Voxel",
    "WeightedSum",
    "ablate_channels",
    "ablate_feature_maps",
    "ablate_regions",
    "activation_maps",
    "completeness_error",
    "deconvnet",
    "edge_map",
    "effective_field",
    "explain",
    "fgsm",
    "grad_cam",
    "gradient",
    "gradient_times_input",
    "guided_backpropagation",
    "guided_grad_cam",
    "integrated_gradients",
    "invert",
    "label_randomisation",
    "linear_argument",
    "perturbation_curves",
    "pgd",
    "random_map",
    "receptive_field",
    "receptive_size",
    "receptive_sizes",
    "sensitivity",
    "smoothgrad",
    "verdict",
    "weight_randomisation",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)

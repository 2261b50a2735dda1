"""A bundle whose postprocessing cannot be done part by part: MONAI runs it as it is, on the whole prediction.

The prediction is held whole on both grids (8 bytes a voxel and class, beside what the transforms take).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose, Invertd

from ..errors import BadInput
from .models import Model
from .prediction import Prediction, first_tensor
from .preparation import Prepared
from .sliding_window import sliding_window
from .tiles import Setup


def predict_whole(
    model: Model, prepared: Prepared, setup: Setup, on_fraction: Callable[[float], None] = lambda _: None
) -> Prediction:
    """Segment with one model, its own postprocessing unchanged.

    Raises:
        BadInput: its result is not a label map on the input's grid.
    """
    network = model.network(setup.device)
    total = setup.tilings[0].count(prepared.image.shape[1:])
    done = 0

    def count(windows: int) -> None:
        nonlocal done
        done += windows
        on_fraction(done / total)

    output = sliding_window(
        prepared.image,
        lambda data: first_tensor(network(data)),
        setup.tilings[0],
        batch=setup.batch[0],
        device=setup.device,
        store=setup.store,
        on_windows=count,
    ).cpu()
    transforms = list(model.own_postprocessing.flatten().transforms) if model.own_postprocessing is not None else []
    key = next((str(t.keys[0]) for t in transforms if hasattr(t, "keys")), "pred")
    image = MetaTensor(prepared.image, meta=prepared.trace.meta, applied_operations=prepared.trace.applied_operations)
    data: dict[Any, Any] = {key: MetaTensor(output, meta=dict(prepared.trace.meta)), prepared.key: image}
    for transform in transforms:
        data = _bound(transform, model.preprocessing)(data)
    return _labels(data[key], model, prepared.shape)


def _bound(transform: Any, preprocessing: Compose) -> Any:
    """An Invertd that undoes the very transforms that were applied; any other transform as it is."""
    if not isinstance(transform, Invertd):
        return transform
    bound = copy(transform)
    bound.transform = preprocessing
    return bound


def _labels(result: Any, model: Model, shape: tuple[int, ...]) -> Prediction:
    values = torch.as_tensor(result).float()
    if tuple(values.shape[1:]) != shape:
        raise BadInput(
            f"The postprocessing of the model {model.bundle.name} leaves {tuple(values.shape[1:])} voxels where the "
            f"image has {shape}.",
            "It does not undo the preprocessing (Invertd).",
            "Use another model, or ask its authors.",
        )
    whole = bool((values == values.round()).all())
    if len(values) > 1 and not whole:  # probabilities: it never decides
        return Prediction(_transposed(model.default_post.decide(values), model.classes - 1), overlapping=False)
    if len(values) > 1:
        bits = torch.zeros(shape, dtype=torch.int64)
        for i, channel in enumerate(values):
            bits |= (channel != 0).to(torch.int64) << i
        return Prediction(_transposed(bits, (1 << len(values)) - 1), overlapping=True)
    if not whole:
        raise BadInput(
            f"The model {model.bundle.name} does not end with labels.",
            "Its postprocessing returns fractions in one channel.",
            "It is made for another task; use another model.",
        )
    largest = max((label.value for label in model.labels), default=1)
    return Prediction(_transposed(values[0].to(torch.int64), largest), overlapping=False)


def _transposed(values: torch.Tensor, largest: int) -> np.ndarray:
    return np.ascontiguousarray(values.numpy().T).astype(np.min_scalar_type(max(largest, int(values.max()))))

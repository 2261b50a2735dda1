"""A bundle's Spacingd on a large image, without the memory MONAI's takes for its sampling grid and double precision.

The transform plans (MONAI's lazy mode: output size, affine, trace), :class:`.steps.ResampleStep` computes slab by slab.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import AFFINE_TOL
from monai.transforms import Spacingd, SpatialResampled

from .steps import ResampleStep

#: Bytes that MONAI would take from which on it is done here (24 an output voxel for the grid, 8 for each value).
LARGE = 2**29
#: Bytes that a slab's interpolation may take.
SLAB = 128 * 2**20


def resampled(transform: Any, data: Mapping[Any, Any]) -> dict[Any, Any] | None:
    """What `transform` makes of `data`; None where MONAI should do it itself.

    Args:
        transform: any transform; only Spacingd and SpatialResampled to a large grid are done here.
        data: its input, with MetaTensors (channel, x, y, z).
    """
    if not isinstance(transform, Spacingd | SpatialResampled):
        return None
    if isinstance(transform, Spacingd) and transform.spacing_transform.recompute_affine:
        return None  # cannot be planned
    planned = transform(dict(data), lazy=True)
    out = dict(data)
    for key in transform.key_iterator(data):
        operation = _only_operation(planned[key])
        if operation is None or not _interpolates(operation, planned[key]):
            return None
        outputs, channels = math.prod(operation["lazy_shape"]), len(planned[key])
        if 24 * outputs + 8 * channels * outputs + 8 * planned[key].numel() < LARGE:
            return None
        out[key] = _computed(planned[key], operation)
    return out


def _only_operation(tensor: Any) -> dict[str, Any] | None:
    if not isinstance(tensor, MetaTensor) or len(tensor.pending_operations) != 1:
        return None
    operation: dict[str, Any] = dict(tensor.pending_operations[0])
    return operation


def _interpolates(operation: Mapping[str, Any], tensor: MetaTensor) -> bool:
    """Whether it is a linear interpolation in double precision, and does anything at all."""
    extra, matrix = operation["extra_info"], np.asarray(operation["lazy_affine"])
    shape = tuple(operation["lazy_shape"])
    same = shape == tuple(tensor.shape[1:]) and np.allclose(matrix, np.eye(len(matrix)), atol=AFFINE_TOL)
    known = extra["mode"] == "bilinear" and extra["padding_mode"] in ("border", "zeros")
    return bool(known and extra["dtype"] == "float64" and len(matrix) == len(shape) + 1 and not same)


def _computed(tensor: MetaTensor, operation: Mapping[str, Any]) -> MetaTensor:
    matrix = np.asarray(operation["lazy_affine"], dtype=np.float64)
    shape = tuple(int(n) for n in operation["lazy_shape"])
    source = tensor.as_tensor()
    step = ResampleStep(
        matrix,
        tuple(source.shape[1:]),
        shape,
        mode="bilinear",
        padding_mode=str(operation["extra_info"]["padding_mode"]),
        align_corners=False,
        dtype=torch.float64,
    )
    out = torch.empty((source.shape[0], *shape), dtype=torch.float32)
    thick = max(1, SLAB // (math.prod(shape[1:]) * 24))
    for first in range(0, shape[0], thick):
        box = ((first, min(first + thick, shape[0])), *((0, n) for n in shape[1:]))
        need = step.need(box)
        block = source[(slice(None), *(slice(a, b) for a, b in need))]
        out[:, box[0][0] : box[0][1]] = step.apply(block, need, box)
    done = {key: value for key, value in operation.items() if key not in ("lazy_shape", "lazy_affine")}
    meta = dict(tensor.meta) | {"affine": tensor.affine @ torch.as_tensor(matrix)}
    return MetaTensor(out, meta=meta, applied_operations=[*tensor.applied_operations, done | {"lazy": False}])

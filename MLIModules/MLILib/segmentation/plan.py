"""The plan of a training: patch, spacing and network, chosen from the data set's fingerprint.

Follows nnU-Net's idea (Isensee 2021) in small: the patch covers the median case where it can, and pooling stops along
an axis before it gets thinner than four voxels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from .dataset import Dataset, Fingerprint

#: Most voxels in a patch: 128^3 in 3-D, 512^2 in 2-D.
_MOST_VOXELS = {2: 512 * 512, 3: 128**3}
_LEVELS = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained: plain values, kept with the checkpoint so that a resumed training is the same one."""

    dimensions: int
    spacing: tuple[float, ...]
    patch: tuple[int, ...]
    network: dict[str, Any]
    mirror_axes: tuple[int, ...]
    reasons: tuple[str, ...]


def make_plan(dataset: Dataset, shape: Fingerprint, filters: int) -> Plan:
    """Choose patch, network and mirroring.

    Only the first axis (left-right in RAS order) is mirrored: a mirrored hippocampus is one of the other side, while a
    back-to-front one is not anatomy.
    """
    dims = shape.dimensions
    factor = 2 ** (_LEVELS - 1)
    patch = [max(factor * 2, -(-n // factor) * factor) for n in shape.shape]
    while _product(patch) > _MOST_VOXELS[dims]:
        longest = patch.index(max(patch))
        patch[longest] -= factor
    network = unet(len(dataset.channels), len(dataset.labels) + 1, patch, filters)
    reasons = (
        f"spacing {_text(shape.spacing)} mm: the median of the cases",
        f"patch {_text(patch)}: the median size {_text(shape.shape)} rounded up to a multiple of {factor}",
        f"{_LEVELS} levels of {_text(network['filters'])} feature maps",
    )
    return Plan(dims, shape.spacing, tuple(patch), network, (0,), reasons)


def unet(channels: int, classes: int, patch: Sequence[int], filters: int) -> dict[str, Any]:
    """The network of the module, as a configuration names it.

    Args:
        channels: of the image.
        classes: labels with the background.
        patch: the size it will see, voxels.
        filters: feature maps of the first level.
    """
    dims = len(patch)
    strides = [[1] * dims]
    size = list(patch)
    for _ in range(_LEVELS - 1):
        stride = [2 if n % 2 == 0 and n // 2 >= 4 else 1 for n in size]
        size = [n // s for n, s in zip(size, stride, strict=True)]
        strides.append(stride)
    return {
        "_target_": "monai.networks.nets.DynUNet",
        "spatial_dims": dims,
        "in_channels": channels,
        "out_channels": classes,
        "kernel_size": [[3] * dims] * _LEVELS,
        "strides": strides,
        "upsample_kernel_size": strides[1:],
        # the full-resolution level does most of the work, the deepest holds most of the parameters: widen slowly
        "filters": [filters, filters * 2, filters * 3, filters * 4],
        "norm_name": ["INSTANCE", {"affine": True}],
        "act_name": ["leakyrelu", {"inplace": True, "negative_slope": 0.01}],
    }


def _product(values: list[int]) -> int:
    out = 1
    for v in values:
        out *= v
    return out


def _text(values: Any) -> str:
    return " x ".join(f"{v:g}" for v in values)

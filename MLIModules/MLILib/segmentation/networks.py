"""Networks by name, as a bundle's configuration names them: MONAI's where it has them, else those of this package.

dynunet is nnU-Net's (Isensee 2021), unet has residual units (Kerfoot 2019), segresnet (Myronenko 2018), swinunetr
(Hatamizadeh 2022), lraspp (Howard 2019; for volumes Weihsbach 2022), deepmedic two resolutions (Kamnitsas 2017).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

#: Names of the networks, the default first.
NETWORKS = ("dynunet", "unet", "segresnet", "swinunetr", "lraspp", "deepmedic")

#: A shifted window transformer halves its input five times, and normalises what is left over its voxels.
_SWIN_FACTOR, _SWIN_LEAST = 32, 64
#: Least extent of a patch for any network, voxels.
_LEAST = 16
#: MobileNet's strides; its head answers at an eighth of the resolution.
_LRASPP_FACTOR = {2: 16, 3: 8}
#: A structure of twenty voxels needs larger slices than photographs do (Weihsbach 2022).
_ENLARGE = 2.0
#: DynUNet and SegResNet are made of at least so many levels.
_FEWEST_LEVELS = 3


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a network is built for.

    Attributes:
        channels: of the image.
        classes: labels with the background.
        strides: of each level, one number an axis; the first level's are 1.
        kernels: widths of each level's convolutions, one number an axis.
        filters: feature maps of the first level.
        dropout: probability that a feature is dropped.
    """

    channels: int
    classes: int
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    filters: int
    dropout: float = 0.0

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.strides[0])


def definition(name: str, shape: Shape) -> dict[str, Any]:
    """The network called `name` as a configuration: ``_target_`` and its arguments.

    Raises:
        KeyError: there is no such network.
    """
    return _DEFINITIONS[name](shape)


def divisors(name: str, shape: Shape) -> tuple[int, ...]:
    """What the size of a patch must be a multiple of, an axis each."""
    pooled = [math.prod(level[axis] for level in shape.strides) for axis in range(shape.dimensions)]
    if name == "swinunetr":
        return (_SWIN_FACTOR,) * shape.dimensions
    if name == "lraspp":
        return (_LRASPP_FACTOR[shape.dimensions],) * shape.dimensions
    if name == "deepmedic":
        return (1,) * shape.dimensions
    if name == "segresnet":  # halves every axis alike
        return (2 ** (_levels(shape) - 1),) * shape.dimensions
    return tuple(pooled)


def narrowest(name: str) -> int:
    """Least extent of a patch that the network called `name` can be trained on, voxels."""
    return _SWIN_LEAST if name == "swinunetr" else _LEAST


def describe(name: str, network: dict[str, Any]) -> str:
    """The network in words, for the reasons of a plan."""
    maps = network.get("filters") or network.get("channels")
    if name in ("dynunet", "unet") and maps:
        return f"{len(maps)} levels of {' x '.join(str(n) for n in maps)} feature maps"
    words = {
        "segresnet": f"{len(network.get('blocks_down', ()))} levels from {network.get('init_filters')} feature maps",
        "swinunetr": f"feature size {network.get('feature_size')}",
        "lraspp": "MobileNetV3-Large at twice the resolution"
        if "enlarge" in network
        else "the light network for volumes",
        "deepmedic": "eight layers of 3-voxel kernels at full and at a third of the resolution",
    }
    return words[name]


def _levels(shape: Shape) -> int:
    return max(_FEWEST_LEVELS, len(shape.strides))


def _padded(values: Sequence[tuple[int, ...]], fill: int, dims: int) -> list[list[int]]:
    """One entry a level, at least as many as the networks are made of."""
    return [list(v) for v in values] + [[fill] * dims] * (_FEWEST_LEVELS - len(values))


def _dynunet(shape: Shape) -> dict[str, Any]:
    strides = _padded(shape.strides, 1, shape.dimensions)
    out = {
        "_target_": "monai.networks.nets.DynUNet",
        "spatial_dims": shape.dimensions,
        "in_channels": shape.channels,
        "out_channels": shape.classes,
        "kernel_size": _padded(shape.kernels, 3, shape.dimensions),
        "strides": strides,
        "upsample_kernel_size": strides[1:],
        # the full-resolution level does most of the work, the deepest holds most of the parameters: widen slowly
        "filters": [shape.filters * (i + 1) for i in range(len(strides))],
        "norm_name": ["INSTANCE", {"affine": True}],
        "act_name": ["leakyrelu", {"inplace": True, "negative_slope": 0.01}],
    }
    return out | ({"dropout": shape.dropout} if shape.dropout else {})


def _unet(shape: Shape) -> dict[str, Any]:
    strides = _padded(shape.strides, 1, shape.dimensions)
    return {
        "_target_": "monai.networks.nets.UNet",
        "spatial_dims": shape.dimensions,
        "in_channels": shape.channels,
        "out_channels": shape.classes,
        "channels": [shape.filters * min(2**i, 16) for i in range(len(strides))],
        "strides": strides[1:],
        "num_res_units": 2,
        "norm": ["INSTANCE", {"affine": True}],
        "dropout": shape.dropout,
    }


def _segresnet(shape: Shape) -> dict[str, Any]:
    levels = _levels(shape)
    out = {
        "_target_": "monai.networks.nets.SegResNet",
        "spatial_dims": shape.dimensions,
        "in_channels": shape.channels,
        "out_channels": shape.classes,
        "init_filters": shape.filters,
        "norm": ["GROUP", {"num_groups": math.gcd(8, shape.filters)}],
        "blocks_down": [1, *[2] * (levels - 2), 4],
        "blocks_up": [1] * (levels - 1),
    }
    return out | ({"dropout_prob": shape.dropout} if shape.dropout else {})


def _swinunetr(shape: Shape) -> dict[str, Any]:
    return {
        "_target_": "monai.networks.nets.SwinUNETR",
        "spatial_dims": shape.dimensions,
        "in_channels": shape.channels,
        "out_channels": shape.classes,
        "feature_size": max(12, shape.filters // 12 * 12),  # its heads divide multiples of 12
        "drop_rate": shape.dropout,
    }


def _lraspp(shape: Shape) -> dict[str, Any]:
    planar = shape.dimensions == 2
    return {
        "_target_": f"MLILib.segmentation.lraspp.{'LRASPP2D' if planar else 'LRASPP3D'}",
        "in_channels": shape.channels,
        "out_channels": shape.classes,
        "dropout": shape.dropout,
        **({"enlarge": _ENLARGE} if planar else {}),
    }


def _deepmedic(shape: Shape) -> dict[str, Any]:
    return {
        "_target_": "MLILib.segmentation.deepmedic.DeepMedic",
        "dimensions": shape.dimensions,
        "in_channels": shape.channels,
        "out_channels": shape.classes,
        "filters": shape.filters,
        "dropout": shape.dropout,
    }


_DEFINITIONS: dict[str, Callable[[Shape], dict[str, Any]]] = {
    "dynunet": _dynunet,
    "unet": _unet,
    "segresnet": _segresnet,
    "swinunetr": _swinunetr,
    "lraspp": _lraspp,
    "deepmedic": _deepmedic,
}

"""Small segmentation networks: LR-ASPP on MobileNetV3-Large (Howard 2019) for images, and its counterpart for volumes.

The 2-D one has torchvision's layers, one for one. The 3-D one follows Weihsbach 2022: inverted residuals (Sandler 2018)
at a half and a quarter of the resolution, atrous pyramid pooling (Chen 2018), and the same light head.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLS = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}

#: Channels between the backbone and the classifier of the head.
_INNER = 128


@dataclasses.dataclass(frozen=True)
class Row:
    """One inverted residual of a backbone: a table of them is the network.

    Attributes:
        expanded: channels between its two pointwise convolutions.
        outputs: channels after it.
        kernel: width of its depthwise convolution.
        stride: 1 or 2.
        dilation: of the depthwise convolution.
        squeeze: whether channels are scaled by what the whole image says (squeeze and excitation, Hu 2018).
        hard_swish: the activation; otherwise a ReLU.
    """

    expanded: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    squeeze: bool = False
    hard_swish: bool = False


#: MobileNetV3-Large, table 1 of Howard 2019; the last stage is dilated instead of strided, so that it ends at 1/16.
_LARGE = (
    Row(16, 16),
    Row(64, 24, stride=2),
    Row(72, 24),
    Row(72, 40, kernel=5, stride=2, squeeze=True),
    Row(120, 40, kernel=5, squeeze=True),
    Row(120, 40, kernel=5, squeeze=True),
    Row(240, 80, stride=2, hard_swish=True),
    Row(200, 80, hard_swish=True),
    Row(184, 80, hard_swish=True),
    Row(184, 80, hard_swish=True),
    Row(480, 112, squeeze=True, hard_swish=True),
    Row(672, 112, squeeze=True, hard_swish=True),
    Row(672, 160, kernel=5, dilation=2, squeeze=True, hard_swish=True),
    Row(960, 160, kernel=5, dilation=2, squeeze=True, hard_swish=True),
    Row(960, 160, kernel=5, dilation=2, squeeze=True, hard_swish=True),
)
#: The result of so many rows, where 1/8 of the resolution is reached, goes to the head directly.
_LARGE_LOW = 4
#: Batch normalisation as MobileNetV3 was published with.
_LARGE_NORM = {"eps": 0.001, "momentum": 0.01}

#: Weihsbach 2022: one stride in the stem, one half way; 40^3 voxels become 20^3, then 10^3.
_VOLUME = (
    Row(96, 16),
    Row(96, 24),
    Row(144, 24),
    Row(144, 32),
    Row(192, 32),
    Row(192, 32, stride=2),
    Row(192, 64),
    Row(384, 64),
    Row(384, 64),
)
_RATES = (2, 4, 8, 16)


class LRASPP2D(nn.Module):
    """LR-ASPP on a dilated MobileNetV3-Large: 3.2 million parameters.

    Args:
        in_channels: of the image.
        out_channels: classes, with the background.
        enlarge: factor by which images are enlarged first. The head works at 1/8 of the resolution; a structure of
            twenty voxels needs a factor of 2 or more (Weihsbach 2022).
        dropout: probability that a feature is dropped before the classifier.

    Shapes:
        (N, in_channels, x, y) to logits (N, out_channels, x, y), any x and y.
    """

    def __init__(self, in_channels: int, out_channels: int, enlarge: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.stem = _unit(2, in_channels, 16, kernel=3, stride=2, activation=nn.Hardswish, norm=_LARGE_NORM)
        blocks = []
        channels = 16
        for row in _LARGE:
            blocks.append(InvertedResidual(2, channels, row, _LARGE_NORM))
            channels = row.outputs
        self.low = nn.Sequential(*blocks[:_LARGE_LOW])
        self.high = nn.Sequential(
            *blocks[_LARGE_LOW:], _unit(2, channels, 6 * channels, activation=nn.Hardswish, norm=_LARGE_NORM)
        )
        self.head = Head(2, _LARGE[_LARGE_LOW - 1].outputs, 6 * channels, out_channels, dropout)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[2:]
        if self.enlarge != 1.0:
            x = functional.interpolate(x, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        low = self.low(_channels_last(self.stem(x)))
        logits: Tensor = self.head(low, self.high(low))
        return functional.interpolate(logits, size=shape, mode="bilinear", align_corners=False)


class LRASPPSlices(nn.Module):
    """:class:`LRASPP2D` on every slice of a volume, across its last axis (axial in RAS order).

    Shapes:
        (N, in_channels, x, y, z) to logits (N, out_channels, x, y, z).
    """

    def __init__(self, in_channels: int, out_channels: int, enlarge: float = 2.0) -> None:
        super().__init__()
        self.planar = LRASPP2D(in_channels, out_channels, enlarge)

    def forward(self, x: Tensor) -> Tensor:
        slices = x.movedim(-1, 1).flatten(0, 1)
        logits: Tensor = self.planar(slices)
        return logits.unflatten(0, (x.shape[0], x.shape[-1])).movedim(1, -1)


class LRASPP3D(nn.Module):
    """The counterpart for volumes: 1.2 million parameters.

    Args:
        in_channels: of the image.
        out_channels: classes, with the background.
        dropout: probability that a feature is dropped before the classifier.

    Shapes:
        (N, in_channels, x, y, z) to logits (N, out_channels, x, y, z), any size from 2 on.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = _unit(3, in_channels, 32, kernel=3, stride=2, activation=nn.ReLU6)
        narrow = [_unit(3, 32, 32, kernel=3, groups=32, activation=nn.ReLU6), _unit(3, 32, 16)]
        blocks = []
        channels = 16
        for row in _VOLUME:
            blocks.append(InvertedResidual(3, channels, row, {}, nn.ReLU6))
            channels = row.outputs
        self.low = nn.Sequential(*narrow, blocks[0])
        self.high = nn.Sequential(*blocks[1:], PyramidPooling3D(channels, _INNER, _RATES))
        self.head = Head(3, _VOLUME[0].outputs, _INNER, out_channels, dropout)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(_channels_last(self.stem(x)))
        logits: Tensor = self.head(low, self.high(low))
        return functional.interpolate(logits, size=x.shape[2:], mode="trilinear", align_corners=False)


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow; added to the input where the shape stays (Sandler 2018)."""

    def __init__(
        self, dimensions: int, inputs: int, row: Row, norm: dict[str, float], relu: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        activation = nn.Hardswish if row.hard_swish else relu
        layers: list[nn.Module] = []
        if row.expanded != inputs:
            layers.append(_unit(dimensions, inputs, row.expanded, activation=activation, norm=norm))
        layers.append(
            _unit(
                dimensions, row.expanded, row.expanded, kernel=row.kernel, stride=row.stride, dilation=row.dilation,
                groups=row.expanded, activation=activation, norm=norm,
            )
        )  # fmt: skip
        if row.squeeze:
            layers.append(SqueezeExcitation(dimensions, row.expanded))
        layers.append(_unit(dimensions, row.expanded, row.outputs, norm=norm))
        self.layers = nn.Sequential(*layers)
        self.adds = row.stride == 1 and inputs == row.outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out + x if self.adds else out


class SqueezeExcitation(nn.Module):
    """Channels scaled by a two-layer network on their means (Hu 2018), with a hard sigmoid (Howard 2019)."""

    def __init__(self, dimensions: int, channels: int) -> None:
        super().__init__()
        narrow = _multiple_of_8(channels / 4)
        convolution = _CONVOLUTIONS[dimensions]
        self.pool = _POOLS[dimensions](1)
        self.narrow = convolution(channels, narrow, 1)
        self.widen = convolution(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * functional.hardsigmoid(self.widen(functional.relu(self.narrow(self.pool(x)))))


class PyramidPooling3D(nn.Module):
    """What lies around each voxel at several distances, and the whole image's mean (Chen 2018).

    The mean is not normalised over the batch, so that a batch of one can be trained on.
    """

    def __init__(self, inputs: int, outputs: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        near = _unit(3, inputs, outputs, activation=nn.ReLU)
        around = [_unit(3, inputs, outputs, kernel=3, dilation=rate, activation=nn.ReLU) for rate in rates]
        self.branches = nn.ModuleList([near, *around])
        self.whole = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Conv3d(inputs, outputs, 1), nn.ReLU())
        self.project = _unit(3, (len(rates) + 2) * outputs, outputs, activation=nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        found = [branch(x) for branch in self.branches]
        found.append(self.whole(x).expand_as(found[0]))
        out: Tensor = self.project(torch.cat(found, dim=1))
        return out


class Head(nn.Module):
    """LR-ASPP (Howard 2019): deep features, scaled by the whole image's, classified together with shallow ones.

    Answers at the resolution of the shallow features.
    """

    def __init__(self, dimensions: int, low: int, high: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        convolution = _CONVOLUTIONS[dimensions]
        self.mode = _LINEAR[dimensions]
        self.narrow = _unit(dimensions, high, _INNER, activation=nn.ReLU)
        self.scale = nn.Sequential(_POOLS[dimensions](1), convolution(high, _INNER, 1, bias=False), nn.Sigmoid())
        self.dropout = nn.Dropout(dropout)
        self.classify_low = convolution(low, classes, 1)
        self.classify_high = convolution(_INNER, classes, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        x = self.dropout(self.narrow(high) * self.scale(high))
        x = functional.interpolate(x, size=low.shape[2:], mode=self.mode, align_corners=False)
        out: Tensor = self.classify_low(low) + self.classify_high(x)
        return out


def _unit(
    dimensions: int,
    inputs: int,
    outputs: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
    norm: dict[str, float] | None = None,
) -> nn.Sequential:
    """Convolution that keeps the size but for its stride, batch normalisation, activation."""
    convolution = _CONVOLUTIONS[dimensions](
        inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False
    )
    layers: list[nn.Module] = [convolution, _NORMS[dimensions](outputs, **(norm or {}))]  # type: ignore[arg-type]
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


def _channels_last(x: Tensor) -> Tensor:
    """The same in another order of memory, in which depthwise convolutions take half the time on a CPU."""
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def _initialise(network: nn.Module) -> None:
    """Random weights that keep the variance of gradients (He 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _multiple_of_8(value: float) -> int:
    """The nearest multiple of 8, but never a tenth below `value`: how MobileNets round their widths."""
    near = max(8, int(value + 4) // 8 * 8)
    return near + 8 if near < 0.9 * value else near

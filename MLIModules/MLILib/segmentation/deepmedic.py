"""A two-pathway multi-scale network after DeepMedic (Kamnitsas 2017): normal and low resolution side by side.

Each pathway has eight layers of 3-voxel kernels with residual connections; the second sees the image at a third of the
resolution and so three times as far. Here both are padded, so that a patch comes out in the size it went in.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}

#: Feature maps of a pathway's layers, and of the two layers that join them, for 30 in the first (table 1 there).
_PATHWAY = (30, 30, 40, 40, 40, 40, 50, 50)
_JOINED = 150
#: How much coarser the second pathway sees.
FACTOR = 3


class DeepMedic(nn.Module):
    """Two pathways and a classifier of both.

    Args:
        dimensions: 2 or 3.
        in_channels: of the image.
        out_channels: classes, with the background.
        filters: feature maps of the first layer; the others grow in the paper's proportions.
        dropout: probability that a joined feature is dropped (the paper drops half of them).

    Shapes:
        (N, in_channels, x, y[, z]) to logits (N, out_channels, x, y[, z]), any size.
    """

    def __init__(
        self, dimensions: int, in_channels: int, out_channels: int, filters: int = 30, dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [max(1, round(n * filters / _PATHWAY[0])) for n in _PATHWAY]
        joined = max(1, round(_JOINED * filters / _PATHWAY[0]))
        convolution = _CONVOLUTIONS[dimensions]
        self.mode = _LINEAR[dimensions]
        self.normal = _Pathway(dimensions, in_channels, widths)
        self.low = _Pathway(dimensions, in_channels, widths)
        self.join = nn.Sequential(
            nn.Dropout(dropout),
            convolution(2 * widths[-1], joined, 1),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Dropout(dropout),
            convolution(joined, joined, 1),
            nn.LeakyReLU(0.01, inplace=True),
        )
        self.classify = convolution(joined, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        small = [max(2, -(-n // FACTOR)) for n in size]
        coarse = functional.interpolate(x, size=small, mode="area")
        far = functional.interpolate(self.low(coarse), size=size, mode=self.mode, align_corners=False)
        out: Tensor = self.classify(self.join(torch.cat([self.normal(x), far], dim=1)))
        return out


class _Pathway(nn.Module):
    """Eight layers; what went into each pair of layers but the first is added to what comes out (He 2016)."""

    def __init__(self, dimensions: int, channels: int, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                _CONVOLUTIONS[dimensions](a, b, 3, padding=1, bias=False),
                _NORMS[dimensions](b, affine=True),
                nn.LeakyReLU(0.01, inplace=True),
            )
            for a, b in pairwise([channels, *widths])
        )

    def forward(self, x: Tensor) -> Tensor:
        before = x
        for i, layer in enumerate(self.layers):
            if i % 2 == 0:
                before = x
            x = layer(x)
            if i % 2 == 1 and i > 1:
                shared = min(before.shape[1], x.shape[1])  # wider layers: the new feature maps have nothing to add to
                x = torch.cat([x[:, :shared] + before[:, :shared], x[:, shared:]], dim=1)
        return x

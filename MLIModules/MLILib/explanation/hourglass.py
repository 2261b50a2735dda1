"""The deep image prior's network: an hourglass that draws an image from noise (Ulyanov, Vedaldi and Lempitsky 2018).

Its shape alone prefers natural images: it draws structures long before it draws noise. It goes down by strided
convolutions and up by interpolation, with narrow skips between the two, in one to three dimensions and for any size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class Hourglass(nn.Module):
    """Noise to an image.

    Args:
        shape: (C, *shape) of the image.
        seed: of the weights; the global random state is left as it is.
        width: channels of each level.
        skip: channels of the skips.
        inputs: channels of the noise.
        levels: how often it halves the size; less for a small image, whose shortest edge stays at 4 voxels or more.
    """

    def __init__(
        self, shape: Sequence[int], seed: int, *, width: int = 24, skip: int = 4, inputs: int = 16, levels: int = 4
    ) -> None:
        super().__init__()
        self.inputs = inputs
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2]
        self.mode = ("linear", "bilinear", "trilinear")[len(shape) - 2]
        edge = min(shape[1:])
        while levels > 0 and edge >> levels < 4:
            levels -= 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = [inputs] + [width] * levels
            self.skips = nn.ModuleList(_block(conv, n, skip, 1) for n in sizes[:-1])
            self.downs = nn.ModuleList(
                nn.Sequential(_block(conv, n, width, 3, stride=2), _block(conv, width, width, 3)) for n in sizes[:-1]
            )
            self.bottom = _block(conv, sizes[-1], width, 3)
            self.ups = nn.ModuleList(_block(conv, width + skip, width, 3) for _ in range(levels))
            self.last = conv(width, shape[0], 1)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """(1, inputs, *shape) to (1, C, *shape)."""
        kept = []
        now = noise
        for skip, down in zip(self.skips, self.downs, strict=True):
            kept.append(skip(now))
            now = down(now)
        now = self.bottom(now)
        for beside, up in zip(reversed(kept), self.ups, strict=True):
            now = functional.interpolate(now, size=beside.shape[2:], mode=self.mode, align_corners=False)
            now = up(torch.cat((now, beside), 1))
        return self.last(now)


def _block(conv: type[nn.Module], inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    # One group: statistics of a channel alone would need two voxels at the bottom, and one image is all there is.
    return nn.Sequential(
        conv(inputs, outputs, kernel, stride=stride, padding=kernel // 2),
        nn.GroupNorm(1, outputs),
        nn.LeakyReLU(0.2, inplace=True),
    )

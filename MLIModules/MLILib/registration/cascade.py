"""A diffeomorphic transform from coarse to fine: at each resolution a small network corrects the velocity field.

The cascade is in the manner of LapIRN (Mok 2020). Each network sees the fixed image and the moving one as warped so
far, and is applied several times with the same weights, so that its own remainder is corrected.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .fields import resize
from .networks import Prediction, UNet, displacement, space_to_depth
from .sampling import warp


class Cascade(nn.Module):
    """Coarse to fine registration of a pair of images, or of maps, on one grid.

    Level k works at 1 / 2^k of the resolution, from `levels` down to 1. It sees images averaged down to 1 / 2^(k - 1)
    with the last halving as channels, so that no detail of its resolution's double is lost to it.

    Args:
        dimensions: 2 or 3.
        channels: of the images or maps.
        levels: resolutions.
        steps: corrections at each level.
        more_steps: further ones once it is trained; a network that corrects its own remainder can go on.
        features: of each level's U-Net, finest first.
    """

    def __init__(
        self,
        dimensions: int = 3,
        channels: int = 1,
        levels: int = 2,
        steps: int = 2,
        features: Sequence[int] = (32, 48, 48),
        more_steps: int = 0,
    ) -> None:
        super().__init__()
        packed = channels * 2**dimensions
        self.steps = steps
        self.more_steps = more_steps
        self.multiple = 2**levels
        self.networks = nn.ModuleList(
            UNet(dimensions, 2 * packed + dimensions, dimensions, features, small=True) for _ in range(levels)
        )

    def forward(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Register `moving` to `fixed`, both (N, channels, *shape) with sides that are multiples of `multiple`."""
        shape = fixed.shape[2:]
        levels = len(self.networks)
        velocity = fixed.new_zeros(len(fixed), len(shape), *(n // 2**levels for n in shape))
        velocities = []
        for level, network in zip(range(levels, 0, -1), self.networks, strict=True):
            seen = _seen(fixed, level)
            velocity = resize(velocity, seen.shape[2:], align="edges")
            for _ in range(self.steps if self.training else self.steps + self.more_steps):
                warped = warp(moving, displacement(velocity, shape))
                inputs = torch.cat([seen, _seen(warped, level), velocity], 1)
                velocity = velocity + network(inputs).float()
            velocities.append(velocity)
        return Prediction(displacement(velocity, shape), tuple(velocities))


def _seen(image: Tensor, level: int) -> Tensor:
    if level > 1:
        pool = functional.avg_pool2d if image.ndim == 4 else functional.avg_pool3d
        image = pool(image, 2 ** (level - 1))
    return space_to_depth(image)

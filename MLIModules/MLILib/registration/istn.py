"""Image-and-spatial transformer network (Lee 2019): registration guided by the structures a first network marks.

The image transformer turns each image by itself into maps of the structures of interest; the spatial transformer sees
nothing but the maps. Labels are needed to train, never to register.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .cascade import Cascade
from .demons import demons
from .networks import Prediction, UNet, depth_to_space, space_to_depth


class Structures(nn.Module):
    """The image transformer: a U-Net at half the resolution, with the voxels of each 2 x 2 (x 2) cell as channels.

    Args:
        dimensions: 2 or 3.
        channels: of the image.
        labels: structures, without the background.
        features: of the U-Net, finest first.
    """

    def __init__(self, dimensions: int, channels: int, labels: int, features: Sequence[int]) -> None:
        super().__init__()
        cell = 2**dimensions
        self.network = UNet(dimensions, channels * cell, (labels + 1) * cell, features)

    def forward(self, image: Tensor) -> Tensor:
        """(N, channels, *shape), even sides, to logits (N, labels + 1, *shape); channel 0 is the background.

        Once trained, the mean over two ways to divide the image into cells, half a cell apart: a voxel at the corner of
        a cell in one lies at the opposite corner in the other.
        """
        logits = depth_to_space(self.network(space_to_depth(image))).float()
        if self.training:
            return logits
        axes = tuple(range(2, image.ndim))
        # what is rolled over the edge is the margin on the other side
        moved = space_to_depth(image.roll((1,) * len(axes), axes))
        again = depth_to_space(self.network(moved)).float().roll((-1,) * len(axes), axes)
        return (logits + again) / 2


class ISTN(nn.Module):
    """Structure-guided registration: :class:`Structures` of both images, then a :class:`Cascade` on them.

    Args:
        dimensions: 2 or 3.
        channels: of an image.
        labels: structures, without the background.
        structure_features: of the image transformer's U-Net.
        levels, steps, features, more_steps: of the cascade.
        refinements: steps of :func:`.demons.demons` on the maps after the cascade; none while it is trained.
    """

    def __init__(
        self,
        dimensions: int = 3,
        channels: int = 1,
        labels: int = 2,
        structure_features: Sequence[int] = (48, 72, 96, 112),
        levels: int = 2,
        steps: int = 2,
        features: Sequence[int] = (32, 48, 48),
        more_steps: int = 1,
        refinements: int = 12,
    ) -> None:
        super().__init__()
        self.structures = Structures(dimensions, channels, labels, structure_features)
        self.cascade = Cascade(dimensions, labels, levels, steps, features, more_steps)
        self.multiple = self.cascade.multiple
        self.refinements = refinements

    def forward(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Register `moving` to `fixed`, both (N, channels, *shape) with sides that are multiples of `multiple`."""
        logits = self.structures(torch.cat([fixed, moving]))
        maps = logits.softmax(1)[:, 1:]
        found = self.cascade(*maps.chunk(2))
        of_fixed, of_moving = logits.chunk(2)
        u = found.displacement
        if not self.training:
            u = demons(of_fixed, of_moving, u, self.refinements)
        return Prediction(u, found.velocities, (of_fixed, of_moving))

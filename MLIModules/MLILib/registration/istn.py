"""Image-and-spatial transformer network (Lee 2019): registration guided by the structures a first network marks.

The image transformer turns each image by itself into maps of the structures of interest; the spatial transformer sees
nothing but the maps. Labels are needed to train, never to register.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .cascade import Cascade
from .demons import demons, marked_box
from .networks import Prediction, UNet, depth_to_space, space_to_depth

#: Voxels around the structures that an expert sees, and what the sides of its box are multiples of.
_MARGIN, EXPERT_MULTIPLE = 4, 8


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
        """(N, channels, *shape), even sides, to logits (N, labels + 1, *shape); channel 0 is the background."""
        return depth_to_space(self.network(space_to_depth(image))).float()


class ISTN(nn.Module):
    """Structure-guided registration: :class:`Structures` of both images, then a :class:`Cascade` on them.

    Args:
        dimensions: 2 or 3.
        channels: of an image.
        labels: structures, without the background.
        structure_features: of the image transformer's U-Net.
        levels, steps, features, more_steps: of the cascade.
        refinements: steps of :func:`.demons.demons` on the maps after the cascade; none while it is trained.
        expert: a trained segmentation network of the same labels, channels (N, channels, x, y, z) in and logits out,
            that looks again at the box where structures were marked; not while the rest is trained, nor trained itself.
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
        expert: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.structures = Structures(dimensions, channels, labels, structure_features)
        self.cascade = Cascade(dimensions, labels, levels, steps, features, more_steps)
        self.multiple = self.cascade.multiple
        self.refinements = refinements
        self.expert = None if expert is None else expert.requires_grad_(False)

    def forward(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Register `moving` to `fixed`, both (N, channels, *shape) with sides that are multiples of `multiple`."""
        images = torch.cat([fixed, moving])
        logits = self.structures(images)
        if self.expert is not None and not self.training:
            logits = torch.cat([self._again(*pair) for pair in zip(images.split(1), logits.split(1), strict=True)])
        maps = logits.softmax(1)[:, 1:]
        found = self.cascade(*maps.chunk(2))
        of_fixed, of_moving = logits.chunk(2)
        u = found.displacement
        if not self.training:
            u = demons(of_fixed, of_moving, u, self.refinements)
        return Prediction(u, found.velocities, (of_fixed, of_moving))

    def _again(self, image: Tensor, logits: Tensor) -> Tensor:
        """Log-probabilities of one image's structures, the mean with the expert's inside their box."""
        assert self.expert is not None
        logits = logits.log_softmax(1)
        box = marked_box(logits.argmax(1) > 0, _MARGIN, EXPERT_MULTIPLE)
        if box is None:
            return logits
        inside = (slice(None), slice(None), *box)
        order = (0, 1, *range(image.ndim - 1, 1, -1))  # (z, y, x) here, (x, y, z) there
        seen = self.expert(image[inside].permute(order)).permute(order).float().log_softmax(1)
        out = logits.clone()
        out[inside] = (logits[inside] + seen) / 2
        return out

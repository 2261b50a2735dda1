"""Atlas-ISTN (Sinclair 2022): joint segmentation, registration and construction of an atlas.

A network marks the structures of an image, a second one registers them to a label atlas that is built meanwhile as the
mean of the training cases' labels brought onto it. A pair is registered through the atlas.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .cascade import Cascade
from .fields import compose
from .istn import Structures
from .networks import Prediction, displacement
from .sampling import warp

#: Share of the atlas that a step's cases replace.
ATLAS_RATE = 0.02


class AtlasISTN(nn.Module):
    """Structures of an image, an atlas of them, and the diffeomorphic transform between the two.

    Args:
        size: voxels of the atlas, (x, y, z).
        channels: of an image.
        labels: structures, without the background.
        structure_features: of the image transformer's U-Net.
        levels, steps, features: of the cascade.
    """

    atlas: Tensor

    def __init__(
        self,
        size: Sequence[int],
        channels: int = 1,
        labels: int = 2,
        structure_features: Sequence[int] = (48, 72, 96, 112),
        levels: int = 2,
        steps: int = 2,
        features: Sequence[int] = (32, 48, 48),
    ) -> None:
        super().__init__()
        dimensions = len(size)
        self.structures = Structures(dimensions, channels, labels, structure_features)
        self.cascade = Cascade(dimensions, labels, levels, steps, features)
        self.multiple = self.cascade.multiple
        self.register_buffer("atlas", torch.zeros(1, labels, *reversed(size)))

    def forward(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Register `moving` to `fixed`, both (N, channels, *shape of the atlas), by way of the atlas."""
        logits = self.structures(torch.cat([fixed, moving]))
        maps = logits.softmax(1)[:, 1:]
        atlas = self.atlas.clone()  # the buffer changes in the training step that this prediction belongs to
        found = self.cascade(atlas.expand(len(maps), *atlas.shape[1:]), maps)
        shape = self.atlas.shape[2:]
        velocity = found.velocities[-1]
        to_fixed, to_moving = found.displacement.chunk(2)
        from_fixed = displacement(-velocity[: len(fixed)], shape)  # fixed to atlas: the inverse of atlas to fixed
        of_fixed, of_moving = logits.chunk(2)
        return Prediction(
            compose(from_fixed, to_moving),
            found.velocities,
            (of_fixed, of_moving),
            atlas={"to_fixed": to_fixed, "to_moving": to_moving, "from_fixed": from_fixed, "labels": atlas},
        )

    @torch.no_grad()
    def learn_atlas(self, prediction: Prediction, fixed_labels: Tensor, moving_labels: Tensor) -> None:
        """Mix the labels of a training step's cases, brought onto the atlas, into it."""
        onto = [
            warp(labels, prediction.atlas[name].detach())
            for labels, name in ((fixed_labels, "to_fixed"), (moving_labels, "to_moving"))
        ]
        new = torch.cat(onto).mean(0, keepdim=True)
        # An empty atlas shows nothing to register to: the first cases make it.
        self.atlas.copy_(new if not self.atlas.any() else torch.lerp(self.atlas, new, ATLAS_RATE))

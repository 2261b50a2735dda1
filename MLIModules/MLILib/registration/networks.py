"""Networks that map a pair of images to a transform: the spatial transformer for affine maps (Jaderberg 2015) and
VoxelMorph (Balakrishnan 2019), with a diffeomorphic transform by a stationary velocity field (Dalca 2019).

All take a fixed and a moving image on one grid and answer with a :class:`Prediction`; 2-D and 3-D alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .fields import exponential, resize
from .sampling import identity_grid, positions

#: Squarings of the exponential: displacements of up to 2^6 quarter voxels stay invertible step by step.
SQUARINGS = 6


@dataclasses.dataclass
class Prediction:
    """What a network says of a pair.

    Attributes:
        displacement: (N, d, *shape), voxels of the common grid; fixed index i meets moving index i + u(i).
        velocities: what the smoothness is asked of, each (N, d, *its own shape) in voxels of its own grid.
        structures: logits (N, labels + 1, *shape) of the fixed and of the moving image; None where none are made.
        linear: index matrix (N, d + 1, d + 1) on the common grid, of a network that finds nothing else.
        atlas: what a network with an atlas says on the atlas' grid, see :mod:`.atlas_istn`.
    """

    displacement: Tensor
    velocities: tuple[Tensor, ...] = ()
    structures: tuple[Tensor, Tensor] | None = None
    linear: Tensor | None = None
    atlas: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def convolution(
    dimensions: int, inputs: int, outputs: int, *, stride: int = 1, bias: bool = True
) -> nn.Conv2d | nn.Conv3d:
    """A convolution of width 3 that keeps the size, or halves it with a stride of 2."""
    kind = nn.Conv2d if dimensions == 2 else nn.Conv3d
    return kind(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


def space_to_depth(x: Tensor) -> Tensor:
    """(N, C, 2a, 2b, ...) to (N, C 2^d, a, b, ...): half the resolution without losing a value.

    Convolutions at full resolution are what a U-Net spends most of its time on; the inverse is :func:`depth_to_space`.
    """
    d = x.ndim - 2
    halves = [size for n in x.shape[2:] for size in (n // 2, 2)]
    split = x.reshape(*x.shape[:2], *halves)
    order = [0, 1, *range(3, 3 + 2 * d, 2), *range(2, 2 + 2 * d, 2)]
    return split.permute(order).reshape(x.shape[0], x.shape[1] * 2**d, *(n // 2 for n in x.shape[2:]))


def depth_to_space(x: Tensor) -> Tensor:
    """(N, C 2^d, a, b, ...) to (N, C, 2a, 2b, ...)."""
    d = x.ndim - 2
    split = x.reshape(x.shape[0], -1, *(2,) * d, *x.shape[2:])
    order = [0, 1, *(axis for k in range(d) for axis in (2 + d + k, 2 + k))]
    return split.permute(order).reshape(x.shape[0], -1, *(2 * n for n in x.shape[2:]))


def displacement(velocity: Tensor, shape: Sequence[int]) -> Tensor:
    """The displacement of a stationary velocity field, on a grid of another resolution over the same extent."""
    return resize(exponential(velocity, SQUARINGS), shape, align="edges")


class Block(nn.Sequential):
    """Two convolutions of width 3, each with instance normalisation and a leaky ReLU; the first may stride."""

    def __init__(self, dimensions: int, inputs: int, outputs: int, stride: int = 1) -> None:
        norm = nn.InstanceNorm2d if dimensions == 2 else nn.InstanceNorm3d
        layers: list[nn.Module] = []
        for source, step in ((inputs, stride), (outputs, 1)):
            layers.append(convolution(dimensions, source, outputs, stride=step, bias=False))
            layers.append(norm(outputs, affine=True))
            layers.append(nn.LeakyReLU(0.1, inplace=True))
        super().__init__(*layers)


class UNet(nn.Module):
    """Encoder and decoder with skip connections (Ronneberger 2015) for images of any size.

    Args:
        dimensions: 2 or 3.
        inputs, outputs: channels; the last layer is linear.
        features: channels at each level, finest first; each level halves the resolution.
        small: start with outputs near zero, so that a transform starts near the identity.
    """

    def __init__(
        self, dimensions: int, inputs: int, outputs: int, features: Sequence[int], *, small: bool = False
    ) -> None:
        super().__init__()
        widths = list(features)
        self.down = nn.ModuleList(
            Block(dimensions, source, width, 1 if level == 0 else 2)
            for level, (source, width) in enumerate(zip([inputs, *widths], widths, strict=False))
        )
        self.up = nn.ModuleList(
            Block(dimensions, coarse + fine, fine) for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.last = convolution(dimensions, widths[0], outputs)
        self._mode = "bilinear" if dimensions == 2 else "trilinear"
        if small:
            nn.init.normal_(self.last.weight, std=1e-4)
            nn.init.constant_(self.last.get_parameter("bias"), 0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, *shape) to (N, outputs, *shape)."""
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = functional.interpolate(x, size=skip.shape[2:], mode=self._mode, align_corners=False)
            x = block(torch.cat([x, skip], 1))
        return self.last(x)


class AffineNet(nn.Module):
    """Spatial transformer network (Jaderberg 2015): an encoder of the pair and the affine map it reads off.

    Args:
        dimensions: 2 or 3.
        channels: of an image.
        features: channels of the encoder's levels; each but the first halves the resolution.
    """

    multiple = 1

    def __init__(self, dimensions: int = 3, channels: int = 1, features: Sequence[int] = (16, 32, 64, 64)) -> None:
        super().__init__()
        self._dimensions = dimensions
        sources = [2 * channels, *features]
        self.encoder = nn.Sequential(
            *(
                Block(dimensions, source, width, 1 if level == 0 else 2)
                for level, (source, width) in enumerate(zip(sources, features, strict=False))
            )
        )
        # Where something lies is lost in a mean over the image, so that what is read off is means of parts of it.
        self._parts = 3
        last = nn.Linear(64, dimensions * (dimensions + 1))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(features[-1] * self._parts**dimensions, 64), nn.LeakyReLU(0.1), last)

    def forward(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Register `moving` to `fixed`, both (N, channels, *shape)."""
        d = self._dimensions
        seen = self.encoder(torch.cat([fixed, moving], 1))
        pool = functional.adaptive_avg_pool2d if d == 2 else functional.adaptive_avg_pool3d
        numbers = self.head(pool(seen, self._parts).flatten(1)).float().view(-1, d, d + 1)
        matrix = about_middle(numbers[:, :, :d], numbers[:, :, d], fixed.shape[2:])
        identity = identity_grid(fixed.shape[2:], device=matrix.device)
        return Prediction(positions(None, matrix, fixed.shape[2:]) - identity, linear=matrix)


def about_middle(added: Tensor, shift: Tensor, shape: Sequence[int]) -> Tensor:
    """The index matrix (N, d + 1, d + 1) of a linear map about the middle of a grid.

    Args:
        added: (N, d, d), what is added to the identity.
        shift: (N, d), in half lengths of the grid's axes.
        shape: of the grid.
    """
    d = len(shape)
    half = (torch.tensor(shape, dtype=added.dtype, device=added.device) - 1) / 2
    matrix = torch.eye(d + 1, dtype=added.dtype, device=added.device).repeat(len(added), 1, 1)
    matrix[:, :d, :d] += added
    matrix[:, :d, d] = shift * half - added @ half
    return matrix


class VoxelMorph(nn.Module):
    """VoxelMorph (Balakrishnan 2019): one U-Net from the pair to a transform.

    Args:
        dimensions: 2 or 3.
        channels: of an image.
        features: of the U-Net, finest first.
        diffeomorphic: integrate the output as a stationary velocity field at half the resolution (Dalca 2019), else
            take it for the displacement.
    """

    def __init__(
        self,
        dimensions: int = 3,
        channels: int = 1,
        features: Sequence[int] = (16, 32, 32, 32),
        diffeomorphic: bool = True,
    ) -> None:
        super().__init__()
        self.diffeomorphic = diffeomorphic
        self.multiple = 2 if diffeomorphic else 1
        packed = 2 * channels * (2**dimensions if diffeomorphic else 1)
        self.network = UNet(dimensions, packed, dimensions, features, small=True)

    def forward(self, fixed: Tensor, moving: Tensor) -> Prediction:
        """Register `moving` to `fixed`, both (N, channels, *shape) with sides that are multiples of `multiple`."""
        pair = torch.cat([fixed, moving], 1)
        field = self.network(space_to_depth(pair) if self.diffeomorphic else pair).float()
        return Prediction(displacement(field, fixed.shape[2:]) if self.diffeomorphic else field, (field,))

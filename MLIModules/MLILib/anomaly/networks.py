"""Networks of the models of normal: generators, critics and encoders of 2-D images, sized by the image's side.

The residual ones are those of f-AnoGAN (Schlegl 2019), which are Gulrajani's (2017); the plain ones are DCGAN's
(Radford 2015). The last one removes noise (Kascenas 2022, a U-Net after Ronneberger 2015). Images are (n, 1, side,
side), -1 to 1.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Side of the coarsest feature maps.
SEED = 4
_WIDEST = 8


def canvas_of(size: int) -> int:
    """The side that a network for images of side `size` works on: the next power of two, from 16."""
    side = 16
    while side < size:
        side *= 2
    return side


def _levels(side: int) -> int:
    return (side // SEED).bit_length() - 1


def widths(side: int, filters: int) -> list[int]:
    """Feature maps from full resolution down to 4 x 4: `filters`, doubled at each halving, at most eightfold."""
    return [filters * min(2**i, _WIDEST) for i in range(_levels(side) + 1)]


def layer_norm(channels: int) -> nn.GroupNorm:
    """Normalisation over channels and positions of each image by itself, with a gain and bias a channel (Ba 2016)."""
    return nn.GroupNorm(1, channels)


def pooled_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3 x 3 convolution followed by the mean of 2 x 2 pixels, as one convolution of 4 x 4: half the work.

    The same sums in another order: the kernel of 4 x 4 is the mean of the kernel of 3 x 3 at the four places.
    """
    pad = functional.pad
    kernel = (
        pad(weight, (0, 1, 0, 1)) + pad(weight, (1, 0, 0, 1)) + pad(weight, (0, 1, 1, 0)) + pad(weight, (1, 0, 1, 0))
    )
    return functional.conv2d(x, kernel / 4, bias, stride=2, padding=1)


def doubled_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Every pixel doubled along both axes, then a 3 x 3 convolution, as one transposed convolution of 4 x 4.

    Along an axis, an even pixel sees its left neighbour with w0 and its own with w1 + w2, an odd one its own with
    w0 + w1 and its right neighbour with w2.
    """
    first, middle, last = weight.unbind(dim=2)
    rows = torch.stack([last, middle + last, first + middle, first], dim=2)
    first, middle, last = rows.unbind(dim=3)
    kernel = torch.stack([last, middle + last, first + middle, first], dim=3)
    return functional.conv_transpose2d(x, kernel.transpose(0, 1), bias, stride=2, padding=1)


class UpBlock(nn.Module):
    """Residual block that doubles the side."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.shortcut = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = doubled_convolution(functional.relu(self.norm1(x)), self.conv1.weight, None)
        h = self.conv2(functional.relu(self.norm2(h)))
        # A 1 x 1 convolution and a nearest-neighbour doubling commute: the small image is the cheaper one.
        return h + functional.interpolate(self.shortcut(x), scale_factor=2.0)


class DownBlock(nn.Module):
    """Residual block that halves the side, with layer normalisation: a batch's images must not meet in a critic."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = layer_norm(inside), layer_norm(inside)
        self.conv1 = nn.Conv2d(inside, inside, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(inside, outside, 3, padding=1)
        self.shortcut = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.relu(self.norm1(x)))
        h = pooled_convolution(functional.relu(self.norm2(h)), self.conv2.weight, self.conv2.bias)
        return h + self.shortcut(functional.avg_pool2d(x, 2))


class ResidualGenerator(nn.Module):
    """Code (n, latent) to image (n, 1, side, side) in -1 to 1."""

    def __init__(self, side: int, latent: int, filters: int) -> None:
        super().__init__()
        wide = widths(side, filters)
        self.first = nn.Linear(latent, wide[-1] * SEED * SEED)
        self.blocks = nn.Sequential(*(UpBlock(wide[i], wide[i - 1]) for i in range(len(wide) - 1, 0, -1)))
        self.last = nn.Sequential(nn.BatchNorm2d(wide[0]), nn.ReLU(), nn.Conv2d(wide[0], 1, 3, padding=1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z).unflatten(1, (-1, SEED, SEED))
        out: Tensor = self.last(self.blocks(h))
        return out


class Answering(nn.Module, abc.ABC):
    """A network that answers from features: its last layer is linear."""

    last: nn.Linear

    @abc.abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """(n, features) of images, before the last layer."""

    def answer(self, features: Tensor) -> Tensor:
        """What the network says of an image with these features, (n, outputs)."""
        out: Tensor = self.last(features)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.features(x))


class ResidualTrunk(Answering):
    """Image to `outputs` numbers; :meth:`features` gives what the last linear layer reads."""

    def __init__(self, side: int, outputs: int, filters: int) -> None:
        super().__init__()
        wide = widths(side, filters)
        self.first = nn.Conv2d(1, wide[0], 3, padding=1)
        self.blocks = nn.Sequential(*(DownBlock(wide[i], wide[i + 1]) for i in range(len(wide) - 1)))
        self.last = nn.Linear(wide[-1] * SEED * SEED, outputs)

    def features(self, x: Tensor) -> Tensor:
        """(n, features): the feature space that feature residuals are measured in."""
        out: Tensor = self.blocks(self.first(x))
        return out.flatten(1)


class PlainGenerator(nn.Module):
    """DCGAN's: transposed convolutions with batch normalisation and ReLU, tanh at the end."""

    def __init__(self, side: int, latent: int, filters: int) -> None:
        super().__init__()
        wide = widths(side, filters)
        self.first = nn.Linear(latent, wide[-1] * SEED * SEED)
        parts: list[nn.Module] = [nn.BatchNorm2d(wide[-1]), nn.ReLU()]
        for i in range(len(wide) - 1, 0, -1):
            parts += [
                nn.ConvTranspose2d(wide[i], wide[i - 1], 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(wide[i - 1]),
                nn.ReLU(),
            ]
        self.blocks = nn.Sequential(*parts, nn.Conv2d(wide[0], 1, 3, padding=1), nn.Tanh())
        _initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.first(z).unflatten(1, (-1, SEED, SEED)))
        return out


class PlainTrunk(Answering):
    """DCGAN's discriminator: strided convolutions with batch normalisation and leaky ReLU; its answer is a logit."""

    def __init__(self, side: int, outputs: int, filters: int) -> None:
        super().__init__()
        wide = widths(side, filters)
        parts: list[nn.Module] = [nn.Conv2d(1, wide[0], 3, padding=1), nn.LeakyReLU(0.2)]
        for i in range(len(wide) - 1):
            parts += [
                nn.Conv2d(wide[i], wide[i + 1], 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(wide[i + 1]),
                nn.LeakyReLU(0.2),
            ]
        self.blocks = nn.Sequential(*parts)
        self.last = nn.Linear(wide[-1] * SEED * SEED, outputs)
        _initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(n, features) before the last layer."""
        out: Tensor = self.blocks(x)
        return out.flatten(1)


class CodeCritic(nn.Module):
    """Tells codes of images from draws of the prior (Makhzani 2015): a logit for each code, (n, 1)."""

    def __init__(self, latent: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.layers(z)
        return out


class Denoiser(nn.Module):
    """A U-Net of four levels that gives back an image without what was added to it; sides are multiples of eight."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        f = filters
        self.down = nn.ModuleList([_double(1, f), _double(f, 2 * f), _double(2 * f, 4 * f), _double(4 * f, 4 * f)])
        self.up = nn.ModuleList([_double(8 * f, 2 * f), _double(4 * f, f), _double(2 * f, f)])
        self.last = nn.Conv2d(f, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else functional.avg_pool2d(x, 2))
            levels.append(x)
        x = levels.pop()
        for block in self.up:
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear")
            x = block(torch.cat([x, levels.pop()], dim=1))
        out: Tensor = self.last(x)
        return out


def _double(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(4, outside), nn.SiLU(),
        nn.Conv2d(outside, outside, 3, padding=1), nn.GroupNorm(4, outside), nn.SiLU(),
    )  # fmt: skip


def _initialise(network: nn.Module) -> None:
    """Radford 2015: weights from a normal distribution of standard deviation 0.02."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

"""A shape prior: an autoencoder of label maps, and how far a prediction is from what it makes of it.

After Oktay 2018 (anatomically constrained networks): the autoencoder has seen the shapes of the training labels only,
through a narrow code; what it cannot reproduce of a prediction is not a shape it knows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}

#: Feature maps of the autoencoder's levels; each level but the first is half as wide as the one before.
_WIDTHS = (8, 16, 24)
#: Feature maps of the code.
_CODE = 8
_RATE = 0.003
#: Share of the voxels whose label is exchanged while the autoencoder learns to undo it (Vincent 2010).
_NOISE = 0.1


class ShapeAutoencoder(nn.Module):
    """Label maps to a code at an eighth of the resolution and back.

    Args:
        dimensions: 2 or 3.
        classes: labels with the background.

    Shapes:
        (N, classes, x, y[, z]) class probabilities to logits of the same shape, any size from 8 on.
    """

    def __init__(self, dimensions: int, classes: int) -> None:
        super().__init__()
        convolution = _CONVOLUTIONS[dimensions]
        self._mode = _LINEAR[dimensions]

        def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(convolution(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1))

        first, second, third = _WIDTHS
        self.encode = nn.Sequential(
            layer(classes, first, 2), layer(first, second, 2), layer(second, third, 2), convolution(third, _CODE, 1)
        )
        self.widen = nn.ModuleList([layer(_CODE, third), layer(third, second), layer(second, first)])
        self.classify = convolution(first, classes, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.encode(x)
        for i, layer in enumerate(self.widen):
            size = [max(1, -(-n // 2 ** (2 - i))) for n in x.shape[2:]]
            out = functional.interpolate(layer(out), size=size, mode=self._mode, align_corners=False)
        logits: Tensor = self.classify(out)
        return logits


def learn_shapes(
    autoencoder: ShapeAutoencoder,
    sample: Callable[[int], Tensor],
    steps: int,
    seed: int,
    on_step: Callable[[int], None] = lambda _: None,
) -> float:
    """Train the autoencoder to restore label maps of which a tenth of the voxels is exchanged.

    Args:
        autoencoder: trained in place.
        sample: label maps (N, 1, ...) of a step, whole numbers.
        steps: how many.
        seed: of the exchanged voxels.
        on_step: told of each step done.

    Returns:
        The cross-entropy of the last tenth of the steps.
    """
    place = next(autoencoder.parameters()).device
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=_RATE)
    generator = torch.Generator().manual_seed(seed)
    classes = autoencoder.classify.out_channels
    autoencoder.train()
    losses = []
    for step in range(steps):
        labels = sample(step)
        wrong = torch.randint(0, int(classes), labels.shape, generator=generator)
        noisy = torch.where(torch.rand(labels.shape, generator=generator) < _NOISE, wrong, labels)
        onehot = functional.one_hot(noisy[:, 0], int(classes)).movedim(-1, 1).float().to(place)
        loss = functional.cross_entropy(autoencoder(onehot), labels[:, 0].to(place))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        on_step(step + 1)
    autoencoder.eval().requires_grad_(False)
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def oddity(autoencoder: ShapeAutoencoder, logits: Tensor) -> Tensor:
    """How far predictions are from their reconstructions: mean over the voxels of the squared distance, a scalar.

    Args:
        autoencoder: trained; its weights stay as they are.
        logits: (N, classes, ...) of the network that is trained; gradients reach it through both sides.
    """
    p = torch.softmax(logits, dim=1)
    restored = torch.softmax(autoencoder(p), dim=1)
    return (p - restored).square().sum(dim=1).mean()

"""Adam (Kingma and Ba, ICLR 2015) on one tensor.

torch.optim imports the compiler on its first step, which takes longer than a whole registration of small images.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Adam:
    """The optimiser of one parameter tensor, whose `grad` it reads.

    Args:
        parameters: a leaf that requires gradients; changed in place.
        betas: decay of the means of the gradient and of its square.
        epsilon: added to the root of the latter.
    """

    def __init__(self, parameters: Tensor, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        self.parameters = parameters
        self.betas = betas
        self.epsilon = epsilon
        self._mean = torch.zeros_like(parameters)
        self._square = torch.zeros_like(parameters)
        self._count = 0

    def step(self, rate: float) -> None:
        """One step of length `rate`, and the gradient is taken away."""
        gradient = self.parameters.grad
        if gradient is None:
            msg = "there is no gradient to follow: call backward() before"
            raise RuntimeError(msg)
        self._count += 1
        first, second = self.betas
        with torch.no_grad():
            self._mean.lerp_(gradient, 1 - first)
            self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            root = (self._square / (1 - second**self._count)).sqrt_().add_(self.epsilon)
            self.parameters.addcdiv_(self._mean, root, value=-rate / (1 - first**self._count))
        self.parameters.grad = None

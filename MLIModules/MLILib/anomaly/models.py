"""A model of normal as one network: what a bundle names, with generator, critic, encoder as its kind has them.

Images are (n, 1, size, size), normalised to -1 to 1; inside they are padded to the networks' canvas.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import objectives
from .networks import (
    CodeCritic,
    Denoiser,
    PlainGenerator,
    PlainTrunk,
    ResidualGenerator,
    ResidualTrunk,
    canvas_of,
)

#: Kinds whose critic works on images and whose generator was trained against it.
ADVERSARIAL = ("fanogan", "wgan", "dcgan")
#: Kinds that answer an image with a reconstruction in one pass.
ENCODING = ("fanogan", "ae", "adversarial-ae", "vae", "denoising-ae")


@dataclasses.dataclass(frozen=True)
class Terms:
    """How images depart from normal, term by term; None where the kind has no such term.

    Attributes:
        again: reconstructions, (n, 1, size, size).
        residual: mean square of x - G(E(x)), (n,).
        features: mean square of f(x) - f(G(E(x))), (n,).
        critic: minus the critic's answer to the image (for an adversarial autoencoder: to its code), (n,).
        code: squared Mahalanobis distance of the code from those of normal images, a latent dimension, (n,).
        elbo: minus the evidence lower bound a pixel, (n,).
    """

    again: Tensor | None = None
    residual: Tensor | None = None
    features: Tensor | None = None
    critic: Tensor | None = None
    code: Tensor | None = None
    elbo: Tensor | None = None

    def numbers(self) -> dict[str, Tensor]:
        """The terms that are there, by name, each (n,)."""
        every = {name: getattr(self, name) for name in ("residual", "features", "critic", "code", "elbo")}
        return {name: value for name, value in every.items() if value is not None}


class NormalModel(nn.Module):
    """A model of normal images.

    Args:
        kind: fanogan, wgan, dcgan, ae, adversarial-ae, vae or denoising-ae.
        size: side of its images.
        latent: length of the code.
        filters: feature maps at full resolution.
    """

    code_mean: Tensor
    code_whitening: Tensor

    def __init__(self, kind: str, size: int, latent: int, filters: int) -> None:
        super().__init__()
        self.kind, self.size, self.latent = kind, size, latent
        self.side = canvas_of(size)
        if kind == "denoising-ae":
            self.denoiser = Denoiser(filters)
            return
        plain = kind == "dcgan"
        self.generator = (PlainGenerator if plain else ResidualGenerator)(self.side, latent, filters)
        if kind in ADVERSARIAL:
            self.critic = (PlainTrunk if plain else ResidualTrunk)(self.side, 1, filters)
        if kind in ENCODING:
            self.encoder = ResidualTrunk(self.side, latent * (2 if kind == "vae" else 1), filters)
            self.register_buffer("code_mean", torch.zeros(latent))
            self.register_buffer("code_whitening", torch.eye(latent))
        if kind == "adversarial-ae":
            self.code_critic = CodeCritic(latent)
        if kind == "vae":
            self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def placed(self, x: Tensor) -> Tensor:
        """Images on the networks' canvas: their borders repeated."""
        low = (self.side - x.shape[-1]) // 2
        high = self.side - x.shape[-1] - low
        return functional.pad(x, (low, high, low, high), mode="replicate") if low or high else x

    def cut(self, x: Tensor) -> Tensor:
        """The images without what :meth:`placed` added."""
        low = (self.side - self.size) // 2
        return x[..., low : low + self.size, low : low + self.size]

    def code(self, placed: Tensor) -> Tensor:
        """The code of images on the canvas (a VAE's mean), (n, latent)."""
        found: Tensor = self.encoder(placed)
        return found[:, : self.latent]

    def again(self, x: Tensor) -> Tensor:
        """Images as the model would make them, (n, 1, size, size)."""
        placed = self.placed(x)
        out = self.denoiser(placed) if self.kind == "denoising-ae" else self.generator(self.code(placed))
        return self.cut(out)

    def forward(self, x: Tensor) -> Tensor:
        """|x - reconstruction|, (n, 1, size, size); a generator without an encoder has none."""
        return (x - self.again(x)).abs()

    def critic_answer(self, x: Tensor) -> Tensor:
        """What the critic says of images, (n, 1): the higher, the more normal."""
        out: Tensor = self.critic(self.placed(x))
        return out

    def terms(self, x: Tensor) -> Terms:
        """Every term that the kind has without a search."""
        placed = self.placed(x)
        if self.kind == "denoising-ae":
            again = self.cut(self.denoiser(placed))
            return Terms(again=again, residual=objectives.mean_square(x - again))
        if self.kind not in ENCODING:
            return Terms(critic=-self.critic(placed)[:, 0])
        encoded: Tensor = self.encoder(placed)
        z = encoded[:, : self.latent]
        made = self.generator(z)
        again = self.cut(made)
        found = Terms(again=again, residual=objectives.mean_square(x - again), code=self.code_distance(z))
        if self.kind == "fanogan":
            features = self.critic.features(placed)
            # The reconstruction is compared where the image is: around it the canvas repeats the image's border.
            features_again = self.critic.features(self.placed(again))
            return dataclasses.replace(
                found,
                features=objectives.mean_square(features - features_again),
                critic=-self.critic.answer(features)[:, 0],
            )
        if self.kind == "adversarial-ae":
            return dataclasses.replace(found, critic=-self.code_critic(z)[:, 0])
        if self.kind == "vae":
            kl = objectives.divergence(z, encoded[:, self.latent :])
            elbo = objectives.negative_elbo(x, again, kl, self.log_scale) / math.prod(x.shape[1:])
            return dataclasses.replace(found, elbo=elbo)
        return found

    def code_distance(self, z: Tensor) -> Tensor:
        """Mean square of whitened codes, (n,): one for normal images on average."""
        return objectives.mean_square((z - self.code_mean) @ self.code_whitening)

    def fit_codes(self, z: Tensor) -> None:
        """Learn where the codes of normal images lie: their mean and covariance, the latter shrunk a little.

        Args:
            z: (n, latent).
        """
        z = z.double()
        mean = z.mean(dim=0)
        centred = z - mean
        covariance = centred.T @ centred / max(1, len(z) - 1)
        # Shrunk towards its mean variance, so that a few images in many dimensions still give a matrix to invert.
        average = covariance.diagonal().mean().clamp(min=1e-12)
        covariance = 0.95 * covariance + 0.05 * average * torch.eye(len(mean), dtype=z.dtype, device=z.device)
        values, vectors = torch.linalg.eigh(covariance)
        self.code_mean.copy_(mean)
        self.code_whitening.copy_(vectors / values.sqrt())

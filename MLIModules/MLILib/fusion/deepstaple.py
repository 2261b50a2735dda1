"""DeepSTAPLE (Weihsbach 2022): a network learns to segment from noisy labels, and by the way which of them to trust.

Labels that fit what the network has learned from all the others have a low loss, and their data parameter theta rises.
The consensus of a target is the vote of its label maps with the softmax of their theta as weights.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..descent import descend, learning_rate, set_rate
from ..device import amp_dtype, resolve
from ..errors import BadInput
from ..progress import Progress
from ..segmentation.lraspp import LRASPP2D, LRASPP3D
from .data_parameters import (
    DataParameters,
    class_weights,
    consensus_weights,
    frozen,
    label_losses,
    label_weights,
    network_loss,
    predicted_share,
    theta_loss,
)
from .noisy_patches import NoisyTarget, Variation, view
from .raters import Consensus, Raters, Region
from .voting import majority

SCHEMES = ("out-of-line", "in-line")
#: Most voxels of the grid on which theta of a single target is learned; the vote itself is on the raters' grid.
MOST_VOXELS = {2: 256**2, 3: 48**3}
#: Voxels around all labels of a single image that are looked at.
MARGIN = 3
_CLIP_NORM = 12.0
_WEIGHT_DECAY = 1e-2


@dataclasses.dataclass(frozen=True)
class Settings:
    """How theta is learned.

    Attributes:
        steps: of the network, and of theta.
        batch: views of targets a step, each with all its label maps.
        learning_rate: peak, of the network (AdamW, warm-up and cosine).
        theta_learning_rate: of theta (SparseAdam).
        alone: steps in which the network learns alone, before theta moves.
        scheme: "out-of-line": the network is trained by its own loss, theta in a second pass with the network frozen;
            "in-line": one loss, weighted by theta, moves both.
        risk: factor of the risk regularisation.
        variation: of the views.
    """

    steps: int
    batch: int = 4
    learning_rate: float = 0.01
    theta_learning_rate: float = 0.1
    alone: int = 0
    scheme: str = "out-of-line"
    risk: float = 1.0
    variation: Variation = dataclasses.field(default_factory=Variation)


#: For a single image: the network learns alone, until theta's few steps tell the raters apart. With many more of them
#: the softmax would leave the best rater alone to vote.
THETA_STEPS = 20
ONE_IMAGE = Settings(steps=40, batch=1)


@dataclasses.dataclass(frozen=True)
class Losses:
    """What a step found: the network's loss, theta's, and the share of voxels called foreground."""

    network: float
    theta: float
    foreground: float


class Learner:
    """Learns theta of every label map of every target, a step at a time.

    Args:
        targets: with the same number of channels; images and labels of one spacing and orientation.
        classes: labels with the background.
        network: segments (images, channels, *space) into logits (images, classes, *space).
        patch: size of the views in voxels.
        settings: see :class:`Settings`.
        device: where to compute.
        seed: of order and variation; the network comes with its own weights.
    """

    def __init__(
        self,
        targets: Sequence[NoisyTarget],
        classes: int,
        network: nn.Module,
        patch: Sequence[int],
        settings: Settings,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self.settings = settings
        self.device = device
        self.network = network.to(device)
        self._targets = [
            dataclasses.replace(one, image=one.image.to(device), labels=one.labels.to(device)) for one in targets
        ]
        self._patch = tuple(patch)
        self._seed = seed
        ends = np.cumsum([0, *(len(one) for one in targets)])
        # A number a label map is nothing: theta stays on the CPU, where every torch has sparse gradients.
        self._rows = [torch.arange(int(a), int(b)) for a, b in itertools.pairwise(ends)]
        self._foreground = torch.cat([(one.labels > 0).flatten(1).sum(dim=1).cpu() for one in self._targets])
        counts = torch.stack([torch.bincount(one.labels.flatten().long(), minlength=classes) for one in self._targets])
        self._class_weights = class_weights(counts.sum(dim=0))
        self.parameters = DataParameters(int(ends[-1]))
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=_WEIGHT_DECAY
        )
        self._theta_optimizer = torch.optim.SparseAdam(
            list(self.parameters.parameters()), lr=settings.theta_learning_rate
        )
        self._half = amp_dtype(device)
        # Depthwise convolutions of volumes go back through bfloat16 four times as slowly as through float32 on a CPU.
        slow = device.type == "cpu" and any(getattr(m, "groups", 1) > 1 for m in network.modules())
        self._training_half = None if slow else self._half
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._training_half is torch.float16)
        self.done = 0

    def step(self) -> Losses:
        """One step of the network and, unless it learns alone yet, one of theta."""
        rate = learning_rate(self.done, self.settings.steps, self.settings.learning_rate)
        set_rate(self._optimizer, rate)
        images, labels, rows = self._batch()
        self.network.train()
        logits = self._logits(images, self._training_half)
        losses = share = None
        if self.settings.scheme == "in-line":
            losses, share = label_losses(logits, labels), predicted_share(logits, labels)
            weights = label_weights(self.parameters(rows), self._foreground[rows]).detach()
            loss = theta_loss(losses, weights.to(losses), share, self.settings.risk)
        else:
            loss = network_loss(logits, labels, self._class_weights)
        self._move(loss)
        found = Losses(float(loss.detach()), math.nan, float(predicted_share(logits, labels).mean()))
        if self.done >= self.settings.alone:
            if losses is None or share is None:
                with frozen(self.network), torch.no_grad():
                    logits = self._logits(images, self._half)
                losses, share = label_losses(logits, labels), predicted_share(logits, labels)
            found = dataclasses.replace(found, theta=self._move_theta(losses.detach(), share, rows))
        self.done += 1
        return found

    def _move_theta(self, losses: Tensor, share: Tensor, rows: Tensor) -> float:
        """A step of theta; the loss before it."""
        weights = label_weights(self.parameters(rows), self._foreground[rows])
        loss = theta_loss(losses.cpu(), weights, share.cpu(), self.settings.risk)
        self._theta_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._theta_optimizer.step()
        return float(loss.detach())

    def theta(self) -> list[npt.NDArray[np.float64]]:
        """theta of each target's label maps."""
        values = self.parameters.values().double().numpy()
        return [values[rows.numpy()] for rows in self._rows]

    def state(self) -> dict[str, Any]:
        """All that a later :meth:`restore` needs to go on as if nothing had happened."""
        return {
            "done": self.done,
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "parameters": self.parameters.state_dict(),
            "theta_optimizer": self._theta_optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.done = int(state["done"])
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.parameters.load_state_dict(state["parameters"])
        self._theta_optimizer.load_state_dict(state["theta_optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def _batch(self) -> tuple[Tensor, list[Tensor], Tensor]:
        """Views (batch, channels, *patch), their label maps, and the rows of theta that these have."""
        generator = torch.Generator().manual_seed(_seed_of(self._seed, 1, self.done))
        chosen = [self._drawn(self.done * self.settings.batch + i) for i in range(self.settings.batch)]
        views = [view(self._targets[i], self._patch, self.settings.variation, generator) for i in chosen]
        return (
            torch.stack([image for image, _ in views]),
            [maps for _, maps in views],
            torch.cat([self._rows[i] for i in chosen]),
        )

    def _drawn(self, number: int) -> int:
        """The target of the `number`-th view: all in random order, then all again in another."""
        n = len(self._targets)
        order = np.random.default_rng([self._seed, 0, number // n]).permutation(n)
        return int(order[number % n])

    def _logits(self, images: Tensor, half: torch.dtype | None) -> Tensor:
        with torch.autocast(self.device.type, dtype=half, enabled=half is not None):
            return self.network(images).float()

    def _move(self, loss: Tensor) -> None:
        """A step of the network along the gradient of `loss`."""
        if not torch.isfinite(loss):
            raise BadInput(
                f"The training diverged in step {self.done} (the loss is {float(loss.detach())}).",
                "The learning rate is too high, or an image holds extreme values.",
                "Lower the learning rate, or look at the images.",
            )
        descend(loss, self.network, self._optimizer, self._scaler, _CLIP_NORM)


def learn(learner: Learner, progress: Progress, *, until: int | None = None, every: int = 5) -> list[dict[str, float]]:
    """Take the learner's remaining steps.

    Args:
        learner: fresh, or restored.
        progress: told of the fraction and the curve.
        until: the step to stop after, if it is not the last.
        every: steps between two rows of the curve.

    Returns:
        The curve: one dict each `every` steps with step, loss, theta_loss and foreground, means over these steps.
    """
    rows: list[dict[str, float]] = []
    since: list[Losses] = []
    steps = learner.settings.steps
    last = steps if until is None else min(until, steps)
    while learner.done < last:
        since.append(learner.step())
        progress.fraction(learner.done / steps)
        if learner.done % every == 0 or learner.done == last:
            n = len(since)
            row = {
                "step": float(learner.done),
                "loss": sum(s.network for s in since) / n,
                "theta_loss": sum(s.theta for s in since) / n,
                "foreground": sum(s.foreground for s in since) / n,
            }
            progress.curve("Learning whom to trust", 1, learner.done, row["loss"])
            rows.append(row)
            since = []
    return rows


def vote(raters: Raters, theta: npt.NDArray[np.float64], region: Region, *, probabilities: bool = False) -> Consensus:
    """The consensus of one target: votes weighted with the softmax of theta; the label with most wins.

    For a single label that is a share above one half. Ties go to the lowest value.

    Args:
        theta: (raters,).
        region: the box outside of which all is background.
        probabilities: whether to keep the shares of the votes.
    """
    weights = consensus_weights(torch.from_numpy(np.asarray(theta, dtype=np.float64))).numpy()
    part = dataclasses.replace(raters, stack=raters.stack[:, *region])
    inner = majority(part, weights=weights.tolist(), probabilities=probabilities)
    shape = raters.stack.shape[1:]
    indices = np.zeros(shape, dtype=inner.indices.dtype)
    indices[region] = inner.indices
    shares = None
    if inner.probabilities is not None:
        shares = np.zeros((len(inner.probabilities), *shape), dtype=np.float32)
        shares[0] = 1.0
        shares[:, *region] = inner.probabilities
    return Consensus(
        indices=indices,
        kept=np.ones(len(raters), dtype=bool),
        region=region,
        voxels=int(indices[region].size),
        probabilities=shares,
        weights=np.asarray(theta, dtype=np.float64),
        ties=inner.ties,
    )


def deepstaple(
    raters: Raters,
    target: npt.NDArray[np.float32],
    *,
    region: Region | None = None,
    steps: int = ONE_IMAGE.steps,
    device: torch.device | str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
    probabilities: bool = False,
) -> Consensus:
    """The consensus of the raters of a single image.

    With one image the network has nothing to compare it with but its own random views, and learns what most raters say
    where the image supports it: theta then tells who departs from the others. Errors that most raters share need many
    images to be found (:mod:`.deepstaple_training`).

    Args:
        raters: label maps of the image.
        target: the image, (z, y, x) or (y, x), on the raters' grid.
        region: outside of it all is background; by default the box around all labels and a margin. The network looks
            at that box in any case.
        steps: of the network; theta moves in the last :data:`THETA_STEPS` of them.
        device: where to compute.
        seed: of the network's weights and of the views.
        progress: told of the fraction.
        probabilities: whether to keep the shares of the votes.

    Returns:
        The consensus; its weights are theta.
    """
    progress = progress or Progress()
    seen = raters.box(margin=MARGIN)
    region = seen if region is None else region
    chosen = resolve(device) if isinstance(device, str) else device
    classes = len(raters.labels) + 1
    one = _single(raters, target, seen)
    with torch.random.fork_rng(devices=[]):  # the seed is ours alone, and a script's own random numbers stay
        torch.manual_seed(seed)
        network: nn.Module = LRASPP2D(1, classes, enlarge=2.0) if target.ndim == 2 else LRASPP3D(1, classes)
    settings = dataclasses.replace(ONE_IMAGE, steps=steps, alone=max(steps - THETA_STEPS, 0))
    patch = tuple(one.image.shape[1:])
    learner = Learner([one], classes, network, patch, settings, chosen, seed)
    if len(raters) > 1:
        learn(learner, progress)
    found = vote(raters, learner.theta()[0], region, probabilities=probabilities)
    notes = ["theta was learned from this image alone: it says who departs from the other raters."]
    if len(raters) == 1:
        notes = ["There is one rater: nothing was learned."]
    return dataclasses.replace(found, iterations=learner.done, notes=tuple(notes))


def _single(raters: Raters, target: npt.NDArray[np.float32], region: Region) -> NoisyTarget:
    """A part of one image and its label maps, on a grid that is small enough for a network."""
    image = torch.from_numpy(np.ascontiguousarray(target[region], dtype=np.float32))
    stack = raters.stack[:, *region]
    labels = torch.from_numpy(np.ascontiguousarray(stack.astype(np.uint8 if stack.dtype == np.uint8 else np.int32)))
    shape = working_shape(image.shape, MOST_VOXELS[image.ndim])
    if shape != tuple(image.shape):
        image = functional.interpolate(image[None, None], size=shape, mode="area")[0, 0]
        labels = functional.interpolate(labels[None].float(), size=shape, mode="nearest-exact")[0].to(labels.dtype)
    spread, mean = torch.std_mean(image)
    return NoisyTarget("", ((image - mean) / spread.clamp(min=1e-6))[None], labels)


def working_shape(shape: Sequence[int], most: int) -> tuple[int, ...]:
    """`shape`, made smaller by one factor along all axes until it holds `most` voxels or fewer; 4 voxels at least."""
    factor = max(1.0, (math.prod(shape) / most) ** (1 / len(shape)))
    return tuple(max(min(n, 4), math.floor(n / factor)) for n in shape)


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])

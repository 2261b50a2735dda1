"""Training a registration network, with or without labels, on a Decathlon-format data set, into a MONAI bundle.

Each step sees pairs of different subjects. The weights kept are an exponential moving average, chosen by the overlap of
the validation cases' labels, or by the loss on their images where no labels are used.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import charts, checkpoint
from ..bundle_parts import instantiate, read_words
from ..descent import copied, descend, follow, learning_rate, set_rate
from ..device import amp_dtype, resolve
from ..errors import BadInput
from ..metrics import mean_of
from ..progress import Progress
from ..segmentation.curve import epoch_text, write_curve
from ..segmentation.dataset import Dataset, Split, fingerprint, read_dataset, split_cases
from . import registration_bundle
from .atlas_istn import AtlasISTN
from .istn import ISTN
from .objectives import objective, structure_loss
from .pairs import Batch, Sampler, Subject, canvas, one_hot, read_subject
from .placement import MULTIPLE
from .requests import TrainRegistrationRequest
from .sampling import warp

#: Epochs between two validations (and checkpoints).
VALIDATE_EVERY = 2
#: Decay of the moving average of the weights, a step.
EMA_DECAY = 0.995
#: Share of the epochs in which a network that marks structures learns nothing else: they cost half a whole step.
STRUCTURES_FIRST = 0.4
_WEIGHT_DECAY = 1e-2
_CLIP_NORM = 5.0
#: Validation pairs are each case with the next ones, this many.
_NEIGHBOURS = 2


def run(request: TrainRegistrationRequest, progress: Progress) -> dict[str, Any]:
    """Train as `request` says; see :class:`MLILib.registration.requests.TrainRegistrationRequest`.

    Returns:
        The bundle's folder, the validation figure, the figures of the fold kept aside, epochs and seconds.

    Raises:
        BadInput: a data set that cannot be used, or an output folder that already holds something.
    """
    charts.require_matplotlib()
    dataset = read_dataset(request.dataset)
    split = split_cases(dataset, request.fold, request.folds)
    read_words(request.describe)  # a mistake in it is told now, not after the training
    folder = Path(request.output)
    state_file = folder / "training" / "checkpoint.pt"
    checkpoint.require_fresh(folder, state_file, request.resume)
    device = resolve(request.device)
    if request.threads:
        torch.set_num_threads(request.threads)

    trainer = Trainer(request, dataset, split, device)
    if request.resume and state_file.exists():
        trainer.load(state_file)
        progress.message(f"Going on after epoch {trainer.epoch} of {request.epochs}.")
    state_file.parent.mkdir(parents=True, exist_ok=True)

    if trainer.epoch < request.epochs:
        progress.stage("Reading cases")
        trainer.read_cases(progress)
        progress.stage("Training")
    while trainer.epoch < request.epochs:
        row = trainer.run_epoch(progress)
        if trainer.validation_due():
            trainer.save(state_file)
            write_curve(trainer.history, dataset.labels, state_file.parent, loss_name="registration")
            progress.message(epoch_text(row, request.epochs))

    progress.stage("Writing the bundle")
    result = registration_bundle.write_bundle(folder, trainer.best_weights(), trainer.description(), progress)
    state_file.unlink()
    return result


class Trainer:
    """The state of a training, and one epoch of it at a time.

    Args:
        request: the settings.
        dataset: what is learnt.
        split: its cases; `split.validation` chooses the checkpoint.
        device: where to compute.
    """

    def __init__(self, request: TrainRegistrationRequest, dataset: Dataset, split: Split, device: torch.device) -> None:
        self.request = request
        self.dataset = dataset
        self.split = split
        self.device = device
        self.spacing = fingerprint(split.training).spacing
        self.size = canvas([*split.training, *split.validation], self.spacing, MULTIPLE)
        shape = (len(dataset.channels), len(dataset.labels))
        expert = registration_bundle.find_expert(request.expert, *shape, len(self.spacing))
        self.plan = registration_bundle.network_definition(request.network, *shape, self.size, expert)
        self.network = instantiate(self.plan).to(device)
        # The first weights are the seed's, whether there is an expert or not.
        torch.manual_seed(request.seed)
        fresh = instantiate(registration_bundle.network_definition(request.network, *shape, self.size))
        self.network.load_state_dict(fresh.state_dict(), strict=False)
        if expert is not None:
            weights = registration_bundle.expert_network(expert).state_dict()
            self.network.expert.load_state_dict(weights)  # type: ignore[union-attr]
        self.average = instantiate(self.plan).to(device).requires_grad_(False)
        self.average.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=request.learning_rate,
            weight_decay=_WEIGHT_DECAY,
            fused=device.type != "mps",
        )
        self.amp_dtype = amp_dtype(device, request.amp)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype is torch.float16)
        self.epoch = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.best_score = math.nan
        self.best_epoch = 0
        self._best: dict[str, Tensor] = {}
        self._training: list[Subject] = []
        self._validation: list[Subject] = []

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.split.training) / self.request.batch)

    def only_structures(self) -> bool:
        """Whether the network is still learning to mark structures, before there is anything to register by them."""
        return isinstance(self.network, ISTN | AtlasISTN) and self.epoch < STRUCTURES_FIRST * self.request.epochs

    def validation_due(self) -> bool:
        """Whether the epoch just done is one after which to validate and write a checkpoint."""
        return self.epoch % VALIDATE_EVERY == 0 or self.epoch == self.request.epochs

    def read_cases(self, progress: Progress) -> None:
        """Read every case onto the canvas, into memory."""
        cases = [*self.split.training, *self.split.validation]
        subjects = []
        for i, case in enumerate(cases):
            subjects.append(read_subject(case, self.spacing, self.size, len(self.dataset.labels)))
            progress.fraction((i + 1) / len(cases))
        n = len(self.split.training)
        self._training, self._validation = subjects[:n], subjects[n:]

    def run_epoch(self, progress: Progress) -> dict[str, float]:
        """Train on every case once as the fixed image; validate when it is due. The epoch's row of the curve."""
        started = time.monotonic()
        sampler = Sampler(self._training, len(self.dataset.labels), self.request.seed)
        pairs = sampler.order(self.epoch)
        self.network.train()
        total = 0.0
        steps = self.steps_per_epoch
        for step in range(steps):
            chosen = pairs[step * self.request.batch : (step + 1) * self.request.batch]
            batch = sampler.batch(self.epoch, step, chosen)
            total += self._step(batch, self.epoch * steps + step)
            progress.fraction((self.epoch + (step + 1) / steps) / self.request.epochs)
        self.epoch += 1
        row: dict[str, float] = {"epoch": self.epoch, "loss": total / steps}
        if self.validation_due():
            self._validate(row)
        self.seconds += time.monotonic() - started
        row["seconds"] = self.seconds
        self.history.append(row)
        return row

    def _loss(self, network: torch.nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            if self.only_structures():
                logits = network.structures(torch.cat([batch.fixed, batch.moving]))  # type: ignore[operator]
                return self.request.label_weight * structure_loss(logits, batch)
            prediction = network(batch.fixed, batch.moving)
        if network.training and isinstance(network, AtlasISTN):
            network.learn_atlas(prediction, batch.fixed_labels, batch.moving_labels)
        return objective(prediction, batch, self.request)

    def _step(self, batch: Batch, number: int) -> float:
        rate = learning_rate(number, self.steps_per_epoch * self.request.epochs, self.request.learning_rate)
        set_rate(self.optimizer, rate)
        loss = self._loss(self.network, batch.to(self.device))
        if not torch.isfinite(loss):
            raise BadInput(
                f"The training diverged in step {number} (the loss is {float(loss)}).",
                "The learning rate is too high, or a case holds extreme values.",
                "Lower --learning-rate, or look at the images.",
            )
        descend(loss, self.network, self.optimizer, self.scaler, _CLIP_NORM)
        follow(self.average, self.network, EMA_DECAY, number)
        return float(loss.detach())

    def _validate(self, row: dict[str, float]) -> None:
        if not self._validation or self.only_structures():  # fold -1: the last weights are kept
            self._keep()
            return
        self.average.eval()
        n = len(self._validation)
        partners = self._validation if n > 1 else self._training
        neighbours = range(1, min(_NEIGHBOURS, max(n - 1, 1)) + 1)
        scores, losses = [], []
        with torch.inference_mode():
            for fixed in range(n):
                for step in neighbours:
                    batch = self._plain(self._validation[fixed], partners[(fixed + step) % len(partners)])
                    scores.append(self._dice(batch))
                    losses.append(float(self._loss(self.average, batch)))
        row["validation_loss"] = sum(losses) / len(losses)
        score = -row["validation_loss"]
        if self.request.labels:
            for i, name in enumerate(self.dataset.labels):
                row[f"dice_{name}"] = mean_of([s[i] for s in scores])
            score = row["validation_dice"] = mean_of([row[f"dice_{name}"] for name in self.dataset.labels])
        if math.isnan(self.best_score) or score > self.best_score:
            self.best_score = score
            self._keep()

    def _plain(self, fixed: Subject, moving: Subject) -> Batch:
        count = len(self.dataset.labels)
        return Batch(
            fixed.image[None],
            moving.image[None],
            one_hot(fixed.label, count)[None],
            one_hot(moving.label, count)[None],
        ).to(self.device)

    def _dice(self, batch: Batch) -> list[float]:
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            u = self.average(batch.fixed, batch.moving).displacement
        found = warp(batch.moving_labels, u, mode="nearest")
        axes = tuple(range(2, found.ndim))
        size = (found + batch.fixed_labels).sum(axes)[0]
        shared = (found * batch.fixed_labels).sum(axes)[0]
        return [2 * float(a) / float(b) if b else math.nan for a, b in zip(shared, size, strict=True)]

    def _keep(self) -> None:
        self.best_epoch = self.epoch
        self._best = copied(self.average)

    def best_weights(self) -> dict[str, Tensor]:
        """The averaged weights with the best validation figure."""
        return self._best

    def description(self) -> registration_bundle.Description:
        """What the bundle is written from."""
        return registration_bundle.Description(
            request=self.request,
            dataset=self.dataset,
            split=self.split,
            network=self.plan,
            spacing=self.spacing,
            size=self.size,
            seconds=self.seconds,
            device=str(self.device),
            score=self.best_score,
            best_epoch=self.best_epoch,
        )

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self._best,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "history": json.dumps(self.history),
        }
        checkpoint.save(path, _identity(self.request), state)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same request.

        Raises:
            BadInput: the checkpoint was made with other settings.
        """
        state = checkpoint.load(path, _identity(self.request), self.device)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self._best = {k: v.cpu() for k, v in state["best"].items()}
        self.best_score, self.best_epoch = float(state["best_score"]), int(state["best_epoch"])
        self.epoch, self.seconds = int(state["epoch"]), float(state["seconds"])
        self.history = json.loads(state["history"])


def _identity(request: TrainRegistrationRequest) -> dict[str, Any]:
    """The settings that must not change between a checkpoint and its resumption."""
    return checkpoint.identity(request, "threads", "dataset")

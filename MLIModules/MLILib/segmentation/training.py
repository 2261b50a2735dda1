"""Training a segmentation network: cross-entropy plus soft Dice, on a Decathlon-format data set, into a MONAI bundle.

The recipe is nnU-Net's (Isensee 2021) cut to a modest machine: whole-case patches, strong augmentation, AdamW with a
warm-up and a cosine schedule, and an exponential moving average of the weights, which is what is validated and kept.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer

from .. import bundle_parts, bundles, charts, checkpoint, stop_file, weights
from ..descent import copied, descend, follow, learning_rate, set_rate
from ..device import amp_dtype, resolve
from ..errors import BadInput, MissingPackage
from ..metrics import mean_of
from ..progress import Progress
from . import bundle_writer, sample_picture, training_memory, unlabelled
from .augmentation import Sampler, preprocess
from .batch_statistics import renew
from .curve import epoch_text, write_curve
from .dataset import Dataset, Split, chosen_cases, fingerprint, read_dataset, require_usable, split_cases
from .distributed import Team, device_of, team
from .ensembles import train_members
from .losses import SegmentationLoss, balanced_weights, l1_norm, mixup_share
from .plan import Plan, make_plan, read_plan
from .shape_prior import ShapeAutoencoder, learn_shapes, oddity
from .train_request import TrainSegmentationRequest

#: Epochs between two validations (and checkpoints).
VALIDATE_EVERY = 5
_CLIP_NORM = 12.0
#: Batches that the statistics of batch normalisation are measured on.
_STATISTICS_BATCHES = 16
#: Steps in which the autoencoder of the shape prior learns.
_SHAPE_STEPS = 400
#: Tells the random numbers of pasting from those of other changes.
_PASTING = 1

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


class Diverged(BadInput):
    """The loss is no number any more; the best weights before stay."""


def run(request: TrainSegmentationRequest, progress: Progress) -> dict[str, Any]:
    """Train as `request` says; see :class:`MLILib.segmentation.requests.TrainSegmentationRequest`.

    Returns:
        The bundle's folder, the Dice of the validation cases and of the fold kept aside, epochs and seconds; with
        ``ok`` False and ``error`` where the training diverged and the best weights before were kept.

    Raises:
        BadInput: a data set that cannot be used, or an output folder that already holds something.
    """
    charts.require_matplotlib()
    if request.ensemble:
        return train_members(request, progress, run)
    require_einops(request.network)
    dataset = read_dataset(request.dataset)
    split, images = chosen_cases(split_cases(dataset, request.fold, request.folds), request.labelled, request.draw)
    require_usable(dataset.cases, len(dataset.labels))
    if request.unlabelled:
        images += unlabelled.find_images(request.unlabelled, len(dataset.channels))
    if request.mean_teacher and not images:
        raise BadInput(
            "There are no unlabelled images for the mean teacher.", "", "Give --unlabelled FOLDER, or --labelled N."
        )
    bundle_parts.read_words(request.describe)  # a mistake in it is told now, not after the training
    folder = Path(request.output)
    state_file = folder / "training" / "checkpoint.pt"
    device = resolve(device_of(request.device))
    if request.threads:
        torch.set_num_threads(request.threads)

    with team(device) as crew:
        checkpoint.require_fresh(folder, state_file, request.resume)
        crew.wait()  # the first process is about to make the folder
        resumed = request.resume and state_file.exists()
        plan = read_plan(state_file) if resumed else None
        trainer = Trainer(request, dataset, split, device, crew.agreed(plan), crew=crew, images=images)
        told = progress if crew.leads else Progress()
        if resumed:
            trainer.load(state_file)
            told.message(f"Going on after epoch {trainer.epoch} of {request.epochs}.")
        for reason in trainer.plan.reasons:
            told.message(reason)
        state_file.parent.mkdir(parents=True, exist_ok=True)
        diverged: Diverged | None = None
        try:
            trainer.fit(state_file, told)
        except Diverged as error:
            if not trainer.has_best:
                raise
            diverged = error
        if not crew.leads:
            crew.wait()
            return {"bundle": str(folder), "text": ""}
        told.stage("Writing the bundle")
        result = bundle_writer.write_bundle(folder, trainer.best_weights(), trainer.description(), told)
        state_file.unlink(missing_ok=True)
        crew.wait()
    result["plan"] = list(trainer.plan.reasons)
    if diverged is not None:
        kept = f"{diverged} The weights after epoch {trainer.best_epoch} were kept."
        return {**result, "ok": False, "error": kept, "text": f"{result['text']}\n{kept}"}
    return result


class Trainer:
    """The state of a training, and one epoch of it at a time.

    Args:
        request: the settings.
        dataset: what is learnt.
        split: its cases; `split.validation` chooses the checkpoint.
        device: where to compute.
        plan: patch, spacing and network; by default made for the data set.
        crew: the processes that train together.
        images: files of each unlabelled case, for the mean teacher.
    """

    def __init__(
        self,
        request: TrainSegmentationRequest,
        dataset: Dataset,
        split: Split,
        device: torch.device,
        plan: Plan | None = None,
        *,
        crew: Team | None = None,
        images: Sequence[tuple[str, ...]] = (),
    ) -> None:
        torch.manual_seed(request.seed)
        self.request = request
        self.dataset = dataset
        self.split = split
        self.device = device
        self.crew = crew or Team()
        self.classes = len(dataset.labels) + 1
        self.labels = dataset.labels
        self._require_weights()
        self.plan: Plan = plan or self.crew.agreed(self._planned() if self.crew.leads else None)  # type: ignore[assignment]
        self.batch = request.batch or self.plan.batch
        self.network = bundle_parts.instantiate(self.plan.network).to(device)
        if request.start:
            begun = bundles.find(request.start)
            weights.fit(self.network, weights.load(begun.weights), begun.name)
        self.average = bundle_parts.instantiate(self.plan.network).to(device).requires_grad_(False)
        self.average.load_state_dict(self.network.state_dict())
        self.called = self.crew.wrapped(self.network, device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=request.learning_rate,
            weight_decay=request.weight_decay,
            fused=device.type != "mps",
        )
        self.amp_dtype = amp_dtype(device, request.amp)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype is torch.float16)
        self.loss = SegmentationLoss(request.label_smoothing, request.class_weights or None).to(device)
        self.inferer = SlidingWindowInferer(self.plan.patch, sw_batch_size=4, overlap=0.5, mode="gaussian")
        self.epoch = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.best_dice = math.nan
        self.best_epoch = 0
        self.has_best = False
        self._best: dict[str, torch.Tensor] = {}
        self._folder: Path | None = None
        self._ending = ""
        self._shapes: ShapeAutoencoder | None = None
        self._images = list(images) if request.mean_teacher else []
        self._training: Pairs = []
        self._validation: Pairs = []
        self._unlabelled: Pairs = []

    def _planned(self) -> Plan:
        request = self.request
        patches = 1 + (1 + request.paste if request.mean_teacher else 0)
        return make_plan(
            self.dataset,
            fingerprint(self.split.training),
            request.filters,
            network=request.network,
            dropout=request.dropout,
            batch=request.batch,
            patch=request.patch,
            memory=training_memory.at_hand(self.device, patches),
        )

    def _require_weights(self) -> None:
        given = self.request.class_weights
        if given and len(given) != self.classes:
            raise BadInput(
                f"{len(given)} class weights are given for {self.classes} classes.",
                f"The classes are background, {', '.join(self.labels)}.",
                f"Give {self.classes} numbers, the background's first.",
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.request.steps or math.ceil(len(self.split.training) / self.batch)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the last ones brought nothing."""
        stale = self.epoch - self.best_epoch
        tired = self.request.patience and not math.isnan(self.best_dice) and stale >= self.request.patience
        return self.epoch >= self.request.epochs or bool(tired) or bool(self._ending)

    def validation_due(self) -> bool:
        """Whether the epoch just done is one after which to validate and write a checkpoint."""
        return bool(self._ending) or self.epoch % VALIDATE_EVERY == 0 or self.epoch == self.request.epochs

    def read_cases(self, progress: Progress) -> None:
        """Read and preprocess every case into memory."""
        cases = [*self.split.training, *self.split.validation]
        total = len(cases) + len(self._images)
        read: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for i, case in enumerate(cases):
            if case.label not in read:  # a draw with replacement has cases twice
                read[case.label] = preprocess(case, self.plan.spacing, self.classes)
            progress.fraction((i + 1) / total)
        self._training = [read[case.label] for case in self.split.training]
        self._validation = [read[case.label] for case in self.split.validation]
        for i, paths in enumerate(self._images):
            self._unlabelled.append(unlabelled.read_unlabelled(paths, self.plan.spacing))
            progress.fraction((len(cases) + i + 1) / total)
        if self.request.balance:
            counts = torch.zeros(self.classes, dtype=torch.int64)
            for _, label in self._training:
                counts += torch.bincount(label.flatten().long(), minlength=self.classes)
            balanced = balanced_weights(counts.tolist())
            progress.message(f"class weights: {', '.join(f'{w:.3g}' for w in balanced)}")
            self.loss = SegmentationLoss(self.request.label_smoothing, balanced).to(self.device)

    def fit(self, state_file: Path, progress: Progress) -> None:
        """Train the epochs that are left; a checkpoint and the learning curve are written after each validation.

        Args:
            state_file: of the checkpoint; the curve lies beside it.
            progress: told of stages, fractions and the epochs' figures.

        Raises:
            Diverged: the loss became infinite or no number.
        """
        self._folder = state_file.parent
        stop_file.clear(self._folder)
        progress.stage("Reading cases")
        if not self.finished:
            self.read_cases(progress)
            if self.request.shape_prior and self._shapes is None:
                progress.stage("Learning the shapes")
                self._learn_shapes(progress)
            progress.stage("Training")
        while not self.finished:
            row = self.run_epoch(progress)
            progress.curve("Training loss", 1, self.epoch, row["loss"])
            if "validation_dice" in row:
                progress.curve("Validation Dice", 2, self.epoch, row["validation_dice"])
            if self.validation_due():
                if self.crew.leads:
                    self.save(state_file)
                    write_curve(self.history, self.labels, state_file.parent)
                progress.message(epoch_text(row, self.request.epochs))
        if self.epoch < self.request.epochs:
            why = self._ending or f"no better validation Dice for {self.request.patience} epochs"
            progress.message(f"Stopped after epoch {self.epoch}: {why}.")

    def _sampler(self, pairs: Pairs, *, labelled: bool = True) -> Sampler:
        return Sampler(
            pairs,
            self.plan.patch,
            self.plan.mirror_axes,
            self.classes,
            self.request.seed if labelled else self.request.seed + 1,
            augment=self.request.augment,
            foreground=self.request.foreground if labelled else 0.0,
            modality_dropout=self.request.modality_dropout,
        )

    def _learn_shapes(self, progress: Progress) -> None:
        sampler = self._sampler(self._training)
        self._shapes = ShapeAutoencoder(self.plan.dimensions, self.classes).to(self.device)

        def labels(step: int) -> torch.Tensor:
            # epochs from the far end, so that the network will not see the same samples in the same order
            indices = sampler.visited(step, self.batch, first=10**6)
            return torch.stack([sampler.sample(epoch, i)[1] for epoch, i in indices])

        def on_step(done: int) -> None:
            progress.fraction(done / _SHAPE_STEPS)

        left = learn_shapes(self._shapes, labels, _SHAPE_STEPS, self.request.seed, on_step)
        progress.message(f"shape prior: the autoencoder restores labels to a cross-entropy of {left:.4f}")

    def run_epoch(self, progress: Progress) -> dict[str, float]:
        """Train on every case once; validate when it is due. The epoch's row of the learning curve."""
        started = time.monotonic()
        sampler = self._sampler(self._training)
        other = self._sampler(self._unlabelled, labelled=False) if self._unlabelled else None
        self.network.train()
        self.called.train()
        total = 0.0
        steps = self.steps_per_epoch
        rounds = math.ceil(steps * self.batch / len(self._training)) if self.request.steps else 1
        for step in range(steps):
            visited = sampler.visited(step, self.batch, first=self.epoch * rounds, epochs=rounds)
            chosen = self.crew.share(visited)
            images, labels = zip(*(sampler.sample(epoch, i) for epoch, i in chosen), strict=True)
            number = self.epoch * steps + step
            taught = None
            if other is not None:
                at = self.crew.share(other.visited(number, self.batch)[: len(visited)])
                taught = self._taught(other, at, number)
            names = [self.split.training[i].name for _, i in chosen]
            total += self._step(torch.stack(images), torch.stack(labels), number, names, taught)
            progress.fraction((self.epoch + (step + 1) / steps) / self.request.epochs)
        self.epoch += 1
        row: dict[str, float] = {"epoch": self.epoch, "loss": total / steps}
        self._ending = self.crew.agreed(self._why_to_end(self.seconds + time.monotonic() - started))
        if self.validation_due():
            if self.crew.leads:
                self._validate(row, progress)
            row, self.best_dice, self.best_epoch = self.crew.agreed((row, self.best_dice, self.best_epoch))
        self.seconds += time.monotonic() - started
        row["seconds"] = self.seconds
        self.history.append(row)
        return row

    def _step(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        number: int,
        names: Sequence[str] = (),
        taught: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> float:
        """One step of the optimiser on images (N, channels, ...) and labels (N, 1, ...); the loss.

        Args:
            images, labels: that belong together.
            number: of the step, from 0.
            names: of the images.
            taught: what :meth:`_taught` gave.
        """
        request = self.request
        done = number / (self.steps_per_epoch * request.epochs)
        rate = learning_rate(number, self.steps_per_epoch * request.epochs, request.learning_rate)
        set_rate(self.optimizer, rate)
        images, labels = images.to(self.device), labels.to(self.device)
        mixed, share = None, 1.0
        if request.mixup and len(images) > 1:
            share = mixup_share(request.mixup, np.random.default_rng([request.seed, number, self.crew.rank]))
            images = share * images + (1 - share) * images.flip(0)
            mixed = labels.flip(0)
        self._set_dropped(number)
        n = len(images)
        seen, inside = images, None
        if taught is not None:
            others, believed = (part.to(self.device) for part in taught)
            if request.paste:
                rng = np.random.default_rng([request.seed, number, self.crew.rank, _PASTING])
                inside = unlabelled.box(images.shape[2:], rng).to(self.device)
                others = unlabelled.pasted(images, others, inside)
            seen = torch.cat([images, others])
        with self._mixed_precision():
            logits = self.called(seen).float()
        loss = self.loss(logits[:n], labels, mixed, share)
        if request.shape_prior and self._shapes is not None:
            loss = loss + request.shape_prior * oddity(self._shapes, logits[:n])
        if taught is not None:
            if inside is None:
                apart = unlabelled.disagreement(logits[n:], believed)
            else:
                said = believed.argmax(dim=1, keepdim=True)
                drawn = unlabelled.pasted(labels, said, inside)
                apart = self.loss(
                    logits[n:], drawn, None if mixed is None else unlabelled.pasted(mixed, said, inside), share
                )
            loss = loss + request.mean_teacher * unlabelled.ramp(done) * apart
        if request.l1:
            loss = loss + request.l1 * l1_norm(self.network.parameters())
        if self.crew.any(not bool(torch.isfinite(loss)), self.device):
            raise _diverged(number, float(loss.detach()), logits[:n], names)
        descend(loss, self.network, self.optimizer, self.scaler, _CLIP_NORM)
        follow(self.average, self.network, request.ema, number)
        return float(loss.detach())

    def _taught(
        self, sampler: Sampler, at: Sequence[tuple[int, int]], number: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Unlabelled images as the network is to see them, and the class probabilities that the teacher believes in.

        The teacher sees them before they are changed: it errs less on images as they are.
        """
        plain = torch.stack([sampler.plain(epoch, i) for epoch, i in at])
        self._set_dropped(number)
        self.average.train()  # with noise of its own; its batch statistics are copied at the end of the step
        with self._mixed_precision():
            believed = unlabelled.believed(self.average, plain.to(self.device), self.plan.mirror_axes).cpu()
        changed = [sampler.changed(image, soft, *where) for image, soft, where in zip(plain, believed, at, strict=True)]
        images, labels = zip(*changed, strict=True)
        return torch.stack(images), torch.stack(labels)

    def _set_dropped(self, number: int) -> None:
        """Let a resumed training drop what an uninterrupted one would have dropped in this step."""
        if self.request.dropout:
            torch.manual_seed((self.request.seed * 1_000_003 + number) * 64 + self.crew.rank)

    def _mixed_precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def _why_to_end(self, seconds: float) -> str:
        """Why to end after this epoch, "" where there is no reason."""
        if not self.crew.leads:
            return ""
        if self._folder is not None and stop_file.heard(self._folder):
            return "as asked for"
        if self.request.hours and seconds >= 3600 * self.request.hours:
            return f"{self.request.hours:g} hours are over"
        return ""

    def _training_batches(self) -> Iterator[torch.Tensor]:
        """Some batches of training images, the same ones every time."""
        sampler = self._sampler(self._training)
        for step in range(_STATISTICS_BATCHES):
            images = [sampler.sample(epoch, i)[0] for epoch, i in sampler.visited(step, self.batch, first=10**6)]
            yield torch.stack(images).to(self.device)

    def _validate(self, row: dict[str, float], progress: Progress) -> None:
        renew(self.average, self._training_batches(), self.amp_dtype)
        if not self._validation:  # fold -1: the last weights are kept
            self._keep()
            return
        scores = []
        for number, (image, label) in enumerate(self._validation):
            found = self._predicted(image)
            scores.append(self._dice(found, label))
            if number == 0 and self._folder is not None:
                path = self._folder / sample_picture.NAME
                sample_picture.draw(image, label[0], found, path)
                progress.samples(str(path))
        for i, name in enumerate(self.labels):
            row[f"dice_{name}"] = mean_of([s[i] for s in scores])
        row["validation_dice"] = mean_of([row[f"dice_{name}"] for name in self.labels])
        if math.isnan(self.best_dice) or row["validation_dice"] > self.best_dice:
            self.best_dice = row["validation_dice"]
            self._keep()

    def _predicted(self, image: torch.Tensor) -> torch.Tensor:
        with (
            torch.inference_mode(),
            self._mixed_precision(),
        ):
            logits: Any = self.inferer(image[None].to(self.device), self.average)
        return logits[0].argmax(dim=0).cpu()

    def _dice(self, found: torch.Tensor, label: torch.Tensor) -> list[float]:
        out = []
        for value in range(1, self.classes):
            a, b = found == value, label[0] == value
            size = int(a.sum() + b.sum())
            out.append(2 * int((a & b).sum()) / size if size else math.nan)
        return out

    def _keep(self) -> None:
        self.best_epoch = self.epoch
        self.has_best = True
        self._best = copied(self.average)

    def best_weights(self) -> dict[str, torch.Tensor]:
        """The averaged weights with the best validation Dice."""
        return self._best

    def description(self) -> bundle_writer.Description:
        """What the bundle is written from."""
        return bundle_writer.Description(
            request=self.request,
            dataset=self.dataset,
            split=self.split,
            plan=self.plan,
            seconds=self.seconds,
            device=str(self.device),
            validation_dice=self.best_dice,
            best_epoch=self.best_epoch,
        )

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all.

        Raises:
            BadInput: the disk is full.
        """
        checkpoint.save(
            path,
            _identity(self.request),
            {
                "plan": self.plan.to_json(),
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "shapes": {} if self._shapes is None else self._shapes.state_dict(),
                "best": self._best,
                "best_dice": self.best_dice,
                "best_epoch": self.best_epoch,
                "epoch": self.epoch,
                "seconds": self.seconds,
                "history": json.dumps(self.history),
            },
        )

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
        if state["shapes"]:
            self._shapes = ShapeAutoencoder(self.plan.dimensions, self.classes).to(self.device)
            self._shapes.load_state_dict(state["shapes"])
            self._shapes.eval().requires_grad_(False)
        self._best = {k: v.cpu() for k, v in state["best"].items()}
        self.has_best = bool(self._best)
        self.best_dice, self.best_epoch = float(state["best_dice"]), int(state["best_epoch"])
        self.epoch, self.seconds = int(state["epoch"]), float(state["seconds"])
        self.history = json.loads(state["history"])


def _diverged(number: int, loss: float, logits: torch.Tensor, names: Sequence[str]) -> Diverged:
    odd = [name for name, found in zip(names, logits, strict=False) if not bool(torch.isfinite(found).all())]
    which = ", ".join(odd or names)
    return Diverged(
        f"The training diverged in step {number} (the loss is {loss})" + (f" on {which}." if which else "."),
        "The learning rate is too high, or a case holds extreme values.",
        "Lower --learning-rate, or look at the images.",
    )


def _identity(request: TrainSegmentationRequest) -> dict[str, Any]:
    """The settings that must not change between a checkpoint and its resumption."""
    return checkpoint.identity(request, "threads", "dataset")


def require_einops(network: str) -> None:
    if network == "swinunetr" and importlib.util.find_spec("einops") is None:
        raise MissingPackage(
            "The package einops is not installed.", "MONAI's SwinUNETR is made with it.", "Run: pip install einops"
        )

"""Training a segmentation network: cross-entropy plus soft Dice, on a Decathlon-format data set, into a MONAI bundle.

The recipe is nnU-Net's (Isensee 2021) cut to a modest machine: whole-case patches, strong augmentation, AdamW with a
warm-up and a cosine schedule, and an exponential moving average of the weights, which is what is validated and kept.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss

from .. import __version__
from ..device import amp_dtype, resolve
from ..errors import BadInput, MissingPackage
from ..progress import Progress
from . import bundle_writer
from .augmentation import Sampler, preprocess
from .curve import write_curve
from .dataset import Dataset, Split, fingerprint, read_dataset, split_cases
from .plan import Plan, make_plan
from .requests import TrainSegmentationRequest

#: Decay of the moving average of the weights, a step.
EMA_DECAY = 0.999
#: Epochs between two validations (and checkpoints).
VALIDATE_EVERY = 5
_WARMUP_STEPS = 200
_WEIGHT_DECAY = 1e-2
_CLIP_NORM = 12.0

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def run(request: TrainSegmentationRequest, progress: Progress) -> dict[str, Any]:
    """Train as `request` says; see :class:`MLILib.segmentation.requests.TrainSegmentationRequest`.

    Returns:
        The bundle's folder, the Dice of the validation cases and of the fold kept aside, epochs and seconds.

    Raises:
        BadInput: a data set that cannot be used, or an output folder that already holds something.
    """
    require_matplotlib()
    dataset = read_dataset(request.dataset)
    split = split_cases(dataset, request.fold, request.folds)
    bundle_writer.read_words(request.describe)  # a mistake in it is told now, not after the training
    folder = Path(request.output)
    state_file = folder / "training" / "checkpoint.pt"
    require_fresh(folder, state_file, request.resume)
    device = resolve(request.device)
    if request.threads:
        torch.set_num_threads(request.threads)

    trainer = Trainer(request, dataset, split, device)
    if request.resume and state_file.exists():
        trainer.load(state_file)
        progress.message(f"Going on after epoch {trainer.epoch} of {request.epochs}.")
    for reason in trainer.plan.reasons:
        progress.message(reason)
    state_file.parent.mkdir(parents=True, exist_ok=True)

    trainer.fit(state_file, progress)
    progress.stage("Writing the bundle")
    result = bundle_writer.write_bundle(folder, trainer.best_weights(), trainer.description(), progress)
    state_file.unlink()
    return result


class Trainer:
    """The state of a training, and one epoch of it at a time.

    Args:
        request: the settings.
        dataset: what is learnt.
        split: its cases; `split.validation` chooses the checkpoint.
        device: where to compute.
        plan: patch, spacing and network; by default made for the data set.
    """

    def __init__(
        self,
        request: TrainSegmentationRequest,
        dataset: Dataset,
        split: Split,
        device: torch.device,
        plan: Plan | None = None,
    ) -> None:
        torch.manual_seed(request.seed)
        self.request = request
        self.dataset = dataset
        self.split = split
        self.device = device
        self.classes = len(dataset.labels) + 1
        self.labels = dataset.labels
        self.plan: Plan = plan or make_plan(dataset, fingerprint(split.training), request.filters)
        self.network = bundle_writer.instantiate(self.plan.network).to(device)
        self.average = bundle_writer.instantiate(self.plan.network).to(device).requires_grad_(False)
        self.average.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=request.learning_rate, weight_decay=_WEIGHT_DECAY, fused=device.type != "mps"
        )
        self.amp_dtype = amp_dtype(device, request.amp)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype is torch.float16)
        self.loss = DiceCELoss(softmax=True, to_onehot_y=True, batch=True, include_background=False)
        self.inferer = SlidingWindowInferer(self.plan.patch, sw_batch_size=4, overlap=0.5, mode="gaussian")
        self.epoch = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.best_dice = math.nan
        self.best_epoch = 0
        self._best: dict[str, torch.Tensor] = {}
        self._training: Pairs = []
        self._validation: Pairs = []

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.split.training) / self.request.batch)

    def validation_due(self) -> bool:
        """Whether the epoch just done is one after which to validate and write a checkpoint."""
        return self.epoch % VALIDATE_EVERY == 0 or self.epoch == self.request.epochs

    def read_cases(self, progress: Progress) -> None:
        """Read and preprocess every case into memory."""
        cases = [*self.split.training, *self.split.validation]
        pairs: Pairs = []
        for i, case in enumerate(cases):
            pairs.append(preprocess(case, self.plan.spacing, self.classes))
            progress.fraction((i + 1) / len(cases))
        n = len(self.split.training)
        self._training, self._validation = pairs[:n], pairs[n:]

    def fit(self, state_file: Path, progress: Progress) -> None:
        """Train the epochs that are left; a checkpoint and the learning curve are written after each validation.

        Args:
            state_file: of the checkpoint; the curve lies beside it.
            progress: told of stages, fractions and the epochs' figures.
        """
        progress.stage("Reading cases")
        if self.epoch < self.request.epochs:
            self.read_cases(progress)
            progress.stage("Training")
        while self.epoch < self.request.epochs:
            row = self.run_epoch(progress)
            if self.validation_due():
                self.save(state_file)
                write_curve(self.history, self.labels, state_file.parent)
                progress.message(_epoch_text(row, self.request.epochs))

    def run_epoch(self, progress: Progress) -> dict[str, float]:
        """Train on every case once; validate when it is due. The epoch's row of the learning curve."""
        started = time.monotonic()
        sampler = Sampler(self._training, self.plan.patch, self.plan.mirror_axes, self.classes, self.request.seed)
        order = sampler.order(self.epoch)
        self.network.train()
        total = 0.0
        steps = self.steps_per_epoch
        for step in range(steps):
            chosen = order[step * self.request.batch : (step + 1) * self.request.batch]
            images, labels = zip(*(sampler.sample(self.epoch, i) for i in chosen), strict=True)
            total += self._step(torch.stack(images), torch.stack(labels), self.epoch * steps + step)
            progress.fraction((self.epoch + (step + 1) / steps) / self.request.epochs)
        self.epoch += 1
        row: dict[str, float] = {"epoch": self.epoch, "loss": total / steps}
        if self.validation_due():
            self._validate(row)
        self.seconds += time.monotonic() - started
        row["seconds"] = self.seconds
        self.history.append(row)
        return row

    def _step(self, images: torch.Tensor, labels: torch.Tensor, number: int) -> float:
        rate = learning_rate(number, self.steps_per_epoch * self.request.epochs, self.request.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            logits = self.network(images.to(self.device))
        loss = self.loss(logits.float(), labels.to(self.device))
        if not torch.isfinite(loss):
            raise BadInput(
                f"The training diverged in step {number} (the loss is {float(loss)}).",
                "The learning rate is too high, or a case holds extreme values.",
                "Lower --learning-rate, or look at the images.",
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        decay = min(EMA_DECAY, (1 + number) / (10 + number))  # the average forgets the random start quickly
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)
            for mean, now in zip(self.average.buffers(), self.network.buffers(), strict=True):
                mean.copy_(now)
        return float(loss.detach())

    def _validate(self, row: dict[str, float]) -> None:
        if not self._validation:  # fold -1: the last weights are kept
            self._keep()
            return
        self.average.eval()
        scores = [self._dice(image, label) for image, label in self._validation]
        for i, name in enumerate(self.labels):
            row[f"dice_{name}"] = _mean([s[i] for s in scores])
        row["validation_dice"] = _mean([row[f"dice_{name}"] for name in self.labels])
        if math.isnan(self.best_dice) or row["validation_dice"] > self.best_dice:
            self.best_dice = row["validation_dice"]
            self._keep()

    def _dice(self, image: torch.Tensor, label: torch.Tensor) -> list[float]:
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None),
        ):
            logits: Any = self.inferer(image[None].to(self.device), self.average)
        found = logits[0].argmax(dim=0).cpu()
        out = []
        for value in range(1, self.classes):
            a, b = found == value, label[0] == value
            size = int(a.sum() + b.sum())
            out.append(2 * int((a & b).sum()) / size if size else math.nan)
        return out

    def _keep(self) -> None:
        self.best_epoch = self.epoch
        self._best = {k: v.detach().cpu().clone() for k, v in self.average.state_dict().items()}

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
        """Write the checkpoint, whole or not at all."""
        state = {
            "version": __version__,
            "request": json.dumps(_identity(self.request)),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self._best,
            "best_dice": self.best_dice,
            "best_epoch": self.best_epoch,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "history": json.dumps(self.history),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same request.

        Raises:
            BadInput: the checkpoint was made with other settings.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        before, now = json.loads(state["request"]), _identity(self.request)
        changed = [k for k in now if before.get(k) != now[k]]
        if changed:
            raise BadInput(
                f"The checkpoint was made with {changed[0]} = {before.get(changed[0])}, not {now[changed[0]]}.",
                "A resumed training keeps its settings.",
                "Use the same settings, or another output folder.",
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self._best = {k: v.cpu() for k, v in state["best"].items()}
        self.best_dice, self.best_epoch = float(state["best_dice"]), int(state["best_epoch"])
        self.epoch, self.seconds = int(state["epoch"]), float(state["seconds"])
        self.history = json.loads(state["history"])


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to zero (Loshchilov 2017)."""
    warmup = min(_WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _identity(request: TrainSegmentationRequest) -> dict[str, Any]:
    """The settings that must not change between a checkpoint and its resumption."""
    ignored = {"resume", "output", "device", "threads", "dataset", "describe"}
    return {k: v for k, v in dataclasses.asdict(request).items() if k not in ignored}


def _mean(values: Sequence[float]) -> float:
    """Mean of the defined values; a label absent from prediction and reference says nothing."""
    defined = [v for v in values if not math.isnan(v)]
    return sum(defined) / len(defined) if defined else math.nan


def _epoch_text(row: dict[str, float], epochs: int) -> str:
    text = f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.4f}"
    if "validation_dice" in row:
        dice = ", ".join(f"{k.removeprefix('dice_')} {v:.4f}" for k, v in row.items() if k.startswith("dice_"))
        text += f"  validation Dice {row['validation_dice']:.4f} ({dice})"
    return f"{text}  {row['seconds']:.0f} s"


def require_fresh(folder: Path, state_file: Path, resume: bool) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        return
    if resume and state_file.exists():
        return
    if resume:
        raise BadInput(
            f"{folder} holds no checkpoint to resume.",
            "The training finished, or was never started there.",
            "Leave out --resume and name a new folder.",
        )
    raise BadInput(
        f"{folder} already holds files.",
        "An earlier training wrote there." if state_file.exists() else "",
        "Go on with --resume, or name another folder." if state_file.exists() else "Name another folder.",
    )


def require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackage(
            "The package matplotlib is not installed.", "It draws the learning curve.", "Run: pip install matplotlib"
        ) from error

"""The task "train deepstaple": atlases and unlabelled targets in; their consensus, theta, and a network out.

Atlases are registered to every target (and kept in the cache), theta is learned over all targets, the consensus labels
are written, and the segmentation module's training makes a MONAI bundle of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from .. import bundle_parts, charts, checkpoint, images
from ..device import resolve
from ..errors import BadInput
from ..files import replace_file
from ..geometry import Grid, from_array
from ..progress import Progress
from ..segmentation import bundle_writer
from ..segmentation.dataset import Case, Dataset, Split, fingerprint, split_cases
from ..segmentation.plan import Plan, make_plan
from ..segmentation.requests import TrainSegmentationRequest
from ..segmentation.training import Trainer
from ..tables import write_csv
from . import atlas_sets, sources
from .atlas_labels import Common
from .cache import Cache, default_folder
from .data_parameters import consensus_weights
from .deepstaple import Learner, Settings, learn, vote
from .deepstaple_targets import (
    Target,
    TargetFile,
    find_targets,
    noisy,
    register_all,
    true_labels,
    view_size,
)
from .requests import TrainDeepStapleRequest
from .theta_picture import draw

#: Classes of the networks, for images and for volumes; None is the segmentation module's own.
NETWORKS: dict[str, dict[int, str] | None] = {
    "lraspp2d": {2: "MLILib.segmentation.lraspp.LRASPP2D", 3: "MLILib.segmentation.lraspp.LRASPPSlices"},
    "lraspp3d": {3: "MLILib.segmentation.lraspp.LRASPP3D"},
    "unet": None,
}
#: Enlargement of slices before the planar network, which works at an eighth of the resolution (Weihsbach 2022).
ENLARGE = 2.0
#: Feature maps of the first level of the segmentation module's own network.
FILTERS = 16
#: Steps between two checkpoints while theta is learned.
SAVE_EVERY = 25
#: Peak learning rate of the network on the consensus.
CONSENSUS_RATE = 0.003


def run(request: TrainDeepStapleRequest, progress: Progress) -> dict[str, Any]:
    """Train as `request` says; see :class:`MLILib.fusion.requests.TrainDeepStapleRequest`.

    Returns:
        What :func:`MLILib.segmentation.bundle_writer.write_bundle` does, and: targets, atlases, theta (file of the
        table), consensus (folder), spearman (of theta and true Dice, pooled over all targets, and within: its mean over
        targets; None without truth), consensus_dice (mean over labels and targets; None without truth).

    Raises:
        BadInput: targets, atlases or labels that cannot be used, or an output folder that already holds something.
        MLIError: no atlas could be registered to any target.
    """
    charts.require_matplotlib()
    bundle_parts.read_words(request.describe)  # a mistake in it is told now, not after the training
    folder = Path(request.output)
    state_file = folder / "training" / "checkpoint.pt"
    checkpoint.require_fresh(folder, state_file, request.resume)
    device = resolve(request.device)

    progress.stage("Reading")
    files, kept_aside = _parted(find_targets(request.targets), request)
    found = atlas_sets.read(request.atlases)
    opened = sources.opened(found, {}, progress)
    # what is wrong with true labels is said before hours of registration
    truths = {one.name: true_labels(one, opened.common, _grid(one)) for one in (*files, *kept_aside)}

    state = _State(state_file, request)
    if request.resume:
        state.load(device)
    state.save()  # from here on it can be resumed
    progress.stage("Registering atlases to targets")
    targets = register_all(
        files,
        opened.sources,
        opened.common.labels,
        registration=request.registration,
        kept=Cache(request.cache or default_folder()),
        device=request.device,
        seed=request.seed,
        trust=request.trust,
        progress=progress,
    )
    dataset = _dataset(request, opened.common, [t.file for t in targets])
    plan = _plan(request, dataset)
    learner = _learn(targets, plan, request, device, state, progress)

    progress.stage("Writing the consensus")
    table = _table(targets, learner.theta(), truths)
    made = _write_consensus(folder / "training", targets, learner.theta(), truths)
    _write_theta(folder / "training", table, state.curve)
    split = _split(folder / "training", dataset, made, kept_aside, truths, request)

    trainer = Trainer(_segmentation_request(request), dataset, split, device, plan)
    network_file = folder / "training" / "network.pt"
    if request.resume and network_file.exists():
        trainer.load(network_file)
        progress.message(f"Going on after epoch {trainer.epoch} of {request.network_epochs}.")
    trainer.fit(network_file, progress)
    progress.stage("Writing the bundle")
    figures = _figures(table, made)
    description = dataclasses.replace(
        trainer.description(),
        seconds=trainer.seconds + state.seconds,
        command=dataclasses.replace(request, **_portable(request)).command(),
        story=_story(targets, opened.common, figures, request),
    )
    result = bundle_writer.write_bundle(folder, trainer.best_weights(), description, progress)
    for file in (state_file, network_file):
        file.unlink()
    text = f"{result['text']}\n{_text(figures, targets)}"
    return {**result, **figures, "targets": len(targets), "atlases": len(opened.sources),
            "theta": str(folder / "training" / "theta.csv"), "consensus": str(folder / "training" / "consensus"),
            "seconds": description.seconds, "text": text}  # fmt: skip


class _State:
    """What a killed training goes on from, while theta is learned: the learner, its curve and the time spent.

    Args:
        file: of the checkpoint; its folder is made.
        request: whose settings must not change.
    """

    def __init__(self, file: Path, request: TrainDeepStapleRequest) -> None:
        self._file = file
        self._identity = _identity(request)
        self.pairs: list[list[str]] = []
        self.learner: Mapping[str, Any] = {}
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "pairs": json.dumps(self.pairs),
            "learner": self.learner,
            "curve": json.dumps(self.curve),
            "seconds": self.seconds,
        }
        checkpoint.save(self._file, self._identity, state)

    def load(self, device: torch.device) -> None:
        """Read the checkpoint of the same request.

        Raises:
            BadInput: it was made with other settings.
        """
        state = checkpoint.load(self._file, self._identity, device)
        self.pairs = json.loads(state["pairs"])
        self.learner = state["learner"]
        self.curve = json.loads(state["curve"])
        self.seconds = float(state["seconds"])


def _learn(
    targets: Sequence[Target],
    plan: Plan,
    request: TrainDeepStapleRequest,
    device: torch.device,
    state: _State,
    progress: Progress,
) -> Learner:
    """Learn theta, or what is left of it."""
    progress.stage("Learning whom to trust")
    views = [noisy(one, plan.spacing) for one in targets]
    pairs = [[one.file.name, *one.raters.names] for one in targets]
    if state.learner and state.pairs != pairs:
        raise BadInput(
            "The targets or atlases are not those of the checkpoint.",
            "Files were added or removed, or another atlas failed.",
            "Restore them, or train into another folder.",
        )
    torch.manual_seed(request.seed)
    network = bundle_parts.instantiate(plan.network)
    settings = Settings(
        steps=math.ceil(request.epochs * len(targets) / request.batch),
        batch=request.batch,
        learning_rate=request.learning_rate,
        theta_learning_rate=request.theta_learning_rate,
        scheme=request.scheme,
        risk=request.risk,
    )
    classes = len(targets[0].raters.labels) + 1
    learner = Learner(views, classes, network, view_size(views), settings, device, request.seed)
    if state.learner:
        learner.restore(state.learner)
        progress.message(f"Going on after step {learner.done} of {settings.steps}.")
    state.pairs = pairs
    while learner.done < settings.steps:
        started = time.monotonic()
        state.curve += learn(learner, progress, until=learner.done + SAVE_EVERY)
        state.seconds += time.monotonic() - started
        state.learner = learner.state()
        state.save()
    return learner


def _parted(files: Sequence[TargetFile], request: TrainDeepStapleRequest) -> tuple[list[TargetFile], list[TargetFile]]:
    """Targets to learn on, and those kept aside to measure the final model on."""
    if request.fold < 0:
        return list(files), []
    labelled = [one for one in files if one.labels]
    if not labelled:
        raise BadInput("No target has true labels to measure on.", "A fold was to be kept aside.", "Leave out --fold.")
    cases = tuple(Case(one.name, (one.image,), one.labels) for one in labelled)
    aside = {case.name for case in split_cases(_plain(cases), request.fold, request.folds).test}
    return [one for one in files if one.name not in aside], [one for one in files if one.name in aside]


def _plain(cases: tuple[Case, ...], labels: tuple[str, ...] = (), **words: str) -> Dataset:
    return Dataset(
        name=words.get("name", ""), description=words.get("description", ""), reference=words.get("reference", ""),
        licence="", channels=("image",), labels=labels, cases=cases,
    )  # fmt: skip


def _dataset(request: TrainDeepStapleRequest, common: Common, files: Sequence[TargetFile]) -> Dataset:
    """The targets as a data set; their label files come later."""
    names = tuple(one.name for one in common.labels)
    return _plain(
        tuple(Case(one.name, (one.image,), "") for one in files),
        names,
        name=Path(request.output).name,
        description=f"Segmentation of {', '.join(names)}, learned from registered atlases.",
        reference=f"Images of {Path(request.targets).name}; labels of {Path(request.atlases).name}, brought to them.",
    )


def _plan(request: TrainDeepStapleRequest, dataset: Dataset) -> Plan:
    """Patch, spacing and network, the same for both trainings."""
    plan = make_plan(dataset, fingerprint(dataset.cases), FILTERS)
    classes = NETWORKS[request.network]
    if classes is None:
        return plan
    if plan.dimensions not in classes:
        raise BadInput(
            f"The network {request.network} takes volumes, and the targets are images.", "", "Choose lraspp2d or unet."
        )
    network: dict[str, Any] = {
        "_target_": classes[plan.dimensions],
        "in_channels": len(dataset.channels),
        "out_channels": len(dataset.labels) + 1,
    }
    if request.network == "lraspp2d":
        network["enlarge"] = ENLARGE
    return dataclasses.replace(plan, network=network, reasons=plan.reasons[:2])


def _grid(file: TargetFile) -> Grid:
    return Grid.of(images.read(file.image))


def _table(
    targets: Sequence[Target],
    theta: Sequence[npt.NDArray[np.float64]],
    truths: Mapping[str, npt.NDArray[np.int64] | None],
) -> list[dict[str, Any]]:
    """One row a label map: target, atlas, theta, weight in the vote, and true Dice (None without truth)."""
    rows = []
    for target, values in zip(targets, theta, strict=True):
        weights = consensus_weights(torch.from_numpy(values)).numpy()
        truth = truths[target.file.name]
        for i, atlas in enumerate(target.raters.names):
            dice = None if truth is None else mean_dice(target.raters.stack[i], truth, len(target.raters.labels) + 1)
            rows.append({"target": target.file.name, "atlas": atlas, "theta": float(values[i]),
                         "weight": float(weights[i]), "dice": dice})  # fmt: skip
    return rows


@dataclasses.dataclass(frozen=True)
class _Made:
    """A consensus that was written: its target, its indices, its true Dice (None without truth)."""

    target: Target
    indices: npt.NDArray[Any]
    dice: float | None


def _write_consensus(
    folder: Path,
    targets: Sequence[Target],
    theta: Sequence[npt.NDArray[np.float64]],
    truths: Mapping[str, npt.NDArray[np.int64] | None],
) -> list[_Made]:
    """The consensus of every target, in the atlases' label values, in the folder "consensus"."""
    (folder / "consensus").mkdir(parents=True, exist_ok=True)
    made = []
    for target, values in zip(targets, theta, strict=True):
        raters = target.raters
        found = vote(raters, values, raters.whole())
        truth = truths[target.file.name]
        dice = None if truth is None else mean_dice(found.indices, truth, len(raters.labels) + 1)
        images.write(raters.image(found.indices), str(folder / "consensus" / f"{target.file.name}.nii.gz"))
        made.append(_Made(target, found.indices, dice))
    return made


def mean_dice(found: npt.NDArray[Any], truth: npt.NDArray[Any], classes: int) -> float:
    """Mean over the labels of their Dice with the truth; a label that neither has says nothing."""
    both = np.bincount((truth.ravel().astype(np.int64) * classes + found.ravel()), minlength=classes**2)
    joint = both.reshape(classes, classes)
    size = (joint.sum(axis=0) + joint.sum(axis=1))[1:]
    drawn = size > 0
    if not drawn.any():
        return math.nan
    return float((2 * np.diag(joint)[1:][drawn] / size[drawn]).mean())


def _write_theta(folder: Path, table: Sequence[Mapping[str, Any]], curve: Sequence[Mapping[str, float]]) -> None:
    """theta.csv, theta_curve.csv, and both as a picture."""
    write_csv(folder / "theta.csv", table)
    write_csv(folder / "theta_curve.csv", curve)
    replace_file(folder / "theta.png", lambda path: draw(table, curve, path))


def _split(
    folder: Path,
    dataset: Dataset,
    made: Sequence[_Made],
    kept_aside: Sequence[TargetFile],
    truths: Mapping[str, npt.NDArray[np.int64] | None],
    request: TrainDeepStapleRequest,
) -> Split:
    """Cases of the network on the consensus: label files numbered 1, 2, ... as networks want them.

    The training cases, and the few that choose the checkpoint, have the consensus; those kept aside have the truth.
    """
    (folder / "labels").mkdir(parents=True, exist_ok=True)

    def case(file: TargetFile, indices: npt.NDArray[Any], grid: Grid) -> Case:
        path = folder / "labels" / f"{file.name}.nii.gz"
        kind = np.uint8 if len(dataset.labels) < 256 else np.uint16
        images.write(from_array(indices.astype(kind), grid), str(path))
        return Case(file.name, (file.image,), str(path))

    learned = tuple(case(one.target.file, one.indices, one.target.raters.grid) for one in made)
    test = tuple(case(one, truth, _grid(one)) for one in kept_aside if (truth := truths[one.name]) is not None)
    if request.fold < 0 or len(learned) < 4:
        return Split(learned, (), test)
    inner = split_cases(dataclasses.replace(dataset, cases=learned), 0, len(learned) - 2)
    return Split((*inner.training, *inner.test), inner.validation, test)


def _segmentation_request(request: TrainDeepStapleRequest) -> TrainSegmentationRequest:
    """What is asked of the segmentation module: the network on the consensus."""
    return TrainSegmentationRequest(
        dataset=request.targets,
        output=request.output,
        fold=request.fold,
        folds=request.folds,
        epochs=request.network_epochs,
        device=request.device,
        seed=request.seed,
        filters=FILTERS,
        batch=request.batch,
        learning_rate=CONSENSUS_RATE,
        amp=request.network == "unet" or resolve(request.device).type != "cpu",  # see Learner
        describe=request.describe,
    )


def _figures(table: Sequence[Mapping[str, Any]], made: Sequence[_Made]) -> dict[str, Any]:
    """What is known of theta and the consensus where the truth is known."""
    known = [row for row in table if row["dice"] is not None]
    within = []
    for name in dict.fromkeys(row["target"] for row in known):
        rows = [row for row in known if row["target"] == name]
        within.append(correlation([row["theta"] for row in rows], [row["dice"] for row in rows]))
    defined = [one for one in within if not math.isnan(one)]
    dice = [one.dice for one in made if one.dice is not None and not math.isnan(one.dice)]
    pooled = correlation([row["theta"] for row in known], [row["dice"] for row in known])
    return {
        "spearman": bundle_parts.or_none(pooled),
        "spearman_within": float(np.mean(defined)) if defined else None,
        "consensus_dice": float(np.mean(dice)) if dice else None,
        "atlas_dice": float(np.mean([row["dice"] for row in known])) if known else None,
    }


def correlation(theta: Sequence[float], dice: Sequence[float]) -> float:
    """Spearman's rank correlation; nan where it is not defined."""
    if len(theta) < 2 or len(set(theta)) == 1 or len(set(dice)) == 1:
        return math.nan
    return float(spearmanr(theta, dice).statistic)


def _text(figures: Mapping[str, Any], targets: Sequence[Target]) -> str:
    pairs = sum(len(one.raters) for one in targets)
    text = f"theta of {pairs} registered label maps on {len(targets)} targets"
    if figures["consensus_dice"] is not None:
        text += f"; consensus Dice {figures['consensus_dice']:.4f}, one atlas {figures['atlas_dice']:.4f}"
    if figures["spearman"] is not None:
        text += f"; Spearman of theta and true Dice {figures['spearman']:.3f}"
    return text


def _story(
    targets: Sequence[Target], common: Common, figures: Mapping[str, Any], request: TrainDeepStapleRequest
) -> tuple[str, ...]:
    """How the labels came about, for the card."""
    atlases = len({name for one in targets for name in one.raters.names})
    values = [one.value for one in common.labels]
    lines = [
        f"labels: DeepSTAPLE consensus (Weihsbach 2022, {request.scheme}) of {atlases} atlases, registered by "
        f"{Path(request.registration).name} to {len(targets)} targets, whose own labels took no part",
        f"{_text(figures, targets)}; by label map in `training/theta.csv`",
    ]
    if values != list(range(1, len(values) + 1)):
        numbers = ", ".join(f"{i} for {value}" for i, value in enumerate(values, 1))
        lines.append(f"the network's labels are numbered anew: {numbers}")
    return tuple(lines)


def _portable(request: TrainDeepStapleRequest) -> dict[str, Any]:
    """Paths by their last parts, for a command that can be repeated elsewhere."""
    short = bundle_parts.portable(request.targets, request.output, request.describe)
    return {
        "targets": short["dataset"],
        "atlases": bundle_parts.portable(request.atlases, "", "")["dataset"],
        "output": short["output"],
        "describe": short["describe"],
        "resume": False,
        "registration": Path(request.registration).name,
    }


def _identity(request: TrainDeepStapleRequest) -> dict[str, Any]:
    """The settings that must not change between a checkpoint and its resumption."""
    return checkpoint.identity(request, "targets", "atlases", "trust", "cache")

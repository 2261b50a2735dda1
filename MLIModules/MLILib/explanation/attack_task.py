"""The task "attack": an image changed a little so that a model errs, with what it costs against epsilon.

The change is found on the network's grid, in the image's own intensity units, and brought back to the image's grid;
what the model makes of the written image, read and preprocessed again, is told, too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn
from torch.nn import functional

from .. import device as devices
from .. import files, geometry, images, record
from ..errors import BadInput, OutOfMemory
from ..geometry import Grid
from ..progress import Progress
from . import aims, room
from .attack import Attack, CrossEntropy, fgsm, pgd
from .attack_curve import Measure, accuracy, attack_curve, dice, linear_argument
from .choices import Choice, choices, chosen
from .intensity import InImageUnits, Units, units
from .requests import AttackRequest, check_point
from .subject import Place, Subject, load, make

#: Points of the curve beside 0, unless the user gives others.
_POINTS = 8


class Inner(nn.Module):
    """A network of windows as one of the part of a window that is image: what lies around it is padding.

    Args:
        network: takes windows as the preprocessing leaves them.
        units: of the image.
        padding: voxels before and after along each axis.
        mode, value: how the padding is filled.
    """

    def __init__(
        self, network: nn.Module, units: Units, padding: Sequence[tuple[int, int]], mode: str, value: float
    ) -> None:
        super().__init__()
        self.seen = InImageUnits(nn.Identity(), units)
        self.network = network
        self.padding = [n for pair in reversed(padding) for n in pair]
        self.inner = tuple(slice(a, -b if b else None) for a, b in padding)
        self.mode, self.value = mode, value
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, C, *shape) in the image's units to logits, (N, K) or (N, K, *shape)."""
        seen = self.seen(image)
        if any(self.padding):
            value = self.value if self.mode == "constant" else None
            seen = functional.pad(seen, self.padding, mode=self.mode, value=value)
        output = self.network(seen)
        return output[(slice(None), slice(None), *self.inner)] if output.ndim == image.ndim else output


@dataclasses.dataclass(frozen=True, eq=False)
class _Scene:
    """What is attacked: the part of the window that is image, (1, C, *shape), and where it lies."""

    network: Inner
    clean: torch.Tensor
    inside: Place
    units: Units
    truth: torch.Tensor
    wanted: torch.Tensor
    told: str
    measure: Measure


def run(request: AttackRequest, progress: Progress) -> dict[str, Any]:
    """Do what the request says: read, attack, write.

    Returns:
        What stands in :class:`MLILib.explanation.requests.AttackRequest`.

    Raises:
        MLIError: what a user can act on; nothing is written then.
    """
    started = time.monotonic()
    _require_names(request)
    device = devices.resolve(request.device)
    memory = record.PeakMemory(str(device))
    progress.stage("Reading")
    pictures = [images.read(path) for path in request.images]
    progress.stage("Loading the model")
    model = load(request.model, request.trust)
    if model.bundle.kind == "regression":
        raise BadInput(f"The model {model.bundle.name} gives numbers.", "An attack needs classes or labels.",
                       "Choose a classifier or a segmentation model.")  # fmt: skip
    progress.stage("Preparing")
    point = check_point(request.point)
    subject = make(pictures, request.images, model, device, crop=request.crop, point=point)
    if not subject.dense and (request.prediction or request.prediction_before):
        raise BadInput(f"The model {model.bundle.name} names images and draws no labels.", "",
                       "Leave out --prediction and --prediction-before.")  # fmt: skip
    room.require(subject, "attack")
    try:
        scene = _scene(subject, request, point)
        progress.stage("Attacking")
        attack = _attack(request, scene)
        loss = CrossEntropy(scene.wanted)
        attacked = attack(scene.network, scene.clean, loss, request.epsilon)
        points = request.curve or tuple(request.epsilon * i / _POINTS for i in range(_POINTS + 1))
        curve = attack_curve(
            scene.network, scene.clean, scene.truth, loss, sorted(set(points)),
            measure=scene.measure, attack=attack, progress=progress,
        )  # fmt: skip
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"Memory ran out: an attack on a window of {' x '.join(map(str, subject.window))} voxels needs more than "
            "is free.",
            "",
            "Give a smaller window with --crop, close other programs, or crop the image.",
        ) from error
    progress.stage("Looking at the result")
    with torch.no_grad():
        outputs = [scene.network(one) for one in (attacked.clean, attacked.perturbed)]
    before, after = (float(scene.measure(output, scene.truth)[0]) for output in outputs)
    difference = torch.zeros((model.channels, *subject.size))
    difference[(slice(None), *scene.inside)] = attacked.difference[0].cpu()
    added = sitk.GetArrayFromImage(subject.on_grid(difference)).astype(np.float32)
    clean = _array(pictures)
    perturbed = clean + added
    again = make(_pictures(perturbed, pictures), request.images, model, device, crop=request.crop, point=point)
    labels = None
    if subject.dense:
        labels = again.predicted()
        shown = _one_hot(labels[scene.inside], model.classes).to(outputs[0])
        after_file = float(scene.measure(shown, scene.truth)[0])
    else:
        with torch.no_grad():
            after_file = float(scene.measure(again.network(again.padded[None].to(device)), scene.truth)[0])
    sums = [float(scene.units.scale.abs().mean()), *scene.units.scale.tolist()]
    window = subject.padded[(slice(None), *subject.places[0])][None].to(device)
    linear = linear_argument(subject.network, window, request.epsilon * sums[0])
    numbers: dict[str, Any] = {
        "epsilon": request.epsilon,
        "method": request.method,
        "measure": "Dice" if subject.dense else "accuracy",
        "before": before,
        "after": after,
        "after_file": after_file,
        "loss_before": float(attacked.loss_before[0]),
        "loss_after": float(attacked.loss_after[0]),
        "classes_before": [] if subject.dense else _classes(subject, outputs[0]),
        "classes_after": [] if subject.dense else _classes(subject, outputs[1]),
        "largest_change": float(np.abs(added).max()),
        "curve": {
            "epsilons": [p.epsilon for p in curve],
            "values": [p.mean for p in curve],
            "losses": [p.loss for p in curve],
        },
        "linear": dataclasses.asdict(linear)
        | {
            "text": f"A unit of the first layer ({linear.layer}) sums over n = {linear.inputs} inputs with a mean "
            f"weight of m = {linear.weight:.3g}: epsilon m n = {linear.change:.3g}, where noise of the same size would "
            f"do {linear.noise:.3g}."
        },
        "scale": sums[1:],
        "truth": scene.told,
    }
    warnings = []
    if scene.clean[0, 0].numel() < math.prod(subject.size):
        warnings.append("The image is larger than the network's window: only the window was attacked.")
    noted = _write(request, subject, numbers, warnings, memory, progress, (perturbed, clean, added), labels)
    progress.fraction(1.0)
    return {
        "output": request.output,
        "difference": request.difference,
        "clean": request.clean,
        "prediction": request.prediction,
        "prediction_before": request.prediction_before,
        "record": noted,
        **numbers,
        "device": devices.describe(device),
        "seconds": time.monotonic() - started,
        "stages": progress.finish(),
        "warnings": warnings,
        "model": {"name": model.bundle.name, "sha256": model.bundle.sha256},
        "text": text(numbers, warnings),
    }


def _require_names(request: AttackRequest) -> None:
    for path, what in (
        (request.output, "the perturbed image"),
        (request.difference, "the difference"),
        (request.clean, "the clean image"),
        (request.prediction, "the labels"),
        (request.prediction_before, "the labels"),
    ):
        if path:
            images.require_suffix(path, images.WRITABLE, what)
    beside = record.path_beside(request.output)
    if Path(beside).resolve() in {Path(path).resolve() for path in request.inputs()}:
        raise BadInput(
            f"{beside} is an input and would be overwritten.", "The record goes there.", "Give another name."
        )


def _scene(subject: Subject, request: AttackRequest, point: Sequence[float] | None) -> _Scene:
    known = units(subject)
    if known is None:
        raise BadInput(
            f"Epsilon has no meaning in this image's intensities for the model {subject.bundle.name}.",
            "Its preprocessing does more to them than scaling and shifting.",
            "Choose a model whose preprocessing scales and shifts.",
        )
    post = subject.model.post or subject.model.default_post
    if subject.dense and post.decision == "threshold" and subject.model.classes > 1:
        raise BadInput(
            f"The labels of the model {subject.bundle.name} may overlap.",
            "The attack's loss needs labels that do not.", "Choose another model.",
        )  # fmt: skip
    if point is not None and subject.dense:
        centre = subject.voxel_at(point)
    else:
        centre = tuple(n // 2 for n in subject.size)
        if subject.dense and len(subject.places) > 1:
            centre = aims.find(subject, "").centre
    place = subject.place_around(centre)
    padding, inside = [], []
    for part, n, (before, _) in zip(place, subject.size, subject.padding, strict=True):
        first, last = max(part.start - before, 0), min(part.stop - before, n)
        inside.append(slice(first, last))
        padding.append((first - part.start + before, part.stop - before - last))
    seen = subject.prepared.image[(slice(None), *inside)][None].to(subject.device)
    tiling = subject.tiling
    network = Inner(
        subject.network, known, padding,
        tiling.padding_mode if tiling is not None else "constant", tiling.cval if tiling is not None else 0.0,
    )  # fmt: skip
    clean = known.to_image(seen)
    with torch.no_grad():
        output = network(clean)
    truth, told = _truth(subject, request, output, tuple(inside))
    wanted = _wanted(subject, request, truth)
    return _Scene(network, clean, tuple(inside), known, truth, wanted, told, dice if subject.dense else accuracy)


def _truth(subject: Subject, request: AttackRequest, output: torch.Tensor, inside: Place) -> tuple[torch.Tensor, str]:
    """Channels, (1, *shape) or (1,)."""
    if not request.truth:
        own = (output[:, 0] > 0).long() if output.shape[1] == 1 else output.argmax(1)
        return own, "the model's own prediction"
    if not subject.dense:
        return torch.tensor([chosen(subject.bundle, request.truth).channel]), "the given class"
    files.require_input(request.truth, name="truth")
    given = images.read(request.truth)
    if given.GetDimension() != subject.grid.dimension:
        raise BadInput(f"{request.truth} is {given.GetDimension()}-D, the image {subject.grid.dimension}-D.", "",
                       "Give labels of the image.")  # fmt: skip
    labels = subject.label_map(given)[inside][None]
    known = {choice.value: _channel(subject, choice) for choice in choices(subject.bundle)} | {0: 0}
    strange = set(torch.unique(labels).tolist()) - set(known)
    if strange:
        raise BadInput(
            f"{request.truth} has the label {min(strange)}, which the model {subject.bundle.name} does not know.",
            f"It knows {', '.join(f'{c.value} {c.name}' for c in choices(subject.bundle))}.",
            "Give labels with the model's values.",
        )
    channels = torch.zeros_like(labels)
    for value, channel in known.items():
        channels[labels == value] = channel
    return channels, "the given labels"


def _channel(subject: Subject, choice: Choice) -> int:
    """As the loss counts: a lone foreground is 1."""
    return choice.value if subject.dense and subject.model.classes == 1 else choice.channel


def _wanted(subject: Subject, request: AttackRequest, truth: torch.Tensor) -> torch.Tensor:
    """What the loss is of: the truth, or what the attack aims at."""
    if not request.aim:
        return truth
    channel = _channel(subject, chosen(subject.bundle, request.aim))
    if not subject.dense:
        return torch.full_like(truth, channel)
    return torch.full_like(truth, 0) if channel == 0 else torch.where(truth > 0, channel, truth)


def _attack(request: AttackRequest, scene: _Scene) -> Attack:
    bounds = (float(scene.clean.min()), float(scene.clean.max())) if request.clip else None
    targeted = bool(request.aim)
    if request.method == "fgsm":
        return functools.partial(fgsm, targeted=targeted, bounds=bounds)
    return functools.partial(pgd, steps=request.steps, seed=request.seed, targeted=targeted, bounds=bounds)


def _classes(subject: Subject, output: torch.Tensor) -> list[dict[str, Any]]:
    shares = aims.probabilities(subject, output[0].cpu()).tolist()
    return [
        {"value": c.value, "name": c.name, "probability": shares[c.channel]} for c in choices(subject.bundle)
    ]  # fmt: skip


def _one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(1, K, *shape) logits that stand for labels; of a lone foreground its one channel."""
    if classes == 1:
        return (labels.float() - 0.5)[None, None]
    return functional.one_hot(labels, classes).movedim(-1, 0)[None].float()


def _array(pictures: Sequence[sitk.Image]) -> np.ndarray:
    arrays = [sitk.GetArrayFromImage(picture).astype(np.float32) for picture in pictures]
    return arrays[0] if len(arrays) == 1 else np.stack(arrays, -1)


def _image(array: np.ndarray, grid: Grid) -> sitk.Image:
    return geometry.from_array(np.ascontiguousarray(array), grid, vector=array.ndim > grid.dimension)


def _pictures(array: np.ndarray, like: Sequence[sitk.Image]) -> list[sitk.Image]:
    parts = [array] if len(like) == 1 else list(np.moveaxis(array, -1, 0))
    return [_image(part, Grid.of(like[0])) for part in parts]


def _write(
    request: AttackRequest,
    subject: Subject,
    numbers: dict[str, Any],
    warnings: Sequence[str],
    memory: record.PeakMemory,
    progress: Progress,
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
    labels: torch.Tensor | None,
) -> str:
    """Write everything; the record's file name."""
    progress.stage("Writing")
    perturbed, clean, added = arrays
    beside = record.path_beside(request.output)
    with files.Outputs() as written:
        for path, array in ((request.output, perturbed), (request.difference, added), (request.clean, clean)):
            if path:
                image = _image(array, subject.grid)
                images.write(image, written.path(path), final=path, compress=request.compress)
        for path, found in ((request.prediction, labels), (request.prediction_before, None)):
            if path:
                shown = subject.predicted() if found is None else found
                image = subject.labels_on_grid(_values(subject, shown))
                images.write(image, written.path(path), final=path, compress=request.compress)
        noted = record.make(
            request, models=[subject.bundle], device=devices.describe(subject.device), stages=progress.stages,
            peak_memory=memory.bytes(), warnings=warnings, results=numbers,
        )  # fmt: skip
        record.write(noted, written.path(beside))
    return beside


def _values(subject: Subject, channels: torch.Tensor) -> torch.Tensor:
    """Values of the label map for channels; those of a lone foreground are its values already."""
    if subject.model.classes == 1:
        return channels
    values = torch.zeros_like(channels)
    for choice in choices(subject.bundle):
        values[channels == choice.channel] = choice.value
    return values


def text(numbers: dict[str, Any], warnings: Sequence[str]) -> str:
    """For a terminal."""
    lines = [
        f"{numbers['method'].upper()} with epsilon {numbers['epsilon']:g}: {numbers['measure']} with "
        f"{numbers['truth']} {numbers['before']:.3f} before, {numbers['after']:.3f} after "
        f"({numbers['after_file']:.3f} from the written image).",
    ]
    for before, after in zip(numbers["classes_before"], numbers["classes_after"], strict=True):
        lines.append(f"  {before['name']}: probability {before['probability']:.3f}, then {after['probability']:.3f}")
    lines.append(f"{'epsilon':>10}  {numbers['measure']:>8}  {'loss':>8}")
    curve = numbers["curve"]
    for epsilon, value, loss in zip(curve["epsilons"], curve["values"], curve["losses"], strict=True):
        lines.append(f"{epsilon:>10.4g}  {value:>8.3f}  {loss:>8.3f}")
    return "\n".join([*lines, numbers["linear"]["text"], *warnings])

"""Explaining one image: the method on the windows that the answer comes from, and the map on the image's own grid.

Example, in a script::

    found = explain(sitk.ReadImage("head.nii.gz"), "hippocampus", method="gradient", target="anterior")
    sitk.WriteImage(found.image, "map.nii.gz")
    print(found.text())
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from .. import device as devices
from .. import images
from ..errors import BadInput, OutOfMemory
from ..progress import Progress
from . import aims, fields, room
from .aims import Aim
from .attribution import Found, Part, Settings, attribute, baseline_of
from .badges import badges
from .cam import activation_maps
from .codes import code_of
from .deepdream import deepdream
from .intensity import units
from .inversion import invert
from .layer_table import default_layer
from .layers import find_layer
from .methods import METHODS
from .requests import ExplainRequest, check_point
from .room import Room
from .subject import Place, Subject, load, make

#: Steps of integrated gradients to begin with, the completeness error that is good enough, and where it ends.
_STEPS, _COMPLETE, _MOST = 50, 0.01, 800

#: Methods whose map of a sum is the sum of the maps, so that windows are explained one by one and added up.
_ADDED = frozenset(
    ("gradient", "gradient-x-input", "integrated-gradients", "smoothgrad", "deconvnet", "guided-backpropagation",
     "grad-cam", "guided-grad-cam")
)  # fmt: skip


@dataclasses.dataclass(eq=False)
class Explanation:
    """Why a model says what it says.

    Attributes:
        image: the map on the grid of what was explained, float32.
        request: what was asked.
        subject: model and image.
        aim: what is explained.
        layer: that was looked at, "" for none.
        total: sum of the map on the network's grid.
        error: completeness error of integrated gradients, None for other methods.
        steps: of integrated gradients, None for other methods.
        parts: of an ablation, with their names.
        curve: title, x and y, of inversion; None for other methods.
        windows: how many went through the network.
        room: memory, said beforehand.
        receptive_field: see :func:`MLILib.explanation.fields.boxes`; None without a point.
        warnings: what a reader should know.
    """

    image: sitk.Image
    request: ExplainRequest
    subject: Subject
    aim: Aim
    layer: str
    total: float
    error: float | None
    steps: int | None
    parts: tuple[tuple[Part, str], ...]
    curve: dict[str, Any] | None
    windows: int
    room: Room
    receptive_field: dict[str, Any] | None
    warnings: list[str]

    def plain(self) -> dict[str, Any]:
        """The numbers, see :class:`MLILib.explanation.requests.ExplainRequest`."""
        method = METHODS[self.request.method]
        aim = self.aim
        score = None
        if aim.choice is not None:
            score = next((row["score"] for row in aim.prediction if row["value"] == aim.choice.value), None)
        return {
            "method": self.request.method,
            "title": method.title,
            "shows": method.shows,
            "source": method.source,
            "makes": method.makes,
            "signed": method.signed,
            "components": self.image.GetNumberOfComponentsPerPixel(),
            "badge": badges(self.subject.bundle)[self.request.method],
            "target": {
                "kind": aim.kind,
                "label": aim.choice.value if aim.choice is not None else None,
                "name": aim.choice.name if aim.choice is not None else "",
                "text": aim.text,
                "score": score,
                "voxels": aim.voxels,
                "point_ras": list(aim.point) if aim.point is not None else None,
            },
            "prediction": [dict(row) for row in aim.prediction],
            "layer": self.layer,
            "unit": self.request.unit if self.request.unit >= 0 else None,
            "display": display(self.image, method.signed) | {"sum": self.total},
            "completeness_error": self.error,
            "steps": self.steps,
            "parts": [{"part": p.part, "name": name, "fall": p.fall} for p, name in self.parts],
            "curve": self.curve,
            "windows": self.windows,
            "window": list(self.subject.window),
            "receptive_field": self.receptive_field,
            "memory": {"estimated": self.room.estimated, "free": self.room.free},
        }

    def text(self) -> str:
        """For a terminal."""
        method = METHODS[self.request.method]
        shown = display(self.image, method.signed)
        lines = [f"{method.title} ({method.source}): {method.shows}", f"Explained: {self.aim.text}."]
        if self.layer:
            lines.append(f"Layer: {self.layer}.")
        for row in self.aim.prediction:
            told = f"probability {row['probability']:.3f}" if "probability" in row else ""
            told = told or (f"{row['voxels']:,} voxels" if "voxels" in row else f"score {row['score']:.4g}")
            lines.append(f"  {row['value']} {row['name']}: {told}")
        lines.append(f"Map from {shown['minimum']:.4g} to {shown['maximum']:.4g}; sum {self.total:.4g}.")
        if self.error is not None:
            lines.append(f"Completeness error: {self.error:.2%} with {self.steps} steps.")
        for part, name in sorted(self.parts, key=lambda pair: -pair[0].fall)[:12]:
            lines.append(f"  without {name}: the score falls by {part.fall:.4g}")
        if self.receptive_field:
            for kind, box in self.receptive_field.items():
                if box is not None:
                    lines.append(f"Receptive field, {kind}: {' x '.join(map(str, box['voxels']))} voxels.")
        lines.append(f"Believable? {badges(self.subject.bundle)[self.request.method]} (mli explain-check tests it).")
        return "\n".join([*lines, *self.warnings])


def explain(
    image: sitk.Image | Sequence[sitk.Image],
    model: str,
    *,
    point: Sequence[float] | None = None,
    region: sitk.Image | None = None,
    regions: sitk.Image | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Explanation:
    """Explain a model's answer for an image in memory.

    Args:
        image: scalar image, 2-D or 3-D; several on one grid for a model with several channels.
        model: name, folder or zip of a bundle.
        point: RAS millimetres.
        region: mask.
        regions: label map, for the method "ablation-regions".
        progress: told of stages and fractions.
        **settings: those of :class:`MLILib.explanation.requests.ExplainRequest` beside files, such as method, target,
            layer, steps.

    Raises:
        BadInput: as the request and the methods.
        OutOfMemory: the volume is too large for the method.
    """
    pictures = [image] if isinstance(image, sitk.Image) else list(image)
    names = ["The image"] if len(pictures) == 1 else [f"Image {i + 1}" for i in range(len(pictures))]
    request = ExplainRequest.from_json({"images": names, "model": model, "output": "map.nrrd", **settings})
    return explain_as(request, pictures, names, point, region, regions, progress or Progress())


def explain_as(
    request: ExplainRequest,
    pictures: Sequence[sitk.Image],
    names: Sequence[str],
    point: Sequence[float] | None,
    region: sitk.Image | None,
    regions: sitk.Image | None,
    progress: Progress,
) -> Explanation:
    """As :func:`explain`, with what a request says; its files are given as images."""
    method = METHODS[request.method]
    device = devices.resolve(request.device)
    progress.stage("Loading the model")
    loaded = load(request.model, request.trust)
    progress.stage("Preparing")
    subject = make(pictures, names, loaded, device, crop=request.crop, point=point, region=region)
    if request.layer:
        find_layer(subject.network, request.layer)  # a mistake in it is told first
    unit = request.unit if request.unit >= 0 else None
    free = room.require(subject, request.method, unit=unit)
    progress.stage("Predicting")
    try:
        aim = (
            aims.find(subject, request.target, point=point, region=region)
            if method.target
            else aims.none(subject, point)
        )
        layer = _layer(subject, request) if method.layer else ""
        progress.stage("Explaining")
        if method.target:
            made = _attributed(subject, aim, request, layer, regions, progress)
        else:
            made = _made(subject, aim, request, layer, unit, free, progress)
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"Memory ran out: {request.method} on a window of {' x '.join(map(str, subject.window))} voxels needs more "
            "than is free.",
            str(error).splitlines()[0] if str(error) else "",
            "Give a smaller window with --crop, close other programs, or crop the image.",
        ) from error
    field = None
    if request.field and aim.kind == "voxel":
        progress.stage("Finding the receptive field")
        field = fields.boxes(subject, aim)
    progress.stage("Bringing the map back")
    return Explanation(
        subject.on_grid(made.maps, outside=made.outside), request, subject, aim, layer, made.total, made.error,
        made.steps, made.parts, made.curve, made.windows, free, field, made.warnings,
    )  # fmt: skip


@dataclasses.dataclass
class _Made:
    """Maps (C, *size of the prepared image), and what is said of them."""

    maps: torch.Tensor
    total: float
    windows: int
    warnings: list[str]
    error: float | None = None
    parts: tuple[tuple[Part, str], ...] = ()
    curve: dict[str, Any] | None = None
    outside: float = 0.0
    steps: int | None = None


def _layer(subject: Subject, request: ExplainRequest) -> str:
    if request.layer:
        return request.layer
    image = torch.zeros((1, subject.model.channels, *subject.window), device=subject.device)
    found = default_layer(subject.network, image)
    if not found:
        raise BadInput(
            f"The network of the model {subject.bundle.name} has no layer with a grid.", "",
            "Choose a method that looks at no layer.",
        )  # fmt: skip
    return found


def settings_of(request: ExplainRequest, layer: str, steps: int) -> Settings:
    """What the methods take of a request."""
    return Settings(
        layer, steps, request.samples, request.noise, request.occlusion_window, request.occlusion_stride, request.seed
    )


def _attributed(
    subject: Subject, aim: Aim, request: ExplainRequest, layer: str, regions: sitk.Image | None, progress: Progress
) -> _Made:
    padded = subject.padded
    base = subject.with_padding(baseline_of(subject.prepared.image[None], request.baseline, request.blur)[0])
    warnings: list[str] = []
    names: dict[int, str] = {}
    wanted: torch.Tensor | None = None
    if request.method == "ablation-regions":
        assert regions is not None
        wanted, names = _regions(subject, regions)
    if request.method in _ADDED:
        todo = list(aim.parts(subject))
    else:
        place, target, inside = aim.focused(subject)
        todo = [(place, target)]
        if inside < aim.voxels:
            warnings.append(
                f"The image is larger than the network's window: {inside:,} of the label's {aim.voxels:,} voxels lie "
                "in the one window that was explained, round their middle."
            )
    steps = request.steps or _STEPS
    while True:
        settings = settings_of(request, layer, steps)
        total: torch.Tensor | None = None
        difference = 0.0
        parts: tuple[Part, ...] = ()
        for number, (place, target) in enumerate(todo):
            progress.fraction(number / len(todo))
            window, nothing = (whole[(slice(None), *place)][None].to(subject.device) for whole in (padded, base))
            some = None if wanted is None else wanted[(slice(None), *place)][None]
            found: Found = attribute(
                request.method, subject.network, window, target, nothing, settings, regions=some,
                progress=progress if len(todo) == 1 else None,
            )  # fmt: skip
            one = found.map[0].detach().cpu()
            if total is None:
                total = torch.zeros((len(one), *padded.shape[1:]))
            total[(slice(None), *place)] += one
            difference += found.difference or 0.0
            parts = found.parts
        assert total is not None
        summed = float(total.double().sum())
        error = None
        if request.method == "integrated-gradients":
            gap = abs(summed - difference)
            error = gap / abs(difference) if difference else (0.0 if gap == 0 else None)
        if request.steps or error is None or error < _COMPLETE or steps >= _MOST:
            break
        steps *= 2
        progress.message(f"The map misses the score's difference by {error:.1%}: {steps} steps.")
    if len(todo) > 1:
        warnings.append(f"The answer comes from {len(todo)} windows, whose maps were added up.")
    named = tuple((part, names.get(part.part, _part_name(request.method, subject, part))) for part in parts)
    return _Made(
        unpadded(total, subject), summed, len(todo), warnings, error, named, steps=None if error is None else steps
    )


def _part_name(method: str, subject: Subject, part: Part) -> str:
    if method == "ablation-channels":
        return f"the channel {subject.bundle.channels[part.part]}"
    return f"feature map {part.part}" if method == "ablation-features" else f"region {part.part}"


def _regions(subject: Subject, regions: sitk.Image) -> tuple[torch.Tensor, dict[int, str]]:
    """The label map on the padded image, (1, *shape), and its regions' names."""
    found = subject.label_map(regions)
    if not bool(found.any()):
        raise BadInput("The regions do not meet the image.", "The label map is 0 there.", "Draw some inside the image.")
    flat = [n for pair in reversed(subject.padding) for n in pair]
    return torch.nn.functional.pad(found, flat)[None], {0: "what lies in no region"}


def _made(
    subject: Subject, aim: Aim, request: ExplainRequest, layer: str, unit: int | None, free: Room, progress: Progress
) -> _Made:
    """What a layer makes of one window: its maps, or an image."""
    place = subject.place_around(aim.centre)
    padded = subject.padded
    window = padded[(slice(None), *place)][None].to(subject.device)
    warnings = []
    if window.shape[2:] != padded.shape[1:]:
        warnings.append(
            "The image is larger than the network's window: one window was looked at, round "
            + ("the point." if aim.point is not None else "the middle of the image.")
        )
    if request.method == "activations":
        code = code_of(subject.network, window, layer).shape
        if unit is not None and unit >= code[1]:
            raise BadInput(
                f"The layer {layer!r} has no feature map {unit}.", "", f"Choose one from 0 to {code[1] - 1}."
            )
        if unit is None:
            room.require(subject, request.method, layer_channels=code[1])
        maps = activation_maps(subject.network, window, layer)[0].cpu()
        maps = maps if unit is None else maps[unit : unit + 1]
        whole = torch.zeros((len(maps), *padded.shape[1:]))
        whole[(slice(None), *place)] = maps
        return _Made(unpadded(whole, subject), float(whole.double().sum()), 1, warnings)
    low, high = float(padded.min()), float(padded.max())
    curve = None
    if request.method == "inversion":
        wanted = code_of(subject.network, window, layer).detach()
        found = invert(
            subject.network, wanted, layer, window.shape[1:], prior=request.prior,  # type: ignore[arg-type]
            center=float(window.mean()), spread=float(window.std()), steps=request.steps or 300, seed=request.seed,
            progress=progress,
        )  # fmt: skip
        image, whole = found.image, torch.full_like(padded, low)
        curve = {"title": "error of the code", "x": list(range(len(found.errors))), "y": list(found.errors)}
    else:
        multiple = 2 ** max(1, round(np.log2(max(max(window.shape[2:]) // 8, 1))))
        dream = deepdream(
            subject.network, window, layer, unit=unit, steps=request.steps or 20, octaves=request.octaves,
            multiple=1 if request.octaves == 1 else min(multiple, 16), step_size=request.step_size * (high - low),
            bounds=(low, high), seed=request.seed, progress=progress,
        )  # fmt: skip
        image, whole = dream.image, padded.clone()
        curve = {"title": "answer of the layer", "x": [0, 1], "y": [dream.before, dream.after]}
    whole = whole.clone()
    whole[(slice(None), *place)] = image[0].detach().cpu()
    known = units(subject)
    if known is None:
        warnings.append("The preprocessing cannot be undone for intensities: the image is as the network sees it.")
    else:
        whole = known.to_image(whole[None])[0]
    outside = float(whole.min())
    return _Made(unpadded(whole, subject), float(whole.double().sum()), 1, warnings, curve=curve, outside=outside)


def unpadded(maps: torch.Tensor, subject: Subject) -> torch.Tensor:
    """(C, *size) of (C, *size with padding)."""
    inner: Place = tuple(slice(b, b + n) for (b, _), n in zip(subject.padding, subject.size, strict=True))
    return maps[(slice(None), *inner)]


def display(image: sitk.Image, signed: bool) -> dict[str, float]:
    """A robust window for a map: 1 voxel of 200 is beyond it; symmetric round 0 if `signed`."""
    values = sitk.GetArrayViewFromImage(image)
    low, high = float(values.min()), float(values.max())
    if signed:
        lit = np.abs(values[values != 0])
        limit = float(np.percentile(lit, 99.5)) if lit.size else 1.0
        return {"low": -limit, "high": limit, "minimum": low, "maximum": high}
    lit = values[values != low]
    top = float(np.percentile(lit, 99.5)) if lit.size else low + 1.0
    return {"low": low, "high": top, "minimum": low, "maximum": high}


def read_inputs(
    request: ExplainRequest,
) -> tuple[list[sitk.Image], tuple[float, ...] | None, sitk.Image | None, sitk.Image | None]:
    """The images, the point, the region and the regions of a request."""
    pictures = [images.read(path) for path in request.images]
    region = images.read(request.region) if request.region else None
    regions = images.read(request.regions) if request.regions else None
    for other, what in ((region, "region"), (regions, "regions")):
        if other is not None and other.GetDimension() != pictures[0].GetDimension():
            raise BadInput(
                f"The {what} are {other.GetDimension()}-D, the image {pictures[0].GetDimension()}-D.", "",
                "Draw them on the image.",
            )  # fmt: skip
    return pictures, check_point(request.point), region, regions

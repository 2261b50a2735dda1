"""The task "explain-check": can a model's explanations be believed, on one image or many, beside two controls.

Each case is looked at in the one window of the network round its target; numbers are means over the cases.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch
from torch import nn

from .. import device as devices
from .. import files, images
from ..errors import BadInput
from ..progress import Progress
from . import aims, room
from .attribution import Settings, attribute, baseline_of
from .belief import LIMIT, Verdict, reason, sensitivity, verdict
from .controls import edge_map, random_map
from .deletion import PerturbationCurve, chance, perturbation_curves
from .gradients import integrated_gradients
from .layer_table import default_layer
from .layers import find_layer
from .methods import EDGES, METHODS, NOT_TESTED, REACTS
from .randomisation import Method, label_randomisation
from .requests import ExplainCheckRequest, check_point
from .scoring import Score
from .subject import load, make
from .targets import ClassScore, LabelSum, Target

#: Steps of integrated gradients whose completeness is told.
_STEPS = 50

_KINDS = ("deletion", "insertion")


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One image, as the methods take it.

    Attributes:
        image: (1, C, *window).
        baseline: of the same shape, what stands for nothing.
        target: what is explained, fixed by the trained network.
        score: what the curves show.
        text: of the target, for a reader.
    """

    image: torch.Tensor
    baseline: torch.Tensor
    target: Target
    score: Score
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Probability:
    """What the curves show of a classifier or segmenter: the probability, of a label the mean over its region.

    Attributes:
        target: a class' score or a label's sum with a region.
        exclusive: whether classes or labels exclude each other.
    """

    target: ClassScore | LabelSum
    exclusive: bool

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """(N, ...) to (N,)."""
        shares = output.softmax(1) if self.exclusive and output.shape[1] > 1 else output.sigmoid()
        found = self.target(shares)
        if isinstance(self.target, LabelSum):
            assert self.target.region is not None
            return found / (self.target.region != 0).sum().to(found)
        return found


def run(request: ExplainCheckRequest, progress: Progress) -> dict[str, Any]:
    """Do what the request says: read, test, write.

    Returns:
        What stands in :class:`MLILib.explanation.requests.ExplainCheckRequest`.

    Raises:
        MLIError: what a user can act on; nothing is written then.
    """
    started = time.monotonic()
    device = devices.resolve(request.device)
    progress.stage("Loading the model")
    model = load(request.model, request.trust)
    bundle = model.bundle
    if len(request.images) % model.channels:
        raise BadInput(
            f"The model {bundle.name} takes {model.channels} images a case, and {len(request.images)} were given.",
            "",
            "Give each case's images one after the other.",
        )
    network = model.network(device)
    untaught = _untaught(request, network, device)
    progress.stage("Preparing")
    cases, layer, warnings = [], request.layer, []
    for first in range(0, len(request.images), model.channels):
        names = request.images[first : first + model.channels]
        pictures = [images.read(path) for path in names]
        case, network, layer = _case(request, pictures, names, device, layer)
        cases.append(case)
        progress.fraction(len(cases) / (len(request.images) // model.channels))
    if not _tests_layers(request.methods):
        layer = ""
    progress.stage("Testing")
    found = check(
        network,
        cases,
        request.methods,
        Settings(layer=layer, steps=request.steps, samples=request.steps, seed=request.seed),
        draws=request.draws,
        layers=request.layers,
        curve_steps=request.curve_steps,
        radius=request.radius,
        noise_draws=request.noise_draws,
        untaught=untaught,
        seed=request.seed,
        progress=progress,
    )
    if len(cases) == 1:
        warnings.append("One case says nothing of chance: give several for the p-values of the curves.")
    result: dict[str, Any] = {
        **found,
        "cases": len(cases),
        "targets": [case.text for case in cases],
        "layer": layer,
        "warnings": warnings,
        "device": devices.describe(device),
        "model": {"name": bundle.name, "sha256": bundle.sha256},
        "command": request.command(),
    }
    if request.output:
        progress.stage("Writing")
        with files.Outputs() as written:
            text = json.dumps(result, indent=1, allow_nan=False) + "\n"
            Path(written.path(request.output)).write_text(text, encoding="utf-8")
    return {
        **result,
        "output": request.output,
        "seconds": time.monotonic() - started,
        "stages": progress.finish(),
        "text": table(result),
    }


def _tests_layers(methods: Sequence[str]) -> bool:
    return any(METHODS[name].layer for name in methods)


def _case(
    request: ExplainCheckRequest,
    pictures: Sequence[sitk.Image],
    names: Sequence[str],
    device: torch.device,
    layer: str,
) -> tuple[Case, nn.Module, str]:
    point = check_point(request.point)
    subject = make(pictures, names, load(request.model, request.trust), device, crop=request.crop, point=point)
    room.require(subject, "gradient")
    aim = aims.find(subject, request.target, point=point)
    place, target, _ = aim.focused(subject)
    window = subject.padded[(slice(None), *place)][None].to(device)
    nothing = subject.with_padding(baseline_of(subject.prepared.image[None], request.baseline, 4.0)[0])
    base = nothing[(slice(None), *place)][None].to(device)
    if layer:
        find_layer(subject.network, layer)
    elif _tests_layers(request.methods):
        layer = default_layer(subject.network, window)
    score: Score = target
    if isinstance(target, ClassScore | LabelSum):
        post = subject.model.post or subject.model.default_post
        score = Probability(target, exclusive=post.activation != "sigmoid")
    return Case(window, base, target, score, aim.text), subject.network, layer


def _untaught(request: ExplainCheckRequest, network: nn.Module, device: torch.device) -> nn.Module | None:
    if not request.untaught:
        return None
    other = load(request.untaught, request.trust).network(device)
    shapes = [[tuple(p.shape) for p in one.parameters()] for one in (network, other)]
    if shapes[0] != shapes[1]:
        raise BadInput(
            f"The model {request.untaught} has another network than {request.model}.",
            "It should be the same, trained on random labels.",
            "Train it with the same settings, and --shuffle.",
        )
    return other


def check(
    network: nn.Module,
    cases: Sequence[Case],
    methods: Sequence[str],
    settings: Settings,
    *,
    draws: int = 2,
    layers: int = 6,
    curve_steps: int = 16,
    radius: float = 0.02,
    noise_draws: int = 3,
    untaught: nn.Module | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Test methods on cases.

    Args:
        network: in evaluation mode, trained.
        cases: one or more.
        methods: their names.
        settings: of the methods; the layer must be there where one looks at a layer.
        draws: how often the weights are drawn anew.
        layers: after how many layers of the cascade the map is made again; 0 after each.
        curve_steps: of deletion and insertion; 0 leaves them out.
        radius: largest change by noise, a share of an image's range.
        noise_draws: of the sensitivity; 0 leaves it out.
        untaught: the same network trained on random labels.
        seed: of weights, noise and controls.
        progress: told how far it is.

    Returns:
        "methods" and "controls" as :class:`MLILib.explanation.requests.ExplainCheckRequest` says.
    """
    progress = progress or Progress()
    controls: dict[str, Callable[[Case, int], torch.Tensor]] = {
        "random map": lambda case, index: random_map(case.image, seed + index),
        "edge detector": lambda case, _: edge_map(case.image),
    }
    baselines = {
        name: _curves(network, cases, lambda case, index, make=make: make(case, index), curve_steps)  # type: ignore[misc]
        for name, make in controls.items()
    }
    rows = []
    for number, name in enumerate(methods):
        progress.fraction(number / len(methods))
        began = time.monotonic()
        try:
            rows.append(
                _row(name, network, cases, settings, draws, layers, curve_steps, radius, noise_draws, untaught, seed,
                     baselines, progress)
            )  # fmt: skip
        except BadInput as error:
            rows.append(_untested(name, str(error)))
        rows[-1]["spent"] = time.monotonic() - began
    progress.fraction(1.0)
    told = [
        {"title": name, "left": 0.0 if name == "random map" else 1.0, **_plain_curves(baselines[name], None)}
        for name in controls
    ]
    return {"methods": rows, "controls": told}


def _row(
    name: str,
    network: nn.Module,
    cases: Sequence[Case],
    settings: Settings,
    draws: int,
    layers: int,
    curve_steps: int,
    radius: float,
    noise_draws: int,
    untaught: nn.Module | None,
    seed: int,
    baselines: dict[str, dict[str, list[PerturbationCurve]]],
    progress: Progress,
) -> dict[str, Any]:
    def mapper(case: Case) -> Method:
        return lambda net, image: attribute(name, net, image, case.target, case.baseline, settings).map

    began = time.monotonic()
    maps = [mapper(case)(network, case.image) for case in cases]
    seconds = (time.monotonic() - began) / len(cases)
    verdicts: list[Verdict] = []
    refused: BadInput | None = None
    for case in cases:
        progress.check_cancelled()
        try:
            verdicts.append(verdict(network, case.image, mapper(case), draws=draws, measured=layers, seed=seed))
        except BadInput as error:  # an empty map, such as Grad-CAM's where nothing speaks for the score
            refused = error
    if not verdicts:
        assert refused is not None
        raise refused
    left = _mean([v.left for v in verdicts])
    badge = EDGES if left >= LIMIT else REACTS
    steady = None
    if noise_draws:
        each = [
            sensitivity(
                network,
                case.image,
                mapper(case),
                radius * float(case.image.max() - case.image.min()),
                draws=noise_draws,
                seed=seed,
            )
            for case, one in zip(cases, maps, strict=True)
            if bool(one.any())
        ]
        steady = {
            "radius": radius,
            "largest": _mean([s.largest[0] for s in each]),
            "correlation": _mean([s.correlation[0] for s in each]),
        }
    labels = None
    if untaught is not None:
        labels = _mean([label_randomisation(network, untaught, c.image, mapper(c))[1] for c in cases])
    incomplete = None
    if name == "integrated-gradients":
        incomplete = _mean(
            [
                float(integrated_gradients(network, c.image, c.target, baseline=c.baseline, steps=_STEPS).error[0])
                for c in cases
            ]
        )
    ours = _curves(network, cases, lambda case, index: maps[index], curve_steps)
    return {
        "method": name,
        "title": METHODS[name].title,
        "badge": badge,
        "reason": reason(left),
        "left": left,
        "end": _mean([v.end for v in verdicts]),
        "edges": _mean([v.edges for v in verdicts]),
        "chance": _mean([v.chance for v in verdicts]),
        "layers": [
            {
                "layer": one.layer,
                "signed": _mean([v.layers[i].signed for v in verdicts]),
                "magnitude": _mean([v.layers[i].magnitude for v in verdicts]),
            }
            for i, one in enumerate(verdicts[0].layers)
        ],
        "labels": labels,
        "completeness_error": incomplete if incomplete is None or math.isfinite(incomplete) else None,
        **_plain_curves(ours, baselines),
        "sensitivity": steady,
        "seconds": seconds,
    }


def _untested(name: str, why: str) -> dict[str, Any]:
    empty = ("left", "end", "edges", "chance", "labels", "completeness_error", "deletion", "insertion", "sensitivity")
    told = {"method": name, "title": METHODS[name].title, "badge": NOT_TESTED, "reason": why, "layers": []}
    return {**told, **dict.fromkeys(empty), "seconds": None}


def _curves(
    network: nn.Module, cases: Sequence[Case], maps: Callable[[Case, int], torch.Tensor], steps: int
) -> dict[str, list[PerturbationCurve]]:
    """Of each kind, a curve each case; {} for no steps."""
    if not steps:
        return {}
    found: dict[str, list[PerturbationCurve]] = {kind: [] for kind in _KINDS}
    for index, case in enumerate(cases):
        one = maps(case, index)
        for kind in _KINDS:
            found[kind] += perturbation_curves(
                network, case.image, one, case.score, kind=kind, steps=steps, fill=case.baseline  # type: ignore[arg-type]
            )  # fmt: skip
    return found


def _plain_curves(
    curves: dict[str, list[PerturbationCurve]], controls: dict[str, dict[str, list[PerturbationCurve]]] | None
) -> dict[str, Any]:
    """ "deletion" and "insertion" as JSON holds them; None where there are no curves."""
    found: dict[str, Any] = dict.fromkeys(_KINDS)
    for kind, each in curves.items():
        areas = [curve.area for curve in each]
        row: dict[str, Any] = {
            "fractions": list(each[0].fractions),
            "scores": [_mean(list(values)) for values in zip(*(curve.scores for curve in each), strict=True)],
            "area": _mean(areas),
            "areas": areas,
        }
        for key, control in (("p_random", "random map"), ("p_edges", "edge detector")):
            row[key] = None
            if controls is not None and len(each) > 1:
                others = [curve.area for curve in controls[control][kind]]
                row[key] = chance(areas, others, smaller=kind == "deletion")
        found[kind] = row
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def table(result: dict[str, Any]) -> str:
    """The verdicts as lines for a terminal."""
    head = ("METHOD", "VERDICT", "LEFT", "EDGES", "DELETION", "p RANDOM", "p EDGES", "INSERTION", "NOISE", "COMPLETE")
    rows = [head]
    for row in result["methods"]:
        gone, back, steady = row["deletion"] or {}, row["insertion"] or {}, row["sensitivity"] or {}
        rows.append(
            (
                row["title"],
                row["badge"],
                _number(row["left"]),
                _number(row["edges"]),
                _number(gone.get("area")),
                _small(gone.get("p_random")),
                _small(gone.get("p_edges")),
                _number(back.get("area")),
                _number(steady.get("correlation")),
                "" if row["completeness_error"] is None else f"{row['completeness_error']:.2%}",
            )
        )
    for row in result["controls"]:
        gone, back = row["deletion"] or {}, row["insertion"] or {}
        rows.append(
            (f"({row['title']})", "control", _number(row["left"]), "", _number(gone.get("area")), "", "",
             _number(back.get("area")), "", "")
        )  # fmt: skip
    wide = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            f"{text:<{w}}" if i < 2 else f"{text:>{w}}" for i, (text, w) in enumerate(zip(row, wide, strict=True))
        )
        for row in rows
    ]
    untested = [f"{row['title']}: {row['reason']}" for row in result["methods"] if row["badge"] == NOT_TESTED]
    explained = [
        "",
        f"{result['cases']} case{'s' * (result['cases'] != 1)} of the model {result['model']['name']}"
        + (f", layer {result['layer']}" if result["layer"] else "")
        + ".",
        "LEFT: rank correlation of the map with what it was, mean while the weights are drawn anew from output to "
        f"input; {LIMIT:g} and more is an edge detector's. EDGES: with the image's edges.",
        "DELETION (less is better) and INSERTION (more is better): area under the curve; p: chance of a deletion that "
        "much better than the control's.",
        "NOISE: rank correlation of the map with that of a noisy image. COMPLETE: how far integrated gradients are "
        "from adding up.",
    ]
    return "\n".join([*(line.rstrip() for line in lines), *explained, *untested, *result["warnings"]])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"

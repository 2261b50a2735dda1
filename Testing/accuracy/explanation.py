"""What explanations of the shipped models are worth: verdicts, deletion beside controls, completeness, attacks, time.

Run::

    python Testing/accuracy/explanation.py chest|hippocampus [--cases N] [--methods NAME ...] [--json OUT.json]

Cases are those that had no part in the training: validation images of PneumoniaMNIST, drawn with a fixed seed, and the
hippocampus cases that were kept aside, in their order. The area under the deletion curve is that of the probability of
the class (of a label the mean over its predicted region): less is better. p is Wilcoxon's, one-sided.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from MLILib import images
from MLILib.classification import medmnist
from MLILib.explanation import aims
from MLILib.explanation.attack import CrossEntropy, fgsm
from MLILib.explanation.attack_curve import accuracy, attack_curve, dice
from MLILib.explanation.attribution import Settings, attribute, baseline_of
from MLILib.explanation.check import Case, Probability, check, table
from MLILib.explanation.controls import edge_map, random_map
from MLILib.explanation.deletion import chance, perturbation_curves
from MLILib.explanation.gradients import integrated_gradients
from MLILib.explanation.layer_table import default_layer
from MLILib.explanation.methods import CHECKED_BY_DEFAULT
from MLILib.explanation.subject import Subject, load, make
from MLILib.explanation.targets import ClassScore, LabelSum

MODELS = {"chest": "chest-xray-28-classifier", "hippocampus": "hippocampus"}


def data_folder() -> Path:
    """MLI_DATA, or ../shared/data beside the project."""
    return Path(os.environ.get("MLI_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def pictures(which: str, count: int) -> list[sitk.Image]:
    """Images that nothing was trained or chosen on."""
    if which == "chest":
        part = medmnist.read(data_folder() / "pneumonia_mnist" / "pneumonia_mnist_train_val.npz", "val")
        assert part is not None
        return [part.image(int(i)) for i in np.random.default_rng(0).permutation(len(part))[:count]]
    from hippocampus import test_cases

    folder = data_folder() / "hippocampus" / "imagesTr"
    return [images.read(folder / f"{name}.nii.gz") for name in test_cases("hippocampus")[:count]]


def subjects(which: str, count: int, crop: tuple[int, ...]) -> list[Subject]:
    """The images as the model sees them."""
    model = load(MODELS[which], ())
    return [make([one], ["an image"], model, torch.device("cpu"), crop=crop) for one in pictures(which, count)]


def case(subject: Subject) -> Case:
    """What the model says of the image, in one window."""
    aim = aims.find(subject, "")
    place, target, _ = aim.focused(subject)
    assert isinstance(target, ClassScore | LabelSum)
    nothing = subject.with_padding(baseline_of(subject.prepared.image[None], "blur", 4.0)[0])
    window, base = (whole[(slice(None), *place)][None] for whole in (subject.padded, nothing))
    return Case(window, base, target, Probability(target, exclusive=True), aim.text)


def completeness(network: torch.nn.Module, cases: list[Case]) -> dict[str, Any]:
    """Errors with 50 steps, and with those that `mli explain` takes by default: doubled until below 1 %."""
    first, last, steps = [], [], []
    for one in cases:
        taken = 50
        found = integrated_gradients(network, one.image, one.target, baseline=one.baseline, steps=taken)
        first.append(float(found.error[0]))
        while float(found.error[0]) >= 0.01 and taken < 800:
            taken *= 2
            found = integrated_gradients(network, one.image, one.target, baseline=one.baseline, steps=taken)
        last.append(float(found.error[0]))
        steps.append(taken)
    return {
        "with 50 steps": {"median": statistics.median(first), "largest": max(first)},
        "by default": {"median": statistics.median(last), "largest": max(last), "steps": max(steps)},
    }


def attacks(which: str, network: torch.nn.Module, cases: list[Case]) -> dict[str, Any]:
    """FGSM against the model's own prediction; epsilon in standard deviations of the image."""
    epsilons = [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3]
    curves = []
    for one in cases:
        with torch.no_grad():
            truth = network(one.image).argmax(1)
        measure = accuracy if which == "chest" else dice
        curves.append(
            [
                point.mean
                for point in attack_curve(
                    network, one.image, truth, CrossEntropy(truth), epsilons, measure=measure, attack=fgsm
                )
            ]
        )
    means = np.mean(curves, axis=0).tolist()
    falls = all(b <= a for a, b in itertools.pairwise(means))
    return {"epsilons": epsilons, "means": means, "monotone on average": falls}


def seconds(network: torch.nn.Module, one: Case, layer: str, methods: tuple[str, ...]) -> dict[str, float]:
    """Of one map of each method, warm: the best of three, of one for methods that take many passes of a volume."""
    found = {}
    for name in methods:
        settings = Settings(layer=layer)
        tries = 3 if name not in ("smoothgrad", "integrated-gradients") or one.image.numel() < 10_000 else 1
        spent = []
        for _ in range(tries):
            began = time.perf_counter()
            attribute(name, network, one.image, one.target, one.baseline, settings)
            spent.append(time.perf_counter() - began)
        found[name] = min(spent)
    return found


def curves(
    network: torch.nn.Module, cases: list[Case], methods: tuple[str, ...], settings: Settings, steps: int
) -> dict[str, Any]:
    """Deletion alone: the area of each case, of each method and control, and p of the methods beside the controls."""

    def areas(make: Any) -> list[float]:
        return [
            perturbation_curves(network, c.image, make(i, c), c.score, steps=steps, fill=c.baseline)[0].area
            for i, c in enumerate(cases)
        ]

    controls = {
        "random map": areas(lambda i, c: random_map(c.image, i)),
        "edges": areas(lambda _, c: edge_map(c.image)),
    }
    told: dict[str, Any] = {name: {"areas": each, "mean": statistics.fmean(each)} for name, each in controls.items()}
    for name in methods:
        ours = areas(
            lambda _, c, name=name: attribute(name, network, c.image, c.target, c.baseline, settings).map  # type: ignore[misc]
        )
        told[name] = {"areas": ours, "mean": statistics.fmean(ours)}
        told[name] |= {f"p, {other}": chance(ours, each) for other, each in controls.items()}
    return {"curves": told}


def measure(
    which: str, count: int, methods: tuple[str, ...], parts: tuple[str, ...], crop: tuple[int, ...] = ()
) -> dict[str, Any]:
    """The figures that are asked for: "check", "curves", "completeness", "attacks", "seconds"."""
    looked_at = subjects(which, count, crop)
    network = looked_at[0].network
    cases = [case(one) for one in looked_at]
    layer = default_layer(network, cases[0].image)
    result: dict[str, Any] = {"model": {"name": MODELS[which]}, "cases": count, "layer": layer, "warnings": []}
    heavy = which == "hippocampus"
    steps = 8 if heavy else 16
    settings = Settings(layer=layer, steps=steps, samples=steps)
    if "check" in parts:
        result |= check(
            network, cases, methods, settings, draws=1, layers=4 if heavy else 8,
            curve_steps=0 if "curves" not in parts else 8 if heavy else 16, noise_draws=0,
        )  # fmt: skip
    elif "curves" in parts:
        result |= curves(network, cases, methods, settings, 8 if heavy else 16)
    if "completeness" in parts:
        result["completeness"] = completeness(network, cases)
    if "attacks" in parts:
        result["attacks"] = attacks(which, network, cases)
    if "seconds" in parts:
        result["seconds"] = seconds(network, cases[0], layer, methods)
    return result


def main() -> int:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=tuple(MODELS))
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--methods", nargs="+", default=CHECKED_BY_DEFAULT)
    parser.add_argument("--parts", nargs="+", default=("check", "curves", "completeness", "attacks", "seconds"))
    parser.add_argument("--crop", type=int, nargs="+", default=(), help="window, as of mli explain")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = measure(given.which, given.cases, tuple(given.methods), tuple(given.parts), tuple(given.crop))
    if "methods" in result:
        print(table(result))
    for part in ("curves", "completeness", "attacks", "seconds"):
        if part in result:
            print(f"{part}: {json.dumps(result[part])}")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

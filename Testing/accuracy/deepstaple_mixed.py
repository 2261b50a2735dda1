"""DeepSTAPLE on registrations of mixed quality, beside majority vote and STAPLE on the same region.

Run: ``python Testing/accuracy/deepstaple_mixed.py [OUT.json] [--targets N] [--atlases N] [--cache FOLDER]``. Atlases
and targets are different hippocampi. How each atlas is registered is drawn by chance: by the preset deformable, by an
affine map alone, by a deformation of few steps, or by the preset and then moved some millimetres off. True labels of
targets are only measured with.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from scipy.stats import wilcoxon

from MLILib.bundle_parts import instantiate
from MLILib.fusion.deepstaple import SCHEMES, Learner, Settings, learn, vote
from MLILib.fusion.deepstaple_targets import Target, TargetFile, noisy, view_size
from MLILib.fusion.deepstaple_training import FILTERS, correlation, mean_dice
from MLILib.fusion.propagation import Outcome
from MLILib.fusion.raters import Region, raters
from MLILib.fusion.staple import staple
from MLILib.fusion.voting import majority
from MLILib.progress import Progress
from MLILib.registration import pairwise
from MLILib.segmentation.dataset import Case, read_dataset
from MLILib.segmentation.lraspp import LRASPP3D
from MLILib.segmentation.plan import unet

LABELS = {1: "anterior", 2: "posterior"}
#: How atlases are registered, and how often.
QUALITIES = {"deformable": 0.4, "affine": 0.25, "few steps": 0.15, "moved": 0.2}
SPACING = (1.0, 1.0, 1.0)
#: Around all labels, voxels: where STAPLE and the vote look.
MARGIN = 5
THREADS = 2
EPOCHS = 40
SETTINGS = Settings(steps=1)
#: How far the moved ones are off, mm.
OFF = (3.0, 7.0)


def data_folder() -> Path:
    """Where the hippocampus data lie: under MLI_DATA, or in ../shared/data beside the project."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("MLI_DATA", default)) / "hippocampus"


def chosen_cases(atlases: int, targets: int, development: bool) -> tuple[list[Case], list[Case]]:
    """Atlases, and targets to measure on; settings were chosen on other targets, the development ones."""
    cases = list(read_dataset(data_folder() / "dataset.json").cases)
    random.Random(0).shuffle(cases)
    rest = cases[40:]
    return cases[:atlases], (rest[-30:] if development else rest)[:targets]


def register(fixed: sitk.Image, moving: sitk.Image, quality: str, rng: np.random.Generator) -> sitk.Transform:
    """The transform from fixed to moving points, of the quality asked for."""
    if quality == "affine":
        return pairwise.register(fixed, moving, preset="affine", similarity="cc", device="cpu").transform
    if quality == "few steps":
        return pairwise.register(fixed, moving, stages=("deformable",), iterations=2, device="cpu").transform
    found = pairwise.register(fixed, moving, preset="deformable", device="cpu").transform
    if quality == "deformable":
        return found
    away = rng.normal(size=3)
    moved = sitk.TranslationTransform(3, [float(x) for x in away / np.linalg.norm(away) * rng.uniform(*OFF)])
    return sitk.CompositeTransform([found, moved])


def registered(atlases: Sequence[Case], targets: Sequence[Case], cache: Path | None) -> list[Target]:
    """Every target with every atlas, each of a quality drawn by chance that depends on the two names alone."""
    out = []
    for case in targets:
        image = sitk.ReadImage(case.images[0])
        maps, outcomes = [], []
        for atlas in atlases:
            rng = np.random.default_rng([int(c.name.split("_")[-1]) for c in (case, atlas)])
            quality = str(rng.choice(list(QUALITIES), p=list(QUALITIES.values())))
            file = None if cache is None else cache / f"{case.name}-{atlas.name}-{quality}.nii.gz"
            if file is not None and file.exists():
                warped = sitk.ReadImage(str(file))
            else:
                transform = register(image, sitk.ReadImage(atlas.images[0]), quality, rng)
                labels = sitk.Cast(sitk.ReadImage(atlas.label), sitk.sitkUInt8)
                warped = sitk.Resample(labels, image, transform, sitk.sitkNearestNeighbor, 0)
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    sitk.WriteImage(warped, str(file))
            maps.append(warped)
            outcomes.append(Outcome(atlas.name, reason=quality))
        found = raters(maps, [a.name for a in atlases], LABELS)
        out.append(Target(TargetFile(case.name, case.images[0], case.label), image, found, tuple(outcomes)))
        print(f"registered {case.name}: {len(out)} of {len(targets)}", flush=True)
    return out


def truth_of(target: Target) -> npt.NDArray[Any]:
    """The true labels, only to measure with."""
    return sitk.GetArrayFromImage(sitk.ReadImage(target.file.labels)).astype(np.int64)


def overlap(found: npt.NDArray[Any], truth: npt.NDArray[Any]) -> tuple[float, float]:
    """Dice of the whole hippocampus, and the mean of its two labels."""
    return mean_dice((found > 0).astype(np.uint8), truth > 0, 2), mean_dice(found, truth, 3)


def learned(
    targets: Sequence[Target], scheme: str, network: str, epochs: int, seed: int, settings: Settings
) -> tuple[list[npt.NDArray[np.float64]], float]:
    """theta of every target's atlases, and the seconds it took."""
    started = time.perf_counter()
    views = [noisy(one, SPACING) for one in targets]
    patch = view_size(views)
    torch.manual_seed(seed)
    made = instantiate(unet(1, 3, patch, FILTERS)) if network == "unet" else LRASPP3D(1, 3)
    steps = math.ceil(epochs * len(targets) / settings.batch)
    settings = dataclasses.replace(settings, steps=steps, scheme=scheme)
    learner = Learner(views, 3, made, patch, settings, torch.device("cpu"), seed)
    while learner.done < steps:
        rows = learn(learner, Progress(), until=learner.done + 20, every=20)
        print(f"{scheme} step {learner.done} of {steps}, loss {rows[-1]['loss']:.4f}", flush=True)
    return learner.theta(), time.perf_counter() - started


def sitk_staple(target: Target, region: Region) -> npt.NDArray[Any]:
    """SimpleITK's multi-label STAPLE on the region; undecided voxels go to the background."""
    maps = [sitk.GetImageFromArray(np.ascontiguousarray(one[region])) for one in target.raters.stack]
    fused = sitk.GetArrayFromImage(sitk.MultiLabelSTAPLE(maps, 255))
    out = np.zeros(target.raters.stack.shape[1:], dtype=np.uint8)
    out[region] = np.where(fused == 255, 0, fused)
    return out


def measure(
    targets: Sequence[Target], network: str, epochs: int, seed: int, settings: Settings, schemes: Sequence[str]
) -> dict[str, Any]:
    """Dice of every method on every target, and how theta goes with the true Dice."""
    truths = [truth_of(one) for one in targets]
    regions = [one.raters.box(MARGIN) for one in targets]
    single = [
        np.array([overlap(one, truth) for one in target.raters.stack])
        for target, truth in zip(targets, truths, strict=True)
    ]
    found: dict[str, list[npt.NDArray[Any]]] = {
        "majority vote": [majority(one.raters).indices for one in targets],
        "STAPLE": [staple(t.raters, region=r).indices for t, r in zip(targets, regions, strict=True)],
        "STAPLE (SimpleITK)": [sitk_staple(t, r) for t, r in zip(targets, regions, strict=True)],
    }
    correlations: dict[str, Any] = {}
    for scheme in schemes:
        theta, seconds = learned(targets, scheme, network, epochs, seed, settings)
        found[f"DeepSTAPLE {scheme}"] = [
            vote(t.raters, values, r).indices for t, values, r in zip(targets, theta, regions, strict=True)
        ]
        within = [correlation(list(a), list(b[:, 1])) for a, b in zip(theta, single, strict=True)]
        correlations[scheme] = {
            "pooled": correlation(list(np.concatenate(theta)), list(np.concatenate(single)[:, 1])),
            "within": float(np.mean(within)),
            "deviation": float(np.std(np.concatenate(theta))),
            "seconds": seconds,
        }
    dice = {"one atlas, mean": np.array([one.mean(axis=0) for one in single])}
    for name, maps in found.items():
        dice[name] = np.array([overlap(one, truth) for one, truth in zip(maps, truths, strict=True)])
    qualities = np.array([outcome.reason for one in targets for outcome in one.outcomes])
    every = np.concatenate(single)[:, 1]
    return {
        "targets": len(targets),
        "atlases": len(targets[0].raters),
        "network": network,
        "epochs": epochs,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "registrations": {
            name: {"count": int((qualities == name).sum()), "dice": float(every[qualities == name].mean())}
            for name in QUALITIES
            if (qualities == name).any()
        },
        "dice": {name: {"whole": v[:, 0].tolist(), "labels": v[:, 1].tolist()} for name, v in dice.items()},
        "spearman": correlations,
    }


def table(result: dict[str, Any]) -> str:
    """The result as lines for a terminal; p of the paired Wilcoxon test of the mean of the labels."""
    dice = result["dice"]
    best = next(name for name in dice if name.startswith("DeepSTAPLE"))
    lines = [
        f"{result['targets']} targets, {result['atlases']} atlases, network {result['network']}, "
        f"{result['epochs']} epochs, seed {result['seed']}, {result['threads']} threads",
        "registrations (mean Dice of the labels): "
        + ", ".join(f"{one['count']} {name} {one['dice']:.3f}" for name, one in result["registrations"].items()),
        f"{'method':<24}{'whole':>8}{'labels':>8}{'difference':>12}{'p':>10}   {best} less this",
    ]
    for name, values in dice.items():
        ours, theirs = np.array(dice[best]["labels"]), np.array(values["labels"])
        line = f"{name:<24}{np.mean(values['whole']):8.4f}{theirs.mean():8.4f}"
        if name != best:
            line += f"{(ours - theirs).mean():+12.4f}{float(wilcoxon(ours, theirs).pvalue):10.2g}"
        lines.append(line)
    for scheme, one in result["spearman"].items():
        lines.append(
            f"Spearman of theta and true Dice, {scheme}: {one['pooled']:.3f} over all, "
            f"{one['within']:.3f} within a target; {one['seconds']:.0f} s"
        )
    return "\n".join(lines)


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="JSON file for the figures")
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--atlases", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--network", choices=("lraspp3d", "unet"), default="lraspp3d")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder where registered labels are kept")
    parser.add_argument("--development", action="store_true", help="the targets that settings were chosen on")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    atlases, cases = chosen_cases(given.atlases, given.targets, given.development)
    targets = registered(atlases, cases, given.cache)
    result = measure(targets, given.network, given.epochs, given.seed, SETTINGS, SCHEMES)
    print(table(result))
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

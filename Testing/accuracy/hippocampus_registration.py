"""Accuracy of registration on inter-subject pairs of hippocampi that the shipped model never saw.

Run: ``python Testing/accuracy/hippocampus_registration.py [PAIRS] [OUT.json] [--model BUNDLE]``. Each test case is the
fixed image once and the next one its moving image; their labels are only measured with. They are warped by nearest
neighbour, and beside it as ``mli register --warped-labels`` writes them: without steps of half a voxel.
Seconds are those of the registration alone, with the network loaded, on 2 threads.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch

from MLILib import bundles
from MLILib.geometry import Grid
from MLILib.metrics import compare
from MLILib.registration import learned, pairwise
from MLILib.registration.comparison import resample_labels
from MLILib.registration.conversion import to_sitk
from MLILib.registration.jacobian import of_transform
from MLILib.registration.placement import centred
from MLILib.segmentation.dataset import Case, read_dataset

LABELS = {1: "anterior", 2: "posterior"}
MODEL = "hippocampus-registration"
THREADS = 2


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to register: its name in the table, and what answers with the transform from fixed to moving points."""

    name: str
    register: Callable[[sitk.Image, sitk.Image], sitk.Transform]


def centre_on_centre(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
    """No registration: where every method starts."""
    grid = Grid.of(fixed)
    return to_sitk(centred(grid, Grid.of(moving)), None, grid)


def by_model(model: str) -> Callable[[sitk.Image, sitk.Image], sitk.Transform]:
    """Registration by a trained network."""

    def register(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
        found = learned.predict(fixed, moving, model)
        return to_sitk(found.linear, found.displacement, Grid.of(fixed))

    return register


def by_preset(preset: str) -> Callable[[sitk.Image, sitk.Image], sitk.Transform]:
    """Registration without any training."""

    def register(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
        return pairwise.register(fixed, moving, preset=preset).transform

    return register


def methods(model: str = MODEL) -> list[Method]:
    """What is compared."""
    return [
        Method("before", centre_on_centre),
        Method("preset affine", by_preset("affine")),
        Method("preset deformable", by_preset("deformable")),
        Method(f"model {Path(model).name}", by_model(model)),
    ]


def data_folder() -> Path:
    """Where the hippocampus data lie: under MLI_DATA, or in ../shared/data beside the project."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("MLI_DATA", default)) / "hippocampus"


def kept_pairs(model: str = MODEL) -> list[tuple[Case, Case]]:
    """Pairs (fixed, moving) of the cases kept aside when `model` was trained, from its docs."""
    with open(bundles.find(model).folder / "docs" / "test_pairs.csv", encoding="utf-8") as stream:
        names = list(dict.fromkeys((row["fixed"], row["moving"]) for row in csv.DictReader(stream)))
    cases = {case.name: case for case in read_dataset(data_folder() / "dataset.json").cases}
    return [(cases[fixed], cases[moving]) for fixed, moving in names]


def measure(pairs: list[tuple[Case, Case]], compared: list[Method], threads: int = THREADS) -> dict[str, Any]:
    """Mean figures: {method: {"anterior", "posterior", "mean": {dice, hd95 (and both _written)}, folded, seconds}}."""
    torch.set_num_threads(threads)
    rows: dict[str, list[dict[str, Any]]] = {method.name: [] for method in compared}
    for number, (fixed_case, moving_case) in enumerate(pairs):
        fixed, moving = sitk.ReadImage(fixed_case.images[0]), sitk.ReadImage(moving_case.images[0])
        reference, labels = (
            sitk.Cast(sitk.ReadImage(case.label), sitk.sitkUInt8) for case in (fixed_case, moving_case)
        )
        for method in compared:
            if number == 0:
                method.register(fixed, moving)  # loads the network
            started = time.perf_counter()
            transform = method.register(fixed, moving)
            seconds = time.perf_counter() - started
            grid = Grid.of(reference)
            warped, written = (resample_labels(labels, grid, transform, smooth=smooth) for smooth in (False, True))
            folded = float((of_transform(transform, Grid.of(fixed)) <= 0).float().mean())
            rows[method.name].append(
                {
                    "labels": compare(warped, reference, LABELS),
                    "written": compare(written, reference, LABELS),
                    "folded": folded,
                    "seconds": seconds,
                }
            )
    return {"pairs": len(pairs), "threads": threads, "methods": {name: _means(found) for name, found in rows.items()}}


def _means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for label in (*LABELS.values(), "mean"):
        figures = [row["labels"][label] for row in rows]
        out[label] = {
            "dice": statistics.fmean(f["dice"] for f in figures),
            "hd95": statistics.fmean(f["hausdorff95"] for f in figures),
            "dice_written": statistics.fmean(row["written"][label]["dice"] for row in rows),
            "hd95_written": statistics.fmean(row["written"][label]["hausdorff95"] for row in rows),
        }
    for key in ("folded", "seconds"):
        out[key] = statistics.fmean(row[key] for row in rows)
    return out


def table(result: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    wide = max(len(name) for name in result["methods"])
    lines = [
        f"{result['pairs']} pairs the model never saw, {result['threads']} threads",
        f"{'method':<{wide}}  {'label':<9}  {'Dice':>6}  {'HD95 mm':>7}  {'written':>7}  {'HD95 mm':>7}"
        f"  {'folded':>8}  {'s a pair':>8}",
    ]
    for method, found in result["methods"].items():
        for label in (*LABELS.values(), "mean"):
            f = found[label]
            line = f"{method:<{wide}}  {label:<9}  {f['dice']:6.4f}  {f['hd95']:7.2f}"
            line += f"  {f['dice_written']:7.4f}  {f['hd95_written']:7.2f}"
            if label == "mean":
                line += f"  {found['folded']:8.4%}  {found['seconds']:8.3f}"
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="?", type=int, default=0, help="how many pairs; all by default")
    parser.add_argument("out", nargs="?", type=Path, help="JSON file for the figures")
    parser.add_argument("--model", default=MODEL, help="name or folder of a registration bundle")
    given = parser.parse_args()
    result = measure(kept_pairs(given.model)[: given.pairs or None], methods(given.model))
    print(table(result))
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

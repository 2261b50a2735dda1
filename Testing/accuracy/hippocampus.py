"""Accuracy of the shipped model `hippocampus` on the fold it never saw, beside a baseline that looks at no image.

Run: ``python Testing/accuracy/hippocampus.py [OUT.json]``. The baseline lays the training cases' labels over each other
by their images' centres and takes, at each voxel, the label most of them agree on: whoever cannot beat that has learnt
where a hippocampus usually lies, not what it looks like.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from MLILib import bundles
from MLILib.metrics import compare
from MLILib.segmentation.dataset import Case, read_dataset
from MLILib.segmentation.inference import segment

LABELS = {1: "anterior", 2: "posterior"}
FIGURES = ("dice", "hausdorff95", "assd", "surface_dice")
_CANVAS = (64, 80, 64)


def data_folder() -> Path:
    """Where the hippocampus data lie: under MLI_DATA, or in ../shared/data beside the project."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("MLI_DATA", default)) / "hippocampus"


def test_cases(model: str) -> list[str]:
    """Names of the cases kept aside when `model` was trained, from its docs."""
    with open(bundles.find(model).folder / "docs" / "test_cases.csv", encoding="utf-8") as stream:
        return sorted({row["case"] for row in csv.DictReader(stream)})


def measure(model: str = "hippocampus", *, tta: bool = False) -> dict[str, Any]:
    """Figures of the model and of the baseline on the cases kept aside: {method: {label: {figure: mean}}}."""
    names = set(test_cases(model))
    cases = read_dataset(data_folder() / "dataset.json").cases
    kept = [c for c in cases if c.name in names]
    prior = _prior([c for c in cases if c.name not in names])
    rows: dict[str, list[dict[str, Any]]] = {"mli segment": [], "location prior": []}
    for case in kept:
        reference = sitk.Cast(sitk.ReadImage(case.label), sitk.sitkUInt8)
        found = segment(sitk.ReadImage(case.images[0]), model, device="cpu", tta=tta).labels
        rows["mli segment"].append(compare(found, reference, LABELS))
        rows["location prior"].append(compare(_placed(prior, reference), reference, LABELS))
    return {"cases": len(kept), "methods": {method: _means(found) for method, found in rows.items()}}


def _means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    labels = [*LABELS.values(), "mean"]
    return {name: {k: statistics.fmean(r[name][k] for r in rows) for k in FIGURES} for name in labels}


def _prior(cases: list[Case]) -> np.ndarray:
    votes = np.zeros((len(LABELS) + 1, *_CANVAS[::-1]), np.int32)
    for case in cases:
        array = np.rint(sitk.GetArrayFromImage(sitk.ReadImage(case.label))).astype(np.intp)
        placed = np.zeros(_CANVAS[::-1], np.intp)
        placed[_centred(array.shape)] = array
        np.put_along_axis(votes, placed[None], np.take_along_axis(votes, placed[None], 0) + 1, 0)
    return votes.argmax(0).astype(np.uint8)


def _placed(prior: np.ndarray, like: sitk.Image) -> sitk.Image:
    image = sitk.GetImageFromArray(prior[_centred(like.GetSize()[::-1])])
    image.CopyInformation(like)
    return image


def _centred(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice((c - n) // 2, (c - n) // 2 + n) for c, n in zip(_CANVAS[::-1], shape, strict=True))


def table(result: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    head = f"{'method':<16} {'label':<10} {'Dice':>6} {'HD95 mm':>8} {'ASSD mm':>8} {'surface Dice 1 mm':>18}"
    lines = [f"{result['cases']} cases the model never saw", head]
    for method, labels in result["methods"].items():
        for label, f in labels.items():
            lines.append(
                f"{method:<16} {label:<10} {f['dice']:6.3f} {f['hausdorff95']:8.2f} {f['assd']:8.2f} "
                f"{f['surface_dice']:18.3f}"
            )
    return "\n".join(lines)


def main() -> int:
    """Entry point of the command."""
    result = measure()
    print(table(result))
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Accuracy of the shipped model `cardiac-lv` on patients it never saw, beside a baseline that looks at no image.

Run: ``python Testing/accuracy/cardiac_lv.py [OUT.json]``. With ``--prepare FOLDER`` it writes the data set that was
trained on: the slices' masks with the label 1 in place of 255, and a dataset.json that keeps patients together.
"""

from __future__ import annotations

import csv
import json
import os
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from MLILib import bundles
from MLILib.metrics import compare
from MLILib.segmentation.inference import segment

LABELS = {1: "left ventricle"}
FIGURES = ("dice", "hausdorff95", "assd", "surface_dice")
_PATIENT = re.compile(r"(SC-[A-Z]+(?:-[A-Z]+)?-\d+)-IM")


def data_folder() -> Path:
    """Where the cardiac data lie: under MLI_DATA, or in ../shared/data beside the project."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("MLI_DATA", default)) / "cardiac_sunnybrook"


def slices() -> dict[str, tuple[Path, Path]]:
    """Image and mask of each slice by the name that a data set gives it."""
    found = {}
    for mask in sorted((data_folder() / "labels").rglob("*.png")):
        image = data_folder() / "images" / mask.relative_to(data_folder() / "labels")
        found[mask.name.partition(".")[0]] = (image, mask)
    return found


def patient(name: str) -> str:
    """Whose slice it is: "SC-HF-I-01" of "SC-HF-I-01-IM-0001-0048"."""
    found = _PATIENT.match(name)
    if found is None:
        msg = f"{name} names no patient"
        raise ValueError(msg)
    return found.group(1)


def mask_of(path: Path) -> sitk.Image:
    """The mask with 1 inside the left ventricle."""
    return sitk.Cast(sitk.ReadImage(str(path)) > 0, sitk.sitkUInt8)


def prepare(folder: Path) -> Path:
    """Write labels and a dataset.json into `folder`, in the Decathlon format with each slice's patient as its group."""
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    training = []
    for name, (image, mask) in slices().items():
        label = folder / "labels" / f"{name}.png"
        sitk.WriteImage(mask_of(mask), str(label))
        training.append(
            {"image": os.path.relpath(image, folder), "label": f"labels/{label.name}", "group": patient(name)}
        )
    data = {
        "name": "Sunnybrook Cardiac Data",
        "description": "Left ventricle in short-axis cine MR slices.",
        "reference": "Radau 2009",
        "licence": "CC0 1.0",
        "modality": {"0": "cine MR"},
        "labels": {"0": "background", "1": "left ventricle"},
        "training": training,
    }
    path = folder / "dataset.json"
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def measure(model: str = "cardiac-lv", *, tta: bool = False) -> dict[str, Any]:
    """Figures of the model and of the baseline on the patients kept aside.

    Returns:
        slices, patients; ``methods``: means over the slices; ``by_patient``: Dice of all slices of a patient together.
    """
    with open(bundles.find(model).folder / "docs" / "test_cases.csv", encoding="utf-8") as stream:
        kept = {row["case"] for row in csv.DictReader(stream)}
    patients = {patient(name) for name in kept}
    every = slices()
    prior = _prior([mask for name, (_, mask) in every.items() if patient(name) not in patients])
    rows: dict[str, list[dict[str, Any]]] = {"mli segment": [], "location prior": []}
    sums: dict[str, dict[str, list[int]]] = {method: {p: [0, 0] for p in patients} for method in rows}
    for name in sorted(kept):
        image, mask = every[name]
        reference = mask_of(mask)
        placed = sitk.GetImageFromArray(prior)
        placed.CopyInformation(reference)
        labels = segment(sitk.ReadImage(str(image)), model, device="cpu", tta=tta).labels
        for method, found in (("mli segment", labels), ("location prior", placed)):
            figures = compare(found, reference, LABELS)["left ventricle"]
            rows[method].append(figures)
            sums[method][patient(name)][0] += 2 * figures["tp"]
            sums[method][patient(name)][1] += 2 * figures["tp"] + figures["fp"] + figures["fn"]
    methods = {m: {k: _mean([r[k] for r in found]) for k in FIGURES} for m, found in rows.items()}
    whole = {m: {p: a / b for p, (a, b) in sorted(found.items())} for m, found in sums.items()}
    return {"slices": len(kept), "patients": len(patients), "methods": methods, "by_patient": whole}


def _mean(values: list[float]) -> float:
    return statistics.fmean([v for v in values if np.isfinite(v)])


def _prior(masks: list[Path]) -> np.ndarray:
    votes = np.mean([sitk.GetArrayFromImage(mask_of(mask)) for mask in masks], axis=0)
    return (votes > votes.max() / 2).astype(np.uint8)  # nowhere do most agree: where half of the most do


def table(result: dict[str, Any]) -> str:
    """The result as lines for a terminal; distances are in pixels, since the slices say nothing of their spacing."""
    head = f"{'method':<16} {'Dice':>6} {'of patients':>12} {'HD95 px':>8} {'ASSD px':>8} {'surface Dice 1 px':>18}"
    lines = [f"{result['slices']} slices of {result['patients']} patients the model never saw", head]
    for method, f in result["methods"].items():
        whole = statistics.fmean(result["by_patient"][method].values())
        lines.append(
            f"{method:<16} {f['dice']:6.3f} {whole:12.3f} {f['hausdorff95']:8.2f} {f['assd']:8.2f} "
            f"{f['surface_dice']:18.3f}"
        )
    worst = min(result["by_patient"]["mli segment"].items(), key=lambda item: item[1])
    lines.append(f"lowest of a patient: {worst[1]:.3f} ({worst[0]})")
    return "\n".join(lines)


def main() -> int:
    """Entry point of the command."""
    words = sys.argv[1:]
    if words[:1] == ["--prepare"] and len(words) == 2:
        print(prepare(Path(words[1])))
        return 0
    result = measure()
    print(table(result))
    if words:
        Path(words[0]).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

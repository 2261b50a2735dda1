"""Lesions of multiple sclerosis on FLAIR by the recipe of `brain-flair`, each patient by a model of the other's brain.

Run: ``python Testing/accuracy/ms_anomaly.py FOLDER [--steps N] [--json OUT.json]``, or with --dataset to write the
FOLDER/dataset.json of both patients that brain-flair was trained on. For each patient a model is
trained on the lesion-free tissue of the other one (kept in FOLDER), its map is measured against the consensus of the
raters, and the intensity of FLAIR, median-filtered as findings are, stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "MLIModules"))

from MLILib import tasks  # noqa: E402
from MLILib.anomaly import evaluation, findings, loading  # noqa: E402
from MLILib.anomaly.look import look  # noqa: E402
from MLILib.anomaly.requests import TrainAnomalyRequest  # noqa: E402

PATIENTS = ("patient07", "patient19")


def data_folder() -> Path:
    """Where the images lie: under MLI_DATA, or in ../shared/data beside the project."""
    return Path(os.environ.get("MLI_DATA", ROOT.parent / "shared" / "data")) / "ms_lesions"


def request(dataset: Path, output: Path, steps: int) -> TrainAnomalyRequest:
    """The training of `brain-flair`."""
    return TrainAnomalyRequest(
        str(dataset), str(output), model="denoising-ae", plane="patch-3", size=64, tail="bright", smooth=0.7,
        filters=16, batch=16, steps=steps, device="cpu", threads=1,
    )  # fmt: skip


def write_dataset(path: Path, patients: tuple[str, ...]) -> Path:
    """A dataset.json of the patients' FLAIR, their lesions to be left out."""
    folder = data_folder().absolute()
    cases = [{"image": f"{folder}/{p}/FLAIR.nii.gz", "exclude": f"{folder}/{p}/lesion_mask.nii.gz"} for p in patients]
    path.write_text(json.dumps({"training": cases}, indent=2) + "\n", encoding="utf-8")
    return path


def measure(folder: Path, steps: int) -> dict[str, Any]:
    """By patient: figures of the map and of the threshold."""
    folder.mkdir(parents=True, exist_ok=True)
    out: dict[str, Any] = {}
    for patient in PATIENTS:
        others = tuple(p for p in PATIENTS if p != patient)
        bundle = folder / f"without-{patient}"
        if not bundle.exists():
            tasks.run(request(write_dataset(folder / f"without-{patient}.json", others), bundle, steps))
        loaded = loading.load(str(bundle), torch.device("cpu"))
        image = sitk.ReadImage(str(data_folder() / patient / "FLAIR.nii.gz"))
        truth = sitk.ReadImage(str(data_folder() / patient / "lesion_mask.nii.gz"))
        found = look(image, loaded)
        filtered = findings.smoothed(image, 3)
        rows = {
            "combined": evaluation.voxels(found.map, truth, found.foreground),
            "intensity": evaluation.voxels(filtered, truth, found.foreground),
        }
        known = loaded.calibration["combined"]
        limit = known.voxel_threshold(99.5)
        marked = findings.find(found.map, limit, found.foreground, smallest_ml=0.01)
        dice = evaluation.labels_dice(marked.labels, truth, found.foreground)["dice"]
        print(f"{patient}, by a model of {', '.join(others)}; Dice of findings at 99.5 % of normal voxels: {dice:.3f}")
        print(evaluation.table(rows))
        out[patient] = {name: one.summary() for name, one in rows.items()} | {"findings_dice": dice}
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--json", default="")
    parser.add_argument("--dataset", action="store_true", help="only write the dataset.json of both patients")
    asked = parser.parse_args()
    if asked.dataset:
        print(write_dataset(Path(asked.folder) / "dataset.json", PATIENTS))
        sys.exit(0)
    result = measure(Path(asked.folder), asked.steps)
    if asked.json:
        Path(asked.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

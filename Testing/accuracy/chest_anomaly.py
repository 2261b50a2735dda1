"""Accuracy of the shipped model `chest-xray-28` on chest X-rays it never saw, every method beside trivial baselines.

Run: ``python Testing/accuracy/chest_anomaly.py [--model NAME] [--search N] [--part val] [--json OUT.json]``. The images
are MedMNIST's pneumonia set; --search tries AnoGAN on N of them, as many normal as not, beside f-AnoGAN on the same.
The baselines see the images as they are, and once more each brought to mean 0 and standard deviation 1, as the model
sees them: that alone is most of what an anomaly score needs here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "MLIModules"))

from MLILib.anomaly import baselines, evaluation, intensity, loading, scoring  # noqa: E402


def data_file() -> Path:
    """Where the images lie: under MLI_DATA, or in ../shared/data beside the project."""
    folder = Path(os.environ.get("MLI_DATA", ROOT.parent / "shared" / "data"))
    return folder / "pneumonia_mnist" / "pneumonia_mnist_train_val.npz"


def measure(model: str = "chest-xray-28", part: str = "val", search: int = 0) -> dict[str, Any]:
    """AUROC and AUPRC of every method and baseline: {name: figures}."""
    with np.load(data_file()) as data:
        train = data["train_images"][data["train_labels"].ravel() == 0]
        images, labels = data[f"{part}_images"], data[f"{part}_labels"].ravel()
    device = torch.device("cpu")
    loaded = loading.load(model, device)
    rows: dict[str, evaluation.Curves] = {}
    seconds: dict[str, float] = {}
    for method in loaded.methods:
        if not method.startswith("anogan"):
            started = time.perf_counter()
            scorer = scoring.Scorer(loaded.network, loaded.knowledge, method, device)
            rows[method] = evaluation.curves(scoring.stack_scores(scorer, images)[2], labels)
            seconds[method] = (time.perf_counter() - started) / len(images)
    rows |= _baselines(train, images, labels)
    if search:
        chosen = np.concatenate([np.flatnonzero(labels == value)[: search // 2] for value in (0, 1)])
        for method in ("anogan", "anogan-ce", "fanogan", "combined"):
            started = time.perf_counter()
            scorer = scoring.Scorer(loaded.network, loaded.knowledge, method, device)
            scores = scoring.stack_scores(scorer, images[chosen], batch=64)[2]
            name = f"{method}, {len(chosen)} images"
            rows[name] = evaluation.curves(scores, labels[chosen])
            seconds[name] = (time.perf_counter() - started) / len(chosen)
    print(evaluation.table(rows))
    for name, spent in seconds.items():
        print(f"{name}: {1000 * spent:.2f} ms an image")
    return {name: {**one.summary(), "seconds_an_image": seconds.get(name)} for name, one in rows.items()}


def _baselines(train: npt.NDArray[Any], images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> dict[str, Any]:
    plain = baselines.fit(train.astype(np.float32)).image_scores(images.astype(np.float32))
    normal = baselines.fit(intensity.normalise_images(train)).image_scores(intensity.normalise_images(images))
    same = {f"{name}, each image normalised": normal[name] for name in ("PCA residual", "nearest neighbours")}
    return {name: evaluation.curves(scores, labels) for name, scores in (plain | same).items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="chest-xray-28")
    parser.add_argument("--part", default="val")
    parser.add_argument("--search", type=int, default=0)
    parser.add_argument("--json", default="")
    asked = parser.parse_args()
    found = measure(asked.model, asked.part, asked.search)
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

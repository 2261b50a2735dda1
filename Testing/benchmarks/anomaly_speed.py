"""Speed of anomaly scores: f-AnoGAN on a volume, AnoGAN's search in a batch and one query at a time, both an image.

Networks have random weights, which does not change the time. One table and, with --json, one JSON file::

    python Testing/benchmarks/anomaly_speed.py [--threads 2] [--alone 4] [--json OUT.json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "MLIModules"))

from MLILib.anomaly import intensity, planes, scoring  # noqa: E402
from MLILib.anomaly.models import NormalModel  # noqa: E402
from MLILib.anomaly.search import search  # noqa: E402

QUERIES, STEPS = 64, 500


def volume_seconds(plane: str, filters: int) -> float:
    """f-AnoGAN of 64 x 64 images over a head of 182 x 218 x 182 voxels."""
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[:182, :218, :182]
    head = (((x - 91) / 70) ** 2 + ((y - 109) / 88) ** 2 + ((z - 85) / 75) ** 2 < 1).astype(np.float32)
    array = head * (100 + 10 * rng.standard_normal(head.shape).astype(np.float32))
    turned = planes.oriented(sitk.GetImageFromArray(array))
    pixel = 1.0 if plane == "patch" else 3.0
    known = scoring.Knowledge(scoring.Geometry("patches" if plane == "patch" else "slices", plane, 64, pixel))
    model = NormalModel("fanogan", 64, 128, filters).eval()
    started = time.perf_counter()
    inside = intensity.foreground(turned.array)
    scoring.volume_scores([scoring.Scorer(model, known, "fanogan", torch.device("cpu"))], turned, inside)
    return time.perf_counter() - started


def main(arguments: list[str]) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", type=int, default=4, help="queries searched one at a time; the time is for 64")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--filters", type=int, default=8)
    parser.add_argument("--json", default="")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    out: dict[str, float] = {}
    for plane, filters in (("axial", 32), ("patch", 16)):
        out[f"f-AnoGAN, 182 x 218 x 182, {plane}, {filters} filters (s)"] = volume_seconds(plane, filters)
    torch.manual_seed(0)
    model = NormalModel("fanogan", asked.side, 32, asked.filters).eval()
    x = torch.tanh(torch.randn(QUERIES, 1, asked.side, asked.side))
    started = time.perf_counter()
    search(model, x, steps=asked.steps)
    batched = time.perf_counter() - started
    started = time.perf_counter()
    for query in x[: asked.alone]:
        search(model, query[None], steps=asked.steps)
    alone = (time.perf_counter() - started) * QUERIES / asked.alone
    scorer = scoring.Scorer(
        model, scoring.Knowledge(scoring.Geometry("images", "axial", asked.side)), "fanogan", x.device
    )
    scorer.images(x)
    started = time.perf_counter()
    for _ in range(5):
        scorer.images(x)
    fast = (time.perf_counter() - started) / 5 / QUERIES
    name = f"AnoGAN, {QUERIES} queries x {asked.steps} steps"
    out |= {
        f"{name}, one batch (s)": batched,
        f"{name}, one at a time, from {asked.alone} (s)": alone,
        "share of the time that the batch takes": batched / alone,
        "AnoGAN, an image in the batch (ms)": 1000 * batched / QUERIES,
        "f-AnoGAN, an image in the batch (ms)": 1000 * fast,
        "f-AnoGAN is faster than AnoGAN in a batch (times)": batched / QUERIES / fast,
        "f-AnoGAN is faster than AnoGAN one at a time (times)": alone / QUERIES / fast,
    }
    width = max(len(key) for key in out)
    for key, value in out.items():
        print(f"{key:<{width}}  {value:10.3f}")
    if asked.json:
        Path(asked.json).write_text(json.dumps(out, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

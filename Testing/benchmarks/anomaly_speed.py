"""Speed of anomaly scores: f-AnoGAN on a volume, AnoGAN's search in a batch and one query at a time, both an image.

Networks have random weights, which does not change the time. Times are of the clock and, for a machine that other work
shares, of the processor. One table and, with --json, one JSON file::

    python Testing/benchmarks/anomaly_speed.py [--threads 2] [--alone 4] [--steps 500] [--json OUT.json]
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
from MLILib.anomaly.sources import Geometry  # noqa: E402

QUERIES, STEPS = 64, 500


class Watch:
    """Seconds of the clock and of the processor since it was made."""

    def __init__(self) -> None:
        self._clock, self._processor = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """(clock, processor)."""
        return time.perf_counter() - self._clock, time.process_time() - self._processor


def volume(plane: str, filters: int) -> tuple[float, float]:
    """f-AnoGAN of 64 x 64 images over a head of 182 x 218 x 182 voxels; see :meth:`Watch.read`."""
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[:182, :218, :182]
    head = (((x - 91) / 70) ** 2 + ((y - 109) / 88) ** 2 + ((z - 85) / 75) ** 2 < 1).astype(np.float32)
    array = head * (100 + 10 * rng.standard_normal(head.shape).astype(np.float32))
    turned = planes.oriented(sitk.GetImageFromArray(array))
    pixel = 1.0 if plane == "patch" else 3.0
    known = scoring.Knowledge(Geometry("patches" if plane == "patch" else "slices", plane, 64, pixel))
    model = NormalModel("fanogan", 64, 128, filters).eval()
    watch = Watch()
    inside = intensity.foreground(turned.array)
    scoring.volume_scores([scoring.Scorer(model, known, "fanogan", torch.device("cpu"))], turned, inside)
    return watch.read()


def main(arguments: list[str]) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", type=int, default=4, help="queries searched one at a time; the time is for 64")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--filters", type=int, default=8)
    parser.add_argument("--volumes", nargs="*", default=["axial:32", "patch:16"], metavar="PLANE:FILTERS")
    parser.add_argument("--json", default="")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    out: dict[str, tuple[float, float]] = {}

    def tell(name: str, seconds: tuple[float, float]) -> None:
        out[name] = seconds
        print(f"{name:<60}  clock {seconds[0]:9.3f} s   processor {seconds[1]:9.3f} s", flush=True)

    for text in asked.volumes:
        plane, _, filters = text.partition(":")
        tell(f"f-AnoGAN, 182 x 218 x 182, {plane}, {filters} filters", volume(plane, int(filters)))
    torch.manual_seed(0)
    model = NormalModel("fanogan", asked.side, 32, asked.filters).eval()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as a bundle's
    x = torch.tanh(torch.randn(QUERIES, 1, asked.side, asked.side))
    watch = Watch()
    search(model, x, steps=asked.steps)
    batch = watch.read()
    tell(f"AnoGAN, {QUERIES} queries x {asked.steps} steps, one batch", batch)
    watch = Watch()
    for query in x[: asked.alone]:
        search(model, query[None], steps=asked.steps)
    alone = tuple(t * QUERIES / asked.alone for t in watch.read())
    tell(f"AnoGAN, one at a time, from {asked.alone} queries", (alone[0], alone[1]))
    known = scoring.Knowledge(Geometry("images", "axial", asked.side))
    scorer = scoring.Scorer(model, known, "fanogan", x.device)
    scorer.images(x)
    watch = Watch()
    for _ in range(10):
        scorer.images(x)
    fast = tuple(t / 10 for t in watch.read())
    tell(f"f-AnoGAN, {QUERIES} queries", (fast[0], fast[1]))
    for name, a, b in (
        ("a batch takes, of one at a time", batch, alone),
        ("f-AnoGAN takes, of AnoGAN's batch", fast, batch),
    ):
        print(f"{name:<60}  clock {a[0] / b[0]:9.4f}     processor {a[1] / b[1]:9.4f}")
    if asked.json:
        Path(asked.json).write_text(json.dumps(out, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

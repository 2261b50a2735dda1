"""Graph cut of a noisy body between scribbles: time, memory, and how near the cut's energy is to the maximum flow.

PYTHONPATH=MLIModules python Testing/benchmarks/graph_cut_speed.py [--size 128] [--json OUT.json]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from MLILib.classical import graph_cut
from MLILib.record import PeakMemory


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    n = given.size
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32)] * 3, indexing="ij")
    truth = np.sqrt(x**2 + (y / 0.8) ** 2 + (z / 0.6) ** 2) < 0.6
    rows = []
    for noise in (0.2, 0.5, 1.0):
        smooth = ndimage.gaussian_filter(truth.astype(np.float32), 1.0)
        image = (smooth + noise * rng.normal(size=truth.shape)).astype(np.float32)
        values, background = np.zeros(truth.shape, np.uint8), np.zeros(truth.shape, bool)
        middle = slice(n // 2 - n // 12, n // 2 + n // 12)
        values[middle, middle, n // 2] = 1
        background[: n // 16] = True
        memory = PeakMemory()
        started, worked = time.perf_counter(), time.process_time()
        labels, (cut,) = graph_cut.segment(image, (1.0, 1.0, 1.0), values, background)
        seconds, cpu = time.perf_counter() - started, time.process_time() - worked
        found = labels != 0
        rows.append(
            {
                "noise": noise,
                "seconds": seconds,
                "cpu_seconds": cpu,
                "peak_memory_bytes": memory.bytes()["host"],
                "dice": float(2 * (found & truth).sum() / (found.sum() + truth.sum())),
                "energy_over_flow": cut.energy / cut.flow,
            }
        )
        print(
            f"{n}^3, noise {noise}: {seconds:.1f} s ({cpu:.1f} s of the processor), "
            f"{rows[-1]['peak_memory_bytes'] / 1e9:.1f} GB, Dice {rows[-1]['dice']:.3f}, "
            f"energy / flow {rows[-1]['energy_over_flow']:.6f}; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    if given.json:
        Path(given.json).write_text(json.dumps({"size": n, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

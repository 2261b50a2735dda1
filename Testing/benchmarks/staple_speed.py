"""STAPLE beside SimpleITK's filter on the same label maps, in one run: time, peak memory and how the answers differ.

Raters draw one soft body, each with borders of his own that wander by some voxels ("borders", as people and atlases
do); or each gets every voxel wrong now and then, whatever the others say ("noise", the hardest case for a method that
looks at each combination of decisions once). Both methods start from images in memory, in processes of their own, one
after the other. Prints one table and writes one JSON file::

    python Testing/benchmarks/staple_speed.py [--raters 20] [--size 256] [--repeats 3] [--json OUT.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "MLIModules"))

KINDS = ("borders", "noise")


def draw(kind: str, raters: int, size: int) -> np.ndarray:
    """Label maps of 0 and 1, (raters, size, size, size) uint8."""
    rng = np.random.default_rng(0)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    place = np.sqrt(axis[:, None, None] ** 2 + (axis[:, None] / 0.8) ** 2 + (axis / 0.6) ** 2)
    truth = place < 0.6
    out = np.empty((raters, size, size, size), dtype=np.uint8)
    for i in range(raters):
        if kind == "noise":
            wrong = rng.random(truth.shape, dtype=np.float32) < 0.02 + 0.2 * i / raters
            out[i] = truth ^ wrong
        else:
            coarse = ndimage.gaussian_filter(rng.normal(size=(24, 24, 24)), 1.0)
            wander = ndimage.zoom(coarse / coarse.std(), size / 24, order=1)[:size, :size, :size]
            out[i] = place + wander * (0.01 + 0.04 * i / raters) < 0.6
    return out


def memory(key: str) -> int:
    """Of this process, bytes: VmRSS now, VmHWM the most so far; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def child(tool: str, stack: Path, answer: Path) -> None:
    """Fuse once in this process; prints seconds and bytes, writes rates and probabilities."""
    images = [sitk.GetImageFromArray(one) for one in np.load(stack)]

    from MLILib.fusion.raters import raters
    from MLILib.fusion.staple import staple
    from MLILib.record import PeakMemory

    PeakMemory()  # sets the mark back to what is held now
    before = memory("VmRSS")
    started = time.perf_counter()
    if tool == "mli":
        found = staple(raters(images), probabilities=True)
        seconds = time.perf_counter() - started
        assert found.sensitivity is not None
        assert found.specificity is not None
        assert found.probabilities is not None
        rates = [found.sensitivity[:, 0], found.specificity[:, 0]]
        truth, iterations = found.probabilities[1], found.iterations
    else:
        method = sitk.STAPLEImageFilter()
        method.SetForegroundValue(1)
        image = method.Execute(images)
        seconds = time.perf_counter() - started
        rates = [np.array(method.GetSensitivity()), np.array(method.GetSpecificity())]
        truth, iterations = sitk.GetArrayViewFromImage(image), method.GetElapsedIterations() + 1
    print(json.dumps({"seconds": seconds, "bytes": memory("VmHWM") - before, "iterations": iterations}))
    np.savez(answer, rates=np.array(rates), truth=truth)


def run(tool: str, stack: Path, answer: Path) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--child", tool, str(stack), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raters", type=int, default=20)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, metavar=("TOOL", "STACK", "ANSWER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]), Path(options.child[2]))
        return
    result: dict[str, Any] = {
        "raters": options.raters, "size": options.size, "cores": os.cpu_count(), "platform": platform.platform()
    }  # fmt: skip
    print(f"{options.raters} raters, {options.size}^3 voxels, one label; {os.cpu_count()} cores; medians of seconds")
    print(f"{'':10}{'SimpleITK':>12}{'MLI':>10}{'faster':>9}{'memory':>18}{'iterations':>12}{'largest difference':>40}")
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            stack = Path(folder) / "stack.npy"
            np.save(stack, draw(kind, options.raters, options.size))
            answers = {tool: Path(folder) / f"{tool}.npz" for tool in ("sitk", "mli")}
            rows: dict[str, list[dict[str, Any]]] = {"sitk": [], "mli": []}
            for _ in range(options.repeats):  # in turn, so that a busy computer slows both
                for tool, answer in answers.items():
                    rows[tool].append(run(tool, stack, answer))
            theirs, ours = (np.load(answers[tool]) for tool in ("sitk", "mli"))
            rates = float(np.abs(theirs["rates"] - ours["rates"]).max())
            truth = float(np.abs(theirs["truth"] - ours["truth"]).max())
        spent = {tool: statistics.median(row["seconds"] for row in found) for tool, found in rows.items()}
        held = {tool: max(row["bytes"] for row in found) for tool, found in rows.items()}
        passes = {tool: found[0]["iterations"] for tool, found in rows.items()}
        memory = f"{held['sitk'] / 2**20:.0f}, {held['mli'] / 2**20:.0f} MiB"
        print(
            f"{kind:10}{spent['sitk']:>12.2f}{spent['mli']:>10.2f}{spent['sitk'] / spent['mli']:>8.1f}x{memory:>18}"
            f"{passes['sitk']:>6}, {passes['mli']:>4}{f'rates {rates:.0e}, probabilities {truth:.0e}':>40}"
        )
        result[kind] = {
            "runs": rows, "times_faster": spent["sitk"] / spent["mli"], "rates_differ": rates, "truth_differs": truth
        }  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

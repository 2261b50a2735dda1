"""Label fusion on hippocampi: 20 atlases, other cases as targets, every method beside the others, with paired tests.

Run: ``python Testing/accuracy/hippocampus_fusion.py [TARGETS] [OUT.json] [--registration NAME ...] [--choose]``.
Atlases and targets are drawn with a fixed seed. Targets are cases that the shipped registration model never saw;
atlases are cases that it may have seen. With --choose the targets are others, on which settings were chosen, and which
are not part of the figures. Seconds are of one target on 2 threads; those of the processor, which other work on the
machine changes little, are the sum over both.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from hippocampus_registration import MODEL, data_folder, kept_pairs
from scipy.stats import wilcoxon

from MLILib.fusion import fusing
from MLILib.fusion.cache import Cache
from MLILib.fusion.methods import METHODS
from MLILib.fusion.propagation import Propagated, propagate
from MLILib.segmentation.dataset import Case, read_dataset

ATLASES = 20
THREADS = 2
LABELS = (1, 2)
SINGLE = "one atlas"
AGAINST = "majority"


@dataclasses.dataclass(frozen=True)
class Score:
    """Dice of a label map: mean of the two labels, and of both as one."""

    mean: float
    whole: float


def cases(choose: bool = False) -> tuple[list[Case], list[Case]]:
    """Atlases and targets; with `choose` the targets on which settings are chosen."""
    kept = {case.name for pair in kept_pairs() for case in pair}
    everything = list(read_dataset(data_folder() / "dataset.json").cases)
    rest = [case for case in everything if case.name not in kept]
    random.Random(0).shuffle(rest)
    targets = rest[ATLASES:] if choose else [case for case in everything if case.name in kept]
    if not choose:
        random.Random(1).shuffle(targets)
    return rest[:ATLASES], targets


def score(found: np.ndarray, truth: np.ndarray) -> Score:
    """Dice of `found`, label values on the grid of `truth`."""
    return Score(
        statistics.fmean(_dice(found == label, truth == label) for label in LABELS), _dice(found > 0, truth > 0)
    )


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * np.count_nonzero(a & b) / max(1, np.count_nonzero(a) + np.count_nonzero(b)))


def registered(target: Case, atlases: Sequence[Case], registration: str, kept: Cache | None = None) -> Propagated:
    """The atlases on the target's grid."""
    pairs = [(sitk.ReadImage(case.images[0]), _labels(case)) for case in atlases]
    return propagate(
        sitk.ReadImage(target.images[0]),
        pairs,
        names=[case.name for case in atlases],
        registration=registration,
        kept=kept,
    )


def _labels(case: Case) -> sitk.Image:
    return sitk.Cast(sitk.ReadImage(case.label), sitk.sitkUInt8)


def measure(
    targets: Sequence[Case], atlases: Sequence[Case], registration: str, kept: Cache | None = None
) -> dict[str, Any]:
    """For each method the scores and seconds of each target; the seconds of registration beside them."""
    torch.set_num_threads(THREADS)
    rows: dict[str, list[Score]] = {name: [] for name in (SINGLE, *METHODS)}
    seconds: dict[str, list[float]] = {name: [] for name in ("registration", *METHODS)}
    processor: dict[str, list[float]] = {name: [] for name in seconds}

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.perf_counter(), time.process_time()
        yield
        seconds[name].append(time.perf_counter() - started[0])
        processor[name].append(time.process_time() - started[1])

    for target in targets:
        with timed("registration"):
            found = registered(target, atlases, registration, kept)
        truth = sitk.GetArrayFromImage(_labels(target))
        values = found.raters.values
        singles = [score(values[one], truth) for one in found.raters.stack]
        rows[SINGLE].append(
            Score(statistics.fmean(s.mean for s in singles), statistics.fmean(s.whole for s in singles))
        )
        for method in METHODS:
            with timed(method):
                made = fusing.consensus(found.raters, method, found.target, found.warped, device="cpu")
            rows[method].append(score(values[made.indices], truth))
        print(f"{target.name}: {rows['jlf'][-1]}", file=sys.stderr, flush=True)
    return {
        "registration": registration,
        "atlases": len(atlases),
        "targets": [case.name for case in targets],
        "scores": {name: [dataclasses.asdict(one) for one in found] for name, found in rows.items()},
        "seconds": seconds,
        "processor_seconds": processor,
    }


def summary(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """For each method the means, what it gains over the majority vote, and Wilcoxon's signed-rank p of that."""
    out = {}
    for name, scores in result["scores"].items():
        row: dict[str, float] = {}
        for what in ("mean", "whole"):
            ours = np.array([one[what] for one in scores])
            theirs = np.array([one[what] for one in result["scores"][AGAINST]])
            row[what] = float(ours.mean())
            row[f"{what}_gain"] = float((ours - theirs).mean())
            row[f"{what}_p"] = float(wilcoxon(ours, theirs).pvalue) if np.any(ours != theirs) else 1.0
        for what in ("seconds", "processor_seconds"):
            row[what] = statistics.fmean(result[what].get(name, [0.0]))
        out[name] = row
    return out


def table(result: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    wide = max(len(METHODS[name].title) for name in METHODS)
    spent, used = (statistics.fmean(result[key]["registration"]) for key in ("seconds", "processor_seconds"))
    lines = [
        f"Registration {result['registration']}, {result['atlases']} atlases, {len(result['targets'])} targets, "
        f"{THREADS} threads: {spent:.1f} s a target to register ({used:.1f} s of the processor), and the methods",
        f"{'':<{wide}}  {'2 labels':>8}  {'gain':>7}  {'p':>7}  {'whole':>6}  {'gain':>7}  {'p':>7}  {'s':>6}  "
        f"{'proc. s':>7}",
    ]
    for name, row in summary(result).items():
        title = METHODS[name].title if name in METHODS else "One atlas, mean of all"
        lines.append(
            f"{title:<{wide}}  {row['mean']:8.4f}  {row['mean_gain']:+7.4f}  {row['mean_p']:7.1e}  "
            f"{row['whole']:6.4f}  {row['whole_gain']:+7.4f}  {row['whole_p']:7.1e}  {row['seconds']:6.2f}  "
            f"{row['processor_seconds']:7.2f}"
        )
    return "\n".join(
        [*lines, f"Gains are over the {METHODS[AGAINST].title.lower()}; p of Wilcoxon's signed-rank test."]
    )


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="?", type=int, default=0, help="how many targets; all by default")
    parser.add_argument("out", nargs="?", type=Path, help="JSON file for the figures")
    parser.add_argument("--registration", nargs="+", default=["deformable", MODEL], help="presets or models")
    parser.add_argument("--choose", action="store_true", help="the targets on which settings are chosen")
    parser.add_argument("--cache", default="", help="folder of registered atlases to use again; seconds mean less then")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
    atlases, targets = cases(given.choose)
    results = []
    for registration in given.registration:
        kept = Cache(given.cache) if given.cache else None
        results.append(measure(targets[: given.targets or None], atlases, registration, kept))
        print(table(results[-1]), end="\n\n", flush=True)
    if given.out:
        given.out.write_text(
            json.dumps([{**one, "summary": summary(one)} for one in results], indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()

"""Gaussian processes of a million voxels beside scikit-learn's of some of them: time, memory, agreement and coverage.

A simulated cohort: values depend smoothly on age, and on sex, with noise; some voxels on neither. scikit-learn is asked
twice about each voxel of a sample: with our hyper-parameters (mean and deviation must agree) and with its own optimiser
(whose log marginal likelihood ours should reach). Then new subjects are drawn: 95 % of their |z| should be below 1.96.
Prints one table and writes one JSON file::

    PYTHONPATH=MLIModules python Testing/benchmarks/normative_speed.py [--voxels 1000000] [--subjects 100] [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MLILib.anomaly import gaussian_process
from MLILib.record import PeakMemory

BLOCK = 50_000


def design(age: np.ndarray, sex: np.ndarray, train: int) -> np.ndarray:
    """Standardised ages and coded sexes, (n, 3); the first `train` rows set the scale."""
    return np.column_stack([(age - age[:train].mean()) / age[:train].std(), np.sqrt(0.5) * np.eye(2)[sex]])


def simulate(age: np.ndarray, sex: np.ndarray, voxels: int, seed: int) -> np.ndarray:
    """Values (subjects, voxels), float32."""
    rng = np.random.default_rng(seed)
    years = (age[:, None] - 50) / 15
    bend, slope, centre, shift = rng.normal(size=(4, voxels))
    mean = 20 * np.tanh(bend * years + centre) + 5 * slope * years + 5 * shift * sex[:, None]
    mean[:, ::4] = 0.0
    noise = rng.uniform(2, 20, voxels)
    return (500 + mean + noise * rng.normal(size=mean.shape)).astype(np.float32)


def peers(x: np.ndarray, y: np.ndarray, fitted: gaussian_process.Fitted, new: np.ndarray) -> dict[str, Any]:
    """scikit-learn on each column of `y`."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    mean, variance = fitted.predict(new)
    apart, gain, spent = [], [], 0.0
    for value in range(y.shape[1]):
        own = np.asarray(y[:, value], np.float64)
        centred, scale = own - own.mean(), own.std()
        lengths = next(group.lengths for group in fitted.groups if value in group.members)
        signal, noise = ConstantKernel(fitted.signal[value]), WhiteKernel(fitted.noise[value])
        oracle = GaussianProcessRegressor(signal * RBF(lengths) + noise, alpha=0.0, optimizer=None).fit(x, centred)
        m, s = oracle.predict(new[None], return_std=True)
        apart.append([abs(m[0] + own.mean() - mean[value]) / s[0], abs(np.sqrt(variance[value]) / s[0] - 1)])
        kernel = ConstantKernel(1, (1e-4, 1e4)) * RBF(np.ones(x.shape[1]), (0.35, 1e3)) + WhiteKernel(1, (1e-4, 1e2))
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            own_best = GaussianProcessRegressor(kernel).fit(x, centred / scale)
        spent += time.perf_counter() - started
        gain.append(own_best.log_marginal_likelihood_value_ - len(x) * np.log(scale) - fitted.likelihood[value])
    return {
        "voxels": y.shape[1],
        "seconds_per_voxel": spent / y.shape[1],
        "mean_apart_sd": float(np.max([a[0] for a in apart])),
        "sd_apart": float(np.max([a[1] for a in apart])),
        "likelihood_gain_median": float(np.median(gain)),
        "likelihood_gain_most": float(np.max(gain)),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voxels", type=int, default=1_000_000)
    parser.add_argument("--subjects", type=int, default=100)
    parser.add_argument("--new", type=int, default=20, help="new subjects that coverage is measured on")
    parser.add_argument("--sample", type=int, default=40, help="voxels for scikit-learn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(0)
    n = given.subjects
    age, sex = rng.uniform(20, 80, n + given.new), rng.integers(0, 2, n + given.new)
    x = design(age, sex, n)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "values"
        values = np.memmap(store, np.float32, "w+", shape=(n + given.new, given.voxels))
        for first in range(0, given.voxels, BLOCK):
            count = min(BLOCK, given.voxels - first)
            values[:, first : first + count] = simulate(age, sex, count, first)
        values.flush()
        memory = PeakMemory()
        started, worked = time.perf_counter(), time.process_time()
        categories = [False, True, True]
        fitted, left = gaussian_process.fit(x[:n], values[:n], categories=categories, store=np.float32)
        seconds, cpu = time.perf_counter() - started, time.process_time() - worked
        peak = memory.bytes()["host"]
        started = time.perf_counter()
        inside = 0.0
        for k in range(n, n + given.new):
            mean, variance = fitted.predict(x[k])
            inside += float(np.mean(np.abs(values[k] - mean) < 1.96 * np.sqrt(variance))) / given.new
        predicting = (time.perf_counter() - started) / given.new
        some = np.linspace(0, given.voxels - 1, given.sample).astype(int)
        sample = np.asarray(values[:n, some], np.float64)
        del values
    small, _ = gaussian_process.fit(x[:n], sample, categories=categories)
    other = peers(x[:n], sample, small, x[n])
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "threads": given.threads,
        "voxels": given.voxels,
        "subjects": n,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_memory_bytes": peak,
        "stored_bytes": sum(group.codes.nbytes for group in fitted.groups),
        "predict_seconds": predicting,
        "coverage_new": inside,
        "coverage_left_out": left.share_below(1.96),
        "scikit_learn": other,
        "scikit_learn_all_seconds": other["seconds_per_voxel"] * given.voxels,
    }
    print(f"{n} subjects, {given.voxels:,} voxels, age and sex; {result['machine']}, {given.threads} threads")
    print(f"fitted and left out each subject in {seconds:.0f} s ({cpu:.0f} s of processor time)")
    print(f"peak memory {peak / 1e9:.2f} GB, of it the file mapped {n * given.voxels * 4 / 1e9:.2f} GB")
    print(f"a new subject takes {predicting:.2f} s")
    print(f"|z| < 1.96: {inside:.2%} of new subjects' voxels, {left.share_below(1.96):.2%} of those left out")
    print(
        f"scikit-learn: {other['seconds_per_voxel']:.3f} s a voxel, {result['scikit_learn_all_seconds'] / 3600:.0f} h "
        f"for all; with our hyper-parameters means differ by at most {other['mean_apart_sd']:.1e} sd and deviations by "
        f"{other['sd_apart']:.1e}; its optimiser, with a length scale a column, gains "
        f"{other['likelihood_gain_median']:.3f} nats in the median, at most {other['likelihood_gain_most']:.3f}"
    )
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

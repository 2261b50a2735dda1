"""Speed and accuracy of affine and deformable registration of two brains, beside ANTs' SyN, in one run.

    PYTHONPATH=MLIModules python Testing/benchmarks/registration_brain.py [--repeats 3] [--json OUT.json] [--peer none]

The pair is two patients of the Open MS data (Lesjak 2017, CC BY): brains of 182 x 218 x 182 voxels of 1 mm. Overlap is
the Dice of three classes of tissue that k-means finds in each image by itself; both are measured with the transform
that came out, by nearest neighbour. Each method runs in a process of its own, so that its peak memory is its own. The
peer is in the extra `peers` (antspyx).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

DATA = Path(os.environ.get("MLI_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data")) / "ms_lesions"
FIXED, MOVING = DATA / "patient07" / "T1.nii.gz", DATA / "patient19" / "T1.nii.gz"
CLASSES = 3


def tissue(image: sitk.Image) -> sitk.Image:
    """Classes 1 to 3 of the brain by k-means of its intensities, 0 outside."""
    array = sitk.GetArrayFromImage(image)
    inside = array[array > 0]
    centres = np.percentile(inside, [15, 50, 85])
    for _ in range(25):
        nearest = np.digitize(inside, (centres[1:] + centres[:-1]) / 2)
        centres = np.array([inside[nearest == k].mean() for k in range(CLASSES)])
    out = np.zeros(array.shape, np.uint8)
    out[array > 0] = 1 + np.digitize(inside, (centres[1:] + centres[:-1]) / 2)
    made = sitk.GetImageFromArray(out)
    made.CopyInformation(image)
    return made


def overlap(warped: np.ndarray, fixed: np.ndarray) -> float:
    """Mean Dice of the classes."""
    found = [2 * ((warped == k) & (fixed == k)).sum() / ((warped == k).sum() + (fixed == k).sum()) for k in (1, 2, 3)]
    return float(np.mean(found))


def run_mli(repeats: int) -> tuple[list[float], np.ndarray]:
    """Seconds of each run, and the warped classes."""
    from MLILib.registration import register

    fixed, moving = sitk.ReadImage(str(FIXED)), sitk.ReadImage(str(MOVING))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = register(fixed, moving)
        seconds.append(time.perf_counter() - started)
    classes = sitk.Resample(tissue(moving), fixed, result.transform, sitk.sitkNearestNeighbor)
    return seconds, sitk.GetArrayFromImage(classes)


def run_ants(repeats: int) -> tuple[list[float], np.ndarray]:
    """The same of ANTs' default SyN."""
    import ants

    fixed, moving = ants.image_read(str(FIXED)), ants.image_read(str(MOVING))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = ants.registration(fixed, moving, type_of_transform="SyN")
        seconds.append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "classes.nii.gz")
        sitk.WriteImage(tissue(sitk.ReadImage(str(MOVING))), file)
        classes = ants.apply_transforms(
            fixed, ants.image_read(file), result["fwdtransforms"], interpolator="nearestNeighbor"
        )
    return seconds, classes.numpy().transpose(2, 1, 0)


METHODS = {"MLI, preset deformable": run_mli, "ANTs SyN (antspyx)": run_ants}


def child(name: str, repeats: int) -> None:
    """Run one method and print its figures as JSON."""
    seconds, warped = METHODS[name](repeats)
    fixed = sitk.GetArrayFromImage(tissue(sitk.ReadImage(str(FIXED))))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": seconds, "dice": overlap(warped, fixed), "peak_gb": peak}))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="")
    parser.add_argument("--peer", choices=("ants", "none"), default="ants")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.repeats)
        return
    before = overlap(*(sitk.GetArrayFromImage(tissue(sitk.ReadImage(str(f)))) for f in (MOVING, FIXED)))
    print(f"{'':28}{'median s':>10}{'Dice of tissues':>17}{'peak GB':>9}\n{'before':28}{'':>10}{before:17.3f}")
    figures: dict[str, Any] = {"before": {"dice": before}, "cores": os.cpu_count()}
    for name in list(METHODS)[: 1 if arguments.peer == "none" else None]:
        command = [sys.executable, __file__, "--child", name, "--repeats", str(arguments.repeats)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        found["median"] = statistics.median(found["seconds"])
        figures[name] = found
        print(f"{name:28}{found['median']:10.1f}{found['dice']:17.3f}{found['peak_gb']:9.2f}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

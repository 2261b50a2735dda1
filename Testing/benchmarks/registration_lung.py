"""Speed and accuracy of lung registration between two chest CTs, beside elastix, in one run.

    PYTHONPATH=MLIModules python Testing/benchmarks/registration_lung.py [--repeats 3] [--json OUT.json] [--peer none]

The pair is elastix's test data (baseline and follow-up of one patient, Apache-2.0) in the data folder, without its
landmarks. What is measured is the Dice of the lung masks and the correlation of intensities within the fixed lung, both
of the whole image and of its detail (what a Gaussian of 3 mm takes away). MLI is given both masks, elastix the fixed
one (with both it gives up); both start with the images' centres on each other. Each runs in a process of its own, so
that its peak memory is its own. The peer is itk-elastix in the extra `peers`: affine and B-spline with Mattes' mutual
information, its default parameter maps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

DATA = Path(os.environ.get("MLI_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data")) / "lung_ct"
FIXED, MOVING = DATA / "fixed_baseline.mha", DATA / "moving_followup.mha"
FIXED_MASK, MOVING_MASK = DATA / "fixed_baseline_mask.mha", DATA / "moving_followup_mask.mha"
#: Hounsfield units of what the moving image does not show.
AIR = -1000.0
#: Standard deviation of the Gaussian whose result is not detail, mm.
SMOOTH = 3.0


def detail(image: sitk.Image) -> np.ndarray:
    """What smoothing takes away."""
    array = sitk.GetArrayFromImage(sitk.Cast(image, sitk.sitkFloat32))
    return array - sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.Cast(image, sitk.sitkFloat32), SMOOTH))


def figures(warped: sitk.Image, warped_mask: sitk.Image) -> dict[str, float]:
    """Dice of the masks; correlation within the fixed lung, of images and of their detail."""
    fixed = sitk.ReadImage(str(FIXED))
    inside = sitk.GetArrayFromImage(sitk.ReadImage(str(FIXED_MASK))) != 0
    theirs = sitk.GetArrayFromImage(warped_mask) != 0
    whole = [sitk.GetArrayFromImage(image)[inside].astype(float) for image in (fixed, warped)]
    fine = [detail(image)[inside] for image in (fixed, warped)]
    return {
        "dice": float(2 * (inside & theirs).sum() / (inside.sum() + theirs.sum())),
        "correlation": float(np.corrcoef(*whole)[0, 1]),
        "detail": float(np.corrcoef(*fine)[0, 1]),
    }


def run_before(repeats: int) -> tuple[list[float], sitk.Image, sitk.Image]:
    """The centres on each other."""
    fixed, moving = sitk.ReadImage(str(FIXED)), sitk.ReadImage(str(MOVING))
    centred = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    return [], *_through(centred)


def _through(transform: sitk.Transform) -> tuple[sitk.Image, sitk.Image]:
    fixed = sitk.ReadImage(str(FIXED))
    return (
        sitk.Resample(sitk.ReadImage(str(MOVING)), fixed, transform, sitk.sitkLinear, AIR),
        sitk.Resample(sitk.ReadImage(str(MOVING_MASK)), fixed, transform, sitk.sitkNearestNeighbor, 0),
    )


def run_mli(repeats: int) -> tuple[list[float], sitk.Image, sitk.Image]:
    """Seconds of each run, and what came out."""
    from MLILib.registration import register

    fixed, moving, fixed_mask, moving_mask = (sitk.ReadImage(str(f)) for f in (FIXED, MOVING, FIXED_MASK, MOVING_MASK))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = register(fixed, moving, preset="lung-ct", fixed_mask=fixed_mask, moving_mask=moving_mask)
        seconds.append(time.perf_counter() - started)
    return seconds, *_through(result.transform)


def run_elastix(repeats: int) -> tuple[list[float], sitk.Image, sitk.Image]:
    """The same of elastix."""
    import itk

    fixed, moving = (itk.imread(str(f), itk.F) for f in (FIXED, MOVING))
    fixed_mask = itk.imread(str(FIXED_MASK), itk.UC)
    parameters = itk.ParameterObject.New()
    for kind in ("affine", "bspline"):
        parameters.AddParameterMap(parameters.GetDefaultParameterMap(kind))
    parameters.SetParameter(0, "AutomaticTransformInitialization", "true")
    parameters.SetParameter(0, "AutomaticTransformInitializationMethod", "GeometricalCenter")
    parameters.SetParameter("DefaultPixelValue", str(AIR))
    # with the moving mask, or as many valid samples as it asks for, it gives up: the lungs differ too much at first
    parameters.SetParameter("RequiredRatioOfValidSamples", "0.05")
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        image, found = itk.elastix_registration_method(
            fixed, moving, parameter_object=parameters, fixed_mask=fixed_mask
        )
        seconds.append(time.perf_counter() - started)
    for number in range(found.GetNumberOfParameterMaps()):
        found.SetParameter(number, "FinalBSplineInterpolationOrder", "0")
        found.SetParameter(number, "DefaultPixelValue", "0")
    mask = itk.transformix_filter(itk.imread(str(MOVING_MASK), itk.F), found)
    made = []
    for result in (image, mask):
        made.append(sitk.GetImageFromArray(itk.array_from_image(result)))
        made[-1].CopyInformation(sitk.ReadImage(str(FIXED)))
    return seconds, made[0], made[1]


METHODS = {"before": run_before, "MLI, preset lung-ct": run_mli, "elastix affine + B-spline": run_elastix}


def child(name: str, repeats: int) -> None:
    """Run one method and print its figures as JSON."""
    seconds, warped, mask = METHODS[name](repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": seconds, **figures(warped, mask), "peak_gb": peak}))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="")
    parser.add_argument("--peer", choices=("elastix", "none"), default="elastix")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.repeats)
        return
    print(f"{'':27}{'median s':>9}{'Dice of lungs':>15}{'correlation':>13}{'of detail':>11}{'peak GB':>9}")
    found: dict[str, Any] = {"cores": os.cpu_count()}
    for name in list(METHODS)[: 2 if arguments.peer == "none" else None]:
        command = [sys.executable, __file__, "--child", name, "--repeats", str(arguments.repeats)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr}")
        one = found[name] = json.loads(done.stdout.splitlines()[-1])
        time_text = f"{statistics.median(one['seconds']):9.1f}" if one["seconds"] else " " * 9
        print(
            f"{name:27}{time_text}{one['dice']:15.3f}{one['correlation']:13.3f}{one['detail']:11.3f}"
            f"{one['peak_gb']:9.2f}",
            flush=True,
        )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

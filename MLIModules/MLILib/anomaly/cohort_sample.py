"""A simulated cohort to try a normative model on: heads whose ventricles grow with age, and a patient with two lesions.

    python -m MLILib.anomaly.cohort_sample FOLDER

writes table.csv, an image a subject, mask.nii.gz, and patient.nii.gz (age 50, sex F) with its lesions.nii.gz.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

#: Voxels along x, y and z, of 3 mm.
SIZE = (48, 56, 44)
AGES = (20.0, 80.0)
#: The patient's age and sex, and the centres and radii of the lesions, in voxels (z, y, x).
PATIENT = (50.0, "F")
LESIONS = (((26, 18, 14), 3.0, 22.0), ((18, 34, 32), 2.4, -22.0))


def subject(age: float, sex: str, seed: int) -> npt.NDArray[np.float32]:
    """A head of 100 to 70 (white matter, by age), 80 (cortex) and 30 (ventricles), noise of deviation 6, (z, y, x)."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*((np.arange(n) - (n - 1) / 2) / (n / 2) for n in SIZE[::-1]), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    years = (age - AGES[0]) / (AGES[1] - AGES[0])
    width = 0.10 + 0.10 * years**2 + (0.02 if sex == "M" else 0.0) + 0.004 * rng.normal()
    ventricle = np.sqrt(((np.abs(x) - 0.14) / width) ** 2 + (y / 0.42) ** 2 + (z / 0.26) ** 2)
    head = np.full(radius.shape, 100.0 - 30.0 * years**2)
    head[radius > 0.72] = 80.0
    head[ventricle < 1] = 30.0
    head[radius > 0.88] = 0.0
    smooth = ndimage.gaussian_filter(head, 0.8)
    return (smooth + 6.0 * rng.normal(size=smooth.shape) * (radius < 0.95)).astype(np.float32)


def image(array: npt.NDArray[np.generic]) -> sitk.Image:
    """An array on the sample's grid, its centre at the origin."""
    made = sitk.GetImageFromArray(array)
    made.SetSpacing((3.0, 3.0, 3.0))
    made.SetOrigin([-1.5 * (n - 1) for n in SIZE])
    return made


def write(folder: str | Path, subjects: int = 60, seed: int = 0) -> Path:
    """Write the cohort into a folder that is made where there is none; the path of the table."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(subjects):
        age, sex = float(rng.uniform(*AGES)), "FM"[int(rng.integers(2))]
        name = f"normal{i:03d}.nii.gz"
        sitk.WriteImage(image(subject(age, sex, seed + i + 1)), str(root / name), True)
        rows.append([f"normal{i:03d}", f"{age:.1f}", sex, name])
    patient = subject(*PATIENT, seed + subjects + 1)
    lesions = np.zeros(patient.shape, np.uint8)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in patient.shape), indexing="ij"), axis=-1)
    for centre, reach, change in LESIONS:
        there = np.linalg.norm(grid - np.array(centre), axis=-1) <= reach
        patient[there] += change
        lesions[there] = 1
    half = (np.array(patient.shape) - 1) / 2
    mask = np.linalg.norm((grid - half) / (half + 0.5), axis=-1) < 0.85
    for made, name in ((patient, "patient"), (lesions, "lesions"), (mask.astype(np.uint8), "mask")):
        sitk.WriteImage(image(made), str(root / f"{name}.nii.gz"), True)
    with open(root / "table.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerows([["subject", "age", "sex", "image"], *rows])
    return root / "table.csv"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m MLILib.anomaly.cohort_sample", description=__doc__)
    parser.add_argument("folder", help="where to write")
    parser.add_argument("--subjects", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"Wrote {write(given.folder, given.subjects, given.seed)}.")


if __name__ == "__main__":
    main()

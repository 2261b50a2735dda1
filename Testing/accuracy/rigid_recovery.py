"""How often a rigid registration of T2 to T1 by normalised mutual information finds back from a random start.

    PYTHONPATH=MLIModules python Testing/accuracy/rigid_recovery.py [--starts 20]

The images are of one patient of the Open MS data (Lesjak 2017, CC BY), in one space: the truth is the identity. The
moving image is turned by up to 20 degrees about a random axis through its middle, and shifted by up to 20 mm; what is
found is compared with what was done, over the brain.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MLILib.geometry import Grid
from MLILib.registration.conversion import linear_to_sitk, middle
from MLILib.registration.pairwise import register

DATA = Path(os.environ.get("MLI_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
MOST_MM, MOST_DEGREES = 20.0, 20.0
#: Found back means within this.
LIMIT_MM, LIMIT_DEGREES = 0.3, 0.3


def random_rigid(rng: np.random.Generator, about: np.ndarray) -> np.ndarray:
    """A rotation about a random axis through `about` and a shift in a random direction, LPS mm, 4 x 4."""
    axis, direction = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    angle = math.radians(rng.uniform(0, MOST_DEGREES))
    k = np.cross(np.eye(3), axis)
    turn = np.eye(3) - math.sin(angle) * k + (1 - math.cos(angle)) * k @ k
    out = np.eye(4)
    out[:3, :3] = turn
    out[:3, 3] = about - turn @ about + direction * rng.uniform(0, MOST_MM)
    return out


def moved(image: sitk.Image, matrix: np.ndarray) -> sitk.Image:
    """The image with its voxels where `matrix` brings them; nothing is interpolated."""
    out = sitk.Image(image)
    direction = matrix[:3, :3] @ np.reshape(image.GetDirection(), (3, 3))
    out.SetDirection(direction.ravel().tolist())
    out.SetOrigin((matrix[:3, :3] @ np.asarray(image.GetOrigin()) + matrix[:3, 3]).tolist())
    return out


def error(found: np.ndarray, truth: np.ndarray, about: np.ndarray) -> tuple[float, float]:
    """How far the middle of the image is off, mm, and by how much it is turned, degrees."""
    off = np.linalg.inv(truth) @ found
    angle = math.degrees(math.acos(min(1.0, max(-1.0, (np.trace(off[:3, :3]) - 1) / 2))))
    return float(np.linalg.norm(off[:3, :3] @ about + off[:3, 3] - about)), angle


def measure(starts: int, similarity: str = "nmi", seed: int = 1, folder: Path = DATA) -> list[tuple[float, float]]:
    """The errors (mm, degrees) from as many random starts."""
    patient = folder / "ms_lesions" / "patient07"
    fixed, moving = (sitk.ReadImage(str(patient / name)) for name in ("T1.nii.gz", "T2.nii.gz"))
    about = middle(Grid.of(fixed))
    rng = np.random.default_rng(seed)
    errors = []
    for number in range(starts):
        truth = random_rigid(rng, about)
        begun = time.monotonic()
        result = register(
            fixed, moved(moving, truth), preset="rigid-multimodal", similarity=similarity,
            init=linear_to_sitk(np.eye(4), about), device="auto",
        )  # fmt: skip
        spent = time.monotonic() - begun
        start, end = error(np.eye(4), truth, about), error(result.linear, truth, about)
        errors.append(end)
        print(
            f"{number + 1:3d}  start {start[0]:5.1f} mm {start[1]:5.1f} deg   end {end[0]:7.3f} mm {end[1]:7.3f} deg   "
            f"{spent:5.1f} s",
            flush=True,
        )
    return errors


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--similarity", default="nmi")
    arguments = parser.parse_args()
    errors = measure(arguments.starts, arguments.similarity)
    good = sum(mm <= LIMIT_MM and degrees <= LIMIT_DEGREES for mm, degrees in errors)
    print(f"within {LIMIT_MM} mm and {LIMIT_DEGREES} degrees: {good} of {len(errors)}")


if __name__ == "__main__":
    main()

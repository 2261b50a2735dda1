"""Makes the sample of MLI Registration: the right hippocampus region of the MNI152 template, moved in a known way.

The moved image lies on an oblique grid of other voxels, and was turned, shifted and bent by a known transform, which
gives its landmarks; a little noise was added. Run as ``python demo/make_registration_sample.py`` after a change; needs
the package nilearn.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import SimpleITK as sitk

import mni152

FOLDER = Path(__file__).resolve().parents[1] / "MLIModules" / "Registration" / "Resources" / "SampleData"

_SCHEMAS = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema"

#: Half of the bending's wave length and its amplitude, mm.
_HALF_WAVE, _AMPLITUDE = 24.0, 2.5
_DEGREES = (5.0, -8.0, 12.0)
_SHIFT = (-7.0, 5.0, 4.0)
_SPACING = (1.1, 1.1, 1.3)
_SIZE = (40, 52, 40)
_NOISE = 3.0
#: Offsets of the landmarks from the middle of the fixed image, LPS mm.
_LANDMARKS = ((0, 0, 0), (8, 10, -6), (-8, 12, 5), (6, -12, 8), (-7, -10, -8), (2, 14, 10), (-3, -14, 2), (9, 0, 9))


def main() -> None:
    """Write the moved image and the landmarks of both."""
    brain = mni152.template()
    region = mni152.region(brain, "right")
    middle = np.array(region.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in region.GetSize()]))
    back = _moved_to_template(middle)
    grid = sitk.Image(_SIZE, sitk.sitkUInt8)
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), *(math.radians(a) for a in (10.0, -14.0, 20.0)))
    matrix = np.array(turn.GetMatrix()).reshape(3, 3) @ np.diag([-1.0, -1.0, 1.0])
    grid.SetSpacing(_SPACING)
    grid.SetDirection(matrix.flatten().tolist())
    centre = middle + _SHIFT
    grid.SetOrigin((centre - matrix @ (np.array(_SPACING) * (np.array(_SIZE) - 1) / 2)).tolist())
    moved = sitk.Resample(sitk.Cast(brain, sitk.sitkFloat32), grid, back, sitk.sitkBSpline3, 0.0, sitk.sitkFloat32)
    noisy = sitk.GetArrayFromImage(moved) + np.random.default_rng(0).normal(0, _NOISE, _SIZE[::-1])
    out = sitk.GetImageFromArray(np.clip(np.round(noisy), 0, 255).astype(np.uint8))
    out.CopyInformation(grid)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "MNI152_right_hippocampus_moved.nrrd"
    sitk.WriteImage(out, str(path), useCompression=True)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
    wanted = [middle + offset for offset in _LANDMARKS]
    moving = [_inverse(back, point) for point in wanted]
    for name, points in (("fixed", wanted), ("moved", moving)):
        _write_points(FOLDER / f"MNI152_right_hippocampus_{name}_landmarks.mrk.json", points)


def _moved_to_template(middle: np.ndarray) -> sitk.Transform:
    """From points of the moved image to points of the template: first bent, then turned and shifted."""
    rigid = sitk.Euler3DTransform(
        (middle + _SHIFT).tolist(), *(math.radians(a) for a in _DEGREES), [-s for s in _SHIFT]
    )
    lattice = np.stack(np.meshgrid(*(np.arange(100.0) - 50.0,) * 3, indexing="ij"), -1)  # (x, y, z, 3) offsets
    waves = np.sin(np.pi * lattice / _HALF_WAVE)
    bend = _AMPLITUDE * np.stack([waves[..., 1], waves[..., 2], waves[..., 0]], -1)
    field = sitk.GetImageFromArray(np.ascontiguousarray(bend.transpose(2, 1, 0, 3)), isVector=True)
    field.SetOrigin((middle + _SHIFT - 50.0).tolist())
    return sitk.CompositeTransform([rigid, sitk.DisplacementFieldTransform(field)])


def _inverse(transform: sitk.Transform, point: np.ndarray) -> np.ndarray:
    """The point that `transform` takes to `point`, by fixed-point iteration."""
    found = point.copy()
    for _ in range(200):
        found = found + 0.7 * (point - np.array(transform.TransformPoint(found.tolist())))
    if not np.allclose(transform.TransformPoint(found.tolist()), point, atol=1e-6):
        msg = f"no point of the moved image comes to {point}"
        raise ValueError(msg)
    return found


def _write_points(path: Path, points: list[np.ndarray]) -> None:
    controls = [
        {"id": str(n), "label": f"L-{n}", "position": [round(float(x), 3) for x in point]}
        for n, point in enumerate(points, start=1)
    ]
    schema = f"{_SCHEMAS}/markups-schema-v1.0.3.json#"
    markups = [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": controls}]
    path.write_text(json.dumps({"@schema": schema, "markups": markups}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

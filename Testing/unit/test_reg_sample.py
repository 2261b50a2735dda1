"""The sample pair of MLI Registration: its landmarks show the same places, and it is what the script makes."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "MLIModules" / "Registration" / "Resources" / "SampleData"
FIXED = ROOT / "MLIModules" / "Segmentation" / "Resources" / "SampleData" / "MNI152_right_hippocampus_T1.nrrd"
MOVED = FOLDER / "MNI152_right_hippocampus_moved.nrrd"


def points(name: str) -> list[list[float]]:
    held = json.loads((FOLDER / f"MNI152_right_hippocampus_{name}_landmarks.mrk.json").read_text(encoding="utf-8"))
    assert held["markups"][0]["coordinateSystem"] == "LPS"
    return [control["position"] for control in held["markups"][0]["controlPoints"]]


def test_landmarks_lie_at_the_same_tissue_and_far_apart() -> None:
    """Noise of 3 was added, and trilinear sampling of coarser voxels blurs edges; the images have 255 greys."""
    fixed, moved = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (FIXED, MOVED))
    ours = np.array([fixed.EvaluateAtPhysicalPoint(p, sitk.sitkLinear) for p in points("fixed")])
    theirs = np.array([moved.EvaluateAtPhysicalPoint(p, sitk.sitkLinear) for p in points("moved")])
    assert np.abs(ours - theirs).mean() < 6.0
    before = np.array([moved.EvaluateAtPhysicalPoint(p, sitk.sitkLinear) for p in points("fixed")])
    assert np.abs(ours - before).mean() > 12.0
    assert np.linalg.norm(np.subtract(points("fixed"), points("moved")), axis=1).min() > 4.0


def test_the_script_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("nilearn") is None:
        pytest.skip("nilearn is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    spec = importlib.util.spec_from_file_location("make_registration_sample", ROOT / "demo/make_registration_sample.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    script.main()
    made, shipped = (sitk.ReadImage(str(folder / MOVED.name)) for folder in (tmp_path, FOLDER))
    assert made.GetOrigin() == pytest.approx(shipped.GetOrigin())
    assert made.GetDirection() == pytest.approx(shipped.GetDirection())
    difference = sitk.GetArrayFromImage(made).astype(int) - sitk.GetArrayFromImage(shipped)
    assert np.abs(difference).max() <= 1
    for name in ("fixed", "moved"):
        file = f"MNI152_right_hippocampus_{name}_landmarks.mrk.json"
        ours, theirs = (json.loads((folder / file).read_text(encoding="utf-8")) for folder in (tmp_path, FOLDER))
        assert ours == theirs
    sys.modules.pop("mni152", None)

"""The task "register" around a registration that is known: what is read, refused, measured and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from MLILib.errors import BadInput
from MLILib.geometry import Grid, from_array, same_grid
from MLILib.labels import Label
from MLILib.progress import Progress
from MLILib.registration import conversion, task
from MLILib.registration.pairwise import Registration
from MLILib.registration.requests import RegisterRequest
from MLILib.segmentation import label_files, seg_nrrd

STEP = (4.0, -2.0, 3.0)  # mm, from fixed to moving points
GRID = Grid((20, 18, 16), (1.0, 1.0, 1.5), (-5.0, 3.0, 7.0), tuple(np.eye(3).ravel()))


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with fixed.nii.gz and moving.nii.gz, the same voxels `STEP` apart; registration finds exactly that."""
    rng = np.random.default_rng(0)
    array = sitk.GetArrayFromImage(
        sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(rng.normal(100, 40, GRID.shape).astype(np.float32)), 1.5)
    )
    _save(tmp_path / "fixed.nii.gz", array.astype(np.int16), GRID)
    _save(tmp_path / "moving.nii.gz", array.astype(np.int16), _moved(GRID))
    monkeypatch.setattr(task, "register", _known)
    return tmp_path


def _moved(grid: Grid) -> Grid:
    origin = tuple(a + b for a, b in zip(grid.origin, STEP, strict=True))
    return Grid(grid.size, grid.spacing, origin, grid.direction)


def _known(fixed: sitk.Image, moving: sitk.Image, **given: Any) -> Registration:
    d = fixed.GetDimension()
    matrix = np.eye(d + 1)
    matrix[:d, d] = STEP[:d]
    transform = conversion.to_sitk(matrix, None, Grid.of(fixed))
    given["progress"].stage("Rigid, level 1 of 1")
    return Registration(
        transform=transform, linear=matrix, displacement=None,
        grid=Grid.of(fixed), curve=[{"stage": "rigid", "level": 1, "iteration": 0, "value": 0.5}],
        warnings=["said by the registration."], seconds=0.0, device="CPU",
    )  # fmt: skip


def _save(path: Path, array: np.ndarray, grid: Grid) -> str:
    sitk.WriteImage(from_array(array, grid), str(path))
    return str(path)


def _cube(shape: tuple[int, ...], value: int = 1) -> np.ndarray:
    out = np.zeros(shape, np.uint8)
    out[tuple(slice(4, 10) for _ in shape)] = value
    return out


def _run(folder: Path, **settings: Any) -> dict[str, Any]:
    paths = {
        name: str(folder / value) if isinstance(value, str) and "." in value else value
        for name, value in settings.items()
    }
    request = RegisterRequest(
        **{"fixed": str(folder / "fixed.nii.gz"), "moving": str(folder / "moving.nii.gz"), **paths}
    )
    request.check()
    return task.run(request, Progress())


def _refused(folder: Path, words: str, **settings: Any) -> None:
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(BadInput, match=words):
        _run(folder, **settings)
    assert sorted(p.name for p in folder.iterdir()) == before


class TestOutputs:
    def test_everything(self, pair: Path) -> None:
        _save(pair / "fl.nii.gz", _cube(GRID.shape), GRID)
        _save(pair / "ml.nii.gz", _cube(GRID.shape), _moved(GRID))
        (pair / "p.csv").write_text("0,5,9\n3,8,12\n9,9,20\n1,1,1\n", encoding="utf-8")
        (pair / "q.csv").write_text("4,3,12\n7,6,15\n13,7,23\n5,-1,4\n", encoding="utf-8")
        found = _run(
            pair, output="warped.nii.gz", transform="t.h5", inverse="i.nrrd", jacobian="j.nii.gz", report="r.json",
            fixed_labels="fl.nii.gz", moving_labels="ml.nii.gz", warped_labels="wl.nii.gz", fixed_points="p.csv",
            moving_points="q.csv",
        )  # fmt: skip
        fixed = sitk.ReadImage(str(pair / "fixed.nii.gz"))
        warped = sitk.ReadImage(found["output"])
        assert warped.GetPixelID() == sitk.sitkInt16
        assert same_grid(warped, fixed)
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(warped), sitk.GetArrayViewFromImage(fixed))
        assert sitk.ReadTransform(found["transform"]).TransformPoint((1.0, 2, 3)) == pytest.approx((5, 0, 6))
        inverse = conversion.read_transform(found["inverse"])
        assert inverse.TransformPoint((5.0, 10.0, 15.0)) == pytest.approx((1, 12, 12))
        np.testing.assert_allclose(sitk.GetArrayFromImage(sitk.ReadImage(found["jacobian"])), 1, atol=1e-6)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(found["warped_labels"])), _cube(GRID.shape))
        measured = found["quality"]
        assert measured["dice"]["1"]["after"] == 1.0
        assert measured["dice"]["1"]["before"] < 0.5
        assert measured["tre"]["before_mean"] == pytest.approx(np.linalg.norm(STEP))
        assert measured["tre"]["max"] == pytest.approx(0, abs=1e-9)
        assert found["kind"] == "linear"
        assert found["warnings"] == ["said by the registration."]
        assert "Similarity mind, lower is better" in found["text"]
        assert "Rigid, level 1 of 1" in found["stages"]
        assert json.loads(json.dumps(found, allow_nan=False))["linear"][0][3] == 4.0
        noted = json.loads(Path(found["record"]).read_text(encoding="utf-8"))
        assert noted["quality"] == json.loads(json.dumps(measured))
        assert len(noted["inputs"]) == 6
        report = json.loads((pair / "r.json").read_text(encoding="utf-8"))
        assert report["quality"] == noted["quality"]
        assert report["record"]["command"] == noted["command"]
        assert report["curve"] == found["curve"]
        assert set(found["pictures"]) >= {"report", "overlay", "checkerboard", "difference", "histogram", "flicker"}
        assert all(Path(path).is_file() and "r_" in path for path in found["pictures"].values())
        made = {Path(p).name for p in [*found["pictures"].values(), found["record"]]}
        asked = {"warped.nii.gz", "t.h5", "i.nrrd", "j.nii.gz", "r.json", "wl.nii.gz"}
        given = {"fixed.nii.gz", "moving.nii.gz", "fl.nii.gz", "ml.nii.gz", "p.csv", "q.csv"}
        assert {p.name for p in pair.iterdir()} == made | asked | given

    def test_only_a_transform(self, pair: Path) -> None:
        found = _run(pair, transform="t.nii.gz")
        field = sitk.ReadImage(found["transform"])
        np.testing.assert_allclose(sitk.GetArrayFromImage(field)[3, 4, 5], STEP, atol=1e-5)
        assert found["record"].endswith("t.json")
        assert found["output"] == found["report"] == ""
        assert found["pictures"] == {}

    def test_report_named_like_the_record(self, pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(task, "_draw", lambda *given: {})
        found = _run(pair, output="warped.nii.gz", report="warped.json")
        assert found["record"] == found["report"]
        report = json.loads(Path(found["report"]).read_text(encoding="utf-8"))
        assert report["record"]["task"] == "register"
        assert report["quality"]["jacobian"]["folded"] == 0

    def test_no_inverse(self, pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def without(*images: Any, **given: Any) -> Registration:
            result = _known(*images, **given)
            result.inverse = None
            return result

        monkeypatch.setattr(task, "register", without)
        found = _run(pair, transform="t.h5", inverse="i.h5")
        assert found["inverse"] == ""
        assert not (pair / "i.h5").exists()
        assert "The inverse was not written: the transform has none." in found["warnings"]

    def test_flat(self, pair: Path) -> None:
        array = np.random.default_rng(1).integers(0, 255, (30, 24), np.uint8)
        for name, origin in (("f.mha", (0.0, 0.0)), ("m.mha", STEP[:2])):
            _save(pair / name, array, Grid((24, 30), (1.0, 1.0), origin, (1.0, 0.0, 0.0, 1.0)))
        found = _run(pair, fixed="f.mha", moving="m.mha", output="w.mha")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(found["output"])), array)

    def test_segmentation_keeps_names_and_overlaps(self, pair: Path) -> None:
        layers = np.stack([_cube(GRID.shape), np.roll(_cube(GRID.shape), 2, axis=0)], axis=-1)
        segments = [Label(1, "liver", (1, 0, 0), ""), Label(2, "tumour", (0, 1, 0), "")]
        seg_nrrd.write(from_array(layers, _moved(GRID), vector=True), segments, str(pair / "m.seg.nrrd"))
        found = _run(pair, output="w.nii.gz", moving_labels="m.seg.nrrd", warped_labels="wl.seg.nrrd")
        written = label_files.read(found["warped_labels"])
        assert [label.name for label in written.labels] == ["liver", "tumour"]
        for i, label in enumerate(written.labels):
            np.testing.assert_array_equal(written.layers[label.layer] == label.value, layers[..., i] == 1)
        _refused(
            pair, r"They overlap, in 2 layers", output="o.nii.gz", moving_labels="m.seg.nrrd", warped_labels="x.nii"
        )


class TestMasks:
    def test_passed_on_as_zeros_and_ones(self, pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = {}

        def watch(*images: Any, **given: Any) -> Registration:
            seen.update(given)
            return _known(*images, **given)

        monkeypatch.setattr(task, "register", watch)
        _save(pair / "mask.nii.gz", _cube(GRID.shape, 7), GRID)
        found = _run(pair, output="w.nii.gz", fixed_mask="mask.nii.gz")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(seen["fixed_mask"]), _cube(GRID.shape))
        assert seen["moving_mask"] is None
        assert found["warnings"] == ["said by the registration."]

    def test_another_grid_is_resampled_and_said(self, pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = {}

        def watch(*images: Any, **given: Any) -> Registration:
            seen.update(given)
            return _known(*images, **given)

        monkeypatch.setattr(task, "register", watch)
        half = Grid((10, 9, 8), (2.0, 2.0, 3.0), (-4.5, 3.5, 7.75), GRID.direction)
        _save(pair / "mask.nii.gz", _cube(half.shape), half)
        found = _run(pair, output="w.nii.gz", fixed_mask="mask.nii.gz")
        assert "mask.nii.gz is not on the grid of" in found["warnings"][0]
        assert same_grid(seen["fixed_mask"], GRID)
        whole = np.zeros(GRID.shape, np.uint8)
        whole[8:16, 8:18, 8:20] = 1
        np.testing.assert_array_equal(sitk.GetArrayFromImage(seen["fixed_mask"]), whole)

    def test_empty(self, pair: Path) -> None:
        _save(pair / "mask.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
        _refused(pair, r"mask\.nii\.gz is empty", output="w.nii.gz", moving_mask="mask.nii.gz")

    def test_elsewhere(self, pair: Path) -> None:
        far = Grid(GRID.size, GRID.spacing, (900.0, 0.0, 0.0), GRID.direction)
        _save(pair / "mask.nii.gz", _cube(GRID.shape), far)
        _refused(pair, r"does not overlap", output="w.nii.gz", fixed_mask="mask.nii.gz")

    def test_flat_mask_of_a_volume(self, pair: Path) -> None:
        _save(pair / "mask.mha", _cube((20, 20)), Grid((20, 20), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0)))
        _refused(pair, r"mask\.mha is 2-D", output="w.nii.gz", fixed_mask="mask.mha")


class TestBadInput:
    def test_two_and_three_dimensions(self, pair: Path) -> None:
        _save(pair / "f.mha", _cube((20, 20)), Grid((20, 20), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0)))
        _refused(pair, r"f\.mha is 2-D and .*moving\.nii\.gz 3-D", fixed="f.mha", output="w.nii.gz")

    def test_blank_image(self, pair: Path) -> None:
        _save(pair / "f.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
        _refused(pair, "everywhere", fixed="f.nii.gz", output="w.nii.gz")

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"transform": "t.txt"}, "t.txt has no ending"),
            ({"output": "w.txt"}, "w.txt has no ending"),
            ({"output": "w.nii.gz", "jacobian": "j.h5"}, "j.h5 has no ending"),
            ({"output": "w.nii.gz", "report": "r.txt"}, "r.txt is no name for the report"),
            ({"output": "w.nii.gz", "inverse": "i.png"}, "i.png has no ending"),
        ],
    )
    def test_names(self, pair: Path, settings: dict[str, str], words: str) -> None:
        _refused(pair, words, **settings)

    def test_input_is_not_overwritten(self, pair: Path) -> None:
        (pair / "sub").mkdir()
        _refused(pair, "is an input", output="sub/../fixed.nii.gz")
        (pair / "w.json").write_text("{}", encoding="utf-8")
        _refused(pair, "is an input", output="w.nii.gz", fixed_points="w.json", moving_points="w.json")

    def test_few_landmarks(self, pair: Path) -> None:
        (pair / "p.csv").write_text("0,5,9\n3,8,12\n", encoding="utf-8")
        _refused(pair, "are 2 points", output="w.nii.gz", fixed_points="p.csv", moving_points="p.csv")

    def test_failure_while_writing_leaves_nothing(self, pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*given: Any, **named: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(task, "write_transform", full)
        _refused(pair, "is full", output="w.nii.gz", transform="t.h5", report="r.json")

"""mli train normative and mli normative, as a user runs them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grids
import numpy as np
import pytest
import SimpleITK as sitk

from MLILib import cli
from MLILib.anomaly import cohort_sample
from MLILib.anomaly.normative_model import NormativeModel

SHAPE = (6, 9, 8)


def _grid(array: np.ndarray) -> sitk.Image:
    """An array on an oblique, anisotropic, left-handed grid."""
    return grids.place(sitk.GetImageFromArray(array), np.random.default_rng(5))


def _head(age: float, sex: str, seed: int) -> np.ndarray:
    """100 + age in one half, 100 + 10 for men in the other, with noise of deviation 2."""
    values = 100 + 2 * np.random.default_rng(seed).normal(size=SHAPE)
    values[:, :, :4] += age
    values[:, :, 4:] += 10 * (sex == "M")
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, its images, and a model of them."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        age, sex = round(float(rng.uniform(20, 60)), 1), "FM"[i % 2]
        sitk.WriteImage(_grid(_head(age, sex, i + 1)), str(folder / f"{i}.nrrd"))
        rows.append({"subject": f"s{i}", "image": f"{i}.nrrd", "age": age, "sex": sex})
    _write(folder / "table.csv", rows)
    assert cli.main(["train", "normative", str(folder / "table.csv"), "-o", str(folder / "model.npz")]) == 0
    return folder


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _mli(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON result of `mli`."""
    code = cli.main([*(str(word) for word in words), "--json"])
    return code, json.loads(capfd.readouterr().out)


def _error(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """The sentence with which `mli` refuses."""
    code = cli.main([str(word) for word in words])
    assert code == 2
    return capfd.readouterr().err


def test_training_tells_how_well_it_is_calibrated(
    cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, told = _mli(capfd, "train", "normative", cohort / "table.csv", "-o", tmp_path / "m.npz")
    assert code == 0
    assert told["subjects"] == 40
    assert told["targets"] == np.prod(SHAPE)
    assert told["calibration"]["share_within_1.96"] == pytest.approx(0.95, abs=0.015)
    # Half of the voxels follow age (deviation 11.5), half sex (deviation 5), the noise is 2.
    true = (11.5**2 / (11.5**2 + 4) + 25 / (25 + 4)) / 2
    assert told["calibration"]["explained"] == pytest.approx(true, abs=0.04)
    assert {one["name"] for one in told["covariates"]} == {"age", "sex"}
    record = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert record["command"].startswith("mli train normative")
    assert len(record["files"]) == 40
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "m.npz"]
    cli.main(["train", "normative", str(cohort / "table.csv"), "-o", str(tmp_path / "m.npz")])
    assert "|z| < 1.96 in 9" in capfd.readouterr().out


def test_a_lesion_is_found_where_it_is(cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    head = _head(40, "F", 99)
    head[1:4, 2:5, 5:8] += 15
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[1:4, 2:5, 5:8] = 1
    sitk.WriteImage(_grid(head), str(tmp_path / "patient.nrrd"))
    sitk.WriteImage(_grid(lesion), str(tmp_path / "lesion.nrrd"))
    names = {name: tmp_path / f"{name}.nii.gz" for name in ("output", "labels", "mean", "sd")}
    files = [word for name, path in names.items() for word in (f"--{name}", path)]
    code, told = _mli(
        capfd, "normative", tmp_path / "patient.nrrd", "-m", cohort / "model.npz", "--covariates", "age=40", "sex=F",
        *files, "--table", tmp_path / "found.csv", "--report", tmp_path / "report.json",
        "--reference", tmp_path / "lesion.nrrd",
    )  # fmt: skip
    assert code == 0
    maps = {name: sitk.ReadImage(str(path)) for name, path in names.items()}
    for made in maps.values():
        np.testing.assert_allclose(made.GetOrigin(), _grid(head).GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(made.GetDirection(), _grid(head).GetDirection(), atol=1e-5)
    mean, sd, z = (sitk.GetArrayFromImage(maps[name]) for name in ("mean", "sd", "output"))
    assert mean[:, :, :4].mean() == pytest.approx(140, abs=0.5)
    assert mean[:, :, 4:].mean() == pytest.approx(100, abs=0.5)
    assert np.median(sd) == pytest.approx(2, abs=0.2)
    np.testing.assert_allclose(z, (head - mean) / sd, atol=1e-3)
    assert z[lesion == 0].std() == pytest.approx(1, abs=0.12)
    assert len(told["findings"]) == 1
    middle = _grid(head).TransformIndexToPhysicalPoint((6, 3, 2))
    np.testing.assert_allclose(told["findings"][0]["centre_lps"], middle, atol=1.0)
    table = _rows(tmp_path / "found.csv")
    assert float(table[0]["centre_lps_L_mm"]) == pytest.approx(told["findings"][0]["centre_lps"][0], abs=1e-3)
    scores = told["evaluation"]["voxels"]
    assert scores["z-score, both sides"]["auprc"] > 0.95
    # Without age, half of the image is as unusual as the lesion.
    assert scores["high intensity"]["auprc"] < 0.5
    assert (tmp_path / "report_curves.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["findings"] == told["findings"]


def test_what_is_normal_at_one_age_is_not_at_another(
    cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sitk.WriteImage(_grid(_head(25, "F", 77)), str(tmp_path / "young.nrrd"))
    ask = ("normative", tmp_path / "young.nrrd", "-m", cohort / "model.npz", "-o", tmp_path / "z.nrrd", "--covariates")
    assert _mli(capfd, *ask, "age=25,sex=F")[1]["within"] > 0.9
    told = _mli(capfd, *ask, "age=55,sex=F")[1]
    assert told["within"] < 0.6
    assert told["warnings"] == []


def test_outside_of_the_trained_range_there_is_a_warning(
    cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ask = ("normative", cohort / "0.nrrd", "-m", cohort / "model.npz", "-o", tmp_path / "z.nrrd", "--covariates")
    (warning,) = _mli(capfd, *ask, "age=95", "sex=M")[1]["warnings"]
    assert "age is 95" in warning
    assert " to " in warning


@pytest.mark.parametrize(
    ("covariates", "said"),
    [
        (["age=30"], "The covariate sex of the subject is missing"),
        (["age=30", "sex=X"], "It knows F or M"),
        (["age=30", "sex=F", "weight=70"], "knows no covariate 'weight'"),
        (["age=old", "sex=F"], "It is no number"),
        (["age"], "Write NAME=VALUE"),
        (["age=30,age=31", "sex=F"], "given twice"),
    ],
)
def test_covariates_that_do_not_fit(
    cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], covariates: list[str], said: str
) -> None:
    ask = ("normative", cohort / "0.nrrd", "-m", cohort / "model.npz", "-o", tmp_path / "z.nrrd", "--covariates")
    assert said in _error(capfd, *ask, *covariates)
    assert not (tmp_path / "z.nrrd").exists()


def test_an_image_on_another_grid_is_refused(cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = sitk.GetImageFromArray(_head(30, "F", 1))
    sitk.WriteImage(other, str(tmp_path / "other.nrrd"))
    said = _error(
        capfd, "normative", tmp_path / "other.nrrd", "-m", cohort / "model.npz", "--covariates", "age=30,sex=F",
        "-o", tmp_path / "z.nrrd",
    )  # fmt: skip
    assert "not on the grid of the training images" in said
    assert "mli register" in said


def test_all_files_that_cannot_be_used_are_named(
    cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [{**row, "image": str(cohort / row["image"])} for row in _rows(cohort / "table.csv")]
    sitk.WriteImage(sitk.GetImageFromArray(_head(30, "F", 1)), str(tmp_path / "shifted.nrrd"))
    broken = _head(30, "F", 1)
    broken[0, 0, 0] = np.nan
    sitk.WriteImage(_grid(broken), str(tmp_path / "nan.nrrd"))
    rows[0]["image"], rows[7]["image"] = str(tmp_path / "gone.nrrd"), str(tmp_path / "nan.nrrd")
    _write(tmp_path / "table.csv", rows)
    said = _error(capfd, "train", "normative", tmp_path / "table.csv", "-o", tmp_path / "m.npz")
    assert "2 of the files" in said
    assert "gone.nrrd" in said
    assert "nan.nrrd" in said
    rows[0]["image"] = rows[7]["image"] = str(tmp_path / "shifted.nrrd")
    _write(tmp_path / "table.csv", rows)
    said = _error(capfd, "train", "normative", tmp_path / "table.csv", "-o", tmp_path / "m.npz")
    assert said.count("shifted.nrrd has 8 x 9 x 6 voxels") == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nan.nrrd", "shifted.nrrd", "table.csv"]


def test_tables_that_cannot_be_used(cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "image": str(cohort / row["image"])} for row in _rows(cohort / "table.csv")]
    table, ask = tmp_path / "table.csv", ("train", "normative", tmp_path / "table.csv", "-o", tmp_path / "m.npz")
    _write(table, rows[:9])
    assert "9 subjects" in _error(capfd, *ask)
    _write(table, [{**row, "age": "" if row["subject"] in ("s3", "s8") else row["age"]} for row in rows])
    assert "row 5: age is empty; row 10: age is empty" in _error(capfd, *ask)
    _write(table, [{**row, "age": "4O" if row["subject"] == "s3" else row["age"]} for row in rows])
    assert "such as '4O'" in _error(capfd, *ask)
    _write(table, [{**row, "site": "A"} for row in rows])
    assert "is 'A' in every subject" in _error(capfd, *ask)
    _write(table, rows)
    assert "has no column 'scan'" in _error(capfd, *ask, "--images", "scan")
    assert "has no covariates" in _error(capfd, *ask, "--values", "age", "sex", "--images", "image")
    _write(table, [{**row, "image": rows[0]["image"]} for row in rows])
    assert "Every voxel is the same" in _error(capfd, *ask)
    table.write_text("age,sex\n1,F\n2\n", encoding="utf-8")
    assert "another length than its heading: 3" in _error(capfd, *ask)
    table.write_text("age,image\n", encoding="utf-8")
    assert "no subjects" in _error(capfd, *ask)
    assert "End it with .npz" in _error(capfd, "train", "normative", table, "-o", tmp_path / "m.pkl")


def test_masks_and_voxels_that_never_change_are_left_out(
    cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inside = np.ones(SHAPE, np.uint8)
    inside[0] = 0
    sitk.WriteImage(_grid(inside), str(tmp_path / "mask.nrrd"))
    own = np.ones(SHAPE, np.uint8)
    own[5] = 0
    sitk.WriteImage(_grid(own), str(tmp_path / "own.nrrd"))
    rows: list[dict[str, Any]] = []
    for row in _rows(cohort / "table.csv"):
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(cohort / row["image"])))
        array[2, 2, 2] = -5.0
        sitk.WriteImage(_grid(array), str(tmp_path / row["image"]))
        rows.append({**row, "mask": "own.nrrd" if row["subject"] == "s4" else ""})
    _write(tmp_path / "table.csv", rows)
    ask = ("train", "normative", tmp_path / "table.csv", "-o", tmp_path / "m.npz", "--mask", tmp_path / "mask.nrrd")
    told = _mli(capfd, *ask)[1]
    assert told["targets"] == 4 * 72 - 1
    assert told["constant"] == 1
    assert any("1 of 288 voxels are the same" in text for text in told["warnings"])
    told = _mli(
        capfd, "normative", tmp_path / "3.nrrd", "-m", tmp_path / "m.npz", "--covariates", "age=30,sex=F",
        "-o", tmp_path / "z.nrrd",
    )[1]  # fmt: skip
    z = sitk.GetArrayFromImage(sitk.ReadImage(told["output"]))
    assert not z[[0, 5]].any()
    assert z[2, 2, 2] == 0
    assert np.count_nonzero(z) == 4 * 72 - 1


@pytest.mark.parametrize("patch", [1, 3])
def test_robust_normalisation_takes_scale_and_offset_away(
    cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], patch: int
) -> None:
    table = cohort / "table.csv"
    ask = ("train", "normative", table, "-o", tmp_path / "m.npz", "--normalise", "robust", "--patch", patch)
    assert _mli(capfd, *ask)[0] == 0
    head = _head(40, "F", 55)
    found = []
    for name, array in (("plain", head), ("scaled", head * 7 + 300)):
        sitk.WriteImage(_grid(array.astype(np.float32)), str(tmp_path / f"{name}.nrrd"))
        _mli(
            capfd, "normative", tmp_path / f"{name}.nrrd", "-m", tmp_path / "m.npz", "--covariates", "age=40,sex=F",
            "-o", tmp_path / f"z_{name}.nrrd",
        )  # fmt: skip
        found.append(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"z_{name}.nrrd"))))
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)


def test_a_patch_is_the_mean_of_its_box(cohort: Path) -> None:
    from scipy import ndimage

    from MLILib.anomaly.normative_model import prepare

    head = _head(30, "F", 1)
    got = prepare(_grid(head), np.arange(head.size), "none", 3).reshape(SHAPE)
    counted = ndimage.convolve(np.ones(SHAPE), np.ones((3, 3, 3)), mode="constant")
    expected = ndimage.convolve(head.astype(float), np.ones((3, 3, 3)), mode="constant") / counted
    np.testing.assert_allclose(got, expected)


def test_numbers_in_place_of_images(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    ages = rng.uniform(20, 80, 80)
    rows = [
        {"id": i, "age": f"{age:.2f}", "hippocampus": f"{4 - 0.02 * age + 0.2 * rng.normal():.4f}", "constant": 3}
        for i, age in enumerate(ages)
    ]
    _write(tmp_path / "t.csv", rows)
    ask = ("train", "normative", tmp_path / "t.csv", "-o", tmp_path / "m.npz", "--covariates", "age", "--values")
    assert "constant is the same in all subjects" in _error(capfd, *ask, "hippocampus", "constant")
    told = _mli(capfd, *ask, "hippocampus")[1]
    assert (told["kind"], told["targets"]) == ("values", 1)
    use = ("normative", "-m", tmp_path / "m.npz", "--covariates", "age=70", "--values")
    row = _mli(capfd, *use, "hippocampus=2.0")[1]["values"]["hippocampus"]
    assert row["mean"] == pytest.approx(2.6, abs=0.1)
    assert row["sd"] == pytest.approx(0.2, abs=0.04)
    assert row["z"] == pytest.approx((2.0 - row["mean"]) / row["sd"])
    assert cli.main([*map(str, use), "hippocampus=2.0", "--report", str(tmp_path / "r.json")]) == 0
    assert "expected" in capfd.readouterr().out
    assert "It is no number" in _error(capfd, *use, "hippocampus=small")
    assert "trained with: hippocampus" in _error(capfd, *use, "amygdala=1")
    image = tmp_path / "x.nrrd"
    sitk.WriteImage(_grid(_head(30, "F", 1)), str(image))
    assert "model of numbers" in _error(
        capfd, "normative", image, "-m", tmp_path / "m.npz", "--covariates", "age=70", "-o", tmp_path / "z.nrrd"
    )
    rows[3]["hippocampus"] = "big"
    _write(tmp_path / "t.csv", rows)
    assert "row 5: hippocampus is 'big'" in _error(capfd, *ask, "hippocampus")


def test_a_model_file_is_no_program(cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trap = tmp_path / "trap.npz"
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (ran,))

    with open(trap, "wb") as stream:
        np.savez(stream, about=np.array([Trap()], dtype=object))
    other = tmp_path / "other.npz"
    np.savez(other, images=np.zeros(3))
    text = tmp_path / "text.npz"
    text.write_text("no model", encoding="utf-8")
    cut = tmp_path / "cut.npz"
    cut.write_bytes((cohort / "model.npz").read_bytes()[:2000])
    for path in (trap, other, text, cut):
        ask = ("normative", cohort / "0.nrrd", "-m", path, "--covariates", "age=30,sex=F", "-o", tmp_path / "z.nrrd")
        assert "no normative model" in _error(capfd, *ask)
    assert not ran.exists()


def test_a_model_with_parts_of_another_is_refused(
    cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with np.load(cohort / "model.npz") as stored:
        arrays = dict(stored)
    arrays["voxels"] = arrays["voxels"] + 10**6
    np.savez(tmp_path / "bad.npz", allow_pickle=False, **arrays)
    ask = ("normative", cohort / "0.nrrd", "-m", tmp_path / "bad.npz", "--covariates", "age=30,sex=F")
    assert "do not fit each other" in _error(capfd, *ask, "-o", tmp_path / "z.nrrd")


def test_a_stored_model_expects_what_was_fitted(cohort: Path) -> None:
    model = NormativeModel.load(str(cohort / "model.npz"))
    mean, sd, _ = model.expect({"age": "33", "sex": "M"})
    images = [sitk.GetArrayFromImage(sitk.ReadImage(str(cohort / f"{i}.nrrd"))).ravel() for i in range(40)]
    rows = _rows(cohort / "table.csv")
    ages = np.array([float(row["age"]) for row in rows])
    sexes = [np.sqrt(0.5) * np.array([row["sex"] == sex for row in rows]) for sex in "FM"]
    design = np.column_stack([(ages - ages.mean()) / ages.std(), *sexes])
    new = np.array([(33 - ages.mean()) / ages.std(), 0, np.sqrt(0.5)])
    for voxel in (0, 100, 431):
        group = next(g for g in model.fitted.groups if voxel in g.members)
        signal, noise = model.fitted.signal[voxel], model.fitted.noise[voxel]
        y = np.array([image[voxel] for image in images], float)
        covariance = signal * np.exp(-0.5 * np.square((design[:, None] - design) / group.lengths).sum(2))
        near = signal * np.exp(-0.5 * np.square((design - new) / group.lengths).sum(1))
        inverse = np.linalg.inv(covariance + noise * np.eye(40))
        assert mean[voxel] == pytest.approx(y.mean() + near @ inverse @ (y - y.mean()), rel=1e-5)
        assert sd[voxel] == pytest.approx(np.sqrt(signal + noise - near @ inverse @ near), rel=1e-5)


def test_nothing_to_do_is_said(cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ask = ("normative", cohort / "0.nrrd", "-m", cohort / "model.npz", "--covariates", "age=30,sex=F")
    assert "Nothing would be written" in _error(capfd, *ask)
    assert "Both an image and numbers" in _error(capfd, *ask, "--values", "x=1")
    assert "Give an odd number" in _error(capfd, *ask, "--median", 2, "-o", tmp_path / "z.nrrd")
    blank = np.zeros(SHAPE, np.uint8)
    sitk.WriteImage(_grid(blank), str(tmp_path / "blank.nrrd"))
    assert "is empty" in _error(capfd, *ask, "--mask", tmp_path / "blank.nrrd", "-o", tmp_path / "z.nrrd")


def test_the_sample_cohort_is_what_it_says(tmp_path: Path) -> None:
    table = cohort_sample.write(tmp_path / "sample", subjects=3)
    rows = _rows(table)
    assert len(rows) == 3
    grids_of = {sitk.ReadImage(str(table.parent / row["image"])).GetSize() for row in rows}
    assert grids_of == {cohort_sample.SIZE}
    lesions, mask = (sitk.ReadImage(str(table.parent / f"{name}.nii.gz")) for name in ("lesions", "mask"))
    inside = sitk.GetArrayFromImage(mask)[sitk.GetArrayFromImage(lesions) == 1]
    assert inside.size > 100
    assert inside.all()

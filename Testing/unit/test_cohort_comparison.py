"""The task "compare": figures against `mli evaluate`'s, cases that fail, what the report says, bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from in_process import segment_here
from tiny_bundle import write_tiny_bundle
from tiny_dataset import write_dataset

from MLILib import tasks
from MLILib.cohort.requests import CompareRequest
from MLILib.errors import BadInput
from MLILib.segmentation.evaluation import compare_files


class Scene:
    """Six labelled cases, a model with random weights, and label maps that are right or off by a voxel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset = write_dataset(folder, 6)
        self.model = str(write_tiny_bundle(folder / "tiny", labels=("left", "right")))
        for name, shift in (("right", 0), ("moved", 1)):
            (folder / name).mkdir()
            for i in range(6):
                truth = sitk.ReadImage(str(folder / f"label_{i:02d}.nii.gz"))
                made = sitk.GetImageFromArray(np.roll(sitk.GetArrayFromImage(truth), shift, axis=2))
                sitk.WriteImage(made, str(folder / name / f"image_{i:02d}.nii.gz"))

    def run(self, *names: str, model: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
        values = {
            "dataset": str(self.dataset),
            "model": model,
            "predictions": tuple(f"{name}={self.folder / name}" for name in names),
            "output": str(self.folder / "out.html"),
            "device": "cpu",
        }
        return tasks.run(CompareRequest(**{**values, **changes}))

    def written(self) -> list[str]:
        return sorted(p.name for p in self.folder.glob("out.*"))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_figures_are_those_of_evaluate(scene: Scene) -> None:
    result = scene.run("right", "moved")
    assert result["ok"]
    assert scene.written() == ["out.csv", "out.html", "out.json"]
    dice = []
    for i in range(6):
        one = compare_files(scene.folder / "moved" / f"image_{i:02d}.nii.gz", scene.folder / f"label_{i:02d}.nii.gz")
        dice.append([one["1"]["dice"], one["2"]["dice"]])
    right, moved = result["methods"]
    assert right["labels"]["mean of labels"]["dice"]["mean"] == 1.0
    assert moved["labels"]["left"]["dice"]["mean"] == pytest.approx(np.mean(dice, axis=0)[0])
    assert moved["labels"]["mean of labels"]["dice"]["mean"] == pytest.approx(np.mean(dice))
    (test,) = result["tests"]["dice"]
    assert test["p"] == pytest.approx(2 / 2**6)  # better in each of six cases
    assert test["difference"] == pytest.approx(1 - np.mean(dice))
    with open(scene.folder / "out.csv", encoding="utf-8", newline="") as stream:
        rows = {(r["method"], r["case"], r["label"]): r for r in csv.DictReader(stream)}
    assert len(rows) == 2 * 6 * 3
    assert float(rows["moved", "image_03", "right"]["dice"]) == pytest.approx(dice[3][1], abs=1e-6)
    noted = json.loads((scene.folder / "out.json").read_text(encoding="utf-8"))
    assert noted["comparison"]["tests"]["dice"][0]["second"] == "moved"


def test_a_model_beside_label_maps(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    segment_here(monkeypatch)
    keep = scene.folder / "kept"
    result = scene.run("right", model=(scene.model,), keep=str(keep))
    assert [m["name"] for m in result["methods"]] == ["tiny", "right"]
    assert result["methods"][0]["measured"] == 6
    assert result["methods"][0]["seconds_a_case"] == 1.0
    assert len(list(keep.rglob("*.seg.nrrd"))) == 6
    page = (scene.folder / "out.html").read_text(encoding="utf-8")
    assert result["methods"][0]["sha256"] in page
    assert page.count("data:image/png;base64,") == 4
    again = scene.run("right", model=(scene.model,), keep=str(keep))
    assert again["methods"][0]["seconds_a_case"] is None  # nothing was segmented again
    assert again["methods"][0]["labels"] == result["methods"][0]["labels"]


def test_cases_that_cannot_be_measured_are_told(scene: Scene) -> None:
    (scene.folder / "moved" / "image_02.nii.gz").unlink()
    (scene.folder / "moved" / "image_03.nii.gz").write_bytes(b"<script>alert(1)</script>")
    result = scene.run("right", "moved")
    assert not result["ok"]
    assert set(result["methods"][1]["errors"]) == {"image_02", "image_03"}
    assert result["tests"]["dice"][0]["count"] == 4
    page = (scene.folder / "out.html").read_text(encoding="utf-8")
    assert "moved, image_02: " in page
    assert "<script>" not in page


def test_a_fold_is_the_trainings(scene: Scene) -> None:
    found = [set(scene.run("right", "moved", fold=fold, folds=3)["cases"]) for fold in range(3)]
    assert [len(one) for one in found] == [2, 2, 2]
    assert len(set.union(*found)) == 6


def test_cases_that_a_model_was_trained_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    segment_here(monkeypatch)
    docs = Path(scene.model) / "docs"
    docs.mkdir(exist_ok=True)
    (docs / "test_cases.csv").write_text("case,dice\nimage_00,0.9\nimage_04,0.9\n", encoding="utf-8")
    (note,) = [note for note in scene.run("right", model=(scene.model,))["notes"] if "trained" in note]
    assert "4 of the 6 cases" in note


def test_one_case_has_no_spread(scene: Scene) -> None:
    for name in ("right", "moved"):
        for i in range(1, 6):
            (scene.folder / name / f"image_{i:02d}.nii.gz").unlink()
    result = scene.run("right", "moved")
    assert result["tests"]["dice"][0]["low"] is None
    assert "nan" not in result["text"]
    assert "nan" not in (scene.folder / "out.html").read_text(encoding="utf-8").split("data:image")[0]


def test_refusals_write_nothing(scene: Scene) -> None:
    (scene.folder / "empty").mkdir()
    for names, changes, words in (
        (("right",), {}, "nothing to compare with"),
        (("right", "nowhere"), {}, "names no folder"),
        (("right", "right"), {}, "Two methods are called 'right'"),
        (("right", "empty"), {}, "empty has no label map of any case"),
        (("right", "moved"), {"output": str(scene.folder / "out.pdf")}, "no name for the report"),
        (("right", "moved"), {"scheduler": "tcp://localhost:1"}, "needs a folder"),
        (("right",), {"model": ("nonsense",)}, "nonsense"),
        (("right", "moved"), {"fold": 7}, "no fold 7"),
    ):
        with pytest.raises(BadInput, match=words):
            scene.run(*names, **changes)
    assert scene.written() == []

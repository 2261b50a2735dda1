"""The task "batch segment": what is done, what is skipped, what fails, on one computer and on a Dask scheduler."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from in_process import segment_here
from tiny_bundle import write_tiny_bundle
from tiny_dataset import write_dataset

from MLILib import tasks
from MLILib.cohort import batch
from MLILib.cohort.requests import BatchSegmentRequest
from MLILib.errors import BadInput, Cancelled
from MLILib.progress import Progress


class Cohort:
    """Three images, a model, and a folder for what comes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "in").mkdir()
        write_dataset(folder, 3)
        for path in folder.glob("image_*.nii.gz"):
            path.rename(folder / "in" / path.name)
        self.model = str(write_tiny_bundle(folder / "tiny"))
        self.asked: list[str] = []

    def request(self, **changes: Any) -> BatchSegmentRequest:
        values = {"cohort": str(self.folder / "in"), "model": (self.model,), "output": str(self.folder / "out")}
        return BatchSegmentRequest(**{**values, "device": "cpu", **changes})

    def run(self, progress: Progress | None = None, **changes: Any) -> dict[str, Any]:
        return tasks.run(self.request(**changes), progress)

    def table(self) -> dict[str, dict[str, str]]:
        with open(self.folder / "out" / "cohort.csv", encoding="utf-8", newline="") as stream:
            return {row["case"]: row for row in csv.DictReader(stream)}


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cohort:
    made = Cohort(tmp_path)
    made.asked = segment_here(monkeypatch)
    return made


def test_each_case_is_told_of(cohort: Cohort) -> None:
    (cohort.folder / "in" / "image_01.nii.gz").write_bytes(b"nonsense")
    told: dict[str, list[str]] = {}

    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "rater":
            told.setdefault(event["name"], []).append(event["status"])

    cohort.run(Progress(hear))
    assert told["image_00"] == ["waiting", "segmenting", "done"]
    assert told["image_01"] == ["waiting", "segmenting", "failed"]
    told.clear()
    cohort.run(Progress(hear))
    assert told["image_00"] == ["waiting", "done before"]


def test_each_case_has_labels_a_record_and_a_line(cohort: Cohort) -> None:
    result = cohort.run()
    assert result["ok"]
    assert result["counts"] == {"done": 3, "done before": 0, "failed": 0, "in the way": 0}
    for row in result["cases"]:
        labels = sitk.GetArrayFromImage(sitk.ReadImage(row["output"]))  # 1 mm voxels
        volumes = {name: np.sum(labels == i) / 1000 for i, name in ((1, "a"), (2, "b"))}
        assert row["volumes"] == pytest.approx(volumes)
        assert float(cohort.table()[row["case"]]["a (ml)"]) == pytest.approx(row["volumes"]["a"])
        assert json.loads(Path(row["output"]).with_name(f"{row['case']}.json").read_text(encoding="utf-8"))
    record = json.loads((cohort.folder / "out" / "cohort.json").read_text(encoding="utf-8"))
    assert record["task"] == "batch-segment"
    assert "3 done" in result["text"]


def test_what_is_done_is_not_done_again(cohort: Cohort) -> None:
    cohort.run()
    (cohort.folder / "out" / "image_01.nii.gz").unlink()
    cohort.asked.clear()
    result = cohort.run(workers=2)
    assert cohort.asked == ["image_01"]
    assert [row["status"] for row in result["cases"]] == ["done before", "done", "done before"]
    assert all(row["volumes"] for row in result["cases"])
    assert result["ok"]


def test_what_was_made_otherwise_is_replaced_only_when_asked(cohort: Cohort) -> None:
    cohort.run()
    shutil.copy(cohort.folder / "in" / "image_02.nii.gz", cohort.folder / "in" / "image_00.nii.gz")  # another image
    (cohort.folder / "out" / "image_02.json").unlink()  # of unknown origin
    before = (cohort.folder / "out" / "image_00.nii.gz").read_bytes()
    cohort.asked.clear()
    result = cohort.run()
    assert [row["status"] for row in result["cases"]] == ["in the way", "done before", "in the way"]
    assert not result["ok"]
    assert cohort.asked == []
    assert (cohort.folder / "out" / "image_00.nii.gz").read_bytes() == before
    assert cohort.run(overwrite=True)["counts"]["done"] == 2
    cohort.asked.clear()
    cohort.run(tta=True)  # another setting
    assert cohort.asked == []
    assert cohort.run(tta=True, overwrite=True)["counts"]["done"] == 3


def test_a_bad_case_stops_none_of_the_others(cohort: Cohort) -> None:
    (cohort.folder / "in" / "image_00.nii.gz").write_bytes(b"nonsense")
    table = cohort.folder / "cohort.csv"
    table.write_text("image\nin/image_00.nii.gz\nin/missing.nii.gz\nin/image_02.nii.gz\n", encoding="utf-8")
    said: list[str] = []
    result = cohort.run(
        Progress(lambda event: said.append(event.get("text", ""))), cohort=str(table), ending=".seg.nrrd"
    )
    assert {row["case"]: row["status"] for row in result["cases"]} == {
        "image_00": "failed", "missing": "failed", "image_02": "done",
    }  # fmt: skip
    assert not result["ok"]
    assert "does not exist" in cohort.table()["missing"]["error"]
    assert any(text.startswith("image_00: ") for text in said)
    assert "missing: " in result["text"]
    assert not list((cohort.folder / "out").glob("*missing*"))
    assert (cohort.folder / "out" / "image_02.seg.nrrd").exists()


def test_cancel_keeps_what_is_done(cohort: Cohort) -> None:
    stop = Progress(cancelled=lambda: len(cohort.asked) >= 3)
    with pytest.raises(Cancelled):
        cohort.run(stop)
    statuses = [row["status"] for row in cohort.table().values()]
    assert statuses.count("not reached") == 1
    cohort.asked.clear()
    assert cohort.run()["counts"] == {"done": 1, "done before": 2, "failed": 0, "in the way": 0}


def test_refusals_write_nothing(cohort: Cohort) -> None:
    for changes, words in (
        ({"model": ("nonsense",)}, "nonsense"),
        ({"output": str(cohort.folder / "in")}, "would overwrite its image"),
        ({"output": str(cohort.folder / "dataset.json")}, "is a file"),
        ({"workers": 2, "scheduler": "tcp://localhost:1"}, "Both workers and a scheduler"),
        ({"cohort": str(cohort.folder / "nowhere")}, "does not exist"),
    ):
        with pytest.raises(BadInput, match=words):
            cohort.run(**changes)
    assert not (cohort.folder / "out").exists()
    assert cohort.asked == []


def test_real_workers(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    (tmp_path / "in" / "image_01.nii.gz").write_bytes(b"nonsense")
    result = cohort.run(workers=2)
    assert [row["status"] for row in result["cases"]] == ["done", "failed", "done"]
    assert result["cases"][0]["volumes"]


class TestScheduler:
    def test_cases_go_to_its_workers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        distributed = pytest.importorskip("distributed")
        cohort = Cohort(tmp_path)
        (tmp_path / "in" / "image_01.nii.gz").write_bytes(b"nonsense")
        monkeypatch.chdir(tmp_path)
        cluster = distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp://"
        )
        with cluster:
            result = cohort.run(
                scheduler=cluster.scheduler_address, cohort="in", output="out", model=(os.path.relpath(cohort.model),)
            )
        assert [row["status"] for row in result["cases"]] == ["done", "failed", "done"]
        assert "not" in result["cases"][1]["error"]

    def test_nobody_answers(self, cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("distributed")
        monkeypatch.setattr(batch.cluster, "_PATIENCE", 1)
        with pytest.raises(BadInput, match="No Dask scheduler answers"):
            cohort.run(scheduler="tcp://127.0.0.1:9")

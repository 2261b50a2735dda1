"""A whole cohort from the panel of MLI Segmentation, with the real worker and workers of its own."""

import csv
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer

pytest.importorskip("torch", reason="torch is not installed")

import clicks

PATIENCE = 240


@pytest.fixture
def cohort(tmp_path):
    """A folder with two images, and one that cannot be read between them."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in ("anna", "cleo"):
        image = sitk.GetImageFromArray(rng.normal(size=(32, 32, 32)).astype(np.float32))
        sitk.WriteImage(image, str(tmp_path / "in" / f"{name}.nii.gz"))
    (tmp_path / "in" / "ben.nii.gz").write_bytes(b"nonsense")
    return tmp_path


def states(widget):
    table = widget.ui.cohortTableWidget
    return {table.item(row, 0).text(): table.item(row, 1).text() for row in range(table.rowCount)}


def test_what_is_missing_is_said(widget, cohort):
    node, button = widget._parameterNode, widget.ui.cohortButton
    assert not button.enabled
    assert "Choose the images" in button.toolTip
    node.cohortPath = str(cohort / "in")
    assert button.toolTip == "Choose the folder to write to."
    node.cohortOutput = str(cohort / "nowhere" / "out")
    assert not button.enabled
    node.cohortOutput = str(cohort / "out")
    assert button.enabled
    node.model = "lost"
    assert button.toolTip == "Choose a model."


def test_all_are_segmented_and_skipped_the_next_time(widget, standin, cohort, pictures):
    widget.ui.cohortCollapsibleButton.collapsed = False
    node = widget._parameterNode
    node.cohortPath, node.cohortOutput, node.device = str(cohort / "in"), str(cohort / "out"), "cpu"
    before = slicer.mrmlScene.GetNumberOfNodes()
    standin.picture.grab(widget, pictures / "MLISegmentation_cohort_ready.png", width=420)
    seen = set()
    widget.ui.cohortButton.click()
    assert not widget.ui.cohortButton.enabled

    def ended():
        seen.update(states(widget).values())
        return widget.job is None

    standin.process_events_until(ended, PATIENCE)
    standin.check_slots()
    assert clicks.errors(standin) == []
    assert {"waiting", "segmenting"} <= seen
    found = states(widget)
    assert list(found) == ["anna", "ben", "cleo"]
    assert found["anna"].startswith("done: anterior ")
    assert found["ben"].startswith("failed: ")
    assert widget.ui.statusLabel.text == "2 done, 1 failed"
    standin.picture.grab(widget, pictures / "MLISegmentation_cohort.png", width=420)
    assert sorted(p.name for p in (cohort / "out").glob("*.seg.nrrd")) == ["anna.seg.nrrd", "cleo.seg.nrrd"]
    with open(cohort / "out" / "cohort.csv", encoding="utf-8", newline="") as stream:
        assert [row["status"] for row in csv.DictReader(stream)] == ["done", "failed", "done"]
    assert str(cohort / "out" / "cohort.csv") in widget.ui.cohortLabel.text
    assert slicer.mrmlScene.GetNumberOfNodes() == before

    widget.ui.cohortButton.click()
    clicks.finish(widget, standin, PATIENCE)
    assert states(widget)["anna"].startswith("done before: anterior ")
    assert Path(cohort / "in" / "ben.nii.gz").read_bytes() == b"nonsense"


def test_what_cannot_start_is_told_in_a_dialog(widget, standin, cohort):
    (cohort / "list.csv").write_text("file\nanna.nii.gz\n", encoding="utf-8")
    node = widget._parameterNode
    node.cohortPath, node.cohortOutput = str(cohort / "list.csv"), str(cohort / "out")
    widget.ui.cohortButton.click()
    clicks.finish(widget, standin, PATIENCE)
    assert "no column image" in clicks.errors(standin)[0]
    assert not (cohort / "out").exists()
    assert widget.ui.cohortButton.enabled

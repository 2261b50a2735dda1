"""The shipped model cardiac-lv reaches what its card says, on slices of patients it never saw."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

import cardiac_lv

from MLILib import bundles
from MLILib.segmentation.dataset import read_dataset


@pytest.fixture(scope="module", autouse=True)
def _data() -> None:
    if not cardiac_lv.data_folder().is_dir():
        pytest.skip("the cardiac data are not here: set MLI_DATA to the data folder")


@pytest.fixture(scope="module")
def result() -> dict:
    measured = cardiac_lv.measure()
    print(f"\n{cardiac_lv.table(measured)}")
    return measured


@pytest.mark.slow
def test_it_beats_the_location_prior(result: dict) -> None:
    ours, prior = (result["methods"][m] for m in ("mli segment", "location prior"))
    assert ours["dice"] > prior["dice"] + 0.1
    assert ours["hausdorff95"] < prior["hausdorff95"]


@pytest.mark.slow
def test_the_card_tells_the_truth(result: dict) -> None:
    claimed = float(re.search(r"\| mean \| ([0-9.]+)", bundles.find("cardiac-lv").card).group(1))
    assert result["methods"]["mli segment"]["dice"] == pytest.approx(claimed, abs=0.003)


def test_the_data_set_keeps_patients_together(tmp_path: Path) -> None:
    cases = read_dataset(cardiac_lv.prepare(tmp_path)).cases
    assert len({case.group for case in cases}) == 30
    assert all(case.name.startswith(f"{case.group}-IM") for case in cases)


def test_no_patient_that_was_measured_on_was_trained_on() -> None:
    """Each measured patient is measured with all of its slices: none is left to have been trained on."""
    folder = bundles.find("cardiac-lv").folder
    lines = (folder / "docs" / "test_cases.csv").read_text(encoding="utf-8").splitlines()[1:]
    measured = {line.split(",")[0] for line in lines}
    patients = {cardiac_lv.patient(name) for name in measured}
    assert {name for name in cardiac_lv.slices() if cardiac_lv.patient(name) in patients} == measured


def test_the_card_says_that_spacing_is_not_stored() -> None:
    bundle = bundles.find("cardiac-lv")
    assert "pixel spacing" in bundle.card
    assert bundle.dimensions == 2
    assert json.loads((bundle.folder / "configs" / "inference.json").read_text(encoding="utf-8"))["network_def"][
        "_target_"
    ].startswith("MLILib.segmentation.lraspp")

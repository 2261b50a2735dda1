"""The shipped hippocampus model reaches what its card says, on the cases it never saw."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("torch")

import hippocampus

from MLILib import bundles


@pytest.fixture(scope="module")
def result() -> dict:
    if not hippocampus.data_folder().is_dir():
        pytest.skip("the hippocampus data are not here: set MLI_DATA to the data folder")
    measured = hippocampus.measure()
    print(f"\n{hippocampus.table(measured)}")
    return measured


def test_it_beats_the_location_prior(result: dict) -> None:
    ours, prior = (result["methods"][m]["mean"] for m in ("mli segment", "location prior"))
    assert ours["dice"] > prior["dice"] + 0.1
    assert ours["hausdorff95"] < prior["hausdorff95"]


def test_the_card_tells_the_truth(result: dict) -> None:
    card = bundles.find("hippocampus").card
    claimed = float(re.search(r"\| mean \| ([0-9.]+)", card).group(1))
    assert result["methods"]["mli segment"]["mean"]["dice"] == pytest.approx(claimed, abs=0.003)

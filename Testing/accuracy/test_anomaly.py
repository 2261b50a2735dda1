"""The shipped model of normal chest X-rays reaches what its card says, on images it never saw."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("torch")

import chest_anomaly

from MLILib import bundles


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    if not chest_anomaly.data_file().is_file():
        pytest.skip("the chest X-rays are not here: set MLI_DATA to the data folder")
    return chest_anomaly.measure()


def test_it_tells_pneumonia_from_normal(result: dict[str, Any]) -> None:
    assert result["combined"]["auroc"] > 0.85
    assert result["fanogan"]["auroc"] > 0.85


def test_it_beats_every_trivial_score_of_the_images_as_they_are(result: dict[str, Any]) -> None:
    trivial = ("high mean", "low mean", "high spread", "low spread", "PCA residual", "nearest neighbours")
    assert result["fanogan"]["auroc"] > max(result[name]["auroc"] for name in trivial) + 0.05


def test_the_card_tells_the_truth(result: dict[str, Any]) -> None:
    card = bundles.find("chest-xray-28").card
    found = re.search(r"\| combined \(the default\) \| ([0-9.]+)", card)
    assert found is not None
    assert result["combined"]["auroc"] == pytest.approx(float(found.group(1)), abs=0.003)


def test_the_first_line_of_the_card_says_what_it_is_not_for() -> None:
    assert bundles.find("chest-xray-28").card.startswith("**Must not be used to diagnose")

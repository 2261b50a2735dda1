"""Explanations of the shipped classifier reach what the README says, on images that it never saw."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("torch")

import explanation

from MLILib import bundles
from MLILib.explanation.badges import badges


@pytest.fixture(scope="module")
def few() -> dict:
    if not (explanation.data_folder() / "pneumonia_mnist").is_dir():
        pytest.skip("the chest X-rays are not here: set MLI_DATA to the data folder")
    return explanation.measure("chest", 12, ("integrated-gradients",), ("curves", "completeness", "attacks"))


def test_integrated_gradients_beat_both_controls(few: dict) -> None:
    found = few["curves"]["integrated-gradients"]
    assert found["p, random map"] < 0.01
    assert found["p, edges"] < 0.01


def test_integrated_gradients_add_up(few: dict) -> None:
    assert few["completeness"]["by default"]["largest"] < 0.01


def test_fgsm_is_monotone_on_average(few: dict) -> None:
    assert few["attacks"]["means"][0] == 1.0
    assert few["attacks"]["monotone on average"]


def test_the_published_verdicts() -> None:
    """As Adebayo 2018 found: gradient and Grad-CAM react to the weights, guided backpropagation does not."""
    found = badges(bundles.find("chest-xray-28-classifier"))
    assert found["gradient"] == found["grad-cam"] == "reacts to the model"
    assert found["guided-backpropagation"] == "edge detector"


@pytest.mark.slow
def test_the_verdicts_measured_again() -> None:
    result = explanation.measure("chest", 8, ("gradient", "grad-cam", "guided-backpropagation"), ("check",))
    left = {row["method"]: row["left"] for row in result["methods"]}
    assert left["gradient"] < 0.5
    assert left["grad-cam"] < 0.5
    assert left["guided-backpropagation"] >= 0.5


def test_the_card_tells_the_truth() -> None:
    from MLILib.classification import medmnist
    from MLILib.classification.bundle import classify
    from MLILib.classification.figures import measure
    from MLILib.progress import Progress

    file = explanation.data_folder() / "pneumonia_mnist" / "pneumonia_mnist_train_val.npz"
    if not file.is_file():
        pytest.skip("the chest X-rays are not here: set MLI_DATA to the data folder")
    kept = medmnist.read(file, "val")
    assert kept is not None
    found = measure(classify("chest-xray-28-classifier", kept, Progress()), kept.labels)
    card = bundles.find("chest-xray-28-classifier").card
    auc, accuracy = re.search(r"\| this model \| ([0-9.]+) \| ([0-9.]+) \|", card).groups()
    assert found.auc == pytest.approx(float(auc), abs=0.001)
    assert found.accuracy == pytest.approx(float(accuracy), abs=0.001)

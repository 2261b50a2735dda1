"""ROC, precision-recall and Dice of scores: against scikit-learn, counting by hand, and on images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from MLILib.anomaly import evaluation
from MLILib.errors import BadInput


def test_four_cases_by_hand() -> None:
    # Descending: abnormal .9, normal .8, abnormal .7, normal .1: three of the four pairs are in order.
    found = evaluation.curves([0.7, 0.1, 0.9, 0.8], [1, 0, 1, 0])
    assert found.auroc == pytest.approx(3 / 4)
    assert found.auprc == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert found.best_dice == pytest.approx(2 * 2 / (3 + 2))
    assert found.best_threshold == 0.7
    np.testing.assert_allclose(found.recall, [0, 0.5, 0.5, 1, 1])
    np.testing.assert_allclose(found.precision, [1, 1, 1 / 2, 2 / 3, 1 / 2])
    assert found.prevalence == 0.5


def test_ties_count_half() -> None:
    found = evaluation.curves(np.zeros(10), np.arange(10) < 3)
    assert found.auroc == 0.5
    assert found.auprc == pytest.approx(0.3)
    assert found.best_dice == pytest.approx(2 * 3 / (10 + 3))


@pytest.mark.parametrize("seed", range(6))
def test_as_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle")
    rng = np.random.default_rng(seed)
    truth = rng.random(400) < (0.02 + 0.1 * seed)
    truth[:2] = (False, True)
    scores = (rng.normal(size=400) + truth).astype(np.float32)
    if seed % 2:
        scores = np.round(scores)  # many ties
    found = evaluation.curves(scores, truth)
    assert found.auroc == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
    assert found.auprc == pytest.approx(metrics.average_precision_score(truth, scores), abs=1e-12)
    fpr, tpr, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    np.testing.assert_allclose(found.fpr, fpr)
    np.testing.assert_allclose(found.tpr, tpr)
    precision, recall, thresholds = metrics.precision_recall_curve(truth, scores)
    np.testing.assert_allclose(found.precision, precision[::-1])
    np.testing.assert_allclose(found.recall, recall[::-1])
    np.testing.assert_allclose(found.thresholds, thresholds[::-1])
    best = max(metrics.f1_score(truth, scores >= t) for t in np.unique(scores))
    assert found.best_dice == pytest.approx(best)
    assert metrics.f1_score(truth, scores >= found.best_threshold) == pytest.approx(best)
    at = evaluation.dice_at(scores, truth, 0.5)
    assert at["dice"] == pytest.approx(metrics.f1_score(truth, scores >= 0.5))
    assert at["precision"] == pytest.approx(metrics.precision_score(truth, scores >= 0.5))
    assert at["recall"] == pytest.approx(metrics.recall_score(truth, scores >= 0.5))


def test_voxels_outside_the_mask_do_not_count() -> None:
    scores = np.array([[1.0, 2.0, 9.0], [3.0, 4.0, 9.0]], np.float32)
    truth = np.array([[0, 0, 0], [1, 1, 0]], np.uint8)
    mask = np.array([[1, 1, 0], [1, 1, 0]], np.uint8)
    images = [sitk.GetImageFromArray(x) for x in (scores, truth, mask)]
    assert evaluation.voxels(*images).auroc == 1.0
    assert evaluation.voxels(*images[:2]).auroc == pytest.approx(4 / 8)
    other = sitk.Image(images[2])
    other.SetSpacing((2.0, 1.0))
    with pytest.raises(BadInput, match="The mask is not on the image's grid"):
        evaluation.voxels(images[0], images[1], other)
    with pytest.raises(BadInput, match="The reference is not on the image's grid"):
        evaluation.voxels(images[0], other)


def test_labels_against_a_reference() -> None:
    labels = sitk.GetImageFromArray(np.array([[0, 1, 2], [0, 0, 3]], np.uint16))
    truth = sitk.GetImageFromArray(np.array([[0, 1, 1], [1, 0, 0]], np.uint8))
    assert evaluation.labels_dice(labels, truth) == pytest.approx({"dice": 4 / 6, "precision": 2 / 3, "recall": 2 / 3})


def test_what_cannot_be_divided_is_none() -> None:
    assert evaluation.dice_at([0.0, 0.0], [0, 0], 1.0) == {
        "threshold": 1.0, "dice": None, "precision": None, "recall": None,
    }  # fmt: skip
    assert evaluation.dice_at([0.0, 0.0], [0, 1], 1.0)["dice"] == 0.0


def test_one_kind_of_case_cannot_be_told_apart() -> None:
    with pytest.raises(BadInput, match="is normal"):
        evaluation.curves([1.0, 2.0], [0, 0])
    with pytest.raises(BadInput, match="is abnormal"):
        evaluation.curves([1.0, 2.0], [1, 1])
    with pytest.raises(BadInput, match="not finite"):
        evaluation.curves([1.0, np.nan], [0, 1])
    with pytest.raises(ValueError, match="3 scores"):
        evaluation.curves([1.0, 2.0, 3.0], [0, 1])


def test_thinned_curves_keep_their_ends_and_shape() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(20_000) < 0.01
    found = evaluation.curves(rng.normal(size=20_000) + 2 * truth, truth)
    thin = found.points(100)
    assert all(len(values) <= 100 for values in thin.values())
    assert (thin["fpr"][0], thin["tpr"][0], thin["fpr"][-1], thin["tpr"][-1]) == (0.0, 0.0, 1.0, 1.0)
    area = np.sum(np.diff(thin["fpr"]) * (np.array(thin["tpr"][1:]) + thin["tpr"][:-1]) / 2)
    assert area == pytest.approx(found.auroc, abs=0.01)


def test_the_table_and_the_picture_hold_every_method(tmp_path: Path) -> None:
    good, poor = evaluation.curves([1, 2, 3, 4], [0, 0, 1, 1]), evaluation.curves([3, 1, 2, 4], [0, 0, 1, 1])
    text = evaluation.table({"model": good, "intensity": poor}, at={"model": 0.5, "intensity": None})
    assert text.index("model") < text.index("intensity")
    assert "1.000" in text
    evaluation.draw({"model": good, "intensity": poor}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > picture.height > 300

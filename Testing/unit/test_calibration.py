"""Calibration: errors of known cases, a temperature that is found again, and both through the tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_dataset import write_dataset

from MLILib import calibration
from MLILib.calibration import band, fit_temperature, reliability, tempered, with_background
from MLILib.errors import BadInput
from MLILib.segmentation.requests import (
    CalibrateRequest,
    EvaluateRequest,
    SegmentRequest,
    TrainSegmentationRequest,
)
from MLILib.tasks import run


def drawn(temperature: float, n: int = 60_000, classes: int = 3) -> tuple[Any, Any]:
    """Probabilities that would be right if their logits were divided by `temperature`, and the truth."""
    rng = np.random.default_rng(0)
    right = rng.normal(size=(n, classes)) * 2
    p = np.exp(right) / np.exp(right).sum(axis=1, keepdims=True)
    truth = (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return tempered(p, 1 / temperature), truth


class TestError:
    def test_it_is_the_mean_gap_between_confidence_and_accuracy(self) -> None:
        """Two voxels at 0.9, one right; two at 0.6, both right: (2 |0.5 - 0.9| + 2 |1 - 0.6|) / 4 = 0.4."""
        p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
        found = reliability(p, np.array([0, 1, 0, 1]), bins=10)
        assert found.error == pytest.approx(0.4)
        assert found.voxels == 4

    def test_brier_score_and_likelihood(self) -> None:
        found = reliability(np.array([[0.8, 0.2], [0.5, 0.5]]), np.array([0, 1]))
        assert found.brier == pytest.approx((0.04 + 0.04 + 0.25 + 0.25) / 2)
        assert found.nll == pytest.approx(-(math.log(0.8) + math.log(0.5)) / 2)

    def test_parts_add_up_to_the_whole(self) -> None:
        p, truth = drawn(2.0, 1000)
        whole = reliability(p, truth)
        halves = reliability(p[:300], truth[:300]) + reliability(p[300:], truth[300:])
        assert halves.error == pytest.approx(whole.error)
        assert halves.figures() == pytest.approx(whole.figures())

    def test_true_probabilities_have_next_to_none(self) -> None:
        assert reliability(*drawn(1.0)).error < 0.01

    def test_nothing_to_look_at(self) -> None:
        assert math.isnan(calibration.nothing().error)


class TestTemperature:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
    def test_it_is_found_again(self, temperature: float) -> None:
        assert fit_temperature([drawn(temperature)]) == pytest.approx(temperature, rel=0.03)

    def test_it_lowers_the_error(self) -> None:
        p, truth = drawn(2.5)
        assert reliability(p, truth).error > 0.1
        assert reliability(tempered(p, fit_temperature([(p, truth)])), truth).error < 0.01

    def test_no_decision_changes(self) -> None:
        p, _ = drawn(1.0, 500)
        assert np.array_equal(tempered(p, 3.0).argmax(axis=1), p.argmax(axis=1))


class TestBand:
    def test_it_is_measured_in_mm(self) -> None:
        labels = np.zeros((9, 9), np.int64)
        labels[4, 4] = 2
        found = band(labels, (1.0, 2.0), 2.0)
        assert found[4].tolist() == [False] * 3 + [True] * 3 + [False] * 3
        assert found[:, 4].tolist() == [False] * 2 + [True] * 5 + [False] * 2

    def test_no_foreground_has_none(self) -> None:
        assert not band(np.zeros((3, 3), np.int64), (1.0, 1.0)).any()

    def test_the_background_takes_the_rest(self) -> None:
        assert with_background(np.array([[0.2, 0.5], [0.7, 0.4]]))[:, 0] == pytest.approx([0.3, 0.0])


def write(folder: Path, p: Any, labels: Any) -> tuple[Path, Path]:
    sitk.WriteImage(sitk.GetImageFromArray(p.astype(np.float32), isVector=True), str(folder / "p.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(labels.astype(np.uint8)), str(folder / "r.nrrd"))
    return folder / "p.nrrd", folder / "r.nrrd"


class TestEvaluate:
    def test_probabilities_are_measured_and_drawn(self, tmp_path: Path) -> None:
        labels = np.zeros((8, 8, 8))
        labels[2:6, 2:6, 2:6] = 1
        labels[2:6, 2:6, 4:6] = 2
        p = np.stack([0.8 * (labels == k) + 0.1 * (labels != k) for k in (1, 2)], axis=-1)
        probabilities, reference = write(tmp_path, p, labels)
        result = run(
            EvaluateRequest(
                str(reference), str(reference), probabilities=str(probabilities), reliability=str(tmp_path / "r.png")
            )
        )
        # every voxel is right at a confidence of 0.8
        assert result["calibration"]["ece"] == pytest.approx(0.2, abs=1e-6)
        assert "calibration error 0.2000" in result["text"]
        assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")

    def test_what_is_no_probability_is_refused(self, tmp_path: Path) -> None:
        labels = np.ones((4, 4, 4))
        probabilities, reference = write(tmp_path, np.full((4, 4, 4, 2), 7.0), labels)
        with pytest.raises(BadInput, match="does not hold probabilities"):
            run(EvaluateRequest(str(reference), str(reference), probabilities=str(probabilities)))

    def test_a_label_without_probabilities_is_refused(self, tmp_path: Path) -> None:
        probabilities, reference = write(tmp_path, np.zeros((4, 4, 4, 2)), np.full((4, 4, 4), 3))
        with pytest.raises(BadInput, match="labels up to 3, and there are probabilities of 2"):
            run(EvaluateRequest(str(reference), str(reference), probabilities=str(probabilities)))

    def test_a_diagram_without_probabilities_is_refused(self, tmp_path: Path) -> None:
        _, reference = write(tmp_path, np.zeros((4, 4, 4, 2)), np.ones((4, 4, 4)))
        with pytest.raises(BadInput, match="needs probabilities"):
            run(EvaluateRequest(str(reference), str(reference), reliability=str(tmp_path / "r.png")))


class TestCalibrate:
    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
        pytest.importorskip("torch")
        folder = tmp_path_factory.mktemp("calibrate")
        data = write_dataset(folder, 8, size=(20, 18))
        run(TrainSegmentationRequest(str(data), str(folder / "model"), folds=4, epochs=8, filters=4, device="cpu",
                                     learning_rate=0.01, batch=2))  # fmt: skip
        result = run(
            CalibrateRequest(str(folder / "model"), str(data), str(folder / "calibrated"), folds=4, device="cpu")
        )
        return folder, result

    @staticmethod
    def probabilities(folder: Path, model: str) -> Any:
        out = folder / f"{model}_p.nrrd"
        run(SegmentRequest((str(folder / "image_00.nii.gz"),), (str(folder / model),), str(folder / f"{model}.nrrd"),
                           probabilities=str(out), device="cpu"))  # fmt: skip
        return sitk.GetArrayFromImage(sitk.ReadImage(str(out)))

    def test_the_truth_is_likelier_where_it_was_fitted(self, trained: tuple[Path, dict[str, Any]]) -> None:
        found = trained[1]["validation"]
        assert found["after"]["nll"] <= found["before"]["nll"]
        assert trained[1]["test"]["before"]["voxels"] > 0

    def test_the_bundle_divides_its_logits(self, trained: tuple[Path, dict[str, Any]]) -> None:
        folder, result = trained
        before, after = (with_background(self.probabilities(folder, m)).reshape(-1, 3) for m in ("model", "calibrated"))
        assert np.allclose(tempered(before, result["temperature"]), after, atol=2e-3)
        assert not np.allclose(before, after, atol=1e-3)

    def test_metadata_and_card_say_so(self, trained: tuple[Path, dict[str, Any]]) -> None:
        folder, result = trained
        about = json.loads((folder / "calibrated" / "configs" / "metadata.json").read_text(encoding="utf-8"))
        assert about["mli"]["temperature"] == pytest.approx(result["temperature"])
        card = (folder / "calibrated" / "docs" / "README.md").read_text(encoding="utf-8")
        assert "mli calibrate" in card
        assert str(folder) not in card
        assert (folder / "calibrated" / "docs" / "reliability.png").exists()

    def test_a_training_can_end_with_it(self, tmp_path: Path) -> None:
        pytest.importorskip("torch")
        data = write_dataset(tmp_path, 6, size=(20, 18))
        run(TrainSegmentationRequest(str(data), str(tmp_path / "model"), folds=3, epochs=2, filters=2, device="cpu",
                                     batch=2, calibrate=True))  # fmt: skip
        config = json.loads((tmp_path / "model" / "configs" / "inference.json").read_text(encoding="utf-8"))
        first = config["postprocessing"]["transforms"][0]
        about = json.loads((tmp_path / "model" / "configs" / "metadata.json").read_text(encoding="utf-8"))
        assert first["_target_"] == "ScaleIntensityd"
        assert 1 / (1 + first["factor"]) == pytest.approx(about["mli"]["temperature"])
        assert "- temperature" in (tmp_path / "model" / "docs" / "README.md").read_text(encoding="utf-8")

    def test_a_second_calibration_finds_little_left(self, trained: tuple[Path, dict[str, Any]]) -> None:
        folder, first = trained
        again = run(CalibrateRequest(str(folder / "calibrated"), str(folder / "dataset.json"), str(folder / "again"),
                                     folds=4, device="cpu"))  # fmt: skip
        assert again["temperature"] == pytest.approx(1.0, abs=0.05)
        about = json.loads((folder / "again" / "configs" / "metadata.json").read_text(encoding="utf-8"))
        assert about["mli"]["temperature"] == pytest.approx(first["temperature"] * again["temperature"])

    def test_a_full_folder_is_left_alone(self, trained: tuple[Path, dict[str, Any]]) -> None:
        folder, _ = trained
        with pytest.raises(BadInput, match="already holds files"):
            run(CalibrateRequest(str(folder / "model"), str(folder / "dataset.json"), str(folder / "model")))

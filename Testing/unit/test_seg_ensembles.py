"""Ensembles: folds and draws are trained, resumed and used together; weights and votes do what they say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_bundle import write_tiny_bundle
from tiny_dataset import write_dataset

torch = pytest.importorskip("torch")

from MLILib.errors import BadInput, Cancelled  # noqa: E402
from MLILib.progress import Progress  # noqa: E402
from MLILib.segmentation import training  # noqa: E402
from MLILib.segmentation.ensemble_folder import expanded  # noqa: E402
from MLILib.segmentation.ensembles import member_requests  # noqa: E402
from MLILib.segmentation.inference import segment  # noqa: E402
from MLILib.segmentation.requests import TrainSegmentationRequest  # noqa: E402
from MLILib.tasks import run  # noqa: E402

SETTINGS: dict[str, Any] = {"epochs": 2, "filters": 2, "batch": 2, "device": "cpu", "folds": 2, "augment": ("none",)}


class TestTraining:
    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("folds")
        data = write_dataset(folder, 6, size=(20, 18))
        request = TrainSegmentationRequest(str(data), str(folder / "model"), ensemble="folds", **SETTINGS)
        done = 0

        def stop_in_the_second(event: dict[str, Any]) -> None:
            nonlocal done
            done += event["event"] == "message" and str(event["text"]).startswith("Model 2")
            if done and event["event"] == "stage" and event["name"] == "Training":
                raise Cancelled()

        with pytest.raises(Cancelled):
            training.run(request, Progress(stop_in_the_second, interval=0.0))
        first = (folder / "model" / "fold_0" / "models" / "model.pt").stat().st_mtime_ns
        result = run(dataclasses.replace(request, resume=True))
        assert (folder / "model" / "fold_0" / "models" / "model.pt").stat().st_mtime_ns == first
        return folder, result

    def test_every_case_is_measured_by_the_model_that_never_saw_it(self, trained: tuple[Path, dict[str, Any]]) -> None:
        folder, result = trained
        assert result["cases"] == 6
        assert [m["bundle"] for m in result["members"]] == ["fold_0", "fold_1"]
        tables = [
            (folder / "model" / f"fold_{k}" / "docs" / "test_cases.csv").read_text(encoding="utf-8") for k in (0, 1)
        ]
        names = [{line.split(",")[0] for line in t.splitlines()[1:]} for t in tables]
        assert not names[0] & names[1]

    def test_the_folder_stands_for_its_members(self, trained: tuple[Path, dict[str, Any]]) -> None:
        folder, _ = trained
        image = sitk.ReadImage(str(folder / "image_00.nii.gz"))
        together = segment(image, str(folder / "model"), device="cpu", probabilities=True, uncertainty=True)
        each = [segment(image, str(folder / "model" / f"fold_{k}"), device="cpu", probabilities=True) for k in (0, 1)]
        arrays = [sitk.GetArrayFromImage(s.probabilities) for s in (together, *each)]
        assert np.allclose(arrays[0], (arrays[1] + arrays[2]) / 2, atol=1e-5)
        assert together.mutual_information is not None

    def test_a_lost_member_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "ensemble.json").write_text(json.dumps({"members": ["fold_0"]}), encoding="utf-8")
        with pytest.raises(BadInput, match="fold_0"):
            expanded([str(tmp_path)])
        assert expanded(["hippocampus"]) == ["hippocampus"]

    def test_draws_differ_and_keep_the_fold_aside(self, tmp_path: Path) -> None:
        request = TrainSegmentationRequest("d.json", str(tmp_path), ensemble="bagging", members=3)
        members = member_requests(request)
        assert [m.draw for m in members] == [1, 2, 3]
        assert {m.fold for m in members} == {0}
        assert len({m.output for m in members}) == 3


class TestAgreement:
    @pytest.fixture(scope="class")
    @classmethod
    def models(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[sitk.Image, list[str], list[Any]]:
        """Three models of random weights, an image, and each one's probabilities of it."""
        folder = tmp_path_factory.mktemp("three")
        image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(20, 22, 18)).astype(np.float32))
        names = []
        for seed in range(3):
            names.append(str(write_tiny_bundle(folder / f"m{seed}", seed=seed)))
        each = [segment(image, name, device="cpu", probabilities=True) for name in names]
        return image, names, [sitk.GetArrayFromImage(s.probabilities) for s in each]

    def test_weights_weigh(self, models: tuple[sitk.Image, list[str], list[Any]]) -> None:
        image, names, alone = models
        found = segment(image, names, device="cpu", probabilities=True, ensemble="weighted", weights=(1.0, 3.0, 0.0))
        expected = (alone[0] + 3 * alone[1]) / 4
        assert np.allclose(sitk.GetArrayFromImage(found.probabilities), expected, atol=1e-5)

    def test_a_heavy_voter_decides_alone(self, models: tuple[sitk.Image, list[str], list[Any]]) -> None:
        image, names, _ = models
        found = segment(image, names, device="cpu", ensemble="vote", weights=(0.4, 0.4, 1.0))
        third = segment(image, names[2], device="cpu")
        assert np.array_equal(*(sitk.GetArrayFromImage(s.labels) for s in (found, third)))

    def test_wrong_weights_are_refused(self, models: tuple[sitk.Image, list[str], list[Any]]) -> None:
        image, names, _ = models
        with pytest.raises(BadInput, match="2 weights are given for 3 models"):
            segment(image, names, device="cpu", ensemble="weighted", weights=(1.0, 1.0))
        with pytest.raises(BadInput, match="not known how good"):
            segment(image, names, device="cpu", ensemble="weighted")
        with pytest.raises(BadInput, match="plain mean"):
            segment(image, names, device="cpu", weights=(1.0, 1.0, 1.0))

    def test_mirror_images_are_members_of_the_uncertainty(
        self, models: tuple[sitk.Image, list[str], list[Any]]
    ) -> None:
        """Entropy of the mean is at least the mean entropy; mirror images of a random network disagree somewhere."""
        image, names, _ = models
        found = segment(image, names[0], device="cpu", uncertainty=True, tta=True)
        assert found.mutual_information is not None
        information = sitk.GetArrayFromImage(found.mutual_information)
        assert information.min() >= 0
        assert information.max() > 0
        assert segment(image, names[0], device="cpu", uncertainty=True).mutual_information is None

"""Training: it learns, it resumes exactly, and it leaves a bundle that MONAI itself can run."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")

from tiny_dataset import write_dataset  # noqa: E402

from MLILib.bundle_files import REQUIRED_METADATA, REQUIRED_TENSOR  # noqa: E402
from MLILib.descent import learning_rate  # noqa: E402
from MLILib.errors import BadInput, Cancelled  # noqa: E402
from MLILib.progress import Progress  # noqa: E402
from MLILib.segmentation import training  # noqa: E402
from MLILib.segmentation.augmentation import Sampler, preprocess  # noqa: E402
from MLILib.segmentation.dataset import read_dataset  # noqa: E402
from MLILib.segmentation.requests import TrainSegmentationRequest  # noqa: E402
from MLILib.tasks import run  # noqa: E402


def _request(folder: Path, output: str = "bundle", **settings: Any) -> TrainSegmentationRequest:
    settings = {"epochs": 60, "filters": 4, "folds": 4, "device": "cpu", "learning_rate": 0.01} | settings
    return TrainSegmentationRequest(dataset=str(folder / "dataset.json"), output=str(folder / output), **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A bundle trained for a few seconds on ellipsoids, and the result of the task."""
    folder = tmp_path_factory.mktemp("training")
    write_dataset(folder, 12)
    return folder, run(_request(folder))


class TestResult:
    def test_it_learns(self, trained: tuple[Path, dict[str, Any]]) -> None:
        """The halves differ by 100 in intensity with noise of 10: anything below 0.8 has not learnt."""
        assert trained[1]["test"]["mean"]["dice"]["mean"] > 0.8

    def test_the_curve_is_written(self, trained: tuple[Path, dict[str, Any]]) -> None:
        folder = trained[0] / "bundle" / "training"
        rows = list(csv.DictReader((folder / "learning_curve.csv").open(encoding="utf-8")))
        assert [int(float(r["epoch"])) for r in rows] == list(range(1, 61))
        assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
        assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")

    def test_no_checkpoint_is_left(self, trained: tuple[Path, dict[str, Any]]) -> None:
        assert not list((trained[0] / "bundle").rglob("*checkpoint*"))

    def test_the_card_says_how_it_was_measured(self, trained: tuple[Path, dict[str, Any]]) -> None:
        card = (trained[0] / "bundle" / "docs" / "README.md").read_text(encoding="utf-8")
        dice = trained[1]["test"]["left"]["dice"]["mean"]
        assert f"| left | {dice:.3f} " in card
        assert "mli train segmentation" in card
        assert str(trained[0]) not in card, "paths of this machine do not belong in a card"

    def test_monai_runs_it_and_agrees(self, trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
        pytest.importorskip("ignite", reason="MONAI's own runner needs pytorch-ignite")
        from plain_monai import labels_of_its_command

        from MLILib.segmentation.requests import SegmentRequest

        image, bundle = trained[0] / "image_00.nii.gz", trained[0] / "bundle"
        theirs = labels_of_its_command(bundle, image, tmp_path)
        ours = tmp_path / "ours.nii.gz"
        run(SegmentRequest(images=(str(image),), model=(str(bundle),), output=str(ours), device="cpu"))
        assert np.array_equal(theirs, sitk.GetArrayFromImage(sitk.ReadImage(str(ours))))


class TestResume:
    def test_a_killed_training_ends_with_the_same_weights(self, tmp_path: Path) -> None:
        write_dataset(tmp_path, 8)
        settings: dict[str, Any] = {"epochs": 10, "amp": False, "filters": 2, "fold": -1}
        run(_request(tmp_path, "whole", **settings))

        stages = []

        def stop_after_seven(event: dict[str, Any]) -> None:
            if event["event"] == "stage":
                stages.append(event["name"])
            there = event["event"] == "fraction" and event["value"] > 0.7
            if stages == ["Reading cases", "Training"] and there:
                raise Cancelled()

        request = _request(tmp_path, "broken", **settings)
        with pytest.raises(Cancelled):
            training.run(request, Progress(stop_after_seven, interval=0.0))
        assert (tmp_path / "broken" / "training" / "checkpoint.pt").exists()
        run(dataclasses.replace(request, resume=True))
        a, b = (torch.load(tmp_path / n / "models" / "model.pt", weights_only=True) for n in ("whole", "broken"))
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), name

    def test_other_settings_are_refused(self, tmp_path: Path) -> None:
        write_dataset(tmp_path, 8)

        def stop(event: dict[str, Any]) -> None:
            if event["event"] == "message" and str(event["text"]).startswith("epoch"):
                raise Cancelled()

        request = _request(tmp_path, filters=2, epochs=6)
        with pytest.raises(Cancelled):
            training.run(request, Progress(stop))
        with pytest.raises(BadInput, match="learning_rate"):
            run(dataclasses.replace(request, resume=True, learning_rate=0.02))

    def test_a_full_folder_is_not_written_over(self, tmp_path: Path) -> None:
        write_dataset(tmp_path, 8)
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "thesis.txt").write_text("dear", encoding="utf-8")
        with pytest.raises(BadInput, match="already holds files"):
            run(_request(tmp_path))
        with pytest.raises(BadInput, match="no checkpoint"):
            run(_request(tmp_path, resume=True))


class TestSampler:
    def test_the_same_epoch_and_case_give_the_same_sample(self, tmp_path: Path) -> None:
        dataset = read_dataset(write_dataset(tmp_path, 2))
        cases = [preprocess(c, (1.0, 1.0, 1.0), 3) for c in dataset.cases]
        one, two = (Sampler(cases, (16, 16, 16), (0,), 3, seed=5) for _ in range(2))
        two.sample(0, 1)
        assert torch.equal(one.sample(3, 0)[0], two.sample(3, 0)[0])
        assert not torch.equal(one.sample(3, 0)[0], one.sample(4, 0)[0])

    def test_image_and_label_move_together(self, tmp_path: Path) -> None:
        """An image that is its own label still is, up to interpolation at the border, after every augmentation."""
        block = torch.zeros(1, 24, 24, 24)
        block[:, 8:16, 6:14, 9:17] = 1.0
        sampler = Sampler([(block, block.to(torch.uint8))], (24, 24, 24), (0,), 2, seed=1)
        sampler._intensity.transforms = ()  # geometry alone
        for epoch in range(20):
            image, label = sampler.sample(epoch, 0)
            found = image > 0.5
            overlap = 2 * (found & (label == 1)).sum() / (found.sum() + (label == 1).sum())
            assert overlap > 0.98

    def test_a_label_the_data_set_does_not_name_is_refused(self, tmp_path: Path) -> None:
        dataset = read_dataset(write_dataset(tmp_path, 1))
        with pytest.raises(BadInput, match="holds the label 2"):
            preprocess(dataset.cases[0], (1.0, 1.0, 1.0), 2)


class TestSchedule:
    def test_it_warms_up_and_ends_at_zero(self) -> None:
        rates = [learning_rate(i, 1000, 0.1) for i in range(1001)]
        assert max(rates) == pytest.approx(0.1)
        assert rates[0] < 0.01
        assert rates[1000] == pytest.approx(0.0, abs=1e-12)
        assert all(a >= b for a, b in itertools.pairwise(rates[200:]))


class TestMetadata:
    def test_it_has_what_monais_schema_requires(self, trained: tuple[Path, dict[str, Any]]) -> None:
        metadata = json.loads((trained[0] / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))
        assert set(REQUIRED_METADATA) <= set(metadata)
        formats = metadata["network_data_format"]
        for tensor in (formats["inputs"]["image"], formats["outputs"]["pred"]):
            assert set(REQUIRED_TENSOR) <= set(tensor)

    def test_monai_verifies_it(self, trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
        monai_bundle = pytest.importorskip("monai.bundle")
        pytest.importorskip("jsonschema")
        path = trained[0] / "bundle" / "configs" / "metadata.json"
        try:
            monai_bundle.verify_metadata(str(path), filepath=str(tmp_path / "schema.json"))
        except URLError:
            pytest.skip("MONAI's schema could not be downloaded")

"""Training a classifier: the file it reads, its figures, and a bundle that gives what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from MLILib import bundles, tasks
from MLILib.classification import medmnist
from MLILib.classification.figures import area, measure
from MLILib.classification.requests import TrainClassificationRequest
from MLILib.classification.training import as_tensor
from MLILib.errors import BadInput
from MLILib.progress import Progress


def write(path: Path, count: int = 40, **arrays: Any) -> str:
    """Images of noise in which class 1 has a bright left half."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for part in ("train", "val"):
        labels = np.arange(count) % 2
        pictures = rng.integers(0, 60, (count, 16, 16)).astype(np.uint8)
        pictures[labels == 1, :, :8] += 120
        found |= {f"{part}_images": pictures, f"{part}_labels": labels[:, None].astype(np.uint8)}
    np.savez(path, **(found | arrays))
    return str(path)


class TestFigures:
    def test_area_of_known_ranks(self) -> None:
        """Of 3 positives and 2 negatives 5 of 6 pairs are in order, and a tie counts half."""
        assert area(np.array([0.9, 0.8, 0.3, 0.5, 0.1]), np.array([1, 1, 1, 0, 0], bool)) == pytest.approx(5 / 6)
        assert area(np.array([0.5, 0.5]), np.array([True, False])) == 0.5

    def test_accuracy(self) -> None:
        found = measure(np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]]), np.array([0, 1, 1]))
        assert (found.accuracy, found.images) == (pytest.approx(2 / 3), 3)


class TestFile:
    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"train_images": np.zeros((4, 4), np.uint8)}, "have the shape"),
            ({"train_labels": np.zeros((3, 1), np.uint8)}, "needs one class"),
            ({"train_images": np.full((40, 4, 4), np.nan)}, "not finite"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
        with pytest.raises(BadInput, match=said):
            medmnist.read(write(tmp_path / "a.npz", **arrays), "train")

    def test_a_pickle_is_not_run(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="cannot be read"):
            medmnist.read(write(tmp_path / "a.npz", train_images=np.array([print], object)), "train")

    def test_no_npz(self, tmp_path: Path) -> None:
        (tmp_path / "a.npz").write_bytes(b"no")
        with pytest.raises(BadInput, match="cannot be read"):
            medmnist.read(tmp_path / "a.npz", "train")

    def test_a_split_keeps_the_classes(self, tmp_path: Path) -> None:
        known = medmnist.read(write(tmp_path / "a.npz"), "train")
        assert known is not None
        rest, taken = medmnist.split(known, 0.25, 0)
        assert (len(rest), len(taken)) == (30, 10)
        assert np.bincount(taken.labels).tolist() == [5, 5]


def test_a_bundle_that_gives_what_was_trained(tmp_path: Path) -> None:
    values: dict[str, Any] = {"dataset": write(tmp_path / "a.npz"), "output": str(tmp_path / "made"), "epochs": 3,
                              "filters": 4, "batch": 8}  # fmt: skip
    result = tasks.run(TrainClassificationRequest.from_json(values), Progress())
    assert result["test"]["accuracy"] > 0.9
    bundle = bundles.find(result["bundle"])
    assert (bundle.kind, bundle.output_channels) == ("classification", ("class 0", "class 1"))
    assert "mli train classification" in bundle.card
    # the bundle's preprocessing is that of the training
    from MLILib.classification.bundle import classify

    kept = medmnist.read(values["dataset"], "val")
    assert kept is not None
    network = bundles.network(bundle)
    with torch.no_grad():
        direct = network(as_tensor(kept.images)).numpy()
    assert classify(result["bundle"], kept, Progress()) == pytest.approx(direct, abs=1e-4)


def test_a_folder_that_holds_something(tmp_path: Path) -> None:
    values = {"dataset": write(tmp_path / "a.npz"), "output": str(tmp_path)}
    with pytest.raises(BadInput, match="already holds files"):
        tasks.run(TrainClassificationRequest.from_json(values))

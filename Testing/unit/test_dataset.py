"""Decathlon-format data sets: what is refused, and folds that are honest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_dataset import write_dataset

from MLILib.errors import BadInput
from MLILib.segmentation.dataset import Fingerprint, fingerprint, read_dataset, split_cases
from MLILib.segmentation.plan import make_plan


class TestReading:
    def test_cases_channels_and_labels(self, tmp_path: Path) -> None:
        dataset = read_dataset(write_dataset(tmp_path, 3))
        assert dataset.labels == ("left", "right")
        assert dataset.channels == ("made",)
        assert [c.name for c in dataset.cases] == ["image_00", "image_01", "image_02"]

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"training": []}, "no 'training'"),
            ({"labels": {"0": "background", "2": "x"}}, "without gaps"),
            ({"labels": {"a": "background"}}, "not numbered"),
            ({"training": [{"image": "x.nii.gz"}]}, "needs"),
            ({"training": [{"image": "x.nii.gz", "label": "y.nii.gz"}]}, "2 files do not exist"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
        with pytest.raises(BadInput, match=said):
            read_dataset(write_dataset(tmp_path, 1, **changes))

    def test_not_json(self, tmp_path: Path) -> None:
        (tmp_path / "dataset.json").write_text("{", encoding="utf-8")
        with pytest.raises(BadInput, match="not a JSON file"):
            read_dataset(tmp_path / "dataset.json")


class TestFolds:
    def test_folds_are_disjoint_and_cover_the_cases(self, tmp_path: Path) -> None:
        dataset = read_dataset(write_dataset(tmp_path, 11, size=(4, 4, 4)))
        tests = [split_cases(dataset, k, 5).test for k in range(5)]
        names = [c.name for test in tests for c in test]
        assert sorted(names) == [c.name for c in dataset.cases]

    @pytest.mark.parametrize("fold", range(5))
    def test_nothing_is_measured_on_what_it_was_fitted_to(self, tmp_path: Path, fold: int) -> None:
        dataset = read_dataset(write_dataset(tmp_path, 11, size=(4, 4, 4)))
        split = split_cases(dataset, fold, 5)
        parts = [set(split.training), set(split.validation), set(split.test)]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 11
        assert all(parts)

    def test_too_few_cases(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="cannot be split"):
            split_cases(read_dataset(write_dataset(tmp_path, 4, size=(4, 4, 4))), 0, 5)


class TestPlan:
    def test_fingerprint_is_the_median(self, tmp_path: Path) -> None:
        dataset = read_dataset(write_dataset(tmp_path, 3, size=(20, 18, 16)))
        assert fingerprint(dataset.cases) == Fingerprint(3, (1.0, 1.0, 1.0), (20, 18, 16))

    def test_the_network_takes_the_patch_it_is_given(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        from MLILib.bundle_parts import instantiate

        dataset = read_dataset(write_dataset(tmp_path, 1, size=(4, 4, 4)))
        for shape in [(35, 50, 36), (300, 280, 90), (12, 200, 40)]:
            plan = make_plan(dataset, Fingerprint(3, (1.0, 1.0, 1.0), shape), filters=2)
            assert np.prod(plan.patch) <= 128**3
            with torch.inference_mode():
                out = instantiate(plan.network).eval()(torch.zeros(1, 1, *plan.patch))
            assert out.shape == (1, 3, *plan.patch)

"""Several answers made one: flips, ensembles, votes and dropout, their uncertainty, and labels that overlap."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import plain_monai
import pytest
import torch
from bundle_changes import WAYS_BACK
from grids import array
from plain_monai import edit, transforms
from tiny_bundle import write_tiny_bundle

from MLILib.errors import BadInput
from MLILib.segmentation.inference import segment

pytest.importorskip("nibabel", reason="MONAI's Orientation needs nibabel")
pytestmark = pytest.mark.usefixtures("no_models_kept")


class TestUncertainty:
    def probabilities(self, bundle: Path, file: Path, flips: tuple[int, ...] = ()) -> np.ndarray:
        """MONAI's softmax on the input's grid, (z, y, x, class)."""
        return np.moveaxis(plain_monai.run(bundle, [file], flips).numpy(), 0, -1).transpose(2, 1, 0, 3)

    @staticmethod
    def never_decide(config: dict[str, Any]) -> None:
        del transforms(config, "postprocessing")[2]

    def test_flips_are_averaged(self, case: Any) -> None:
        bundle, image, file = case(seed=10, spacing=[1.5, 1.2, 1.4])
        edit(bundle, self.never_decide)
        sets = [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
        mean = np.mean([self.probabilities(bundle, file, flips) for flips in sets], axis=0)
        result = segment(image, str(bundle), tta=True, probabilities=True, uncertainty=True)
        np.testing.assert_allclose(array(result.probabilities), mean[..., 1:], atol=1e-5)
        np.testing.assert_allclose(array(result.entropy), -(mean * np.log(mean)).sum(-1), atol=1e-4)
        own = [-(p * np.log(p)).sum(-1) for p in (self.probabilities(bundle, file, flips) for flips in sets)]
        expected = -(mean * np.log(mean)).sum(-1) - np.mean(own, axis=0)
        np.testing.assert_allclose(array(result.mutual_information), expected, atol=1e-4)

    def test_ensemble_mean_and_mutual_information(self, case: Any, tmp_path: Path) -> None:
        bundle, image, file = case(seed=11, spacing=[1.5, 1.2, 1.4])
        other = write_tiny_bundle(tmp_path / "other", seed=99, spacing=[1.1, 1.9, 1.3], orientation="PIL")
        for b in (bundle, other):
            edit(b, self.never_decide)
        each = [self.probabilities(b, file) for b in (bundle, other)]
        mean = np.mean(each, axis=0)
        total = -(mean * np.log(mean)).sum(-1)
        inner = np.mean([-(p * np.log(p)).sum(-1) for p in each], axis=0)
        result = segment(image, [str(bundle), str(other)], probabilities=True, uncertainty=True)
        np.testing.assert_allclose(array(result.probabilities), mean[..., 1:], atol=1e-5)
        np.testing.assert_allclose(array(result.entropy), total, atol=1e-4)
        np.testing.assert_allclose(array(result.mutual_information), total - inner, atol=1e-4)
        assert (array(result.labels) != mean.argmax(-1)).mean() < 1e-4

    def test_majority_vote(self, case: Any, tmp_path: Path) -> None:
        bundle, image, file = case(seed=12)
        trio = [bundle, *(write_tiny_bundle(tmp_path / f"m{i}", seed=50 + i) for i in range(2))]
        votes = np.stack([plain_monai.labels(b, [file]) for b in trio])
        result = array(segment(image, [str(b) for b in trio], ensemble="vote").labels)
        counts = np.stack([(votes == k).sum(0) for k in range(3)])
        decided = counts.max(0) >= 2
        assert decided.mean() > 0.5
        assert np.array_equal(result[decided], counts.argmax(0)[decided])

    def test_a_tied_vote_goes_to_the_mean(self, case: Any, tmp_path: Path) -> None:
        bundle, image, _ = case(seed=13)
        pair = [str(bundle), str(write_tiny_bundle(tmp_path / "m", seed=77))]
        mean, vote = (array(segment(image, pair, ensemble=how).labels) for how in ("mean", "vote"))
        each = np.stack([array(segment(image, b).labels) for b in pair])
        tied = each[0] != each[1]
        assert tied.any()
        between = (mean == each[0]) | (mean == each[1])
        assert np.array_equal(vote[tied & between], mean[tied & between])

    def test_one_dropout_sample_has_no_mutual_information(self, case: Any) -> None:
        bundle, image, _ = case(seed=14, dropout=0.3)
        result = segment(image, str(bundle), mc_dropout=1, uncertainty=True)
        assert array(result.mutual_information).max() == 0
        assert array(result.entropy).dtype == np.float32

    def test_dropout_samples_disagree_within_bounds(self, case: Any) -> None:
        bundle, image, _ = case(seed=14, dropout=0.3)
        result = segment(image, str(bundle), mc_dropout=4, uncertainty=True, probabilities=True)
        information, entropy = array(result.mutual_information), array(result.entropy)
        assert information.max() > 0
        assert (information >= 0).all()
        assert (information <= entropy + 1e-5).all()
        assert entropy.max() <= math.log(3) + 1e-5

    def test_a_seed_repeats_the_samples(self, case: Any) -> None:
        bundle, image, _ = case(seed=14, dropout=0.3)
        take = functools.partial(segment, image, str(bundle), mc_dropout=2, probabilities=True)
        first = array(take(seed=1).probabilities)
        before = torch.random.get_rng_state()
        again, other = (array(take(seed=s).probabilities) for s in (1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_dropout_is_off_afterwards(self, case: Any) -> None:
        bundle, image, file = case(seed=14, dropout=0.3)
        segment(image, str(bundle), mc_dropout=2)
        assert np.array_equal(array(segment(image, str(bundle)).labels), plain_monai.labels(bundle, [file]))

    def test_a_network_without_dropout_is_refused(self, case: Any) -> None:
        bundle, image, _ = case()
        with pytest.raises(BadInput, match="has no dropout"):
            segment(image, str(bundle), mc_dropout=4)

    def test_asking_for_uncertainty_does_not_change_the_labels(self, case: Any) -> None:
        bundle, image, _ = case(seed=15, spacing=[1.5, 1.2, 1.4])
        for change in WAYS_BACK:
            edit(bundle, change)
            plain = array(segment(image, str(bundle)).labels)
            assert np.array_equal(
                array(segment(image, str(bundle), uncertainty=True, probabilities=True).labels), plain
            )


class TestOverlappingLabels:
    @staticmethod
    def let_overlap(bundle: Path) -> Path:
        """Make a bundle decide each channel by itself, none of them background."""

        def change(config: dict[str, Any]) -> None:
            after = transforms(config, "postprocessing")
            after[0] = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
            after[2] = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}

        edit(bundle, change)
        file = bundle / "configs" / "metadata.json"
        data = json.loads(file.read_text(encoding="utf-8"))
        data["network_data_format"]["outputs"]["pred"]["channel_def"] = {"0": "core", "1": "whole", "2": "rim"}
        data.pop("mli")
        file.write_text(json.dumps(data), encoding="utf-8")
        return bundle

    def test_each_channel_as_monai_decides_it(self, case: Any) -> None:
        bundle, image, file = case(seed=16, spacing=[1.5, 1.2, 1.4])
        self.let_overlap(bundle)
        expected = plain_monai.run(bundle, [file]).numpy().astype(int)
        result = segment(image, str(bundle))
        assert np.array_equal(np.moveaxis(array(result.layers), -1, 0), expected.transpose(0, 3, 2, 1))
        assert [(v.label.value, v.label.name) for v in result.volumes] == [(1, "core"), (2, "whole"), (3, "rim")]
        assert [v.voxels for v in result.volumes] == expected.sum((1, 2, 3)).tolist()

    def test_smaller_labels_lie_on_top(self, case: Any) -> None:
        bundle, image, _ = case(seed=16)
        result = segment(image, str(self.let_overlap(bundle)))
        layers, labels = array(result.layers), array(result.labels)
        smallest = min(result.volumes, key=lambda v: v.voxels)
        assert np.array_equal(labels == smallest.label.value, layers[..., smallest.label.value - 1] == 1)
        assert np.array_equal(labels > 0, layers.any(-1))

    def test_entropy_is_the_sum_of_the_labels_own(self, case: Any) -> None:
        bundle, image, _ = case(seed=16)
        result = segment(image, str(self.let_overlap(bundle)), probabilities=True, uncertainty=True)
        p = array(result.probabilities).astype(float)
        expected = -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum(-1)
        np.testing.assert_allclose(array(result.entropy), expected, atol=1e-4)

    def test_a_vote_is_taken_label_by_label(self, case: Any, tmp_path: Path) -> None:
        bundle, image, file = case(seed=16)
        trio = [bundle, *(write_tiny_bundle(tmp_path / f"m{i}", seed=60 + i) for i in range(2))]
        each = np.stack([plain_monai.run(self.let_overlap(b), [file]).numpy() for b in trio])
        result = array(segment(image, [str(b) for b in trio], ensemble="vote").layers)
        assert np.array_equal(np.moveaxis(result, -1, 0), (each.sum(0) >= 2).transpose(0, 3, 2, 1))


class TestEnsembleMustAgree:
    def test_other_labels_are_refused(self, case: Any, tmp_path: Path) -> None:
        bundle, image, _ = case()
        other = write_tiny_bundle(tmp_path / "other", labels=("a", "c"))
        with pytest.raises(BadInput, match="different labels: a, b and a, c"):
            segment(image, [str(bundle), str(other)])

    def test_other_dimensions_are_refused(self, case: Any, tmp_path: Path) -> None:
        bundle, image, _ = case()
        other = write_tiny_bundle(tmp_path / "other", dims=2)
        with pytest.raises(BadInput, match="3-D, other 2-D"):
            segment(image, [str(bundle), str(other)])

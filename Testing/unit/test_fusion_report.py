"""The raters' report against SimpleITK's overlap measures and definitions; its table and pictures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from grids import place
from PIL import Image
from rater_maps import drawn, images, people, truth

from MLILib.fusion import report_pictures
from MLILib.fusion.agreement import entropy, fleiss_kappa, pairwise_dice
from MLILib.fusion.rater_report import report, table
from MLILib.fusion.raters import Consensus, Raters, raters
from MLILib.fusion.simple import simple
from MLILib.fusion.staple import staple
from MLILib.fusion.voting import majority

SHAPES = [(6, 12, 90), (24, 90)]


class TestReport:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("labels", [1, 3, 37])
    def test_overlaps_are_simpleitks(self, shape: tuple[int, ...], labels: int) -> None:
        made = people(drawn(shape, labels))
        consensus = majority(made)
        found = report(made, consensus)
        reference = made.image(consensus.indices)
        for row, own in zip(found["raters"], made.stack, strict=True):
            measure = sitk.LabelOverlapMeasuresImageFilter()
            measure.Execute(made.image(own), reference)
            for k, label in enumerate(row["labels"], 1):
                drew, true = own == k, consensus.indices == k
                assert label["dice"] == pytest.approx(measure.GetDiceCoefficient(label["value"]))
                if true.any():
                    assert label["sensitivity"] == pytest.approx((drew & true).sum() / true.sum())
                else:
                    assert label["sensitivity"] is None
                assert label["specificity"] == pytest.approx((~drew & ~true).sum() / (~true).sum())
                assert label["voxels"] == drew.sum()
                assert label["volume_ml"] == pytest.approx(drew.sum() * np.prod(made.grid.spacing) / 1000)
                assert label["estimated_sensitivity"] is None
            known = [label["sensitivity"] for label in row["labels"] if label["sensitivity"] is not None]
            assert row["sensitivity"] == pytest.approx(np.mean(known))
        for k, label in enumerate(found["labels"], 1):
            assert label["voxels"] == np.count_nonzero(consensus.indices == k)
        assert found["measure"] is None

    @pytest.mark.parametrize("shape", SHAPES)
    def test_agreement_and_disagreement(self, shape: tuple[int, ...]) -> None:
        made = people(drawn(shape, 3))
        found = report(made, majority(made))
        agreement = found["agreement"]
        pairs = pairwise_dice(made)
        np.testing.assert_allclose(agreement["pairs"], pairs.mean(axis=0))
        upper = np.triu_indices(5, 1)
        assert agreement["dice"] == pytest.approx(pairs[:, *upper].mean())
        assert [one["dice"] for one in agreement["labels"]] == pytest.approx(pairs[:, *upper].mean(axis=1))
        assert agreement["kappa"] == fleiss_kappa(made, made.box())
        bits = entropy(made)
        assert found["disagreement"]["voxels"] == np.count_nonzero(~made.agreed())
        assert found["disagreement"]["mean_bits"] == pytest.approx(bits[bits > 0].mean(), rel=1e-5)
        assert found["disagreement"]["max_bits"] == pytest.approx(bits.max())

    def test_what_the_method_estimates(self) -> None:
        made = people(drawn((6, 12, 14), 3))
        consensus = staple(made)
        assert consensus.sensitivity is not None
        assert consensus.specificity is not None
        found = report(made, consensus)
        for i, row in enumerate(found["raters"]):
            assert [one["estimated_sensitivity"] for one in row["labels"]] == consensus.sensitivity[i].tolist()
            assert [one["estimated_specificity"] for one in row["labels"]] == consensus.specificity[i].tolist()
            assert row["estimated_sensitivity"] == pytest.approx(consensus.sensitivity[i].mean())
        assert found["iterations"] == consensus.iterations
        assert set(consensus.notes) <= set(found["notes"])

    def test_weights(self) -> None:
        """One for each rater, or one for each rater and label."""
        made = people(drawn((6, 12, 14), 2))
        consensus = simple(made, drop=0.5)
        assert consensus.weights is not None
        found = report(made, consensus)
        assert [row["weight"] for row in found["raters"]] == consensus.weights.tolist()
        assert [row["kept"] for row in found["raters"]] == consensus.kept.tolist()
        assert not all(row["kept"] for row in found["raters"])
        assert found["raters"][0]["labels"][0]["weight"] is None
        thetas = np.arange(10.0).reshape(5, 2)
        found = report(made, dataclasses.replace(consensus, weights=thetas), measure="theta")
        assert found["measure"] == "theta"
        assert [[one["weight"] for one in row["labels"]] for row in found["raters"]] == thetas.tolist()
        assert found["raters"][0]["weight"] is None

    def test_region(self) -> None:
        """Counts are those of the region; x comes first in what is told of it."""
        made = people(drawn((8, 12, 14), 1))
        region = (slice(1, 7), slice(2, 11), slice(3, 13))
        consensus = staple(made, region=region)
        found = report(made, consensus)
        assert found["region"] == {"start": [3, 2, 1], "size": [10, 9, 6], "voxels": 540, "whole": False}
        drew, true = made.stack[0][region] == 1, consensus.indices[region] == 1
        label = found["raters"][0]["labels"][0]
        assert label["voxels"] == drew.sum()
        assert label["specificity"] == pytest.approx((~drew & ~true).sum() / (~true).sum())
        assert any("outside of the region" in note for note in found["notes"])

    def test_is_json_without_nan(self) -> None:
        """One rater who drew nothing, a label that nobody but one drew, and one rater alone."""
        stack = np.zeros((3, 6, 7), dtype=np.uint16)
        stack[0, 2:4, 2:4], stack[0, 0, 0], stack[1, 2:4, 2:4] = 1, 2, 1
        for made in (people(stack), people(stack).only([0])):
            found = report(made, majority(made))
            assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert found["agreement"]["kappa"] is None
        assert found["agreement"]["dice"] is None
        notes = report(people(stack), majority(people(stack)))["notes"]
        assert "rater 2 drew none of: 2." in notes
        assert "rater 3 drew nothing." in notes

    def test_more_labels_than_a_byte_holds(self) -> None:
        right = np.arange(600, dtype=np.uint16).reshape(20, 30) // 2
        made = people(np.stack([right, right, right]))
        found = report(made, majority(made))
        assert {one["dice"] for row in found["raters"] for one in row["labels"]} == {1.0}


class TestTable:
    def test_a_row_for_each_rater_and_label(self) -> None:
        made = raters(images(drawn((6, 12, 14), 2)), ["Anna", "Ben", "Cleo", "Dan", "Eva"], {1: "Head", 2: "Tail"})
        found = report(made, simple(made, drop=0.5))
        lines = table(found).splitlines()
        assert lines[0].split() == ["Rater", "Label", "Dice", "Sensitivity", "Specificity", "Weight"]
        rows = lines[2:12]
        assert [row.split()[0] for row in rows[::2]] == ["Anna", "Ben", "Cleo", "Dan", "Eva"]
        assert all("Head" in row for row in rows[::2])
        assert all(row.split()[0] == "Tail" for row in rows[1::2])
        anna = found["raters"][0]["labels"][1]
        told = [f"{anna[key]:.3f}" for key in ("dice", "sensitivity", "specificity")]
        assert rows[1].split()[1:] == told
        assert "Eva (dropped)" in table(found)

    def test_means_of_many_labels(self) -> None:
        made = people(drawn((6, 12, 90), 37))
        found = report(made, staple(made))
        lines = table(found).splitlines()
        assert len([line for line in lines if line.startswith("rater ")]) == 5
        assert "Est. sensitivity" in lines[0]
        assert "Weight" not in lines[0]
        assert f"{found['raters'][2]['dice']:.3f}" in lines[4]
        assert any("Means over 37 labels" in line for line in lines)

    def test_weights_for_each_label(self) -> None:
        made = people(drawn((6, 12, 14), 2))
        thetas = np.arange(10.0).reshape(5, 2) - 4
        text = table(report(made, dataclasses.replace(majority(made), weights=thetas), measure="theta"))
        assert text.splitlines()[0].endswith("Theta")
        assert text.splitlines()[2].endswith("-4.000")
        assert text.splitlines()[3].endswith("-3.000")


def cases() -> dict[str, tuple[Raters, Consensus, Any]]:
    """What pictures have to cope with: raters, consensus, target."""
    few, many = people(drawn((10, 12, 90), 2)), people(drawn((10, 12, 90), 37))
    flat, one = people(drawn((24, 30), 1)), people(drawn((10, 12, 14), 1, [0.1]))
    same = people(np.stack([truth((10, 12, 14), 2)] * 3))
    crowd = people(drawn((6, 7, 8), 1, [0.2] * 120))
    target = np.random.default_rng(0).normal(size=(10, 12, 90)).astype(np.float32)
    weights = np.random.default_rng(0).normal(size=(5, 37))
    return {
        "several labels, estimates": (few, staple(few, region=few.box()), target),
        "many labels, a weight for each": (many, dataclasses.replace(majority(many), weights=weights), None),
        "2-D, dropped": (flat, simple(flat, drop=0.3), None),
        "one rater": (one, majority(one), None),
        "nobody disagrees": (same, majority(same, weights=[1, 2, 3]), None),
        "a crowd": (crowd, majority(crowd), None),
    }


class TestPictures:
    @pytest.mark.parametrize("name", list(cases()))
    def test_are_drawn(self, name: str, tmp_path: Path) -> None:
        made, consensus, target = cases()[name]
        found = report(made, consensus)
        names = report_pictures.write(
            found, lambda name: str(tmp_path / name), raters=made, consensus=consensus, target=target
        )
        assert names == ["raters.png", *(["agreement.png", "disagreement.png"] if len(made) > 1 else [])]
        for file in names:
            picture = np.asarray(Image.open(tmp_path / file).convert("RGB")).astype(int)
            assert min(picture.shape[:2]) > 100
            # The ground is one colour; what was drawn on it is a good part of the picture.
            assert (np.abs(picture - picture[0, 0]).sum(axis=-1) > 12).mean() > 0.05

    def test_from_the_report_alone(self, tmp_path: Path) -> None:
        made = people(drawn((10, 12, 14), 2))
        found = json.loads(json.dumps(report(made, staple(made))))
        assert report_pictures.write(found, lambda name: str(tmp_path / name)) == ["raters.png", "agreement.png"]

    def test_disagreement_shows_the_planes_where_raters_differ(self) -> None:
        """On an oblique grid the planes go through the one place in dispute."""
        stack = np.stack([truth((20, 22, 24), 1)] * 4)
        stack[0, 6:8, 15:17, 10:12] = 0
        like = place(sitk.GetImageFromArray(stack[0]), np.random.default_rng(4))
        given = [sitk.GetImageFromArray(one) for one in stack]
        for one in given:
            one.CopyInformation(like)
        made = raters(given)
        figure = report_pictures.disagreement(made, majority(made))
        for ax in figure.axes[3:6]:  # after those of the consensus
            picture = np.asarray(ax.images[0].get_array())
            assert np.count_nonzero(np.ptp(picture, axis=-1) > 0.05) == 4


class TestNothingIsChanged:
    def test_consensus_and_raters_stay(self) -> None:
        made = people(drawn((6, 12, 14), 2))
        consensus = majority(made)
        stack, indices = made.stack.copy(), consensus.indices.copy()
        report(made, consensus)
        np.testing.assert_array_equal(made.stack, stack)
        np.testing.assert_array_equal(consensus.indices, indices)

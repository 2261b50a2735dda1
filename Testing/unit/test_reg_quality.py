"""The measures of a registration's quality, against transforms whose errors are known, and the sentences they cause."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import place, random_image

from MLILib.errors import BadInput
from MLILib.geometry import Grid, from_array
from MLILib.registration import comparison, conversion, plausibility, quality, summary

POINTS = np.array([[0.0, 0, 0], [10, 0, 5], [3, 8, 1], [-4, 2, 9], [7, 7, 7]])


@dataclasses.dataclass
class Known:
    """A registration whose result was made up."""

    transform: sitk.Transform
    linear: np.ndarray
    inverse: sitk.Transform | None = None
    displacement: torch.Tensor | None = None


def known(matrix: np.ndarray, grid: Grid, displacement: torch.Tensor | None = None) -> Known:
    inverse = conversion.linear_to_sitk(np.linalg.inv(matrix), np.zeros(len(matrix) - 1))
    transform = conversion.to_sitk(matrix, displacement, grid)
    return Known(transform, matrix, inverse if displacement is None else None, displacement)


def shift(*millimetres: float) -> np.ndarray:
    out = np.eye(len(millimetres) + 1)
    out[:-1, -1] = millimetres
    return out


def linear(*rows: list[float]) -> np.ndarray:
    out = np.eye(len(rows) + 1)
    out[: len(rows), : len(rows)] = rows
    return out


def blob(size: int = 32, dims: int = 3) -> sitk.Image:
    rng = np.random.default_rng(3)
    image = sitk.GetImageFromArray(rng.normal(100, 30, (size,) * dims).astype(np.float32))
    return sitk.SmoothingRecursiveGaussian(image, 2.0)


def moved(image: sitk.Image, *millimetres: float) -> sitk.Image:
    """The same voxels farther along."""
    out = sitk.Image(image)
    out.SetOrigin([a + b for a, b in zip(image.GetOrigin(), millimetres, strict=True)])
    return out


class TestComparison:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("seed", range(4))
    def test_moved_image_comes_back(self, dims: int, seed: int) -> None:
        fixed = random_image(np.random.default_rng(seed), dims)
        step = [3.0, -2.0, 4.0][:dims]
        found = comparison.compare(fixed, moved(fixed, *step), sitk.TranslationTransform(dims, step))
        np.testing.assert_allclose(found.after, sitk.GetArrayViewFromImage(fixed), atol=1e-3)
        assert found.after_mask.all()
        assert found.covered[1] == pytest.approx(1.0)

    def test_covered_before(self) -> None:
        fixed = blob(20)
        found = comparison.compare(fixed, moved(fixed, 5.0, 0, 0), sitk.TranslationTransform(3, (5.0, 0, 0)))
        assert found.covered[0] == pytest.approx(0.75, abs=0.03)  # 15 of 20 planes and half a voxel at the border
        assert np.isnan(found.before[:, :, :5]).all()
        assert not found.before_mask[:, :, :5].any()

    def test_small_image_inside_a_large_one_is_covered(self) -> None:
        fixed = blob(32)
        small = sitk.RegionOfInterest(fixed, [12] * 3, [8] * 3)
        assert comparison.compare(fixed, small, sitk.Transform(3, sitk.sitkIdentity)).covered[1] == pytest.approx(1.0)

    def test_masks(self) -> None:
        fixed = blob(16)
        ours, theirs = np.zeros((16,) * 3, np.uint8), np.zeros((16,) * 3, np.uint8)
        ours[:8], theirs[:, :8] = 1, 1
        found = comparison.compare(
            fixed, fixed, sitk.Transform(3, sitk.sitkIdentity),
            fixed_mask=from_array(ours, fixed), moving_mask=from_array(theirs, fixed),
        )  # fmt: skip
        np.testing.assert_array_equal(found.after_mask, (ours & theirs).astype(bool))

    def test_dimensions_differ(self) -> None:
        with pytest.raises(BadInput, match=r"2-D.*3-D"):
            comparison.compare(blob(8, 2), blob(8), sitk.Transform(2, sitk.sitkIdentity))

    def test_coarser_blocks_are_means_at_their_middle(self) -> None:
        image = place(sitk.GetImageFromArray(np.random.default_rng(0).random((6, 9, 8)).astype(np.float32)),
                      np.random.default_rng(5))  # fmt: skip
        fine = comparison.compare(image, image, sitk.Transform(3, sitk.sitkIdentity))
        coarse = fine.coarser(60)
        factors = [round(a / b) for a, b in zip(coarse.grid.spacing, image.GetSpacing(), strict=True)]
        assert math.prod(coarse.grid.size) <= 60
        assert coarse.grid.size == tuple(n // f for n, f in zip(image.GetSize(), factors, strict=True))
        block = fine.fixed[: factors[2], : factors[1], : factors[0]]
        assert coarse.fixed[0, 0, 0] == pytest.approx(block.mean(), rel=1e-5)
        middle = image.TransformContinuousIndexToPhysicalPoint([(f - 1) / 2 for f in factors])
        np.testing.assert_allclose(coarse.grid.origin, middle, atol=1e-6)
        assert fine.coarser(10**6) is fine


class TestResample:
    def test_integers_are_rounded(self) -> None:
        ramp = sitk.GetImageFromArray(np.array([[0, 1, 2, 3]], np.int16).repeat(4, 0))
        found = comparison.resample(ramp, Grid.of(ramp), sitk.TranslationTransform(2, (0.75, 0)))
        assert found.GetPixelID() == sitk.sitkInt16
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(found)[0, :3], [1, 2, 3])

    @pytest.mark.parametrize(
        "kind", [sitk.sitkInt16, sitk.sitkUInt8, sitk.sitkInt32, sitk.sitkFloat32, sitk.sitkFloat64]
    )
    def test_outside_is_the_darkest_value(self, kind: int) -> None:
        image = sitk.Cast(blob(8, 2), kind)
        low = float(sitk.GetArrayViewFromImage(image).min())
        found = comparison.resample(image, Grid.of(image), sitk.TranslationTransform(2, (100.0, 0)))
        assert found.GetPixelID() == kind
        assert (sitk.GetArrayViewFromImage(found) == low).all()

    def test_large_integers_stay_exact(self) -> None:
        image = sitk.GetImageFromArray(np.array([[2**24 + 1, 2**24 + 3]] * 2, np.int32))
        found = comparison.resample(image, Grid.of(image), sitk.Transform(2, sitk.sitkIdentity))
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(found), sitk.GetArrayViewFromImage(image))


class TestLandmarks:
    def test_translation(self) -> None:
        found = quality.target_registration_error(
            POINTS, POINTS + np.array([3, 4, 0]), sitk.TranslationTransform(3, (3.0, 4, 12))
        )
        assert found["n"] == 5
        assert found["before_mean"] == pytest.approx(5.0)
        assert found["mean"] == found["median"] == found["max"] == pytest.approx(12.0)
        assert found["sd"] == pytest.approx(0.0)
        assert found["points"][0] == {"label": "1", "before": pytest.approx(5.0), "after": pytest.approx(12.0)}

    def test_plane(self) -> None:
        found = quality.target_registration_error(
            POINTS, POINTS + np.array([0, 2, 99]), sitk.TranslationTransform(2, (0.0, 2))
        )
        assert found["before_mean"] == pytest.approx(2.0)
        assert found["mean"] == pytest.approx(0.0)

    def test_numbers_differ(self) -> None:
        with pytest.raises(BadInput, match="5 and 4 landmarks"):
            quality.target_registration_error(POINTS, POINTS[:4], sitk.Transform(3, sitk.sitkIdentity))


class TestJacobian:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_scale(self, dims: int) -> None:
        grid = Grid.of(random_image(np.random.default_rng(1), dims))
        matrix = np.eye(dims + 1)
        matrix[:dims, :dims] *= 1.2
        found = quality.determinants(known(matrix, grid), grid)
        assert found.shape == grid.shape
        np.testing.assert_allclose(found, 1.2**dims, rtol=1e-6)
        statistics = quality.jacobian_statistics(found)
        assert statistics["folded"] == statistics["extreme"] == 0
        assert statistics["sd_log"] == pytest.approx(0, abs=1e-6)

    def test_stretch_after_a_scale(self) -> None:
        """u grows by 0.1 voxel a voxel along x: 1.1 times the linear part's determinant 2."""
        grid = Grid((12, 10, 8), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
        u = torch.zeros(1, 3, 8, 10, 12)
        u[0, 2] = 0.1 * torch.arange(12)
        found = quality.determinants(known(linear([2, 0, 0], [0, 1, 0], [0, 0, 1]), grid, u), grid)
        np.testing.assert_allclose(found, 2.2, rtol=1e-5)

    def test_folds_and_extremes(self) -> None:
        found = quality.jacobian_statistics(np.array([1.0, 1.0, -0.5, 20.0] * 100).reshape(4, 10, 10))
        assert found["min"] == pytest.approx(-0.5)
        assert found["max"] == pytest.approx(20.0)
        assert found["folded"] == pytest.approx(0.25)
        assert found["extreme"] == pytest.approx(0.5)


class TestInverse:
    def test_exact(self) -> None:
        grid = Grid.of(random_image(np.random.default_rng(2)))
        found = quality.inverse_consistency(known(shift(1, 2, 3), grid), grid, grid)
        assert found is not None
        assert found["max"] == pytest.approx(0.0, abs=1e-9)

    @pytest.mark.parametrize("masked", [False, True])
    def test_off_by_a_known_distance(self, masked: bool) -> None:
        image = random_image(np.random.default_rng(2))
        registration = known(np.eye(4), Grid.of(image))
        registration.inverse = sitk.TranslationTransform(3, (3.0, 4.0, 0.0))
        mask = from_array(np.ones(Grid.of(image).shape, np.uint8), image) if masked else None
        found = quality.inverse_consistency(registration, Grid.of(image), Grid.of(image), mask)
        assert found == {"mean": pytest.approx(5.0), "max": pytest.approx(5.0), "n": quality.SAMPLES}

    def test_points_that_leave_the_moving_image_do_not_count(self) -> None:
        grid = Grid((20, 20, 20), (1.0,) * 3, (0.0,) * 3, (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
        half = quality.inverse_consistency(known(shift(10, 0, 0), grid), grid, grid)
        assert half is not None
        assert half["n"] == pytest.approx(quality.SAMPLES / 2, rel=0.1)
        assert quality.inverse_consistency(known(shift(50, 0, 0), grid), grid, grid) is None


class TestLabels:
    def test_shifted_cube(self) -> None:
        """A cube of 10 voxels and itself 5 voxels away: Dice 0.5, surfaces 5 mm apart; through the shift 1 and 0."""
        array = np.zeros((24, 24, 24), np.uint8)
        array[5:15, 5:15, 5:15] = 1
        fixed = sitk.GetImageFromArray(array)
        moving = moved(fixed, 0, 0, 5)
        dice, hd95, note = quality.overlaps(
            quality._label_file(fixed), quality._label_file(moving), sitk.TranslationTransform(3, (0.0, 0, 5))
        )
        assert dice == {name: {"before": 0.5, "after": 1.0} for name in ("1", "mean")}
        assert hd95["1"] == {"before": pytest.approx(5.0), "after": pytest.approx(0.0)}
        assert note == ""

    def test_another_grid(self) -> None:
        """Moving labels on a finer grid than their image are the same structure."""
        coarse = sitk.GetImageFromArray(np.pad(np.ones((4, 4, 4), np.uint8), 4))
        fine = sitk.Resample(coarse, [36] * 3, sitk.Transform(), sitk.sitkNearestNeighbor, [-1 / 3] * 3, [1 / 3] * 3)
        dice, _, _ = quality.overlaps(
            quality._label_file(coarse), quality._label_file(fine), sitk.Transform(3, sitk.sitkIdentity)
        )
        assert dice["1"]["after"] == 1.0


class TestSimilarity:
    def test_exact_registration(self) -> None:
        fixed = blob()
        image = moved(fixed, 6, 0, 0)
        found = quality.assess(fixed, image, known(shift(6, 0, 0), Grid.of(fixed)), similarity="ssd")
        after, before = found["similarity_after"], found["similarity_before"]
        assert after["cc"] == pytest.approx(1, abs=1e-5)
        assert after["lncc"] == pytest.approx(1, abs=1e-4)
        assert after["mind"] == pytest.approx(0, abs=1e-6)
        assert after["ssd"] == pytest.approx(0, abs=1e-6)
        assert before["cc"] < 0.5
        assert before["mind"] > 0.01
        assert before["nmi"] < after["nmi"]
        assert found["warnings"] == []
        assert all(quality.better(found, name) for name in after)

    def test_no_overlap_before(self) -> None:
        fixed = blob(16)
        found = quality.assess(fixed, moved(fixed, 500, 0, 0), known(shift(500, 0, 0), Grid.of(fixed)))
        assert found["covered"] == {"before": 0.0, "after": 1.0}
        assert set(found["similarity_before"].values()) == {None}
        assert found["similarity_after"]["cc"] == pytest.approx(1, abs=1e-5)
        assert any("do not overlap before registration" in text for text in found["warnings"])

    def test_no_overlap_after(self) -> None:
        fixed = blob(16)
        found = quality.assess(fixed, fixed, known(shift(500, 0, 0), Grid.of(fixed)))
        assert set(found["similarity_after"].values()) == {None}
        assert any("do not overlap after registration" in text for text in found["warnings"])

    def test_plane(self) -> None:
        fixed = blob(32, 2)
        found = quality.assess(fixed, moved(fixed, 4, 0), known(shift(4, 0), Grid.of(fixed)))
        assert found["similarity_after"]["cc"] == pytest.approx(1, abs=1e-5)

    def test_plain_values(self) -> None:
        import json

        fixed = blob(12)
        found = quality.assess(
            fixed, fixed, known(np.eye(4), Grid.of(fixed)), fixed_points=POINTS, moving_points=POINTS,
            fixed_labels=sitk.Cast(fixed > 100, sitk.sitkUInt8), moving_labels=sitk.Cast(fixed > 100, sitk.sitkUInt8),
        )  # fmt: skip
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert summary.rows(found)[1] == ("Similarity cc, higher is better", "1.000", "1.000")
        assert "Dice, 1" in summary.table(found)


class TestWarnings:
    def sentences(self, registration: Known, **given: Any) -> str:
        image = blob(24)
        return " ".join(quality.assess(image, image, registration, **given)["warnings"])

    def grid(self) -> Grid:
        return Grid.of(blob(24))

    def test_nothing(self) -> None:
        assert self.sentences(known(np.eye(4), self.grid()), similarity="ssd") == ""

    def test_less_alike(self) -> None:
        told = self.sentences(known(shift(4, 0, 0), self.grid()), similarity="lncc")
        assert "less alike after registration: lncc from 1 to" in told
        assert "by every measure" in self.sentences(known(shift(4, 0, 0), self.grid()))

    def test_landmarks(self) -> None:
        told = self.sentences(known(shift(0, 0, 2), self.grid()), fixed_points=POINTS, moving_points=POINTS)
        assert "landmarks are farther apart after registration: 0.00 mm before and 2.00 mm after" in told

    def test_labels(self) -> None:
        labels = sitk.Cast(blob(24) > 100, sitk.sitkUInt8)
        told = self.sentences(known(shift(3, 0, 0), self.grid()), fixed_labels=labels, moving_labels=labels)
        assert "labels overlap less after registration: mean Dice 1.000 before" in told

    def test_folds(self) -> None:
        u = torch.zeros(1, 3, 24, 24, 24)
        u[:, :, 10:12, 10:14, 10:14] = torch.randn(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 4
        assert "The deformation folds" in self.sentences(known(np.eye(4), self.grid(), u))

    def test_inverse(self) -> None:
        registration = known(np.eye(4), self.grid())
        registration.inverse = sitk.TranslationTransform(3, (0.0, 0.0, 1.0))
        assert "inverse does not undo the transform: it misses by 1.00 mm" in self.sentences(registration)

    @pytest.mark.parametrize(
        ("matrix", "words"),
        [
            (linear([0.5, -math.sqrt(0.75), 0], [math.sqrt(0.75), 0.5, 0], [0, 0, 1]), "by 60 degrees"),
            (linear([1.6, 0, 0], [0, 1, 0], [0, 0, 1]), "by 1.60 along one direction"),
            (linear([1, 0, 0], [0, 0.5, 0], [0, 0, 1]), "by 0.50 along one direction"),
            (linear([-1, 0, 0], [0, 1, 0], [0, 0, 1]), "mirrors the image"),
        ],
    )
    def test_linear_part(self, matrix: np.ndarray, words: str) -> None:
        assert words in self.sentences(known(matrix, self.grid()))

    def test_little_in_common(self) -> None:
        assert "have little in common: 1" in self.sentences(known(shift(20, 0, 0), self.grid()))


class TestLinearPart:
    def test_rotation_and_scales(self) -> None:
        c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        matrix = np.eye(4)
        matrix[:3, :3] = turn @ np.diag([1.3, 0.8, 1.0])
        angle, scales, mirrored = plausibility.linear_part(matrix)
        assert angle == pytest.approx(30)
        assert scales == pytest.approx((1.3, 1.0, 0.8))
        assert not mirrored

    def test_plane(self) -> None:
        angle, _, _ = plausibility.linear_part(linear([0, 1], [-1, 0]))
        assert angle == pytest.approx(90)


class TestRelation:
    """Which similarity suits, on intensities whose relation is known."""

    def relation(self, function: Any) -> plausibility.Relation:
        fixed = blob()
        array = sitk.GetArrayFromImage(fixed)
        noise = np.random.default_rng(0).normal(0, 0.2, array.shape)
        moving = from_array((function(array) + noise).astype(np.float32), fixed)
        found = plausibility.relation(comparison.compare(fixed, moving, sitk.Transform(3, sitk.sitkIdentity)))
        assert found is not None
        return found

    def test_identical(self) -> None:
        assert not any(self.relation(lambda x: x).unfit(name) for name in ("ssd", "sad", "cc", "lncc", "nmi", "mind"))

    def test_scaled(self) -> None:
        """Another unit and zero are no other modality: registration scales each image to its range."""
        assert self.relation(lambda x: 3 * x + 200).unfit("ssd") == ""

    def test_other_contrast(self) -> None:
        """Nearly everything bright, in one image only: a straight line fits well enough, identity does not."""
        found = self.relation(lambda x: 200 - 100 * np.exp(-(x - x.min()) / 8))
        assert found.linear > 0.7
        for name in ("ssd", "sad", "ssd+lncc"):
            assert "even when each image is scaled" in found.unfit(name)
        assert found.unfit("cc") == ""

    def test_inverted(self) -> None:
        found = self.relation(lambda x: 200 - x)
        assert "bright in one image is dark in the other" in found.unfit("cc")
        assert found.unfit("nmi") == ""

    def test_bent(self) -> None:
        found = self.relation(lambda x: 100 + (x - 100) ** 2)
        assert found.linear < 0.2
        assert found.functional > 0.6
        assert "a straight line only" in found.unfit("cc")
        assert found.unfit("lncc") == found.unfit("mi") == ""

    def test_in_the_report(self) -> None:
        fixed = blob()
        told = quality.assess(fixed, fixed * -1.0, known(np.eye(4), Grid.of(fixed)), similarity="cc")["warnings"]
        assert told == [
            "The similarity cc may be unfit for these images: what is bright in one image is dark in the other. Use "
            "lncc, nmi or mind."
        ]

    def test_correlation_ratio(self) -> None:
        """Of y = x^2 with x symmetric about 0: everything is explained one way, nothing but the mean the other way."""
        x = np.linspace(-1, 1, 20001)
        assert plausibility.correlation_ratio(x**2, x) == pytest.approx(1, abs=0.01)
        assert plausibility.correlation_ratio(x, x**2) == pytest.approx(0, abs=0.01)

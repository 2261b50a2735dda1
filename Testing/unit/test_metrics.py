"""Metrics of segmentation against closed forms, SimpleITK, MONAI and DeepMind's surface-distance."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from scipy import ndimage

from MLILib import surface_distance
from MLILib.errors import BadInput
from MLILib.metrics import METRICS, compare, compare_labels, for_json, label_array
from MLILib.surface_distance import surface_distances

# The oracles' own warnings about names of theirs that are going away.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:monai:FutureWarning"),
]

OVERLAP = ("dice", "jaccard", "precision", "recall", "f1", "volume_similarity", "surface_dice")
DISTANCES = ("hausdorff", "hausdorff95", "assd")
SPACINGS_3D = [(1.0, 1.0, 1.0), (0.7, 1.1, 3.3)]


def image(array: npt.NDArray[Any], spacing: Sequence[float] | None = None) -> sitk.Image:
    """A label image of `array` (z, y, x), spacing (x, y, z)."""
    made = sitk.GetImageFromArray(array if array.dtype != bool else array.astype(np.uint8))
    made.SetSpacing(spacing or (1.0,) * array.ndim)
    return made


def box(shape: Sequence[int], start: Sequence[int], size: Sequence[int]) -> npt.NDArray[np.bool_]:
    made = np.zeros(shape, bool)
    made[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return made


def ball(shape: Sequence[int], radius: float, spacing: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Voxels whose centre is within `radius` mm of the array's centre; spacing in the array's order."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    return np.asarray(sum(g**2 for g in np.meshgrid(*axes, indexing="ij")) <= radius**2)


def blobs(seed: int, shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Several smooth random blobs, some of which touch the edge."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0)
    return np.asarray(noise > noise.mean() + noise.std())


def one(
    a: npt.NDArray[Any], b: npt.NDArray[Any], spacing: Sequence[float] | None = None, tolerance: float = 1.0
) -> Any:
    """The metrics of label 1."""
    return compare(image(a, spacing), image(b, spacing), {1: "x"}, tolerance)["x"]


class TestOverlap:
    def test_counts_and_ratios_of_shifted_boxes(self) -> None:
        # 4 x 4 x 4 boxes, shifted by one of four voxels: 48 shared, 16 on either side, 1000 in all
        found = one(box((10, 10, 10), (2, 2, 2), (4, 4, 4)), box((10, 10, 10), (2, 2, 3), (4, 4, 4)))
        assert (found["tp"], found["fp"], found["fn"], found["tn"]) == (48, 16, 16, 920)
        assert found["dice"] == found["f1"] == found["precision"] == found["recall"] == 0.75
        assert found["jaccard"] == pytest.approx(48 / 80)
        assert found["accuracy"] == pytest.approx(0.968)
        assert found["specificity"] == pytest.approx(920 / 936)
        assert found["volume_similarity"] == 1.0

    def test_volumes_are_millilitres_of_the_spacing(self) -> None:
        found = one(box((9, 9, 9), (1, 1, 1), (2, 4, 5)), box((9, 9, 9), (1, 1, 1), (2, 4, 4)), (0.5, 2.0, 3.0))
        assert found["volume_prediction_ml"] == pytest.approx(40 * 3.0 / 1000)
        assert found["volume_reference_ml"] == pytest.approx(32 * 3.0 / 1000)
        assert found["volume_similarity"] == pytest.approx(1 - 8 / 72)

    @pytest.mark.parametrize("shape", [(12, 15, 18), (40, 30)])
    def test_agrees_with_simpleitk(self, shape: tuple[int, ...]) -> None:
        ours = blobs(1, shape).astype(np.uint8) + 2 * (blobs(3, shape) & ~blobs(1, shape))
        theirs = blobs(2, shape).astype(np.uint8) + 2 * (blobs(3, shape) & ~blobs(2, shape))
        found = compare(image(ours), image(theirs))
        oracle = sitk.LabelOverlapMeasuresImageFilter()
        oracle.Execute(image(ours), image(theirs))
        for label in (1, 2):
            got = found[str(label)]
            assert got["dice"] == pytest.approx(oracle.GetDiceCoefficient(label))
            assert got["jaccard"] == pytest.approx(oracle.GetJaccardCoefficient(label))
            assert got["volume_similarity"] == pytest.approx(1 - abs(oracle.GetVolumeSimilarity(label)) / 2)

    def test_error_rates_agree_with_simpleitk(self) -> None:
        # ITK names the images source and target and counts what the target lacks as false positive or negative by
        # version; with masks of one size the rates are the same from both sides.
        a, b = box((9, 9, 9), (1, 1, 1), (3, 4, 5)), box((9, 9, 9), (2, 1, 1), (3, 4, 5))
        oracle = sitk.LabelOverlapMeasuresImageFilter()
        oracle.Execute(image(a), image(b))
        found = one(a, b)
        assert 1 - found["recall"] == pytest.approx(oracle.GetFalseNegativeError(1))
        assert 1 - found["precision"] == pytest.approx(oracle.GetFalseNegativeError(1))

    def test_recall_is_of_the_reference(self) -> None:
        part, whole = box((6, 6), (1, 1), (2, 2)), box((6, 6), (1, 1), (4, 2))
        found = one(part, whole)
        assert (found["precision"], found["recall"]) == (1.0, 0.5)
        assert (found["fp"], found["fn"]) == (0, 4)


class TestSurface:
    @pytest.mark.parametrize(("axis", "step"), [(0, 3.3), (1, 1.1), (2, 0.7)])
    def test_shifted_boxes_are_as_far_as_they_were_shifted(self, axis: int, step: float) -> None:
        start = [4, 4, 4]
        a = box((20, 20, 20), start, (9, 9, 9))
        start[axis] += 2
        b = box((20, 20, 20), start, (9, 9, 9))
        found = one(a, b, (0.7, 1.1, 3.3), tolerance=2 * step)
        assert found["hausdorff"] == pytest.approx(2 * step)
        assert found["surface_dice"] == 1.0
        assert one(a, b, (0.7, 1.1, 3.3), tolerance=1.99 * step)["surface_dice"] < 1.0
        oracle = sitk.HausdorffDistanceImageFilter()
        oracle.Execute(image(a, (0.7, 1.1, 3.3)), image(b, (0.7, 1.1, 3.3)))
        assert found["hausdorff"] == pytest.approx(oracle.GetHausdorffDistance())

    def test_concentric_balls_are_the_difference_of_radii_apart(self) -> None:
        spacing = (1.2, 0.6, 0.6)
        a, b = ball((40, 80, 80), 18.0, spacing), ball((40, 80, 80), 13.0, spacing)
        found = one(a, b, spacing[::-1])
        half_a_voxel = math.hypot(*spacing) / 2  # an element is at most so far from the ball it stands for
        assert found["assd"] == pytest.approx(5.0, abs=half_a_voxel)
        assert found["hausdorff95"] == pytest.approx(5.0, abs=half_a_voxel)
        assert found["surface_dice"] == 0.0
        assert found["volume_prediction_ml"] == pytest.approx(4 / 3 * math.pi * 1.8**3, rel=0.01)

    def test_contour_length_of_a_rectangle(self) -> None:
        # 6 x 4 pixels of 0.5 x 2 mm: straight sides between the outer pixels' centres, corners cut at half a pixel
        mask = box((10, 10), (2, 2), (4, 6))
        lengths = surface_distances(mask, mask, (2.0, 0.5)).reference_areas
        assert lengths.sum() == pytest.approx(2 * 5 * 0.5 + 2 * 3 * 2.0 + 4 * 0.5 * math.hypot(0.5, 2.0))

    def test_area_of_a_box_approaches_its_faces(self) -> None:
        mask = box((42, 52, 62), (1, 1, 1), (40, 50, 60))
        area = surface_distances(mask, mask, (3.0, 2.0, 1.0)).reference_areas.sum()
        assert area == pytest.approx(2 * (120 * 100 + 120 * 60 + 100 * 60), rel=0.03)

    def test_average_is_over_the_area_of_both(self) -> None:
        # a large and a small square, far apart: every directed mean counts with its contour's length
        a, b = box((40, 40), (2, 2), (12, 12)), box((40, 40), (30, 30), (3, 3))
        found = surface_distances(a, b, (1.0, 1.0))
        there, back = found.prediction_to_reference, found.reference_to_prediction
        length_a, length_b = 4 * 11 + 2 * math.sqrt(2), 4 * 2 + 2 * math.sqrt(2)
        mean_a = np.average(there, weights=found.prediction_areas)
        mean_b = np.average(back, weights=found.reference_areas)
        assert found.average() == pytest.approx((mean_a * length_a + mean_b * length_b) / (length_a + length_b))
        assert found.average() != pytest.approx((mean_a + mean_b) / 2, rel=0.01)

    def test_a_percentile_is_by_area_and_of_the_worse_direction(self) -> None:
        # one direction: a speck that is well below 5 % of the contour does not count, the whole other contour does
        square = box((80, 80), (5, 5), (30, 30))
        speck = square | box((80, 80), (70, 70), (1, 1))
        assert one(speck, square)["hausdorff95"] == 0.0
        assert one(speck, square)["hausdorff"] == pytest.approx(math.hypot(36, 36))
        assert one(speck, box((80, 80), (70, 70), (1, 1)))["hausdorff95"] > 50

    def test_swapping_the_images_changes_no_distance(self) -> None:
        a, b = blobs(4, (14, 16, 18)), blobs(5, (14, 16, 18))
        there, back = one(a, b, (0.7, 1.1, 3.3)), one(b, a, (0.7, 1.1, 3.3))
        for metric in (*DISTANCES, "surface_dice"):
            assert there[metric] == pytest.approx(back[metric])

    def test_a_tolerance_of_one_voxel_holds_for_spacings_kept_in_single_precision(self) -> None:
        spacing = float(np.float32(1.1))
        a, b = box((12, 12, 12), (3, 3, 3), (5, 5, 5)), box((12, 12, 12), (3, 3, 4), (5, 5, 5))
        assert one(a, b, (spacing,) * 3, tolerance=1.1)["surface_dice"] == 1.0

    def test_what_touches_the_edge_ends_there(self) -> None:
        inside = np.pad(np.ones((4, 5, 6), bool), 3)
        full = surface_distances(np.ones((4, 5, 6), bool), np.ones((4, 5, 6), bool), (1.0, 1.0, 1.0))
        padded = surface_distances(inside, inside, (1.0, 1.0, 1.0))
        assert full.reference_areas.sum() == pytest.approx(padded.reference_areas.sum())

    @pytest.mark.parametrize(("inner", "transforms"), [(0.1, 0), (15.0, 2), (22.0, 0)])
    def test_both_ways_to_the_nearest_point_agree_with_a_distance_transform(
        self, inner: float, transforms: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # a ball of 22 mm in one of 28 is looked up in the tree; from one of 15 that is slow, and the distance transform
        # takes over; a single voxel has too few points for it to pay
        calls = []
        transform = surface_distance._distance_transform
        monkeypatch.setattr(surface_distance, "_distance_transform", lambda *a: (calls.append(a), transform(*a))[1])
        spacing = (1.3, 0.9, 0.9)
        outer, ball_in = ball((49, 65, 65), 28.0, spacing), ball((49, 65, 65), inner, spacing)
        found = surface_distances(ball_in, outer, spacing)
        assert len(calls) == transforms
        codes = [ndimage.correlate(np.pad(m, 1).astype(int), np.ones((2, 2, 2))) for m in (ball_in, outer)]
        inner_edge, outer_edge = ((c > 0) & (c < 8) for c in codes)
        to_outer = ndimage.distance_transform_edt(~outer_edge, sampling=spacing)[inner_edge]
        to_inner = ndimage.distance_transform_edt(~inner_edge, sampling=spacing)[outer_edge]
        np.testing.assert_allclose(found.prediction_to_reference, np.sort(to_outer), rtol=1e-6)
        np.testing.assert_allclose(found.reference_to_prediction, np.sort(to_inner), rtol=1e-6)

    def test_masks_of_different_shape_are_refused(self) -> None:
        with pytest.raises(ValueError, match="one shape"):
            surface_distances(np.ones((2, 3), bool), np.ones((3, 2), bool), (1.0, 1.0))


class TestOracles:
    @pytest.mark.parametrize("spacing", [*SPACINGS_3D, (0.5, 2.0)])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_agrees_with_deepmind(self, spacing: tuple[float, ...], seed: int) -> None:
        oracle = pytest.importorskip("surface_distance", reason="the extra 'peers' is not installed")
        shape = (24, 28, 20)[: len(spacing)]
        a, b = blobs(10 + seed, shape), blobs(20 + seed, shape)
        found = one(a, b, spacing, tolerance=1.5)
        theirs = oracle.compute_surface_distances(b, a, spacing[::-1])
        assert found["hausdorff"] == pytest.approx(oracle.compute_robust_hausdorff(theirs, 100), rel=1e-6)
        assert found["hausdorff95"] == pytest.approx(oracle.compute_robust_hausdorff(theirs, 95), rel=1e-6)
        assert found["surface_dice"] == pytest.approx(oracle.compute_surface_dice_at_tolerance(theirs, 1.5), rel=1e-6)
        directed = oracle.compute_average_surface_distance(theirs)
        areas = theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()
        assert found["assd"] == pytest.approx(np.average(directed, weights=areas), rel=1e-6)

    @pytest.mark.parametrize("spacing", [*SPACINGS_3D, (0.5, 2.0)])
    def test_agrees_with_monai_on_subvoxels(self, spacing: tuple[float, ...]) -> None:
        torch = pytest.importorskip("torch")
        monai = pytest.importorskip("monai.metrics")
        shape = (24, 28, 20)[: len(spacing)]
        a, b = blobs(30, shape), blobs(31, shape)
        one_hot = [torch.from_numpy(np.stack([~m, m])[None]) for m in (a, b)]
        theirs = monai.compute_surface_dice(*one_hot, [1.5], spacing=spacing[::-1], use_subvoxels=True)
        found = one(a, b, spacing, tolerance=1.5)
        assert found["surface_dice"] == pytest.approx(float(theirs), rel=1e-5)
        by_voxels = monai.compute_surface_dice(*one_hot, [1.5], spacing=spacing[::-1])
        assert found["surface_dice"] != pytest.approx(float(by_voxels), rel=1e-3)


class TestGeometry:
    def test_position_and_direction_change_nothing(self) -> None:
        a, b = image(blobs(6, (12, 14, 16)), (0.7, 1.1, 3.3)), image(blobs(7, (12, 14, 16)), (0.7, 1.1, 3.3))
        straight = compare(a, b)
        turn = sitk.Euler3DTransform()
        turn.SetRotation(0.4, -0.3, 0.7)
        left_handed = np.reshape(turn.GetMatrix(), (3, 3)) @ np.diag([1.0, -1.0, 1.0])
        for direction in (turn.GetMatrix(), left_handed.ravel().tolist()):
            for each in (a, b):
                each.SetDirection(direction)
                each.SetOrigin((-120.5, 33.0, 900.0))
            assert compare(a, b) == straight

    def test_one_slice_is_the_picture_it_is(self) -> None:
        a, b = blobs(8, (30, 40)), blobs(9, (30, 40))
        flat = one(a, b, (0.5, 2.0))
        for axis, spacing in ((0, (0.5, 2.0, 1.0)), (1, (0.5, 1.0, 2.0)), (2, (1.0, 0.5, 2.0))):
            thin = one(np.expand_dims(a, axis), np.expand_dims(b, axis), spacing)
            assert thin == pytest.approx(flat)

    def test_an_empty_label_in_one_slice(self) -> None:
        a = box((1, 8, 8), (0, 2, 2), (1, 3, 3))
        found = compare(image(a), image(a), {1: "there", 2: "nowhere"})
        assert found["there"]["dice"] == 1.0
        assert math.isnan(found["nowhere"]["dice"])

    def test_rounding_of_a_header_is_not_another_grid(self) -> None:
        a, b = image(blobs(1, (6, 7, 8))), image(blobs(1, (6, 7, 8)))
        b.SetOrigin((0.001, 0.0, -0.002))
        assert compare(a, b)["mean"]["dice"] == 1.0

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            (lambda i: i.SetOrigin((0.0, 0.3, 0.0)), "origin"),
            (lambda i: i.SetSpacing((1.0, 1.0, 1.1)), "spacing"),
            (lambda i: i.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, 1)), "direction"),
        ],
    )
    def test_another_grid_is_refused(self, change: Any, word: str) -> None:
        a, b = image(blobs(1, (8, 8, 8))), image(blobs(1, (8, 8, 8)))
        change(b)
        with pytest.raises(BadInput, match=word) as caught:
            compare(a, b)
        assert "Resample" in caught.value.remedy

    def test_another_size_or_dimension_is_refused(self) -> None:
        with pytest.raises(BadInput, match="8 x 8 x 8 voxels and the reference 8 x 8 x 9"):
            compare(image(np.ones((8, 8, 8), bool)), image(np.ones((9, 8, 8), bool)))
        with pytest.raises(BadInput, match="2-D and the reference 3-D"):
            compare(image(np.ones((8, 8), bool)), image(np.ones((9, 8, 8), bool)))


class TestEmpty:
    def test_both_empty_is_undefined(self) -> None:
        nothing = np.zeros((5, 5, 5), bool)
        found = one(nothing, nothing)
        assert all(math.isnan(found[m]) for m in (*OVERLAP, *DISTANCES))
        assert (found["accuracy"], found["specificity"], found["tn"]) == (1.0, 1.0, 125)

    @pytest.mark.parametrize("missing", ["prediction", "reference"])
    def test_one_empty_is_no_overlap_and_infinitely_far(self, missing: str) -> None:
        there, nothing = box((5, 5, 5), (1, 1, 1), (2, 2, 2)), np.zeros((5, 5, 5), bool)
        found = one(nothing, there) if missing == "prediction" else one(there, nothing)
        assert all(found[m] == 0.0 for m in OVERLAP)
        assert all(found[m] == math.inf for m in DISTANCES)
        assert found[f"volume_{missing}_ml"] == 0.0

    def test_a_reference_that_fills_the_image_has_no_specificity(self) -> None:
        full = np.ones((4, 4), bool)
        assert math.isnan(one(full, full)["specificity"])

    def test_means_leave_out_what_is_undefined_and_say_so(self) -> None:
        good = box((9, 9), (1, 1), (3, 3)).astype(np.uint8)
        missed = good + 2 * box((9, 9), (6, 6), (2, 2)).astype(np.uint8)
        found = compare(image(good), image(missed), {1: "found", 2: "missed", 3: "nowhere"})["mean"]
        assert found["dice"] == 0.5
        assert found["hausdorff"] == 0.0
        assert found["counted"]["dice"] == 2
        assert found["counted"]["hausdorff"] == 1
        assert found["counted"]["accuracy"] == 3

    def test_json_holds_it(self) -> None:
        nothing, there = np.zeros((5, 5), bool), box((5, 5), (1, 1), (2, 2))
        plain = for_json(compare(image(nothing), image(there)))
        read = json.loads(json.dumps(plain, allow_nan=False))
        assert read["1"]["hausdorff"] is None
        assert read["1"]["dice"] == 0.0
        assert set(read["mean"]) == {*METRICS, "counted"}


class TestLabels:
    def test_every_label_of_either_image_is_compared(self) -> None:
        a, b = np.zeros((6, 6), np.uint8), np.zeros((6, 6), np.uint8)
        a[1, 1], b[2, 2], b[3, 3] = 7, 7, 12
        assert list(compare(image(a), image(b))) == ["7", "12", "mean"]

    def test_names_choose_the_labels(self) -> None:
        a = np.array([[0, 1, 2], [2, 3, 3]], np.uint8)
        assert list(compare(image(a), image(a), {3: "c", 1: "a"})) == ["c", "a", "mean"]

    def test_background_can_be_asked_for(self) -> None:
        a = box((4, 4), (0, 0), (2, 4))
        assert compare(image(a), image(~a), {0: "background"})["background"]["fn"] == 8

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.float32, float])
    def test_any_number_type(self, dtype: Any) -> None:
        a, b = box((6, 6), (1, 1), (2, 4)) * 3, box((6, 6), (1, 1), (4, 4)) * 3
        found = compare(image(a.astype(dtype)), image(b.astype(np.uint8)))
        assert found["3"]["dice"] == pytest.approx(16 / 24)

    def test_large_values(self) -> None:
        a, b = blobs(1, (9, 9, 9)), blobs(2, (9, 9, 9))
        big = compare(image(a * np.int32(2_000_000_000)), image(b * np.int32(2_000_000_000)))
        assert big["2000000000"] == pytest.approx(one(a, b))

    def test_labels_may_overlap_and_differ_in_value(self) -> None:
        a, b = box((9, 9), (1, 1), (4, 4)), box((9, 9), (3, 3), (4, 4))
        layered = [a.astype(np.uint8), b.astype(np.uint8)]
        found = compare_labels(layered, [b * np.uint8(5)], {"a": ((0, 1), None), "b": ((1, 1), (0, 5))}, (1.0, 1.0))
        assert found["b"]["dice"] == 1.0
        assert (found["a"]["fp"], found["a"]["recall"]) == (16, 0.0)

    @pytest.mark.parametrize("names", [{1: "a", 2: "a"}, {1: "mean"}])
    def test_two_entries_of_one_name_are_refused(self, names: dict[int, str]) -> None:
        with pytest.raises(BadInput, match="Two entries"):
            compare(image(np.ones((3, 3), bool)), image(np.ones((3, 3), bool)), names)

    @pytest.mark.parametrize(
        ("array", "word"),
        [
            (np.full((3, 3), 0.5, np.float32), "9 voxels are not whole"),
            (np.array([[1.0, np.nan], [np.inf, 2.0]]), "2 voxels are not whole"),
            (np.full((3, 3), -2, np.int16), "down to -2"),
        ],
    )
    def test_what_is_no_label_image_is_refused(self, array: npt.NDArray[Any], word: str) -> None:
        with pytest.raises(BadInput, match=word):
            label_array(image(array), "prediction")

    @pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
    def test_a_tolerance_that_is_no_distance_is_refused(self, tolerance: float) -> None:
        with pytest.raises(BadInput, match="tolerance"):
            one(np.ones((3, 3), bool), np.ones((3, 3), bool), tolerance=tolerance)

    def test_a_colour_picture_is_refused(self) -> None:
        with pytest.raises(BadInput, match=r"2-D with 3 value\(s\) a voxel"):
            label_array(sitk.Image([4, 4], sitk.sitkVectorUInt8, 3), "prediction")


def test_the_area_table_is_the_published_one() -> None:
    oracle = pytest.importorskip("surface_distance.lookup_tables", reason="the extra 'peers' is not installed")
    spacing = (3.3, 1.1, 0.7)
    ours = surface_distance._area_table(spacing)
    np.testing.assert_allclose(ours, oracle.create_table_neighbour_code_to_surface_area(spacing), rtol=1e-6)

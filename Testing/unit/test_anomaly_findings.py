"""From map to findings: thresholds at a stated rate, filters, sizes, and centres in patient coordinates."""

from __future__ import annotations

import grids
import numpy as np
import pytest
import SimpleITK as sitk

from MLILib.anomaly import findings
from MLILib.errors import BadInput
from MLILib.geometry import from_array


def _blobs(spacing: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> sitk.Image:
    """Two boxes of 3 x 3 x 3 and 2 x 2 x 2 voxels with scores 5 and 9 on a ground of 0."""
    array = np.zeros((20, 24, 28), np.float32)
    array[3:6, 4:7, 5:8] = 5.0
    array[12:14, 12:14, 12:14] = 9.0
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    return image


def test_rows_tell_size_score_and_place() -> None:
    found = findings.find(_blobs(), 1.0, median=1)
    assert [row["label"] for row in found.rows] == [1, 2]
    large, small = found.rows
    assert large["voxels"] == 27
    assert large["volume_ml"] == pytest.approx(27 * 6 / 1000)
    assert (large["peak"], large["mean"]) == (5.0, 5.0)
    assert small["peak"] == 9.0
    # Voxel (6, 5, 4) is the first box's middle; LPS to RAS turns x and y around.
    assert large["centre_lps"] == pytest.approx([6.0, 10.0, 12.0])
    assert large["centre_ras"] == pytest.approx([-6.0, -10.0, 12.0])
    labels = sitk.GetArrayFromImage(found.labels)
    assert labels[4, 5, 6] == 1
    assert labels[12, 12, 12] == 2
    assert np.count_nonzero(labels) == 27 + 8


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dims", [2, 3])
def test_centre_and_peak_are_where_simpleitk_puts_them(seed: int, dims: int) -> None:
    rng = np.random.default_rng(seed)
    image = grids.random_image(rng, dims)
    values = sitk.GetArrayFromImage(image)
    threshold = float(np.quantile(values, 0.97))
    found = findings.find(image, threshold, median=1)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(found.labels)
    score = sitk.LabelIntensityStatisticsImageFilter()
    score.Execute(found.labels, image)
    assert shape.GetNumberOfLabels() == len(found.rows) > 0
    for row in found.rows:
        place = np.zeros(3)
        place[:dims] = shape.GetCentroid(row["label"])
        np.testing.assert_allclose(row["centre_lps"], place, atol=1e-6)
        peak = np.zeros(3)
        peak[:dims] = image.TransformIndexToPhysicalPoint(score.GetMaximumIndex(row["label"]))
        np.testing.assert_allclose(row["peak_lps"], peak, atol=1e-6)
        np.testing.assert_allclose(row["peak_ras"], peak * (-1, -1, 1), atol=1e-6)
        assert row["mean"] == pytest.approx(score.GetMean(row["label"]), rel=1e-5)
        size = shape.GetPhysicalSize(row["label"])  # mm2 in a plane, which counts as 1 mm thick
        assert row["volume_ml"] == pytest.approx(size / 1000)


def test_a_median_filter_takes_single_voxels_away() -> None:
    array = sitk.GetArrayFromImage(_blobs())
    array[18, 2, 2] = 50.0
    noisy = from_array(array, _blobs())
    assert len(findings.find(noisy, 1.0, median=1).rows) == 3
    assert len(findings.find(noisy, 1.0, median=3).rows) == 1  # the box of 8 has no majority in any 27 voxels, either


def test_the_smallest_finding_is_a_volume() -> None:
    found = findings.find(_blobs(), 1.0, median=1, smallest_ml=0.1)
    assert [row["voxels"] for row in found.rows] == [27]
    assert found.left_out == 1
    assert len(findings.find(_blobs(), 1.0, median=1, smallest_ml=8 * 6 / 1000).rows) == 2


def test_the_foreground_is_eroded_in_millimetres() -> None:
    mask = np.zeros((9, 15, 21), np.uint8)
    mask[2:7, 3:12, 4:17] = 1
    image = sitk.GetImageFromArray(mask)
    image.SetSpacing((1.0, 2.0, 4.0))
    left = sitk.GetArrayFromImage(findings.eroded(image, 3.0))
    # The nearest voxel outside is 1, 2 or 4 mm away at the rim: three voxels go along x, one along y, none along z.
    expected = np.zeros_like(mask)
    expected[2:7, 4:11, 7:14] = 1
    np.testing.assert_array_equal(left, expected)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(findings.eroded(image, 0.0)), mask)


def test_the_images_border_is_no_rim() -> None:
    full = sitk.GetImageFromArray(np.ones((5, 5, 5), np.uint8))
    assert sitk.GetArrayFromImage(findings.eroded(full, 2.0)).all()


def test_nothing_is_found_outside_the_foreground() -> None:
    image = _blobs()
    mask = from_array((sitk.GetArrayFromImage(image) == 9).astype(np.uint8), image)
    found = findings.find(image, 1.0, mask, median=1)
    assert [row["peak"] for row in found.rows] == [9.0]


def test_both_signs_of_a_z_map_are_found_apart() -> None:
    array = np.zeros((6, 6, 6), np.float32)
    array[2, 2, 1:3] = (3.0, 4.0)
    array[2, 2, 3:6] = (-3.0, -7.0, -4.0)  # touches the positive region
    found = findings.find(sitk.GetImageFromArray(array), 2.5, median=1, two_sided=True)
    assert [(row["voxels"], row["peak"]) for row in found.rows] == [(3, -7.0), (2, 4.0)]
    with pytest.raises(BadInput, match="both sides"):
        findings.find(sitk.GetImageFromArray(array), 0.0, two_sided=True)


@pytest.mark.parametrize("count", [100, 101, 119, 1000, 1037])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_the_threshold_keeps_the_stated_rate(count: int, rate: float) -> None:
    scores = np.random.default_rng(count).normal(size=count)
    threshold = findings.threshold_at(rate, scores)
    assert np.mean(scores >= threshold) <= rate
    lower = scores[scores < threshold].max()
    assert np.mean(scores >= lower) > rate


def test_equal_scores_do_not_raise_the_rate() -> None:
    scores = np.array([0.0] * 90 + [1.0] * 10)
    assert np.mean(scores >= findings.threshold_at(0.05, scores)) == 0.0
    assert findings.threshold_at(0.1, scores) == 1.0


def test_bad_input_is_a_sentence() -> None:
    with pytest.raises(BadInput, match="At least 100"):
        findings.threshold_at(0.01, np.arange(50.0))
    with pytest.raises(BadInput, match="between 0 and 1"):
        findings.threshold_at(1.0, np.arange(50.0))
    with pytest.raises(BadInput, match="not on the image's grid"):
        findings.find(_blobs(), 1.0, _blobs((1.0, 1.0, 1.0)))
    with pytest.raises(BadInput, match="odd number"):
        findings.find(_blobs(), 1.0, median=2)
    with pytest.raises(BadInput, match="no foreground"):
        findings.find(_blobs(), 1.0, erode_mm=1.0)
    broken = sitk.GetImageFromArray(np.full((3, 3, 3), np.nan, np.float32))
    with pytest.raises(BadInput, match="not numbers"):
        findings.find(broken, 1.0)


def test_the_table_names_each_finding() -> None:
    text = findings.format_table(findings.find(_blobs(), 1.0, median=1).rows)
    assert "(6.0, 10.0, 12.0)" in text
    assert findings.format_table([]) == "Nothing was found."

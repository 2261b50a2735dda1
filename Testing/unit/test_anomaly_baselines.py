"""Trivial baselines: mean and spread, principal components and neighbours against scikit-learn, maps of volumes."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from MLILib.anomaly import baselines
from MLILib.errors import BadInput


def _images(count: int, seed: int = 0, rank: int = 3) -> np.ndarray:
    """Images of a few modes and a little noise, (count, 6, 5)."""
    rng = np.random.default_rng(seed)
    modes = np.random.default_rng(99).normal(size=(rank, 30))
    return (rng.normal(size=(count, rank)) @ modes + 0.01 * rng.normal(size=(count, 30)) + 4).reshape(count, 6, 5)


def test_mean_and_spread_are_the_images_own() -> None:
    fitted = baselines.fit(_images(40))
    new = _images(7, seed=1)
    scores = fitted.image_scores(new)
    np.testing.assert_allclose(scores["high mean"], new.mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(scores["low spread"], -new.std((1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(scores["low mean"], -scores["high mean"])
    np.testing.assert_array_equal(scores["high spread"], -scores["low spread"])


@pytest.mark.parametrize("count", [20, 200])  # fewer and more images than pixels
def test_the_residual_is_scikit_learns(count: int) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is the oracle")
    train, new = _images(count, rank=8), _images(9, seed=2, rank=8) + 0.1
    fitted = baselines.fit(train)
    oracle = decomposition.PCA(n_components=0.95, svd_solver="full").fit(train.reshape(count, -1))
    assert len(fitted.components) == oracle.n_components_
    flat = new.reshape(9, -1)
    expected = np.square(flat - oracle.inverse_transform(oracle.transform(flat)))
    np.testing.assert_allclose(fitted.residuals(new).reshape(9, -1), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(fitted.image_scores(new)["PCA residual"], expected.mean(1), rtol=1e-4)


def test_what_the_components_do_not_hold_is_the_residual() -> None:
    fitted = baselines.fit(_images(60))
    new = _images(1, seed=3)
    changed = new.copy()
    changed[0, 2, 2] += 3.0
    assert fitted.image_scores(changed)["PCA residual"][0] > 10 * fitted.image_scores(new)["PCA residual"][0]
    assert np.unravel_index(fitted.residuals(changed)[0].argmax(), (6, 5)) == (2, 2)


def test_distances_to_neighbours_are_scikit_learns() -> None:
    neighbours = pytest.importorskip("sklearn.neighbors", reason="scikit-learn is the oracle")
    train, new = _images(50), _images(8, seed=4)
    fitted = baselines.fit(train)
    stored = fitted.codes @ fitted.components + fitted.mean  # the part of the training images that components hold
    oracle = neighbours.NearestNeighbors(n_neighbors=5).fit(stored)
    expected = oracle.kneighbors(new.reshape(8, -1))[0].mean(1)
    np.testing.assert_allclose(fitted.image_scores(new)["nearest neighbours"], expected, rtol=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volumes_map_is_the_windows_residual(axis: int) -> None:
    fitted = baselines.fit(_images(60))
    # One window of 6 x 5 fills each plane; its normal is x (0), y or z (2).
    shape = {2: (4, 6, 5), 1: (6, 4, 5), 0: (6, 5, 4)}[axis]
    stack = _images(4, seed=5)
    volume = np.moveaxis(stack, 0, 2 - axis).astype(np.float32)
    assert volume.shape == shape
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((1.0, 2.0, 3.0))
    maps = fitted.volume_maps(image, axis=axis)
    found = sitk.GetArrayFromImage(maps["PCA residual"])
    np.testing.assert_allclose(np.moveaxis(found, 2 - axis, 0), fitted.residuals(stack), rtol=1e-4, atol=1e-7)
    assert maps["PCA residual"].GetSpacing() == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(maps["low intensity"]), -volume)


def test_windows_cover_a_plane_of_any_size() -> None:
    fitted = baselines.fit(_images(60))
    for size in ((5, 6), (13, 17), (3, 4)):
        image = sitk.GetImageFromArray(np.full((2, size[1], size[0]), 4.0, np.float32))
        maps = fitted.volume_maps(image, batch=3)
        assert all(
            m.GetSize() == (*size, 2) and np.isfinite(sitk.GetArrayViewFromImage(m)).all() for m in maps.values()
        )
    plane = sitk.GetImageFromArray(np.ones((9, 9), np.float32))
    assert fitted.volume_maps(plane)["PCA residual"].GetDimension() == 2


def test_outside_the_foreground_nothing_is_unusual() -> None:
    fitted = baselines.fit(_images(60))
    rng = np.random.default_rng(0)
    image = sitk.GetImageFromArray(rng.normal(size=(3, 12, 12)).astype(np.float32))
    inside = np.zeros((3, 12, 12), np.uint8)
    inside[1, 3:9, 3:9] = 1
    for values in fitted.volume_maps(image, sitk.GetImageFromArray(inside)).values():
        array = sitk.GetArrayViewFromImage(values)
        assert array[inside == 0].max() <= array[inside == 1].min()


def test_stored_and_read_again_they_score_the_same() -> None:
    fitted = baselines.fit(_images(30))
    again = baselines.Baselines.from_arrays(fitted.arrays())
    new = _images(5, seed=6)
    for name, scores in fitted.image_scores(new).items():
        np.testing.assert_array_equal(again.image_scores(new)[name], scores)


def test_many_images_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MOST_IMAGES", 25)
    fitted = baselines.fit(_images(300))
    assert len(fitted.codes) == 25
    np.testing.assert_array_equal(fitted.codes, baselines.fit(_images(300)).codes)


def test_bad_input_is_a_sentence() -> None:
    with pytest.raises(BadInput, match="two images"):
        baselines.fit(np.zeros((1, 4, 4)))
    with pytest.raises(BadInput, match="all alike"):
        baselines.fit(np.ones((5, 4, 4)))
    with pytest.raises(BadInput, match="same size"):
        baselines.fit(_images(9)).image_scores(np.zeros((2, 4, 4)))

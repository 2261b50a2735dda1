"""Known rigid, similarity and affine maps are found again, on awkward grids, across modalities, and from far away."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from blobs import Body, Map, grid, linear, miss, positions, through
from broken_criterion import break_after

from MLILib.geometry import Grid, to_zyx
from MLILib.registration import linear_stage
from MLILib.registration.conversion import to_sitk
from MLILib.registration.criterion import Criterion, normalised
from MLILib.registration.linear_stage import Found, Images, search
from MLILib.registration.placement import centred

SHIFT = (33.0, -4.0, 7.0)
FIXED = {2: grid((36, 30), (1.0, 1.2), turn=20), 3: grid((22, 22, 16), (1.5, 1.4, 2.0), turn=20)}
#: Oblique to the fixed grid, left-handed, with other voxels, elsewhere.
MOVING = {
    2: grid((34, 32), (1.1, 1.0), turn=-35, flip=True, centre=(30.0, -5.0)),
    3: grid((25, 21, 20), (1.2, 1.6, 1.7), turn=-35, flip=True, centre=(30.0, -5.0, 8.0)),
}
MAPS = {"rigid": {}, "similarity": {"scale": 1.12}, "affine": {"scale": 1.05, "shear": 0.12}}


def other_modality(values: np.ndarray) -> np.ndarray:
    """Tissue of middling intensity is the brightest: no curve that rises all the way."""
    return 1.2 * np.exp(-(((values - 0.35) / 0.2) ** 2)) * (values > 0.03) + 0.3 * values


def images(dims: int, map_: np.ndarray, remap: Any = None) -> Images:
    body = Body(dims)
    pair = body.image(FIXED[dims]), body.image(MOVING[dims], through(np.linalg.inv(map_)), remap)
    tensors = [normalised(to_zyx(one)[None]) for one in pair]
    return Images(tensors[0], tensors[1], FIXED[dims], MOVING[dims])


def found_by(pair: Images, kind: str, similarity: str, several: bool | None = None, **given: Any) -> Found:
    start = given.pop("start", centred(pair.fixed_grid, pair.moving_grid))
    several = kind == "rigid" if several is None else several
    return search(pair, kind, Criterion(similarity), start, several=several, **given)


def off(found: Found, truth: np.ndarray, dims: int) -> float:
    """Largest distance within the body, mm."""
    return float(miss(to_sitk(found.matrix, None, FIXED[dims]), through(truth), Body(dims)).max())


class TestKnownMaps:
    @pytest.mark.parametrize("kind", MAPS)
    @pytest.mark.parametrize(("dims", "within"), [(2, 0.15), (3, 0.25)])
    def test_found_to_a_quarter_of_a_voxel(self, dims: int, within: float, kind: str) -> None:
        truth = linear(dims, 10, SHIFT[:dims], **MAPS[kind])
        found = found_by(images(dims, truth), kind, "cc", several=False)
        assert off(found, truth, dims) < within
        assert not found.diverged
        inner = found.matrix[:dims, :dims]
        if kind == "rigid":
            np.testing.assert_allclose(inner.T @ inner, np.eye(dims), atol=1e-9)
        elif kind == "similarity":
            np.testing.assert_allclose(inner.T @ inner, np.eye(dims) * (inner.T @ inner)[0, 0], atol=1e-9)
        assert np.linalg.det(inner) > 0

    @pytest.mark.parametrize(
        ("similarity", "within"), [("nmi", 0.15), ("mi", 0.15), ("je", 0.3), ("lncc", 0.6), ("mind", 2.0)]
    )
    def test_across_modalities(self, similarity: str, within: float) -> None:
        truth = linear(2, 10, SHIFT[:2])
        assert off(found_by(images(2, truth, other_modality), "rigid", similarity), truth, 2) < within

    def test_across_modalities_in_3d(self) -> None:
        truth = linear(3, 10, SHIFT)
        found = found_by(images(3, truth, other_modality), "rigid", "nmi", several=False)
        assert off(found, truth, 3) < 0.35

    def test_a_correlation_over_all_is_unfit_across_modalities(self) -> None:
        truth = linear(2, 10, SHIFT[:2])
        assert off(found_by(images(2, truth, other_modality), "rigid", "cc"), truth, 2) > 2

    @pytest.mark.parametrize("dims", [2, 3])
    def test_descriptors_on_oblique_left_handed_grids(self, dims: int) -> None:
        truth = linear(dims, 10, SHIFT[:dims])
        assert off(found_by(images(dims, truth), "rigid", "mind", several=False), truth, dims) < 0.8

    def test_axes_stored_in_another_order(self) -> None:
        """Descriptors look along the axes of their grid, which are swapped and turned round here."""
        body, truth = Body(3), linear(3, 6, (1.0, 2.0, -1.0))
        fixed = grid((24, 24, 24), (1.2, 1.2, 1.2))
        swapped = np.array([[0.0, 0, -1], [1, 0, 0], [0, 1, 0]])
        origin = -swapped @ np.full(3, 11.5 * 1.2)
        moving = Grid((24, 24, 24), (1.2,) * 3, tuple(origin.tolist()), tuple(swapped.ravel().tolist()))
        pair = body.image(fixed, noise=0), body.image(moving, through(np.linalg.inv(truth)), noise=0)
        tensors = [normalised(to_zyx(one)[None]) for one in pair]
        found = found_by(Images(*tensors, fixed, moving), "rigid", "mind", several=False)
        assert off(found, truth, 3) < 1.2  # a voxel


class TestSeveralStarts:
    @pytest.mark.parametrize(
        ("degrees", "similarity", "within"), [(80, "cc", 0.15), (-100, "nmi", 0.15), (40, "mind", 0.8)]
    )
    def test_far_turns_are_missed_by_one_start(self, degrees: float, similarity: str, within: float) -> None:
        truth = linear(2, degrees, SHIFT[:2])
        pair = images(2, truth)
        one, many = (off(found_by(pair, "rigid", similarity, several=several), truth, 2) for several in (False, True))
        assert many < within
        assert one > 3

    def test_far_turns_in_3d(self) -> None:
        truth = linear(3, 120, SHIFT)
        pair = images(3, truth)
        one, many = (off(found_by(pair, "rigid", "cc", several=several), truth, 3) for several in (False, True))
        assert many < 0.25
        assert one > 3


class TestSampling:
    def test_a_tenth_of_the_voxels_is_enough_and_the_seed_decides(self) -> None:
        truth = linear(3, 10, SHIFT)
        pair = images(3, truth)
        found = [found_by(pair, "rigid", "cc", several=False, sampling=0.1, seed=seed) for seed in (4, 4, 5)]
        assert [off(one, truth, 3) < 0.3 for one in found] == [True] * 3
        np.testing.assert_array_equal(found[0].matrix, found[1].matrix)
        assert np.abs(found[0].matrix - found[2].matrix).max() > 1e-6

    def test_similarities_of_windows_take_all(self) -> None:
        pair = images(2, linear(2, 5, SHIFT[:2]))
        found = [found_by(pair, "rigid", "lncc", several=False, sampling=share).matrix for share in (0.1, 1.0)]
        np.testing.assert_array_equal(*found)


class TestMasks:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_an_artefact_outside_does_not_disturb(self, dims: int) -> None:
        truth = linear(dims, 10, SHIFT[:dims])
        pair = images(dims, truth)
        _spoil(pair)
        unmasked = dataclasses.replace(pair, fixed_mask=None, moving_mask=None)
        assert off(found_by(unmasked, "rigid", "cc", several=False), truth, dims) > 2
        assert off(found_by(pair, "rigid", "cc", several=False), truth, dims) < 0.4


def _spoil(pair: Images) -> None:
    """A ball as bright as the brightest in each image, at two places of the body, masked."""
    for name, at in (("fixed", (9.0, 6.0, 5.0)), ("moving", (22.0, -14.0, 3.0))):
        own = getattr(pair, f"{name}_grid")
        away = np.linalg.norm(positions(own) - at[: own.dimension], axis=1).reshape(own.shape)
        image = getattr(pair, name)
        setattr(pair, name, torch.where(torch.from_numpy(away < 8), torch.tensor(1.5), image))
        setattr(pair, f"{name}_mask", torch.from_numpy(away > 10).float()[None, None])


class TestStart:
    def test_what_the_start_has_beyond_the_kind_stays(self) -> None:
        sheared = linear(2, 4, SHIFT[:2], shear=0.15)
        truth = linear(2, 8) @ sheared
        found = found_by(images(2, truth), "rigid", "cc", several=False, start=sheared)
        assert off(found, truth, 2) < 0.15
        assert np.linalg.svd(found.matrix[:2, :2])[1] == pytest.approx(np.linalg.svd(sheared[:2, :2])[1], abs=1e-9)

    def test_a_displacement_before_it_stays(self) -> None:
        """T(p) = A(p + D(p)): with the known D only A is left to find."""

        def bent(points: np.ndarray) -> np.ndarray:
            return points + 1.5 * np.stack([np.sin(points[:, 1] / 5), np.cos(points[:, 0] / 6)], axis=1)

        truth = linear(2, 8, SHIFT[:2])
        whole: Map = lambda points: through(truth)(bent(points))  # noqa: E731
        own = FIXED[2]
        step = np.linalg.solve(own.matrix()[:2, :2], (bent(positions(own)) - positions(own)).T)[::-1]
        u = torch.from_numpy(step.reshape(1, 2, *own.shape).astype(np.float32).copy())
        body = Body(2)
        pair = images(2, np.eye(3))
        moving = body.image(MOVING[2], lambda q: _inverse(whole, q, linear(2, 8, SHIFT[:2])))
        pair = Images(pair.fixed, normalised(to_zyx(moving)[None]), pair.fixed_grid, pair.moving_grid)
        with_it, without = (found_by(pair, "rigid", "cc", several=False, displacement=d) for d in (u, None))
        assert off(with_it, truth, 2) < 0.15
        assert off(without, truth, 2) > 2 * off(with_it, truth, 2)

    def test_a_small_image_in_a_large_one(self) -> None:
        """It covers less than a tenth of the fixed image, all of which can never overlap."""
        body, truth = Body(2, radius=9.0), linear(2, 5, (2.0, 1.0))
        fixed, moving = grid((70, 70), (1.0, 1.0)), grid((20, 20), (1.0, 1.0))
        pair = body.image(fixed), body.image(moving, through(np.linalg.inv(truth)))
        tensors = [normalised(to_zyx(one)[None]) for one in pair]
        found = search(
            Images(tensors[0], tensors[1], fixed, moving), "rigid", Criterion("cc"), np.eye(3), several=False
        )
        assert not found.diverged
        assert miss(to_sitk(found.matrix, None, fixed), through(truth), body).max() < 0.3


def _inverse(map_: Map, points: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Where `map_` comes from, by fixed-point iteration with an approximate linear map."""
    back = np.linalg.inv(guess)
    x = through(back)(points)
    for _ in range(50):
        x = x - (map_(x) - points) @ back[:-1, :-1].T
    return x


class TestSlice:
    @pytest.mark.parametrize("kind", ["rigid", "affine"])
    def test_a_single_slice_of_a_volume_stays_in_its_plane(self, kind: str) -> None:
        fixed = grid((36, 34, 1), (1.0, 1.1, 3.0), turn=25)
        moving = grid((34, 36, 1), (1.1, 1.0, 3.0), turn=25, flip=True)
        frame = np.eye(4)
        frame[:3, :3] = np.reshape(fixed.direction, (3, 3))
        inner = np.eye(4)
        inner[:2, :2], inner[:2, 3] = linear(2, 15)[:2, :2], (3.0, -2.0)
        truth = frame @ inner @ np.linalg.inv(frame)
        body = Body(3)
        pair = body.image(fixed), body.image(moving, through(np.linalg.inv(truth)))
        tensors = [normalised(to_zyx(one)[None]) for one in pair]
        found = found_by(Images(tensors[0], tensors[1], fixed, moving), kind, "cc", several=kind == "rigid")
        own = np.linalg.inv(frame) @ found.matrix @ frame
        np.testing.assert_allclose(own[2], [0, 0, 1, 0], atol=1e-6)
        np.testing.assert_allclose(own[:3, 2], [0, 0, 1], atol=1e-6)
        points = positions(fixed)[np.linalg.norm(positions(fixed), axis=1) < 11]
        assert np.linalg.norm(through(found.matrix)(points) - through(truth)(points), axis=1).max() < 0.5


class TestReports:
    def test_iterations_count_up_and_losses_down(self) -> None:
        rows: list[tuple[int, int, float, float]] = []
        found_by(images(2, linear(2, 5, SHIFT[:2])), "rigid", "cc", report=lambda *row: rows.append(row))
        shares = [row[3] for row in rows]
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] <= 1
        for level in {row[0] for row in rows}:
            count = [row[1] for row in rows if row[0] == level]
            assert count == list(range(len(count)))
        values = [row[2] for row in rows]
        assert values[-1] < 0.1 * values[0]

    def test_a_loss_that_is_no_number_stops_it_and_the_best_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pair = images(2, linear(2, 5, SHIFT[:2]))
        break_after(monkeypatch, 9)
        start = centred(pair.fixed_grid, pair.moving_grid)
        found = found_by(pair, "rigid", "cc", several=False)
        assert found.diverged
        assert np.isfinite(found.matrix).all()
        monkeypatch.undo()
        level = linear_stage._Level(pair, "rigid", Criterion("cc"), 1.0, 0)
        before, after = (level.run([m], 1, 0.0, lambda i, v: None)[0].loss for m in (start, found.matrix))
        assert after < before


def test_sitk_agrees() -> None:
    """The map found is what sitk.Resample takes: the moving image through it is the fixed one."""
    truth = linear(3, 10, SHIFT)
    body = Body(3)
    fixed, moving = body.image(FIXED[3], noise=0), body.image(MOVING[3], through(np.linalg.inv(truth)), noise=0)
    found = found_by(images(3, truth), "rigid", "cc", several=False)
    warped = sitk.Resample(moving, fixed, to_sitk(found.matrix, None, FIXED[3]), sitk.sitkLinear, 0.0)
    apart = np.abs(sitk.GetArrayFromImage(warped) - sitk.GetArrayFromImage(fixed))
    inner = np.linalg.norm(positions(FIXED[3]), axis=1).reshape(FIXED[3].shape) < 9
    assert apart[inner].mean() < 0.03

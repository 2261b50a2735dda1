"""Known smooth deformations are found again, without folds, and the global search finds what gradients miss."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from blobs import Body, grid, linear, positions
from broken_criterion import break_after

from MLILib.geometry import to_zyx
from MLILib.registration import convex
from MLILib.registration.criterion import Criterion, normalised
from MLILib.registration.deformable import Level, Outcome, optimise, share
from MLILib.registration.fields import resize, smooth
from MLILib.registration.jacobian import determinant
from MLILib.registration.linear_stage import Images
from MLILib.registration.regularisers import diffusion
from MLILib.registration.requests import DEFORMATIONS, SIMILARITIES
from MLILib.registration.sampling import index_matrix, warp

SHAPES = {2: (30, 32), 3: (18, 22, 24)}  # (z,) y, x; voxels of 1 mm
RADIUS = 9.0
TEXTURE = 1.2  #: standard deviation of the smoothing of noise, voxels


def wave(points: np.ndarray) -> np.ndarray:
    """Up to 2 mm each way, over distances of some 20 mm; points (n, d)."""
    shifted = np.roll(points, 1, axis=1)
    return 2.0 * np.sin(shifted / 7 + np.arange(points.shape[1]))


def levels(dims: int, iterations: int = 30, seeds: tuple[int, ...] = (0,), factors: tuple[int, ...] = (2, 1)) -> Any:
    """The levels of a pair, or of a batch, of a body and its wave, and the true displacement in voxels."""
    own = grid(SHAPES[dims][::-1], (1.0,) * dims)
    points = positions(own)
    u = torch.from_numpy(wave(points).T[::-1].reshape(1, dims, *own.shape).astype(np.float32).copy())
    pairs = []
    for seed in seeds:
        body = Body(dims, seed, RADIUS)
        # Moving (x + u(x)) is fixed (x): found by fixed-point iteration.
        back = points
        for _ in range(40):
            back = points - wave(back)
        moved = body.image(own, lambda _, back=back: back)
        pairs.append([normalised(to_zyx(image)[None]) for image in (body.image(own), moved)])
    fixed, moving = (torch.cat(images) for images in zip(*pairs, strict=True))
    out = []
    for factor in factors:
        shape = tuple(n // factor for n in own.shape)
        small = [resize_image(image, shape) for image in (fixed, moving)]
        out.append((small, factor))
    return out, u, fixed, moving, iterations


def resize_image(image: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    return torch.nn.functional.interpolate(image, shape, mode=mode, align_corners=True, antialias=False)


def run(
    dims: int, deformation: str = "svf", similarity: str = "ssd", regularisation: float = 1.0, report: Any = None,
    **given: Any,
) -> tuple[Outcome, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Register; what was found, the truth, and the pair."""
    small, u, fixed, moving, iterations = levels(dims, **given)
    criterion = Criterion(similarity)
    steps = [
        Level(
            fixed=criterion.features(images[0]), moving=criterion.features(images[1]), matrix=torch.eye(dims + 1)[None],
            spacing=(float(factor),) * dims, iterations=iterations,
        )
        for images, factor in small
    ]  # fmt: skip
    outcome = optimise(steps, criterion, deformation, regularisation, report or (lambda *row: None))
    return outcome, u, fixed, moving


def off(u: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean distance within the body, voxels."""
    d = u.shape[1]
    own = grid(tuple(u.shape[:1:-1]), (1.0,) * d)
    inside = torch.from_numpy((np.linalg.norm(positions(own) / Body(d).axes * 14, axis=1) < RADIUS).reshape(own.shape))
    return float((u - truth).square().sum(1).sqrt()[:, inside].mean())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("deformation", DEFORMATIONS)
class TestKnownWave:
    def test_found_within_half_a_voxel(self, deformation: str, dims: int) -> None:
        outcome, truth, _, _ = run(dims, deformation)
        before = off(torch.zeros_like(truth), truth)
        assert before > 1.5
        assert off(outcome.u, truth) < 0.5
        assert not outcome.diverged
        assert float(determinant(outcome.u).min()) > 0.1

    def test_no_folds_where_the_images_have_nothing_in_common(self, deformation: str, dims: int) -> None:
        small, _, _, _, _ = levels(dims, factors=(1,))
        fixed = small[0][0][0]
        other = normalised(to_zyx(Body(dims, 7, RADIUS).image(grid(SHAPES[dims][::-1], (1.0,) * dims)))[None])
        level = Level(fixed, other, torch.eye(dims + 1)[None], (1.0,) * dims, 30)
        outcome = optimise([level], Criterion("ssd"), deformation, 1.0, lambda *row: None)
        assert float(outcome.u.abs().max()) > 1
        if deformation in ("svf", "greedy"):
            assert float(determinant(outcome.u).min()) > 0


class TestEverySimilarity:
    @pytest.mark.parametrize("similarity", SIMILARITIES)
    def test_it_improves(self, similarity: str) -> None:
        outcome, _, fixed, moving = run(3, "svf", similarity, iterations=12)
        criterion = Criterion(similarity)
        ours = criterion.features(fixed)
        before, after = (
            float(criterion(ours, warp(criterion.features(moving), u)))
            for u in (torch.zeros_like(outcome.u), outcome.u)
        )
        assert after < before
        assert float(determinant(outcome.u).min()) > 0

    @pytest.mark.parametrize("deformation", DEFORMATIONS)
    @pytest.mark.parametrize("similarity", SIMILARITIES)
    def test_with_every_deformation(self, similarity: str, deformation: str) -> None:
        rows: list[tuple[int, int, float]] = []
        run(2, deformation, similarity, iterations=4, report=lambda *row: rows.append(row))
        for level in (1, 2):
            values = [value for one, _, value in rows if one == level]
            assert min(values) < values[0]

    @pytest.mark.parametrize("similarity", ["nmi", "mi"])
    def test_across_modalities(self, similarity: str) -> None:
        small, truth, _, _, _ = levels(3)
        steps = [
            Level(images[0], torch.exp(-((images[1] - 0.4) / 0.25).square()), torch.eye(4)[None], (f,) * 3, 30)
            for images, f in small
        ]
        outcome = optimise(steps, Criterion(similarity), "svf", 1.0, lambda *row: None)
        assert off(outcome.u, truth) < 0.5


class TestSettings:
    @pytest.mark.parametrize("deformation", DEFORMATIONS)
    def test_more_regularisation_is_smoother(self, deformation: str) -> None:
        def roughness(weight: float) -> float:
            u = run(2, deformation, regularisation=weight)[0].u
            return float(diffusion(u))

        assert roughness(100.0) < roughness(1.0) < roughness(0.0)

    def test_no_iterations_do_nothing(self) -> None:
        assert float(run(2, iterations=0)[0].u.abs().max()) == 0

    def test_few_iterations_are_counted(self) -> None:
        rows: list[tuple[int, int, float]] = []
        run(2, iterations=3, report=lambda *row: rows.append(row))
        assert [row[:2] for row in rows] == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]

    def test_the_mask_is_where_it_looks(self) -> None:
        small, _, _, _, _ = levels(2, factors=(1,))
        fixed, moving = small[0][0]
        spoiled = fixed.clone()
        spoiled[..., :15] = torch.rand((1, 1, 30, 15), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(fixed)
        mask[..., :16] = 0
        found = [
            optimise([Level(image, moving, torch.eye(3)[None], (1.0, 1.0), 20, mask)], Criterion("ssd"), "svf", 1.0,
                     lambda *row: None).u
            for image in (fixed, spoiled)
        ]  # fmt: skip
        torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=0)
        assert float(found[0][..., 16:].abs().max()) > 0.5

    def test_voxels_outside_the_moving_mask_pull_nothing(self) -> None:
        small, _, _, _, _ = levels(2, factors=(1,))
        fixed, moving = small[0][0]
        none = torch.zeros_like(moving)
        none[..., :2, :2] = 1  # air
        u = optimise(
            [Level(fixed, moving, torch.eye(3)[None], (1.0, 1.0), 5, None, none)], Criterion("ssd"), "greedy", 1.0,
            lambda *row: None,
        ).u  # fmt: skip
        whole = optimise(
            [Level(fixed, moving, torch.eye(3)[None], (1.0, 1.0), 5)], Criterion("ssd"), "greedy", 1.0,
            lambda *row: None,
        ).u  # fmt: skip
        inner = (..., slice(12, 18), slice(12, 18))
        assert float(u[inner].abs().max()) < 1e-6 < float(whole[inner].abs().max())

    @pytest.mark.parametrize("deformation", ["svf", "greedy"])
    def test_a_batch_is_its_pairs(self, deformation: str) -> None:
        """Pairs share the loop; each has its own field."""
        whole, truth, _, _ = run(2, deformation, seeds=(0, 3))
        assert len(whole.u) == 2
        for found in whole.u:
            assert off(found[None], truth) < 0.5

    @pytest.mark.parametrize("deformation", DEFORMATIONS)
    def test_a_pair_that_diverges_does_not_disturb_the_others(self, deformation: str) -> None:
        small, truth, _, _, _ = levels(2, factors=(1,))
        fixed, moving = small[0][0]
        spoiled = torch.cat([moving, torch.full_like(moving, torch.nan)])
        level = Level(fixed, spoiled, torch.eye(3)[None], (1.0, 1.0), 25)
        outcome = optimise([level], Criterion("ssd"), deformation, 1.0, lambda *row: None)
        assert outcome.diverged == 1
        assert off(outcome.u[:1], truth) < 0.7
        assert float(outcome.u[1].abs().max()) == 0

    @pytest.mark.parametrize("depth", [1, 2, 4])
    @pytest.mark.parametrize("deformation", DEFORMATIONS)
    def test_thin_volumes(self, deformation: str, depth: int) -> None:
        """The middle of the body, moved by a voxel along its rows."""
        whole = levels(3, factors=())[2]
        middle = whole.shape[2] // 2
        fixed = whole[:, :, middle - depth // 2 : middle - depth // 2 + depth]
        level = Level(fixed, fixed.roll(1, -1), torch.eye(4)[None], (5.0, 1.0, 1.0), 15)
        u = optimise([level], Criterion("ssd+lncc"), deformation, 0.5, lambda *row: None).u
        assert float(u[:, 2, :, 7:-7, 8:-8].mean()) == pytest.approx(1, abs=0.4)
        if depth == 1:
            assert float(u[:, 0].abs().max()) < 1e-6


class TestDivergence:
    @pytest.mark.parametrize("deformation", DEFORMATIONS)
    def test_the_best_so_far_is_kept(self, deformation: str, monkeypatch: pytest.MonkeyPatch) -> None:
        break_after(monkeypatch, 11)
        outcome, _, fixed, moving = run(2, deformation)
        monkeypatch.undo()
        assert outcome.diverged
        assert torch.isfinite(outcome.u).all()
        ssd = Criterion("ssd")
        assert float(ssd(fixed, warp(moving, outcome.u))) < float(ssd(fixed, moving))


class TestGlobalSearch:
    @staticmethod
    def pair(shift: tuple[int, ...], seed: int = 2) -> Images:
        """A texture of a few voxels, and the same displaced: moving (x + shift) is fixed (x)."""
        own = grid((36, 34, 32)[: len(shift)], (1.0,) * len(shift))
        noise = np.random.default_rng(seed).normal(size=own.shape).astype(np.float32)
        fixed = normalised(smooth(torch.from_numpy(noise)[None, None], TEXTURE))
        return Images(fixed, fixed.roll(shift, tuple(range(2, 2 + len(shift)))), own, own)

    @staticmethod
    def away(found: torch.Tensor, shift: tuple[int, ...]) -> float:
        """Mean distance from the truth where the displaced image has not come in from the other side."""
        d = len(shift)
        inner = found[(0, slice(None), *[slice(9, -9)] * d)]
        return float((inner - torch.tensor(shift).view(d, *[1] * d)).square().sum(0).sqrt().mean())

    @pytest.mark.parametrize("shift", [(0, 5), (-4, 3), (6, 0), (-2, 4, 3)])
    def test_a_shift_that_gradients_miss(self, shift: tuple[int, ...]) -> None:
        pair, d = self.pair(shift), len(shift)
        assert self.away(convex.search(pair, np.eye(d + 1), None), shift) < 1
        if d == 2:
            criterion = Criterion("mind")
            both = (criterion.features(image) for image in (pair.fixed, pair.moving))
            level = Level(*both, torch.eye(3)[None], (1.0, 1.0), 30)
            by_gradient = optimise([level], criterion, "svf", 1.0, lambda *row: None).u
            assert self.away(by_gradient, shift) > 2

    def test_on_another_grid_behind_a_start(self) -> None:
        """The moving image is stored left-handed; of six voxels half is known: some as a start, some as linear map."""
        pair = self.pair((6, 0))
        flipped = grid(pair.fixed_grid.size, (1.0, 1.0), flip=True)
        moved = warp(pair.moving, None, index_matrix(flipped, pair.moving_grid), flipped.shape)
        start = torch.zeros(1, 2, *pair.fixed_grid.shape)
        start[:, 0] = 1.5
        found = convex.search(Images(pair.fixed, moved, pair.fixed_grid, flipped), linear(2, 0, (0.0, 1.5)), start)
        assert self.away(found, (3, 0)) < 1

    def test_air_and_slices_stay(self) -> None:
        body, own = Body(3, radius=9.0), grid((44, 40, 1), (1.0, 1.0, 3.0))
        image = normalised(to_zyx(body.image(own, noise=0))[None])
        found = convex.search(Images(image, image, own, own), np.eye(4), None)
        assert float(found.abs().max()) < 0.3
        assert float(found[:, 0].abs().max()) < 1e-6

    def test_what_lies_outside_the_mask_does_not_pull(self) -> None:
        """The other half shows something else, displaced otherwise."""
        pair, other = self.pair((0, 4)), self.pair((4, 4), seed=5)
        half = torch.zeros_like(pair.fixed)
        half[..., :20] = 1
        seen = half.roll(4, -1)
        mixed = [
            torch.where(mask > 0, one, two)
            for mask, one, two in ((half, pair.fixed, other.fixed), (seen, pair.moving, other.moving))
        ]
        grids = pair.fixed_grid, pair.moving_grid
        masked = convex.search(Images(*mixed, *grids, half, seen), np.eye(3), None)[0, :, 9:-9]
        assert masked[..., 6:18].mean((1, 2)).tolist() == pytest.approx([0, 4], abs=0.6)
        assert float(masked[0, :, 20:].abs().max()) < 0.6
        unmasked = convex.search(Images(*mixed, *grids), np.eye(3), None)[0, :, 9:-9]
        assert unmasked[..., 22:27].mean((1, 2)).tolist() == pytest.approx([4, 4], abs=1)


def test_levels_hand_over_what_they_found() -> None:
    """A coarse level alone, brought to the fine grid, is where the fine level starts."""
    coarse, truth, _, _ = run(3, factors=(2,))
    shape = truth.shape[2:]
    assert off(resize(coarse.u, shape), truth) < 0.8 * off(torch.zeros_like(truth), truth)
    rows: list[tuple[int, int, float]] = []
    run(3, report=lambda *row: rows.append(row))
    alone: list[tuple[int, int, float]] = []
    run(3, factors=(1,), report=lambda *row: alone.append(row))
    first = next(value for level, _, value in rows if level == 2)
    assert first < 0.6 * alone[0][2]


class TestShare:
    def test_it_runs_from_0_to_nearly_1(self) -> None:
        small, _, _, _, _ = levels(2, factors=(4, 2, 1))
        steps = [Level(*images, torch.eye(3)[None], (1.0, 1.0), 5) for images, _ in small]
        found = [share(steps, number, iteration) for number in (1, 2, 3) for iteration in range(5)]
        assert found[0] == 0
        assert found == sorted(set(found))
        assert share(steps, 3, 5) == 1
        assert share([Level(*small[0][0], torch.eye(3)[None], (1.0, 1.0), 0)], 1, 0) == 0

    def test_a_level_of_few_voxels_counts_by_its_iterations(self) -> None:
        """On tiny levels all iterations take the same time: after a third of them two thirds of the time remain."""
        small, _, _, _, _ = levels(2, factors=(4, 2, 1))
        steps = [Level(*images, torch.eye(3)[None], (1.0, 1.0), 12) for images, _ in small]
        spent: list[tuple[int, float]] = []
        started = time.process_time()
        optimise(
            steps,
            Criterion("ssd"),
            "svf",
            1.0,
            lambda level, *row: spent.append((level, time.process_time() - started)),
        )
        whole = time.process_time() - started
        first = next(seconds for level, seconds in spent if level == 2)
        assert first / share(steps, 2, 0) == pytest.approx(whole, rel=0.6)

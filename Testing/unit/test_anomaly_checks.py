"""What tells progress from collapse, and lesions among the training images."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from MLILib.anomaly import checks  # noqa: E402


class TestDiversity:
    def test_real_images_are_as_diverse_as_themselves(self) -> None:
        real = torch.randn(20, 1, 8, 8)
        assert checks.diversity(real, real) == pytest.approx(1.0)

    def test_one_sample_over_and_over_is_a_collapse(self) -> None:
        real = torch.randn(20, 1, 8, 8)
        found = checks.diversity(real[:1].expand(20, 1, 8, 8), real)
        assert found == pytest.approx(0.0, abs=1e-9)
        assert "collapsed" in checks.verdict({"diversity": found, "balance": 0.6}, wasserstein=True)[0]

    def test_the_mean_distance_of_two_images(self) -> None:
        images = torch.stack([torch.zeros(1, 4, 4), torch.full((1, 4, 4), 3.0)])
        assert checks.mean_distance(images) == pytest.approx(3.0)


class TestBalance:
    def test_is_the_area_under_the_curve(self) -> None:
        # 3 > 2, 3 > 0, 1 < 2, 1 > 0
        assert checks.balance(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0])) == pytest.approx(0.75)

    def test_ties_count_half(self) -> None:
        assert checks.balance(torch.ones(3), torch.ones(2)) == pytest.approx(0.5)

    def test_a_discriminator_that_wins_is_told_a_wasserstein_critic_is_not(self) -> None:
        figures = {"diversity": 1.0, "balance": 1.0}
        assert checks.verdict(figures, wasserstein=False)
        assert not checks.verdict(figures, wasserstein=True)


class TestFrechet:
    def test_is_nothing_for_the_images_themselves(self) -> None:
        real = torch.randn(64, 1, 4, 4)
        assert checks.Frechet(real).distance(real) == pytest.approx(0.0, abs=1e-6)

    def test_of_a_shift_is_its_square(self) -> None:
        real = torch.randn(200, 1, 2, 2, dtype=torch.float64)
        assert checks.Frechet(real).distance(real + 0.5) == pytest.approx(4 * 0.25, abs=1e-6)

    def test_of_a_scaling_is_that_of_normal_distributions(self) -> None:
        # of N(0, C) and N(0, 4 C): trace(C + 4 C - 2 * 2 C) = trace(C)
        real = torch.randn(500, 1, 2, 2, dtype=torch.float64)
        real = real - real.mean(dim=0)
        trace = float(torch.cov(real.flatten(1).T).diagonal().sum())
        assert checks.Frechet(real).distance(2 * real) == pytest.approx(trace, rel=1e-6)


class TestTwoHeaps:
    @pytest.mark.parametrize("seed", range(5))
    def test_normal_scores_are_one_heap(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        assert not checks.two_heaps(rng.normal(10, 1, 300))[0]
        assert not checks.two_heaps(rng.lognormal(0, 0.6, 300))[0]

    @pytest.mark.parametrize("share", [0.1, 0.3])
    def test_a_second_heap_is_found_with_its_share(self, share: float) -> None:
        rng = np.random.default_rng(1)
        count = int(400 * share)
        scores = np.concatenate([rng.normal(10, 1, 400 - count), rng.normal(25, 2, count)])
        two, found = checks.two_heaps(scores)
        assert two
        assert found == pytest.approx(share, abs=0.03)

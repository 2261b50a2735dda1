"""The losses of the models of normal against values worked out by hand on tiny networks."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from MLILib.anomaly import objectives  # noqa: E402


class Linear(nn.Module):
    """c(x) = 3 a + 4 b of an image of two pixels: its gradient is (3, 4), of norm 5, everywhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) * torch.tensor([3.0, 4.0])).sum(dim=1, keepdim=True)


class Square(nn.Module):
    """c(x) = sum of squares / 2: its gradient at x is x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x.flatten(1) ** 2).sum(dim=1, keepdim=True)


class TestGradientPenalty:
    def test_a_linear_critic(self) -> None:
        real, fake = torch.randn(6, 1, 1, 2), torch.randn(6, 1, 1, 2)
        found = objectives.gradient_penalty(Linear(), real, fake, torch.rand(6))
        assert float(found) == pytest.approx((5.0 - 1.0) ** 2)

    def test_it_is_taken_between_the_images(self) -> None:
        # x = 0.25 real + 0.75 fake = (3, 0) and (0, 0.5): norms 3 and 0.5, ((3 - 1)^2 + (0.5 - 1)^2) / 2
        real = torch.tensor([[[[12.0, 0.0]]], [[[0.0, 2.0]]]])
        fake = torch.zeros(2, 1, 1, 2)
        found = objectives.gradient_penalty(Square(), real, fake, torch.full((2,), 0.25))
        assert float(found.detach()) == pytest.approx((4.0 + 0.25) / 2)

    def test_it_moves_the_critic(self) -> None:
        layer = nn.Linear(2, 1, bias=False)
        layer.weight.data = torch.tensor([[3.0, 4.0]])
        x = torch.ones(1, 2)
        objectives.gradient_penalty(layer, x, x, torch.ones(1)).backward()
        # d (|w| - 1)^2 / dw = 2 (|w| - 1) w / |w| = 8 (0.6, 0.8)
        assert layer.weight.grad is not None
        assert layer.weight.grad.flatten().tolist() == pytest.approx([4.8, 6.4])


class TestFAnoGAN:
    def test_izi_f_by_hand(self) -> None:
        x = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 0.0]]]])
        again = torch.tensor([[[[0.0, 2.0]]], [[[0.0, 0.0]]]])
        features, features_again = (
            torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]),
            torch.tensor([[1.0, 0.0, 3.0], [3.0, 0.0, 0.0]]),
        )
        # (1 + 4) / 2 + 0.5 * 4 / 3, and 0 + 0.5 * 9 / 3
        found = objectives.izi_f(x, again, features, features_again, kappa=0.5)
        assert found.tolist() == pytest.approx([2.5 + 2.0 / 3.0, 1.5])

    def test_kappa_zero_is_the_reconstruction_alone(self) -> None:
        x, again, f = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.randn(3, 5)
        found = objectives.izi_f(x, again, f, f + 7.0, kappa=0.0)
        assert found.tolist() == pytest.approx(((x - again) ** 2).mean(dim=(1, 2, 3)).tolist())


class TestAnoGAN:
    def test_the_residual_is_a_sum(self) -> None:
        x, made = torch.tensor([[[[1.0, -2.0], [0.5, 0.0]]]]), torch.tensor([[[[0.0, 0.0], [0.0, 1.0]]]])
        assert objectives.anogan_residual(x, made).tolist() == pytest.approx([1.0 + 2.0 + 0.5 + 1.0])

    def test_the_features_are_a_sum(self) -> None:
        found = objectives.anogan_features(
            torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]])
        )
        assert found.tolist() == pytest.approx([3.0, 0.0])

    def test_the_cross_entropy_of_an_undecided_discriminator(self) -> None:
        assert objectives.anogan_cross_entropy(torch.zeros(2, 1)).tolist() == pytest.approx([math.log(2)] * 2)

    def test_the_cross_entropy_of_a_logit(self) -> None:
        # minus the logarithm of the logistic function
        found = objectives.anogan_cross_entropy(torch.tensor([[2.0], [-3.0]]))
        assert found.tolist() == pytest.approx([-math.log(1 / (1 + math.exp(-2))), -math.log(1 / (1 + math.exp(3)))])

    def test_lambda_weighs_the_two(self) -> None:
        found = objectives.anogan(torch.tensor([10.0]), torch.tensor([4.0]), weight=0.1)
        assert found.tolist() == pytest.approx([0.9 * 10 + 0.1 * 4])


class TestVariational:
    def test_the_divergence_of_the_prior_from_itself_is_zero(self) -> None:
        assert objectives.divergence(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0.0, 0.0]

    def test_the_divergence_is_torchs(self) -> None:
        mean, log_variance = torch.randn(4, 5), torch.randn(4, 5)
        own = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        wanted = torch.distributions.kl_divergence(own, prior).sum(dim=1)
        assert objectives.divergence(mean, log_variance).tolist() == pytest.approx(wanted.tolist(), rel=1e-5)

    def test_the_bound_is_a_normal_density_and_the_divergence(self) -> None:
        x, again, log_scale = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3), torch.tensor(-0.7)
        density = torch.distributions.Normal(again, log_scale.exp()).log_prob(x).flatten(1).sum(dim=1)
        found = objectives.negative_elbo(x, again, torch.tensor([1.0, 2.0]), log_scale)
        assert found.tolist() == pytest.approx((-density + torch.tensor([1.0, 2.0])).tolist(), rel=1e-5)


def test_the_wasserstein_estimate_is_a_difference_of_means() -> None:
    assert float(objectives.wasserstein(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 0.0]))) == pytest.approx(3.5)


def test_goodfellows_losses_of_an_undecided_discriminator() -> None:
    zero = torch.zeros(4, 1)
    assert float(objectives.discriminator_loss(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(objectives.generator_loss(zero)) == pytest.approx(math.log(2))

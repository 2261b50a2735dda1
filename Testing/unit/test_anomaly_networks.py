"""The networks of the models of normal: shapes, the folded convolutions, and that a batch's images do not meet."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from MLILib.anomaly import networks  # noqa: E402


def test_a_convolution_and_the_mean_of_four_pixels_are_one_convolution() -> None:
    x, weight, bias = torch.randn(2, 3, 8, 6), torch.randn(5, 3, 3, 3), torch.randn(5)
    wanted = functional.avg_pool2d(functional.conv2d(x, weight, bias, padding=1), 2)
    assert torch.allclose(networks.pooled_convolution(x, weight, bias), wanted, atol=1e-5)


def test_doubling_and_a_convolution_are_one_transposed_convolution() -> None:
    x, weight, bias = torch.randn(2, 3, 4, 5), torch.randn(6, 3, 3, 3), torch.randn(6)
    wanted = functional.conv2d(functional.interpolate(x, scale_factor=2.0), weight, bias, padding=1)
    assert torch.allclose(networks.doubled_convolution(x, weight, bias), wanted, atol=1e-5)


@pytest.mark.parametrize(("size", "canvas"), [(16, 16), (20, 32), (28, 32), (64, 64), (65, 128)])
def test_the_canvas_is_the_next_power_of_two(size: int, canvas: int) -> None:
    assert networks.canvas_of(size) == canvas


def test_widths_of_the_papers_64_pixels() -> None:
    # Gulrajani 2017: 64, 128, 256, 512, 512 from 64 x 64 to 4 x 4
    assert networks.widths(64, 64) == [64, 128, 256, 512, 512]


@pytest.mark.parametrize("side", [16, 32, 64])
def test_shapes(side: int) -> None:
    x, z = torch.randn(2, 1, side, side), torch.randn(2, 5)
    for generator, trunk in (
        (networks.ResidualGenerator, networks.ResidualTrunk),
        (networks.PlainGenerator, networks.PlainTrunk),
    ):
        made = generator(side, 5, 2)(z)
        assert made.shape == x.shape
        assert float(made.detach().abs().max()) <= 1.0
        answer = trunk(side, 3, 2)
        assert answer(x).shape == (2, 3)
        assert torch.allclose(answer.answer(answer.features(x)), answer(x))
    assert networks.Denoiser(4)(x).shape == x.shape


def test_what_the_residual_critic_says_does_not_hang_on_the_other_images() -> None:
    critic = networks.ResidualTrunk(16, 1, 4).train()
    x = torch.randn(4, 1, 16, 16)
    assert torch.allclose(critic(x)[:1], critic(x[:1]), atol=1e-5)

"""Gradients of scores against closed forms and captum, and that the network is left alone."""

import copy
import math
from collections.abc import Callable

import monai.networks.nets as nets
import pytest
import torch
from torch import nn

from MLILib.errors import BadInput
from MLILib.explanation import ClassScore, LabelSum, Voxel
from MLILib.explanation.gradients import gradient, gradient_times_input, integrated_gradients, smoothgrad

Image = torch.Tensor


def small_classifier(dimensions: int) -> nn.Module:
    """Convolutions, ReLU and pooling, 3 classes, float64."""
    torch.manual_seed(dimensions)
    conv, pool = ((nn.Conv2d, nn.MaxPool2d), (nn.Conv3d, nn.MaxPool3d))[dimensions - 2]
    mean = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dimensions - 2]
    layers = (
        conv(2, 4, 3), nn.ReLU(inplace=True), pool(2), conv(4, 5, 3, padding=1), nn.ReLU(), mean(1), nn.Flatten(),
    )  # fmt: skip
    return nn.Sequential(*layers, nn.Linear(5, 3)).double().eval()


def image(dimensions: int, count: int = 2) -> Image:
    generator = torch.Generator().manual_seed(7)
    return torch.randn((count, 2, *(10, 9, 8)[:dimensions]), generator=generator, dtype=torch.float64)


class Quadratic(nn.Module):
    """Half the sum of squares."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x.square().flatten(1).sum(1, keepdim=True)


class TestClosedForms:
    def test_the_gradient_of_half_a_square_is_the_image(self) -> None:
        assert torch.equal(gradient(Quadratic().eval(), image(2), ClassScore(0)), image(2))

    def test_times_the_input_it_is_the_square(self) -> None:
        assert torch.equal(gradient_times_input(Quadratic().eval(), image(2), ClassScore(0)), image(2).square())

    def test_a_step_of_the_rule_integrates_a_line_exactly(self) -> None:
        # (x - b) (x + b) / 2 from the baseline b: the gradient is linear on the path
        found = integrated_gradients(Quadratic().eval(), image(3), ClassScore(0), baseline=0.5, steps=1)
        assert torch.allclose(found.map, (image(3).square() - 0.25) / 2, rtol=0, atol=1e-14)
        assert float(found.error.max()) < 1e-14

    def test_the_mean_of_noise_on_a_line_is_the_gradient(self) -> None:
        # standard error of the mean of 400 draws of sigma 0.1 x range
        x = image(2, 1)
        found = smoothgrad(Quadratic().eval(), x, ClassScore(0), samples=400, noise=0.1)
        sigma = 0.1 * float(x.max() - x.min()) / 20
        assert float((found - x).abs().max()) < 5 * sigma
        assert 0.8 * sigma < float((found - x).std()) < 1.2 * sigma

    def test_no_noise_is_the_gradient(self) -> None:
        network = small_classifier(2)
        found = smoothgrad(network, image(2), ClassScore(1), samples=2, noise=0)
        assert torch.allclose(found, gradient(network, image(2), ClassScore(1)), rtol=0, atol=1e-15)

    def test_a_score_that_does_not_change_is_complete(self) -> None:
        found = integrated_gradients(Quadratic().eval(), image(2), ClassScore(0), baseline=image(2))
        assert found.error.tolist() == [0.0, 0.0]

    def test_a_predicted_region_is_that_of_the_image_all_the_way(self) -> None:
        # scores x and -x, where label 0 wins for x > 0; on the way from 3, all voxels would be label 0
        class Signs(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.cat([x, -x], 1)

        x = torch.tensor([[[1.0, -1.0, -2.0]]])
        found = integrated_gradients(Signs().eval(), x, LabelSum(1), baseline=3.0)
        assert torch.allclose(found.map, torch.tensor([[[0.0, 4.0, 5.0]]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dimensions", [2, 3])
class TestCaptum:
    def test_gradient(self, dimensions: int) -> None:
        attr = pytest.importorskip("captum.attr")
        network = small_classifier(dimensions)
        expected = attr.Saliency(network).attribute(image(dimensions), target=1, abs=False)
        assert torch.allclose(gradient(network, image(dimensions), ClassScore(1)), expected, rtol=0, atol=1e-12)

    def test_gradient_times_input(self, dimensions: int) -> None:
        attr = pytest.importorskip("captum.attr")
        network = small_classifier(dimensions)
        expected = attr.InputXGradient(network).attribute(image(dimensions), target=1)
        found = gradient_times_input(network, image(dimensions), ClassScore(1))
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)

    def test_integrated_gradients(self, dimensions: int) -> None:
        attr = pytest.importorskip("captum.attr")
        network = small_classifier(dimensions)
        expected, gap = attr.IntegratedGradients(network).attribute(
            image(dimensions), image(dimensions).flip(0), target=2, return_convergence_delta=True
        )
        found = integrated_gradients(network, image(dimensions), ClassScore(2), baseline=image(dimensions).flip(0))
        # captum keeps the weights of the rule in float32
        limit = 1e-7 * float(expected.abs().max())
        assert torch.allclose(found.map, expected, rtol=0, atol=limit)
        assert torch.allclose(found.error * (found.score - found.baseline_score).abs(), gap.abs(), rtol=1e-6, atol=1e-9)

    def test_smoothgrad(self, dimensions: int) -> None:
        attr = pytest.importorskip("captum.attr")
        network = small_classifier(dimensions).float()
        x = image(dimensions, 1).float()  # captum draws its noise in float32
        torch.manual_seed(3)
        expected = attr.NoiseTunnel(attr.Saliency(network)).attribute(
            x, nt_samples=6, nt_samples_batch_size=1, stdevs=0.2 * float(x.max() - x.min()), target=0, abs=False
        )
        found = smoothgrad(network, x, ClassScore(0), samples=6, noise=0.2, seed=3, batch=1)
        assert torch.allclose(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


class TestBatches:
    @pytest.mark.parametrize("batch", [1, 4, 100])
    def test_integrated_gradients_do_not_depend_on_the_batch(self, batch: int) -> None:
        network = small_classifier(3)
        expected = integrated_gradients(network, image(3), ClassScore(0), steps=7).map
        found = integrated_gradients(network, image(3), ClassScore(0), steps=7, batch=batch).map
        assert torch.allclose(found, expected, rtol=0, atol=1e-13)

    def test_a_norm_over_the_batch_sees_one_step_at_a_time(self) -> None:
        network = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), Quadratic()).double().eval()
        x = image(2, 1)
        expected = integrated_gradients(network, x, ClassScore(0), steps=5, baseline=1.0, batch=1).map
        assert torch.equal(
            integrated_gradients(network, x, ClassScore(0), steps=5, baseline=1.0, batch=50).map, expected
        )

    def test_images_of_a_batch_do_not_mix(self) -> None:
        network = small_classifier(2)
        alone = gradient(network, image(2)[1:], ClassScore(1))
        assert torch.allclose(gradient(network, image(2), ClassScore(1))[1:], alone, rtol=0, atol=1e-14)


SEGMENTERS: dict[str, Callable[[], nn.Module]] = {
    "UNet": lambda: nets.UNet(3, 1, 2, (4, 8), (2,), num_res_units=1),
    "DynUNet": lambda: nets.DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=(2, 4, 4)),
    "SegResNet": lambda: nets.SegResNet(3, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)),
}


@pytest.mark.parametrize("name", SEGMENTERS)
class TestSegmenters:
    def test_the_gradient_predicts_a_small_change(self, name: str) -> None:
        torch.manual_seed(1)
        network = SEGMENTERS[name]().double().eval()
        x = torch.rand(1, 1, 8, 8, 8, dtype=torch.float64)
        target, step = Voxel(1, (4, 3, 5)), 1e-6 * torch.randn_like(x)
        with torch.no_grad():
            expected = float(target(network(x + step)) - target(network(x - step))) / 2
        assert math.isclose(float((gradient(network, x, target) * step).sum()), expected, rel_tol=1e-5)

    def test_network_and_image_are_as_they_were(self, name: str) -> None:
        torch.manual_seed(1)
        network = SEGMENTERS[name]().eval()
        x = torch.rand(1, 1, 8, 8, 8)
        before, weights = network(x), copy.deepcopy(network.state_dict())
        given = x.clone()
        integrated_gradients(network, x, LabelSum(1, torch.ones(8, 8, 8)), steps=2)
        assert torch.equal(network(x), before)
        assert torch.equal(x, given)
        assert not x.requires_grad
        assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in network.parameters())


class Rounded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.round()


class Chosen(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(1, keepdim=True).float()


class Hidden(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return x * 2


class TestErrors:
    @pytest.mark.parametrize(
        ("step", "words"),
        [(Rounded(), "round in the module 0.1 (Rounded)"), (Chosen(), "argmax in the module 0.1 (Chosen)"),
         (Hidden(), "the module 0.1 (Hidden) stops it")],
    )  # fmt: skip
    def test_the_step_that_stops_the_gradient_is_named(self, step: nn.Module, words: str) -> None:
        network = nn.Sequential(nn.Sequential(nn.Conv2d(2, 1, 1), step), Quadratic()).double().eval()
        with pytest.raises(BadInput) as caught:
            gradient(network, image(2), ClassScore(0))
        assert words in str(caught.value)

    def test_a_flat_score_is_no_error(self) -> None:
        network = nn.Sequential(nn.ReLU(inplace=True), Quadratic()).eval()
        assert float(gradient(network, -torch.ones(1, 1, 3, 3), ClassScore(0)).abs().max()) == 0.0

    def test_a_baseline_of_another_shape_is_refused(self) -> None:
        with pytest.raises(BadInput, match="baseline has shape"):
            integrated_gradients(Quadratic().eval(), image(2), ClassScore(0), baseline=torch.zeros(3, 3))

    def test_no_steps_are_refused(self) -> None:
        with pytest.raises(BadInput, match="0 steps"):
            integrated_gradients(Quadratic().eval(), image(2), ClassScore(0), steps=0)

    def test_no_samples_are_refused(self) -> None:
        with pytest.raises(BadInput, match="0 samples"):
            smoothgrad(Quadratic().eval(), image(2), ClassScore(0), samples=0)

    def test_training_mode_is_refused(self) -> None:
        with pytest.raises(ValueError, match="training mode"):
            gradient(small_classifier(2).train(), image(2), ClassScore(0))

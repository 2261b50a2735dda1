"""Sanity checks: methods that see the weights react, an edge detector does not; controls and curves in closed form."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import nn

from MLILib.errors import BadInput
from MLILib.explanation.belief import (
    EDGES,
    REACTS,
    completeness_error,
    sensitivity,
    verdict,
)
from MLILib.explanation.controls import edge_map, random_map, rank_correlation
from MLILib.explanation.deletion import chance, importance_order, perturbation_curves
from MLILib.explanation.randomisation import (
    draw_anew,
    label_randomisation,
    learned_layers,
    weight_randomisation,
)


def network() -> nn.Module:
    torch.manual_seed(5)
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(6 * 144, 2)).double().eval()


def images(number: int = 2) -> torch.Tensor:
    noise = torch.rand(number, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise[:, :, 3:8, 4:9] += 2.0
    return noise


def first(output: torch.Tensor) -> torch.Tensor:
    return output[:, 0]


def gradient(net: nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():  # captum measures without
        given = image.clone().requires_grad_(True)
        return torch.autograd.grad(first(net(given)).sum(), given)[0]


def edges(net: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return edge_map(image)


class Weighted(nn.Module):
    """w.x, whose explanation is exactly w * x."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.arange(1.0, size + 1).double())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image.flatten(1) @ self.w)[:, None]


class TestControls:
    @pytest.mark.parametrize("shape", [(9, 12), (6, 7, 8)])
    def test_edges_are_scipys_sobel(self, shape: tuple[int, ...]) -> None:
        image = torch.rand(2, 1, *shape, dtype=torch.float64)
        for given, found in zip(image, edge_map(image), strict=True):
            sobel = [ndimage.sobel(given[0].numpy(), axis, mode="nearest") for axis in range(len(shape))]
            np.testing.assert_allclose(found[0].numpy(), np.sqrt(sum(s**2 for s in sobel)), atol=1e-12)

    def test_random_map_is_the_same_for_a_seed(self) -> None:
        image = torch.zeros(2, 3, 4, 5)
        assert random_map(image).shape == (2, 1, 4, 5)
        assert torch.equal(random_map(image, 3), random_map(image, 3))
        assert not torch.equal(random_map(image, 3), random_map(image, 4))

    def test_rank_correlation_is_scipys(self) -> None:
        a = torch.randint(0, 5, (50,)).double()
        b = a + torch.randint(0, 4, (50,))
        assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)

    def test_a_constant_map_correlates_with_nothing(self) -> None:
        assert rank_correlation(torch.ones(5), torch.arange(5)) == 0.0


class TestWeights:
    def test_layers_run_from_the_output_to_the_input(self) -> None:
        assert learned_layers(network(), images()) == ["5", "2", "0"]

    def test_a_layer_used_by_its_holder_is_not_forgotten(self) -> None:
        class Holder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Linear(3, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x @ self.inner.weight

        whole = nn.Sequential(nn.Linear(3, 3), Holder(), nn.Linear(3, 3)).eval()
        assert learned_layers(whole, torch.rand(1, 1, 3)) == ["2", "1.inner", "0"]

    def test_scale_is_kept(self) -> None:
        layer = nn.Linear(300, 300)
        before = layer.weight.detach().clone()
        draw_anew(layer, torch.Generator().manual_seed(0))
        assert float(layer.weight.detach().square().mean()) == pytest.approx(float(before.square().mean()), rel=0.05)
        assert abs(np.corrcoef(before.flatten(), layer.weight.detach().flatten())[0, 1]) < 0.02

    @pytest.mark.parametrize("cascading", [True, False])
    def test_the_network_itself_is_untouched(self, cascading: bool) -> None:
        net = network()
        before = copy.deepcopy(net.state_dict())
        weight_randomisation(net, images(), gradient, cascading=cascading)
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())

    def test_cascade_ends_with_all_layers_drawn_and_independent_with_one(self) -> None:
        """A map of the numbers of weights that are still trained tells how far the randomisation has come."""
        net = network()
        trained = [parameter.detach().clone() for parameter in net.parameters()]
        seen: list[int] = []

        def count(changed: nn.Module, image: torch.Tensor) -> torch.Tensor:
            pairs = zip(trained, changed.parameters(), strict=True)
            seen.append(sum(torch.equal(a, b) for a, b in pairs))
            return gradient(changed, image)

        weight_randomisation(net, images(), count)
        assert seen == [6, 4, 2, 0]
        seen.clear()
        weight_randomisation(net, images(), count, cascading=False)
        assert seen == [6, 4, 4, 4]

    def test_order_of_layers_is_the_networks(self) -> None:
        found = weight_randomisation(network(), images(), gradient, layers=["0", "5"])
        assert [one.layer for one in found] == ["5", "0"]

    def test_unknown_layer_lists_those_that_exist(self) -> None:
        with pytest.raises(BadInput, match="5, 2, 0"):
            weight_randomisation(network(), images(), gradient, layers=["conv9"])

    def test_network_without_parameters(self) -> None:
        with pytest.raises(BadInput, match="no parameters"):
            weight_randomisation(nn.Sequential(nn.ReLU()).eval(), images(), edges)


class TestLabels:
    def test_the_same_network_keeps_everything(self) -> None:
        assert label_randomisation(network(), network(), images(), gradient) == pytest.approx((1.0, 1.0))

    def test_turned_round(self) -> None:
        """A network whose weights have the other sign turns the gradient round, and leaves its magnitude."""
        net = nn.Sequential(nn.Flatten(), nn.Linear(144, 2)).double().eval()
        turned = copy.deepcopy(net)
        with torch.no_grad():
            turned[1].weight.neg_()  # type: ignore[index, union-attr, operator]
        assert label_randomisation(net, turned, images(), gradient) == pytest.approx((-1.0, 1.0))


class TestVerdict:
    def test_gradient_reacts(self) -> None:
        found = verdict(network(), images(), gradient, draws=3)
        assert found.badge == REACTS
        assert found.left < 0.3
        assert [one.layer for one in found.layers] == ["5", "2", "0"]

    def test_edge_detector_is_one(self) -> None:
        found = verdict(network(), images(), edges)
        assert (found.badge, found.left, found.edges) == (EDGES, pytest.approx(1.0), pytest.approx(1.0))
        assert abs(found.chance) < 0.2
        assert found.sentence.startswith("edge detector: the map keeps a rank correlation of 1.00 ")

    def test_constant_map(self) -> None:
        with pytest.raises(BadInput, match="the same everywhere"):
            verdict(network(), images(), lambda net, image: torch.ones_like(image))


class TestSensitivity:
    def test_of_a_linear_explanation(self) -> None:
        """w * x changes by radius w * noise."""
        net, image = Weighted(4).eval(), torch.ones(1, 1, 4, dtype=torch.float64)
        found = sensitivity(
            net,
            image,
            lambda n, x: n.w * x,  # type: ignore[operator]
            0.1,
            draws=2,
            noise=lambda x, generator: torch.ones_like(x),
        )
        assert found.largest == pytest.approx((0.1,))
        assert found.correlation == pytest.approx((1.0,))

    def test_captum(self) -> None:
        metrics = pytest.importorskip("captum.metrics")
        net, image = network(), images()
        fixed = torch.rand(image.shape, generator=torch.Generator().manual_seed(9)).double() * 2 - 1
        ours = sensitivity(net, image, gradient, 0.05, draws=1, noise=lambda x, generator: fixed)
        theirs = metrics.sensitivity_max(
            lambda x: (gradient(net, x[0]),),
            image,
            perturb_func=lambda x: (x + 0.05 * fixed,),
            n_perturb_samples=1,
        )
        assert ours.largest == pytest.approx(theirs.tolist(), abs=1e-6)

    def test_noise_stays_within_the_radius(self) -> None:
        image, seen = images(), []

        def watch(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
            seen.append(float((x - image).abs().max()))
            return gradient(net, x)

        sensitivity(network(), image, watch, 0.05, draws=4)
        assert 0.045 < max(seen) <= 0.05

    def test_no_radius(self) -> None:
        with pytest.raises(BadInput, match="radius above 0"):
            sensitivity(network(), images(), gradient, 0.0)


class TestCompleteness:
    def test_gradient_times_input_of_a_linear_network_is_complete(self) -> None:
        net, image = Weighted(4).eval(), torch.rand(2, 1, 4, dtype=torch.float64)
        exact = net.w.detach() * image  # type: ignore[operator]
        assert completeness_error(net, image, torch.zeros_like(image), exact, first) == pytest.approx((0, 0), abs=1e-12)
        assert completeness_error(net, image, torch.zeros_like(image), 1.1 * exact, first) == pytest.approx((0.1, 0.1))

    def test_baseline_equal_to_the_image(self) -> None:
        image = torch.rand(1, 1, 4, dtype=torch.float64)
        with pytest.raises(BadInput, match="no difference"):
            completeness_error(Weighted(4).eval(), image, image, image, first)


class TestCurves:
    def test_of_a_linear_network(self) -> None:
        """w = 1, 2, 3, 4 on ones: the score falls from 10 by 4, 3, 2, 1, and rises from 0 by the same."""
        net, image = Weighted(4).eval(), torch.ones(1, 1, 4, dtype=torch.float64)
        exact = net.w.detach() * image  # type: ignore[operator]
        (fall,) = perturbation_curves(net, image, exact, first, steps=4)
        assert fall.scores == (10.0, 6.0, 3.0, 1.0, 0.0)
        assert fall.fractions == (0.0, 0.25, 0.5, 0.75, 1.0)
        assert fall.area == pytest.approx(15 / 4)
        (rise,) = perturbation_curves(net, image, exact, first, steps=4, kind="insertion")
        assert rise.scores == (0.0, 4.0, 7.0, 9.0, 10.0)

    @pytest.mark.parametrize("memory", [1, 1 << 30])
    def test_no_order_is_better_than_the_exact_one(self, memory: int) -> None:
        net, image = Weighted(16).eval(), torch.rand(12, 1, 4, 4, dtype=torch.float64)
        exact = net.w.detach().reshape(1, 1, 4, 4) * image  # type: ignore[operator]
        ours = [c.area for c in perturbation_curves(net, image, exact, first, memory=memory)]
        control = [c.area for c in perturbation_curves(net, image, random_map(image), first, memory=memory)]
        assert all(a < b for a, b in zip(ours, control, strict=True))
        # 12 pairs that all go the same way: one of 2 ** 12 possibilities.
        assert chance(ours, control) == pytest.approx(1 / 2**12)
        assert chance(ours, control, smaller=False) == pytest.approx(1.0)

    def test_channels_of_a_voxel_go_together(self) -> None:
        image = torch.ones(1, 2, 1, 2, dtype=torch.float64)
        attribution = torch.tensor([[[[0.0, 1.0]], [[3.0, 1.0]]]])
        assert importance_order(attribution[0]).tolist() == [0, 1]
        weights = torch.tensor([1.0, 10.0, 100.0, 1000.0]).double()
        (found,) = perturbation_curves(
            nn.Flatten().eval(), image, attribution, lambda output: output @ weights, steps=2
        )
        assert found.scores == (1111.0, 1010.0, 0.0)

    def test_order_among_equals_is_drawn(self) -> None:
        order = importance_order(torch.zeros(1, 100))
        assert sorted(order.tolist()) == list(range(100))
        assert order.tolist() != list(range(100))

    def test_equal_areas(self) -> None:
        assert chance([1.0, 2.0], [1.0, 2.0]) == 1.0

    def test_map_of_another_grid(self) -> None:
        with pytest.raises(BadInput, match="image's own grid"):
            perturbation_curves(network(), images(), torch.ones(2, 1, 6, 6), first)

    def test_one_pair(self) -> None:
        with pytest.raises(BadInput, match="two or more"):
            chance([1.0], [2.0])

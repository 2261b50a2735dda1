"""The losses of DeepSTAPLE against loops and closed forms, and that each step moves only what it should."""

from __future__ import annotations

import copy
import math

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from MLILib.fusion.data_parameters import (  # noqa: E402
    DataParameters,
    class_weights,
    consensus_weights,
    fixed_weighting,
    frozen,
    label_losses,
    label_weights,
    network_loss,
    predicted_share,
    theta_loss,
)


def batch(seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits of two images in three classes; three label maps of the first and two of the second."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, 4, 5, 6, generator=generator)
    labels = [torch.randint(0, 3, (n, 4, 5, 6), generator=generator).to(torch.uint8) for n in (3, 2)]
    return logits, labels


def pairs(logits: torch.Tensor, labels: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(logits[i], one.long()) for i, maps in enumerate(labels) for one in maps]


class TestClassWeights:
    def test_they_fall_with_the_count_to_the_power_of_35_hundredths(self) -> None:
        weights = class_weights(torch.tensor([1000, 10]))
        assert float(weights[1] / weights[0]) == pytest.approx(100**0.35)
        assert float(weights.mean()) == pytest.approx(1.0)

    def test_a_class_without_a_voxel_gets_a_finite_weight(self) -> None:
        assert torch.isfinite(class_weights(torch.tensor([1000, 0]))).all()


class TestFixedWeighting:
    def test_an_empty_label_map_has_one_plus_e(self) -> None:
        assert float(fixed_weighting(torch.tensor([0]))[0]) == pytest.approx(1 + math.e)

    def test_it_is_the_logarithm_of_the_size(self) -> None:
        n = round(math.exp(5) - math.e)
        assert float(fixed_weighting(torch.tensor([n]))[0]) == pytest.approx(math.log(n + math.e) + math.e)


class TestLabelWeights:
    def test_equal_thetas_leave_the_fixed_weighting(self) -> None:
        foreground = torch.tensor([10, 200, 3000])
        found = label_weights(torch.full((3,), 1.7), foreground)
        assert torch.allclose(found, 1 / fixed_weighting(foreground))

    def test_against_a_loop(self) -> None:
        theta, foreground = [0.5, -1.0, 3.0], [5, 50, 500]
        sigmoid = [1 / (1 + math.exp(-t)) for t in theta]
        mean = sum(sigmoid) / 3
        expected = [s / mean / (math.log(n + math.e) + math.e) for s, n in zip(sigmoid, foreground, strict=True)]
        found = label_weights(torch.tensor(theta), torch.tensor(foreground))
        assert found.tolist() == pytest.approx(expected)


class TestNetworkLoss:
    def test_it_is_torchs_cross_entropy_of_all_pairs(self) -> None:
        logits, labels = batch()
        weights = torch.tensor([0.4, 1.0, 1.6])
        images = torch.stack([image for image, _ in pairs(logits, labels)])
        maps = torch.stack([one for _, one in pairs(logits, labels)])
        expected = functional.cross_entropy(images, maps, weight=weights)
        assert float(network_loss(logits, labels, weights)) == pytest.approx(float(expected), rel=1e-5)

    def test_its_gradient_too(self) -> None:
        logits, labels = batch()
        weights = torch.tensor([0.4, 1.0, 1.6])
        ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
        network_loss(ours, labels, weights).backward()
        images = torch.stack([image for image, _ in pairs(theirs, labels)])
        maps = torch.stack([one for _, one in pairs(theirs, labels)])
        functional.cross_entropy(images, maps, weight=weights).backward()
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)


class TestLabelLosses:
    def test_each_is_torchs_cross_entropy(self) -> None:
        logits, labels = batch(1)
        expected = [float(functional.cross_entropy(image[None], one[None])) for image, one in pairs(logits, labels)]
        assert label_losses(logits, labels).tolist() == pytest.approx(expected, rel=1e-5)

    def test_the_predicted_share_is_that_of_the_label_maps_image(self) -> None:
        logits = torch.zeros(2, 2, 2, 2)
        logits[0, 1, 0, 0] = 1.0  # one pixel of four
        logits[0, 0, 0, 1] = logits[0, 0, 1, 0] = logits[0, 0, 1, 1] = 1.0
        logits[1, 1] = 1.0
        labels = [torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(1, 2, 2, dtype=torch.uint8)]
        assert predicted_share(logits, labels).tolist() == [0.25, 0.25, 0.25, 1.0]


class TestThetaLoss:
    def test_against_a_loop(self) -> None:
        losses, weights, share = [0.2, 0.5, 0.1], [0.3, 0.1, 0.2], [0.05, 0.05, 0.4]
        expected = sum(w * x for w, x in zip(weights, losses, strict=True)) - 0.7 * sum(
            w * p for w, p in zip(weights, share, strict=True)
        )
        found = theta_loss(torch.tensor(losses), torch.tensor(weights), torch.tensor(share), 0.7)
        assert float(found) == pytest.approx(expected)

    def test_theta_rises_where_the_loss_is_below_the_others(self) -> None:
        theta = torch.zeros(3, requires_grad=True)
        weights = label_weights(theta, torch.tensor([100, 100, 100]))
        theta_loss(torch.tensor([0.1, 0.2, 0.6]), weights, torch.full((3,), 0.3)).backward()
        assert theta.grad is not None
        assert theta.grad[0] < theta.grad[1] < 0 < theta.grad[2]

    def test_risk_regularisation_favours_images_with_more_foreground(self) -> None:
        theta = torch.zeros(2, requires_grad=True)
        weights = label_weights(theta, torch.tensor([100, 100]))
        theta_loss(torch.tensor([0.2, 0.2]), weights, torch.tensor([0.3, 0.1])).backward()
        assert theta.grad is not None
        assert theta.grad[0] < 0 < theta.grad[1]

    def test_the_gradient_of_theta_against_finite_differences(self) -> None:
        losses, share = torch.tensor([0.2, 0.5, 0.1]).double(), torch.tensor([0.1, 0.2, 0.1]).double()
        foreground = torch.tensor([10, 100, 1000])

        def of(theta: torch.Tensor) -> torch.Tensor:
            return theta_loss(losses, label_weights(theta, foreground).double(), share)

        theta = torch.tensor([0.3, -0.2, 1.0]).double().requires_grad_()
        assert torch.autograd.gradcheck(of, (theta,), atol=1e-4)


class TestDataParameters:
    def test_only_what_is_looked_up_moves(self) -> None:
        parameters = DataParameters(5)
        optimizer = torch.optim.SparseAdam(list(parameters.parameters()), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            parameters(torch.tensor([1, 3, 3])).sum().backward()
            optimizer.step()
        assert parameters.values().tolist() == pytest.approx([0, -0.2, 0, -0.2, 0], abs=1e-6)


class TestFrozen:
    def test_nothing_of_the_network_changes(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1)).train()
        before = copy.deepcopy(network.state_dict())
        with frozen(network):
            out = network(torch.randn(3, 1, 8, 8))
            assert not out.requires_grad
        after = network.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)
        assert all(p.requires_grad for p in network.parameters())
        network(torch.randn(3, 1, 8, 8))
        assert not torch.equal(before["1.running_mean"], network.state_dict()["1.running_mean"])

    def test_the_answer_is_that_of_training_without_dropout(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).train()
        x = torch.randn(3, 1, 8, 8)
        with frozen(network):
            ours = network(x)
        assert torch.allclose(ours, network(x), atol=1e-6)


class TestConsensusWeights:
    def test_the_softmax(self) -> None:
        found = consensus_weights(torch.tensor([0.0, math.log(3.0)]))
        assert found.tolist() == pytest.approx([0.25, 0.75])

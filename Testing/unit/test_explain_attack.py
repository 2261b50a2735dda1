"""FGSM and PGD beside captum's and beside the closed form of a linear model; curves; the linear argument measured."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from MLILib.errors import BadInput
from MLILib.explanation.attack import CrossEntropy, fgsm, pgd
from MLILib.explanation.attack_curve import accuracy, attack_curve, dice, linear_argument


def classifier() -> nn.Module:
    torch.manual_seed(2)
    layers = [nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)]
    return nn.Sequential(*layers).double().eval()


def segmenter() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(4, 3, 1)).double().eval()


def digits(number: int = 4) -> torch.Tensor:
    return torch.rand(number, 1, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Line(nn.Module):
    """One logit, w.x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -2.0, 0.0, 1.0], dtype=torch.float64))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image.flatten(1) @ self.w - 0.25)[:, None]


class TestFgsm:
    def test_linear_model_moves_by_epsilon_times_the_weights_magnitudes(self) -> None:
        image = torch.zeros(1, 1, 4, dtype=torch.float64)
        found = fgsm(Line().eval(), image, lambda output: output[:, 0], 0.1)
        torch.testing.assert_close(found.difference.flatten(), torch.tensor([0.1, -0.1, 0.0, 0.1]).double())
        torch.testing.assert_close(found.loss_after - found.loss_before, torch.tensor([0.35]).double())

    @pytest.mark.parametrize("targeted", [False, True])
    def test_captum(self, targeted: bool) -> None:
        captum = pytest.importorskip("captum.robust")
        network, image, truth = classifier(), digits(), torch.tensor([0, 1, 2, 0])
        ours = fgsm(network, image, CrossEntropy(truth), 0.05, targeted=targeted, bounds=(0.0, 1.0))
        theirs = captum.FGSM(
            network, partial(functional.cross_entropy, reduction="none"), lower_bound=0.0, upper_bound=1.0
        ).perturb(image.clone(), 0.05, target=truth, targeted=targeted)
        torch.testing.assert_close(ours.perturbed, theirs, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("attack", [fgsm, pgd])
    def test_epsilon_0_changes_nothing(self, attack: object) -> None:
        image = digits()
        found = attack(classifier(), image, CrossEntropy(torch.tensor([1])), 0.0)  # type: ignore[operator]
        assert torch.equal(found.perturbed, image)
        assert torch.equal(found.loss_before, found.loss_after)

    def test_a_segmenter_loses(self) -> None:
        network = segmenter()
        image = torch.rand(2, 1, 5, 6, 7, dtype=torch.float64)
        with torch.no_grad():
            truth = network(image).argmax(1)
        found = fgsm(network, image, CrossEntropy(truth), 0.02)
        assert (found.loss_after > found.loss_before).all()
        aimed = fgsm(network, image, CrossEntropy(torch.zeros_like(truth)), 0.02, targeted=True)
        assert (aimed.loss_after < aimed.loss_before).all()

    def test_parameters_keep_their_gradients(self) -> None:
        network = classifier()
        fgsm(network, digits(), CrossEntropy(torch.tensor([1])), 0.1)
        assert all(parameter.grad is None for parameter in network.parameters())


class TestPgd:
    @pytest.mark.parametrize("targeted", [False, True])
    def test_captum(self, targeted: bool) -> None:
        captum = pytest.importorskip("captum.robust")
        network, image, truth = classifier(), digits(), torch.tensor([0, 1, 2, 0])
        ours = pgd(network, image, CrossEntropy(truth), 0.05, steps=5, step_size=0.02, targeted=targeted)
        theirs = captum.PGD(network, partial(functional.cross_entropy, reduction="none")).perturb(
            image.clone(), 0.05, 0.02, 5, target=truth, targeted=targeted
        )
        torch.testing.assert_close(ours.perturbed, theirs, rtol=0, atol=1e-12)

    def test_stays_within_epsilon_and_bounds(self) -> None:
        image = digits()
        found = pgd(classifier(), image, CrossEntropy(torch.tensor([1])), 0.3, step_size=1.0, seed=4, bounds=(0.0, 1.0))
        assert found.difference.abs().max() <= 0.3 + 1e-12
        assert found.perturbed.min() >= 0.0
        assert found.perturbed.max() <= 1.0

    def test_reaches_the_corner_of_the_box_on_a_linear_model(self) -> None:
        start = torch.zeros(1, 1, 4, dtype=torch.float64)
        found = pgd(Line().eval(), start, lambda output: output[:, 0], 0.1, steps=7, seed=1)
        corner = torch.tensor([0.1, -0.1, 0.1]).double()
        torch.testing.assert_close(found.difference.flatten()[[0, 1, 3]], corner)

    def test_no_steps(self) -> None:
        with pytest.raises(BadInput, match="0 steps"):
            pgd(classifier(), digits(), CrossEntropy(torch.tensor([1])), 0.1, steps=0)


class TestCrossEntropy:
    def test_even_odds_cost_log_2(self) -> None:
        log2 = torch.log(torch.tensor([2.0]))
        torch.testing.assert_close(CrossEntropy(torch.tensor([1]))(torch.zeros(1, 2)), log2)
        torch.testing.assert_close(CrossEntropy(torch.tensor([1]))(torch.zeros(1, 1)), log2)
        torch.testing.assert_close(CrossEntropy(torch.ones(1, 3, 4))(torch.zeros(1, 2, 3, 4)), log2)

    def test_labels_of_another_shape(self) -> None:
        with pytest.raises(BadInput, match=r"needs \(1, 3, 4\)"):
            CrossEntropy(torch.ones(1, 4, 4))(torch.zeros(1, 2, 3, 4))

    def test_label_that_the_network_does_not_know(self) -> None:
        with pytest.raises(BadInput, match="Give labels from 0 to 1"):
            CrossEntropy(torch.tensor([2]))(torch.zeros(1, 1))


class TestMeasures:
    def test_dice_is_the_mean_over_labels(self) -> None:
        truth = torch.tensor([[0, 1, 1, 2]])
        logits = functional.one_hot(torch.tensor([[0, 1, 2, 2]]), 3).movedim(-1, 1).float()
        assert dice(logits, truth).tolist() == pytest.approx([2 / 3])

    def test_dice_of_nothing(self) -> None:
        assert dice(torch.full((1, 1, 4), -1.0), torch.zeros(1, 4)).tolist() == [1.0]

    def test_accuracy(self) -> None:
        assert accuracy(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])).tolist() == [1.0, 0.0]
        assert accuracy(torch.tensor([[1.0], [-1.0]]), torch.tensor([1])).tolist() == [1.0, 0.0]


class TestCurve:
    def test_a_segmenters_dice_falls(self) -> None:
        network = segmenter()
        image = torch.rand(3, 1, 6, 6, 6, dtype=torch.float64)
        with torch.no_grad():
            truth = network(image).argmax(1)
        points = attack_curve(network, image, truth, CrossEntropy(truth), (0.2, 0.0, 0.05, 0.1), measure=dice)
        assert [point.epsilon for point in points] == [0.0, 0.05, 0.1, 0.2]
        assert points[0].mean == 1.0
        assert all(later.mean <= earlier.mean for earlier, later in pairwise(points))
        assert points[-1].mean < 0.9

    def test_linear_model_falls_at_the_epsilon_that_bridges_its_margin(self) -> None:
        # The margin of the image is 0.25, and each unit of epsilon moves the logit by 0.5 + 2 + 1.
        image = torch.tensor([[[0.0, 0.0, 0.0, 0.5]]], dtype=torch.float64)
        bridge = 0.25 / 3.5
        truth = torch.tensor([1])
        points = attack_curve(Line().eval(), image, truth, CrossEntropy(truth), (bridge * 0.99, bridge * 1.01))
        assert [point.mean for point in points] == [1.0, 0.0]

    def test_pgd_does_more_than_fgsm(self) -> None:
        network, image, truth = classifier(), digits(8), torch.zeros(8)
        curves = [
            attack_curve(network, image, truth, CrossEntropy(truth), (0.3,), attack=attack)
            for attack in (fgsm, partial(pgd, steps=20))
        ]
        assert curves[1][0].loss >= curves[0][0].loss

    def test_no_epsilon(self) -> None:
        with pytest.raises(BadInput, match="at least one"):
            attack_curve(classifier(), digits(), torch.tensor([1]), CrossEntropy(torch.tensor([1])), ())


class TestLinearArgument:
    def test_is_what_the_layer_does(self) -> None:
        """An image changed along the signs of a unit's weights changes that unit by epsilon m n."""
        network = classifier()
        found = linear_argument(network, digits(1), 0.01)
        weights = network[0].weight.detach()  # type: ignore[index]
        changes = [float((weights[unit] * 0.01 * weights[unit].sign()).sum()) for unit in range(4)]
        assert (found.layer, found.inputs) == ("0", 9)
        assert found.change == pytest.approx(sum(changes) / 4)
        assert found.change == pytest.approx(found.epsilon * found.weight * found.inputs)
        assert found.largest == pytest.approx(max(changes))

    def test_noise_does_less(self) -> None:
        layer = nn.Linear(400, 1, bias=False).double()
        nn.init.constant_(layer.weight, 0.5)
        network = nn.Sequential(nn.Flatten(), layer).eval()
        found = linear_argument(network, torch.zeros(1, 1, 20, 20).double(), 0.1)
        # n weights of m: epsilon m n along the signs, epsilon m sqrt(n) at random.
        assert (found.change, found.noise) == pytest.approx((20.0, 1.0))

    def test_network_without_such_a_layer(self) -> None:
        with pytest.raises(BadInput, match="none"):
            linear_argument(nn.Sequential(nn.ReLU()).eval(), digits(1), 0.1)


class TestRefused:
    @pytest.mark.parametrize("epsilon", [-0.1, float("nan")])
    def test_epsilon(self, epsilon: float) -> None:
        with pytest.raises(BadInput, match="epsilon of at least 0"):
            fgsm(classifier(), digits(), CrossEntropy(torch.tensor([1])), epsilon)

    def test_image_outside_the_bounds(self) -> None:
        with pytest.raises(BadInput, match=r"exceed 0 to 0\.5"):
            fgsm(classifier(), digits(), CrossEntropy(torch.tensor([1])), 0.1, bounds=(0.0, 0.5))

    def test_bounds_in_the_wrong_order(self) -> None:
        with pytest.raises(BadInput, match="lower bound first"):
            fgsm(classifier(), digits(), CrossEntropy(torch.tensor([1])), 0.1, bounds=(1.0, 0.0))

    def test_no_gradient(self) -> None:
        with pytest.raises(BadInput, match="cannot be differentiated"):
            fgsm(classifier(), digits(), lambda output: output.argmax(1).double(), 0.1)

    def test_output_that_ignores_the_image(self) -> None:
        w = torch.ones(4, requires_grad=True, dtype=torch.float64)
        with pytest.raises(BadInput, match="does not depend"):
            fgsm(classifier(), digits(), lambda output: w * 1.0, 0.1)

"""Ablation of regions, channels and feature maps, beside captum's and beside closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from MLILib.errors import BadInput
from MLILib.explanation.ablation import ablate_channels, ablate_feature_maps, ablate_regions
from MLILib.explanation.codes import code_of, layer_named


def classifier(dimensions: int) -> nn.Module:
    torch.manual_seed(dimensions)
    conv = (nn.Conv2d, nn.Conv3d)[dimensions - 2]
    size = 4**dimensions
    layers = [conv(2, 5, 3), nn.ReLU(inplace=True), conv(5, 4, 3, stride=2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * size, 3)).double().eval()


def images(dimensions: int, number: int = 2) -> torch.Tensor:
    return torch.rand(number, 2, *(11,) * dimensions, dtype=torch.float64)


def second(output: torch.Tensor) -> torch.Tensor:
    return output[:, 1]


class TestRegions:
    @pytest.mark.parametrize("dimensions", [2, 3])
    def test_captum(self, dimensions: int) -> None:
        captum = pytest.importorskip("captum.attr")
        network, image = classifier(dimensions), images(dimensions)
        labels = torch.randint(0, 4, (1, 1, *(11,) * dimensions))
        labels[labels == 3] = 7
        found = ablate_regions(network, image, second, labels, value=0.3, memory=1 << 18)
        theirs = captum.FeatureAblation(network).attribute(image, 0.3, target=1, feature_mask=labels)
        assert found.regions == (0, 1, 2, 7)
        torch.testing.assert_close(found.attribution.expand_as(theirs), theirs, rtol=0, atol=1e-10)

    def test_sum_of_voxels_falls_by_what_the_region_holds(self) -> None:
        image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        labels = torch.tensor([[[[0, 5], [5, 9]]]])
        found = ablate_regions(nn.Flatten().eval(), image, lambda output: output.sum(1), labels)
        assert found.falls.tolist() == [[1.0, 5.0, 4.0]]
        assert found.attribution.flatten().tolist() == [1.0, 5.0, 5.0, 4.0]

    def test_a_region_that_an_image_lacks_is_worth_nothing(self) -> None:
        labels = torch.tensor([[[[0, 1]]], [[[1, 1]]]])
        found = ablate_regions(nn.Flatten().eval(), torch.ones(2, 1, 1, 2), lambda output: output.sum(1), labels)
        assert found.falls.tolist() == [[1.0, 1.0], [0.0, 2.0]]

    @pytest.mark.parametrize("labels", [torch.zeros(1, 1, 5, 5).int(), torch.zeros(1, 1, 11, 11)])
    def test_labels_that_do_not_suit(self, labels: torch.Tensor) -> None:
        with pytest.raises(BadInput, match="label map of integers"):
            ablate_regions(classifier(2), images(2), second, labels)


class TestChannels:
    @pytest.mark.parametrize("dimensions", [2, 3])
    def test_captum(self, dimensions: int) -> None:
        captum = pytest.importorskip("captum.attr")
        network, image = classifier(dimensions), images(dimensions)
        mask = torch.arange(2).reshape(1, 2, *(1,) * dimensions).expand(1, 2, *(11,) * dimensions)
        theirs = captum.FeatureAblation(network).attribute(image, target=1, feature_mask=mask)
        ours = ablate_channels(network, image, second)
        torch.testing.assert_close(ours, theirs.flatten(2)[..., 0], rtol=0, atol=1e-10)

    def test_mean_of_each_channel(self) -> None:
        """Squares: without its detail a channel (a, b) loses a^2 + b^2 - 2 ((a + b) / 2)^2."""
        image = torch.tensor([[[1.0, 3.0], [2.0, 2.0]]])
        found = ablate_channels(nn.Flatten().eval(), image, lambda output: output.square().sum(1), fill="mean")
        assert found.tolist() == [[2.0, 0.0]]


class TestFeatureMaps:
    @pytest.mark.parametrize("dimensions", [2, 3])
    @pytest.mark.parametrize("layer", ["0", "1", "2"])
    @pytest.mark.parametrize("memory", [1, 1 << 30])
    def test_captum(self, dimensions: int, layer: str, memory: int) -> None:
        captum = pytest.importorskip("captum.attr")
        network, image = classifier(dimensions), images(dimensions)
        ours = ablate_feature_maps(network, image, second, layer, memory=memory)
        code = code_of(network, image, layer)
        mask = torch.arange(code.shape[1]).reshape(1, -1, *(1,) * dimensions).expand_as(code[:1])
        theirs = captum.LayerFeatureAblation(network, layer_named(network, layer)).attribute(
            image, target=1, layer_mask=mask
        )
        torch.testing.assert_close(ours, theirs.flatten(2)[..., 0], rtol=0, atol=1e-10)

    def test_units_of_a_linear_layer(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 1)).eval()
        image = torch.rand(1, 1, 4)
        with torch.no_grad():
            exact = network[1](network[0](image)) * network[2].weight
        found = ablate_feature_maps(network, image, lambda output: output[:, 0], "1")
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)

    def test_network_is_as_before(self) -> None:
        network, image = classifier(2), images(2)
        before = network(image)
        ablate_feature_maps(network, image, second, "0")
        assert torch.equal(network(image), before)
        assert not any(module._forward_hooks for module in network.modules())

    def test_unknown_layer_lists_those_that_exist(self) -> None:
        with pytest.raises(BadInput, match="0, 1, 2, 3, 4, 5"):
            ablate_feature_maps(classifier(2), images(2), second, "conv")


class TestCodes:
    def test_code_before_a_nonlinearity_in_place_is_the_layers_own(self) -> None:
        network, image = classifier(2), images(2)
        torch.testing.assert_close(code_of(network, image, "0"), network[0](image))  # type: ignore[index, operator]
        assert (code_of(network, image, "0") < 0).any()

    def test_layer_that_does_not_run(self) -> None:
        class Idle(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.used(x)

        with pytest.raises(BadInput, match="does not run"):
            code_of(Idle().eval(), torch.rand(1, 1, 3), "idle")

    def test_layer_that_gives_no_tensor(self) -> None:
        network = nn.Sequential(nn.LSTM(3, 4)).eval()
        with pytest.raises(BadInput, match="gives no code"):
            code_of(network, torch.rand(1, 1, 3), "0")

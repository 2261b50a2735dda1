"""Grad-CAM and activation maps against captum and closed forms."""

import monai.networks.nets as nets
import pytest
import torch
from torch import nn
from torch.nn import functional

from MLILib.errors import BadInput
from MLILib.explanation import ClassScore, LabelSum
from MLILib.explanation.cam import Interpolation, activation_maps, grad_cam, guided_grad_cam
from MLILib.explanation.rules import guided_backpropagation


def classifier(dimensions: int, inplace: bool = True) -> nn.Module:
    torch.manual_seed(dimensions)
    conv, pool = ((nn.Conv2d, nn.MaxPool2d), (nn.Conv3d, nn.MaxPool3d))[dimensions - 2]
    layers = (conv(1, 4, 3), nn.ReLU(inplace), pool(2), conv(4, 5, 3), nn.ReLU(inplace), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(5 * 2**dimensions, 3)).double().eval()


def image(dimensions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn((2, 1, *(10, 11, 10)[:dimensions]), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dimensions", [2, 3])
class TestCaptum:
    @pytest.mark.parametrize(("interpolation", "mode"), [("nearest", "nearest"), ("linear", None)])
    @pytest.mark.parametrize("rectify", [True, False])
    def test_grad_cam(self, dimensions: int, interpolation: Interpolation, mode: str | None, rectify: bool) -> None:
        attr = pytest.importorskip("captum.attr")
        network = classifier(dimensions, inplace=False)
        coarse = attr.LayerGradCam(network, network[3]).attribute(
            image(dimensions), target=1, relu_attributions=rectify
        )
        shape = image(dimensions).shape[2:]
        mode = mode or {2: "bilinear", 3: "trilinear"}[dimensions]
        expected = attr.LayerAttribution.interpolate(coarse, shape, interpolate_mode=mode)
        found = grad_cam(
            classifier(dimensions), image(dimensions), ClassScore(1), "3", interpolation=interpolation, rectify=rectify
        )
        assert float(expected.abs().max()) > 0
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)

    def test_guided_grad_cam(self, dimensions: int) -> None:
        attr = pytest.importorskip("captum.attr")
        network = classifier(dimensions, inplace=False)
        expected = attr.GuidedGradCam(network, network[3]).attribute(image(dimensions), target=1)
        found = guided_grad_cam(classifier(dimensions), image(dimensions), ClassScore(1), "3", interpolation="nearest")
        assert float(expected.abs().max()) > 0
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


class TestClosedForms:
    def test_behind_a_mean_it_is_the_class_activation_map(self) -> None:
        # Zhou 2016: with a mean and a matrix after the layer, the weights are the matrix', over the number of places
        torch.manual_seed(1)
        conv, last = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3, 2)
        network = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last).double().eval()
        x = image(2)
        with torch.no_grad():
            expected = torch.einsum("c,ncij->nij", last.weight[1], conv(x)).relu() / 110
        assert torch.allclose(grad_cam(network, x, ClassScore(1), "0")[:, 0], expected, rtol=0, atol=1e-14)

    def test_activation_maps_are_the_layers_channels(self) -> None:
        network = classifier(2)
        with torch.no_grad():
            expected = network[:4](image(2))
        assert torch.equal(activation_maps(network, image(2), "3", interpolation="nearest"),
                           functional.interpolate(expected, (10, 11)))  # fmt: skip

    def test_a_constant_channel_stays_constant_on_the_finer_grid(self) -> None:
        network = nn.Sequential(nn.Conv3d(1, 2, 2, stride=2)).double().eval()
        nn.init.zeros_(network[0].weight)
        found = activation_maps(network, image(3), "0")
        assert found.shape == (2, 2, 10, 11, 10)
        assert torch.allclose(found[0, :, 0, 0, 0], network[0].bias)
        assert float(found.std((2, 3, 4)).max()) < 1e-15


class TestSegmenters:
    def test_a_segmenter_with_instance_norm_and_skips(self) -> None:
        torch.manual_seed(0)
        network = nets.UNet(3, 1, 2, (4, 8), (2,), num_res_units=1).eval()
        x = torch.rand(1, 1, 8, 8, 8)
        expected = network(x)
        target = LabelSum(1, torch.ones(8, 8, 8))
        found = guided_grad_cam(network, x, target, "model.0")
        assert torch.equal(found, guided_backpropagation(network, x, target) * grad_cam(network, x, target, "model.0"))
        assert torch.equal(network(x), expected)
        assert not any(m._forward_hooks for m in network.modules())

    def test_a_network_without_gradients_of_its_own(self) -> None:
        network = classifier(2).requires_grad_(False)
        assert torch.equal(grad_cam(network, image(2), ClassScore(0), "3"),
                           grad_cam(classifier(2), image(2), ClassScore(0), "3"))  # fmt: skip


class TestErrors:
    def test_an_unknown_layer_lists_those_that_exist(self) -> None:
        with pytest.raises(BadInput, match="Its layers are 0, 1, 2, 3, 4, 5, 6"):
            grad_cam(classifier(2), image(2), ClassScore(0), "conv")

    @pytest.mark.parametrize("function", [grad_cam, guided_grad_cam])
    def test_a_layer_without_places_is_refused(self, function: object) -> None:
        with pytest.raises(BadInput, match="it is no image"):
            function(classifier(2), image(2), ClassScore(0), "6")  # type: ignore[operator]

    def test_a_layer_on_another_branch_is_refused(self) -> None:
        class Aside(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.unused = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.unused(x)
                return self.used(x).mean((2, 3))

        with pytest.raises(BadInput, match="does not depend on the layer 'unused'"):
            grad_cam(Aside().double().eval(), image(2), ClassScore(0), "unused")

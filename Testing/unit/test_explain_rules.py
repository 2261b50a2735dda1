"""DeconvNet and guided backpropagation against captum, a backward pass by hand, and gradients with the rule in them.

For networks too deep to write the backward pass by hand, the rectifiers of a copy are replaced by a sum that has the
same value and, by ordinary gradients and a hook on them, the rule.
"""

import copy
from collections.abc import Callable

import monai.networks.nets as nets
import pytest
import torch
from torch import nn
from torch.nn import functional

from MLILib.errors import BadInput
from MLILib.explanation import ClassScore, LabelSum, Voxel
from MLILib.explanation.gradients import gradient
from MLILib.explanation.rules import Rule, changed_rule, deconvnet, guided_backpropagation, require_covered
from MLILib.explanation.targets import Target
from MLILib.segmentation.lraspp import LRASPP2D, LRASPP3D

METHODS: dict[Rule, Callable[[nn.Module, torch.Tensor, Target], torch.Tensor]] = {
    "deconvnet": deconvnet,
    "guided": guided_backpropagation,
}


class Surrogate(nn.Module):
    """A rectifier's value, with the rule as its gradient."""

    def __init__(self, rectifier: nn.Module, rule: Rule) -> None:
        super().__init__()
        self.rectifier, self.rule = rectifier, rule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            value = self.rectifier(x.clone())
            top = 6.0 if isinstance(self.rectifier, nn.ReLU6) else float("inf")
            mask = ((x > 0) & (x < top)).to(x) if self.rule == "guided" else torch.ones_like(x)
        passing = mask * x
        y = passing + (value - passing.detach())
        if y.requires_grad:
            y.register_hook(lambda arrived: arrived * (arrived > 0))
        return y


def with_surrogates(network: nn.Module, rule: Rule) -> nn.Module:
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU | nn.LeakyReLU | nn.PReLU | nn.ReLU6):
                setattr(module, name, Surrogate(child, rule))
    return network.eval()


def classifier(dimensions: int, inplace: bool) -> nn.Module:
    torch.manual_seed(dimensions)
    conv, pool = ((nn.Conv2d, nn.MaxPool2d), (nn.Conv3d, nn.MaxPool3d))[dimensions - 2]
    layers = (conv(1, 4, 3), nn.ReLU(inplace), pool(2), conv(4, 5, 3), nn.ReLU(inplace), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(5 * 2**dimensions, 3)).double().eval()


def image(dimensions: int, side: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn((2, 1, *(side,) * dimensions), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(("rule", "name"), [("deconvnet", "Deconvolution"), ("guided", "GuidedBackprop")])
def test_on_relu_networks_it_is_captums(dimensions: int, rule: Rule, name: str) -> None:
    attr = pytest.importorskip("captum.attr")
    expected = getattr(attr, name)(classifier(dimensions, inplace=False)).attribute(image(dimensions), target=1)
    found = METHODS[rule](classifier(dimensions, inplace=True), image(dimensions), ClassScore(1))
    assert float(expected.abs().max()) > 0
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


class TestByHand:
    """Two matrices with a rectifier between them: R arrives at it, f is what it is given."""

    FIRST = torch.tensor([[1.0, 2.0], [-1.0, 1.0], [2.0, -3.0], [-1.0, -1.0]])
    LAST = torch.tensor([[3.0, -2.0, 5.0, 7.0]])
    X = torch.tensor([[1.0, 1.0]])
    # f = (3, 0, -1, -2), R = (3, -2, 5, 7)
    DECONVNET = FIRST.T @ torch.tensor([3.0, 0.0, 5.0, 7.0])
    GUIDED = FIRST.T @ torch.tensor([3.0, 0.0, 0.0, 0.0])

    @pytest.mark.parametrize("rectifier", [nn.ReLU(), nn.LeakyReLU(0.3), nn.PReLU(init=0.2), nn.LeakyReLU(0.1, True)])
    def test_the_slope_of_the_rectifier_takes_no_part(self, rectifier: nn.Module) -> None:
        network = nn.Sequential(nn.Linear(2, 4, bias=False), rectifier, nn.Linear(4, 1, bias=False)).eval()
        network[0].weight.data, network[2].weight.data = self.FIRST, self.LAST
        x = self.X[:, None]
        flat = nn.Sequential(nn.Flatten(), network).eval()
        assert torch.equal(deconvnet(flat, x, ClassScore(0))[0, 0], self.DECONVNET)
        assert torch.equal(guided_backpropagation(flat, x, ClassScore(0))[0, 0], self.GUIDED)

    def test_convolutions_with_leaky_rectifiers(self) -> None:
        torch.manual_seed(2)
        first, last = torch.randn(2, 4, 1, 3, 3, dtype=torch.float64)[0], torch.randn(1, 4, 3, 3, dtype=torch.float64)
        network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3, bias=False))
        network = network.double().eval()
        network[0].weight.data, network[2].weight.data = first, last
        x = image(2)
        f = functional.conv2d(x, first)
        above = functional.conv_transpose2d(torch.ones(2, 1, 6, 6, dtype=torch.float64), last)
        target = LabelSum(1, torch.ones(6, 6))
        for rule, kept in (("deconvnet", above > 0), ("guided", (above > 0) & (f > 0))):
            expected = functional.conv_transpose2d(above * kept, first)
            assert torch.allclose(METHODS[rule](network, x, target), expected, rtol=0, atol=1e-12)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNet (PReLU)": lambda: nets.UNet(2, 1, 2, (4, 8), (2,), num_res_units=1),
    "UNet 3-D (PReLU)": lambda: nets.UNet(3, 1, 2, (4, 8), (2,), num_res_units=1),
    "DynUNet (LeakyReLU in place)": lambda: nets.DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=(2, 4, 4)),
    "DynUNet with residuals": lambda: nets.DynUNet(
        2, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=(2, 4, 4), res_block=True
    ),
    "BasicUNet (LeakyReLU in place)": lambda: nets.BasicUNet(2, 1, 2, (2, 2, 4, 4, 4, 2)),
    "SegResNet (one ReLU, many times)": lambda: nets.SegResNet(2, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)),
    "AttentionUnet (gates)": lambda: nets.AttentionUnet(2, 1, 2, (4, 8), (2,)),
    "LR-ASPP 3-D (ReLU6, gates)": lambda: LRASPP3D(1, 2),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(4)
    return NETWORKS[request.param]().double().eval()


def seen(network: nn.Module) -> torch.Tensor:
    volume = any(isinstance(m, nn.Conv3d) for m in network.modules())
    return image(3, 8)[:1] if volume else image(2, 32)[:1]


def mixed(output: torch.Tensor) -> torch.Tensor:
    """A score in which every number of the output has a part."""
    weights = torch.randn(output.shape[1:], generator=torch.Generator().manual_seed(6), dtype=output.dtype)
    return (output * weights).flatten(1).sum(1)


class TestNetworks:
    @pytest.mark.parametrize("rule", METHODS)
    def test_it_is_the_gradient_of_a_network_with_the_rule_in_it(self, network: nn.Module, rule: Rule) -> None:
        x = seen(network)
        expected = gradient(with_surrogates(network, rule), x, mixed)
        found = METHODS[rule](network, x, mixed)
        assert float(expected.abs().max()) > 0
        limit = 1e-10 * float(expected.abs().max())
        assert torch.allclose(found, expected, rtol=0, atol=limit)
        # and not the plain gradient, which other libraries give here
        assert not torch.allclose(found, gradient(network, x, mixed), rtol=0, atol=1e4 * limit)

    def test_the_network_is_restored(self, network: nn.Module) -> None:
        x = seen(network)
        expected = network(x)
        before = {name: copy.copy(m.__dict__) for name, m in network.named_modules()}
        weights = copy.deepcopy(network.state_dict())
        guided_backpropagation(network, x, Voxel(1, (3,) * (x.ndim - 2)))
        for name, module in network.named_modules():
            assert module.__dict__.keys() == before[name].keys()
            assert not module._forward_hooks
            assert not module._backward_hooks
            assert getattr(module, "inplace", None) == before[name].get("inplace")
        assert torch.equal(network(x), expected)
        assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())

    def test_the_output_is_the_same_under_the_rule(self, network: nn.Module) -> None:
        x = seen(network)
        expected = network(x)
        with changed_rule(network, x, "guided"):
            assert torch.equal(network(x), expected)


def test_the_network_is_restored_after_an_error() -> None:
    network = classifier(2, inplace=True)
    with pytest.raises(BadInput, match="no class 7"):
        guided_backpropagation(network, image(2), ClassScore(7))
    assert "forward" not in network[1].__dict__


class Called(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Own(nn.ReLU):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("layer", "operation"),
        [
            (nn.GELU(), "gelu"),
            (nn.SiLU(), "silu"),
            (nn.ELU(), "elu"),
            (nn.Hardswish(), "hardswish"),
            (nn.Softplus(), "softplus"),
            (nn.Tanh(), "tanh"),
            (nn.Sigmoid(), "sigmoid"),
            (Called(functional.relu), "relu"),
            (Called(lambda x: functional.leaky_relu(x, 0.1)), "leaky_relu"),
            (Called(lambda x: x.clamp(min=0)), "clamp"),
            (Called(lambda x: x * x), "mul"),
            (Called(lambda x: x * torch.sigmoid(x)), "sigmoid"),
            (Called(lambda x: torch.where(x > 0, x, 0.1 * x)), "gt"),
            (Called(lambda x: 1 / x), "reciprocal"),
            (Own(), "relu"),
        ],
    )
    def test_what_the_rule_does_not_cover_is_named(self, layer: nn.Module, operation: str) -> None:
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), layer, nn.Conv2d(2, 1, 3)).double().eval()
        with pytest.raises(BadInput) as caught:
            guided_backpropagation(network, image(2), LabelSum(1, torch.ones(6, 6)))
        assert caught.value.what == f"The rule does not cover {operation} in the module 2 ({type(layer).__name__})."

    def test_lraspp_for_images_is_refused(self) -> None:
        with pytest.raises(BadInput, match="does not cover hardswish"):
            require_covered(LRASPP2D(1, 2).eval(), torch.zeros(1, 1, 32, 32))

    @pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid(), nn.Tanh()])
    def test_what_squashes_the_output_keeps_its_derivative(self, last: nn.Module) -> None:
        network = nn.Sequential(classifier(2, inplace=True), last).double().eval()
        expected = gradient(with_surrogates(network, "guided"), image(2), ClassScore(1))
        found = guided_backpropagation(network, image(2), ClassScore(1))
        assert float(expected.abs().max()) > 0
        assert torch.allclose(found, expected, rtol=0, atol=1e-14)

"""Batches that differ from one image in a box: through any network they give what whole images give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from MLILib.explanation.local import Changed, Clean


@pytest.fixture(autouse=True)
def _without_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


def batch(channels: int, *shape: int, edge: int = 3, count: int = 4) -> Changed:
    """Copies of one image, with noise in boxes at the corners and anywhere."""
    generator = torch.Generator().manual_seed(sum(shape))
    base = torch.rand(1, channels, *shape, dtype=torch.float64, generator=generator)
    patches = torch.rand(count, channels, *(edge,) * len(shape), dtype=torch.float64, generator=generator)
    starts = [(0,) * len(shape), tuple(n - edge for n in shape)]
    starts += [
        tuple(int(torch.randint(n - edge + 1, (), generator=generator)) for n in shape) for _ in range(count - 2)
    ]
    return Changed(base, patches, starts, Clean())


def settled(network: nn.Module) -> nn.Module:
    """With statistics and slopes that are not those of an untouched layer."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return network.double().eval()


def same(function: Callable[[Any], Any], given: Changed) -> torch.Tensor:
    """The result of `function` on a batch, which must be that on the whole images."""
    plain = Changed(given.base, given.patches, given.starts, Clean()).whole().clone()
    expected = function(plain)
    found = function(given)
    torch.testing.assert_close(found.whole() if isinstance(found, Changed) else found, expected, rtol=0, atol=1e-10)
    return found


class Convolved(TorchDispatchMode):
    """Counts the voxels that convolutions give."""

    def __init__(self) -> None:
        super().__init__()
        self.voxels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if "convolution" in str(func):
            self.voxels += found[:, 0].numel()
        return found


LAYERS = {
    "conv": lambda: nn.Conv2d(2, 3, 3, padding=1),
    "even kernel": lambda: nn.Conv2d(2, 3, 4, stride=2, padding=1),
    "wide stride": lambda: nn.Conv2d(2, 3, 2, stride=3),
    "dilated": lambda: nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2),
    "same": lambda: nn.Conv2d(2, 2, 3, padding="same"),
    "reflect": lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    "max": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "max, rounded up": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "average": lambda: nn.AvgPool2d(2),
    "average with a margin": lambda: nn.AvgPool2d(3, stride=1, padding=1),
    "batch norm": lambda: nn.BatchNorm2d(2),
    "instance norm": lambda: nn.InstanceNorm2d(2),
    "group norm": lambda: nn.GroupNorm(1, 2),
    "transposed": lambda: nn.ConvTranspose2d(2, 2, 2, stride=2),
    "up": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "prelu": lambda: nn.PReLU(2),
    "leaky, in place": lambda: nn.LeakyReLU(0.1, inplace=True),
    "gelu": lambda: nn.GELU(),
    "softmax": lambda: nn.Softmax(1),
    "dropout": lambda: nn.Dropout(0.5),
    "flat": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)),
}


class TestLayers:
    @pytest.mark.parametrize("name", LAYERS)
    def test_alone(self, name: str) -> None:
        same(settled(LAYERS[name]()), batch(2, 13, 16))

    @pytest.mark.parametrize("name", LAYERS)
    def test_after_and_before_convolutions(self, name: str) -> None:
        layer = settled(LAYERS[name]())
        before = settled(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(inplace=True)))
        same(lambda image: functional.relu(layer(before(image)) * 2.0), batch(2, 15, 18))

    @pytest.mark.parametrize("shape", [(40,), (14, 17), (9, 11, 10)])
    def test_dimensions(self, shape: tuple[int, ...]) -> None:
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 1]
        pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[len(shape) - 1]
        layers = [conv(1, 3, 3, padding=1), nn.ReLU(), pool(2), conv(3, 2, 3, padding=1), nn.ELU()]
        same(settled(nn.Sequential(*layers)), batch(1, *shape))


class TestBranches:
    def test_residual_of_boxes_of_two_sizes(self) -> None:
        first, second = settled(nn.Conv2d(2, 2, 3, padding=1)), settled(nn.Conv2d(2, 2, 5, padding=2))
        assert isinstance(same(lambda image: first(image) + second(image), batch(2, 20, 20)), Changed)

    def test_concatenation(self) -> None:
        conv = settled(nn.Conv2d(2, 3, 3, padding=1))
        assert isinstance(same(lambda image: torch.cat((image, conv(image)), dim=1), batch(2, 20, 20)), Changed)
        same(lambda image: torch.cat((image, image), dim=2), batch(2, 20, 20))

    def test_sum_with_a_tensor_that_does_not_change(self) -> None:
        other = torch.rand(1, 2, 20, 20, dtype=torch.float64)
        same(lambda image: image + other, batch(2, 20, 20))

    def test_sum_in_place_reaches_every_name_of_the_tensor(self) -> None:
        conv = settled(nn.Conv2d(2, 2, 3, padding=1))

        def network(image: torch.Tensor) -> torch.Tensor:
            first = conv(image)
            also = first
            first += image
            return torch.cat((also, first), 1)

        same(network, batch(2, 20, 20))

    def test_relu_in_place_reaches_every_name_of_the_tensor(self) -> None:
        conv = settled(nn.Conv2d(2, 2, 3, padding=1))

        def network(image: torch.Tensor) -> torch.Tensor:
            first = conv(image)
            torch.relu_(first)
            return first * functional.leaky_relu(first - 0.1, inplace=True)

        same(network, batch(2, 20, 20))

    def test_writing_through_a_view(self) -> None:
        conv = settled(nn.Conv2d(2, 2, 3, padding=1))

        def network(image: torch.Tensor) -> torch.Tensor:
            first = conv(image)
            first[:, :1].relu_()
            return conv(first)

        same(network, batch(2, 20, 20))


class TestNetworks:
    @pytest.mark.parametrize(
        "name", ["UNet", "UNet, batch norm", "BasicUNet", "DynUNet", "SegResNet", "ResNet", "DenseNet"]
    )
    def test_of_monai(self, name: str) -> None:
        nets = pytest.importorskip("monai.networks.nets")
        network = {
            "UNet": lambda: nets.UNet(2, 1, 2, (4, 8), (2,), num_res_units=1),
            "UNet, batch norm": lambda: nets.UNet(2, 1, 2, (4, 8, 8), (2, 2), num_res_units=2, norm="batch"),
            "BasicUNet": lambda: nets.BasicUNet(2, 1, 2, features=(4, 4, 4, 4, 4, 4)),
            "DynUNet": lambda: nets.DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8]),
            "SegResNet": lambda: nets.SegResNet(2, init_filters=4, in_channels=1, blocks_down=(1, 1), blocks_up=(1,),
                                                norm=("GROUP", {"num_groups": 2})),
            "ResNet": lambda: nets.ResNet("basic", [1, 1, 1, 1], [4, 4, 8, 8], spatial_dims=2, n_input_channels=1,
                                          num_classes=2),
            "DenseNet": lambda: nets.DenseNet(2, 1, 2, init_features=4, growth_rate=4, block_config=(2, 2)),
        }[name]()  # fmt: skip
        same(settled(network), batch(1, 32, 48, edge=4))


class TestWork:
    def test_only_what_changes_is_convolved(self) -> None:
        network = settled(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1)))
        given = batch(1, 40, 40, edge=4)
        with Convolved() as first:
            network(given)
        with Convolved() as second:
            network(Changed(given.base, given.patches, given.starts, given.clean))
        # A box of 4 reaches 6 x 6 voxels, then 8 x 8; the one image itself is computed the first time only.
        assert second.voxels == 4 * (36 + 64)
        assert first.voxels == second.voxels + 2 * 40 * 40

    def test_a_large_box_is_not_cut_out(self) -> None:
        found = settled(nn.Conv2d(1, 2, 3, padding=1))(batch(1, 8, 8, edge=6))
        assert not isinstance(found, Changed)

    def test_whole(self) -> None:
        given = batch(2, 9, 9)
        whole = given.whole()
        for one, patch, (i, j) in zip(whole, given.patches, given.starts, strict=True):
            assert torch.equal(one[:, i : i + 3, j : j + 3], patch)
        assert torch.equal(whole[0, :, 3:], given.base[0, :, 3:])
        assert not given.local

    def test_shape_is_the_batchs(self) -> None:
        given = batch(2, 9, 10)
        assert given.shape == (4, 2, 9, 10)
        assert (len(given), given.dim(), given.dtype, given.size(3)) == (4, 4, torch.float64, 10)
        assert given.local

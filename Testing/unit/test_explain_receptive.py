"""Theoretical receptive fields against published sizes and against the reach that an impulse's gradient measures."""

from collections.abc import Callable

import monai.networks.nets as nets
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from MLILib.errors import BadInput
from MLILib.explanation.receptive import Box, receptive_field, receptive_size

#: VGG-16 (Simonyan 2014, configuration D): channels do not matter here.
VGG16 = (2, "pool", 2, "pool", 3, "pool", 3, "pool", 3, "pool")


def vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    for part in VGG16:
        if isinstance(part, int):
            layers += [layer for _ in range(part) for layer in (nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(inplace=True))]
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Conv2d(1, 1, 7)).eval()


class Ronneberger(nn.Module):
    """U-Net as published in 2015: 3 x 3 convolutions without padding, crops, 2 x 2 transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(self._double(1) for _ in range(5))
        self.up = nn.ModuleList(nn.ConvTranspose2d(1, 1, 2, stride=2) for _ in range(4))
        self.after = nn.ModuleList(self._double(2) for _ in range(4))

    @staticmethod
    def _double(channels: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, 1, 3), nn.ReLU(), nn.Conv2d(1, 1, 3), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for depth, block in enumerate(self.down):
            x = block(x if depth == 0 else functional.max_pool2d(x, 2))
            kept.append(x)
        for up, after, skip in zip(self.up, self.after, kept[-2::-1], strict=True):
            x = up(x)
            cut = (skip.shape[-1] - x.shape[-1]) // 2
            x = after(torch.cat([skip[..., cut:-cut, cut:-cut], x], 1))
        return x


class TestPublished:
    @pytest.mark.parametrize(
        ("layer", "size"), [("4", 6), ("9", 16), ("16", 44), ("23", 100), ("30", 212), ("31", 404)]
    )
    def test_vgg16(self, layer: str, size: int) -> None:
        # pool1 to pool5 (Araujo 2019), and the first fully connected layer as a convolution (Chen 2014)
        assert receptive_size(vgg16(), torch.zeros(1, 1, 224, 224), layer=layer) == (size, size)

    @pytest.mark.parametrize(("layer", "size"), [("layer1", 43), ("layer2", 99), ("layer3", 211), ("layer4", 435)])
    def test_resnet18(self, layer: str, size: int) -> None:
        network = nets.resnet18(
            spatial_dims=2, n_input_channels=1, num_classes=2, conv1_t_size=7, conv1_t_stride=2, feed_forward=True
        )
        assert receptive_size(network.eval(), torch.zeros(1, 1, 64, 64), layer=layer) == (size, size)

    def test_unet_at_its_bottom(self) -> None:
        assert receptive_size(Ronneberger().eval(), torch.zeros(1, 1, 188, 188), layer="down.4") == (140, 140)

    def test_unet_at_its_output(self) -> None:
        # 5 voxels before the last convolutions come from 3, those from 7, 4, 8, and from 4 or 5 voxels of the bottom,
        # which are 16 voxels apart and see 140 each
        sizes = [receptive_field(Ronneberger().eval(), torch.zeros(1, 1, 236, 236), (i, i)).box.size for i in range(16)]
        assert set(sizes) == {(188, 188), (204, 204)}
        assert receptive_size(Ronneberger().eval(), torch.zeros(1, 1, 236, 236)) == (204, 204)


def measured(network: nn.Module, shape: tuple[int, ...], index: tuple[int, ...]) -> Box:
    """Box of the voxels with a gradient, of a network in which every weight is positive and nothing is averaged out.

    A maximum passes the gradient to one voxel only; a mean over the same window has the same reach.
    """
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d | nn.MaxPool3d):
                mean = nn.AvgPool2d if isinstance(child, nn.MaxPool2d) else nn.AvgPool3d
                setattr(module, name, mean(child.kernel_size, child.stride, child.padding).eval())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.1)
    x = torch.rand(1, 1, *shape, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(network.double()(x).sum(1)[(0, *index)], x)
    places = np.argwhere(slope[0, 0].numpy() != 0)
    return Box(tuple(int(i) for i in places.min(0)), tuple(int(i) for i in places.max(0)))


def linear_up(align: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 1, 3, stride=2, padding=1), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align)
    )


class Rearranged(nn.Module):
    """Axes swapped, a slice with a step, padding on one side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, (3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x.transpose(2, 3))[:, :, 1::2]
        return functional.pad(x, (2, 0, 1, 3)).transpose(-1, -2)


IMPULSES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dilation": (lambda: nn.Sequential(nn.Conv2d(1, 1, 3, dilation=4), nn.Conv2d(1, 1, (1, 5), stride=2)), (40, 40)),
    "transposed": (lambda: nn.ConvTranspose2d(1, 1, 4, stride=3, padding=1), (9, 9)),
    "adaptive": (lambda: nn.AdaptiveAvgPool2d((5, 7)), (12, 17)),
    "nearest": (lambda: nn.Sequential(nn.Conv2d(1, 1, 3), nn.Upsample(scale_factor=2.5)), (9, 9)),
    "linear": (lambda: linear_up(False), (16, 16)),
    "linear with corners": (lambda: linear_up(True), (16, 16)),
    "bicubic": (lambda: nn.Sequential(nn.Identity(), nn.Upsample((16, 16), mode="bicubic")), (7, 9)),
    "rearranged": (Rearranged, (9, 12)),
    "VGG-16": (lambda: vgg16()[:24], (96, 96)),
    "U-Net, Ronneberger": (lambda: PooledByMeans(), (204, 204)),
    "MONAI UNet": (lambda: nets.UNet(2, 1, 1, (2, 2, 2), (2, 2), num_res_units=1, norm=("batch", {})), (32, 32)),
    "MONAI BasicUNet": (lambda: nets.BasicUNet(2, 1, 1, (2, 2, 2, 2, 2, 2), norm=("batch", {})), (64, 64)),
    "MONAI BasicUNet, interpolated": (
        lambda: nets.BasicUNet(2, 1, 1, (2, 2, 2, 2, 2, 2), norm=("batch", {}), upsample="nontrainable"), (48, 48),
    ),
    "MONAI DynUNet": (
        lambda: nets.DynUNet(
            3, 1, 1, [3, 3, 3], [1, (2, 2, 1), 2], [(2, 2, 1), 2], filters=(1, 1, 1), norm_name="batch"
        ),
        (16, 16, 8),
    ),
}  # fmt: skip


class PooledByMeans(Ronneberger):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(functional, "max_pool2d", functional.avg_pool2d)
            return super().forward(x)


@pytest.mark.parametrize("name", IMPULSES)
def test_the_field_is_what_an_impulse_reaches(name: str) -> None:
    make, shape = IMPULSES[name]
    torch.manual_seed(0)
    network = make().eval()
    with torch.no_grad():
        grid = network(torch.zeros(1, 1, *shape)).shape[2:]
    for index in {tuple(n // 2 for n in grid), tuple(n // 2 - 1 for n in grid), tuple(min(2, n - 1) for n in grid)}:
        expected = receptive_field(network.float(), torch.zeros(1, 1, *shape), index).box.within(shape)
        assert measured(network, shape, index) == expected


def test_taps_of_a_dilated_transposed_convolution_that_fall_between_voxels_do_not_count() -> None:
    # output 13 = 3 i - 1 + 2 t: i = 4 with tap t = 1; i = 2 would need a fifth tap
    network = nn.ConvTranspose2d(1, 1, 4, stride=3, padding=1, dilation=2).eval()
    assert receptive_field(network, torch.zeros(1, 1, 9, 9), (13, 13)).box == Box((4, 4), (4, 4))


class TestEverywhere:
    def test_a_gate_sees_the_whole_image(self) -> None:
        class Gate(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * torch.sigmoid(x.mean((2, 3), keepdim=True))

        found = receptive_field(nn.Sequential(Gate()).eval(), torch.zeros(1, 1, 7, 9), (3, 3))
        assert found.box == Box((0, 0), (6, 8))
        assert found.everywhere == ("mean in the module 0 (Gate)",)

    def test_statistics_over_the_image_are_named_and_left_aside(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.InstanceNorm2d(2)).eval()
        found = receptive_field(network, torch.zeros(1, 1, 7, 9), (3, 3))
        assert found.box == Box((2, 2), (4, 4))
        assert found.statistics == ("the module 1 (InstanceNorm2d)",)
        assert found.everywhere == ()

    def test_learned_statistics_are_no_statistics_over_the_image(self) -> None:
        found = receptive_field(nn.Sequential(nn.BatchNorm2d(1)).eval(), torch.zeros(1, 1, 7, 9), (3, 3))
        assert found.statistics == ()

    def test_an_axis_that_is_taken_apart_is_named(self) -> None:
        class Flat(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.flatten(2).flip(2).reshape(x.shape)

        found = receptive_field(Flat().eval(), torch.zeros(1, 1, 4, 5), (0, 0))
        assert found.box == Box((0, 0), (3, 4))
        assert any("view" in step for step in found.everywhere)


class TestErrors:
    def test_a_voxel_outside_the_layer(self) -> None:
        with pytest.raises(BadInput, match="no voxel"):
            receptive_field(vgg16(), torch.zeros(1, 1, 224, 224), (1, 0))

    def test_an_unknown_layer(self) -> None:
        with pytest.raises(BadInput, match="no layer 'conv9'"):
            receptive_size(vgg16(), torch.zeros(1, 1, 224, 224), layer="conv9")

    def test_a_layer_without_voxels(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(4, 2)).eval()
        with pytest.raises(BadInput, match="layer '2' has no voxels"):
            receptive_size(network, torch.zeros(1, 1, 4, 4), layer="2")

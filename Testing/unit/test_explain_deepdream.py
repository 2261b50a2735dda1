"""DeepDream: one step on a linear layer in closed form, and what appears in an image is what the unit looks for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from MLILib.errors import BadInput, Cancelled
from MLILib.explanation.deepdream import deepdream
from MLILib.progress import Progress


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double().eval()


def convolutions(dimensions: int = 2) -> nn.Module:
    torch.manual_seed(dimensions)
    conv = (nn.Conv2d, nn.Conv3d)[dimensions - 2]
    layers = [conv(1, 4, 3, padding=1), nn.LeakyReLU(), conv(4, 5, 3, stride=2, padding=1), nn.LeakyReLU()]
    return nn.Sequential(*layers).double().eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(1, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class TestClosedForm:
    def test_one_step_of_a_linear_unit(self) -> None:
        network, image = linear(), noise(6, 6)
        found = deepdream(network, image, "1", unit=2, steps=1, step_size=0.1, jitter=0)
        weights = network[1].weight[2].detach()  # type: ignore[index, union-attr]
        expected = image + (0.1 * weights / weights.abs().mean()).reshape(1, 1, 6, 6)  # type: ignore[operator, union-attr]
        torch.testing.assert_close(found.image, expected)
        gain = float(0.1 * weights.square().sum() / weights.abs().mean())  # type: ignore[operator, union-attr]
        assert found.after - found.before == pytest.approx(gain)

    def test_one_step_of_a_whole_layer(self) -> None:
        """The mean square of K linear units has the gradient 2 / K W^T (W x + b)."""
        network, image = linear(), noise(6, 6)
        found = deepdream(network, image, "1", steps=1, step_size=0.1, jitter=0)
        layer = network[1]  # type: ignore[index]
        with torch.no_grad():
            gradient = (network(image) @ layer.weight).reshape(1, 1, 6, 6)
        torch.testing.assert_close(found.image, image + 0.1 * gradient / gradient.abs().mean())

    def test_an_edge_detector_dreams_of_its_edge(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 1, (1, 2), bias=False), nn.ReLU()).double().eval()
        with torch.no_grad():
            network[0].weight.copy_(torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2))  # type: ignore[operator, union-attr]
        image = torch.zeros(1, 1, 4, 6, dtype=torch.float64)
        image[..., 3:] = 1.0
        found = deepdream(network, image, "1", unit=0, steps=5, step_size=0.1, jitter=0)
        added = found.image - image
        assert (added[..., 3] > 0).all()
        assert (added[..., 2] < 0).all()
        assert (added[..., [0, 1, 4, 5]] == 0).all()


class TestDream:
    @pytest.mark.parametrize("shape", [(13, 16), (8, 9, 10)])
    @pytest.mark.parametrize("unit", [None, 3])
    @pytest.mark.parametrize("octaves", [1, 3])
    def test_the_layer_answers_more(self, shape: tuple[int, ...], unit: int | None, octaves: int) -> None:
        found = deepdream(convolutions(len(shape)), noise(*shape), "3", unit=unit, octaves=octaves, steps=6)
        assert found.image.shape == (1, 1, *shape)
        assert found.after > found.before

    def test_bounds(self) -> None:
        found = deepdream(convolutions(), noise(12, 12), "3", steps=10, step_size=0.3, bounds=(0.0, 1.0))
        assert found.image.min() >= 0.0
        assert found.image.max() <= 1.0
        assert found.image.max() > 0.999

    def test_sizes_of_octaves_are_multiples(self) -> None:
        seen: list[tuple[int, ...]] = []

        class Watch(nn.Module):
            def forward(self, image: torch.Tensor) -> torch.Tensor:
                seen.append(tuple(image.shape[2:]))
                return image

        network = nn.Sequential(Watch(), convolutions()).eval()
        deepdream(network, noise(32, 24), "1", octaves=3, octave_scale=2.0, multiple=8, steps=1)
        assert list(dict.fromkeys(seen)) == [(32, 24), (8, 8), (16, 16)]

    def test_seed(self) -> None:
        network = convolutions()
        first, same, other = (deepdream(network, noise(12, 12), "3", steps=3, seed=s).image for s in (0, 0, 1))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)

    def test_network_and_image_are_as_before(self) -> None:
        network, image = convolutions(), noise(12, 12)
        weights, given = copy.deepcopy(network.state_dict()), image.clone()
        deepdream(network, image, "3", steps=2)
        assert torch.equal(image, given)
        assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())

    def test_cancel(self) -> None:
        with pytest.raises(Cancelled):
            deepdream(convolutions(), noise(12, 12), "3", progress=Progress(cancelled=lambda: True))


class TestRefused:
    def test_unit(self) -> None:
        with pytest.raises(BadInput, match="from 0 to 4"):
            deepdream(convolutions(), noise(12, 12), "3", unit=5)

    def test_layer(self) -> None:
        with pytest.raises(BadInput, match="0, 1, 2, 3"):
            deepdream(convolutions(), noise(12, 12), "mixed4c")

    def test_network_of_one_size(self) -> None:
        with pytest.raises(BadInput, match="takes no image of 4 x 4"):
            deepdream(linear(), noise(6, 6), "1", octaves=2, octave_scale=1.5)

    def test_silent_unit(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()).double().eval()
        nn.init.constant_(network[0].weight, -1.0)  # type: ignore[arg-type]
        nn.init.constant_(network[0].bias, 0.0)  # type: ignore[arg-type]
        with pytest.raises(BadInput, match="silent"):
            deepdream(network, noise(4, 4), "1", unit=0)

    @pytest.mark.parametrize("setting", [{"steps": 0}, {"step_size": 0.0}, {"octaves": 0}, {"octave_scale": 1.0}])
    def test_numbers(self, setting: dict[str, float]) -> None:
        with pytest.raises(BadInput, match="make no"):
            deepdream(convolutions(), noise(12, 12), "3", **setting)  # type: ignore[arg-type]

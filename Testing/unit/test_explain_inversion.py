"""Inversion of codes: what a code determines is found again, what it leaves open is decided by the prior."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from MLILib.errors import BadInput, Cancelled
from MLILib.explanation.codes import code_of
from MLILib.explanation.hourglass import Hourglass
from MLILib.explanation.inversion import invert, total_variation
from MLILib.progress import Progress


def encoder(dimensions: int = 2) -> nn.Module:
    """Keeps everything: 3 x 3 neighbourhoods seen by 6 channels."""
    torch.manual_seed(1)
    conv = (nn.Conv2d, nn.Conv3d)[dimensions - 2]
    layers = [conv(1, 6, 3, padding=1), nn.LeakyReLU(), nn.Flatten(), nn.Linear(6 * 10**dimensions, 2)]
    return nn.Sequential(*layers).double().eval()


def blob(dimensions: int = 2) -> torch.Tensor:
    """A ball of 3 on a ground of 1."""
    axes = torch.meshgrid(*[torch.arange(10.0, dtype=torch.float64)] * dimensions, indexing="ij")
    inside = torch.stack([(axis - 4.5) ** 2 for axis in axes]).sum(0) < 9
    return (1.0 + 2.0 * inside.double()).reshape(1, 1, *(10,) * dimensions)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


class TestTotalVariation:
    def test_of_a_slope(self) -> None:
        """2 along one axis and 3 along the other: 13 everywhere, and its root."""
        i, j = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
        slope = (2 * i + 3 * j)[None, None].double()
        assert float(total_variation(slope)) == pytest.approx(13.0)
        assert float(total_variation(slope, 1.0)) == pytest.approx(13.0**0.5)

    def test_flat_is_none_and_has_a_gradient(self) -> None:
        flat = torch.ones(1, 1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(total_variation(flat, 1.0), flat)
        assert total_variation(flat).item() == 0.0
        assert torch.isfinite(gradient).all()


class TestInvert:
    @pytest.mark.parametrize("dimensions", [2, 3])
    def test_a_code_that_keeps_everything_gives_the_image_back(self, dimensions: int) -> None:
        network, image = encoder(dimensions), blob(dimensions)
        code = code_of(network, image, "1")
        found = invert(
            network, code, "1", image.shape[1:], center=1.5, spread=1.0, steps=150, variation=0.0, magnitude=0.0
        )
        assert found.error < 1e-3
        assert correlation(found.image, image) > 0.99
        assert found.errors[0] > 100 * found.error

    def test_a_code_that_keeps_the_mean_gives_no_detail_back(self) -> None:
        """Of all images with one mean, the flat one has the least total variation."""
        network = nn.Sequential(nn.AvgPool2d(10), nn.Identity()).double().eval()
        image = blob()
        found = invert(network, code_of(network, image, "0"), "0", (1, 10, 10), steps=300, variation=1.0)
        assert float(found.image.std()) < 0.02 * float(image.std())
        assert float(found.image.mean()) == pytest.approx(float(image.mean()), rel=0.05)

    def test_total_variation_smooths(self) -> None:
        network, image = encoder(), blob() + torch.rand(1, 1, 10, 10, dtype=torch.float64)
        code = code_of(network, image, "1")
        rough, smooth = (
            invert(network, code, "1", (1, 10, 10), steps=80, variation=weight).image for weight in (0.0, 1.0)
        )
        assert total_variation(smooth) < 0.5 * total_variation(rough)

    def test_alpha_norm_keeps_intensities_in_their_range(self) -> None:
        network, image = encoder(), 4 * blob()
        code = code_of(network, image, "1")
        free, bound = (
            invert(network, code, "1", (1, 10, 10), center=4, spread=2, steps=80, variation=0, magnitude=weight).image
            for weight in (0.0, 1.0)
        )
        assert (bound - 4).abs().max() < 0.8 * (free - 4).abs().max()

    @pytest.mark.parametrize(("dimensions", "steps"), [(2, 120), (3, 90)])
    def test_deep_image_prior(self, dimensions: int, steps: int) -> None:
        network, image = encoder(dimensions), blob(dimensions)
        code = code_of(network, image, "1")
        found = invert(network, code, "1", image.shape[1:], prior="deep image prior", center=1.5, steps=steps)
        assert found.error < 0.1
        assert correlation(found.image, image) > 0.8

    def test_image_is_the_best_that_was_found(self) -> None:
        network, image = encoder(), blob()
        code = code_of(network, image, "1")
        found = invert(network, code, "1", (1, 10, 10), steps=20, variation=0, magnitude=0)
        again = (code_of(network, found.image, "1") - code).square().sum() / code.square().sum()
        assert again.item() == pytest.approx(min(found.errors))

    def test_seed(self) -> None:
        network = encoder()
        code = code_of(network, blob(), "1")
        first, same, other = (invert(network, code, "1", (1, 10, 10), steps=3, seed=s).image for s in (0, 0, 1))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)

    def test_network_and_random_state_are_as_before(self) -> None:
        network = encoder()
        state = torch.random.get_rng_state()
        weights = copy.deepcopy(network.state_dict())
        invert(network, code_of(network, blob(), "1"), "1", (1, 10, 10), prior="deep image prior", steps=2)
        assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_cancel(self) -> None:
        network = encoder()
        code = code_of(network, blob(), "1")
        with pytest.raises(Cancelled):
            invert(network, code, "1", (1, 10, 10), progress=Progress(cancelled=lambda: True))


class TestHourglass:
    @pytest.mark.parametrize("shape", [(1, 7, 9), (2, 33, 20), (1, 5, 6, 7), (1, 3, 3), (1, 40)])
    def test_any_size(self, shape: tuple[int, ...]) -> None:
        network = Hourglass(shape, 0)
        assert network(torch.rand(1, network.inputs, *shape[1:])).shape == (1, *shape)


class TestRefused:
    def test_prior(self) -> None:
        with pytest.raises(BadInput, match="total variation, deep image prior"):
            invert(encoder(), torch.ones(1, 2), "1", (1, 10, 10), prior="none")  # type: ignore[arg-type]

    def test_code_of_another_shape(self) -> None:
        with pytest.raises(BadInput, match=r"that of such an image \(1, 6, 10, 10\)"):
            invert(encoder(), torch.ones(1, 6, 9, 9).double(), "1", (1, 10, 10))

    def test_code_of_nothing(self) -> None:
        with pytest.raises(BadInput, match="It is 0"):
            invert(encoder(), torch.zeros(1, 6, 10, 10).double(), "1", (1, 10, 10))

    def test_steps(self) -> None:
        with pytest.raises(BadInput, match="above 0"):
            invert(encoder(), torch.ones(1, 6, 10, 10).double(), "1", (1, 10, 10), steps=0)

    def test_layer(self) -> None:
        with pytest.raises(BadInput, match="0, 1, 2, 3"):
            invert(encoder(), torch.ones(1, 6, 10, 10).double(), "last", (1, 10, 10))

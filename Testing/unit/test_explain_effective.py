"""Effective receptive fields: against a search through all boxes, and against kernels that are known."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from MLILib.errors import BadInput
from MLILib.explanation.effective import effective_field, smallest_box
from MLILib.explanation.receptive import Box, receptive_field


def volume_of_the_smallest(energy: np.ndarray, share: float) -> int:
    """By trying every box."""
    spans = [[(a, b) for a in range(n) for b in range(a + 1, n + 1)] for n in energy.shape]
    volumes = [
        int(np.prod([b - a for a, b in box]))
        for box in itertools.product(*spans)
        if energy[tuple(slice(a, b) for a, b in box)].sum() >= share * energy.sum()
    ]
    return min(volumes)


class TestSmallestBox:
    @pytest.mark.parametrize("shape", [(12,), (8, 9), (5, 6, 4)])
    @pytest.mark.parametrize("share", [0.3, 0.8, 0.95])
    @pytest.mark.parametrize("power", [1, 8])
    def test_no_box_is_smaller(self, shape: tuple[int, ...], share: float, power: int) -> None:
        energy = np.random.default_rng(len(shape) + power).random(shape) ** power
        box = smallest_box(energy, share)
        inside = energy[tuple(slice(low, up + 1) for low, up in zip(box.lower, box.upper, strict=True))]
        assert inside.sum() >= share * energy.sum() * (1 - 1e-9)
        assert inside.size == volume_of_the_smallest(energy, share)

    def test_all_of_it_is_where_there_is_any(self) -> None:
        energy = np.zeros((5, 6, 7))
        energy[1, 2, 3] = energy[3, 2, 5] = 1.0
        assert smallest_box(energy, 1.0) == Box((1, 2, 3), (3, 2, 5))

    def test_of_one_voxel_it_is_the_voxel(self) -> None:
        energy = np.full((4, 4), 1e-4)
        energy[2, 1] = 1.0
        assert smallest_box(energy) == Box((2, 1), (2, 1))

    @pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
    def test_a_share_that_is_none_is_refused(self, share: float) -> None:
        with pytest.raises(BadInput, match="share of"):
            smallest_box(np.ones((2, 2)), share)


class TestEffectiveField:
    def test_the_energy_is_the_squared_kernel(self) -> None:
        network = nn.Sequential(nn.Conv2d(2, 1, 3, padding=1)).double().eval()
        found = effective_field(network, torch.zeros(1, 2, 6, 7, dtype=torch.float64), 1, (3, 4))
        expected = network[0].weight.detach()[0].square().sum(0)
        assert np.allclose(found.energy[2:5, 3:6], (expected / expected.sum()).numpy(), rtol=1e-12, atol=0)
        assert np.count_nonzero(found.energy) == 9
        assert found.share >= 0.95

    def test_equal_layers_see_less_than_they_could(self) -> None:
        # Luo 2016: n layers look like a Gaussian whose width grows with sqrt(n), not with n
        layers = [nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(16)]
        network = nn.Sequential(*layers).double().eval()
        weights = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0]))
        for layer in layers:
            layer.weight.data[0, 0] = weights / 16
        x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
        found = effective_field(network, x, 1, (20, 20))
        assert receptive_field(network, x, (20, 20)).box.size == (33, 33)
        row = np.array([1.0])
        for _ in range(16):
            row = np.convolve(row, [1, 2, 1])
        energy = np.outer(row**2, row**2)
        widths = [w for w in range(17) if energy[16 - w : 17 + w, 16 - w : 17 + w].sum() >= 0.95 * energy.sum()]
        assert found.box.size <= (2 * widths[0] + 1,) * 2
        assert all(low <= 20 <= up for low, up in zip(found.box.lower, found.box.upper, strict=True))

    def test_a_voxel_that_does_not_react_is_said(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU()).eval()
        nn.init.ones_(network[0].weight)
        with pytest.raises(BadInput, match="does not react"):
            effective_field(network, -torch.ones(1, 1, 4, 4), 1, (1, 1))

    def test_several_images_are_refused(self) -> None:
        with pytest.raises(BadInput, match="not to 2"):
            effective_field(nn.Conv2d(1, 1, 1).eval(), torch.zeros(2, 1, 4, 4), 1, (1, 1))

"""Regularisers against closed forms: linear, quadratic and folding fields on anisotropic voxels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from MLILib.registration import regularisers
from MLILib.registration.sampling import identity_grid

SPACING = (2.0, 0.5, 1.5)


def in_mm(shape: tuple[int, ...]) -> torch.Tensor:
    """Positions in mm along the tensor's axes, (d, *shape)."""
    d = len(shape)
    return identity_grid(shape, dtype=torch.float64)[0] * torch.tensor(SPACING[:d]).view(-1, *[1] * d)


def in_voxels(u_mm: torch.Tensor) -> torch.Tensor:
    """A displacement in mm (d, *shape) in voxels, (1, d, *shape)."""
    d = len(u_mm)
    return (u_mm / torch.tensor(SPACING[:d]).view(-1, *[1] * d))[None]


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6)])
class TestClosedForms:
    def test_diffusion_of_a_linear_field_is_the_squared_norm_of_its_matrix(self, shape: tuple[int, ...]) -> None:
        d = len(shape)
        matrix = np.random.default_rng(0).normal(size=(d, d))
        u = in_voxels(torch.einsum("kj,j...->k...", torch.from_numpy(matrix), in_mm(shape)) + 7.0)
        assert regularisers.diffusion(u, SPACING[:d]).item() == pytest.approx((matrix**2).sum())
        assert regularisers.bending_energy(u, SPACING[:d]).item() == pytest.approx(0, abs=1e-20)

    def test_bending_of_a_quadratic_field_is_the_squared_norm_of_its_hessians(self, shape: tuple[int, ...]) -> None:
        d = len(shape)
        hessians = np.random.default_rng(1).normal(size=(d, d, d))
        hessians = hessians + hessians.transpose(0, 2, 1)
        p = in_mm(shape)
        u = in_voxels(0.5 * torch.einsum("kij,i...,j...->k...", torch.from_numpy(hessians), p, p) + p)
        assert regularisers.bending_energy(u, SPACING[:d]).item() == pytest.approx((hessians**2).sum())

    def test_uniform_squeeze_pays_what_it_lacks(self, shape: tuple[int, ...]) -> None:
        d = len(shape)
        u = -0.5 * identity_grid(shape, dtype=torch.float64)
        assert regularisers.jacobian_penalty(u).item() == 0
        assert regularisers.jacobian_penalty(u, 0.75).item() == pytest.approx(0.75 - 0.5**d)
        fold = -identity_grid(shape, dtype=torch.float64)
        fold[:, 0] *= 3.0  # i -> -2 i along one axis
        fold[:, 1:] = 0.0
        assert regularisers.jacobian_penalty(fold).item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    "energy",
    [
        lambda u: regularisers.diffusion(u, SPACING[: u.shape[1]]),
        lambda u: regularisers.bending_energy(u, SPACING[: u.shape[1]]),
        lambda u: regularisers.jacobian_penalty(u, 1.3),
    ],
    ids=["diffusion", "bending_energy", "jacobian_penalty"],
)
class TestEvery:
    def test_gradients(self, energy: Callable[[torch.Tensor], torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(2)
        for shape in ((4, 5), (3, 4, 3)):
            u = torch.randn(2, len(shape), *shape, dtype=torch.float64, generator=generator, requires_grad=True)
            assert torch.autograd.gradcheck(energy, u)

    def test_a_batch_is_its_members(self, energy: Callable[[torch.Tensor], torch.Tensor]) -> None:
        u = torch.randn(3, 3, 4, 5, 6, generator=torch.Generator().manual_seed(3))
        together = energy(u)
        assert together.shape == (3,)
        assert together[1].item() == pytest.approx(energy(u[1:2]).item(), rel=1e-5)

    def test_an_axis_of_one_voxel(self, energy: Callable[[torch.Tensor], torch.Tensor]) -> None:
        u = torch.zeros(1, 3, 1, 4, 5)
        assert torch.isfinite(energy(u)).all()


class TestBadSpacing:
    def test_is_refused(self) -> None:
        with pytest.raises(ValueError, match="3 positive spacings"):
            regularisers.diffusion(torch.zeros(1, 3, 4, 4, 4), (1.0, 1.0))
        with pytest.raises(ValueError, match="2 positive spacings"):
            regularisers.bending_energy(torch.zeros(1, 2, 4, 4), (1.0, 0.0))

"""Inverses: there and back is where one was, and what does not invert is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import random_image

from MLILib.geometry import Grid
from MLILib.registration import conversion, fields, inverse, jacobian, sampling
from MLILib.registration.sampling import identity_grid


def bump(shape: tuple[int, ...], size: float) -> torch.Tensor:
    """Each component a product of sin^2 bumps, `size` voxels at its peak, still at the border; float64."""
    out = torch.full((1, len(shape), *shape), size, dtype=torch.float64)
    for axis, n in enumerate(shape):
        wave = torch.sin(math.pi * torch.arange(n, dtype=torch.float64) / (n - 1)) ** 2
        out = out * wave.view([-1 if a == axis else 1 for a in range(len(shape))])
    return out


class TestInvert:
    @pytest.mark.parametrize("shape", [(31, 33), (17, 18, 19)])
    def test_there_and_back(self, shape: tuple[int, ...]) -> None:
        u = bump(shape, 2.0)
        found = inverse.invert(u, tolerance=1e-6)
        assert found.converged
        assert found.displacement.abs().max() > 1.8
        assert fields.compose(found.displacement, u).abs().max() < 1e-5

    def test_of_a_shift_is_the_shift_back_at_once(self) -> None:
        u = torch.full((1, 2, 6, 7), 1.25)
        found = inverse.invert(u)
        assert torch.allclose(found.displacement, -u)
        assert found.iterations == 1

    def test_stretching_by_more_than_two(self) -> None:
        """i -> 3 i about the middle: the plain iteration diverges, the true inverse is i / 3."""
        where = identity_grid((21, 21), dtype=torch.float64) - 10
        found = inverse.invert(2 * where, iterations=200, tolerance=1e-4)
        assert found.converged
        assert torch.allclose(found.displacement, -2 / 3 * where, atol=1e-3)

    @pytest.mark.parametrize("shape", [(40, 44), (20, 22, 24)])
    def test_what_nearly_folds_is_inverted(self, shape: tuple[int, ...]) -> None:
        """Volumes shrink to a thirtieth at one place: plain iteration is ten times as far off after as many steps."""
        for seed in range(3):
            noise = torch.randn(1, len(shape), *shape, generator=torch.Generator().manual_seed(seed))
            u = fields.smooth(noise.double(), 3.0)
            low, high = 0.0, 100.0
            for _ in range(30):
                middle = (low + high) / 2
                fits = float(jacobian.determinant(middle * u).min()) > 1 / 30
                low, high = (middle, high) if fits else (low, middle)
            assert float(inverse.invert(low * u).residual) < 0.02

    def test_a_fold_is_told(self) -> None:
        """Along a line i -> -i about the middle, still at its ends: each place between is reached three times."""
        u = torch.zeros(1, 2, 21, 5)
        u[:, 0] = (2.0 * (10 - torch.arange(21.0)) * (torch.arange(21) % 20 != 0)).view(1, 21, 1)
        grid = Grid((5, 21), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
        found = inverse.invert(u)
        mean_mm, max_mm = inverse.residual_mm(u, found.displacement, grid)
        assert max_mm > 5
        assert mean_mm > 1

    def test_the_residual_is_that_of_the_equation(self) -> None:
        u = bump((20, 20), 5.0)
        found = inverse.invert(u, iterations=2)
        assert not found.converged
        off = found.displacement + sampling.warp(u, found.displacement)
        assert off.norm(dim=1).max().item() == pytest.approx(found.residual.item())
        assert found.residual.item() > 0.01

    def test_a_batch_and_a_first_guess(self) -> None:
        u = torch.cat([bump((20, 20), 1.0), bump((20, 20), -2.5)])
        found = inverse.invert(u, tolerance=1e-8)
        alone = inverse.invert(u[1:], tolerance=1e-8)
        assert torch.allclose(found.displacement[1:], alone.displacement, atol=1e-6)
        again = inverse.invert(u, tolerance=1e-7, start=found.displacement)
        assert again.iterations == 0
        assert torch.equal(again.displacement, found.displacement)


class TestInverseTransform:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_points_come_back(self, dims: int) -> None:
        rng = np.random.default_rng(dims)
        image = random_image(rng, dims, 24, 30)
        grid = Grid.of(image)
        linear = np.eye(dims + 1)
        linear[:dims, :dims] += rng.normal(0, 0.1, (dims, dims))
        linear[:dims, dims] = rng.normal(0, 20, dims)
        u = bump(grid.shape, 2.0)
        there = conversion.to_sitk(linear, u, grid)
        back = inverse.inverse_transform(linear, u, grid)
        round_trip = sitk.CompositeTransform([back.transform, there])
        missed = np.linalg.norm(
            sitk.GetArrayFromImage(conversion.displacement_image(round_trip, grid, sitk.sitkVectorFloat64)), axis=-1
        )
        assert back.max_mm == pytest.approx(missed.max(), rel=1e-6)
        assert back.mean_mm == pytest.approx(missed.mean(), rel=1e-6)
        moved = sitk.GetArrayFromImage(conversion.displacement_image(there, grid))
        assert np.linalg.norm(moved, axis=-1).max() > 3
        assert back.max_mm < 0.1 * max(grid.spacing)  # linear interpolation of the inverse between voxel centres
        assert back.mean_mm < 0.01 * max(grid.spacing)

    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("most", [0, 2000])
    def test_voxels_that_are_led_out_of_the_grid_come_back(self, dims: int, most: int) -> None:
        """A turn, a stretch and a shift by some voxels, as a displacement: at every border it leads out of the grid."""
        grid = Grid.of(random_image(np.random.default_rng(dims), dims, 18, 24))
        map_ = np.eye(dims) * 1.4
        map_[0, 1], map_[1, 0] = 0.05, -0.05
        centred = identity_grid(grid.shape, dtype=torch.float64) - torch.tensor(grid.shape).view(-1, *[1] * dims) / 2
        u = torch.einsum("ij,nj...->ni...", torch.from_numpy(map_ - np.eye(dims)), centred) + 1.0
        there = conversion.to_sitk(None, u, grid)
        back = inverse.inverse_transform(None, u, grid, most=most)
        corners = [there.TransformPoint(p) for p in grid.corners().tolist()]
        index = np.linalg.solve(grid.matrix(), np.c_[corners, np.ones(2**dims)].T)[:dims].T
        outside = (index < -1) | (index > np.array(grid.size))
        assert outside.any(axis=1).all(), "a test of nothing otherwise"
        missed = [
            math.dist(back.transform.TransformPoint(there.TransformPoint(p)), p)
            for i in np.ndindex(*grid.size)
            for p in [(grid.matrix() @ (*i, 1))[:dims].tolist()]
        ]
        # The slope jumps at the border by 1 - 1 / 1.4: interpolated, a quarter of that a voxel, along each axis.
        assert max(missed) < (1 if most == 0 else 2) * math.sqrt(dims) * (1 - 1 / 1.4) / 4 * max(grid.spacing)
        assert back.max_mm == pytest.approx(max(missed), rel=1e-5)
        assert back.mean_mm == pytest.approx(np.mean(missed), rel=1e-5)

    def test_a_field_beyond_reason_does_not_take_all_memory(self) -> None:
        grid = Grid((10, 12), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
        back = inverse.inverse_transform(None, torch.full((1, 2, 12, 10), 1e6), grid)
        field = sitk.DisplacementFieldTransform(back.transform).GetDisplacementField()
        assert field.GetSize() == (15, 18)  # half as many voxels on the side that it leads to
        assert back.max_mm == math.inf

    def test_linear_alone_is_exact(self) -> None:
        grid = Grid.of(random_image(np.random.default_rng(0), 3))
        linear = np.eye(4)
        linear[:3] += np.random.default_rng(1).normal(0, 0.2, (3, 4))
        back = inverse.inverse_transform(linear, None, grid)
        assert np.allclose(conversion.matrix_of(back.transform) @ linear, np.eye(4), atol=1e-9)
        assert back.max_mm == 0
        assert np.array_equal(conversion.matrix_of(inverse.inverse_transform(None, None, grid).transform), np.eye(4))

    def test_a_velocitys_inverse_is_the_negative_velocitys_exponential(self) -> None:
        grid = Grid((33, 33), (2.0, 2.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
        v = bump((33, 33), 3.0)
        u = fields.exponential(v, 8)
        back = inverse.inverse_transform(None, u, grid, v)
        _, found = conversion.from_sitk(back.transform, grid, torch.float64)
        assert torch.allclose(found, fields.exponential(-v, 8), atol=0.03)
        assert back.max_mm < 0.1

    def test_residual_is_in_mm_inside_the_grid(self) -> None:
        """u shifts by one voxel along z (2 mm), the given inverse by none: off by 2 mm everywhere."""
        grid = Grid((5, 6, 7), (0.5, 1.0, 2.0), (0.0,) * 3, (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
        u = torch.zeros(1, 3, 7, 6, 5)
        u[:, 0] = 1.0
        assert inverse.residual_mm(u, torch.zeros_like(u), grid) == (2.0, 2.0)
        assert inverse.residual_mm(u, -u, grid) == (0.0, 0.0)
        assert inverse.residual_mm(20 * u, u, grid) == (math.inf, math.inf)

    def test_is_simpleitks_inverse_of_the_field(self) -> None:
        grid = Grid((24, 24, 24), (1.0, 1.0, 1.0), (0.0,) * 3, (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
        u = bump(grid.shape, 2.0)
        theirs = sitk.InvertDisplacementField(
            conversion.to_lps_mm(u, grid),
            maximumNumberOfIterations=100,
            maxErrorToleranceThreshold=1e-5,
            meanErrorToleranceThreshold=1e-7,
        )
        ours = inverse.invert(u, tolerance=1e-5).displacement
        assert torch.allclose(conversion.to_voxels(theirs, grid, torch.float64), ours, atol=0.05)

"""Coarser grids and images keep their region, straight lines and edges; grids along another image's axes cover it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blobs import grid, linear
from grids import random_image

from MLILib.geometry import Grid
from MLILib.registration.pyramid import aligned, coarser, finest_spacing, reduced, spacings


def outer_corners(one: Grid) -> np.ndarray:
    """LPS positions of the corners of the region that the voxels fill, sorted."""
    d = one.dimension
    ends = [(-0.5, n - 0.5) for n in one.size]
    index = np.stack(np.meshgrid(*ends, indexing="ij")).reshape(d, -1)
    return (one.matrix()[:d, :d] @ index).T + one.matrix()[:d, d]


class TestCoarser:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("seed", range(4))
    def test_the_region_stays(self, dims: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        fine = Grid.of(random_image(rng, dims))
        coarse = coarser(fine, 2.2 * max(fine.spacing))
        assert all(a < b for a, b in zip(coarse.size, fine.size, strict=True))
        np.testing.assert_allclose(outer_corners(coarse), outer_corners(fine), atol=1e-9)

    def test_long_voxels_and_single_slices_stay(self) -> None:
        fine = grid((40, 30, 1), (1.0, 4.0, 5.0))
        assert coarser(fine, 2.0).size == (20, 30, 1)
        assert coarser(fine, 1.0) == fine

    def test_as_fine_as_a_number_of_voxels_allows(self) -> None:
        fine = grid((40, 40, 40), (1.0, 1.0, 1.0))
        assert finest_spacing(fine, 64_000) == 1.0
        assert 6_000 < np.prod(coarser(fine, finest_spacing(fine, 8_000)).size) <= 8_000

    def test_levels_halve_as_long_as_there_is_room(self) -> None:
        assert spacings(grid((64, 64), (1.0, 1.0)), 1.0, 3) == [4.0, 2.0, 1.0]
        assert spacings(grid((20, 20), (1.0, 1.0)), 1.0, 3) == [2.0, 1.0]
        assert spacings(grid((6, 6), (1.0, 1.0)), 1.0, 3) == [1.0]


class TestReduced:
    @pytest.mark.parametrize("shape", [(10, 12), (7, 9, 11)])
    def test_a_ramp_stays_one_where_the_border_is_out_of_reach(self, shape: tuple[int, ...]) -> None:
        old = tuple(3 * n for n in shape)
        image = sum(
            (k + 1.0) * torch.arange(n, dtype=torch.float64).view(*[1] * k, -1, *[1] * (len(old) - k - 1))
            for k, n in enumerate(old)
        )
        found = reduced(image[None, None], shape)[0, 0]
        # A coarse voxel's centre is that of its three fine ones.
        expected = image[tuple(slice(1, None, 3) for _ in shape)]
        inner = (slice(2, -2),) * len(shape)
        torch.testing.assert_close(found[inner], expected[inner], rtol=0, atol=1e-9)

    def test_a_constant_stays_one_up_to_the_border(self) -> None:
        torch.testing.assert_close(reduced(torch.full((1, 2, 31, 17), 3.0), (11, 17)), torch.full((1, 2, 11, 17), 3.0))

    def test_an_edge_stays_in_its_place(self) -> None:
        image = torch.zeros(1, 1, 8, 40)
        image[..., 20:] = 1
        found = reduced(image, (8, 10))[0, 0, 0]
        torch.testing.assert_close(found + found.flip(0), torch.ones(10))
        assert found[3] < 0.02
        assert found[6] > 0.98

    def test_what_the_coarse_voxels_cannot_hold_is_gone(self) -> None:
        stripes = torch.tensor([1.0, -1.0]).repeat(24).expand(1, 1, 8, 48)
        assert reduced(stripes, (8, 16))[..., 1:-1].abs().max() < 0.05


class TestAligned:
    def test_nearly_the_same_axes_are_left(self) -> None:
        moving, fixed = grid((20, 22, 24), (1.0, 1.1, 1.2), turn=8), grid((30, 30, 30), (1.1, 1.0, 1.0))
        assert aligned(moving, fixed, np.eye(4)) is moving

    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("dims", [2, 3])
    def test_axes_and_voxels_follow_the_fixed_ones(self, dims: int, flip: bool) -> None:
        fixed = grid((30, 24, 20)[:dims], (1.0, 1.5, 2.0)[:dims], turn=50, flip=flip)
        moving = grid((20, 22, 24)[:dims], (1.2, 1.0, 0.9)[:dims])
        map_ = linear(dims, 20, (3.0, -2.0, 1.0)[:dims], 1.25)
        found = aligned(moving, fixed, map_)
        axes = map_[:dims, :dims] @ fixed.matrix()[:dims, :dims]  # mm in the moving image for a fixed voxel
        np.testing.assert_allclose(found.matrix()[:dims, :dims], axes, atol=1e-9)

    def test_it_covers_the_moving_image(self) -> None:
        fixed, moving = grid((40, 40), (1.0, 1.0), turn=40), grid((20, 30), (1.0, 1.0))
        found = aligned(moving, fixed, np.eye(3))
        index = np.linalg.solve(found.matrix(), np.vstack([outer_corners(moving).T, np.ones(4)]))[:2]
        assert (index >= -0.5 - 1e-9).all()
        assert (index <= np.array(found.size)[:, None] - 0.5 + 1e-9).all()

    def test_of_a_large_image_it_takes_what_is_near(self) -> None:
        fixed, moving = grid((20, 20, 20), (1.0, 1.0, 1.0), turn=90), grid((200, 200, 200), (1.0, 1.0, 1.0))
        assert max(aligned(moving, fixed, np.eye(4)).size) <= 41

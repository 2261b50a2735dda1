"""Free-form deformations against ITK's B-spline transform and the properties of cubic B-splines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grids import random_image
from scipy.interpolate import BSpline

from MLILib.geometry import Grid
from MLILib.registration import bspline, conversion
from MLILib.registration.sampling import identity_grid

SPACING = (4.0, 3.0, 2.5)


class TestBasis:
    @pytest.mark.parametrize(("n", "spacing"), [(13, 4.0), (10, 3.0), (7, 2.5), (5, 8.0), (1, 4.0)])
    def test_is_scipys(self, n: int, spacing: float) -> None:
        weights = bspline.basis(n, spacing)
        size = weights.shape[1]
        knots = np.arange(-3.0, size + 1)
        expected = BSpline(knots, np.eye(size), 3)(np.arange(n) / spacing)
        assert np.allclose(weights.numpy(), expected, atol=1e-12)
        assert torch.allclose(weights.sum(1), torch.ones(n, dtype=torch.float64))


class TestEvaluate:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_is_itks_transform(self, dims: int) -> None:
        rng = np.random.default_rng(dims)
        image = random_image(rng, dims, 12, 20)
        grid = Grid.of(image)
        spacing = SPACING[:dims]
        control = torch.from_numpy(rng.normal(0, 2, (1, dims, *bspline.control_shape(grid.shape, spacing))))
        theirs = bspline.to_bspline_transform(control, grid, spacing)
        u = bspline.evaluate(control, grid.shape, spacing)
        _, sampled = conversion.from_sitk(theirs, grid, torch.float64)
        inner = (..., *[slice(1, -1)] * dims)  # ITK may find the outermost voxels just outside its domain
        assert u.abs().max() > 1
        assert torch.allclose(u[inner], sampled[inner], atol=1e-9)

    def test_control_points_on_a_plane_make_a_linear_field(self) -> None:
        """Cubic B-splines reproduce linear functions."""
        shape = (9, 13, 11)
        places = identity_grid(bspline.control_shape(shape, SPACING), dtype=torch.float64) - 1
        places = places * torch.tensor(SPACING).double().view(-1, 1, 1, 1)
        matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3)))
        u = bspline.evaluate(torch.einsum("kj,nj...->nk...", matrix, places), shape, SPACING)
        expected = torch.einsum("kj,nj...->nk...", matrix, identity_grid(shape, dtype=torch.float64))
        assert torch.allclose(u, expected, atol=1e-12)

    def test_gradients(self) -> None:
        shape = (5, 6)
        control = torch.randn(2, 2, *bspline.control_shape(shape, (3.0, 4.0)), dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda c: bspline.evaluate(c, shape, (3.0, 4.0)), control.requires_grad_())

    def test_what_does_not_fit_is_refused(self) -> None:
        with pytest.raises(ValueError, match="needed are"):
            bspline.evaluate(torch.zeros(1, 2, 4, 4), (16, 16), (4.0, 4.0))
        with pytest.raises(ValueError, match="positive"):
            bspline.control_shape((16, 16), (0.0, 4.0))


class TestFit:
    def test_a_spline_comes_back(self) -> None:
        shape = (20, 17)
        spacing = (4.0, 3.0)
        control = torch.randn(1, 2, *bspline.control_shape(shape, spacing), dtype=torch.float64)
        u = bspline.evaluate(control, shape, spacing)
        assert torch.allclose(bspline.evaluate(bspline.fit(u, spacing), shape, spacing), u, atol=1e-9)

    def test_a_finer_grid_holds_the_coarser_one(self) -> None:
        shape = (21, 21)
        control = torch.randn(1, 2, *bspline.control_shape(shape, (8.0, 8.0)), dtype=torch.float64)
        u = bspline.evaluate(control, shape, (8.0, 8.0))
        assert torch.allclose(bspline.evaluate(bspline.fit(u, (4.0, 4.0)), shape, (4.0, 4.0)), u, atol=1e-9)

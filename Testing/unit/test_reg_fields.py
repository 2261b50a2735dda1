"""Composition, exponential, resizing and smoothing of fields against closed forms, scipy and SimpleITK."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import SimpleITK as sitk
import torch
from grids import random_image

from MLILib.geometry import Grid
from MLILib.registration import fields
from MLILib.registration.conversion import to_lps_mm, to_voxels
from MLILib.registration.sampling import identity_grid, index_matrix


def wave(n: int) -> torch.Tensor:
    """A swirl in the unit square, still at its border, on n x n voxels: some 8 % of the width, float64."""
    x = torch.arange(n, dtype=torch.float64) / (n - 1)
    bump = torch.sin(math.pi * x) ** 2
    swirl = torch.sin(2 * math.pi * x)
    return 0.08 * (n - 1) * torch.stack([bump[:, None] * swirl, -swirl[:, None] * bump])[None]


def affine_field(matrix: np.ndarray, shape: tuple[int, ...], middle: float) -> torch.Tensor:
    """The field matrix @ (i - middle)."""
    where = identity_grid(shape, dtype=torch.float64) - middle
    return torch.einsum("jk,nk...->nj...", torch.from_numpy(matrix), where)


class TestCompose:
    @pytest.mark.parametrize("shape", [(9, 9), (9, 9, 9)])
    def test_linear_maps_multiply(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        d = len(shape)
        a, b = rng.normal(0, 0.05, (2, d, d))
        both = (np.eye(d) + b) @ (np.eye(d) + a) - np.eye(d)
        w = fields.compose(affine_field(a, shape, 4.0), affine_field(b, shape, 4.0))
        inner = (..., *[slice(2, -2)] * d)
        assert torch.allclose(w[inner], affine_field(both, shape, 4.0)[inner], atol=1e-12)

    def test_first_comes_first(self) -> None:
        shift = torch.zeros(1, 2, 8, 8)
        shift[:, 0] = 2.0
        late = torch.zeros(1, 2, 8, 8)
        late[0, 1, 4] = 1.0  # only row 4 moves along x
        w = fields.compose(shift, late)
        assert w[0, 1, 2].eq(1).all()
        assert w[0, 1, 4].eq(0).all()


class TestExponential:
    @pytest.mark.parametrize("shape", [(15, 15), (15, 15, 15)])
    def test_of_a_linear_field_is_the_matrix_exponential(self, shape: tuple[int, ...]) -> None:
        d = len(shape)
        generator = np.random.default_rng(1).normal(0, 0.08, (d, d))
        expected = affine_field(scipy.linalg.expm(generator) - np.eye(d), shape, 7.0)
        inner = (..., *[slice(4, -4)] * d)
        errors = [
            (fields.exponential(affine_field(generator, shape, 7.0), steps) - expected)[inner].abs().max()
            for steps in (6, 9)
        ]
        assert errors[0] < 2e-3
        assert errors[1] < errors[0] / 6  # first order in the length of the first step

    def test_negative_velocity_is_the_inverse(self) -> None:
        left = []
        for n in (25, 49):
            v = wave(n)
            there_and_back = fields.compose(fields.exponential(v, 8), fields.exponential(-v, 8))
            assert fields.exponential(v, 8).abs().max() > 0.06 * n
            left.append(there_and_back.abs().max() / n)
        assert left[0] < 0.05 * 0.08
        assert left[1] < left[0] / 2.5  # linear interpolation: second order in the voxel

    def test_gradients(self) -> None:
        generator = torch.Generator().manual_seed(0)
        # no position at a voxel centre, where interpolation has a kink
        v = (0.3 + 0.1 * torch.rand(1, 2, 5, 6, dtype=torch.float64, generator=generator)).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: fields.exponential(x, 3), v)


class TestResize:
    @pytest.mark.parametrize("align", ["centres", "edges"])
    def test_a_linear_field_stays_the_same_map(self, align: str) -> None:
        """The displacement as a share of the region is what it was."""
        old, new = (8, 10, 6), (15, 7, 12)
        matrix = np.random.default_rng(2).normal(0, 0.1, (3, 3))
        ratios = [(b - 1) / (a - 1) if align == "centres" else b / a for a, b in zip(old, new, strict=True)]
        shift = 0.0 if align == "centres" else 0.5
        expected = np.diag(ratios) @ matrix @ np.diag(1 / np.array(ratios))
        where = identity_grid(new, dtype=torch.float64) + shift
        whole = torch.einsum("jk,nk...->nj...", torch.from_numpy(expected), where)
        u = torch.einsum("jk,nk...->nj...", torch.from_numpy(matrix), identity_grid(old, dtype=torch.float64) + shift)
        resized = fields.resize(u, new, align=align)
        inner = (..., *[slice(2, -2)] * 3) if align == "edges" else ...
        assert torch.allclose(resized[inner], whole[inner], atol=1e-12)

    def test_unknown_alignment(self) -> None:
        with pytest.raises(ValueError, match="corners"):
            fields.resize(torch.zeros(1, 2, 4, 4), (5, 5), align="corners")


class TestCarry:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_the_displacement_in_mm_is_the_same(self, dims: int) -> None:
        rng = np.random.default_rng(3)
        old, new = random_image(rng, dims), random_image(rng, dims)
        middle = old.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in old.GetSize()])
        here = new.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in new.GetSize()])
        new.SetOrigin([o + m - h for o, m, h in zip(new.GetOrigin(), middle, here, strict=True)])
        old_grid, new_grid = Grid.of(old), Grid.of(new)
        u = torch.from_numpy(rng.normal(0, 1, (1, dims, *old_grid.shape)))
        carried = fields.carry(u, index_matrix(new_grid, old_grid), new_grid.shape)
        theirs = sitk.Resample(to_lps_mm(u, old_grid), new, sitk.Transform(dims, sitk.sitkIdentity), sitk.sitkLinear)
        ours = to_lps_mm(carried, new_grid)
        inside = sitk.GetArrayFromImage(sitk.Resample(0 * old + 1, new)) > 0
        assert inside.mean() > 0.2
        difference = sitk.GetArrayFromImage(ours - theirs)[inside]
        assert np.abs(difference).max() < 1e-9
        assert torch.allclose(to_voxels(ours, new_grid, dtype=torch.float64), carried, atol=1e-12)


class TestSmooth:
    @pytest.mark.parametrize("shape", [(20, 17), (12, 20, 17)])
    def test_is_scipy_gaussian(self, shape: tuple[int, ...]) -> None:
        x = torch.from_numpy(np.random.default_rng(4).normal(size=(2, 3, *shape)))
        sigma = (0.7, 2.0, 5.3)[: len(shape)]
        expected = scipy.ndimage.gaussian_filter(
            x.numpy(), (0, 0, *sigma), mode="nearest", radius=[0, 0, *[math.ceil(4 * s) for s in sigma]]
        )
        assert np.allclose(fields.smooth(x, sigma).numpy(), expected, atol=1e-12)

    def test_zero_leaves_an_axis(self) -> None:
        x = torch.rand(1, 1, 5, 6)
        assert torch.equal(fields.smooth(x, 0.0), x)
        constant_rows = torch.arange(5.0).view(1, 1, 5, 1).expand(1, 1, 5, 6)
        assert torch.allclose(fields.smooth(constant_rows, (0.0, 2.0)), constant_rows, atol=1e-6)

    def test_wrong_sigma(self) -> None:
        with pytest.raises(ValueError, match="2 standard deviations"):
            fields.smooth(torch.zeros(1, 1, 4, 4), (1.0, 1.0, 1.0))

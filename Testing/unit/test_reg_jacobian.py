"""Jacobian determinants against closed forms and SimpleITK; their statistics against a plain reading of the text."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk
import torch
from grids import random_image
from scipy.spatial.transform import Rotation

from MLILib.geometry import Grid
from MLILib.registration import conversion, fields, jacobian
from MLILib.registration.sampling import identity_grid


def field_of(inner: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """The displacement of the map i -> inner i, float64."""
    where = identity_grid(shape, dtype=torch.float64)
    return torch.einsum("jk,nk...->nj...", torch.from_numpy(inner - np.eye(len(shape))), where)


def random_field(shape: tuple[int, ...], size: float = 0.8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * fields.smooth(torch.randn(1, len(shape), *shape, dtype=torch.float64, generator=generator), 1.0)


class TestDeterminant:
    @pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6)])
    def test_uniform_scale(self, shape: tuple[int, ...]) -> None:
        det = jacobian.determinant(field_of(1.2 * np.eye(len(shape)), shape))
        assert det.shape == (1, 1, *shape)
        assert torch.allclose(det, torch.full_like(det, 1.2 ** len(shape)), atol=1e-12)

    @pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6)])
    def test_rotation_and_mirror(self, shape: tuple[int, ...]) -> None:
        turn = Rotation.from_rotvec([0.0, 0.0, 0.8] if len(shape) == 2 else [0.3, 0.5, -0.4]).as_matrix()
        turn = turn[: len(shape), : len(shape)]
        assert torch.allclose(jacobian.determinant(field_of(turn, shape)), torch.tensor(1.0).double(), atol=1e-12)
        mirror = np.diag([-1.0, *[1.0] * (len(shape) - 1)])
        assert torch.allclose(jacobian.determinant(field_of(mirror, shape)), torch.tensor(-1.0).double(), atol=1e-12)

    @pytest.mark.parametrize("shape", [(7, 8), (7, 8, 9)])
    def test_is_numpys_gradient(self, shape: tuple[int, ...]) -> None:
        u = random_field(shape)
        d = len(shape)
        slopes = np.array([np.gradient(u[0, k].numpy()) for k in range(d)])
        expected = np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(d))
        assert np.allclose(jacobian.determinant(u)[0, 0].numpy(), expected, atol=1e-12)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_is_simpleitks_within_the_border(self, dims: int) -> None:
        """ITK's filter knows the spacing, not the direction, of its field."""
        shape = (9, 10, 11)[:dims]
        u = random_field(shape, seed=1)
        spacing = (0.7, 1.3, 2.1)[:dims]
        grid = Grid(shape[::-1], spacing, (0.0,) * dims, tuple(np.eye(dims).ravel()))
        theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(conversion.to_lps_mm(u, grid)))
        inner = (slice(1, -1),) * dims
        assert theirs[inner].std() > 0.1
        assert np.allclose(jacobian.determinant(u)[0, 0].numpy()[inner], theirs[inner], atol=1e-5)

    def test_an_axis_of_one_voxel_is_still(self) -> None:
        u = torch.zeros(1, 3, 1, 5, 6)
        u[:, 2] = 0.5 * torch.arange(6.0)
        assert torch.allclose(jacobian.determinant(u), torch.tensor(1.5))

    def test_a_batch_and_the_linear_part(self) -> None:
        u = torch.cat([random_field((5, 6, 7)), random_field((5, 6, 7), seed=2)])
        linear = np.eye(4)
        linear[:3, :3] = np.diag([2.0, 3.0, 0.5]) @ Rotation.from_rotvec([0.1, 0.2, 0.3]).as_matrix()
        together = jacobian.determinant(u, linear)
        assert torch.allclose(together[1:], 3 * jacobian.determinant(u[1:]))

    def test_gradients(self) -> None:
        assert torch.autograd.gradcheck(jacobian.determinant, random_field((4, 5)).requires_grad_())


class TestOfTransform:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_is_itks_own_jacobian(self, dims: int) -> None:
        """On an oblique grid, the determinant of finite differences of T along x, y, z in mm."""
        rng = np.random.default_rng(4)
        image = random_image(rng, dims, 12, 16)
        grid = Grid.of(image)
        linear = np.eye(dims + 1)
        linear[:dims, :dims] += rng.normal(0, 0.2, (dims, dims))
        u = fields.smooth(torch.from_numpy(rng.normal(0, 3, (1, dims, *grid.shape))), 2.0)
        transform = conversion.to_sitk(linear, u, grid)
        det = jacobian.of_transform(transform, grid)
        axes = np.reshape(grid.direction, (dims, dims)) * np.array(grid.spacing)
        for index in rng.integers(2, np.array(grid.size) - 2, (10, dims)):
            place = np.array(image.TransformIndexToPhysicalPoint(index.tolist()))
            columns = [
                np.subtract(
                    transform.TransformPoint((place + step).tolist()), transform.TransformPoint((place - step).tolist())
                )
                / 2
                for step in axes.T
            ]
            expected = np.linalg.det(np.array(columns).T @ np.linalg.inv(axes))
            assert float(det[(0, 0, *index[::-1])]) == pytest.approx(expected, rel=1e-4)

    def test_linear(self) -> None:
        grid = Grid.of(sitk.Image(4, 5, 6, sitk.sitkUInt8))
        det = jacobian.of_transform(conversion.to_sitk(np.diag([2.0, 1.0, 1.5, 1.0]), None, grid), grid)
        assert det.shape == (1, 1, 6, 5, 4)
        assert torch.allclose(det, torch.tensor(3.0))


class TestStatistics:
    def test_uniform_scale(self) -> None:
        found = jacobian.statistics(jacobian.determinant(field_of(1.1 * np.eye(3), (6, 6, 6))))
        assert found["min"] == pytest.approx(1.331)
        assert found["max"] == pytest.approx(1.331)
        assert found["folded"] == 0
        assert found["sd_log"] == pytest.approx(0, abs=1e-9)
        assert found["sd_log_learn2reg"] == pytest.approx(0, abs=1e-9)

    def test_folds_are_counted_and_left_out_of_the_logarithm(self) -> None:
        det = torch.tensor([[1.0, 2.0, 4.0, 0.0, -1.0, 1.0, 2.0, 4.0]]).view(1, 1, 2, 4)
        found = jacobian.statistics(det)
        assert found["folded"] == pytest.approx(0.25)
        assert found["min"] == -1
        assert found["max"] == 4
        assert found["sd_log"] == pytest.approx(np.log(2) * np.sqrt(2 / 3))
        assert found["sd_log_learn2reg"] is None  # nothing is left within 2 voxels of the border

    def test_learn2reg_as_the_challenge_computes_it(self) -> None:
        shape = (10, 11, 12)
        u = random_field(shape, 6.0, seed=5)
        kernel = np.array([-0.5, 0.0, 0.5])
        slopes = np.array(
            [
                [scipy.ndimage.correlate1d(u[0, k].numpy(), kernel, axis=j, mode="constant") for j in range(3)]
                for k in range(3)
            ]
        )
        det = np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(3))[2:-2, 2:-2, 2:-2]
        assert (det <= 0).any()
        logs = np.log((det + 3).clip(1e-9, 1e9))
        ours = jacobian.statistics(jacobian.determinant(u))
        assert ours["sd_log_learn2reg"] == pytest.approx(logs.std(), rel=1e-9)
        mask = np.random.default_rng(6).random(shape) > 0.5
        ours = jacobian.statistics(jacobian.determinant(u), torch.from_numpy(mask))
        assert ours["sd_log_learn2reg"] == pytest.approx(logs[mask[2:-2, 2:-2, 2:-2]].std(), rel=1e-9)

    def test_inside_a_mask_only(self) -> None:
        det = torch.ones(1, 1, 6, 6)
        det[..., 0] = -5
        mask = torch.ones(6, 6)
        mask[:, 0] = 0
        assert jacobian.statistics(det, mask)["folded"] == 0
        assert jacobian.statistics(det, mask)["min"] == 1
        assert jacobian.statistics(det, 0 * mask)["folded"] is None

    def test_nothing_but_folds(self) -> None:
        found = jacobian.statistics(torch.full((1, 1, 3, 3), -1.0))
        assert found["folded"] == 1
        assert found["sd_log"] is None

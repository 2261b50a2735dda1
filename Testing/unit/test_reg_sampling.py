"""Index matrices and warps agree with SimpleITK on awkward grids."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk
import torch
from grids import place, random_image

from MLILib.geometry import Grid, from_zyx, to_zyx
from MLILib.registration import sampling


def random_linear(rng: np.random.Generator, fixed: sitk.Image, moving: sitk.Image) -> np.ndarray:
    """An affine map in LPS mm that brings the fixed image's middle near the moving image's."""
    d = fixed.GetDimension()
    middles = [
        np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
        for image in (fixed, moving)
    ]
    out = np.eye(d + 1)
    out[:d, :d] += rng.normal(0, 0.15, (d, d))
    out[:d, d] = middles[1] + rng.normal(0, 2, d) - out[:d, :d] @ middles[0]
    return out


def affine(matrix: np.ndarray) -> sitk.AffineTransform:
    d = len(matrix) - 1
    out = sitk.AffineTransform(d)
    out.SetMatrix(matrix[:d, :d].ravel().tolist())
    out.SetTranslation(matrix[:d, d].tolist())
    return out


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("seed", range(4))
class TestAgainstSimpleItk:
    def test_linear_interpolation(self, dims: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        fixed, moving = random_image(rng, dims), random_image(rng, dims)
        matrix = random_linear(rng, fixed, moving)
        expected = sitk.Resample(moving, fixed, affine(matrix), sitk.sitkLinear, -1000.0)
        M = sampling.index_matrix(Grid.of(fixed), Grid.of(moving), matrix)
        shape = Grid.of(fixed).shape
        image = to_zyx(moving)[None]
        ours = sampling.warp(image, M=M, shape=shape)
        valid = sampling.valid_mask(image.shape[2:], M=M, shape=shape)
        theirs = to_zyx(expected)[None]
        inside = theirs > -999
        assert inside.float().mean() > 0.2
        assert (valid != inside).float().mean() < 1e-4  # a position on the very edge may round either way
        both = valid & inside
        assert (ours - theirs)[both].abs().max() < 1e-4 * (image.max() - image.min())

    def test_nearest_neighbours(self, dims: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        fixed, moving = random_image(rng, dims), random_image(rng, dims)
        low, high = np.quantile(sitk.GetArrayViewFromImage(moving), (0.3, 0.7)).tolist()
        labels = sitk.Cast(moving > low, sitk.sitkUInt8) + sitk.Cast(moving > high, sitk.sitkUInt8)
        matrix = random_linear(rng, fixed, moving)
        expected = to_zyx(sitk.Resample(labels, fixed, affine(matrix), sitk.sitkNearestNeighbor, 9.0), torch.int32)
        M = sampling.index_matrix(Grid.of(fixed), Grid.of(moving), matrix)
        ours = sampling.warp(to_zyx(labels, torch.int32)[None], M=M, shape=Grid.of(fixed).shape, mode="nearest")[0]
        assert ours.dtype == torch.int32
        inside = expected < 9
        assert len(torch.unique(ours[inside])) == 3
        # single against double precision: a position half way between two voxels may fall to the other
        assert (ours != expected)[inside].float().mean() < 2e-4

    def test_displacement_and_linear_map(self, dims: int, seed: int) -> None:
        """T(p) = A(p + D(p)), the displacement first."""
        rng = np.random.default_rng(seed)
        fixed, moving = random_image(rng, dims), random_image(rng, dims)
        matrix = random_linear(rng, fixed, moving)
        grid = Grid.of(fixed)
        u = torch.from_numpy(rng.normal(0, 1.0, (1, dims, *grid.shape)))
        turned = np.einsum("ij,j...->i...", grid.matrix()[:dims, :dims], u[0].numpy()[::-1])
        field = from_zyx(torch.from_numpy(turned), grid)
        total = sitk.CompositeTransform([affine(matrix), sitk.DisplacementFieldTransform(sitk.Image(field))])
        expected = to_zyx(sitk.Resample(moving, fixed, total, sitk.sitkLinear, -1000.0))[None]
        M = sampling.index_matrix(grid, Grid.of(moving), matrix)
        image = to_zyx(moving)[None]
        ours = sampling.warp(image, u, M)
        both = sampling.valid_mask(image.shape[2:], u, M) & (expected > -999)
        assert both.float().mean() > 0.2
        assert (ours - expected)[both].abs().max() < 1e-4 * (image.max() - image.min())


class TestWarp:
    @pytest.mark.parametrize("shape", [(5, 7), (4, 5, 6)])
    @pytest.mark.parametrize("mode", ["linear", "nearest"])
    def test_whole_voxel_shift_is_exact(self, shape: tuple[int, ...], mode: str) -> None:
        image = torch.rand(1, 2, *shape, dtype=torch.float64)
        u = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
        u[:, 0] = 1.0
        assert torch.allclose(sampling.warp(image, u, mode=mode)[:, :, :-1], image[:, :, 1:], atol=1e-12)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_no_map_gives_the_image(self, dims: int) -> None:
        image = torch.rand(2, 1, *range(4, 4 + dims), dtype=torch.float64)
        assert torch.allclose(sampling.warp(image), image, atol=1e-12)

    def test_zero_padding_fades_and_border_goes_on(self) -> None:
        image = torch.ones(1, 1, 4, 4, dtype=torch.float64)
        u = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
        u[:, 0] = 0.25
        assert torch.allclose(sampling.warp(image, u, padding="zeros")[0, 0, 3], torch.tensor(0.75).double())
        assert (sampling.warp(image, u) == 1).all()
        assert (sampling.warp(image, u + 10, padding="zeros") == 0).all()

    def test_an_axis_of_one_voxel_ends(self) -> None:
        image = torch.ones(1, 1, 1, 4, 4)
        u = torch.zeros(1, 3, 1, 4, 4)
        assert (sampling.warp(image, u, padding="zeros") == 1).all()
        u[:, 0] = 2.0
        assert (sampling.warp(image, u, padding="zeros") == 0).all()
        assert not sampling.valid_mask(image.shape[2:], u).any()

    def test_a_batch_is_its_members(self) -> None:
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(1, 1, 5, 6, 7, generator=generator)
        u = torch.randn(3, 3, 5, 6, 7, generator=generator)
        M = torch.eye(4)[None] + 0.05 * torch.randn(3, 4, 4, generator=generator)
        M[:, 3] = torch.tensor([0.0, 0, 0, 1])
        together = sampling.warp(image, u, M)
        for i in range(3):
            assert torch.allclose(together[i], sampling.warp(image, u[i : i + 1], M[i : i + 1])[0], atol=1e-6)
        assert torch.allclose(sampling.warp(image, None, M)[1], sampling.warp(image, None, M[1:2])[0], atol=1e-6)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_gradients(self, dims: int) -> None:
        generator = torch.Generator().manual_seed(1)
        shape = (4, 5, 3)[:dims]
        image = torch.rand(1, 1, *shape, dtype=torch.float64, generator=generator, requires_grad=True)
        u = (0.3 * torch.rand(1, dims, *shape, dtype=torch.float64, generator=generator) + 0.1).requires_grad_()
        M = torch.eye(dims + 1, dtype=torch.float64)[None].requires_grad_()
        assert torch.autograd.gradcheck(lambda *a: sampling.warp(*a)[..., 1:-1, 1:-1], (image, u, M))

    def test_half_precision_is_sampled_in_single(self) -> None:
        image = torch.rand(1, 1, 9, 200).half()
        u = torch.full((1, 2, 9, 200), 0.25)
        expected = sampling.warp(image.float(), u).half()
        assert torch.equal(sampling.warp(image, u.half()), expected)

    def test_what_does_not_fit_is_refused(self) -> None:
        image = torch.rand(1, 1, 4, 4)
        with pytest.raises(ValueError, match="padding"):
            sampling.warp(image, padding="wrap")
        with pytest.raises(ValueError, match="nearest"):
            sampling.warp(image.to(torch.int16))
        with pytest.raises(ValueError, match="3-D displacement"):
            sampling.warp(image, torch.zeros(1, 3, 4, 4, 4))
        with pytest.raises(ValueError, match="does not fit"):
            sampling.warp(image, torch.zeros(1, 2, 4, 4), shape=(5, 5))


class TestSample:
    @pytest.mark.parametrize("shape", [(6, 7), (5, 6, 7)])
    def test_is_scipys_linear_interpolation(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        image = rng.normal(size=(2, *shape))
        where = rng.uniform(-1, np.array(shape), (40, len(shape))).T
        ours = sampling.sample(torch.from_numpy(image)[None], torch.from_numpy(where)[None])
        expected = [scipy.ndimage.map_coordinates(channel, where, order=1, mode="nearest") for channel in image]
        assert ours.shape == (1, 2, 40)
        assert np.allclose(ours[0].numpy(), expected, atol=1e-12)


class TestIndexMatrix:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_back_to_the_linear_map(self, dims: int) -> None:
        rng = np.random.default_rng(5)
        fixed, moving = (Grid.of(random_image(rng, dims)) for _ in range(2))
        linear = torch.from_numpy(np.eye(dims + 1) + np.pad(rng.normal(0, 1, (dims, dims + 1)), ((0, 1), (0, 0))))
        M = sampling.index_matrix(fixed, moving, linear.requires_grad_())
        back = sampling.linear_of_index_matrix(fixed, moving, M)
        assert torch.allclose(back[0], linear, atol=1e-9)
        back.sum().backward()
        assert torch.allclose(linear.grad, torch.ones_like(linear), atol=1e-9)

    def test_dimensions_must_agree(self) -> None:
        rng = np.random.default_rng(0)
        flat, solid = (Grid.of(place(sitk.Image([4] * d, sitk.sitkUInt8), rng)) for d in (2, 3))
        with pytest.raises(ValueError, match="2-D grid"):
            sampling.index_matrix(flat, solid)

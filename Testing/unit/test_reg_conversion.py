"""Transforms become SimpleITK's and files, and come back the same; broken files are refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import random_image
from scipy.spatial.transform import Rotation

from MLILib.errors import BadInput
from MLILib.geometry import Grid, to_zyx
from MLILib.registration import conversion, fields, sampling


def rotation(rng: np.random.Generator, dims: int) -> np.ndarray:
    if dims == 3:
        return Rotation.from_rotvec(rng.normal(0, 0.2, 3)).as_matrix()
    angle = rng.normal(0, 0.3)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def about(grid: Grid, inner: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The map inner (p - c) + c + shift with c the middle of the grid."""
    d = grid.dimension
    out = np.eye(d + 1)
    out[:d, :d] = inner
    c = conversion.middle(grid)
    out[:d, d] = c + shift - inner @ c
    return out


def random_case(seed: int, dims: int) -> tuple[sitk.Image, np.ndarray, torch.Tensor]:
    """A fixed image, an affine map near the identity and a smooth displacement of some 2 voxels, float64."""
    rng = np.random.default_rng(seed)
    image = random_image(rng, dims, 14, 20)
    grid = Grid.of(image)
    linear = about(grid, np.eye(dims) + rng.normal(0, 0.1, (dims, dims)), rng.normal(0, 3, dims))
    u = fields.smooth(torch.from_numpy(rng.normal(0, 1, (1, dims, *grid.shape))), 2.0)
    return image, linear, 2 * u / u.abs().max()


def total(points: np.ndarray, grid: Grid, linear: np.ndarray, u: torch.Tensor) -> np.ndarray:
    """A(p + D(p)) at the grid's voxels (tensor indices, (n, d)), written out."""
    d = grid.dimension
    axes = np.reshape(grid.direction, (d, d)) * np.array(grid.spacing)
    out = []
    for index in points:
        p = axes @ index[::-1] + np.array(grid.origin)
        moved = p + axes @ u[0][(slice(None), *index)].numpy()[::-1]
        out.append(linear[:d, :d] @ moved + linear[:d, d])
    return np.array(out)


class TestLinear:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("kind", ["Euler", "Similarity", "Affine"])
    def test_kind_centre_and_matrix(self, dims: int, kind: str) -> None:
        rng = np.random.default_rng(dims)
        grid = Grid.of(random_image(rng, dims))
        inner = rotation(rng, dims)
        if kind == "Similarity":
            inner = 1.3 * inner
        elif kind == "Affine":
            inner = inner @ np.diag(rng.uniform(0.7, 1.4, dims))
        shift = rng.normal(0, 5, dims)
        matrix = about(grid, inner, shift)
        transform = conversion.to_sitk(matrix, None, grid)
        assert transform.GetName().startswith(kind)
        assert np.allclose(conversion.matrix_of(transform), matrix, atol=1e-9)
        middle = grid.origin + np.reshape(grid.direction, (dims, dims)) @ (
            np.array(grid.spacing) * (np.array(grid.size) - 1) / 2
        )
        assert np.allclose(transform.GetCenter(), middle)
        assert np.allclose(transform.GetTranslation(), shift)
        assert np.allclose(conversion.from_sitk(transform, grid)[0], matrix, atol=1e-9)

    def test_a_mirror_is_affine(self) -> None:
        matrix = np.diag([-1.0, 1, 1, 1])
        transform = conversion.linear_to_sitk(matrix, np.zeros(3))
        assert transform.GetName() == "AffineTransform"
        assert transform.TransformPoint((1.0, 2.0, 3.0)) == (-1.0, 2.0, 3.0)

    def test_a_singular_matrix_is_refused(self) -> None:
        with pytest.raises(ValueError, match="singular"):
            conversion.linear_to_sitk(np.diag([1.0, 0, 1, 1]), np.zeros(3))

    def test_no_map_is_the_identity(self) -> None:
        grid = Grid.of(sitk.Image(4, 4, 4, sitk.sitkUInt8))
        assert np.array_equal(conversion.matrix_of(conversion.to_sitk(None, None, grid)), np.eye(4))


@pytest.mark.parametrize("dims", [2, 3])
class TestDisplacement:
    def test_points_move_as_written_out(self, dims: int) -> None:
        image, linear, u = random_case(0, dims)
        grid = Grid.of(image)
        transform = conversion.to_sitk(linear, u, grid)
        index = np.random.default_rng(1).integers(0, grid.shape, (20, dims))
        places = [image.TransformIndexToPhysicalPoint([int(i) for i in row[::-1]]) for row in index]
        moved = np.array([transform.TransformPoint(p) for p in places])
        assert np.allclose(moved, total(index, grid, linear, u), atol=1e-9)

    def test_warp_is_resample(self, dims: int) -> None:
        image, linear, u = random_case(2, dims)
        moving = random_image(np.random.default_rng(3), dims)
        shift = conversion.middle(Grid.of(moving)) - conversion.middle(Grid.of(image))
        linear[:dims, dims] += shift
        grid = Grid.of(image)
        transform = conversion.to_sitk(linear, u, grid)
        expected = to_zyx(sitk.Resample(moving, image, transform, sitk.sitkLinear, -1000.0))[None]
        M = sampling.index_matrix(grid, Grid.of(moving), linear)
        voxels = to_zyx(moving)[None]
        inside = sampling.valid_mask(voxels.shape[2:], u, M) & (expected > -999)
        assert inside.float().mean() > 0.2
        difference = (sampling.warp(voxels, u, M) - expected)[inside].abs().max()
        assert difference < 1e-4 * (voxels.max() - voxels.min())

    def test_comes_back(self, dims: int) -> None:
        image, linear, u = random_case(4, dims)
        grid = Grid.of(image)
        matrix, back = conversion.from_sitk(conversion.to_sitk(linear, u, grid), grid, torch.float64)
        assert np.allclose(matrix, linear, atol=1e-9)
        assert torch.allclose(back, u, atol=1e-9)
        matrix, back = conversion.from_sitk(conversion.to_sitk(None, u, grid), grid, torch.float64)
        assert np.array_equal(matrix, np.eye(dims + 1))
        assert torch.allclose(back, u, atol=1e-9)

    def test_nested_composites_come_apart(self, dims: int) -> None:
        image, linear, u = random_case(5, dims)
        grid = Grid.of(image)
        extra = about(grid, rotation(np.random.default_rng(6), dims), np.ones(dims))
        nested = sitk.CompositeTransform([conversion.to_sitk(extra, None, grid), conversion.to_sitk(linear, u, grid)])
        matrix, back = conversion.from_sitk(nested, grid, torch.float64)
        assert np.allclose(matrix, extra @ linear, atol=1e-9)
        assert torch.allclose(back, u, atol=1e-9)

    def test_a_linear_map_that_comes_first_is_sampled_with_the_field(self, dims: int) -> None:
        image, linear, u = random_case(7, dims)
        grid = Grid.of(image)
        transform = sitk.CompositeTransform([conversion.to_sitk(None, u, grid), conversion.to_sitk(linear, None, grid)])
        matrix, back = conversion.from_sitk(transform, grid, torch.float64)
        again = conversion.to_sitk(matrix, back, grid)
        for index in np.random.default_rng(8).integers(0, grid.size, (10, dims)).tolist():
            place = image.TransformIndexToPhysicalPoint(index)
            assert np.allclose(again.TransformPoint(place), transform.TransformPoint(place), atol=1e-9)

    @pytest.mark.parametrize("suffix", [".h5", ".tfm", ".nii.gz", ".nii", ".nrrd", ".mha"])
    def test_files(self, dims: int, suffix: str, tmp_path: Path) -> None:
        image, linear, u = random_case(9, dims)
        grid = Grid.of(image)
        transform = conversion.to_sitk(linear, u, grid)
        path = str(tmp_path / f"t{suffix}")
        conversion.write_transform(transform, path, grid)
        back = conversion.read_transform(path, dims)
        tolerance = 1e-9 if suffix in (".h5", ".tfm") else 1e-3  # fields, and NIfTI's geometry, are in single precision
        for index in np.random.default_rng(10).integers(1, np.array(grid.size) - 1, (20, dims)).tolist():
            place = image.TransformIndexToPhysicalPoint(index)
            assert np.allclose(back.TransformPoint(place), transform.TransformPoint(place), atol=tolerance)

    @pytest.mark.parametrize("suffix", [".h5", ".tfm"])
    def test_linear_files(self, dims: int, suffix: str, tmp_path: Path) -> None:
        image, linear, _ = random_case(11, dims)
        grid = Grid.of(image)
        path = str(tmp_path / f"t{suffix}")
        conversion.write_transform(conversion.to_sitk(linear, None, grid), path, grid)
        assert np.allclose(conversion.matrix_of(conversion.read_transform(path)), linear, atol=1e-9)

    def test_a_linear_map_as_a_field(self, dims: int, tmp_path: Path) -> None:
        image, linear, _ = random_case(12, dims)
        grid = Grid.of(image)
        path = str(tmp_path / "t.nrrd")
        conversion.write_transform(conversion.to_sitk(linear, None, grid), path, grid)
        field = sitk.GetArrayFromImage(sitk.ReadImage(path))
        index = (3,) * dims
        place = np.array(image.TransformIndexToPhysicalPoint(index))
        expected = linear[:dims, :dims] @ place + linear[:dims, dims] - place
        assert np.allclose(field[index], expected, atol=1e-4)


class TestNiftiField:
    def test_header_and_vectors_are_as_itk_writes_them(self, tmp_path: Path) -> None:
        """Five axes, one vector a voxel, intent 1007 (vector), vectors in LPS."""
        image, _, u = random_case(13, 3)
        grid = Grid.of(image)
        path = str(tmp_path / "t.nii.gz")
        conversion.write_transform(conversion.to_sitk(None, u, grid), path, grid)
        stored = nib.load(path)
        assert stored.shape == (*grid.size, 1, 3)
        assert stored.header["intent_code"] == 1007
        lps = sitk.GetArrayFromImage(conversion.to_lps_mm(u, grid))[3, 4, 5]
        assert np.allclose(np.asarray(stored.dataobj)[5, 4, 3, 0], lps, atol=1e-6)

    def test_displacement_vectors_are_read_as_ras(self, tmp_path: Path) -> None:
        """What Slicer and FreeSurfer write: intent 1006."""
        image, _, u = random_case(14, 3)
        field = conversion.to_lps_mm(u, Grid.of(image))
        ras = nib.load(self.written(tmp_path / "lps.nii", field))
        vectors = np.asarray(ras.dataobj) * (-1, -1, 1)
        header = ras.header.copy()
        header["intent_code"] = 1006
        path = tmp_path / "t.nii.gz"
        nib.Nifti1Image(vectors, ras.affine, header).to_filename(path)
        back = conversion.read_transform(path)
        place = image.TransformIndexToPhysicalPoint((5, 4, 3))
        assert np.allclose(np.array(back.TransformPoint(place)) - place, field[5, 4, 3], atol=1e-3)

    def written(self, path: Path, field: sitk.Image) -> Path:
        sitk.WriteImage(field, str(path))
        return path


class TestOutsideTheGrid:
    def test_only_the_linear_map_is_left(self) -> None:
        image, linear, u = random_case(15, 3)
        transform = conversion.to_sitk(linear, u + 1, Grid.of(image))
        far = image.TransformContinuousIndexToPhysicalPoint((-3.0, -3.0, -3.0))
        assert np.allclose(transform.TransformPoint(far), linear[:3, :3] @ far + linear[:3, 3])


class TestBadFiles:
    def refused(self, path: Path, match: str, dimension: int = 0) -> None:
        with pytest.raises(BadInput, match=match) as caught:
            conversion.read_transform(path, dimension)
        assert path.name in str(caught.value)
        assert caught.value.remedy

    def test_missing(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "none.h5", "does not exist")

    def test_unknown_ending(self, tmp_path: Path) -> None:
        path = tmp_path / "t.xyz"
        path.write_text("1 2 3")
        self.refused(path, "format of a transform")

    @pytest.mark.parametrize("suffix", [".h5", ".tfm", ".txt", ".mat", ".nii.gz", ".nrrd", ".mha"])
    @pytest.mark.parametrize("content", [b"", b"import os\n\x00\xff\x12 junk" * 40])
    def test_junk(self, suffix: str, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / f"t{suffix}"
        path.write_bytes(content)
        self.refused(path, "cannot be used as a transform|truncated")

    @pytest.mark.parametrize("suffix", [".h5", ".tfm", ".nii.gz", ".nii", ".nrrd", ".mha"])
    def test_truncated(self, suffix: str, tmp_path: Path) -> None:
        image, linear, u = random_case(16, 3)
        path = tmp_path / f"t{suffix}"
        conversion.write_transform(conversion.to_sitk(linear, u, Grid.of(image)), str(path), Grid.of(image))
        whole = path.read_bytes()
        for share in (0.3, 0.9):
            path.write_bytes(whole[: int(share * len(whole))])
            self.refused(path, "cannot be used as a transform|truncated")

    def test_a_scalar_image(self, tmp_path: Path) -> None:
        path = tmp_path / "t.nii.gz"
        sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkFloat32), str(path))
        self.refused(path, "1 value a voxel")

    def test_vectors_along_the_fourth_axis(self, tmp_path: Path) -> None:
        path = tmp_path / "t.nii.gz"
        nib.Nifti1Image(np.zeros((4, 5, 6, 3), np.float32), np.eye(4)).to_filename(path)
        self.refused(path, "fifth axis")

    def test_vectors_that_are_not_numbers(self, tmp_path: Path) -> None:
        path = tmp_path / "t.mha"
        vectors = np.zeros((4, 4, 4, 3), np.float32)
        vectors[1, 2, 3, 0] = np.nan
        sitk.WriteImage(sitk.GetImageFromArray(vectors, isVector=True), str(path))
        self.refused(path, "1 of its vectors")

    def test_numbers_that_are_no_map(self, tmp_path: Path) -> None:
        path = tmp_path / "t.tfm"
        sitk.WriteTransform(sitk.AffineTransform(3), str(path))
        whole = path.read_text()
        path.write_text(whole.replace("Parameters: 1 0 0", "Parameters: 0 0 0", 1))
        self.refused(path, "singular")
        path.write_text(whole.replace("Parameters: 1 0 0", "Parameters: nan 0 0", 1))
        self.refused(path, "cannot be used as a transform")

    def test_several_transforms_without_an_order(self, tmp_path: Path) -> None:
        path = tmp_path / "t.tfm"
        sitk.WriteTransform(sitk.Euler3DTransform(), str(path))
        one = path.read_text()
        path.write_text(one + one[one.index("#Transform") :].replace("Transform 0", "Transform 1"))
        self.refused(path, "2 transforms")

    def test_another_dimension(self, tmp_path: Path) -> None:
        path = tmp_path / "t.tfm"
        sitk.WriteTransform(sitk.Euler2DTransform(), str(path))
        self.refused(path, "2-D transform", 3)

    def test_ending_for_writing(self, tmp_path: Path) -> None:
        grid = Grid.of(sitk.Image(4, 4, 4, sitk.sitkUInt8))
        with pytest.raises(BadInput, match="format of a transform"):
            conversion.write_transform(sitk.Euler3DTransform(), str(tmp_path / "t.png"), grid)
        assert not list(tmp_path.iterdir())

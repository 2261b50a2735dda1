"""Axis order, spacing, direction, LPS and RAS: SimpleITK, MONAI's readers and the tensors must agree to the voxel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import random_image
from monai.data.utils import to_affine_nd
from monai.transforms import LoadImage
from scipy.spatial.transform import Rotation

from MLILib import geometry, images
from MLILib.geometry import Grid


def lps_to_ras(point: tuple[float, ...]) -> np.ndarray:
    return np.array([-point[0], -point[1], *point[2:]])


class TestAffine:
    @pytest.mark.parametrize("seed", range(6))
    def test_maps_voxels_where_simpleitk_does(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        image = random_image(rng)
        index = [int(rng.integers(n)) for n in image.GetSize()]
        expected = lps_to_ras(image.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose((geometry.affine_ras(image) @ [*index, 1])[:3], expected, atol=1e-9)

    def test_left_handed_stays_left_handed(self) -> None:
        image = sitk.Image([4, 5, 6], sitk.sitkUInt8)
        image.SetDirection([-1, 0, 0, 0, 1, 0, 0, 0, 1])
        # LPS to RAS is a rotation by 180 degrees, so the sign of the determinant is the direction's own.
        assert np.linalg.det(geometry.affine_ras(image)) == pytest.approx(-1)

    def test_2d_lies_in_a_plane_of_1_mm(self) -> None:
        image = sitk.Image([4, 5], sitk.sitkUInt8)
        image.SetSpacing([0.5, 0.7])
        image.SetOrigin([10, 20])
        expected = [[-0.5, 0, 0, -10], [0, -0.7, 0, -20], [0, 0, 1, 0], [0, 0, 0, 1]]
        np.testing.assert_allclose(geometry.affine_ras(image), expected)


class TestMonaiAgrees:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
    def test_nibabel_reader(self, tmp_path: Path, seed: int, suffix: str) -> None:
        pytest.importorskip("nibabel")
        path = tmp_path / f"image{suffix}"
        sitk.WriteImage(random_image(np.random.default_rng(seed)), str(path))
        theirs = LoadImage(reader="NibabelReader", ensure_channel_first=True)(str(path))
        ours = geometry.to_tensor(images.read(path))
        assert torch.equal(ours.as_tensor(), theirs.as_tensor())
        assert torch.equal(ours.affine, theirs.affine)  # to the last bit: the header's own single precision
        assert ours.dtype == theirs.dtype == torch.float32
        np.testing.assert_allclose(geometry.to_tensor(sitk.ReadImage(str(path))).affine, theirs.affine, atol=1e-5)

    @pytest.mark.parametrize("forms", [(1, 1), (0, 1), (1, 0), (0, 0)])
    @pytest.mark.parametrize("handed", [1, -1])
    def test_nifti_headers(self, tmp_path: Path, forms: tuple[int, int], handed: int) -> None:
        nibabel = pytest.importorskip("nibabel")
        rng = np.random.default_rng(0)
        affine = np.eye(4)
        affine[:3, :3] = Rotation.random(random_state=1).as_matrix() @ np.diag([handed * 0.9, 1.3, 2.1])
        affine[:3, 3] = [10, -20, 30]
        image = nibabel.Nifti1Image(rng.random((5, 6, 7), np.float32), affine)
        image.set_sform(affine, forms[0])
        image.set_qform(affine, forms[1])
        nibabel.save(image, tmp_path / "image.nii")
        expected = nibabel.load(tmp_path / "image.nii").affine
        found = images.nifti_affine((tmp_path / "image.nii").read_bytes()[:348])
        if forms == (0, 0):
            assert found is None
        else:
            np.testing.assert_allclose(found, expected, atol=1e-6)
            ours = images.read(tmp_path / "image.nii")
            np.testing.assert_allclose(geometry.affine_ras(ours), expected, atol=1e-5)

    def test_an_image_that_was_moved_keeps_its_own_affine(self, tmp_path: Path) -> None:
        sitk.WriteImage(random_image(np.random.default_rng(1)), str(tmp_path / "image.nii"))
        image = images.read(tmp_path / "image.nii")
        image.SetOrigin([1, 2, 3])
        np.testing.assert_allclose(geometry.monai_affine(image)[:3, 3], [-1, -2, 3])

    def test_nibabel_reader_in_2d(self, tmp_path: Path) -> None:
        pytest.importorskip("nibabel")
        image = sitk.GetImageFromArray(np.arange(35, dtype=np.float32).reshape(5, 7))
        image.SetSpacing([0.5, 0.7])
        image.SetOrigin([10, 20])
        sitk.WriteImage(image, str(tmp_path / "plane.nii.gz"))
        theirs = LoadImage(reader="NibabelReader", ensure_channel_first=True)(str(tmp_path / "plane.nii.gz"))
        ours = geometry.to_tensor(sitk.ReadImage(str(tmp_path / "plane.nii.gz")))
        assert torch.equal(ours.as_tensor(), theirs.as_tensor())
        np.testing.assert_allclose(ours.affine.numpy(), to_affine_nd(2, theirs.affine.numpy()), atol=1e-5)

    @pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii.gz"])
    @pytest.mark.parametrize("dims", [2, 3])
    def test_itk_reader(self, tmp_path: Path, dims: int, suffix: str) -> None:
        pytest.importorskip("itk", reason="MONAI's ITKReader needs the package itk")
        path = tmp_path / f"image{suffix}"
        sitk.WriteImage(random_image(np.random.default_rng(7), dims), str(path))
        theirs = LoadImage(reader="ITKReader", ensure_channel_first=True)(str(path))
        ours = geometry.to_tensor(sitk.ReadImage(str(path)))
        assert torch.equal(ours.as_tensor(), theirs.as_tensor())
        np.testing.assert_allclose(ours.affine.numpy(), theirs.affine.numpy(), atol=1e-9)

    def test_channels_are_stacked_in_order(self) -> None:
        image = random_image(np.random.default_rng(0))
        both = geometry.to_tensor([image, image * 2])
        assert torch.equal(both[1].as_tensor(), both[0].as_tensor() * 2)

    def test_channels_on_different_grids_are_refused(self) -> None:
        image = random_image(np.random.default_rng(0))
        other = sitk.Image(image)
        other.SetOrigin([0, 0, 0])
        with pytest.raises(ValueError, match="share one grid"):
            geometry.to_tensor([image, other])


class TestArrays:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_from_array_gives_back_the_image(self, dims: int) -> None:
        image = random_image(np.random.default_rng(3), dims)
        again = geometry.from_array(sitk.GetArrayFromImage(image), image)
        assert geometry.same_grid(image, again, tolerance=0)
        assert np.array_equal(sitk.GetArrayViewFromImage(image), sitk.GetArrayViewFromImage(again))

    def test_array_of_another_size_is_refused(self) -> None:
        image = random_image(np.random.default_rng(3))
        with pytest.raises(ValueError, match="cannot take a grid"):
            geometry.from_array(np.zeros((2, 3, 4)), image)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_zyx_tensor_there_and_back(self, dims: int) -> None:
        image = random_image(np.random.default_rng(4), dims)
        tensor = geometry.to_zyx(image)
        index = [2, 3, 4][:dims]
        assert float(tensor[(0, *reversed(index))]) == image.GetPixel(index)
        again = geometry.from_zyx(tensor, image)
        assert np.array_equal(sitk.GetArrayViewFromImage(image), sitk.GetArrayViewFromImage(again))

    def test_components_are_channels(self) -> None:
        array = np.random.default_rng(0).random((3, 4, 5, 2), np.float32)
        image = sitk.GetImageFromArray(array, isVector=True)
        tensor = geometry.to_zyx(image)
        assert tensor.shape == (2, 3, 4, 5)
        assert np.array_equal(sitk.GetArrayFromImage(geometry.from_zyx(tensor, image)), array)

    def test_unsigned_voxels_keep_their_values(self) -> None:
        image = sitk.Image([2, 2, 2], sitk.sitkUInt16) + 60000
        assert float(geometry.to_zyx(image).max()) == 60000


class TestGrids:
    def test_same_grid_through_nifti(self, tmp_path: Path) -> None:
        image = random_image(np.random.default_rng(5))
        sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
        assert geometry.same_grid(image, sitk.ReadImage(str(tmp_path / "a.nii.gz")))

    @pytest.mark.parametrize("change", ["origin", "spacing", "direction", "size"])
    def test_a_hundredth_of_a_voxel_is_another_grid(self, change: str) -> None:
        image = sitk.Image([20, 20, 20], sitk.sitkUInt8)
        other = sitk.Image(image)
        if change == "origin":
            other.SetOrigin([0.01, 0, 0])
        elif change == "spacing":
            other.SetSpacing([1.001, 1, 1])
        elif change == "direction":
            other.SetDirection([-1, 0, 0, 0, 1, 0, 0, 0, 1])
        else:
            other = sitk.Image([20, 20, 21], sitk.sitkUInt8)
        assert not geometry.same_grid(image, other)

    def test_voxel_volume_in_millilitres(self) -> None:
        image = sitk.Image([2, 2, 2], sitk.sitkUInt8)
        image.SetSpacing([2, 5, 10])
        assert Grid.of(image).voxel_ml == pytest.approx(0.1)

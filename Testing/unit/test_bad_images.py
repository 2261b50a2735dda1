"""What cannot be segmented gets one sentence with a remedy, exit code 2 and no output file."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_bundle import write_tiny_bundle

from MLILib import files, geometry, images, tasks
from MLILib.errors import BadInput
from MLILib.segmentation.inference import segment


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("models") / "two", channels=2)


@pytest.fixture
def attempt(tmp_path: Path, bundle: Path) -> Callable[..., BadInput]:
    """Runs the task on files that cannot work; gives the error, and sees that nothing was written."""

    def run(*paths: Path, model: Path | None = None, **options: Any) -> BadInput:
        options.setdefault("output", str(tmp_path / "out.nii.gz"))
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        request = tasks.SegmentRequest(tuple(map(str, paths)), (str(model or bundle),), **options)
        with pytest.raises(BadInput) as caught:
            tasks.run(request)
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
        assert caught.value.exit_code == 2
        assert caught.value.remedy
        assert "\n" not in str(caught.value)
        return caught.value

    return run


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, shape or (20, 22, 24)).astype(np.float32)


def save(array: np.ndarray, path: Path, **options: Any) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, **options), str(path))
    return path


class TestFiles:
    def test_missing(self, attempt: Any, tmp_path: Path) -> None:
        assert "does not exist" in attempt(tmp_path / "nowhere.nii.gz").what

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
    @pytest.mark.parametrize("part", [0.3, 0.98])
    def test_truncated(self, attempt: Any, tmp_path: Path, suffix: str, part: float) -> None:
        whole = save(noise(), tmp_path / f"whole{suffix}").read_bytes()
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(whole[: int(len(whole) * part)])
        assert "truncated" in str(attempt(cut))

    def test_truncated_jpeg(self, attempt: Any, tmp_path: Path) -> None:
        whole = save(noise(40, 50).astype(np.uint8), tmp_path / "a.jpg").read_bytes()
        (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
        assert "truncated" in str(attempt(tmp_path / "b.jpg"))

    @pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.txt", "a"])
    def test_not_an_image(self, attempt: Any, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("A letter, and not an image. " * 30, encoding="utf-8")
        assert "not an image" in attempt(tmp_path / name).what

    def test_empty_file(self, attempt: Any, tmp_path: Path) -> None:
        (tmp_path / "a.nii").touch()
        assert "is empty" in attempt(tmp_path / "a.nii").what

    def test_nifti_2(self, attempt: Any, tmp_path: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        nibabel.save(nibabel.Nifti2Image(noise(), np.eye(4)), tmp_path / "a.nii.gz")
        assert "NIfTI-2" in attempt(tmp_path / "a.nii.gz").what

    def test_sheared_axes(self, attempt: Any, tmp_path: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        affine = np.eye(4)
        affine[0, 1] = 0.4
        image = nibabel.Nifti1Image(noise(), affine)
        image.set_qform(None, 0)
        nibabel.save(image, tmp_path / "a.nii")
        assert "right angles" in attempt(tmp_path / "a.nii").what

    def test_an_unreadable_file(self, attempt: Any, tmp_path: Path) -> None:
        file = save(noise(), tmp_path / "a.nrrd")
        file.chmod(0)
        if os.access(file, os.R_OK):
            pytest.skip("this user may read everything")
        assert "cannot be read" in attempt(file).what

    def test_a_folder_without_dicom(self, attempt: Any, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        assert "no DICOM series" in attempt(tmp_path / "folder").what

    def test_a_good_nifti_passes_also_with_more_behind_it(self, tmp_path: Path) -> None:
        plain = save(noise(), tmp_path / "a.nii").read_bytes()
        (tmp_path / "b.nii").write_bytes(plain + b"more")
        (tmp_path / "c.nii.gz").write_bytes(gzip.compress(plain[:5000]) + gzip.compress(plain[5000:]))
        for name in ("a.nii", "b.nii", "c.nii.gz"):
            assert images.nifti_complete(tmp_path / name)
        (tmp_path / "d.nii.gz").write_bytes(gzip.compress(plain[:5000]) + gzip.compress(plain[5000:])[:-9])
        assert not images.nifti_complete(tmp_path / "d.nii.gz")

    def test_a_big_endian_nifti_is_counted_too(self, tmp_path: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        header = nibabel.Nifti1Header(endianness=">")
        nibabel.save(nibabel.Nifti1Image(noise(), np.eye(4), header), tmp_path / "a.nii")
        data = (tmp_path / "a.nii").read_bytes()
        assert struct.unpack(">i", data[:4]) == (348,)
        assert images.nifti_complete(tmp_path / "a.nii")
        (tmp_path / "b.nii").write_bytes(data[:-1])
        assert not images.nifti_complete(tmp_path / "b.nii")


def write_dicom(image: sitk.Image, folder: Path, series: str) -> None:
    """A series of single-slice CT files."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.reshape(image.GetDirection(), (3, 3))
    for k in range(image.GetSize()[2]):
        plane = image[:, :, k]
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{series}.{k + 1}",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000e": series,
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{x:.6f}" for x in image.TransformIndexToPhysicalPoint([0, 0, k])),
            "0020|0037": "\\".join(f"{x:.9f}" for x in direction.T[:2].ravel()),
        }
        for key, value in tags.items():
            plane.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{series}.{k}.dcm"))
        writer.Execute(plane)


class TestDicom:
    @pytest.fixture
    def ct(self) -> sitk.Image:
        image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-1000, 1000, (9, 20, 22)).astype(np.int16))
        image.SetSpacing([0.7, 0.7, 2.5])
        image.SetOrigin([-10, 20, 30])
        c, s = np.cos(0.3), np.sin(0.3)
        image.SetDirection([c, -s, 0, s, c, 0, 0, 0, 1])
        return image

    def test_a_folder_with_one_series_is_a_volume(self, ct: sitk.Image, tmp_path: Path) -> None:
        write_dicom(ct, tmp_path / "series", "1.2.826.0.1.3680043.2.1125.2")
        read = images.read(tmp_path / "series")
        assert geometry.same_grid(read, ct)
        assert np.array_equal(sitk.GetArrayViewFromImage(read), sitk.GetArrayViewFromImage(ct))

    def test_several_series_are_refused(self, attempt: Any, ct: sitk.Image, tmp_path: Path) -> None:
        for i in (2, 3):
            write_dicom(ct, tmp_path / "series", f"1.2.826.0.1.3680043.2.1125.{i}")
        assert "2 DICOM series" in attempt(tmp_path / "series").what


class TestVoxels:
    def test_4d(self, attempt: Any, tmp_path: Path) -> None:
        volumes = [sitk.GetImageFromArray(noise(seed=i)) for i in range(3)]
        sitk.WriteImage(sitk.JoinSeries(volumes), str(tmp_path / "a.nii.gz"))
        error = attempt(tmp_path / "a.nii.gz")
        assert "4-D, 24 x 22 x 20 x 3" in error.what

    def test_one_time_point_is_the_volume(self, tmp_path: Path) -> None:
        volume = sitk.GetImageFromArray(noise())
        volume.SetSpacing([0.5, 0.6, 0.7])
        sitk.WriteImage(sitk.JoinSeries([volume]), str(tmp_path / "a.nii.gz"))
        read = images.read(tmp_path / "a.nii.gz")
        assert read.GetDimension() == 3
        assert np.array_equal(sitk.GetArrayViewFromImage(read), noise())
        assert read.GetSpacing() == pytest.approx((0.5, 0.6, 0.7))

    @pytest.mark.parametrize("name", ["a.png", "a.nrrd"])
    def test_colour(self, attempt: Any, tmp_path: Path, name: str) -> None:
        save(noise(30, 40, 3).astype(np.uint8), tmp_path / name, isVector=True)
        assert "3 values a voxel" in attempt(tmp_path / name).what

    def test_complex(self, attempt: Any, tmp_path: Path) -> None:
        save(noise().astype(np.complex64), tmp_path / "a.nrrd")
        assert attempt(tmp_path / "a.nrrd")

    def test_one_voxel(self, attempt: Any, tmp_path: Path) -> None:
        assert "single voxel" in attempt(save(noise(1, 1, 1), tmp_path / "a.nrrd")).what

    def test_no_voxels(self) -> None:
        with pytest.raises(BadInput, match="no voxels"):
            images.check(sitk.Image(), "it")

    def test_nan_and_infinity_are_counted(self, attempt: Any, tmp_path: Path) -> None:
        array = noise()
        array[3, 4, 5:8] = np.nan
        array[0, 0, 0], array[-1, -1, -1] = np.inf, -np.inf
        error = attempt(save(array, tmp_path / "a.nrrd"))
        assert "3 NaN and 2 infinite values" in error.what

    def test_one_nan(self, attempt: Any, tmp_path: Path) -> None:
        array = noise()
        array[3, 4, 5] = np.nan
        assert "1 NaN value " in attempt(save(array, tmp_path / "a.nrrd")).what

    @pytest.mark.parametrize("value", [0, -1000])
    def test_constant(self, attempt: Any, tmp_path: Path, value: int) -> None:
        file = save(np.full((8, 9, 10), value, np.int16), tmp_path / "a.nrrd")
        assert f"is {value} everywhere" in attempt(file).what

    def test_images_in_memory_are_checked_too(self, bundle: Path) -> None:
        with pytest.raises(BadInput, match="everywhere"):
            segment(sitk.Image([20, 20, 20], sitk.sitkFloat32), str(bundle))
        with pytest.raises(BadInput, match="not a scalar volume"):
            segment(sitk.Image([20, 20, 20], sitk.sitkVectorFloat32, 2), str(bundle))


class TestChannels:
    def test_too_few(self, attempt: Any, tmp_path: Path, two_channels: Path) -> None:
        error = attempt(save(noise(), tmp_path / "a.nrrd"), model=two_channels)
        assert "takes 2 images (image 1, image 2), but 1 was given" in error.what

    def test_too_many(self, attempt: Any, tmp_path: Path) -> None:
        first, second = (save(noise(seed=i), tmp_path / f"{i}.nrrd") for i in range(2))
        assert "takes 1 image (image), but 2 were given" in attempt(first, second).what

    def test_other_grids(self, attempt: Any, tmp_path: Path, two_channels: Path) -> None:
        image = sitk.GetImageFromArray(noise())
        sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
        image.SetOrigin([0, 0, 5])
        sitk.WriteImage(image, str(tmp_path / "b.nrrd"))
        error = attempt(tmp_path / "a.nrrd", tmp_path / "b.nrrd", model=two_channels)
        assert "same grid" in error.what
        assert "(0, 0, 5)" in error.what

    def test_a_plane_for_a_volume(self, attempt: Any, tmp_path: Path) -> None:
        assert "takes volumes" in attempt(save(noise(30, 40).astype(np.uint8), tmp_path / "a.png")).what

    def test_nothing_left_after_cropping(self, attempt: Any, tmp_path: Path) -> None:
        from plain_monai import edit, transforms

        cropping = write_tiny_bundle(tmp_path / "cropping")
        step = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "allow_smaller": True,
                "select_fn": "$lambda x: x > 1e6"}  # fmt: skip
        edit(cropping, lambda config: transforms(config, "preprocessing").append(step))
        error = attempt(save(noise(), tmp_path / "a.nrrd"), model=cropping)
        assert "model cropping" in error.what


class TestOutputs:
    def test_no_such_folder(self, attempt: Any, tmp_path: Path) -> None:
        file = save(noise(), tmp_path / "a.nrrd")
        assert "does not exist" in attempt(file, output=str(tmp_path / "no" / "out.nrrd")).what

    def test_a_folder_that_cannot_be_written(self, attempt: Any, tmp_path: Path) -> None:
        file, folder = save(noise(), tmp_path / "a.nrrd"), tmp_path / "locked"
        folder.mkdir()
        folder.chmod(0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert "cannot be written" in attempt(file, output=str(folder / "out.nrrd")).what

    @pytest.mark.parametrize("name", ["out", "out.txt", "out.png"])
    def test_no_known_format(self, attempt: Any, tmp_path: Path, name: str) -> None:
        file = save(noise(), tmp_path / "a.nrrd")
        assert "format of the label map" in attempt(file, output=str(tmp_path / name)).what

    def test_uncertainty_is_no_segmentation(self, attempt: Any, tmp_path: Path) -> None:
        file = save(noise(), tmp_path / "a.nrrd")
        assert "the uncertainty" in attempt(file, uncertainty=str(tmp_path / "u.seg.nrrd")).what

    def test_over_the_input(self, attempt: Any, tmp_path: Path) -> None:
        file = save(noise(), tmp_path / "a.nrrd")
        assert "input" in attempt(file, output=str(file)).what
        (tmp_path / "b").mkdir()
        assert "input" in attempt(file, output=str(tmp_path / "b" / ".." / "a.nrrd")).what

    def test_two_outputs_of_one_name(self, attempt: Any, tmp_path: Path) -> None:
        file = save(noise(), tmp_path / "a.nrrd")
        both = str(tmp_path / "b.nrrd")
        assert "same file name" in attempt(file, output=both, uncertainty=both).what

    def test_a_tile_of_two_numbers(self, attempt: Any, tmp_path: Path) -> None:
        assert "3-D" in attempt(save(noise(), tmp_path / "a.nrrd"), tile=(32, 32)).what


FULL_DISK = """
import sys
import numpy as np, SimpleITK as sitk
from MLILib import files, images
from MLILib.errors import BadInput
image = sitk.GetImageFromArray(np.random.default_rng(0).random((60, 60, 60), np.float32))
try:
    with files.Outputs() as outputs:
        images.write(image, outputs.path(sys.argv[1]), final=sys.argv[1])
except BadInput as error:
    print(error)
    sys.exit(error.exit_code)
"""


class TestFullDisk:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
    def test_a_disk_that_fills_up(self, tmp_path: Path, suffix: str) -> None:
        """On a real file system of 200 kB, which takes the right to mount one."""
        unshare = shutil.which("unshare")
        if unshare is None or sys.platform != "linux":
            pytest.skip("mounting a small file system needs Linux's unshare")
        folder = tmp_path / "small"
        folder.mkdir()
        script = f'mount -t tmpfs -o size=200k tmpfs "{folder}" || exit 77; "$@"; code=$?; ls -A "{folder}"; exit $code'
        command = [unshare, "--mount", "--map-root-user", "sh", "-c", script, "sh", sys.executable, "-c", FULL_DISK]
        done = subprocess.run([*command, str(folder / f"a{suffix}")], capture_output=True, text=True, check=False)
        if done.returncode == 77 or "unshare" in done.stderr:
            pytest.skip("mounting a small file system is not allowed here")
        assert done.returncode == 2, done.stderr
        assert "is full" in done.stdout
        assert done.stdout.strip().count("\n") == 0  # the sentence, and no file left in the folder

    def test_a_short_nifti_is_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """ITK writes half a NIfTI file without a word."""
        write = sitk.WriteImage

        def short(image: sitk.Image, path: str, compress: bool) -> None:
            write(image, path, compress)
            with open(path, "r+b") as stream:
                stream.truncate(os.path.getsize(path) // 2)

        monkeypatch.setattr(images.sitk, "WriteImage", short)
        with pytest.raises(BadInput, match="is full"), files.Outputs() as outputs:
            images.write(sitk.GetImageFromArray(noise()), outputs.path(tmp_path / "a.nii.gz"))
        assert not list(tmp_path.iterdir())

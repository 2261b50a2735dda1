"""Segmenting: the label map is what MONAI's own transforms and inferer give, on the input's grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plain_monai
import pytest
import SimpleITK as sitk
from bundle_changes import WAYS_BACK, WAYS_THERE, invert_labels
from grids import array, random_image
from plain_monai import edit, transforms
from tiny_bundle import write_tiny_bundle

from MLILib import geometry, images
from MLILib.segmentation import inference, models, prediction
from MLILib.segmentation.inference import segment
from MLILib.segmentation.inversion import MonaiChain

pytest.importorskip("nibabel", reason="MONAI's Orientation needs nibabel")
pytestmark = pytest.mark.usefixtures("no_models_kept")


class TestMonaiAgrees:
    """Label maps equal MONAI's own to the voxel."""

    @pytest.mark.parametrize("seed", range(20))
    def test_on_random_oblique_grids(self, case: Any, seed: int) -> None:
        rng = np.random.default_rng(1000 + seed)
        bundle, image, file = case(
            seed=seed,
            spacing=[float(x) for x in rng.uniform(0.8, 2.2, 3)],
            orientation=["RAS", "LPS", "PIR", "ASL"][seed % 4],
        )
        edit(bundle, WAYS_BACK[seed % 4])
        edit(bundle, WAYS_THERE[seed % 5])
        result = segment(image, str(bundle))
        expected = plain_monai.labels(bundle, [file])
        assert np.array_equal(array(result.labels), expected)
        assert len(np.unique(expected)) > 1  # a map of one label would prove nothing
        assert geometry.same_grid(result.labels, image, tolerance=0)

    def test_half_way_between_voxels(self, tmp_path: Path) -> None:
        """Spacings of 1 and 2 mm put every second voxel half way between two: nearest neighbours are ties."""
        rng = np.random.default_rng(0)
        image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(rng.normal(0, 1, (20, 22, 24))), 1.5)
        sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat32), str(tmp_path / "image.nii.gz"))
        bundle = write_tiny_bundle(tmp_path / "bundle", spacing=[2, 2, 2], orientation="LAS")
        edit(bundle, invert_labels)
        result = segment(images.read(tmp_path / "image.nii.gz"), str(bundle))
        assert np.array_equal(array(result.labels), plain_monai.labels(bundle, [tmp_path / "image.nii.gz"]))

    @pytest.mark.parametrize("dtype", ["$torch.float32", "$torch.float64"])
    @pytest.mark.parametrize("padding_mode", ["zeros", "reflection", "border"])
    def test_other_ways_to_resample(self, case: Any, padding_mode: str, dtype: str) -> None:
        bundle, image, file = case(seed=3, spacing=[1.7, 1.1, 1.3])

        def change(config: dict[str, Any]) -> None:
            step = transforms(config, "preprocessing")[3]
            step.update(padding_mode=padding_mode, dtype=dtype, align_corners=True)
            config["imports"] = ["$import torch"]

        edit(bundle, change)
        assert np.array_equal(array(segment(image, str(bundle)).labels), plain_monai.labels(bundle, [file]))

    @pytest.mark.parametrize("lazy", [False, True])
    def test_transforms_that_are_left_to_monai(self, case: Any, lazy: bool) -> None:
        bundle, image, file = case(seed=4, spacing=[1.7, 1.1, 1.3])

        def change(config: dict[str, Any]) -> None:
            before = transforms(config, "preprocessing")
            if lazy:
                config["preprocessing"]["lazy"] = True
            else:
                before.append(
                    {"_target_": "Resized", "keys": "image", "spatial_size": [30, 31, 32], "mode": "trilinear"}
                )

        edit(bundle, change)
        model = models.load(str(bundle))
        made = inference._prepare([image], [model])[0]
        assert isinstance(prediction.inversion.chain(made, model.preprocessing, nearest=False), MonaiChain)
        assert np.array_equal(array(segment(image, str(bundle)).labels), plain_monai.labels(bundle, [file]))

    def test_several_channels(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(5)
        first = random_image(rng)
        second = geometry.from_array(rng.random(array(first).shape, np.float32), first)
        files = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
        for image, file in zip((first, second), files, strict=True):
            sitk.WriteImage(image, str(file))
        bundle = write_tiny_bundle(tmp_path / "bundle", channels=2, spacing=[1.5, 1.5, 1.5])
        channels = [images.read(f) for f in files]
        assert np.array_equal(array(segment(channels, str(bundle)).labels), plain_monai.labels(bundle, files))
        swapped = array(segment(channels[::-1], str(bundle)).labels)
        assert not np.array_equal(swapped, plain_monai.labels(bundle, files))

    def test_2d_image(self, case: Any) -> None:
        bundle, image, file = case(seed=6, dims=2, spacing=[1.5, 1.0])
        result = segment(image, str(bundle))
        assert np.array_equal(array(result.labels), plain_monai.labels(bundle, [file]))
        assert geometry.same_grid(result.labels, image, tolerance=0)

    def test_2d_model_takes_a_volume_slice_by_slice(self, tmp_path: Path) -> None:
        volume = random_image(np.random.default_rng(7))
        bundle = write_tiny_bundle(tmp_path / "bundle", dims=2)
        result = array(segment(volume, str(bundle)).labels)
        for k in (0, 5, volume.GetSize()[2] - 1):
            plane = geometry.from_array(array(volume)[k], geometry.Grid.of(volume).slice_2d())
            sitk.WriteImage(plane, str(tmp_path / f"{k}.nii.gz"))
            assert np.array_equal(result[k], plain_monai.labels(bundle, [tmp_path / f"{k}.nii.gz"]))

    def test_transforms_of_the_finished_label_map(self, case: Any) -> None:
        bundle, image, file = case(seed=8, spacing=[1.5, 1.5, 1.5])
        step = {"_target_": "FillHolesd", "keys": "pred", "applied_labels": [1, 2]}
        edit(bundle, lambda config: transforms(config, "postprocessing").insert(3, step))
        assert np.array_equal(array(segment(image, str(bundle)).labels), plain_monai.labels(bundle, [file]))

    def test_transforms_of_the_label_map_on_the_models_grid(self, case: Any) -> None:
        bundle, image, file = case(seed=8, spacing=[1.5, 1.5, 1.5])
        edit(bundle, invert_labels)
        step = {"_target_": "FillHolesd", "keys": "pred", "applied_labels": [1, 2]}
        edit(bundle, lambda config: transforms(config, "postprocessing").insert(2, step))
        assert models.load(str(bundle)).post is None
        result = segment(image, str(bundle))
        assert np.array_equal(array(result.labels), plain_monai.labels(bundle, [file]))
        assert not result.warnings
        assert "in the usual way" in segment(image, str(bundle), uncertainty=True).warnings[0]


class TestKeepLargest:
    def test_one_component_a_label_is_left(self, case: Any) -> None:
        bundle, image, _ = case(seed=8)
        everything, kept = (array(segment(image, str(bundle), keep_largest=k).labels) for k in (False, True))
        for value in (1, 2):
            found = sitk.RelabelComponent(
                sitk.ConnectedComponent(sitk.GetImageFromArray((everything == value) * 1), True)
            )
            assert np.array_equal(kept == value, array(found) == 1)
        assert (everything != kept).any()

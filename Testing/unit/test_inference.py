"""Segmenting: what comes out is what MONAI's own transforms and inferer give, on the input's grid."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain_monai
import pytest
import SimpleITK as sitk
import torch
from grids import place, random_image
from monai.transforms import Spacingd
from plain_monai import edit, transforms
from tiny_bundle import write_tiny_bundle

from MLILib import geometry, images, tasks
from MLILib.errors import BadInput, Cancelled, OutOfMemory
from MLILib.progress import Progress
from MLILib.segmentation import inference, models, prediction, resampling
from MLILib.segmentation.inference import segment
from MLILib.segmentation.inversion import Chain, MonaiChain

pytest.importorskip("nibabel", reason="MONAI's Orientation needs nibabel")


@pytest.fixture(autouse=True)
def _no_models_kept() -> Any:
    yield
    models.forget_all()


@pytest.fixture
def case(tmp_path: Path) -> Callable[..., tuple[Path, sitk.Image, Path]]:
    """Writes a bundle and an image on a random grid; gives the bundle, the image as read back, and its file."""

    def make(seed: int = 0, dims: int = 3, low: int = 18, **options: Any) -> tuple[Path, sitk.Image, Path]:
        file = tmp_path / "image.nii.gz"
        sitk.WriteImage(random_image(np.random.default_rng(seed), dims, low, low + 14), str(file))
        bundle = write_tiny_bundle(tmp_path / "bundle", seed=seed, dims=dims, **options)
        return bundle, images.read(file), file

    return make


def array(image: sitk.Image | None) -> np.ndarray:
    assert image is not None
    return sitk.GetArrayFromImage(image)


def swap_inversion_and_activation(config: dict[str, Any]) -> None:
    after = transforms(config, "postprocessing")
    after[0], after[1] = after[1], after[0]


def invert_labels(config: dict[str, Any]) -> None:
    after = transforms(config, "postprocessing")
    after[1], after[2] = after[2], after[1]
    after[2]["nearest_interp"] = True


def invert_nearest(config: dict[str, Any]) -> None:
    transforms(config, "postprocessing")[1]["nearest_interp"] = True


def leave(config: dict[str, Any]) -> None:
    del config


def crop(config: dict[str, Any]) -> None:
    transforms(config, "preprocessing").append(
        {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "margin": 2,
         "select_fn": "$lambda x: x > 0.4", "allow_smaller": True}
    )  # fmt: skip


def pad(config: dict[str, Any]) -> None:
    transforms(config, "preprocessing").append({"_target_": "SpatialPadd", "keys": "image", "spatial_size": [44] * 3})


def turn(config: dict[str, Any]) -> None:
    transforms(config, "preprocessing").extend(
        [
            {"_target_": "Flipd", "keys": "image", "spatial_axis": 1},
            {"_target_": "Rotate90d", "keys": "image", "k": 3, "spatial_axes": [0, 2]},
        ]
    )


def resample_to_world(config: dict[str, Any]) -> None:
    transforms(config, "preprocessing")[3]["diagonal"] = True


WAYS_BACK = (leave, swap_inversion_and_activation, invert_labels, invert_nearest)
WAYS_THERE = (leave, crop, pad, turn, resample_to_world)


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


class TestBoundedMemory:
    @pytest.mark.parametrize("there", [leave, resample_to_world, crop])
    def test_slabs_and_strips_change_nothing(
        self, case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Callable[[dict[str, Any]], None]
    ) -> None:
        """Two models whose axes run against each other, so that one of them is read from its end."""
        bundle, image, _ = case(seed=9, spacing=[0.9, 1.4, 0.8], orientation="PIR")
        other = write_tiny_bundle(tmp_path / "other", seed=8, spacing=[1.5, 1.1, 1.3], orientation="ASL")
        pair = [str(edit(b, there)) for b in (bundle, other)]
        whole = segment(image, pair, probabilities=True, uncertainty=True)
        monkeypatch.setattr(prediction, "SLAB", 3 * 24 * 3000)
        monkeypatch.setattr(prediction, "SUMS", 400_000)
        monkeypatch.setattr(prediction, "NARROWEST", 8)
        parts = segment(image, pair, probabilities=True, uncertainty=True)
        np.testing.assert_allclose(array(parts.probabilities), array(whole.probabilities), atol=1e-5)
        np.testing.assert_allclose(array(parts.mutual_information), array(whole.mutual_information), atol=1e-4)
        assert (array(parts.labels) != array(whole.labels)).mean() < 1e-3  # a tie may fall the other way

    @pytest.mark.parametrize("seed", range(6))
    def test_large_images_are_resampled_as_monai_does(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resampling, "LARGE", 0)
        monkeypatch.setattr(resampling, "SLAB", 24 * 30 * 30 * 7)
        first, second = geometry.to_tensor(random_image(np.random.default_rng(seed))), torch.zeros(0)
        spacing = Spacingd("image", [1.1, 1.3, 0.9], padding_mode=["border", "zeros"][seed % 2], diagonal=seed % 3 == 2)
        ours, theirs = resampling.resampled(spacing, {"image": first, "other": second}), spacing({"image": first})
        assert ours is not None
        assert ours["other"] is second
        torch.testing.assert_close(ours["image"].as_tensor(), theirs["image"].as_tensor(), rtol=1e-6, atol=0)
        torch.testing.assert_close(ours["image"].affine, theirs["image"].affine)
        again = spacing.inverse(ours)["image"]
        torch.testing.assert_close(again.as_tensor(), spacing.inverse(theirs)["image"].as_tensor())

    def test_resampling_that_changes_nothing_is_left_to_monai(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resampling, "LARGE", 0)
        image = geometry.to_tensor(sitk.GetImageFromArray(np.random.default_rng(0).random((9, 8, 7), np.float32)))
        assert resampling.resampled(Spacingd("image", [1, 1, 1]), {"image": image}) is None

    def test_it_really_was_cut(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        bundle, image, _ = case(seed=9, spacing=[0.9, 1.4, 0.8], orientation="PIR")
        model = models.load(str(bundle))
        made = inference._prepare([image], [model])[0]
        job = prediction.Job(model, made, model.default_post)
        setup = inference.Setup((model.tiling_for((), 0.5),), (1,), torch.device("cpu"), torch.device("cpu"))
        assert isinstance(job.chain, Chain)
        monkeypatch.setattr(prediction, "SUMS", 400_000)
        monkeypatch.setattr(prediction, "NARROWEST", 4)
        axis = prediction._stream_axis(job)
        assert job.chain.axis(axis) == 0
        assert len(prediction._strips([job], setup, prediction.Wanted(), made.shape, axis)) > 1


class TestUncertainty:
    def probabilities(self, bundle: Path, file: Path, flips: tuple[int, ...] = ()) -> np.ndarray:
        """MONAI's softmax on the input's grid, (z, y, x, class)."""
        return np.moveaxis(plain_monai.run(bundle, [file], flips).numpy(), 0, -1).transpose(2, 1, 0, 3)

    @staticmethod
    def never_decide(config: dict[str, Any]) -> None:
        del transforms(config, "postprocessing")[2]

    def test_flips_are_averaged(self, case: Any) -> None:
        bundle, image, file = case(seed=10, spacing=[1.5, 1.2, 1.4])
        edit(bundle, self.never_decide)
        sets = [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
        mean = np.mean([self.probabilities(bundle, file, flips) for flips in sets], axis=0)
        result = segment(image, str(bundle), tta=True, probabilities=True, uncertainty=True)
        np.testing.assert_allclose(array(result.probabilities), mean[..., 1:], atol=1e-5)
        np.testing.assert_allclose(array(result.entropy), -(mean * np.log(mean)).sum(-1), atol=1e-4)
        own = [-(p * np.log(p)).sum(-1) for p in (self.probabilities(bundle, file, flips) for flips in sets)]
        expected = -(mean * np.log(mean)).sum(-1) - np.mean(own, axis=0)
        np.testing.assert_allclose(array(result.mutual_information), expected, atol=1e-4)

    def test_ensemble_mean_and_mutual_information(self, case: Any, tmp_path: Path) -> None:
        bundle, image, file = case(seed=11, spacing=[1.5, 1.2, 1.4])
        other = write_tiny_bundle(tmp_path / "other", seed=99, spacing=[1.1, 1.9, 1.3], orientation="PIL")
        for b in (bundle, other):
            edit(b, self.never_decide)
        each = [self.probabilities(b, file) for b in (bundle, other)]
        mean = np.mean(each, axis=0)
        total = -(mean * np.log(mean)).sum(-1)
        inner = np.mean([-(p * np.log(p)).sum(-1) for p in each], axis=0)
        result = segment(image, [str(bundle), str(other)], probabilities=True, uncertainty=True)
        np.testing.assert_allclose(array(result.probabilities), mean[..., 1:], atol=1e-5)
        np.testing.assert_allclose(array(result.entropy), total, atol=1e-4)
        np.testing.assert_allclose(array(result.mutual_information), total - inner, atol=1e-4)
        assert (array(result.labels) != mean.argmax(-1)).mean() < 1e-4

    def test_majority_vote(self, case: Any, tmp_path: Path) -> None:
        bundle, image, file = case(seed=12)
        trio = [bundle, *(write_tiny_bundle(tmp_path / f"m{i}", seed=50 + i) for i in range(2))]
        votes = np.stack([plain_monai.labels(b, [file]) for b in trio])
        result = array(segment(image, [str(b) for b in trio], ensemble="vote").labels)
        counts = np.stack([(votes == k).sum(0) for k in range(3)])
        decided = counts.max(0) >= 2
        assert decided.mean() > 0.5
        assert np.array_equal(result[decided], counts.argmax(0)[decided])

    def test_a_tied_vote_goes_to_the_mean(self, case: Any, tmp_path: Path) -> None:
        bundle, image, _ = case(seed=13)
        pair = [str(bundle), str(write_tiny_bundle(tmp_path / "m", seed=77))]
        mean, vote = (array(segment(image, pair, ensemble=how).labels) for how in ("mean", "vote"))
        each = np.stack([array(segment(image, b).labels) for b in pair])
        tied = each[0] != each[1]
        assert tied.any()
        between = (mean == each[0]) | (mean == each[1])
        assert np.array_equal(vote[tied & between], mean[tied & between])

    def test_one_dropout_sample_has_no_mutual_information(self, case: Any) -> None:
        bundle, image, _ = case(seed=14, dropout=0.3)
        result = segment(image, str(bundle), mc_dropout=1, uncertainty=True)
        assert array(result.mutual_information).max() == 0
        assert array(result.entropy).dtype == np.float32

    def test_dropout_samples_disagree_within_bounds(self, case: Any) -> None:
        bundle, image, _ = case(seed=14, dropout=0.3)
        result = segment(image, str(bundle), mc_dropout=4, uncertainty=True, probabilities=True)
        information, entropy = array(result.mutual_information), array(result.entropy)
        assert information.max() > 0
        assert (information >= 0).all()
        assert (information <= entropy + 1e-5).all()
        assert entropy.max() <= math.log(3) + 1e-5

    def test_a_seed_repeats_the_samples(self, case: Any) -> None:
        bundle, image, _ = case(seed=14, dropout=0.3)
        take = functools.partial(segment, image, str(bundle), mc_dropout=2, probabilities=True)
        first = array(take(seed=1).probabilities)
        before = torch.random.get_rng_state()
        again, other = (array(take(seed=s).probabilities) for s in (1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_dropout_is_off_afterwards(self, case: Any) -> None:
        bundle, image, file = case(seed=14, dropout=0.3)
        segment(image, str(bundle), mc_dropout=2)
        assert np.array_equal(array(segment(image, str(bundle)).labels), plain_monai.labels(bundle, [file]))

    def test_a_network_without_dropout_is_refused(self, case: Any) -> None:
        bundle, image, _ = case()
        with pytest.raises(BadInput, match="has no dropout"):
            segment(image, str(bundle), mc_dropout=4)

    def test_asking_for_uncertainty_does_not_change_the_labels(self, case: Any) -> None:
        bundle, image, _ = case(seed=15, spacing=[1.5, 1.2, 1.4])
        for change in WAYS_BACK:
            edit(bundle, change)
            plain = array(segment(image, str(bundle)).labels)
            assert np.array_equal(
                array(segment(image, str(bundle), uncertainty=True, probabilities=True).labels), plain
            )


class TestOverlappingLabels:
    @staticmethod
    def let_overlap(bundle: Path) -> Path:
        """Make a bundle decide each channel by itself, none of them background."""

        def change(config: dict[str, Any]) -> None:
            after = transforms(config, "postprocessing")
            after[0] = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
            after[2] = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}

        edit(bundle, change)
        file = bundle / "configs" / "metadata.json"
        data = json.loads(file.read_text(encoding="utf-8"))
        data["network_data_format"]["outputs"]["pred"]["channel_def"] = {"0": "core", "1": "whole", "2": "rim"}
        data.pop("mli")
        file.write_text(json.dumps(data), encoding="utf-8")
        return bundle

    def test_each_channel_as_monai_decides_it(self, case: Any) -> None:
        bundle, image, file = case(seed=16, spacing=[1.5, 1.2, 1.4])
        self.let_overlap(bundle)
        expected = plain_monai.run(bundle, [file]).numpy().astype(int)
        result = segment(image, str(bundle))
        assert np.array_equal(np.moveaxis(array(result.layers), -1, 0), expected.transpose(0, 3, 2, 1))
        assert [(v.label.value, v.label.name) for v in result.volumes] == [(1, "core"), (2, "whole"), (3, "rim")]
        assert [v.voxels for v in result.volumes] == expected.sum((1, 2, 3)).tolist()

    def test_smaller_labels_lie_on_top(self, case: Any) -> None:
        bundle, image, _ = case(seed=16)
        result = segment(image, str(self.let_overlap(bundle)))
        layers, labels = array(result.layers), array(result.labels)
        smallest = min(result.volumes, key=lambda v: v.voxels)
        assert np.array_equal(labels == smallest.label.value, layers[..., smallest.label.value - 1] == 1)
        assert np.array_equal(labels > 0, layers.any(-1))

    def test_entropy_is_the_sum_of_the_labels_own(self, case: Any) -> None:
        bundle, image, _ = case(seed=16)
        result = segment(image, str(self.let_overlap(bundle)), probabilities=True, uncertainty=True)
        p = array(result.probabilities).astype(float)
        expected = -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum(-1)
        np.testing.assert_allclose(array(result.entropy), expected, atol=1e-4)

    def test_a_vote_is_taken_label_by_label(self, case: Any, tmp_path: Path) -> None:
        bundle, image, file = case(seed=16)
        trio = [bundle, *(write_tiny_bundle(tmp_path / f"m{i}", seed=60 + i) for i in range(2))]
        each = np.stack([plain_monai.run(self.let_overlap(b), [file]).numpy() for b in trio])
        result = array(segment(image, [str(b) for b in trio], ensemble="vote").layers)
        assert np.array_equal(np.moveaxis(result, -1, 0), (each.sum(0) >= 2).transpose(0, 3, 2, 1))


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


class TestMemoryRunsOut:
    @staticmethod
    def limit(monkeypatch: pytest.MonkeyPatch, voxels: int, devices: tuple[str, ...] = ("cpu",)) -> None:
        """Let every network raise as torch does when a batch has more voxels than there is room for."""
        load = models.bundles.network

        def limited(bundle: Any, device: torch.device) -> torch.nn.Module:
            network = load(bundle, device)

            def check(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                if device.type in devices and inputs[0][:, 0].numel() > voxels:
                    msg = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
                    raise RuntimeError(msg)

            network.register_forward_pre_hook(check)
            return network

        monkeypatch.setattr(models.bundles, "network", limited)

    def test_the_batch_shrinks_first(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        bundle, image, file = case(seed=17, low=34)
        self.limit(monkeypatch, 32**3)
        result = segment(image, str(bundle))
        assert np.array_equal(array(result.labels), plain_monai.labels(bundle, [file]))
        assert "one window at a time" in result.warnings[0]

    def test_then_the_window(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        bundle, image, _ = case(seed=17, low=34)
        self.limit(monkeypatch, 48 * 32 * 32)
        result = segment(image, str(bundle), tile=[64, 64, 64])
        assert math.prod(result.windows[0]) <= 48 * 32 * 32
        assert "windows of" in result.warnings[-1]
        same = segment(image, str(bundle), tile=result.windows[0])
        assert np.array_equal(array(result.labels), array(same.labels))

    def test_then_there_is_a_sentence(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        bundle, image, _ = case(seed=17, low=34)
        self.limit(monkeypatch, 1000)
        with pytest.raises(OutOfMemory, match="not even with the smallest windows") as caught:
            segment(image, str(bundle))
        assert caught.value.exit_code == 3

    def test_another_error_is_not_taken_for_it(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        bundle, image, _ = case(seed=17, low=34)

        def broken(*_: Any) -> None:
            msg = "something else"
            raise RuntimeError(msg)

        monkeypatch.setattr(inference, "predict", broken)
        with pytest.raises(RuntimeError, match="something else"):
            segment(image, str(bundle))

    def test_little_free_memory_shrinks_the_window_at_once(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        bundle, image, _ = case(seed=17, low=34)
        monkeypatch.setattr(inference.devices, "free_memory", lambda device: 40_000_000)
        result = segment(image, str(bundle), tile=[96, 96, 96])
        assert "Little memory is free on the CPU" in result.warnings[0]
        assert math.prod(result.windows[0]) < 96**3


class TestWindows:
    def test_a_window_that_the_network_cannot_take(self, case: Any) -> None:
        bundle, image, _ = case()
        with pytest.raises(BadInput, match="fails on a window of 16 x 16 x 16"):  # one voxel at the lowest level
            segment(image, str(bundle), tile=[16])

    def test_tile_and_overlap_are_heeded(self, case: Any) -> None:
        bundle, image, file = case(seed=17, low=34)

        def change(config: dict[str, Any]) -> None:
            config["inferer"].update(roi_size=[48, 32, 32], overlap=0.25)

        result = segment(image, str(bundle), tile=[48, 32, 32], overlap=0.25)
        assert result.windows == [[48, 32, 32]]
        assert np.array_equal(array(result.labels), plain_monai.labels(edit(bundle, change), [file]))

    def test_metadata_that_name_other_outputs_are_refused(self, case: Any) -> None:
        bundle, image, _ = case(labels=("a", "b", "c"))
        file = bundle / "configs" / "metadata.json"
        data = json.loads(file.read_text(encoding="utf-8"))
        data["network_data_format"]["outputs"]["pred"]["num_channels"] = 3
        file.write_text(json.dumps(data), encoding="utf-8")
        with pytest.raises(BadInput, match="has 4 outputs, but its metadata name 3"):
            segment(image, str(bundle))

    def test_a_network_that_answers_nan(self, case: Any) -> None:
        bundle, image, _ = case()
        state = torch.load(bundle / "models" / "model.pt", weights_only=True)
        next(iter(state.values())).fill_(float("nan"))
        torch.save(state, bundle / "models" / "model.pt")
        with pytest.raises(BadInput, match="NaN or infinite"):
            segment(image, str(bundle))


class TestEnsembleMustAgree:
    def test_other_labels_are_refused(self, case: Any, tmp_path: Path) -> None:
        bundle, image, _ = case()
        other = write_tiny_bundle(tmp_path / "other", labels=("a", "c"))
        with pytest.raises(BadInput, match="different labels: a, b and a, c"):
            segment(image, [str(bundle), str(other)])

    def test_other_dimensions_are_refused(self, case: Any, tmp_path: Path) -> None:
        bundle, image, _ = case()
        other = write_tiny_bundle(tmp_path / "other", dims=2)
        with pytest.raises(BadInput, match="3-D, other 2-D"):
            segment(image, [str(bundle), str(other)])


class TestRequest:
    """The task as the command line and the worker run it."""

    @pytest.fixture
    def request_of(self, case: Any, tmp_path: Path) -> Callable[..., tasks.SegmentRequest]:
        bundle, _, file = case(seed=18, low=34, spacing=[1.1, 1.2, 1.4], dropout=0.2)

        def make(**options: Any) -> tasks.SegmentRequest:
            options.setdefault("output", str(tmp_path / "out.nii.gz"))
            return tasks.SegmentRequest(images=(str(file),), model=(str(bundle),), **options)

        return make

    def test_files_and_result(self, request_of: Any, tmp_path: Path) -> None:
        request = request_of(
            mc_dropout=2, uncertainty=str(tmp_path / "u.nrrd"), probabilities=str(tmp_path / "p.nii.gz"), seed=5
        )
        result = tasks.run(request)
        json.dumps(result, allow_nan=False)
        image = sitk.ReadImage(request.images[0])
        for key in ("output", "uncertainty", "mutual_information", "probabilities"):
            assert geometry.same_grid(sitk.ReadImage(result[key]), image)
        assert result["mutual_information"] == str(tmp_path / "u_mutual_information.nrrd")
        labels = array(sitk.ReadImage(result["output"]))
        assert labels.dtype == np.uint8
        for entry in result["labels"]:
            assert entry["voxels"] == int((labels == entry["value"]).sum())
            assert entry["volume_ml"] == pytest.approx(entry["voxels"] * math.prod(image.GetSpacing()) / 1000)
            assert entry["name"] in result["text"]
        assert array(sitk.ReadImage(result["uncertainty"])).dtype == np.float32
        assert sitk.ReadImage(result["probabilities"]).GetNumberOfComponentsPerPixel() == 2
        assert {"Reading", "Preparing", "Segmenting", "Writing"} <= set(result["stages"])
        assert result["seconds"] >= sum(result["stages"].values()) * 0.99
        assert not list(tmp_path.glob(".*"))  # nothing half-written is left

    def test_every_format(self, request_of: Any, tmp_path: Path) -> None:
        arrays = []
        for suffix in (".nii.gz", ".nii", ".nrrd", ".mha", ".seg.nrrd"):
            tasks.run(request_of(output=str(tmp_path / f"out{suffix}")))
            arrays.append(array(sitk.ReadImage(str(tmp_path / f"out{suffix}"))))
        assert all(np.array_equal(arrays[0], other) for other in arrays[1:])

    def test_progress_rises_to_one(self, request_of: Any) -> None:
        events: list[dict[str, Any]] = []
        tasks.run(request_of(), Progress(events.append, interval=0))
        stage, fractions = "", []
        for event in events:
            stage = event["name"] if event["event"] == "stage" else stage
            if event["event"] == "fraction" and stage == "Segmenting":
                fractions.append(event["value"])
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        assert len(fractions) > 2

    def test_cancel_leaves_nothing(self, request_of: Any, tmp_path: Path) -> None:
        events: list[dict[str, Any]] = []
        before = sorted(p.name for p in tmp_path.iterdir())
        progress = Progress(events.append, interval=0, cancelled=lambda: any(e["event"] == "fraction" for e in events))
        with pytest.raises(Cancelled):
            tasks.run(request_of(), progress)
        assert sorted(p.name for p in tmp_path.iterdir()) == before

    def test_a_second_request_loads_nothing(self, request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        first = tasks.run(request_of())
        monkeypatch.setattr(models.bundles, "network", lambda *_: pytest.fail("the network was loaded again"))
        second = tasks.run(request_of())
        assert "Loading the model" in first["stages"]
        assert "Loading the model" not in second["stages"]

    def test_changed_weights_are_another_model(self, request_of: Any) -> None:
        request = request_of()
        first = tasks.run(request)
        write_tiny_bundle(Path(request.model[0]), seed=123, spacing=[1.1, 1.2, 1.4], dropout=0.2)
        second = tasks.run(request)
        assert first["model"][0]["sha256"] != second["model"][0]["sha256"]
        assert first["labels"] != second["labels"]

    def test_left_handed_2d_in_3d_and_far_away(self, tmp_path: Path) -> None:
        image = place(
            sitk.GetImageFromArray(np.random.default_rng(0).random((1, 30, 40), np.float32)), np.random.default_rng(3)
        )
        sitk.WriteImage(image, str(tmp_path / "one_slice.nrrd"))
        bundle = write_tiny_bundle(tmp_path / "bundle", dims=2)
        result = tasks.run(
            tasks.SegmentRequest((str(tmp_path / "one_slice.nrrd"),), (str(bundle),), str(tmp_path / "out.nrrd"))
        )
        assert geometry.same_grid(sitk.ReadImage(result["output"]), image)

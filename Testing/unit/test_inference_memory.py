"""Segmenting in little memory: slabs and strips change nothing, and windows shrink when it runs out."""

from __future__ import annotations

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
from bundle_changes import crop, leave, resample_to_world
from grids import array, random_image
from monai.transforms import Spacingd
from plain_monai import edit
from tiny_bundle import write_tiny_bundle

from MLILib import geometry
from MLILib.errors import BadInput, OutOfMemory
from MLILib.segmentation import inference, models, prediction, resampling
from MLILib.segmentation.inference import segment
from MLILib.segmentation.inversion import Chain

pytest.importorskip("nibabel", reason="MONAI's Orientation needs nibabel")
pytestmark = pytest.mark.usefixtures("no_models_kept")


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

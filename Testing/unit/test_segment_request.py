"""The task of segmenting as the command line and the worker run it: files, formats, progress, cancel."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from grids import array, place
from tiny_bundle import write_tiny_bundle

from MLILib import geometry, tasks
from MLILib.errors import Cancelled
from MLILib.progress import Progress
from MLILib.segmentation import models

pytest.importorskip("nibabel", reason="MONAI's Orientation needs nibabel")
pytestmark = pytest.mark.usefixtures("no_models_kept")


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

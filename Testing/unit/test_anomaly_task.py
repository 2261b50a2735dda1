"""mli anomaly: images, stacks and volumes on any grid in; maps, findings and figures out; bad input in one sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from tiny_anomaly import ball, discs, write_discs  # noqa: E402

from MLILib import tasks  # noqa: E402
from MLILib.anomaly import intensity, loading, planes, scoring, sources  # noqa: E402
from MLILib.anomaly.look import look  # noqa: E402
from MLILib.anomaly.models import NormalModel  # noqa: E402
from MLILib.anomaly.requests import AnomalyRequest, TrainAnomalyRequest  # noqa: E402
from MLILib.anomaly.search import search  # noqa: E402
from MLILib.errors import BadInput  # noqa: E402
from MLILib.progress import Progress  # noqa: E402

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"filters": 4, "latent": 4, "steps": 2, "batch": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of 20 x 20 images."""
    folder = tmp_path_factory.mktemp("plain")
    data = write_discs(folder / "normal.npz")
    tasks.run(TrainAnomalyRequest(data, str(folder / "bundle"), model="ae", **SMALL))
    return str(folder / "bundle")


@pytest.fixture(scope="module")
def solid(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of patches of three planes of two balls, one of which holds what is to be left out."""
    folder = tmp_path_factory.mktemp("solid")
    entries = []
    for i in range(2):
        image = ball(seed=i)
        sitk.WriteImage(image, str(folder / f"case{i}.nii.gz"))
        entries.append({"image": f"case{i}.nii.gz"})
    lesions = np.zeros(sitk.GetArrayFromImage(ball()).shape, np.uint8)
    lesions[16:20, 20:24, 18:22] = 1
    mask = sitk.GetImageFromArray(lesions)
    sitk.WriteImage(mask, str(folder / "lesions.nii.gz"))
    entries[0]["exclude"] = "lesions.nii.gz"
    (folder / "dataset.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    request = TrainAnomalyRequest(
        str(folder / "dataset.json"), str(folder / "bundle"), model="denoising-ae", plane="patch-3", size=16,
        tail="bright", smooth=0.7, **SMALL,
    )  # fmt: skip
    tasks.run(request)
    return str(folder / "bundle")


class TestStacks:
    def test_one_score_an_image_and_the_baselines_beside(self, plain: str, tmp_path: Path) -> None:
        stack = np.concatenate([discs(10, seed=5), 255 - discs(6, seed=6)])
        labels = np.array([0] * 10 + [1] * 6)
        np.savez(tmp_path / "new.npz", images=stack, labels=labels)
        request = AnomalyRequest(
            str(tmp_path / "new.npz"), plain, output=str(tmp_path / "map.npz"), report=str(tmp_path / "report.json")
        )
        result = tasks.run(request)
        assert len(result["image_scores"]) == 16
        assert {"combined", "low spread", "PCA residual"} <= set(result["evaluation"])
        assert result["image_threshold"] is not None
        written = np.load(tmp_path / "map.npz")
        assert written["maps"].shape == (16, 20, 20)
        assert written["image_scores"].tolist() == pytest.approx(result["image_scores"])
        assert Path(result["pictures"]["curves"]).is_file()
        assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["method"] == "combined"
        assert Path(result["record"]).is_file()
        json.dumps(result, allow_nan=False)

    def test_scores_do_not_hang_on_contrast_or_company(self, plain: str, tmp_path: Path) -> None:
        stack = discs(5, seed=9).astype(np.float32)
        np.savez(tmp_path / "a.npz", images=stack)
        np.savez(tmp_path / "b.npz", images=stack[2:3] * 7.0 - 1000.0)
        first, second = (
            tasks.run(AnomalyRequest(str(tmp_path / f"{n}.npz"), plain))["image_scores"] for n in ("a", "b")
        )
        assert second[0] == pytest.approx(first[2], rel=1e-3, abs=1e-4)

    def test_images_of_another_size_are_refused(self, plain: str, tmp_path: Path) -> None:
        np.savez(tmp_path / "new.npz", images=discs(3, side=28))
        with pytest.raises(BadInput, match=r"28 x 28 pixels, .* trained on 20 x 20") as caught:
            tasks.run(AnomalyRequest(str(tmp_path / "new.npz"), plain, output=str(tmp_path / "map.npz")))
        assert "another size" in caught.value.cause
        assert not (tmp_path / "map.npz").exists()

    def test_a_method_the_model_lacks_is_refused(self, plain: str, tmp_path: Path) -> None:
        data = write_discs(tmp_path / "new.npz", 3)
        with pytest.raises(BadInput, match=r"cannot score by 'anogan'"):
            tasks.run(AnomalyRequest(data, plain, method="anogan"))

    def test_an_array_that_is_not_there(self, plain: str, tmp_path: Path) -> None:
        data = write_discs(tmp_path / "new.npz", 3)
        with pytest.raises(BadInput, match=r"no array 'val_images'"):
            tasks.run(AnomalyRequest(data, plain, array="val_images"))

    def test_another_modality_is_warned_of(self, plain: str, tmp_path: Path) -> None:
        spots = np.zeros((4, 20, 20), np.float32)
        spots[:, 3, 3], spots[:, 12, 8] = 1000.0, 800.0
        np.savez(tmp_path / "new.npz", images=spots)
        result = tasks.run(AnomalyRequest(str(tmp_path / "new.npz"), plain))
        assert any("another modality" in warning for warning in result["warnings"])

    def test_a_volume_is_refused(self, plain: str, tmp_path: Path) -> None:
        sitk.WriteImage(ball(), str(tmp_path / "ball.nii.gz"))
        with pytest.raises(BadInput, match=r"3-D, but the model .* 2-D images"):
            tasks.run(AnomalyRequest(str(tmp_path / "ball.nii.gz"), plain, output=str(tmp_path / "map.nii.gz")))


def test_a_2d_image_gets_a_map_on_its_grid(plain: str) -> None:
    image = sitk.GetImageFromArray(discs(1, seed=4)[0].astype(np.float32))
    image.SetSpacing((0.5, 0.7))
    image.SetOrigin((3.0, -2.0))
    found = look(image, loading.load(plain, CPU))
    assert found.map.GetSize() == image.GetSize()
    assert found.map.GetSpacing() == image.GetSpacing()
    assert found.map.GetOrigin() == image.GetOrigin()


class TestVolumes:
    def test_map_findings_table_report(self, solid: str, tmp_path: Path) -> None:
        image = ball(seed=7)
        array = sitk.GetArrayFromImage(image)
        array[array > 115] -= 30.0  # one tissue, so that the block alone stands out
        array[18:22, 26:30, 18:22] = 220.0
        bright = sitk.GetImageFromArray(array)
        bright.SetOrigin((10.0, 20.0, 30.0))
        truth = sitk.GetImageFromArray((array == 220).astype(np.uint8))
        truth.CopyInformation(bright)
        sitk.WriteImage(bright, str(tmp_path / "new.nii.gz"))
        sitk.WriteImage(truth, str(tmp_path / "truth.nii.gz"))
        out = {n: str(tmp_path / f"{n}.nii.gz") for n in ("output", "findings", "reconstruction")}
        request = AnomalyRequest(
            str(tmp_path / "new.nii.gz"), solid, reference=str(tmp_path / "truth.nii.gz"),
            table=str(tmp_path / "found.csv"), report=str(tmp_path / "report.json"), threshold=100.0, **out,
        )  # fmt: skip
        result = tasks.run(request)
        written = sitk.ReadImage(out["output"])
        assert written.GetPixelID() == sitk.sitkFloat32
        assert written.GetOrigin() == bright.GetOrigin()
        assert result["false_positive_rate"] == pytest.approx(0.0)
        assert len(result["slice_scores"]) == 36
        assert {"combined", "high intensity", "findings"} <= set(result["evaluation"])
        row = result["findings_table"][0]
        # The bright block's middle: index (19.5, 27.5, 19.5) from the origin, 1 mm voxels.
        assert row["centre_lps"] == pytest.approx([29.5, 47.5, 49.5], abs=1.0)
        assert row["centre_ras"] == pytest.approx([-row["centre_lps"][0], -row["centre_lps"][1], row["centre_lps"][2]])
        assert (tmp_path / "found.csv").read_text(encoding="utf-8").startswith("label,volume_ml,peak,mean,x_lps")
        assert sitk.ReadImage(out["findings"]).GetSize() == bright.GetSize()
        json.dumps(result, allow_nan=False)

    @pytest.mark.parametrize("code", ["RAI", "ASL", "PIR"])
    def test_the_order_of_axes_does_not_matter(self, solid: str, code: str) -> None:
        loaded = loading.load(solid, CPU)
        image = ball(seed=3)
        straight = look(image, loaded)
        turned = look(sitk.DICOMOrient(image, code), loaded)
        back = sitk.DICOMOrient(turned.map, "LPS")
        assert np.allclose(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(straight.map), atol=1e-4)
        assert turned.slices.tolist() == pytest.approx(straight.slices.tolist(), nan_ok=True, abs=1e-4)

    def test_an_oblique_left_handed_grid_keeps_its_map_in_place(self, solid: str) -> None:
        image = ball(seed=3)
        turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, -1.0]])
        image.SetDirection(turn.ravel().tolist())
        image.SetOrigin((5.0, 6.0, 7.0))
        found = look(image, loading.load(solid, CPU))
        assert found.map.GetDirection() == pytest.approx(image.GetDirection())
        assert found.map.GetOrigin() == pytest.approx(image.GetOrigin())
        assert found.foreground.GetSize() == image.GetSize()

    def test_a_mask_on_another_grid_is_refused(self, solid: str, tmp_path: Path) -> None:
        sitk.WriteImage(ball(), str(tmp_path / "new.nii.gz"))
        mask = sitk.Cast(ball() > 50, sitk.sitkUInt8)
        mask.SetOrigin((0.0, 0.0, 4.0))
        sitk.WriteImage(mask, str(tmp_path / "mask.nii.gz"))
        request = AnomalyRequest(
            str(tmp_path / "new.nii.gz"), solid, mask=str(tmp_path / "mask.nii.gz"), output=str(tmp_path / "o.nii.gz")
        )
        with pytest.raises(BadInput, match=r"The mask is not on the image's grid"):
            tasks.run(request)
        assert not (tmp_path / "o.nii.gz").exists()

    def test_other_intensities_are_warned_of(self, solid: str) -> None:
        image = ball(seed=1)
        array = sitk.GetArrayFromImage(image)
        rng = np.random.default_rng(0)
        strange = np.where(array > 50, rng.exponential(40, array.shape) + 20, 0).astype(np.float32)
        found = look(sitk.GetImageFromArray(strange), loading.load(solid, CPU))
        assert any("another modality" in w for w in found.warnings)

    def test_other_voxels_are_warned_of(self, solid: str) -> None:
        image = ball(seed=1)
        image.SetSpacing((3.0, 3.0, 3.0))
        found = look(image, loading.load(solid, CPU))
        assert any("mm, those that the model" in w for w in found.warnings)

    def test_a_blank_image_is_refused(self, solid: str) -> None:
        with pytest.raises(BadInput, match=r"is 5 everywhere"):
            look(sitk.GetImageFromArray(np.full((20, 20, 20), 5.0, np.float32)), loading.load(solid, CPU))


class TestTrainingVolumes:
    def test_what_is_left_out_is_never_shown(self, tmp_path: Path) -> None:
        array = sitk.GetArrayFromImage(ball())
        lesion = np.zeros(array.shape, np.uint8)
        lesion[14:22, 18:24, 16:22] = 1
        array[lesion > 0] = 300.0
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(lesion), str(tmp_path / "l.nii.gz"))
        entry = {"training": [{"image": "a.nii.gz", "mask": "l.nii.gz"}]}
        (tmp_path / "dataset.json").write_text(json.dumps(entry), encoding="utf-8")
        for model, plane in (("ae", "axial"), ("denoising-ae", "patch-3")):
            request = TrainAnomalyRequest(
                str(tmp_path / "dataset.json"), str(tmp_path / "b"), model=model, plane=plane, size=16, **SMALL
            )
            if plane == "axial":  # 8 of the slices are left out, which leaves too few
                with pytest.raises(BadInput, match=r"normal slices"):
                    sources.read(request, Progress())
                continue
            source = sources.read(request, Progress())
            x, weight = source.draw(200, torch.Generator().manual_seed(0))
            assert float(x.max()) < 0.9  # the lesion would be cut off at 1
            assert 0 < float(weight.mean()) < 1

    def test_a_mask_on_another_grid_is_refused(self, tmp_path: Path) -> None:
        sitk.WriteImage(ball(), str(tmp_path / "a.nii.gz"))
        sitk.WriteImage(sitk.Cast(ball((30, 30, 30)) > 50, sitk.sitkUInt8), str(tmp_path / "l.nii.gz"))
        entry = {"training": [{"image": "a.nii.gz", "exclude": "l.nii.gz"}]}
        (tmp_path / "dataset.json").write_text(json.dumps(entry), encoding="utf-8")
        request = TrainAnomalyRequest(str(tmp_path / "dataset.json"), str(tmp_path / "b"), plane="patch", **SMALL)
        with pytest.raises(BadInput, match=r"another grid"):
            tasks.run(request)
        assert not (tmp_path / "b").exists()

    def test_a_folder_of_volumes_gives_slices_of_every_plane(self, tmp_path: Path) -> None:
        for i in range(2):
            sitk.WriteImage(ball(seed=i), str(tmp_path / f"{i}.nrrd"))
        for plane in ("axial", "coronal", "sagittal"):
            request = TrainAnomalyRequest(str(tmp_path), str(tmp_path / "b"), model="ae", plane=plane, size=16, **SMALL)
            source = sources.read(request, Progress())
            assert source.training.shape[1:] == (1, 16, 16)
            assert len(source.validation) >= 1

    def test_a_2d_image_with_something_to_leave_out_is_left_out(self, tmp_path: Path) -> None:
        entries = []
        empty, spot = np.zeros((20, 20), np.uint8), np.eye(20, dtype=np.uint8)
        for i, array in enumerate(discs(50)):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"{i}.png"))
            sitk.WriteImage(sitk.GetImageFromArray(spot if i < 4 else empty), str(tmp_path / f"{i}m.png"))
            entries.append({"image": f"{i}.png", "mask": f"{i}m.png"})
        (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
        request = TrainAnomalyRequest(str(tmp_path / "dataset.json"), str(tmp_path / "b"), model="ae", **SMALL)
        source = sources.read(request, Progress())
        assert len(source.training) + len(source.validation) == 46

    def test_a_share_is_kept_aside_in_slabs(self) -> None:
        assert sources.slab(200, 1.0, 0.15).mean() == pytest.approx(0.15, abs=0.03)
        assert sources.slab(100, 3.0, 0.15).mean() == pytest.approx(0.15, abs=0.05)


class TestSearch:
    def test_a_batch_finds_what_each_query_finds_alone(self) -> None:
        torch.manual_seed(0)
        model = NormalModel("wgan", 16, 3, 4).eval()
        x = torch.tanh(torch.randn(3, 1, 16, 16))
        start = torch.randn(3, 3)
        together = search(model, x, steps=5, start=start)
        for i in range(3):
            alone = search(model, x[i : i + 1], steps=5, start=start[i : i + 1])
            assert float(alone.score) == pytest.approx(float(together.score[i]), rel=1e-4)

    def test_it_descends_and_leaves_the_model_as_it_was(self) -> None:
        torch.manual_seed(0)
        model = NormalModel("dcgan", 16, 3, 4).eval()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        x = model.generator(torch.randn(4, 3)).detach()
        short, long = (search(model, x, steps=n, rate=0.05, cross_entropy=True) for n in (0, 40))
        assert float(long.score.sum()) < float(short.score.sum())
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert all(p.requires_grad for p in model.parameters())


class TestIntensity:
    def test_an_image_has_mean_zero_and_a_third_as_spread(self) -> None:
        normal = intensity.normalise_images(np.random.default_rng(0).normal(50, 9, (2, 40, 40)))
        assert normal.mean(axis=(1, 2)) == pytest.approx([0, 0], abs=1e-3)
        assert normal.std(axis=(1, 2)) == pytest.approx([1 / 3, 1 / 3], rel=0.02)

    def test_a_volumes_peak_is_zero_at_any_scale(self) -> None:
        array = sitk.GetArrayFromImage(ball())
        inside = intensity.foreground(array)
        assert abs(inside.sum() / (array > 50).sum() - 1) < 0.05
        for scaled in (array, array * 12.5):
            centre, scale = intensity.landmarks(scaled, inside)
            factor = scaled.max() / array.max()
            assert centre == pytest.approx(100 * factor, rel=0.03)
            assert scale == pytest.approx(100 * factor, rel=0.05)

    def test_the_top_of_a_slice(self) -> None:
        values = np.arange(1000.0)
        assert scoring.top_mean(values, np.ones(1000, bool)) == pytest.approx(np.arange(990, 1000).mean())
        assert np.isnan(scoring.top_mean(values, np.zeros(1000, bool)))


def test_planes_are_resampled_over_the_same_extent() -> None:
    ramp = np.tile(np.arange(40, dtype=np.float32), (2, 30, 1))
    small = planes.resampled(ramp, (15, 20))
    assert small.shape == (2, 15, 20)
    # Pixel j of half the resolution covers 2 j and 2 j + 1, whose mean is 2 j + 0.5.
    assert small[0, 7, 3:-3] == pytest.approx(np.arange(20)[3:-3] * 2 + 0.5, abs=0.1)


def test_the_request_wants_an_odd_filter_and_an_output(tmp_path: Path) -> None:
    sitk.WriteImage(ball(), str(tmp_path / "a.nii.gz"))
    request = AnomalyRequest(str(tmp_path / "a.nii.gz"), "any")
    with pytest.raises(BadInput, match=r"Nothing would be written"):
        request.check()
    with pytest.raises(BadInput, match=r"median filter's side is 4"):
        dataclasses.replace(request, output=str(tmp_path / "m.nii.gz"), median=4).check()

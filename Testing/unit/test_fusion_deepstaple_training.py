"""`mli train deepstaple`: from atlases and targets to theta, consensus and a bundle; resumed, measured, and refused."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")

from tiny_dataset import write_dataset  # noqa: E402

from MLILib.errors import BadInput, Cancelled  # noqa: E402
from MLILib.fusion import deepstaple_training, propagation  # noqa: E402
from MLILib.fusion.deepstaple_targets import find_targets, renumbered  # noqa: E402
from MLILib.fusion.deepstaple_training import correlation, mean_dice  # noqa: E402
from MLILib.fusion.raters import raters  # noqa: E402
from MLILib.fusion.requests import TrainDeepStapleRequest  # noqa: E402
from MLILib.labels import label  # noqa: E402
from MLILib.progress import Progress  # noqa: E402
from MLILib.segmentation.requests import SegmentRequest  # noqa: E402
from MLILib.tasks import run  # noqa: E402

SIZE = (24, 20)


def rows_of(file: str | Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def by_hand(fixed: sitk.Image, moving: sitk.Image, **_: Any) -> SimpleNamespace:
    """A registration in no time: the bright parts' centres onto each other."""

    def centre(image: sitk.Image) -> np.ndarray:
        found = np.argwhere(sitk.GetArrayFromImage(image) > 50).mean(axis=0)
        return np.array(image.TransformContinuousIndexToPhysicalPoint([float(x) for x in found[::-1]]))

    shift = centre(moving) - centre(fixed)
    return SimpleNamespace(transform=sitk.TranslationTransform(len(shift), [float(x) for x in shift]), warnings=[])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Registration is tested elsewhere, and the user's cache is not a test's."""
    monkeypatch.setattr(propagation, "register", by_hand)
    monkeypatch.setattr(deepstaple_training, "default_folder", lambda: tmp_path_factory.mktemp("cache"))


def folders(folder: Path, targets: int = 6, atlases: int = 4, size: tuple[int, ...] = SIZE) -> None:
    """Targets and atlases, two different sets of ellipsoids, of which the last two atlases are drawn badly."""
    write_dataset(folder, targets + atlases, size)
    data = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    cases = data["training"]
    for name, part in (("targets", cases[:targets]), ("atlases", cases[targets:])):
        (folder / f"{name}.json").write_text(json.dumps(data | {"training": part}), encoding="utf-8")
    for case in cases[-2:]:
        path = str(folder / case["label"])
        drawn = sitk.GetArrayFromImage(sitk.ReadImage(path))
        sitk.WriteImage(sitk.GetImageFromArray(np.roll(drawn, 4, axis=-1)), path)


def request(folder: Path, output: str = "bundle", **settings: Any) -> TrainDeepStapleRequest:
    settings = {"network": "unet", "epochs": 20, "network_epochs": 40, "device": "cpu", "fold": 0,
                "folds": 3, "learning_rate": 0.003} | settings  # fmt: skip
    return TrainDeepStapleRequest(
        targets=str(folder / "targets.json"), atlases=str(folder / "atlases.json"), output=str(folder / output),
        **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("deepstaple")
    folders(folder, 9, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(propagation, "register", by_hand)
        patch.setattr(deepstaple_training, "default_folder", lambda: folder / "cache")
        return folder, run(request(folder))


class TestResult:
    def test_bad_atlases_have_low_thetas(self, trained: tuple[Path, dict[str, Any]]) -> None:
        _, result = trained
        assert result["spearman_within"] > 0.6
        rows = rows_of(result["theta"])
        assert len(rows) == 6 * 5
        drawn_badly = ("image_12", "image_13")
        good, bad = (
            [float(r["theta"]) for r in rows if (r["atlas"] in drawn_badly) is wanted] for wanted in (False, True)
        )
        assert np.mean(good) > np.mean(bad) + 0.5

    def test_weights_of_a_target_sum_to_one(self, trained: tuple[Path, dict[str, Any]]) -> None:
        rows = rows_of(trained[1]["theta"])
        for name in {r["target"] for r in rows}:
            assert sum(float(r["weight"]) for r in rows if r["target"] == name) == pytest.approx(1, abs=1e-4)

    def test_the_consensus_is_better_than_an_atlas(self, trained: tuple[Path, dict[str, Any]]) -> None:
        _, result = trained
        assert result["consensus_dice"] > result["atlas_dice"] + 0.05
        files = sorted(Path(result["consensus"]).glob("*.nii.gz"))
        assert len(files) == 6
        folder = trained[0]
        case = files[0].name
        made, image = sitk.ReadImage(str(files[0])), sitk.ReadImage(str(folder / case))
        assert made.GetSize() == image.GetSize()

    def test_the_network_learned_from_it(self, trained: tuple[Path, dict[str, Any]]) -> None:
        """Halves that differ by 100 with noise of 10, in cases that nothing was learned on."""
        assert trained[1]["test"]["mean"]["dice"]["mean"] > 0.75

    def test_curves_and_card_are_there(self, trained: tuple[Path, dict[str, Any]]) -> None:
        folder = trained[0] / "bundle"
        assert (folder / "training" / "theta.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "training" / "learning_curve.png").exists()
        steps = [float(r["step"]) for r in rows_of(folder / "training" / "theta_curve.csv")]
        assert steps == sorted(steps)
        assert steps[-1] == 20 * 6 / 4
        card = (folder / "docs" / "README.md").read_text(encoding="utf-8")
        assert "mli train deepstaple" in card
        assert "DeepSTAPLE consensus" in card
        assert str(trained[0]) not in card, "paths of this machine do not belong in a card"

    def test_no_checkpoint_is_left(self, trained: tuple[Path, dict[str, Any]]) -> None:
        names = {p.name for p in (trained[0] / "bundle" / "training").iterdir()}
        assert not names & {"checkpoint.pt", "network.pt"}

    def test_mli_segment_runs_it(self, trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
        image = trained[0] / "image_00.nii.gz"
        out = tmp_path / "out.nii.gz"
        run(SegmentRequest(images=(str(image),), model=(str(trained[0] / "bundle"),), output=str(out), device="cpu"))
        found, truth = (sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (out, trained[0] / "label_00.nii.gz"))
        assert 2 * ((found > 0) & (truth > 0)).sum() / ((found > 0).sum() + (truth > 0).sum()) > 0.75


class TestLightNetworks:
    @pytest.mark.parametrize(
        ("network", "size"), [("lraspp2d", (24, 20)), ("lraspp2d", (20, 18, 6)), ("lraspp3d", (20, 18, 16))]
    )
    def test_monai_runs_the_bundle_and_agrees(self, network: str, size: tuple[int, ...], tmp_path: Path) -> None:
        pytest.importorskip("ignite", reason="MONAI's own runner needs pytorch-ignite")
        folders(tmp_path, 2, 2, size)
        run(request(tmp_path, network=network, epochs=1, network_epochs=1, fold=-1))
        from plain_monai import labels_of_its_command

        image, bundle = tmp_path / "image_00.nii.gz", tmp_path / "bundle"
        (tmp_path / "monai").mkdir()
        alone = network == "lraspp3d"  # once is enough to see that a process finds the network by the library's path
        theirs = labels_of_its_command(bundle, image, tmp_path / "monai", process=alone)
        ours = tmp_path / "ours.nii.gz"
        run(SegmentRequest(images=(str(image),), model=(str(bundle),), output=str(ours), device="cpu"))
        assert np.array_equal(theirs, sitk.GetArrayFromImage(sitk.ReadImage(str(ours))))


class TestResume:
    @pytest.mark.parametrize("stage", ["Learning whom to trust", "Training"])
    def test_a_killed_training_ends_with_the_same_weights(self, stage: str, tmp_path: Path) -> None:
        folders(tmp_path, 4, 3)
        settings: dict[str, Any] = {"epochs": 30, "network_epochs": 10, "fold": -1, "batch": 4}
        whole = run(request(tmp_path, "whole", **settings))
        stages: list[str] = []

        def stop(event: dict[str, Any]) -> None:
            if event["event"] == "stage":
                stages.append(event["name"])
            if stages and stages[-1] == stage and event.get("value", 0) > 0.9:
                raise Cancelled()

        broken = request(tmp_path, "broken", **settings)
        with pytest.raises(Cancelled):
            deepstaple_training.run(broken, Progress(stop, interval=0.0))
        assert (tmp_path / "broken" / "training" / "checkpoint.pt").exists()
        again = run(dataclasses.replace(broken, resume=True))
        assert Path(whole["theta"]).read_text(encoding="utf-8") == Path(again["theta"]).read_text(encoding="utf-8")
        a, b = (torch.load(tmp_path / n / "models" / "model.pt", weights_only=True) for n in ("whole", "broken"))
        assert all(torch.equal(a[k], b[k]) for k in a)

    def test_other_settings_are_refused(self, tmp_path: Path) -> None:
        folders(tmp_path, 2, 2)

        def stop(event: dict[str, Any]) -> None:
            if event["event"] == "stage" and event["name"] == "Learning whom to trust":
                raise Cancelled()

        with pytest.raises(Cancelled):
            deepstaple_training.run(request(tmp_path, fold=-1), Progress(stop))
        with pytest.raises(BadInput, match="scheme"):
            run(request(tmp_path, fold=-1, resume=True, scheme="in-line"))


class TestBadInput:
    def test_targets_without_labels_leave_nothing_to_measure(self, tmp_path: Path) -> None:
        folders(tmp_path)
        data = json.loads((tmp_path / "targets.json").read_text())
        data["training"] = [{"image": case["image"]} for case in data["training"]]
        (tmp_path / "targets.json").write_text(json.dumps(data))
        with pytest.raises(BadInput, match="No target has true labels"):
            run(request(tmp_path))

    def test_a_label_that_no_atlas_has(self, tmp_path: Path) -> None:
        folders(tmp_path, 2, 2)
        path = str(tmp_path / "label_00.nii.gz")
        drawn = sitk.GetArrayFromImage(sitk.ReadImage(path))
        drawn[0, 0] = 7
        sitk.WriteImage(sitk.GetImageFromArray(drawn), path)
        with pytest.raises(BadInput, match="label 7, which no atlas has"):
            run(request(tmp_path, fold=-1))

    def test_a_network_for_volumes_on_images(self, tmp_path: Path) -> None:
        folders(tmp_path, 2, 2)
        with pytest.raises(BadInput, match="takes volumes"):
            run(request(tmp_path, fold=-1, network="lraspp3d"))


class TestTargets:
    def test_a_folder_without_labels(self, tmp_path: Path) -> None:
        for name in ("b", "a"):
            sitk.WriteImage(sitk.Image(4, 4, sitk.sitkFloat32), str(tmp_path / f"{name}.nii.gz"))
        found = find_targets(str(tmp_path))
        assert [(one.name, one.labels) for one in found] == [("a", ""), ("b", "")]

    def test_labels_that_one_target_lacks_keep_their_number(self) -> None:
        drawn = sitk.GetImageFromArray(np.array([[0, 9], [9, 0]], dtype=np.uint8))
        found = renumbered(raters([drawn]), [label(5, "five", {}), label(9, "nine", {})])
        assert found.stack[0].tolist() == [[0, 2], [2, 0]]
        assert sitk.GetArrayFromImage(found.image(found.stack[0])).tolist() == [[0, 9], [9, 0]]


class TestFigures:
    def test_mean_dice_of_two_labels(self) -> None:
        truth, found = np.array([1, 1, 2, 2, 0]), np.array([1, 0, 2, 2, 2])
        assert mean_dice(found, truth, 4) == pytest.approx((2 / 3 + 4 / 5) / 2)

    def test_rank_correlation(self) -> None:
        assert correlation([1.0, 2.0, 3.0], [0.2, 0.4, 0.9]) == pytest.approx(1.0)
        assert np.isnan(correlation([1.0, 1.0], [0.2, 0.4]))

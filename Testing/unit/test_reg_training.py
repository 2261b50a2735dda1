"""Training registration: it learns, resumes exactly, uses labels only when told, and leaves a bundle that registers."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")

from tiny_bundle import write_json, write_tiny_bundle  # noqa: E402
from tiny_dataset import write_dataset  # noqa: E402

from MLILib import bundles  # noqa: E402
from MLILib.bundle_files import REQUIRED_METADATA, REQUIRED_TENSOR  # noqa: E402
from MLILib.errors import BadInput, Cancelled  # noqa: E402
from MLILib.progress import Progress, ignore  # noqa: E402
from MLILib.registration import learned, training  # noqa: E402
from MLILib.registration.pairs import Sampler, Subject  # noqa: E402
from MLILib.registration.requests import TrainRegistrationRequest  # noqa: E402
from MLILib.segmentation.inference import segment  # noqa: E402

NETWORKS = ("affine", "voxelmorph", "cascade", "istn", "atlas-istn")


def request_in(folder: Path, output: str = "bundle", **settings: Any) -> TrainRegistrationRequest:
    """A request on the 2-D ellipses in `folder`."""
    settings = {"epochs": 2, "folds": 3, "device": "cpu", "threads": 1, "labels": True, "amp": False} | settings
    return TrainRegistrationRequest(dataset=str(folder / "dataset.json"), output=str(folder / output), **settings)


def train(request: TrainRegistrationRequest, sink: Any = ignore) -> dict[str, Any]:
    request.check()
    return training.run(request, Progress(sink, interval=0.0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A structure-guided bundle trained for some seconds on 2-D ellipses, and the result of the task."""
    folder = tmp_path_factory.mktemp("registration")
    write_dataset(folder, 12, size=(30, 26))
    return folder, train(request_in(folder, network="istn", epochs=24, similarity="none", smoothness=0.02,
                                    learning_rate=0.003))  # fmt: skip


class TestResult:
    def test_it_learns(self, trained: tuple[Path, dict[str, Any]]) -> None:
        """Ellipses of random place: what is left after training is much less than before."""
        mean = trained[1]["test"]["mean"]
        assert 1 - mean["dice"] < 0.5 * (1 - mean["dice_before"])
        assert mean["folded"] < 0.001

    def test_the_curve_is_written(self, trained: tuple[Path, dict[str, Any]]) -> None:
        folder = trained[0] / "bundle" / "training"
        rows = list(csv.DictReader((folder / "learning_curve.csv").open(encoding="utf-8")))
        assert [int(float(r["epoch"])) for r in rows] == list(range(1, 25))
        assert float(rows[-1]["validation_dice"]) > 0.7
        assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")

    def test_no_checkpoint_is_left(self, trained: tuple[Path, dict[str, Any]]) -> None:
        assert not list((trained[0] / "bundle").rglob("*checkpoint*"))

    def test_its_metadata_is_complete(self, trained: tuple[Path, dict[str, Any]]) -> None:
        told = json.loads((trained[0] / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))
        assert set(REQUIRED_METADATA) <= set(told)
        for side in ("inputs", "outputs"):
            for tensor in told["network_data_format"][side].values():
                assert set(REQUIRED_TENSOR) <= set(tensor)

    def test_the_card_says_how_it_was_made(self, trained: tuple[Path, dict[str, Any]]) -> None:
        card = (trained[0] / "bundle" / "docs" / "README.md").read_text(encoding="utf-8")
        assert "mli train registration" in card
        assert f"| {trained[1]['test']['left']['dice']:.3f} |" in card
        assert str(trained[0]) not in card, "paths of this machine do not belong in a card"

    def test_the_listed_pairs_are_of_the_test_fold(self, trained: tuple[Path, dict[str, Any]]) -> None:
        rows = list(csv.DictReader((trained[0] / "bundle" / "docs" / "test_pairs.csv").open(encoding="utf-8")))
        assert len(rows) == 2 * 4  # labels x a third of 12 cases
        assert {r["fixed"] for r in rows} == {r["moving"] for r in rows}


class TestBundle:
    def test_it_loads_without_trust_and_has_no_labels(self, trained: tuple[Path, dict[str, Any]]) -> None:
        bundle = bundles.find(str(trained[0] / "bundle"))
        assert not bundle.trusted
        assert bundle.labels == ()
        assert bundle.channels == ("fixed made", "moving made")
        bundles.preprocessing(bundle)
        assert sum(p.numel() for p in bundles.network(bundle).parameters()) > 1000

    def test_it_does_not_segment(self, trained: tuple[Path, dict[str, Any]]) -> None:
        image = sitk.ReadImage(str(trained[0] / "image_00.nii.gz"))
        with pytest.raises(BadInput, match="registers images"):
            segment(image, str(trained[0] / "bundle"))

    def test_a_segmentation_model_does_not_register(self) -> None:
        with pytest.raises(BadInput, match="not for registration"):
            learned.find("hippocampus")


class TestNetworks:
    @pytest.mark.parametrize("network", NETWORKS)
    def test_each_is_trained_and_registers(self, network: str, tmp_path: Path) -> None:
        write_dataset(tmp_path, 6, size=(30, 26))
        result = train(request_in(tmp_path, network=network, epochs=2))
        assert 0 < result["test"]["mean"]["dice"] <= 1
        fixed, moving = (sitk.ReadImage(str(tmp_path / f"image_0{i}.nii.gz")) for i in (0, 1))
        found = learned.predict(fixed, moving, str(tmp_path / "bundle"))
        assert (found.displacement is None) == (network == "affine")
        assert np.isfinite(found.linear).all()

    def test_a_volume(self, tmp_path: Path) -> None:
        write_dataset(tmp_path, 5, size=(20, 18, 16))
        result = train(request_in(tmp_path, network="voxelmorph", epochs=1))
        assert result["test"]["mean"]["seconds"] > 0


class TestLabels:
    @pytest.mark.parametrize("network", ["voxelmorph", "cascade", "affine"])
    def test_without_them_they_are_not_looked_at(self, network: str, tmp_path: Path) -> None:
        weights = []
        for name, shuffled in (("a", False), ("b", True)):
            (tmp_path / name).mkdir()
            write_dataset(tmp_path / name, 6, size=(30, 26))
            if shuffled:
                for file in sorted((tmp_path / name).glob("label_*.nii.gz")):
                    image = sitk.ReadImage(str(file))
                    turned = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[::-1, ::-1].copy())
                    turned.CopyInformation(image)
                    sitk.WriteImage(turned, str(file))
            train(request_in(tmp_path / name, network=network, labels=False))
            weights.append(torch.load(tmp_path / name / "bundle" / "models" / "model.pt", weights_only=True))
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])

    def test_the_curve_has_the_loss_in_place_of_dice(self, tmp_path: Path) -> None:
        write_dataset(tmp_path, 6, size=(30, 26))
        train(request_in(tmp_path, network="voxelmorph", labels=False))
        curve = (tmp_path / "bundle" / "training" / "learning_curve.csv").read_text(encoding="utf-8").splitlines()
        told = dict(zip(curve[0].split(","), curve[-1].split(","), strict=True))
        assert float(told["validation_loss"]) > 0
        assert told["validation_dice"] == ""

    @pytest.mark.parametrize("settings", [{"network": "istn"}, {"similarity": "none"}])
    def test_what_needs_them_says_so(self, settings: dict[str, Any], tmp_path: Path) -> None:
        write_dataset(tmp_path, 6, size=(30, 26))
        with pytest.raises(BadInput, match="--labels"):
            train(request_in(tmp_path, labels=False, **settings))


def write_expert(folder: Path, **kind: Any) -> Path:
    """A 2-D segmentation model of the ellipses' labels with random weights, such as mli train segmentation makes."""
    from monai.networks.nets import DynUNet

    write_tiny_bundle(folder, **({"labels": ("left", "right"), "dims": 2} | kind))
    definition: dict[str, Any] = {
        "spatial_dims": 2, "in_channels": 1, "out_channels": 3, "kernel_size": [3, 3, 3], "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2], "filters": [4, 6, 8],
    }  # fmt: skip
    if not kind:
        path = folder / "configs" / "inference.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, config | {"network_def": {"_target_": "DynUNet"} | definition})
        torch.manual_seed(4)
        torch.save(DynUNet(**definition).state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an expert, and a bundle "bundle" that was trained with it."""
    folder = tmp_path_factory.mktemp("expert")
    write_dataset(folder, 6, size=(30, 26))
    expert = write_expert(folder / "expert")
    train(request_in(folder, network="istn", expert=str(expert), epochs=4))
    return folder


class TestExpert:
    def test_its_weights_are_in_the_bundle_as_they_were(self, guided: Path) -> None:
        own, theirs = (
            torch.load(guided / name / "models" / "model.pt", weights_only=True) for name in ("bundle", "expert")
        )
        assert {name.removeprefix("expert.") for name in own if name.startswith("expert.")} == set(theirs)
        for name, value in theirs.items():
            assert torch.equal(own[f"expert.{name}"], value.half()), name

    def test_the_rest_is_trained_as_without_it(self, guided: Path) -> None:
        """It is asked only when the network is used: the other weights are those of a training that has none."""
        train(request_in(guided, "alone", network="istn", epochs=4, fold=-1))
        train(request_in(guided, "both", network="istn", epochs=4, fold=-1, expert=str(guided / "expert")))
        alone, both = (
            torch.load(guided / name / "models" / "model.pt", weights_only=True) for name in ("alone", "both")
        )
        assert set(alone) == {name for name in both if not name.startswith("expert.")}
        for name, value in alone.items():
            assert torch.equal(value, both[name]), name

    def test_the_bundle_loads_without_trust_and_asks_it(self, guided: Path) -> None:
        bundle = bundles.find(str(guided / "bundle"))
        assert not bundle.trusted
        network = bundles.network(bundle)
        asked: list[tuple[int, ...]] = []
        network.expert.register_forward_hook(lambda module, given, found: asked.append(tuple(given[0].shape)))
        label = torch.zeros(1, 32, 32, dtype=torch.long)
        label[:, 10:12, 8:24] = 1
        sure = 9.0 * torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
        network.structures.forward = lambda images: sure.expand(2, -1, -1, -1)
        with torch.no_grad():
            network(torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32))
        # 16 columns and 2 rows with a margin of 4, in multiples of 8; x comes first, as in its training
        assert asked == [(1, 1, 24, 16)] * 2

    def test_a_callable_hidden_in_its_place_is_refused(self, guided: Path, tmp_path: Path) -> None:
        shutil.copytree(guided / "bundle", tmp_path / "bundle")
        path = tmp_path / "bundle" / "configs" / "inference.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["network_def"]["expert"] = {"_target_": "os.makedirs", "name": str(tmp_path / "made")}
        write_json(path, config)
        with pytest.raises(BadInput, match=r"os\.makedirs"):
            bundles.network(bundles.find(str(tmp_path / "bundle")))
        assert not (tmp_path / "made").exists()

    def test_the_card_names_it_without_its_place(self, guided: Path) -> None:
        card = (guided / "bundle" / "docs" / "README.md").read_text(encoding="utf-8")
        assert "the model expert in it as trained" in card
        assert "--expert expert" in card
        assert str(guided) not in card

    @pytest.mark.parametrize(
        ("kind", "cause"),
        [
            ({"labels": ("one",)}, "mark 2 labels"), ({"channels": 2}, "take 1 channel"), ({"dims": 3}, "be 2-D"),
            # it halves the image four times: of a box of 16 voxels one would be left, too few to normalise
            ({"dims": 2}, "box of 16 voxels"),
        ],
    )  # fmt: skip
    def test_one_of_another_kind_is_refused(self, kind: dict[str, Any], cause: str, tmp_path: Path) -> None:
        write_dataset(tmp_path, 6, size=(30, 26))
        expert = write_expert(tmp_path / "expert", **kind)
        with pytest.raises(BadInput, match=cause) as refused:
            train(request_in(tmp_path, network="istn", expert=str(expert)))
        assert "expert cannot be the expert" in str(refused.value)
        assert not (tmp_path / "bundle").exists()

    def test_a_registration_model_is_refused(self, guided: Path) -> None:
        with pytest.raises(BadInput, match="cannot be the expert"):
            train(request_in(guided, "other", network="istn", expert=str(guided / "bundle")))

    def test_only_an_istn_has_one(self, guided: Path) -> None:
        with pytest.raises(BadInput, match="takes no expert"):
            train(request_in(guided, "other", network="cascade", expert=str(guided / "expert")))


class TestResume:
    @pytest.mark.parametrize("network", ["istn", "atlas-istn"])
    def test_a_killed_training_ends_with_the_same_weights(self, network: str, tmp_path: Path) -> None:
        write_dataset(tmp_path, 6, size=(30, 26))
        settings: dict[str, Any] = {"epochs": 6, "network": network, "fold": -1}
        train(request_in(tmp_path, "whole", **settings))

        stages: list[str] = []

        def stop_after_four(event: dict[str, Any]) -> None:
            if event["event"] == "stage":
                stages.append(event["name"])
            if stages == ["Reading cases", "Training"] and event.get("value", 0) > 0.75:
                raise Cancelled()

        request = request_in(tmp_path, "broken", **settings)
        with pytest.raises(Cancelled):
            train(request, stop_after_four)
        train(dataclasses.replace(request, resume=True))
        a, b = (torch.load(tmp_path / n / "models" / "model.pt", weights_only=True) for n in ("whole", "broken"))
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), name

    def test_other_settings_are_refused(self, tmp_path: Path) -> None:
        write_dataset(tmp_path, 6, size=(30, 26))

        def stop(event: dict[str, Any]) -> None:
            if event["event"] == "message" and str(event["text"]).startswith("epoch"):
                raise Cancelled()

        request = request_in(tmp_path, network="voxelmorph", epochs=4)
        with pytest.raises(Cancelled):
            train(request, stop)
        with pytest.raises(BadInput, match="smoothness"):
            train(dataclasses.replace(request, resume=True, smoothness=2.0))


class TestSampler:
    @staticmethod
    def subjects() -> list[Subject]:
        block = torch.zeros(24, 24)
        block[8:16, 6:14] = 1.0
        return [Subject(block[None] * (i + 1), block.to(torch.uint8)) for i in range(4)]

    def test_a_pair_is_of_two_cases_and_each_is_fixed_once(self) -> None:
        order = Sampler(self.subjects(), 1, 0).order(3)
        assert sorted(a for a, _ in order) == [0, 1, 2, 3]
        assert sorted(b for _, b in order) == [0, 1, 2, 3]
        assert all(a != b for a, b in order)

    def test_the_same_step_gives_the_same_pairs(self) -> None:
        one, two = (Sampler(self.subjects(), 1, 5) for _ in range(2))
        two.batch(0, 1, [(1, 2)])
        a, b = one.batch(2, 3, [(0, 1)]), two.batch(2, 3, [(0, 1)])
        assert torch.equal(a.fixed, b.fixed)
        assert torch.equal(a.moving_labels, b.moving_labels)
        assert not torch.equal(a.fixed, one.batch(3, 3, [(0, 1)]).fixed)

    def test_image_and_label_move_together(self) -> None:
        """The image is its own label times a number, and still is where only its geometry changes."""
        sampler = Sampler(self.subjects()[:2], 1, 1)
        for epoch in range(20):
            batch = sampler.batch(epoch, 0, [(0, 1)])
            found = batch.fixed > 0.5 * batch.fixed.amax()
            wanted = batch.fixed_labels > 0.5
            assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.9

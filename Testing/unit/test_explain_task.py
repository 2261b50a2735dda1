"""`mli explain`: every method on bundles of each kind, windows, files, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("torch")

import torch
from grids import random_image
from tiny_bundle import write_json, write_tiny_bundle

from MLILib import device, geometry, images, tasks
from MLILib.errors import BadInput, OutOfMemory
from MLILib.explanation import explain
from MLILib.explanation.methods import METHODS
from MLILib.explanation.requests import ExplainRequest
from MLILib.explanation.subject import load, make
from MLILib.progress import Progress


@pytest.fixture(scope="module")
def solid(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_bundle(tmp_path_factory.mktemp("solid") / "solid"))


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_bundle(tmp_path_factory.mktemp("flat") / "flat", dims=2, channels=1))


def whole(image: sitk.Image) -> sitk.Image:
    mask = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    mask.CopyInformation(image)
    return mask


def vector_bundle(folder: Path, kind: str) -> Path:
    """A bundle of planes whose network gives three numbers for an image."""
    write_tiny_bundle(folder, dims=2)
    torch.manual_seed(0)
    from monai.networks.nets import ResNet

    settings: dict[str, Any] = {
        "block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 4, 8, 8], "spatial_dims": 2,
        "n_input_channels": 1, "conv1_t_size": 3, "no_max_pool": True, "num_classes": 3,
    }  # fmt: skip
    torch.save(ResNet(**settings).state_dict(), folder / "models" / "model.pt")
    config = json.loads((folder / "configs" / "inference.json").read_text(encoding="utf-8"))
    config["network_def"] = {"_target_": "ResNet", **settings}
    config["inferer"] = {"_target_": "SimpleInferer"}
    config["postprocessing"] = {
        "_target_": "Compose", "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}]
    }  # fmt: skip
    write_json(folder / "configs" / "inference.json", config)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    metadata["task"] = kind
    metadata["mli"] = {}
    metadata["network_data_format"]["outputs"]["pred"] |= {
        "num_channels": 3, "channel_def": {"0": "sound", "1": "ill", "2": "very ill"}
    }  # fmt: skip
    write_json(folder / "configs" / "metadata.json", metadata)
    return folder


class TestWindows:
    def test_a_gradient_is_that_of_monais_sliding_windows(self, solid: str) -> None:
        """The volume is larger than the window in two axes: what is explained is the blend, as MONAI makes it."""
        from monai.inferers import SlidingWindowInferer

        image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(34, 40, 30)).astype(np.float32))
        found = explain(image, solid, region=whole(image), target="a", method="gradient")
        assert found.windows == 4
        subject = make([image], ["x"], load(solid, ()), torch.device("cpu"))
        seen = subject.prepared.image[None].clone().requires_grad_()
        output = SlidingWindowInferer([32] * 3, 1, 0.5, mode="gaussian")(seen, subject.network)
        output[0, 1].sum().backward()
        assert seen.grad is not None
        # the preprocessing turned LPS into RAS: the first two axes are flipped
        theirs = seen.grad[0, 0].flip(0, 1).numpy().T
        ours = sitk.GetArrayFromImage(found.image)
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()

    def test_integrated_gradients_add_up(self, flat: str) -> None:
        """To the difference between the network's scores of the image and of the blurred image, but for the error."""
        from MLILib.explanation.fill import blurred

        image = sitk.GetImageFromArray(np.random.default_rng(1).normal(size=(24, 18)).astype(np.float32))
        found = explain(image, flat, region=whole(image), target="a", steps=300)
        subject = make([image], ["x"], load(flat, ()), torch.device("cpu"))
        inside = tuple(slice(b, b + n) for (b, _), n in zip(subject.padding, subject.size, strict=True))
        seen = subject.prepared.image
        with torch.no_grad():
            both = [subject.with_padding(one)[None] for one in (seen, blurred(seen[None], 4.0)[0])]
            scores = [float(subject.network(x)[0, 1][inside].double().sum()) for x in both]
        assert found.error is not None
        assert found.error < 0.2
        assert abs(found.total / (scores[0] - scores[1]) - 1) == pytest.approx(found.error, abs=1e-3)
        assert sitk.GetArrayFromImage(found.image).sum() == pytest.approx(found.total, rel=1e-3)

    def test_steps_follow_the_error(self, flat: str) -> None:
        image = sitk.GetImageFromArray(np.random.default_rng(2).normal(size=(24, 24)).astype(np.float32))
        found = explain(image, flat, region=whole(image), target="b")
        assert found.error is not None
        assert found.error < 0.01 or found.steps == 800


class TestMethods:
    @pytest.mark.parametrize("method", METHODS)
    def test_each_gives_a_map_on_the_images_grid(self, flat: str, method: str) -> None:
        image = random_image(np.random.default_rng(3), dims=2)
        extra: dict[str, Any] = {}
        if method == "ablation-regions":
            halves = whole(image)
            halves[: image.GetSize()[0] // 2, :] = 2
            extra["regions"] = halves
        if METHODS[method].target:
            extra["target"] = "a"
            extra["region"] = whole(image)
        if METHODS[method].layer:
            extra["layer"] = "down_2"
        found = explain(image, flat, method=method, steps=3, samples=3, **extra)
        assert geometry.same_grid(found.image, image)
        values = sitk.GetArrayFromImage(found.image)
        assert np.isfinite(values).all()
        assert values.std() > 0 or method == "ablation-channels"
        told = found.plain()
        json.dumps(told, allow_nan=False)
        assert (len(told["parts"]) > 0) == method.startswith("ablation")
        assert told["components"] == (8 if method == "activations" else 1)

    def test_deepdream_is_in_the_images_units(self, flat: str) -> None:
        image = random_image(np.random.default_rng(4), dims=2) * 10
        found = explain(image, flat, method="deepdream", layer="down_2", steps=2)
        before, after = (sitk.GetArrayFromImage(one) for one in (image, found.image))
        assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.5
        assert abs(after.mean() - before.mean()) < before.std()

    def test_the_network_is_as_it_was(self, flat: str) -> None:
        image = random_image(np.random.default_rng(5), dims=2)
        network = load(flat, ()).network(torch.device("cpu"))
        seen = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        before = network(seen).detach()
        for method in ("guided-backpropagation", "guided-grad-cam", "ablation-features", "deepdream"):
            target = {"region": whole(image), "target": "a"} if METHODS[method].target else {}
            explain(image, flat, method=method, steps=2, **target)
        assert torch.equal(network(seen), before)


class TestKinds:
    @pytest.fixture(scope="class")
    @staticmethod
    def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
        return str(vector_bundle(tmp_path_factory.mktemp("c") / "c", "classification of something"))

    def test_the_class_it_predicts(self, classifier: str) -> None:
        image = random_image(np.random.default_rng(6), dims=2)
        told = explain(image, classifier, method="gradient").plain()
        probabilities = [row["probability"] for row in told["prediction"]]
        assert sum(probabilities) == pytest.approx(1.0)
        assert told["target"]["label"] == int(np.argmax(probabilities))
        assert told["target"]["kind"] == "class"

    def test_another_class(self, classifier: str) -> None:
        told = explain(random_image(np.random.default_rng(6), dims=2), classifier, method="grad-cam",
                       target="very ill").plain()  # fmt: skip
        assert told["target"]["label"] == 2
        assert told["layer"] == "layer4"

    def test_no_such_class(self, classifier: str) -> None:
        with pytest.raises(BadInput, match="has no class 'dead'"):
            explain(random_image(np.random.default_rng(6), dims=2), classifier, target="dead")

    def test_a_regression(self, tmp_path: Path) -> None:
        model = str(vector_bundle(tmp_path / "r", "regression of three numbers"))
        told = explain(random_image(np.random.default_rng(6), dims=2), model, method="gradient", target="ill").plain()
        assert (told["target"]["kind"], told["target"]["label"]) == ("output", 1)
        assert "probability" not in told["prediction"][0]

    def test_a_classifier_does_not_segment(self, classifier: str) -> None:
        from MLILib.segmentation import models

        with pytest.raises(BadInput, match="is for classification, not for segmentation"):
            models.load(classifier)


class TestRun:
    def request(self, folder: Path, model: str, **settings: Any) -> ExplainRequest:
        image = random_image(np.random.default_rng(7), dims=settings.pop("dims", 2))
        sitk.WriteImage(image, str(folder / "image.nrrd"))
        values = {"images": [str(folder / "image.nrrd")], "model": model, "output": str(folder / "map.nrrd")}
        return ExplainRequest.from_json({**values, "method": "gradient", **settings})

    def test_map_report_and_record(self, flat: str, tmp_path: Path) -> None:
        request = self.request(tmp_path, flat, target="", report=str(tmp_path / "told.json"))
        result = tasks.run(request)
        assert geometry.same_grid(images.read(result["map"]), images.read(request.images[0]))
        record = json.loads(Path(result["record"]).read_text(encoding="utf-8"))
        assert record["command"].startswith("mli explain ")
        assert record["models"][0]["sha256"] == result["model"]["sha256"]
        report = json.loads(Path(result["report"]).read_text(encoding="utf-8"))
        assert report["target"] == result["target"]
        assert result["badge"] == "not tested"
        json.dumps({k: v for k, v in result.items() if k != "text"}, allow_nan=False)

    def test_a_point_with_its_boxes(self, solid: str, tmp_path: Path) -> None:
        request = self.request(tmp_path, solid, dims=3)
        x, y, z = images.read(request.images[0]).TransformIndexToPhysicalPoint([8, 8, 8])
        request = ExplainRequest.from_json({**request.to_json(), "point": f"{-x},{-y},{z}"})
        result = tasks.run(request)
        assert result["target"]["kind"] == "voxel"
        assert result["receptive_field"]["theoretical"]["size_mm"]
        assert sum(row["probability"] for row in result["prediction"]) == pytest.approx(1.0)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"method": "grad-cam", "layer": "nowhere"}, "no layer 'nowhere'. Its layers are"),
            ({"target": "nobody"}, "has no label 'nobody'"),
            ({"point": "1,2"}, "is not three numbers"),
            ({"method": "ablation-regions"}, "needs regions"),
            ({"method": "activations", "target": "a"}, "has no target"),
            ({"layer": "down_1"}, "looks at no layer"),
            ({"occlusion_stride": 9}, "never covered"),
            ({"point": "9999,0,0"}, "lies outside the image"),
            ({"output": "map.jpg"}, "no ending that tells the format"),
        ],
    )
    def test_bad_input_writes_nothing(self, flat: str, tmp_path: Path, settings: dict[str, Any], said: str) -> None:
        if "output" in settings:
            settings = {"output": str(tmp_path / settings["output"])}
        request = self.request(tmp_path, flat, **settings)
        with pytest.raises(BadInput, match=said):
            tasks.run(request)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["image.nrrd"]

    def test_too_large_a_volume_says_how_much_and_the_crop_it_offers_works(
        self, solid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rng = np.random.default_rng(8)
        sitk.WriteImage(sitk.GetImageFromArray(rng.normal(size=(64, 64, 64)).astype(np.float32)),
                        str(tmp_path / "image.nrrd"))  # fmt: skip
        values: dict[str, Any] = {
            "images": [str(tmp_path / "image.nrrd")], "model": solid, "output": str(tmp_path / "map.nrrd"),
            "method": "gradient", "crop": [64, 64, 64], "point": "-32,-32,32", "field": False,
        }  # fmt: skip
        monkeypatch.setattr(device, "free_memory", lambda _: 60_000_000)
        with pytest.raises(
            OutOfMemory, match=r"too large for gradient: .* takes about .* and 60.0 MB are free"
        ) as error:
            tasks.run(ExplainRequest.from_json(values))
        assert not (tmp_path / "map.nrrd").exists()
        words = error.value.remedy.split(":")[0].split()
        offered = [int(n) for n in words[words.index("--crop") + 1 :]]
        assert len(offered) == 3
        result = tasks.run(ExplainRequest.from_json({**values, "crop": offered}))
        assert result["memory"]["estimated"] <= 0.8 * 60_000_000

    def test_a_network_without_a_gradient_is_named(self, tmp_path: Path) -> None:
        model = vector_bundle(tmp_path / "stepped", "classification")
        request = self.request(tmp_path, str(model))
        network = load(str(model), ()).network(torch.device("cpu"))
        network.conv1.register_forward_pre_hook(lambda _, given: (given[0].round(),))  # type: ignore[union-attr]
        with pytest.raises(BadInput, match="No gradient passes through the network: the operation round"):
            tasks.run(request, Progress())

"""`mli attack`: volumes on the image's grid, in its units; nothing for epsilon 0; what the written image does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("torch")

from test_explain_task import vector_bundle
from tiny_bundle import write_tiny_bundle

from MLILib import geometry, images, tasks
from MLILib.errors import BadInput
from MLILib.explanation.requests import AttackRequest


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_bundle(tmp_path_factory.mktemp("flat") / "flat", dims=2))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(vector_bundle(tmp_path_factory.mktemp("c") / "c", "classification"))


def request(folder: Path, model: str, **settings: Any) -> AttackRequest:
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(300, 50, (24, 28)).astype(np.float32))
    image.SetSpacing((0.7, 1.2))
    image.SetDirection((-1, 0, 0, 1))
    image.SetOrigin((5, -8))
    sitk.WriteImage(image, str(folder / "image.nrrd"))
    names = {key: str(folder / f"{key}.nrrd") for key in ("output", "difference", "clean")}
    return AttackRequest.from_json({"images": [str(folder / "image.nrrd")], "model": model, **names, **settings})


def arrays(result: dict[str, Any]) -> list[np.ndarray]:
    return [sitk.GetArrayFromImage(images.read(result[key])) for key in ("clean", "output", "difference")]


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_within_epsilon_in_the_images_units(flat: str, tmp_path: Path, method: str) -> None:
    result = tasks.run(request(tmp_path, flat, epsilon=7.0, method=method, steps=3))
    clean, perturbed, difference = arrays(result)
    assert np.array_equal(clean, sitk.GetArrayFromImage(images.read(str(tmp_path / "image.nrrd"))))
    assert perturbed - clean == pytest.approx(difference, abs=1e-3)
    assert np.abs(difference).max() == pytest.approx(7.0, rel=1e-3)
    assert geometry.same_grid(images.read(result["output"]), images.read(str(tmp_path / "image.nrrd")))
    assert result["loss_after"] > result["loss_before"]
    assert result["before"] == 1.0  # the model agrees with itself
    # 1 / deviation of the image
    assert result["scale"] == pytest.approx([1 / clean.std()], rel=1e-3)
    assert result["linear"]["epsilon"] == pytest.approx(7.0 / clean.std(), rel=1e-3)
    assert result["linear"]["inputs"] == 9


def test_epsilon_0_changes_nothing(flat: str, tmp_path: Path) -> None:
    labels = {"prediction": str(tmp_path / "after.nrrd"), "prediction_before": str(tmp_path / "before.nrrd")}
    result = tasks.run(request(tmp_path, flat, epsilon=0.0, **labels))
    clean, perturbed, difference = arrays(result)
    assert np.array_equal(clean, perturbed)
    assert not difference.any()
    assert result["after"] == result["after_file"] == 1.0
    before, after = (sitk.GetArrayFromImage(images.read(labels[key])) for key in ("prediction_before", "prediction"))
    assert np.array_equal(before, after)


def test_a_classifier_and_an_aim(classifier: str, tmp_path: Path) -> None:
    result = tasks.run(request(tmp_path, classifier, epsilon=20.0, method="pgd", aim="very ill", steps=4))
    before, after = (rows[2]["probability"] for rows in (result["classes_before"], result["classes_after"]))
    assert after > before
    assert result["measure"] == "accuracy"
    assert len(result["curve"]["epsilons"]) == 9


def test_clipped_to_the_images_range(flat: str, tmp_path: Path) -> None:
    clean, perturbed, _ = arrays(tasks.run(request(tmp_path, flat, epsilon=30.0, clip=True)))
    assert perturbed.min() >= clean.min() - 1e-3
    assert perturbed.max() <= clean.max() + 1e-3


def test_given_labels(flat: str, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 3, (24, 28)).astype(np.uint8)
    made = request(tmp_path, flat, epsilon=1.0)
    truth = geometry.from_array(values, images.read(made.images[0]))
    sitk.WriteImage(truth, str(tmp_path / "truth.nrrd"))
    labels = str(tmp_path / "before.nrrd")
    result = tasks.run(
        request(tmp_path, flat, epsilon=1.0, truth=str(tmp_path / "truth.nrrd"), prediction_before=labels)
    )
    found = sitk.GetArrayFromImage(images.read(labels))
    each = [2 * ((found == v) & (values == v)).sum() / ((found == v).sum() + (values == v).sum()) for v in (1, 2)]
    assert result["before"] == pytest.approx(np.mean(each), abs=1e-6)
    assert result["truth"] == "the given labels"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"aim": "nobody"}, "has no label 'nobody'"),
        ({"truth": "missing.nrrd"}, "does not exist"),
        ({"output": "out.png"}, "no ending"),
    ],
)
def test_bad_input_writes_nothing(flat: str, tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    if "output" in settings:
        settings = {"output": str(tmp_path / settings["output"])}
    with pytest.raises(BadInput, match=said):
        tasks.run(request(tmp_path, flat, epsilon=1.0, **settings))
    assert [p.name for p in tmp_path.iterdir()] == ["image.nrrd"]


def test_intensities_that_cannot_be_undone(tmp_path: Path) -> None:
    import json

    folder = write_tiny_bundle(tmp_path / "bent", dims=2)
    file = folder / "configs" / "inference.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    bend = {"_target_": "AdjustContrastd", "keys": "@image_key", "gamma": 3.0}
    config["preprocessing"]["transforms"].insert(-1, bend)
    file.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(BadInput, match="Epsilon has no meaning"):
        tasks.run(request(tmp_path, str(folder), epsilon=1.0))

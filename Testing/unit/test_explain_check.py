"""`mli explain-check` and the badges: methods that look at the weights, and controls that do not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("torch")

import torch
from test_explain_task import vector_bundle
from tiny_bundle import write_tiny_bundle

from MLILib import bundles, tasks
from MLILib.errors import BadInput
from MLILib.explanation.badges import badges
from MLILib.explanation.check import Probability
from MLILib.explanation.requests import ExplainCheckRequest
from MLILib.explanation.targets import ClassScore, LabelSum


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vector_bundle(tmp_path_factory.mktemp("model") / "model", "classification")


def cases(folder: Path, count: int) -> list[str]:
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        paths.append(str(folder / f"{index}.nrrd"))
        sitk.WriteImage(sitk.GetImageFromArray(rng.normal(size=(24, 24)).astype(np.float32)), paths[-1])
    return paths


def request(paths: list[str], model: Path, **settings: Any) -> ExplainCheckRequest:
    small = {"draws": 1, "layers": 2, "steps": 2, "curve_steps": 4, "noise_draws": 1}
    return ExplainCheckRequest.from_json({"images": paths, "model": str(model), **small, **settings})


def test_methods_beside_controls(model: Path, tmp_path: Path) -> None:
    paths = cases(tmp_path, 3)
    told = str(tmp_path / "told.json")
    result = tasks.run(request(paths, model, methods=["gradient", "integrated-gradients", "grad-cam"], output=told))
    assert [row["method"] for row in result["methods"]] == ["gradient", "integrated-gradients", "grad-cam"]
    assert (result["cases"], result["layer"]) == (3, "layer4")
    gradient, integrated, _ = result["methods"]
    # random weights were drawn anew by other random weights: nothing is left of their gradient
    assert gradient["badge"] == "reacts to the model"
    assert gradient["left"] < 0.5
    assert len(gradient["layers"]) == 2
    assert gradient["completeness_error"] is None
    assert integrated["completeness_error"] >= 0
    for row in result["methods"]:
        for kind in ("deletion", "insertion"):
            curve = row[kind]
            assert len(curve["fractions"]) == len(curve["scores"]) == 5
            assert curve["area"] == pytest.approx(np.mean(curve["areas"]))
            assert 0 < curve["p_random"] <= 1
        # deletion ends where insertion begins: at the baseline, and the other way round
        assert row["deletion"]["scores"][0] == pytest.approx(row["insertion"]["scores"][-1], abs=1e-5)
        assert row["deletion"]["scores"][-1] == pytest.approx(row["insertion"]["scores"][0], abs=1e-5)
    assert [row["title"] for row in result["controls"]] == ["random map", "edge detector"]
    written = json.loads(Path(told).read_text(encoding="utf-8"))
    assert written["methods"] == result["methods"]
    assert "reacts to the model" in result["text"]


def test_a_network_beside_itself_keeps_everything(model: Path, tmp_path: Path) -> None:
    """Random labels: the same network as its own untaught twin has the same maps, correlation 1."""
    result = tasks.run(request(cases(tmp_path, 1), model, methods=["gradient"], untaught=str(model), curve_steps=0))
    (row,) = result["methods"]
    assert row["labels"] == pytest.approx(1.0)
    assert row["deletion"] is None


def test_a_method_that_cannot_be_tested_says_why(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "gelu", dims=2)
    config = json.loads((folder / "configs" / "inference.json").read_text(encoding="utf-8"))
    config["network_def"]["act"] = "gelu"
    (folder / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    methods = ["guided-backpropagation"]
    result = tasks.run(request(cases(tmp_path, 1), folder, methods=methods, target="", curve_steps=0, noise_draws=0))
    (row,) = result["methods"]
    assert row["badge"] == "not tested"
    assert "does not cover gelu" in row["reason"]


def test_another_network_is_no_twin(model: Path, tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other", dims=2)
    with pytest.raises(BadInput, match="has another network"):
        tasks.run(request(cases(tmp_path, 1), model, untaught=str(other)))


class TestBadges:
    def test_only_of_the_weights_that_were_checked(self, model: Path, tmp_path: Path) -> None:
        bundle = bundles.find(str(model))
        copy = dataclasses.replace(bundle, folder=tmp_path)
        assert set(badges(copy).values()) == {"not tested"}
        (tmp_path / "docs").mkdir()
        rows = [{"method": "gradient", "badge": "reacts to the model"}, {"method": "deconvnet", "badge": "lovely"}]
        told: dict[str, Any] = {"model": {"name": "m", "sha256": bundle.sha256}, "methods": rows}
        file = tmp_path / "docs" / "explain_check.json"
        file.write_text(json.dumps(told), encoding="utf-8")
        assert badges(copy)["gradient"] == "reacts to the model"
        assert badges(copy)["deconvnet"] == "not tested"
        told["model"]["sha256"] = "0" * 64
        file.write_text(json.dumps(told), encoding="utf-8")
        assert badges(copy)["gradient"] == "not tested"

    def test_a_damaged_file_is_none(self, model: Path, tmp_path: Path) -> None:
        copy = dataclasses.replace(bundles.find(str(model)), folder=tmp_path)
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "explain_check.json").write_text("{", encoding="utf-8")
        assert set(badges(copy).values()) == {"not tested"}


class TestProbability:
    def test_of_a_class(self) -> None:
        score = Probability(ClassScore(1), exclusive=True)
        assert score(torch.log(torch.tensor([[1.0, 3.0]]))).tolist() == pytest.approx([0.75])

    def test_of_a_label_is_the_mean_over_its_region(self) -> None:
        region = torch.tensor([1, 1, 0])
        score = Probability(LabelSum(1, region), exclusive=True)
        output = torch.log(torch.tensor([[[1.0, 1.0, 1.0], [3.0, 1.0, 9.0]]]))
        assert score(output).tolist() == pytest.approx([(0.75 + 0.5) / 2])

"""`mli atlases check`: each fault of a set is found and named, and a sound set has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_dataset import write_dataset

from MLILib import cli
from MLILib.errors import BadInput, Cancelled
from MLILib.fusion import atlas_check
from MLILib.fusion.requests import AtlasesCheckRequest
from MLILib.progress import Progress

SHAPE = (6, 7, 8)


def atlas(folder: Path, name: str, seed: int, *values: int, spacing: float = 1.0) -> None:
    """An image of noise and labels that hold `values`, on one grid."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    labels.ravel()[rng.permutation(labels.size)[: 20 * len(values)]] = np.repeat(np.array(values, np.uint8), 20)
    write(folder / f"{name}.nrrd", rng.normal(size=SHAPE).astype(np.float32), spacing)
    write(folder / f"{name}_seg.nrrd", labels, spacing)


def write(path: Path, array: np.ndarray, spacing: float = 1.0) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((spacing, 1.0, 1.0))
    sitk.WriteImage(image, str(path))


def check(folder: Path) -> dict[str, Any]:
    result = atlas_check.run(AtlasesCheckRequest(atlases=str(folder)), Progress())
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    return result


def found(result: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one["kind"], Path(one["atlas"]).name) for one in result["problems"]}


def test_a_sound_set(tmp_path: Path) -> None:
    result = check(write_dataset(tmp_path, 4))
    assert result["ok"]
    assert result["problems"] == []
    assert result["atlases"] == 4
    assert result["labels"] == [
        {"value": 1, "name": "left", "atlases": 4},
        {"value": 2, "name": "right", "atlases": 4},
    ]
    assert result["grids"] == [{"grid": "20 x 18 x 16 voxels of 1 x 1 x 1 mm", "atlases": 4}]
    assert "Nothing is wrong" in result["text"]


def test_each_fault(tmp_path: Path) -> None:
    for i in range(4):
        atlas(tmp_path, f"good{i}", i, 1, 2)
    atlas(tmp_path, "alone", 10, 1, 2)
    (tmp_path / "alone_seg.nrrd").unlink()
    atlas(tmp_path, "orphan", 11, 1, 2)
    (tmp_path / "orphan.nrrd").unlink()
    atlas(tmp_path, "grid", 12, 1, 2)
    write(tmp_path / "grid.nrrd", np.random.default_rng(13).normal(size=SHAPE).astype(np.float32), 1.5)
    atlas(tmp_path, "unknown", 14, 1, 2, 9)
    atlas(tmp_path, "lacking", 15, 1)
    atlas(tmp_path, "empty", 16)
    atlas(tmp_path, "broken", 17, 1, 2)
    (tmp_path / "broken_seg.nrrd").write_bytes(b"not an image")
    atlas(tmp_path, "again", 18, 1, 2)
    again = sitk.ReadImage(str(tmp_path / "good0.nrrd"))
    sitk.WriteImage(sitk.Cast(again, sitk.sitkFloat64), str(tmp_path / "again.nrrd"), True)  # other bytes, same voxels
    atlas(tmp_path, "copy", 19, 1, 2)
    (tmp_path / "copy_seg.nrrd").write_bytes((tmp_path / "good1_seg.nrrd").read_bytes())
    result = check(tmp_path)
    assert not result["ok"]
    assert found(result) == {
        ("unlabelled", "alone.nrrd"),
        ("orphan", "orphan_seg.nrrd"),
        ("grid", "grid"),
        ("unknown", "unknown"),
        ("lacking", "lacking"),
        ("empty", "empty"),
        ("unreadable", "broken"),
        ("duplicate", "good1"),  # "copy" comes first
        ("duplicate", "good0"),  # "again" comes first
    }
    assert {one["kind"] for one in result["problems"]} <= set(atlas_check.KINDS)
    assert "unknown has the label 9, which most atlases do not have." in result["text"]
    assert result["labels"][2] == {"value": 9, "name": "9", "atlases": 1}


def test_what_a_dataset_declares(tmp_path: Path) -> None:
    for i in range(2):
        atlas(tmp_path, f"a{i}", i, 1, 4)
    entries = [{"image": f"a{i}.nrrd", "label": f"a{i}_seg.nrrd"} for i in range(2)]
    entries.append({"image": "gone.nrrd", "label": "gone_seg.nrrd"})
    data = {"labels": {"0": "background", "1": "head", "2": "tail"}, "training": entries}
    (tmp_path / "dataset.json").write_text(json.dumps(data), encoding="utf-8")
    result = check(tmp_path)
    assert found(result) == {
        ("missing", "gone.nrrd"), ("missing", "gone_seg.nrrd"), ("unknown", "a0"), ("unknown", "a1"),
        ("lacking", "a0"), ("lacking", "a1"),
    }  # fmt: skip
    assert "a0 has the label 4, which dataset.json does not name." in result["text"]
    assert "a0 lacks the label tail." in result["text"]


def test_the_command_says_no_with_its_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    atlas(tmp_path, "a", 0, 1)
    atlas(tmp_path, "b", 1, 1)
    assert cli.main(["atlases", "check", str(tmp_path)]) == 0
    (tmp_path / "b_seg.nrrd").unlink()
    capfd.readouterr()
    assert cli.main(["atlases", "check", str(tmp_path), "--json"]) == 1
    said = capfd.readouterr().out
    assert json.loads(said)["problems"][0]["kind"] == "unlabelled"


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no atlas"):
        check(tmp_path)


def test_cancel(tmp_path: Path) -> None:
    request = AtlasesCheckRequest(atlases=str(write_dataset(tmp_path, 3)))
    with pytest.raises(Cancelled):
        atlas_check.run(request, Progress(cancelled=lambda: True))

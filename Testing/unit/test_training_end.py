"""Ending a training early: asked for by a file, by the clock; and what it tells of itself while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402
from tiny_dataset import write_dataset  # noqa: E402

from MLILib import stop_file  # noqa: E402
from MLILib.progress import Progress  # noqa: E402
from MLILib.segmentation import sample_picture  # noqa: E402
from MLILib.segmentation.requests import TrainSegmentationRequest  # noqa: E402
from MLILib.tasks import run  # noqa: E402


def request(folder: Path, **settings: Any) -> TrainSegmentationRequest:
    values = {"epochs": 1000, "filters": 2, "folds": 4, "device": "cpu", "learning_rate": 0.01} | settings
    return TrainSegmentationRequest(dataset=str(folder / "dataset.json"), output=str(folder / "bundle"), **values)


def test_a_file_ends_it_with_the_best_weights(tmp_path: Path) -> None:
    write_dataset(tmp_path, 8)
    events: list[dict[str, Any]] = []
    pictures: list[tuple[int, int]] = []

    def hear(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "samples":
            with Image.open(event["path"]) as picture:
                pictures.append(picture.size)
        losses = [e for e in events if e["event"] == "curve" and e["stage"] == "Training loss"]
        if len(losses) == 7 and event["event"] == "curve":
            stop_file.ask(tmp_path / "bundle" / "training")

    result = run(request(tmp_path), Progress(hear, interval=0.0))
    curves: dict[str, dict[int, float]] = {}
    for event in events:
        if event["event"] == "curve":
            curves.setdefault(event["stage"], {})[event["iteration"]] = event["value"]
    last = max(curves["Training loss"])
    assert 7 <= last <= 8  # the epoch that was under way is ended, no other begun
    assert sorted(curves["Validation Dice"]) == [5, last]  # it is measured where it ends
    assert any("as asked for" in e["text"] for e in events if e["event"] == "message")
    assert len(pictures) == 2
    assert (tmp_path / "bundle" / "models" / "model.pt").is_file()
    assert not stop_file.heard(tmp_path / "bundle" / "training")
    assert result["bundle"] == str(tmp_path / "bundle")


def test_an_old_file_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    stop_file.ask(folder)  # nothing is there to be stopped
    assert not folder.exists()
    folder.mkdir()
    stop_file.ask(folder)
    stop_file.clear(folder)
    assert not stop_file.heard(folder)
    stop_file.ask(folder)
    assert stop_file.heard(folder)
    assert not stop_file.heard(folder)


def test_the_clock_ends_it(tmp_path: Path) -> None:
    write_dataset(tmp_path, 8)
    said: list[str] = []
    run(request(tmp_path, hours=1e-6), Progress(lambda e: said.append(e.get("text", ""))))
    assert any(text.startswith("Stopped after epoch 1:") for text in said)


@pytest.mark.parametrize("shape", [(20, 40), (20, 40, 9)])
def test_the_picture_shows_image_truth_and_prediction(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = torch.linspace(0, 1, shape[0])[(...,) + (None,) * (len(shape) - 1)].expand(shape)[None]
    truth, found = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    at = (slice(2, 8), slice(30, 38)) + ((slice(6, 7),) if len(shape) == 3 else ())
    truth[at] = 1
    sample_picture.draw(image, truth, found, tmp_path / "sample.png")
    with Image.open(tmp_path / "sample.png") as picture:
        pixels = np.asarray(picture).astype(int)
    assert pixels.shape == (200, 3 * 100 + 12, 3)
    grey, true, ours = pixels[:, :100], pixels[:, 106:206], pixels[:, 212:]
    assert np.array_equal(grey, ours)  # nothing was found
    rows, columns = np.nonzero((true != grey).any(axis=2))
    # x to the right, y up: 5 pixels a voxel, y from 30 to 38 of 40 lies near the top
    assert (columns.min(), columns.max()) == (10, 39)
    assert (rows.min(), rows.max()) == (10, 49)
    assert grey[100, 90].mean() > grey[100, 10].mean()

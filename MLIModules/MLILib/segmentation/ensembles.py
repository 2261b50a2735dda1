"""Several models for one question: one for each fold, or one for each random draw of the training cases (bagging).

Each member is an ordinary bundle in a folder of its own; ``ensemble.json`` beside them names them, so that the folder
stands for all of them: ``mli segment IMAGE -m FOLDER``.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import checkpoint
from ..bundle_parts import write_json
from ..errors import BadInput
from ..progress import Progress, duration
from .ensemble_folder import INDEX
from .train_request import TrainSegmentationRequest


def member_requests(request: TrainSegmentationRequest) -> list[TrainSegmentationRequest]:
    """What is asked of each member's training."""
    folder = Path(request.output)
    if request.ensemble == "folds":
        return [
            dataclasses.replace(request, ensemble="", fold=k, output=str(folder / f"fold_{k}"))
            for k in range(request.folds)
        ]
    return [
        dataclasses.replace(request, ensemble="", draw=k, output=str(folder / f"draw_{k}"))
        for k in range(1, request.members + 1)
    ]


def train_members(
    request: TrainSegmentationRequest,
    progress: Progress,
    train: Callable[[TrainSegmentationRequest, Progress], dict[str, Any]],
) -> dict[str, Any]:
    """Train every member; those that are done already stay as they are when the training is resumed.

    Args:
        request: of the ensemble.
        progress: told of each member.
        train: trains one, as :func:`MLILib.segmentation.training.run` does.

    Returns:
        bundle (the folder), members (each one's bundle, Dice on the cases kept aside, validation Dice and seconds),
        dice (mean over the cases and labels of all members), cases, seconds, text; ``ok`` False where one diverged.

    Raises:
        BadInput: the folder holds files already, or as in :func:`MLILib.segmentation.training.run`.
    """
    folder = Path(request.output)
    if checkpoint.holds_files(folder) and not request.resume:
        raise BadInput(f"{folder} already holds files.", "", "Go on with --resume, or name another folder.")
    folder.mkdir(exist_ok=True)
    wanted = member_requests(request)
    found: list[dict[str, Any]] = []
    errors: list[str] = []
    for i, member in enumerate(wanted):
        place = Path(member.output)
        result_file = place / "training" / "result.json"
        if request.resume and result_file.exists():
            progress.message(f"Model {i + 1} of {len(wanted)} is done.")
        else:
            progress.message(f"Model {i + 1} of {len(wanted)}: {place.name}")
            begun = (place / "training" / "checkpoint.pt").exists()
            if place.exists() and not begun and {p.name for p in place.iterdir()} <= {"training"}:
                shutil.rmtree(place)  # cut short before the first checkpoint: nothing is lost
            result = train(dataclasses.replace(member, resume=begun), progress)
            kept = {k: result.get(k) for k in ("validation_dice", "test", "seconds", "error")}
            write_json(result_file, kept)
        told = json.loads(result_file.read_text(encoding="utf-8"))
        errors += [f"{place.name}: {told['error']}"] if told.get("error") else []
        found.append({"bundle": place.name, "dice": _dice(told), **told})
    write_json(folder / INDEX, {"kind": request.ensemble, "members": [m["bundle"] for m in found]})
    rows = [row for member in wanted for row in _cases(Path(member.output))]
    dice = _mean_of_labels(rows)
    cases = len({row["case"] for row in rows})
    seconds = sum(float(m["seconds"]) for m in found)
    lines = [
        f"{m['bundle']}: mean Dice {m['dice']:.4f}" if m["dice"] else f"{m['bundle']}: not measured" for m in found
    ]
    if dice is not None:
        which = "each measured by the model that never saw it" if request.ensemble == "folds" else "by each model"
        lines.append(f"mean Dice {dice:.4f} over {cases} cases, {which}")
    lines.append(f"{folder}: {len(found)} models in {duration(seconds)}. Use them with: mli segment IMAGE -m {folder}")
    return {
        "bundle": str(folder), "members": found, "dice": dice, "cases": cases, "seconds": seconds, "ok": not errors,
        "errors": errors, "text": "\n".join([*lines, *errors]),
    }  # fmt: skip


def _dice(told: dict[str, Any]) -> float | None:
    mean = (told.get("test") or {}).get("mean", {}).get("dice", {}).get("mean")
    return None if mean is None or math.isnan(mean) else float(mean)


def _cases(folder: Path) -> list[dict[str, str]]:
    file = folder / "docs" / "test_cases.csv"
    if not file.exists():
        return []
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _mean_of_labels(rows: Sequence[dict[str, str]]) -> float | None:
    """Mean over the labels of the mean over the cases, undefined ones left out."""
    means = []
    for label in sorted({row["label"] for row in rows}):
        values = [float(row["dice"]) for row in rows if row["label"] == label and row["dice"] not in ("", "nan")]
        means += [statistics.fmean(values)] if values else []
    return statistics.fmean(means) if means else None

"""One training in Slicer: where its checkpoints are, what it may be called, how it is stopped, and what becomes of it.

A training writes into a folder of its own below the user's cache; what that holds when it is stopped or killed is where
the next one of that name goes on. The model is copied to the user's models when it is done.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from MLILib import folders, stop_file
from MLILib.errors import BadInput, MLIError, from_json

from . import exchange, models
from .job_folder import JobFolder
from .jobs import Call, Steps

#: What a model's name may hold, as :mod:`MLILib.catalogue` has it: it names a folder.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

#: Writes what is learned from into a job's folder: called with the folder and a dict that learns which node or name
#: each file stands for; its result is the data set's path.
Writer = Callable[[Path, dict[Path, Any]], Steps]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        name: of the model, now among the user's.
        details: the worker's result.
    """

    name: str
    details: dict[str, Any]


def folder_of(task: str, name: str) -> Path:
    """Where the training of that name keeps its checkpoints; each task has names of its own."""
    return folders.cache() / "training" / task / name


def can_resume(task: str, name: str) -> bool:
    """Whether a training of that name was stopped before its end."""
    return (folder_of(task, name) / "training" / "checkpoint.pt").is_file()


def stop(task: str, name: str) -> None:
    """Ask the training of that name to end soon, with the best weights so far."""
    stop_file.ask(folder_of(task, name) / "training")


def is_taken(name: str) -> bool:
    """Whether the user has a model of that name, for whatever task."""
    return name in models.known(models.TASKS)


def name_error(name: str) -> str:
    """What is wrong with a model's name, a sentence; "" when nothing is."""
    if not name.strip():
        return _("Give the model a name.")
    if not _NAME.fullmatch(name):
        return _("A model's name holds letters, digits, points and dashes, and no spaces.")
    if (model := models.known(models.TASKS).get(name)) is not None and model.shipped:
        return _("A shipped model is called '{name}'. Give another name.").format(name=name)
    return ""


def steps(task: str, name: str, write: Writer, settings: Mapping[str, Any], *, replace: bool) -> Steps:
    """The steps of a training, for :mod:`MLISlicerLib.jobs`; their result is a :class:`Trained`.

    Args:
        task: "train-segmentation" or "train-anomaly".
        name: of the model.
        write: writes what is learned from.
        settings: of the task, without data set and output.
        replace: whether a model of the user's with that name is replaced.

    Raises:
        MLIError: what a user can act on.
    """
    if wrong := name_error(name):
        raise BadInput(wrong, "", "")
    folder = folder_of(task, name)
    resume = can_resume(task, name)
    if folder.exists() and not resume:
        shutil.rmtree(folder)  # the rest of a training that had not come to its first checkpoint
    folder.parent.mkdir(parents=True, exist_ok=True)
    files: dict[Path, Any] = {}
    with JobFolder() as job:
        dataset = yield from write(job, files)
        asked = {**settings, "dataset": str(dataset), "output": str(folder), "resume": resume}
        details = yield from exchange.ask(task, asked, files)
    try:
        added = yield Call("models-import", {"source": str(folder), "name": name, "replace": replace})
    except MLIError as error:
        kept = _("The trained model is in {folder}: add it from there.").format(folder=folder)
        raise from_json({**error.to_json(), "remedy": f"{error.remedy} {kept}".strip()}) from error
    shutil.rmtree(folder)
    return Trained(added["name"], details)

"""Training a segmentation model in Slicer: cases of the scene or a dataset.json in, a model in the chooser out.

The training writes into a folder of its own below the user's cache; what it holds when a training is stopped or killed
is where the next one of that name goes on. The model is copied to the user's models when it is done.
"""

from __future__ import annotations

import dataclasses
import html
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from MLILib import folders, stop_file
from MLILib.errors import BadInput, MLIError
from MLILib.progress import duration

from . import fusion_atlases, models
from .fusion_atlases import SceneAtlases
from .jobs import Call, JobFolder, Steps
from .wording import with_names

#: What a model's name may hold, as :mod:`MLILib.catalogue` has it: it names a folder.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: Fewer cases than this cannot be split into those that are learned from, that choose the weights, and that measure.
LEAST_CASES = 4


@dataclasses.dataclass
class Inputs:
    """What a training starts from.

    Attributes:
        name: of the model.
        cases: of the scene; or
        dataset: a dataset.json.
        title: what a reader calls the cases.
        settings: of the task "train-segmentation", without data set and output.
        replace: whether a model of the user's with that name is replaced.
    """

    name: str
    cases: SceneAtlases | None
    dataset: str
    title: str
    settings: Mapping[str, Any]
    replace: bool = False


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        name: of the model, now among the user's.
        details: the worker's result.
    """

    name: str
    details: dict[str, Any]


def folder_of(name: str) -> Path:
    """Where the training of that name keeps its checkpoints."""
    return folders.cache() / "training" / name


def can_resume(name: str) -> bool:
    """Whether a training of that name was stopped before its end."""
    return (folder_of(name) / "training" / "checkpoint.pt").is_file()


def stop(name: str) -> None:
    """Ask the training of that name to end after this epoch with the best weights so far."""
    stop_file.ask(folder_of(name) / "training")


def name_error(name: str) -> str:
    """What is wrong with a model's name, a sentence; "" when nothing is."""
    if not name.strip():
        return _("Give the model a name.")
    if not _NAME.fullmatch(name):
        return _("A model's name holds letters, digits, points and dashes, and no spaces.")
    if (model := models.known(models.TASKS).get(name)) is not None and model.shipped:
        return _("A shipped model is called '{name}'. Give another name.").format(name=name)
    return ""


def steps(inputs: Inputs) -> Steps:
    """The steps of a training, for :mod:`MLISlicerLib.jobs`; their result is a :class:`Trained`.

    Raises:
        MLIError: what a user can act on.
    """
    if wrong := name_error(inputs.name):
        raise BadInput(wrong, "", "")
    folder = folder_of(inputs.name)
    resume = can_resume(inputs.name)
    if folder.exists() and not resume:
        shutil.rmtree(folder)  # the rest of a training that had not come to its first checkpoint
    folder.parent.mkdir(parents=True, exist_ok=True)
    files: dict[Path, Any] = {}
    with JobFolder() as job:
        dataset = Path(inputs.dataset)
        if inputs.cases is not None:
            fusion_atlases.require(inputs.cases, inputs.title)
            if len(inputs.cases.atlases) < LEAST_CASES:
                raise BadInput(
                    _("{count} cases are too few to train on.").format(count=len(inputs.cases.atlases)),
                    _("Some choose the best weights and some measure the result, so that it can be believed."),
                    _("Put {count} or more into the folder.").format(count=LEAST_CASES),
                )
            dataset = yield from fusion_atlases.write(inputs.cases, job, files, inputs.title)
        settings = {**inputs.settings, "dataset": str(dataset), "output": str(folder), "resume": resume}
        try:
            details = yield Call("train-segmentation", settings)
            added = yield Call("models-import", {"source": str(folder), "name": inputs.name, "replace": inputs.replace})
        except MLIError as error:
            raise with_names(error, files) from error
    shutil.rmtree(folder)
    return Trained(added["name"], details)


def summary(trained: Trained) -> str:
    """What came of a training, HTML: the figures of the cases that were kept aside, or that there are none."""
    details = trained.details
    if not details.get("ok", True):
        return html.escape(str(details["error"]))
    lines = [_("Trained in {time}.").format(time=duration(details["seconds"]))]
    measured = details["test"]
    if not measured:
        return " ".join([*lines, _("It was not measured: no case was kept aside.")])
    lines.append(_("Dice on the cases that were kept aside:"))
    figures = {name: one["dice"]["mean"] for name, one in measured.items()}
    rows = [
        f"<tr><td>{html.escape(name)}&nbsp;&nbsp;</td><td>{_('undefined') if dice is None else f'{dice:.3f}'}</td></tr>"
        for name, dice in figures.items()
    ]
    return f"{' '.join(lines)}<table>{''.join(rows)}</table>"

"""Training a segmentation model in Slicer: cases of the scene or a dataset.json in, a model in the chooser out."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from MLILib.errors import BadInput
from MLILib.progress import duration

from . import fusion_atlases, training_job
from .fusion_atlases import SceneAtlases
from .jobs import Steps
from .training_job import Trained

#: What the worker is asked for.
TASK = "train-segmentation"
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


def steps(inputs: Inputs) -> Steps:
    """The steps of a training; their result is a :class:`MLISlicerLib.training_job.Trained`.

    Raises:
        MLIError: what a user can act on.
    """

    def write(job: Path, files: dict[Path, Any]) -> Steps:
        if inputs.cases is None:
            return Path(inputs.dataset)
        fusion_atlases.require(inputs.cases, inputs.title)
        if len(inputs.cases.atlases) < LEAST_CASES:
            raise BadInput(
                _("{count} cases are too few to train on.").format(count=len(inputs.cases.atlases)),
                _("Some choose the best weights and some measure the result, so that it can be believed."),
                _("Put {count} or more into the folder.").format(count=LEAST_CASES),
            )
        return (yield from fusion_atlases.write(inputs.cases, job, files, inputs.title))

    return training_job.steps(TASK, inputs.name, write, inputs.settings, replace=inputs.replace)


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

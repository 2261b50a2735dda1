"""Training a model of normal in Slicer: volumes of the scene, a folder or a file in, a model in the chooser out."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MLILib.progress import duration

from . import exchange, fusion_atlases, training_job
from .jobs import Steps
from .training_job import Trained

#: What the worker is asked for.
TASK = "train-anomaly"


@dataclasses.dataclass
class Inputs:
    """What a training starts from.

    Attributes:
        name: of the model.
        volumes: normal ones, of the scene; or
        dataset: a folder, a dataset.json or an .npz.
        settings: of the task "train-anomaly", without data set and output.
        replace: whether a model of the user's with that name is replaced.
    """

    name: str
    volumes: Sequence[slicer.vtkMRMLScalarVolumeNode]
    dataset: str
    settings: Mapping[str, Any]
    replace: bool = False


def steps(inputs: Inputs) -> Steps:
    """The steps of a training; their result is a :class:`MLISlicerLib.training_job.Trained`.

    Raises:
        MLIError: what a user can act on.
    """

    def write(job: Path, files: dict[Path, Any]) -> Steps:
        if not inputs.volumes:
            return Path(inputs.dataset)
        dataset = job / "the chosen volumes"  # as the model's card calls them
        dataset.mkdir()
        stems = fusion_atlases.file_names([volume.GetName() for volume in inputs.volumes])
        for volume, stem in zip(inputs.volumes, stems, strict=True):
            path = dataset / f"{stem}.nrrd"
            yield from exchange.write_volume(volume, path)
            files[path] = volume
        return dataset

    return training_job.steps(TASK, inputs.name, write, inputs.settings, replace=inputs.replace)


def summary(trained: Trained) -> str:
    """What came of a training, HTML: how long it took, what the checks say, and what it warns of."""
    details = trained.details
    first = _("Trained on {images} images in {time}; {kept} were kept aside to set thresholds on.").format(
        images=details["images"], time=duration(details["seconds"]), kept=details["validation"]
    )
    lines = [html.escape(first)]
    checks = details.get("checks") or {}
    said = checks.get("says") or checks.get("text") or ""
    lines += [html.escape(str(line)) for line in (said if isinstance(said, list) else [said]) if line]
    lines += [f"\N{WARNING SIGN} {html.escape(str(line))}" for line in details.get("warnings") or ()]
    return "".join(f"<p style='margin:0 0 2px 0'>{line}</p>" for line in lines)

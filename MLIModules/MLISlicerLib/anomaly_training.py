"""Training a model of normal in Slicer: volumes of the scene, a folder or a file in, a model in the chooser out.

Where a training keeps its checkpoints, how it is stopped, and what it may be called is as in
:mod:`MLISlicerLib.segmentation_training`.
"""

from __future__ import annotations

import dataclasses
import html
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MLILib.errors import BadInput, MLIError
from MLILib.progress import duration

from . import fusion_atlases, nodes
from .jobs import Call, JobFolder, Steps
from .segmentation_training import Trained, can_resume, folder_of, name_error
from .wording import with_names


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
        if inputs.volumes:
            dataset = job / "the chosen volumes"  # as the model's card calls them
            dataset.mkdir()
            stems = fusion_atlases.file_names([volume.GetName() for volume in inputs.volumes])
            for volume, stem in zip(inputs.volumes, stems, strict=True):
                path = dataset / f"{stem}.nrrd"
                yield from nodes.write_volume(volume, path, _("Preparing {name}").format(name=volume.GetName()))
                files[path] = volume
        settings = {**inputs.settings, "dataset": str(dataset), "output": str(folder), "resume": resume}
        try:
            details = yield Call("train-anomaly", settings)
            added = yield Call("models-import", {"source": str(folder), "name": inputs.name, "replace": inputs.replace})
        except MLIError as error:
            raise with_names(error, files) from error
    shutil.rmtree(folder)
    return Trained(added["name"], details)


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

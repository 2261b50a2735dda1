"""What a job and the worker exchange: volumes and segments written for it, its answer, volumes that come back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from MLILib.errors import MLIError

from . import nodes
from .jobs import Call, Steps
from .transfer import Grid, discard, read_nrrd
from .wording import with_names


def write_volume(
    volume: slicer.vtkMRMLVolumeNode, path: Path, below: slicer.vtkMRMLTransformNode | None = None
) -> Steps:
    """As :func:`MLISlicerLib.nodes.write_volume`, and the reader is told."""
    yield from nodes.write_volume(volume, path, _preparing(volume), below)


def write_segments(
    node: slicer.vtkMRMLSegmentationNode,
    values: Mapping[str, int],
    place: slicer.vtkMRMLVolumeNode | Grid,
    path: Path,
    below: slicer.vtkMRMLTransformNode | None = None,
) -> Steps:
    """As :func:`MLISlicerLib.nodes.write_segments`, and the reader is told."""
    yield from nodes.write_segments(node, values, place, path, _preparing(node), below)


def _preparing(node: slicer.vtkMRMLNode) -> str:
    return str(_("Preparing {name}").format(name=node.GetName()))


def ask(task: str, settings: Mapping[str, Any], files: Mapping[Path, slicer.vtkMRMLNode | str]) -> Steps:
    """Ask the worker; its answer.

    Args:
        task: its name.
        settings: of the task.
        files: the job's files and the nodes that were written to them, or what a reader calls them.

    Raises:
        MLIError: of the worker, with the nodes' names (see :func:`MLISlicerLib.wording.with_names`).
    """
    try:
        return (yield Call(task, dict(settings)))
    except MLIError as error:
        raise with_names(error, files) from error


def read_result(path: Path) -> Steps:
    """Read a volume that the worker wrote, a slab a step, and remove the file; its scalars and its grid."""
    scalars = nodes.Scalars()
    grid = (yield from read_nrrd(path, _("Reading the result"), allocate=scalars.allocate))[1]
    yield from discard(path)
    return scalars, grid

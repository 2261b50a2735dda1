"""What a reader is told of a job: errors and run records with the nodes' names in place of the job's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import slicer

from MLILib.errors import MLIError, from_json


def with_names(error: MLIError, files: Mapping[Path, slicer.vtkMRMLNode | str]) -> MLIError:
    """The error with the nodes' names in place of the job's files, which the reader never saw.

    Args:
        error: of the worker.
        files: the job's files and the nodes that were written to them, or what a reader calls them.
    """
    told = error.to_json()
    names = {}
    for path, node in files.items():
        names[str(path)] = names[path.name] = node if isinstance(node, str) else node.GetName()
    for key in ("what", "cause", "remedy"):
        for name in sorted(names, key=len, reverse=True):  # the longest first: one may be a part of another
            told[key] = told[key].replace(name, names[name])
    return from_json(told)


def record_of(details: Mapping[str, Any], files: Mapping[Path, slicer.vtkMRMLNode | str]) -> str:
    """The run record of a result as text (see :func:`record_text`)."""
    return record_text(json.loads(Path(details["record"]).read_text(encoding="utf-8")), files)


def record_text(record: Mapping[str, Any], files: Mapping[Path, slicer.vtkMRMLNode | str]) -> str:
    """The run record as text, with the files of the nodes in place of the job's temporary ones.

    A node that has not been saved is called by its name, as if it were to be saved in the current folder.

    Args:
        record: as the worker wrote it.
        files: the job's files, in one folder and folders in it, and the nodes that were written to them, or what a
            reader calls them.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False)
    for path, node in files.items():
        text = text.replace(json.dumps(str(path))[1:-1], json.dumps(_file_of(node, path))[1:-1])
    folder = min((path.parent for path in files), key=lambda parent: len(parent.parts))
    return text.replace(json.dumps(f"{folder}/")[1:-1], "")


def _file_of(node: slicer.vtkMRMLNode | str, path: Path) -> str:
    if isinstance(node, str):
        return node
    storage = node.GetStorageNode() if node.IsA("vtkMRMLStorableNode") else None
    if storage is not None and storage.GetFileName():
        return str(storage.GetFileName())
    return f"{node.GetName()}{''.join(path.suffixes)}"

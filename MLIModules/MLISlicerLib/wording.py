"""What a reader is told of a job: errors and run records with the nodes' names in place of the job's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import slicer

from MLILib.errors import MLIError, from_json


def with_names(error: MLIError, files: Mapping[Path, slicer.vtkMRMLNode]) -> MLIError:
    """The error with the nodes' names in place of the job's files, which the reader never saw."""
    told = error.to_json()
    names = {str(path): node.GetName() for path, node in files.items()}
    names |= {path.name: node.GetName() for path, node in files.items()}
    for key in ("what", "cause", "remedy"):
        for name in sorted(names, key=len, reverse=True):  # the longest first: one may be a part of another
            told[key] = told[key].replace(name, names[name])
    return from_json(told)


def record_text(record: Mapping[str, Any], files: Mapping[Path, slicer.vtkMRMLNode]) -> str:
    """The run record as text, with the files of the nodes in place of the job's temporary ones.

    A node that has not been saved is called by its name, as if it were to be saved in the current folder.

    Args:
        record: as the worker wrote it.
        files: the job's files, all in one folder, and the nodes that were written to them.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False)
    for path, node in files.items():
        storage = node.GetStorageNode() if node.IsA("vtkMRMLStorableNode") else None
        ending = "".join(path.suffixes)
        file = storage.GetFileName() if storage is not None and storage.GetFileName() else f"{node.GetName()}{ending}"
        text = text.replace(json.dumps(str(path))[1:-1], json.dumps(file)[1:-1])
    folder = next(iter(files)).parent
    return text.replace(json.dumps(f"{folder}/")[1:-1], "")

"""The task "explain": an image and a model in; a map on the image's grid, its numbers and the record out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from .. import device as devices
from .. import files, images, record
from ..errors import BadInput
from ..progress import Progress
from .explaining import explain_as, read_inputs
from .requests import ExplainRequest


def run(request: ExplainRequest, progress: Progress) -> dict[str, Any]:
    """Do what the request says: read, explain, write.

    Returns:
        What stands in :class:`MLILib.explanation.requests.ExplainRequest`.

    Raises:
        MLIError: what a user can act on; nothing is written then.
    """
    started = time.monotonic()
    images.require_suffix(request.output, images.WRITABLE, "the map")
    beside = record.path_beside(request.output)
    _require_free(request, beside)
    device = devices.resolve(request.device)
    memory = record.PeakMemory(str(device))
    progress.stage("Reading")
    pictures, point, region, regions = read_inputs(request)
    found = explain_as(request, pictures, list(request.images), point, region, regions, progress)
    progress.stage("Writing")
    numbers = found.plain()
    subject = found.subject
    described = devices.describe(device)
    common = {
        "device": described,
        "warnings": found.warnings,
        "model": {"name": subject.bundle.name, "sha256": subject.bundle.sha256},
    }
    with files.Outputs() as written:
        images.write(found.image, written.path(request.output), final=request.output, compress=request.compress)
        noted = record.make(
            request,
            models=[subject.bundle],
            device=described,
            stages=progress.stages,
            peak_memory=memory.bytes(),
            warnings=found.warnings,
            results=numbers,
        )
        record.write(noted, written.path(beside))
        if request.report:
            told = {**numbers, **common, "map": Path(request.output).name}
            text = json.dumps(told, indent=2, allow_nan=False) + "\n"
            Path(written.path(request.report)).write_text(text, encoding="utf-8")
    progress.fraction(1.0)
    return {
        "map": request.output,
        "report": request.report,
        "record": beside,
        **numbers,
        **common,
        "seconds": time.monotonic() - started,
        "stages": progress.finish(),
        "text": found.text(),
    }


def _require_free(request: ExplainRequest, beside: str) -> None:
    """Raise :class:`BadInput` where the record would overwrite an input or another output."""
    taken = {Path(path).resolve() for path in (*request.inputs(), request.report) if path}
    if Path(beside).resolve() in taken:
        raise BadInput(
            f"{beside} is taken: the record of the run is to go there.",
            "It is named after the map.",
            "Give the map, or the report, another name.",
        )

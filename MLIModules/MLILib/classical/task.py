"""The task "segment-classical": an image and, for some methods, seeds in; a label map and the record out."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import SimpleITK as sitk

from .. import files, images, labels, metrics, record
from ..anomaly import masks
from ..errors import BadInput
from ..geometry import Grid, from_array, same_grid
from ..progress import Progress
from ..segmentation import seg_nrrd
from ..segmentation.evaluation import label_names
from . import seeds
from .methods import Classical, Options, segment_classical
from .requests import ClassicalRequest


def run(request: ClassicalRequest, progress: Progress) -> dict[str, Any]:
    """Do what the request says: read, segment, write.

    Returns:
        Plain values, see :class:`ClassicalRequest`.

    Raises:
        MLIError: what a user can act on; nothing is written then.
    """
    started = time.monotonic()
    _require_names(request)
    memory = record.PeakMemory("cpu")
    progress.stage("Reading")
    image = images.read(request.image)
    images.check(image, request.image)
    grid = Grid.of(image)
    known = None
    if request.seeds or request.points:
        called = label_names(request.names)
        known = seeds.read(request.seeds, request.points, request.background, request.point_radius, grid, called)
    mask = masks.read(request.mask, grid) if request.mask else None
    examples = [_example(text) for text in request.examples]
    progress.stage("Segmenting")
    found = segment_classical(
        image,
        request.method,
        seeds=known,
        mask=mask,
        smooth=request.smooth,
        keep_largest=request.keep_largest,
        examples=examples,
        progress=progress,
        **{field.name: getattr(request, field.name) for field in dataclasses.fields(Options)},
    )
    segments = [labels.label(n, name, {}) for n, name in enumerate(found.names, 1)]
    listed = _volumes(found, segments, grid)
    progress.stage("Writing")
    writing = time.monotonic()
    note = record.path_beside(request.output)
    with files.Outputs() as outputs:
        target = outputs.path(request.output)
        if files.suffix(request.output) == ".seg.nrrd":
            seg_nrrd.write(found.labels, segments, target, final=request.output, compress=request.compress)
        else:
            images.write(found.labels, target, final=request.output, compress=request.compress)
        used = [path for text in request.examples for path in text.split("=", 1)]
        noted = record.make(
            request,
            device="the CPU",
            stages={**progress.stages, "Writing": time.monotonic() - writing},
            peak_memory=memory.bytes(),
            warnings=found.warnings,
            results={
                "labels": listed,
                "figures": found.figures,
                "files": [{"name": path, "sha256": record.checksum(path)} for path in used],
            },
        )
        record.write(noted, outputs.path(note))
    progress.fraction(1.0)
    return {
        "output": request.output,
        "record": note,
        "method": request.method,
        "labels": listed,
        "figures": found.figures,
        "device": "the CPU",
        "seconds": time.monotonic() - started,
        "stages": progress.finish(),
        "warnings": found.warnings,
        "text": _text(listed, found),
    }


def _require_names(request: ClassicalRequest) -> None:
    images.require_suffix(request.output, (*images.WRITABLE, ".seg.nrrd"), "the label map")
    files.require_apart((request.output, record.path_beside(request.output)), request.inputs())


def _example(text: str) -> tuple[sitk.Image, sitk.Image]:
    """An image and its label map, from IMAGE=LABELS."""
    image_path, sign, labels_path = text.partition("=")
    if not sign:
        raise BadInput(f"{text!r} is no example.", "It takes an image and its label map.", "Write IMAGE=LABELS.")
    image = images.read(image_path)
    images.check(image, image_path)
    drawn = images.read(labels_path)
    if not same_grid(image, drawn, metrics.GRID_TOLERANCE):
        raise BadInput(
            f"{labels_path} is not on the grid of {image_path}.",
            "They do not go together.",
            "Give the image's own labels.",
        )
    array = metrics.label_array(drawn, f"label map {labels_path}")
    return image, from_array(array.astype(np.int64), image)


def _volumes(found: Classical, segments: list[labels.Label], grid: Grid) -> list[dict[str, Any]]:
    counts = np.bincount(sitk.GetArrayViewFromImage(found.labels).ravel(), minlength=len(segments) + 1)
    return [
        {
            "value": one.value,
            "name": one.name,
            "color": list(one.color),
            "terminology": one.terminology,
            "voxels": int(counts[one.value]),
            "volume_ml": float(counts[one.value] * grid.voxel_ml),
        }
        for one in segments
    ]


def _text(listed: list[dict[str, Any]], found: Classical) -> str:
    lines = [f"{one['value']}  {one['name']}: {one['voxels']:,} voxels, {one['volume_ml']:.3f} ml" for one in listed]
    if "thresholds" in found.figures:
        lines.append("Thresholds: " + ", ".join(f"{x:.5g}" for x in found.figures["thresholds"]))
    return "\n".join([*lines, *(f"Warning: {text}" for text in found.warnings)])

"""The task "template": images in; their unbiased average, transforms, labels, sharpness and the record out.

Example, in a script, without files::

    template = average(images)
    print([row["sharpness"] for row in template.rounds])
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from .. import device as devices
from .. import files, images, record
from ..errors import BadInput
from ..geometry import Grid
from ..labels import Label
from ..progress import Progress
from ..segmentation import label_files, seg_nrrd
from ..segmentation.label_files import LabelFile
from .comparison import require_same_dimension
from .conversion import write_transform
from .groupwise import Template, average
from .label_vote import template_values, vote
from .requests import TemplateRequest

__all__ = ["Template", "average", "run"]


def run(request: TemplateRequest, progress: Progress) -> dict[str, Any]:
    """Do what the request says: read, average, vote, draw, write.

    Returns:
        Plain values: output, template_labels, transforms (the folder), report, record (file names, "" where not
        written), files (name of each image's transform), pictures (file names by what they show), rounds and images
        (see :class:`MLILib.registration.groupwise.Template`), device, seconds, stages, warnings and text.

    Raises:
        MLIError: what a user can act on; nothing is written then.
    """
    started = time.monotonic()
    _require_names(request)
    memory = record.PeakMemory(str(devices.resolve(request.device)))
    progress.stage("Reading")
    read, drawn = _read(request, progress)
    found = average(
        read,
        iterations=request.iterations,
        similarity=request.similarity,
        spacing=request.spacing,
        device=request.device,
        seed=request.seed,
        names=request.images,
        progress=progress,
    )
    labels: tuple[sitk.Image, list[Label]] | None = None
    if drawn:
        progress.stage("Voting")
        labels = vote(drawn, [Grid.of(image) for image in read], found)
    progress.stage("Writing")
    writing = time.monotonic()
    answer: dict[str, Any] = {"rounds": found.rounds, "images": found.images, "warnings": found.warnings}
    names = transform_names(request.images) if request.transforms else []
    with files.Outputs() as outputs, _whole_folder(request.transforms) as folder:
        images.write(found.image, outputs.path(request.output), final=request.output)
        if labels is not None:
            _write_labels(*labels, outputs.path(request.template_labels), request.template_labels)
        if folder is not None:
            for number, name in enumerate(names):
                progress.check_cancelled()
                final = str(Path(request.transforms) / name)
                write_transform(found.transform(number), str(folder / name), found.field_grid, final=final)
        pictures = _draw(request, found, outputs) if request.report else {}
        noted = record.make(
            request,
            device=found.device,
            stages={**progress.stages, "Writing": time.monotonic() - writing},
            peak_memory=memory.bytes(),
            warnings=found.warnings,
            results={"rounds": found.rounds, "images": found.images},
        )
        paths = {
            "output": request.output,
            "template_labels": request.template_labels,
            "transforms": request.transforms,
            "report": request.report,
            "record": record.path_beside(request.output),
        }
        if paths["record"] != request.report:
            record.write(noted, outputs.path(paths["record"]))
        if request.report:
            told = {**paths, "files": names, "pictures": pictures, **answer, "record": noted}
            Path(outputs.path(request.report)).write_text(
                json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
    progress.fraction(1.0)
    return {
        **paths,
        "files": names,
        "pictures": pictures,
        **answer,
        "device": found.device,
        "seconds": time.monotonic() - started,
        "stages": progress.finish(),
        "text": table(found),
    }


def table(found: Template) -> str:
    """Rounds and warnings as lines of text."""
    rows = [("round", "sharpness 1/mm", "mean removed mm", "mean left mm")]
    rows += [
        (str(r["stage"]), f"{r['sharpness']:.4f}", f"{r['removed_mm']:.3f}", f"{r['residual_mm']:.5f}")
        for r in found.rounds
    ]
    wide = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c:>{wide[2]}}  {d:>{wide[3]}}" for a, b, c, d in rows]
    return "\n".join([*lines, *(f"Warning: {text}" for text in found.warnings)])


def transform_names(paths: Sequence[str]) -> list[str]:
    """A file name for the transform of each image: its own with .h5, numbered where two images have one name."""
    stems = [files.stem(path) for path in paths]
    if len({stem.lower() for stem in stems}) == len(stems):
        return [f"{stem}.h5" for stem in stems]
    wide = len(str(len(stems)))
    return [f"{number:0{wide}d}_{stem}.h5" for number, stem in enumerate(stems, start=1)]


def _require_names(request: TemplateRequest) -> None:
    """Raise :class:`BadInput` for outputs that could not be written in the end, before anything is computed."""
    images.require_suffix(request.output, images.WRITABLE, "the template")
    if request.template_labels:
        images.require_suffix(request.template_labels, (*images.WRITABLE, ".seg.nrrd"), "the labels")
    files.require_json(request.report)
    folder = Path(request.transforms)
    if request.transforms and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(
            f"{folder} is not an empty folder.",
            "The transforms would be mixed with what is there.",
            "Empty it, or name a new one.",
        )
    files.require_apart((*request.outputs(), record.path_beside(request.output)), request.inputs())


def _read(request: TemplateRequest, progress: Progress) -> tuple[list[sitk.Image], list[LabelFile]]:
    """The images and their labels, checked one by one, so that the first that cannot be used is named."""
    read: list[sitk.Image] = []
    drawn: list[LabelFile] = []
    for number, path in enumerate(request.images):
        progress.fraction(number / len(request.images))
        image = images.read(path)
        require_same_dimension(read[0] if read else image, image, (request.images[0], path))
        images.check(image, path)
        read.append(image)
    for path, image, name in zip(request.labels, read, request.images, strict=False):
        drawn.append(label_files.read_on(path, image, name, "Give the labels in the order of the images."))
    if drawn:
        template_values(drawn)  # says now, not after the registrations, that there are none
    return read, drawn


def _write_labels(voted: sitk.Image, segments: Sequence[Label], path: str, final: str) -> None:
    if files.suffix(final) == ".seg.nrrd":
        seg_nrrd.write(voted, segments, path, final=final)
    else:
        images.write(voted, path, final=final)


def _draw(request: TemplateRequest, found: Template, outputs: files.Outputs) -> dict[str, str]:
    """Write the pictures beside the report; their names by what they show."""
    from .sharpness import draw_rounds, draw_template

    report = Path(request.report)
    finals = {what: str(report.with_name(f"{files.stem(report)}_{what}.png")) for what in ("sharpness", "template")}
    draw_rounds(found.rounds, outputs.path(finals["sharpness"]))
    arrays = [sitk.GetArrayFromImage(image) for image in (found.first, found.image)]
    draw_template(arrays[0], arrays[1], found.grid, outputs.path(finals["template"]))
    return finals


@contextlib.contextmanager
def _whole_folder(final: str) -> Iterator[Path | None]:
    """A folder to fill that gets its name when the block ends well, and vanishes else; None without a name."""
    if not final:
        yield None
        return
    target = Path(final).absolute()
    made = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}-", dir=target.parent))
    try:
        yield made
        umask = os.umask(0)
        os.umask(umask)
        made.chmod(0o777 & ~umask)  # mkdtemp makes folders that nobody else can read
        if target.exists():
            target.rmdir()  # empty, as was seen before; if it has been filled since, this says so
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)

"""The task "train normative": a table of normal subjects in; a model of what is normal at an age (and so on) out.

Images are read one at a time; the voxels inside the mask lie in a temporary file beside the output, 4 bytes a voxel and
subject, and are regressed in blocks, so that memory holds no more than the model itself and one image.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch

from .. import device as devices
from .. import files, images, record
from ..errors import BadInput
from ..geometry import Grid, describe, same_grid
from ..progress import Progress
from . import gaussian_process, masks
from .covariates import NAMES, Covariate, categorical, design, learn, number_or_none, read_table, some
from .gaussian_process import Fitted, LeaveOneOut
from .normative_model import NormativeModel, prepare
from .normative_requests import TrainNormativeRequest

#: Fewer subjects than these are refused, or warned about.
FEWEST, FEW = 10, 30
Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class _Table:
    """The table as it is used: rows, their covariates, and where the images and masks lie (or "")."""

    rows: list[dict[str, str]]
    covariates: tuple[Covariate, ...]
    images: list[str]
    masks: list[str]


def run(request: TrainNormativeRequest, progress: Progress) -> dict[str, Any]:
    """Do what the request says: read, regress, say how it does on subjects left out, write.

    Returns:
        Plain values, see :class:`TrainNormativeRequest`.

    Raises:
        MLIError: what a user can act on; nothing is written then.
    """
    started = time.monotonic()
    device = devices.resolve(request.device)
    warnings: list[str] = []
    if device.type == "mps":  # it has no double precision
        device = torch.device("cpu")
        warnings.append("Computed on the CPU: the GPU of this Mac has no double precision.")
    if request.threads:
        torch.set_num_threads(request.threads)
    memory = record.PeakMemory(str(device))
    progress.stage("Reading")
    table = _read(request)
    if len(table.rows) < FEW:
        warnings.append(
            f"{len(table.rows)} subjects are few: what is normal is known roughly, and z-scores are less sure the less "
            f"there are ({FEW} or more are better)."
        )
    x = design(table.covariates, table.rows)
    with tempfile.TemporaryDirectory(prefix=".mli-normative-", dir=Path(request.output).absolute().parent) as folder:
        if request.values:
            grid, voxels, values = None, np.zeros(0, np.int64), _numbers(request, table)
        else:
            grid, voxels, values = _stack(request, table, Path(folder), progress)
        progress.stage("Fitting")
        fitted, left = gaussian_process.fit(
            x,
            values,
            categories=categorical(table.covariates),
            store=np.float32 if grid is not None else np.float64,
            device=device,
            progress=progress,
        )
        del values  # closes the temporary file
    constant = int(np.count_nonzero(fitted.noise == 0))
    _refuse_constants(request, fitted, constant, warnings)
    about = calibration(left, fitted, len(table.rows))
    warnings += about["warnings"]
    n = len(table.rows)
    plain = np.sqrt(left.spread * (n - 1.0)) / n
    model = NormativeModel(
        table.covariates, fitted, tuple(request.values), grid, voxels, request.normalise, request.patch, plain, about
    )
    progress.stage("Writing")
    answer = {
        "kind": "values" if grid is None else "image",
        "subjects": n,
        "targets": len(fitted.mean) - constant,
        "constant": constant,
        "covariates": [
            {"name": one.name, "low": one.low, "high": one.high, "categories": list(one.categories)}
            for one in table.covariates
        ],
        "calibration": about,
        "lengths": _lengths(fitted, table.covariates),
    }
    writing = time.monotonic()
    note = record.path_beside(request.output)
    with files.Outputs() as outputs:
        model.save(outputs.path(request.output))
        noted = record.make(
            request,
            device=devices.describe(device),
            stages={**progress.stages, "Writing": time.monotonic() - writing},
            peak_memory=memory.bytes(),
            warnings=warnings,
            results={
                **answer,
                "files": [{"name": p, "sha256": record.checksum(p)} for p in table.images + table.masks],
            },
        )
        record.write(noted, outputs.path(note))
    return {
        "output": request.output,
        "record": note,
        **answer,
        "device": devices.describe(device),
        "seconds": time.monotonic() - started,
        "stages": progress.finish(),
        "warnings": warnings,
        "text": _text(request, answer, warnings),
    }


def calibration(left: LeaveOneOut, fitted: Fitted, subjects: int) -> dict[str, Any]:
    """How z-scores of subjects left out are distributed, plain values.

    Returns:
        share_within_1.96 (.95 where z is normal), z_mean, z_sd, explained (mean over targets of the share of variance
        that covariates explain in subjects left out; below 0 where they mislead), beyond (pairs: |z|, share of z at or
        beyond it), subjects, warnings (sentences).
    """
    count = left.count
    mean = left.z_sum / count
    ends = gaussian_process.Z_STEP * np.arange(gaussian_process.Z_BINS)
    beyond = 1.0 - np.concatenate([[0.0], np.cumsum(left.histogram[:-1])]) / count
    within = left.share_below(1.96)
    explained = left.explained()[fitted.noise > 0]
    warnings = []
    if not 0.93 <= within <= 0.97:
        warnings.append(
            f"{within:.1%} of the z-scores of subjects left out lie within 1.96, where 95 % should: the values are not "
            "spread as a normal distribution is."
        )
    return {
        "share_within_1.96": within,
        "z_mean": mean,
        "z_sd": float(np.sqrt(max(0.0, left.z_square / count - mean**2))),
        "explained": float(explained.mean()),
        "beyond": [[round(float(z), 6), float(share)] for z, share in zip(ends[::5], beyond[::5], strict=True)],
        "subjects": subjects,
        "warnings": warnings,
    }


def _read(request: TrainNormativeRequest) -> _Table:
    """The table, its columns checked; everything that is wrong with its cells is said at once."""
    rows = read_table(request.table)
    columns = list(rows[0])
    for name in (*request.values, *request.covariates, *(() if request.values else (request.images,))):
        if name not in columns:
            raise BadInput(
                f"{request.table} has no column {name!r}.", f"It has: {', '.join(columns)}.",
                "Name the columns with --images (or --values) and --covariates.",
            )  # fmt: skip
    used = {*request.values, request.images}
    chosen = request.covariates or tuple(c for c in columns if c not in used and c.lower() not in NAMES)
    if not chosen:
        raise BadInput(
            f"{request.table} has no covariates.", "A normative model says what is normal at an age, for instance.",
            "Add columns with covariates.",
        )  # fmt: skip
    if len(rows) < FEWEST:
        raise BadInput(
            f"{request.table} has {len(rows)} subjects.", "Too few to tell what is normal.",
            f"Give at least {FEWEST}, better {FEW} or more.",
        )  # fmt: skip
    faults = [
        f"row {i}: {name} is empty"
        for i, row in enumerate(rows, start=2)
        for name in (*chosen, *request.values, *(() if request.values else (request.images,)))
        if not row[name]
    ]
    if faults:
        raise BadInput(f"{request.table} has empty cells: {some(faults)}.", "", "Fill them, or leave the subjects out.")
    found = tuple(learn(name, [row[name] for row in rows]) for name in chosen)
    places = []
    for column in (request.images, "mask"):
        there = [] if request.values or column not in columns else [row[column] for row in rows]
        places.append([str(Path(request.table).parent / text) if text else "" for text in there])
    return _Table(rows, found, places[0], [path for path in places[1] if path])


def _numbers(request: TrainNormativeRequest, table: _Table) -> Array:
    """The columns of numbers, (n, v)."""
    cells = [[number_or_none(row[name]) for name in request.values] for row in table.rows]
    faults = [
        f"row {i}: {name} is {table.rows[i - 2][name]!r}"
        for i, line in enumerate(cells, start=2)
        for name, value in zip(request.values, line, strict=True)
        if value is None
    ]
    if faults:
        raise BadInput(f"{request.table} holds what is no number: {some(faults)}.", "", "Correct these cells.")
    return np.array(cells, np.float64)


def _stack(
    request: TrainNormativeRequest, table: _Table, folder: Path, progress: Progress
) -> tuple[Grid, Array, Array]:
    """The images' grid, the voxels that all masks hold, and their values (subjects, voxels) in a file."""
    grids, faults = [], []
    for i, path in enumerate(table.images):
        try:
            picture = images.read(path)
            images.check(picture, path)
            grids.append(Grid.of(picture))
        except BadInput as error:
            faults.append(str(error.what).rstrip("."))
        progress.fraction(0.5 * (i + 1) / len(table.images))
    grid = max(grids, key=lambda one: sum(same_grid(one, other) for other in grids)) if grids else None
    if grid is not None and not faults:
        for path, one in zip(table.images, grids, strict=True):
            if not same_grid(one, grid):
                faults.append(f"{path} has {describe(one)}, most images {describe(grid)}")
    inside = np.ones(grid.shape if grid is not None else 0, bool)
    for path in (*table.masks, *((request.mask,) if request.mask else ())):
        try:
            if grid is not None:
                inside &= sitk.GetArrayFromImage(masks.read(path, grid)) != 0
        except BadInput as error:
            faults.append(str(error.what).rstrip("."))
    if faults or grid is None:
        raise BadInput(
            f"{len(faults)} of the files of {request.table} cannot be used: {some(faults)}.",
            "All images must lie on one grid, as after registration to a template.",
            "Correct them, or leave these subjects out.",
        )
    voxels = np.flatnonzero(inside)
    if not voxels.size:
        raise BadInput("No voxel lies inside all masks.", "They do not overlap.", "Check the masks, or leave one out.")
    store = folder / "voxels.float32"
    with _disk(folder), open(store, "wb") as stream:
        for i, path in enumerate(table.images):
            values = prepare(images.read(path), voxels, request.normalise, request.patch)
            stream.write(values.astype(np.float32).tobytes())
            progress.fraction(0.5 + 0.5 * (i + 1) / len(table.images))
    return grid, voxels, np.memmap(store, np.float32, "r", shape=(len(table.images), voxels.size))


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """A full disk as :class:`BadInput`."""
    try:
        yield
    except OSError as error:
        if files.is_disk_full(error):
            raise files.disk_full(folder) from error
        raise


def _refuse_constants(request: TrainNormativeRequest, fitted: Fitted, constant: int, warnings: list[str]) -> None:
    """Raise where no target varies, or a named one does not; else warn of voxels that never change."""
    if constant == len(fitted.mean) or (constant and request.values):
        names = [name for i, name in enumerate(request.values) if fitted.noise[i] == 0]
        raise BadInput(
            f"{', '.join(names) if names else 'Every voxel'} is the same in all subjects.",
            "Nothing can be learned from what does not vary.",
            "Check the table: it may name one image for all.",
        )
    if constant:
        warnings.append(
            f"{constant:,} of {len(fitted.mean):,} voxels are the same in all subjects (background, for instance): "
            "they get no z-score."
        )


def _lengths(fitted: Fitted, covariates: Sequence[Covariate]) -> list[dict[str, Any]]:
    """How many targets chose which length scale of which covariate, in the covariate's own unit."""
    found = []
    column = 0
    for one in covariates:
        counts: Counter[float] = Counter()
        for group in fitted.groups:
            counts[float(group.lengths[column]) * one.sd] += len(group.members)
        found.append({"covariate": one.name, "targets": [[length, count] for length, count in sorted(counts.items())]})
        column += one.columns
    return found


def _text(request: TrainNormativeRequest, answer: dict[str, Any], warnings: Sequence[str]) -> str:
    about = answer["calibration"]
    what = "numbers" if answer["kind"] == "values" else "voxels"
    seen = "; ".join(
        f"{one['name']} {' or '.join(one['categories']) or '{:g} to {:g}'.format(one['low'], one['high'])}"
        for one in answer["covariates"]
    )
    lines = [
        f"{answer['targets']:,} {what} of {answer['subjects']} subjects ({seen}).",
        f"Subjects left out of the regression: |z| < 1.96 in {about['share_within_1.96']:.1%} (95 % where z is normal),"
        f" spread of z {about['z_sd']:.3f}, variance explained by the covariates {about['explained']:.1%}.",
        f"Wrote {request.output}.",
    ]
    return "\n".join([*lines, *(f"Warning: {text}" for text in warnings)])

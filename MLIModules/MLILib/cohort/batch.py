"""The task "batch segment": a cohort and a model in; a label map a case, and a table of volumes and failures, out.

Each case is a run of `mli segment` in a worker process with a record of its own, by which a later run sees that it is
done. A case that fails is a line of the table, and the others go on.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from .. import bundles, files, record, tables
from ..errors import BadInput
from ..progress import Progress, duration
from ..segmentation.requests import SegmentRequest
from . import cases, cluster, pool
from .cases import CohortCase
from .pool import Finished, Job
from .requests import BatchSegmentRequest

TABLE = "cohort.csv"
RECORD = "cohort.json"
#: How a case fares before its end.
WAITING, SEGMENTING = "waiting", "segmenting"
#: What may have come of a case.
DONE, BEFORE, FAILED, IN_THE_WAY = "done", "done before", "failed", "in the way"
#: Settings that do not change a label map's content.
_WITHOUT_EFFECT = frozenset({"images", "model", "output", "device", "trust", "compress", "tile"})


@dataclasses.dataclass
class Row:
    """What came of a case.

    Attributes:
        case: its name.
        output: its label map's file.
        status: one of the four words above; "" while it is not known.
        seconds: it took.
        volumes: ml, by the label's name.
        warnings: sentences.
        error: why there is no label map.
    """

    case: str
    output: str
    status: str = ""
    seconds: float = 0.0
    volumes: dict[str, float] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    error: str = ""


def run(request: BatchSegmentRequest, progress: Progress) -> dict[str, Any]:
    """Segment the cohort.

    Returns:
        Plain values: cases (case, output, status "done", "done before", "failed" or "in the way", seconds, volumes in
        ml by label, warnings, error), counts (by status), table and record (file names), seconds, ok (False where a
        case failed or is in the way) and text (for a terminal).

    Raises:
        BadInput: there is no case, or a model cannot be used. A case that cannot be segmented raises nothing.
        Cancelled: the user stopped; label maps that are done stay, and the table says which.
    """
    started = time.monotonic()
    progress.stage("Reading")
    cohort = cases.read(request.cohort)
    folder = Path(request.output)
    _require_apart(cohort, folder, request.ending)
    models = [bundles.find(name, trust=request.trust) for name in request.model]
    wanted = {case.name: segment_request(request, case, folder) for case in cohort}
    rows = {case.name: Row(case.name, wanted[case.name].output) for case in cohort}
    folder.mkdir(exist_ok=True)
    progress.stage("Looking for what is done")
    todo = []
    for number, (name, one) in enumerate(wanted.items()):
        progress.fraction(number / len(wanted))
        progress.rater(name, WAITING)
        if not known(one, rows[name], models, overwrite=request.overwrite):
            todo.append(Job(name, SegmentRequest.task, one.to_json()))
        else:
            progress.rater(name, rows[name].status)
    progress.stage("Segmenting")
    try:
        with contextlib.closing(
            work(todo, request, progress, lambda job: progress.rater(job.name, SEGMENTING))
        ) as ended:
            for number, found in enumerate(ended, start=1):
                note(found, rows[found.job.name])
                progress.rater(found.job.name, rows[found.job.name].status)
                if found.error is not None:
                    progress.message(f"{found.job.name}: {found.error}")
                progress.fraction(number / len(todo))
    finally:
        _write_table(list(rows.values()), folder / TABLE)
    counts = {word: sum(row.status == word for row in rows.values()) for word in (DONE, BEFORE, FAILED, IN_THE_WAY)}
    result = {
        "cases": [dataclasses.asdict(row) for row in rows.values()],
        "counts": counts,
        "table": str(folder / TABLE),
        "record": str(folder / RECORD),
    }
    noted = record.make(request, models=models, stages=progress.finish(), results=result)
    with files.Outputs() as outputs:
        record.write(noted, outputs.path(folder / RECORD))
    return {
        **result,
        "seconds": time.monotonic() - started,
        "ok": not counts[FAILED] and not counts[IN_THE_WAY],
        "text": _text(list(rows.values()), counts, folder, time.monotonic() - started),
    }


def segment_request(request: BatchSegmentRequest, case: CohortCase, folder: Path) -> SegmentRequest:
    """What `mli segment` is asked for a case: the settings that both have, and the case's files."""
    shared = {s.name for s in SegmentRequest.settings()} & {s.name for s in request.settings()}
    values = {name: getattr(request, name) for name in shared - {"output"}}
    return SegmentRequest(**values, images=case.images, output=str(folder / f"{case.name}{request.ending}"))


def work(
    jobs: Sequence[Job], request: Any, progress: Progress, begins: Callable[[Job], None] = lambda job: None
) -> Generator[Finished, None, None]:
    """The jobs, where the request says: in workers on this computer, or on a scheduler's, which do not tell when a
    job begins.
    """
    if not jobs:
        return
    if request.scheduler:
        placed = [dataclasses.replace(job, request=_absolute(dict(job.request))) for job in jobs]
        yield from cluster.run(placed, request.scheduler, progress)
    else:
        yield from pool.run(jobs, request.workers, progress, begins)


def _absolute(request: dict[str, Any]) -> dict[str, Any]:
    """The request with file names that hold in another folder; a model's plain name stays."""
    model = [str(Path(m).absolute()) if Path(m).exists() else m for m in request["model"]]
    images = [str(Path(p).absolute()) for p in request["images"]]
    return {**request, "model": model, "images": images, "output": str(Path(request["output"]).absolute())}


def _require_apart(cohort: Sequence[CohortCase], folder: Path, ending: str) -> None:
    if folder.is_file():
        raise BadInput(f"{folder} is a file.", "Label maps are written to a folder.", "Name another.")
    inputs = {Path(p).resolve() for case in cohort for p in case.images}
    clash = [case.name for case in cohort if (folder / f"{case.name}{ending}").resolve() in inputs]
    if clash:
        raise BadInput(
            f"The label map of {clash[0]} would overwrite its image.",
            f"{folder} holds the images.",
            "Write to another folder.",
        )


def known(request: SegmentRequest, row: Row, models: Sequence[bundles.Bundle], *, overwrite: bool) -> bool:
    """Whether a file stands where the case's label map would; the row is filled where it does."""
    output = Path(request.output)
    if not output.exists():
        return False
    noted = _record_of(output)
    if noted is not None and _same(noted, request, models):
        row.status = BEFORE
        row.volumes = {one["name"]: one["volume_ml"] for one in noted["labels"]}
        row.warnings = list(noted["warnings"])
        return True
    if overwrite:
        return False
    row.status = IN_THE_WAY
    row.error = (
        f"{output} was not made of this image with this model and these settings. "
        "Give --overwrite to make it again, or another folder."
    )
    return True


def _record_of(output: Path) -> dict[str, Any] | None:
    """The record beside a label map, None where there is none that says how it was made."""
    path = Path(record.path_beside(output))
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return noted if isinstance(noted, dict) and noted.get("task") == SegmentRequest.task else None


def _same(noted: dict[str, Any], request: SegmentRequest, models: Sequence[bundles.Bundle]) -> bool:
    """Whether a record tells of this request: the same settings, images and models, by content."""
    settings = noted.get("settings", {})
    ours = {name: value for name, value in request.to_json().items() if name not in _WITHOUT_EFFECT}
    if any(settings.get(name) != value for name, value in ours.items()):
        return False
    if [one.get("sha256") for one in noted.get("models", [])] != [one.sha256 for one in models]:
        return False
    images = [one.get("sha256") for one in noted.get("inputs", [])]
    return all(Path(p).exists() for p in request.images) and images == [record.checksum(p) for p in request.images]


def note(ended: Finished, row: Row) -> None:
    row.seconds = ended.seconds
    if ended.result is None:
        row.status, row.error = FAILED, str(ended.error)
        return
    row.status = DONE
    row.volumes = {one["name"]: one["volume_ml"] for one in ended.result["labels"]}
    row.warnings = list(ended.result["warnings"])


def _write_table(rows: Sequence[Row], path: Path) -> None:
    labels = list(dict.fromkeys(name for row in rows for name in row.volumes))
    with files.Outputs() as outputs, open(outputs.path(path), "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        volumes = [f"{name} (ml)" for name in labels]
        table.writerow(["case", "status", "output", "seconds", *volumes, "warnings", "error"])
        for row in rows:
            volumes = ["" if name not in row.volumes else f"{row.volumes[name]:.6g}" for name in labels]
            output = row.output if row.status in (DONE, BEFORE) else ""
            status = row.status or "not reached"
            warnings = " ".join(row.warnings)
            table.writerow([row.case, status, output, f"{row.seconds:.2f}", *volumes, warnings, row.error])


def _text(rows: Sequence[Row], counts: dict[str, int], folder: Path, seconds: float) -> str:
    labels = list(dict.fromkeys(name for row in rows for name in row.volumes))
    lines = [["Case", "Status", "Seconds", *(f"{name} (ml)" for name in labels)]]
    for row in rows:
        volumes = [f"{row.volumes[name]:.3f}" if name in row.volumes else "" for name in labels]
        lines.append([row.case, row.status, f"{row.seconds:.1f}", *volumes])
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    parts = [tables.grid(lines), f"{len(rows)} cases in {duration(seconds)}: {told}. Table: {folder / TABLE}"]
    failed = [f"{row.case}: {row.error}" for row in rows if row.error]
    if failed:
        parts.append("Without a label map:\n" + "\n".join(failed))
    return "\n\n".join(parts)

"""The task "compare": several methods on the same labelled cases; every metric, paired tests, box plots, one report.

Models segment the cases (in worker processes, as `mli batch segment` does), label maps of other programs are taken as
they are, and all are measured by :func:`MLILib.segmentation.evaluation.compare_files` against the data set's labels.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import bundles, files, record, tables
from ..errors import BadInput
from ..metrics import METRICS, for_json
from ..metrics import mean as mean_of
from ..progress import Progress
from ..segmentation import label_files
from ..segmentation.dataset import Case, Dataset, read_dataset, split_cases
from ..segmentation.evaluation import compare_files
from ..segmentation.requests import SegmentRequest
from . import batch, paired, report
from .batch import Row
from .compared import MEAN, Comparison, Method
from .pool import Job
from .requests import CompareRequest

#: Metrics that are tested and drawn; the others are in the tables.
TESTED = ("dice", "surface_dice", "hausdorff95", "assd")
#: Label maps that keep the names of labels.
_ENDING = ".seg.nrrd"


def run(request: CompareRequest, progress: Progress) -> dict[str, Any]:
    """Segment, measure, test, and write the report.

    Returns:
        Plain values: output, table and figures (the files .html, .csv and .json), cases (names), labels, methods (name,
        sha256 of a model, cases measured, errors by case, seconds a case, and by label and metric count, mean,
        deviation, median, lower and upper quartile), tests (by metric, of the mean of labels, every pair: first,
        second, count, difference, low, high, p, corrected), notes, ok (False where a case has no label map), seconds
        and text. What is undefined is None.

    Raises:
        BadInput: fewer than two methods, a data set or model that cannot be used, or a method without any label map.
        Cancelled: the user stopped; nothing is written but label maps in the folder to keep them.
    """
    started = time.monotonic()
    memory = record.PeakMemory()
    progress.stage("Reading")
    dataset = read_dataset(request.dataset)
    cases = _cases(dataset, request)
    methods = _methods(request)
    notes = [note for one in methods for note in _seen_before(one, cases)]
    with contextlib.ExitStack() as stack:
        if request.keep:
            folder = Path(request.keep)
            folder.mkdir(exist_ok=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mli-compare-")))
        _segment(methods, cases, folder, request, progress)
        _look_up(methods, cases)
        _require_any(methods)
        notes += _measure(methods, cases, dataset, request.tolerance, progress)
    made = Comparison(dataset, [case.name for case in cases], [*dataset.labels, MEAN], methods, notes)
    tests = {metric: paired.pairs(made.values(metric, MEAN)) for metric in TESTED}
    progress.stage("Writing")
    output = Path(request.output)
    result = {
        "output": str(output),
        "table": str(output.with_suffix(".csv")),
        "figures": str(output.with_suffix(".json")),
        "cases": made.cases,
        "labels": made.labels,
        "methods": [_method_json(one, made) for one in methods],
        "tests": {metric: [dataclasses.asdict(pair) for pair in found] for metric, found in tests.items()},
        "notes": notes,
        "ok": not any(one.errors for one in methods),
    }
    result = for_json(result)
    noted = record.make(
        request,
        models=[one.bundle for one in methods if one.bundle is not None],
        stages=progress.finish(),
        peak_memory=memory.bytes(),
        warnings=notes,
        results={"comparison": result},
    )
    with files.Outputs() as outputs:
        Path(outputs.path(output)).write_text(
            report.page(made, tests, tolerance=request.tolerance, noted=noted), encoding="utf-8"
        )
        _write_table(made, outputs.path(result["table"]))
        record.write(noted, outputs.path(result["figures"]))
    return {**result, "seconds": time.monotonic() - started, "text": _text(made, tests, output)}


def _cases(dataset: Dataset, request: CompareRequest) -> list[Case]:
    if request.fold < 0:
        return list(dataset.cases)
    return sorted(split_cases(dataset, request.fold, request.folds, request.split_seed).test, key=lambda c: c.name)


def _methods(request: CompareRequest) -> list[Method]:
    found = []
    for name in request.model:
        bundle = bundles.find(name, trust=request.trust)
        found.append(Method(Path(name).name, bundle=bundle))
    for text in request.predictions:
        name, equals, folder = text.partition("=")
        if not equals or not name.strip() or not Path(folder).is_dir():
            raise BadInput(
                f"{text!r} names no folder of label maps.",
                "",
                "Write nnU-Net=FOLDER, for example, with one that exists.",
            )
        found.append(Method(name.strip(), folder=Path(folder)))
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(
            f"Two methods are called {twice!r}.", "They could not be told apart.", "Rename a model's folder."
        )
    return found


def _seen_before(method: Method, cases: Sequence[Case]) -> list[str]:
    """A warning where a model's card lists the cases kept aside from its training, and others are compared on."""
    if method.bundle is None:
        return []
    path = method.bundle.folder / "docs" / "test_cases.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as stream:
        aside = {row[0] for row in csv.reader(stream) if row}
    names = [case.name for case in cases]
    others = [name for name in names if name not in aside]
    if not others or len(others) == len(names):  # all kept aside; or a data set that the model knows nothing of
        return []
    return [
        f"{method.name} may have been trained on {len(others)} of the {len(names)} cases: they are not among those "
        "kept aside from its training. Its figures flatter it; compare on its test fold with --fold."
    ]


def _segment(
    methods: Sequence[Method], cases: Sequence[Case], folder: Path, request: CompareRequest, progress: Progress
) -> None:
    """Have each model segment each case; what lies in the folder already is used."""
    progress.stage("Segmenting")
    jobs, rows, places = [], {}, {}
    for method in methods:
        if method.bundle is None:
            continue
        (folder / method.name).mkdir(exist_ok=True)
        for case in cases:
            asked = SegmentRequest(
                images=case.images,
                model=(str(method.bundle.folder),),
                output=str(folder / method.name / f"{case.name}{_ENDING}"),
                device=request.device,
                tta=request.tta,
                trust=request.trust,
            )
            key = f"{method.name}, {case.name}"
            rows[key] = Row(case.name, asked.output)
            places[key] = (method, case.name)
            if not batch.known(asked, rows[key], [method.bundle], overwrite=True):
                jobs.append(Job(key, SegmentRequest.task, asked.to_json()))
    with contextlib.closing(batch.work(jobs, request, progress)) as ended:
        for number, one in enumerate(ended, start=1):
            batch.note(one, rows[one.job.name])
            places[one.job.name][0].seconds.append(one.seconds)
            progress.fraction(number / len(jobs))
    for key, row in rows.items():
        method, name = places[key]
        if row.error:
            method.errors[name] = row.error
            progress.message(f"{key}: {row.error}")
        else:
            method.files[name] = Path(row.output)


def _look_up(methods: Sequence[Method], cases: Sequence[Case]) -> None:
    """Find the label maps that are there already, by the case's name."""
    for method in methods:
        if method.folder is None:
            continue
        there = {
            files.stem(path): path
            for path in sorted(method.folder.iterdir())
            if path.is_file() and files.suffix(path) in label_files.SUFFIXES
        }
        for case in cases:
            if case.name in there:
                method.files[case.name] = there[case.name]
            else:
                method.errors[case.name] = f"{method.folder} has no label map of that name."


def _require_any(methods: Sequence[Method]) -> None:
    for method in methods:
        if not method.files:
            name, why = next(iter(method.errors.items()))
            raise BadInput(f"{method.name} has no label map of any case.", f"{name}: {why}", "Nothing was written.")


def _measure(
    methods: Sequence[Method], cases: Sequence[Case], dataset: Dataset, tolerance: float, progress: Progress
) -> list[str]:
    """Fill in each method's metrics; sentences about labels that were paired or left out."""
    progress.stage("Measuring")
    names = dict(enumerate(dataset.labels, start=1))
    said: dict[str, None] = {}
    for number, case in enumerate(cases):
        progress.fraction(number / len(cases))
        for method in methods:
            if case.name not in method.files:
                continue
            try:
                found = compare_files(method.files[case.name], case.label, None, tolerance, reference_names=names)
            except BadInput as error:
                method.errors[case.name] = str(error)
                continue
            for note in found["notes"]:
                said[f"{method.name}: {note}"] = None
            # what the data set has no label for is neither right nor wrong
            wanted = {
                name: found[key] for key in found["labels"] if (name := key.partition(" (label ")[0]) in names.values()
            }
            method.found[case.name] = {**wanted, MEAN: mean_of(wanted.values())}
    return list(said)


def _method_json(method: Method, made: Comparison) -> dict[str, Any]:
    return {
        "name": method.name,
        "sha256": None if method.bundle is None else method.bundle.sha256,
        "measured": len(method.found),
        "errors": method.errors,
        "seconds_a_case": float(np.median(method.seconds)) if method.seconds else None,
        "labels": {
            label: {
                metric: dataclasses.asdict(paired.summary(made.values(metric, label)[method.name]))
                for metric in METRICS
            }
            for label in made.labels
        },
    }


def _write_table(made: Comparison, path: str) -> None:
    """Every figure: a line for each method, case and label."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["method", "case", "label", *METRICS, "error"])
        for method in made.methods:
            for case in made.cases:
                if case not in method.found:
                    table.writerow([method.name, case, "", *("" for _ in METRICS), method.errors[case]])
                    continue
                for label in made.labels:
                    values = method.found[case].get(label, {})
                    cells = [_cell(values.get(metric)) for metric in METRICS]
                    table.writerow([method.name, case, label, *cells, ""])


def _cell(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.6g}"


def _formats(one: paired.Pair) -> list[tuple[float, str]]:
    return [(one.difference, "+.4f"), (one.p, ".2g"), (one.corrected, ".2g")]


def _text(made: Comparison, tests: Mapping[str, Sequence[paired.Pair]], output: Path) -> str:
    heading = ["Method", "Cases", *(METRICS[metric] for metric in TESTED)]
    rows = [heading]
    for method in made.methods:
        cells = []
        for metric in TESTED:
            found = paired.summary(made.values(metric, MEAN)[method.name])
            spread = f" +- {found.deviation:.3f}" if found.count > 1 else ""
            cells.append(f"{found.mean:.3f}{spread}" if found.count else "n/a")
        rows.append([method.name, str(len(method.found)), *cells])
    lines = [["Dice", "Difference", "95 % interval", "p", "p (Holm)"]]
    for one in tests["dice"]:
        interval = f"{one.low:+.4f} to {one.high:+.4f}" if np.isfinite([one.low, one.high]).all() else "n/a"
        numbers = [f"{x:{form}}" if np.isfinite(x) else "n/a" for x, form in _formats(one)]
        lines.append([f"{one.first} less {one.second}", numbers[0], interval, *numbers[1:]])
    errors = [f"{method.name}, {case}: {why}" for method in made.methods for case, why in method.errors.items()]
    return "\n\n".join(
        part
        for part in (
            f"{len(made.cases)} cases of {made.dataset.name}; mean of {len(made.labels) - 1} labels, +- SD over cases.",
            tables.grid(rows),
            tables.grid(lines),
            "\n".join(made.notes),
            "Without a figure:\n" + "\n".join(errors) if errors else "",
            f"Report: {output}",
        )
        if part
    )

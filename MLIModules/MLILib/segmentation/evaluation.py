"""The task "evaluate": a prediction measured against a reference, two files or two folders matched by name.

The result has the metrics of :mod:`MLILib.metrics` under each label's name and their mean under "mean"; for folders
these are means over the cases, and each case is under "cases".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import calibration, files, record, tables
from ..errors import BadInput
from ..metrics import METRICS, compare_labels, for_json, mean, require_same_grid
from ..progress import Progress
from . import label_files, probability_check
from .requests import EvaluateRequest

#: What the result says beside the labels; a label with such a name has its value appended.
RESERVED = frozenset(
    [
        "mean",
        "labels",
        "cases",
        "errors",
        "notes",
        "prediction",
        "reference",
        "tolerance_mm",
        "ok",
        "text",
        "record",
        "calibration",
    ]
)

_TABLE_COLUMNS = 6

#: The metrics of a table with a row for each case or label, with headings that fit beside each other.
_SHORT = {
    "dice": "Dice",
    "precision": "Precision",
    "recall": "Recall",
    "surface_dice": "Surface Dice",
    "hausdorff95": "HD95 (mm)",
    "assd": "ASSD (mm)",
    "volume_prediction_ml": "Volume (ml)",
    "volume_reference_ml": "Reference (ml)",
}
_UNDEFINED = "n/a"


def run(request: EvaluateRequest, progress: Progress) -> dict[str, Any]:
    """Compare two label maps, or two folders of them.

    Returns:
        Plain values: the metrics of each label under its name and their mean under ``mean``, undefined ones None.
        ``labels`` lists the names, ``notes`` and ``errors`` are sentences for the reader, ``record`` says how the
        result was made, ``text`` is the table.

        For folders the metrics are means over the cases with ``counted`` beside them, ``mean`` is the mean of the
        labels' means, ``cases`` holds each case in the form of a pair of files, and ``errors`` has a sentence for each
        case that could not be compared; ``ok`` is False when there is one.

    Raises:
        BadInput: a file cannot be compared, or no case of a folder can.
    """
    memory = record.PeakMemory()
    names = label_names(request.labels)
    prediction, reference = Path(request.prediction), Path(request.reference)
    if prediction.is_dir() != reference.is_dir():
        raise BadInput(
            f"{prediction} and {reference} are a folder and a file.",
            "Two files, or two folders with files of the same names, can be compared.",
            "Give two of a kind.",
        )
    if request.output and Path(request.output).resolve() in (prediction.resolve(), reference.resolve()):
        raise BadInput(f"{request.output} is an input and the output.", "", "Write the result to another file.")
    if prediction.is_dir():
        result = _run_folders(prediction, reference, names, request.tolerance, progress)
    else:
        progress.stage("Comparing")
        result = {**compare_files(prediction, reference, names, request.tolerance), "errors": []}
    if request.probabilities:
        result["calibration"] = _calibration(request, reference)
    result |= {"prediction": request.prediction, "reference": request.reference, "ok": not result["errors"]}
    noted = record.make(
        request, stages=progress.finish(), peak_memory=memory.bytes(), warnings=[*result["notes"], *result["errors"]]
    )
    result = {**for_json(result), "record": noted}
    if request.output:
        with files.Outputs() as outputs:
            Path(outputs.path(request.output)).write_text(
                json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
    return {**result, "text": format_table(result)}


def _calibration(request: EvaluateRequest, reference: Path) -> dict[str, Any]:
    """Figures of the probabilities' calibration, over all cases and of each; draws the diagram where it is wanted."""
    given = Path(request.probabilities)
    if given.is_dir() != reference.is_dir():
        raise BadInput(
            f"{given} and {reference} are a folder and a file.", "", "Give probabilities as the references are given."
        )
    if given.is_dir():
        ours, theirs = _cases(given), _cases(reference)
        absent = [case for case in theirs if case not in ours]
        if absent:
            raise BadInput(f"{given} has no probabilities of {_some(absent)}.", "", "Name them like the references.")
        pairs = {case: (ours[case], theirs[case]) for case in theirs}
    else:
        pairs = {files.stem(reference): (given, reference)}
    whole, each = probability_check.measure(pairs, request.band)
    if request.reliability:
        with files.Outputs() as outputs:
            calibration.draw({"probabilities": whole}, Path(outputs.path(request.reliability)))
    found: dict[str, Any] = {**whole.figures(), "band_mm": request.band, "reliability": request.reliability}
    return found | ({"cases": {name: one.figures() for name, one in each.items()}} if len(each) > 1 else {})


def compare_files(
    prediction: str | Path,
    reference: str | Path,
    names: Mapping[int, str] | None = None,
    tolerance_mm: float = 1.0,
    *,
    reference_names: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Compare two label maps, see :func:`MLILib.metrics.compare`.

    Labels are paired as :func:`MLILib.segmentation.label_files.pair` says.

    Args:
        prediction: label map or Slicer's .seg.nrrd.
        reference: likewise, on the same grid; of two .seg.nrrd each may be cropped to its segments.
        names: names of label values; by default those in the files.
        tolerance_mm: tolerance of the surface Dice.
        reference_names: names of the reference's label values, where they are not those of the prediction.

    Returns:
        The metrics of each label and their ``mean``; ``labels``, ``notes``, ``tolerance_mm``.

    Raises:
        BadInput: a file is not a label map, or the grids differ.
    """
    ours = label_files.read(prediction, names)
    theirs = label_files.read(reference, names if reference_names is None else reference_names)
    ours, theirs, note = label_files.on_one_grid(ours, theirs)
    notes = [note] if note else []
    require_same_grid(ours.grid, theirs.grid)
    entries, note = label_files.pair(ours.labels, theirs.labels)
    if note:
        notes.append(note)
    if not entries:
        notes.append("Neither image has a label: there is nothing to compare.")
    pairs = {}
    for name, a, b in entries:
        place = a or b
        name = f"{name} (label {place.value})" if place is not None and name in RESERVED else name
        pairs[name] = (a.place if a else None, b.place if b else None)
    found = compare_labels(ours.layers, theirs.layers, pairs, theirs.grid.spacing, tolerance_mm)
    return {**found, "labels": list(pairs), "notes": notes, "tolerance_mm": tolerance_mm}


def _run_folders(
    prediction: Path, reference: Path, names: Mapping[int, str], tolerance_mm: float, progress: Progress
) -> dict[str, Any]:
    ours, theirs = _cases(prediction), _cases(reference)
    errors = [f"{case}: {prediction} has no prediction for it." for case in theirs if case not in ours]
    notes = [f"{case}: not compared, {reference} has no reference for it." for case in ours if case not in theirs]
    matched = [case for case in theirs if case in ours]
    if not matched:
        raise BadInput(
            f"No file in {prediction} has the name of one in {reference}.",
            f"Cases are matched by the name before the ending: {_some(list(ours))}; {_some(list(theirs))}.",
            "Name each prediction like its reference.",
        )
    cases: dict[str, Any] = {}
    progress.stage("Comparing")
    for done, case in enumerate(matched):
        progress.fraction(done / len(matched))
        try:
            cases[case] = compare_files(ours[case], theirs[case], names, tolerance_mm)
            notes += [f"{case}: {note}" for note in cases[case]["notes"]]
        except BadInput as error:
            errors.append(f"{case}: {error}")
    progress.fraction(1.0)
    if not cases:
        raise BadInput(f"None of the {len(matched)} cases can be compared.", errors[-1], "Correct the files named.")
    for line in errors:
        progress.message(line)
    labels = list(dict.fromkeys(label for case in cases.values() for label in case["labels"]))
    means = {label: mean([case[label] for case in cases.values() if label in case]) for label in labels}
    return {
        **means,
        "mean": mean(means.values()),
        "labels": labels,
        "cases": cases,
        "notes": notes,
        "errors": errors,
        "tolerance_mm": tolerance_mm,
    }


def _cases(folder: Path) -> dict[str, Path]:
    """The label maps in a folder by the name before the ending, in order.

    Raises:
        BadInput: there are none, or two with one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file() or files.suffix(path) not in label_files.SUFFIXES:
            continue
        case = files.stem(path)
        if case in found:
            raise BadInput(
                f"{folder} has two files for the case {case}: {found[case].name} and {path.name}.",
                "It is not clear which of them to compare.",
                "Move one of them to another folder.",
            )
        found[case] = path
    if not found:
        raise BadInput(
            f"{folder} holds no label maps.",
            "",
            f"Give a folder with files ending in {', '.join(label_files.SUFFIXES)}.",
        )
    return found


def label_names(texts: Sequence[str]) -> dict[int, str]:
    """The names of label values that the request gives as VALUE=NAME."""
    names: dict[int, str] = {}
    for text in texts:
        value, equals, name = text.partition("=")
        if not equals or not value.strip().isdecimal() or not name.strip():
            raise BadInput(
                f"{text!r} does not name a label.",
                "A label's value is a whole number.",
                "Write 1=anterior, for example.",
            )
        if int(value) in names or name.strip() in names.values():
            raise BadInput(f"{text!r} repeats a label's value or name.", "", "Name each label once, each differently.")
        names[int(value)] = name.strip()
    return names


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def format_table(result: Mapping[str, Any]) -> str:
    """The result of :func:`run` as text: cases, labels and their mean, notes and errors.

    Few labels have a column each and a row for every metric; many have a row each and the metrics most asked for.
    """
    labels = [*result["labels"], "mean"]
    parts = []
    if "cases" in result:
        rows = [[case, *(_cell(m, found["mean"][m]) for m in _SHORT)] for case, found in result["cases"].items()]
        parts.append(tables.grid([["Case, mean of labels", *_SHORT.values()], *rows]))
        parts.append(f"Mean of {len(result['cases'])} case{'s' if len(result['cases']) > 1 else ''}")
    if len(labels) <= _TABLE_COLUMNS:
        rows = [[_heading(m, result), *(_cell(m, result[label][m]) for label in labels)] for m in METRICS]
        parts.append(tables.grid([["", *labels], *rows]))
    else:
        rows = [[label, *(_cell(m, result[label][m]) for m in _SHORT)] for label in labels]
        parts.append(tables.grid([["Label", *_SHORT.values()], *rows]))
        parts.append(f"Surface Dice at {result['tolerance_mm']:g} mm. All metrics are in the JSON result.")
    if any(_UNDEFINED in part for part in parts):
        parts.append(
            f"{_UNDEFINED}: undefined, because a label is empty in the prediction, the reference or both; "
            "means leave it out."
        )
    if "calibration" in result:
        found = result["calibration"]
        parts.append(
            f"Calibration of {found['voxels']:,} voxels at most {found['band_mm']:g} mm from the foreground: expected "
            f"calibration error {_figure(found['ece'])}, Brier score {_figure(found['brier'])}, negative log "
            f"likelihood {_figure(found['nll'])}."
        )
    parts += [*result["notes"], *(f"Not compared: {line}" for line in result["errors"])]
    return "\n\n".join(parts)


def _figure(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{value:.4f}"


def _heading(metric: str, result: Mapping[str, Any]) -> str:
    return METRICS[metric] + (f" at {result['tolerance_mm']:g} mm" if metric == "surface_dice" else "")


def _cell(metric: str, value: float | None) -> str:
    if value is None:
        return _UNDEFINED
    if metric in ("tp", "fp", "tn", "fn"):
        return f"{value:,.0f}"
    return f"{value:.3f}" if metric.endswith("_ml") or "(mm)" in METRICS[metric] else f"{value:.4f}"

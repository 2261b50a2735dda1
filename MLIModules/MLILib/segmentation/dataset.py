"""Decathlon-format data sets: reading dataset.json, checking its cases, and splitting them into folds.

The format is that of the Medical Segmentation Decathlon (Antonelli 2022): "labels" {"0": "background", ...}, "modality"
{"0": "MRI", ...} and "training" [{"image": path, "label": path}, ...], with paths relative to the file. A case may say
whose it is, "group": "patient 7"; cases of one group are never split between training and measuring.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import BadInput
from ..geometry import Grid, same_grid


@dataclasses.dataclass(frozen=True)
class Case:
    """One training case: the files of its channels, in order, and of its labels.

    Attributes:
        group: whom it is of; cases of one group stay in one part of a split. "" is a group of its own.
    """

    name: str
    images: tuple[str, ...]
    label: str
    group: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The case as MONAI's dictionary transforms want it."""
        return {"image": list(self.images), "label": self.label, "name": self.name}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A labelled data set.

    Attributes:
        name, description, reference, licence: as its dataset.json says.
        channels: names of the image channels.
        labels: names of the labels 1, 2, ...; 0 is background.
        cases: sorted by name.
    """

    name: str
    description: str
    reference: str
    licence: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    cases: tuple[Case, ...]


def read_dataset(path: str | Path) -> Dataset:
    """Read and check a dataset.json.

    Raises:
        BadInput: not JSON, a key missing, labels that are not 0..N, or a file that does not exist.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} is not a JSON file ({error}).", "", "Give a Decathlon-format dataset.json.") from error
    for key in ("labels", "training"):
        if not isinstance(data, dict) or not data.get(key):
            raise BadInput(f"{path} has no {key!r}.", "It is not in the Decathlon format.", f"Add the key {key!r}.")
    try:
        labels = {int(k): str(v) for k, v in data["labels"].items()}
    except (AttributeError, ValueError) as error:
        raise BadInput(
            f"The labels of {path} are not numbered.", "", 'Write them as {"0": "background", "1": "name", ...}.'
        ) from error
    if sorted(labels) != list(range(len(labels))) or len(labels) < 2:
        raise BadInput(
            f"The labels of {path} are {sorted(labels)}.", "", "Number them 0 (background), 1, 2 ... without gaps."
        )
    channels = data.get("modality") or data.get("channel_names") or {"0": "image"}
    cases, absent = [], []
    for entry in data["training"]:
        if not isinstance(entry, dict) or "image" not in entry or "label" not in entry:
            raise BadInput(f"A case of {path} is {entry!r}.", "", 'Each needs "image" and "label".')
        images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        files = [path.parent / str(f) for f in [*images, entry["label"]]]
        absent += [str(file) for file in files if not file.is_file()]
        if len(images) != len(channels):
            raise BadInput(
                f"The case {files[0].name} of {path} has {len(images)} images, and the data set names "
                f"{len(channels)} channels.",
                "",
                "Give each case one image a channel, in the channels' order.",
            )
        name = files[0].name.split(".")[0]
        group = str(entry.get("group", ""))
        cases.append(Case(name, tuple(str(f) for f in files[:-1]), str(files[-1]), group))
    require_none(absent, "does not exist", "do not exist", f"It is listed in {path.name}.", "Restore, or remove")
    return Dataset(
        name=str(data.get("name", path.parent.name)),
        description=str(data.get("description", "")),
        reference=str(data.get("reference", "")),
        licence=str(data.get("licence", data.get("license", ""))),
        channels=tuple(str(channels[k]) for k in sorted(channels, key=int)),
        labels=tuple(labels[i] for i in range(1, len(labels))),
        cases=tuple(sorted(cases, key=lambda c: c.name)),
    )


def require_none(faults: Sequence[str], one: str, many: str, cause: str, remedy: str) -> None:
    """Raise one :class:`BadInput` that lists all `faults`, each the name of a file or case."""
    if len(faults) == 1:
        raise BadInput(f"{faults[0]} {one}.", cause, f"{remedy} it.")
    if faults:
        raise BadInput(f"{len(faults)} files {many}: {', '.join(faults)}.", cause, f"{remedy} them.")


def require_usable(cases: Sequence[Case], labels: int) -> None:
    """Read every label map, and say everything that is wrong with any of them at once.

    Args:
        cases: to look at.
        labels: how many there are without the background.

    Raises:
        BadInput: a label map that cannot be read, lies on another grid than its image, holds no label, or values that
            the data set does not name.
    """
    faults: list[str] = []
    for case in cases:
        faults += [f"{case.name}: {fault}" for fault in _faults(case, labels)]
    if faults:
        count = "One case" if len(faults) == 1 else f"{len(faults)} faults"
        raise BadInput(
            f"{count} of the data set cannot be used. " + " ".join(faults),
            "",
            "Correct the label maps, or leave these cases out of dataset.json.",
        )


def _faults(case: Case, labels: int) -> list[str]:
    try:
        drawn = sitk.ReadImage(case.label)
        heads = []
        for path in case.images:
            reader = sitk.ImageFileReader()
            reader.SetFileName(path)
            reader.ReadImageInformation()
            heads.append(reader)
    except RuntimeError:
        return ["a file of it cannot be read."]
    out = []
    for reader, path in zip(heads, case.images, strict=True):
        grid = Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
        if len(reader.GetSize()) != drawn.GetDimension() or not same_grid(grid, Grid.of(drawn)):
            out.append(f"its label lies on another grid than {Path(path).name}.")
    values = np.unique(sitk.GetArrayViewFromImage(drawn))
    unnamed = [f"{v:g}" for v in values if v != round(float(v)) or not 0 <= v <= labels]
    if unnamed:
        shown = ", ".join(unnamed[:5]) + (" ..." if len(unnamed) > 5 else "")
        out.append(f"its label holds the value{'s' * (len(unnamed) > 1)} {shown}; 0 to {labels} are named.")
    elif not values.any():
        out.append("its label is empty.")
    return out


@dataclasses.dataclass(frozen=True)
class Split:
    """Cases to train on, to choose the checkpoint with, and to measure the final model on."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]

    def in_words(self, fold: int, folds: int) -> str:
        """How many cases serve what, for a model's card."""
        return (
            f"{len(self.training)} cases to train on, {len(self.validation)} to choose the checkpoint, "
            f"{len(self.test)} to measure (fold {fold} of {folds})."
        )


#: Share of the cases outside the test fold that choose the checkpoint instead of being trained on.
VALIDATION_SHARE = 0.08


def split_cases(dataset: Dataset, fold: int, folds: int, seed: int = 0) -> Split:
    """Split into training, validation and test so that the figure reported was taken on cases nothing was fitted to.

    The shuffle depends on `seed` alone, so that the folds of one data set are disjoint and cover it. Cases of one group
    (slices of one patient) stay together.

    Args:
        fold: the fold measured at the end; -1 trains on every case, with neither validation nor test.
    """
    if fold < 0:
        return Split(dataset.cases, (), ())
    if fold >= folds:
        raise BadInput(f"There is no fold {fold} among {folds}.", "", f"Folds are numbered 0 to {folds - 1}.")
    units: dict[str, list[Case]] = {}
    for i, case in enumerate(dataset.cases):
        units.setdefault(case.group or f" {i}", []).append(case)
    if len(units) < folds + 2:
        what = "case" if len(units) == len(dataset.cases) else "group"
        raise BadInput(
            f"{len(units)} {what}{'s' * (len(units) > 1)} cannot be split into {folds} folds.",
            "Cases are needed to train on, to choose the checkpoint with and to measure on.",
            f"Add {what}s, use fewer folds, or train on everything with --fold -1.",
        )
    order = list(units.values())
    random.Random(seed).shuffle(order)
    test = order[fold::folds]
    rest = [unit for i, unit in enumerate(order) if i % folds != fold]
    n = max(1, round(VALIDATION_SHARE * len(rest)))
    return Split(_joined(rest[n:]), _joined(rest[:n]), _joined(test))


def chosen_cases(split: Split, labelled: int, draw: int) -> tuple[Split, list[tuple[str, ...]]]:
    """The split with fewer training cases, and the images of those left out.

    Args:
        split: of all cases.
        labelled: how many training cases keep their labels; 0 is all.
        draw: number of a draw with replacement (bagging, Breiman 1996) of as many training cases; 0 takes each once.

    Raises:
        BadInput: more labelled cases than there are.
    """
    training = split.training
    if labelled > len(training):
        raise BadInput(
            f"{labelled} labelled cases are asked for, but there are {len(training)} to train on.",
            "",
            f"Ask for {len(training)} at most, or leave out --labelled.",
        )
    left = [case.images for case in training[labelled:]] if labelled else []
    training = training[:labelled] if labelled else training
    if draw:
        training = tuple(random.Random(draw).choices(training, k=len(training)))
    return dataclasses.replace(split, training=training), left


def _joined(units: Sequence[Sequence[Case]]) -> tuple[Case, ...]:
    return tuple(case for unit in units for case in unit)


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What the network's geometry is chosen from: medians over the cases, x, y, z.

    Attributes:
        dimensions: 2 or 3.
        spacing: mm.
        shape: voxels at that spacing.
        voxels: of all cases together, at that spacing.
        note: where the spacing comes from.
    """

    dimensions: int
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    voxels: int = dataclasses.field(default=0, compare=False)
    note: str = dataclasses.field(default="the median of the cases", compare=False)


#: Slices that many times as thick as voxels are wide: the finest tenth of the cases sets the spacing along that axis.
ANISOTROPIC = 3.0


def fingerprint(cases: tuple[Case, ...]) -> Fingerprint:
    """Median spacing (mm) and median size (voxels at that spacing) of the cases, read from their headers.

    Where the median's voxels are three times as long along one axis as along the shortest, and the slices as few, the
    tenth percentile is taken along that axis, so that the finer cases lose less (Isensee 2021).
    """
    spacings, extents = [], []
    for case in cases:
        reader = sitk.ImageFileReader()
        reader.SetFileName(case.images[0])
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise BadInput(f"{case.images[0]} is not a readable image.", "", "Replace the file.") from error
        spacings.append(reader.GetSpacing())
        extents.append([n * s for n, s in zip(reader.GetSize(), reader.GetSpacing(), strict=True)])
    if len({len(s) for s in spacings}) != 1:
        raise BadInput("The data set mixes 2-D and 3-D images.", "", "Train one model for each.")
    spacing = [round(float(_median(axis)), 4) for axis in zip(*spacings, strict=True)]
    note = "the median of the cases"
    longest = spacing.index(max(spacing))
    across = sorted(s[longest] for s in spacings)
    fine = round(float(across[(len(across) - 1) // 10]), 4)
    if spacing[longest] >= ANISOTROPIC * min(spacing) and fine < spacing[longest]:
        note = f"the median of the cases, along the thick axis ({spacing[longest]:g} mm) their tenth percentile"
        spacing[longest] = max(fine, min(spacing))
    shape = tuple(max(1, round(_median(axis) / s)) for axis, s in zip(zip(*extents, strict=True), spacing, strict=True))
    voxels = sum(math.prod(max(1.0, e / s) for e, s in zip(extent, spacing, strict=True)) for extent in extents)
    return Fingerprint(len(spacing), tuple(spacing), shape, round(voxels), note)


def _median(values: Any) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return float(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)

"""Decathlon-format data sets: reading dataset.json, checking its cases, and splitting them into folds.

The format is that of the Medical Segmentation Decathlon (Antonelli 2022): "labels" {"0": "background", ...}, "modality"
{"0": "MRI", ...} and "training" [{"image": path, "label": path}, ...], with paths relative to the file.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..errors import BadInput


@dataclasses.dataclass(frozen=True)
class Case:
    """One training case: the files of its channels, in order, and of its labels."""

    name: str
    images: tuple[str, ...]
    label: str

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
    cases = []
    for entry in data["training"]:
        if not isinstance(entry, dict) or "image" not in entry or "label" not in entry:
            raise BadInput(f"A case of {path} is {entry!r}.", "", 'Each needs "image" and "label".')
        images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        files = [path.parent / str(f) for f in [*images, entry["label"]]]
        for file in files:
            if not file.is_file():
                raise BadInput(f"{file} does not exist.", f"It is listed in {path.name}.", "Restore it, or remove it.")
        name = files[0].name.split(".")[0]
        cases.append(Case(name, tuple(str(f) for f in files[:-1]), str(files[-1])))
    return Dataset(
        name=str(data.get("name", path.parent.name)),
        description=str(data.get("description", "")),
        reference=str(data.get("reference", "")),
        licence=str(data.get("licence", data.get("license", ""))),
        channels=tuple(str(channels[k]) for k in sorted(channels, key=int)),
        labels=tuple(labels[i] for i in range(1, len(labels))),
        cases=tuple(sorted(cases, key=lambda c: c.name)),
    )


@dataclasses.dataclass(frozen=True)
class Split:
    """Cases to train on, to choose the checkpoint with, and to measure the final model on."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]


#: Share of the cases outside the test fold that choose the checkpoint instead of being trained on.
VALIDATION_SHARE = 0.08


def split_cases(dataset: Dataset, fold: int, folds: int, seed: int = 0) -> Split:
    """Split into training, validation and test so that the figure reported was taken on cases nothing was fitted to.

    The shuffle depends on `seed` alone, so that the folds of one data set are disjoint and cover it.

    Args:
        fold: the fold measured at the end; -1 trains on every case, with neither validation nor test.
    """
    if fold < 0:
        return Split(dataset.cases, (), ())
    if fold >= folds:
        raise BadInput(f"There is no fold {fold} among {folds}.", "", f"Folds are numbered 0 to {folds - 1}.")
    if len(dataset.cases) < folds + 2:
        raise BadInput(
            f"{len(dataset.cases)} cases cannot be split into {folds} folds.", "", "Add cases, or use fewer folds."
        )
    order = list(dataset.cases)
    random.Random(seed).shuffle(order)
    test = order[fold::folds]
    rest = [c for c in order if c not in test]
    n = max(1, round(VALIDATION_SHARE * len(rest)))
    return Split(tuple(rest[n:]), tuple(rest[:n]), tuple(test))


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What the network's geometry is chosen from: medians over the cases, x, y, z."""

    dimensions: int
    spacing: tuple[float, ...]
    shape: tuple[int, ...]


def fingerprint(cases: tuple[Case, ...]) -> Fingerprint:
    """Median spacing (mm) and median size (voxels at that spacing) of the cases, read from their headers."""
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
    spacing = tuple(round(float(_median(axis)), 4) for axis in zip(*spacings, strict=True))
    shape = tuple(round(_median(axis) / s) for axis, s in zip(zip(*extents, strict=True), spacing, strict=True))
    return Fingerprint(len(spacing), spacing, shape)


def _median(values: Any) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return float(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)

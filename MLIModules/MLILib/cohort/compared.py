"""Methods and what was measured of them on the same cases."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from .. import bundles
from ..segmentation.dataset import Dataset
from . import paired

#: The mean over the labels, where labels are listed.
MEAN = "mean of labels"


@dataclasses.dataclass
class Method:
    """One of the methods that are compared.

    Attributes:
        name: for a reader.
        bundle: the model, or None.
        folder: of label maps that are there already, or None.
        files: the label map of each case that has one.
        errors: why another has none.
        seconds: a case took to segment, of those that were segmented now.
        found: of each case that was measured the metrics by label, see :data:`MEAN`.
    """

    name: str
    bundle: bundles.Bundle | None = None
    folder: Path | None = None
    files: dict[str, Path] = dataclasses.field(default_factory=dict)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: list[float] = dataclasses.field(default_factory=list)
    found: dict[str, dict[str, dict[str, Any]]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was measured.

    Attributes:
        dataset: the labelled cases' data set.
        cases: their names.
        labels: names, with :data:`MEAN` last.
        methods: each with its metrics.
        notes: sentences for the reader.
    """

    dataset: Dataset
    cases: list[str]
    labels: list[str]
    methods: list[Method]
    notes: list[str]

    def values(self, metric: str, label: str) -> dict[str, paired.Values]:
        """Of each method one value a case, NaN where there is none."""
        nan = float("nan")
        return {
            one.name: np.array([one.found.get(case, {}).get(label, {}).get(metric, nan) for case in self.cases], float)
            for one in self.methods
        }

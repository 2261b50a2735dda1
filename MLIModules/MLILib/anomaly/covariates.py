"""Covariates of subjects (age, sex, ...): read from a table, checked against what was trained, coded for a regression.

Numbers are standardised. A column of words, or of only two different numbers, is a category.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..errors import BadInput

#: Columns that name a subject or a file, and explain nothing.
NAMES = ("subject", "id", "name", "case", "participant_id", "mask")
#: A column of words with more different ones is no category.
MOST_CATEGORIES = 20


@dataclasses.dataclass(frozen=True)
class Covariate:
    """One covariate as it was in training.

    Attributes:
        name: of the column.
        categories: the different words or numbers as text; () for a number.
        low, high: range of a number.
        mean, sd: of a number.
    """

    name: str
    categories: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    sd: float = 1.0

    @property
    def columns(self) -> int:
        """How many columns of the design it takes."""
        return len(self.categories) if self.categories else 1

    def range_text(self) -> str:
        """What was trained on, in words."""
        if self.categories:
            return " or ".join(self.categories)
        return f"{self.low:g} to {self.high:g}"

    def code(self, text: str) -> list[float]:
        """The columns of the design for a value; two categories lie 1 apart.

        Raises:
            BadInput: no number, or a category that was not trained on.
        """
        if not self.categories:
            return [(_number(self.name, text) - self.mean) / self.sd]
        found = _category(text, self.categories)
        if found is None:
            raise BadInput(
                f"The covariate {self.name} is {text!r}.", "The model was trained on no such subjects.",
                f"It knows {self.range_text()}.",
            )  # fmt: skip
        return [math.sqrt(0.5) * (one == found) for one in self.categories]

    def warning(self, text: str) -> str:
        """A sentence where a number lies outside of what was trained on, else ""."""
        if self.categories or self.low <= _number(self.name, text) <= self.high:
            return ""
        return (
            f"{self.name} is {_number(self.name, text):g}, but the model was trained on {self.range_text()}: what it "
            "expects there is a guess."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` is the way back."""
        return {**dataclasses.asdict(self), "categories": list(self.categories)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The covariate that :meth:`to_json` described."""
        numbers = {key: float(data[key]) for key in ("low", "high", "mean", "sd")}
        return cls(str(data["name"]), tuple(str(one) for one in data["categories"]), **numbers)


def learn(name: str, texts: Sequence[str]) -> Covariate:
    """The covariate of a column.

    Raises:
        BadInput: the same in every subject, or words that differ in (nearly) every subject.
    """
    different = sorted({text.strip() for text in texts})
    numbers = [number_or_none(text) for text in texts]
    if len(different) < 2 or (None not in numbers and len(set(numbers)) < 2):
        raise BadInput(
            f"The covariate {name} is {different[0]!r} in every subject.", "It explains nothing.",
            "Leave it out with --covariates.",
        )  # fmt: skip
    if None not in numbers and len(set(numbers)) == 2:
        different = [f"{value:g}" for value in sorted(x for x in set(numbers) if x is not None)]
    if None in numbers or len(different) == 2:
        if len(different) > MOST_CATEGORIES or len(different) > len(texts) / 2:
            odd = next((t for t, x in zip(texts, numbers, strict=True) if x is None), "")
            raise BadInput(
                f"The column {name} is no covariate: it has {len(different)} different words (such as {odd!r}).",
                "It may name the subjects, or hold a number that is misspelt.",
                "Correct it, or name the covariates with --covariates.",
            )
        return Covariate(name, tuple(different))
    x = np.array([value for value in numbers if value is not None])
    return Covariate(name, (), float(x.min()), float(x.max()), float(x.mean()), float(x.std()))


def design(covariates: Sequence[Covariate], rows: Sequence[Mapping[str, str]]) -> npt.NDArray[np.float64]:
    """The design matrix, one row a subject."""
    return np.array([[x for one in covariates for x in one.code(row[one.name])] for row in rows])


def categorical(covariates: Sequence[Covariate]) -> list[bool]:
    """Which columns of the design code categories."""
    return [bool(one.categories) for one in covariates for _ in range(one.columns)]


def given(texts: Sequence[str], what: str) -> dict[str, str]:
    """NAME=VALUE pairs, also several of them separated by commas.

    Raises:
        BadInput: no such pair, or a name that is given twice.
    """
    found: dict[str, str] = {}
    for text in (part for one in texts for part in one.split(",") if part.strip()):
        name, sign, value = (part.strip() for part in text.partition("="))
        if not sign or not name or not value:
            raise BadInput(f"{text!r} is no {what}.", "A name and a value are needed.", "Write NAME=VALUE, as age=34.")
        if name in found:
            raise BadInput(f"The {what} {name} is given twice.", "", "Give it once.")
        found[name] = value
    return found


def encode(covariates: Sequence[Covariate], values: Mapping[str, str]) -> tuple[npt.NDArray[np.float64], list[str]]:
    """The design's row of a new subject, and warnings about what lies outside of the trained range.

    Raises:
        BadInput: covariates are missing or unknown.
    """
    known = "; ".join(f"{one.name} ({one.range_text()})" for one in covariates)
    missing = [one.name for one in covariates if one.name not in values]
    if missing:
        raise BadInput(
            f"The covariate{'s' * (len(missing) > 1)} {', '.join(missing)} of the subject {_are(missing)} missing.",
            "What is normal depends on it.",
            f"Give --covariates NAME=VALUE for: {known}.",
        )
    unknown = sorted(set(values) - {one.name for one in covariates})
    if unknown:
        raise BadInput(f"The model knows no covariate {unknown[0]!r}.", "", f"It was trained with: {known}.")
    row = design(covariates, [values])[0]
    return row, [text for one in covariates if (text := one.warning(values[one.name]))]


def read_table(path: str | Path) -> list[dict[str, str]]:
    """The rows of a table with a heading, separated by commas, semicolons or tabs.

    Raises:
        BadInput: not text, no rows, a heading that repeats itself, rows of another length.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no table.", "It is not text in UTF-8.", "Save it as CSV (UTF-8).") from error
    except IsADirectoryError as error:
        raise BadInput(f"{path} is a folder.", "A table is needed.", "Give a CSV file.") from error
    head = text.split("\n", 1)[0]
    separator = max(",;\t", key=head.count)
    lines = [line for line in csv.reader(text.splitlines(), delimiter=separator) if any(cell.strip() for cell in line)]
    if len(lines) < 2:
        raise BadInput(
            f"{path} holds no subjects.", "It has no rows below a heading.", "Give a CSV file with a heading."
        )
    names = [name.strip() for name in lines[0]]
    if len(set(names)) < len(names) or not all(names):
        raise BadInput(f"The heading of {path} has a name twice, or none.", "", "Give each column a name of its own.")
    uneven = [str(i) for i, line in enumerate(lines[1:], start=2) if len(line) != len(names)]
    if uneven:
        raise BadInput(
            f"{path} has rows of another length than its heading: {some(uneven)}.",
            "A separator is missing, or too many.",
            "Correct these rows.",
        )
    return [dict(zip(names, (cell.strip() for cell in line), strict=True)) for line in lines[1:]]


def some(items: Sequence[str], most: int = 10) -> str:
    """A list for a sentence, cut where it is long."""
    listed = "; ".join(items[:most])
    return listed if len(items) <= most else f"{listed}; and {len(items) - most} more"


def _are(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _number(name: str, text: str) -> float:
    value = number_or_none(text)
    if value is None:
        raise BadInput(f"The covariate {name} is {text!r}.", "It is no number.", "Give a number, as 34.5.")
    return value


def number_or_none(text: str) -> float | None:
    """The number that `text` is, if it is a finite one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _category(text: str, categories: Sequence[str]) -> str | None:
    """The category that is meant: spelt so, or the same number (1 and 1.0)."""
    if text in categories:
        return text
    value = number_or_none(text)
    return next((one for one in categories if value is not None and number_or_none(one) == value), None)

"""Tables: as plain text for a terminal, and as files of comma-separated values."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import replace_file


def grid(rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Rows as text with aligned columns and a rule below the first row, which is the heading.

    Args:
        rows: cells, as many in each row.
        texts: how many columns at the left are words, and so aligned to the left; the others are numbers.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i < texts else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_csv(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] = (),
    *,
    number: Callable[[float], Any] = lambda value: round(value, 6),
) -> None:
    """Write rows as a .csv file in one step.

    Args:
        path: of the file.
        rows: at least one.
        columns: their order; what is not named is left out, what a row lacks stays empty. By default those of the first
            row, which then all rows have.
        number: how a fraction is written.
    """
    names = list(columns or rows[0])

    def write(partial: Path) -> None:
        with open(partial, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, names, restval="", extrasaction="ignore" if columns else "raise")
            writer.writeheader()
            writer.writerows({k: number(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows)

    replace_file(path, write)

"""Tables as plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


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

"""Widgets filled by the program: what it shows is no choice of the reader, so nobody hears of a change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def silent(widget: Any) -> Iterator[None]:
    """A widget sends no signals in this block."""
    was = widget.blockSignals(True)
    try:
        yield
    finally:
        widget.blockSignals(was)


def fill_box(box: Any, items: Mapping[str, str], chosen: str | None = None, absent: str = "") -> None:
    """Replace the items of a combo box; one that is chosen and not among them stays, for a reader to see.

    Args:
        box: the qt.QComboBox.
        items: text of each by the data that stands for it, in their order.
        chosen: data of the item that is shown; None leaves it to the box.
        absent: text of that item where it is not among the others; by default its data.
    """
    with silent(box):
        box.clear()
        for data, text in items.items():
            box.addItem(text, data)
        if chosen is not None:
            if chosen not in items:
                box.addItem(absent or chosen, chosen)
            box.currentIndex = box.findData(chosen)

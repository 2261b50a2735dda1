"""A list of how each of many fares in a job: a row for each atlas, rater or case, with a colour and a word."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import qt
from slicer.i18n import tr as _

from .jobs import Status
from .widget import swatch

#: Rows that the list shows at once.
_ROWS = 8
_GREY = "#b0b0b0"


@dataclasses.dataclass(frozen=True)
class State:
    """How one fared, for a reader: what a :class:`MLISlicerLib.jobs.Status` or a result calls `status`, and why."""

    name: str
    status: str
    note: str = ""


class StateList:
    """Shows states in a QTableWidget; a row that did not change is left alone.

    Args:
        table: the widget.
        words: for each status a colour and the word that a reader sees.
        busy: the status of one that is being worked on, which is scrolled to.
    """

    def __init__(self, table: Any, words: Mapping[str, tuple[str, str]], busy: str) -> None:
        self._table = table
        self._words = words
        self._busy = busy
        self._shown: list[State] = []
        self.states: list[State] = []
        table.setColumnCount(2)
        table.verticalHeader().visible = False
        table.horizontalHeader().setStretchLastSection(True)
        table.visible = False

    def hear(self, status: Status, heading: str) -> None:
        """Take over what a running job tells of each."""
        known = {state.name: state for state in self.states}
        for name, word in status.raters.items():
            known[name] = State(name, word)
        if list(known.values()) != self.states:
            self.show(list(known.values()), heading)

    def show(self, states: Sequence[State], heading: str) -> None:
        """Show these states, under a heading for what they are of."""
        self.states = list(states)
        table = self._table
        table.visible = bool(states)
        table.setHorizontalHeaderLabels([heading, _("State")])
        if len(states) != len(self._shown):
            table.setRowCount(len(states))
            self._shown = []
        for row, state in enumerate(states):
            if row < len(self._shown) and self._shown[row] == state:
                continue
            color, word = self._words.get(state.status, (_GREY, state.status))
            text = f"{word}: {state.note}" if state.note else word
            for column, cell in enumerate((state.name, text)):
                item = qt.QTableWidgetItem(cell)
                item.setToolTip(f"{state.name}: {text}")
                if column == 0:
                    item.setIcon(swatch(color))
                table.setItem(row, column, item)
            if state.status == self._busy:
                table.scrollToItem(table.item(row, 0))
        if self.states != self._shown:
            if len(states) != len(self._shown):
                table.resizeColumnToContents(0)
            table.resizeRowsToContents()
            height = sum(table.rowHeight(row) for row in range(min(len(states), _ROWS)))
            table.setFixedHeight(table.horizontalHeader().sizeHint.height() + height + 2 * table.frameWidth)
        self._shown = list(self.states)

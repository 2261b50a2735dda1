"""A similarity that becomes no number in the middle of a registration, as it does when an optimiser diverges."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from MLILib.registration.criterion import Criterion


def break_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Until the test ends or undoes it, a criterion answers NaN after so many calls."""
    made = 0
    plain = Criterion.__call__

    def failing(self: Criterion, *given: Any) -> torch.Tensor:
        nonlocal made
        made += 1
        return plain(self, *given) * (1 if made <= calls else float("nan"))

    monkeypatch.setattr(Criterion, "__call__", failing)

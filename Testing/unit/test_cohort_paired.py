"""Paired statistics against scipy, published examples and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from MLILib.cohort import boxes
from MLILib.cohort.paired import holm, pairs, summary

NAN, INF = float("nan"), float("inf")


def test_summary() -> None:
    found = summary(np.array([1.0, 2.0, 3.0, 4.0, NAN, INF]))
    assert (found.count, found.mean, found.median) == (4, 2.5, 2.5)
    assert found.deviation == pytest.approx(math.sqrt(5 / 3))
    assert (found.lower, found.upper) == (1.75, 3.25)
    empty = summary(np.array([NAN, INF]))
    assert empty.count == 0
    assert math.isnan(empty.mean)
    assert math.isnan(summary(np.array([1.0])).deviation)


def test_holm() -> None:
    # Holm's own reading: the smallest times n, the next times n - 1, none below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    found = holm([NAN, 0.02])
    assert math.isnan(found[0])
    assert found[1] == 0.02


def test_pairs_are_scipys() -> None:
    rng = np.random.default_rng(3)
    values = {name: rng.normal(shift, 1, 25) for name, shift in (("a", 0.0), ("b", 0.6), ("c", 0.1))}
    found = pairs(values)
    assert [(one.first, one.second) for one in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    for one in found:
        difference = values[one.first] - values[one.second]
        assert one.p == pytest.approx(stats.wilcoxon(values[one.first], values[one.second]).pvalue)
        assert one.difference == pytest.approx(difference.mean())
        error = difference.std(ddof=1) / 5  # normal values: the interval is close to that of the mean's error
        assert one.low == pytest.approx(one.difference - 1.96 * error, abs=0.35 * error)
        assert one.high == pytest.approx(one.difference + 1.96 * error, abs=0.35 * error)
        assert one.corrected >= one.p


def test_the_smallest_p_of_six_cases() -> None:
    (one,) = pairs({"a": np.arange(1.0, 7.0), "b": np.zeros(6)})
    assert one.p == pytest.approx(2 / 2**6)  # all signs alike: 2 of the 64 ways


def test_what_is_missing_and_what_was_missed() -> None:
    a = np.array([1.0, 2.0, NAN, INF, INF, 1.0])
    b = np.array([1.5, 2.5, 1.0, 3.0, INF, 1.5])
    (one,) = pairs({"a": a, "b": b})
    assert one.count == 5
    assert one.difference == pytest.approx(np.mean([-0.5, -0.5, 0.0, -0.5]))
    ranked = np.array([-0.5, -0.5, 100.0, 0.0, -0.5])  # a missed structure is the largest difference there is
    assert one.p == pytest.approx(stats.wilcoxon(ranked).pvalue)


def test_nothing_differs_or_nothing_is_there() -> None:
    (same,) = pairs({"a": np.ones(8), "b": np.ones(8)})
    assert (same.p, same.difference) == (1.0, 0.0)
    (none,) = pairs({"a": np.array([NAN, 1.0]), "b": np.array([1.0, NAN])})
    assert none.count == 0
    assert math.isnan(none.p)


def test_boxes_are_a_picture_even_of_nothing() -> None:
    for values in (np.array([0.8, 0.9, NAN]), np.array([NAN, INF])):
        assert boxes.draw("Dice", {"a": {"one": values, "other": values}}).startswith(b"\x89PNG")

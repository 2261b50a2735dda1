"""Methods measured on the same cases: how each did, and whether the differences are more than chance.

The signed rank test is Wilcoxon's (1945), the correction for many tests Holm's (1979), the intervals are percentiles of
the bootstrap (Efron 1979).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

Values = npt.NDArray[np.float64]

#: Resamples of the bootstrap, and its seed.
RESAMPLES, SEED = 5000, 0


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a method did by one measure.

    Attributes:
        count: of the values that are finite; the others take no part.
        mean, deviation, median, lower, upper: of those; the deviation is of a sample, lower and upper are quartiles.
            NaN where there are too few.
    """

    count: int
    mean: float
    deviation: float
    median: float
    lower: float
    upper: float


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two methods beside each other by one measure.

    Attributes:
        first, second: their names.
        count: cases that both have a value for.
        difference: mean of the first less the second, over cases where both are finite.
        low, high: 95 % interval of that mean.
        p: of the two-sided signed rank test; 1 where nothing differs, NaN where there is no case.
        corrected: p after Holm's correction over all pairs.
    """

    first: str
    second: str
    count: int
    difference: float
    low: float
    high: float
    p: float
    corrected: float


def summary(values: Values) -> Summary:
    """Mean, spread and quartiles of one method's values; those that are not finite are left out."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Summary(0, *(5 * [float("nan")]))
    lower, median, upper = np.quantile(finite, [0.25, 0.5, 0.75])
    deviation = float(np.std(finite, ddof=1)) if finite.size > 1 else float("nan")
    return Summary(finite.size, float(finite.mean()), deviation, float(median), float(lower), float(upper))


def pairs(values: Mapping[str, Values]) -> list[Pair]:
    """Every two methods beside each other.

    Args:
        values: of each method, one a case, in one order; NaN where there is none. An infinite distance (a structure
            that was missed) is in the test the largest of all.
    """
    made = [_pair(a, b, values[a], values[b]) for a, b in itertools.combinations(values, 2)]
    corrected = holm([one.p for one in made])
    return [dataclasses.replace(one, corrected=p) for one, p in zip(made, corrected, strict=True)]


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, so that the chance of any false alarm stays below the level; NaN stays.

    After S. Holm: A simple sequentially rejective multiple test procedure (Scandinavian Journal of Statistics 6, 1979).
    """
    out = [float("nan")] * len(values)
    order = sorted((i for i, p in enumerate(values) if not np.isnan(p)), key=lambda i: values[i])
    worst = 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, values[i] * (len(order) - rank)))
        out[i] = worst
    return out


def _pair(first: str, second: str, ours: Values, theirs: Values) -> Pair:
    both = ~(np.isnan(ours) | np.isnan(theirs))
    a, b = ours[both], theirs[both]
    same = a == b  # also two infinite distances, whose difference is no number
    differences = np.where(same, 0.0, np.subtract(a, b, where=~same, out=np.zeros_like(a)))
    finite = differences[np.isfinite(differences)]
    nan = float("nan")
    low = high = nan
    if finite.size > 1:
        drawn = np.random.default_rng(SEED).integers(finite.size, size=(RESAMPLES, finite.size))
        low, high = (float(x) for x in np.quantile(finite[drawn].mean(axis=1), [0.025, 0.975]))
    if not differences.size:
        p = nan
    elif not differences.any():
        p = 1.0
    else:
        p = float(stats.wilcoxon(differences).pvalue)
    mean = float(finite.mean()) if finite.size else nan
    return Pair(first, second, int(both.sum()), mean, low, high, p, p)

"""How far raters agree with each other: Fleiss' kappa, pairwise Dice, and the entropy of their labels at each voxel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import patterns
from .patterns import Patterns
from .raters import Raters, Region

Doubles = npt.NDArray[np.float64]


def fleiss_kappa(raters: Raters, region: Region | None = None) -> float:
    """Agreement beyond chance, after J. L. Fleiss: Measuring nominal scale agreement among many raters (Psychological
    Bulletin 76, 1971).

    Voxels are the subjects, background and labels the categories. With n raters, of whom n_vl say l at voxel v::

        P = mean over v of (sum_l n_vl^2 - n) / (n (n - 1)),  Pe = sum_l (share of l among all decisions)^2
        kappa = (P - Pe) / (1 - Pe)

    It depends on how much background is looked at: compare kappas of one region only.

    Args:
        raters: two or more.
        region: that is looked at; by default the box around what any rater drew.

    Returns:
        1 for full agreement, 0 for what chance gives; nan with one rater, or where only one category occurs.
    """
    region = raters.box() if region is None else region
    return kappa_of(patterns.find(raters.stack, len(raters.labels) + 1, region))


def kappa_of(found: Patterns) -> float:
    """:func:`fleiss_kappa` of patterns."""
    n = found.decisions.shape[1]
    if n < 2 or not found.voxels:
        return float("nan")
    agreeing, shares = 0.0, np.zeros(found.levels)
    for part in found.blocks():
        votes = found.votes(part)
        agreeing += float(found.counts[part] @ (np.square(votes).sum(axis=1) - n))
        shares += found.counts[part] @ votes
    observed = agreeing / (found.voxels * n * (n - 1))
    by_chance = float(np.square(shares / (found.voxels * n)).sum())
    return (observed - by_chance) / (1 - by_chance) if by_chance < 1 else float("nan")


def pairwise_dice(raters: Raters) -> Doubles:
    """Dice of each label between each two raters, (labels, raters, raters); nan where neither drew it."""
    return dice_of(patterns.find(raters.stack, len(raters.labels) + 1, raters.box()))


def dice_of(found: Patterns) -> Doubles:
    """:func:`pairwise_dice` of patterns."""
    n = found.decisions.shape[1]
    both = np.zeros((found.levels - 1, n, n))
    for part in found.blocks():
        decisions, counts = found.decisions[part], found.counts[part]
        for label in np.unique(decisions):
            if label:
                drawn = (decisions == label).astype(np.float64)
                both[label - 1] += (drawn * counts[:, None]).T @ drawn
    size = np.einsum("lii->li", both)
    total = size[:, :, None] + size[:, None, :]
    return np.divide(2 * both, total, out=np.full_like(both, np.nan), where=total > 0)


def entropy(raters: Raters) -> npt.NDArray[np.float32]:
    """Entropy of what the raters say of a voxel, in bits, (z, y, x): 0 where they agree, 1 where two halves do not.

    -sum_l p_l log2 p_l with the share p_l of the raters that say l; at most log2 of the number of raters or of labels
    and background, whichever are fewer.
    """
    region = raters.whole()
    found = patterns.find(raters.stack, len(raters.labels) + 1, region)
    return found.place(entropy_of(found), region, raters.stack.shape[1:])


def entropy_of(found: Patterns) -> npt.NDArray[np.float32]:
    """:func:`entropy` of each pattern."""
    bits = np.zeros(len(found.counts), dtype=np.float32)
    for part in found.blocks():
        shares = found.votes(part) / found.decisions.shape[1]
        logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
        bits[part] = np.abs((shares * logs).sum(axis=1))
    return bits

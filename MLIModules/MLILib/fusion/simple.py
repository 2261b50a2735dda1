"""SIMPLE: raters that overlap little with the consensus are dropped, and the consensus is made again.

After T. R. Langerak et al.: Label fusion in atlas-based segmentation using a selective and iterative method for
performance level estimation (SIMPLE), IEEE Transactions on Medical Imaging 29, 2010.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import BadInput
from . import patterns
from .patterns import Patterns, decide
from .raters import Consensus, Raters, Region

Doubles = npt.NDArray[np.float64]


def simple(
    raters: Raters,
    *,
    drop: float = 1.0,
    region: Region | None = None,
    least: int | None = None,
    probabilities: bool = False,
) -> Consensus:
    """The vote of the raters that agree with it.

    The first consensus is the vote of all. Then, in turn: the overlap of each rater that is left with the consensus;
    raters below mean - drop x standard deviation (of those left) are dropped; the rest vote again, weighted by their
    overlaps. It ends when nobody is dropped.

    The overlap is Dice, of several labels the mean over those that the rater or the consensus has. With drop = 1 the
    rule finds somebody to drop in most groups, however good they are, so it stops before fewer than `least` are left;
    the worst go first. Of 13 atlases of the hippocampus this left 7, with a mean Dice of .847 where going on to 3 ended
    at .837, and the vote of all has .840 (6 targets).

    Args:
        raters: one or more.
        drop: standard deviations (of the population) below the mean; 0 drops all below the mean.
        region: where it looks; the whole image by default. Outside all is background.
        least: how many raters stay at the least; by default half of them, rounded up.
        probabilities: whether the share of the votes of each label is wanted, too.

    Returns:
        The consensus; its weights are the overlaps with it, 0 for a rater that was dropped.

    Raises:
        BadInput: settings below 0 (`drop`) or 1 (`least`), or an empty region.
    """
    least = (len(raters) + 1) // 2 if least is None else least
    if drop < 0 or least < 1:
        raise BadInput(
            f"SIMPLE cannot drop raters {drop} standard deviations below the mean and keep {least}.",
            "",
            "Give 0 or more standard deviations, and keep one rater or more.",
        )
    region = raters.whole() if region is None else region
    found = patterns.find(raters.stack, len(raters.labels) + 1, region)
    if not found.voxels:
        raise BadInput("The region is empty.", "", "Give a region of one voxel or more.")
    kept = np.ones(len(raters), dtype=bool)
    weights = np.ones(len(raters))
    rounds = 0
    dropping = True
    while dropping:
        rounds += 1
        overlap = _overlaps(found, _vote(found, weights))
        bad = _bad(overlap, kept, drop, least)
        kept &= ~bad
        dropping = bool(bad.any())
        # Where nobody overlaps the consensus, which is empty then, overlaps tell nothing and all count alike.
        weights = np.where(kept, overlap, 0.0) if overlap[kept].any() else kept.astype(np.float64)
    result = patterns.fused(raters, region, found, lambda part: found.votes(part, weights), probabilities)
    return Consensus(
        indices=result.indices,
        kept=kept,
        region=region,
        voxels=found.voxels,
        probabilities=result.shares,
        weights=weights,
        ties=result.ties,
        iterations=rounds,
        notes=_notes(raters, kept, drop),
    )


def _vote(found: Patterns, weights: Doubles) -> npt.NDArray[np.intp]:
    """The label of most weight for each pattern."""
    return np.concatenate([decide(found.votes(part, weights))[0] for part in found.blocks()])


def _overlaps(found: Patterns, winner: npt.NDArray[np.intp]) -> Doubles:
    """Mean Dice of each rater with a consensus, over the labels that either has; 1 where neither has any."""
    counts = found.counts.astype(np.float64)
    size = np.bincount(winner, counts, minlength=found.levels)
    out = np.ones(found.decisions.shape[1])
    for i, said in enumerate(found.decisions.T):
        drawn = np.bincount(said, counts, minlength=found.levels)
        right = said == winner
        both = np.bincount(winner[right], counts[right], minlength=found.levels)
        there = (size + drawn > 0) & (np.arange(found.levels) > 0)
        if there.any():
            out[i] = (2 * both[there] / (size + drawn)[there]).mean()
    return out


def _bad(overlap: Doubles, kept: npt.NDArray[np.bool_], drop: float, least: int) -> npt.NDArray[np.bool_]:
    """Whom to drop of those left."""
    left = overlap[kept]
    limit = left.mean() - drop * left.std()
    # Of two raters the worse lies on the limit itself at drop = 1; rounding must not push him over it.
    bad = kept & (overlap < limit - 1e-9)
    worst_first = np.flatnonzero(bad)[np.argsort(overlap[bad], kind="stable")]
    out = np.zeros_like(bad)
    out[worst_first[: max(int(kept.sum()) - least, 0)]] = True
    return out


def _notes(raters: Raters, kept: npt.NDArray[np.bool_], drop: float) -> tuple[str, ...]:
    dropped = [name for name, stays in zip(raters.names, kept, strict=True) if not stays]
    if not dropped:
        return ("SIMPLE dropped nobody.",)
    return (
        f"SIMPLE dropped {len(dropped)} of {len(raters)} raters, whose overlap with the consensus lay more than "
        f"{drop:g} standard deviations below the mean: {', '.join(dropped)}.",
    )

"""Exact Gaussian-process regression of many values (voxels) on the same few covariates of the same subjects.

The kernel's eigenvectors depend on the length scales alone, so that all voxels share them: for each pair of length
scales on a grid one small matrix product gives every voxel's marginal likelihood at every noise ratio.

The model is Rasmussen and Williams' (2006, chapters 2 and 5): y = m + f(x) + e, with m the training mean, f of
covariance signal * exp(-|x - x'|^2 / 2), x divided by length scales, and e independent noise.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..progress import Progress

Array = npt.NDArray[Any]

#: Length scales of continuous covariates, in standard deviations of theirs, and of categories, whose members lie 1
#: apart (the last makes no difference between categories). Neighbours differ by some .1 nats in likelihood.
LENGTHS = tuple(float(x) for x in np.geomspace(0.35, 12.0, 16))
CATEGORY_LENGTHS = (0.7, 1.2, 2.4, 1000.0)
#: Noise variance over signal variance: searched on a grid, then refined for each voxel by Newton's method.
RATIOS = tuple(float(x) for x in np.geomspace(1e-4, 1e4, 13))
#: Eigenvalues below are taken together as 0: their eigenvectors are rounding.
NEGLIGIBLE = 1e-14
#: Values computed together: at 100 subjects an array of them takes 6 MB and stays in the processor's cache.
BLOCK = 8192
#: Bounds of the histogram of |z| in leave-one-out; the last bin is open.
Z_STEP, Z_BINS = 0.02, 501


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Values that share their length scales.

    Attributes:
        lengths: of each column of the design, (d,).
        eigenvalues: of the correlation matrix, those that are not negligible, (k,).
        weights: eigenvectors as columns, (n, k).
        members: which values, (v,).
        codes: centred training values in terms of the eigenvectors, (k, v).
    """

    lengths: Array
    eigenvalues: Array
    weights: Array
    members: Array
    codes: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """Regressions of many values on the same design.

    Attributes:
        design: (n, d), as it was fitted.
        mean: of each value over the subjects, (v,).
        signal, noise: variances of f and e, (v,); both 0 for a value that is the same in all subjects.
        groups: the rest, by length scales.
        likelihood: log marginal likelihood, (v,); 0 for a constant value.
    """

    design: Array
    mean: Array
    signal: Array
    noise: Array
    groups: tuple[Group, ...]
    likelihood: Array

    def predict(self, x: npt.ArrayLike) -> tuple[Array, Array]:
        """Mean and variance of what is measured in a new subject (noise included).

        Args:
            x: one row of a design, (d,).

        Returns:
            float64, (v,) each; the variance is 0 where training values were constant.
        """
        row = np.asarray(x, np.float64)
        mean = self.mean.astype(np.float64)
        variance = self.signal.astype(np.float64) + self.noise
        for group in self.groups:
            near = np.exp(-0.5 * np.square((self.design - row) / group.lengths).sum(axis=1)) @ group.weights
            signal = self.signal[group.members].astype(np.float64)
            share = 1.0 / (group.eigenvalues[:, None] + self.noise[group.members] / signal)
            mean[group.members] += np.einsum("k,kv,kv->v", near, group.codes, share, optimize=False)
            variance[group.members] -= signal * (np.square(near) @ share)
        return mean, variance.clip(min=0)


@dataclasses.dataclass
class LeaveOneOut:
    """How well subjects are predicted from the others, their mean included; hyper-parameters are kept.

    Attributes:
        histogram: how often |z| fell into bins of width :data:`Z_STEP`, over all subjects and values.
        z_sum, z_square: over all, of z and its square.
        error, spread: sums over subjects of squared errors by the regression, and by the mean of the others, (v,).
    """

    histogram: Array
    z_sum: float
    z_square: float
    error: Array
    spread: Array

    @property
    def count(self) -> int:
        """Predictions made."""
        return int(self.histogram.sum())

    def share_below(self, z: float) -> float:
        """Share of predictions with |z| below `z`, a multiple of :data:`Z_STEP`; a normal z has .95 below 1.96."""
        return float(self.histogram[: round(z / Z_STEP)].sum() / self.histogram.sum())

    def explained(self) -> Array:
        """Share of each value's variance that the covariates explain in subjects left out, (v,); 0 for constants."""
        return 1.0 - np.divide(self.error, self.spread, out=np.ones_like(self.error), where=self.spread > 0)


@dataclasses.dataclass(frozen=True)
class _Basis:
    """Eigenvectors of the correlation at one pair of length scales."""

    lengths: Array
    values: Tensor
    vectors: Tensor
    search: Tensor
    search_total: Tensor
    search_vectors: Tensor


def fit(
    design: npt.ArrayLike,
    values: Array,
    *,
    categories: Sequence[bool] | None = None,
    store: npt.DTypeLike = np.float64,
    device: torch.device | str = "cpu",
    block: int = BLOCK,
    progress: Progress | None = None,
) -> tuple[Fitted, LeaveOneOut]:
    """Regress each column of `values` on the design, by maximal marginal likelihood.

    The signal's variance follows from the other hyper-parameters: its posterior mean under Jeffreys' prior once the
    mean is subtracted, which divides by n - 3 where maximal likelihood divides by n, so that few subjects do not make
    the variance too small. Continuous columns of the design share a length scale, categories another.

    Args:
        design: (n, d), n at least 4; continuous columns standardised, categories coded so that two of them lie 1 apart.
        values: (n, v), any float type, may be a memory map: read in blocks of columns.
        categories: which columns of the design code categories; None is none of them.
        store: float type of the codes that predictions are made from; all is computed in float64.
        device: one that has float64.
        block: values at a time: memory is some 10 * n * block * 8 bytes and what is stored.
        progress: told the fraction done.

    Returns:
        The regressions, and how they do in leave-one-out.
    """
    x = np.asarray(design, np.float64)
    n, count = values.shape
    bases = _bases(x, np.zeros(x.shape[1], bool) if categories is None else np.asarray(categories, bool), device)
    mean, signal, noise, likelihood = (np.zeros(count) for _ in range(4))
    left = LeaveOneOut(np.zeros(Z_BINS, np.int64), 0.0, 0.0, np.zeros(count), np.zeros(count))
    parts: list[list[tuple[Array, Array]]] = [[] for _ in bases]
    for first in range(0, count, block):
        here = np.arange(first, min(first + block, count))
        y = torch.as_tensor(np.asarray(values[:, first : first + len(here)], np.float64), device=device)
        middle = y.mean(dim=0)
        y = y - middle
        mean[here] = middle.cpu().numpy()
        total = y.square().sum(dim=0)
        varies = total > 1e-20 * n * (middle.square() + torch.finfo(torch.float64).tiny)
        chosen, start = _search(bases, y, total)
        for b, basis in enumerate(bases):
            picked = torch.nonzero((chosen == b) & varies).flatten()
            if not len(picked):
                continue
            where = here[picked.cpu().numpy()]
            own, codes = y[:, picked], basis.vectors.T @ y[:, picked]
            ratio = _refine(basis, codes, total[picked], start[picked], n)
            rest = (total[picked] - codes.square().sum(dim=0)).clamp(min=0)
            share = 1.0 / (basis.values[:, None] + ratio)
            quadratic = (codes.square() * share).sum(dim=0) + rest / ratio
            scale = quadratic / (n - 3)
            signal[where], noise[where] = scale.cpu().numpy(), (scale * ratio).cpu().numpy()
            determinant = torch.log(basis.values[:, None] + ratio).sum(dim=0)
            determinant = determinant + (n - len(basis.values)) * ratio.log()
            nats = -0.5 * ((n - 3) + n * torch.log(2 * math.pi * scale) + determinant)
            likelihood[where] = nats.cpu().numpy()
            parts[b].append((where, codes.cpu().numpy().astype(store)))
            _leave_out(left, where, basis, own, codes, share, ratio, scale)
        if progress is not None:
            progress.fraction((first + len(here)) / count)
    groups = tuple(
        Group(
            basis.lengths,
            basis.values.cpu().numpy(),
            basis.vectors.cpu().numpy(),
            np.concatenate([where for where, _ in found]),
            np.concatenate([codes for _, codes in found], axis=1),
        )
        for basis, found in zip(bases, parts, strict=True)
        if found
    )
    return Fitted(x, mean, signal, noise, groups, likelihood), left


def _bases(x: Array, categories: Array, device: torch.device | str) -> list[_Basis]:
    """The correlation's eigenvectors at each pair of length scales that makes a difference."""
    continuous_lengths = LENGTHS if (~categories).any() else (1.0,)
    category_lengths = CATEGORY_LENGTHS if categories.any() else (1.0,)
    found = []
    for one, other in itertools.product(continuous_lengths, category_lengths):
        lengths = np.where(categories, other, one)
        scaled = torch.as_tensor(x / lengths, device=device)
        apart = (scaled[:, None] - scaled[None]).square().sum(dim=2)
        values, vectors = torch.linalg.eigh(torch.exp(-0.5 * apart))
        keep = values > NEGLIGIBLE * len(x)
        values, vectors = values[keep], vectors[:, keep].contiguous()
        ratios = torch.tensor(RATIOS, dtype=torch.float64, device=device)[:, None]
        determinants = torch.log(values + ratios).sum(dim=1) + (len(x) - len(values)) * ratios[:, 0].log()
        # The profile likelihood is -n/2 log(quadratic * determinant^(1/n)), and the quadratic form is
        # total / ratio + codes^2 . (1 / (value + ratio) - 1 / ratio).
        factor = torch.exp(determinants / len(x))
        search = -values / (ratios * (values + ratios)) * factor[:, None]
        found.append(
            _Basis(lengths, values, vectors, search.float(), (factor / ratios[:, 0]).float(), vectors.T.float())
        )
    return found


def _search(bases: Sequence[_Basis], y: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """For each column of `y` the basis and the noise ratio of the grid with the highest profile likelihood.

    In single precision, on values of unit variance: what is lost is less than the grid is fine.
    """
    scaled = (y / (total / len(y)).sqrt().clamp(min=torch.finfo(torch.float64).tiny)).float()
    size = scaled.square().sum(dim=0)
    best = torch.full_like(size, torch.inf)
    chosen = torch.zeros(len(size), dtype=torch.long, device=y.device)
    place = torch.zeros_like(chosen)
    for b, basis in enumerate(bases):
        criterion = torch.addmm(
            torch.outer(basis.search_total, size), basis.search, (basis.search_vectors @ scaled).square_()
        )
        least, at = criterion.min(dim=0)
        better = least < best
        best = torch.where(better, least, best)
        chosen.masked_fill_(better, b)
        place = torch.where(better, at, place)
    return chosen, torch.tensor(RATIOS, dtype=torch.float64, device=y.device)[place]


def _refine(basis: _Basis, codes: Tensor, total: Tensor, start: Tensor, n: int) -> Tensor:
    """The noise ratio that maximises the profile likelihood, by Newton's method in its logarithm around `start`."""
    squares = codes.square()
    rest = (total - squares.sum(dim=0)).clamp(min=0)
    missing = n - len(basis.values)
    step = math.log(RATIOS[1] / RATIOS[0])
    centre = start.log()
    low, high = (centre - step).clamp(min=math.log(RATIOS[0])), (centre + step).clamp(max=math.log(RATIOS[-1]))
    t = centre
    for _ in range(5):
        r = t.exp()
        share = 1.0 / (basis.values[:, None] + r)
        once = squares * share
        twice = once * share
        q, q2 = once.sum(dim=0) + rest / r, twice.sum(dim=0) + rest / r.square()
        q3 = (twice * share).sum(dim=0) + rest / r**3
        s1, s2 = share.sum(dim=0) + missing / r, share.square().sum(dim=0) + missing / r.square()
        slope = 0.5 * (n * q2 / q - s1)
        bend = 0.5 * (n * (q2 / q).square() - 2 * n * q3 / q + s2)
        up, curved = r * slope, r * slope + r.square() * bend
        # Where the curve is not yet bent downwards, a step uphill.
        move = torch.where(curved < 0, -up / curved, torch.sign(up) * 0.5 * step).clamp(-0.5 * step, 0.5 * step)
        t = torch.minimum(torch.maximum(t + move, low), high)
    return t.exp()


def _leave_out(
    into: LeaveOneOut,
    where: Array,
    basis: _Basis,
    y: Tensor,
    codes: Tensor,
    share: Tensor,
    ratio: Tensor,
    scale: Tensor,
) -> None:
    """Add the predictions of each subject from the others (Sundararajan and Keerthi 2001) to `into`."""
    n = len(y)
    squares = basis.vectors.square()
    inverse = squares @ share + (1.0 - squares.sum(dim=1, keepdim=True)).clamp(min=0) / ratio
    # The mean of the others is the mean less y_i / (n - 1), as y is centred; that shifts all values of the others.
    change = share - 1.0 / ratio
    ones = basis.vectors @ (basis.vectors.sum(dim=0)[:, None] * change) + 1.0 / ratio
    residual = (basis.vectors @ (codes * change) + y / ratio + ones * y / (n - 1)) / inverse
    z = residual * (inverse / scale).sqrt()
    into.z_sum += float(z.sum())
    into.z_square += float(z.square().sum())
    bins = (z.abs() / Z_STEP).clamp(max=Z_BINS - 1).long().flatten()
    into.histogram += torch.bincount(bins, minlength=Z_BINS).cpu().numpy()
    into.error[where] = residual.square().sum(dim=0).cpu().numpy()
    into.spread[where] = (y * (n / (n - 1))).square().sum(dim=0).cpu().numpy()

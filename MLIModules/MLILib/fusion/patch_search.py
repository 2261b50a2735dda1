"""The patches of several images that match a target's best nearby, and how much each image is to be trusted there.

The search and the weights of joint label fusion: H. Wang, J. W. Suh, S. R. Das, J. B. Pluta, C. Craige and P. A.
Yushkevich: Multi-atlas segmentation with joint label fusion (IEEE TPAMI 35, 2013). Everything here is one block.

An image's block is laid out as one row of numbers, and so is each search shift of it: products and window sums over
millions of patches are then additions of contiguous memory. Of 7 atlases, 343 shifts and 5 x 5 x 5 voxels a patch that
takes 16 operations a voxel, shift and atlas, where a loop over patches takes 125 products alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch

from ..registration.box import Windows, strides

#: Standard deviation of a patch, as a share of its image's, below which it shows noise rather than anatomy.
FLAT = 0.01

#: By which patches match: the squares of their differences, or Pearson's correlation.
SIMILARITIES = ("squares", "correlation")


@dataclasses.dataclass(frozen=True)
class Search:
    """What is compared and how.

    Attributes:
        similarity: one of :data:`SIMILARITIES`, by which patches match.
        patch: radius of the patches, voxels, 1 or more.
        reach: largest shift along each axis, voxels.
        beta: exponent of the expected joint error.
        alpha: what is added to each atlas' own expected error.
    """

    similarity: str
    patch: int
    reach: int
    beta: float
    alpha: float

    def shifts(self, dims: int) -> list[tuple[int, ...]]:
        """All shifts; a match is named by its number here. 0 is none; after it the first axis runs fastest."""
        span = range(-self.reach, self.reach + 1)
        found = [shift[::-1] for shift in itertools.product(span, repeat=dims)]
        found.remove((0,) * dims)
        return [(0,) * dims, *found]

    def patch_size(self, dims: int) -> int:
        """Voxels of a patch."""
        return int((2 * self.patch + 1) ** dims)


def match(
    target: torch.Tensor, atlases: torch.Tensor, wanted: torch.Tensor, search: Search, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Best shifts and weights at the wanted voxels of a block.

    A patch t of the target matches that patch a of an atlas, among all shifts, whose squared differences have the least
    sum, or whose correlation is highest; where t is flat, correlation knows nothing and the atlas stays in place. With
    both patches normalised to mean 0 and standard deviation 1, the atlases i and j are expected to err together by

        M_ij = (sum |a_i - t| |a_j - t| / (patch size - 1)) ^ beta,

    and the weights are w = (M + alpha I)^-1 1, those below 0 set to 0, over their sum.

    Args:
        target: (z, y, x) or (y, x) float32, mean about 0 and standard deviation about 1: the block and, on each side,
            `search.patch` voxels more.
        atlases: (n, ...) likewise, with `search.patch + search.reach` voxels more on each side.
        wanted: (z, y, x) bool, the block.
        search: what is compared.
        chunk: wanted voxels whose patches are held at a time.

    Returns:
        (wanted, n) numbers of :meth:`Search.shifts`, int32, and (wanted, n) float32 weights.
    """
    patch, wide = _Patches(target, search.patch), [_Patches(one, search.patch) for one in atlases]
    at = wanted.nonzero()
    ours = (at * torch.tensor(strides(target.shape), device=at.device)).sum(1)
    found = torch.stack([_best(patch, one, ours, search) for one in wide], dim=1)
    # The first voxel of the matching patch within an atlas' block, for each shift.
    steps = torch.tensor(strides(atlases.shape[1:]), device=at.device)
    moved = ((torch.tensor(search.shifts(target.ndim), device=at.device) + search.reach) * steps).sum(1)
    theirs = (at * steps).sum(1)[:, None] + moved[found]
    weights = torch.empty(found.shape, dtype=torch.float32, device=at.device)
    for start in range(0, len(at), chunk):
        part = slice(start, start + chunk)
        normal = patch.normal(ours[part])
        apart = [one.normal(theirs[part, i]).sub_(normal).abs_() for i, one in enumerate(wide)]
        weights[part] = solve(joint_error(torch.stack(apart, dim=1), search.beta), search.alpha)
    return found.to(torch.int32), weights


def joint_error(apart: torch.Tensor, beta: float) -> torch.Tensor:
    """M (voxels, n, n) of the absolute differences of normalised patches, (voxels, n, patch size)."""
    expected = torch.bmm(apart, apart.mT).div_(apart.shape[2] - 1)
    return expected.square_() if beta == 2.0 else expected.pow_(beta)


def solve(errors: torch.Tensor, alpha: float) -> torch.Tensor:
    """Weights (voxels, n) of expected joint errors M (voxels, n, n): (M + alpha I)^-1 1, none below 0, sum 1.

    Elimination without pivots, which a positive definite matrix does not need, for all voxels at once: LAPACK takes
    microseconds a matrix. Where alpha is 0 and atlases are alike, the matrix is singular; those that come later then
    get no weight of their own.
    """
    count = errors.shape[1]
    # Apple's GPUs have no float64.
    dtype = torch.float32 if errors.device.type == "mps" else torch.float64
    left = errors.permute(1, 2, 0).to(dtype).contiguous()
    left.diagonal(dim1=0, dim2=1).add_(alpha)
    least = left.diagonal(dim1=0, dim2=1).amax(1) * (16 * count * torch.finfo(dtype).eps)
    least.clamp_(min=torch.finfo(dtype).tiny ** 0.5)
    right = torch.ones_like(left[0])
    pivots = []
    for k in range(count):
        pivots.append(torch.maximum(left[k, k], least))
        factor = left[k + 1 :, k] / pivots[k]
        left[k + 1 :, k + 1 :].addcmul_(factor[:, None], left[None, k, k + 1 :], value=-1)
        # What is left of a row that repeats earlier ones is rounding, on both sides.
        right[k + 1 :].addcmul_(factor, right[k], value=-1)
    for k in reversed(range(count)):
        rest = (left[k, k + 1 :] * right[k + 1 :]).sum(0)
        right[k].sub_(rest).div_(pivots[k])
    right.clamp_(min=0)
    return (right / right.sum(0)).T.float()


class _Patches:
    """The patches of one image's block: each is named by the number of its first voxel in the block as one row.

    Attributes:
        shape: of the block.
        row: the block, flat.
        mean: of the patch that begins at each voxel; those that wrap around an axis mean nothing.
        half_energy: half the sum of squares likewise.
        scale: 1 / standard deviation likewise, of a flat patch 1 / FLAT.
        flat: whether it is flat.
    """

    def __init__(self, image: torch.Tensor, radius: int) -> None:
        self.shape = tuple(image.shape)
        self.row = image.flatten()
        self.radius = radius
        size = (2 * radius + 1) ** image.ndim
        # float64, because a variance is the difference of two larger numbers; it is 1 % of the search's work.
        row = self.row if image.device.type == "mps" else self.row.double()
        windows = Windows(row, self.shape, radius)
        mean = windows.sums(row) / size
        energy = windows.sums(row * row)
        lost = len(row) - len(mean)
        self.half_energy = torch.nn.functional.pad((energy / 2).float(), (0, lost))
        variance = energy.sub_(size * mean * mean).div_(size - 1).clamp_(min=0)
        spread = torch.nn.functional.pad(variance.sqrt_().float(), (0, lost))
        self.mean = torch.nn.functional.pad(mean.float(), (0, lost))
        self.flat = spread < FLAT
        self.scale = spread.clamp_(min=FLAT).reciprocal_()
        steps = strides(self.shape)
        within = torch.cartesian_prod(*[step * torch.arange(2 * radius + 1) for step in steps]).reshape(-1, image.ndim)
        self._within = within.sum(1).to(image.device)

    def normal(self, first: torch.Tensor) -> torch.Tensor:
        """The patches (k, patch size) that begin at `first` (k,), with mean 0 and standard deviation 1."""
        values = self.row[first[:, None] + self._within]
        return values.sub_(self.mean[first][:, None]).mul_(self.scale[first][:, None])


def _best(target: _Patches, atlas: _Patches, first: torch.Tensor, search: Search) -> torch.Tensor:
    """Number of the shift that matches best, for the patches of the target that begin at `first`."""
    row = target.row
    windows = _RecordedSums(target.row, target.shape, target.radius)
    score = windows.result
    correlation = search.similarity == "correlation"
    if correlation:
        # (sum of t a - mean of t x sum of a) / standard deviation of a
        terms = [atlas.row, atlas.scale, atlas.mean * atlas.scale * search.patch_size(len(target.shape))]
    else:
        # sum of t a - half the sum of a^2, which is largest where the sum of (t - a)^2 is least
        terms = [atlas.row, atlas.half_energy]
    minus_mean = -target.mean[: len(score)]
    best, better = torch.full_like(score, -torch.inf), torch.empty_like(score)
    # Numbers grow from shift to shift, so that the last one that was better is the largest: no voxel needs a branch.
    number = torch.zeros_like(score)
    for k, (part, *rest) in enumerate(_shifted(terms, atlas.shape, target.shape, search.reach, len(score))):
        torch.mul(row, part, out=windows.row)
        windows.run()
        if correlation:
            score.mul_(rest[0]).addcmul_(minus_mean, rest[1])
        else:
            score.sub_(rest[0])
        torch.maximum(best, score, out=better)
        torch.maximum(number, score.gt_(best).mul_(k), out=number)
        best, better = better, best
    found = number[first].long()
    if correlation:
        found[target.flat[first]] = 0
    return found


def _shifted(
    terms: Sequence[torch.Tensor], wide: Sequence[int], shape: Sequence[int], reach: int, length: int
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Rows of a block of shape `wide` under each shift, in the order of `Search.shifts`, as rows of one of `shape`.

    The first is whole; the others are those of sums, whose first `length` numbers are wanted. Shifts along the first
    axis are parts of one row; only those along the others need a copy.
    """
    images = [one.view(*wide) for one in terms]
    ends = [math.prod(shape), *[length] * (len(terms) - 1)]
    still = (one[tuple(slice(reach, reach + n) for n in shape)].flatten() for one in images)
    yield tuple(one[:end] for one, end in zip(still, ends, strict=True))
    plane = math.prod(shape[1:])
    rows = [torch.empty((wide[0], *shape[1:]), device=terms[0].device) for _ in images]
    parts = [
        tuple(one.flatten()[k * plane :][:end] for one, end in zip(rows, ends, strict=True))
        for k in range(2 * reach + 1)
    ]
    for shift in itertools.product(range(2 * reach + 1), repeat=len(shape) - 1):
        place = (slice(None), *(slice(k, k + n) for k, n in zip(reversed(shift), shape[1:], strict=True)))
        for one, image in zip(rows, images, strict=True):
            one.copy_(image[place])
        middle = all(k == reach for k in shift)
        for k, part in enumerate(parts):
            if not (middle and k == reach):
                yield part


class _RecordedSums:
    """Window sums of a row as :class:`Windows` makes them, again and again of one buffer.

    The additions are cut out once, since slicing tensors takes as long as adding the few ten thousand numbers that a
    processor's cache holds.

    Attributes:
        row: what is summed; write into it, then `run`.
        result: the sums, of the window whose first voxel is number k.
    """

    def __init__(self, like: torch.Tensor, shape: Sequence[int], radius: int) -> None:
        self._buffers = [torch.empty_like(like) for _ in range(3)]
        self.row = self._buffers[0]
        self._steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        row = self.row
        for step in reversed(strides(shape)):
            row = self._along(row, 2 * radius + 1, step)
        self.result = row

    def run(self) -> None:
        """Sum what is in `row`; its content is lost."""
        add: Callable[..., torch.Tensor] = torch.add
        for one, other, out in self._steps:
            add(one, other, out=out)

    def _along(self, row: torch.Tensor, width: int, step: int) -> torch.Tensor:
        if width == 1:
            return row
        half = self._along(row, width // 2, step)
        length = row.shape[0] - (width // 2 * 2 - 1) * step
        shift = width // 2 * step
        used = {row.data_ptr(), half.data_ptr()}
        target = next(one for one in self._buffers if one.data_ptr() not in used)[:length]
        self._steps.append((half[:length], half[shift : shift + length], target))
        if width % 2 == 0:
            return target
        length -= step
        self._steps.append((target[:length], row[(width - 1) * step :], target[:length]))
        return target[:length]

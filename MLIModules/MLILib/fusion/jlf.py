"""Joint label fusion: atlases that look alike nearby err alike, so they share a vote; small shifts are searched.

H. Wang et al.: Multi-atlas segmentation with joint label fusion (IEEE TPAMI 35, 2013), in the form that ANTs gives it
(H. Wang and P. A. Yushkevich, Frontiers in Neuroinformatics 7, 2013): the labels of whole patches vote.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

from .. import device as devices
from ..errors import BadInput
from ..progress import Progress
from .raters import Consensus, Raters, Region, box_around

if TYPE_CHECKING:
    import torch

    from .patch_search import Search

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

#: Voxels of a block with its margins: what a core's cache holds several of, and what keeps a GPU busy.
_CPU_BLOCK, _GPU_BLOCK = 1 << 17, 1 << 21

#: Numbers in the patches, or in the matrices of expected errors, that are held at a time.
_CPU_NUMBERS, _GPU_NUMBERS = 1 << 21, 1 << 26

#: Share of the time that the search for matches takes; the rest is the vote.
_MATCHING = 0.8

#: Support that differs by less, as a share of the largest, differs by the rounding of float32 sums.
_ROUNDING = 1e-6


def jlf(
    raters: Raters,
    target: Floats,
    warped: Floats,
    *,
    patch_radius: int = 2,
    search_radius: int = 3,
    beta: float = 2.0,
    alpha: float = 0.1,
    similarity: str = "squares",
    probabilities: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> Consensus:
    """A vote of patches, in which atlases that are expected to err together share their weight.

    At each voxel each atlas is shifted so that its patch matches the target's best, and weights are found that make
    the expected error of the weighted vote least, see :func:`MLILib.fusion.patch_search.match`. The label of each voxel
    of a patch then counts with its atlas' weight; a voxel's support for a label is the sum over all patches that hold
    it. This is what `antsJointFusion` does, and differs in three things: images are first brought to mean 0 and
    standard deviation 1 each, around where atlases disagree; beyond its border an image goes on as it ends, where ANTs
    gives all atlases the same weight; and voxels to which all atlases give one label keep it.

    Assumes that images of the atlases are of the target's kind, but for brightness and contrast, and that registration
    is right to within the search radius.

    Args:
        raters: the atlases' labels on the target's grid.
        target: (z, y, x) or (y, x).
        warped: (atlases, ...), in the raters' order.
        patch_radius: voxels, 1 or more; a patch is 2 patch_radius + 1 voxels wide.
        search_radius: largest shift of an atlas along each axis, voxels; 0 for none.
        beta: exponent of the expected joint error, above 0; the larger, the more the best atlases count.
        alpha: added to each atlas' own expected error, 0 or more: the larger, the more all count alike.
        similarity: by which patches match: "squares" of differences, or "correlation", which takes no notice of slow
            changes of brightness, as a bias field's.
        probabilities: whether the share of the support of each label is wanted, too.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        progress: told a fraction; asked between blocks whether to stop.

    Returns:
        The consensus; its weights are the atlases' mean share where the vote was open.

    Raises:
        BadInput: a setting out of its range, images with voxels that are not numbers, a target without contrast where
            atlases disagree.

    Memory beside the arguments: for each voxel within a patch of disagreement 8 bytes an atlas, for each voxel of the
    box around them 6 bytes, and for each core some 60 MB (of 7 atlases; 120 MB of 20).
    """
    _check(raters, target, warped, patch_radius, search_radius, beta, alpha)
    from .patch_search import SIMILARITIES, Search

    if similarity not in SIMILARITIES:
        raise BadInput(f"Patches have no similarity {similarity!r}.", "", f"Choose {' or '.join(SIMILARITIES)}.")

    progress = progress or Progress()
    where = devices.resolve(device)
    levels, count = len(raters.labels) + 1, len(raters)
    indices = raters.stack[0].copy()
    shares = _hard(indices, levels) if probabilities else None
    disputed = ~raters.agreed()
    trust, ties = np.full(count, 1.0 / count), 0
    if disputed.any():
        search = Search(similarity, patch_radius, search_radius, beta, alpha)
        job = _Job(raters.stack, target, warped, disputed, search, where)
        trust = job.match(lambda done: progress.fraction(_MATCHING * done))
        ties = job.vote(indices, shares, lambda done: progress.fraction(_MATCHING + (1 - _MATCHING) * done))
    return Consensus(
        indices=indices,
        kept=np.ones(count, dtype=bool),
        region=raters.whole(),
        voxels=int(np.count_nonzero(disputed)),
        probabilities=shares,
        weights=trust,
        ties=ties,
        notes=_notes(ties),
    )


class _Job:
    """One fusion: the arrays that its blocks share, cut to where they matter.

    Args:
        stack: (n, z, y, x) labels.
        target, warped: images.
        disputed: (z, y, x), where the vote is open; true somewhere.
        search: what is compared.
        device: where it is computed.
    """

    def __init__(
        self,
        stack: npt.NDArray[Any],
        target: Floats,
        warped: Floats,
        disputed: Bools,
        search: Search,
        device: torch.device,
    ) -> None:
        import torch

        self._search, self._device, self._gpu = search, device, device.type != "cpu"
        centres = _widened(disputed, search.patch)
        # Wide enough for every patch and shift: a block that reaches beyond it has come to the border of the image.
        self.box = box_around(centres, search.patch + search.reach)
        self._images = [image[self.box] for image in (target, *warped)]
        self._labels = [one[self.box] for one in stack]
        self._disputed, self._centres = disputed[self.box], centres[self.box]
        self._standards = [_standard(image) for image in self._images]
        if self._standards[0][1] == 0.0:
            raise BadInput(
                "The target image has no contrast where the atlases disagree.",
                "All its voxels there have one value.",
                "Give another image, or choose a method that compares no images: majority, simple or staple.",
            )
        # The row of each centre in the tables; one row more, without weight, for all other voxels.
        rows = int(np.count_nonzero(self._centres))
        self._rows = np.full([n + 2 * search.patch for n in self._centres.shape], rows, dtype=np.int32)
        inner = tuple(slice(search.patch, search.patch + n) for n in self._centres.shape)
        self._rows[inner][self._centres] = np.arange(rows, dtype=np.int32)
        self._shift_numbers = torch.zeros((rows + 1, len(stack)), dtype=torch.int32, device=device)
        self._weights = torch.zeros((rows + 1, len(stack)), dtype=torch.float32, device=device)

    def match(self, told: Callable[[float], None]) -> npt.NDArray[np.float64]:
        """Find shifts and weights; the mean weight of each atlas."""
        self._each(_tiles(self._centres, self._width(self._search.patch)), self._match, told)
        return self._weights[:-1].mean(0).cpu().numpy().astype(np.float64)

    def vote(self, indices: npt.NDArray[Any], shares: Floats | None, told: Callable[[float], None]) -> int:
        """Write the labels, and the shares (levels, z, y, x), of the open voxels within the box; the number of ties."""

        def work(tile: Region) -> int:
            return self._vote(tile, indices, shares)

        return sum(self._each(_tiles(self._disputed, self._width(self._search.reach) // 2), work, told))

    def _match(self, tile: Region) -> int:
        import torch

        from .patch_search import match

        patch, reach = self._search.patch, self._search.reach
        target = self._standard_block(0, tile, patch)
        atlases = torch.stack([self._standard_block(i, tile, patch + reach) for i in range(1, len(self._images))])
        wanted = torch.from_numpy(self._centres[tile]).to(self._device)
        numbers = _GPU_NUMBERS if self._gpu else _CPU_NUMBERS
        chunk = max(numbers // (len(atlases) * max(len(atlases), self._search.patch_size(target.ndim))), 1)
        found, weights = match(target, atlases, wanted, self._search, chunk)
        inner = self._rows[tuple(slice(part.start + patch, part.stop + patch) for part in tile)]
        rows = torch.from_numpy(inner[self._centres[tile]]).long().to(self._device)
        self._shift_numbers[rows], self._weights[rows] = found, weights
        return len(rows)

    def _vote(self, tile: Region, indices: npt.NDArray[Any], shares: Floats | None) -> int:
        import torch

        patch, reach, dims = self._search.patch, self._search.reach, len(tile)
        labels = torch.from_numpy(np.stack([_cut(one, tile, reach) for one in self._labels]).astype(np.int64))
        # Few of the labels are here; the table of support has a column for each of these.
        present = torch.bincount(labels.flatten()).nonzero().flatten()
        columns = torch.zeros(int(present[-1]) + 1, dtype=torch.int64)
        columns[present] = torch.arange(len(present))
        labels, count = columns[labels].to(self._device), len(labels)

        halo = self._rows[tuple(slice(part.start, part.stop + 2 * patch) for part in tile)]
        rows = torch.from_numpy(halo.astype(np.int64)).flatten().to(self._device)
        wide, around = _steps(labels.shape[1:]), _steps(halo.shape)
        moves = (torch.tensor(self._search.shifts(dims)) * wide).sum(1).to(self._device)
        places = torch.arange(count, device=self._device) * labels[0].numel()
        sources = moves[self._shift_numbers[rows].long()] + places
        weights = self._weights[rows]

        open_here = self._disputed[tile]
        at = torch.from_numpy(np.argwhere(open_here))
        own = ((at + reach) * wide).sum(1, keepdim=True).to(self._device)
        first = (at * around).sum(1).to(self._device)
        table = torch.arange(len(at), device=self._device)[:, None] * len(present)
        support = torch.zeros(len(at) * len(present), device=self._device)
        flat = labels.flatten()
        for k in itertools.product(range(2 * patch + 1), repeat=dims):
            centre = first + int((torch.tensor(k) * around).sum())
            said = flat[sources[centre] + own]
            support.scatter_add_(0, said.add_(table).flatten(), weights[centre].flatten())
        votes = support.view(len(at), len(present))
        best = votes.amax(1, keepdim=True)
        near = (votes >= best * (1 - _ROUNDING)).to(torch.uint8)
        winner = present[near.argmax(1).cpu()].numpy()
        indices[self.box][tile][open_here] = winner
        if shares is not None:
            part = np.zeros((len(shares), len(at)), dtype=np.float32)
            part[present.numpy()] = (votes / votes.sum(1, keepdim=True)).T.cpu().numpy()
            shares[(slice(None), *self.box)][(slice(None), *tile)][:, open_here] = part
        return int((near.sum(1) > 1).sum())

    def _standard_block(self, which: int, tile: Region, margin: int) -> torch.Tensor:
        """An image with mean 0 and standard deviation 1, on a tile and some voxels around it."""
        import torch

        mean, spread = self._standards[which]
        block = _cut(self._images[which], tile, margin)
        return torch.from_numpy(((block - mean) / (spread or 1.0)).astype(np.float32)).to(self._device)

    def _width(self, margin: int) -> int:
        """Of the tiles, so that one with a margin fills the cache, or the GPU."""
        voxels = _GPU_BLOCK if self._gpu else _CPU_BLOCK
        return max(int(voxels ** (1 / self._disputed.ndim)) - 2 * margin, 8)

    def _each(self, tiles: Sequence[Region], work: Callable[[Region], int], told: Callable[[float], None]) -> list[int]:
        """The result of each tile; on a CPU, as many at a time as torch has threads, each on one core."""
        import torch

        threads = torch.get_num_threads()
        if self._gpu or threads < 2 or len(tiles) < 2:
            results = []
            for number, tile in enumerate(tiles, 1):
                results.append(work(tile))
                told(number / len(tiles))
            return results
        # Parts of one operation on several cores would wait for each other at the end of each, thousands of times.
        pool = concurrent.futures.ThreadPoolExecutor(
            threads, "mli-jlf", initializer=torch.set_num_threads, initargs=(1,)
        )
        try:
            futures = [pool.submit(work, tile) for tile in tiles]
            for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
                future.result()
                told(number / len(tiles))
            return [future.result() for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _widened(mask: Bools, by: int) -> Bools:
    return maximum_filter(mask.view(np.uint8), 2 * by + 1, mode="nearest").view(bool)


def _tiles(mask: Bools, width: int) -> list[Region]:
    """Boxes of at most `width` voxels along each axis that hold all true voxels, each as tight as it can be."""
    box = box_around(mask)
    cuts: list[list[slice]] = []
    for part in box:
        length = part.stop - part.start
        number = math.ceil(length / width)
        edges = [part.start + length * k // number for k in range(number + 1)]
        cuts.append([slice(a, b) for a, b in itertools.pairwise(edges)])
    found = []
    for tile in itertools.product(*cuts):
        inside = mask[tile]
        if inside.any():
            tight = box_around(inside)
            found.append(tuple(slice(t.start + i.start, t.start + i.stop) for t, i in zip(tile, tight, strict=True)))
    return found


def _cut(image: npt.NDArray[Any], tile: Region, margin: int) -> npt.NDArray[Any]:
    """A tile and a margin around it; beyond its border the image goes on as it ends."""
    reach = [(part.start - margin, part.stop + margin) for part in tile]
    if all(start >= 0 and stop <= n for (start, stop), n in zip(reach, image.shape, strict=True)):
        return image[tuple(slice(*ends) for ends in reach)]
    return image[np.ix_(*(np.arange(*ends).clip(0, n - 1) for ends, n in zip(reach, image.shape, strict=True)))]


def _steps(shape: Sequence[int]) -> torch.Tensor:
    import torch

    from ..registration.box import strides

    return torch.tensor(strides(shape))


def _standard(image: Floats) -> tuple[float, float]:
    """Mean and standard deviation."""
    mean = float(image.mean(dtype=np.float64))
    squares = sum(float(np.square(plane - mean, dtype=np.float64).sum()) for plane in image)
    return mean, math.sqrt(squares / image.size)


def _hard(indices: npt.NDArray[Any], levels: int) -> Floats:
    """Each voxel's whole share for its label, (levels, z, y, x)."""
    shares = np.empty((levels, *indices.shape), dtype=np.float32)
    for level, share in enumerate(shares):
        share[...] = indices == level
    return shares


def _notes(ties: int) -> tuple[str, ...]:
    if not ties:
        return ()
    return (f"In {ties:,} voxel{'s' * (ties != 1)} labels had the same support; the lowest value won.",)


def _check(
    raters: Raters, target: Floats, warped: Floats, patch_radius: int, search_radius: int, beta: float, alpha: float
) -> None:
    shape = raters.stack.shape
    if target.shape != shape[1:] or warped.shape != shape:
        msg = f"raters have shape {shape}, the target {target.shape} and the atlases {warped.shape}"
        raise ValueError(msg)
    if patch_radius < 1:
        raise BadInput(
            "A patch of one voxel cannot be compared.",
            "Joint label fusion looks at the contrast within a patch.",
            "Give a patch radius of 1 or more.",
        )
    if search_radius < 0 or not 0 < beta < math.inf or not 0 <= alpha < math.inf:
        raise BadInput(
            f"There is no joint label fusion with search radius {search_radius}, beta {beta:g} and alpha {alpha:g}.",
            "",
            "Give a search radius and alpha of 0 or more, and beta above 0.",
        )
    for whose, image in (("the target", target), *zip(raters.names, warped, strict=True)):
        if not np.isfinite(image).all():
            raise BadInput(
                f"The image of {whose} has voxels that are not numbers.",
                "Such images cannot be compared.",
                "Fill them, or choose a method that compares no images: majority, simple or staple.",
            )

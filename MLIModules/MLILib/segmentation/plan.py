"""The plan of a training: spacing, patch, depth, batch and network, from the data set's fingerprint and the memory.

Follows nnU-Net (Isensee 2021): the patch covers the median case where it can, an axis is pooled while four voxels are
left and its spacing is not far above the others', then patch and batch are fitted to the memory at hand.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from ..errors import BadInput, OutOfMemory
from . import networks
from .dataset import Dataset, Fingerprint

#: Most voxels in a patch: 128^3 in 3-D, 512^2 in 2-D.
_MOST_VOXELS = {2: 512 * 512, 3: 128**3}
#: A patch is made no narrower than this for the memory's sake, voxels.
_NARROWEST = 16
#: Voxels that must be left after pooling, and most poolings of an axis.
_FEWEST_LEFT, _MOST_POOLS = 4, 5
#: An axis whose voxels are so much longer than the shortest is neither pooled nor convolved along.
_ANISOTROPY = 2.0
_LEVELS = 4

#: Cases a step: nnU-Net's least number, and a slice's that many times as cheap as a volume's.
_FEWEST_CASES = {2: 8, 3: 2}
_MOST_CASES = 64
#: Share of all voxels of the data set that a step may look at (nnU-Net).
_SHARE_OF_DATA = 0.05
#: Share of the free memory that a training may take; bytes a parameter takes (weights, gradient, two moments, mean).
_SHARE_OF_MEMORY, _BYTES_A_PARAMETER = 0.7, 20


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained: plain values, kept with the checkpoint so that a resumed training is the same one."""

    dimensions: int
    spacing: tuple[float, ...]
    patch: tuple[int, ...]
    network: dict[str, Any]
    mirror_axes: tuple[int, ...]
    reasons: tuple[str, ...]
    batch: int = 2

    def to_json(self) -> str:
        """The plan as text, for the checkpoint."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan that :meth:`to_json` wrote."""
        values = json.loads(text)
        kept: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**kept)


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a training may take, and how to find out what a network takes.

    Attributes:
        free: bytes.
        gpu: whether a larger batch makes use of the device; on a CPU it only takes longer.
        need: (network's definition, patch) to (number of parameters, bytes of activations for each voxel of a step).
    """

    free: int
    gpu: bool
    need: Callable[[dict[str, Any], Sequence[int]], tuple[int, float]]


def make_plan(
    dataset: Dataset,
    shape: Fingerprint,
    filters: int,
    *,
    network: str = networks.NETWORKS[0],
    dropout: float = 0.0,
    batch: int = 0,
    patch: Sequence[int] = (),
    memory: Memory | None = None,
) -> Plan:
    """Choose patch, depth, batch, network and mirroring.

    Only the first axis (left-right in RAS order) is mirrored: a mirrored hippocampus is one of the other side, while a
    back-to-front one is not anatomy.

    Args:
        dataset: what is learnt.
        shape: its fingerprint.
        filters: feature maps of the first level.
        network: one of :data:`networks.NETWORKS`.
        dropout: probability that a feature is dropped.
        batch: cases a step; 0 chooses.
        patch: size wanted, one number for all axes or one each; () chooses.
        memory: at hand; None plans as if it were without end.

    Raises:
        BadInput: a patch of another dimension than the cases.
        OutOfMemory: not even the smallest patch has room.
    """
    dims = shape.dimensions
    if len(patch) not in (0, 1, dims):
        raise BadInput(
            f"The patch has {len(patch)} numbers, and the cases are {dims}-D.", "", f"Give one number, or {dims}."
        )

    def designed(size: Sequence[int]) -> tuple[tuple[int, ...], dict[str, Any], networks.Shape]:
        return _designed(dataset, shape, size, filters, network, dropout)

    def shrunk(size: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, Any], networks.Shape] | None:
        """The next smaller patch; rounding up may need several steps to get there."""
        target = list(size)
        while (next_target := _smaller(target, shape)) != target:
            target = next_target
            found = designed(target)
            if _product(found[0]) < _product(size):
                return found
        return None

    wanted = tuple(patch) * dims if len(patch) == 1 else tuple(patch)
    patch, chosen, build = designed(wanted or shape.shape)
    while not wanted and _product(patch) > _MOST_VOXELS[dims] and (less := shrunk(patch)):
        patch, chosen, build = less
    multiple = f"rounded up to a multiple of {_text(networks.divisors(network, build))}"
    why = f"the median size {_text(shape.shape)} {multiple}"
    if wanted:
        why = "as asked for" if patch == wanted else f"as asked for, {multiple}"
    elif _product(patch) < _product(shape.shape):
        why = f"{_MOST_VOXELS[dims]:,} voxels at most, of the median size {_text(shape.shape)}"
    cases, said = batch, "as asked for"
    if not batch:
        cases, said = _FEWEST_CASES[dims], "more pay on a GPU only, where steps of many cases take no longer"
    room = ""
    if memory is not None:
        parameters, voxel = memory.need(chosen, patch)
        budget = _SHARE_OF_MEMORY * memory.free - parameters * _BYTES_A_PARAMETER
        while not batch and cases > 2 and cases * _product(patch) * voxel > budget:
            cases, said = max(2, cases // 2), "what the memory has room for"
        while cases * _product(patch) * voxel > budget:
            less = shrunk(patch)
            if less is None:
                raise OutOfMemory(
                    f"There is no room to train {network}: {memory.free / 2**30:.1f} GiB are free.",
                    f"{cases} patches of {_text(patch)} take {cases * _product(patch) * voxel / 2**30:.1f} GiB.",
                    "Choose a smaller network, fewer --filters, --batch 1, or a device with more memory.",
                )
            patch, chosen, build = less
            why = "the largest that the memory has room for"
        if memory.gpu and not batch:
            share = int(_SHARE_OF_DATA * shape.voxels / _product(patch))
            fits = int(budget / (_product(patch) * voxel))
            more = min(share, fits, _MOST_CASES)
            if more > cases:
                cases = more
                said = "what the memory has room for" if fits <= share else "5 % of the data set's voxels a step"
        room = (
            f"; about {(cases * _product(patch) * voxel + parameters * _BYTES_A_PARAMETER) / 2**30:.1f} of "
            f"{memory.free / 2**30:.1f} GiB free"
        )
    reasons = (
        f"spacing {_text(shape.spacing)} mm: {shape.note}",
        f"patch {_text(patch)}: {why}",
        networks.describe(network, chosen)
        + (": pooled while 4 voxels are left" if network in ("dynunet", "unet", "segresnet") else ""),
        f"{cases} cases a step: {said}{room}",
    )
    return Plan(shape.dimensions, shape.spacing, patch, chosen, (0,), reasons, cases)


def _designed(
    dataset: Dataset, shape: Fingerprint, size: Sequence[int], filters: int, network: str, dropout: float
) -> tuple[tuple[int, ...], dict[str, Any], networks.Shape]:
    """Patch, network and its shape for cases of `size` voxels."""
    fine = min(shape.spacing)
    least = [networks.narrowest(network) if s < _ANISOTROPY * fine else 1 for s in shape.spacing]
    wanted = [max(a, n) for a, n in zip(least, size, strict=True)]
    strides, kernels = pooling(wanted, shape.spacing)
    build = networks.Shape(len(dataset.channels), len(dataset.labels) + 1, strides, kernels, filters, dropout)
    patch = tuple(-(-n // d) * d for n, d in zip(wanted, networks.divisors(network, build), strict=True))
    return patch, networks.definition(network, build), build


def pooling(
    size: Sequence[int], spacing: Sequence[float]
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Strides and kernel widths of each level, the first level's strides 1.

    An axis is halved while at least four voxels are left and its voxels are less than twice as long as the shortest of
    the axes that can still be halved; kernels are one voxel wide along an axis whose voxels are still that long.
    """
    dims = len(size)
    left, length = [float(n) for n in size], [float(s) for s in spacing]
    strides = [(1,) * dims]
    kernels = [_kernel(length)]
    pools = [0] * dims
    while True:
        able = [k for k in range(dims) if left[k] / 2 >= _FEWEST_LEFT and pools[k] < _MOST_POOLS]
        if not able:
            return tuple(strides), tuple(kernels)
        fine = min(length[k] for k in able)
        halved = [k for k in able if length[k] < _ANISOTROPY * fine]
        for k in halved:
            left[k] /= 2
            length[k] *= 2
            pools[k] += 1
        strides.append(tuple(2 if k in halved else 1 for k in range(dims)))
        kernels.append(_kernel(length))


def _kernel(length: Sequence[float]) -> tuple[int, ...]:
    return tuple(3 if n < _ANISOTROPY * min(length) else 1 for n in length)


def _smaller(patch: Sequence[int], shape: Fingerprint) -> list[int]:
    """The patch without a part of the axis that covers most of the median case."""
    out = list(patch)
    order = sorted(range(len(out)), key=lambda k: (out[k] / shape.shape[k], out[k]), reverse=True)
    axis = next((k for k in order if out[k] > _NARROWEST), order[0])
    step = max(8, out[axis] // 8)
    out[axis] = max(min(_NARROWEST, out[axis]), out[axis] - step)
    return out


def unet(channels: int, classes: int, patch: Sequence[int], filters: int) -> dict[str, Any]:
    """The module's own network for patches of a given size, of four levels.

    Args:
        channels: of the image.
        classes: labels with the background.
        patch: the size it will see, voxels.
        filters: feature maps of the first level.
    """
    dims = len(patch)
    strides = [(1,) * dims]
    size = list(patch)
    for _ in range(_LEVELS - 1):
        stride = tuple(2 if n % 2 == 0 and n // 2 >= _FEWEST_LEFT else 1 for n in size)
        size = [n // s for n, s in zip(size, stride, strict=True)]
        strides.append(stride)
    shape = networks.Shape(channels, classes, tuple(strides), ((3,) * dims,) * _LEVELS, filters)
    return networks.definition("dynunet", shape)


def _product(values: Sequence[int]) -> int:
    out = 1
    for v in values:
        out *= v
    return out


def _text(values: Any) -> str:
    return " x ".join(f"{v:g}" for v in values)


def read_plan(path: Path) -> Plan:
    """The plan that a checkpoint was made with: memory at hand may be another by now."""
    return Plan.from_json(torch.load(path, map_location="cpu", weights_only=True)["plan"])

"""Occlusion: how much the score falls when a window of the image is covered (Zeiler and Fergus 2014, section 4.2).

The window walks over the image; each voxel gets the mean fall over the windows that cover it. Windows go through the
network many at a time, as many as fit into memory, and are computed only as far as they change anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ..errors import BadInput
from ..progress import Progress
from .fill import Fill, filled
from .local import Changed, Clean
from .scoring import Score, batch_size, require_evaluation, require_image, scores

Window = tuple[slice, ...]


@torch.no_grad()
def occlusion(
    network: nn.Module,
    image: torch.Tensor,
    score: Score,
    *,
    window: int | Sequence[int] = 8,
    stride: int | Sequence[int] = 4,
    fill: Fill | torch.Tensor = "constant",
    value: float = 0.0,
    sigma: float = 4.0,
    each_channel: bool = False,
    memory: int | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """The fall of the score under a window that covers the image piece by piece.

    Args:
        network: in evaluation mode.
        image: (N, C, *shape), in the network's own input space.
        score: turns the network's output into (N,).
        window: edge length in voxels, or one for each axis.
        stride: voxels from one window to the next, or one for each axis; at most `window`, or voxels would be left out.
        fill: what a covered voxel becomes, see :func:`MLILib.explanation.fill.filled`.
        value: intensity of the fill "constant".
        sigma: standard deviation in voxels of the fill "blur".
        each_channel: cover one channel at a time instead of all together.
        memory: bytes that a batch of windows may take; by default half of what is free, 1 GiB at most.
        progress: told how far it is.

    Returns:
        (N, 1, *shape), or (N, C, *shape) with `each_channel`: positive where the image speaks for the score.

    Raises:
        BadInput: a window or stride that does not suit the image, or a fill that does not exist.
    """
    require_evaluation(network)
    require_image(image)
    shape = tuple(image.shape[2:])
    sizes = _per_axis("window", window, shape)
    steps = _per_axis("stride", stride, shape)
    _require_cover(sizes, steps, shape)
    progress = progress or Progress()
    places = list(windows(shape, sizes, steps))
    channels: list[slice] = [slice(None)]
    if each_channel:
        channels = [slice(c, c + 1) for c in range(image.shape[1])]
    at_once = batch_size(network, image[:1], memory)
    count = torch.zeros(shape, dtype=torch.float64, device=image.device)
    for place in places:
        count[place] += 1
    maps = []
    total = len(image) * len(channels)
    cover = filled(image, fill, value=value, sigma=sigma)
    for number, (index, channel) in enumerate(itertools.product(range(len(image)), channels)):
        one = image[index : index + 1]
        clean = scores(network, one, score).double()
        fall = torch.zeros(shape, dtype=torch.float64, device=image.device)
        boxes = [(channel, *place) for place in places]
        changed = [box for box in boxes if not torch.equal(one[0][box], cover[index][box])]
        clean_layers = Clean()
        for begin in range(0, len(changed), at_once):
            progress.fraction((number + begin / len(changed)) / total)
            some = changed[begin : begin + at_once]
            batch = _covered(one, cover[index], some, sizes, clean_layers)
            for box, found in zip(some, scores(network, batch, score).double(), strict=True):
                fall[box[1:]] += clean[0] - found
        maps.append((fall / count).to(image.dtype))
    progress.fraction(1.0)
    return torch.stack(maps).reshape(len(image), len(channels), *shape)


def _covered(
    image: torch.Tensor, cover: torch.Tensor, boxes: Sequence[Window], size: tuple[int, ...], clean: Clean
) -> torch.Tensor:
    """The image (1, C, *shape) in as many copies as there are boxes (channels, *place), each covered in its box."""
    patches, starts = [], []
    for box in boxes:
        # A window that the border cuts off is taken with what lies before it: all patches have one size.
        start = tuple(
            p.stop - edge if p.stop == n else p.start for p, edge, n in zip(box[1:], size, image.shape[2:], strict=True)
        )
        around = image[0][(slice(None), *(slice(at, at + edge) for at, edge in zip(start, size, strict=True)))].clone()
        inside = tuple(slice(p.start - at, p.stop - at) for p, at in zip(box[1:], start, strict=True))
        around[(box[0], *inside)] = cover[box]
        patches.append(around)
        starts.append(start)
    return Changed(image, torch.stack(patches), starts, clean)


def windows(shape: Sequence[int], size: Sequence[int], stride: Sequence[int]) -> Iterator[Window]:
    """Where the window stops, in raster order; the last of an axis is cut off at the image's border.

    Args:
        shape: of the image, voxels.
        size: of the window, voxels.
        stride: voxels from one to the next.
    """
    along = []
    for length, edge, step in zip(shape, size, stride, strict=True):
        stops = -(-(length - edge) // step) + 1
        along.append([slice(i * step, min(i * step + edge, length)) for i in range(stops)])
    return itertools.product(*along)


def _per_axis(what: str, given: int | Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    numbers = (given,) * len(shape) if isinstance(given, int) else tuple(given)
    if len(numbers) != len(shape) or min(numbers) < 1:
        raise BadInput(
            f"The {what} {given} does not suit an image of {_by(shape)}.",
            "",
            f"Give one length of at least 1 voxel, or {len(shape)} of them.",
        )
    return numbers


def _require_cover(size: tuple[int, ...], stride: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if any(edge > length for edge, length in zip(size, shape, strict=True)):
        raise BadInput(
            f"A window of {_by(size)} does not fit into an image of {_by(shape)}.", "", "Choose a smaller window."
        )
    if any(step > edge for step, edge in zip(stride, size, strict=True)):
        raise BadInput(
            f"A stride of {_by(stride)} leaves voxels between windows of {_by(size)} that are never covered.",
            "",
            "Choose a stride of at most the window's size.",
        )


def _by(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))

"""What a registration minimises: a similarity's loss on images or on their features, on one scale for all.

The weights bring the losses to one scale, so that a regularisation of 1 means much the same with each. They were chosen
on pairs of hippocampi that no figure is measured on.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .lncc import lncc
from .mind import mind_ssc
from .similarity import loss

#: Factor of each loss; intensities run from 0 to 1.
WEIGHTS = {"ssd": 36.0, "sad": 6.0, "cc": 4.0, "lncc": 16.0, "je": 2.0, "mi": 4.0, "nmi": 8.0, "mind": 12.0}
#: Of the two parts of "ssd+lncc".
SUM = {"ssd": 18.0, "lncc": 8.0}
#: Windows of the local correlation whose variance is below this share of the image's count less: they hold noise.
FLOOR = 1e-3
RADIUS = 1
HISTOGRAMS = ("je", "mi", "nmi")
#: Similarities that need each voxel's neighbours in the warped image, so that no voxels can be left out.
DENSE = ("lncc", "ssd+lncc")


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A similarity as an optimiser sees it.

    Attributes:
        name: a similarity, or "ssd+lncc".
    """

    name: str

    @property
    def oriented(self) -> bool:
        """Whether features depend on the axes and voxels of the grid that they are made on."""
        return self.name == "mind"

    def features(self, image: Tensor) -> Tensor:
        """What is warped and compared: the image, or its descriptors. (N, C, *shape)."""
        return mind_ssc(image) if self.name == "mind" else image

    def __call__(self, fixed: Tensor, moving: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of features on one grid, (N,). `mask` (N, 1, *shape) weighs the voxels."""
        if self.name == "ssd+lncc":
            return SUM["ssd"] * loss("ssd", fixed, moving, mask) + SUM["lncc"] * (
                1 - lncc(fixed, moving, mask, radius=RADIUS, floor=FLOOR)
            )
        if self.name == "mind":
            return WEIGHTS["mind"] * loss("ssd", fixed, moving, mask)
        if self.name == "lncc":
            return WEIGHTS["lncc"] * (1 - lncc(fixed, moving, mask, radius=RADIUS, floor=FLOOR))
        options = {"fixed_range": (0.0, 1.0), "moving_range": (0.0, 1.0)} if self.name in HISTOGRAMS else {}
        return WEIGHTS[self.name] * loss(self.name, fixed, moving, mask, **options)


def normalised(image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Intensities from 0 to 1 between the 0.5th and the 99.5th percentile of each image, clamped. (N, C, *shape).

    With a mask, (1, 1, *shape) of 0 and 1, they are those of a single image's voxels inside.
    """
    flat = image.flatten(1).float() if mask is None else image[:1, :1][mask > 0].float()[None]
    step = max(1, flat.shape[1] // 200_000)  # percentiles of every n-th voxel are those of all, to a thousandth
    ends = torch.quantile(flat[:, ::step], torch.tensor([0.005, 0.995], device=flat.device), dim=1)
    shape = (-1, *[1] * (image.ndim - 1))
    if not (ends[1] > ends[0]).all():  # nearly all voxels are alike: the few others are what there is to see
        extremes = torch.stack((flat.amin(1), flat.amax(1)))
        ends = torch.where(ends[1] > ends[0], ends, extremes)
    low, high = ends[0].view(shape), ends[1].view(shape)
    return ((image.float() - low) / (high - low).clamp_min(1e-12)).clamp_(0, 1)


def matched(moving: Tensor, overlap: Tensor, fixed: Tensor, mask: Tensor) -> Tensor:
    """The moving image with intensities that agree with the fixed one's: quantiles onto quantiles, piecewise linear.

    Histogram matching (Nyul and Udupa 1999), on the voxels that both images show.

    Args:
        moving: (N, 1, *its shape).
        overlap: the moving image on the fixed grid, (N, 1, *shape).
        fixed: (N or 1, 1, *shape).
        mask: voxels of the overlap, (N, 1, *shape).
    """
    out = torch.empty_like(moving)
    levels = torch.linspace(0.02, 0.98, 25, device=moving.device)
    for i in range(len(moving)):
        inside = mask[i] > 0
        theirs, ours = overlap[i][inside], fixed[min(i, len(fixed) - 1)][inside]
        step = max(1, len(theirs) // 200_000)
        if len(theirs) < 100:
            out[i] = moving[i]
            continue
        a = torch.quantile(theirs[::step], levels)
        b = torch.quantile(ours[::step], levels)
        values = moving[i].flatten()
        upper = torch.searchsorted(a, values.contiguous()).clamp(1, len(levels) - 1)
        share = ((values - a[upper - 1]) / (a[upper] - a[upper - 1]).clamp_min(1e-6)).clamp(-2, 2)
        out[i] = (b[upper - 1] + share * (b[upper] - b[upper - 1])).view_as(moving[i])
    return out

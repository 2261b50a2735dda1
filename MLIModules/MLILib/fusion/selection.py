"""Choosing atlases before they are registered: those that look most like the target after an affine registration.

After Aljabar, Heckemann, Hammers, Hajnal and Rueckert (2009): a few similar atlases are better than many of any kind,
and cost less time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import SimpleITK as sitk

from ..progress import Progress
from ..registration.comparison import compare
from ..registration.pairwise import register
from ..registration.quality import MOST_VOXELS, similarities

#: The preset that the images are compared after, and the share of the voxels that it looks at: this is no result.
PRESET, SAMPLING = "affine", 0.1
#: What they are compared by: of images of one kind or of several, whatever their intensities are.
SIMILARITY = "nmi"


def likeness(
    target: sitk.Image, atlas: sitk.Image, *, device: str = "auto", seed: int = 0, progress: Progress | None = None
) -> float:
    """How much an atlas image looks like the target after an affine registration; higher is more.

    Voxels that the atlas does not show count as unlike: the similarity is multiplied by the share of the smaller
    image that the other covers.

    Args:
        target: scalar image, 2-D or 3-D.
        atlas: of the same dimension, on any grid.
        device: as everywhere.
        seed: of the registration's random samples.
        progress: told of the registration's stages.

    Returns:
        Normalised mutual information above that of unrelated images, 0 to 1, times the covered share; 0 where nothing
        is covered.

    Raises:
        MLIError: they cannot be registered.
    """
    found = register(target, atlas, preset=PRESET, sampling=SAMPLING, device=device, seed=seed, progress=progress)
    compared = compare(target, atlas, found.transform)
    _, after = similarities(compared.coarser(MOST_VOXELS), (SIMILARITY,))
    value = (after[SIMILARITY] - 1.0) * compared.covered[1]  # 1 is what images without anything in common have
    return value if math.isfinite(value) else 0.0


def most_alike(scores: Sequence[float], count: int) -> list[int]:
    """The numbers of the `count` highest scores, in their order among the atlases; of equal ones the first."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(ranked[:count])

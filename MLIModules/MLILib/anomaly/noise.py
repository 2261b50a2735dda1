"""What is added to normal images so that a denoising autoencoder learns to take it away again.

Blobs of one brightness and random outline, from a few pixels to half an image: random fields of a random coarseness (as
the noise of Kascenas 2022), cut at a random level. Lesions look more like these than like the fields themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

#: Cells of the random field across an image, fewest and most: few make large blobs.
_CELLS = (2, 26)
#: Blob fields in one image, at most.
_MOST = 3
#: How sharply a blob ends.
_STEEP = 8.0
#: Share of blobs that are brighter where bright ones are looked for; of both where both are.
_SHARE = {"bright": 0.75, "dark": 0.25, "both": 0.5}


def blobs(count: int, size: int, amplitude: float, tail: str, generator: torch.Generator) -> Tensor:
    """Departures to be added to images, (count, 1, size, size).

    Args:
        count: of images.
        size: their side.
        amplitude: of the strongest blob.
        tail: "bright", "dark" or "both": what is looked for is added more often.
        generator: of the random numbers.
    """
    out = torch.zeros(count, 1, size, size)
    for i in range(count):
        for _ in range(int(torch.randint(1, _MOST + 1, (), generator=generator))):
            coarse, level, height, sign = torch.rand(4, generator=generator).tolist()
            cells = int(_CELLS[0] + coarse**1.5 * (_CELLS[1] - _CELLS[0]))
            field = torch.randn(1, 1, cells, cells, generator=generator)
            smooth = functional.interpolate(field, (size, size), mode="bicubic")[0]
            strength = amplitude * height * (1.0 if sign < _SHARE[tail] else -1.0)
            out[i] += strength * torch.sigmoid(_STEEP * (smooth - (0.3 + 1.5 * level)))
    return out

"""What MONAI needs to prepare images as these models want them; MLI itself calls :mod:`.intensity`.

Named by a bundle's configuration, so that it also runs in MONAI.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform

from . import intensity


class NormaliseVolumed(MapTransform):
    """A volume (1, ...) with the peak of its histogram at 0, in -1 to 1; see :func:`.intensity.normalise_volume`.

    Args:
        keys: of the images.
    """

    def __init__(self, keys: Sequence[Hashable]) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            array = np.asarray(out[key][0], np.float32)
            out[key] = torch.from_numpy(intensity.normalise_volume(array, intensity.foreground(array)))[None]
        return out

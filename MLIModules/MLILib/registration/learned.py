"""Registration by a trained network: a bundle and two images in, the displacement on the fixed image's grid out.

Both images are laid on one axis-aligned grid at the network's spacing, centre on centre or as the caller says (see
:mod:`.placement`), and taken whole: a network sees everything at once, whatever the images' size, order of axes,
spacing or direction. No labels are asked for.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from .. import bundles, images
from ..bundles import Bundle
from ..device import amp_dtype, resolve
from ..errors import BadInput
from ..geometry import Grid, to_zyx
from .atlas_istn import AtlasISTN
from .fields import carry
from .networks import Prediction
from .placement import MULTIPLE, centred, network_grid, normalised, placed, snapped
from .sampling import index_matrix, linear_of_index_matrix

#: Networks kept between requests.
_KEPT = 3
#: Images this many times as long as the network's canvas are unlike anything it was trained on.
_TOO_LONG = 1.5


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a network found.

    Attributes:
        displacement: (1, d, *shape), voxels of the fixed grid; None where the network finds a linear map only.
        linear: fixed to moving point, LPS mm, (d + 1, d + 1): what the network found, or what it started from where
            there is a displacement, which acts first: T(p) = linear(p + D(p)).
        warnings: sentences.
    """

    displacement: Tensor | None
    linear: np.ndarray
    warnings: tuple[str, ...]


_networks: OrderedDict[tuple[str, str, bool], torch.nn.Module] = OrderedDict()


def find(model: str, *, trust: Sequence[str] = ()) -> Bundle:
    """The registration bundle called `model`: a shipped or imported name, a folder or a zip.

    Raises:
        BadInput: unknown, damaged, or not for registration.
    """
    bundle = bundles.find(model, trust=trust)
    if not bundle.is_registration or "registration" not in bundle.metadata.get("mli", {}):
        raise BadInput(
            f"The model {bundle.name} is not for registration.",
            f"It is for: {bundle.task}.",
            "See mli models list, or train one with mli train registration.",
        )
    return bundle


def predict(
    fixed: sitk.Image,
    moving: sitk.Image,
    model: str,
    *,
    linear: np.ndarray | None = None,
    device: str = "cpu",
    trust: Sequence[str] = (),
) -> Learned:
    """Register `moving` to `fixed` with a trained network.

    Args:
        fixed: 2-D or 3-D image; a network of several channels takes vector images.
        moving: of the same dimension and channels, on any grid.
        model: name, folder or zip of a bundle.
        linear: where to start: fixed to moving point, LPS mm, (d + 1, d + 1); None lays centre on centre, as the
            network was trained.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        trust: sha256 of bundles whose configuration may name any callable.

    Raises:
        BadInput: the model is not one for registration, or the images are not of its dimension or channels, or hold
            values that are not numbers.
    """
    bundle = find(model, trust=trust)
    for image, name in ((fixed, "fixed"), (moving, "moving")):
        _check(image, name, bundle)
    target = resolve(device)
    network = _network(bundle, target)
    spacing, size = _canvas(bundle)
    fixed_grid, moving_grid = Grid.of(fixed), Grid.of(moving)
    start = centred(fixed_grid, moving_grid) if linear is None else np.asarray(linear, dtype=np.float64)
    grows = not isinstance(network, AtlasISTN)  # an atlas has one size
    grid = network_grid([fixed_grid, moving_grid] if grows else [fixed_grid], spacing, size, MULTIPLE, grows=grows)
    through, shift = snapped(start, grid, moving_grid)
    pair = [
        placed(normalised(to_zyx(image)), index_matrix(grid, own, map_), grid.shape).to(target)
        for image, own, map_ in ((fixed, fixed_grid, None), (moving, moving_grid, through))
    ]
    dtype = amp_dtype(target)
    with torch.inference_mode(), torch.autocast(target.type, dtype=dtype, enabled=dtype is not None):
        prediction: Prediction = network(*pair)
    warnings = tuple(_warnings(bundle, (fixed_grid, moving_grid), spacing, size))
    if prediction.linear is not None:
        found = linear_of_index_matrix(grid, grid, prediction.linear.cpu())[0].numpy()
        return Learned(None, through @ found, warnings)
    # The network's map is that of `through`, which shifts first; the caller's starts from `start`.
    u = carry(prediction.displacement.float().cpu(), index_matrix(fixed_grid, grid), fixed_grid.shape)
    d = fixed_grid.dimension
    voxels = np.linalg.solve(fixed_grid.matrix()[:d, :d], shift)[::-1]
    u = u + torch.tensor(voxels.copy(), dtype=u.dtype).view(1, d, *[1] * d)
    return Learned(u, start, warnings)


def _network(bundle: Bundle, device: torch.device) -> torch.nn.Module:
    key = (bundle.sha256, str(device), bundle.trusted)
    if key not in _networks:
        _networks[key] = bundles.network(bundle, device)
        while len(_networks) > _KEPT:
            _networks.popitem(last=False)
    _networks.move_to_end(key)
    return _networks[key]


def _canvas(bundle: Bundle) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Spacing (mm) and size (voxels) of what the network was trained on, (x, y, z)."""
    said: dict[str, Any] = bundle.metadata["mli"]["registration"]
    try:
        spacing = tuple(float(s) for s in said["spacing"])
        size = tuple(int(n) for n in said["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f'The model {bundle.name} does not say its "spacing" and "size".',
            'They belong under "mli" -> "registration" in configs/metadata.json.',
            "Ask its authors for a complete model.",
        ) from error
    good = len(spacing) == len(size) == bundle.dimensions and min(spacing) > 0 and min(size) > 0
    if not good or any(n % MULTIPLE for n in size):
        raise BadInput(
            f"The model {bundle.name} says the spacing {spacing} and the size {size}.",
            f"They should be {bundle.dimensions} positive numbers each, sizes multiples of {MULTIPLE}.",
            "Ask its authors for a complete model.",
        )
    return spacing, size


def _check(image: sitk.Image, name: str, bundle: Bundle) -> None:
    if image.GetDimension() != bundle.dimensions:
        raise BadInput(
            f"The {name} image is {image.GetDimension()}-D, but the model {bundle.name} is {bundle.dimensions}-D.",
            "",
            "Give images of the model's dimension.",
        )
    channels = len(bundle.channels) // 2
    if image.GetNumberOfComponentsPerPixel() != channels:
        raise BadInput(
            f"The {name} image has {image.GetNumberOfComponentsPerPixel()} values a voxel, "
            f"but the model {bundle.name} takes {channels}.",
            "",
            "Give images of the kind the model was trained on.",
        )
    images.check(image, f"The {name} image")


def _warnings(bundle: Bundle, grids: Sequence[Grid], spacing: Sequence[float], size: Sequence[int]) -> list[str]:
    found = []
    trained = np.asarray(spacing) * np.asarray(size)
    for grid, name in zip(grids, ("fixed", "moving"), strict=True):
        extent = np.sort(np.asarray(grid.size) * np.asarray(grid.spacing))
        if (extent > _TOO_LONG * np.sort(trained)).any():
            shown = " x ".join(f"{e:.0f}" for e in np.asarray(grid.size) * np.asarray(grid.spacing))
            most = " x ".join(f"{e:.0f}" for e in trained)
            found.append(
                f"The {name} image is {shown} mm large, the model {bundle.name} was trained on at most {most} mm: "
                "crop it to what the model knows, or do not rely on the result."
            )
    return found

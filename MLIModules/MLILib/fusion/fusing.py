"""Fusing labels by any method: the one place that knows which function a method's name stands for.

Example, in a script::

    found = propagate(target, [(image, labels), ...])
    result = fuse(found.raters, method="jlf", target=found.target, warped=found.warped)
    sitk.WriteImage(result.labels, "consensus.nii.gz")
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from .. import device as devices
from ..errors import BadInput
from ..geometry import from_array, same_grid
from ..progress import Progress
from .methods import METHODS
from .raters import Consensus, Raters, Region, raters
from .requests import REGIONS

Floats = npt.NDArray[np.float32]

#: Where each method is: imported when it is asked for, since some need torch or scipy.
_PLACES = {
    "majority": ("voting", "majority"),
    "weighted": ("voting", "weighted"),
    "local": ("voting", "local"),
    "simple": ("simple", "simple"),
    "staple": ("staple", "staple"),
    "jlf": ("jlf", "jlf"),
    "deepstaple": ("deepstaple", "deepstaple"),
}
#: Which of the settings of :func:`consensus` each method takes.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "majority": (),
    "weighted": (),
    "local": ("patch_radius", "device"),
    "simple": ("drop", "region"),
    "staple": ("region",),
    "jlf": ("patch_radius", "search_radius", "beta", "alpha", "device", "progress"),
    "deepstaple": ("region", "steps", "device", "seed", "progress"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Fused:
    """A consensus as images.

    Attributes:
        method: by which it was made.
        raters: of whom.
        consensus: as arrays, with what the method says of the raters.
    """

    method: str
    raters: Raters
    consensus: Consensus

    @functools.cached_property
    def labels(self) -> sitk.Image:
        """The label map, in the raters' values."""
        return self.raters.image(self.consensus.indices)

    @functools.cached_property
    def probabilities(self) -> sitk.Image | None:
        """The share of the (weighted) votes, one component a label and none for the background; None where not kept."""
        shares = self.consensus.probabilities
        if shares is None:
            return None
        if len(shares) == 2:
            return from_array(np.ascontiguousarray(shares[1]), self.raters.grid)
        return from_array(np.ascontiguousarray(np.moveaxis(shares[1:], 0, -1)), self.raters.grid, vector=True)

    @functools.cached_property
    def disagreement(self) -> sitk.Image:
        """Entropy of the raters' labels, bits, float32."""
        from .agreement import entropy

        return from_array(entropy(self.raters), self.raters.grid)

    @functools.cached_property
    def report(self) -> dict[str, Any]:
        """What can be said of the raters, see :func:`MLILib.fusion.rater_report.report`."""
        from .rater_report import report

        return report(self.raters, self.consensus, measure="theta" if self.method == "deepstaple" else "weight")


def fuse(
    labels: Raters | Sequence[sitk.Image],
    method: str = "majority",
    *,
    target: sitk.Image | Floats | None = None,
    warped: Sequence[sitk.Image] | Floats | None = None,
    names: Sequence[str] = (),
    label_names: Mapping[int, str] | None = None,
    **settings: Any,
) -> Fused:
    """Make one label map of many that lie on one grid.

    Args:
        labels: of the raters: label maps, or what :func:`MLILib.fusion.propagate` found.
        method: one of :data:`MLILib.fusion.methods.METHODS`.
        target: the image that was segmented, where the method compares or learns from images.
        warped: the raters' own images on its grid, where the method compares them with the target.
        names: of the raters.
        label_names: of label values.
        settings: of :func:`consensus`.

    Raises:
        BadInput: the method lacks an image, grids differ, or nobody has drawn anything.
    """
    found = labels if isinstance(labels, Raters) else raters(labels, names, label_names)
    picture = _array(target, found, "The target") if isinstance(target, sitk.Image) else target
    if warped is None or isinstance(warped, np.ndarray):
        pictures = warped
    else:
        pictures = np.stack([_array(one, found, "A rater's image") for one in warped])
    return Fused(method, found, consensus(found, method, picture, pictures, **settings))


def _array(image: sitk.Image, found: Raters, name: str) -> Floats:
    if not same_grid(found.grid, image):
        raise BadInput(
            f"{name} is not on the grid of the labels.", "", "Resample the labels to it, or register the atlases."
        )
    return sitk.GetArrayFromImage(image).astype(np.float32)


def consensus(
    found: Raters,
    method: str,
    target: Floats | None = None,
    warped: Floats | None = None,
    *,
    region: str | Region = "union",
    margin: float = 5.0,
    patch_radius: int = 2,
    search_radius: int = 3,
    beta: float = 2.0,
    alpha: float = 0.1,
    drop: float = 1.0,
    steps: int = 40,
    probabilities: bool = False,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Consensus:
    """The consensus of raters by the method of this name.

    Args:
        found: the raters.
        method: one of :data:`MLILib.fusion.methods.METHODS`.
        target: (z, y, x) or (y, x), where the method needs it.
        warped: (raters, ...), likewise.
        region: where STAPLE, SIMPLE and DeepSTAPLE look: "union", the box around what any rater drew; "image"; or a
            slice for each axis.
        margin: width by which the box "union" is larger on each side, mm.
        patch_radius, search_radius, beta, alpha: of patches, see :func:`MLILib.fusion.jlf.jlf`.
        drop: see :func:`MLILib.fusion.simple.simple`.
        steps: of DeepSTAPLE's training.
        probabilities: whether the shares of the votes are wanted, too.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        seed: of DeepSTAPLE.
        progress: told a fraction by methods that take long.

    Raises:
        BadInput: no such method, or it lacks an image.
    """
    if method not in METHODS:
        raise BadInput(f"There is no method {method!r}.", "", f"Choose one of: {', '.join(METHODS)}.")
    wanted = METHODS[method]
    if len(found) == 1:
        return _alone(found, probabilities)
    images: list[Floats] = []
    if wanted.images or wanted.target:
        if target is None or (wanted.images and warped is None):
            raise BadInput(
                f"The method {method} needs {'the target and the raters’ images' if wanted.images else 'the target'}.",
                wanted.assumes,
                "Give them, or choose another method.",
            )
        images = [target] if warped is None or not wanted.images else [target, warped]
    given = {
        "region": _box(found, region, margin),
        "patch_radius": patch_radius,
        "search_radius": search_radius,
        "beta": beta,
        "alpha": alpha,
        "drop": drop,
        "steps": steps,
        "device": device,
        "seed": seed,
        "progress": progress,
    }
    module, name = _PLACES[method]
    function = getattr(importlib.import_module(f".{module}", __package__), name)
    own = {key: given[key] for key in _SETTINGS[method]}
    if "device" in own:
        own["device"] = str(devices.resolve(device))
    made: Consensus = function(found, *images, probabilities=probabilities, **own)
    return made


def _box(found: Raters, region: str | Region, margin: float) -> Region:
    """The region as slices."""
    if not isinstance(region, str):
        return region
    if region not in REGIONS:
        raise BadInput(f"There is no region {region!r}.", "", f"Choose one of: {', '.join(REGIONS)}.")
    shape = found.grid.shape
    if region == "image":
        return found.whole()
    wider = [math.ceil(margin / spacing - 1e-6) for spacing in reversed(found.grid.spacing)]
    return tuple(
        slice(max(part.start - by, 0), min(part.stop + by, n))
        for part, by, n in zip(found.box(), wider, shape, strict=True)
    )


def _alone(found: Raters, probabilities: bool) -> Consensus:
    """What one rater says: there is nothing to weigh him against."""
    indices = found.stack[0].copy()
    shares = None
    if probabilities:
        shares = np.stack([indices == k for k in range(len(found.labels) + 1)]).astype(np.float32)
    return Consensus(
        indices=indices,
        kept=np.ones(1, dtype=bool),
        region=found.whole(),
        voxels=indices.size,
        probabilities=shares,
        notes=(f"There is one rater, {found.names[0]}: the consensus is what it says, whatever the method.",),
    )

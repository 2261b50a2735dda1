"""Models ready to segment, kept between requests so that a second one pays for no loading.

A bundle is known by its sha256: a changed file is another model, and is loaded anew.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

import torch
from monai.transforms import Compose

from .. import bundles
from ..bundles import Bundle
from ..errors import BadInput
from ..labels import Label
from . import postprocessing, tiles
from .postprocessing import Postprocessing
from .sliding_window import Tiling

#: Models kept; a cross-validation ensemble has five.
KEPT = 6

_DROPOUT = (
    torch.nn.Dropout,
    torch.nn.Dropout1d,
    torch.nn.Dropout2d,
    torch.nn.Dropout3d,
    torch.nn.AlphaDropout,
    torch.nn.FeatureAlphaDropout,
)


@dataclasses.dataclass
class Model:
    """A bundle with what it makes, without its network.

    Attributes:
        bundle: as found.
        preprocessing: its transforms before the network.
        own_postprocessing: its transforms after the network, None when it has none.
        post: the same as far as it can be done part by part, None where it cannot.
        tiling: its windows; None when it takes an image as a whole.
        batch: windows at once.
        labels: of the label map, without the background.
    """

    bundle: Bundle
    preprocessing: Compose
    own_postprocessing: Compose | None
    post: Postprocessing | None
    tiling: Tiling | None
    batch: int
    labels: tuple[Label, ...]
    _networks: dict[str, torch.nn.Module] = dataclasses.field(default_factory=dict)
    _per_voxel: dict[str, float | None] = dataclasses.field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Of the network's input."""
        return len(self.bundle.channels)

    @property
    def classes(self) -> int:
        """Channels of the network's output."""
        return len(self.bundle.output_channels)

    @property
    def default_post(self) -> Postprocessing:
        """The usual way from outputs to labels, for a model whose own cannot be done part by part."""
        return postprocessing.parse(None, self.classes) or Postprocessing()

    def network(self, device: torch.device) -> torch.nn.Module:
        """The network on `device`, loaded at the first call."""
        key = str(device)
        if key not in self._networks:
            self._networks[key] = bundles.network(self.bundle, device)
        return self._networks[key]

    def is_loaded(self, device: torch.device) -> bool:
        """Whether :meth:`network` has nothing to load."""
        return str(device) in self._networks

    def forget(self, device: torch.device) -> None:
        """Let go of the network on a device whose memory ran out."""
        self._networks.pop(str(device), None)

    def per_voxel(self, device: torch.device, window: Sequence[int]) -> float | None:
        """Bytes a voxel of a window takes, see :func:`tiles.bytes_per_voxel`; found out once."""
        key = str(device)
        if key not in self._per_voxel:
            self._per_voxel[key] = tiles.bytes_per_voxel(self.network(device), self.channels, window)
        return self._per_voxel[key]

    def tiling_for(self, tile: Sequence[int], overlap: float) -> Tiling:
        """The model's windows with what the user wants of them."""
        base = self.tiling if self.tiling is not None else Tiling((-1,) * self.bundle.dimensions)
        roi = base.roi
        if tile:
            if len(tile) not in (1, len(roi)):
                raise BadInput(
                    f"A tile of {len(tile)} numbers was given, but the model {self.bundle.name} is {len(roi)}-D.",
                    "",
                    f"Give one number for all axes, or {len(roi)}.",
                )
            roi = tuple(tile) * len(roi) if len(tile) == 1 else tuple(tile)
        return dataclasses.replace(base, roi=roi, overlap=(overlap,))


_kept: OrderedDict[tuple[str, str, bool], Model] = OrderedDict()


def load(model: str, trust: Sequence[str] = (), kinds: Sequence[str] = ("segmentation",)) -> Model:
    """The model called `model`, its transforms made, its network not yet.

    Args:
        model: a name, folder or zip.
        trust: see :func:`MLILib.bundles.find`.
        kinds: what it may be for, see :attr:`MLILib.bundles.Bundle.kind`.

    Raises:
        BadInput: unknown, incomplete or unsafe, see :mod:`MLILib.bundles`; or for something else.
    """
    bundle = bundles.find(model, trust=trust)
    if bundle.is_registration and "registration" not in kinds:
        raise BadInput(
            f"The model {bundle.name} registers images and does not segment.", "", "Use it with: mli register --model."
        )
    if bundle.kind not in kinds:
        raise BadInput(
            f"The model {bundle.name} is for {bundle.kind}, not for {' or '.join(kinds)}.", "", "Choose another model."
        )
    key = (bundle.sha256, str(bundle.folder), bundle.trusted)
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    made = _make(bundle)
    _kept[key] = made
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return made


def forget_all() -> None:
    """Let go of every model kept."""
    _kept.clear()


def _make(bundle: Bundle) -> Model:
    settings = bundles.inferer_settings(bundle)
    after = bundles.postprocessing(bundle)
    post = postprocessing.parse(after, len(bundle.output_channels))
    tiling = None
    if settings["kind"] == "sliding":
        overlap = settings["overlap"]
        said = bundle.config["inferer"]
        tiling = Tiling(
            roi=tuple(settings["roi_size"]),
            overlap=tuple(overlap) if isinstance(overlap, list | tuple) else (float(overlap),),
            # MONAI's default is "constant", which shows the windows' borders: it holds only where the bundle says it.
            mode=settings["mode"] if isinstance(said, dict) and "mode" in said else "gaussian",
            sigma_scale=float(settings["sigma_scale"]),
            padding_mode=str(getattr(settings["padding_mode"], "value", settings["padding_mode"])),
            cval=float(settings["cval"]),
        )
    decision = post.decision if post is not None else "argmax" if bundle.activation == "softmax" else "threshold"
    return Model(
        bundle=bundle,
        preprocessing=bundles.preprocessing(bundle),
        own_postprocessing=after,
        post=post,
        tiling=tiling,
        batch=int(settings.get("sw_batch_size", 1)),
        labels=_labels(bundle, decision),
    )


def _labels(bundle: Bundle, decision: str) -> tuple[Label, ...]:
    """Labels by their value in the label map: a largest channel is its number, whatever the model calls channel 0."""
    if decision == "argmax" and not bundle.has_background:
        return tuple(dataclasses.replace(label, value=label.value - 1) for label in bundle.labels[1:])
    return bundle.labels


def dropout_layers(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that drop something when they are in training mode."""
    return [m for m in network.modules() if isinstance(m, _DROPOUT) and m.p > 0]

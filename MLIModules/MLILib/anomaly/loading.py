"""A bundle of a model of normal, found, checked and made ready: network, what it knows, thresholds, baselines."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from .. import bundles, weights
from ..bundles import Bundle
from ..errors import BadInput
from . import intensity, scoring
from .baselines import Baselines
from .calibration import Calibration
from .models import NormalModel
from .requests import METHODS_OF

#: Networks kept between requests.
_KEPT = 3
_ASK = "Ask its authors for a complete model, or train one with mli train anomaly."


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A model of normal ready to score.

    Attributes:
        bundle: where it comes from.
        network: on its device, in evaluation mode.
        knowledge: see :class:`.scoring.Knowledge`.
        methods: that it can score with, the first by default.
        calibration: by method; what normal images score.
        range: intensities it was trained on.
        baselines: trivial scores fitted on its training images.
    """

    bundle: Bundle
    network: NormalModel
    knowledge: scoring.Knowledge
    methods: tuple[str, ...]
    calibration: dict[str, Calibration]
    range: intensity.Range
    baselines: Baselines


_networks: OrderedDict[tuple[str, str, bool], NormalModel] = OrderedDict()


def find(model: str, *, trust: Sequence[str] = ()) -> Bundle:
    """The bundle called `model`, when it is one for anomaly detection.

    Raises:
        BadInput: unknown, damaged, or for something else.
    """
    bundle = bundles.find(model, trust=trust)
    if bundle.kind != "anomaly" or "anomaly" not in bundle.metadata.get("mli", {}):
        raise BadInput(
            f"The model {bundle.name} is not for anomaly detection.",
            f"It is for: {bundle.task}.",
            "See mli models list, or train one with mli train anomaly.",
        )
    return bundle


def load(model: str, device: torch.device, *, trust: Sequence[str] = ()) -> Loaded:
    """Find a bundle and make it ready on `device`.

    Raises:
        BadInput: see :func:`find`; or its metadata lacks what the model should know.
    """
    bundle = find(model, trust=trust)
    said: Any = bundle.metadata["mli"].get("anomaly")
    try:
        knowledge = scoring.Knowledge.from_json(said)
        kind = str(said["kind"])
        calibrated = {str(m): Calibration.from_json(c) for m, c in said["calibration"].items()}
        span = intensity.Range.from_json(said["range"])
        methods = METHODS_OF[kind]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadInput(
            f"The model {bundle.name} does not say what it knows of normal images.",
            f'It belongs under "mli" -> "anomaly" in configs/metadata.json ({type(error).__name__}: {error}).',
            _ASK,
        ) from error
    network = _network(bundle, device)
    stored = weights.load(bundle.folder / "models" / "baselines.pt")
    try:
        trivial = Baselines.from_arrays({name: t.numpy() for name, t in stored.items()})
    except (KeyError, ValueError, TypeError) as error:
        raise BadInput(f"The baselines of the model {bundle.name} are incomplete.", f"{error!r}", _ASK) from error
    return Loaded(bundle, network, knowledge, methods, calibrated, span, trivial)


def _network(bundle: Bundle, device: torch.device) -> NormalModel:
    key = (bundle.sha256, str(device), bundle.trusted)
    if key not in _networks:
        made = bundles.network(bundle, device)
        if not isinstance(made, NormalModel):
            raise BadInput(
                f"The network of {bundle.name} is no model of normal.", f"It is a {type(made).__name__}.", _ASK
            )
        # Channels last: a third less time for AnoGAN's search on a CPU.
        _networks[key] = made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        while len(_networks) > _KEPT:
            _networks.popitem(last=False)
    _networks.move_to_end(key)
    return _networks[key]


def chosen_method(loaded: Loaded, method: str) -> str:
    """The method asked for, or the model's own.

    Raises:
        BadInput: the model cannot score in that way.
    """
    if method and method not in loaded.methods:
        raise BadInput(
            f"The model {loaded.bundle.name} cannot score by {method!r}.",
            f"It is of the kind {loaded.network.kind}.",
            f"Choose one of: {', '.join(loaded.methods)}.",
        )
    return method or loaded.methods[0]

"""MONAI bundles: find one by name, folder or zip, check it, and make its network and transforms.

Nothing of a bundle runs unless :mod:`MLILib.trust` allows it, and weights are read with ``weights_only=True``.

Beside MONAI's own metadata, ``metadata.json`` may hold the colours and the coded meaning of the labels, which MONAI
ignores and its schema permits::

    "mli": {
      "modality": "MR",
      "labels": {
        "1": {"name": "anterior", "color": [220, 60, 60],
              "terminology": {"category": ["SCT", "123037004", "Anatomical Structure"],
                              "type": ["SCT", "78961009", "Spleen"],
                              "modifier": ["SCT", "24028007", "Right"], "region": ["SCT", "...", "..."]}}}}

A label's number is the index of its channel in ``network_data_format.outputs.pred.channel_def``; a model without a
background channel (its labels may overlap) gives its channel 0 the number 1. "modifier" and "region" may be left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import allowed, archives, bundle_files, folders, trust, weights
from .building import building, require_monai
from .bundle_files import REQUIRED_METADATA, REQUIRED_TENSOR, SCHEMA, digest, one_of
from .errors import BadInput
from .labels import Label, label

if TYPE_CHECKING:
    import monai.bundle
    import monai.transforms
    import torch

__all__ = [
    "REQUIRED_METADATA",
    "REQUIRED_TENSOR",
    "SCHEMA",
    "Bundle",
    "Label",
    "digest",
    "find",
    "inferer_settings",
    "network",
    "parser",
    "postprocessing",
    "preprocessing",
    "read",
]

_ASK = "Ask its authors for a complete MONAI bundle."


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose files are there and whose metadata is complete; nothing of it has been run.

    Attributes:
        name: its folder's name.
        folder: holds configs, models and docs.
        metadata: configs/metadata.json.
        sha256: of its configuration, code and weights, see :func:`digest`.
        shipped: whether it came with MLI.
        config: configs/inference.json.
        trusted: whether the user trusts this very content, which lifts the limits on callables.
    """

    name: str
    folder: Path
    metadata: dict[str, Any]
    sha256: str
    shipped: bool
    config: dict[str, Any]
    trusted: bool = False

    @property
    def title(self) -> str:
        """Its name for a reader."""
        return str(self.metadata.get("name") or self.name)

    @property
    def task(self) -> str:
        """What it is for, in a sentence."""
        return str(self.metadata["task"])

    @property
    def is_registration(self) -> bool:
        """Whether it brings one image onto another."""
        return self.kind == "registration"

    @property
    def kind(self) -> str:
        """ "registration", "classification", "regression", "anomaly", or else "segmentation", from its task."""
        told = self.task.casefold()
        marks = {"registration": "registration", "classif": "classification", "regress": "regression"}
        for mark, kind in (marks | {"anomaly": "anomaly"}).items():
            if mark in told:
                return kind
        return "segmentation"

    @property
    def modality(self) -> str:
        """ "MR", "CT" ..., "" when it is not said."""
        own = self.metadata.get("mli", {})
        return str(own.get("modality") or self._input.get("modality") or "")

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the input channels, in their order."""
        return _channel_names(self._input, "image")

    @property
    def output_channels(self) -> tuple[str, ...]:
        """Names of the network's output channels, in their order; the first may be the background."""
        return _channel_names(self._output, "label")

    @property
    def has_background(self) -> bool:
        """Whether output channel 0 is the background, so that the labels exclude each other."""
        return len(self.output_channels) > 1 and self.output_channels[0].strip().lower() in ("background", "bg")

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels without the background; what a registration, classification or regression gives are none."""
        if self.kind != "segmentation":
            return ()
        own = bundle_files.own_labels(self.metadata)
        names = self.output_channels[1:] if self.has_background else self.output_channels
        return tuple(label(value, name, own.get(str(value), {})) for value, name in enumerate(names, start=1))

    @property
    def activation(self) -> str:
        """ "softmax" (labels exclude each other) or "sigmoid" (each channel by itself), from the postprocessing."""
        for node in _components(self.config.get("postprocessing")):
            for kind in ("softmax", "sigmoid"):
                if str(node["_target_"]).rpartition(".")[2].startswith("Activations") and node.get(kind) is True:
                    return kind
        return "softmax" if self.has_background else "sigmoid"

    @property
    def dimensions(self) -> int:
        """2 or 3: of the images it takes."""
        return len(self._input["spatial_shape"])

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Spatial axes of its input along which it knows mirror images: as ``mli.mirror_axes`` says, else all."""
        said = self.metadata.get("mli", {}).get("mirror_axes")
        return tuple(range(self.dimensions)) if said is None else tuple(int(axis) for axis in said)

    @property
    def card(self) -> str:
        """The model card, docs/README.md; "" when there is none."""
        for name in ("README.md", "readme.md"):
            file = self.folder / "docs" / name
            if file.is_file():
                return file.read_text(encoding="utf-8", errors="replace")
        return ""

    @property
    def weights(self) -> Path:
        """models/model.pt; :func:`network` heeds a configuration that names another file in models."""
        return self.folder / "models" / "model.pt"

    @property
    def _input(self) -> dict[str, Any]:
        return one_of(self.metadata["network_data_format"]["inputs"], "image")

    @property
    def _output(self) -> dict[str, Any]:
        return one_of(self.metadata["network_data_format"]["outputs"], "pred")


def find(model: str, *, trust: Sequence[str] = ()) -> Bundle:
    """The bundle called `model`: a shipped or imported name, or the path of a folder or a zip.

    Args:
        model: a known name wins over a folder of the same name here; write ./name for the folder.
        trust: sha256 digests of bundles whose configuration may name any callable.

    Raises:
        BadInput: unknown, incomplete, damaged, unsafe to unpack, or not what the list of models says it is.
    """
    shipped = folders.shipped()
    for home in (shipped, folders.user()):
        listed = folders.entries(home)
        if home is not None and _is_plain(model) and (model in listed or _is_model_in(home, model)):
            entry = listed.get(model, {})
            bundle = read(home / model, shipped=home == shipped)
            if entry and entry.get("sha256") != bundle.sha256:
                raise BadInput(
                    f"The model {model} is not the one that was {'shipped' if bundle.shipped else 'imported'}: "
                    f"its checksum is {bundle.sha256[:12]}..., not {str(entry.get('sha256'))[:12]}....",
                    "Its files were changed or damaged.",
                    "Install the extension again." if bundle.shipped else "Import the model again, with --replace.",
                )
            return dataclasses.replace(bundle, trusted=bundle.sha256 in trust or entry.get("trusted") is True)
    path = Path(model).expanduser()
    if model.strip() and path.is_dir():
        bundle = read(path)
    elif model.strip() and path.is_file():
        bundle = read(archives.unpack(path, folders.cache() / "bundles"), name=path.stem)
    else:
        known = ", ".join(sorted({*folders.entries(shipped), *_names_in(folders.user())})) or "none"
        raise BadInput(
            f"There is no model {model!r}.",
            "It is neither the name of a model nor a folder or zip of one.",
            f"The models at hand: {known}. See also: mli models list.",
        )
    return dataclasses.replace(bundle, trusted=bundle.sha256 in trust)


def read(folder: Path, *, shipped: bool = False, name: str = "") -> Bundle:
    """The bundle in `folder`, its files and keys checked; nothing of it is run.

    Raises:
        BadInput: names the file or key that is missing.
    """
    folder = folder.resolve()
    name = folder.name if (folder.name and not name) else name
    try:
        metadata, config = bundle_files.metadata(folder, name), bundle_files.inference(folder, name)
        bundle_files.require_weights(folder, name)
        bundle = Bundle(name, folder, metadata, digest(folder), shipped, config)
    except OSError as error:
        raise BadInput(
            f"The model {name} cannot be read.", f"{error.strerror}: {error.filename}.", "Check who may read its files."
        ) from error
    return bundle


def parser(bundle: Bundle, roots: Sequence[str] = ()) -> monai.bundle.ConfigParser:
    """MONAI's parser on the checked part of the bundle's configuration.

    Args:
        bundle: from :func:`find`.
        roots: the top-level entries to keep with what they refer to; by default all that inference needs. The entry
            "device" is the CPU, "bundle_root" the bundle's folder.

    Raises:
        BadInput: the configuration names a callable that is not allowed and the bundle is not trusted.
    """
    require_monai()
    from monai.bundle import ConfigParser

    # A path may hold "#", which MONAI takes for a separator: relative where nothing but our own code reads it.
    root = str(bundle.folder) if bundle.trusted else "."
    config = {**bundle.config, "bundle_root": root, "device": "$torch.device('cpu')"}
    if "network_def" not in config:
        config["network_def"] = config["network"]
    config["_meta_"] = bundle.metadata
    named = _weights_named(config)
    if named is not None:
        config["mli_weights"] = named
    checked = trust.check(
        config,
        roots or ("network_def", "preprocessing", "inferer", "postprocessing", "mli_weights"),
        folder=bundle.folder,
        name=bundle.name,
        sha256=bundle.sha256,
        trusted=bundle.trusted,
    )
    made = ConfigParser(checked.config, globals=checked.globals)
    made.locator = trust.locator()
    return made


def network(bundle: Bundle, device: torch.device | str = "cpu") -> torch.nn.Module:
    """The bundle's network on `device`, with its weights, in evaluation mode.

    Raises:
        BadInput: the network cannot be made, or the weights are not weights or not its weights.
        MissingPackage: the network needs a package that is not there.
    """
    require_monai()
    import torch

    config = parser(bundle, ("network_def", "mli_weights"))
    made = _made(bundle, config, "network_def")
    if not isinstance(made, torch.nn.Module):
        raise BadInput(f'The "network_def" of the model {bundle.name} is not a network.', f"It is {made!r:.80}.", _ASK)
    weights.fit(made, weights.load(_weights_file(bundle, config)), bundle.name)
    return made.eval().to(device)


def preprocessing(bundle: Bundle) -> monai.transforms.Compose:
    """The transforms before the network, as a Compose; those that read files are left out, MLI has read the image.

    It takes a dict whose key (usually "image") holds a MetaTensor, channel first or not, as LoadImaged would have left.
    """
    return _compose(bundle, "preprocessing")


def postprocessing(bundle: Bundle) -> monai.transforms.Compose | None:
    """The transforms after the network, those that write files left out; None when the bundle has none."""
    return _compose(bundle, "postprocessing") if "postprocessing" in bundle.config else None


def inferer_settings(bundle: Bundle) -> dict[str, Any]:
    """How the bundle wants its network applied.

    Returns:
        "kind": "sliding" or "whole"; and for "sliding" roi_size (tuple of int, one a dimension, as the bundle orders
        its axes; -1 for the whole length), overlap (a fraction, or one a dimension), sw_batch_size, mode ("constant" or
        "gaussian"), sigma_scale, padding_mode, cval: MONAI's defaults where the bundle does not say.

    Raises:
        BadInput: the inferer is neither MONAI's SlidingWindowInferer nor its SimpleInferer.
    """
    declared = bundle.config["inferer"]
    target = str(declared.get("_target_", "")) if isinstance(declared, dict) else str(declared)
    if target.rpartition(".")[2] not in allowed.INFERERS:
        raise BadInput(
            f"The model {bundle.name} runs its network with {target!r}.",
            f"MLI runs networks as {' and '.join(allowed.INFERERS[::2])} do.",
            "Use the program that its authors name.",
        )
    config = parser(bundle, ("inferer",))
    with building(bundle, "inferer"):
        given = config.get_parsed_content("inferer", instantiate=False).resolve_args()
    if target.rpartition(".")[2] == "SimpleInferer":
        return {"kind": "whole"}
    wanted: dict[str, Any] = {"kind": "sliding", "overlap": 0.25, "sw_batch_size": 1, "mode": "constant"}
    wanted.update(sigma_scale=0.125, padding_mode="constant", cval=0.0)
    wanted.update({key: value for key, value in given.items() if key in (*wanted, "roi_size")})
    roi = wanted.get("roi_size")
    roi = [roi] * bundle.dimensions if isinstance(roi, int) else roi
    if not isinstance(roi, list | tuple) or len(roi) != bundle.dimensions or not all(isinstance(n, int) for n in roi):
        raise BadInput(
            f"The model {bundle.name} gives its windows the size {roi!r}.",
            f"It should be {bundle.dimensions} whole numbers.", _ASK,
        )  # fmt: skip
    return {**wanted, "roi_size": tuple(roi), "mode": str(getattr(wanted["mode"], "value", wanted["mode"]))}


def _weights_named(config: Mapping[str, Any]) -> Any:
    """The file that the configuration's checkpoint loader reads, as it is written there; None without a loader."""
    for entry in config.values():
        for node in _components(entry):
            if str(node["_target_"]).rpartition(".")[2] == "CheckpointLoader" and "load_path" in node:
                return node["load_path"]
    return None


def _weights_file(bundle: Bundle, config: monai.bundle.ConfigParser) -> Path:
    if "mli_weights" not in config:
        return bundle.weights
    with building(bundle, "load_path"):
        file = (bundle.folder / str(config.get_parsed_content("mli_weights"))).resolve()
    if file.parent != bundle.folder / "models" or file.suffix != ".pt":
        raise BadInput(
            f"The model {bundle.name} wants to read its weights from {file}.",
            "Weights are read from the model's own folder only (models/*.pt).", _ASK,
        )  # fmt: skip
    return file


def _compose(bundle: Bundle, key: str) -> monai.transforms.Compose:
    config = parser(bundle, (key,))
    from monai.transforms import Compose

    made = _made(bundle, config, key)
    if isinstance(made, list | tuple):
        made = Compose(made)
    if not isinstance(made, Compose):
        raise BadInput(f'The "{key}" of the model {bundle.name} is not a Compose.', f"It is {made!r:.80}.", _ASK)
    return made


def _made(bundle: Bundle, config: monai.bundle.ConfigParser, key: str) -> Any:
    with building(bundle, key):
        return config.get_parsed_content(key)


def _channel_names(tensor: Mapping[str, Any], fallback: str) -> tuple[str, ...]:
    named = tensor.get("channel_def") or {}
    count = int(tensor["num_channels"])
    alone = fallback if count == 1 else ""
    return tuple(str(named.get(str(i)) or alone or f"{fallback} {i + 1}") for i in range(count))


def _components(value: Any) -> Iterator[dict[str, Any]]:
    """Every part of a configuration that has a ``_target_``, outermost first."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield value
        for part in value.values():
            yield from _components(part)
    elif isinstance(value, list):
        for part in value:
            yield from _components(part)


def _is_plain(model: str) -> bool:
    return Path(model).name == model and not model.startswith(".")


def _is_model_in(home: Path, model: str) -> bool:
    return (home / model / "configs" / "metadata.json").is_file()


def _names_in(home: Path) -> set[str]:
    return {p.parent.parent.name for p in home.glob("*/configs/metadata.json")} if home.is_dir() else set()

"""The files of a MONAI bundle: its metadata and configuration read and checked, and the checksum of what it does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BadInput, MissingPackage

#: What MONAI's schema of 2024-07-25 requires of metadata.json; a writer gives all of them.
REQUIRED_METADATA = (
    "schema",
    "version",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "task",
    "description",
    "authors",
    "copyright",
    "network_data_format",
)
#: What it requires of each input and output in network_data_format.
REQUIRED_TENSOR = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")
#: The schema's address, for the key "schema".
SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"

#: Asked of a bundle that is loaded; "schema" and the packages' key have changed their form over the years.
_NEEDED_METADATA = tuple(k for k in REQUIRED_METADATA if k not in ("schema", "required_packages_version"))
ASK = "Ask its authors for a complete MONAI bundle."
#: Far beyond any configuration (MONAI's model zoo nests 5 deep), far below Python's limit of recursion.
_MAX_DEPTH = 100


def metadata(folder: Path, name: str) -> dict[str, Any]:
    """configs/metadata.json, with the keys that MONAI requires and what it says of the labels in order."""
    data = _json_file(folder / "configs" / "metadata.json", name)
    for key in _NEEDED_METADATA:
        if key not in data:
            raise BadInput(f'The model {name} has no "{key}" in configs/metadata.json.', "MONAI requires it.", ASK)
    for side in ("inputs", "outputs"):
        _check_tensors(data["network_data_format"], side, name)
    own = data.get("mli", {})
    labels = own.get("labels", {}) if isinstance(own, dict) else None
    if not isinstance(labels, dict) or not all(isinstance(label, dict) for label in labels.values()):
        raise BadInput(
            f'The model {name} has a wrong "mli" in configs/metadata.json.',
            'Its "labels" should be an object with an object for each label.', ASK,
        )  # fmt: skip
    for value, label in labels.items():
        codes = label.get("terminology", {})
        if not isinstance(codes, dict) or not all(isinstance(c, list) and len(c) == 3 for c in codes.values()):
            raise BadInput(
                f"The model {name} gives label {value} a wrong terminology in configs/metadata.json.",
                "Each of its codes should be a list of three texts: scheme, value, meaning.", ASK,
            )  # fmt: skip
    return data


def own_labels(data: Mapping[str, Any]) -> dict[str, Any]:
    """What metadata says of the labels under "mli", by their value."""
    found: dict[str, Any] = data.get("mli", {}).get("labels", {})
    return found


def inference(folder: Path, name: str) -> dict[str, Any]:
    """configs/inference.json (or .yaml), with a network, a preprocessing and an inferer in it."""
    config = _inference(folder, name)
    if "network_def" not in config and "network" not in config:
        raise BadInput(f'The model {name} has no "network_def" in configs/inference.json.', "", ASK)
    for key in ("preprocessing", "inferer"):
        if key not in config:
            raise BadInput(f'The model {name} has no "{key}" in configs/inference.json.', "", ASK)
    return config


def require_weights(folder: Path, name: str) -> None:
    """Raise BadInput unless there is a models/model.pt."""
    if (folder / "models" / "model.pt").is_file():
        return
    script = (folder / "models" / "model.ts").is_file()
    raise BadInput(
        f"The model {name} has no models/model.pt.",
        "It comes as TorchScript (model.ts), which is a program and not only weights." if script else "",
        "Ask its authors for the weights as model.pt (a state dictionary).",
    )


def digest(folder: Path) -> str:
    """The sha256 of what a bundle does: its configs, its Python files and its weights (models/*.pt).

    Each file's name, relative to the folder and with "/", and its own sha256 go in, in the names' order, so that
    neither the place nor the time of a copy matters.
    """
    files = {p for p in (folder / "configs").rglob("*") if p.is_file()}
    files |= {p for p in folder.rglob("*.py") if p.is_file()}
    files |= {p for p in (folder / "models").glob("*.pt") if p.is_file()}
    total = hashlib.sha256()
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in files):
        with open(file, "rb") as stream:
            one = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{name}\0{one}\n".encode())
    return total.hexdigest()


def one_of(tensors: Mapping[str, Any], preferred: str) -> Any:
    """The tensor called `preferred`, or the only one; None when neither is there."""
    if preferred in tensors:
        return tensors[preferred]
    return next(iter(tensors.values())) if len(tensors) == 1 else None


def _inference(folder: Path, name: str) -> dict[str, Any]:
    configs = folder / "configs"
    yaml_file = next((p for p in (configs / "inference.yaml", configs / "inference.yml") if p.is_file()), None)
    if (configs / "inference.json").is_file() or yaml_file is None:
        return _json_file(configs / "inference.json", name)
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingPackage(
            f"The model {name} has its configuration as {yaml_file.name}.", "Reading it needs the package PyYAML.",
            "Install PyYAML, or save the configuration as inference.json.",
        ) from error  # fmt: skip
    try:
        data = yaml.safe_load(yaml_file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"The file {yaml_file} cannot be read.", f"{error}", "Get the model again.") from error
    if not isinstance(data, dict) or _too_deep(data):
        raise BadInput(f"The file {yaml_file} cannot be used.", "It holds no mapping of a reasonable depth.", ASK)
    return data


def _json_file(file: Path, name: str) -> dict[str, Any]:
    if not file.is_file():
        raise BadInput(
            f"The model {name} has no configs/{file.name}.", "It is not a MONAI bundle, or not a complete one.", ASK
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"The file {file} cannot be read.", f"It is not valid JSON ({error}).", "Get the model again."
        ) from error
    if not isinstance(data, dict) or _too_deep(data):
        raise BadInput(f"The file {file} cannot be used.", "It does not hold a JSON object of a reasonable depth.", ASK)
    return data


def _check_tensors(formats: Any, side: str, name: str) -> None:
    where = f'"network_data_format" -> "{side}" in configs/metadata.json'
    tensors = formats.get(side) if isinstance(formats, dict) else None
    if not isinstance(tensors, dict) or not tensors:
        raise BadInput(f"The model {name} has no {where}.", "MONAI requires it.", ASK)
    chosen = one_of(tensors, "image" if side == "inputs" else "pred")
    if not isinstance(chosen, dict):
        raise BadInput(f"The model {name} has several tensors under {where}, none of them an image.", "", ASK)
    for key in ("num_channels", "spatial_shape"):
        if key not in chosen:
            raise BadInput(f'The model {name} has no "{key}" under {where}.', "MONAI requires it.", ASK)
    if not isinstance(chosen["num_channels"], int) or not 1 <= chosen["num_channels"] <= 10000:
        raise BadInput(f'The model {name} says "num_channels": {chosen["num_channels"]!r} under {where}.', "", ASK)
    if not isinstance(chosen.get("channel_def") or {}, dict):
        raise BadInput(f'The model {name} has a wrong "channel_def" under {where}.', "It should be an object.", ASK)
    shape = chosen["spatial_shape"]
    if side == "inputs" and (not isinstance(shape, list) or len(shape) not in (2, 3)):
        raise BadInput(f"The model {name} takes images of the shape {shape!r}.", "MLI reads 2-D and 3-D images.", ASK)


def _too_deep(data: Any) -> bool:
    level = [data]
    for _ in range(_MAX_DEPTH):
        level = [v for d in level if isinstance(d, dict | list) for v in (d.values() if isinstance(d, dict) else d)]
        if not level:
            return False
    return True

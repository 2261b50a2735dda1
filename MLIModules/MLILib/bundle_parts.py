"""What every trained bundle is written from: the words about it, the entries that all have, and its files.

MONAI's own runner can use a bundle written so (``python -m monai.bundle run``); what is particular to a task stands in
the writer of that task.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser

from .bundle_files import SCHEMA
from .errors import BadInput
from .files import replace_file, write_text
from .tables import write_csv

#: What a model is meant for, where its maker says nothing.
INTENDED_USE = "Research; not for diagnosis."
#: Entry of configs/inference.json: the images of :func:`folder_of_images`, each through the preprocessing.
DATASET = {
    "_target_": "Dataset",
    "data": "$[{'image': i} for i in @datalist]",
    "transform": "@preprocessing",
}


def read_words(path: str) -> dict[str, Any]:
    """Read a description file: title, description, modality, authors, licence, data, intended_use, limits, labels.

    Raises:
        BadInput: not a JSON object.
    """
    if not path:
        return {}
    try:
        words = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} is not a JSON file ({error}).", "", "Give a JSON object, or leave it out.") from error
    if not isinstance(words, dict):
        raise BadInput(f"{path} holds no JSON object.", "", 'Write it as {"title": "...", ...}.')
    return words


def instantiate(network: Mapping[str, Any]) -> torch.nn.Module:
    """The network that a plan's definition names."""
    module = ConfigParser({"network": dict(network)}).get_parsed_content("network")
    if not isinstance(module, torch.nn.Module):
        msg = f"{network.get('_target_')} is no torch module"
        raise TypeError(msg)
    return module


def basics(name: str, task: str, words: Mapping[str, Any], *, description: str, data: str) -> dict[str, Any]:
    """The entries of configs/metadata.json that every bundle has, after MONAI's schema.

    Args:
        name: the bundle's.
        task: what it is for.
        words: what the user says of it, see :func:`read_words`.
        description, data: what it is and what it was made of, where the words do not say.
    """
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "first training"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "optional_packages_version": {},
        "required_packages_version": {},
        "supported_apps": {"mli": ""},
        "name": words.get("title", name),
        "task": task,
        "description": words.get("description", description),
        "authors": words.get("authors", "not stated"),
        "copyright": words.get("copyright", "not stated"),
        "data_source": words.get("data", data),
        "intended_use": words.get("intended_use", INTENDED_USE),
        "references": [words.get("data", data)],
    }


def runner_packages() -> dict[str, str]:
    """Versions of what MONAI's runner needs beside MONAI; a missing package is left out."""
    return {p: found for p in ("nibabel", "pytorch-ignite") if (found := package_version(p))}


def tensor(
    kind: str,
    channels: Sequence[str],
    size: Sequence[int],
    *,
    patch: bool = False,
    value_range: Sequence[float] = (),
) -> dict[str, Any]:
    """An input or output of a network, as metadata.json describes it.

    Args:
        kind: what the image shows.
        channels: their names.
        size: spatial shape.
        patch: whether it is a part of an image.
        value_range: lowest and highest value, where they are known.
    """
    return {
        "type": "image",
        "format": kind,
        "modality": "n/a",
        "num_channels": len(channels),
        "spatial_shape": list(size),
        "dtype": "float32",
        "value_range": list(value_range),
        "is_patch_data": patch,
        "channel_def": {str(i): name for i, name in enumerate(channels)},
    }


def folder_of_images(ending: str) -> dict[str, Any]:
    """The first entries of configs/inference.json: MONAI's runner is given each image of a folder, by its ending."""
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "image_key": "image",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "$@bundle_root + '/images'",
        "datalist": f"$sorted(glob.glob(@dataset_dir + '/*{ending}'))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    }


def loading() -> dict[str, Any]:
    """The entry of configs/inference.json that names the weights."""
    return {
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ]
    }


def evaluation() -> dict[str, Any]:
    """The entries of configs/inference.json by which MONAI's runner loads the weights and runs the network."""
    return {
        **loading(),
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def portable(dataset: str, output: str, describe: str) -> dict[str, Any]:
    """The settings of a request that repeats the training elsewhere: paths by their last parts, not a resumption."""

    def short(path: str, parts: int) -> str:
        return "/".join(Path(path).absolute().parts[-parts:])

    return {
        "dataset": short(dataset, 2),
        "output": Path(output).name,
        "describe": short(describe, 3) if describe else "",
        "resume": False,
    }


def machine(device: str) -> str:
    """What computes, in words: the graphics card's name, or the processor's."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return f"{os.cpu_count()} cores of an {_processor()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def package_version(package: str) -> str:
    """The version of an installed package, "" where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def or_none(value: float) -> float | None:
    """A number, None where it is none."""
    return None if math.isnan(value) else value


def write_model(
    folder: Path, weights: Mapping[str, torch.Tensor], config: Mapping[str, Any], metadata: Mapping[str, Any]
) -> None:
    """Write weights and configuration into a bundle's folder, which is made where it does not exist."""
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    replace_file(folder / "models" / "model.pt", lambda path: torch.save(weights, path))
    write_json(folder / "configs" / "inference.json", config)
    write_json(folder / "configs" / "metadata.json", metadata)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an indented JSON file in one step."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_measured(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the figures of each case as a table, at least one."""
    write_csv(path, rows, number=lambda value: f"{value:.5f}")

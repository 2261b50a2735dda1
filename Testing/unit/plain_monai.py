"""A bundle run by MONAI alone, as its inference.json says: the oracle of the inference tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser
from monai.data.meta_tensor import MetaTensor

Change = Callable[[dict[str, Any]], None]


def edit(bundle: Path, change: Change) -> Path:
    """Change a bundle's inference.json in place; returns the bundle."""
    file = bundle / "configs" / "inference.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    change(config)
    file.write_text(json.dumps(config), encoding="utf-8")
    return bundle


def transforms(config: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The list of transforms under `key`, to be changed in place."""
    found: list[dict[str, Any]] = config[key]["transforms"]
    return found


def run(bundle: Path, images: Sequence[Path], flips: Sequence[int] = ()) -> MetaTensor:
    """The prediction after the bundle's own postprocessing, (channel, x, y[, z]) on the file's grid.

    Args:
        bundle: folder.
        images: files; several are channels.
        flips: spatial axes of the network's input along which it is mirrored, and the output mirrored back.
    """
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["bundle_root"] = str(bundle)
    parser["device"] = "$torch.device('cpu')"
    parser["imports"] = ["$import torch"]
    after = parser["postprocessing"]["transforms"]
    parser["postprocessing"]["transforms"] = [t for t in after if t["_target_"] != "SaveImaged"]
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    network.eval()
    data = parser.get_parsed_content("preprocessing")({"image": [str(p) for p in images]})
    dims = [f + 2 for f in flips]
    with torch.inference_mode():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None].flip(dims), network).flip(dims)[0]
    return parser.get_parsed_content("postprocessing")(data)["pred"]


def labels(bundle: Path, images: Sequence[Path]) -> np.ndarray:
    """The label map (z, y, x), or (y, x)."""
    return run(bundle, images)[0].numpy().astype(int).T


def labels_of_its_command(bundle: Path, image: Path, folder: Path, *, process: bool = True) -> np.ndarray:
    """The label map (z, y, x), or (y, x), that `python -m monai.bundle run` makes of a bundle's inference.json.

    Args:
        bundle: folder.
        image: file.
        folder: an empty one, for what is read and written.
        process: run it in a process of its own; else call what the command calls, which spares its start.
    """
    (folder / "images").mkdir()
    (folder / "images" / image.name).write_bytes(image.read_bytes())
    options = {
        "config_file": str(bundle / "configs" / "inference.json"),
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "bundle_root": str(bundle),
        "dataset_dir": str(folder / "images"),
        "output_dir": str(folder / "out"),
    }
    if process:
        command = [sys.executable, "-m", "monai.bundle", "run"]
        for name, value in options.items():
            command += [f"--{name}", value]
        library = Path(__file__).resolve().parents[2] / "MLIModules"
        environment = os.environ | {"PYTHONPATH": str(library), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, timeout=300, env=environment)
    else:
        monai.bundle.run(**options)
    (made,) = (folder / "out").rglob("*_seg.nii.gz")
    return sitk.GetArrayFromImage(sitk.ReadImage(str(made))).astype(np.uint8)

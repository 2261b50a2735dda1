"""Writes a complete MONAI bundle with random weights: a network of a few thousand parameters that loads in a blink.

Tests of inference, of the worker and of the widget use it where the figures do not matter but the path does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
COLORS = ([220, 60, 60], [60, 160, 220], [240, 200, 60], [90, 190, 110])
TISSUE = {"category": ["SCT", "85756007", "Tissue"], "type": ["SCT", "85756007", "Tissue"]}


def write_tiny_bundle(
    folder: Path,
    *,
    channels: int = 1,
    labels: Sequence[str] = ("a", "b"),
    dims: int = 3,
    seed: int = 0,
    dropout: float = 0.0,
    spacing: Sequence[float] | None = None,
    orientation: str = "RAS",
) -> Path:
    """Write a bundle into `folder` (made if absent) and give it back.

    Args:
        folder: the bundle's folder; its name is the bundle's.
        channels: input channels of the network, called "image" or "image 1", "image 2" ...
        labels: names of the labels 1, 2, ...; the network has one output more, the background.
        dims: 2 or 3.
        seed: of the random weights.
        dropout: probability of the network's dropout layers.
        spacing: mm that the preprocessing resamples to, along the axes of `orientation`; None keeps the input's.
        orientation: axis codes that the preprocessing brings the image to; in 2-D the first two are used, in their
            order, since MONAI orients an image by `dims` of them.
    """
    import monai
    import numpy
    import torch

    network = {
        "_target_": "BasicUNet",
        "spatial_dims": dims,
        "in_channels": channels,
        "out_channels": len(labels) + 1,
        "features": [4, 4, 8, 8, 8, 4],
        "dropout": dropout,
    }
    transforms: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "@image_key"},
        {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
        {"_target_": "Orientationd", "keys": "@image_key", "axcodes": orientation[:dims]},
    ]
    if spacing is not None:
        transforms.append(
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": list(spacing)[:dims], "mode": "bilinear"}
        )
    transforms.append({"_target_": "NormalizeIntensityd", "keys": "@image_key", "channel_wise": True})
    roi = [32] * dims
    inference = {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "image_key": "image",
        "datalist": "$sorted(glob.glob(@bundle_root + '/images/*.nii.gz'))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": transforms},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": roi, "sw_batch_size": 2, "overlap": 0.5,
                    "mode": "gaussian"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "@image_key",
                 "nearest_interp": False, "to_tensor": True},
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'"},
            ],
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
            "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing",
        },
        "run": ["$@checkpointloader(@evaluator)", "$@evaluator.run()"],
    }  # fmt: skip
    names = ["background", *labels]
    inputs = ["image"] if channels == 1 else [f"image {i + 1}" for i in range(channels)]
    metadata = {
        "schema": SCHEMA,
        "version": "0.0.1",
        "changelog": {"0.0.1": "random weights"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": numpy.__version__,
        "required_packages_version": {},
        "name": folder.name,
        "task": "Tests of the software",
        "description": "Random weights: its labels mean nothing.",
        "authors": "The authors of Machine Learning for Imaging",
        "copyright": "The authors of Machine Learning for Imaging",
        "network_data_format": {
            "inputs": {"image": _tensor("magnitude", inputs, roi)},
            "outputs": {"pred": _tensor("segmentation", names, roi)},
        },
        "mli": {
            "labels": {
                str(i): {"name": name, "color": COLORS[(i - 1) % len(COLORS)], "terminology": TISSUE}
                for i, name in enumerate(names) if i
            }
        },
    }  # fmt: skip
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_json(folder / "configs" / "metadata.json", metadata)
    write_json(folder / "configs" / "inference.json", inference)
    (folder / "docs" / "README.md").write_text(f"# {folder.name}\n\nRandom weights, for tests.\n", encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = monai.networks.nets.BasicUNet(**{k: v for k, v in network.items() if k != "_target_"})
    torch.save(net.state_dict(), folder / "models" / "model.pt")
    return folder


def load_all(folder: Path, trust: tuple[str, ...] = ()) -> None:
    """Make every part of a bundle that inference needs."""
    from MLILib import bundles

    bundle = bundles.find(str(folder), trust=trust)
    bundles.network(bundle)
    bundles.preprocessing(bundle)
    bundles.postprocessing(bundle)
    bundles.inferer_settings(bundle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _tensor(kind: str, channels: Sequence[str], shape: Sequence[int]) -> dict[str, Any]:
    return {
        "type": "image",
        "format": kind,
        "num_channels": len(channels),
        "spatial_shape": list(shape),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(i): name for i, name in enumerate(channels)},
    }

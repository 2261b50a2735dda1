"""Writes a small data set in the Decathlon format, for tests of training and of everything that reads one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk


def write_dataset(folder: Path, n: int = 8, size: tuple[int, ...] = (20, 18, 16), **changes: Any) -> Path:
    """A data set of ellipsoids with a noisy boundary, in the Decathlon format."""
    rng = np.random.default_rng(0)
    cases = []
    for i in range(n):
        axes = np.meshgrid(*[np.linspace(-1, 1, k) for k in size[::-1]], indexing="ij")
        centre = rng.uniform(-0.2, 0.2, len(size))
        radius = sum(((a - c) / 0.6) ** 2 for a, c in zip(axes, centre, strict=True))
        label = (radius < 1).astype(np.uint8) + ((radius < 1) & (axes[-1] > centre[-1])).astype(np.uint8)
        image = label * 100.0 + rng.normal(0, 10, label.shape)
        for name, array in (("image", image.astype(np.float32)), ("label", label)):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{name}_{i:02d}.nii.gz"))
        cases.append({"image": f"./image_{i:02d}.nii.gz", "label": f"./label_{i:02d}.nii.gz"})
    data = {
        "name": "Ellipsoids",
        "modality": {"0": "made"},
        "labels": {"0": "background", "1": "left", "2": "right"},
        "training": cases,
    }
    (folder / "dataset.json").write_text(json.dumps(data | changes), encoding="utf-8")
    return folder / "dataset.json"

"""Peak memory of segmenting a 512 x 512 x 600 CT, beside a network too small to matter.

Two models with one 1 x 1 x 1 convolution and windows of 96 voxels: one works on the image's own grid, one resamples to
1.5 mm, so that its probabilities are interpolated back to 157 million voxels. Each runs in a process of its own, which
reads the peak off its run record. Prints one table and writes one JSON file::

    python Testing/benchmarks/segmentation_memory.py [--size X Y Z] [--json OUT.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[2]

SEGMENT = """
import json, sys
from MLILib import record, tasks
import MLILib.segmentation.inference
before = record.PeakMemory().bytes()["host"]
request = tasks.SegmentRequest((sys.argv[1],), (sys.argv[2],), sys.argv[3], device="cpu")
result = tasks.run(request)
noted = json.load(open(result["record"], encoding="utf-8"))
print(json.dumps({"before": before, "peak": noted["peak_memory_bytes"]["host"], "stages": result["stages"],
                  "warnings": result["warnings"], "labels": [x["voxels"] for x in result["labels"]]}))
"""


def write_ct(size: list[int], path: Path) -> None:
    """A volume of int16 with structure, 0.8 x 0.8 x 1 mm."""
    x, y, z = (np.linspace(-3, 3, n, dtype=np.float32) for n in size)
    plane = np.sin(x)[None, :] * np.cos(2 * y)[:, None]
    array = np.empty(size[::-1], np.int16)
    for k in range(size[2]):
        array[k] = (1000 * plane * np.cos(3 * z[k])).astype(np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([0.8, 0.8, 1.0])
    sitk.WriteImage(image, str(path))


def write_model(folder: Path, spacing: list[float] | None, labels: int) -> Path:
    """A tiny bundle whose network is one convolution of a voxel with itself."""
    sys.path.insert(0, str(ROOT / "Testing" / "unit"))
    sys.path.insert(0, str(ROOT / "MLIModules"))
    import torch
    from tiny_bundle import write_tiny_bundle

    write_tiny_bundle(folder, labels=[f"label {i}" for i in range(1, labels + 1)], spacing=spacing)
    file = folder / "configs" / "inference.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["network_def"] = {
        "_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": labels + 1, "kernel_size": 1
    }  # fmt: skip
    config["inferer"]["roi_size"] = [96, 96, 96]
    file.write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    torch.save(torch.nn.Conv3d(1, labels + 1, 1).state_dict(), folder / "models" / "model.pt")
    return folder


def segment(image: Path, model: Path, out: Path) -> dict[str, Any]:
    """One run in a process of its own."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "MLIModules"))
    command = [sys.executable, "-c", SEGMENT, str(image), str(model), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=3, type=int, default=[512, 512, 600], metavar=("X", "Y", "Z"))
    parser.add_argument("--labels", type=int, default=3)
    parser.add_argument("--json", default="segmentation_memory.json", help="where the figures go")
    arguments = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ct(arguments.size, folder / "ct.nrrd")
        for what, spacing in (("on the image's own grid", None), ("resampled to 1.5 mm", [1.5, 1.5, 1.5])):
            model = write_model(folder / what.replace(" ", "_").replace("'", ""), spacing, arguments.labels)
            rows[what] = segment(folder / "ct.nrrd", model, folder / "out.nii.gz")
            run = rows[what]
            print(
                f"{what:24}  {run['peak'] / 1e9:5.2f} GB at most, {run['before'] / 1e9:5.2f} GB before it began; "
                f"{sum(run['stages'].values()):6.1f} s",
                flush=True,
            )
    result = {"size": arguments.size, "labels": arguments.labels, "runs": rows}
    Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

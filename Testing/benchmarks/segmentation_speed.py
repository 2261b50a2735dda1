"""Time and memory of a warm `mli` worker beside a plain MONAI script: same model, image, windows, and CPU, in one run.

The peer is what a MONAI user writes: the bundle's own preprocessing, sliding_window_inference, and postprocessing with
Invertd and SaveImage, in a process that keeps its network. Both read the image from a file and write the label map to
one; they take turns, so that a busy computer slows both. Prints one table and writes one JSON file::

    python Testing/benchmarks/segmentation_speed.py IMAGE -m MODEL [--repeats N] [--json OUT.json]
    python Testing/benchmarks/segmentation_speed.py --synthetic 160 192 160 -m MODEL
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[2]

PEER = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
import torch
from monai.bundle import ConfigParser
from monai.inferers import sliding_window_inference
from monai.transforms import SaveImage

bundle, image, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
roi, overlap, batch, mode = json.loads(sys.argv[4])
config = ConfigParser()
config.read_config(str(bundle / "configs" / "inference.json"))
config["bundle_root"], config["device"] = str(bundle), "$torch.device('cpu')"
config["imports"] = ["$import torch"]
after = config["postprocessing"]["transforms"]
config["postprocessing"]["transforms"] = [t for t in after if t["_target_"] != "SaveImaged"]
network = config.get_parsed_content("network_def")
network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
network.eval()
prepare, finish = config.get_parsed_content("preprocessing"), config.get_parsed_content("postprocessing")
save = SaveImage(output_dir=out, output_postfix="peer", separate_folder=False, output_dtype="uint8", print_log=False)

def peak():
    for line in open("/proc/self/status", encoding="utf-8"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0

print("ready", flush=True)
for _ in sys.stdin:
    started = time.perf_counter()
    data = prepare({"image": image})
    with torch.inference_mode():
        before = time.perf_counter()
        data["pred"] = sliding_window_inference(data["image"][None], roi, batch, network, overlap, mode)[0]
        inference = time.perf_counter() - before
    save(finish(data)["pred"])
    print(json.dumps({"seconds": time.perf_counter() - started, "inference": inference, "peak": peak()}), flush=True)
"""


class Peer:
    """The MONAI script in a process of its own."""

    def __init__(self, bundle: Path, image: Path, out: Path, windows: list[Any]) -> None:
        command = [sys.executable, "-c", PEER, str(bundle), str(image), str(out), json.dumps(windows)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def __call__(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._line())
        return found

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            msg = "the MONAI script ended; see its message above"
            raise RuntimeError(msg)
        return line

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Worker:
    """`python -m MLILib.worker`, as Slicer keeps it."""

    def __init__(self, bundle: str, image: Path, out: Path) -> None:
        command = [sys.executable, "-m", "MLILib.worker"]
        environment = dict(os.environ, PYTHONPATH=str(ROOT / "MLIModules"))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._request = {"images": [str(image)], "model": [bundle], "output": str(out), "device": "cpu"}
        self._number = 0

    def __call__(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._number += 1
        message = {"id": self._number, "task": "segment", "request": self._request}
        started = time.perf_counter()
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            event = json.loads(line)
            if event["event"] == "error":
                raise RuntimeError(event["error"])
            if event["event"] == "result":
                result = event["result"]
                noted = json.loads(Path(result["record"]).read_text(encoding="utf-8"))
                return {
                    "seconds": time.perf_counter() - started,
                    "inference": result["stages"]["Segmenting"],
                    "stages": result["stages"],
                    "peak": noted["peak_memory_bytes"]["host"],
                }
        msg = "the worker ended without a result"
        raise RuntimeError(msg)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write('{"quit": true}\n')
        self._process.stdin.close()
        self._process.wait()


def synthetic(size: list[int], path: Path) -> Path:
    """A smooth oblique volume of noise."""
    rng = np.random.default_rng(0)
    image = sitk.GetImageFromArray(rng.normal(100, 30, size[::-1]).astype(np.float32))
    image = sitk.SmoothingRecursiveGaussian(image, 1.5)
    c, s = np.cos(0.2), np.sin(0.2)
    image.SetDirection([c, -s, 0, s, c, 0, 0, 0, 1])
    image.SetOrigin([-80.0, 40.0, 10.0])
    sitk.WriteImage(image, str(path))
    return path


def agreement(ours: Path, theirs: Path) -> dict[str, Any]:
    """Voxels in which two label maps differ, and the mean Dice over the labels found."""
    a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(p))).astype(int) for p in (ours, theirs))
    dice = [
        2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in np.union1d(a, b).tolist() if k > 0
    ]
    return {
        "voxels": int(a.size),
        "different": int((a != b).sum()),
        "mean_dice": float(np.mean(dice)) if dice else None,
    }


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run both in turns."""
    sys.path.insert(0, str(ROOT / "MLIModules"))
    from MLILib import bundles
    from MLILib.segmentation import models

    image = Path(arguments.image) if arguments.image else synthetic(arguments.synthetic, folder / "image.nii.gz")
    bundle = bundles.find(arguments.model)
    model = models.load(arguments.model)
    tiling = model.tiling_for((), 0.5)
    windows = [list(tiling.roi), tiling.overlap[0], model.batch, tiling.mode]
    worker = Worker(arguments.model, image, folder / "ours.nii.gz")
    peer = Peer(bundle.folder, image, folder, windows)
    cold = worker()
    peer()
    ours, theirs = [], []
    for _ in range(arguments.repeats):
        ours.append(worker())
        theirs.append(peer())
    worker.close()
    peer.close()
    stem = image.name.removesuffix(".gz").removesuffix(".nii")
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "inference", "peak")}
        for name, runs in (("mli worker", ours), ("MONAI script", theirs))
    }
    a, b = middle["mli worker"], middle["MONAI script"]
    return {
        "image": list(sitk.ReadImage(str(image)).GetSize()),
        "model": {"name": bundle.name, "sha256": bundle.sha256},
        "windows": windows,
        "repeats": arguments.repeats,
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS")},
        "median": middle,
        "worker_first_run_seconds": cold["seconds"],
        "worker_stages_seconds": {k: statistics.median(run["stages"][k] for run in ours) for k in ours[0]["stages"]},
        "ratio_file_to_file": a["seconds"] / b["seconds"],
        "ratio_to_sliding_window_alone": a["seconds"] / b["inference"],
        "worker_seconds_beside_inference": a["seconds"] - a["inference"],
        "agreement": agreement(folder / "ours.nii.gz", folder / f"{stem}_peer.nii.gz"),
        "runs": {"mli worker": ours, "MONAI script": theirs},
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"{'':14}  {'file to file':>13}  {'inference':>10}  {'peak memory':>12}"]
    for name, row in result["median"].items():
        lines.append(f"{name:14}  {row['seconds']:>11.2f} s  {row['inference']:>8.2f} s  {row['peak'] / 1e6:>9.0f} MB")
    same, machine = result["agreement"], result["machine"]
    return "\n".join(
        [
            f"image {' x '.join(map(str, result['image']))}, model {result['model']['name']}, windows "
            f"{' x '.join(map(str, result['windows'][0]))} with overlap {result['windows'][1]:g}, batch "
            f"{result['windows'][2]}; medians of {result['repeats']} runs in turns on {machine['cores']} cores of "
            f"{machine['processor']}",
            *lines,
            f"mli worker / MONAI script: {result['ratio_file_to_file']:.3f} file to file, "
            f"{result['ratio_to_sliding_window_alone']:.3f} of the script's sliding windows alone",
            f"a warm run adds {result['worker_seconds_beside_inference']:.2f} s to the inference; the first took "
            f"{result['worker_first_run_seconds']:.2f} s",
            f"labels differ in {same['different']} of {same['voxels']} voxels",
        ]
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("image", nargs="?", help="NIfTI file")
    source.add_argument("--synthetic", nargs=3, type=int, metavar=("X", "Y", "Z"), help="a volume of noise instead")
    parser.add_argument("-m", "--model", default="hippocampus", help="name or folder of a bundle")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", default="segmentation_speed.json", help="where the figures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    print(table(result))
    Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

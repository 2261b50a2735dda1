"""Joint label fusion of mouse brains beside antspyx's and other methods: overlap, time and peak memory on one input.

Each brain of a group is a target once, and 7 others of its group are the atlases (37 structures, 112 x 128 x 80
voxels). All methods get the same registered atlases, which are kept in a folder, and each runs in a process of its own,
one after the other. Prints a table and writes one JSON file::

    python Testing/benchmarks/jlf_mouse.py CACHE [--targets N] [--peer same|own|both|none] [--json OUT.json]

antspyx works on the voxels that ours works on: a mask holds those where atlases disagree, and a patch's radius more. It
gets images of one mean and a standard deviation of 100, since it takes no patch's to be below 1. Its answer is the
label of most probability; that of the background, which it does not give, is what the others leave. "same" are our
settings (beta 2, rho 0.1), "own" those it has by default (beta 4, rho 0.01); both search by squared differences. It
writes its probabilities to files, which is part of its time.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "MLIModules"))

from MLILib.fusion import fusing  # noqa: E402
from MLILib.fusion.cache import Cache  # noqa: E402
from MLILib.fusion.propagation import propagate  # noqa: E402
from MLILib.fusion.raters import Raters  # noqa: E402
from MLILib.geometry import Grid  # noqa: E402
from MLILib.labels import label  # noqa: E402

DATA = Path(os.environ.get("MLI_DATA", ROOT.parent / "shared" / "data")) / "mouse_brains"
GROUPS = ("FVB_NCrl_in_vivo", "rTg4510_in_vivo")
ATLASES = 7
PATCH, SEARCH = 2, 3
PEERS = {"same": (2.0, 0.1), "own": (4.0, 0.01)}
TITLES = {
    "majority": "Majority vote",
    "local": "Locally weighted vote",
    "staple": "STAPLE",
    "jlf": "Joint label fusion",
    "ants-same": "antspyx, our settings",
    "ants-own": "antspyx, its defaults",
}


def read(file: Path) -> tuple[sitk.Image, sitk.Image]:
    """A brain and its labels, which are stored as real numbers."""
    image = sitk.ReadImage(str(file))
    stored = sitk.ReadImage(str(file.parents[1] / "label" / file.name))
    labels = sitk.GetImageFromArray(np.rint(sitk.GetArrayViewFromImage(stored)).astype(np.uint8))
    labels.CopyInformation(image)
    return image, labels


def register(files: list[Path], which: int, registration: str, cache: Path, out: Path) -> float:
    """Bring 7 other brains to one, write what the methods get, and give the seconds that it took."""
    image, truth = read(files[which])
    others = [file for file in files if file != files[which]][:ATLASES]
    started = time.perf_counter()
    found = propagate(
        image,
        [read(file) for file in others],
        names=[file.name for file in others],
        registration=registration,
        kept=Cache(cache),
    )
    seconds = time.perf_counter() - started
    np.savez(
        out,
        target=found.target,
        warped=found.warped,
        stack=found.raters.stack,
        values=found.raters.values,
        truth=sitk.GetArrayFromImage(truth),
    )
    return seconds


def memory(key: str) -> float:
    """Of this process, GB: VmRSS now, VmHWM the most so far; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(key)), 0.0)


def ours(method: str, people: Raters, target: np.ndarray, warped: np.ndarray) -> Callable[[], np.ndarray]:
    """The call that is measured."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    settings = {"patch_radius": PATCH, "search_radius": SEARCH, "device": "cpu"}
    return lambda: fusing.consensus(people, method, target, warped, **settings).indices


def ants(peer: str, people: Raters, target: np.ndarray, warped: np.ndarray) -> Callable[[], np.ndarray]:
    """antspyx's, likewise; what it needs is made before."""
    import ants

    beta, rho = PEERS[peer]
    agreed = people.agreed()
    mask = ndimage.maximum_filter(~agreed, 2 * PATCH + 1)
    pictures = [ants.from_numpy((one - one.mean()) / one.std() * 100) for one in (target, *warped)]
    labels = [ants.from_numpy(one.astype(np.float32)) for one in people.stack]

    def call() -> np.ndarray:
        made = ants.joint_label_fusion(
            pictures[0], ants.from_numpy(mask.astype(np.float32)), pictures[1:], label_list=labels,
            beta=beta, rho=rho, rad=PATCH, r_search=SEARCH,
        )  # fmt: skip
        best = np.zeros(mask.shape, np.uint8)
        most = 1.0 - sum(image.numpy() for image in made["probabilityimages"])
        for value, image in zip(made["segmentation_numbers"], made["probabilityimages"], strict=True):
            share = image.numpy()
            best[share > most] = value
            most = np.maximum(most, share)
        return np.where(agreed, people.stack[0], best)

    return call


def child(method: str, inputs: Path) -> None:
    """Run one method and print what it did as JSON."""
    given = np.load(inputs)
    stack, values, truth = given["stack"], given["values"], given["truth"]
    grid = Grid(stack.shape[:0:-1], (1.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel()))
    named = tuple(label(value, str(value), {}) for value in values[1:].tolist())
    people = Raters(grid, tuple(f"atlas {i}" for i in range(len(stack))), named, stack)
    images = given["target"].astype(np.float32), given["warped"].astype(np.float32)
    peer = method.startswith("ants-")
    call = ants(method[5:], people, *images) if peer else ours(method, people, *images)
    held, busy, started = memory("VmRSS"), time.process_time(), time.perf_counter()
    found = values[call()]
    row = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - busy, "peak": memory("VmHWM"),
           "held": held}  # fmt: skip
    overlaps = [
        2
        * np.count_nonzero((found == v) & (truth == v))
        / (np.count_nonzero(found == v) + np.count_nonzero(truth == v))
        for v in np.unique(truth)[1:]
    ]
    print(json.dumps({**row, "dice": float(np.mean(overlaps)), "open": int(np.count_nonzero(~people.agreed()))}))


def run(method: str, inputs: Path, threads: int) -> dict[str, Any]:
    """A method in a process of its own."""
    count = str(threads)
    env = {**os.environ, "OMP_NUM_THREADS": count, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": count}
    command = [sys.executable, __file__, "--child", method, str(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"{TITLES[method]} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the targets."""
    lines = [f"{'':24}{'mean Dice':>10}{'s':>9}{'CPU s':>9}{'peak GB':>9}{'over inputs':>13}"]
    for method, found in rows.items():
        mean = {key: statistics.fmean(row[key] for row in found) for key in ("dice", "seconds", "cpu", "peak", "held")}
        lines.append(
            f"{TITLES[method]:24}{mean['dice']:10.4f}{mean['seconds']:9.2f}{mean['cpu']:9.2f}{mean['peak']:9.2f}"
            f"{mean['peak'] - mean['held']:13.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="folder of registered atlases: filled, and used again")
    parser.add_argument("--targets", type=int, default=0, help="how many; all of the group by default")
    parser.add_argument("--group", choices=GROUPS, default=GROUPS[0])
    parser.add_argument("--registration", default="deformable", help="a preset's name")
    parser.add_argument("--peer", choices=(*PEERS, "both", "none"), default="same", help="antspyx's settings")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    peers = {"both": list(PEERS), "none": []}.get(given.peer, [given.peer])
    methods = ["majority", "local", "staple", "jlf", *(f"ants-{peer}" for peer in peers)]
    files = sorted((DATA / given.group / "image").glob("*.nii.gz"))
    if len(files) <= ATLASES:
        sys.exit(f"{DATA / given.group} has {len(files)} brains; {ATLASES + 1} are needed. Set MLI_DATA.")
    targets = files[: given.targets or None]
    rows: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for which, file in enumerate(targets):
        with tempfile.TemporaryDirectory() as folder:
            inputs = Path(folder) / "inputs.npz"
            spent = register(files, which, given.registration, given.cache, inputs)
            print(f"{file.name}: registered or found in {spent:.0f} s; load {os.getloadavg()[0]:.1f}", flush=True)
            for method in methods:
                rows[method].append({"target": file.name, **run(method, inputs, given.threads)})
                print(f"  {TITLES[method]:24}{json.dumps(rows[method][-1])}", flush=True)
    print(f"\n{len(targets)} targets, {ATLASES} atlases, {given.threads} threads")
    print(table(rows))
    if given.json:
        about = {"group": given.group, "registration": given.registration, "threads": given.threads}
        given.json.write_text(
            json.dumps({**about, "cpu": platform.processor(), "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        main()

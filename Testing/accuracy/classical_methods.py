"""Classical segmentation beside the shipped network, in one comparison report of hippocampi or of the spinal cord.

    export PYTHONPATH=MLIModules
    python Testing/accuracy/classical_methods.py OUT.html [--data hippocampus|spinal-cord] [--cases 4]

Hippocampi: cases that the shipped model kept aside. Spinal cord: a T2 volume with a manual mask, beside the masks of
two published networks that come with it. Methods with seeds get scribbles made from the reference, as a user would draw
them: lines inside of each label and around all of them, near and far, in three planes of each direction. Their figures
therefore say what they make of good scribbles, not what they find alone, and `nearest scribble` is the baseline;
`forest, learned` has examples of other cases and no scribbles, and otsu and chan-vese have nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from MLILib import cli
from MLILib.classical import Seeds, segment_classical
from MLILib.segmentation.dataset import read_dataset, split_cases

DATA = Path(os.environ.get("MLI_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
#: Cases that the forest learns from where it has no scribbles.
EXAMPLES = 4
#: Settings, where others than the defaults: chosen on hippocampi that no figure is taken on.
METHODS = {
    "otsu": {},
    "multi-otsu": {"levels": 3},
    "chan-vese": {},
    "connected": {},
    "confidence": {"multiplier": 2.0, "rounds": 2},
    "geodesic": {"start_radius": 1.5, "edge_width": 1.0, "balloon": 1.0, "curvature": 0.2, "iterations": 25},
    "graph-cut": {},
    "random-forest": {},
}
SEEDED = ("connected", "confidence", "geodesic", "graph-cut", "random-forest")


def scribbles(reference: sitk.Image) -> Seeds:
    """Lines inside of each label and around all of them, near and far, in three planes of each direction."""
    labels = sitk.GetArrayFromImage(reference)
    spacing = reference.GetSpacing()[::-1]
    values, background = np.zeros(labels.shape, np.uint8), np.zeros(labels.shape, bool)
    names = tuple(f"{n}" for n in range(1, int(labels.max()) + 1))
    away = ndimage.distance_transform_edt(labels == 0, sampling=spacing)
    for n in range(1, len(names) + 1):
        for axis in range(3):
            there = np.flatnonzero((labels == n).any(axis=tuple(a for a in range(3) if a != axis)))
            for at in (int(np.quantile(there, share)) for share in (0.25, 0.5, 0.75) if there.size):
                plane = [slice(None)] * 3
                plane[axis] = slice(at, at + 1)
                where = tuple(plane)
                depth = ndimage.distance_transform_edt(np.squeeze(labels[where] == n, axis))
                ridge = np.expand_dims((depth == ndimage.maximum_filter(depth, 3)) & (depth >= 1.5), axis)
                values[where][ridge & (labels[where] == n)] = n
                far = away[where]
                background[where] |= ((far > 2.0) & (far < 3.5)) | ((far > 8.0) & (far < 9.5))
    return Seeds(values, background & (values == 0), names)


def nearest(seeds: Seeds, spacing: tuple[float, ...]) -> np.ndarray:
    """Each voxel as the nearest scribble says (z, y, x): what scribbles are worth without a look at the image."""
    known = seeds.background | (seeds.values > 0)
    places = ndimage.distance_transform_edt(~known, sampling=spacing, return_distances=False, return_indices=True)
    return seeds.values[tuple(places)]


def label(image: sitk.Image, method: str, seeds: Seeds) -> np.ndarray:
    """One method's labels (z, y, x)."""
    settings = dict(METHODS[method])
    if method == "connected":
        inside = sitk.GetArrayFromImage(image)[seeds.values > 0]
        settings["range"] = tuple(float(x) for x in np.quantile(inside, (0.02, 0.98)))
    found = segment_classical(image, method, seeds=seeds if method in SEEDED else None, **settings)
    array = sitk.GetArrayFromImage(found.labels)
    if method == "multi-otsu":  # its brightest region alone
        return (array == array.max()).astype(np.uint8)
    return array


def hippocampi(count: int) -> tuple[list[tuple[str, Path, Path]], list[tuple[sitk.Image, sitk.Image]], dict[str, str]]:
    """Cases (name, image, labels), examples for the forest, and names of labels."""
    dataset = read_dataset(DATA / "hippocampus" / "dataset.json")
    split = split_cases(dataset, 0, 5, 0)
    test = sorted(split.test, key=lambda case: case.name)[:count]
    shown = [case for case in dataset.cases if case.name not in {one.name for one in split.test}][:EXAMPLES]
    examples = [(sitk.ReadImage(str(case.images[0])), sitk.ReadImage(str(case.label))) for case in shown]
    names = json.loads((DATA / "hippocampus" / "dataset.json").read_text(encoding="utf-8"))["labels"]
    return [(case.name, Path(case.images[0]), Path(case.label)) for case in test], examples, names


def main() -> None:
    """Segment, write a data set, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output")
    parser.add_argument("--data", choices=("hippocampus", "spinal-cord"), default="hippocampus")
    parser.add_argument("--cases", type=int, default=4)
    given = parser.parse_args()
    words = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        examples: list[tuple[sitk.Image, sitk.Image]] = []
        if given.data == "hippocampus":
            cases, examples, names = hippocampi(given.cases)
            words += ["-m", "hippocampus"]
        else:
            root = DATA / "spinal_cord" / "t2"
            cases, names = [("t2", root / "t2.nii.gz", root / "t2_seg-manual.nii.gz")], {"0": "background", "1": "cord"}
        training = []
        for name, image_path, label_path in cases:
            image, reference = sitk.ReadImage(str(image_path)), sitk.ReadImage(str(label_path))
            reference = sitk.Cast(reference, sitk.sitkUInt8)
            reference.CopyInformation(image)
            (folder / "reference").mkdir(exist_ok=True)
            sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
            sitk.WriteImage(reference, str(folder / "reference" / f"{name}.nii.gz"))
            training.append({"image": f"{name}.nii.gz", "label": f"reference/{name}.nii.gz"})
            seeds = scribbles(reference)
            for method in (*METHODS, "nearest scribble", *(("forest, learned",) if examples else ())):
                started = time.perf_counter()
                if method == "nearest scribble":
                    array = nearest(seeds, image.GetSpacing()[::-1])
                elif method in METHODS:
                    array = label(image, method, seeds)
                else:
                    found = segment_classical(image, "random-forest", examples=examples, trees=40)
                    array = sitk.GetArrayFromImage(found.labels)
                made = sitk.GetImageFromArray(array)
                made.CopyInformation(image)
                (folder / method).mkdir(exist_ok=True)
                sitk.WriteImage(made, str(folder / method / f"{name}.nii.gz"))
                print(f"{name} {method}: {time.perf_counter() - started:.1f} s", flush=True)
            if given.data == "spinal-cord":
                for network in ("2d", "3d"):
                    (folder / f"deepseg {network}").mkdir()
                    mask = sitk.ReadImage(str(root / f"t2_seg-deepseg_sc-{network}.nii.gz"))
                    mask = sitk.Cast(mask, sitk.sitkUInt8)
                    mask.CopyInformation(image)
                    sitk.WriteImage(mask, str(folder / f"deepseg {network}" / f"{name}.nii.gz"))
        about = {"name": given.data, "modality": {"0": "MR"}, "labels": names, "training": training}
        (folder / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
        methods = [p for p in sorted(folder.iterdir()) if p.is_dir() and p.name != "reference"]
        words += ["--predictions", *(f"{p.name}={p}" for p in methods), "-o", given.output]
        cli.main(["compare", str(folder / "dataset.json"), *words])


if __name__ == "__main__":
    main()

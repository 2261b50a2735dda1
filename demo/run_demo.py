"""Segments both hippocampi of the MNI152 template with the shipped model, and shows the result.

Writes segmentations, an MRML scene, tables, pictures, run records and a page that shows them all.
Run as ``python demo/run_demo.py --output demo-output``, or ``make demo``.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "MLIModules"))

import mni152
import page
import pictures
from MLILib import metrics, tasks
from MLILib.errors import BadInput, MissingPackage, MLIError
from MLILib.progress import Progress, TerminalBar
from MLILib.segmentation.requests import SegmentRequest

TITLE = "Both hippocampi of the MNI152 template"
VOLUME_NOTE = (
    "Volumes are those of the template, whose brain is larger than most: they are no norm to compare a patient with."
)
ATLAS_NOTE = (
    "A sanity figure, not an accuracy: AAL was drawn on another brain, in 2 mm voxels and with another protocol, so "
    "its delineation differs from the one the model was trained on. Its right hippocampus also lies almost 4 mm "
    "further from the midline than its left. The template is symmetric: the last line says how alike the model treats "
    "both sides."
)


@dataclasses.dataclass(frozen=True)
class Side:
    """What was made of one hippocampus."""

    name: str
    image: Path
    segmentation: Path
    picture: Path
    record: Path
    labels: list[dict[str, Any]]
    atlas: dict[str, float]
    seconds: float

    @property
    def heading(self) -> str:
        """The side in words."""
        return f"{self.name.capitalize()} hippocampus"


def segment(side: str, image: sitk.Image, folder: Path, model: str, device: str) -> Side:
    """Write the region, segment it, compare it with the atlas, draw it."""
    stem = f"MNI152_{side}_hippocampus"
    path, output = folder / f"{stem}_T1.nrrd", folder / f"{stem}.seg.nrrd"
    sitk.WriteImage(image, str(path), useCompression=True)
    request = SegmentRequest(images=(str(path),), model=(model,), output=str(output), device=device)
    bar = TerminalBar(sys.stderr)
    result = tasks.run(request, Progress(bar))
    bar.close()
    labels = sitk.ReadImage(str(output))
    if labels.GetNumberOfComponentsPerPixel() != 1:
        raise BadInput(f"The labels of {model} overlap.", "", "Give the demo a model whose labels exclude each other.")

    whole = sitk.Cast(labels != 0, sitk.sitkUInt8)
    atlas = metrics.compare(whole, mni152.aal_hippocampus(image, side), {1: "hippocampus"})["hippocampus"]
    drawn = [
        pictures.Drawn(label["value"], f"{label['name']}, {label['volume_ml']:.2f} ml", tuple(label["color"]))
        for label in result["labels"]
    ]
    picture = folder / f"{stem}.png"
    pictures.three_planes(image, labels, drawn, f"{side.capitalize()} hippocampus, MNI152", picture)
    return Side(side, path, output, picture, Path(result["record"]), result["labels"], atlas, float(result["seconds"]))


def agreement_rows(sides: Sequence[Side]) -> list[tuple[str, str, float, float]]:
    """What is compared with what, Dice, and mean surface distance in mm; all of whole hippocampi."""
    rows = [(side.heading, "AAL atlas", side.atlas["dice"], side.atlas["assd"]) for side in sides]
    right, left = (sitk.ReadImage(str(side.segmentation)) != 0 for side in sides)
    mirrored = sitk.GetImageFromArray(sitk.GetArrayFromImage(left)[:, :, ::-1])
    mirrored.CopyInformation(right)
    both = metrics.compare(mirrored, right, {1: "hippocampus"})["hippocampus"]
    return [*rows, (sides[1].heading, "right one, mirrored", both["dice"], both["assd"])]


def volume_rows(sides: Sequence[Side]) -> list[tuple[str, str, int, float]]:
    """Side, structure, voxels and millilitres, with a line for each whole hippocampus."""
    rows = []
    for side in sides:
        parts = [(side.name, str(v["name"]), int(v["voxels"]), float(v["volume_ml"])) for v in side.labels]
        total = (side.name, "Whole hippocampus", sum(p[2] for p in parts), sum(p[3] for p in parts))
        rows += [*parts, total]
    return rows


def write_scene(sides: Sequence[Side], rows: Sequence[tuple[str, str, int, float]], path: Path) -> dict[str, int]:
    """Load everything as Slicer does, save the scene, and open it again; gives the counted nodes."""
    try:
        import scene
    except ImportError as error:
        raise MissingPackage(
            f"The demo's scene needs a package that is not installed ({error}).",
            "",
            "Install what the demo needs: pip install 'mli-imaging[demo]' -c constraints.txt",
        ) from error
    core = scene.Core()
    volumes = []
    for side in sides:
        volumes.append(core.load_volume(side.image, f"MNI152 {side.name} hippocampus T1"))
        core.load_segmentation(side.segmentation, f"{side.heading} segmentation")
        core.add_text(f"{side.heading} run record", side.record.read_text(encoding="utf-8"))
    core.add_table(
        "Hippocampus volumes",
        {
            "Side": [row[0] for row in rows],
            "Structure": [row[1] for row in rows],
            "Volume [ml]": [row[3] for row in rows],
        },
    )
    core.show(volumes[0])
    core.save(path)
    return core.counts()


def run(folder: Path, model: str, device: str) -> None:
    """Do it all; see the module's text."""
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    template = mni152.template()
    sides = [segment(side, mni152.region(template, side), folder, model, device) for side in mni152.SIDES]
    rows, agreement = volume_rows(sides), agreement_rows(sides)

    table = folder / "volumes.csv"
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["side", "structure", "voxels", "volume_ml"])
        writer.writerows((side, name, voxels, f"{ml:.4f}") for side, name, voxels, ml in rows)
    bundle = folder / "hippocampi.mrb"
    counts = write_scene(sides, rows, bundle)

    print(f"\n{'Side':<7}{'Structure':<24}{'ml':>7}")
    for side, name, _, ml in rows:
        print(f"{side:<7}{name:<24}{ml:7.3f}")
    print("\nAgreement of whole hippocampi")
    for one, other, dice, assd in agreement:
        print(f"{one} with {other}: Dice {dice:.3f}, mean surface distance {assd:.2f} mm")
    print(ATLAS_NOTE)

    files = [(bundle, f"Scene for Slicer: {', '.join(f'{n} {_word(c)}' for c, n in counts.items())}")]
    for each in sides:
        files += [
            (each.image, f"{each.heading}: region of the template, 1 mm"),
            (each.segmentation, f"{each.heading}: segmentation with names, colours and terminology"),
            (each.picture, f"{each.heading}: the picture above"),
            (each.record, f"{each.heading}: run record"),
        ]
    files.append((table, "Volumes"))
    index = folder / "index.html"
    page.write(
        index,
        TITLE,
        f"The regions around both hippocampi of the MNI152 T1 template, segmented with the model “{model}” in "
        f"{sum(s.seconds for s in sides):.1f} s. To see it in 3D Slicer, drag hippocampi.mrb into its window.",
        [
            (
                "Volumes",
                page.table(("Side", "Structure", "Voxels", "Volume [ml]"), [
                    (side, name, f"{voxels:,}", f"{ml:.3f}") for side, name, voxels, ml in rows
                ]),
                VOLUME_NOTE,
            ),
            (
                "Agreement of whole hippocampi",
                page.table(("Segmented", "Compared with", "Dice", "Mean surface distance [mm]"), [
                    (one, other, f"{dice:.3f}", f"{assd:.2f}") for one, other, dice, assd in agreement
                ]),
                ATLAS_NOTE,
            ),
        ],
        [page.Section(s.heading, s.picture, _command(s.record), s.record.read_text(encoding="utf-8")) for s in sides],
        files,
    )  # fmt: skip
    print(f"\nWrote {index} and the files it shows in {time.monotonic() - started:.0f} s.")


def _word(node_class: str) -> str:
    return node_class.removeprefix("vtkMRML").removesuffix("Node").lower() + "s"


def _command(record: Path) -> str:
    return str(json.loads(record.read_text(encoding="utf-8"))["command"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; gives the exit code."""
    parser = argparse.ArgumentParser(description="Segment both hippocampi of the MNI152 template.")
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--model", default="hippocampus", help="name or folder of a bundle (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        run(given.output, given.model, given.device)
    except MLIError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Sample data of MLI AtlasFusion, made on the spot from one image and its labels: atlases, and raters.

An atlas is the image turned, bent, scaled in brightness and with noise, with the labels that went along; a rater is the
labels drawn again with a hand that trembles. The last of each was careless, so that there is somebody not to trust.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer

from . import fusion_atlases, nodes

#: Atlases, and raters.
COUNT = 5
#: Bending of an atlas: largest displacement and half wave length, mm; turn, degrees.
_BEND, _WAVE, _TURN = 2.5, 22.0, 7.0
#: Trembling of a rater's hand, and of the careless one's, mm, and its half wave length.
_TREMBLE, _CARELESS, _TREMBLE_WAVE = 1.0, 2.5, 9.0
#: By how much the careless one's labels are off, mm.
_OFF = (2.0, -3.0, 2.5)
#: Standard deviation of the noise, grey values.
_NOISE = 3.0


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was put into the scene.

    Attributes:
        volume: the image, which is the target.
        reference: its labels.
        atlases: volumes and segmentations, in the order they were made.
        raters: segmentations.
        folder: id of the folder of the atlases, for :func:`MLISlicerLib.fusion_atlases.read`.
    """

    volume: slicer.vtkMRMLScalarVolumeNode
    reference: slicer.vtkMRMLSegmentationNode
    atlases: tuple[tuple[Any, Any], ...] = ()
    raters: tuple[Any, ...] = ()
    folder: str = ""


def load_atlases(image_file: Path, labels_file: Path) -> Sample:
    """Put the image, its labels and a folder of atlases into the scene."""
    image, truth = sitk.ReadImage(str(image_file)), _read(labels_file)
    with nodes.all_or_nothing():
        volume, reference = _target(image, truth)
        made = []
        for number in range(1, COUNT + 1):
            rng = np.random.default_rng(number)
            transform = _bent(image, rng, _BEND, _WAVE, _TURN)
            moved = _resampled(sitk.Cast(image, sitk.sitkFloat32), transform, sitk.sitkLinear)
            noisy = sitk.GetArrayFromImage(moved) * rng.uniform(0.85, 1.1) + rng.normal(
                0, _NOISE, moved.GetSize()[::-1]
            )
            grey = _like(np.clip(np.round(noisy), 0, 255).astype(np.uint8), image)
            drawn = truth.moved(transform)
            if number == COUNT:
                drawn = drawn.moved(sitk.TranslationTransform(3, _OFF))
            atlas = nodes.add_volume(grey, f"atlas {number}")
            made.append((atlas, _segmentation(drawn, atlas, f"atlas {number} labels")))
        folder = fusion_atlases.make_folder("Atlases", [node for pair in made for node in pair])
    return Sample(volume, reference, atlases=tuple(made), folder=folder)


def load_raters(image_file: Path, labels_file: Path) -> Sample:
    """Put the image, its labels and what several raters drew on it into the scene."""
    image, truth = sitk.ReadImage(str(image_file)), _read(labels_file)
    with nodes.all_or_nothing():
        volume, reference = _target(image, truth)
        made = []
        for number in range(1, COUNT + 1):
            rng = np.random.default_rng(100 + number)
            amount = _CARELESS if number == COUNT else _TREMBLE
            drawn = truth.moved(_bent(image, rng, amount, _TREMBLE_WAVE, 0.0))
            made.append(_segmentation(drawn, volume, f"rater {number}"))
    return Sample(volume, reference, raters=tuple(made))


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """A label map and what its values mean."""

    image: sitk.Image
    labels: list[dict[str, Any]]

    def moved(self, transform: sitk.Transform) -> _Drawn:
        return dataclasses.replace(self, image=_resampled(self.image, transform, sitk.sitkNearestNeighbor))


def _read(path: Path) -> _Drawn:
    """The label map of a .seg.nrrd, whose header says what its segments are."""
    image = sitk.ReadImage(str(path))
    labels = []
    for index in itertools.takewhile(lambda n: image.HasMetaDataKey(f"Segment{n}_Name"), itertools.count()):
        told = {key: image.GetMetaData(f"Segment{index}_{key}") for key in ("Name", "Color", "LabelValue", "Tags")}
        labels.append(
            {
                "value": int(told["LabelValue"]),
                "name": told["Name"],
                "color": [float(part) for part in told["Color"].split()],
                "terminology": told["Tags"].partition("TerminologyEntry:")[2].partition("|")[0],
            }
        )
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return _Drawn(image, labels)


def _target(image: sitk.Image, drawn: _Drawn) -> tuple[Any, Any]:
    volume = nodes.add_volume(image, "hippocampus")
    return volume, _segmentation(drawn, volume, "hippocampus reference")


def _segmentation(drawn: _Drawn, volume: Any, name: str) -> Any:
    voxels = sitk.GetArrayViewFromImage(drawn.image)
    scalars = nodes.Scalars()
    scalars.allocate(voxels.dtype, voxels.size)[:] = voxels.reshape(-1)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", slicer.mrmlScene.GenerateUniqueName(name))
    nodes.fill_segmentation(node, [scalars], drawn.labels, volume)
    return node


def _bent(image: sitk.Image, rng: np.random.Generator, bend: float, wave: float, turn: float) -> sitk.Transform:
    """A transform that bends an image by smooth waves and turns it about its middle.

    Args:
        image: gives the place.
        rng: gives the waves their phases and directions.
        bend: largest displacement along each axis, mm.
        wave: half wave length, mm.
        turn: largest angle about each axis, degrees.
    """
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    angles = [math.radians(a) for a in rng.uniform(-turn, turn, 3)]
    places = [np.arange(n) * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    grid = np.meshgrid(*places, indexing="ij")
    field = np.empty((*image.GetSize()[::-1], 3))
    for axis in range(3):
        phases = rng.uniform(0, 2 * np.pi, 3)
        waves = [np.sin(np.pi * along / wave + phase) for along, phase in zip(grid, phases, strict=True)]
        field[..., axis] = bend * np.prod(waves, axis=0).transpose(2, 1, 0)
    displacement = sitk.GetImageFromArray(field, isVector=True)
    displacement.CopyInformation(image)
    bending = sitk.DisplacementFieldTransform(displacement)
    return sitk.CompositeTransform([sitk.Euler3DTransform(middle, *angles), bending])


def _resampled(image: sitk.Image, transform: sitk.Transform, interpolator: int) -> sitk.Image:
    """On its own grid; beyond its edge it goes on as at the edge."""
    return sitk.Resample(image, image, transform, interpolator, 0.0, image.GetPixelID(), True)


def _like(voxels: np.ndarray, image: sitk.Image) -> sitk.Image:
    made = sitk.GetImageFromArray(voxels)
    made.CopyInformation(image)
    return made

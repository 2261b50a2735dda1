"""Sample data of MLI AnomalyGAN, made on the spot from one image: normal ones, and one with a lesion that is known.

A normal one is the image shifted a little, scaled in brightness and with noise; the lesion is a bright ball.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer

from . import nodes

#: Normal volumes.
COUNT = 8
#: Largest shift, mm; standard deviation of the noise, grey values.
_SHIFT, _NOISE = 1.5, 2.0
#: Centre (LPS mm), radius (mm) and brightness (grey values) of the lesion; in the white matter above the hippocampus.
_CENTRE, _RADIUS, _BRIGHT = (-28.0, 16.0, 2.0), 3.0, 90.0


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was put into the scene.

    Attributes:
        normals: volumes without a lesion.
        volume: the one with a lesion.
        lesion: the lesion.
    """

    normals: tuple[slicer.vtkMRMLScalarVolumeNode, ...]
    volume: slicer.vtkMRMLScalarVolumeNode
    lesion: slicer.vtkMRMLSegmentationNode


def load(image_file: Path) -> Sample:
    """Put the volumes and the lesion into the scene."""
    image = sitk.Cast(sitk.ReadImage(str(image_file)), sitk.sitkFloat32)
    with nodes.all_or_nothing():
        normals = tuple(nodes.add_volume(_varied(image, number), f"normal {number + 1}") for number in range(COUNT))
        ball = _ball(image)
        changed = _varied(image, COUNT)
        voxels = sitk.GetArrayFromImage(changed) + _BRIGHT * ball
        volume = nodes.add_volume(_like(voxels.astype(np.float32), image), "with a lesion")
        return Sample(normals, volume, _segmentation(ball, volume))


def _varied(image: sitk.Image, number: int) -> sitk.Image:
    rng = np.random.default_rng(number)
    moved = sitk.Resample(
        image, image, sitk.TranslationTransform(3, rng.uniform(-_SHIFT, _SHIFT, 3).tolist()), sitk.sitkLinear, 0.0,
        sitk.sitkFloat32, True,
    )  # fmt: skip
    voxels = sitk.GetArrayFromImage(moved) * rng.uniform(0.95, 1.05)
    return _like((voxels + rng.normal(0, _NOISE, voxels.shape)).astype(np.float32), image)


def _ball(image: sitk.Image) -> np.ndarray:
    """1 within the radius of the lesion's centre, else 0; (z, y, x)."""
    index = image.TransformPhysicalPointToContinuousIndex(_CENTRE)
    places = np.meshgrid(*(np.arange(n) for n in image.GetSize()[::-1]), indexing="ij")
    far = [(place - i) * s for place, i, s in zip(places, index[::-1], image.GetSpacing()[::-1], strict=True)]
    return (np.sqrt(sum(part**2 for part in far)) <= _RADIUS).astype(np.uint8)


def _like(voxels: np.ndarray, image: sitk.Image) -> sitk.Image:
    made = sitk.GetImageFromArray(voxels)
    made.CopyInformation(image)
    return made


def _segmentation(ball: np.ndarray, volume: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLSegmentationNode:
    scalars = nodes.Scalars()
    scalars.allocate(ball.dtype, ball.size)[:] = ball.reshape(-1)
    name = slicer.mrmlScene.GenerateUniqueName("known lesion")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    label = {"value": 1, "name": "lesion", "color": (0.35, 0.75, 0.95)}
    nodes.fill_segmentation(node, [scalars], [label], volume)
    return node

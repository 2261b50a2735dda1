"""Maps, masks and points travel between the image's grid and the network's: oblique, anisotropic, flipped, in 2-D."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("torch")

import torch
from grids import random_image
from tiny_bundle import write_tiny_bundle

from MLILib import geometry
from MLILib.errors import BadInput
from MLILib.explanation import aims, fields, intensity
from MLILib.explanation.subject import Subject, load, make

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "plain": str(write_tiny_bundle(folder / "plain")),
        "turned": str(write_tiny_bundle(folder / "turned", spacing=(1.3, 1.0, 1.6), orientation="LAS")),
        "flat": str(write_tiny_bundle(folder / "flat", dims=2, spacing=(1.1, 0.9))),
    }


def subject(image: sitk.Image, model: str) -> Subject:
    return make([image], ["The image"], load(model, ()), CPU)


def positions(found: Subject) -> torch.Tensor:
    """RAS (or RA) of each voxel of the prepared image, (rank, *size): an image whose values are known anywhere."""
    rank = len(found.size)
    index = np.indices(found.size).reshape(rank, -1)
    matrix = found.affine
    return torch.from_numpy((matrix[:rank, :rank] @ index + matrix[:rank, rank:]).reshape(rank, *found.size))


@pytest.mark.parametrize("model", ["plain", "turned"])
@pytest.mark.parametrize("seed", range(4))
def test_a_map_lies_where_the_patient_is(bundles: dict[str, str], model: str, seed: int) -> None:
    """A map of coordinates comes back as coordinates: linear interpolation keeps what is linear."""
    image = random_image(np.random.default_rng(seed))
    found = subject(image, bundles[model])
    array = sitk.GetArrayFromImage(found.on_grid(positions(found)))
    grid = geometry.Grid.of(image)
    for index in ([4, 5, 6], [9, 8, 7], [grid.size[0] - 5, grid.size[1] // 2, grid.size[2] // 2]):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        assert array[index[2], index[1], index[0]] == pytest.approx((-x, -y, z), abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_a_plane_too(bundles: dict[str, str], seed: int) -> None:
    image = random_image(np.random.default_rng(seed), dims=2)
    found = subject(image, bundles["flat"])
    mapped = found.on_grid(positions(found))
    assert geometry.same_grid(mapped, image)
    x, y = image.TransformIndexToPhysicalPoint([8, 6])
    assert mapped[8, 6] == pytest.approx((-x, -y), abs=0.02)


@pytest.mark.parametrize("model", ["plain", "turned"])
@pytest.mark.parametrize("seed", range(4))
def test_a_point_is_found(bundles: dict[str, str], model: str, seed: int) -> None:
    image = random_image(np.random.default_rng(seed))
    found = subject(image, bundles[model])
    x, y, z = image.TransformIndexToPhysicalPoint([7, 9, 6])
    voxel = found.voxel_at((-x, -y, z))
    there = positions(found)[(slice(None), *voxel)].numpy()
    spacing = np.linalg.norm(found.affine[:3, :3], axis=0)
    assert np.linalg.norm(there - (-x, -y, z)) <= 0.5 * np.linalg.norm(spacing) + 1e-3
    assert fields.to_ras(found) @ [*voxel, 1] == pytest.approx([*there, 1], abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_a_mask_lies_where_it_was_drawn(bundles: dict[str, str], seed: int) -> None:
    """A ball drawn on the image's grid is the ball of the network's voxels, and the smallest mask is not lost."""
    image = random_image(np.random.default_rng(seed))
    found = subject(image, bundles["turned"])
    centre = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    mask = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    mask.CopyInformation(image)
    for index in np.ndindex(*image.GetSize()):
        if np.linalg.norm(np.array(image.TransformIndexToPhysicalPoint(index)) - centre) < 6:
            mask[index] = 1
    ras = centre * (-1, -1, 1)
    distance = (positions(found) - torch.from_numpy(ras).reshape(3, 1, 1, 1)).norm(dim=0)
    inside = found.label_map(mask) != 0
    edge = max(image.GetSpacing())
    assert bool(inside[distance < 6 - edge].all())
    assert not bool(inside[distance > 6 + edge].any())
    single = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    single.CopyInformation(image)
    single[7, 8, 9] = 1
    assert int((found.label_map(single) != 0).sum()) >= 1


class TestPlanes:
    def test_a_volume_of_one_slice_is_that_slice(self, bundles: dict[str, str]) -> None:
        image = random_image(np.random.default_rng(0), dims=2)
        volume = sitk.JoinSeries([image])
        deep = subject(volume, bundles["flat"])
        assert deep.plane == 0
        mapped = deep.on_grid(torch.ones(1, *deep.size))
        assert geometry.same_grid(mapped, volume)
        assert sitk.GetArrayFromImage(mapped) == pytest.approx(1.0)

    def test_of_several_the_point_chooses(self, bundles: dict[str, str]) -> None:
        volume = random_image(np.random.default_rng(1))
        with pytest.raises(BadInput, match="Choose a slice with --point"):
            subject(volume, bundles["flat"])
        x, y, z = volume.TransformIndexToPhysicalPoint([5, 6, 4])
        point = (-x, -y, z)
        found = make([volume], ["The image"], load(bundles["flat"], ()), CPU, point=point)
        assert found.plane == 4
        array = sitk.GetArrayFromImage(found.on_grid(torch.ones(1, *found.size)))
        assert not array[[i for i in range(len(array)) if i != 4]].any()
        assert array[4].any()
        assert fields.to_ras(found) @ [*found.voxel_at(point), 1] == pytest.approx([*point, 1], abs=2.0)


class TestTargets:
    def test_no_such_label(self, bundles: dict[str, str]) -> None:
        found = subject(random_image(np.random.default_rng(0)), bundles["plain"])
        with pytest.raises(BadInput, match=r"has no label 'liver'\. It has: 0 background, 1 a, 2 b"):
            aims.find(found, "liver")

    def test_a_point_outside(self, bundles: dict[str, str]) -> None:
        found = subject(random_image(np.random.default_rng(0)), bundles["plain"])
        with pytest.raises(BadInput, match=r"lies outside the image\. The image reaches from"):
            aims.find(found, "a", point=(1e4, 0, 0))

    def test_an_empty_region(self, bundles: dict[str, str]) -> None:
        image = random_image(np.random.default_rng(0))
        empty = sitk.Image(image.GetSize(), sitk.sitkUInt8)
        empty.CopyInformation(image)
        with pytest.raises(BadInput, match="The region is empty"):
            aims.find(subject(image, bundles["plain"]), "a", region=empty)

    def test_a_label_by_number_or_name(self, bundles: dict[str, str]) -> None:
        image = random_image(np.random.default_rng(0))
        whole = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
        whole.CopyInformation(image)
        found = subject(image, bundles["plain"])
        one, other = (aims.find(found, text, region=whole) for text in ("2", "B"))
        assert one.choice == other.choice
        assert one.voxels == found.prepared.image[0].numel()


def test_units_are_those_of_the_image(bundles: dict[str, str]) -> None:
    """The network sees (x - mean) / deviation: 1 over the deviation is the scale."""
    image = random_image(np.random.default_rng(2))
    found = intensity.units(subject(image, bundles["plain"]))
    assert found is not None
    values = sitk.GetArrayFromImage(image).astype(np.float64)
    assert float(found.scale[0]) == pytest.approx(1 / values.std(), rel=1e-4)
    assert float(found.offset[0]) == pytest.approx(-values.mean() / values.std(), rel=1e-4)
    assert found.bounds is None


def test_the_box_of_a_point_is_round_it(bundles: dict[str, str], tmp_path: Path) -> None:
    image = random_image(np.random.default_rng(5))
    found = subject(image, bundles["turned"])
    x, y, z = image.TransformIndexToPhysicalPoint([8, 8, 8])
    aim = aims.find(found, "a", point=(-x, -y, z))
    boxes = fields.boxes(found, aim)
    for box in (boxes["theoretical"], boxes["effective"]):
        axes = np.array(box["axes_ras"])
        assert axes @ axes.T == pytest.approx(np.eye(3), abs=1e-4)
        along = axes @ (np.array([-x, -y, z]) - box["center_ras"])
        spacing = np.linalg.norm(found.affine[:3, :3], axis=0)
        assert (np.abs(along) <= np.array(box["size_mm"]) / 2 + spacing).all()
    assert boxes["effective"]["share"] >= 0.95

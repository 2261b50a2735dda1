"""A .seg.nrrd opens in Slicer's own segmentation node with names, colours, meaning and geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from grids import random_image
from tiny_bundle import write_tiny_bundle

from MLILib import geometry, tasks
from MLILib.labels import Label
from MLILib.segmentation import label_files, seg_nrrd

SPLEEN = (
    "Segmentation category and type - 3D Slicer General Anatomy list~SCT^123037004^Anatomical Structure"
    "~SCT^78961009^Spleen~^^~Anatomic codes - DICOM master list~^^~^^"
)
LABELS = (
    Label(1, "left: part | one", (0.1, 0.2, 0.9), SPLEEN),
    Label(4, "größer", (1.0, 0.5, 0.0), ""),
    Label(2, "not there", (0.0, 1.0, 0.0), ""),
)


@pytest.fixture
def label_map() -> sitk.Image:
    """Two boxes on a random oblique grid."""
    image = random_image(np.random.default_rng(0))
    voxels = np.zeros(image.GetSize()[::-1], np.uint8)
    voxels[3:9, 4:12, 5:10] = 1
    voxels[10:14, 2:8, 3:16] = 4
    return geometry.from_array(voxels, image)


def load(path: Path) -> Any:
    """The file in a real vtkMRMLSegmentationNode."""
    slicer = pytest.importorskip("slicer", reason="Slicer's segmentation node needs slicer-core")
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node) == 1
    node.kept_alive = scene
    return node


def voxels_of(node: Any, segment: Any, like: sitk.Image) -> np.ndarray:
    """The segment on the grid of `like`, (z, y, x) of bool, placed by Slicer's image-to-world matrix."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    del node
    image = segment.GetRepresentation("Binary labelmap")
    x0, x1, y0, y1, z0, z1 = image.GetExtent()
    out = np.zeros(like.GetSize()[::-1], bool)
    if x0 > x1:
        return out
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    to_ras = np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])
    values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(z1 - z0 + 1, y1 - y0 + 1, x1 - x0 + 1)
    k, j, i = np.nonzero(values == segment.GetLabelValue())
    ras = to_ras @ np.array([i + x0, j + y0, k + z0, np.ones(len(i))])
    for point in ras[:3].T:
        index = like.TransformPhysicalPointToIndex([-point[0], -point[1], point[2]])  # RAS to LPS
        out[index[::-1]] = True
    return out


def tag(segment: Any) -> str:
    import vtk

    text = vtk.reference("")
    segment.GetTag("TerminologyEntry", text)
    return str(text)


class TestInSlicer:
    def test_names_colours_and_meaning(self, label_map: sitk.Image, tmp_path: Path) -> None:
        seg_nrrd.write(label_map, LABELS, str(tmp_path / "a.seg.nrrd"))
        segmentation = load(tmp_path / "a.seg.nrrd").GetSegmentation()
        assert segmentation.GetNumberOfSegments() == 3
        for i, label in enumerate(LABELS):
            segment = segmentation.GetNthSegment(i)
            assert segment.GetName() == label.name
            assert segment.GetColor() == pytest.approx(label.color)
            assert segment.GetLabelValue() == label.value
        assert tag(segmentation.GetNthSegment(0)) == SPLEEN
        assert "85756007^Tissue" in tag(segmentation.GetNthSegment(1))  # as Slicer says of what it does not know

    def test_voxels_lie_where_simpleitk_has_them(self, label_map: sitk.Image, tmp_path: Path) -> None:
        seg_nrrd.write(label_map, LABELS, str(tmp_path / "a.seg.nrrd"))
        node = load(tmp_path / "a.seg.nrrd")
        for i, label in enumerate(LABELS):
            found = voxels_of(node, node.GetSegmentation().GetNthSegment(i), label_map)
            assert np.array_equal(found, sitk.GetArrayViewFromImage(label_map) == label.value)

    def test_reference_geometry_is_the_images(self, label_map: sitk.Image, tmp_path: Path) -> None:
        seg_nrrd.write(label_map, LABELS, str(tmp_path / "a.seg.nrrd"))
        text = load(tmp_path / "a.seg.nrrd").GetSegmentation().GetConversionParameter("Reference image geometry")
        numbers = [float(x) for x in text.split(";") if x]
        np.testing.assert_allclose(np.reshape(numbers[:16], (4, 4)), geometry.affine_ras(label_map), rtol=1e-12)
        assert numbers[16::2] == [0, 0, 0]
        assert numbers[17::2] == [n - 1 for n in label_map.GetSize()]

    def test_overlapping_segments(self, label_map: sitk.Image, tmp_path: Path) -> None:
        values = sitk.GetArrayViewFromImage(label_map)
        layers = np.stack([values > 0, values == 1], axis=-1).astype(np.uint8)
        image = geometry.from_array(layers, label_map, vector=True)
        seg_nrrd.write(image, LABELS[:2], str(tmp_path / "a.seg.nrrd"))
        node = load(tmp_path / "a.seg.nrrd")
        assert node.GetSegmentation().GetNumberOfLayers() == 2
        for i in range(2):
            found = voxels_of(node, node.GetSegmentation().GetNthSegment(i), label_map)
            assert np.array_equal(found, layers[..., i] == 1)

    def test_nothing_found(self, label_map: sitk.Image, tmp_path: Path) -> None:
        seg_nrrd.write(label_map * 0, LABELS, str(tmp_path / "a.seg.nrrd"))
        segmentation = load(tmp_path / "a.seg.nrrd").GetSegmentation()
        assert [segmentation.GetNthSegment(i).GetName() for i in range(3)] == [label.name for label in LABELS]

    def test_a_2d_label_map_is_one_slice(self, tmp_path: Path) -> None:
        plane = sitk.GetImageFromArray((np.arange(30).reshape(5, 6) % 2).astype(np.uint8))
        plane.SetSpacing([0.5, 0.7])
        plane.SetOrigin([3.0, 4.0])
        seg_nrrd.write(plane, LABELS[:1], str(tmp_path / "a.seg.nrrd"))
        node = load(tmp_path / "a.seg.nrrd")
        volume = sitk.JoinSeries(plane)
        found = voxels_of(node, node.GetSegmentation().GetNthSegment(0), volume)
        assert np.array_equal(found, sitk.GetArrayViewFromImage(volume) == 1)

    def test_written_by_the_task(self, tmp_path: Path) -> None:
        image = random_image(np.random.default_rng(3))
        sitk.WriteImage(image, str(tmp_path / "image.nrrd"))
        bundle = write_tiny_bundle(tmp_path / "bundle", labels=("anterior", "posterior"))
        request = tasks.SegmentRequest((str(tmp_path / "image.nrrd"),), (str(bundle),), str(tmp_path / "out.seg.nrrd"))
        labels = tasks.run(request)["labels"]
        node = load(tmp_path / "out.seg.nrrd")
        for i, label in enumerate(labels):
            segment = node.GetSegmentation().GetNthSegment(i)
            assert segment.GetName() == label["name"]
            assert segment.GetColor() == pytest.approx(label["color"], abs=1e-5)
            assert int(voxels_of(node, segment, image).sum()) == label["voxels"]


class TestHeader:
    def test_extent_is_the_bounding_box(self, label_map: sitk.Image) -> None:
        boxes = seg_nrrd.bounding_boxes(sitk.GetArrayViewFromImage(label_map), LABELS, layered=False)
        assert boxes == [(5, 9, 4, 11, 3, 8), (3, 15, 2, 7, 10, 13), (0, -1, 0, -1, 0, -1)]

    def test_a_name_stays_on_its_line(self, label_map: sitk.Image, tmp_path: Path) -> None:
        seg_nrrd.write(label_map, [Label(1, "two\nlines", (1, 0, 0), "")], str(tmp_path / "a.seg.nrrd"))
        assert load(tmp_path / "a.seg.nrrd").GetSegmentation().GetNthSegment(0).GetName() == "two lines"

    def test_the_callers_image_is_left_alone(self, label_map: sitk.Image, tmp_path: Path) -> None:
        seg_nrrd.write(label_map, LABELS, str(tmp_path / "a.seg.nrrd"))
        assert not label_map.HasMetaDataKey("Segment0_ID")

    def test_our_own_reader_agrees(self, label_map: sitk.Image, tmp_path: Path) -> None:
        seg_nrrd.write(label_map, LABELS, str(tmp_path / "a.seg.nrrd"))
        read = label_files.read(tmp_path / "a.seg.nrrd")
        assert [(label.name, label.value) for label in read.labels] == [(x.name, x.value) for x in LABELS]
        assert np.array_equal(read.layers[0], sitk.GetArrayViewFromImage(label_map))

"""MRML nodes to images and back: the same voxel in the same place, whatever the volume's axes and transforms.

The oracles are SimpleITK's own reading of the files and its TransformIndexToPhysicalPoint, and VTK's transforms.
"""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from scenes import linear, make_volume, motion, rotation

from MLILib.errors import BadInput
from MLISlicerLib import charts, nodes, transfer

LABELS = [
    {"value": 1, "name": "anterior", "color": [0.9, 0.2, 0.1], "terminology": ""},
    {"value": 3, "name": "posterior", "color": [0.1, 0.5, 1.0], "terminology": "a~1^2^3~b"},
]


def drain(generator):
    """Run steps to their end; what they return."""
    try:
        while True:
            next(generator)
    except StopIteration as end:
        return end.value


def every_grid():
    """Axis-aligned, oblique, left-handed and flipped grids: the (4, 4) matrix from indices to RAS."""
    spacing = np.diag([0.7, 1.1, 2.5])
    for name, axes in {
        "identity": np.eye(3),
        "oblique": rotation(1),
        "left-handed": rotation(2) @ np.diag([1, 1, -1.0]),
        "flipped": np.diag([-1.0, -1.0, 1.0]),
        "permuted": np.eye(3)[:, [2, 0, 1]],
    }.items():
        matrix = np.eye(4)
        matrix[:3, :3] = axes @ spacing
        matrix[:3, 3] = (11.5, -7.25, 33.125)
        yield pytest.param(matrix, id=name)


GRIDS = list(every_grid())


def scalars_of(array):
    made = nodes.Scalars()
    made.allocate(array.dtype, array.size)[:] = array.reshape(-1)
    return made


class TestVolumeToImage:
    @pytest.mark.parametrize("matrix", GRIDS)
    def test_every_corner_is_where_slicer_says(self, scene, matrix):
        volume = make_volume(scene, matrix)
        image = nodes.image_of(volume)
        for ijk in itertools.product((0, 4), (0, 6), (0, 3)):
            ras = matrix @ [*ijk, 1]
            lps = np.array(image.TransformIndexToPhysicalPoint(ijk))
            np.testing.assert_allclose(lps * (-1, -1, 1), ras[:3], atol=1e-9)

    @pytest.mark.parametrize("matrix", GRIDS)
    def test_a_linear_parent_transform_counts(self, scene, matrix):
        volume = make_volume(scene, matrix)
        outer = linear(scene, motion(6))
        inner = linear(scene, motion(7))
        inner.SetAndObserveTransformNodeID(outer.GetID())
        volume.SetAndObserveTransformNodeID(inner.GetID())
        expected = motion(6) @ motion(7) @ matrix @ [2, 3, 1, 1]
        lps = np.array(nodes.image_of(volume).TransformIndexToPhysicalPoint((2, 3, 1)))
        np.testing.assert_allclose(lps * (-1, -1, 1), expected[:3], atol=1e-9)

    def test_voxels_keep_their_place(self, scene):
        image = nodes.image_of(make_volume(scene, np.eye(4)))
        assert image.GetPixel(1, 2, 3) == 1 + 5 * (2 + 7 * 3)

    @pytest.mark.parametrize("matrix", GRIDS)
    def test_there_and_back(self, scene, matrix):
        volume = make_volume(scene, matrix, dtype=np.float32)
        again = nodes.add_volume(nodes.image_of(volume), "again")
        np.testing.assert_allclose(nodes.ijk_to_ras(again), matrix, atol=1e-9)
        np.testing.assert_array_equal(nodes.voxels_of(again), nodes.voxels_of(volume))

    def test_a_single_slice(self, scene):
        image = nodes.image_of(make_volume(scene, motion(), size=(5, 7, 1)))
        assert image.GetSize() == (5, 7, 1)


class TestRefusals:
    def test_no_image(self, scene):
        with pytest.raises(BadInput, match="empty holds no image"):
            nodes.image_of(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty"))

    def test_no_volume(self):
        with pytest.raises(BadInput, match="holds no image"):
            nodes.grid_of(None)

    def test_vectors(self, scene):
        image = vtk.vtkImageData()
        image.SetDimensions(2, 2, 2)
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
        node = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photo")
        node.SetAndObserveImageData(image)
        with pytest.raises(BadInput, match="photo has 3 values a voxel"):
            nodes.image_of(node)

    def test_a_warping_transform(self, scene):
        warp = vtk.vtkThinPlateSplineTransform()
        warp.SetBasisToR()
        for target in (vtk.vtkPoints(), vtk.vtkPoints()):
            for point in np.random.default_rng(0).normal(size=(6, 3)):
                target.InsertNextPoint(point)
            warp.SetSourceLandmarks(target) if warp.GetSourceLandmarks() is None else warp.SetTargetLandmarks(target)
        node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
        node.SetAndObserveTransformToParent(warp)
        volume = make_volume(scene, np.eye(4))
        volume.SetAndObserveTransformNodeID(node.GetID())
        with pytest.raises(BadInput, match="non-linear transform warp") as caught:
            nodes.grid_of(volume)
        assert "Harden" in caught.value.remedy

    def test_a_shearing_transform(self, scene):
        shear = np.eye(4)
        shear[0, 1] = 0.3
        volume = make_volume(scene, np.eye(4))
        volume.SetAndObserveTransformNodeID(linear(scene, shear).GetID())
        with pytest.raises(BadInput, match="not at right angles"):
            nodes.grid_of(volume)


class TestFiles:
    @pytest.mark.parametrize("matrix", GRIDS)
    def test_simpleitk_reads_the_written_volume_in_its_place(self, scene, matrix, tmp_path):
        volume = make_volume(scene, matrix)
        volume.SetAndObserveTransformNodeID(linear(scene, motion()).GetID())
        drain(nodes.write_volume(volume, tmp_path / "v.nrrd"))
        read, expected = sitk.ReadImage(tmp_path / "v.nrrd"), nodes.image_of(volume)
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(read), nodes.voxels_of(volume))
        for ijk in itertools.product((0, 4), (0, 6), (0, 3)):
            np.testing.assert_allclose(
                read.TransformIndexToPhysicalPoint(ijk), expected.TransformIndexToPhysicalPoint(ijk), atol=1e-6
            )

    @pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
    def test_every_voxel_type(self, dtype, tmp_path):
        voxels = np.arange(24, dtype=dtype).reshape(2, 3, 4)
        drain(transfer.write_nrrd(tmp_path / "v.nrrd", voxels, transfer.Grid((4, 3, 2), np.eye(4))))
        read = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "v.nrrd"))
        assert read.dtype == voxels.dtype
        np.testing.assert_array_equal(read, voxels)

    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize("matrix", GRIDS)
    def test_what_simpleitk_wrote_is_read_in_its_place(self, matrix, compressed, tmp_path):
        voxels = np.random.default_rng(3).integers(0, 4, (30, 80, 90)).astype(np.uint8)
        image = sitk.GetImageFromArray(voxels)
        lps = nodes.RAS_LPS @ matrix
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:3, :3] / spacing).flatten().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        sitk.WriteImage(image, tmp_path / "l.nrrd", useCompression=compressed)
        read, grid = drain(transfer.read_nrrd(tmp_path / "l.nrrd"))
        np.testing.assert_array_equal(read, voxels)
        np.testing.assert_allclose(grid.ijk_to_lps, lps, atol=1e-9)

    @pytest.mark.parametrize("matrix", GRIDS)
    def test_several_values_a_voxel_are_read_in_their_place(self, matrix, tmp_path):
        voxels = np.random.default_rng(3).integers(0, 2, (6, 8, 9, 3)).astype(np.uint8)
        image = sitk.GetImageFromArray(voxels, isVector=True)
        lps = nodes.RAS_LPS @ matrix
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:3, :3] / spacing).flatten().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        sitk.WriteImage(image, tmp_path / "l.nrrd")
        read, grid = drain(transfer.read_nrrd(tmp_path / "l.nrrd"))
        np.testing.assert_array_equal(read, voxels)
        np.testing.assert_allclose(grid.ijk_to_lps, lps, atol=1e-9)

    def test_highly_compressed_data_arrive_whole(self, tmp_path):
        """A megabyte of zeros packs into a kilobyte: much comes out of the decompressor after the file has ended."""
        sitk.WriteImage(sitk.Image(256, 256, 100, sitk.sitkUInt8), tmp_path / "z.nrrd", useCompression=True)
        voxels, _ = drain(transfer.read_nrrd(tmp_path / "z.nrrd"))
        assert voxels.shape == (100, 256, 256)
        assert not voxels.any()

    @pytest.mark.parametrize("compressed", [False, True])
    def test_a_file_cut_off_is_told(self, compressed, tmp_path):
        noise = np.random.default_rng(0).integers(0, 255, (40, 100, 100)).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(noise), tmp_path / "c.nrrd", useCompression=compressed)
        data = (tmp_path / "c.nrrd").read_bytes()
        (tmp_path / "c.nrrd").write_bytes(data[: len(data) // 2])
        with pytest.raises(BadInput, match="cut off"):
            drain(transfer.read_nrrd(tmp_path / "c.nrrd"))

    def test_another_format_is_told(self, tmp_path):
        (tmp_path / "x.nrrd").write_text("hello\n", encoding="utf-8")
        with pytest.raises(BadInput, match="not an NRRD"):
            drain(transfer.read_nrrd(tmp_path / "x.nrrd"))

    def test_a_volume_changed_while_it_is_read_is_told(self, scene, tmp_path):
        volume = make_volume(scene, np.eye(4), size=(200, 200, 100))
        steps = nodes.write_volume(volume, tmp_path / "v.nrrd")
        next(steps)
        volume.GetImageData().GetPointData().GetScalars().Modified()
        with pytest.raises(BadInput, match="was changed"):
            drain(steps)

    def test_a_full_disk_is_told(self, monkeypatch, tmp_path):
        def full(stream, data):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(transfer, "_write_all", full)
        with pytest.raises(BadInput, match="is full"):
            drain(transfer.write_nrrd(tmp_path / "v.nrrd", np.zeros((2, 2, 2)), transfer.Grid((2, 2, 2), np.eye(4))))


def label_array(size=(5, 7, 4)):
    labels = np.zeros(size[::-1], np.uint8)
    labels[1:3, 2:5, 1:3] = 1
    labels[2:4, 4:7, 3:5] = 3
    return labels


def segment_points(node, segment_id, world):
    """RAS centres of a segment's voxels, the slow and sure way."""
    image = slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation(segment_id, image)
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    extent = image.GetExtent()
    found = []
    for k, j, i in itertools.product(
        range(extent[4], extent[5] + 1), range(extent[2], extent[3] + 1), range(extent[0], extent[1] + 1)
    ):
        if image.GetScalarComponentAsDouble(i, j, k, 0) > 0:
            found.append((world @ nodes.matrix_of(matrix) @ [i, j, k, 1])[:3])
    return np.array(sorted(map(tuple, np.round(found, 6))))


class TestSegmentation:
    @pytest.mark.parametrize("matrix", GRIDS)
    def test_each_segment_lies_where_its_voxels_are(self, scene, matrix):
        volume = make_volume(scene, matrix)
        volume.SetAndObserveTransformNodeID(linear(scene, motion()).GetID())
        labels = label_array()
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        nodes.fill_segmentation(node, [scalars_of(labels)], LABELS, volume)
        for index, label in enumerate(LABELS):
            ijk = np.argwhere(labels == label["value"])[:, ::-1]
            expected = (motion() @ matrix @ np.c_[ijk, np.ones(len(ijk))].T).T[:, :3]
            segment_id = node.GetSegmentation().GetNthSegmentID(index)
            found = segment_points(node, segment_id, nodes.to_world(node))
            np.testing.assert_allclose(found, np.array(sorted(map(tuple, np.round(expected, 6)))), atol=1e-5)

    def test_names_colours_and_terminology(self, scene):
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        nodes.fill_segmentation(node, [scalars_of(label_array())], LABELS, make_volume(scene, np.eye(4)))
        segments = [node.GetSegmentation().GetNthSegment(n) for n in range(2)]
        assert [s.GetName() for s in segments] == ["anterior", "posterior"]
        np.testing.assert_allclose(segments[1].GetColor(), (0.1, 0.5, 1.0))
        assert segments[1].GetTerminology() == "a~1^2^3~b"

    def test_segments_share_one_label_map(self, scene):
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        nodes.fill_segmentation(node, [scalars_of(label_array())], LABELS, make_volume(scene, np.eye(4)))
        assert node.GetSegmentation().GetNumberOfLayers() == 1

    def test_labels_that_overlap_keep_all_their_voxels(self, scene):
        volume = make_volume(scene, motion())
        inner, outer = np.zeros((4, 7, 5), np.uint8), np.zeros((4, 7, 5), np.uint8)
        inner[1:3, 2:4, 1:3] = 1
        outer[0:4, 1:6, 0:4] = 1
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        nodes.fill_segmentation(node, [scalars_of(inner), scalars_of(outer)], LABELS, volume)
        assert node.GetSegmentation().GetNumberOfLayers() == 2
        for index, expected in enumerate((inner, outer)):
            ijk = np.argwhere(expected)[:, ::-1]
            lying = (motion() @ np.c_[ijk, np.ones(len(ijk))].T).T[:, :3]
            found = segment_points(node, node.GetSegmentation().GetNthSegmentID(index), np.eye(4))
            np.testing.assert_allclose(found, np.array(sorted(map(tuple, np.round(lying, 6)))), atol=1e-5)

    def test_the_reference_geometry_is_the_volumes(self, scene):
        volume = make_volume(scene, motion())
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        nodes.fill_segmentation(node, [scalars_of(label_array())], LABELS, volume)
        role = node.GetReferenceImageGeometryReferenceRole()
        assert node.GetNodeReference(role) is volume

    def test_old_segments_are_replaced(self, scene):
        volume = make_volume(scene, np.eye(4))
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        node.GetSegmentation().AddEmptySegment("old", "old")
        nodes.fill_segmentation(node, [scalars_of(label_array())], LABELS, volume)
        assert node.GetSegmentation().GetNumberOfSegments() == 2

    def test_a_result_on_another_grid_is_refused(self, scene):
        volume = make_volume(scene, np.eye(4))
        moved = transfer.Grid((5, 7, 4), motion())
        with pytest.raises(BadInput, match="does not lie on the grid"):
            nodes.require_grid(moved, volume)


class TestWriteSegments:
    @pytest.mark.parametrize("matrix", GRIDS)
    def test_on_its_own_grid_nothing_changes(self, scene, matrix, tmp_path):
        volume = make_volume(scene, matrix)
        volume.SetAndObserveTransformNodeID(linear(scene, motion()).GetID())
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        labels = label_array()
        nodes.fill_segmentation(node, [scalars_of(labels)], LABELS, volume)
        ids = [node.GetSegmentation().GetNthSegmentID(n) for n in range(2)]
        drain(nodes.write_segments(node, {ids[0]: 1, ids[1]: 3}, volume, tmp_path / "s.nrrd"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "s.nrrd")), labels)

    def test_on_another_grid_it_is_what_simpleitk_resamples(self, scene, tmp_path):
        fine = make_volume(scene, motion(8), size=(20, 24, 16), name="fine")
        coarse = make_volume(scene, motion(8) @ np.diag([2.03, 1.57, 1.73, 1.0]), size=(9, 14, 8), name="coarse")
        labels = np.zeros((16, 24, 20), np.uint8)
        labels[3:12, 5:20, 4:15] = 1
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        nodes.fill_segmentation(node, [scalars_of(labels)], LABELS[:1], fine)
        drain(nodes.write_segments(node, {node.GetSegmentation().GetNthSegmentID(0): 2}, coarse, tmp_path / "s.nrrd"))
        image = sitk.GetImageFromArray(labels * 2)
        image.CopyInformation(nodes.image_of(fine))
        expected = sitk.Resample(image, nodes.image_of(coarse), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        found = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "s.nrrd"))
        assert found.any()
        np.testing.assert_array_equal(found, sitk.GetArrayFromImage(expected))

    def test_surfaces_are_refused_with_a_remedy(self, scene, tmp_path):
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "planned")
        node.SetSourceRepresentationToClosedSurface()
        sphere = vtk.vtkSphereSource()
        sphere.Update()
        node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "ball", [1, 0, 0], "ball")
        with pytest.raises(BadInput, match="planned has no voxels") as caught:
            drain(nodes.write_segments(node, {"ball": 1}, make_volume(scene, np.eye(4)), tmp_path / "s.nrrd"))
        assert "Binary labelmap" in caught.value.remedy


class TestTablesAndPlots:
    def test_a_table_keeps_texts_and_numbers(self, scene):
        node = scene.AddNewNodeByClass("vtkMRMLTableNode")
        charts.fill_table(node, {"Structure": ["a", "b"], "Volume (ml)": [1.5, 2]})
        assert node.GetCellText(1, 0) == "b"
        assert float(node.GetCellText(0, 1)) == 1.5

    def test_bars_show_the_columns_of_the_table(self, scene):
        table = scene.AddNewNodeByClass("vtkMRMLTableNode")
        charts.fill_table(table, {"Structure": ["a", "b"], "Dice": [0.5, 0.75]})
        chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode")
        series = scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode")
        charts.fill_bar_plot(chart, table, {"Dice": series}, title="Agreement", labels="Structure", y_title="Score")
        assert chart.GetNthPlotSeriesNode(0) is series
        assert series.GetTableNode() is table
        assert (series.GetYColumnName(), series.GetLabelColumnName()) == ("Dice", "Structure")
        assert series.GetPlotType() == slicer.vtkMRMLPlotSeriesNode.PlotTypeBar

    def test_text_goes_into_the_scene_file(self, scene):
        node = scene.AddNewNodeByClass("vtkMRMLTextNode")
        nodes.fill_text(node, '{"task": "segment"}')
        assert node.GetText() == '{"task": "segment"}'
        assert node.GetForceCreateStorageNode() == slicer.vtkMRMLTextNode.CreateStorageNodeNever


class TestSubjectHierarchy:
    def test_a_result_goes_into_the_volumes_folder(self, scene):
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        volume, table = make_volume(scene, np.eye(4)), scene.AddNewNodeByClass("vtkMRMLTableNode")
        folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "patient")
        hierarchy.CreateItem(folder, volume)
        item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), table)
        nodes.file_beside(table, volume)
        assert hierarchy.GetItemParent(item) == folder

    def test_without_a_tree_nothing_happens(self, scene):
        volume, table = make_volume(scene, np.eye(4)), scene.AddNewNodeByClass("vtkMRMLTableNode")
        before = scene.GetNumberOfNodes()
        nodes.file_beside(table, volume)
        assert scene.GetNumberOfNodes() == before


class TestAllOrNothing:
    def test_an_error_takes_back_what_was_added(self, scene):
        make_volume(scene, np.eye(4))
        before = scene.GetNumberOfNodes()

        def fail():
            with nodes.all_or_nothing():
                scene.AddNewNodeByClass("vtkMRMLTableNode")
                scene.AddNewNodeByClass("vtkMRMLSegmentationNode").CreateDefaultDisplayNodes()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert scene.GetNumberOfNodes() == before

    def test_without_an_error_it_stays(self, scene):
        with nodes.all_or_nothing():
            scene.AddNewNodeByClass("vtkMRMLTableNode")
        assert scene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 1

"""Registration results as transform nodes: landmarks go through Slicer's own transform logic in both directions.

The oracle is SimpleITK: a transform T from fixed to moving points, in LPS. A node above the moving volume must bring
the moving point T(p) to p. Grids are oblique, anisotropic and left-handed.
"""

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from scenes import linear, make_volume, motion, rotation
from vtk.util import numpy_support

from MLILib.errors import BadInput
from MLISlicerLib import nodes, transforms
from MLISlicerLib.transfer import Grid

FLIP = np.array([-1.0, -1.0, 1.0])


def oblique_grid(size=(24, 20, 22), left_handed=False):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(11) * (1.5, 2.0, 1.2) * (-1 if left_handed else 1, 1, 1)
    matrix[:3, 3] = (12.0, -31.0, 7.0)
    return Grid(size, matrix)


def image_on(grid, array):
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    image.SetOrigin(grid.origin.tolist())
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection(grid.direction.flatten().tolist())
    return image


def points_inside(grid, count=20, margin=4, seed=0):
    """LPS points well inside a grid, and not at its voxels."""
    ijk = np.random.default_rng(seed).uniform(margin, np.array(grid.size) - 1 - margin, (count, 3))
    return ijk @ grid.ijk_to_lps[:3, :3].T + grid.origin


def affine():
    """A rotation by 25 degrees with anisotropic scale and shear, about a point away from the origin."""
    transform = sitk.AffineTransform(3)
    transform.SetCenter((20.0, -10.0, 30.0))
    transform.Rotate(0, 1, np.deg2rad(25))
    transform.Scale((1.1, 0.9, 1.05))
    transform.Shear(0, 2, 0.07)
    transform.Translate((6.0, -4.0, 9.0))
    return transform


def field_on(grid, linear_part=None, dtype=np.float64):
    """A smooth field of some voxels' amplitude in LPS mm, after which a linear transform may act; (k, j, i, 3)."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in grid.size[::-1]), indexing="ij")
    points = np.stack([i, j, k], -1) @ grid.ijk_to_lps[:3, :3].T + grid.origin
    phases = np.stack([k / 7 + 0.3, i / 6, j / 8 + 1], -1)
    moved = points + np.sin(phases) * (2.0, -1.5, 2.5)
    if linear_part is not None:
        matrix = transforms.matrix_of_transform(linear_part)
        moved = moved @ matrix[:3, :3].T + matrix[:3, 3]
    return (moved - points).astype(dtype)


def drain(steps):
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value


def grid_node(scene, field, grid, tmp_path):
    path = tmp_path / "field.nrrd"
    sitk.WriteImage(image_on(grid, field), str(path))
    vectors, found = drain(transforms.read_field(path))
    np.testing.assert_allclose(found.ijk_to_lps, grid.ijk_to_lps, atol=1e-9)
    node = scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "deformable")
    transforms.fill_grid(node, vectors, found)
    return node


def linear_node(scene, transform):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "linear")
    transforms.fill_linear(node, transforms.matrix_of_transform(transform))
    return node


def through(node, function, ras):
    """Where a point of a child of the transform node lies in the world, or a point of the world in the child."""
    child = node.GetScene().AddNewNodeByClass("vtkMRMLModelNode")
    child.SetAndObserveTransformNodeID(node.GetID())
    found = [0.0, 0.0, 0.0]
    getattr(child, function)(ras, found)
    node.GetScene().RemoveNode(child)
    return np.array(found)


def check_landmarks(node, transform, points, tolerance):
    """Moving points come to the fixed ones in the world, and fixed points go to the moving ones."""
    for fixed in points:
        moving = np.array(transform.TransformPoint(fixed.tolist()))
        found = through(node, "TransformPointToWorld", moving * FLIP)
        np.testing.assert_allclose(found, fixed * FLIP, atol=tolerance)
        found = through(node, "TransformPointFromWorld", fixed * FLIP)
        np.testing.assert_allclose(found, moving * FLIP, atol=tolerance)


class TestLinear:
    @pytest.mark.parametrize("seed", [1, 2])
    def test_landmarks_in_both_directions(self, scene, seed):
        transform = affine()
        check_landmarks(linear_node(scene, transform), transform, points_inside(oblique_grid(), seed=seed), 1e-9)

    def test_a_composite_of_linear_transforms_is_taken_as_one(self, scene):
        euler = sitk.Euler3DTransform((5.0, 5.0, 5.0), 0.1, -0.2, 0.3, (3.0, 2.0, 1.0))
        both = sitk.CompositeTransform([affine(), euler])
        check_landmarks(linear_node(scene, both), both, points_inside(oblique_grid()), 1e-9)

    def test_a_field_is_refused(self):
        field = sitk.DisplacementFieldTransform(image_on(oblique_grid(), field_on(oblique_grid())))
        with pytest.raises(BadInput, match="not a linear"):
            transforms.matrix_of_transform(field)

    def test_a_collapsed_transform_is_refused(self, scene):
        node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "flat")
        with pytest.raises(BadInput, match="cannot be inverted"):
            transforms.fill_linear(node, np.diag([1.0, 1.0, 0.0, 1.0]))

    def test_what_is_written_to_start_from_is_the_same_transform(self, scene, tmp_path):
        transform = affine()
        node = linear_node(scene, transform)
        transforms.write_linear(node, tmp_path / "init.tfm")
        again = sitk.ReadTransform(str(tmp_path / "init.tfm"))
        for point in points_inside(oblique_grid()):
            expected = transform.TransformPoint(point.tolist())
            np.testing.assert_allclose(again.TransformPoint(point.tolist()), expected, atol=1e-9)

    def test_starting_from_a_deformation_is_refused(self, scene, tmp_path):
        node = grid_node(scene, field_on(oblique_grid()), oblique_grid(), tmp_path)
        with pytest.raises(BadInput, match="not a linear transform"):
            transforms.write_linear(node, tmp_path / "init.tfm")


class TestDeformable:
    @pytest.mark.parametrize("left_handed", [False, True])
    @pytest.mark.parametrize("linear_part", [None, affine()], ids=["small", "with an affine part"])
    def test_landmarks_in_both_directions(self, scene, tmp_path, left_handed, linear_part):
        grid = oblique_grid(left_handed=left_handed)
        field = field_on(grid, linear_part)
        node = grid_node(scene, field, grid, tmp_path)
        oracle = sitk.DisplacementFieldTransform(sitk.Image(image_on(grid, field)))
        check_landmarks(node, oracle, points_inside(grid), 1e-4)

    def test_single_precision_fields_too(self, scene, tmp_path):
        grid = oblique_grid()
        field = field_on(grid, dtype=np.float32)
        node = grid_node(scene, field, grid, tmp_path)
        oracle = sitk.DisplacementFieldTransform(image_on(grid, field.astype(np.float64)))
        check_landmarks(node, oracle, points_inside(grid), 1e-4)

    def test_slicer_reads_the_same_file_as_the_same_transform(self, scene, tmp_path):
        grid = oblique_grid()
        ours = grid_node(scene, field_on(grid), grid, tmp_path)
        storage = scene.AddNewNodeByClass("vtkMRMLTransformStorageNode")
        storage.SetFileName(str(tmp_path / "field.nrrd"))
        slicers = scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "read by Slicer")
        assert storage.ReadData(slicers)
        for point in points_inside(grid):
            for direction in ("TransformPointToWorld", "TransformPointFromWorld"):
                found = through(ours, direction, point * FLIP)
                # Slicer's reader interpolates by cubic splines, and inverts with VTK's looser tolerance
                np.testing.assert_allclose(found, through(slicers, direction, point * FLIP), atol=0.02)

    def test_an_image_is_no_field(self, tmp_path):
        sitk.WriteImage(image_on(oblique_grid(), np.zeros((22, 20, 24))), str(tmp_path / "image.nrrd"))
        with pytest.raises(BadInput, match="not a displacement field"):
            drain(transforms.read_field(tmp_path / "image.nrrd"))


def both_kinds(scene, tmp_path):
    """(node, SimpleITK's transform, tolerance) of a linear and of a deformable result."""
    grid = oblique_grid()
    field = field_on(grid, affine())
    yield linear_node(scene, affine()), affine(), 1e-6
    oracle = sitk.DisplacementFieldTransform(image_on(grid, field))
    yield grid_node(scene, field, grid, tmp_path), oracle, 1e-4


class TestHardening:
    def test_markups_and_models_drawn_in_the_moving_image_come_to_the_fixed_one(self, scene, tmp_path):
        fixed = points_inside(oblique_grid())
        for node, oracle, tolerance in both_kinds(scene, tmp_path):
            moving = np.array([oracle.TransformPoint(point.tolist()) for point in fixed]) * FLIP
            markups = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "landmarks")
            for point in moving:
                markups.AddControlPoint(*point)
            transforms.put_under(markups, node)
            markups.HardenTransform()
            assert markups.GetParentTransformNode() is None
            found = slicer.util.arrayFromMarkupsControlPoints(markups)
            np.testing.assert_allclose(found, fixed * FLIP, atol=tolerance)

            model = scene.AddNewNodeByClass("vtkMRMLModelNode", "surface")
            mesh = vtk.vtkPolyData()
            vertices = vtk.vtkPoints()
            vertices.SetData(numpy_support.numpy_to_vtk(moving, deep=True))
            mesh.SetPoints(vertices)
            model.SetAndObservePolyData(mesh)
            transforms.put_under(model, node)
            model.HardenTransform()
            np.testing.assert_allclose(
                numpy_support.vtk_to_numpy(model.GetPolyData().GetPoints().GetData()), fixed * FLIP, atol=tolerance
            )

    def test_the_inverse_brings_what_is_drawn_in_the_fixed_image_to_the_moving_one(self, scene, tmp_path):
        fixed = points_inside(oblique_grid())
        for node, oracle, tolerance in both_kinds(scene, tmp_path):
            inverse = transforms.inverse_of(node)
            assert inverse.GetClassName() == node.GetClassName()
            markups = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "landmarks")
            for point in fixed:
                markups.AddControlPoint(*(point * FLIP))
            transforms.put_under(markups, inverse)
            markups.HardenTransform()
            moving = np.array([oracle.TransformPoint(point.tolist()) for point in fixed]) * FLIP
            np.testing.assert_allclose(slicer.util.arrayFromMarkupsControlPoints(markups), moving, atol=tolerance)


class TestParents:
    def test_a_node_keeps_its_own_transform_below_the_result(self, scene, tmp_path):
        """The result's moving points are those of the world, so the volume's own transform acts first."""
        own = linear(scene, motion(4), "own")
        for node, oracle, tolerance in both_kinds(scene, tmp_path):
            markups = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "landmarks")
            markups.SetAndObserveTransformNodeID(own.GetID())
            fixed = points_inside(oblique_grid())
            for point in fixed:
                moving = np.array(oracle.TransformPoint(point.tolist())) * FLIP
                markups.AddControlPoint(*(np.linalg.inv(motion(4)) @ [*moving, 1])[:3])
            transforms.put_under(markups, node)
            for index, point in enumerate(fixed):
                found = [0.0, 0.0, 0.0]
                markups.GetNthControlPointPositionWorld(index, found)
                np.testing.assert_allclose(found, point * FLIP, atol=tolerance)
            np.testing.assert_allclose(nodes.to_world(markups, below=node), motion(4), atol=1e-9)

    def test_nodes_of_one_place_share_one_copy_and_the_original_stays(self, scene):
        own, result = linear(scene, motion(4), "own"), linear_node(scene, affine())
        first, second, other = (scene.AddNewNodeByClass("vtkMRMLModelNode", name) for name in "abc")
        for node in (first, second, other):
            node.SetAndObserveTransformNodeID(own.GetID())
        for _ in range(2):  # the second time there is nothing left to do
            transforms.put_under(first, result)
            transforms.put_under(second, result)
        assert first.GetParentTransformNode() is second.GetParentTransformNode()
        assert first.GetParentTransformNode().GetParentTransformNode() is result
        assert other.GetParentTransformNode() is own
        assert own.GetParentTransformNode() is None
        assert scene.GetNumberOfNodesByClass("vtkMRMLLinearTransformNode") == 3

    def test_what_is_under_a_deformation_already_is_refused(self, scene, tmp_path):
        deformable = grid_node(scene, field_on(oblique_grid()), oblique_grid(), tmp_path)
        model = scene.AddNewNodeByClass("vtkMRMLModelNode", "surface")
        model.SetAndObserveTransformNodeID(deformable.GetID())
        with pytest.raises(BadInput, match="Harden"):
            transforms.put_under(model, linear_node(scene, affine()))


class TestResampled:
    def test_as_simpleitk_resamples(self, scene, tmp_path):
        """Through Slicer's transform nodes, with volumes under transforms of their own; compared inside only."""
        rng = np.random.default_rng(0)
        grid = oblique_grid()
        fixed = make_volume(scene, np.linalg.inv(motion(6)) @ nodes.RAS_LPS @ grid.ijk_to_lps, grid.size, name="fixed")
        fixed.SetAndObserveTransformNodeID(linear(scene, motion(6)).GetID())
        matrix = np.eye(4)
        matrix[:3, :3] = rotation(2) * (2.2, 2.4, 2.0)
        # its middle is where the affine transform takes the middle of the fixed volume
        centre = affine().TransformPoint((grid.ijk_to_lps @ [11.5, 9.5, 10.5, 1])[:3].tolist()) * FLIP
        matrix[:3, 3] = centre - matrix[:3, :3] @ [17.5, 19.5, 16.5]
        moving = make_volume(scene, np.linalg.inv(motion(7)) @ matrix, (36, 40, 34), np.float32, "moving")
        nodes.voxels_of(moving)[:] = rng.normal(size=(34, 40, 36))
        moving.SetAndObserveTransformNodeID(linear(scene, motion(7)).GetID())
        for node, oracle, _ in both_kinds(scene, tmp_path):
            expected = sitk.Resample(nodes.image_of(moving), nodes.image_of(fixed), oracle, sitk.sitkLinear, -9.0)
            expected = sitk.GetArrayFromImage(expected)
            for applied in (False, True):
                if applied:
                    transforms.put_under(moving, node)
                found, inside = drain(transforms.resampled(moving, fixed, node))
                covered = expected > -8.9
                assert (covered & inside).mean() > 0.3
                np.testing.assert_allclose(found[covered & inside], expected[covered & inside], atol=2e-4)
                assert (covered != inside).mean() < 0.03  # VTK and ITK differ by half a voxel at the border
            moving.SetAndObserveTransformNodeID(linear(scene, motion(7)).GetID())

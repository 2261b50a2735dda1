"""Registration results as MRML transform nodes, in the direction that Slicer expects, and nodes put under them.

SimpleITK's transform T maps fixed points to moving points, in LPS. A transform node above the moving volume moves it
onto the fixed one: its transform *to* parent maps moving points to fixed ones, and its transform *from* parent is T, in
RAS. A displacement field is stored as the latter, so that VTK inverts it only where points are moved and not voxels.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util import numpy_support

from MLILib.errors import BadInput

from . import nodes
from .jobs import Status
from .transfer import Grid, read_nrrd

LINEAR, DEFORMABLE = "vtkMRMLLinearTransformNode", "vtkMRMLGridTransformNode"

#: Voxels a step: some milliseconds.
_VOXELS = 1 << 17
#: Attribute of a copy of a transform: the id of the result it was made for.
_PART_OF = "MLI.PartOf"
#: Reference from a result to its inverse.
_INVERSE = "MLI.inverse"


# -- linear


def matrix_of_transform(transform: sitk.Transform) -> np.ndarray:
    """The (4, 4) matrix of a 3-D SimpleITK transform, as it maps points in LPS.

    Raises:
        BadInput: it is not linear.
    """
    if transform.GetDimension() != 3 or not transform.IsLinear():
        raise BadInput(
            "The transform is not a linear one in 3-D.", "A linear result was expected.", "Run the job again."
        )
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    for axis in range(3):
        matrix[:3, axis] = np.array(transform.TransformPoint(np.eye(3)[axis].tolist())) - origin
    matrix[:3, 3] = origin
    return matrix


def fill_linear(node: slicer.vtkMRMLLinearTransformNode, fixed_to_moving: np.ndarray) -> None:
    """Give a linear transform node the transform that moves the moving volume onto the fixed one.

    Args:
        node: the transform node.
        fixed_to_moving: (4, 4) matrix, LPS mm.

    Raises:
        BadInput: it cannot be inverted.
    """
    ras = nodes.RAS_LPS @ fixed_to_moving @ nodes.RAS_LPS
    if not np.isfinite(ras).all() or abs(np.linalg.det(ras)) < 1e-9:
        raise BadInput(
            "The transform cannot be inverted.", "The registration collapsed the image.", "Try other settings."
        )
    node.SetMatrixTransformToParent(nodes.vtk_matrix_of(np.linalg.inv(ras)))


def write_linear(node: slicer.vtkMRMLTransformNode, path: Path) -> None:
    """Write a transform node, with what lies above it, as a SimpleITK transform from fixed to moving points.

    Args:
        node: a transform that moves the moving volume towards the fixed one.
        path: file to write, .tfm or .h5.

    Raises:
        BadInput: it is not linear, or cannot be inverted.
    """
    matrix = vtk.vtkMatrix4x4()
    if not node.IsTransformToWorldLinear() or not node.GetMatrixTransformToWorld(matrix):
        raise BadInput(
            f"{node.GetName()} is not a linear transform.",
            "A registration starts from a linear one.",
            "Choose a linear transform to start from, or none.",
        )
    moving_to_fixed = nodes.matrix_of(matrix)
    if abs(np.linalg.det(moving_to_fixed)) < 1e-9:
        raise BadInput(f"{node.GetName()} cannot be inverted.", "", "Choose another transform to start from.")
    lps = nodes.RAS_LPS @ np.linalg.inv(moving_to_fixed) @ nodes.RAS_LPS
    affine = sitk.AffineTransform(lps[:3, :3].flatten().tolist(), lps[:3, 3].tolist())
    sitk.WriteTransform(affine, str(path))


# -- deformable


def read_field(path: Path, stage: str = "") -> Generator[Status | None, None, tuple[nodes.Scalars, Grid]]:
    """Read a displacement field (NRRD, LPS mm) as one in RAS, a slab a step.

    Raises:
        BadInput: it is not a field of three components.
    """
    scalars = nodes.Scalars()
    voxels, grid = yield from read_nrrd(path, stage, allocate=scalars.allocate)
    if voxels.ndim != 4 or voxels.shape[3] != 3 or scalars.array is None:
        raise BadInput(f"{path.name} is not a displacement field.", "It has not three values a voxel.", "Run it again.")
    scalars.array.SetNumberOfComponents(3)
    vectors = voxels.reshape(-1, 3)
    for start in range(0, len(vectors), _VOXELS):
        np.negative(vectors[start : start + _VOXELS, :2], out=vectors[start : start + _VOXELS, :2])
        yield Status(stage)
    return scalars, grid


def fill_grid(node: slicer.vtkMRMLGridTransformNode, vectors: nodes.Scalars, grid: Grid) -> None:
    """Give a grid transform node the displacements from fixed to moving points.

    Args:
        node: the transform node.
        vectors: displacements in RAS mm, one tuple of three a voxel.
        grid: where they lie.
    """
    image = vtk.vtkImageData()
    image.SetDimensions(grid.size)
    image.SetSpacing(*grid.spacing)
    image.SetOrigin(*(nodes.RAS_LPS[:3, :3] @ grid.origin))
    image.GetPointData().SetScalars(vectors.array)
    direction = np.eye(4)
    direction[:3, :3] = nodes.RAS_LPS[:3, :3] @ grid.direction
    transform = slicer.vtkOrientedGridTransform()
    transform.SetGridDirectionMatrix(nodes.vtk_matrix_of(direction))
    transform.SetDisplacementGridData(image)
    transform.SetInterpolationModeToLinear()  # between voxels as ITK does
    transform.SetInverseTolerance(1e-5)  # of landmarks that are moved; VTK's own leaves up to 0.007 mm
    node.SetAndObserveTransformFromParent(transform)


# -- nodes under a transform


def put_under(
    node: slicer.vtkMRMLTransformableNode,
    transform: slicer.vtkMRMLTransformNode,
    instead_of: slicer.vtkMRMLTransformNode | None = None,
) -> None:
    """Move a node with a result, on top of the transforms that it is under already.

    A transform of its own is not touched, since other nodes may be under it: a copy of it goes under `transform`.

    Args:
        node: what is moved.
        transform: what moves it.
        instead_of: an earlier result that the node is taken out of; by default `transform` itself.

    Raises:
        BadInput: it is under a transform that is not linear.
    """
    matrix = nodes.to_world(node, below=instead_of or transform)
    if np.allclose(matrix, np.eye(4), atol=1e-12):
        node.SetAndObserveTransformNodeID(transform.GetID())
    elif not nodes.is_under(node, transform):
        place = _copy_under(node.GetParentTransformNode().GetName(), matrix, transform)
        node.SetAndObserveTransformNodeID(place.GetID())


def _copy_under(
    name: str, matrix: np.ndarray, transform: slicer.vtkMRMLTransformNode
) -> slicer.vtkMRMLLinearTransformNode:
    """A transform of this matrix under `transform`: the one that was made for another node, or a new one."""
    for made in slicer.util.getNodesByClass(LINEAR):
        if made.GetAttribute(_PART_OF) == transform.GetID() and made.GetParentTransformNode() is transform:
            held = vtk.vtkMatrix4x4()
            made.GetMatrixTransformToParent(held)
            if np.allclose(nodes.matrix_of(held), matrix, atol=1e-9):
                return made
    title = slicer.mrmlScene.GenerateUniqueName(f"{name} within {transform.GetName()}")
    made = slicer.mrmlScene.AddNewNodeByClass(LINEAR, title)
    made.SetMatrixTransformToParent(nodes.vtk_matrix_of(matrix))
    made.SetAttribute(_PART_OF, transform.GetID())
    made.SetAndObserveTransformNodeID(transform.GetID())
    return made


def holds_data(node: slicer.vtkMRMLTransformNode) -> bool:
    """Whether a transform node does anything; one that was just made does not."""
    matrix = vtk.vtkMatrix4x4()
    if not node.IsLinear():
        return True
    node.GetMatrixTransformToParent(matrix)
    return not np.array_equal(nodes.matrix_of(matrix), np.eye(4))


def inverse_of(node: slicer.vtkMRMLTransformNode) -> slicer.vtkMRMLTransformNode:
    """A transform node that does the opposite: it moves what was drawn in the fixed volume onto the moving one.

    It is made once, and refreshed each time, so that it goes with a transform that was filled again.
    """
    made = node.GetNodeReference(_INVERSE)
    if made is None:
        name = slicer.mrmlScene.GenerateUniqueName(f"{node.GetName()} inverse")
        made = slicer.mrmlScene.AddNewNodeByClass(node.GetClassName(), name)
        node.SetNodeReferenceID(_INVERSE, made.GetID())
    made.CopyContent(node)
    made.Inverse()
    return made


def refresh_inverse(node: slicer.vtkMRMLTransformNode) -> None:
    """Let the inverse of a transform that was filled again be its inverse, where one was made."""
    if node.GetNodeReference(_INVERSE) is not None:
        inverse_of(node)


# -- voxels through a transform


def resampled(
    moving: slicer.vtkMRMLVolumeNode,
    fixed: slicer.vtkMRMLVolumeNode,
    transform: slicer.vtkMRMLTransformNode,
    stage: str = "",
    *,
    before: bool = False,
) -> Generator[Status | None, None, tuple[np.ndarray, np.ndarray]]:
    """The moving volume on the grid of the fixed one, through a transform node, by Slicer's own logic, a slab a step.

    Args:
        moving: taken as it lies below `transform`, whether it is under it at the moment or not.
        fixed: as it lies in the world.
        transform: moves the moving volume onto the fixed one.
        stage: name shown while it runs.
        before: without the transform, to see what it changes.

    Returns:
        float32 (k, j, i), trilinear, and where the moving volume reaches (bool).

    Raises:
        BadInput: a volume cannot be used.
    """
    grid, source = nodes.grid_of(fixed), nodes.grid_of(moving, below=transform)
    voxels = nodes.voxels_of(moving)
    through = vtk.vtkGeneralTransform()  # fixed indices to moving ones
    through.PostMultiply()
    through.Concatenate(nodes.vtk_matrix_of(nodes.RAS_LPS @ grid.ijk_to_lps))
    if not before:
        from_world = vtk.vtkGeneralTransform()
        transform.GetTransformFromWorld(from_world)
        through.Concatenate(from_world)
    through.Concatenate(nodes.vtk_matrix_of(np.linalg.inv(nodes.RAS_LPS @ source.ijk_to_lps)))
    image = vtk.vtkImageData()  # in voxel indices: the transform holds all geometry
    image.SetDimensions(moving.GetImageData().GetDimensions())
    image.GetPointData().SetScalars(moving.GetImageData().GetPointData().GetScalars())
    low = float(voxels.min())
    reslice = vtk.vtkImageReslice()
    reslice.SetInputData(image)
    reslice.SetResliceTransform(through)
    reslice.SetInterpolationModeToLinear()
    reslice.SetOutputScalarType(vtk.VTK_FLOAT)
    reslice.SetOutputSpacing(1, 1, 1)
    reslice.SetOutputOrigin(0, 0, 0)
    reslice.SetBackgroundLevel(low)
    reslice.GenerateStencilOutputOn()
    found = np.full(grid.size[::-1], low, np.float32)
    inside = np.zeros(found.shape, bool)
    slices = max(1, _VOXELS // (grid.size[0] * grid.size[1]))
    for start in range(0, grid.size[2], slices):
        stop = min(start + slices, grid.size[2])
        reslice.SetOutputExtent(0, grid.size[0] - 1, 0, grid.size[1] - 1, start, stop - 1)
        reslice.Update()
        slab = numpy_support.vtk_to_numpy(reslice.GetOutput().GetPointData().GetScalars())
        found[start:stop] = slab.reshape(found[start:stop].shape)
        inside[start:stop] = _stencilled(reslice, found[start:stop].shape)
        yield Status(stage, stop / grid.size[2])
    return found, inside


def _stencilled(reslice: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Which voxels of the last slab the moving volume reaches."""
    to_image = vtk.vtkImageStencilToImage()
    to_image.SetInputConnection(reslice.GetStencilOutputPort())
    to_image.SetOutputScalarTypeToUnsignedChar()
    to_image.Update()
    return numpy_support.vtk_to_numpy(to_image.GetOutput().GetPointData().GetScalars()).reshape(shape).astype(bool)

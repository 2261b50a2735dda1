"""MRML nodes to and from images: volumes, label maps and segmentations, in the right place.

Slicer's nodes say where voxels lie in RAS, files and SimpleITK say it in LPS: x and y change sign, here and nowhere
else. A volume under a linear transform is handed on as it lies in the world; the results get the volume's own grid and
the same parent transform, so that they lie over it and move with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util import numpy_support

from MLILib.errors import BadInput

from .jobs import Status
from .transfer import Grid, write_nrrd

#: Between RAS and LPS millimetres, both ways.
RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

_BINARY_LABELMAP = "Binary labelmap"


# -- geometry


def matrix_of(vtk_matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    """A vtkMatrix4x4 as a (4, 4) array."""
    return np.array([[vtk_matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def vtk_matrix_of(matrix: np.ndarray) -> vtk.vtkMatrix4x4:
    """A (4, 4) array as a vtkMatrix4x4."""
    made = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            made.SetElement(row, column, float(matrix[row, column]))
    return made


def ijk_to_ras(volume: slicer.vtkMRMLVolumeNode) -> np.ndarray:
    """(4, 4) matrix from the volume's voxel indices to its own RAS, before any parent transform."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return matrix_of(matrix)


def is_under(node: slicer.vtkMRMLTransformableNode, transform: slicer.vtkMRMLTransformNode | None) -> bool:
    """Whether `transform` is one of the node's parents."""
    parent = node.GetParentTransformNode()
    while parent is not None and parent is not transform:
        parent = parent.GetParentTransformNode()
    return transform is not None and parent is transform


def to_world(node: slicer.vtkMRMLTransformableNode, below: slicer.vtkMRMLTransformNode | None = None) -> np.ndarray:
    """(4, 4) matrix of the node's parent transforms, from its own RAS to the world's.

    Args:
        node: any node that can be transformed.
        below: a transform to leave out with all that is above it, if the node is under it: a registration's result, so
            that the registration can be repeated.

    Raises:
        BadInput: one of them is not linear.
    """
    parent = node.GetParentTransformNode()
    if parent is None or parent is below:
        return np.eye(4)
    matrix = vtk.vtkMatrix4x4()
    if below is not None and is_under(node, below):
        found = parent.IsTransformToNodeLinear(below) and parent.GetMatrixTransformToNode(below, matrix)
    else:
        found = parent.IsTransformToWorldLinear() and parent.GetMatrixTransformToWorld(matrix)
    if not found:
        raise BadInput(
            f"{node.GetName()} is under the non-linear transform {parent.GetName()}.",
            "A warped volume has no regular grid.",
            "Harden the transform first (Data module, right-click on the transform of the volume).",
        )
    return matrix_of(matrix)


def grid_of(volume: slicer.vtkMRMLVolumeNode, below: slicer.vtkMRMLTransformNode | None = None) -> Grid:
    """Where the volume's voxels lie in the world, in LPS, or without the transform `below` (see :func:`to_world`).

    Raises:
        BadInput: it holds no image, or its transform bends or shears it.
    """
    require_image(volume)
    grid = Grid(tuple(volume.GetImageData().GetDimensions()), RAS_LPS @ to_world(volume, below) @ ijk_to_ras(volume))
    return _regular(grid, volume)


def _regular(grid: Grid, node: slicer.vtkMRMLTransformableNode) -> Grid:
    if not np.allclose(grid.direction.T @ grid.direction, np.eye(3), atol=1e-4):
        raise BadInput(
            f"The axes of {node.GetName()} are not at right angles.",
            "A transform above it shears it, or it was acquired with a tilted gantry.",
            "Resample it onto a regular grid first (module Resample Scalar/Vector/DWI Volume).",
        )
    return grid


def grid_of_segmentation(node: slicer.vtkMRMLSegmentationNode) -> Grid:
    """The grid that a segmentation was drawn on, as it lies in the world, in LPS.

    Raises:
        BadInput: it does not say so, or its transform bends or shears it.
    """
    text = node.GetSegmentation().GetConversionParameter(
        slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    )
    image = slicer.vtkOrientedImageData()
    if not text or not slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, image, False):
        raise BadInput(
            f"The segmentation {node.GetName()} does not say on which grid it was drawn.",
            "It has no source volume.",
            "Choose the volume that it belongs to.",
        )
    extent = image.GetExtent()
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    shift = np.eye(4)
    shift[:3, 3] = extent[::2]
    size = (extent[1] - extent[0] + 1, extent[3] - extent[2] + 1, extent[5] - extent[4] + 1)
    return _regular(Grid(size, RAS_LPS @ to_world(node) @ matrix_of(matrix) @ shift), node)


def same_grid(one: Grid, other: Grid) -> bool:
    """Whether two grids have as many voxels, and these in the same places to a thousandth of a millimetre."""
    return one.size == other.size and np.allclose(one.ijk_to_lps, other.ijk_to_lps, rtol=1e-4, atol=1e-3)


def require_image(volume: slicer.vtkMRMLVolumeNode | None) -> None:
    """Raise :class:`BadInput` where there are no voxels."""
    if volume is None or volume.GetImageData() is None or 0 in volume.GetImageData().GetDimensions():
        name = "The input volume" if volume is None else volume.GetName()
        raise BadInput(f"{name} holds no image.", "", "Load an image, or choose another volume.")


def voxels_of(volume: slicer.vtkMRMLVolumeNode) -> np.ndarray:
    """The volume's voxels as (k, j, i), a view and not a copy.

    Raises:
        BadInput: it holds no image, or vectors.
    """
    require_image(volume)
    scalars = volume.GetImageData().GetPointData().GetScalars()
    if scalars is None:
        raise BadInput(f"{volume.GetName()} holds no image.", "", "Load an image, or choose another volume.")
    if scalars.GetNumberOfComponents() != 1:
        raise BadInput(
            f"{volume.GetName()} has {scalars.GetNumberOfComponents()} values a voxel.",
            "It is a colour or vector volume.",
            "Convert it to a scalar volume first (module Vector to Scalar Volume).",
        )
    return numpy_support.vtk_to_numpy(scalars).reshape(volume.GetImageData().GetDimensions()[::-1])


def write_volume(
    volume: slicer.vtkMRMLVolumeNode, path: Path, stage: str = "", below: slicer.vtkMRMLTransformNode | None = None
) -> Generator[Status | None, None, None]:
    """Write a volume as it lies in the world, a slab a step (see :func:`MLISlicerLib.transfer.write_nrrd`).

    Args:
        volume: the volume.
        path: NRRD file to write.
        stage: name shown while it runs.
        below: a transform to leave out (see :func:`to_world`).

    Raises:
        BadInput: it cannot be used, the disk is full, or it changed meanwhile.
    """
    voxels, grid = voxels_of(volume), grid_of(volume, below)
    scalars = volume.GetImageData().GetPointData().GetScalars()
    before = scalars.GetMTime()
    yield from write_nrrd(path, voxels, grid, stage)
    if scalars.GetMTime() != before:
        raise BadInput(f"{volume.GetName()} was changed while it was read.", "", "Press Apply again.")


# -- SimpleITK, for scripts


def image_of(volume: slicer.vtkMRMLVolumeNode) -> sitk.Image:
    """The volume as a SimpleITK image in LPS, where it lies in the world. The voxels are copied."""
    voxels, grid = voxels_of(volume), grid_of(volume)
    image = sitk.GetImageFromArray(voxels)
    image.SetOrigin(grid.origin.tolist())
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection(grid.direction.flatten().tolist())
    return image


def grid_of_image(image: sitk.Image) -> Grid:
    """The grid of a 3-D SimpleITK image."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return Grid(image.GetSize(), matrix)


def add_volume(image: sitk.Image, name: str) -> slicer.vtkMRMLScalarVolumeNode:
    """A new scalar volume with the image's voxels, where the image lies."""
    voxels = sitk.GetArrayViewFromImage(image)
    scalars = Scalars()
    scalars.allocate(voxels.dtype, voxels.size)[:] = voxels.reshape(-1)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", slicer.mrmlScene.GenerateUniqueName(name))
    fill_volume(node, scalars, grid_of_image(image))
    node.CreateDefaultDisplayNodes()
    return node


# -- what comes back


class Scalars:
    """Voxels that VTK owns and numpy fills, so that a big result is not copied on its way into the scene."""

    def __init__(self) -> None:
        self.array: vtk.vtkDataArray | None = None

    def allocate(self, dtype: np.dtype, count: int) -> np.ndarray:
        """A flat numpy view on a new VTK array."""
        self.array = numpy_support.create_vtk_array(numpy_support.get_vtk_array_type(dtype))
        self.array.SetNumberOfComponents(1)
        self.array.SetNumberOfTuples(count)
        return numpy_support.vtk_to_numpy(self.array)

    def components(self, voxels: int) -> int:
        """How many values a voxel has, when there are so many voxels; the array is told."""
        array = self.array
        if array is None:
            return 0
        count = int(array.GetNumberOfValues()) // voxels
        if count != array.GetNumberOfComponents():
            array.SetNumberOfComponents(count)
            array.SetNumberOfTuples(voxels)
        return count


def fill_volume(node: slicer.vtkMRMLScalarVolumeNode, scalars: Scalars, grid: Grid) -> None:
    """Give a volume node its voxels and put it where the grid lies."""
    image = vtk.vtkImageData()
    image.SetDimensions(grid.size)
    image.GetPointData().SetScalars(scalars.array)
    node.SetAndObserveTransformNodeID(None)
    node.SetIJKToRASMatrix(vtk_matrix_of(RAS_LPS @ grid.ijk_to_lps))
    node.SetAndObserveImageData(image)


def place_like(node: slicer.vtkMRMLVolumeNode, volume: slicer.vtkMRMLVolumeNode) -> None:
    """Give `node` exactly the grid and the parent transform of `volume`, which has as many voxels."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())


def require_grid(grid: Grid, volume: slicer.vtkMRMLVolumeNode) -> None:
    """Raise :class:`BadInput` unless `grid` is the volume's, as a result's must be."""
    if not same_grid(grid, grid_of(volume)):
        raise BadInput(
            f"The result does not lie on the grid of {volume.GetName()}.",
            "The volume was moved or changed while the job ran.",
            "Press Apply again.",
        )


def fill_segmentation(
    node: slicer.vtkMRMLSegmentationNode,
    layers: Sequence[Scalars],
    labels: Sequence[Mapping[str, Any]],
    place: slicer.vtkMRMLVolumeNode | Grid,
) -> None:
    """Replace the segments of `node` by those of a label map.

    Segments of one layer share its label map, as in a segmentation that Slicer has loaded, so that nothing is copied.

    Args:
        node: the segmentation.
        layers: one with the label of each voxel; or, where labels overlap, one of 0 and 1 for each label.
        labels: value, name, color (red, green, blue, 0 to 1) and terminology ("" for none) of each label.
        place: the segmented volume, or the grid of the label map in the world.
    """
    volume = None if isinstance(place, Grid) else place
    size = place.size if isinstance(place, Grid) else place.GetImageData().GetDimensions()
    matrix = vtk_matrix_of(RAS_LPS @ place.ijk_to_lps if isinstance(place, Grid) else ijk_to_ras(place))
    images = []
    for layer in layers:
        image = slicer.vtkOrientedImageData()
        image.SetDimensions(size)
        image.GetPointData().SetScalars(layer.array)
        image.SetGeometryFromImageToWorldMatrix(matrix)
        images.append(image)
    with slicer.util.NodeModify(node):
        segmentation = node.GetSegmentation()
        segmentation.RemoveAllSegments()
        if volume is not None:
            node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
            node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        else:
            node.SetAndObserveTransformNodeID(None)
            converter = slicer.vtkSegmentationConverter
            geometry = converter.SerializeImageGeometry(images[0])
            segmentation.SetConversionParameter(converter.GetReferenceImageGeometryParameterName(), geometry)
        segmentation.SetSourceRepresentationName(_BINARY_LABELMAP)
        for index, label in enumerate(labels):
            segment = slicer.vtkSegment()
            segment.SetName(str(label["name"]))
            segment.SetLabelValue(int(label["value"]) if len(images) == 1 else 1)
            segment.SetColor(*(float(part) for part in label["color"]))
            if label.get("terminology"):
                segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), str(label["terminology"]))
            segment.AddRepresentation(_BINARY_LABELMAP, images[index if len(images) > 1 else 0])
            segmentation.AddSegment(segment)
        if node.GetDisplayNode() is None:
            node.CreateDefaultDisplayNodes()


def write_segments(
    node: slicer.vtkMRMLSegmentationNode,
    values: Mapping[str, int],
    place: slicer.vtkMRMLVolumeNode | Grid,
    path: Path,
    stage: str = "",
    below: slicer.vtkMRMLTransformNode | None = None,
) -> Generator[Status | None, None, None]:
    """Write segments as one label map on a grid, resampled to the nearest voxel, some slices a step.

    Args:
        node: the segmentation; where segments overlap, the later one wins.
        values: label to write for each segment id.
        place: the volume whose grid is wanted, or the grid.
        path: NRRD file to write.
        stage: name shown while it runs.
        below: a transform to leave out, of both (see :func:`to_world`).

    Raises:
        BadInput: a segment has no binary labelmap.
    """
    grid = place if isinstance(place, Grid) else grid_of(place, below)
    found = np.zeros(grid.size[::-1], np.uint8 if max(values.values(), default=0) < 256 else np.uint16)
    world = to_world(node, below)
    layers: dict[Any, np.ndarray] = {}  # segments that share a label map are resampled together
    for identifier, value in values.items():
        labelmap = node.GetSegmentation().GetSegment(identifier).GetRepresentation(_BINARY_LABELMAP)
        label = node.GetSegmentation().GetSegment(identifier).GetLabelValue()
        if labelmap is None:
            raise BadInput(
                f"The segmentation {node.GetName()} has no voxels to compare.",
                "It is stored as surfaces.",
                "In the module Segmentations, under Representations, create 'Binary labelmap'.",
            )
        if labelmap.IsEmpty():
            continue
        if labelmap not in layers:
            source = slicer.vtkOrientedImageData()
            source.ShallowCopy(labelmap)
            matrix = vtk.vtkMatrix4x4()
            labelmap.GetImageToWorldMatrix(matrix)
            source.SetGeometryFromImageToWorldMatrix(vtk_matrix_of(world @ matrix_of(matrix)))
            for start, stop, slab in _resampled(source, grid):
                layer = layers.setdefault(labelmap, np.zeros(found.shape, slab.dtype))
                layer[start:stop] = slab
                yield Status(stage, stop / grid.size[2])
        for start in range(0, grid.size[2], _slices_a_step(grid)):
            stop = start + _slices_a_step(grid)
            found[start:stop][layers[labelmap][start:stop] == label] = value
            yield Status(stage)
    yield from write_nrrd(path, found, grid, stage)


def _slices_a_step(grid: Grid, voxels: int = 1 << 20) -> int:
    """How many slices a job may go through between two turns of the event loop."""
    return max(1, voxels // (grid.size[0] * grid.size[1]))


def _resampled(source: slicer.vtkOrientedImageData, grid: Grid) -> Iterator[tuple[int, int, np.ndarray]]:
    """Slabs of `source` on `grid`: first slice, end, (slices, j, i) voxels."""
    step = _slices_a_step(grid)
    for start in range(0, grid.size[2], step):
        stop = min(start + step, grid.size[2])
        reference = slicer.vtkOrientedImageData()
        reference.SetExtent(0, grid.size[0] - 1, 0, grid.size[1] - 1, start, stop - 1)
        reference.SetGeometryFromImageToWorldMatrix(vtk_matrix_of(RAS_LPS @ grid.ijk_to_lps))
        made = slicer.vtkOrientedImageData()
        slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(source, reference, made)
        slab = numpy_support.vtk_to_numpy(made.GetPointData().GetScalars())
        yield start, stop, slab.reshape(stop - start, grid.size[1], grid.size[0])


# -- nodes of any kind, text


def markups_of(points: slicer.vtkMRMLMarkupsFiducialNode, below: slicer.vtkMRMLTransformNode | None) -> dict[str, Any]:
    """A list of points as the JSON of Slicer's markups files, where they lie in the world, LPS, or without `below`.

    Raises:
        BadInput: it is under a transform that is not linear.
    """
    to_lps = RAS_LPS @ to_world(points, below)
    found = []
    for index in range(points.GetNumberOfControlPoints()):
        if points.GetNthControlPointPositionStatus(index) == points.PositionDefined:
            position = to_lps @ [*points.GetNthControlPointPosition(index), 1.0]
            label = points.GetNthControlPointLabel(index)
            found.append({"id": str(index + 1), "label": label, "position": position[:3].tolist()})
    return {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": found}]}


def node_or_new(given: Any, class_name: str, name: str) -> Any:
    """The node that was given, if it is of that class and still in the scene, or a new one."""
    if given is not None and given.GetScene() is not None and given.GetClassName() == class_name:
        return given
    return slicer.mrmlScene.AddNewNodeByClass(class_name, slicer.mrmlScene.GenerateUniqueName(name))


def fill_text(node: slicer.vtkMRMLTextNode, text: str) -> None:
    """Give a text node its text, kept in the scene file and not in one of its own."""
    node.SetText(text)
    node.SetForceCreateStorageNode(slicer.vtkMRMLTextNode.CreateStorageNodeNever)


def file_beside(node: slicer.vtkMRMLNode, volume: slicer.vtkMRMLNode) -> None:
    """Put a result into the patient, study or folder that the volume is in, in the Data module's tree."""
    hierarchy = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    if hierarchy is None:
        return
    place, item = hierarchy.GetItemByDataNode(volume), hierarchy.GetItemByDataNode(node)
    if place and item:  # 0 is no item
        hierarchy.SetItemParent(item, hierarchy.GetItemParent(place))


def file_results_beside(result: Any, volume: slicer.vtkMRMLNode) -> None:
    """File every node among the fields of a result (a dataclass) beside a volume (see :func:`file_beside`)."""
    for field in dataclasses.fields(result):
        node = getattr(result, field.name)
        if isinstance(node, slicer.vtkMRMLNode):
            file_beside(node, volume)


# -- all or nothing


@contextlib.contextmanager
def all_or_nothing() -> Iterator[None]:
    """Nodes added to the scene in this block are removed again if it ends by an exception."""
    scene = slicer.mrmlScene
    before = {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}
    try:
        yield
    except BaseException:
        added = [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
        for node in reversed([n for n in added if n.GetID() not in before]):
            scene.RemoveNode(node)
        raise

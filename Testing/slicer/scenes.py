"""Volumes and transforms for tests, and what of a scene a cancelled job must leave as it was."""

import json

import numpy as np
import slicer
import vtk

from MLISlicerLib import nodes
from MLISlicerLib.transfer import Grid


def rotation(seed):
    """A random rotation matrix."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


def make_volume(scene, matrix, size=(5, 7, 4), dtype=np.int16, name="volume"):
    image = vtk.vtkImageData()
    image.SetDimensions(size)
    voxels = np.arange(np.prod(size), dtype=dtype)
    image.GetPointData().SetScalars(nodes.numpy_support.numpy_to_vtk(voxels, deep=True))
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    node.SetAndObserveImageData(image)
    node.SetIJKToRASMatrix(nodes.vtk_matrix_of(matrix))
    return node


def linear(scene, matrix, name="linear"):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(nodes.vtk_matrix_of(matrix))
    return node


def motion(seed=5):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(seed)
    matrix[:3, 3] = (4.0, 9.0, -2.0)
    return matrix


def add_volume(name="head", size=(40, 36, 32), array=None):
    """A volume of noise on an oblique, left-handed grid, displayed as a loaded one is."""
    voxels = np.random.default_rng(4).normal(100, 20, size[::-1]).astype(np.float32) if array is None else array
    scalars = nodes.Scalars()
    scalars.allocate(voxels.dtype, voxels.size)[:] = voxels.reshape(-1)
    matrix = motion(3) @ np.diag([-1.1, 0.9, 1.3, 1.0])
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    nodes.fill_volume(node, scalars, Grid(voxels.shape[::-1], nodes.RAS_LPS @ matrix))
    node.CreateDefaultDisplayNodes()
    return node


def add_segmentation(name, volume, names=("left", "right"), corner=2):
    """A segmentation of cubes on a volume's grid, one beside the other."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)  # within that transform
    for index, segment in enumerate(names):
        identifier = node.GetSegmentation().AddEmptySegment(segment, segment)
        array = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
        array[corner : corner + 4, corner : corner + 4, 1 + 6 * index : 5 + 6 * index] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, identifier, volume)
    return node


def scene_state():
    """All that a cancel must leave as it was: each node's id and name, and its content where it is cheap to compare."""
    found = {}
    for index in range(slicer.mrmlScene.GetNumberOfNodes()):
        node = slicer.mrmlScene.GetNthNode(index)
        content = node.GetMTime() if node.IsA("vtkMRMLVolumeNode") or node.IsA("vtkMRMLSegmentationNode") else 0
        found[node.GetID()] = (node.GetName(), content)
    return json.dumps(found, sort_keys=True)

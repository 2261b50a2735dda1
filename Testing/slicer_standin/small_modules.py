"""``slicer.i18n``, ``slicer.testing`` and ``sitkUtils``."""

from __future__ import annotations

import os
import sys
import unittest
from typing import Any, ClassVar

import numpy
import SimpleITK as sitk
import slicer
import vtk
from vtk.util import numpy_support


class i18n:
    """Members of slicer.i18n."""

    FILEPATH_TO_CONTEXT: ClassVar[dict[str, str]] = {}

    @staticmethod
    def getContext(sourceFile: str) -> str:
        """Returns the context of a file's translations: its name, after its package's where it is in one."""
        folder, name = os.path.split(sourceFile)
        stem = name.removesuffix(".py")
        package = os.path.isfile(os.path.join(folder, "__init__.py"))
        return f"{os.path.basename(folder)}.{stem}" if package else stem

    @staticmethod
    def tr(text: str) -> str:
        """Returns the text in the application's language."""
        return slicer.app.translate("", text)

    @staticmethod
    def translate(context: str, text: str) -> str:
        """Returns the text of a context in the application's language."""
        return slicer.app.translate(context, text)


class testing:
    """Members of slicer.testing."""

    @staticmethod
    def exitSuccess() -> None:
        """Ends a test that passed."""

    @staticmethod
    def exitFailure(message: str = "") -> None:
        """Ends a test that failed."""
        raise Exception(message)

    @staticmethod
    def runUnitTest(path: Any, testname: str) -> None:
        """Runs a test file's tests by the name of its module."""
        sys.path.extend([path] if isinstance(path, str) else path)
        suite = unittest.TestLoader().loadTestsFromName(testname)
        if not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful():
            testing.exitFailure()


def _node(nodeObjectOrName: Any) -> Any:
    return slicer.util.getNode(nodeObjectOrName) if isinstance(nodeObjectOrName, str) else nodeObjectOrName


_FLIP = numpy.diag([-1.0, -1.0, 1.0])  # LPS to RAS and back


class sitkUtils:
    """Members of sitkUtils."""

    @staticmethod
    def sitk2vtk(img: sitk.Image, deep: int = 1) -> Any:
        """Returns the voxels as vtkImageData with neither origin nor spacing; the node has those."""
        array = sitk.GetArrayFromImage(img)
        image = vtk.vtkImageData()
        image.SetDimensions(*[*img.GetSize(), 1][:3])
        components = img.GetNumberOfComponentsPerPixel()
        flat = array.reshape(-1, components) if components > 1 else array.ravel()
        image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(flat, deep=deep))
        return image

    @staticmethod
    def vtk2sitk(vtkimg: Any, origin: Any = None, spacing: Any = None, direction: Any = None) -> sitk.Image:
        """Returns vtkImageData as an image."""
        scalars = numpy_support.vtk_to_numpy(vtkimg.GetPointData().GetScalars())
        shape = tuple(reversed(vtkimg.GetDimensions()))
        vector = scalars.ndim > 1
        image = sitk.GetImageFromArray(
            scalars.reshape(*shape, -1) if vector else scalars.reshape(shape), isVector=vector
        )
        matrix = vtkimg.GetDirectionMatrix()
        own = [matrix.GetElement(row, column) for row in range(3) for column in range(3)]
        image.SetSpacing(vtkimg.GetSpacing() if spacing is None else spacing)
        image.SetOrigin(vtkimg.GetOrigin() if origin is None else origin)
        image.SetDirection(own if direction is None else direction)
        return image

    @staticmethod
    def PushVolumeToSlicer(
        sitkimage: sitk.Image,
        targetNode: Any = None,
        name: str | None = None,
        className: str = "vtkMRMLScalarVolumeNode",
    ) -> Any:
        """Puts an image into a volume node, which is made if none is given."""
        if targetNode is None:
            unique = slicer.mrmlScene.GetUniqueNameByString(name or "Volume")
            targetNode = slicer.mrmlScene.AddNewNodeByClass(className, unique)
            targetNode.CreateDefaultDisplayNodes()
        targetNode.SetAndObserveImageData(sitkUtils.sitk2vtk(sitkimage))
        matrix = numpy.eye(4)
        direction = numpy.array(sitkimage.GetDirection()).reshape(3, 3)
        matrix[:3, :3] = _FLIP @ direction @ numpy.diag(sitkimage.GetSpacing())
        matrix[:3, 3] = _FLIP @ numpy.array(sitkimage.GetOrigin())
        targetNode.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
        targetNode.Modified()
        return targetNode

    @staticmethod
    def PullVolumeFromSlicer(nodeObjectOrName: Any) -> sitk.Image:
        """Returns a volume node as an image, in LPS."""
        node = _node(nodeObjectOrName)
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        to_lps = _FLIP @ slicer.util.arrayFromVTKMatrix(matrix)[:3]
        spacing = numpy.array(node.GetSpacing())
        direction = to_lps[:, :3] / spacing
        return sitkUtils.vtk2sitk(
            node.GetImageData(), to_lps[:, 3].tolist(), spacing.tolist(), direction.ravel().tolist()
        )

    @staticmethod
    def IsMRMLIDImageIOAvailable() -> bool:
        """True, as in Slicer since the conversion goes through arrays."""
        return True

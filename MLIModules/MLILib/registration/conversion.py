"""Registrations as SimpleITK transforms and files, and back.

The total map is T(p) = A(p + D(p)), from fixed to moving points in LPS mm: the displacement D lives on the fixed grid
and acts first, the linear map A follows. Outside its grid an ITK displacement field is the identity, so that T is A.
"""

from __future__ import annotations

import mmap
import re
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from .. import files, images
from ..errors import BadInput
from ..geometry import Grid, same_grid

#: ITK's own transform files, as we write them; a few older kinds are read, too.
TRANSFORM_FILES = (".h5", ".tfm")
READABLE_TRANSFORM_FILES = (*TRANSFORM_FILES, ".hdf5", ".txt", ".mat")
#: Displacement fields as images: T(p) - p in LPS mm.
FIELD_FILES = (".nii.gz", ".nii", ".nrrd", ".mha")

#: A matrix this close to a rotation (times a scale) is written as one: 1e-6 moves a point 100 mm away by 0.0001 mm.
ROTATION_TOLERANCE = 1e-6


def to_lps_mm(u: Tensor, grid: Grid) -> sitk.Image:
    """A displacement in voxels as a vector image in LPS mm, double precision, on its grid.

    Args:
        u: (1, d, *shape) or (d, *shape), voxels of `grid`.
        grid: where it lies.
    """
    field = _single(u, grid).detach().cpu().numpy()
    vectors = np.empty((*grid.shape, grid.dimension))
    for axis, row in enumerate(_voxel_axes(grid)):
        # most volumes lie straight: each axis of theirs is one of the world's, and the other products are of zeros
        used = np.flatnonzero(row)
        np.multiply(field[used[0]], row[used[0]], out=vectors[..., axis])
        for other in used[1:]:
            vectors[..., axis] += field[other] * row[other]
    return grid.apply(sitk.GetImageFromArray(vectors, isVector=True))


def to_voxels(field: sitk.Image, grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
    """A vector image in LPS mm on `grid` as a displacement in voxels, (1, d, *shape).

    Raises:
        ValueError: when the image does not lie on `grid`, or its vectors are of another dimension.
    """
    if not same_grid(field, grid) or field.GetNumberOfComponentsPerPixel() != grid.dimension:
        msg = "the displacement field does not lie on the grid, or its vectors are of another dimension"
        raise ValueError(msg)
    vectors = torch.from_numpy(sitk.GetArrayFromImage(field)).to(dtype)
    back = torch.from_numpy(np.linalg.inv(_voxel_axes(grid))).to(dtype)
    return torch.tensordot(vectors, back.T.contiguous(), dims=1).movedim(-1, 0).contiguous()[None]


def _voxel_axes(grid: Grid) -> np.ndarray:
    """Displacement in voxels (z, y, x) to LPS mm (x, y, z), d x d."""
    d = grid.dimension
    return np.ascontiguousarray(grid.matrix()[:d, :d][:, ::-1])


def _single(u: Tensor, grid: Grid) -> Tensor:
    field = u[0] if u.ndim == grid.dimension + 2 and len(u) == 1 else u
    if tuple(field.shape) != (grid.dimension, *grid.shape):
        msg = f"a displacement of shape {tuple(u.shape)} does not fit a grid of shape {grid.shape}"
        raise ValueError(msg)
    return field


def to_sitk(linear: np.ndarray | None, u: Tensor | None, grid: Grid) -> sitk.Transform:
    """The transform from fixed to moving points, T(p) = A(p + D(p)), as sitk.Resample takes it.

    Args:
        linear: A in LPS mm, (d + 1) x (d + 1); None is the identity.
        u: D as a displacement in voxels of `grid`, (1, d, *shape); None is zero.
        grid: the fixed grid. The linear transform turns about its middle.

    Returns:
        Without `u` an Euler, similarity or affine transform, the simplest that serves; with `u` a composite of that and
        a displacement field transform, or the latter alone where `linear` is None.
    """
    if u is None:
        return linear_to_sitk(np.eye(grid.dimension + 1) if linear is None else linear, middle(grid))
    displacement = sitk.DisplacementFieldTransform(to_lps_mm(u, grid))
    if linear is None:
        return displacement
    # The transform that was added last is applied first.
    return sitk.CompositeTransform([linear_to_sitk(linear, middle(grid)), displacement])


def middle(grid: Grid) -> np.ndarray:
    """The middle of a grid, LPS mm."""
    corners = grid.corners()
    return 0.5 * (corners[0] + corners[-1])


def linear_to_sitk(matrix: np.ndarray, centre: np.ndarray) -> sitk.Transform:
    """A linear map as the simplest ITK transform that serves: Euler, similarity or affine.

    Args:
        matrix: LPS mm, (d + 1) x (d + 1).
        centre: the point, LPS mm, about which ITK's parameters turn and scale; the map is the same for any.

    Raises:
        ValueError: when the matrix is singular or not finite.
    """
    d = len(matrix) - 1
    inner = np.asarray(matrix[:d, :d], dtype=np.float64)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(inner)) < 1e-12:
        msg = f"a singular matrix is no transform: {np.array2string(np.asarray(matrix))}"
        raise ValueError(msg)
    scale = abs(np.linalg.det(inner)) ** (1 / d)
    left, values, right = np.linalg.svd(inner)
    rotation = left @ right
    out: sitk.Transform
    if np.linalg.det(inner) < 0 or np.abs(values / scale - 1).max() > ROTATION_TOLERANCE:
        out = sitk.AffineTransform(d)
        out.SetMatrix(inner.ravel().tolist())
    elif abs(scale - 1) > ROTATION_TOLERANCE:
        inner = scale * rotation
        out = sitk.Similarity3DTransform() if d == 3 else sitk.Similarity2DTransform()
        out.SetMatrix(inner.ravel().tolist(), 1e-8)
    else:
        inner = rotation
        out = sitk.Euler3DTransform() if d == 3 else sitk.Euler2DTransform()
        out.SetMatrix(inner.ravel().tolist(), 1e-8)
    out.SetCenter([float(x) for x in centre])
    out.SetTranslation((np.asarray(matrix[:d, d]) + inner @ centre - centre).tolist())
    return out


def matrix_of(transform: sitk.Transform) -> np.ndarray:
    """The matrix of a linear transform, LPS mm, (d + 1) x (d + 1).

    Raises:
        ValueError: when the transform is not linear.
    """
    if not transform.IsLinear():
        msg = "the transform is not linear, it has no matrix"
        raise ValueError(msg)
    d = transform.GetDimension()
    out = np.eye(d + 1)
    out[:d, d] = transform.TransformPoint([0.0] * d)
    for axis, point in enumerate(np.eye(d)):
        out[:d, axis] = np.array(transform.TransformPoint(point.tolist())) - out[:d, d]
    return out


def from_sitk(
    transform: sitk.Transform, grid: Grid, dtype: torch.dtype = torch.float32
) -> tuple[np.ndarray, Tensor | None]:
    """The linear map and the displacement of a transform on a fixed grid, T(p) = A(p + D(p)).

    What a transform does first and is not linear (a displacement field, B-splines, any composite of them) is sampled at
    the grid's voxel centres; the linear transforms that follow are multiplied into one matrix.

    Returns:
        A in LPS mm, (d + 1) x (d + 1), and D in voxels of `grid`, (1, d, *shape), or None where T is linear.

    Raises:
        ValueError: when transform and grid differ in dimension.
    """
    if transform.GetDimension() != grid.dimension:
        msg = f"a {transform.GetDimension()}-D transform cannot be put on a {grid.dimension}-D grid"
        raise ValueError(msg)
    if transform.IsLinear():
        return matrix_of(transform), None
    rest = parts(transform)
    linear = np.eye(grid.dimension + 1)
    while rest[0].IsLinear():
        linear = linear @ matrix_of(rest.pop(0))
    field = displacement_image(sitk.CompositeTransform(rest), grid, sitk.sitkVectorFloat64)
    return linear, to_voxels(field, grid, dtype)


def parts(transform: sitk.Transform) -> list[sitk.Transform]:
    """The transforms that a composite is made of, however nested; the one that is applied first comes last."""
    whole = transform.Downcast()
    if not isinstance(whole, sitk.CompositeTransform):
        return [whole]
    return [part for i in range(whole.GetNumberOfTransforms()) for part in parts(whole.GetNthTransform(i))]


def displacement_image(transform: sitk.Transform, grid: Grid, pixel: int = sitk.sitkVectorFloat32) -> sitk.Image:
    """T(p) - p in LPS mm at the voxel centres of `grid`, a vector image."""
    return sitk.TransformToDisplacementField(
        transform, pixel, grid.size, grid.origin, grid.spacing, grid.direction
    )  # fmt: skip


def require_transform_suffix(path: str) -> None:
    """Raise :class:`BadInput` unless the file name tells how a transform is to be written."""
    images.require_suffix(path, (*TRANSFORM_FILES, *FIELD_FILES), "a transform")


def write_transform(transform: sitk.Transform, path: str, grid: Grid, *, final: str = "") -> None:
    """Write a transform by the name of the file: ITK's .h5 or .tfm, or T(p) - p on `grid` as a vector image in mm.

    A field in a file ends with its grid: outside, programs take the identity. Its vectors are LPS in every format; in
    NIfTI they have the intent "vector" (1007), which is how ITK and ANTs write and read fields. Slicer reads that, too,
    with a warning that the intent is not "displacement vector" (1006, RAS vectors); .h5 and .nrrd spare the warning.

    Args:
        transform: fixed to moving points, LPS mm.
        path: file to write now (a temporary one of :class:`MLILib.files.Outputs`, usually).
        grid: the fixed grid, for a field.
        final: the name the user knows, for the error; `path` when empty.

    Raises:
        BadInput: no such format, or the disk is full.
    """
    require_transform_suffix(path)
    kind = files.suffix(path)
    if kind in FIELD_FILES:
        images.write(displacement_image(transform, grid), path, final=final)
        return
    folder = Path(final or path).absolute().parent
    try:
        sitk.WriteTransform(transform, path)
    except RuntimeError as error:
        if files.is_disk_full(error) or shutil.disk_usage(folder).free < 2**20:
            raise files.disk_full(folder) from error
        raise
    if kind == ".tfm" and not _text_complete(Path(path)):  # ITK does not look whether its text arrived
        raise files.disk_full(folder)


def _text_complete(path: Path) -> bool:
    with open(path, "rb") as stream:
        stream.seek(max(0, path.stat().st_size - 4096))
        lines = stream.read().split(b"\n")
    return lines[-1] == b"" and (b"FixedParameters:" in lines[-2] or len(lines) == 2)


def read_transform(path: str | Path, dimension: int = 0) -> sitk.Transform:
    """Read a transform: ITK's .h5, .tfm, .txt or .mat, or a displacement field in mm as an image.

    These formats hold numbers only; nothing in them is run. A NIfTI field of the intent "displacement vector" (1006)
    holds RAS vectors, which ITK turns to LPS; those of any other are LPS.

    Args:
        path: the file.
        dimension: 2 or 3 where only such a transform will do.

    Raises:
        BadInput: the file is missing, damaged, of another kind or dimension, or holds numbers that are no transform.
    """
    name = str(path)
    files.require_input(name, name="transform")
    images.require_suffix(name, (*READABLE_TRANSFORM_FILES, *FIELD_FILES), "a transform")
    if files.suffix(name) in FIELD_FILES:
        transform: sitk.Transform = sitk.DisplacementFieldTransform(_read_field(name))
    else:
        _require_sound_text(name)
        try:
            transform = sitk.ReadTransform(name).Downcast()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise _no_transform(name, f"It is damaged, truncated or of another kind ({reason}).") from error
        for part in parts(transform):
            _require_usable(part, name)
    if dimension and transform.GetDimension() != dimension:
        raise BadInput(
            f"{name} is a {transform.GetDimension()}-D transform.",
            f"The images are {dimension}-D.",
            "Give a transform of these images.",
        )
    return transform


def _no_transform(name: str, cause: str) -> BadInput:
    return BadInput(
        f"{name} cannot be used as a transform.", cause, "Export it again, as .h5 or .tfm or as a field in mm."
    )


def _require_sound_text(name: str) -> None:
    """Notice what ITK passes over in a text file: several transforms without an order, and an end cut off."""
    if files.suffix(name) not in (".tfm", ".txt") or Path(name).stat().st_size == 0:
        return
    with open(name, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        kinds = re.findall(rb"^Transform: *(\w+)", text, re.MULTILINE)
        ends = len(re.findall(rb"^FixedParameters:", text, re.MULTILINE))
    composite = bool(kinds) and kinds[0].startswith(b"CompositeTransform")
    if len(kinds) > 1 and not composite:
        raise _no_transform(name, f"It lists {len(kinds)} transforms without saying how they follow each other.")
    if ends < len(kinds) - composite:
        raise _no_transform(name, "It is truncated: its last transform is not whole.")


def _require_usable(part: sitk.Transform, name: str) -> None:
    if isinstance(part, sitk.DisplacementFieldTransform):
        finite = np.isfinite(sitk.GetArrayViewFromImage(part.GetDisplacementField())).all()
    elif isinstance(part, sitk.BSplineTransform):
        finite = all(np.isfinite(sitk.GetArrayViewFromImage(c)).all() for c in part.GetCoefficientImages())
    else:
        finite = np.isfinite(part.GetParameters()).all() and np.isfinite(part.GetFixedParameters()).all()
    if not finite:
        raise _no_transform(name, "It holds values that are not numbers.")
    if part.IsLinear() and abs(np.linalg.det(matrix_of(part)[:-1, :-1])) < 1e-12:
        raise _no_transform(name, "Its matrix is singular: it squeezes space flat.")


def _read_field(name: str) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    try:
        reader.ReadImageInformation()
        dims, components = reader.GetDimension(), reader.GetNumberOfComponents()
        if dims not in (2, 3) or components != dims:
            raise _no_transform(
                name,
                f"It is a {dims}-D image with {components} value{'s' if components > 1 else ''} a voxel; a field has "
                "one vector a voxel (in NIfTI, along the fifth axis).",
            )
        images.require_complete(Path(name))
        field = sitk.Cast(reader.Execute(), sitk.sitkVectorFloat64)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise _no_transform(name, f"It is damaged or truncated ({reason}).") from error
    bad = int((~np.isfinite(sitk.GetArrayViewFromImage(field))).any(axis=-1).sum())
    if bad:
        raise _no_transform(name, f"{bad:,} of its vectors are not numbers.")
    return field

"""Image files, read with suspicion and written with care.

ITK reads a truncated NIfTI file as an image whose rest is zero, and writes half a NIfTI file to a full disk, both
without a word; :func:`read` and :func:`write` notice. Whatever cannot be used is one sentence with a remedy.
"""

from __future__ import annotations

import gzip
import math
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from . import files, geometry
from .errors import BadInput

#: What images are written as. Label maps also as .seg.nrrd, see :mod:`MLILib.segmentation.seg_nrrd`.
WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")

_COMPLEX = (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)
_CONVERT = "Convert it to a single 3-D volume of numbers (NIfTI, NRRD or MetaImage), and give that."


def read(path: str | Path) -> sitk.Image:
    """Read a scalar 2-D or 3-D image: a file, or a folder that holds one DICOM series.

    A file that says 4-D but has one time point is read as the volume it is.

    Raises:
        BadInput: the file is missing, truncated, not an image, has several components or time points, or no voxels.
    """
    p = Path(path)
    files.require_input(str(path), name="image")
    if p.is_dir():
        return _read_series(p)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(p))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    _check_header(path, reader)
    require_complete(p)
    size = list(reader.GetSize())
    if len(size) == 4:
        reader.SetExtractSize([*size[:3], 0])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    affine = nifti_affine(_nifti_head(p)) if files.suffix(p) in (".nii", ".nii.gz") else None
    if affine is not None:
        image.SetMetaData(geometry.HEADER_AFFINE, " ".join(repr(float(x)) for x in affine.ravel()))
    return image


def _check_header(path: str | Path, reader: sitk.ImageFileReader) -> None:
    size = reader.GetSize()
    if min(size, default=0) < 1:
        raise BadInput(f"{path} holds no voxels.", "Its size is zero.", "Export the image again.")
    if reader.GetNumberOfComponents() > 1:
        raise BadInput(
            f"{path} has {reader.GetNumberOfComponents()} values a voxel.",
            "It is a colour or vector image; one grey value a voxel is needed.",
            _CONVERT,
        )
    if len(size) > 4 or (len(size) == 4 and size[3] > 1):
        raise BadInput(
            f"{path} is {len(size)}-D, {' x '.join(map(str, size))}.",
            "It holds several volumes (time points, or channels stored as time).",
            "Give each volume as a file of its own.",
        )
    if reader.GetPixelID() in _COMPLEX:
        raise BadInput(f"{path} holds complex numbers.", "It may be raw MR data.", "Give its magnitude image.")


def _read_series(folder: Path) -> sitk.Image:
    """The one DICOM series in `folder`."""
    found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(found) != 1:
        have = "no DICOM series" if not found else f"{len(found)} DICOM series"
        raise BadInput(f"The folder {folder} holds {have}.", "", "Give a file, or a folder with one series.")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), found[0]))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(folder, error) from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise BadInput(f"The series in {folder} is in colour.", "", _CONVERT)
    return image


def _unreadable(path: str | Path, error: RuntimeError) -> BadInput:
    text = str(error)
    if "orthonormal" in text or "determinant is 0" in text:
        return BadInput(
            f"{path} has axes that are not at right angles.",
            "Its header holds a shear, which image tools treat differently.",
            "Resample it to a rectangular grid first (in Slicer: harden the transform and resample).",
        )
    if Path(path).is_file() and Path(path).stat().st_size == 0:
        return BadInput(f"{path} is empty.", "The file has 0 bytes.", "Copy or export it again.")
    if files.suffix(path) in (".nii", ".nii.gz") and _is_nifti_2(Path(path)):
        return BadInput(
            f"{path} is a NIfTI-2 file.",
            "It is a format for very large images that few programs read.",
            "Convert it to NIfTI-1 or NRRD.",
        )
    if "Unable to determine ImageIO reader" in text:
        return BadInput(
            f"{path} is not an image that can be read.",
            "Its content is of no known image format, or its beginning is damaged.",
            "Give a NIfTI, NRRD, MetaImage, DICOM, PNG or TIFF file.",
        )
    reason = text.strip().splitlines()[-1].strip()
    return BadInput(
        f"{path} cannot be read.",
        f"It is damaged or truncated ({reason}).",
        "Copy it again from where it came from.",
    )


def require_complete(path: Path) -> None:
    """Raise :class:`BadInput` when the file ends before its voxels do, for formats whose reader does not say so."""
    kind = files.suffix(path)
    if kind in (".jpg", ".jpeg") and not _ends_with_jpeg_marker(path):
        raise _truncated(path)
    if kind in (".nii", ".nii.gz") and not nifti_complete(path):
        raise _truncated(path)


def _truncated(path: Path) -> BadInput:
    return BadInput(
        f"{path} is truncated.",
        "The file ends before its voxels do; a copy or a download was cut short.",
        "Copy it again from where it came from.",
    )


def _ends_with_jpeg_marker(path: Path) -> bool:
    with open(path, "rb") as stream:
        stream.seek(max(0, path.stat().st_size - 64))
        return b"\xff\xd9" in stream.read()


def nifti_complete(path: Path) -> bool:
    """Whether a NIfTI file holds as many bytes as its header promises.

    A compressed file's size before compression stands in its last four bytes, so that nothing is decompressed unless
    they disagree (several gzip members, or bytes after the voxels); then the file is counted.
    """
    try:
        head = _nifti_head(path)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False
    order = _nifti_order(head)
    if order is None:
        return True  # an Analyze header: its voxels are in another file
    dims, (bits,), (start,) = (_fields(head, order + form, at) for form, at in (("8h", 40), ("h", 72), ("f", 108)))
    expected = int(start) + math.prod(max(n, 1) for n in dims[1 : 1 + max(0, min(dims[0], 7))]) * bits // 8
    with open(path, "rb") as stream:
        if stream.read(2) != b"\x1f\x8b":
            return path.stat().st_size >= expected
        stream.seek(-4, 2)
        (told,) = struct.unpack("<I", stream.read(4))
    return told == expected % 2**32 or _gzip_holds(path, expected)


def nifti_affine(head: bytes) -> np.ndarray | None:
    """Voxel index to RAS millimetres, 4 x 4, from a NIfTI header: the sform where it is set, else the qform.

    None where neither is set, or where this is no NIfTI header.
    """
    order = _nifti_order(head)
    if order is None:
        return None
    qform, sform = _fields(head, order + "2h", 252)
    affine = np.eye(4)
    if sform > 0:
        affine[:3] = np.reshape(_fields(head, order + "12f", 280), (3, 4))
        return affine
    if qform <= 0:
        return None
    b, c, d, *offset = _fields(head, order + "6f", 256)
    handed, *widths_mm = _fields(head, order + "4f", 76)
    affine[:3, :3] = _rotation(b, c, d) * (np.array(widths_mm) * (1.0, 1.0, -1.0 if handed < 0 else 1.0))
    affine[:3, 3] = offset
    return affine


def _rotation(b: float, c: float, d: float) -> np.ndarray:
    """The rotation of a unit quaternion, of which NIfTI leaves out the (non-negative) real part."""
    a = math.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _nifti_head(path: Path) -> bytes:
    """The 348 bytes of a NIfTI header, decompressed."""
    with open(path, "rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else open(path, "rb") as stream:
        return stream.read(348)


def _nifti_order(head: bytes) -> str | None:
    """Byte order of a NIfTI-1 header whose voxels are in the same file, as struct writes it."""
    if len(head) < 348 or head[344:347] != b"n+1":
        return None
    return next((order for order in "<>" if _fields(head, order + "i", 0) == (348,)), None)


def _fields(head: bytes, form: str, offset: int) -> tuple[Any, ...]:
    return struct.unpack_from(form, head, offset)


def _is_nifti_2(path: Path) -> bool:
    try:
        return _nifti_head(path)[4:7] == b"n+2"
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False


def _gzip_holds(path: Path, expected: int) -> bool:
    count = 0
    with gzip.open(path) as stream:
        try:
            while block := stream.read(1 << 22):
                count += len(block)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return count >= expected
    return count >= expected


def check(image: sitk.Image, name: str) -> None:
    """Raise :class:`BadInput` for voxels that no model can make sense of.

    Args:
        image: scalar image.
        name: what to call it in the sentence, its path for instance.

    Raises:
        BadInput: one voxel, NaN or infinite values (with their number), one value everywhere.
    """
    voxels = sitk.GetArrayViewFromImage(image)
    if voxels.size == 0:
        raise BadInput(f"{name} holds no voxels.", "Its size is zero.", "Export the image again.")
    if voxels.size == 1:
        raise BadInput(f"{name} has a single voxel.", "It was cropped to nothing, or is not the image.", "Check it.")
    if voxels.dtype.kind == "f":
        bad = nan = 0
        for part in voxels:  # slice by slice: a mask of a whole CT would be a copy of it
            finite = int(np.isfinite(part).sum())
            if finite < part.size:
                bad += part.size - finite
                nan += int(np.isnan(part).sum())
        if bad:
            parts = [f"{n:,} {what}" for n, what in ((nan, "NaN"), (bad - nan, "infinite")) if n]
            raise BadInput(
                f"{name} holds {' and '.join(parts)} value{'s' if bad > 1 else ''} ({bad / voxels.size:.2%} of it).",
                "They are often left by a division or a resampling outside the image.",
                "Replace them by the background's value, and try again.",
            )
    low, high = voxels.min(), voxels.max()
    if low == high:  # adding 0 makes minus zero a plain one
        raise BadInput(f"{name} is {low + 0:g} everywhere.", "It is blank or was saved wrongly.", "Give another image.")


def require_suffix(path: str, kinds: tuple[str, ...], what: str) -> None:
    """Raise :class:`BadInput` unless the file name `path` ends as one of `kinds`."""
    if files.suffix(path) not in kinds:
        raise BadInput(
            f"{path} has no ending that tells the format of {what}.",
            "The format is chosen by the file name.",
            f"End it with {', '.join(kinds[:-1])} or {kinds[-1]}.",
        )


def write(image: sitk.Image, path: str, *, final: str = "", compress: bool = True) -> None:
    """Write `image` by the name of the file, and see that it arrived.

    Args:
        image: what to write.
        path: file to write now (a temporary one of :class:`MLILib.files.Outputs`, usually).
        final: the name the user knows, for the error; `path` when empty.
        compress: gzip inside .nrrd and .mha; .nii.gz is always compressed, .nii never.

    Raises:
        BadInput: no such format, or the disk is full.
    """
    require_suffix(path, (*WRITABLE, ".seg.nrrd"), "an image")
    target = Path(final or path)
    try:
        sitk.WriteImage(image, path, compress)
    except RuntimeError as error:
        if files.is_disk_full(error) or _no_room(path, image):
            raise files.disk_full(target.absolute().parent) from error
        raise
    if files.suffix(path) in (".nii", ".nii.gz") and not nifti_complete(Path(path)):
        raise files.disk_full(target.absolute().parent)


def _no_room(path: str, image: sitk.Image) -> bool:
    need = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    return shutil.disk_usage(Path(path).absolute().parent).free < need

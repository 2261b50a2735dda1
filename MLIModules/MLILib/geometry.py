"""SimpleITK images and torch tensors: the one place that knows axis order, spacing, direction, LPS and RAS.

SimpleITK and Slicer's files speak LPS millimetres with index order (x, y, z); numpy views of them are (z, y, x); MONAI
wants (channel, x, y, z) with an affine in RAS millimetres. Every conversion between the three is here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import SimpleITK as sitk

if TYPE_CHECKING:
    import torch
    from monai.data.meta_tensor import MetaTensor

#: Two grids are the same when corresponding corners differ by less than this fraction of the smallest voxel edge.
#: NIfTI stores geometry in single precision, which moves a corner 300 mm away by some 1e-5 mm.
GRID_TOLERANCE = 1e-3


#: Metadata under which :func:`MLILib.images.read` leaves a NIfTI header's own affine, as 16 numbers.
HEADER_AFFINE = "MLI_affine_ras"


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where the voxels of an image lie, without the voxels.

    Attributes:
        size: voxels along x, y (and z).
        spacing: millimetres between voxel centres along those axes.
        origin: LPS position of the first voxel's centre.
        direction: row-major matrix whose columns are the axes' directions in LPS.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Self:
        """The grid of a SimpleITK image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a numpy array on this grid: (z, y, x)."""
        return self.size[::-1]

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres; a 2-D pixel counts as 1 mm thick."""
        return float(np.prod(self.spacing)) / 1000.0

    def matrix(self) -> np.ndarray:
        """Voxel index to LPS millimetres, (d + 1) x (d + 1)."""
        d = self.dimension
        out = np.eye(d + 1)
        out[:d, :d] = np.reshape(self.direction, (d, d)) @ np.diag(self.spacing)
        out[:d, d] = self.origin
        return out

    def corners(self) -> np.ndarray:
        """LPS positions of the outermost voxel centres, (2**d, d)."""
        d = self.dimension
        ends = np.array(np.meshgrid(*[(0, n - 1) for n in self.size], indexing="ij")).reshape(d, -1)
        matrix = self.matrix()
        return (matrix[:d, :d] @ ends).T + matrix[:d, d]

    def apply(self, image: sitk.Image) -> sitk.Image:
        """Give `image` (of this size) this grid's spacing, origin and direction; returns the same image."""
        if tuple(image.GetSize()) != tuple(self.size):
            msg = f"an image of size {image.GetSize()} cannot take a grid of size {self.size}"
            raise ValueError(msg)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    def slice_2d(self) -> Grid:
        """The grid of one slice as a plane of its own: in-plane spacing, no place in the body."""
        return Grid(self.size[:2], self.spacing[:2], (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))


def affine_ras(image: sitk.Image | Grid) -> np.ndarray:
    """Voxel index (x, y, z) to RAS millimetres, always 4 x 4.

    A 2-D image lies in the plane z = 0 with a 1 mm thick voxel. Left-handed directions stay left-handed.
    """
    grid = image if isinstance(image, Grid) else Grid.of(image)
    d = grid.dimension
    lps = np.eye(4)
    inner = grid.matrix()
    lps[:d, :d] = inner[:d, :d]
    lps[:d, 3] = inner[:d, d]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def monai_affine(image: sitk.Image | Grid) -> np.ndarray:
    """The affine as MONAI's readers give it: RAS, 4 x 4 for a volume and 3 x 3 for a 2-D image.

    A NIfTI header's affine is in single precision, and ITK makes its axes orthogonal again, which moves voxels by some
    1e-6 mm. Nobody sees that, but nearest neighbours half way between two voxels fall the other way, so the header's
    own affine is taken where :func:`MLILib.images.read` has left it and it is still the image's.
    """
    full = affine_ras(image)
    if isinstance(image, sitk.Image) and image.HasMetaDataKey(HEADER_AFFINE):
        header = np.array([float(x) for x in image.GetMetaData(HEADER_AFFINE).split()]).reshape(4, 4)
        apart = (header - full)[:3] @ _ends(image)
        if np.abs(apart).max() <= GRID_TOLERANCE * min(image.GetSpacing()):
            full = header
    dimension = len(image.size) if isinstance(image, Grid) else image.GetDimension()
    if dimension == 3:
        return full
    keep = [0, 1, 3]
    return full[np.ix_(keep, keep)]


def _ends(image: sitk.Image) -> np.ndarray:
    """Voxel indices (as columns) of the first voxel, the last along each axis, and the last of all."""
    ends = np.array([*image.GetSize(), 1][:3]) - 1.0
    points = np.vstack([np.zeros(3), np.diag(ends), ends])
    return np.vstack([points.T, np.ones(len(points))])


def monai_meta(image: sitk.Image | Grid) -> dict[str, Any]:
    """Metadata of an image without a channel axis, as MONAI's readers give it."""
    size = image.size if isinstance(image, Grid) else image.GetSize()
    affine = monai_affine(image)
    return {
        "affine": affine,
        "original_affine": affine.copy(),
        "spatial_shape": np.asarray(size),
        "space": "RAS",
        "original_channel_dim": float("nan"),
    }


def array_xyz(image: sitk.Image) -> np.ndarray:
    """A read-only view of the voxels, indexed (x, y, z). Keep `image` alive while it is used."""
    return sitk.GetArrayViewFromImage(image).T


def to_tensor(image: sitk.Image | Sequence[sitk.Image]) -> MetaTensor:
    """What MONAI's LoadImage and EnsureChannelFirst make of the same file: float32, RAS affine.

    Args:
        image: one image, or several on one grid that become the channels.

    Returns:
        MetaTensor of shape (channel, x, y, z), or (channel, x, y) for 2-D images.

    Raises:
        ValueError: when several images do not share a grid.
    """
    import torch
    from monai.data.meta_tensor import MetaTensor

    images = [image] if isinstance(image, sitk.Image) else list(image)
    if not all(same_grid(images[0], other) for other in images[1:]):
        msg = "the channels of an image must share one grid"
        raise ValueError(msg)
    views = [array_xyz(channel) for channel in images]
    data = views[0].astype(np.float32)[None] if len(views) == 1 else np.stack(views, dtype=np.float32, casting="unsafe")
    meta = monai_meta(images[0]) | {"original_channel_dim": 0}
    affine = torch.as_tensor(meta.pop("affine"), dtype=torch.float64)
    return MetaTensor(torch.from_numpy(data), affine=affine, meta=meta)


def from_array(array: np.ndarray, like: sitk.Image | Grid, *, vector: bool = False) -> sitk.Image:
    """An image with the voxels of `array` on the grid of `like`.

    Args:
        array: (z, y, x), or (z, y, x, component) with `vector`; (y, x) for 2-D.
        like: the image or grid whose size, spacing, origin and direction are taken.
        vector: whether the last axis holds components.
    """
    grid = like if isinstance(like, Grid) else Grid.of(like)
    return grid.apply(sitk.GetImageFromArray(array, isVector=vector))


def to_zyx(image: sitk.Image, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The voxels as a tensor (channel, z, y, x): the components of a vector image are its channels.

    Args:
        image: 2-D or 3-D image, scalar or vector.
        dtype: type of the tensor; float32 when None.
    """
    import torch

    array = sitk.GetArrayFromImage(image)  # a copy: a tensor must not outlive the image's buffer
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None]
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)  # torch computes with few unsigned types
    tensor = torch.from_numpy(np.moveaxis(array, -1, 0))
    return tensor.to(torch.float32 if dtype is None else dtype).contiguous()


def from_zyx(tensor: torch.Tensor, like: sitk.Image | Grid) -> sitk.Image:
    """The image of a tensor (channel, z, y, x) on the grid of `like`; several channels become components."""
    grid = like if isinstance(like, Grid) else Grid.of(like)
    array = tensor.detach().cpu().numpy()
    if array.ndim != grid.dimension + 1:
        msg = f"expected a tensor (channel, {'z, y, x' if grid.dimension == 3 else 'y, x'}), got shape {array.shape}"
        raise ValueError(msg)
    if array.shape[0] == 1:
        return from_array(array[0], grid)
    return from_array(np.ascontiguousarray(np.moveaxis(array, 0, -1)), grid, vector=True)


def same_grid(a: sitk.Image | Grid, b: sitk.Image | Grid, tolerance: float = GRID_TOLERANCE) -> bool:
    """Whether two images have their voxels at the same places: same size, corners within `tolerance` voxels."""
    first = a if isinstance(a, Grid) else Grid.of(a)
    second = b if isinstance(b, Grid) else Grid.of(b)
    if tuple(first.size) != tuple(second.size):
        return False
    return float(np.abs(first.corners() - second.corners()).max()) <= tolerance * min(first.spacing)


def describe(grid: Grid) -> str:
    """A grid in a reader's words: "197 x 233 x 189 voxels of 1 x 1 x 1 mm at (98, 134, -72)"."""
    size = " x ".join(str(n) for n in grid.size)
    spacing = " x ".join(f"{s:.4g}" for s in grid.spacing)
    origin = ", ".join(f"{o:.4g}" for o in grid.origin)
    return f"{size} voxels of {spacing} mm at ({origin})"

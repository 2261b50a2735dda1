"""Level sets: a surface that stops at edges (Caselles 1997), or parts two even regions (Chan and Vese 2001).

Their scales are chosen from the image, so that the settings mean the same whatever its intensities are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

from ..errors import BadInput
from ..geometry import from_array

#: The contour is looked at each so many steps, and has settled when this share of its voxels or less has changed: noise
#: keeps it moving a little.
LOOK, SETTLED = 25, 0.002
#: How far heat spreads in a step, in mean voxel edges: less, and the grid holds the border in place.
HEAT = 1.5


@dataclasses.dataclass(frozen=True, eq=False)
class Surface:
    """What a level set came to: inside (0 and 1), its number of iterations, and whether it had settled."""

    inside: sitk.Image
    iterations: int
    settled: bool


def geodesic(
    image: sitk.Image,
    start: sitk.Image,
    *,
    edge_width: float = 1.0,
    balloon: float = 1.0,
    curvature: float = 0.5,
    iterations: int = 500,
    fraction: Callable[[float], None] = lambda value: None,
) -> Surface:
    """A geodesic active contour.

    Args:
        image: float, 2-D or 3-D.
        start: where it begins, 0 and 1.
        edge_width: of the Gaussian whose gradient is an edge, mm.
        balloon: how strongly it grows where there is no edge; below 0 it shrinks.
        curvature: how smooth it is kept.
        iterations: at most.
        fraction: told how many of them are done.
    """
    upright = _upright(image)
    gradient = sitk.GradientMagnitudeRecursiveGaussian(upright, sigma=edge_width)
    values = sitk.GetArrayViewFromImage(gradient)
    # An edge is what rises above the gradient of most of the image.
    middle, high = (float(np.quantile(values, q)) for q in (0.5, 0.98))
    if not high > 0:
        raise BadInput("The image has no edges.", "It is nearly of one intensity.", "Use a threshold.")
    edge = 0.5 * (middle + high)
    speed = sitk.Cast(1.0 / (1.0 + (gradient / edge) ** 4), sitk.sitkFloat32)
    grown = sitk.GeodesicActiveContourLevelSetImageFilter()
    grown.SetPropagationScaling(balloon)
    grown.SetCurvatureScaling(curvature)
    grown.SetAdvectionScaling(1.0)
    grown.SetMaximumRMSError(0.0)
    # The distance is 0 in the outermost voxels inside; the border lies half a voxel further out.
    surface = distance(_upright(start)) - 0.5 * min(image.GetSpacing())
    spent, settled = 0, False
    inside = sitk.GetArrayFromImage(start) != 0
    while not settled and spent < iterations:
        grown.SetNumberOfIterations(min(LOOK, iterations - spent))
        surface = grown.Execute(surface, speed)
        spent += grown.GetElapsedIterations()
        new = sitk.GetArrayViewFromImage(surface) <= 0
        settled = int(np.count_nonzero(new != inside)) <= SETTLED * int(np.count_nonzero(new))
        inside = new.copy()
        fraction(spent / iterations)
    return Surface(from_array(inside.astype(np.uint8), image), spent, settled)


def _upright(image: sitk.Image) -> sitk.Image:
    """The image with axes along x, y and z: ITK's contour mixes directions of the grid with those of the patient."""
    out = sitk.Image(image)
    out.SetDirection(np.eye(image.GetDimension()).ravel().tolist())
    return out


def distance(mask: sitk.Image) -> sitk.Image:
    """Signed distance to a mask's border in mm, negative inside; float32."""
    return sitk.SignedMaurerDistanceMap(mask, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)


def around(mask: sitk.Image, radius: float) -> sitk.Image:
    """A mask and what lies within `radius` mm of it, 0 and 1."""
    return sitk.LessEqual(distance(mask), radius) if radius > 0 else mask


def chan_vese(
    image: sitk.Image,
    start: sitk.Image,
    *,
    side: str = "bright",
    border: float = 0.5,
    iterations: int = 500,
    where: npt.NDArray[np.bool_] | None = None,
) -> Surface:
    """Two regions of even intensity, with a smooth border: Chan and Vese's energy, by threshold dynamics.

    The level set is the heat that spreads from the region and is thresholded again (Wang et al. 2017), which lowers the
    energy at each step and takes tens of steps where a flow takes thousands.

    Args:
        image: float, 2-D or 3-D.
        start: where it begins, 0 and 1.
        side: "bright" or "dark": which of the regions is wanted.
        border: weight of the border's area, mm, against squared intensities in units of the gap between the regions.
        iterations: at most.
        where: voxels that count, (z, y, x); None is all. The others are outside.

    Raises:
        BadInput: a start that is empty or everything, or an image that is one region.
    """
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    spacing = np.array(image.GetSpacing()[::-1])
    counted = np.ones(values.shape, bool) if where is None else where
    inside = (sitk.GetArrayFromImage(start) != 0) & counted
    sigma = HEAT * float(spacing.mean())
    weight = border * np.sqrt(2 * np.pi) / sigma  # sqrt(pi / tau) of the paper, whose heat has spread sqrt(2 tau)
    steps, settled = 0, False
    while not settled and steps < iterations:
        steps += 1
        if not inside.any() or inside[counted].all():
            raise BadInput("The two regions became one.", "The image has no two even regions.", "Use another method.")
        ours, theirs = (float(values[counted & mask].mean()) for mask in (inside, ~inside))
        if ours == theirs:
            raise BadInput("Inside and outside of the start are alike.", "", "Begin with other seeds, or none.")
        # (v - ours)^2 - (v - theirs)^2, over the squared gap
        fits = (2 * (0.5 * (ours + theirs) - values) * (ours - theirs)) / (ours - theirs) ** 2
        heat = ndimage.gaussian_filter(inside.astype(np.float32), sigma / spacing, mode="nearest")
        new = counted & (fits < weight * (2 * heat - 1))
        settled = bool((new == inside).all())
        inside = new
    if (ours > theirs) != (side == "bright"):
        inside = counted & ~inside
    return Surface(from_array(inside.astype(np.uint8), image), steps, settled)

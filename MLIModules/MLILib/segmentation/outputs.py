"""The result of a segmentation: finished labels, their volumes, and the files they are written to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.data.meta_tensor import MetaTensor

from .. import files, geometry, images, record
from ..errors import BadInput
from ..geometry import Grid
from ..labels import Label
from . import seg_nrrd
from .postprocessing import Postprocessing
from .prediction import Prediction
from .requests import SegmentRequest


@dataclasses.dataclass(frozen=True)
class LabelVolume:
    """A label and how much of it there is."""

    label: Label
    voxels: int
    volume_ml: float


@dataclasses.dataclass
class Segmentation:
    """What a model made of an image; all images lie on the input's grid.

    Attributes:
        labels: label map; where labels overlap, smaller ones cover larger ones.
        layers: a vector image with a component of 0 and 1 for each label where labels may overlap, else None.
        probabilities: float32, one component a label, None unless asked for.
        entropy: predictive entropy in nats, float32, None unless asked for.
        mutual_information: in nats, float32, None without several models or dropout samples.
        volumes: the labels with their voxel counts and volumes.
        device: where it was computed, in words.
        seconds: how long it took.
        warnings: sentences about fallbacks taken.
        windows: the window of each model, in voxels along its own axes.
    """

    labels: sitk.Image
    layers: sitk.Image | None
    probabilities: sitk.Image | None
    entropy: sitk.Image | None
    mutual_information: sitk.Image | None
    volumes: tuple[LabelVolume, ...]
    device: str
    seconds: float
    warnings: list[str]
    windows: list[list[int]]

    def label_list(self) -> list[dict[str, Any]]:
        """The labels as plain values: value, name, color, terminology, voxels, volume_ml."""
        return [
            {
                "value": v.label.value,
                "name": v.label.name,
                "color": list(v.label.color),
                "terminology": v.label.terminology,
                "voxels": v.voxels,
                "volume_ml": v.volume_ml,
            }
            for v in self.volumes
        ]

    def table(self) -> str:
        """Labels, voxels and millilitres as lines of text."""
        rows = [("label", "name", "voxels", "ml")]
        rows += [(str(v.label.value), v.label.name, f"{v.voxels:,}", f"{v.volume_ml:.3f}") for v in self.volumes]
        wide = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            f"{a:>{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}  {d:>{wide[3]}}".rstrip() for a, b, c, d in rows
        )


def require_names(request: SegmentRequest) -> None:
    """Raise :class:`BadInput` when an output's name does not tell a format that can hold it."""
    images.require_suffix(request.output, (*images.WRITABLE, ".seg.nrrd"), "the label map")
    for path, what in ((request.uncertainty, "the uncertainty"), (request.probabilities, "the probabilities")):
        if path:
            images.require_suffix(path, images.WRITABLE, what)
    written = [request.output, request.uncertainty, request.probabilities, record.path_beside(request.output)]
    if request.uncertainty:
        written.append(mutual_information_path(request.uncertainty))
    files.require_apart(filter(None, written), request.images)


def mutual_information_path(uncertainty: str) -> str:
    """Where the mutual information goes when the entropy goes to `uncertainty`, "" when that is not wanted."""
    if not uncertainty:
        return ""
    path = Path(uncertainty)
    ending = path.name[len(files.stem(path)) :]
    return str(path.with_name(f"{files.stem(path)}_mutual_information{ending}"))


def finish(prediction: Prediction, post: Postprocessing, labels: Sequence[Label], *, keep_largest: bool) -> np.ndarray:
    """The labels after the bundle's last transforms and, if wanted, reduced to their largest components.

    Args:
        prediction: as computed.
        post: of the first model.
        labels: what the values or bits mean.
        keep_largest: whether to keep the largest connected component of each label only (connected by faces, edges
            and corners).

    Returns:
        Values or bits, as `prediction.labels`.
    """
    array = prediction.labels
    if post.finish:
        array = _finished(array, post, len(labels), overlapping=prediction.overlapping)
    if not keep_largest:
        return array
    if not prediction.overlapping:
        for label in labels:
            array = np.where(_small_components(array == label.value), 0, array).astype(array.dtype)
        return array
    for i in range(len(labels)):
        array = array & ~(_small_components(array >> i & 1 == 1).astype(array.dtype) << i).astype(array.dtype)
    return array


def _finished(array: np.ndarray, post: Postprocessing, count: int, *, overlapping: bool) -> np.ndarray:
    """The label map after the transforms that follow the bundle's decision."""
    channels = [array >> i & 1 for i in range(count)] if overlapping else [array]
    stack = np.stack([c.T for c in channels]).astype(np.float32)
    data: dict[Any, Any] = {post.key: MetaTensor(torch.from_numpy(stack))}
    for transform in post.finish:
        data = transform(data)
    out = np.asarray(data[post.key]).round().astype(np.int64)
    if out.shape[1:] != array.T.shape:
        raise BadInput(
            "The model's last transform changes the size of the label map.",
            f"{type(post.finish[-1]).__name__} is of a kind that cannot be used here.",
            "Use another model.",
        )
    bits = sum(out[i] << i for i in range(len(out))) if overlapping else out[0]
    return np.ascontiguousarray(np.asarray(bits).T).astype(array.dtype)


def _small_components(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask that are not in its largest component."""
    if not mask.any():
        return mask
    spans = []
    for axis in range(mask.ndim):
        where = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        spans.append(slice(int(where[0]), int(where[-1]) + 1))
    inside = np.ascontiguousarray(mask[tuple(spans)])
    found = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(inside.astype(np.uint8)), True))
    sizes = np.bincount(found.ravel())
    sizes[0] = 0
    out = np.zeros_like(mask)
    out[tuple(spans)] = inside & (found != sizes.argmax())
    return out


def segmentation(
    prediction: Prediction,
    grid: Grid,
    labels: Sequence[Label],
    *,
    device: str,
    seconds: float,
    warnings: list[str],
    windows: list[list[int]],
) -> Segmentation:
    """The result on the input's grid, from finished arrays."""
    array = prediction.labels
    layers = None
    if prediction.overlapping:
        layers = np.stack([(array >> i & 1).astype(np.uint8) for i in range(len(labels))], axis=-1)
        counts = [int(layers[..., i].sum()) for i in range(len(labels))]
        array = _painted(layers, labels, counts)
    else:
        most = max((label.value for label in labels), default=0) + 1
        found = np.zeros(most, np.int64)
        for part in array:  # slice by slice: bincount makes 8 bytes of each voxel
            found += np.bincount(part.ravel(), minlength=most)[:most]
        counts = [int(found[label.value]) for label in labels]
    return Segmentation(
        labels=geometry.from_array(array, grid),
        layers=None if layers is None else geometry.from_array(layers, grid, vector=True),
        probabilities=_probabilities(prediction.probabilities, grid),
        entropy=_volume(prediction.entropy, grid),
        mutual_information=_volume(prediction.mutual_information, grid),
        volumes=tuple(LabelVolume(label, n, n * grid.voxel_ml) for label, n in zip(labels, counts, strict=True)),
        device=device,
        seconds=seconds,
        warnings=warnings,
        windows=windows,
    )


def _painted(layers: np.ndarray, labels: Sequence[Label], counts: Sequence[int]) -> np.ndarray:
    """A label map of overlapping labels: the largest is painted first, so that what lies in it stays visible."""
    out = np.zeros(layers.shape[:-1], np.min_scalar_type(max(label.value for label in labels)))
    for i in sorted(range(len(labels)), key=lambda i: -counts[i]):
        out[layers[..., i] != 0] = labels[i].value
    return out


def _probabilities(array: np.ndarray | None, grid: Grid) -> sitk.Image | None:
    if array is None:
        return None
    if array.shape[-1] == 1:
        return geometry.from_array(array[..., 0], grid)
    return geometry.from_array(array, grid, vector=True)


def _volume(array: np.ndarray | None, grid: Grid) -> sitk.Image | None:
    return None if array is None else geometry.from_array(array, grid)


def write(result: Segmentation, request: SegmentRequest, outputs: files.Outputs) -> dict[str, str]:
    """Write what the request names.

    Args:
        result: what to write.
        request: names the files.
        outputs: the block in which they appear together.

    Returns:
        File names by what they hold: output, uncertainty, mutual_information, probabilities, record; "" for none.

    Raises:
        BadInput: the disk is full.
    """
    segments = [volume.label for volume in result.volumes]
    kind = files.suffix(request.output)
    target = outputs.path(request.output)
    if kind == ".seg.nrrd":
        voxels = result.labels if result.layers is None else result.layers
        seg_nrrd.write(voxels, segments, target, final=request.output, compress=request.compress)
    else:
        images.write(result.labels, target, final=request.output, compress=request.compress)
        if result.layers is not None:
            result.warnings.append(
                f"The labels of this model overlap, which {kind} cannot hold: smaller labels cover larger ones. "
                "Write .seg.nrrd to keep them all."
            )
    paths = {
        "output": request.output,
        "uncertainty": "",
        "mutual_information": "",
        "probabilities": "",
        "record": record.path_beside(request.output),
    }
    optional = [
        ("uncertainty", request.uncertainty, result.entropy),
        ("mutual_information", mutual_information_path(request.uncertainty), result.mutual_information),
        ("probabilities", request.probabilities, result.probabilities),
    ]
    for what, path, image in optional:
        if image is not None:
            images.write(image, outputs.path(path), final=path, compress=request.compress)
            paths[what] = path
    return paths

"""A bundle's preprocessing, run on images in memory, with what it did to the grid written down step by step.

The bundle's own transforms are applied one after the other, to what LoadImaged would have read. How the grid changed at
each step is what :mod:`.inversion` needs to bring a prediction back to the input's voxels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, MapTransform

from .. import device, geometry
from ..errors import BadInput, MissingPackage
from .resampling import resampled

#: What :func:`geometry.to_tensor` has done already.
_LOADERS = (LoadImaged, EnsureChannelFirstd)


@dataclasses.dataclass(frozen=True)
class Change:
    """What one transform did to the grid.

    Attributes:
        before, after: spatial shape (x, y[, z]) and affine (voxel index to RAS mm) on both sides of it.
        operations: MONAI's own trace of it, as put on the tensor's stack.
    """

    before: tuple[tuple[int, ...], np.ndarray]
    after: tuple[tuple[int, ...], np.ndarray]
    operations: tuple[Mapping[str, Any], ...]


@dataclasses.dataclass
class Prepared:
    """An image as the network wants it.

    Attributes:
        image: (channel, x, y[, z]) float32.
        changes: how the grid got from the input's to the network's; None when only MONAI itself can tell.
        trace: an empty MetaTensor with the metadata and the stack of applied operations, for MONAI's own inverse.
        key: the name of the image in the bundle's transforms.
        shape: the input's spatial shape, (x, y[, z]).
    """

    image: torch.Tensor
    changes: list[Change] | None
    trace: MetaTensor
    key: str
    shape: tuple[int, ...]


def prepare(images: Sequence[sitk.Image], compose: Compose, *, channels: int, name: str) -> Prepared:
    """Apply a bundle's preprocessing.

    Args:
        images: the model's inputs in its order, on one grid.
        compose: the bundle's preprocessing transforms (dictionary style, as bundles have them).
        channels: how many channels the network takes.
        name: the bundle's name, for errors.

    Raises:
        BadInput: the number of images or of prepared channels is not what the model takes, nothing is left of the
            image, or a transform fails on it.
    """
    everything = list(compose.flatten().transforms)
    keys = next((tuple(map(str, t.keys)) for t in everything if isinstance(t, MapTransform)), ("image",))
    transforms = [t for t in everything if not isinstance(t, _LOADERS)]
    data = _loaded(images, keys, name)
    lazy = bool(compose.lazy) or any(getattr(t, "lazy", False) for t in transforms)
    changes: list[Change] = []
    for transform in [Compose(transforms, lazy=compose.lazy, overrides=compose.overrides)] if lazy else transforms:
        key = _key(data, keys)
        before, done = _grid(data[key]), len(_operations(data[key]))
        try:
            done_here = None if lazy else resampled(transform, data)
            data = transform(data) if done_here is None else done_here
        except ImportError as error:
            raise MissingPackage(
                f"The preprocessing of the model {name} needs a Python package that is not installed.",
                str(error).splitlines()[0],
                f"Install {error.name or 'it'} into this Python.",
            ) from error
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
            if device.is_out_of_memory(error):
                raise
            raise _failed(transform, error, name) from error
        key = _key(data, keys)
        after = _grid(data[key])
        if before is not None and after is not None:
            changes.append(Change(before, after, tuple(_operations(data[key])[done:])))
    key = _key(data, keys)
    return _finished(data[key], key, None if lazy else changes, images[0].GetSize(), channels, name)


def _loaded(images: Sequence[sitk.Image], keys: tuple[str, ...], name: str) -> dict[Any, Any]:
    """The images under the keys that the bundle loads: all as channels under one key, or one each."""
    if len(keys) == 1:
        return {keys[0]: geometry.to_tensor(images)}
    if len(keys) == len(images):
        return {key: geometry.to_tensor(image) for key, image in zip(keys, images, strict=True)}
    raise BadInput(
        f"The model {name} takes {len(keys)} images ({', '.join(keys)}), but {len(images)} "
        f"{'was' if len(images) == 1 else 'were'} given.",
        "",
        "Give one image each, in this order.",
    )


def _key(data: Mapping[Any, Any], keys: tuple[str, ...]) -> str:
    """Where the network's input is: "image", as MONAI's evaluators expect, or what was loaded first."""
    return "image" if "image" in data else keys[0]


def _grid(value: Any) -> tuple[tuple[int, ...], np.ndarray] | None:
    """Spatial shape and affine of an image; None of a tensor that has lost them."""
    if not isinstance(value, MetaTensor):
        return None
    rank = len(value.affine) - 1
    return tuple(int(n) for n in value.shape[-rank:]), value.affine.detach().cpu().numpy().astype(np.float64)


def _operations(value: Any) -> list[Any]:
    return list(value.applied_operations) if isinstance(value, MetaTensor) else []


def _failed(transform: Any, error: Exception, name: str) -> BadInput:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return BadInput(
        f"The preprocessing of the model {name} fails on this image ({type(transform).__name__}: {reason:.200}).",
        "The image is not of the kind that the model was made for.",
        "Compare the image with the model's card.",
    )


def _finished(
    tensor: Any, key: str, changes: list[Change] | None, shape: tuple[int, ...], channels: int, name: str
) -> Prepared:
    if not isinstance(tensor, MetaTensor):
        raise BadInput(
            f"The preprocessing of the model {name} forgets where the image was.",
            "Its last transform returns a plain tensor.",
            "Keep metadata in the bundle's transforms (EnsureTyped with track_meta).",
        )
    if tensor.numel() == 0:
        raise BadInput(
            f"Nothing is left of the image after the preprocessing of the model {name}.",
            "It crops to the foreground, and finds none.",
            "Compare the image with the model's card.",
        )
    if tensor.shape[0] != channels:
        raise BadInput(
            f"The model {name} takes {channels} channel{'s' * (channels > 1)}, but {tensor.shape[0]} "
            f"{'was' if tensor.shape[0] == 1 else 'were'} given.",
            "",
            f"Give {channels} image{'s' * (channels > 1)}, in the order of the model's card.",
        )
    trace = MetaTensor(torch.zeros(0), meta=tensor.meta, applied_operations=tensor.applied_operations)
    # In C order, once: windows overlap, and each would be gathered across the strides of the file's order again.
    plain = tensor.as_tensor().to(torch.float32).contiguous()
    return Prepared(plain, changes, trace, key, tuple(shape))

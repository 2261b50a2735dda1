"""What a model of normal is trained on: files found and read, arrays checked, with what to leave out.

A folder of images, a dataset.json whose cases may have a mask of what to leave out, or an .npz of 2-D images.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import files, images
from ..errors import BadInput

#: What a folder is searched for.
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
#: Keys of a case of dataset.json that name a mask of what to leave out: Decathlon's, and plainer ones.
LEFT_OUT = ("label", "mask", "exclude")
#: Fewer normal images teach a network nothing that holds for others.
FEWEST = 32


@dataclasses.dataclass(frozen=True)
class Case:
    """An image to learn from; what `left_out` marks is not normal, `foreground` is where to look ("" where unknown)."""

    name: str
    image: str
    left_out: str = ""
    foreground: str = ""


def read_cases(path: str, channel: int = 0) -> list[Case]:
    """The cases of a folder or a dataset.json, by name.

    Raises:
        BadInput: no images, not JSON, or a file that does not exist.
    """
    p = Path(path)
    if p.is_dir():
        found = sorted(f for f in p.iterdir() if f.is_file() and files.suffix(f) in SUFFIXES)
        found = [f for f in found if not f.name.startswith(".")]
        if found:
            return [Case(files.stem(f), str(f)) for f in found]
        if any(f.is_file() for f in p.iterdir()):
            return [Case(p.name, str(p))]  # a DICOM series, or images.read says what else
        raise BadInput(f"The folder {path} holds no images.", "", f"Put normal images there ({', '.join(SUFFIXES)}).")
    if files.suffix(p) != ".json":
        raise BadInput(
            f"{path} is not a data set.",
            "It is one image or another file.",
            "Give a folder of normal images, a dataset.json or an .npz.",
        )
    try:
        data = json.loads(p.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} is not a JSON file ({error}).", "", "Give a Decathlon-format dataset.json.") from error
    entries = data.get("training") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries:
        raise BadInput(
            f"{path} lists no cases.",
            'It has no list "training".',
            'Write {"training": [{"image": "a.nii.gz", "exclude": "lesions.nii.gz"}, ...]}.',
        )
    return sorted((_case(entry, p, channel) for entry in entries), key=lambda case: case.image)


def _case(entry: Any, path: Path, channel: int) -> Case:
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str | list) or not entry["image"]:
        raise BadInput(f"A case of {path} is {entry!r:.120}.", "", 'Each needs an "image".')
    every = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    if channel >= len(every):
        raise BadInput(
            f"A case of {path.name} lists {len(every)} image(s), none has the number {channel}.",
            "--channel counts from 0.",
            f"Give a number up to {len(every) - 1}.",
        )
    named = {key: str(entry[key]) for key in (*LEFT_OUT, "foreground") if entry.get(key)}
    for name in (every[channel], *named.values()):
        if not (path.parent / str(name)).exists():
            raise BadInput(
                f"{path.parent / str(name)} does not exist.",
                f"It is listed in {path.name}.",
                "Restore it, or remove it.",
            )
    image = path.parent / str(every[channel])
    left_out = next((str(path.parent / named[key]) for key in LEFT_OUT if key in named), "")
    foreground = str(path.parent / named["foreground"]) if "foreground" in named else ""
    return Case(files.stem(image), str(image), left_out, foreground)


def read_arrays(path: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz; nothing of it is unpickled.

    Raises:
        BadInput: not an .npz, damaged, or holding Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        objects = "pickle" in str(error)
        raise BadInput(
            f"{path} cannot be read as an .npz.",
            "It holds Python objects, which are never loaded."
            if objects
            else f"It is damaged or something else ({error}).",
            "Save plain arrays with numpy.savez.",
        ) from error


def normal_images(path: str) -> npt.NDArray[Any]:
    """The normal images of an .npz, (n, h, w): `images`, or the rows of `train_images` whose label is 0.

    Raises:
        BadInput: neither array is there, or it is not a stack of usable 2-D images.
    """
    arrays = read_arrays(path)
    if "images" in arrays:
        stack, name = arrays["images"], "images"
        labels = arrays.get("labels")
    elif "train_images" in arrays:
        stack, name = arrays["train_images"], "train_images"
        labels = arrays.get("train_labels")
        if labels is None:
            raise BadInput(
                f"{path} has no train_labels.",
                "Which of its train_images are normal is not said.",
                "Add train_labels (0 = normal), or save the normal ones as images.",
            )
    else:
        raise _no_images(path, arrays)
    stack = checked_stack(stack, f"{name} of {path}")
    return stack if labels is None else stack[_labels(labels, stack, path) == 0]


def stack_to_score(path: str, name: str = "") -> tuple[npt.NDArray[Any], npt.NDArray[np.int64] | None, str]:
    """Images (n, h, w) of an .npz to be scored, their labels where it has them (0 = normal), and the array's name.

    Args:
        path: the .npz.
        name: the array; by default images, else train_images.
    """
    arrays = read_arrays(path)
    chosen = name or next((n for n in ("images", "train_images") if n in arrays), "")
    if chosen not in arrays:
        if name:
            raise BadInput(f"{path} has no array {name!r}.", "", f"It has: {', '.join(arrays) or 'none'}.")
        raise _no_images(path, arrays)
    stack = checked_stack(arrays[chosen], f"{chosen} of {path}")
    labels = arrays.get(chosen.replace("images", "labels")) if "images" in chosen else None
    return stack, None if labels is None else _labels(labels, stack, path), chosen


def _no_images(path: str, arrays: dict[str, npt.NDArray[Any]]) -> BadInput:
    return BadInput(
        f"{path} has neither images nor train_images.",
        f"It has: {', '.join(arrays) or 'no arrays'}.",
        "Save the normal images, (n, h, w), as images.",
    )


def _labels(labels: npt.NDArray[Any], stack: npt.NDArray[Any], path: str) -> npt.NDArray[np.int64]:
    flat = labels.reshape(len(labels), -1) if labels.ndim else labels.reshape(0, 0)
    if len(flat) != len(stack) or flat.shape[1] != 1 or flat.dtype.kind not in "biuf":
        raise BadInput(
            f"The labels of {path} have the shape {labels.shape} for {len(stack)} images.",
            "",
            "Give one number an image, 0 = normal.",
        )
    return flat[:, 0].astype(np.int64)


def checked_stack(stack: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """`stack` as (n, h, w), of finite numbers, none of its images blank.

    Raises:
        BadInput: says which image is not.
    """
    if stack.ndim == 4 and stack.shape[-1] == 1:
        stack = stack[..., 0]
    if stack.ndim != 3 or not len(stack) or stack.dtype.kind not in "biuf":
        raise BadInput(
            f"The array {name} has the shape {stack.shape} and the type {stack.dtype}.",
            "It is no stack of grey 2-D images.",
            "Save images as (n, height, width) numbers.",
        )
    if min(stack.shape[1:]) < 8:
        raise BadInput(
            f"The images in {name} have {stack.shape[1]} x {stack.shape[2]} pixels.", "", "Give larger ones."
        )
    if stack.dtype.kind == "f" and not np.isfinite(stack).all():
        rows = np.flatnonzero(~np.isfinite(stack).all(axis=(1, 2)))
        raise BadInput(
            f"Image {rows[0]} of {name} holds values that are not finite numbers ({len(rows)} such images).",
            "A division or a resampling left them.",
            "Replace or remove them.",
        )
    flat = stack.reshape(len(stack), -1)
    blank = np.flatnonzero(flat.min(axis=1) == flat.max(axis=1))
    if len(blank):
        raise BadInput(
            f"Image {blank[0]} of {name} is constant ({len(blank)} such image{'s' * (len(blank) > 1)}).",
            "A blank image shows neither what is normal nor what is not.",
            "Remove it.",
        )
    return stack


def require_enough(count: int, what: str) -> None:
    """Raise :class:`BadInput` where there are too few images to learn from."""
    if count < FEWEST:
        raise BadInput(
            f"There {'is' if count == 1 else 'are'} only {count} {what} to learn from.",
            f"A model of normal needs at least {FEWEST}, and some hundreds to be worth anything.",
            "Add normal images, or take more of each.",
        )


def read_volume(path: str) -> Any:
    """An image file, checked: see :func:`MLILib.images.check`."""
    image = images.read(path)
    images.check(image, path)
    return image

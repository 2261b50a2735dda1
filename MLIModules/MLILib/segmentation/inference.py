"""The task "segment": images and models in, label map, probabilities and uncertainty out.

Example, in a script::

    image = sitk.ReadImage("head.nii.gz")
    result = segment(image, "hippocampus", uncertainty=True, tta=True)
    sitk.WriteImage(result.labels, "labels.nii.gz")
    print(result.table())
"""

from __future__ import annotations

import dataclasses
import gc
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from .. import device as devices
from .. import files, geometry, images, record
from ..errors import BadInput, OutOfMemory
from ..geometry import Grid
from ..progress import Progress
from . import models, outputs, tiles
from .ensemble_folder import expanded
from .models import Model
from .outputs import Segmentation
from .postprocessing import Postprocessing
from .prediction import SUMS, Job, Prediction, Wanted, passes, predict
from .preparation import Prepared, prepare
from .requests import SegmentRequest
from .sliding_window import Tiling, WindowRefused, accumulator_bytes
from .tiles import Setup
from .whole import predict_whole


def run(request: SegmentRequest, progress: Progress) -> dict[str, Any]:
    """Do what the request says: read, segment, write.

    Returns:
        Plain values: output, uncertainty, mutual_information and probabilities (file names, "" where not asked for),
        labels (value, name, color, terminology, voxels, volume_ml), device, seconds, stages, warnings, model (name,
        sha256), record (file name) and text (a table for a terminal).

    Raises:
        MLIError: what a user can act on; nothing is written then.
    """
    started = time.monotonic()
    outputs.require_names(request)
    resolved = devices.resolve(request.device)
    memory = record.PeakMemory(str(resolved))
    progress.stage("Reading")
    chosen = [models.load(name, request.trust) for name in expanded(request.model)]
    pictures = [images.read(path) for path in request.images]
    names = list(request.images)
    result = _segment(
        pictures,
        names,
        chosen,
        resolved,
        Wanted(
            flips=request.tta,
            samples=request.mc_dropout,
            seed=request.seed,
            probabilities=bool(request.probabilities),
            uncertainty=bool(request.uncertainty),
            vote=request.ensemble == "vote",
            weights=model_weights(chosen, request.ensemble, request.weights),
        ),
        missing=request.missing,
        keep_largest=request.keep_largest,
        tile=request.tile,
        overlap=request.overlap,
        progress=progress,
        release_images=True,
    )
    progress.stage("Writing")
    writing = time.monotonic()
    with files.Outputs() as written:
        paths = outputs.write(result, request, written)
        stages = {**progress.stages, "Writing": time.monotonic() - writing}
        noted = record.make(
            request,
            models=[model.bundle for model in chosen],
            device=result.device,
            stages=stages,
            peak_memory=memory.bytes(),
            warnings=result.warnings,
            results={"labels": result.label_list(), "windows": result.windows},
        )
        record.write(noted, written.path(paths["record"]))
    progress.fraction(1.0)
    return {
        **paths,
        "labels": result.label_list(),
        "device": result.device,
        "seconds": time.monotonic() - started,
        "stages": progress.finish(),
        "warnings": result.warnings,
        "model": [{"name": model.bundle.name, "sha256": model.bundle.sha256} for model in chosen],
        "text": result.table(),
    }


def segment(
    image: sitk.Image | Sequence[sitk.Image],
    model: str | Sequence[str],
    *,
    device: str = "auto",
    tta: bool = False,
    mc_dropout: int = 0,
    probabilities: bool = False,
    uncertainty: bool = False,
    ensemble: str = "mean",
    weights: Sequence[float] = (),
    missing: Sequence[str] = (),
    keep_largest: bool = False,
    tile: Sequence[int] = (),
    overlap: float = 0.5,
    seed: int = 0,
    trust: Sequence[str] = (),
    progress: Progress | None = None,
) -> Segmentation:
    """Segment an image in memory.

    Args:
        image: scalar image, 2-D or 3-D; several on one grid for a model with several channels. A 2-D model takes a
            3-D image slice by slice along its last axis.
        model: name, folder or zip of a bundle; several are an ensemble.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        tta: average over mirror images along the axes the model was mirrored along in training, else all axes.
        mc_dropout: samples of Monte-Carlo dropout, 0 is off.
        probabilities, uncertainty: whether to return those volumes.
        ensemble: "mean" of probabilities, "weighted" mean, or majority "vote".
        weights: of the models; by default of a weighted mean their validation Dice.
        missing: names of channels that there is no image of, for models that were trained to do without.
        keep_largest: keep only the largest connected component of each label.
        tile: window in voxels along the model's axes; by default the model's.
        overlap: of neighbouring windows, a fraction.
        seed: of Monte-Carlo dropout.
        trust: sha256 of bundles whose configuration may name any callable.
        progress: told of stages and fractions.

    Returns:
        Images on the grid of `image`.

    Raises:
        BadInput: the image or the model cannot be used.
        OutOfMemory: neither the smallest window nor the CPU had room.
    """
    pictures = [image] if isinstance(image, sitk.Image) else list(image)
    names = ["The image"] if len(pictures) == 1 else [f"Image {i + 1}" for i in range(len(pictures))]
    names_of_models = expanded([model] if isinstance(model, str) else model)
    chosen = [models.load(name, trust) for name in names_of_models]
    return _segment(
        pictures,
        names,
        chosen,
        devices.resolve(device),
        Wanted(
            tta,
            mc_dropout,
            seed,
            probabilities,
            uncertainty,
            ensemble == "vote",
            model_weights(chosen, ensemble, weights),
        ),
        missing=missing,
        keep_largest=keep_largest,
        tile=tile,
        overlap=overlap,
        progress=progress or Progress(),
    )


def _segment(
    pictures: list[sitk.Image],
    names: Sequence[str],
    chosen: Sequence[Model],
    device: torch.device,
    wanted: Wanted,
    *,
    missing: Sequence[str] = (),
    keep_largest: bool,
    tile: Sequence[int],
    overlap: float,
    progress: Progress,
    release_images: bool = False,
) -> Segmentation:
    """As :func:`segment`, of models already found; `release_images` empties `pictures` as soon as they are copied."""
    started = time.monotonic()
    _check_models(chosen)
    if missing:
        pictures, names = _with_blanks(pictures, names, chosen, missing)
    check_images(pictures, names, chosen, blank=missing)
    grid = Grid.of(pictures[0])
    tilings = [model.tiling_for(tile, overlap) for model in chosen]
    warnings: list[str] = []
    posts = _posts(chosen, wanted, warnings)
    progress.stage("Preparing")
    planar = chosen[0].bundle.dimensions == 2 and grid.dimension == 3
    prepared = _prepare([_plane(p, grid.size[2] // 2) for p in pictures] if planar else pictures, chosen)
    if release_images and not planar:
        pictures.clear()  # the network's input is a copy, and a CT is large
    if not all(model.is_loaded(device) for model in chosen):
        progress.stage("Loading the model")
        for model in chosen:
            model.network(device)
    sizes = [tuple(p.image.shape[1:]) for p in prepared]
    setup = _first_setup(chosen, tilings, sizes, device, wanted, warnings)

    def compute(setup: Setup) -> Prediction:
        if planar:
            return _predict_planes(pictures, chosen, posts, setup, wanted, progress.fraction)
        return _predict(chosen, prepared, posts, setup, wanted, progress.fraction)

    progress.stage("Segmenting")
    prediction, setup = _with_fallbacks(setup, sizes, compute, chosen, warnings, progress)
    labels = chosen[0].labels
    post = posts[0] or chosen[0].default_post
    prediction.labels = outputs.finish(prediction, post, labels, keep_largest=keep_largest)
    return outputs.segmentation(
        prediction,
        grid,
        labels,
        device=devices.describe(setup.device),
        seconds=time.monotonic() - started,
        warnings=warnings,
        windows=[list(t.window(s)) for t, s in zip(setup.tilings, sizes, strict=True)],
    )


def _check_models(chosen: Sequence[Model]) -> None:
    """Raise :class:`BadInput` unless the models can be averaged."""
    if not chosen:
        raise BadInput("No model was given.", "", "Name a model; mli models list shows those at hand.")
    first = chosen[0]
    for other in chosen[1:]:
        names = [[label.name for label in m.labels] for m in (first, other)]
        if names[0] != names[1] or [x.value for x in first.labels] != [x.value for x in other.labels]:
            raise BadInput(
                f"The models {first.bundle.name} and {other.bundle.name} have different labels: "
                f"{', '.join(names[0])} and {', '.join(names[1])}.",
                "The models of an ensemble must mean the same by each label.",
                "Run them one after the other.",
            )
        if _decision(first) != _decision(other):
            raise BadInput(
                f"The labels of {first.bundle.name} and {other.bundle.name} are decided differently.",
                "In one of them labels may overlap.",
                "Run them one after the other.",
            )
        if first.bundle.dimensions != other.bundle.dimensions:
            raise BadInput(
                f"{first.bundle.name} is {first.bundle.dimensions}-D, {other.bundle.name} {other.bundle.dimensions}-D.",
                "",
                "Run them one after the other.",
            )


def _decision(model: Model) -> str:
    return (model.post or model.default_post).decision


def model_weights(chosen: Sequence[Model], ensemble: str, given: Sequence[float]) -> tuple[float, ...]:
    """The weights of an ensemble's models; () weighs them alike.

    Raises:
        BadInput: another number of weights than models, or a model whose validation Dice is not known.
    """
    if given:
        if ensemble == "mean":
            raise BadInput("Weights are given for a plain mean.", "", "Add --ensemble weighted, or vote.")
        if len(given) != len(chosen):
            raise BadInput(f"{len(given)} weights are given for {len(chosen)} models.", "", "Give one a model.")
        return tuple(float(w) for w in given)
    if ensemble != "weighted":
        return ()
    known = [model.bundle.metadata.get("mli", {}).get("validation_dice") for model in chosen]
    unknown = [m.bundle.name for m, dice in zip(chosen, known, strict=True) if not isinstance(dice, int | float)]
    if unknown:
        raise BadInput(
            f"It is not known how good {', '.join(unknown)} was in validation.",
            "Its metadata hold no validation Dice.",
            "Give the models' weights with --weights.",
        )
    return tuple(float(dice) for dice in known)


def _with_blanks(
    pictures: Sequence[sitk.Image], names: Sequence[str], chosen: Sequence[Model], missing: Sequence[str]
) -> tuple[list[sitk.Image], list[str]]:
    """The images with an empty one in place of each channel that is missing: it is normalised to zeros."""
    channels = chosen[0].bundle.channels
    for model in chosen:
        if model.bundle.channels != channels or not model.bundle.metadata.get("mli", {}).get("modality_dropout"):
            raise BadInput(
                f"The model {model.bundle.name} needs all of its channels ({', '.join(model.bundle.channels)}).",
                "It was not trained to do without.",
                "Train one with --modality-dropout 0.3, or give all images.",
            )
    unknown = [name for name in missing if name not in channels]
    if unknown or len(set(missing)) == len(channels):
        raise BadInput(
            f"The channels {', '.join(missing)} cannot be missing.",
            f"The model's channels are {', '.join(channels)}.",
            "Name channels of it, and give an image of one at least.",
        )
    given = list(zip(pictures, names, strict=True))
    if len(given) != len(channels) - len(set(missing)):
        raise BadInput(
            f"{len(given)} images are given for {len(channels) - len(set(missing))} channels.",
            f"The channels are {', '.join(channels)}, of which {', '.join(missing)} are missing.",
            "Give one image for each of the others, in this order.",
        )
    empty = sitk.Image(pictures[0].GetSize(), sitk.sitkFloat32)
    empty.CopyInformation(pictures[0])
    filled = [(empty, name) if name in missing else given.pop(0) for name in channels]
    return [picture for picture, _ in filled], [name for _, name in filled]


def check_images(
    pictures: Sequence[sitk.Image], names: Sequence[str], chosen: Sequence[Model], blank: Sequence[str] = ()
) -> None:
    """Raise :class:`BadInput` for images that are unusable, do not share a grid, or are not what a model takes.

    Args:
        blank: names of images that are empty because there is none.
    """
    for picture, name in zip(pictures, names, strict=True):
        if picture.GetNumberOfComponentsPerPixel() > 1 or picture.GetDimension() > 3:
            raise BadInput(
                f"{name} is not a scalar volume.",
                f"It is {picture.GetDimension()}-D with {picture.GetNumberOfComponentsPerPixel()} values a voxel.",
                "Give one scalar 2-D or 3-D image a channel.",
            )
        if name not in blank:
            images.check(picture, name)
    for picture, name in zip(pictures[1:], names[1:], strict=True):
        if not geometry.same_grid(pictures[0], picture):
            raise BadInput(
                f"{names[0]} and {name} do not lie on the same grid: {geometry.describe(Grid.of(pictures[0]))} and "
                f"{geometry.describe(Grid.of(picture))}.",
                "The channels of a model must show the same voxels.",
                f"Resample {name} to {names[0]} first.",
            )
    for model in chosen:
        bundle = model.bundle
        if len(pictures) != model.channels:
            raise BadInput(
                f"The model {bundle.name} takes {model.channels} image{'s' * (model.channels > 1)} "
                f"({', '.join(bundle.channels)}), but {len(pictures)} {'was' if len(pictures) == 1 else 'were'} given.",
                "",
                "Give one image a channel, in this order.",
            )
        if bundle.dimensions == 3 and pictures[0].GetDimension() == 2:
            raise BadInput(
                f"{names[0]} is a 2-D image, and the model {bundle.name} takes volumes.", "", "Give a 3-D image."
            )


def _posts(chosen: Sequence[Model], wanted: Wanted, warnings: list[str]) -> list[Postprocessing | None]:
    """How each model gets from outputs to labels; None lets MONAI run the only model's own transforms."""
    plain = len(chosen) == 1 and not (
        wanted.flips or wanted.samples or wanted.probabilities or wanted.uncertainty or wanted.vote
    )
    posts: list[Postprocessing | None] = []
    for model in chosen:
        if model.post is None and not plain:
            warnings.append(
                f"The model {model.bundle.name} has a postprocessing of its own that gives labels only; probabilities "
                "were made and decided in the usual way instead."
            )
        posts.append(model.post if model.post is not None or plain else model.default_post)
    return posts


def _prepare(pictures: Sequence[sitk.Image], chosen: Sequence[Model]) -> list[Prepared]:
    """The images as each model wants them; models with the same preprocessing share one copy."""
    made: dict[str, Prepared] = {}
    out = []
    for model in chosen:
        key = json.dumps(model.bundle.config["preprocessing"], sort_keys=True, default=str)
        if key not in made or made[key].changes is None:  # MONAI's own inverse needs the very transforms
            made[key] = prepare(pictures, model.preprocessing, channels=model.channels, name=model.bundle.name)
        out.append(made[key])
    return out


def _first_setup(
    chosen: Sequence[Model],
    tilings: Sequence[Tiling],
    sizes: Sequence[tuple[int, ...]],
    device: torch.device,
    wanted: Wanted,
    warnings: list[str],
) -> Setup:
    """Windows and batches that fit the free memory."""
    free = devices.free_memory(device)
    fits = []
    for model, tiling, size in zip(chosen, tilings, sizes, strict=True):
        window = tiling.window(size)
        fit, batch = tiles.fitted(tiling, model.batch, size, model.per_voxel(device, window), free)
        if fit != tiling:
            warnings.append(
                f"Little memory is free on {devices.describe(device)}: the model {model.bundle.name} ran with windows "
                f"of {' x '.join(map(str, fit.window(size)))} instead of {' x '.join(map(str, window))} voxels."
            )
        fits.append((fit, batch))
    # The sums of windows stay beside the network where they take no more than a quarter of what is free there.
    sums = sum(
        accumulator_bytes(tiling, size, model.classes, 0) * passes(model, wanted)
        for model, (tiling, _), size in zip(chosen, fits, sizes, strict=True)
    )
    store = device if min(sums, SUMS) <= free / 4 else torch.device("cpu")
    return Setup(tuple(t for t, _ in fits), tuple(b for _, b in fits), device, store)


def _with_fallbacks(
    first: Setup,
    sizes: Sequence[tuple[int, ...]],
    compute: Callable[[Setup], Prediction],
    chosen: Sequence[Model],
    warnings: list[str],
    progress: Progress,
) -> tuple[Prediction, Setup]:
    """The prediction with the first setup that memory suffices for."""
    before = first
    for setup, note in tiles.fallbacks(first, sizes):
        if note:
            progress.message(note)
        if setup.device != before.device:
            for model in chosen:
                model.forget(before.device)
        before = setup
        try:
            prediction = compute(setup)
        except WindowRefused:
            if setup.tilings == first.tilings:
                raise
            continue
        except (RuntimeError, MemoryError) as error:
            if not devices.is_out_of_memory(error):
                raise
            reason = str(error)
        else:
            if note:
                warnings.append(note)
            return prediction, setup
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise OutOfMemory(
        "There is not enough memory for this image and model, not even with the smallest windows on the CPU.",
        reason.splitlines()[0] if reason else "",
        "Close other programs, crop the image to the region of interest, or use a computer with more memory.",
    )


def _predict(
    chosen: Sequence[Model],
    prepared: Sequence[Prepared],
    posts: Sequence[Postprocessing | None],
    setup: Setup,
    wanted: Wanted,
    on_fraction: Callable[[float], None],
) -> Prediction:
    jobs = [Job(model, image, post) for model, image, post in zip(chosen, prepared, posts, strict=True) if post]
    if len(jobs) < len(chosen):
        return predict_whole(chosen[0], prepared[0], setup, on_fraction)
    return predict(jobs, setup, wanted, on_fraction)


def _predict_planes(
    pictures: Sequence[sitk.Image],
    chosen: Sequence[Model],
    posts: Sequence[Postprocessing | None],
    setup: Setup,
    wanted: Wanted,
    on_fraction: Callable[[float], None],
) -> Prediction:
    """A 2-D model on each slice of a volume; each slice is prepared by itself."""
    depth = pictures[0].GetSize()[2]
    done: list[Prediction] = []
    for k in range(depth):
        planes = _prepare([_plane(picture, k) for picture in pictures], chosen)
        seeded = dataclasses.replace(wanted, seed=wanted.seed + 7919 * k)
        done.append(
            _predict(chosen, planes, posts, setup, seeded, lambda f, k=k: on_fraction((k + f) / depth))  # type: ignore[misc]
        )

    def stacked(name: str) -> np.ndarray | None:
        parts = [getattr(p, name) for p in done]
        return None if parts[0] is None else np.stack(parts)

    labels = stacked("labels")
    assert labels is not None
    return Prediction(
        labels, done[0].overlapping, stacked("probabilities"), stacked("entropy"), stacked("mutual_information")
    )


def _plane(picture: sitk.Image, k: int) -> sitk.Image:
    return geometry.from_array(sitk.GetArrayViewFromImage(picture)[k], Grid.of(picture).slice_2d())

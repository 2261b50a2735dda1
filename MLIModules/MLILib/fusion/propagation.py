"""From atlases to raters: each atlas image is registered to the target, and its labels are brought there.

Example::

    found = propagate(target, [(image, labels), ...], registration="deformable")
    result = fuse(found.raters, "jlf", target=found.target, warped=found.warped)
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch

from .. import device as devices
from .. import images as image_files
from ..errors import BadInput, Cancelled, MissingPackage, MLIError
from ..geometry import Grid, from_array, same_grid
from ..labels import Label
from ..metrics import GRID_TOLERANCE
from ..progress import Progress
from ..registration import learned
from ..registration.comparison import require_same_dimension, resample_labels
from ..registration.pairwise import register
from ..registration.presets import PRESETS
from . import batches, cache, selection
from .cache import Cache, Entry
from .raters import Raters, raters
from .requests import BORDERS

#: Registrations that run at a time on a CPU, at most: each needs memory of its own.
MOST_AT_A_TIME = 8
#: Bytes that a registration takes for each voxel of the target, as a rule.
_BYTES_A_VOXEL = 1000


@dataclasses.dataclass(frozen=True)
class Source:
    """An atlas that is read when it is needed.

    Attributes:
        name: for the reader.
        load: gives the image and its labels, on one grid; raises :class:`MLIError` where that fails.
    """

    name: str
    load: Callable[[], tuple[sitk.Image, sitk.Image]]


@dataclasses.dataclass
class Outcome:
    """What became of an atlas or rater.

    Attributes:
        status: "used", "left out", "failed" or "not selected".
        reason: a sentence where it was not used.
        seconds: spent on it in this run.
        similarity: correlation of the registered image with the target where both are, or None.
        cached: whether it had been registered before.
    """

    name: str
    status: str = "used"
    reason: str = ""
    seconds: float = 0.0
    similarity: float | None = None
    cached: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Propagated:
    """Atlases on the target's grid.

    Attributes:
        raters: the labels of those that are used.
        target: intensities, (z, y, x) or (y, x), float32.
        warped: those of the used atlases' images, (raters, z, y, x); where an atlas has no voxels, its nearest one.
            None where they were not asked for.
        outcomes: of all atlases, in the order given.
        warnings: sentences.
        device: where it was computed, in words.
    """

    raters: Raters
    target: npt.NDArray[np.float32]
    warped: npt.NDArray[np.float32] | None
    outcomes: list[Outcome]
    warnings: list[str]
    device: str


def propagate(
    target: sitk.Image,
    atlases: Sequence[Source | tuple[sitk.Image, sitk.Image]],
    *,
    names: Sequence[str] = (),
    labels: Sequence[Label] = (),
    registration: str = "deformable",
    select: int = 0,
    borders: str = "smooth",
    images: bool = True,
    kept: Cache | None = None,
    device: str = "auto",
    seed: int = 0,
    trust: Sequence[str] = (),
    progress: Progress | None = None,
) -> Propagated:
    """Register each atlas to a target and bring its labels and image there.

    An atlas that cannot be read or registered is left out and reported, the others go on. One whose image is the
    target itself is left out, too.

    Args:
        target: scalar image, 2-D or 3-D.
        atlases: image and labels of each, on a grid of their own; or sources that read them.
        names: of the atlases that are not sources; by default "atlas 1", ...
        labels: what the values mean; by default each value as text.
        registration: name of a preset, or name, folder or zip of a registration model.
        select: use only so many, those most like the target after an affine registration; 0 uses all.
        borders: "smooth" takes the label whose linearly interpolated mask has most weight, "nearest" the nearest
            voxel's.
        images: whether the atlases' images are wanted, too.
        kept: where registered atlases are kept and looked for.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        seed: of the registration's random samples.
        trust: sha256 of bundles whose configuration may name any callable.
        progress: told of stages, fractions over all atlases, and each atlas's status.

    Raises:
        BadInput: no atlas, no such registration, or a target that cannot be used.
        MLIError: no atlas could be registered.
    """
    if borders not in BORDERS:
        raise BadInput(f"There are no borders {borders!r}.", "", f"Choose one of: {', '.join(BORDERS)}.")
    sources = _sources(atlases, names)
    job = _Job(target, registration, borders, images, kept, device, seed, tuple(trust), progress or Progress())
    outcomes = [Outcome(source.name) for source in sources]
    for source in sources:
        job.progress.rater(source.name, "waiting")
    ready = job.read(sources, outcomes)
    if 0 < select < len(ready):
        ready = job.select(ready, select)
    entries = job.entries(ready)
    used = [(one, entry) for one, entry in zip(ready, entries, strict=True) if entry is not None]
    if not used:
        raise _none(outcomes)
    told = [(one.outcome.name, text) for one, entry in used for text in entry.facts["warnings"]]
    grid = Grid.of(target)
    found = raters(
        [from_array(entry.arrays["labels"], grid) for _, entry in used],
        [one.outcome.name for one, _ in used],
        {label.value: label.name for label in labels},
    )
    by_value = {label.value: label for label in labels}
    found = dataclasses.replace(found, labels=tuple(by_value.get(one.value, one) for one in found.labels))
    return Propagated(
        raters=found,
        target=sitk.GetArrayFromImage(target).astype(np.float32),
        warped=np.stack([entry.arrays["image"] for _, entry in used]) if images else None,
        outcomes=outcomes,
        warnings=[*dict.fromkeys(job.warnings), *_once(told, len(used))],
        device=devices.describe(job.device),
    )


def _sources(atlases: Sequence[Source | tuple[sitk.Image, sitk.Image]], names: Sequence[str]) -> list[Source]:
    if not atlases:
        raise BadInput("There is no atlas.", "", "Give at least one image with its labels.")
    if names and len(names) != len(atlases):
        raise BadInput(f"{len(atlases)} atlases have {len(names)} names.", "", "Name each of them.")
    out = []
    for i, one in enumerate(atlases):
        if isinstance(one, Source):
            out.append(one)
        else:
            out.append(Source(names[i] if names else f"atlas {i + 1}", functools.partial(tuple, one)))
    found = [one.name for one in out]
    if len(set(found)) < len(found):
        raise BadInput("Two atlases have one name.", "", "Give each a name of its own.")
    return out


def _once(told: Sequence[tuple[str, str]], count: int) -> list[str]:
    """What registrations warned of: each sentence once, with the atlases that it is about."""
    found: dict[str, list[str]] = {}
    for name, text in told:
        found.setdefault(text, []).append(name)
    return [f"{'Each atlas' if len(names) == count > 1 else ', '.join(names)}: {text}" for text, names in found.items()]


def _none(outcomes: Sequence[Outcome]) -> MLIError:
    first = next((one for one in outcomes if one.status == "failed"), outcomes[0])
    return MLIError(
        f"None of the {len(outcomes)} atlases could be registered to the target."
        if len(outcomes) > 1
        else "The atlas could not be registered to the target.",
        f"{first.name}: {first.reason}",
        "See what `mli atlases check` says, or choose another registration.",
    )


@dataclasses.dataclass(frozen=True)
class _Ready:
    """An atlas that can be read."""

    source: Source
    outcome: Outcome
    image: str  # fingerprints
    labels: str


class _Job:
    """The propagation of several atlases to one target."""

    def __init__(
        self,
        target: sitk.Image,
        registration: str,
        borders: str,
        images: bool,
        kept: Cache | None,
        device: str,
        seed: int,
        trust: tuple[str, ...],
        progress: Progress,
    ) -> None:
        image_files.check(target, "The target image")
        self.target = target
        self.grid = Grid.of(target)
        self.intensities = sitk.GetArrayFromImage(target).astype(np.float32)
        self.fingerprint, self.content = cache.fingerprint(target), cache.content(target)
        self.borders = borders
        self.images = images
        self.kept = kept
        self.device = devices.resolve(device)
        self.seed = seed
        self.trust = trust
        self.progress = progress
        self.warnings: list[str] = []
        self.how: dict[str, Any]
        if registration in PRESETS:
            self.how = {"preset": registration}
            self.settings: dict[str, Any] = {"preset": dataclasses.asdict(PRESETS[registration])}
            self.stages = len(PRESETS[registration].stages)
        else:
            self.how = {"model": registration}
            self.settings = {"model": _model(registration, trust)}
            self.stages = 1

    def read(self, sources: Sequence[Source], outcomes: Sequence[Outcome]) -> list[_Ready]:
        """Read each atlas once, and see that it can be used."""
        self.progress.stage("Reading atlases")
        found = []
        for number, (source, outcome) in enumerate(zip(sources, outcomes, strict=True)):
            self.progress.fraction(number / len(sources))
            started = time.monotonic()
            try:
                image, labels = source.load()
                self._check(source.name, image, labels)
            except MLIError as error:
                self._failed(outcome, error)
                continue
            finally:
                outcome.seconds += time.monotonic() - started
            if cache.content(image) == self.content:
                self._left_out(outcome, "It is the target itself.")
                self.warnings.append(f"The atlas {source.name} was left out: its image is the target itself.")
                continue
            found.append(_Ready(source, outcome, cache.fingerprint(image), cache.fingerprint(labels)))
        return found

    def _check(self, name: str, image: sitk.Image, labels: sitk.Image) -> None:
        require_same_dimension(self.target, image, ("The target", f"the atlas {name}"))
        image_files.check(image, f"The image of {name}")
        if not same_grid(image, labels, GRID_TOLERANCE):
            raise BadInput(
                f"The labels of {name} are not on the grid of its image.",
                "They were drawn on another image, or resampled.",
                "Resample them to the image's grid.",
            )
        if not sitk.GetArrayViewFromImage(labels).any():
            raise BadInput(f"The labels of {name} are empty.", "No voxel of them is other than 0.", "Draw them.")

    def select(self, ready: list[_Ready], count: int) -> list[_Ready]:
        """Those most like the target."""
        self.progress.stage("Selecting atlases")
        scores = batches.each(ready, self._likeness, self.progress, workers=self._workers(), stages=2)
        there = [(one, score) for one, score in zip(ready, scores, strict=True) if score is not None]
        chosen = {id(there[i][0]) for i in selection.most_alike([score for _, score in there], count)}
        for one, _ in there:
            if id(one) not in chosen:
                one.outcome.status = "not selected"
                one.outcome.reason = f"{count} others look more like the target."
                self.progress.rater(one.outcome.name, "left out")
        return [one for one, _ in there if id(one) in chosen]

    def _likeness(self, one: _Ready, progress: Progress) -> float | None:
        key = cache.key(
            {"likeness": [selection.PRESET, selection.SAMPLING, selection.SIMILARITY], "seed": self.seed},
            self.fingerprint, one.image,
        )  # fmt: skip
        found = self.kept.get(key) if self.kept else None
        if found is not None:
            return float(found.facts["likeness"])
        started = time.monotonic()
        try:
            image, _ = one.source.load()
            score = selection.likeness(self.target, image, device=str(self.device), seed=self.seed, progress=progress)
        except (MLIError, RuntimeError, MemoryError) as error:
            self._failed(one.outcome, error, progress)
            return None
        finally:
            one.outcome.seconds += time.monotonic() - started
        self._keep(key, Entry({}, {"likeness": score}))
        return score

    def entries(self, ready: Sequence[_Ready]) -> list[Entry | None]:
        """The registered atlases, from the cache or made now; None for one that failed."""
        wanted = ("labels", "image") if self.images else ("labels",)
        found: dict[int, Entry | None] = {}
        for number, one in enumerate(ready):
            entry = self.kept.get(self._key(one), wanted) if self.kept else None
            if entry is not None and entry.arrays["labels"].shape == self.grid.shape:
                found[number] = self._known(one, entry)
        rest = [number for number in range(len(ready)) if number not in found]
        if rest:
            self.progress.stage("Registering atlases")
            made = batches.each(
                [ready[number] for number in rest], self._entry, self.progress,
                workers=self._workers(), stages=self.stages,
            )  # fmt: skip
            found |= dict(zip(rest, made, strict=True))
        return [found[number] for number in range(len(ready))]

    def _known(self, one: _Ready, entry: Entry) -> Entry | None:
        one.outcome.cached = True
        one.outcome.similarity = entry.facts["similarity"]
        return self._useful(one, entry, "cached")

    def _entry(self, one: _Ready, progress: Progress) -> Entry | None:
        progress.rater(one.outcome.name, "registering")
        started = time.monotonic()
        try:
            entry = self._registered(one, progress)
        except (MLIError, RuntimeError, MemoryError) as error:
            self._failed(one.outcome, error, progress)
            return None
        finally:
            one.outcome.seconds += time.monotonic() - started
        one.outcome.similarity = entry.facts["similarity"]
        self._keep(self._key(one), entry)
        if not self.images:
            entry = Entry({"labels": entry.arrays["labels"]}, entry.facts)
        return self._useful(one, entry, "done", progress)

    def _registered(self, one: _Ready, progress: Progress) -> Entry:
        image, labels = one.source.load()
        try:
            found = self._register(image, progress)
        except (RuntimeError, MemoryError) as error:
            if self.device.type == "cpu" or not devices.is_out_of_memory(error):
                raise
            self.warnings.append(
                f"{devices.describe(self.device)} had too little memory: atlases were registered on the CPU."
            )
            self.device = torch.device("cpu")
            found = self._register(image, progress)
        picture, inside = brought(image, self.grid, found.transform)
        drawn = resample_labels(labels, self.grid, found.transform, smooth=self.borders == "smooth")
        return Entry(
            {"labels": sitk.GetArrayFromImage(drawn), "image": picture},
            {"similarity": _correlation(self.intensities[inside], picture[inside]), "warnings": found.warnings},
        )

    def _register(self, image: sitk.Image, progress: Progress) -> Any:
        return register(
            self.target, image, **self.how, device=str(self.device), seed=self.seed, trust=self.trust, progress=progress
        )

    def _key(self, one: _Ready) -> str:
        settings = {**self.settings, "borders": self.borders, "seed": self.seed, "device": self.device.type}
        return cache.key(settings, self.fingerprint, one.image, one.labels)

    def _keep(self, key: str, entry: Entry) -> None:
        kept = self.kept
        if kept is None:
            return
        try:
            kept.put(key, entry)
        except OSError as error:
            self.kept = None  # the next would fail alike
            self.warnings.append(cache.why_not(error, kept.folder))

    def _useful(self, one: _Ready, entry: Entry, status: str, progress: Progress | None = None) -> Entry | None:
        """The entry, None where nothing of its labels lies in the target."""
        if not entry.arrays["labels"].any():
            self._left_out(one.outcome, "After registration none of its labels lies in the target.", progress)
            return None
        (progress or self.progress).rater(one.outcome.name, status)
        return entry

    def _failed(self, outcome: Outcome, error: Exception, progress: Progress | None = None) -> None:
        """Note why an atlas failed; an error that is not its own is raised again."""
        if isinstance(error, Cancelled | MissingPackage):
            raise error
        if not isinstance(error, MLIError):
            if not devices.is_out_of_memory(error):
                raise error
            error = MLIError("There was not enough memory.")
        outcome.status, outcome.reason = "failed", str(error)
        (progress or self.progress).rater(outcome.name, "failed")

    def _left_out(self, outcome: Outcome, reason: str, progress: Progress | None = None) -> None:
        outcome.status, outcome.reason = "left out", reason
        (progress or self.progress).rater(outcome.name, "left out")

    def _workers(self) -> int:
        """How many atlases are registered at a time: as many as there are threads and memory for."""
        if self.device.type != "cpu":
            return 1
        room = devices.free_host_memory() // (_BYTES_A_VOXEL * self.intensities.size)
        return max(1, min(torch.get_num_threads(), MOST_AT_A_TIME, room))


def _model(name: str, trust: Sequence[str]) -> str:
    """The sha256 of a registration model.

    Raises:
        BadInput: neither a preset nor a model has this name, or the model is not for registration.
    """
    try:
        return learned.find(name, trust=trust).sha256
    except BadInput as error:
        raise BadInput(
            f"There is no registration {name!r}." if error.what.startswith("There is no model") else error.what,
            error.cause,
            f"Choose a preset ({', '.join(PRESETS)}) or a registration model. {error.remedy}",
        ) from error


def brought(
    image: sitk.Image, grid: Grid, transform: sitk.Transform
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """An image through a transform, linearly interpolated.

    Args:
        image: scalar image.
        grid: of the result.
        transform: points of `grid` to points of `image`, LPS mm.

    Returns:
        Voxels on the grid, float32, beyond the image's border those of the border; and where the image is.
    """
    found = [
        sitk.GetArrayFromImage(
            sitk.Resample(
                image, grid.size, transform, sitk.sitkLinear, grid.origin, grid.spacing, grid.direction,
                float("nan"), sitk.sitkFloat32, beyond,
            )
        )
        for beyond in (True, False)
    ]  # fmt: skip
    return found[0], ~np.isnan(found[1])


def _correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float | None:
    """The correlation coefficient; None where there are too few voxels, or one is constant."""
    if a.size < 2 or a.min() == a.max() or b.min() == b.max():
        return None
    return float(np.corrcoef(a, b)[0, 1])

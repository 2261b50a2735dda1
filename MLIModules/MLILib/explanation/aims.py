"""What a user asks to have explained, found in a model and an image: a class, a label over a region or at a point.

A dense model's answer is the blend of its windows, so that a label's sum is a sum over windows, each with weights of
its own for the window's voxels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import SimpleITK as sitk
import torch

from ..errors import BadInput
from .choices import Choice, choices, chosen
from .subject import Place, Subject
from .targets import ClassScore, LabelSum, Output, Target, WeightedSum


@dataclasses.dataclass(frozen=True, eq=False)
class Aim:
    """What is explained.

    Attributes:
        kind: "class", "label", "voxel", "output" or "none".
        choice: the class, label or number; None for none.
        region: what a label is summed over, (*size of the prepared image), bool; None for a class or number.
        centre: of what is looked at, a voxel of the prepared image.
        point: in RAS millimetres; None for none.
        prediction: what the model answers: value, name and score of each choice, with probability or voxels.
    """

    kind: str
    choice: Choice | None
    region: torch.Tensor | None
    centre: tuple[int, ...]
    point: tuple[float, ...] | None
    prediction: tuple[dict[str, object], ...]

    @property
    def text(self) -> str:
        """For a reader."""
        if self.choice is None:
            return "the layer"
        where = {
            "class": "the class {}",
            "output": "the output {}",
            "label": "the label {}, summed over {} voxels",
            "voxel": "the label {} at one point",
        }[self.kind]
        return where.format(self.choice.name, self.voxels)

    @property
    def voxels(self) -> int:
        """How many are summed over; 0 for a class or number."""
        return 0 if self.region is None else int(self.region.sum())

    def parts(self, subject: Subject) -> Iterator[tuple[Place, Target]]:
        """The windows that the answer comes from, each with its part of the target: their sum is what is explained."""
        if self.region is None:
            yield subject.places[0], self._whole()
            return
        assert self.choice is not None
        wanted = _padded(self.region, subject)
        places = subject.places
        weights = subject.window_weights()
        if len(places) == 1:
            yield places[0], WeightedSum(_label(subject, self.choice), wanted[places[0]])
            return
        total = torch.zeros(wanted.shape)
        for place in places:
            total[place] += weights
        for place in places:
            part = wanted[place] * weights / total[place]
            if bool(part.any()):
                yield place, WeightedSum(_label(subject, self.choice), part)

    def focused(self, subject: Subject) -> tuple[Place, Target, int]:
        """One window round the target, the target in it, and how many voxels of the region are in it."""
        place = subject.place_around(self.centre)
        if self.region is None:
            return place, self._whole(), 0
        assert self.choice is not None
        inside = _padded(self.region, subject)[place]
        return place, LabelSum(_label(subject, self.choice), inside), int(inside.sum())

    def _whole(self) -> Target:
        assert self.choice is not None
        return Output(self.choice.channel) if self.kind == "output" else ClassScore(self.choice.channel)


def find(subject: Subject, text: str, *, point: Sequence[float] | None = None, region: sitk.Image | None = None) -> Aim:
    """The target that a user means.

    Args:
        subject: model and image.
        text: a label, class or number, by name or number; "" for what the model predicts.
        point: RAS millimetres.
        region: mask, on any grid.

    Raises:
        BadInput: there is no such label or class, the point lies outside, the region is empty, or none is predicted.
    """
    offered = choices(subject.bundle)
    wanted = chosen(subject.bundle, text) if text else None
    if not subject.dense:
        return _of_image(subject, wanted, point, region)
    if point is not None:
        return _of_point(subject, wanted, tuple(point))
    if region is not None:
        there = subject.label_map(region) != 0
        if not bool(there.any()):
            empty = not bool((sitk.GetArrayViewFromImage(region) != 0).any())
            raise BadInput(
                "The region is empty: there is no voxel to explain.",
                "Its mask is 0 everywhere." if empty else "Its mask does not meet the image.",
                "Draw one inside the image.",
            )
    predicted = subject.predicted() if region is None or wanted is None else None
    told: list[dict[str, object]] = []
    if predicted is not None:
        seen = {choice.value: subject.region_of(choice.channel, predicted) for choice in offered}
        told = [
            {"value": choice.value, "name": choice.name, "score": None, "voxels": int(seen[choice.value].sum())}
            for choice in offered
        ]
        among = {value: mask & there for value, mask in seen.items()} if region is not None else seen
        if wanted is None:
            front = [c for c in offered if c.value > 0] or list(offered)
            wanted = max(front, key=lambda c: int(among[c.value].sum()))
        if region is None:
            there = seen[wanted.value]
            if not bool(there.any()):
                raise BadInput(
                    f"There is nothing to explain: the model predicts no voxel of {wanted.value} {wanted.name}.",
                    "It finds: " + (", ".join(f"{row['name']}" for row in told if row["voxels"]) or "nothing") + ".",
                    "Choose another label, give a region, or choose a point.",
                )
    assert wanted is not None
    return Aim("label", wanted, there, _centre(there), None, tuple(told))


def none(subject: Subject, point: Sequence[float] | None = None) -> Aim:
    """No target: a place to look at, the point or the middle of the image."""
    centre = subject.voxel_at(point) if point is not None else tuple(n // 2 for n in subject.size)
    return Aim("none", None, None, centre, tuple(point) if point is not None else None, ())


def _of_image(subject: Subject, wanted: Choice | None, point: Sequence[float] | None, region: sitk.Image | None) -> Aim:
    """A class of a classifier, or a number of a regression."""
    if region is not None:
        raise BadInput(
            f"The model {subject.bundle.name} answers for the whole image, not for a region.", "", "Leave out --region."
        )
    if point is not None and subject.plane is None:
        raise BadInput(
            f"The model {subject.bundle.name} answers for the whole image, not for a point.", "", "Leave out --point."
        )
    offered = choices(subject.bundle)
    with torch.no_grad():
        output = subject.network(subject.padded[None].to(subject.device))[0].cpu().reshape(-1)
    if len(output) != len(offered):
        raise BadInput(
            f"The network of the model {subject.bundle.name} has {len(output)} outputs, but its metadata name "
            f"{len(offered)}.",
            "configs/metadata.json and the network are of different versions.",
            "Ask its authors for a complete MONAI bundle.",
        )
    kind = "output" if subject.bundle.kind == "regression" else "class"
    rows: list[dict[str, object]] = [
        {"value": c.value, "name": c.name, "score": float(output[c.channel])} for c in offered
    ]
    if kind == "class":
        shares = probabilities(subject, output)
        for row, share in zip(rows, shares.tolist(), strict=True):
            row["probability"] = share
    if wanted is None:
        wanted = offered[int(output.argmax())] if kind == "class" else offered[0]
    centre = tuple(n // 2 for n in subject.size)
    return Aim(kind, wanted, None, centre, None, tuple(rows))


def probabilities(subject: Subject, logits: torch.Tensor) -> torch.Tensor:
    """What a classifier's logits (..., classes) stand for: they exclude each other unless its bundle says otherwise."""
    lone = logits.shape[-1] == 1
    told = subject.model.post.activation if subject.model.post is not None else "softmax"
    return logits.sigmoid() if lone or told == "sigmoid" else logits.softmax(-1)


def _of_point(subject: Subject, wanted: Choice | None, point: tuple[float, ...]) -> Aim:
    index = subject.voxel_at(point)
    region = torch.zeros(subject.size, dtype=torch.bool)
    region[index] = True
    offered = choices(subject.bundle)
    anywhere = Aim("voxel", wanted or offered[0], region, index, point, ())
    answer = torch.zeros(subject.model.classes)
    padded = subject.padded
    with torch.no_grad():
        for place, target in anywhere.parts(subject):
            assert isinstance(target, WeightedSum)
            output = subject.network(padded[(slice(None), *place)][None].to(subject.device))[0].cpu()
            answer += (output * target.weights).flatten(1).sum(1)
    post = subject.model.post or subject.model.default_post
    exclusive = post.decision == "argmax"
    shares = answer.softmax(0) if exclusive else answer.sigmoid()
    rows: tuple[dict[str, object], ...] = tuple(
        {
            "value": c.value,
            "name": c.name,
            "score": float(answer[c.channel]),
            "probability": float(shares[c.channel]),
        }
        for c in offered
    )
    return Aim("voxel", wanted or offered[int(answer.argmax())], region, index, point, rows)


def _label(subject: Subject, choice: Choice) -> int:
    """The channel as the targets count: a lone foreground is label 1."""
    return 1 if subject.model.classes == 1 else choice.channel


def _padded(region: torch.Tensor, subject: Subject) -> torch.Tensor:
    """(*size with padding), float."""
    flat = [n for pair in reversed(subject.padding) for n in pair]
    return torch.nn.functional.pad(region.float(), flat)


def _centre(region: torch.Tensor) -> tuple[int, ...]:
    """The region's voxel that is nearest to its middle."""
    where = torch.nonzero(region).double()
    nearest = (where - where.mean(0)).square().sum(1).argmin()
    return tuple(int(x) for x in where[nearest])

"""Segments of several segmentations as one list of labels, by their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import slicer


@dataclasses.dataclass(frozen=True)
class SceneLabels:
    """One list of labels for several segmentations, whose segments are the same label where they have the same name.

    Attributes:
        labels: value, name, color and terminology of each, as the first segmentation that has it says.
        values: for each segmentation the label of each of its segment ids.
    """

    labels: tuple[dict[str, Any], ...]
    values: tuple[dict[str, int], ...]

    @classmethod
    def of(cls, segmentations: Iterable[slicer.vtkMRMLSegmentationNode]) -> SceneLabels:
        """The labels of segmentations; names are compared without regard to case."""
        known: dict[str, dict[str, Any]] = {}
        values = []
        for node in segmentations:
            own = {}
            for identifier in node.GetSegmentation().GetSegmentIDs():
                segment = node.GetSegmentation().GetSegment(identifier)
                name = " ".join(segment.GetName().split())
                if name.casefold() not in known:
                    known[name.casefold()] = {
                        "value": len(known) + 1,
                        "name": name,
                        "color": list(segment.GetColor()),
                        "terminology": segment.GetTerminology() or "",
                    }
                own[identifier] = known[name.casefold()]["value"]
            values.append(own)
        return cls(tuple(known.values()), tuple(values))

    def known(self, label: Mapping[str, Any]) -> dict[str, Any]:
        """A label of a result as the segmentations have it: their colour and meaning, found by its name."""
        mine = next((one for one in self.labels if one["name"].casefold() == str(label["name"]).casefold()), {})
        return {**label, **{key: mine[key] for key in ("name", "color", "terminology") if key in mine}}

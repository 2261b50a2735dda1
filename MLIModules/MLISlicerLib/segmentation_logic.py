"""What a parameter set of MLI Segmentation asks for, of a model or of a classical method."""

from __future__ import annotations

from typing import Any

from MLILib.classical.requests import OPTIONS

from . import classical, segmentation
from .logic import MLILogic


class SegmentationLogic(MLILogic):
    """Base of the module's logic; the subclass has what scripts call."""

    def inputVolumes(self, parameterNode: Any, count: int) -> list[Any]:
        """The volumes chosen for a model of `count` channels, None where there is none yet."""
        node = parameterNode
        return [node.inputVolume, node.inputVolume2, node.inputVolume3, node.inputVolume4][: max(1, count)]

    def models(self, parameterNode: Any) -> dict[str, list[str]]:
        """The setting with the names of the models that a parameter set asks for."""
        node = parameterNode
        return {"model": [node.model, *(name for name in node.moreModels if name != node.model)]}

    def inputs(self, parameterNode: Any, channels: int = 1) -> segmentation.Inputs:
        """What a parameter set asks for."""
        node = parameterNode
        tile = [node.tileX, node.tileY, node.tileZ]
        names = ("device", "tta", "mc_dropout", "keep_largest", "ensemble", "overlap", "seed")
        settings = {name: getattr(node, name) for name in names}
        settings |= self.models(node)
        settings["tile"] = tile if any(tile) else []
        return segmentation.Inputs(
            volumes=self.inputVolumes(node, channels),
            settings=settings,
            segmentation=node.outputSegmentation,
            uncertainty=node.uncertaintyMap,
            uncertainty_volume=node.outputUncertainty if node.uncertaintyMap else None,
            reference=node.reference,
            tolerance=node.tolerance,
        )

    def classicalInputs(self, parameterNode: Any) -> segmentation.Inputs:
        """What a parameter set asks for of a classical method."""
        node = parameterNode
        start = classical.Start(node.method, node.scribbles, node.points, node.mask)
        names = {"smooth", "keep_largest", *OPTIONS[node.method]} - {"range", "examples"}
        settings = {name: getattr(node, name) for name in sorted(names)}
        if "range" in OPTIONS[node.method]:
            settings["range"] = [node.range_low, node.range_high]
        if node.points is not None and classical.needs(node.method):
            settings["point_radius"] = node.point_radius
        return segmentation.Inputs(
            volumes=[node.inputVolume],
            settings=settings,
            segmentation=node.outputSegmentation,
            reference=node.reference,
            tolerance=node.tolerance,
            start=start,
        )

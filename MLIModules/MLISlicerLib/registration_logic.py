"""What a parameter set of MLI Registration asks for, and where its results are remembered."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import slicer

from MLILib.registration.requests import STAGES

from . import quality, registration, registration_presets, transforms
from .logic import MLILogic


class RegistrationLogic(MLILogic):
    """Base of the module's logic; the subclass has what scripts call."""

    #: Nodes of a result: name in registration.Result and in the parameter set.
    RESULTS: ClassVar[dict[str, str]] = {
        "transform": "outputTransform",
        "warped": "outputWarped",
        "jacobian": "outputJacobian",
        "quality": "qualityTable",
        "curve": "curveTable",
        "curve_chart": "curveChart",
        "overlap_chart": "overlapChart",
        "record": "record",
    }

    def stages(self, parameterNode: Any) -> list[str]:
        """The stages that are chosen, in their order."""
        return [name for name in STAGES if getattr(parameterNode, f"stage{name.capitalize()}")]

    def settings(self, parameterNode: Any) -> dict[str, Any]:
        """The task's settings that a parameter set asks for."""
        node = parameterNode
        names = (
            "similarity",
            "deformation",
            "regularisation",
            "iterations",
            "resolution",
            "sampling",
            "device",
            "seed",
        )
        settings = {name: getattr(node, name) for name in names}
        preset = registration_presets.known().get(node.preset)
        settings["preset"] = preset.base if preset is not None else "deformable"
        settings["init"] = "geometry" if node.init == "transform" else node.init
        if node.preset == "learned":
            settings |= {"model": node.model, "refine": node.refine}
        else:
            settings["stages"] = ",".join(self.stages(node))
        return settings

    def inputs(self, parameterNode: Any) -> registration.Inputs:
        """What a parameter set asks for."""
        node = parameterNode
        return registration.Inputs(
            fixed=node.fixedVolume,
            moving=node.movingVolume,
            settings=self.settings(node),
            transform=node.outputTransform,
            without=node.outputTransform,
            previous={name: getattr(node, place) for name, place in self.RESULTS.items()},
            initial=node.initialTransform if node.init == "transform" else None,
            warped=node.warpedVolume,
            warped_volume=node.outputWarped if node.warpedVolume else None,
            jacobian=node.jacobianVolume,
            jacobian_volume=node.outputJacobian if node.jacobianVolume else None,
            fixed_mask=node.fixedMask,
            moving_mask=node.movingMask,
            fixed_segmentation=node.fixedSegmentation,
            moving_segmentation=node.movingSegmentation,
            fixed_points=node.fixedPoints,
            moving_points=node.movingPoints,
        )

    def remember(self, parameterNode: Any, result: registration.Result) -> None:
        """Put the nodes of a result into the parameter set."""
        for name, place in self.RESULTS.items():
            node = getattr(result, name)
            if node is not None or name not in ("warped", "jacobian"):
                setattr(parameterNode, place, node)
        if parameterNode.histogram is not None:
            slicer.mrmlScene.RemoveNode(parameterNode.histogram)  # of the result before
        parameterNode.warnings = json.dumps(quality.warnings(result.details))

    def inverse(self, transform: slicer.vtkMRMLTransformNode) -> slicer.vtkMRMLTransformNode:
        """The inverse of a result, made when there is none yet; it is not applied to anything."""
        return transforms.inverse_of(transform)

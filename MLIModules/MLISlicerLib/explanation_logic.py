"""What a parameter set of MLI Explainability asks for, and where its results are remembered."""

from __future__ import annotations

from typing import Any, ClassVar

import slicer

from MLILib.explanation.methods import CHECKED, METHODS

from . import explanation, explanation_attack, explanation_check, models
from .logic import MLILogic


class ExplanationLogic(MLILogic):
    """Base of the module's logic; the subclass has what scripts call."""

    #: What the models are for that can be explained.
    MODEL_TASK = ("segmentation", "classification", "regression")
    #: Nodes of a result: name in explanation.Result and in the parameter set.
    RESULTS: ClassVar[dict[str, str]] = {
        "record": "record",
        "parts": "partsTable",
        "parts_chart": "partsChart",
        "curve": "curveTable",
        "curve_chart": "curveChart",
        "theoretical": "theoreticalBox",
        "effective": "effectiveBox",
    }
    #: The same of a test, and of an attack.
    BELIEF: ClassVar[dict[str, str]] = {
        "table": "beliefTable",
        "curves": "beliefCurves",
        "deletion": "deletionChart",
        "insertion": "insertionChart",
        "layers": "beliefLayers",
        "cascade": "cascadeChart",
    }
    ATTACK: ClassVar[dict[str, str]] = {
        "perturbed": "attackedVolume",
        "difference": "attackDifference",
        "before": "attackBefore",
        "after": "attackAfter",
        "curve": "attackCurve",
        "chart": "attackChart",
        "record": "attackRecord",
    }
    SETTINGS = (
        "target", "layer", "baseline", "blur", "steps", "samples", "noise", "occlusion_window", "occlusion_stride",
        "unit", "prior", "octaves", "step_size", "field", "device", "seed",
    )  # fmt: skip

    def volumes(self, parameterNode: Any, count: int) -> list[Any]:
        """The volumes chosen for a model of `count` channels, None where there is none yet."""
        node = parameterNode
        return [node.inputVolume, node.inputVolume2, node.inputVolume3, node.inputVolume4][: max(1, count)]

    def methods(self, parameterNode: Any) -> list[str]:
        """The chosen method, and those to compare with, in the order of their list."""
        others = [name for name in METHODS if name in parameterNode.compare and name != parameterNode.method]
        return [parameterNode.method, *others]

    def channels(self, parameterNode: Any) -> int:
        """How many images the chosen model takes."""
        model = models.known(self.MODEL_TASK).get(parameterNode.model)
        return 1 if model is None else len(model.channels)

    def inputs(self, parameterNode: Any) -> explanation.Inputs:
        """What a parameter set asks for."""
        node = parameterNode
        region = (node.regionSegmentation, node.regionSegment) if node.where == "region" else None
        previous = {name: getattr(node, place) for name, place in self.RESULTS.items()}
        previous |= {"maps": list(node.maps), "components": list(node.components)}
        return explanation.Inputs(
            volumes=self.volumes(node, self.channels(node)),
            methods=self.methods(node),
            settings={"model": node.model, **{name: getattr(node, name) for name in self.SETTINGS}},
            point=node.point if node.where == "point" else None,
            region=region,
            regions=node.regions,
            map=node.outputMap,
            previous=previous,
        )

    def remember(self, parameterNode: Any, result: explanation.Result, summary: str) -> None:
        """Put the nodes of a result into the parameter set, and what the panel says of it."""
        node = parameterNode
        with slicer.util.NodeModify(node):
            for name, place in self.RESULTS.items():
                setattr(node, place, getattr(result, name))
            node.explained = node.inputVolume
            node.outputMap = result.maps[0]
            node.maps = result.maps
            node.components = [one for one in result.components if one is not None]
            node.shownMap = node.component = 0
            node.summary = summary

    def checkInputs(self, parameterNode: Any) -> explanation_check.Inputs:
        """What a test of the chosen methods is asked for."""
        node = parameterNode
        names = ("model", "target", "layer", "baseline", "device", "seed", "draws", "layers", "curve_steps")
        return explanation_check.Inputs(
            volumes=self.volumes(node, self.channels(node)),
            settings={
                "methods": [name for name in self.methods(node) if name in CHECKED],
                **{name: getattr(node, name) for name in names},
            },
            point=node.point if node.where == "point" else None,
            previous={name: getattr(node, place) for name, place in self.BELIEF.items()},
        )

    def attackInputs(self, parameterNode: Any) -> explanation_attack.Inputs:
        """What an attack is asked for; its nodes are those of the last one on the same volume."""
        node = parameterNode
        again = node.attackOf is node.inputVolume
        return explanation_attack.Inputs(
            volume=node.inputVolume,
            settings={
                "method": node.attack,
                **{name: getattr(node, name) for name in ("model", "epsilon", "aim", "device", "seed")},
            },
            labels=models.labels_of(node.model),
            point=node.point if node.where == "point" else None,
            reference=node.attackReference,
            previous={name: getattr(node, place) for name, place in self.ATTACK.items()} if again else {},
        )

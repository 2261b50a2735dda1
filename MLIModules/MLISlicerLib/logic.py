"""What the logics of all modules share: parameter sets with typed access, and running a job to its end for a script."""

from __future__ import annotations

from typing import Any

from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from . import jobs, transforms


class MLILogic(ScriptedLoadableModuleLogic):
    """Base of the modules' logics; a subclass names the class of its parameter sets."""

    PARAMETERS: Any = None

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.isSingletonParameterNode = False

    def getParameterNode(self) -> Any:
        """The first parameter set, made when there is none."""
        return self.wrapParameterNode(super().getParameterNode())

    def wrapParameterNode(self, node: Any) -> Any:
        """One of several parameter sets, with typed access."""
        return self.PARAMETERS(node)

    def holdsData(self, node: Any) -> bool:
        """Whether writing into a node would replace something."""
        if node.IsA("vtkMRMLTransformNode"):
            return transforms.holds_data(node)
        if node.IsA("vtkMRMLSegmentationNode"):
            return bool(node.GetSegmentation().GetNumberOfSegments())
        return node.GetImageData() is not None

    def finish(self, steps: jobs.Steps, inProcess: bool, progress: Any) -> Any:
        """
        Run the steps of a job and return their result; the GUI stays alive meanwhile.
        :param inProcess: compute in this process, not in the worker
        :param progress: called with each MLISlicerLib.jobs.Status; or None
        """
        run = jobs.run_here if inProcess else jobs.shared_runner().run
        return run(steps, **({"progress": progress} if progress else {}))

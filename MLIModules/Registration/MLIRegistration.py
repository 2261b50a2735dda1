import importlib.util
import pathlib
import sys
import unittest

import slicer
from slicer import (
    vtkMRMLDisplayableNode,
    vtkMRMLLinearTransformNode,
    vtkMRMLMarkupsFiducialNode,
    vtkMRMLPlotChartNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLTableNode,
    vtkMRMLTextNode,
    vtkMRMLTransformNode,
)
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
)

if importlib.util.find_spec("MLISlicerLib") is None:
    # Installed, the libraries lie beside this file; in the source tree beside its folder, where Slicer does not look.
    sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from MLILib.files import sha256
from MLILib.registration.presets import PRESETS
from MLILib.registration.requests import DEFORMATIONS, SIMILARITIES, RegisterRequest
from MLILib.registration.similarity_words import WORDS
from MLISlicerLib import install, registration, transforms
from MLISlicerLib.model_chooser import ModelChooser
from MLISlicerLib.parameters import ChoiceConnector, NodeConnector, parameter, tooltip
from MLISlicerLib.registration_logic import RegistrationLogic
from MLISlicerLib.registration_panel import RegistrationPanel
from MLISlicerLib.sample_files import sample_file
from MLISlicerLib.widget import MLIWidget

_DEFAULT = PRESETS["deformable"]

#
# MLIRegistration
#


class MLIRegistration(ScriptedLoadableModule):
    """Bring one image onto another: the module's name, place and help."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MLI Registration")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.parent.dependencies = []
        self.parent.contributors = ["The Machine Learning for Imaging developers"]
        self.parent.helpText = _("""
Brings a moving volume onto a fixed one, rigidly, affinely or with a deformation, on the processor or the graphics card,
and shows how good the result is. Choose two volumes and what to do, and press Apply; Slicer can be used while the job
runs. The result is a transform that moves the moving volume; other nodes can be taken along. For research, not for
diagnosis.
<p>To try it, load <i>MNI152 right hippocampus, moved</i> from the Sample Data module. How to use it, the methods and
their limits:
<a href="https://github.com/MachineLearningForImaging/SlicerMachineLearningForImaging#mli-registration">the module's
documentation</a>.</p>
""")
        self.parent.acknowledgementText = _("""
The methods are named with their authors in the module's documentation. The sample images are parts of the MNI152
template, copyright McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University; one of them was
turned, shifted and bent.
""")
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Add the sample pair, which comes with the extension, to the Sample Data module."""
    import SampleData

    names = [
        "MNI152_right_hippocampus_T1.nrrd",
        "MNI152_right_hippocampus_moved.nrrd",
        "MNI152_right_hippocampus_fixed_landmarks.mrk.json",
        "MNI152_right_hippocampus_moved_landmarks.mrk.json",
    ]
    files = [sample_file(__file__, name) for name in names]
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="MLI Registration",
        sampleName="MNI152 right hippocampus, moved",
        uris=[file.as_uri() for file in files],
        fileNames=names,
        checksums=[f"SHA256:{sha256(file)}" for file in files],
        nodeNames=["fixed", "moved", "fixed landmarks", "moved landmarks"],
        loadFileTypes=["VolumeFile", "VolumeFile", "MarkupsFile", "MarkupsFile"],
        thumbnailFileName=str(pathlib.Path(__file__).resolve().parent / "Resources" / "Icons" / "MLIRegistration.png"),
    )


#
# MLIRegistrationParameterNode
#


@parameterNodeWrapper
class MLIRegistrationParameterNode:
    """
    The choices made in the module, saved with the scene. Settings of the task have the names they have there.

    fixedVolume, movingVolume - The moving volume is brought onto the fixed one.
    fixedMask ... movingPoints - Masks, and what the result is measured with.
    preset - Name of a preset, or "learned"; model and refine are of the latter.
    stageRigid ... stageDeformable - The stages, in turn.
    init - Where to start; "transform" is initialTransform.
    outputTransform - Receives the result; a new one is made when none is chosen, or when it is of the other kind.
    warpedVolume, jacobianVolume - Whether to make these volumes, in outputWarped, outputJacobian or new nodes.
    qualityTable ... record - The nodes of the latest result.
    """

    fixedVolume: vtkMRMLScalarVolumeNode
    movingVolume: vtkMRMLScalarVolumeNode
    fixedMask: vtkMRMLDisplayableNode
    movingMask: vtkMRMLDisplayableNode
    fixedSegmentation: vtkMRMLSegmentationNode
    movingSegmentation: vtkMRMLSegmentationNode
    fixedPoints: vtkMRMLMarkupsFiducialNode
    movingPoints: vtkMRMLMarkupsFiducialNode
    preset: str = "deformable"
    model: str = ""
    refine: parameter(RegisterRequest, "refine")
    outputTransform: vtkMRMLTransformNode
    warpedVolume: bool = False
    outputWarped: vtkMRMLScalarVolumeNode
    jacobianVolume: bool = False
    outputJacobian: vtkMRMLScalarVolumeNode
    stageRigid: bool = "rigid" in _DEFAULT.stages
    stageSimilarity: bool = "similarity" in _DEFAULT.stages
    stageAffine: bool = "affine" in _DEFAULT.stages
    stageDeformable: bool = "deformable" in _DEFAULT.stages
    similarity: str = _DEFAULT.similarity
    deformation: str = _DEFAULT.deformation
    regularisation: parameter(RegisterRequest, "regularisation", default=_DEFAULT.regularisation, minimum=0.0)
    iterations: parameter(RegisterRequest, "iterations", default=_DEFAULT.iterations, minimum=0)
    resolution: parameter(RegisterRequest, "resolution", default=_DEFAULT.resolution)
    init: str = "geometry"
    initialTransform: vtkMRMLLinearTransformNode
    sampling: parameter(RegisterRequest, "sampling")
    device: parameter(RegisterRequest, "device")
    seed: parameter(RegisterRequest, "seed")
    qualityTable: vtkMRMLTableNode
    curveTable: vtkMRMLTableNode
    curveChart: vtkMRMLPlotChartNode
    overlapChart: vtkMRMLPlotChartNode
    histogram: vtkMRMLTextNode
    record: vtkMRMLTextNode
    warnings: str = ""
    checkerboard: vtkMRMLScalarVolumeNode
    difference: vtkMRMLScalarVolumeNode


#
# MLIRegistrationWidget
#


class MLIRegistrationWidget(RegistrationPanel, ModelChooser, MLIWidget):
    """The module's panel; presets, curve and views are in MLISlicerLib.registration_panel."""

    REQUEST = RegisterRequest
    INPUTS = ("fixedVolume", "movingVolume")
    MODEL_TASK = "registration"

    def makeLogic(self):
        return MLIRegistrationLogic()

    def setupModule(self) -> None:
        """Fill the choosers and connect the widgets."""
        self.setupModels([self.ui.modelComboBox])
        self.fillDevices(self.ui.deviceComboBox)
        for name in SIMILARITIES:
            parts = [WORDS[part].title for part in name.split("+")]
            self.ui.similarityComboBox.addItem(" + ".join(parts), name)
        self.ui.similarityComboBox.toolTip = _("What is compared between the two images.")
        titles = {
            "ffd": _("Control points (cubic B-splines)"),
            "dense": _("Displacements"),
            "svf": _("Stationary velocities (diffeomorphic)"),
            "greedy": _("Greedy composition (diffeomorphic)"),
        }
        for name in DEFORMATIONS:
            self.ui.deformationComboBox.addItem(titles[name], name)
        self.ui.deformationComboBox.toolTip = _("How the deformable stage describes the deformation.")
        for text, value in (
            (_("Centre on centre"), "geometry"),
            (_("Centre of mass on centre of mass"), "moments"),
            (_("As they lie"), "none"),
            (_("A transform"), "transform"),
        ):
            self.ui.initComboBox.addItem(text, value)
        self.ui.initComboBox.toolTip = tooltip(RegisterRequest, "init")
        self.setupPanel()

    def connectors(self):
        return {
            "preset": ChoiceConnector(self.ui.presetComboBox, _("{value} (not saved here)")),
            "model": ChoiceConnector(self.ui.modelComboBox, _("{value} (not installed)")),
            "similarity": ChoiceConnector(self.ui.similarityComboBox),
            "deformation": ChoiceConnector(self.ui.deformationComboBox),
            "init": ChoiceConnector(self.ui.initComboBox),
            "device": ChoiceConnector(self.ui.deviceComboBox),
            "fixedMask": NodeConnector(self.ui.fixedMaskSelector),
            "movingMask": NodeConnector(self.ui.movingMaskSelector),
            "outputTransform": NodeConnector(self.ui.transformSelector),
        }

    def whatIsMissing(self) -> str:
        """What must still be chosen."""
        node = self._parameterNode
        if node.fixedVolume is None:
            return _("Choose a fixed volume.")
        if node.movingVolume is None:
            return _("Choose a moving volume.")
        if node.fixedVolume is node.movingVolume:
            return _("The fixed and the moving volume are the same. Choose another.")
        if node.preset == "learned":
            if not self.models:
                return _("No registration model is installed. Add one beside 'Model'.")
            if node.model not in self.models:
                return _("Choose a model.")
        elif not self.logic.stages(node):
            return _("Choose a stage under 'Advanced'.")
        if node.init == "transform" and node.initialTransform is None:
            return _("Choose the transform to start from, under 'Advanced'.")
        if node.initialTransform is not None and node.initialTransform is node.outputTransform:
            return _("The result and the transform to start from are the same. Choose another.")
        for fixed, moving, name in (
            (node.fixedSegmentation, node.movingSegmentation, _("segmentation")),
            (node.fixedPoints, node.movingPoints, _("list of landmarks")),
        ):
            if fixed is not None and moving is None:
                return _("Choose a {name} of the moving volume, too.").format(name=name)
        return ""

    def applyTooltip(self) -> str:
        return _("Bring the moving volume onto the fixed one. Slicer can be used meanwhile.")

    def jobSteps(self):
        """The job that Apply starts; asks before a transform or a volume is replaced."""
        node = self._parameterNode
        inputs = self.logic.inputs(node)
        for name in ("transform", "warped_volume", "jacobian_volume"):
            output = getattr(inputs, name)
            if output is not None and not self.askedToReplace(output):
                setattr(inputs, name, None)
        self._jobParameterNode = node
        self.startsAfresh()
        return registration.steps(inputs)

    def showResult(self, result) -> None:
        """Remember the result in the parameter set it was made with, and show it."""
        node = self._jobParameterNode
        with slicer.util.NodeModify(node):
            self.logic.remember(node, result)
        details = result.details
        done = _("Done in {seconds:.1f} s on {device}.").format(**details)
        self.say("\n".join([done, *details["quality"].get("notes", [])]))

    def onParametersChanged(self) -> None:
        """Show what belongs to the chosen preset and settings, and the result of this parameter set."""
        node = self._parameterNode
        learned = node.preset == "learned"
        for name in ("modelLabel", "modelComboBox", "addModelButton", "refineLabel", "refineCheckBox"):
            getattr(self.ui, name).visible = learned
        self.showModel(self.models.get(node.model) if learned else None)
        deformable = node.stageDeformable or learned
        for name in ("deformationComboBox", "regularisationSpinBox", "iterationsSpinBox", "resolutionSpinBox"):
            getattr(self.ui, name).enabled = deformable
        relations = [WORDS[part].relation for part in node.similarity.split("+") if part in WORDS]
        self.ui.relationBrowser.setPlainText(" ".join(relations))
        for name in ("initialTransformLabel", "initialTransformSelector"):
            getattr(self.ui, name).visible = node.init == "transform"
        self.ui.warpedSelector.enabled = node.warpedVolume
        self.ui.jacobianSelector.enabled = node.jacobianVolume
        self.showPreset()
        self.showStoredResult()


#
# MLIRegistrationLogic
#


class MLIRegistrationLogic(RegistrationLogic):
    """
    Registers volumes without a widget, for scripts:

        logic = MLIRegistrationLogic()
        result = logic.run(fixed, moving, preset="rigid-multimodal")
        result.transform, result.quality, result.details["quality"] ...

    The settings are those of MLILib.registration.requests.RegisterRequest.
    """

    PARAMETERS = MLIRegistrationParameterNode

    def run(
        self,
        fixed,
        moving,
        preset="deformable",
        *,
        transformNode=None,
        initialTransform=None,
        warped=False,
        jacobian=False,
        fixedMask=None,
        movingMask=None,
        fixedSegmentation=None,
        movingSegmentation=None,
        fixedPoints=None,
        movingPoints=None,
        inProcess=False,
        progress=None,
        **settings,
    ):
        """
        Register and wait for the result; the GUI stays alive meanwhile.
        :param fixed: volume that stays; the result lies on its grid
        :param moving: volume that is brought onto it; it is put under the transform
        :param preset: one of MLILib.registration.presets.PRESETS
        :param transformNode: node that receives the transform; a new one when None or of the other kind
        :param initialTransform: linear transform to start from
        :param warped: also make the moving volume on the grid of the fixed one
        :param jacobian: also make a map of the local change of volume
        :param fixedMask, movingMask: segmentations or label maps; only voxels inside are compared
        :param fixedSegmentation, movingSegmentation: to measure the result with
        :param fixedPoints, movingPoints: corresponding landmarks, to measure the result with
        :param inProcess: compute in this process, not in the worker
        :param progress: called with each MLISlicerLib.jobs.Status
        :param settings: further settings of MLILib.registration.requests.RegisterRequest
        :return: MLISlicerLib.registration.Result
        """
        inputs = registration.Inputs(
            fixed=fixed,
            moving=moving,
            settings={**settings, "preset": preset},
            transform=transformNode,
            without=transformNode,
            initial=initialTransform,
            warped=warped,
            jacobian=jacobian,
            fixed_mask=fixedMask,
            moving_mask=movingMask,
            fixed_segmentation=fixedSegmentation,
            moving_segmentation=movingSegmentation,
            fixed_points=fixedPoints,
            moving_points=movingPoints,
        )
        return self.finish(registration.steps(inputs), inProcess, progress)


#
# MLIRegistrationTest
#


class MLIRegistrationTest(ScriptedLoadableModuleTest):
    """Registers the sample pair, whose true transform is known, and moves landmarks through Slicer's transforms."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_rigid()
        self.setUp()
        self.test_deformable()
        self.setUp()
        self.test_badInput()
        self.setUp()
        self.test_parametersAreSaved()

    def loadSample(self):
        """The sample pair with its landmarks; skips where the packages are missing."""
        missing = install.missing()
        if missing:
            raise unittest.SkipTest("packages are not installed: " + ", ".join(missing))
        self.delayDisplay("Loading the sample pair")
        import SampleData

        registerSampleData()
        return SampleData.downloadSamples("MNI152 right hippocampus, moved")

    def landmarkError(self, fixedPoints, movingPoints):
        """Mean distance of corresponding landmarks as they lie in the world, mm."""
        import numpy as np

        found = []
        for points in (fixedPoints, movingPoints):
            positions = []
            for index in range(points.GetNumberOfControlPoints()):
                position = [0.0, 0.0, 0.0]
                points.GetNthControlPointPositionWorld(index, position)
                positions.append(position)
            found.append(np.array(positions))
        return float(np.linalg.norm(found[0] - found[1], axis=1).mean())

    def check(self, preset, nodeClass, limit):
        """The landmarks come together, in both directions, as the report says."""
        fixed, moving, fixedPoints, movingPoints = self.loadSample()
        before = self.landmarkError(fixedPoints, movingPoints)
        self.assertGreater(before, 5.0)
        self.delayDisplay("Registering")
        logic = MLIRegistrationLogic()
        result = logic.run(
            fixed, moving, preset=preset, fixedPoints=fixedPoints, movingPoints=movingPoints, device="cpu"
        )
        self.assertEqual(result.transform.GetClassName(), nodeClass)
        self.assertIs(moving.GetParentTransformNode(), result.transform)
        self.assertIs(movingPoints.GetParentTransformNode(), result.transform)
        after = self.landmarkError(fixedPoints, movingPoints)
        self.assertLess(after, limit)
        # the report's error is measured in the moving image, the one above in the fixed image
        self.assertAlmostEqual(result.details["quality"]["tre"]["mean"], after, delta=0.25)
        self.assertAlmostEqual(result.details["quality"]["tre"]["before_mean"], before, delta=1e-3)
        self.delayDisplay("Bringing the fixed landmarks back")
        movingPoints.SetAndObserveTransformNodeID(None)
        transforms.put_under(fixedPoints, logic.inverse(result.transform))
        self.assertLess(self.landmarkError(fixedPoints, movingPoints), limit + 0.25)
        self.assertIn('"task": "register"', result.record.GetText())
        self.delayDisplay("Test passed")

    def test_rigid(self):
        """Turned and shifted back; the bending, of up to 2.5 mm along each axis, remains."""
        self.check("rigid", "vtkMRMLLinearTransformNode", 3.5)

    def test_deformable(self):
        """Turned, shifted and bent back."""
        self.check("deformable", "vtkMRMLGridTransformNode", 1.5)

    def test_badInput(self):
        """A volume without an image is refused in one sentence, and the scene stays as it was."""
        from MLILib.errors import BadInput

        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "other")
        before = slicer.mrmlScene.GetNumberOfNodes()
        with self.assertRaises(BadInput):
            MLIRegistrationLogic().run(empty, other)
        with self.assertRaises(BadInput):
            MLIRegistrationLogic().run(empty, empty)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), before)

    def test_parametersAreSaved(self):
        """Two parameter sets keep their own values, in the scene's nodes."""
        logic = MLIRegistrationLogic()
        first = logic.getParameterNode()
        second = logic.wrapParameterNode(slicer.mrmlScene.AddNode(logic.createParameterNode()))
        first.regularisation, second.regularisation = 0.25, 4.0
        first.stageDeformable, second.stageDeformable = True, False
        nodes = [logic.wrapParameterNode(node) for node in logic.getAllParameterNodes()]
        self.assertEqual([node.regularisation for node in nodes], [0.25, 4.0])
        self.assertEqual(["deformable" in logic.stages(node) for node in nodes], [True, False])

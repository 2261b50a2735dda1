import importlib.util
import pathlib
import sys
import unittest

import slicer
from slicer import (
    vtkMRMLMarkupsFiducialNode,
    vtkMRMLMarkupsROINode,
    vtkMRMLPlotChartNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLTableNode,
    vtkMRMLTextNode,
    vtkMRMLVectorVolumeNode,
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

from MLILib.explanation.requests import AttackRequest, ExplainCheckRequest, ExplainRequest
from MLILib.files import sha256
from MLISlicerLib import explanation, explanation_attack, explanation_check, explanation_layers, install, models, nodes
from MLISlicerLib.explanation_logic import ExplanationLogic
from MLISlicerLib.explanation_panel import ExplanationPanel
from MLISlicerLib.explanation_results import ExplanationResults
from MLISlicerLib.model_chooser import ModelChooser
from MLISlicerLib.parameters import CheckedConnector, ChoiceConnector, SliderConnector, parameter
from MLISlicerLib.sample_files import sample_file
from MLISlicerLib.widget import MLIWidget

#
# MLIExplainability
#


class MLIExplainability(ScriptedLoadableModule):
    """Why did the model say that: the module's name, place and help."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MLI Explainability")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Quantification")]
        self.parent.dependencies = []
        self.parent.contributors = ["The Machine Learning for Imaging developers"]
        self.parent.helpText = _("""
Shows why a trained model says what it says about an image, and whether the explanation can be believed. Choose a
volume, a model and what to explain: a class, a label, the label at a point or in a segment. A map shows which voxels
speak for the answer and which against it; up to four methods are shown side by side. A test tells explanations that
depend on what the model has learned from mere edge detectors, and an attack shows how small a change of the image makes
the model err. Slicer can be used while a job runs. For research, not for diagnosis.
<p>To try it, load <i>MNI152 hippocampus, a point to explain</i> from the Sample Data module. How to use it, the methods
and their limits:
<a href="https://github.com/MachineLearningForImaging/SlicerMachineLearningForImaging#mli-explainability">the module's
documentation</a>.</p>
""")
        self.parent.acknowledgementText = _("""
The methods are named with their authors in the module's documentation. The sample image is a part of the MNI152
template, copyright McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University.
""")
        slicer.app.connect("startupCompleted()", registerSampleData)


_SAMPLE = "MNI152_right_hippocampus_T1.nrrd"
#: The voxel of the hippocampus' head that is farthest from its border, RAS mm.
_SAMPLE_POINT = (28.0, -16.0, -19.0)


def loadSample(source=None):
    """Put the sample image and a point in its hippocampus into the scene."""
    volume = slicer.util.loadVolume(str(sample_file(__file__, _SAMPLE)), {"name": "hippocampus"})
    point = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "point to explain")
    point.CreateDefaultDisplayNodes()
    point.AddControlPoint(*_SAMPLE_POINT)
    return [volume, point]


def registerSampleData():
    """Add the sample data, which come with the extension, to the Sample Data module."""
    import SampleData

    file = sample_file(__file__, _SAMPLE)
    icons = pathlib.Path(__file__).resolve().parent / "Resources" / "Icons"
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="MLI Explainability",
        sampleName="MNI152 hippocampus, a point to explain",
        uris=file.as_uri(),
        fileNames=_SAMPLE,
        checksums=f"SHA256:{sha256(file)}",
        nodeNames="hippocampus",
        customDownloader=loadSample,
        thumbnailFileName=str(icons / "MLIExplainability.png"),
    )


#
# MLIExplainabilityParameterNode
#


@parameterNodeWrapper
class MLIExplainabilityParameterNode:
    """
    The choices made in the module, saved with the scene. Settings of the tasks have the names they have there.

    inputVolume - The image; inputVolume2 to 4 are further channels, for models that need them.
    target - Name of the label or class to explain, "" for what the model predicts.
    where - "everywhere", "point" (the last of the list `point`) or "region" (a segment).
    method - The method; compare names further ones.
    regions - Segmentation whose segments the ablation of regions takes away.
    outputMap - Receives the map; a new one is made when none is chosen.
    explained, maps ... record - The volume and the nodes of the latest result; summary is what the panel says of it.
    beliefTable ... - Those of the latest test; attackOf, attackedVolume ... those of the latest attack.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    inputVolume2: vtkMRMLScalarVolumeNode
    inputVolume3: vtkMRMLScalarVolumeNode
    inputVolume4: vtkMRMLScalarVolumeNode
    model: str = "hippocampus"
    target: str = ""
    where: str = "everywhere"
    point: vtkMRMLMarkupsFiducialNode
    regionSegmentation: vtkMRMLSegmentationNode
    regionSegment: str = ""
    method: parameter(ExplainRequest, "method")
    compare: list[str]
    layer: str = ""
    regions: vtkMRMLSegmentationNode
    outputMap: vtkMRMLScalarVolumeNode
    baseline: parameter(ExplainRequest, "baseline")
    blur: parameter(ExplainRequest, "blur")
    steps: parameter(ExplainRequest, "steps")
    samples: parameter(ExplainRequest, "samples")
    noise: parameter(ExplainRequest, "noise")
    occlusion_window: parameter(ExplainRequest, "occlusion_window")
    occlusion_stride: parameter(ExplainRequest, "occlusion_stride")
    unit: parameter(ExplainRequest, "unit")
    prior: parameter(ExplainRequest, "prior")
    octaves: parameter(ExplainRequest, "octaves")
    step_size: parameter(ExplainRequest, "step_size")
    field: parameter(ExplainRequest, "field")
    device: parameter(ExplainRequest, "device")
    seed: parameter(ExplainRequest, "seed")
    explained: vtkMRMLScalarVolumeNode
    maps: list[vtkMRMLScalarVolumeNode]
    components: list[vtkMRMLVectorVolumeNode]
    shownMap: int = 0
    component: int = 0
    theoreticalBox: vtkMRMLMarkupsROINode
    effectiveBox: vtkMRMLMarkupsROINode
    partsTable: vtkMRMLTableNode
    partsChart: vtkMRMLPlotChartNode
    curveTable: vtkMRMLTableNode
    curveChart: vtkMRMLPlotChartNode
    record: vtkMRMLTextNode
    summary: str = ""
    draws: parameter(ExplainCheckRequest, "draws")
    layers: parameter(ExplainCheckRequest, "layers")
    curve_steps: parameter(ExplainCheckRequest, "curve_steps")
    beliefTable: vtkMRMLTableNode
    beliefCurves: vtkMRMLTableNode
    deletionChart: vtkMRMLPlotChartNode
    insertionChart: vtkMRMLPlotChartNode
    beliefLayers: vtkMRMLTableNode
    cascadeChart: vtkMRMLPlotChartNode
    beliefSummary: str = ""
    attack: parameter(AttackRequest, "method")
    epsilon: float = 0.0
    aim: str = ""
    attackReference: vtkMRMLSegmentationNode
    follow: bool = False
    attackOf: vtkMRMLScalarVolumeNode
    attackedVolume: vtkMRMLScalarVolumeNode
    attackDifference: vtkMRMLScalarVolumeNode
    attackBefore: vtkMRMLSegmentationNode
    attackAfter: vtkMRMLSegmentationNode
    attackCurve: vtkMRMLTableNode
    attackChart: vtkMRMLPlotChartNode
    attackRecord: vtkMRMLTextNode
    attackSummary: str = ""


#
# MLIExplainabilityWidget
#


class MLIExplainabilityWidget(ExplanationResults, ExplanationPanel, ModelChooser, MLIWidget):
    """The module's panel; what it offers and what it shows are in MLISlicerLib.explanation_panel and ..._results."""

    REQUEST = ExplainRequest
    MODEL_TASK = ExplanationLogic.MODEL_TASK
    CHOSEN = ("epsilon",)

    def makeLogic(self):
        return MLIExplainabilityLogic()

    def setupModule(self) -> None:
        """Fill the choosers and connect the widgets."""
        self.setupModels([self.ui.modelComboBox])
        self.fillDevices(self.ui.deviceComboBox)
        self.setupChoices()
        self.setupResults()

    def connectors(self):
        return {
            "model": ChoiceConnector(self.ui.modelComboBox, _("{value} (not installed)")),
            "target": ChoiceConnector(self.ui.targetComboBox),
            "where": ChoiceConnector(self.ui.whereComboBox),
            "method": ChoiceConnector(self.ui.methodComboBox),
            "compare": CheckedConnector(self.ui.compareComboBox),
            "layer": ChoiceConnector(self.ui.layerComboBox),
            "baseline": ChoiceConnector(self.ui.baselineComboBox),
            "prior": ChoiceConnector(self.ui.priorComboBox),
            "device": ChoiceConnector(self.ui.deviceComboBox),
            "attack": ChoiceConnector(self.ui.attackMethodComboBox),
            "aim": ChoiceConnector(self.ui.aimComboBox),
            "epsilon": SliderConnector(self.ui.epsilonSlider),
        }

    def whatInputsLack(self) -> str:
        """What must still be chosen of the model, its images and the target."""
        node = self._parameterNode
        model = self.models.get(node.model)
        if not self.models:
            return _("No model is installed. Add one beside 'Model'.")
        if model is None:
            return _("The model '{name}' is not installed. Choose another, or add it.").format(name=node.model)
        volumes = self.logic.volumes(node, len(model.channels))
        for channel, volume in zip(model.channels, volumes, strict=False):
            if volume is None:
                wanted = _("Choose an input volume.") if len(volumes) == 1 else _("Choose a volume for '{channel}'.")
                return wanted.format(channel=channel)
        if len(model.channels) > len(volumes):
            return _(
                "The model needs {count} images; this panel takes {limit}. Use the command line (mli explain)."
            ).format(count=len(model.channels), limit=len(volumes))
        return self.whatTargetLacks(node)

    def whatIsMissing(self) -> str:
        """What must still be chosen."""
        node = self._parameterNode
        missing = self.whatInputsLack()
        if missing:
            return missing
        methods = self.logic.methods(node)
        if len(methods) > explanation.MOST:
            return _("Choose at most three methods to compare with.")
        if "ablation-regions" in methods and node.regions is None:
            return _("Choose the segmentation whose segments are taken away one by one.")
        if node.outputMap is not None and node.outputMap in self.logic.volumes(node, 4):
            return _("The map would replace the image. Choose another volume for it.")
        return ""

    def applyTooltip(self) -> str:
        return _("Explain the model's answer. Slicer can be used meanwhile.")

    def updateApply(self) -> None:
        """Apply, and the buttons of the test and of the attack, say what they do or what is missing."""
        super().updateApply()
        self.updateBelief(_("The scene is closed.") if self._parameterNode is None else self.whatInputsLack())

    def jobSteps(self):
        """The job that Apply starts; asks before a map is replaced."""
        node = self._parameterNode
        inputs = self.logic.inputs(node)
        if inputs.map is not None and not self.askedToReplace(inputs.map):
            inputs.map = None
        self._jobParameterNode = node
        return explanation.steps(inputs)

    def showResult(self, result) -> None:
        """Remember the result in the parameter set it was made with, and show it."""
        node = self._jobParameterNode
        self.logic.remember(node, result, self.summaryOf(result, node.model))
        if result.theoretical is not None or result.effective is not None:
            self.onBoxesToggled(self.ui.boxesCheckBox.checked)
        if node.where == "point" and node.point is not None:
            point = explanation.point_of(node.point)
            if point is not None:
                slicer.modules.markups.logic().JumpSlicesToLocation(*point, True)
        if len(result.maps) > 1:
            self.ui.sideBySideButton.checked = True
            self.onSideBySide(True)
        seconds = sum(one["seconds"] for one in result.details)
        self.say(_("Done in {seconds:.1f} s on {device}.").format(seconds=seconds, device=result.details[0]["device"]))

    def onModelAdded(self, name: str) -> None:
        """Choose the model that was added; its layers are asked for again."""
        explanation_layers.forget(name)
        super().onModelAdded(name)

    def onUnfolded(self, collapsed: bool) -> None:
        """A part of the panel was opened: it shows what belongs to the choices, which CTK does not remember."""
        super().onUnfolded(collapsed)
        if not collapsed:
            self.showStoredResult(again=True)

    def onParametersChanged(self) -> None:
        """Show what belongs to the choices, and the result of this parameter set."""
        node = self._parameterNode
        model = self.models.get(node.model)
        self.showChannels(model)
        self.showModel(model)
        self.showChoices()
        self.showEpsilonRange()
        self.showStoredResult()


#
# MLIExplainabilityLogic
#


class MLIExplainabilityLogic(ExplanationLogic):
    """
    Explains without a widget, for scripts:

        logic = MLIExplainabilityLogic()
        result = logic.run([volume], "hippocampus", methods=["integrated-gradients", "grad-cam"], target="anterior")
        result.maps, result.details ...
        result = logic.attack(volume, "hippocampus", epsilon=5)
        result = logic.check([volume], "hippocampus", methods=["gradient", "guided-backpropagation"])

    The settings are those of MLILib.explanation.requests.
    """

    PARAMETERS = MLIExplainabilityParameterNode

    def run(
        self,
        volumes,
        model="hippocampus",
        *,
        methods=("integrated-gradients",),
        point=None,
        region=None,
        regions=None,
        mapNode=None,
        inProcess=False,
        progress=None,
        **settings,
    ):
        """
        Explain and wait for the result; the GUI stays alive meanwhile.
        :param volumes: the image, or the channels of one in the model's order
        :param model: name, folder or zip file of a model
        :param methods: names of up to four methods
        :param point: markups whose last point is explained
        :param region: a segmentation and the id of its segment that is explained
        :param regions: segmentation whose segments the ablation of regions takes away
        :param mapNode: volume that receives the first map; a new one when None
        :param inProcess: compute in this process, not in the worker
        :param progress: called with each MLISlicerLib.jobs.Status
        :param settings: further settings of MLILib.explanation.requests.ExplainRequest
        :return: MLISlicerLib.explanation.Result
        """
        inputs = explanation.Inputs(
            volumes=list(volumes) if isinstance(volumes, (list, tuple)) else [volumes],
            methods=[methods] if isinstance(methods, str) else list(methods),
            settings={"model": model, **settings},
            point=point,
            region=region,
            regions=regions,
            map=mapNode,
        )
        return self.finish(explanation.steps(inputs), inProcess, progress)

    def check(self, volumes, model="hippocampus", *, point=None, inProcess=False, progress=None, **settings):
        """
        Test methods on an image, and wait for the result.
        :param settings: further settings of MLILib.explanation.requests.ExplainCheckRequest
        :return: MLISlicerLib.explanation_check.Result
        """
        settings.setdefault("methods", list(ExplainCheckRequest.__dataclass_fields__["methods"].default))
        inputs = explanation_check.Inputs(
            volumes=list(volumes) if isinstance(volumes, (list, tuple)) else [volumes],
            settings={"model": model, **settings},
            point=point,
        )
        return self.finish(explanation_check.steps(inputs), inProcess, progress)

    def attack(
        self,
        volume,
        model="hippocampus",
        *,
        epsilon,
        point=None,
        reference=None,
        inProcess=False,
        progress=None,
        **settings,
    ):
        """
        Attack a model, and wait for the result.
        :param epsilon: largest change of a voxel, in the volume's intensities
        :param reference: segmentation that says what is right; what the model says before when None
        :param settings: further settings of MLILib.explanation.requests.AttackRequest
        :return: MLISlicerLib.explanation_attack.Result
        """
        inputs = explanation_attack.Inputs(
            volume=volume,
            settings={"model": model, "epsilon": epsilon, **settings},
            labels=models.labels_of(model),
            point=point,
            reference=reference,
        )
        return self.finish(explanation_attack.steps(inputs), inProcess, progress)


#
# MLIExplainabilityTest
#


class MLIExplainabilityTest(ScriptedLoadableModuleTest):
    """Explains the shipped model's answer on the sample image, and looks at what arrives in the scene."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        for test in (self.test_point, self.test_attack, self.test_badInput, self.test_parametersAreSaved):
            self.setUp()
            test()

    def requireModel(self):
        """Skips where packages or the model are missing."""
        missing = install.missing()
        if missing:
            raise unittest.SkipTest("packages are not installed: " + ", ".join(missing))
        if "hippocampus" not in models.known():
            raise unittest.SkipTest("the model hippocampus is not installed")

    def test_point(self):
        """The label at a point is explained by what lies around it, and by nothing that the network cannot see."""
        self.requireModel()
        self.delayDisplay("Loading the sample image")
        volume, point = loadSample()
        self.delayDisplay("Explaining")
        result = MLIExplainabilityLogic().run(
            [volume], methods=["gradient", "grad-cam"], target="anterior", point=point, device="cpu"
        )
        self.assertEqual(len(result.maps), 2)
        voxels = slicer.util.arrayFromVolume(result.maps[0])
        self.assertEqual(voxels.shape, slicer.util.arrayFromVolume(volume).shape)
        self.assertGreater(abs(voxels).max(), 0.0)
        self.assertGreaterEqual(slicer.util.arrayFromVolume(result.maps[1]).min(), 0.0)  # Grad-CAM only speaks for
        self.assertEqual(result.details[0]["target"]["kind"], "voxel")
        self.assertIn('"task": "explain"', result.record.GetText())
        box = result.effective
        self.assertIsNotNone(box)
        center = [0.0, 0.0, 0.0]
        box.GetCenterWorld(center)
        distance = sum((a - b) ** 2 for a, b in zip(center, _SAMPLE_POINT, strict=True)) ** 0.5
        self.assertLess(distance, max(box.GetSize()))
        for smaller, larger in zip(box.GetSize(), result.theoretical.GetSize(), strict=True):
            self.assertLessEqual(smaller, larger + 1e-3)
        self.delayDisplay("Test passed")

    def test_attack(self):
        """No epsilon changes nothing; a small one stays within its bound, and the model errs more."""
        self.requireModel()
        volume, _point = loadSample()
        logic = MLIExplainabilityLogic()
        self.delayDisplay("Attacking")
        nothing = logic.attack(volume, epsilon=0.0, curve=[0.0], device="cpu")
        self.assertEqual(abs(slicer.util.arrayFromVolume(nothing.difference)).max(), 0.0)
        result = logic.attack(volume, epsilon=4.0, curve=[0.0, 4.0], device="cpu")
        self.assertLessEqual(abs(slicer.util.arrayFromVolume(result.difference)).max(), 4.0 + 1e-3)
        self.assertLess(result.details["after"], result.details["before"])
        self.delayDisplay("Test passed")

    def test_badInput(self):
        """A volume without an image and a list without a point are refused; the scene stays as it was."""
        from MLILib.errors import BadInput

        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        volume = nodes.add_volume(_cube(), "cube")
        point = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "nowhere")
        before = slicer.mrmlScene.GetNumberOfNodes()
        with self.assertRaises(BadInput):
            MLIExplainabilityLogic().run([empty])
        with self.assertRaises(BadInput):
            MLIExplainabilityLogic().run([volume], point=point)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), before)

    def test_parametersAreSaved(self):
        """Two parameter sets keep their own values, in the scene's nodes."""
        logic = MLIExplainabilityLogic()
        first = logic.getParameterNode()
        second = logic.wrapParameterNode(slicer.mrmlScene.AddNode(logic.createParameterNode()))
        first.method, second.method = "occlusion", "grad-cam"
        first.compare = ["gradient"]
        sets = [logic.wrapParameterNode(node) for node in logic.getAllParameterNodes()]
        self.assertEqual([node.method for node in sets], ["occlusion", "grad-cam"])
        self.assertEqual([list(node.compare) for node in sets], [["gradient"], []])


def _cube():
    """A small image."""
    import SimpleITK as sitk

    return sitk.Image(4, 4, 4, sitk.sitkFloat32)

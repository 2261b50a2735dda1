import importlib.util
import pathlib
import sys
import unittest
from typing import ClassVar

import slicer
from slicer import (
    vtkMRMLPlotChartNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLTableNode,
    vtkMRMLTextNode,
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
from MLILib.fusion.methods import METHODS
from MLILib.fusion.requests import FuseRequest
from MLILib.registration.presets import PRESETS
from MLILib.segmentation.requests import EvaluateRequest
from MLISlicerLib import fusion, fusion_atlases, fusion_sample, install
from MLISlicerLib.fusion_panel import FusionPanel
from MLISlicerLib.logic import MLILogic
from MLISlicerLib.parameters import CheckedNodesConnector, ChoiceConnector, parameter, tooltip
from MLISlicerLib.sample_files import sample_file
from MLISlicerLib.widget import MLIWidget

#
# MLIAtlasFusion
#


class MLIAtlasFusion(ScriptedLoadableModule):
    """One segmentation of many: the module's name, place and help."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MLI Atlas Fusion")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["The Machine Learning for Imaging developers"]
        self.parent.helpText = _("""
Makes one segmentation of many, and says how far each of them can be trusted. Labelled images of others (atlases) are
registered to a target volume, and their labels fused, by methods from the majority vote to DeepSTAPLE; or segmentations
that several raters drew on one image are fused as they are. Choose what to fuse and press Apply; Slicer can be used
while the job runs. A table rates each atlas or rater, and a map shows where they disagree. For research, not for
diagnosis.
<p>To try it, load <i>MNI152 hippocampus atlases</i> or <i>MNI152 hippocampus raters</i> from the Sample Data module.
How to use it, the methods and their limits:
<a href="https://github.com/MachineLearningForImaging/SlicerMachineLearningForImaging#mli-atlas-fusion">the module's
documentation</a>.</p>
""")
        self.parent.acknowledgementText = _("""
The methods are named with their authors in the module's documentation. The sample images are parts of the MNI152
template, copyright McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University, bent in several
ways; their labels were drawn by the shipped hippocampus model, which was trained on data of the Medical Segmentation
Decathlon (Antonelli et al. 2022, Nature Communications 13:4128).
""")
        slicer.app.connect("startupCompleted()", registerSampleData)


_SAMPLE = ("MNI152_right_hippocampus_T1.nrrd", "MNI152_right_hippocampus_labels.seg.nrrd")


def loadAtlases(source=None):
    """Put a target and a folder of atlases into the scene; they are made from the bundled image and its labels."""
    return fusion_sample.load_atlases(*(sample_file(__file__, name) for name in _SAMPLE))


def loadRaters(source=None):
    """Put an image and what several raters drew on it into the scene; they are made from the bundled labels."""
    return fusion_sample.load_raters(*(sample_file(__file__, name) for name in _SAMPLE))


def registerSampleData():
    """Add the sample data, which are made of files that come with the extension, to the Sample Data module."""
    import SampleData

    files = [sample_file(__file__, name) for name in _SAMPLE]
    icons = pathlib.Path(__file__).resolve().parent / "Resources" / "Icons"
    for name, load in (("MNI152 hippocampus atlases", loadAtlases), ("MNI152 hippocampus raters", loadRaters)):
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="MLI Atlas Fusion",
            sampleName=name,
            uris=[file.as_uri() for file in files],
            fileNames=list(_SAMPLE),
            checksums=[f"SHA256:{sha256(file)}" for file in files],
            nodeNames=["hippocampus", "hippocampus reference"],
            loadFileTypes=["VolumeFile", "SegmentationFile"],
            customDownloader=load,
            thumbnailFileName=str(icons / "MLIAtlasFusion.png"),
        )


#
# MLIAtlasFusionParameterNode
#


@parameterNodeWrapper
class MLIAtlasFusionParameterNode:
    """
    The choices made in the module, saved with the scene. Settings of the task have the names they have there.

    mode - "atlases", which are registered to targetVolume, or "raters", whose segmentations are fused as they are.
    source - "scene": atlasFolder is the id of a folder of the Data module; "files": atlasPath is a folder or file.
    outputSegmentation - Receives the consensus; a new one is made when none is chosen.
    disagreementMap - Whether to make a map of disagreement, in outputDisagreement or a new volume.
    reference - Segmentation to compare the consensus with; tolerance is that of the surface Dice.
    ratersTable ... record - The nodes of the latest result; summary is what the panel says of it.
    """

    mode: str = "atlases"
    targetVolume: vtkMRMLScalarVolumeNode
    source: str = "scene"
    atlasFolder: str = ""
    atlasPath: str = ""
    raters: list[vtkMRMLSegmentationNode]
    method: parameter(FuseRequest, "method")
    registration: parameter(FuseRequest, "registration")
    outputSegmentation: vtkMRMLSegmentationNode
    disagreementMap: bool = True
    outputDisagreement: vtkMRMLScalarVolumeNode
    reference: vtkMRMLSegmentationNode
    tolerance: parameter(EvaluateRequest, "tolerance")
    select: parameter(FuseRequest, "select")
    borders: parameter(FuseRequest, "borders")
    keep: parameter(FuseRequest, "keep")
    region: parameter(FuseRequest, "region")
    margin: parameter(FuseRequest, "margin")
    patch_radius: parameter(FuseRequest, "patch_radius")
    search_radius: parameter(FuseRequest, "search_radius")
    beta: parameter(FuseRequest, "beta")
    alpha: parameter(FuseRequest, "alpha")
    drop: parameter(FuseRequest, "drop")
    steps: parameter(FuseRequest, "steps")
    device: parameter(FuseRequest, "device")
    seed: parameter(FuseRequest, "seed")
    ratersTable: vtkMRMLTableNode
    agreementTable: vtkMRMLTableNode
    agreementChart: vtkMRMLPlotChartNode
    weightChart: vtkMRMLPlotChartNode
    metricsTable: vtkMRMLTableNode
    metricsChart: vtkMRMLPlotChartNode
    record: vtkMRMLTextNode
    summary: str = ""


#
# MLIAtlasFusionWidget
#


class MLIAtlasFusionWidget(FusionPanel, MLIWidget):
    """The module's panel; what there is to fuse, how atlases fare and the result are in MLISlicerLib.fusion_panel."""

    REQUEST = FuseRequest
    INPUTS = ("targetVolume",)
    CHOSEN = ("atlasFolder",)

    def makeLogic(self):
        return MLIAtlasFusionLogic()

    def setupModule(self) -> None:
        """Fill the choosers and connect the widgets."""
        self.fillDevices(self.ui.deviceComboBox)
        self.setupPanel()
        for name in ("method", "registration", "region", "borders"):
            getattr(self.ui, f"{name}ComboBox").toolTip = tooltip(FuseRequest, name)
        self.ui.toleranceSpinBox.toolTip = tooltip(EvaluateRequest, "tolerance")

    def connectors(self):
        return {
            "mode": ChoiceConnector(self.ui.modeComboBox),
            "source": ChoiceConnector(self.ui.sourceComboBox),
            "atlasFolder": ChoiceConnector(self.ui.atlasFolderComboBox, _("(a folder without atlases)")),
            "raters": CheckedNodesConnector(self.ui.ratersSelector),
            "method": ChoiceConnector(self.ui.methodComboBox),
            "registration": ChoiceConnector(self.ui.registrationComboBox, _("{value} (not installed)")),
            "region": ChoiceConnector(self.ui.regionComboBox),
            "borders": ChoiceConnector(self.ui.bordersComboBox),
            "device": ChoiceConnector(self.ui.deviceComboBox),
        }

    def whatIsMissing(self) -> str:
        """What must still be chosen."""
        node = self._parameterNode
        method = METHODS[node.method]
        if node.mode == "raters":
            missing = self.whatRatersLack(node, method)
        else:
            missing = self.whatAtlasesLack(node)
        if missing:
            return missing
        if node.outputSegmentation is not None:
            if node.outputSegmentation is node.reference:
                return _("The consensus and the reference are the same segmentation. Choose another.")
            if node.mode == "raters" and node.outputSegmentation in self.logic.raters(node):
                return _("The consensus would replace a rater. Choose another segmentation for it.")
        if node.outputDisagreement is not None and node.outputDisagreement is node.targetVolume:
            return _("The map of disagreement would replace the target. Choose another volume for it.")
        return ""

    def whatRatersLack(self, node, method) -> str:
        if not self.logic.raters(node):
            return _("Choose the segmentations of the raters.")
        if method.images:
            return _("{method} compares images, which raters' segmentations lack. Choose another method.").format(
                method=method.title
            )
        if method.target and node.targetVolume is None:
            return _("Choose the volume that the raters drew on: {method} looks at it.").format(method=method.title)
        return ""

    def whatAtlasesLack(self, node) -> str:
        if node.targetVolume is None:
            return _("Choose a target volume.")
        if node.source == "scene":
            if not node.atlasFolder:
                return _("Put volumes and their segmentations into a folder (Data module), or choose files.")
            if not self.logic.sceneAtlases(node).atlases:
                return _("The folder holds no atlas beside the target. Choose another.")
        elif not node.atlasPath:
            return _("Choose a folder of atlases, or a dataset.json.")
        elif not pathlib.Path(node.atlasPath).exists():
            return _("{path} does not exist. Choose other files.").format(path=node.atlasPath)
        if node.registration not in PRESETS and node.registration not in self.models:
            return _("The model '{name}' is not installed. Choose another registration.").format(name=node.registration)
        return ""

    def applyTooltip(self) -> str:
        if self._parameterNode.mode == "raters":
            return _("Fuse the raters' segmentations. Slicer can be used meanwhile.")
        return _("Register the atlases to the target and fuse their labels. Slicer can be used meanwhile.")

    def jobSteps(self):
        """The job that Apply starts; asks before segments or a volume are replaced."""
        node = self._parameterNode
        inputs = self.logic.inputs(node)
        for name in ("segmentation", "disagreement_volume"):
            output = getattr(inputs, name)
            if output is not None and not self.askedToReplace(output):
                setattr(inputs, name, None)
        self._jobParameterNode, self._jobMode = node, node.mode
        atlases = inputs.scene_atlases.atlases if inputs.scene_atlases is not None else ()
        self.startsAfresh(fusion_atlases.file_names([atlas.volume.GetName() for atlas in atlases]))
        return fusion.steps(inputs)

    def showResult(self, result) -> None:
        """Remember the result in the parameter set it was made with, and show it."""
        node = self._jobParameterNode
        with slicer.util.NodeModify(node):
            self.logic.remember(node, result, self.summaryOf(result.details, self._jobMode))
        self.say(_("Done in {seconds:.1f} s on {device}.").format(**result.details))

    def onParametersChanged(self) -> None:
        """Show what belongs to the choices, and the result of this parameter set."""
        self.showChoices()
        self.showFound()
        self.showStoredResult()


#
# MLIAtlasFusionLogic
#


class MLIAtlasFusionLogic(MLILogic):
    """
    Fuses segmentations without a widget, for scripts:

        logic = MLIAtlasFusionLogic()
        result = logic.run(target, [(volume, segmentation), ...], method="jlf")
        result = logic.run(raters=[segmentation, ...], method="staple")
        result.segmentation, result.raters, result.disagreement ...

    The settings are those of MLILib.fusion.requests.FuseRequest.
    """

    PARAMETERS = MLIAtlasFusionParameterNode
    #: Nodes of a result: name in fusion.Result and in the parameter set.
    RESULTS: ClassVar = {
        "segmentation": "outputSegmentation",
        "raters": "ratersTable",
        "agreement": "agreementTable",
        "agreement_chart": "agreementChart",
        "weight_chart": "weightChart",
        "metrics": "metricsTable",
        "metrics_chart": "metricsChart",
        "record": "record",
    }
    #: Settings of the task that a parameter set holds; the last ones are of atlases alone.
    SETTINGS = ("method", "region", "margin", "patch_radius", "search_radius", "beta", "alpha", "drop", "steps")
    OF_ATLASES = ("registration", "select", "borders", "keep")

    def sceneAtlases(self, parameterNode):
        """The atlases of the chosen folder, without the target and what belongs to it."""
        node = parameterNode
        others = (node.targetVolume, node.reference, node.outputSegmentation, node.outputDisagreement)
        return fusion_atlases.read(node.atlasFolder, [other for other in others if other is not None])

    def raters(self, parameterNode) -> list:
        """The chosen segmentations that are still in the scene."""
        return [node for node in parameterNode.raters if node is not None]

    def settings(self, parameterNode) -> dict:
        """The task's settings that a parameter set asks for."""
        names = (*self.SETTINGS, "device", "seed", *(self.OF_ATLASES if parameterNode.mode == "atlases" else ()))
        return {name: getattr(parameterNode, name) for name in names}

    def inputs(self, parameterNode):
        """What a parameter set asks for."""
        node = parameterNode
        scene = node.mode == "atlases" and node.source == "scene"
        return fusion.Inputs(
            settings=self.settings(node),
            target=node.targetVolume,
            atlas_path=node.atlasPath if node.mode == "atlases" and not scene else "",
            scene_atlases=self.sceneAtlases(node) if scene else None,
            title=fusion_atlases.name_of(node.atlasFolder) if scene else "",
            raters=self.raters(node) if node.mode == "raters" else [],
            segmentation=node.outputSegmentation,
            disagreement=node.disagreementMap,
            disagreement_volume=node.outputDisagreement if node.disagreementMap else None,
            reference=node.reference,
            tolerance=node.tolerance,
            previous={name: getattr(node, place) for name, place in self.RESULTS.items()},
        )

    def remember(self, parameterNode, result, summary: str) -> None:
        """Put the nodes of a result into the parameter set, and what the panel says of it."""
        for name, place in self.RESULTS.items():
            setattr(parameterNode, place, getattr(result, name))
        if result.disagreement is not None:
            parameterNode.outputDisagreement = result.disagreement
        parameterNode.summary = summary

    def run(
        self,
        target=None,
        atlases=None,
        *,
        raters=(),
        segmentationNode=None,
        disagreement=False,
        reference=None,
        tolerance=1.0,
        inProcess=False,
        progress=None,
        **settings,
    ):
        """
        Fuse and wait for the result; the GUI stays alive meanwhile.
        :param target: volume to segment; not needed with raters
        :param atlases: folder or dataset.json, or a list of volumes with their segmentations
        :param raters: segmentations, in place of atlases
        :param segmentationNode: node that receives the consensus, in place of what it holds; a new one when None
        :param disagreement: also make a map of disagreement
        :param reference: segmentation to compare the consensus with
        :param inProcess: compute in this process, not in the worker
        :param progress: called with each MLISlicerLib.jobs.Status
        :param settings: further settings of MLILib.fusion.requests.FuseRequest
        :return: MLISlicerLib.fusion.Result
        """
        files = isinstance(atlases, (str, pathlib.Path))
        pairs = () if files or atlases is None else atlases
        inputs = fusion.Inputs(
            settings=settings,
            target=target,
            atlas_path=str(atlases) if files else "",
            scene_atlases=None if files or raters else fusion_atlases.of_pairs(pairs),
            title=_("Atlases"),
            raters=list(raters),
            segmentation=segmentationNode,
            disagreement=disagreement,
            reference=reference,
            tolerance=tolerance,
        )
        return self.finish(fusion.steps(inputs), inProcess, progress)


#
# MLIAtlasFusionTest
#


class MLIAtlasFusionTest(ScriptedLoadableModuleTest):
    """Fuses the sample atlases and the sample raters, whose truth is known, and looks at what arrives in the scene."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        for test in (self.test_atlases, self.test_raters, self.test_badInput, self.test_parametersAreSaved):
            self.setUp()
            test()

    def requirePackages(self):
        """Skips where the packages are missing."""
        missing = install.missing()
        if missing:
            raise unittest.SkipTest("packages are not installed: " + ", ".join(missing))

    def dice(self, result):
        """Dice of the labels of the consensus against the reference, as the table of metrics has them."""
        structures = [result.metrics.GetCellText(row, 0) for row in range(result.metrics.GetNumberOfRows())]
        return dict(zip(structures, slicer.util.arrayFromTableColumn(result.metrics, "Dice"), strict=True))

    def overlaps(self, result):
        """Mean Dice of each rater with the consensus, in the raters' order."""
        return [rater["dice"] for rater in result.details["report"]["raters"]]

    def test_atlases(self):
        """Registered atlases agree on the known labels, and the careless one is found out."""
        self.requirePackages()
        self.delayDisplay("Loading the sample atlases")
        sample = loadAtlases()
        found = fusion_atlases.read(sample.folder, [sample.volume, sample.reference])
        self.assertEqual([(one.volume, one.segmentation) for one in found.atlases], list(sample.atlases))
        self.assertEqual(found.notes, ())
        self.delayDisplay("Registering and fusing")
        result = MLIAtlasFusionLogic().run(
            sample.volume,
            sample.atlases,
            method="majority",
            registration="rigid",
            disagreement=True,
            reference=sample.reference,
            keep=False,
            device="cpu",
        )
        segments = result.segmentation.GetSegmentation()
        names = [segments.GetNthSegment(index).GetName() for index in range(segments.GetNumberOfSegments())]
        self.assertEqual(names, ["anterior", "posterior"])
        truth = sample.reference.GetSegmentation()
        self.assertEqual(segments.GetNthSegment(0).GetColor(), truth.GetNthSegment(0).GetColor())
        dice = self.dice(result)
        self.assertGreater(dice["anterior"], 0.75)
        self.assertGreater(dice["posterior"], 0.75)
        overlaps = self.overlaps(result)
        self.assertEqual(min(overlaps), overlaps[-1])
        disagreement = slicer.util.arrayFromVolume(result.disagreement)
        self.assertEqual(disagreement.shape, slicer.util.arrayFromVolume(sample.volume).shape)
        self.assertEqual(disagreement.min(), 0.0)
        self.assertGreater(disagreement.max(), 0.5)
        self.assertIn('"task": "fuse"', result.record.GetText())
        self.delayDisplay("Test passed")

    def test_raters(self):
        """STAPLE comes closer to the known labels than the raters do, and the careless one is found out."""
        self.requirePackages()
        self.delayDisplay("Loading the sample raters")
        sample = loadRaters()
        self.delayDisplay("Fusing")
        result = MLIAtlasFusionLogic().run(
            raters=sample.raters, method="staple", reference=sample.reference, device="cpu"
        )
        self.assertGreater(self.dice(result)["mean"], 0.85)
        overlaps = self.overlaps(result)
        self.assertEqual(min(overlaps), overlaps[-1])
        self.assertEqual(result.raters.GetNumberOfRows(), 2 * len(sample.raters))
        self.delayDisplay("Test passed")

    def test_badInput(self):
        """Nothing to fuse and a rater without segments are refused in one sentence; the scene stays as it was."""
        from MLILib.errors import BadInput

        volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "nothing drawn")
        before = slicer.mrmlScene.GetNumberOfNodes()
        with self.assertRaises(BadInput):
            MLIAtlasFusionLogic().run(volume, [])
        with self.assertRaises(BadInput):
            MLIAtlasFusionLogic().run(raters=[segmentation], method="majority")
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), before)

    def test_parametersAreSaved(self):
        """Two parameter sets keep their own values, in the scene's nodes."""
        logic = MLIAtlasFusionLogic()
        first = logic.getParameterNode()
        second = logic.wrapParameterNode(slicer.mrmlScene.AddNode(logic.createParameterNode()))
        first.method, second.method = "staple", "local"
        rater = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "rater")
        first.raters = [rater]
        nodes = [logic.wrapParameterNode(node) for node in logic.getAllParameterNodes()]
        self.assertEqual([node.method for node in nodes], ["staple", "local"])
        self.assertEqual([list(node.raters) for node in nodes], [[rater], []])

import importlib.util
import pathlib
import sys
import unittest
from typing import Annotated

import slicer
from slicer import (
    vtkMRMLMarkupsFiducialNode,
    vtkMRMLPlotChartNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLTableNode,
    vtkMRMLTextNode,
)
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
)

if importlib.util.find_spec("MLISlicerLib") is None:
    # Installed, the libraries lie beside this file; in the source tree beside its folder, where Slicer does not look.
    sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from MLILib.classical.requests import ClassicalRequest
from MLILib.cohort.requests import BatchSegmentRequest
from MLILib.files import sha256
from MLILib.segmentation.requests import EvaluateRequest, SegmentRequest, TrainSegmentationRequest
from MLISlicerLib import classical, display, install, models, segmentation
from MLISlicerLib.classical_panel import MODEL, ClassicalPanel
from MLISlicerLib.cohort_panel import CohortPanel
from MLISlicerLib.model_chooser import ModelChooser
from MLISlicerLib.parameters import CheckedConnector, ChoiceConnector, parameter, tooltip
from MLISlicerLib.segmentation_logic import SegmentationLogic
from MLISlicerLib.training_panel import TrainingPanel
from MLISlicerLib.widget import MLIWidget

#
# MLISegmentation
#


class MLISegmentation(ScriptedLoadableModule):
    """Label an image with a trained model or a classical method: the module's name, place and help."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MLI Segmentation")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["The Machine Learning for Imaging developers"]
        self.parent.helpText = _("""
Labels the structures in an image with a trained model: the one shipped for the hippocampus, or any MONAI bundle of
yours. Choose a volume and a model and press Apply; Slicer can be used while the job runs. An uncertainty map shows
where the model was unsure, and with a reference segmentation the agreement is measured. Under <i>Method</i> are
thresholds, region growing, graph cuts, active contours and random forests, which need no model. For research, not for
diagnosis.
<p>To try it, load <i>MNI152 right hippocampus</i> from the Sample Data module. How to use it, what it was measured on
and its limits:
<a href="https://github.com/MachineLearningForImaging/SlicerMachineLearningForImaging#mli-segmentation">the module's
documentation</a>.</p>
""")
        self.parent.acknowledgementText = _("""
The shipped model was trained on the hippocampus data of the Medical Segmentation Decathlon (Antonelli et al. 2022,
Nature Communications 13:4128). It and your own models run on PyTorch and MONAI. The sample image is a part of the
MNI152 template, copyright McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University.
""")
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Add the sample images, which come with the extension, to the Sample Data module."""
    import SampleData

    resources = pathlib.Path(__file__).resolve().parent / "Resources"
    for side in ("right", "left"):
        file = resources / "SampleData" / f"MNI152_{side}_hippocampus_T1.nrrd"
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="MLI Segmentation",
            sampleName=f"MNI152 {side} hippocampus",
            uris=file.as_uri(),
            fileNames=file.name,
            checksums=f"SHA256:{sha256(file)}",
            nodeNames=f"MNI152_{side}_hippocampus",
            thumbnailFileName=str(resources / "Icons" / "MLISegmentation.png"),
        )


#
# MLISegmentationParameterNode
#


@parameterNodeWrapper
class MLISegmentationParameterNode:
    """
    The choices made in the module, saved with the scene. Settings of the task have the names they have there.

    inputVolume - The image to segment; inputVolume2 to 4 are further channels, for models that need them.
    method - "model", or one of the classical methods; scribbles, points and mask are what those start from.
    range_low, range_high - The setting "range" of the connected threshold.
    model - Name of the model; moreModels are asked as well, as an ensemble.
    outputSegmentation - Receives the segments; a new one is made when none is chosen.
    uncertaintyMap - Whether to make an uncertainty map, in outputUncertainty or a new volume.
    reference - Segmentation to compare the result with; tolerance is that of the surface Dice.
    tileX, tileY, tileZ - Size of the moving window; 0 is automatic.
    volumesTable, metricsTable, metricsChart, record - The nodes of the latest result.
    trainFolder - Cases to train on: a folder of the scene, or "file" for those that trainPath lists.
    trainName - What the trained model is called.
    cohortPath, cohortOutput - Files to segment all at once, and the folder for what comes of them.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    inputVolume2: vtkMRMLScalarVolumeNode
    inputVolume3: vtkMRMLScalarVolumeNode
    inputVolume4: vtkMRMLScalarVolumeNode
    method: str = MODEL
    scribbles: vtkMRMLSegmentationNode
    points: vtkMRMLMarkupsFiducialNode
    mask: vtkMRMLSegmentationNode
    point_radius: parameter(ClassicalRequest, "point_radius")
    smooth: parameter(ClassicalRequest, "smooth")
    side: parameter(ClassicalRequest, "side")
    levels: parameter(ClassicalRequest, "levels")
    range_low: float = 0.0
    range_high: float = 0.0
    multiplier: parameter(ClassicalRequest, "multiplier")
    rounds: parameter(ClassicalRequest, "rounds")
    start_radius: parameter(ClassicalRequest, "start_radius")
    edge_width: parameter(ClassicalRequest, "edge_width")
    balloon: parameter(ClassicalRequest, "balloon")
    curvature: parameter(ClassicalRequest, "curvature")
    iterations: parameter(ClassicalRequest, "iterations")
    smoothness: parameter(ClassicalRequest, "smoothness")
    connected_only: parameter(ClassicalRequest, "connected_only")
    trees: parameter(ClassicalRequest, "trees")
    model: str = "hippocampus"
    moreModels: list[str]
    outputSegmentation: vtkMRMLSegmentationNode
    uncertaintyMap: bool = False
    outputUncertainty: vtkMRMLScalarVolumeNode
    reference: vtkMRMLSegmentationNode
    device: parameter(SegmentRequest, "device")
    tta: parameter(SegmentRequest, "tta")
    mc_dropout: parameter(SegmentRequest, "mc_dropout")
    keep_largest: parameter(SegmentRequest, "keep_largest")
    ensemble: parameter(SegmentRequest, "ensemble")
    overlap: parameter(SegmentRequest, "overlap")
    seed: parameter(SegmentRequest, "seed")
    tolerance: parameter(EvaluateRequest, "tolerance")
    tileX: Annotated[int, WithinRange(0, 4096)] = 0
    tileY: Annotated[int, WithinRange(0, 4096)] = 0
    tileZ: Annotated[int, WithinRange(0, 4096)] = 0
    volumesTable: vtkMRMLTableNode
    metricsTable: vtkMRMLTableNode
    metricsChart: vtkMRMLPlotChartNode
    record: vtkMRMLTextNode
    trainFolder: str = ""
    trainPath: str = ""
    trainName: str = "my-model"
    network: parameter(TrainSegmentationRequest, "network")
    epochs: parameter(TrainSegmentationRequest, "epochs")
    hours: parameter(TrainSegmentationRequest, "hours")
    fold: parameter(TrainSegmentationRequest, "fold")
    folds: parameter(TrainSegmentationRequest, "folds")
    cohortPath: str = ""
    cohortOutput: str = ""
    workers: parameter(BatchSegmentRequest, "workers")
    overwrite: parameter(BatchSegmentRequest, "overwrite")


#
# MLISegmentationWidget
#


class MLISegmentationWidget(TrainingPanel, CohortPanel, ClassicalPanel, ModelChooser, MLIWidget):
    """The module's panel; what all panels share is in MLISlicerLib.widget."""

    REQUEST = SegmentRequest

    def makeLogic(self):
        return MLISegmentationLogic()

    def setupModule(self) -> None:
        """Fill the choosers and connect the widgets."""
        self._shownResult = None
        self.setupModels([self.ui.modelComboBox, self.ui.moreModelsComboBox])
        self.fillDevices(self.ui.deviceComboBox)
        self.setupClassical()
        self.setupTraining()
        self.setupCohort()
        for text, value in ((_("Mean of probabilities"), "mean"), (_("Majority vote"), "vote")):
            self.ui.ensembleComboBox.addItem(text, value)
        self.ui.ensembleComboBox.toolTip = tooltip(SegmentRequest, "ensemble")
        self.ui.toleranceSpinBox.toolTip = tooltip(EvaluateRequest, "tolerance")
        self.ui.showPlotButton.connect("clicked(bool)", self.onShowPlotButton)
        self.ui.showRecordButton.connect("clicked(bool)", self.onShowRecordButton)
        self.ui.uncertaintyThresholdSlider.connect("valueChanged(double)", self.onUncertaintyThresholdChanged)

    def connectors(self):
        return {
            "model": ChoiceConnector(self.ui.modelComboBox, _("{value} (not installed)")),
            "moreModels": CheckedConnector(self.ui.moreModelsComboBox),
            "device": ChoiceConnector(self.ui.deviceComboBox),
            "ensemble": ChoiceConnector(self.ui.ensembleComboBox),
            **self.classicalConnectors(),
            **self.trainingConnectors(),
        }

    def whatIsMissing(self) -> str:
        """What must still be chosen."""
        node = self._parameterNode
        if self.isClassical():
            return self.whatClassicalMisses()
        model = self.models.get(node.model)
        if not self.models:
            return _("No model is installed. Add one beside 'Model'.")
        if model is None:
            return _("The model '{name}' is not installed. Choose another, or add it.").format(name=node.model)
        volumes = self.logic.inputVolumes(node, len(model.channels))
        for channel, volume in zip(model.channels, volumes, strict=False):
            if volume is None:
                wanted = _("Choose an input volume.") if len(volumes) == 1 else _("Choose a volume for '{channel}'.")
                return wanted.format(channel=channel)
        if len(model.channels) > len(volumes):
            return _(
                "The model needs {count} images; this panel takes {limit}. Use the command line (mli segment)."
            ).format(count=len(model.channels), limit=len(volumes))
        if node.reference is not None and node.reference is node.outputSegmentation:
            return _("The result and the reference are the same segmentation. Choose another.")
        tile = [node.tileX, node.tileY, node.tileZ]
        if any(tile) and not all(tile):
            return _("Give all three sizes of the tile, or set all to automatic.")
        return ""

    def applyTooltip(self) -> str:
        return _("Segment the input volume. Slicer can be used meanwhile.")

    def jobSteps(self):
        """The job that Apply starts; asks before segments or a volume are replaced."""
        node = self._parameterNode
        if self.isClassical():
            install.ensure_for(self.moduleName, node.method)
            inputs = self.logic.classicalInputs(node)
        else:
            inputs = self.logic.inputs(node, len(self.models[node.model].channels))
        for output, name in ((inputs.segmentation, "segmentation"), (inputs.uncertainty_volume, "uncertainty_volume")):
            if output is not None and not self.askedToReplace(output):
                setattr(inputs, name, None)
        if inputs.segmentation is not None:
            inputs.previous = {
                "volumes": node.volumesTable,
                "record": node.record,
                "metrics": node.metricsTable,
                "chart": node.metricsChart,
            }
        self._jobParameterNode = node
        return segmentation.steps(inputs)

    def showResult(self, result) -> None:
        """Remember the result in the parameter set it was made with, and show it."""
        node = self._jobParameterNode
        with slicer.util.NodeModify(node):
            node.outputSegmentation = result.segmentation
            node.volumesTable = result.volumes
            node.metricsTable = result.metrics
            node.metricsChart = result.chart
            node.record = result.record
            if result.uncertainty is not None:
                node.outputUncertainty = result.uncertainty
        details = result.details
        lines = [_("Done in {seconds:.1f} s on {device}.").format(seconds=details["seconds"], device=details["device"])]
        self.say("\n".join([*lines, *details["warnings"]]))

    def onParametersChanged(self) -> None:
        """Show the channels and the card of the chosen model, and the result of this parameter set."""
        node = self._parameterNode
        model = None if self.isClassical() else self.models.get(node.model)
        self.showChannels(model)
        self.showModel(model)
        self.showClassical()
        self.ui.uncertaintySelector.enabled = node.uncertaintyMap
        self.ui.ensembleComboBox.enabled = bool(node.moreModels)
        self.showStoredResult()
        self.showTraining()
        self.showCohort()

    def onProgress(self, status) -> None:
        """Show where the job is; of a training the curves, of a cohort each case."""
        super().onProgress(status)
        self.onTrainingProgress(status)
        self.onCohortProgress(status)

    def showStoredResult(self) -> None:
        """Show the nodes of the latest result of this parameter set, if they are not shown already."""
        node = self._parameterNode
        result = (node.outputSegmentation, node.volumesTable, node.metricsTable, node.outputUncertainty)
        if result == self._shownResult:
            return
        self._shownResult = result
        segmentationNode, volumesTable, metricsTable, uncertainty = result
        self.ui.resultsCollapsibleButton.visible = volumesTable is not None
        if volumesTable is not None and segmentationNode is not None:
            self.ui.volumesLabel.text = _("Volumes in '{name}'").format(name=segmentationNode.GetName())
        self.showTable(self.ui.volumesTableView, volumesTable)
        for name in ("metricsLabel", "metricsTableView", "showPlotButton"):
            getattr(self.ui, name).visible = metricsTable is not None
        self.showTable(self.ui.metricsTableView, metricsTable)
        self.ui.show3DButton.setSegmentationNode(segmentationNode)
        self.showThreshold(self.ui.uncertaintyThresholdWidget, self.ui.uncertaintyThresholdSlider, uncertainty)

    def onUncertaintyThresholdChanged(self, value) -> None:
        if self._parameterNode is not None and self._parameterNode.outputUncertainty is not None:
            display.show_above(self._parameterNode.outputUncertainty, value)

    def onShowPlotButton(self, checked=False) -> None:
        display.show_plot(self._parameterNode.metricsChart)


#
# MLISegmentationLogic
#


class MLISegmentationLogic(SegmentationLogic):
    """
    Segments volumes without a widget, for scripts:

        logic = MLISegmentationLogic()
        result = logic.run([volume], model="hippocampus", uncertainty=True)
        result.segmentation, result.volumes, result.uncertainty ...

    The settings are those of MLILib.segmentation.requests.SegmentRequest.
    """

    PARAMETERS = MLISegmentationParameterNode

    def run(
        self,
        volumes,
        model="hippocampus",
        *,
        segmentationNode=None,
        uncertainty=False,
        reference=None,
        tolerance=1.0,
        inProcess=False,
        progress=None,
        **settings,
    ):
        """
        Segment and wait for the result; the GUI stays alive meanwhile.
        :param volumes: the image, or the channels of one in the model's order
        :param model: name, folder or zip file of a model, or a list of them for an ensemble
        :param segmentationNode: node that receives the segments, in place of those it holds; a new one when None
        :param uncertainty: also make an uncertainty map
        :param reference: segmentation to compare with
        :param inProcess: compute in this process, not in the worker
        :param progress: called with each MLISlicerLib.jobs.Status
        :param settings: further settings of MLILib.segmentation.requests.SegmentRequest
        :return: MLISlicerLib.segmentation.Result
        """
        inputs = segmentation.Inputs(
            volumes=list(volumes) if isinstance(volumes, (list, tuple)) else [volumes],
            settings={**settings, "model": [model] if isinstance(model, str) else list(model)},
            segmentation=segmentationNode,
            uncertainty=uncertainty,
            reference=reference,
            tolerance=tolerance,
        )
        return self.finish(segmentation.steps(inputs), inProcess, progress)

    def runClassical(
        self,
        volume,
        method,
        *,
        scribbles=None,
        points=None,
        mask=None,
        segmentationNode=None,
        reference=None,
        tolerance=1.0,
        inProcess=False,
        progress=None,
        **settings,
    ):
        """
        Segment with a method that needs no model, and wait for the result; the GUI stays alive meanwhile.
        :param volume: the image
        :param method: "otsu", "graph-cut" ...: one of MLILib.classical.requests.METHODS
        :param scribbles: segmentation with strokes; its segment "background" marks what is none of the others
        :param points: seeds as points
        :param mask: segmentation outside of which nothing is labelled
        :param settings: further settings of MLILib.classical.requests.ClassicalRequest
        :return: MLISlicerLib.segmentation.Result
        """
        inputs = segmentation.Inputs(
            volumes=[volume],
            settings=settings,
            segmentation=segmentationNode,
            reference=reference,
            tolerance=tolerance,
            start=classical.Start(method, scribbles, points, mask),
        )
        return self.finish(segmentation.steps(inputs), inProcess, progress)


#
# MLISegmentationTest
#


class MLISegmentationTest(ScriptedLoadableModuleTest):
    """Segments the sample image with the shipped model and looks at what arrives in the scene."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_sampleImage()
        self.setUp()
        self.test_classicalMethods()
        self.setUp()
        self.test_badInput()
        self.setUp()
        self.test_parametersAreSaved()

    def loadSample(self):
        """The sample image; skips where the packages are not installed."""
        missing = install.missing()
        if missing:
            raise unittest.SkipTest("packages are not installed: " + ", ".join(missing))
        self.delayDisplay("Loading the sample image")
        import SampleData

        registerSampleData()
        return SampleData.downloadSample("MNI152 right hippocampus")

    def test_sampleImage(self):
        """The shipped model finds both parts of the hippocampus, of a plausible size, on the image's grid."""
        if "hippocampus" not in models.known():
            raise unittest.SkipTest("the model hippocampus is not installed")
        volume = self.loadSample()
        self.delayDisplay("Segmenting")
        result = MLISegmentationLogic().run([volume], model="hippocampus", uncertainty=True, device="cpu")
        segments = result.segmentation.GetSegmentation()
        names = [segments.GetNthSegment(index).GetName() for index in range(segments.GetNumberOfSegments())]
        self.assertEqual(names, ["anterior", "posterior"])
        total = sum(float(result.volumes.GetCellText(row, 1)) for row in range(2))
        self.assertGreater(total, 1.5)  # ml: a hippocampus of an adult has about 2 to 5
        self.assertLess(total, 6.0)
        uncertainty = slicer.util.arrayFromVolume(result.uncertainty)
        self.assertEqual(uncertainty.shape, slicer.util.arrayFromVolume(volume).shape)
        self.assertGreaterEqual(uncertainty.min(), 0.0)
        self.assertIn('"task": "segment"', result.record.GetText())
        self.delayDisplay("Comparing with itself")
        again = MLISegmentationLogic().run([volume], reference=result.segmentation, device="cpu")
        dice = slicer.util.arrayFromTableColumn(again.metrics, "Dice")
        self.assertEqual([round(float(value), 6) for value in dice], [1.0, 1.0, 1.0])
        self.delayDisplay("Test passed")

    def test_classicalMethods(self):
        """A threshold parts bright from dark as its figures say, and a graph cut keeps to the scribbles."""
        volume = self.loadSample()
        voxels = slicer.util.arrayFromVolume(volume)
        self.delayDisplay("Finding a threshold")
        result = MLISegmentationLogic().runClassical(volume, "otsu")
        segment = result.segmentation.GetSegmentation().GetNthSegmentID(0)
        bright = slicer.util.arrayFromSegmentBinaryLabelmap(result.segmentation, segment, volume) > 0
        threshold = result.details["figures"]["thresholds"][0]
        self.assertGreaterEqual(voxels[bright].min(), threshold)
        self.assertLessEqual(voxels[~bright].max(), threshold)
        self.delayDisplay("Cutting between scribbles")
        scribbles = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "scribbles")
        scribbles.CreateDefaultDisplayNodes()
        scribbles.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        drawn = {"object": voxels > voxels.max() * 0.9, classical.BACKGROUND: voxels < voxels.max() * 0.1}
        for name, stroke in drawn.items():
            identifier = scribbles.GetSegmentation().AddEmptySegment("", name)
            slicer.util.updateSegmentBinaryLabelmapFromArray(stroke.astype("uint8"), scribbles, identifier, volume)
        cut = MLISegmentationLogic().runClassical(volume, "graph-cut", scribbles=scribbles)
        segments = cut.segmentation.GetSegmentation()
        self.assertEqual(segments.GetNumberOfSegments(), 1)
        self.assertEqual(segments.GetNthSegment(0).GetName(), "object")
        found = slicer.util.arrayFromSegmentBinaryLabelmap(cut.segmentation, segments.GetNthSegmentID(0), volume) > 0
        self.assertTrue(found[drawn["object"]].all())
        self.assertFalse(found[drawn[classical.BACKGROUND]].any())
        self.delayDisplay("Test passed")

    def test_badInput(self):
        """A volume without an image is refused in one sentence, and the scene stays as it was."""
        from MLILib.errors import BadInput

        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        before = slicer.mrmlScene.GetNumberOfNodes()
        with self.assertRaises(BadInput):
            MLISegmentationLogic().run([empty])
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), before)

    def test_parametersAreSaved(self):
        """Two parameter sets keep their own values, in the scene's nodes."""
        logic = MLISegmentationLogic()
        first = logic.getParameterNode()
        second = logic.wrapParameterNode(slicer.mrmlScene.AddNode(logic.createParameterNode()))
        first.overlap, second.overlap = 0.25, 0.75
        self.assertEqual(len(logic.getAllParameterNodes()), 2)
        self.assertEqual([logic.wrapParameterNode(node).overlap for node in logic.getAllParameterNodes()], [0.25, 0.75])

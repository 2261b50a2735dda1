import importlib.util
import pathlib
import sys
import unittest
from typing import Annotated, ClassVar

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
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
)

if importlib.util.find_spec("MLISlicerLib") is None:
    # Installed, the libraries lie beside this file; in the source tree beside its folder, where Slicer does not look.
    sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from MLILib.anomaly.requests import AnomalyRequest, TrainAnomalyRequest
from MLILib.files import sha256
from MLISlicerLib import anomaly, anomaly_sample, anomaly_training, install, models, training_job
from MLISlicerLib.anomaly_panel import AnomalyPanel
from MLISlicerLib.logic import MLILogic
from MLISlicerLib.model_chooser import ModelChooser
from MLISlicerLib.parameters import CheckedNodesConnector, ChoiceConnector, parameter
from MLISlicerLib.sample_files import sample_file
from MLISlicerLib.widget import MLIWidget

#
# MLIAnomalyGAN
#


class MLIAnomalyGAN(ScriptedLoadableModule):
    """Learn what normal looks like, show what is not: the module's name, place and help."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MLI AnomalyGAN")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["The Machine Learning for Imaging developers"]
        self.parent.helpText = _("""
Learns from normal images what is normal, maps how far a new image departs from it, and lists what departs most. Under
<i>Train</i> choose normal volumes of the scene, or a folder; samples and curves show how the model fares, and it can be
stopped with the best it has learned. Under <i>Detect</i> choose a volume, a model and the share of normal voxels that
may pass as findings. With known lesions the map is measured beside trivial baselines. Slicer can be used while a job
runs. For research, not for diagnosis.
<p>To try it, load <i>MNI152 hippocampi, one with a lesion</i> from the Sample Data module. How to use it, the methods
and their limits: <a href="https://github.com/MachineLearningForImaging/SlicerMachineLearningForImaging#mli-anomalygan">the
module's documentation</a>.</p>
""")
        self.parent.acknowledgementText = _("""
The methods are named with their authors in the module's documentation. The sample image is a part of the MNI152
template, copyright McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University.
""")
        slicer.app.connect("startupCompleted()", registerSampleData)


_SAMPLE = "MNI152_right_hippocampus_T1.nrrd"


def loadSample(source=None):
    """Put normal volumes and one with a known lesion into the scene; they are made from the bundled image."""
    return anomaly_sample.load(sample_file(__file__, _SAMPLE))


def registerSampleData():
    """Add the sample data, which are made of a file that comes with the extension, to the Sample Data module."""
    import SampleData

    file = sample_file(__file__, _SAMPLE)
    icons = pathlib.Path(__file__).resolve().parent / "Resources" / "Icons"
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="MLI AnomalyGAN",
        sampleName="MNI152 hippocampi, one with a lesion",
        uris=file.as_uri(),
        fileNames=_SAMPLE,
        checksums=f"SHA256:{sha256(file)}",
        nodeNames="hippocampus",
        customDownloader=loadSample,
        thumbnailFileName=str(icons / "MLIAnomalyGAN.png"),
    )


#
# MLIAnomalyGANParameterNode
#


@parameterNodeWrapper
class MLIAnomalyGANParameterNode:
    """
    The choices made in the module, saved with the scene. Settings of the tasks have the names they have there.

    inputVolume - The image to look at; model - name of the model of normal; method - how it scores, "" for its own.
    rate - Share of a normal image's voxels that would be findings, percent.
    mask, reference - Segmentations of the foreground, and of known lesions to measure with.
    outputMap, outputFindings - Receive the result; new ones are made when none is chosen.
    searched, reconstruction ... record - The volume and the nodes of the latest result; summary is what is said of it.
    source - "scene": normals are volumes; "files": trainPath is a folder or file.
    modelType ... filters - Settings of the training; trainName - what the model is called.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    model: str = ""
    method: str = ""
    rate: Annotated[float, WithinRange(0.0, 100.0)] = 1.0
    mask: vtkMRMLSegmentationNode
    reference: vtkMRMLSegmentationNode
    outputMap: vtkMRMLScalarVolumeNode
    outputFindings: vtkMRMLSegmentationNode
    median: parameter(AnomalyRequest, "median")
    erode: parameter(AnomalyRequest, "erode")
    smallest: parameter(AnomalyRequest, "smallest")
    overlap: parameter(AnomalyRequest, "overlap")
    search_steps: parameter(AnomalyRequest, "search_steps")
    device: parameter(AnomalyRequest, "device")
    seed: parameter(AnomalyRequest, "seed")
    searched: vtkMRMLScalarVolumeNode
    reconstruction: vtkMRMLScalarVolumeNode
    findingsTable: vtkMRMLTableNode
    slicesTable: vtkMRMLTableNode
    slicesChart: vtkMRMLPlotChartNode
    measuredTable: vtkMRMLTableNode
    record: vtkMRMLTextNode
    summary: str = ""
    source: str = "scene"
    normals: list[vtkMRMLScalarVolumeNode]
    trainPath: str = ""
    modelType: parameter(TrainAnomalyRequest, "model")
    plane: parameter(TrainAnomalyRequest, "plane")
    size: parameter(TrainAnomalyRequest, "size")
    steps: parameter(TrainAnomalyRequest, "steps")
    latent: parameter(TrainAnomalyRequest, "latent")
    filters: parameter(TrainAnomalyRequest, "filters")
    trainName: str = "my-normal"


#
# MLIAnomalyGANWidget
#


class MLIAnomalyGANWidget(AnomalyPanel, ModelChooser, MLIWidget):
    """The module's panel; what it shows is in MLISlicerLib.anomaly_panel."""

    REQUEST = AnomalyRequest
    MODEL_TASK = "anomaly"
    CHOSEN = ("model",)

    def makeLogic(self):
        return MLIAnomalyGANLogic()

    def setupModule(self) -> None:
        """Fill the choosers and connect the widgets."""
        self.setupModels([self.ui.modelComboBox])
        self.fillDevices(self.ui.deviceComboBox)
        self.setupPanel()
        self.ui.tabWidget.connect("currentChanged(int)", lambda _index: self.updateApply())

    def connectors(self):
        return {
            "model": ChoiceConnector(self.ui.modelComboBox, _("{value} (not installed)")),
            "method": ChoiceConnector(self.ui.methodComboBox),
            "device": ChoiceConnector(self.ui.deviceComboBox),
            "source": ChoiceConnector(self.ui.sourceComboBox),
            "normals": CheckedNodesConnector(self.ui.normalsSelector),
            "modelType": ChoiceConnector(self.ui.modelTypeComboBox),
            "plane": ChoiceConnector(self.ui.planeComboBox),
        }

    def chooseInputs(self) -> None:
        """Take the first volume and the first model, where none is chosen."""
        super().chooseInputs()
        if not self._parameterNode.model and self.models:
            self._parameterNode.model = next(iter(self.models))

    def whatIsMissing(self) -> str:
        """What must still be chosen."""
        node = self._parameterNode
        if not self.models:
            return _("No model of what is normal is installed. Train one, or add one beside 'Model'.")
        if node.model not in self.models:
            return _("The model '{name}' is not installed. Choose another, or add it.").format(name=node.model)
        if node.inputVolume is None:
            return _("Choose an input volume.")
        if node.outputMap is not None and node.outputMap is node.inputVolume:
            return _("The map would replace the image. Choose another volume for it.")
        if node.outputFindings is not None and node.outputFindings in (node.mask, node.reference):
            return _("The findings would replace the foreground or the known lesions. Choose another segmentation.")
        if node.median % 2 == 0:
            return _("The median filter has a centre: give it an odd number of voxels.")
        return ""

    def applyTooltip(self) -> str:
        return _("Look for what is not normal. Slicer can be used meanwhile.")

    def updateApply(self) -> None:
        """Apply, and the button Train, say what they do or what is missing; each is seen where it belongs."""
        super().updateApply()
        detects = self.ui.tabWidget.currentIndex == 0
        self.ui.detectWidget.visible, self.ui.trainWidget.visible = detects, not detects
        self.ui.applyButton.visible = self.job is not None or detects
        self.showTraining()

    def jobSteps(self):
        """The job that Apply starts; asks before a map or findings are replaced."""
        node = self._parameterNode
        inputs = self.logic.inputs(node)
        for name in ("map", "findings"):
            output = getattr(inputs, name)
            if output is not None and not self.askedToReplace(output):
                setattr(inputs, name, None)
        self._jobParameterNode = node
        return anomaly.steps(inputs)

    def showResult(self, result) -> None:
        """Remember the result in the parameter set it was made with, and show it."""
        self.logic.remember(self._jobParameterNode, result)
        self.say(_("Done in {seconds:.1f} s on {device}.").format(**result.details))

    def onProgress(self, status) -> None:
        """Show where the job is; of a training the curves and samples, too."""
        super().onProgress(status)
        self.onTrainingProgress(status)

    def onUnfolded(self, collapsed: bool) -> None:
        """A part of the panel was opened."""
        super().onUnfolded(collapsed)
        if not collapsed:
            self.showStoredResult(again=True)

    def onParametersChanged(self) -> None:
        """Show what belongs to the choices, and the result of this parameter set."""
        model = self.models.get(self._parameterNode.model)
        self.showModel(model)
        self.showMethods(model)
        self.showTraining()
        self.showStoredResult()


#
# MLIAnomalyGANLogic
#


class MLIAnomalyGANLogic(MLILogic):
    """
    Trains models of normal and looks for what is not without a widget, for scripts:

        logic = MLIAnomalyGANLogic()
        logic.train([volume, volume, ...], name="my-normal", model="ae", steps=2000)
        result = logic.run(volume, "my-normal")
        result.map, result.findings, result.table ...

    The settings are those of MLILib.anomaly.requests.
    """

    PARAMETERS = MLIAnomalyGANParameterNode
    #: Nodes of a result: name in anomaly.Result and in the parameter set.
    RESULTS: ClassVar = {
        "reconstruction": "reconstruction",
        "table": "findingsTable",
        "slices": "slicesTable",
        "chart": "slicesChart",
        "measured": "measuredTable",
        "record": "record",
    }
    SETTINGS = ("model", "method", "median", "erode", "smallest", "overlap", "search_steps", "device", "seed")

    def normals(self, parameterNode) -> list:
        """The chosen normal volumes that are still in the scene."""
        return [node for node in parameterNode.normals if node is not None]

    def inputs(self, parameterNode):
        """What a parameter set asks for."""
        node = parameterNode
        settings = {name: getattr(node, name) for name in self.SETTINGS}
        return anomaly.Inputs(
            volume=node.inputVolume,
            settings={**settings, "threshold": 100.0 - node.rate},
            mask=node.mask,
            reference=node.reference,
            map=node.outputMap,
            findings=node.outputFindings,
            previous={name: getattr(node, place) for name, place in self.RESULTS.items()},
        )

    def remember(self, parameterNode, result) -> None:
        """Put the nodes of a result into the parameter set, and what the panel says of it."""
        node = parameterNode
        with slicer.util.NodeModify(node):
            for name, place in self.RESULTS.items():
                setattr(node, place, getattr(result, name))
            node.searched = node.inputVolume
            node.outputMap = result.map
            node.outputFindings = result.findings
            node.summary = anomaly.summary(result.details)

    def trainingInputs(self, parameterNode, replace: bool):
        """What a training is asked for."""
        node = parameterNode
        names = ("plane", "size", "steps", "latent", "filters", "device", "seed")
        settings = {name: getattr(node, name) for name in names}
        scene = node.source == "scene"
        return anomaly_training.Inputs(
            name=node.trainName,
            volumes=self.normals(node) if scene else [],
            dataset="" if scene else node.trainPath,
            settings={**settings, "model": node.modelType},
            replace=replace,
        )

    def run(
        self, volume, model, *, mask=None, reference=None, mapNode=None, inProcess=False, progress=None, **settings
    ):
        """
        Look for what is not normal, and wait for the result; the GUI stays alive meanwhile.
        :param model: name, folder or zip file of a model
        :param mask: segmentation of the foreground
        :param reference: segmentation of known lesions, to measure the map with
        :param mapNode: volume that receives the map; a new one when None
        :param inProcess: compute in this process, not in the worker
        :param progress: called with each MLISlicerLib.jobs.Status
        :param settings: further settings of MLILib.anomaly.requests.AnomalyRequest
        :return: MLISlicerLib.anomaly.Result
        """
        inputs = anomaly.Inputs(
            volume=volume, settings={"model": model, **settings}, mask=mask, reference=reference, map=mapNode
        )
        return self.finish(anomaly.steps(inputs), inProcess, progress)

    def train(self, volumes, *, name, replace=False, inProcess=False, progress=None, **settings):
        """
        Train a model of normal, and wait for it.
        :param volumes: normal volumes of the scene, or the path of a folder, a dataset.json or an .npz
        :param name: of the model
        :param replace: whether a model of yours with that name is replaced
        :param settings: further settings of MLILib.anomaly.requests.TrainAnomalyRequest
        :return: MLISlicerLib.training_job.Trained
        """
        files = isinstance(volumes, (str, pathlib.Path))
        inputs = anomaly_training.Inputs(
            name=name,
            volumes=[] if files else list(volumes),
            dataset=str(volumes) if files else "",
            settings=settings,
            replace=replace,
        )
        return self.finish(anomaly_training.steps(inputs), inProcess, progress)


#
# MLIAnomalyGANTest
#


class MLIAnomalyGANTest(ScriptedLoadableModuleTest):
    """Learns the normal sample volumes in a few steps, and looks for the lesion that is known."""

    NAME = "self-test-of-normal"

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        for test in (self.test_lesion, self.test_badInput, self.test_parametersAreSaved):
            self.setUp()
            test()

    def test_lesion(self):
        """The lesion departs more from normal than what lies around it, and is measured."""
        missing = install.missing()
        if missing:
            raise unittest.SkipTest("packages are not installed: " + ", ".join(missing))
        self.delayDisplay("Loading the sample volumes")
        sample = loadSample()
        self.delayDisplay("Learning what is normal")
        logic = MLIAnomalyGANLogic()
        settings = {"model": "ae", "plane": "axial", "size": 32, "steps": 60, "latent": 16, "filters": 8, "batch": 16}
        trained = logic.train(sample.normals, name=self.NAME, replace=self.NAME in models.known("anomaly"), **settings)
        try:
            self.assertGreater(trained.details["images"], 100)
            self.delayDisplay("Looking for the lesion")
            result = logic.run(sample.volume, self.NAME, reference=sample.lesion, device="cpu")
        finally:
            self.forget()
        voxels = slicer.util.arrayFromVolume(result.map)
        self.assertEqual(voxels.shape, slicer.util.arrayFromVolume(sample.volume).shape)
        segment = sample.lesion.GetSegmentation().GetNthSegmentID(0)
        inside = slicer.util.arrayFromSegmentBinaryLabelmap(sample.lesion, segment, sample.volume) > 0
        self.assertGreater(voxels[inside].mean(), 1.5 * voxels[~inside].mean())
        self.assertEqual(result.table.GetNumberOfRows(), len(result.details["findings_table"]))
        self.assertEqual(result.findings.GetSegmentation().GetNumberOfSegments(), result.table.GetNumberOfRows())
        self.assertGreater(result.measured.GetNumberOfRows(), 1)  # the baselines stand beside
        self.assertEqual(result.slices.GetNumberOfRows(), voxels.shape[0])
        self.assertIn('"task": "anomaly"', result.record.GetText())
        self.delayDisplay("Test passed")

    def forget(self):
        """Removes the model of this test from the user's."""
        import shutil

        from MLILib import folders

        shutil.rmtree(folders.user() / self.NAME, ignore_errors=True)
        shutil.rmtree(training_job.folder_of(anomaly_training.TASK, self.NAME), ignore_errors=True)

    def test_badInput(self):
        """A volume without an image and a model without a name are refused; the scene stays as it was."""
        from MLILib.errors import BadInput

        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        before = slicer.mrmlScene.GetNumberOfNodes()
        with self.assertRaises(BadInput):
            MLIAnomalyGANLogic().run(empty, "any")
        with self.assertRaises(BadInput):
            MLIAnomalyGANLogic().train([empty], name="")
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), before)

    def test_parametersAreSaved(self):
        """Two parameter sets keep their own values, in the scene's nodes."""
        logic = MLIAnomalyGANLogic()
        first = logic.getParameterNode()
        second = logic.wrapParameterNode(slicer.mrmlScene.AddNode(logic.createParameterNode()))
        first.modelType, second.modelType = "vae", "ae"
        normal = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "normal")
        first.normals = [normal]
        sets = [logic.wrapParameterNode(node) for node in logic.getAllParameterNodes()]
        self.assertEqual([node.modelType for node in sets], ["vae", "ae"])
        self.assertEqual([list(node.normals) for node in sets], [[normal], []])

"""MLI AnomalyGAN clicked through with the real worker: train, stop, detect, findings, side by side, errors, reload."""

import json
from pathlib import Path

import numpy as np
import pytest
import slicer

pytest.importorskip("torch", reason="torch is not installed")

from clicks import apply, choose, errors, finish, temporary_folders
from scenes import add_volume, scene_state

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MLIModules" / "AnomalyGAN" / "MLIAnomalyGAN.py"
#: Seconds: the first job of a worker imports torch, which takes long on a busy machine.
PATIENCE = 240


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """A folder for what trainings keep."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MLI_CACHE", str(folder))
    return folder


@pytest.fixture
def panel(user_models, cache, open_panel):
    """The panel in an empty scene; it computes on the CPU."""
    from MLISlicerLib import install

    if install.missing():
        pytest.skip("packages are not installed: " + ", ".join(install.missing()))
    made = open_panel(MODULE)
    made._parameterNode.device = "cpu"
    return made


def train(panel, standin, sample, name, steps=40):
    """Fill in the tab Train for a model that learns in seconds."""
    panel.ui.tabWidget.currentIndex = 1
    node = panel._parameterNode
    node.normals = list(sample.normals)
    choose(panel.ui.modelTypeComboBox, "ae")
    node.size, node.steps, node.latent, node.filters, node.trainName = 32, steps, 16, 8, name
    panel.ui.trainButton.click()


@pytest.fixture
def sample(panel):
    import sys

    return sys.modules["MLIAnomalyGAN"].loadSample()


def test_train_then_detect(panel, standin, sample, pictures, tmp_path):
    """Everything from normal volumes of the scene to findings that are gone to."""
    assert panel.ui.trainWidget.isHidden()
    panel.ui.tabWidget.currentIndex = 1
    assert not panel.ui.trainWidget.isHidden()
    assert panel.ui.detectWidget.isHidden()
    assert panel.ui.applyButton.isHidden()
    assert panel.ui.trainButton.toolTip == "Choose the normal volumes to learn from."
    train(panel, standin, sample, "learned")
    assert not panel.ui.applyButton.isHidden()  # it is Cancel
    assert not panel.ui.stopTrainingButton.isHidden()
    finish(panel, standin, PATIENCE)
    assert errors(standin) == []
    assert "images" in panel.ui.trainResultBrowser.plainText
    assert panel._points
    panel.ui.trainPlotButton.click()
    standin.picture.grab(panel, pictures / "MLIAnomalyGAN_train.png", width=420)
    node = panel._parameterNode
    assert node.model == "learned"
    panel.ui.tabWidget.currentIndex = 0
    node.inputVolume, node.reference = sample.volume, sample.lesion
    assert panel.ui.methodComboBox.findData("reconstruction") > 0
    panel.ui.rateSpinBox.value = 5.0
    apply(panel, standin, PATIENCE)
    assert errors(standin) == []
    voxels = slicer.util.arrayFromVolume(node.outputMap)
    assert voxels.shape == slicer.util.arrayFromVolume(sample.volume).shape
    asked = json.loads(node.record.GetText())["settings"]
    assert asked["threshold"] == 95.0
    assert asked["image"] == "with a lesion.nrrd"
    assert asked["reference"] == "known lesion.nrrd"
    assert node.slicesTable.GetNumberOfRows() == voxels.shape[0]
    assert node.findingsTable.GetNumberOfRows() == node.outputFindings.GetSegmentation().GetNumberOfSegments()
    assert node.measuredTable.GetCellText(0, 0) == "combined"
    assert node.measuredTable.GetNumberOfRows() > 1  # trivial baselines stand beside
    if node.findingsTable.GetNumberOfRows():
        panel.onFindingClicked(panel.ui.findingsTableView.model().index(0, 0))
        centre = [float(node.findingsTable.GetCellText(0, column)) for column in (4, 5, 6)]
        red = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode().GetSliceToRAS()
        np.testing.assert_allclose([red.GetElement(axis, 3) for axis in range(3)], centre, atol=0.1)
    display = node.outputMap.GetDisplayNode()
    panel.ui.thresholdSlider.value = 0.5 * display.GetWindowLevelMax()
    assert display.GetLowerThreshold() == pytest.approx(0.5 * display.GetWindowLevelMax(), rel=0.01)
    panel.ui.sideBySideButton.click()
    views = {one.GetLayoutName(): one for one in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")}
    assert views["MLI1"].GetBackgroundVolumeID() == sample.volume.GetID()
    assert views["MLI2"].GetBackgroundVolumeID() == node.reconstruction.GetID()
    assert views["MLI3"].GetForegroundVolumeID() == node.outputMap.GetID()
    assert views["MLI3"].GetLinkedControl()
    panel.ui.sideBySideButton.click()
    panel.ui.showSlicesButton.click()
    selection = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSelectionNode")
    assert selection.GetActivePlotChartID() == node.slicesChart.GetID()
    assert temporary_folders() == []
    standin.check_slots()
    standin.picture.grab(panel, pictures / "MLIAnomalyGAN_result.png", width=420)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    assert panel.ui.resultsCollapsibleButton.isHidden()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    standin.check_slots()
    assert panel._parameterNode.rate == 5.0
    assert "score" in panel.ui.foundBrowser.plainText


def test_a_training_is_stopped_with_the_best(panel, standin, sample, cache):
    train(panel, standin, sample, "stopped", steps=100000)
    standin.process_events_until(lambda: panel.job is None or "Training" in panel.job.status.stage, PATIENCE)
    standin.process_events_until(lambda: panel.job is None or (panel.job.status.fraction or 0) > 0, PATIENCE)
    panel.ui.stopTrainingButton.click()
    finish(panel, standin, PATIENCE)
    assert errors(standin) == []
    assert panel._parameterNode.model == "stopped"
    assert not list((cache / "training" / "train-anomaly").glob("*"))


def test_what_is_wrong_is_told_before(panel, sample):
    panel.ui.tabWidget.currentIndex = 1
    node = panel._parameterNode
    node.normals = [sample.volume]
    for name in ("a/b", "two words"):  # neither would be taken after hours of training
        node.trainName = name
        assert "A model's name holds letters" in panel.ui.trainButton.toolTip
    choose(panel.ui.sourceComboBox, "files")
    assert "Choose a folder of normal images" in panel.ui.trainButton.toolTip
    node.trainPath = "/nowhere/normal"
    assert "/nowhere/normal does not exist" in panel.ui.trainButton.toolTip
    panel.ui.tabWidget.currentIndex = 0
    node.model = "lost"
    assert "'lost' is not installed" in panel.ui.applyButton.toolTip
    assert not panel.ui.applyButton.enabled


def test_a_name_that_any_model_of_the_user_has_is_asked_about(panel, model_folder, sample, monkeypatch):
    """A segmentation model, which this panel does not list, would be replaced in the end: whoever says no keeps it."""
    asked = []
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda text, *_: asked.append(text))  # answers no
    panel.ui.tabWidget.currentIndex = 1
    panel._parameterNode.normals = [sample.volume]
    panel._parameterNode.trainName = "tiny"
    assert panel.ui.modelComboBox.findData("tiny") == -1
    panel.ui.trainButton.click()
    assert asked == ["You already have a model called 'tiny'. Replace it?"]
    assert panel.job is None


def test_too_few_images_are_refused(panel, standin):
    """In one dialog that says how many there are; the scene stays as it was."""
    node = panel._parameterNode
    node.normals = [add_volume("one", size=(20, 18, 2))]
    before = scene_state()
    node.trainName = "too-few"
    panel.ui.tabWidget.currentIndex = 1
    panel.ui.trainButton.click()
    finish(panel, standin, PATIENCE)
    assert len(errors(standin)) == 1
    assert scene_state() == before
    assert temporary_folders() == []

"""Training in the panel of MLI Segmentation: cases of the scene, curves and pictures, stop, go on, the new model."""

from pathlib import Path

import numpy as np
import pytest
import slicer

pytest.importorskip("torch", reason="torch is not installed")

import clicks
from scenes import add_volume

PATIENCE = 300


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, in this process and in a worker that is started for it."""
    from MLISlicerLib import jobs

    monkeypatch.setenv("MLI_CACHE", str(tmp_path / "cache"))
    jobs.shared_runner().close()
    yield tmp_path / "cache"
    jobs.shared_runner().close()


def add_cases(count=6, folder="Hearts"):
    """Volumes with a ball and its shell, segmented, in a folder of the subject hierarchy."""
    from MLISlicerLib import fusion_atlases, nodes

    rng = np.random.default_rng(0)
    members = []
    for number in range(count):
        grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (18, 20, 22)], indexing="ij"))
        distance = np.sqrt(((grid - rng.uniform(-0.2, 0.2, (3, 1, 1, 1))) ** 2).sum(axis=0))
        labels = (distance < 0.7).astype(np.uint8) + (distance < 0.4)
        image = (100.0 * labels + rng.normal(0, 10, labels.shape)).astype(np.float32)
        volume = add_volume(f"case {number}", array=image)
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"case {number} labels")
        scalars = nodes.Scalars()
        scalars.allocate(labels.dtype, labels.size)[...] = labels.ravel()
        named = [
            {"value": v, "name": n, "color": [1.0, 0.0, 0.0], "terminology": ""} for v, n in ((1, "shell"), (2, "core"))
        ]
        nodes.fill_segmentation(segmentation, [scalars], named, volume)
        members += [volume, segmentation]
    return fusion_atlases.make_folder(folder, members)


def open_section(widget):
    widget.ui.trainingCollapsibleButton.collapsed = False


class TestBeforeATraining:
    def test_the_scene_offers_its_cases(self, widget):
        folder = add_cases()
        open_section(widget)
        combo = widget.ui.trainFolderComboBox
        assert [combo.itemText(i) for i in range(combo.count)] == [
            "Select the cases", "Hearts (6 cases)", "A file, dataset.json",
        ]  # fmt: skip
        assert not widget.ui.trainButton.enabled
        assert widget.ui.trainButton.toolTip == "Choose the cases to learn from."
        clicks.choose(combo, folder)
        assert "6 cases:" in widget.ui.trainFoundBrowser.plainText
        assert "core" in widget.ui.trainFoundBrowser.plainText
        assert widget.ui.trainButton.enabled
        assert widget.ui.trainButton.text == "Train"
        assert widget.ui.trainPathEdit.isHidden()

    def test_what_cannot_be_trained_is_said(self, widget, model_folder):
        few = add_cases(2, "Few")
        open_section(widget)
        clicks.choose(widget.ui.trainFolderComboBox, few)
        assert "4 or more" in widget.ui.trainButton.toolTip
        clicks.choose(widget.ui.trainFolderComboBox, "file")
        assert not widget.ui.trainPathEdit.isHidden()
        assert widget.ui.trainButton.toolTip == "Choose the file that lists the cases."
        for name, words in (("", "Give the model a name"), ("a/b", "letters, digits"), ("hippocampus", "shipped")):
            widget._parameterNode.trainFolder = add_cases(4, f"For {name or 'none'}")
            widget._parameterNode.trainName = name
            assert words in widget.ui.trainButton.toolTip
            assert not widget.ui.trainButton.enabled

    def test_settings_are_the_tasks(self, widget):
        from MLILib.segmentation.requests import TrainSegmentationRequest

        settings = {s.name: s for s in TrainSegmentationRequest.settings()}
        for name in ("network", "epochs", "hours", "fold", "folds"):
            assert getattr(widget._parameterNode, name) == settings[name].default
        combo = widget.ui.networkComboBox
        assert tuple(combo.itemData(i) for i in range(combo.count)) == settings["network"].choices
        assert settings["fold"].help in widget.ui.foldSpinBox.toolTip


class TestTraining:
    def test_cancel_go_on_and_stop(self, widget, standin, pictures, cache, model_folder):
        """One training through all that can happen to it; its worker's start takes seconds."""
        folder = add_cases()
        open_section(widget)
        node = widget._parameterNode
        clicks.choose(widget.ui.trainFolderComboBox, folder)
        node.trainName, node.epochs, node.folds, node.device = "ball", 1000, 3, "cpu"
        standin.picture.grab(widget, pictures / "MLISegmentation_train_ready.png", width=420)
        kinds = ("ScalarVolume", "Segmentation", "PlotChart", "Table", "PlotSeries", "Text")
        before = {kind: slicer.mrmlScene.GetNumberOfNodesByClass(f"vtkMRML{kind}Node") for kind in kinds}
        widget.ui.trainButton.click()
        assert not widget.ui.trainButton.enabled
        checkpoint = cache / "training" / "train-segmentation" / "ball" / "training" / "checkpoint.pt"
        standin.process_events_until(lambda: checkpoint.is_file() or widget.job is None, PATIENCE)
        standin.process_events_until(lambda: not widget.ui.trainSamplesLabel.isHidden() or widget.job is None, PATIENCE)
        assert clicks.errors(standin) == []
        assert not widget.ui.trainCurveLabel.isHidden()
        widget.ui.trainPlotButton.click()
        chart = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLPlotChartNode")
        names = [chart.GetNthPlotSeriesNode(i).GetName() for i in range(chart.GetNumberOfPlotSeriesNodes())]
        assert names == ["Training loss", "Validation Dice"]
        widget.ui.applyButton.click()  # which says Cancel
        clicks.finish(widget, standin)
        assert "Go on training" in widget.ui.statusLabel.text
        assert widget.ui.trainButton.text == "Go on training"
        assert checkpoint.is_file()
        assert clicks.temporary_folders() == []

        widget.ui.trainButton.click()
        points = len(widget._points)
        standin.process_events_until(lambda: len(widget._points) > points + 8 or widget.job is None, PATIENCE)
        assert clicks.errors(standin) == []
        assert min(p.iteration for p in widget._points) > 1, "it did not go on"
        standin.picture.grab(widget, pictures / "MLISegmentation_training.png", width=420)
        widget.ui.stopTrainingButton.click()
        clicks.finish(widget, standin, PATIENCE)
        assert clicks.errors(standin) == []
        assert node.model == "ball"
        assert widget.ui.modelComboBox.findData("ball") >= 0
        assert (model_folder / "ball" / "models" / "model.pt").is_file()
        assert not checkpoint.parent.exists()
        assert "Dice" in widget.ui.trainResultBrowser.plainText
        standin.picture.grab(widget, pictures / "MLISegmentation_trained.png", width=420)
        counts = {kind: slicer.mrmlScene.GetNumberOfNodesByClass(f"vtkMRML{kind}Node") for kind in before}
        assert counts == {**before, "PlotChart": 1, "Table": 1, "PlotSeries": 2}

        volume = slicer.util.getNode("case 0")
        node.inputVolume = volume
        clicks.apply(widget, standin, PATIENCE)
        assert clicks.errors(standin) == []
        segments = node.outputSegmentation.GetSegmentation()
        assert {segments.GetNthSegment(i).GetName() for i in range(segments.GetNumberOfSegments())} == {"shell", "core"}

    def test_a_bad_file_is_told_in_a_dialog(self, widget, standin, tmp_path, cache):
        (tmp_path / "dataset.json").write_text("{}", encoding="utf-8")
        open_section(widget)
        node = widget._parameterNode
        node.trainFolder, node.trainPath, node.trainName = "file", str(tmp_path / "dataset.json"), "none"
        assert widget.ui.trainButton.enabled
        widget.ui.trainButton.click()
        clicks.finish(widget, standin, PATIENCE)
        assert "has no 'labels'" in clicks.errors(standin)[0]
        assert not Path(cache / "training" / "train-segmentation" / "none" / "models").exists()
        assert widget.ui.trainButton.text == "Train"

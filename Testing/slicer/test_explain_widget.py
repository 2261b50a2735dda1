"""MLI Explainability clicked through: choices, layers, errors, Cancel, reload.

These tests and those of the map, the belief and the attack run with a worker that answers without computing, so that
they know what comes, and are quick; the real one is in test_explain_worker.py and in the self-test.
"""

import json
import os

import numpy as np
import pytest
import slicer
from clicks import apply, cancel_at_once, choose, errors, finish, temporary_folders
from explain_panel import add_point, composite, ready
from scenes import add_segmentation, scene_state


@pytest.fixture
def panel(explain_panel):
    return explain_panel


class TestBeforeAJob:
    def test_apply_says_what_is_missing(self, panel):
        assert panel.ui.applyButton.toolTip == "Choose an input volume."
        volume = ready(panel)
        assert panel._parameterNode.inputVolume is volume
        assert panel.ui.applyButton.enabled
        choose(panel.ui.whereComboBox, "point")
        assert "Press 'Place'" in panel.ui.applyButton.toolTip
        assert not panel.ui.beliefButton.enabled
        panel._parameterNode.point = add_point()
        assert "Press 'Place'" in panel.ui.applyButton.toolTip
        panel._parameterNode.point.AddControlPoint(1.0, 2.0, 3.0)
        assert panel.ui.applyButton.enabled
        choose(panel.ui.whereComboBox, "region")
        assert "Choose the segment" in panel.ui.applyButton.toolTip
        choose(panel.ui.whereComboBox, "everywhere")
        choose(panel.ui.methodComboBox, "ablation-regions")
        assert "segments are taken away" in panel.ui.applyButton.toolTip
        panel._parameterNode.regions = add_segmentation("parts", volume)
        assert panel.ui.applyButton.enabled
        panel._parameterNode.compare = ["gradient", "smoothgrad", "occlusion", "deconvnet"]
        assert panel.ui.applyButton.toolTip == "Choose at most three methods to compare with."
        panel._parameterNode.compare = []
        panel._parameterNode.outputMap = volume
        assert "would replace the image" in panel.ui.applyButton.toolTip
        panel._parameterNode.model = "lost"
        assert "'lost' is not installed" in panel.ui.applyButton.toolTip

    def test_the_labels_of_the_model_can_be_chosen(self, panel):
        ready(panel)
        box = panel.ui.targetComboBox
        assert [box.itemText(n) for n in range(box.count)][1:] == ["background", "anterior", "posterior"]
        assert panel.ui.aimComboBox.findData("posterior") >= 0
        assert panel.ui.whereComboBox.findData("region") >= 0

    def test_what_the_next_model_lacks_is_not_asked_of_it(self, panel, model_folder):
        from tiny_bundle import write_tiny_bundle

        write_tiny_bundle(model_folder / "others", labels=("left", "right"))
        panel.fillModels()
        node = panel._parameterNode
        node.target = node.aim = "anterior"
        node.layer = "decoder.conv"
        choose(panel.ui.modelComboBox, "others")
        assert (node.target, node.aim, node.layer) == ("", "", "")
        assert panel.ui.targetComboBox.findData("left") >= 0
        assert panel.ui.targetComboBox.findData("anterior") < 0

    def test_each_method_says_what_it_shows(self, panel):
        from MLILib.explanation.methods import METHODS

        for name, method in METHODS.items():
            choose(panel.ui.methodComboBox, name)
            assert panel.ui.methodBrowser.plainText == f"{method.shows} {method.source}"
            assert panel.ui.layerComboBox.isHidden() != method.layer
            assert panel.ui.targetComboBox.enabled == method.target

    def test_only_settings_of_the_chosen_methods_are_shown(self, panel):
        panel.ui.advancedCollapsibleButton.collapsed = False
        for method, shown in {
            "gradient": set(),
            "smoothgrad": {"samples", "noise"},
            "occlusion": {"occlusionWindow", "occlusionStride"},
            "deepdream": {"steps", "unit", "octaves", "stepSize"},
        }.items():
            choose(panel.ui.methodComboBox, method)
            names = ("steps", "samples", "noise", "occlusionWindow", "occlusionStride", "unit", "octaves", "stepSize")
            assert {name for name in names if not getattr(panel.ui, f"{name}SpinBox").isHidden()} == shown
        panel._parameterNode.compare = ["smoothgrad"]
        assert not panel.ui.samplesSpinBox.isHidden()
        choose(panel.ui.baselineComboBox, "zero")
        assert panel.ui.blurSpinBox.isHidden()
        choose(panel.ui.baselineComboBox, "blur")
        assert not panel.ui.blurSpinBox.isHidden()

    def test_the_badge_is_that_of_the_models_last_check(self, panel, model_folder):
        assert panel.ui.badgeLabel.text == "not tested"
        docs = model_folder / "tiny" / "docs"
        told = {
            "model": {"sha256": "0" * 64},
            "methods": [
                {"method": "integrated-gradients", "badge": "reacts to the model"},
                {"method": "guided-backpropagation", "badge": "edge detector"},
            ],
        }
        (docs / "explain_check.json").write_text(json.dumps(told), encoding="utf-8")
        try:
            choose(panel.ui.methodComboBox, "guided-backpropagation")
            assert panel.ui.badgeLabel.text == "edge detector"
            choose(panel.ui.methodComboBox, "integrated-gradients")
            assert panel.ui.badgeLabel.text == "reacts to the model"
            choose(panel.ui.methodComboBox, "occlusion")
            assert panel.ui.badgeLabel.text == "not tested"
        finally:
            (docs / "explain_check.json").unlink()

    def test_the_point_that_is_in_the_scene_is_taken(self, panel):
        ready(panel)
        add_point(name="empty")
        point = add_point((1.0, 2.0, 3.0))
        choose(panel.ui.whereComboBox, "point")
        assert panel._parameterNode.point is point

    def test_place_makes_a_list_and_waits_for_a_click(self, panel, standin):
        ready(panel)
        choose(panel.ui.whereComboBox, "point")
        panel.ui.placeButton.click()
        standin.check_slots()
        node = panel._parameterNode.point
        assert node.GetName() == "Explained point"
        interaction = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLInteractionNode")
        assert interaction.GetCurrentInteractionMode() == interaction.Place
        selection = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        assert selection.GetActivePlaceNodeID() == node.GetID()
        node.AddControlPoint(1.0, 2.0, 3.0)
        assert panel.ui.applyButton.enabled
        panel.ui.placeButton.click()  # the point is placed anew
        assert node.GetNumberOfControlPoints() == 0
        assert not panel.ui.applyButton.enabled

    def test_a_segment_can_be_explained(self, panel, standin):
        volume = ready(panel)
        segmentation = add_segmentation("parts", volume)
        choose(panel.ui.whereComboBox, "region")
        panel.ui.regionSelector.setCurrentNode(segmentation)
        panel.ui.regionSelector.setCurrentSegmentID("right")
        standin.check_slots()
        node = panel._parameterNode
        assert (node.regionSegmentation, node.regionSegment) == (segmentation, "right")
        assert panel.ui.applyButton.enabled

    def test_epsilon_begins_where_it_makes_sense_for_the_volume(self, panel):
        volume = ready(panel)
        window = volume.GetScalarVolumeDisplayNode().GetWindow()
        assert panel.ui.epsilonSlider.maximum == pytest.approx(0.2 * window)
        assert panel._parameterNode.epsilon == pytest.approx(0.02 * window)

    def test_pictures(self, panel, standin, pictures):
        ready(panel)
        choose(panel.ui.whereComboBox, "point")
        choose(panel.ui.methodComboBox, "guided-grad-cam")
        standin.picture.grab(panel, pictures / "MLIExplainability_ready.png", width=420)
        for name in ("advanced", "belief", "attack", "layers"):
            getattr(panel.ui, f"{name}CollapsibleButton").collapsed = False
        standin.picture.grab(panel, pictures / "MLIExplainability_advanced.png", width=420)


class TestLayers:
    def test_they_are_asked_for_when_a_method_looks_at_one(self, panel, standin):
        from MLISlicerLib import explanation_layers

        ready(panel)
        assert explanation_layers.known("tiny") is None
        choose(panel.ui.methodComboBox, "grad-cam")
        standin.process_events_until(lambda: panel.ui.layersTableWidget.rowCount > 0, 30)
        standin.check_slots()
        box = panel.ui.layerComboBox
        times = "\N{MULTIPLICATION SIGN}"
        assert [box.itemData(n) for n in range(box.count)] == ["", "encoder.0", "decoder.conv"]
        assert box.itemText(1) == f"encoder.0  8 {times} 16 {times} 16 {times} 16"
        assert "encoder.0" in box.itemText(0)
        table = panel.ui.layersTableWidget
        assert [table.item(0, c).text() for c in (0, 1, 3)] == ["encoder.0", "Conv3d", "1,234"]
        assert "1,343 parameters" in panel.ui.layersLabel.text
        assert panel.job is None  # they are asked for beside a job

    def test_a_double_click_takes_a_layer_that_can_be_looked_at(self, panel, standin):
        choose(panel.ui.methodComboBox, "grad-cam")
        standin.process_events_until(lambda: panel.ui.layersTableWidget.rowCount > 0, 30)
        panel.onLayerClicked(2, 0)
        assert panel._parameterNode.layer == "decoder.conv"
        assert panel.ui.layerComboBox.currentIndex == 2
        panel.onLayerClicked(1, 0)  # has no place
        assert panel._parameterNode.layer == "decoder.conv"


class TestErrors:
    def test_an_empty_volume_is_named(self, panel, standin):
        panel._parameterNode.inputVolume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        before = scene_state()
        apply(panel, standin)
        assert "empty holds no image" in errors(standin)[0]
        assert scene_state() == before
        assert temporary_folders() == []

    def test_a_volume_removed_meanwhile_leaves_no_result(self, panel, standin):
        volume = ready(panel)
        count = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
        panel.ui.applyButton.click()
        standin.process_events_until(lambda: panel.job is None or "Reading" in panel.job.status.stage, 30)
        slicer.mrmlScene.RemoveNode(volume)
        finish(panel, standin)
        assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") <= count
        if errors(standin):
            assert "was removed" in errors(standin)[0]
            assert panel._parameterNode.outputMap is None


class TestSaving:
    def test_choices_and_results_come_back_with_the_scene(self, panel, standin, tmp_path):
        ready(panel)
        node = panel._parameterNode
        node.compare = ["grad-cam", "activations"]
        node.where, node.point = "point", add_point((1.0, 2.0, 3.0))
        apply(panel, standin)
        panel.ui.beliefButton.click()
        finish(panel, standin)
        panel.ui.attackButton.click()
        finish(panel, standin)
        assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
        slicer.mrmlScene.Clear()
        assert panel.ui.resultsCollapsibleButton.isHidden()
        assert panel.ui.attackBrowser.isHidden()
        slicer.util.loadScene(str(tmp_path / "scene.mrb"))
        standin.check_slots()
        node = panel._parameterNode
        assert (node.model, node.where, sorted(node.compare)) == ("tiny", "point", ["activations", "grad-cam"])
        assert [one.GetName().removeprefix("head ") for one in node.maps] == [
            "Integrated gradients", "Grad-CAM", "Activation maps",
        ]  # fmt: skip
        assert "the label left" in panel.ui.explainedBrowser.plainText
        assert panel.ui.badgeLabel.text == "reacts to the model"
        assert "Dice" in panel.ui.attackBrowser.plainText
        panel.onShownActivated(2)
        panel.ui.componentSlider.value = 2
        voxels = slicer.util.arrayFromVolume(node.maps[2])
        np.testing.assert_allclose(voxels[2, 3], 3 * np.linspace(-1, 1, 20), atol=1e-6)
        panel.ui.attackSideBySideButton.click()
        assert composite("MLI1").GetBackgroundVolumeID() == node.attackOf.GetID()
        panel.ui.attackSideBySideButton.click()
        standin.check_slots()


@pytest.mark.skipif(os.name != "posix", reason="process groups and signals are POSIX")
class TestStopping:
    def test_cancel_leaves_no_process_and_the_scene_as_it_was(self, panel, standin, fake_runner):
        ready(panel)
        panel.ui.seedSpinBox.value = 99  # the worker then sleeps
        before = scene_state()
        panel.ui.applyButton.click()
        standin.process_events_until(lambda: "Explaining" in panel.ui.statusLabel.text, 30)
        cancel_at_once(panel, standin, fake_runner, before)

    def test_closing_the_scene_cancels(self, panel, standin):
        ready(panel)
        panel.ui.seedSpinBox.value = 99
        panel.ui.applyButton.click()
        standin.process_events_until(lambda: "Explaining" in panel.ui.statusLabel.text, 30)
        slicer.mrmlScene.Clear()
        finish(panel, standin, 5)
        assert slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") == []
        assert temporary_folders() == []
        assert errors(standin) == []

"""MLI Explainability clicked through: choices, Apply, maps side by side, boxes, the test, the attack, Cancel, reload.

These tests run with a worker that answers without computing, so that they know what comes, and are quick; the real one
is in test_explain_worker.py and in the self-test.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip("PySide6", reason="PySide6 is not installed")

from clicks import apply, choose, errors, finish, temporary_folders  # noqa: E402
from processes import alive  # noqa: E402
from scenes import add_segmentation, add_volume, linear, motion, scene_state  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MLIModules" / "Explainability" / "MLIExplainability.py"


@pytest.fixture
def panel(fake_runner, model_folder, open_panel):
    """The panel in an empty scene, with the worker that does not compute, and a model of random weights chosen."""
    from MLISlicerLib import explanation_layers

    explanation_layers.forget("tiny")
    made = open_panel(MODULE)
    made._parameterNode.model = "tiny"
    return made


def ready(panel, size=(20, 18, 16)):
    """A volume, chosen as it is when the panel is entered."""
    volume = add_volume("head", size=size)
    panel.initializeParameterNode()
    return volume


def add_point(*places, name="point"):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    for place in places:
        node.AddControlPoint(*place)
    return node


def record(panel, name="record"):
    return json.loads(getattr(panel._parameterNode, name).GetText())["settings"]


def composite(tag):
    found = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return next(node for node in found if node.GetLayoutName() == tag)


def rgba(volume):
    """What a slice view makes of a volume's voxels."""
    display = volume.GetDisplayNode()
    display.GetOutputImageDataConnection().GetProducer().Update()
    from vtk.util import numpy_support

    return numpy_support.vtk_to_numpy(display.GetOutputImageData().GetPointData().GetScalars()).astype(int)


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


class TestResult:
    def test_one_map(self, panel, standin, pictures):
        """Everything that a result consists of, from one click."""
        volume = ready(panel)
        panel._parameterNode.target = "posterior"
        apply(panel, standin)
        assert errors(standin) == []
        node = panel._parameterNode
        assert node.outputMap.GetName() == "head Integrated gradients"
        assert list(node.maps) == [node.outputMap]
        voxels = slicer.util.arrayFromVolume(node.outputMap)
        np.testing.assert_allclose(voxels[3, 4], np.linspace(-1, 1, 20), atol=1e-6)
        colors = rgba(node.outputMap)[:20]
        assert colors[0, 2] > colors[0, 0]
        assert colors[-1, 0] > colors[-1, 2]
        small = np.abs(np.linspace(-1, 1, 20)) < 0.15 * 0.9 - 0.01
        large = np.abs(np.linspace(-1, 1, 20)) > 0.15 * 0.9 + 0.01
        assert (colors[small, 3] == 0).all()
        assert (colors[large, 3] == 255).all()
        display = node.outputMap.GetDisplayNode()
        assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == pytest.approx((-0.9, 0.9))
        legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node.outputMap)
        assert legend.GetTitleText() == "Integrated gradients"
        red = composite("Red")
        assert red.GetBackgroundVolumeID() == volume.GetID()
        assert red.GetForegroundVolumeID() == node.outputMap.GetID()
        assert red.GetForegroundOpacity() == pytest.approx(0.6)
        text = panel.ui.explainedBrowser.plainText
        assert "the label left" in text
        assert "left 1,234 voxels" in text
        assert "right" not in text  # of which the model finds nothing
        assert "0.40%" in text
        assert "It looks too good." in panel.ui.warningsLabel.text
        asked = record(panel)
        assert (asked["target"], asked["method"], asked["model"]) == ("posterior", "integrated-gradients", "tiny")
        assert asked["images"] == ["head.nrrd"]
        assert "mli-job-" not in node.record.GetText()
        assert temporary_folders() == []
        assert panel.ui.shownComboBox.isHidden()
        assert panel.ui.componentSlider.isHidden()
        assert panel.ui.boxesCheckBox.isHidden()
        assert panel.ui.partsTableView.isHidden()
        panel.ui.opacitySlider.value = 0.3
        assert red.GetForegroundOpacity() == pytest.approx(0.3)
        panel.ui.hideSlider.value = 0.5
        hidden = rgba(node.outputMap)[:20, 3] == 0
        assert (hidden == (np.abs(np.linspace(-1, 1, 20)) < 0.45)).all()
        panel.ui.showRecordButton.click()
        standin.check_slots()
        standin.picture.grab(panel, pictures / "MLIExplainability_result.png", width=420)

    def test_where_the_volume_lies_the_map_lies(self, panel, standin):
        """Also under a transform; so do the boxes, whose worker answered in the world."""
        volume = ready(panel)
        volume.SetAndObserveTransformNodeID(linear(slicer.mrmlScene, motion(9)).GetID())
        node = panel._parameterNode
        node.where, node.point = "point", add_point((5.0, -6.0, 7.0), (1.0, 2.0, 3.0))
        apply(panel, standin)
        assert errors(standin) == []
        assert node.outputMap.GetTransformNodeID() == volume.GetTransformNodeID()
        asked = [float(part) for part in record(panel)["point"].split(",")]
        assert asked == [1.0, 2.0, 3.0]  # the last of the list
        for box, half in ((node.theoreticalBox, 10.0), (node.effectiveBox, 4.0)):
            assert box.GetTransformNodeID() == volume.GetTransformNodeID()
            center = [0.0] * 3
            box.GetCenterWorld(center)
            np.testing.assert_allclose(center, (1.0, 2.0, 3.0), atol=1e-4)
            np.testing.assert_allclose(sorted(box.GetSize()), [half, half, 2 * half], rtol=1e-5)
            matrix = slicer.util.arrayFromVTKMatrix(box.GetObjectToWorldMatrix())
            np.testing.assert_allclose(np.abs(matrix[:3, 0]), (0, 1, 0), atol=1e-5)  # the long axis is the world's A
            assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1.0)
        assert "can see 20 \N{MULTIPLICATION SIGN} 10 \N{MULTIPLICATION SIGN} 10 mm" in panel.ui.boxesLabel.text
        panel.ui.boxesCheckBox.checked = False
        assert not node.effectiveBox.GetDisplayNode().GetVisibility()
        panel.ui.boxesCheckBox.checked = True
        assert node.theoreticalBox.GetDisplayNode().GetVisibility()

    def test_up_to_four_methods_side_by_side(self, panel, standin, pictures):
        volume = ready(panel)
        node = panel._parameterNode
        node.compare = ["gradient", "grad-cam", "activations"]
        before = slicer.app.layoutManager().layout
        apply(panel, standin)
        assert errors(standin) == []
        assert [one.GetName().removeprefix("head ") for one in node.maps] == [
            "Integrated gradients", "Gradient (saliency)", "Grad-CAM", "Activation maps",
        ]  # fmt: skip
        assert panel.ui.sideBySideButton.checked
        for number, shown in enumerate(node.maps, start=1):
            view = composite(f"MLI{number}")
            assert view.GetBackgroundVolumeID() == volume.GetID()
            assert view.GetForegroundVolumeID() == shown.GetID()
            assert view.GetLinkedControl()
            assert view.GetHotLinkedControl()
        views = [slicer.app.layoutManager().sliceWidget(f"MLI{n}").mrmlSliceNode() for n in (1, 2, 3, 4)]
        assert len({view.GetViewGroup() for view in views}) == 1
        assert views[0].GetViewGroup() != slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode().GetViewGroup()
        assert [view.GetLayoutLabel() for view in views][2] == "Grad-CAM"
        panel.ui.opacitySlider.value = 0.4
        assert composite("MLI2").GetForegroundOpacity() == pytest.approx(0.4)
        panel.ui.sideBySideButton.click()
        assert slicer.app.layoutManager().layout == before
        assert composite("Red").GetForegroundVolumeID() == node.maps[0].GetID()
        panel.ui.shownComboBox.setCurrentIndex(2)
        panel.onShownActivated(2)
        assert composite("Red").GetForegroundVolumeID() == node.maps[2].GetID()
        assert (rgba(node.maps[2])[:, 3] == 0).any()  # Grad-CAM's small values are clear
        records = json.loads(node.record.GetText())
        assert [one["settings"]["method"] for one in records] == [
            "integrated-gradients", "gradient", "grad-cam", "activations",
        ]  # fmt: skip
        assert "target" not in records[3]["settings"]
        standin.picture.grab(panel, pictures / "MLIExplainability_compared.png", width=420)

    def test_a_single_map_lies_beside_the_image(self, panel, standin):
        volume = ready(panel)
        apply(panel, standin)
        panel.ui.sideBySideButton.click()
        assert composite("MLI1").GetBackgroundVolumeID() == volume.GetID()
        assert composite("MLI1").GetForegroundVolumeID() is None
        assert composite("MLI2").GetForegroundVolumeID() == panel._parameterNode.outputMap.GetID()
        panel.ui.sideBySideButton.click()

    def test_components_are_gone_through(self, panel, standin):
        ready(panel)
        choose(panel.ui.methodComboBox, "activations")
        apply(panel, standin)
        node = panel._parameterNode
        assert not panel.ui.componentSlider.isHidden()
        assert panel.ui.componentSlider.maximum == 2
        for number in (2, 0, 1):
            panel.ui.componentSlider.value = number
            voxels = slicer.util.arrayFromVolume(node.outputMap)
            np.testing.assert_allclose(voxels[2, 3], (number + 1) * np.linspace(-1, 1, 20), atol=1e-6)
        standin.check_slots()
        assert node.components[0].GetImageData().GetNumberOfScalarComponents() == 3

    def test_what_was_taken_away_is_a_table_and_bars(self, panel, standin):
        volume = ready(panel)
        choose(panel.ui.methodComboBox, "ablation-regions")
        panel._parameterNode.regions = add_segmentation("parts", volume)
        apply(panel, standin)
        node = panel._parameterNode
        assert [node.partsTable.GetCellText(row, 0) for row in (0, 1)] == ["right", "left"]  # by how much
        panel.ui.showPartsButton.click()
        selection = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        assert selection.GetActivePlotChartID() == node.partsChart.GetID()
        assert record(panel)["regions"] == "parts.nrrd"
        choose(panel.ui.methodComboBox, "gradient")
        apply(panel, standin)
        assert node.partsTable is None  # it belongs to another map
        assert panel.ui.partsTableView.isHidden()

    def test_an_image_that_the_network_makes_is_grey(self, panel, standin):
        ready(panel)
        choose(panel.ui.methodComboBox, "inversion")
        apply(panel, standin)
        node = panel._parameterNode
        assert composite("Red").GetForegroundOpacity() == 1.0
        assert (rgba(node.outputMap)[:, 3] == 255).all()
        colors = rgba(node.outputMap)
        assert (colors[:, 0] == colors[:, 2]).all()
        assert panel.ui.hideSlider.isHidden()
        panel.ui.showCurveButton.click()
        selection = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        assert selection.GetActivePlotChartID() == node.curveChart.GetID()

    def test_a_map_is_not_replaced_without_asking(self, panel, standin, monkeypatch):
        asked = []
        answer = [False]
        monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda text, *_: asked.append(text) or answer[0])
        ready(panel)
        node = panel._parameterNode
        node.where, node.point = "point", add_point((1.0, 2.0, 3.0))
        apply(panel, standin)
        assert asked == []
        first, box = node.outputMap, node.effectiveBox
        apply(panel, standin)
        assert len(asked) == 1
        assert node.outputMap is not first
        second, count = node.outputMap, slicer.mrmlScene.GetNumberOfNodes()
        answer[0] = True
        apply(panel, standin)
        assert node.outputMap is second
        assert slicer.mrmlScene.GetNumberOfNodes() == count
        assert box.GetScene() is not None


class TestBelief:
    def test_methods_are_tested_beside_the_controls(self, panel, standin, pictures):
        ready(panel)
        node = panel._parameterNode
        node.compare = ["guided-backpropagation", "activations"]
        panel.ui.beliefCollapsibleButton.collapsed = False
        assert "Activation maps" not in panel.ui.beliefButton.toolTip
        panel.ui.beliefButton.click()
        assert panel.ui.applyButton.text == "Cancel"
        finish(panel, standin)
        assert errors(standin) == []
        table = node.beliefTable
        headings = [table.GetColumnName(c) for c in range(table.GetNumberOfColumns())]
        assert headings == ["Method", "Verdict", "Left", "Like edges", "Deletion", "Insertion", "Under noise"]
        rows = [[table.GetCellText(row, c) for c in (0, 1, 4)] for row in range(table.GetNumberOfRows())]
        assert rows == [
            ["Integrated-gradients", "reacts to the model", "0.200"],
            ["Guided-backpropagation", "edge detector", "0.300"],
            ["random map", "control", "0.500"],
            ["edge detector", "control", "0.500"],
        ]
        assert panel.ui.badgeLabel.text == "reacts to the model"
        assert "integrated-gradients was looked at." in panel.ui.badgeLabel.toolTip
        choose(panel.ui.methodComboBox, "guided-backpropagation")
        assert panel.ui.badgeLabel.text == "edge detector"
        node.model = "tiny-second"
        assert panel.ui.badgeLabel.text == "not tested"  # it was another model
        node.model = "tiny"
        selection = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        for button, chart, series in (
            (panel.ui.showDeletionButton, node.deletionChart, 4),
            (panel.ui.showInsertionButton, node.insertionChart, 4),
            (panel.ui.showCascadeButton, node.cascadeChart, 2),
        ):
            button.click()
            assert selection.GetActivePlotChartID() == chart.GetID()
            assert chart.GetNumberOfPlotSeriesNodes() == series
        assert "One image says little." in panel.ui.beliefBrowser.plainText
        standin.check_slots()
        standin.picture.grab(panel, pictures / "MLIExplainability_belief.png", width=420)

    def test_verdicts_of_further_methods_are_added(self, panel, standin):
        ready(panel)
        panel.ui.beliefButton.click()
        finish(panel, standin)
        choose(panel.ui.methodComboBox, "guided-backpropagation")
        panel.ui.beliefButton.click()
        finish(panel, standin)
        found = panel.badgesOf("tiny")
        assert found["integrated-gradients"]["badge"] == "reacts to the model"
        assert found["guided-backpropagation"]["badge"] == "edge detector"

    def test_a_method_without_a_map_cannot_be_tested(self, panel):
        ready(panel)
        choose(panel.ui.methodComboBox, "inversion")
        assert not panel.ui.beliefButton.enabled
        assert "None of the chosen methods can be tested" in panel.ui.beliefButton.toolTip


class TestAttack:
    def attack(self, panel, standin):
        panel.ui.attackButton.click()
        finish(panel, standin)

    def test_before_after_and_what_was_added(self, panel, standin, pictures):
        volume = ready(panel)
        panel.ui.attackCollapsibleButton.collapsed = False
        assert panel.ui.attackBrowser.isHidden()
        assert panel.ui.beforeButton.isHidden()
        panel.ui.epsilonSlider.value = 3.0
        self.attack(panel, standin)
        assert errors(standin) == []
        node = panel._parameterNode
        assert set(np.unique(slicer.util.arrayFromVolume(node.attackedVolume))) == {103.0}
        assert set(np.unique(slicer.util.arrayFromVolume(node.attackDifference))) == {3.0}
        names = [node.attackAfter.GetSegmentation().GetNthSegment(n).GetName() for n in range(2)]
        assert names == ["anterior", "posterior"]
        red = composite("Red")
        assert red.GetBackgroundVolumeID() == node.attackedVolume.GetID()
        assert node.attackAfter.GetDisplayNode().GetVisibility()
        assert not node.attackBefore.GetDisplayNode().GetVisibility()
        panel.ui.beforeButton.click()
        assert red.GetBackgroundVolumeID() == volume.GetID()
        assert node.attackBefore.GetDisplayNode().GetVisibility()
        assert not panel.ui.afterButton.checked
        panel.ui.addedButton.click()
        assert red.GetForegroundVolumeID() == node.attackDifference.GetID()
        panel.ui.attackSideBySideButton.click()
        assert composite("MLI2").GetBackgroundVolumeID() == node.attackedVolume.GetID()
        assert composite("MLI3").GetForegroundVolumeID() == node.attackDifference.GetID()
        first = slicer.app.layoutManager().sliceWidget("MLI1").mrmlSliceNode()
        second = slicer.app.layoutManager().sliceWidget("MLI2").mrmlSliceNode()
        before, after = node.attackBefore.GetDisplayNode(), node.attackAfter.GetDisplayNode()
        assert before.IsDisplayableInView(first.GetID())
        assert not before.IsDisplayableInView(second.GetID())
        assert after.IsDisplayableInView(second.GetID())
        assert not after.IsDisplayableInView(first.GetID())
        panel.ui.attackSideBySideButton.click()
        assert after.IsDisplayableInView("vtkMRMLSliceNodeRed")
        panel.ui.showAttackButton.click()
        selection = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        assert selection.GetActivePlotChartID() == node.attackChart.GetID()
        text = panel.ui.attackBrowser.plainText
        assert "Dice 1.000 \N{RIGHTWARDS ARROW} 0.250 at epsilon 3" in text
        assert "Small changes add up." in text
        assert record(panel, "attackRecord")["epsilon"] == 3.0
        standin.check_slots()
        standin.picture.grab(panel, pictures / "MLIExplainability_attack.png", width=420)

    def test_the_next_attack_fills_the_same_nodes(self, panel, standin):
        ready(panel)
        self.attack(panel, standin)
        node = panel._parameterNode
        first, count = node.attackedVolume, slicer.mrmlScene.GetNumberOfNodes()
        panel.ui.epsilonSlider.value = 1.0
        self.attack(panel, standin)
        assert node.attackedVolume is first
        assert slicer.mrmlScene.GetNumberOfNodes() == count
        assert set(np.unique(slicer.util.arrayFromVolume(first))) == {101.0}
        node.inputVolume = add_volume("other", size=(20, 18, 16))
        self.attack(panel, standin)
        assert node.attackedVolume is not first
        assert set(np.unique(slicer.util.arrayFromVolume(first))) == {101.0}

    def test_an_attack_follows_the_slider(self, panel, standin):
        ready(panel)
        node = panel._parameterNode
        panel.ui.followCheckBox.checked = True
        panel.ui.epsilonSlider.value = 2.0
        assert panel.job is None  # there has been no attack yet
        self.attack(panel, standin)
        for value in (2.5, 3.0, 3.5):
            panel.ui.epsilonSlider.value = value

        def followed():
            return panel.job is None and json.loads(node.attackSummary)["epsilon"] == 3.5

        standin.process_events_until(followed, 20)
        standin.check_slots()
        assert set(np.unique(slicer.util.arrayFromVolume(node.attackedVolume))) == {103.5}

    def test_a_reference_says_what_is_right(self, panel, standin):
        volume = ready(panel)
        panel._parameterNode.attackReference = add_segmentation("expert", volume, ("anterior", "posterior"))
        panel._parameterNode.aim = "posterior"
        self.attack(panel, standin)
        assert errors(standin) == []
        asked = record(panel, "attackRecord")
        assert (asked["truth"], asked["aim"]) == ("expert.nrrd", "posterior")
        assert "right is the given labels" in panel.ui.attackBrowser.plainText

    def test_a_model_of_several_channels_is_not_attacked_here(self, panel):
        volume = ready(panel)
        node = panel._parameterNode
        node.model = "three-channels"
        node.inputVolume2 = node.inputVolume3 = volume
        assert panel.ui.applyButton.enabled
        assert not panel.ui.attackButton.enabled
        assert "mli attack" in panel.ui.attackButton.toolTip


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
        pid, begin = fake_runner.worker.pid, time.monotonic()
        panel.ui.applyButton.click()
        finish(panel, standin, 5)
        assert time.monotonic() - begin < 2.0
        assert not alive(pid)
        assert scene_state() == before
        assert temporary_folders() == []
        assert panel.ui.statusLabel.text == "Cancelled. The scene is as it was."

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

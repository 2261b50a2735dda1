"""Maps in MLI Explainability: colours, where they lie, side by side, components, tables, and what is replaced."""

import json

import numpy as np
import pytest
import slicer
from clicks import apply, choose, errors, temporary_folders
from explain_panel import add_point, composite, ready, record, rgba
from scenes import add_segmentation, linear, motion


@pytest.fixture
def panel(explain_panel):
    return explain_panel


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

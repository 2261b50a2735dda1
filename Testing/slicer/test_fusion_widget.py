"""MLI AtlasFusion clicked through: load, Apply, progress, result, modes, Cancel, error, scene close, reload.

These tests run with a worker that answers without computing, so that they know what comes, and are quick; the real one
is in test_fusion_worker.py and in the self-test.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import slicer
from clicks import apply, cancel_at_once, choose, errors, finish, temporary_folders
from scenes import add_segmentation, add_volume, linear, motion, scene_state

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MLIModules" / "AtlasFusion" / "MLIAtlasFusion.py"


@pytest.fixture
def panel(fake_runner, open_panel):
    """The panel in an empty scene, with the worker that does not compute."""
    return open_panel(MODULE)


def add_atlases(count=5, size=(20, 18, 16)):
    """A target, and a folder of atlases in the Data module's tree; the target and the volumes with segmentations."""
    from MLISlicerLib import fusion_atlases

    target = add_volume("target", size=size)
    pairs = []
    for number in range(1, count + 1):
        volume = add_volume(f"brain {number}", size=size)
        pairs.append((volume, add_segmentation(f"brain {number} labels", volume)))
    fusion_atlases.make_folder("Atlases", [node for pair in pairs for node in pair])
    return target, pairs


def settle(panel, standin):
    """Let the panel see what has happened to the scene."""
    standin.process_events_until(lambda: not panel._later.isActive(), 5)


def ready(panel, standin, **options):
    """Atlases in the scene, chosen as they are when the panel is entered."""
    target, pairs = add_atlases(**options)
    panel.initializeParameterNode()
    settle(panel, standin)
    return target, pairs


def listed(panel):
    """The rows of the list of atlases."""
    table = panel.ui.atlasesTableWidget
    return {table.item(row, 0).text(): table.item(row, 1).text() for row in range(table.rowCount)}


def record(panel):
    return json.loads(panel._parameterNode.record.GetText())["settings"]


class TestBeforeAJob:
    def test_apply_says_what_is_missing(self, panel, standin):
        assert panel.ui.applyButton.toolTip == "Choose a target volume."
        target = add_volume("target")
        panel.initializeParameterNode()
        assert panel._parameterNode.targetVolume is target
        assert "Put volumes and their segmentations into a folder" in panel.ui.statusLabel.text
        choose(panel.ui.sourceComboBox, "files")
        assert panel.ui.applyButton.toolTip == "Choose a folder of atlases, or a dataset.json."
        panel.ui.atlasPathEdit.text = "/nowhere/atlases"
        assert "/nowhere/atlases does not exist" in panel.ui.applyButton.toolTip
        assert not panel.ui.checkAtlasesButton.enabled
        panel.ui.atlasPathEdit.text = str(ROOT)
        assert panel.ui.applyButton.enabled
        panel._parameterNode.registration = "lost"
        assert "'lost' is not installed" in panel.ui.applyButton.toolTip

    def test_a_folder_of_the_scene_is_chosen_with_what_it_holds(self, panel, standin):
        ready(panel, standin)
        assert panel.ui.atlasFolderComboBox.currentText == "Atlases (5 atlases)"
        assert "5 atlases" in panel.ui.foundBrowser.plainText
        assert "left" in panel.ui.foundBrowser.plainText
        assert panel.ui.applyButton.enabled
        assert panel.ui.resultsCollapsibleButton.isHidden()
        assert panel.ui.atlasesTableWidget.isHidden()

    def test_the_list_follows_the_scene(self, panel, standin):
        from MLISlicerLib import fusion_atlases

        _, pairs = ready(panel, standin, count=2)
        slicer.mrmlScene.RemoveNode(pairs[1][1])
        settle(panel, standin)
        assert panel.ui.atlasFolderComboBox.currentText == "Atlases (1 atlas)"
        assert "brain 2 has no segmentation." in panel.ui.foundBrowser.plainText
        volume = add_volume("other")
        fusion_atlases.make_folder("Others", [volume, add_segmentation("other labels", volume)])
        settle(panel, standin)
        assert panel.ui.atlasFolderComboBox.findText("Others (1 atlas)") >= 0
        assert panel.ui.atlasFolderComboBox.currentText == "Atlases (1 atlas)"
        slicer.mrmlScene.RemoveNode(pairs[0][0])
        settle(panel, standin)
        assert "holds no atlas" in panel.ui.applyButton.toolTip

    def test_the_target_is_no_atlas_of_itself(self, panel, standin):
        _, pairs = ready(panel, standin)
        panel._parameterNode.targetVolume = pairs[0][0]
        assert "4 atlases" in panel.ui.foundBrowser.plainText
        assert "brain 1" not in panel.ui.foundBrowser.plainText

    def test_each_method_says_what_it_assumes(self, panel):
        from MLILib.fusion.methods import METHODS

        for name, method in METHODS.items():
            choose(panel.ui.methodComboBox, name)
            assert panel.ui.methodBrowser.plainText == f"{method.assumes} {method.source}"

    def test_only_settings_of_the_method_are_shown(self, panel):
        panel.ui.advancedCollapsibleButton.collapsed = False
        for method, shown in {
            "majority": set(),
            "local": {"patchRadius"},
            "jlf": {"patchRadius", "searchRadius", "beta", "alpha"},
            "staple": {"margin"},
            "simple": {"margin", "drop"},
            "deepstaple": {"margin", "steps"},
        }.items():
            choose(panel.ui.methodComboBox, method)
            names = ("margin", "patchRadius", "searchRadius", "beta", "alpha", "drop", "steps")
            assert {name for name in names if not getattr(panel.ui, f"{name}SpinBox").isHidden()} == shown

    def test_settings_have_the_defaults_and_help_of_the_task(self, panel):
        from MLILib.fusion.requests import FuseRequest

        settings = {s.name: s for s in FuseRequest.settings()}
        for name in (*panel.logic.SETTINGS, *panel.logic.OF_ATLASES, "device", "seed"):
            assert getattr(panel._parameterNode, name) == settings[name].default
        assert settings["margin"].help in panel.ui.marginSpinBox.toolTip
        assert settings["method"].help in panel.ui.methodComboBox.toolTip
        assert panel.ui.searchRadiusSpinBox.maximum == settings["search_radius"].maximum

    def test_files_are_looked_for(self, panel, standin, tmp_path, monkeypatch):
        import qt

        (tmp_path / "dataset.json").write_text("{}", encoding="utf-8")
        monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path))
        monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: str(tmp_path / "dataset.json"))
        actions = panel.ui.chooseAtlasesButton.menu().actions()
        actions[0].trigger()
        assert panel._parameterNode.atlasPath == str(tmp_path)
        actions[1].trigger()
        assert panel._parameterNode.atlasPath == str(tmp_path / "dataset.json")
        monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_: "")
        actions[0].trigger()
        assert panel._parameterNode.atlasPath == str(tmp_path / "dataset.json")
        standin.check_slots()

    def test_parameter_sets_keep_their_own_choices(self, panel):
        selector = panel.ui.parameterNodeSelector
        first = selector.currentNode()
        choose(panel.ui.methodComboBox, "staple")
        selector.addNode()
        assert panel.ui.methodComboBox.currentData == "jlf"
        selector.setCurrentNode(first)
        assert panel.ui.methodComboBox.currentData == "staple"

    def test_pictures(self, panel, standin, pictures):
        ready(panel, standin)
        standin.picture.grab(panel, pictures / "MLIAtlasFusion_ready.png", width=420)
        panel.ui.advancedCollapsibleButton.collapsed = False
        standin.picture.grab(panel, pictures / "MLIAtlasFusion_advanced.png", width=420)


class TestResult:
    def test_a_result_of_atlases(self, panel, standin, pictures):
        """Everything that a result consists of, from one click."""
        target, pairs = ready(panel, standin)
        pairs[0][1].GetSegmentation().GetSegment("left").SetColor(0.1, 0.2, 0.3)
        panel._parameterNode.reference = None
        seen = []
        panel.ui.applyButton.click()
        assert panel.ui.applyButton.text == "Cancel"
        assert set(listed(panel).values()) == {"waiting"}

        def watch():
            rows = tuple(listed(panel).values())
            if rows not in seen:
                seen.append(rows)
            if "registering" in rows and "done" in rows and "picture" not in seen:
                seen.append("picture")
                standin.picture.grab(panel, pictures / "MLIAtlasFusion_running.png", width=420)
            return panel.job is None

        standin.process_events_until(watch, 30)
        standin.check_slots()
        assert errors(standin) == []
        assert "picture" in seen
        assert any("registering" in rows and "waiting" in rows for rows in seen)  # on a busy machine not each is seen
        assert listed(panel) == {
            "brain 1": "done: 12 s",
            "brain 2": "from cache",
            "brain 3": "failed: It looks like nothing else.",
            "brain 4": "left out: It looks like nothing else.",
            "brain 5": "done: 12 s",
        }
        node = panel._parameterNode
        segmentation = node.outputSegmentation.GetSegmentation()
        assert [segmentation.GetNthSegment(i).GetName() for i in range(2)] == ["left", "right"]
        np.testing.assert_allclose(segmentation.GetNthSegment(0).GetColor(), (0.1, 0.2, 0.3))
        assert node.outputSegmentation.GetName() == "target consensus"
        disagreement = slicer.util.arrayFromVolume(node.outputDisagreement)
        assert disagreement.dtype == np.float32
        assert set(np.unique(disagreement)) == {0.0, 0.5}
        display = node.outputDisagreement.GetDisplayNode()
        assert display.GetWindowLevelMax() == pytest.approx(np.log2(3))  # three labels with the background
        legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node.outputDisagreement)
        assert legend.GetTitleText() == "Disagreement (bits)"
        composite = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
        assert composite.GetBackgroundVolumeID() == target.GetID()
        assert composite.GetForegroundVolumeID() == node.outputDisagreement.GetID()
        table = node.ratersTable
        headings = [table.GetColumnName(c) for c in range(table.GetNumberOfColumns())]
        assert headings == ["Rater", "Label", "Dice", "Weight", "Sensitivity", "Specificity"]
        assert table.GetNumberOfRows() == 3 * 2
        assert [table.GetCellText(2, c) for c in (0, 1)] == ["brain 2", "left"]
        assert float(table.GetCellText(2, 2)) == pytest.approx(0.8)
        assert float(table.GetCellText(2, 3)) == pytest.approx(0.25)
        series = node.agreementChart.GetNthPlotSeriesNode(0)
        assert series.GetYColumnName() == "Dice, left"
        assert node.agreementTable.GetNumberOfRows() == 3
        panel.ui.showAgreementButton.click()
        selection = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        assert selection.GetActivePlotChartID() == node.agreementChart.GetID()
        panel.ui.showWeightsButton.click()
        assert selection.GetActivePlotChartID() == node.weightChart.GetID()
        assert "Fleiss' kappa 0.79: substantial agreement" in panel.ui.agreementLabel.text
        assert "It looks too good." in panel.ui.warningsLabel.text
        assert "One voxel was a tie." in panel.ui.agreementLabel.text
        assert node.record is not None
        text = node.record.GetText()
        assert "mli-job-" not in text
        assert record(panel)["atlases"] == "Atlases"
        assert record(panel)["target"] == "target.nrrd"
        assert temporary_folders() == []
        panel.ui.disagreementThresholdSlider.value = 0.3
        assert display.GetLowerThreshold() == pytest.approx(0.3)
        panel.ui.showRecordButton.click()
        standin.check_slots()
        standin.picture.grab(panel, pictures / "MLIAtlasFusion_result.png", width=420)

    def test_where_the_target_lies_the_result_lies(self, panel, standin):
        """Also under a transform; the atlases are handed over as they lie, too."""
        target, pairs = ready(panel, standin, count=1)
        target.SetAndObserveTransformNodeID(linear(slicer.mrmlScene, motion(9)).GetID())
        pairs[0][0].SetAndObserveTransformNodeID(linear(slicer.mrmlScene, motion(4)).GetID())
        apply(panel, standin)
        assert errors(standin) == []
        node = panel._parameterNode
        for result in (node.outputSegmentation, node.outputDisagreement):
            assert result.GetTransformNodeID() == target.GetTransformNodeID()

    def test_a_result_is_not_replaced_without_asking(self, panel, standin, monkeypatch):
        asked = []
        monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda text, *_: asked.append(text))  # answers no
        ready(panel, standin, count=2)
        apply(panel, standin)
        assert asked == []
        first, table = panel._parameterNode.outputSegmentation, panel._parameterNode.ratersTable
        apply(panel, standin)
        assert len(asked) == 2  # the consensus, and the map
        assert panel._parameterNode.outputSegmentation is not first
        assert panel._parameterNode.ratersTable is not table
        monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda *_: True)
        before = slicer.mrmlScene.GetNumberOfNodes()
        apply(panel, standin)
        assert slicer.mrmlScene.GetNumberOfNodes() == before
        assert errors(standin) == []

    def test_a_volume_without_a_segmentation_is_told_and_left_out(self, panel, standin):
        from MLISlicerLib import fusion_atlases

        ready(panel, standin, count=2)
        uid = panel._parameterNode.atlasFolder
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        alone = add_volume("alone")
        folder = hierarchy.GetItemByUID(fusion_atlases._UID, uid)
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(alone), folder)
        settle(panel, standin)
        assert "alone has no segmentation." in panel.ui.foundBrowser.plainText
        apply(panel, standin)
        assert set(listed(panel)) == {"brain 1", "brain 2"}


class TestRaters:
    def test_segmentations_without_a_volume(self, panel, standin, pictures):
        """The grid is the one they were drawn on."""
        volume = add_volume("seen", size=(20, 18, 16))
        drawn = [add_segmentation(f"rater {n}", volume, corner=n) for n in (1, 2, 3)]
        grid = slicer.util.arrayFromVolume(volume).shape
        choose(panel.ui.modeComboBox, "raters")
        assert panel._parameterNode.method == "staple"
        panel._parameterNode.targetVolume = None
        assert panel.ui.applyButton.toolTip == "Choose the segmentations of the raters."
        for node in drawn:
            panel.ui.ratersSelector.check(node)
        assert list(panel._parameterNode.raters) == drawn
        assert "3 raters" in panel.ui.foundBrowser.plainText
        standin.picture.grab(panel, pictures / "MLIAtlasFusion_raters.png", width=420)
        apply(panel, standin)
        assert errors(standin) == []
        node = panel._parameterNode
        assert node.outputSegmentation.GetName() == "rater 1 consensus"
        assert slicer.util.arrayFromVolume(node.outputDisagreement).shape == grid
        identifier = node.outputSegmentation.GetSegmentation().GetSegmentIDs()[0]
        found = slicer.util.arrayFromSegmentBinaryLabelmap(node.outputSegmentation, identifier, volume)
        assert found.reshape(-1).nonzero()[0].tolist() == list(range(20 * 18 * 16 // 2))  # what the worker makes
        assert record(panel)["labels"] == ["rater 1.nrrd", "rater 2.nrrd", "rater 3.nrrd"]
        assert record(panel)["names"] == ["1=left", "2=right"]
        assert "registration" not in record(panel)

    def test_what_a_method_needs_is_said(self, panel):
        volume = add_volume("seen")
        rater = add_segmentation("rater", volume)
        choose(panel.ui.modeComboBox, "raters")
        panel._parameterNode.raters = [rater]
        panel._parameterNode.targetVolume = None
        choose(panel.ui.methodComboBox, "jlf")
        assert "Joint label fusion compares images" in panel.ui.applyButton.toolTip
        choose(panel.ui.methodComboBox, "deepstaple")
        assert "DeepSTAPLE looks at it" in panel.ui.applyButton.toolTip
        panel._parameterNode.targetVolume = volume
        assert panel.ui.applyButton.enabled
        panel._parameterNode.outputSegmentation = rater
        assert "would replace a rater" in panel.ui.applyButton.toolTip

    def test_a_rater_that_is_removed_takes_no_part_any_more(self, panel, standin):
        volume = add_volume("seen", size=(20, 18, 16))
        raters = [add_segmentation(name, volume) for name in ("a", "b", "c")]
        choose(panel.ui.modeComboBox, "raters")
        panel._parameterNode.raters = raters
        slicer.mrmlScene.RemoveNode(raters[1])
        settle(panel, standin)
        assert "2 raters" in panel.ui.foundBrowser.plainText
        apply(panel, standin)
        assert errors(standin) == []
        assert record(panel)["labels"] == ["a.nrrd", "c.nrrd"]

    def test_raters_come_back_with_the_scene(self, panel, standin, tmp_path):
        volume = add_volume("seen", size=(20, 18, 16))
        choose(panel.ui.modeComboBox, "raters")
        panel._parameterNode.raters = [add_segmentation(name, volume) for name in ("a", "b")]
        assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
        slicer.mrmlScene.Clear()
        slicer.util.loadScene(str(tmp_path / "scene.mrb"))
        settle(panel, standin)
        assert [node.GetName() for node in panel.ui.ratersSelector.checkedNodes()] == ["a", "b"]
        assert panel.ui.applyButton.enabled

    def test_other_grids_need_a_target(self, panel, standin):
        raters = [add_segmentation(f"on {n}", add_volume(f"volume {n}", size=(20, 18, n))) for n in (14, 16)]
        choose(panel.ui.modeComboBox, "raters")
        panel._parameterNode.raters = raters
        panel._parameterNode.targetVolume = None
        before = scene_state()
        apply(panel, standin)
        assert "on 14 and on 16 were drawn on different grids." in errors(standin)[0]
        assert "Choose the target volume" in errors(standin)[0]
        assert scene_state() == before
        panel._parameterNode.targetVolume = slicer.util.getNode("volume 14")
        apply(panel, standin)
        assert len(errors(standin)) == 1

    def test_raters_with_different_segments_share_labels_by_name(self, panel, standin):
        volume = add_volume("seen", size=(20, 18, 16))
        raters = [
            add_segmentation("a", volume, ("Left", "right")),
            add_segmentation("b", volume, ("right", "left", "other")),
        ]
        choose(panel.ui.modeComboBox, "raters")
        panel._parameterNode.raters = raters
        apply(panel, standin)
        assert errors(standin) == []
        assert record(panel)["names"] == ["1=Left", "2=right", "3=other"]


class TestErrors:
    def test_a_rater_without_segments_is_named(self, panel, standin):
        volume = add_volume("seen", size=(20, 18, 16))
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "nothing drawn")
        choose(panel.ui.modeComboBox, "raters")
        panel._parameterNode.raters = [add_segmentation("drawn", volume), empty]
        before = scene_state()
        apply(panel, standin)
        assert "nothing drawn has no segment" in errors(standin)[0]
        assert scene_state() == before
        assert temporary_folders() == []

    def test_an_empty_target_is_named(self, panel, standin):
        ready(panel, standin, count=1)
        panel._parameterNode.targetVolume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        before = scene_state()
        apply(panel, standin)
        assert "empty holds no image" in errors(standin)[0]
        assert scene_state() == before

    def test_a_target_removed_meanwhile_leaves_no_result(self, panel, standin):
        target, _ = ready(panel, standin)
        before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
        panel.ui.applyButton.click()
        standin.process_events_until(lambda: "done" in listed(panel).values(), 30)
        slicer.mrmlScene.RemoveNode(target)
        finish(panel, standin)
        assert "was removed" in errors(standin)[0]
        assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == before


class TestSaving:
    def test_choices_and_results_come_back_with_the_scene(self, panel, standin, tmp_path):
        ready(panel, standin)
        choose(panel.ui.methodComboBox, "local")
        panel.ui.patchRadiusSpinBox.value = 4
        apply(panel, standin)
        assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
        slicer.mrmlScene.Clear()
        settle(panel, standin)
        assert panel._parameterNode.outputSegmentation is None
        assert panel.ui.resultsCollapsibleButton.isHidden()
        assert panel.ui.atlasesTableWidget.isHidden()
        slicer.util.loadScene(str(tmp_path / "scene.mrb"))
        settle(panel, standin)
        standin.check_slots()
        node = panel._parameterNode
        assert (node.method, node.patch_radius) == ("local", 4)
        assert panel.ui.atlasFolderComboBox.currentText == "Atlases (5 atlases)"
        assert panel.ui.ratersTableView.mrmlTableNode() is node.ratersTable
        assert "substantial agreement" in panel.ui.agreementLabel.text
        assert listed(panel)["brain 3"] == "failed: It looks like nothing else."
        assert panel.ui.applyButton.enabled


@pytest.mark.skipif(os.name != "posix", reason="process groups and signals are POSIX")
class TestStopping:
    def test_cancel_leaves_no_process_and_the_scene_as_it_was(self, panel, standin, fake_runner):
        ready(panel, standin)
        panel.ui.seedSpinBox.value = 99  # the worker then sleeps
        before = scene_state()
        panel.ui.applyButton.click()
        standin.process_events_until(lambda: "registering" in listed(panel).values(), 30)
        cancel_at_once(panel, standin, fake_runner, before)
        assert panel.ui.atlasesTableWidget.isHidden()

    def test_closing_the_scene_cancels(self, panel, standin):
        ready(panel, standin)
        panel.ui.seedSpinBox.value = 99
        panel.ui.applyButton.click()
        standin.process_events_until(lambda: "registering" in listed(panel).values(), 30)
        slicer.mrmlScene.Clear()
        finish(panel, standin, 5)
        settle(panel, standin)
        assert slicer.util.getNodesByClass("vtkMRMLSegmentationNode") == []
        assert temporary_folders() == []
        assert errors(standin) == []

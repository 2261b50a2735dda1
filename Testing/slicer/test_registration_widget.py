"""MLI Registration clicked through: load, Apply, progress, result, presets, views, Cancel, error, scene close, reload.

Most tests run with a worker that finds a fixed shift without computing, so that they know the truth and are quick; the
self-test registers in earnest.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk
from clicks import apply, cancel_at_once, choose, errors, finish, temporary_folders
from fake_worker import SHIFT
from scenes import add_volume, linear, motion, scene_state

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MLIModules" / "Registration" / "MLIRegistration.py"

#: The worker's shift, LPS, as a moving point in RAS goes back.
BACK = np.array([1.0, 1.0, -1.0]) * SHIFT


@pytest.fixture
def panel(fake_runner, open_panel):
    """The panel in an empty scene, with the worker that does not compute."""
    from MLISlicerLib import registration_presets

    slicer.app.userSettings().remove(registration_presets._KEY)
    return open_panel(MODULE)


def add_pair(panel):
    """A fixed and a moving volume, chosen as they are when the panel is entered."""
    fixed = add_volume("fixed", size=(20, 18, 16))
    moving = add_volume("moving", size=(22, 18, 20))
    panel.initializeParameterNode()
    return fixed, moving


def add_points(name, positions):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    for position in positions:
        node.AddControlPoint(*position)
    return node


def world(points, index=0):
    found = [0.0, 0.0, 0.0]
    points.GetNthControlPointPositionWorld(index, found)
    return np.array(found)


def results():
    """The transforms in the scene, without the hidden ones of the views."""
    return [node for node in slicer.util.getNodesByClass("vtkMRMLTransformNode") if not node.GetHideFromEditors()]


class TestBeforeAJob:
    def test_apply_says_what_is_missing(self, panel):
        assert not panel.ui.applyButton.enabled
        assert panel.ui.statusLabel.text == "Choose a fixed volume."
        fixed = add_volume("fixed")
        panel.initializeParameterNode()
        assert panel._parameterNode.fixedVolume is fixed
        assert panel.ui.applyButton.toolTip == "Choose a moving volume."
        panel._parameterNode.movingVolume = fixed
        assert "are the same" in panel.ui.applyButton.toolTip

    def test_two_loaded_volumes_are_chosen_in_turn(self, panel):
        fixed, moving = add_pair(panel)
        assert panel.ui.fixedVolumeSelector.currentNode() is fixed
        assert panel.ui.movingVolumeSelector.currentNode() is moving
        assert panel.ui.applyButton.enabled
        assert panel.ui.resultsCollapsibleButton.isHidden()

    def test_landmarks_of_one_side_only_are_asked_about(self, panel):
        add_pair(panel)
        panel._parameterNode.fixedPoints = add_points("F", [(0, 0, 0)])
        assert panel.ui.applyButton.toolTip == "Choose a list of landmarks of the moving volume, too."

    def test_settings_have_the_help_of_the_task(self, panel):
        from MLILib.registration.requests import RegisterRequest

        settings = {s.name: s for s in RegisterRequest.settings()}
        assert settings["regularisation"].help in panel.ui.regularisationSpinBox.toolTip
        assert settings["device"].help in panel.ui.deviceComboBox.toolTip
        assert panel.ui.samplingSlider.maximum == settings["sampling"].maximum

    def test_the_similarity_says_which_relation_it_assumes(self, panel):
        from MLILib.registration.similarity_words import WORDS

        for name in ("ssd", "lncc", "nmi"):
            choose(panel.ui.similarityComboBox, name)
            assert panel.ui.relationBrowser.plainText == WORDS[name].relation

    def test_pictures(self, panel, standin, pictures):
        add_pair(panel)
        standin.picture.grab(panel, pictures / "MLIRegistration_ready.png", width=420)
        for name in ("advanced", "guidance"):
            getattr(panel.ui, f"{name}CollapsibleButton").collapsed = False
        standin.picture.grab(panel, pictures / "MLIRegistration_advanced.png", width=420)


class TestPresets:
    def test_each_fills_the_settings(self, panel):
        from MLILib.registration.presets import PRESETS

        for name, preset in PRESETS.items():
            choose(panel.ui.presetComboBox, name)
            node = panel._parameterNode
            assert tuple(panel.logic.stages(node)) == preset.stages
            assert panel.ui.stageDeformableCheckBox.checked is ("deformable" in preset.stages)
            assert panel.ui.similarityComboBox.currentData == preset.similarity
            assert panel.ui.regularisationSpinBox.value == pytest.approx(preset.regularisation)
            assert panel.ui.presetSummaryBrowser.plainText == preset.summary

    def test_a_changed_setting_is_told(self, panel):
        choose(panel.ui.presetComboBox, "rigid")
        panel.ui.stageAffineCheckBox.click()
        assert "Changed under 'Advanced'" in panel.ui.presetSummaryBrowser.plainText
        panel.ui.stageAffineCheckBox.click()
        assert "Changed" not in panel.ui.presetSummaryBrowser.plainText

    def test_ones_own_are_kept_and_deleted(self, panel, standin, monkeypatch):
        choose(panel.ui.presetComboBox, "affine")
        assert not panel.ui.savePresetButton.enabled
        assert not panel.ui.deletePresetButton.enabled
        panel.ui.regularisationSpinBox.value = 3.5
        panel.ui.stageRigidCheckBox.click()
        panel.ui.presetNameEdit.text = "knees"
        panel.ui.savePresetButton.click()
        standin.check_slots()
        assert panel._parameterNode.preset == "knees"
        assert panel.ui.presetComboBox.currentText == "knees (yours)"
        choose(panel.ui.presetComboBox, "deformable")
        standin.unload_module("MLIRegistration")
        slicer.mrmlScene.Clear()
        _, again = standin.load_module(MODULE)
        choose(again.ui.presetComboBox, "knees")
        assert again.logic.stages(again._parameterNode) == ["affine"]
        assert again._parameterNode.regularisation == 3.5
        assert again.logic.settings(again._parameterNode)["preset"] == "affine"
        monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda *_: True)
        again.ui.deletePresetButton.click()
        standin.check_slots()
        assert again._parameterNode.preset == "affine"
        assert again.ui.presetComboBox.findData("knees") == -1

    def test_those_of_the_extension_are_not_replaced(self, panel, standin):
        for name in ("deformable", "Lung CT", "learned"):
            panel.ui.presetNameEdit.text = name
            panel.ui.savePresetButton.click()
        assert len(errors(standin)) == 3
        assert not any(preset.own for preset in panel.presets.values())

    def test_settings_that_cannot_be_read_are_left_out(self, panel):
        from MLISlicerLib import registration_presets

        for text in ("{", "[1]", '{"x": {}}', '{"x": {"values": {"stages": ["nonsense"]}, "base": "rigid"}}'):
            slicer.app.userSettings().setValue(registration_presets._KEY, text)
            assert not any(preset.own for preset in registration_presets.known().values())

    def test_learned_asks_for_a_model(self, panel):
        add_pair(panel)
        assert panel.ui.modelComboBox.isHidden()
        panel.models.clear()
        choose(panel.ui.presetComboBox, "learned")
        assert not panel.ui.modelComboBox.isHidden()
        assert "No registration model is installed" in panel.ui.applyButton.toolTip


class TestModels:
    @pytest.fixture
    def model(self, user_models):
        """A bundle that says it is for registration, beside one for segmentation."""
        pytest.importorskip("monai", reason="monai is not installed")
        from tiny_bundle import write_tiny_bundle

        write_tiny_bundle(user_models / "labels-it", labels=("x",))
        folder = write_tiny_bundle(user_models / "moves-it", labels=("x",))
        path = folder / "configs" / "metadata.json"
        metadata = json.loads(path.read_text(encoding="utf-8"))
        metadata["task"] = "Registration of hippocampi"
        path.write_text(json.dumps(metadata), encoding="utf-8")
        yield "moves-it"
        shutil.rmtree(folder)
        shutil.rmtree(user_models / "labels-it")

    def test_each_module_offers_its_own(self, model):
        from MLISlicerLib import models

        assert model in models.known("registration")
        assert model not in models.known()
        assert "labels-it" in models.known()
        assert "labels-it" not in models.known("registration")

    def test_learned_takes_the_model(self, model, panel, standin):
        add_pair(panel)
        choose(panel.ui.presetComboBox, "learned")
        choose(panel.ui.modelComboBox, model)
        panel.ui.refineCheckBox.click()
        assert panel.ui.applyButton.enabled
        apply(panel, standin)
        assert errors(standin) == []
        record = json.loads(panel._parameterNode.record.GetText())["settings"]
        assert (record["model"], record["refine"]) == (model, True)
        assert "stages" not in record
        assert panel._parameterNode.outputTransform.GetClassName() == "vtkMRMLGridTransformNode"


class TestResult:
    def test_a_linear_result(self, panel, standin, pictures):
        """Everything that a result consists of, from one click."""
        fixed, moving = add_pair(panel)
        points = add_points("on the moving volume", [(5, 6, 7)])
        choose(panel.ui.presetComboBox, "rigid")
        curves = []
        panel.ui.warpedCheckBox.click()
        panel.ui.jacobianCheckBox.click()
        panel.ui.applyButton.click()
        assert panel.ui.applyButton.text == "Cancel"

        def watch():
            if panel.job is not None and panel.job.status.curve:
                curves.append(len(panel.job.status.curve))
                if curves[-1] > 12 and "picture" not in curves:
                    curves.append("picture")
                    standin.picture.grab(panel, pictures / "MLIRegistration_running.png", width=420)
            return panel.job is None

        standin.process_events_until(watch, 30)
        standin.check_slots()
        assert errors(standin) == []
        assert curves
        assert "picture" in curves
        assert panel.ui.curveLabel.isHidden()  # until the next job
        node = panel._parameterNode
        assert node.outputTransform.GetClassName() == "vtkMRMLLinearTransformNode"
        assert moving.GetParentTransformNode() is node.outputTransform
        assert fixed.GetParentTransformNode() is None
        panel.ui.otherNodeSelector.setCurrentNode(points)
        panel.ui.transformOtherButton.click()
        np.testing.assert_allclose(world(points), np.array([5, 6, 7]) + BACK, atol=1e-9)
        for volume, value in ((node.outputWarped, 5.0), (node.outputJacobian, 1.0)):
            array = slicer.util.arrayFromVolume(volume)
            assert array.shape == slicer.util.arrayFromVolume(fixed).shape
            assert (array == value).all()
        rows = {
            node.qualityTable.GetCellText(row, 0): [node.qualityTable.GetCellText(row, c) for c in (1, 2)]
            for row in range(node.qualityTable.GetNumberOfRows())
        }
        assert rows["Normalised mutual information \N{UPWARDS ARROW}"] == ["1.1", "1.4"]
        assert rows["Folded voxels"] == ["", "0 %"]
        assert rows["Jacobian, smallest and largest"] == ["", "1 to 1"]
        assert "It looks too good." in panel.ui.warningsLabel.text
        assert not panel.ui.warningsLabel.isHidden()
        assert '"task": "register"' in node.record.GetText()
        assert "mli-job-" not in node.record.GetText()
        assert temporary_folders() == []
        assert panel.ui.showOverlapButton.isHidden()
        panel.ui.showCurveButton.click()
        selection = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        assert selection.GetActivePlotChartID() == node.curveChart.GetID()
        panel.ui.histogramButton.click()
        finish(panel, standin)
        assert not panel.ui.histogramLabel.isHidden()
        standin.picture.grab(panel, pictures / "MLIRegistration_result.png", width=420)

    def test_a_deformable_result_moves_landmarks_in_both_directions(self, panel, standin):
        add_pair(panel)
        choose(panel.ui.presetComboBox, "deformable")
        apply(panel, standin)
        assert errors(standin) == []
        transform = panel._parameterNode.outputTransform
        assert transform.GetClassName() == "vtkMRMLGridTransformNode"
        # the middle of the fixed volume, where the field lies
        inside = (motion(3) @ np.diag([-1.1, 0.9, 1.3, 1.0]) @ [10, 9, 8, 1])[:3]
        along, back = add_points("of the moving", [inside - BACK]), add_points("of the fixed", [inside])
        panel.ui.otherNodeSelector.setCurrentNode(along)
        panel.ui.transformOtherButton.click()
        np.testing.assert_allclose(world(along), inside, atol=1e-4)
        panel.ui.otherNodeSelector.setCurrentNode(back)
        panel.ui.invertButton.click()
        np.testing.assert_allclose(world(back), inside - BACK, atol=1e-4)
        panel.ui.invertButton.click()  # the inverse is made once
        assert len(slicer.util.getNodesByClass("vtkMRMLGridTransformNode")) == 2

    def test_what_belongs_to_the_moving_volume_goes_with_it(self, panel, standin):
        _, moving = add_pair(panel)
        own = linear(slicer.mrmlScene, motion(8), "own")
        node = panel._parameterNode
        node.fixedPoints, node.movingPoints = add_points("F", np.eye(4)[:, :3]), add_points("M", np.eye(4)[:, :3])
        for other in (moving, node.movingPoints):
            other.SetAndObserveTransformNodeID(own.GetID())
        choose(panel.ui.presetComboBox, "rigid")
        before = world(node.movingPoints)
        apply(panel, standin)
        assert errors(standin) == []
        np.testing.assert_allclose(world(node.movingPoints), before + BACK, atol=1e-9)
        assert moving.GetParentTransformNode() is node.movingPoints.GetParentTransformNode()
        assert node.fixedPoints.GetParentTransformNode() is None
        assert own.GetParentTransformNode() is None

    def test_structures_are_paired_by_name_and_shown_as_bars(self, panel, standin, pictures):
        add_pair(panel)
        for side, names in (("fixed", ("Liver", "left only")), ("moving", ("liver", "right only"))):
            made = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", side)
            volume = getattr(panel._parameterNode, f"{side}Volume")
            made.SetReferenceImageGeometryParameterFromVolumeNode(volume)
            for name in names:
                identifier = made.GetSegmentation().AddEmptySegment(name, name)
                array = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
                array[4:8, 4:8, 4:8] = 1
                slicer.util.updateSegmentBinaryLabelmapFromArray(array, made, identifier, volume)
            setattr(panel._parameterNode, f"{side}Segmentation", made)
        choose(panel.ui.presetComboBox, "rigid")
        apply(panel, standin)
        assert errors(standin) == []
        table = panel._parameterNode.qualityTable
        rows = [table.GetCellText(row, 0) for row in range(table.GetNumberOfRows())]
        assert "Dice, Liver" in rows
        chart = panel._parameterNode.overlapChart
        bars = chart.GetNthPlotSeriesNode(1).GetTableNode()
        assert bars.GetCellText(0, 0) == "Liver"
        assert float(bars.GetCellText(0, 2)) == pytest.approx(0.9)
        panel.ui.showOverlapButton.click()

    def test_applying_again_starts_from_the_place_without_the_result(self, panel, standin, monkeypatch):
        """Also when the kind changes, which needs another node; the first result stays in the scene."""
        monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda *_: True)
        _, moving = add_pair(panel)
        choose(panel.ui.presetComboBox, "rigid")
        apply(panel, standin)
        first, count = panel._parameterNode.outputTransform, slicer.mrmlScene.GetNumberOfNodes()
        apply(panel, standin)
        assert panel._parameterNode.outputTransform is first
        assert slicer.mrmlScene.GetNumberOfNodes() == count
        choose(panel.ui.presetComboBox, "deformable")
        apply(panel, standin)
        second = panel._parameterNode.outputTransform
        assert second is not first
        assert moving.GetParentTransformNode() is second
        assert second.GetParentTransformNode() is None
        apply(panel, standin)
        assert panel._parameterNode.outputTransform is second
        assert errors(standin) == []

    def test_a_result_is_not_replaced_without_asking(self, panel, standin, monkeypatch):
        asked = []
        monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda text, *_: asked.append(text))  # answers no
        _, moving = add_pair(panel)
        choose(panel.ui.presetComboBox, "deformable")
        apply(panel, standin)
        assert asked == []
        first, table = panel._parameterNode.outputTransform, panel._parameterNode.qualityTable
        apply(panel, standin)
        assert "is not empty" in asked[0]
        assert panel._parameterNode.outputTransform is not first
        assert panel._parameterNode.qualityTable is not table
        assert moving.GetParentTransformNode() is panel._parameterNode.outputTransform

    def test_starting_from_a_transform(self, panel, standin):
        """The record shows that a file was handed over, under the transform's name."""
        add_pair(panel)
        start = linear(slicer.mrmlScene, motion(2), "start")
        choose(panel.ui.initComboBox, "transform")
        assert "Choose the transform to start from" in panel.ui.applyButton.toolTip
        panel.ui.initialTransformSelector.setCurrentNode(start)
        apply(panel, standin)
        assert errors(standin) == []
        assert '"init": "start.tfm"' in panel._parameterNode.record.GetText()

    def test_masks_may_be_segmentations_or_label_maps(self, panel, standin):
        fixed, moving = add_pair(panel)
        made = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "region")
        made.SetReferenceImageGeometryParameterFromVolumeNode(fixed)
        made.GetSegmentation().AddEmptySegment("a", "a")
        array = np.ones(slicer.util.arrayFromVolume(fixed).shape, np.uint8)
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, made, "a", fixed)
        labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "label map")
        slicer.util.updateVolumeFromArray(labels, np.ones_like(slicer.util.arrayFromVolume(moving), np.uint8))
        panel.ui.fixedMaskSelector.setCurrentNode(made)
        panel.ui.movingMaskSelector.setCurrentNode(labels)
        apply(panel, standin)
        assert errors(standin) == []
        record = panel._parameterNode.record.GetText()
        assert '"fixed_mask": "region.nrrd"' in record
        assert '"moving_mask": "label map.nrrd"' in record


class TestViews:
    def test_flicker_shows_the_volumes_in_turn(self, panel, standin):
        fixed, moving = add_pair(panel)
        apply(panel, standin)
        composite = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
        assert composite.GetBackgroundVolumeID() == fixed.GetID()
        assert composite.GetForegroundVolumeID() == moving.GetID()
        panel.ui.flickerButton.click()
        seen = {composite.GetForegroundOpacity()}
        standin.process_events_until(lambda: seen.add(composite.GetForegroundOpacity()) or seen >= {0.0, 1.0}, 5)
        panel.ui.flickerButton.click()
        assert composite.GetForegroundOpacity() == 0.5
        assert not panel.ui.flickerButton.checked

    def test_checkerboard_and_difference_show_what_the_transform_does(self, panel, standin, pictures):
        """The moving volume is the fixed one, moved by what the worker finds: then no square and no edge is seen."""
        voxels = np.random.default_rng(1).uniform(0, 100, (16, 18, 20)).astype(np.float32)
        moving = add_volume("fixed", array=voxels) and add_volume("moving", array=2 * voxels + 30)
        moving.SetOrigin(*(np.array(moving.GetOrigin()) - BACK))
        panel.initializeParameterNode()
        choose(panel.ui.presetComboBox, "rigid")
        apply(panel, standin)
        node = panel._parameterNode
        panel.ui.checkerboardButton.click()
        finish(panel, standin)
        np.testing.assert_allclose(slicer.util.arrayFromVolume(node.checkerboard), voxels, atol=0.1)
        panel.ui.differenceButton.click()
        finish(panel, standin)
        np.testing.assert_allclose(slicer.util.arrayFromVolume(node.difference), 0.0, atol=0.1)
        composite = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
        assert composite.GetBackgroundVolumeID() == node.difference.GetID()
        node.outputTransform.SetMatrixTransformToParent(vtk.vtkMatrix4x4())
        before, count = node.checkerboard, slicer.mrmlScene.GetNumberOfNodes()
        panel.ui.checkerboardButton.click()
        finish(panel, standin)
        assert node.checkerboard is before  # filled again
        assert slicer.mrmlScene.GetNumberOfNodes() == count
        assert np.abs(slicer.util.arrayFromVolume(node.checkerboard) - voxels).max() > 10
        assert errors(standin) == []


class TestErrors:
    def test_an_empty_volume_is_named(self, panel, standin):
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        add_volume("other")
        panel.initializeParameterNode()
        before = scene_state()
        apply(panel, standin)
        assert "empty holds no image" in errors(standin)[0]
        assert scene_state() == before
        assert temporary_folders() == []

    def test_segments_without_partners_are_refused(self, panel, standin):
        add_pair(panel)
        for side, names in (("fixed", "ab"), ("moving", "cd")):
            made = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{side} structures")
            for name in names:
                made.GetSegmentation().AddEmptySegment(name, name)
            setattr(panel._parameterNode, f"{side}Segmentation", made)
        before = scene_state()
        apply(panel, standin)
        assert "do not correspond" in errors(standin)[0]
        assert scene_state() == before

    def test_a_volume_removed_meanwhile_leaves_no_result(self, panel, standin):
        _, moving = add_pair(panel)
        panel.ui.applyButton.click()
        standin.process_events_until(lambda: panel.job.status.curve, 30)
        slicer.mrmlScene.RemoveNode(moving)
        finish(panel, standin)
        assert "was removed" in errors(standin)[0]
        assert results() == []


class TestSaving:
    def test_choices_and_results_come_back_with_the_scene(self, panel, standin, tmp_path):
        add_pair(panel)
        choose(panel.ui.presetComboBox, "rigid-multimodal")
        panel.ui.regularisationSpinBox.value = 2.5
        apply(panel, standin)
        panel.ui.histogramButton.click()
        finish(panel, standin)
        assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
        slicer.mrmlScene.Clear()
        assert panel._parameterNode.outputTransform is None
        slicer.util.loadScene(str(tmp_path / "scene.mrb"))
        standin.check_slots()
        node = panel._parameterNode
        assert (node.preset, node.similarity, node.regularisation) == ("rigid-multimodal", "nmi", 2.5)
        assert node.movingVolume.GetParentTransformNode() is node.outputTransform
        assert panel.ui.qualityTableView.mrmlTableNode() is node.qualityTable
        assert "It looks too good." in panel.ui.warningsLabel.text
        assert not panel.ui.resultsCollapsibleButton.isHidden()
        assert not panel.ui.histogramLabel.isHidden()


@pytest.mark.skipif(os.name != "posix", reason="process groups and signals are POSIX")
class TestStopping:
    def test_cancel_leaves_no_process_and_the_scene_as_it_was(self, panel, standin, fake_runner):
        add_pair(panel)
        panel.ui.seedSpinBox.value = 99  # the worker then sleeps
        before = scene_state()
        panel.ui.applyButton.click()
        standin.process_events_until(lambda: "level" in panel.job.status.stage, 30)
        cancel_at_once(panel, standin, fake_runner, before)

    def test_closing_the_scene_cancels_and_stops_the_flicker(self, panel, standin):
        add_pair(panel)
        apply(panel, standin)
        panel.ui.flickerButton.click()
        panel.ui.seedSpinBox.value = 99
        panel._parameterNode.outputTransform = None
        panel.ui.applyButton.click()
        slicer.mrmlScene.Clear()
        finish(panel, standin, 5)
        assert not panel._flicker.isActive()
        assert results() == []
        assert temporary_folders() == []
        assert errors(standin) == []

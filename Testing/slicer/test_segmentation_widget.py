"""MLI Segmentation clicked through with the real worker and models of random weights.

Load, Apply, progress, result, Cancel, error, scene close, save and reload; the GUI's longest pause, the time a cancel
takes and what a second Apply adds are measured here.
"""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import slicer

pytest.importorskip("torch", reason="torch is not installed")

import clicks
from clicks import errors, temporary_folders
from gaps import Gaps, require_quiet
from processes import alive, children
from scenes import add_volume, linear, motion, scene_state

MODULE = Path(__file__).resolve().parents[2] / "MLIModules" / "Segmentation" / "MLISegmentation.py"

#: Seconds: the first job of a worker imports torch, which takes long on a busy machine.
PATIENCE = 240


def finish(widget, standin, seconds=PATIENCE):
    """Let the job end."""
    clicks.finish(widget, standin, seconds)


def apply(widget, standin):
    """Press Apply and let the job end."""
    clicks.apply(widget, standin, PATIENCE)


class TestBeforeAJob:
    def test_apply_says_what_is_missing(self, widget):
        assert not widget.ui.applyButton.enabled
        assert widget.ui.applyButton.toolTip == "Choose an input volume."
        assert widget.ui.statusLabel.text == "Choose an input volume."

    def test_a_loaded_volume_is_chosen_and_apply_is_ready(self, widget):
        volume = add_volume()
        assert widget.ui.inputVolumeSelector.currentNode() is volume
        assert widget.ui.applyButton.enabled
        assert widget.ui.statusLabel.isHidden()

    def test_the_models_are_offered_with_their_card(self, widget):
        combo = widget.ui.modelComboBox
        names = [combo.itemData(index) for index in range(combo.count)]
        assert {"tiny", "tiny-second", "three-channels"} <= set(names)
        assert "anterior" in widget.ui.modelSummaryBrowser.plainText
        assert "Random weights, for tests." in widget.ui.modelCardBrowser.plainText

    def test_a_model_with_several_channels_asks_for_each(self, widget):
        add_volume()
        widget.ui.modelComboBox.setCurrentIndex(widget.ui.modelComboBox.findData("three-channels"))
        hidden = [getattr(widget.ui, f"inputVolume{n}Selector").isHidden() for n in ("", 2, 3, 4)]
        assert hidden == [False, False, False, True]
        assert widget.ui.inputVolume3Label.text == "image 3:"
        assert widget.ui.applyButton.toolTip == "Choose a volume for 'image 2'."

    def test_a_model_that_is_gone_is_named(self, widget):
        add_volume()
        widget._parameterNode.model = "lost"
        assert widget.ui.modelComboBox.currentText == "lost (not installed)"
        assert "'lost' is not installed" in widget.ui.applyButton.toolTip
        assert not widget.ui.applyButton.enabled

    def test_settings_have_the_defaults_and_help_of_the_task(self, widget):
        from MLILib.segmentation.requests import SegmentRequest

        settings = {s.name: s for s in SegmentRequest.settings()}
        for name in ("device", "tta", "mc_dropout", "keep_largest", "ensemble", "overlap", "seed"):
            assert getattr(widget._parameterNode, name) == settings[name].default
        assert settings["overlap"].help in widget.ui.overlapSlider.toolTip
        assert widget.ui.overlapSlider.maximum == settings["overlap"].maximum
        assert settings["device"].help in widget.ui.deviceComboBox.toolTip

    def test_half_a_tile_is_refused(self, widget):
        add_volume()
        widget.ui.tileXSpinBox.value = 32
        assert "all three sizes" in widget.ui.applyButton.toolTip

    def test_parameter_sets_keep_their_own_choices(self, widget):
        selector = widget.ui.parameterNodeSelector
        first = selector.currentNode()
        widget.ui.overlapSlider.value = 0.25
        second = selector.addNode()
        assert widget._parameterNode.parameterNode is second
        assert widget.ui.overlapSlider.value == 0.5
        selector.setCurrentNode(first)
        assert widget.ui.overlapSlider.value == 0.25

    def test_without_packages_the_panel_opens_and_says_what_to_do(self, standin, model_folder, monkeypatch):
        from MLILib.errors import MissingPackage
        from MLISlicerLib import install

        monkeypatch.setattr(install, "missing", lambda: ["torch>=2.8"])
        monkeypatch.setattr(install, "_complete", False)  # another test may have found all there
        slicer.mrmlScene.Clear()
        standin.messages.clear()
        _, made = standin.load_module(MODULE)
        made._parameterNode.model = "tiny"
        add_volume()
        assert not made.ui.installButton.isHidden()
        assert "torch>=2.8" in made.ui.checkBrowser.plainText
        made.ui.applyButton.click()
        assert "torch>=2.8" in errors(standin)[0]
        assert made.job is None
        with pytest.raises(MissingPackage):
            install.ensure("MLISegmentation")
        standin.unload_module("MLISegmentation")


class TestResult:
    def test_the_first_job(self, widget, standin, pictures, tmp_path):
        """Everything a result consists of, from one click; one test, since the worker's start takes seconds."""
        volume = add_volume()
        volume.SetAndObserveTransformNodeID(linear(slicer.mrmlScene, motion(9)).GetID())
        seen = set()
        widget.ui.uncertaintyCheckBox.click()
        standin.picture.grab(widget, pictures / "MLISegmentation_ready.png", width=420)
        widget.ui.advancedCollapsibleButton.collapsed = False
        widget.ui.modelCardButton.collapsed = False
        standin.picture.grab(widget, pictures / "MLISegmentation_advanced.png", width=420)
        widget.ui.advancedCollapsibleButton.collapsed = True
        widget.ui.modelCardButton.collapsed = True
        widget.ui.applyButton.click()
        assert widget.ui.applyButton.text == "Cancel"
        assert not widget.ui.progressBar.isHidden()

        def watch():
            if widget.job is not None:
                seen.add(widget.job.status.stage)
                status = widget.job.status
                if status.stage == "Segmenting" and status.eta is not None and "picture" not in seen:
                    seen.add("picture")
                    standin.picture.grab(widget, pictures / "MLISegmentation_running.png", width=420)
            return widget.job is None

        standin.process_events_until(watch, PATIENCE)
        standin.check_slots()
        assert errors(standin) == []
        assert "Segmenting" in seen
        assert widget.ui.applyButton.text == "Apply"
        assert widget.ui.progressBar.isHidden()
        assert widget.ui.statusLabel.text.startswith("Done in ")
        standin.picture.grab(widget, pictures / "MLISegmentation_result.png", width=420)

        node = widget._parameterNode
        segmentation = node.outputSegmentation.GetSegmentation()
        segments = [segmentation.GetNthSegment(index) for index in range(segmentation.GetNumberOfSegments())]
        assert [segment.GetName() for segment in segments] == ["anterior", "posterior"]
        np.testing.assert_allclose(segments[0].GetColor(), np.array([220, 60, 60]) / 255, atol=1e-6)
        assert "85756007" in segments[0].GetTerminology()
        assert node.outputSegmentation.GetTransformNodeID() == volume.GetTransformNodeID()

        expected = self.by_the_library(volume, tmp_path)
        for value, segment_id in enumerate(segmentation.GetSegmentIDs(), start=1):
            found = slicer.util.arrayFromSegmentBinaryLabelmap(node.outputSegmentation, segment_id, volume)
            np.testing.assert_array_equal(found, expected["labels"] == value)
        uncertainty = slicer.util.arrayFromVolume(node.outputUncertainty)
        assert uncertainty.dtype == np.float32
        np.testing.assert_allclose(uncertainty, expected["entropy"], atol=1e-5)
        assert node.outputUncertainty.GetTransformNodeID() == volume.GetTransformNodeID()

        table = node.volumesTable
        assert [table.GetCellText(row, 0) for row in range(2)] == ["anterior", "posterior"]
        voxel_ml = 1.1 * 0.9 * 1.3 / 1000
        assert float(table.GetCellText(0, 1)) == pytest.approx((expected["labels"] == 1).sum() * voxel_ml, abs=1e-3)
        assert int(table.GetCellText(1, 2)) == (expected["labels"] == 2).sum()

        record = node.record.GetText()
        assert '"command": "mli segment head.nrrd --model tiny' in record
        assert "--no-compress" in record  # files that go to Slicer and back are not packed
        assert "mli-job-" not in record
        assert temporary_folders() == []

        display = node.outputUncertainty.GetDisplayNode()
        assert display.GetColorNode().IsA("vtkMRMLProceduralColorNode")
        legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node.outputUncertainty)
        assert legend.GetTitleText() == "Uncertainty (nats)"
        widget.ui.uncertaintyThresholdSlider.value = 0.5
        assert display.GetApplyThreshold()
        assert display.GetLowerThreshold() == pytest.approx(0.5)

    @staticmethod
    def by_the_library(volume, folder):
        """What MLILib makes of the same image, without Slicer."""
        import SimpleITK as sitk

        from MLILib.segmentation.inference import segment
        from MLISlicerLib import nodes

        result = segment(nodes.image_of(volume), "tiny", uncertainty=True, device="cpu")
        return {
            "labels": sitk.GetArrayFromImage(result.labels),
            "entropy": sitk.GetArrayFromImage(result.entropy),
        }

    @pytest.mark.alone
    def test_the_second_apply_reuses_the_worker_and_never_holds_the_gui(self, widget, standin, capsys):
        add_volume(size=(96, 96, 96))
        apply(widget, standin)
        pid = widget.runner.worker.hello["pid"]
        results, attempts = [], []
        show = widget.showResult
        widget.showResult = lambda result: (results.append(result), show(result))
        for _ in range(3):  # another process may hold a busy machine up: a pause of ours would be there each time
            widget.ui.segmentationSelector.setCurrentNode(None)
            with Gaps() as gaps:
                begin = time.monotonic()
                apply(widget, standin)
                spent = time.monotonic() - begin
            attempts.append((gaps.longest, spent - results[-1].details["seconds"]))
        with capsys.disabled():
            for longest, added in attempts:
                print(
                    f"\n  longest pause of the GUI {1000 * longest:.0f} ms, added by a second Apply {added:.2f} s",
                    end="",
                )
        assert widget.runner.worker.hello["pid"] == pid
        assert errors(standin) == []
        require_quiet()
        assert min(longest for longest, _ in attempts) < 0.1
        assert min(added for _, added in attempts) < 0.5

    def test_with_a_reference_the_agreement_is_measured(self, widget, standin, pictures):
        add_volume()
        apply(widget, standin)
        widget.ui.referenceSelector.setCurrentNode(widget._parameterNode.outputSegmentation)
        widget.ui.segmentationSelector.setCurrentNode(None)
        apply(widget, standin)
        assert errors(standin) == []
        table = widget._parameterNode.metricsTable
        np.testing.assert_allclose(slicer.util.arrayFromTableColumn(table, "Dice"), [1.0, 1.0, 1.0])
        np.testing.assert_allclose(slicer.util.arrayFromTableColumn(table, "Hausdorff (mm)"), [0.0, 0.0, 0.0])
        chart = widget._parameterNode.metricsChart
        assert [chart.GetNthPlotSeriesNode(n).GetYColumnName() for n in range(2)] == ["Dice", "Surface Dice"]
        standin.picture.grab(widget, pictures / "MLISegmentation_compared.png", width=420)
        widget.ui.showPlotButton.click()
        selection = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        assert selection.GetActivePlotChartID() == chart.GetID()

    def test_a_reference_with_other_names_is_refused(self, widget, standin):
        add_volume()
        reference = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "expert")
        for name in ("liver", "spleen"):
            reference.GetSegmentation().AddEmptySegment(name, name)
        widget.ui.referenceSelector.setCurrentNode(reference)
        before = scene_state()
        apply(widget, standin)
        assert "'liver', 'spleen'" in errors(standin)[0]
        assert scene_state() == before

    def test_segments_are_not_replaced_without_asking(self, widget, standin, monkeypatch):
        add_volume()
        kept = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "kept")
        kept.GetSegmentation().AddEmptySegment("mine", "mine")
        widget.ui.segmentationSelector.setCurrentNode(kept)
        asked = []
        monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda text, *_: asked.append(text))  # answers no
        apply(widget, standin)
        assert "'kept' is not empty" in asked[0]
        assert kept.GetSegmentation().GetSegment("mine") is not None
        assert widget._parameterNode.outputSegmentation is not kept

    def test_replacing_a_result_refreshes_what_describes_it(self, widget, standin, monkeypatch):
        asked = []
        monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda text, *_: asked.append(text) or True)
        add_volume()
        widget.ui.uncertaintyCheckBox.click()
        apply(widget, standin)
        before = slicer.mrmlScene.GetNumberOfNodes()
        table, first = widget._parameterNode.volumesTable, widget._parameterNode.volumesTable.GetCellText(0, 2)
        widget.ui.modelComboBox.setCurrentIndex(widget.ui.modelComboBox.findData("tiny-second"))
        apply(widget, standin)
        assert len(asked) == 2  # for the segments and for the uncertainty map
        assert slicer.mrmlScene.GetNumberOfNodes() == before
        assert widget._parameterNode.volumesTable is table
        assert table.GetCellText(0, 2) != first

    def test_dropout_samples_and_several_models(self, widget, standin):
        add_volume()
        widget.ui.uncertaintyCheckBox.click()
        widget.ui.mcDropoutSpinBox.value = 3
        widget._parameterNode.moreModels = ["tiny-second"]
        apply(widget, standin)
        assert errors(standin) == []
        assert slicer.util.getNode("head mutual information").GetImageData() is not None
        assert "tiny-second" in widget._parameterNode.record.GetText()

    def test_channels_go_in_the_models_order(self, widget, standin):
        for number in (1, 2, 3):
            add_volume(f"channel{number}")
        widget.ui.modelComboBox.setCurrentIndex(widget.ui.modelComboBox.findData("three-channels"))
        for suffix, name in (("", "channel2"), (2, "channel3"), (3, "channel1")):
            getattr(widget.ui, f"inputVolume{suffix}Selector").setCurrentNode(slicer.util.getNode(name))
        apply(widget, standin)
        assert errors(standin) == []
        assert "mli segment channel2.nrrd channel3.nrrd channel1.nrrd" in widget._parameterNode.record.GetText()

    def test_check_this_computer(self, widget, standin, pictures):
        widget.ui.computerCollapsibleButton.collapsed = False
        widget.ui.checkButton.click()
        finish(widget, standin)
        assert errors(standin) == []
        assert "Python:" in widget.ui.checkBrowser.plainText
        standin.picture.grab(widget, pictures / "MLISegmentation_check.png", width=420)

    def test_a_model_of_the_users_is_added_and_chosen(self, widget, standin, model_folder, tmp_path, monkeypatch):
        from tiny_bundle import write_tiny_bundle

        from MLISlicerLib import model_chooser as shared

        source = write_tiny_bundle(tmp_path / "mine", labels=("x",))
        monkeypatch.setattr(shared, "chooseModelSource", lambda parent, zipped: str(source))
        widget.onAddModel(False)
        finish(widget, standin)
        assert errors(standin) == []
        assert (model_folder / "mine" / "models" / "model.pt").is_file()
        assert widget._parameterNode.model == "mine"
        assert widget.ui.modelComboBox.currentText == "mine (yours)"

    def test_a_model_that_runs_code_is_added_only_when_its_authors_are_trusted(
        self, widget, standin, model_folder, tmp_path, monkeypatch
    ):
        import json

        from tiny_bundle import write_tiny_bundle

        from MLISlicerLib import model_chooser as shared

        source = write_tiny_bundle(tmp_path / "clever", labels=("x",))
        config = source / "configs" / "inference.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        code = {"_target_": "Lambdad", "keys": "@image_key", "func": "$lambda x: __import__('operator').pos(x)"}
        settings["preprocessing"]["transforms"].append(code)
        config.write_text(json.dumps(settings), encoding="utf-8")
        monkeypatch.setattr(shared, "chooseModelSource", lambda parent, zipped: str(source))
        for answer in (False, True):
            monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda *_, answer=answer: answer)
            widget.onAddModel(False)
            standin.process_events_until(lambda: widget.job is None and not widget.runner.jobs, PATIENCE)
            assert (model_folder / "clever").is_dir() is answer
            assert len(errors(standin)) == 1  # of the refusal

    def test_a_model_of_the_same_name_is_replaced_only_when_asked(
        self, widget, standin, model_folder, tmp_path, monkeypatch
    ):
        from tiny_bundle import write_tiny_bundle

        from MLISlicerLib import model_chooser as shared

        write_tiny_bundle(model_folder / "twice", labels=("old",))
        source = write_tiny_bundle(tmp_path / "twice", labels=("new",))
        widget.fillModels()
        monkeypatch.setattr(shared, "chooseModelSource", lambda parent, zipped: str(source))
        for answer, label in ((False, "old"), (True, "new")):
            monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda *_, answer=answer: answer)
            widget.onAddModel(False)
            finish(widget, standin)
            assert widget.models["twice"].bundle.labels[0].name == label
        assert errors(standin) == []


class TestErrors:
    def test_bad_input_is_one_dialog_with_three_sentences(self, widget, standin):
        add_volume(array=np.full((20, 20, 20), 7.0, np.float32))
        before = scene_state()
        apply(widget, standin)
        assert len(errors(standin)) == 1
        assert errors(standin)[0].count("\n\n") >= 1
        assert errors(standin)[0].startswith("head is 7 everywhere.")
        assert scene_state() == before
        assert temporary_folders() == []
        assert widget.ui.applyButton.enabled

    def test_a_volume_without_image_is_named(self, widget, standin):
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        apply(widget, standin)
        assert "empty holds no image" in errors(standin)[0]

    def test_a_volume_removed_meanwhile_leaves_no_result(self, widget, standin):
        volume = add_volume()
        widget.ui.applyButton.click()
        standin.process_events_until(lambda: widget.job.status.stage not in ("", "Starting"), PATIENCE)
        slicer.mrmlScene.RemoveNode(volume)
        finish(widget, standin)
        assert "was removed" in errors(standin)[0]
        assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


class TestSaving:
    def test_choices_and_results_come_back_with_the_scene(self, widget, standin, tmp_path):
        add_volume()
        widget.ui.keepLargestCheckBox.click()
        widget.ui.overlapSlider.value = 0.3
        widget.ui.deviceComboBox.setCurrentIndex(widget.ui.deviceComboBox.findData("cpu"))
        second = widget.ui.parameterNodeSelector.addNode()
        widget._parameterNode.model = "tiny"
        widget.ui.mcDropoutSpinBox.value = 5
        widget.ui.parameterNodeSelector.setCurrentNodeIndex(0)
        first = widget._parameterNode.parameterNode.GetName()
        apply(widget, standin)
        assert errors(standin) == []
        assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
        slicer.mrmlScene.Clear()
        assert widget._parameterNode.outputSegmentation is None
        slicer.util.loadScene(str(tmp_path / "scene.mrb"))
        standin.check_slots()
        nodes = {n.GetName(): widget.logic.wrapParameterNode(n) for n in widget.logic.getAllParameterNodes()}
        again = nodes[first]
        assert (again.model, again.device, again.keep_largest) == ("tiny", "cpu", True)
        assert again.overlap == pytest.approx(0.3)
        assert again.inputVolume.GetName() == "head"
        assert again.outputSegmentation.GetSegmentation().GetNumberOfSegments() == 2
        assert again.volumesTable.GetCellText(0, 0) == "anterior"
        assert '"task": "segment"' in again.record.GetText()
        assert nodes[second.GetName()].mc_dropout == 5
        assert len(nodes) == 2  # the empty set that stood in the closed scene has gone
        assert widget.ui.parameterNodeSelector.currentNode().GetName() == first
        assert widget.ui.overlapSlider.value == pytest.approx(0.3)
        assert widget.ui.volumesTableView.mrmlTableNode() is again.volumesTable


@pytest.mark.skipif(os.name != "posix", reason="process groups and signals are POSIX")
class TestStopping:
    """Last, since each of these ends the worker."""

    def start_long_job(self, widget, standin):
        """A job that is computing; the state of the scene before it began."""
        add_volume()
        widget.ui.mcDropoutSpinBox.value = 1000
        before = scene_state()
        widget.ui.applyButton.click()
        standin.process_events_until(lambda: widget.job.status.stage == "Segmenting", PATIENCE)
        return before

    def test_a_killed_worker_is_an_error_and_the_next_apply_works(self, widget, standin):
        before = self.start_long_job(widget, standin)
        os.kill(widget.runner.worker.hello["pid"], signal.SIGKILL)
        finish(widget, standin, 5)
        assert "ran out of memory" in errors(standin)[0]
        assert scene_state() == before
        assert temporary_folders() == []
        widget.ui.mcDropoutSpinBox.value = 0
        standin.messages.clear()
        apply(widget, standin)
        assert errors(standin) == []
        assert widget._parameterNode.outputSegmentation is not None

    def test_cancel_leaves_no_process_and_the_scene_as_it_was(self, widget, standin, capsys):
        before = self.start_long_job(widget, standin)
        pids = {widget.runner.worker.pid, widget.runner.worker.hello["pid"], *children(widget.runner.worker.pid)}
        with Gaps() as gaps:
            begin = time.monotonic()
            widget.ui.applyButton.click()
            assert not widget.ui.applyButton.enabled
            finish(widget, standin, 5)
            took = time.monotonic() - begin
        with capsys.disabled():
            print(f"\n  cancel took {took:.2f} s, longest pause of the GUI {1000 * gaps.longest:.0f} ms", end="")
        assert took < 2.0
        assert not any(alive(pid) for pid in pids)
        assert scene_state() == before
        assert temporary_folders() == []
        assert errors(standin) == []
        assert widget.ui.statusLabel.text == "Cancelled. The scene is as it was."
        assert widget.ui.applyButton.text == "Apply"

    def test_cancel_before_the_worker_is_up(self, widget, standin):
        add_volume()
        before = scene_state()
        widget.ui.applyButton.click()
        standin.process_events_until(lambda: widget.runner.worker is not None, 10)
        pid = widget.runner.worker.pid
        widget.ui.applyButton.click()
        finish(widget, standin, 3)
        assert not alive(pid)
        assert scene_state() == before

    def test_closing_the_scene_cancels(self, widget, standin):
        add_volume()
        widget.ui.applyButton.click()
        standin.process_events_until(lambda: widget.runner.worker is not None, 10)
        slicer.mrmlScene.Clear()
        finish(widget, standin, 3)
        assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
        assert temporary_folders() == []
        assert errors(standin) == []

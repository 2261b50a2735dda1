"""MLI AtlasFusion clicked through with the real worker, on images of some thousand voxels."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import slicer

pytest.importorskip("torch", reason="torch is not installed")

from clicks import choose, errors, finish, temporary_folders
from processes import alive, children
from scenes import add_volume, linear, scene_state
from test_fusion_widget import MODULE, add_segmentation, listed, settle

#: Seconds: the first job of a worker imports torch, which takes long on a busy machine.
PATIENCE = 240
SHAPE = (16, 18, 20)


@pytest.fixture(scope="module")
def runner(standin, tmp_path_factory):
    """A runner whose worker keeps registered atlases in a folder of the tests'."""
    from MLISlicerLib.jobs import JobRunner

    before = os.environ.get("MLI_CACHE")
    os.environ["MLI_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    made = JobRunner()
    yield made
    made.close()
    if before is None:
        del os.environ["MLI_CACHE"]
    else:
        os.environ["MLI_CACHE"] = before


@pytest.fixture
def panel(user_models, runner, monkeypatch, open_panel):
    """The panel in an empty scene; it computes on the CPU."""
    from MLISlicerLib import install
    from MLISlicerLib import widget as shared

    if install.missing():
        pytest.skip("packages are not installed: " + ", ".join(install.missing()))
    monkeypatch.setattr(shared, "shared_runner", lambda: runner)
    made = open_panel(MODULE)
    made._parameterNode.device = "cpu"
    made._parameterNode.registration = "rigid"
    return made


def blob(seed):
    """An image with one bright, long body off its middle, and noise of its own."""
    z, y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in SHAPE), indexing="ij")
    body = np.exp(-(((z - 7) / 3.0) ** 2 + ((y - 10) / 5.0) ** 2 + ((x - 9) / 3.0) ** 2))
    wave = 0.2 * np.sin(x / 3.0) * np.cos(y / 4.0)
    noise = np.random.default_rng(seed).normal(0, 0.02, SHAPE)
    return (100 * (body + wave + noise)).astype(np.float32)


def add_pair(name, seed):
    """A volume of that body, and its segmentation, each drawn a little wider."""
    array = blob(seed)
    volume = add_volume(name, array=array)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{name} labels")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    identifier = node.GetSegmentation().AddEmptySegment("body", "body")
    z, y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in SHAPE), indexing="ij")
    body = ((z - 7) / 3.0) ** 2 + ((y - 10) / 5.0) ** 2 + ((x - 9) / 3.0) ** 2 < 1.0 + 0.05 * seed
    slicer.util.updateSegmentBinaryLabelmapFromArray(body.astype(np.uint8), node, identifier, volume)
    return volume, node


def voxels(segmentation):
    """The first segment's label map on the grid it is stored on, (k, j, i)."""
    from vtk.util import numpy_support

    labelmap = segmentation.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap")
    array = numpy_support.vtk_to_numpy(labelmap.GetPointData().GetScalars())
    return array.reshape(labelmap.GetDimensions()[::-1])


def moved(number):
    """A small motion, another one each time."""
    matrix = np.eye(4)
    angle = 0.06 * number
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = (1.5 * number, -1.0, 0.5 * number)
    return matrix


def ready(panel, standin, count=3):
    """A target, its true labels, and a folder of atlases that were moved by transforms in the scene."""
    from MLISlicerLib import fusion_atlases

    target, truth = add_pair("target", 0)
    pairs = []
    for number in range(1, count + 1):
        pair = add_pair(f"atlas {number}", number)
        transform = linear(slicer.mrmlScene, moved(number), f"motion {number}")
        for node in pair:
            node.SetAndObserveTransformNodeID(transform.GetID())
        pairs.append(pair)
    fusion_atlases.make_folder("Atlases", [node for pair in pairs for node in pair])
    panel.initializeParameterNode()
    panel._parameterNode.targetVolume = target
    panel._parameterNode.reference = truth
    settle(panel, standin)
    return target, truth, pairs


class TestAtlases:
    def test_moved_atlases_come_back_and_are_kept_for_another_method(self, panel, standin, monkeypatch):
        monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda *_: True)
        ready(panel, standin)
        choose(panel.ui.methodComboBox, "majority")
        stages, words = set(), set()
        panel.ui.applyButton.click()

        def watch():
            if panel.job is not None:
                stages.add(panel.job.status.stage)
                words.update(listed(panel).values())
            return panel.job is None

        standin.process_events_until(watch, PATIENCE)
        standin.check_slots()
        assert errors(standin) == []
        assert "Registering atlases" in stages
        assert {"waiting", "registering", "done"} <= words
        assert list(listed(panel)) == ["atlas 1", "atlas 2", "atlas 3"]
        assert all(text.startswith("done: ") for text in listed(panel).values())
        node = panel._parameterNode
        assert node.metricsTable.GetCellText(0, 0) == "body"
        dice = slicer.util.arrayFromTableColumn(node.metricsTable, "Dice")
        assert dice[0] > 0.9
        segmentation = node.outputSegmentation.GetSegmentation()
        assert [segmentation.GetNthSegment(i).GetName() for i in range(segmentation.GetNumberOfSegments())] == ["body"]
        assert node.ratersTable.GetNumberOfRows() == 3
        record = json.loads(node.record.GetText())
        assert record["settings"]["registration"] == "rigid"
        assert record["command"].startswith("mli fuse target.nrrd --atlases Atlases")
        assert "mli-job-" not in node.record.GetText()
        assert temporary_folders() == []

        choose(panel.ui.methodComboBox, "staple")
        begin = time.monotonic()
        words.clear()
        panel.ui.applyButton.click()
        standin.process_events_until(watch, PATIENCE)
        standin.check_slots()
        assert errors(standin) == []
        assert "registering" not in words
        assert set(listed(panel).values()) == {"from cache"}
        print(f"\n  another method took {time.monotonic() - begin:.2f} s")
        headings = [node.ratersTable.GetColumnName(c) for c in range(node.ratersTable.GetNumberOfColumns())]
        assert "Est. sensitivity" in headings
        assert slicer.util.arrayFromTableColumn(node.metricsTable, "Dice")[0] > 0.9

    def test_an_atlas_that_cannot_be_used_is_told_with_its_reason(self, panel, standin):
        _, _, pairs = ready(panel, standin, count=2)
        labels = pairs[1][1]
        empty = np.zeros(SHAPE, np.uint8)
        slicer.util.updateSegmentBinaryLabelmapFromArray(empty, labels, "body", pairs[1][0])
        choose(panel.ui.methodComboBox, "majority")
        panel.ui.applyButton.click()
        finish(panel, standin, PATIENCE)
        assert errors(standin) == []
        assert listed(panel)["atlas 1"].startswith(("done", "from cache"))
        assert listed(panel)["atlas 2"].startswith("failed: The labels of atlas 2 are empty.")
        assert "1 of 2 atlases failed" in panel.ui.warningsLabel.text

    def test_where_all_fail_nothing_arrives(self, panel, standin):
        _, _, pairs = ready(panel, standin, count=1)
        slicer.util.updateSegmentBinaryLabelmapFromArray(np.zeros(SHAPE, np.uint8), pairs[0][1], "body", pairs[0][0])
        before = scene_state()
        panel.ui.applyButton.click()
        finish(panel, standin, PATIENCE)
        assert "empty" in errors(standin)[0]
        assert scene_state() == before
        assert temporary_folders() == []


class TestFiles:
    @pytest.fixture
    def folder(self, panel, tmp_path):
        """The atlases of the scene as files, in a folder of their own; they are gone from the scene."""
        import SimpleITK as sitk

        from MLISlicerLib import nodes

        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir()
        for number in (1, 2):
            volume, drawn = add_pair(f"atlas {number}", number)
            image = nodes.image_of(volume)
            sitk.WriteImage(image, str(tmp_path / "images" / f"case{number}.nrrd"))
            labels = sitk.GetImageFromArray(slicer.util.arrayFromSegmentBinaryLabelmap(drawn, "body", volume))
            labels.CopyInformation(image)
            sitk.WriteImage(labels, str(tmp_path / "labels" / f"case{number}.nrrd"))
            for node in (volume, drawn):
                slicer.mrmlScene.RemoveNode(node)
        return tmp_path

    def test_a_folder_of_files(self, panel, standin, folder):
        _, truth = add_pair("target", 0)
        panel.initializeParameterNode()
        panel._parameterNode.reference = truth
        choose(panel.ui.sourceComboBox, "files")
        panel.ui.atlasPathEdit.text = str(folder)
        choose(panel.ui.methodComboBox, "majority")
        panel.ui.checkAtlasesButton.click()
        finish(panel, standin, PATIENCE)
        assert errors(standin) == []
        assert panel.ui.statusLabel.text == "The atlas set is sound."
        panel.ui.applyButton.click()
        finish(panel, standin, PATIENCE)
        assert errors(standin) == []
        assert list(listed(panel)) == ["case1", "case2"]
        assert slicer.util.arrayFromTableColumn(panel._parameterNode.metricsTable, "Dice")[0] > 0.9
        assert json.loads(panel._parameterNode.record.GetText())["settings"]["atlases"] == str(folder)

    def test_what_is_wrong_with_files_is_said(self, panel, standin, folder):
        add_pair("target", 0)
        panel.initializeParameterNode()
        choose(panel.ui.sourceComboBox, "files")
        (folder / "labels" / "case2.nrrd").unlink()
        panel.ui.atlasPathEdit.text = str(folder)
        before = scene_state()
        panel.ui.applyButton.click()
        finish(panel, standin, PATIENCE)
        assert "case2" in errors(standin)[0]
        assert "no labels" in errors(standin)[0]
        assert scene_state() == before
        panel.ui.checkAtlasesButton.click()
        finish(panel, standin, PATIENCE)
        assert panel.ui.statusLabel.text == "Something is wrong with the atlas set."


class TestRaters:
    def test_the_majority_of_three(self, panel, standin):
        """What two of three drew, voxel by voxel; also on an oblique grid under a transform, without a target."""
        from MLISlicerLib import nodes

        volume = add_volume("seen", size=SHAPE[::-1])
        volume.SetAndObserveTransformNodeID(linear(slicer.mrmlScene, moved(4)).GetID())
        raters = [add_segmentation(f"rater {n}", volume, ("one",), corner=n) for n in (2, 3, 4)]
        panel._parameterNode.mode, panel._parameterNode.method = "raters", "majority"
        panel._parameterNode.raters = raters
        panel._parameterNode.targetVolume = None
        drawn = [slicer.util.arrayFromSegmentBinaryLabelmap(node, "one", volume) for node in raters]
        panel.ui.applyButton.click()
        finish(panel, standin, PATIENCE)
        assert errors(standin) == []
        node = panel._parameterNode
        votes = np.sum(drawn, axis=0)
        np.testing.assert_array_equal(voxels(node.outputSegmentation), votes >= 2)
        assert nodes.same_grid(nodes.grid_of_segmentation(node.outputSegmentation), nodes.grid_of(volume))
        # two of three agree: the entropy of 1/3 and 2/3
        bits = -(np.log2(1 / 3) / 3 + 2 * np.log2(2 / 3) / 3)
        disagreement = slicer.util.arrayFromVolume(node.outputDisagreement)
        np.testing.assert_allclose(disagreement, np.where((votes == 1) | (votes == 2), bits, 0.0), atol=1e-6)
        kappa = [line for line in panel.ui.agreementLabel.text.split("</p>") if "kappa" in line]
        assert len(kappa) == 1

    def test_raters_of_another_grid_are_brought_to_the_target(self, panel, standin):
        coarse = add_volume("coarse", size=(10, 9, 8))
        coarse.SetSpacing(*(2 * s for s in coarse.GetSpacing()))
        rater = add_segmentation("on coarse", coarse, ("one",), corner=2)
        target = add_volume("target", size=(20, 18, 16))
        panel._parameterNode.mode, panel._parameterNode.method = "raters", "majority"
        panel._parameterNode.raters, panel._parameterNode.targetVolume = [rater], target
        panel.ui.applyButton.click()
        finish(panel, standin, PATIENCE)
        assert errors(standin) == []
        node = panel._parameterNode
        identifier = node.outputSegmentation.GetSegmentation().GetSegmentIDs()[0]
        found = slicer.util.arrayFromSegmentBinaryLabelmap(node.outputSegmentation, identifier, target)
        expected = slicer.util.arrayFromSegmentBinaryLabelmap(rater, "one", target)  # Slicer's own resampling
        np.testing.assert_array_equal(found, expected)
        assert "There is one rater" in panel.ui.agreementLabel.text

    def test_empty_raters_are_refused(self, panel, standin):
        volume = add_volume("seen", size=SHAPE[::-1])
        rater = add_segmentation("blank", volume, ("one",))
        slicer.util.updateSegmentBinaryLabelmapFromArray(np.zeros(SHAPE, np.uint8), rater, "one", volume)
        panel._parameterNode.mode, panel._parameterNode.method = "raters", "staple"
        panel._parameterNode.raters = [rater]
        before = scene_state()
        panel.ui.applyButton.click()
        finish(panel, standin, PATIENCE)
        assert "empty" in errors(standin)[0]
        assert scene_state() == before


@pytest.mark.skipif(os.name != "posix", reason="process groups and signals are POSIX")
class TestStopping:
    def test_cancel_while_atlases_are_registered(self, panel, standin, runner):
        ready(panel, standin)
        panel._parameterNode.registration = "deformable"
        panel._parameterNode.keep = False
        before = scene_state()
        panel.ui.applyButton.click()
        standin.process_events_until(lambda: "registering" in listed(panel).values(), PATIENCE)
        pid = runner.worker.pid
        others, begin = children(pid), time.monotonic()
        panel.ui.applyButton.click()
        finish(panel, standin, 10)
        assert time.monotonic() - begin < 2.0
        assert not any(alive(process) for process in (pid, *others))
        assert scene_state() == before
        assert temporary_folders() == []
        assert not Path(slicer.app.temporaryPath, "consensus.seg.nrrd").exists()

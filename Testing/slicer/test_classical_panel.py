"""The classical methods in MLI Segmentation's panel, clicked through with the real worker."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

import clicks  # noqa: E402
from clicks import errors  # noqa: E402
from scenes import add_volume, linear, motion  # noqa: E402

PATIENCE = 120


@pytest.fixture
def body(widget):
    """A volume, oblique and under a transform, with a bright box in it; and the box."""
    rng = np.random.default_rng(0)
    voxels = rng.normal(100, 5, (14, 18, 20)).astype(np.float32)
    inside = np.zeros(voxels.shape, bool)
    inside[4:10, 5:13, 6:15] = True
    voxels[inside] += 60
    volume = add_volume(array=voxels)
    volume.SetAndObserveTransformNodeID(linear(slicer.mrmlScene, motion(9)).GetID())
    return volume, inside


def choose(widget, method):
    """Choose a method as a user does."""
    widget.ui.methodComboBox.setCurrentIndex(widget.ui.methodComboBox.findData(method))


def draw(volume, strokes, name="scribbles"):
    """Scribbles over a volume: a segment for each name, with the voxels that its mask says."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    for segment, mask in strokes.items():
        identifier = node.GetSegmentation().AddEmptySegment(segment, segment, (0.1, 0.8, 0.3))
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), node, identifier, volume)
    return node


def found(node, volume):
    """The voxels of the only segment of a result."""
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 1
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentation.GetNthSegmentID(0), volume) > 0


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def strokes(inside):
    """A line in the box and one along the image's border."""
    lines = {"tumour": np.zeros_like(inside), "Background": np.zeros_like(inside)}
    lines["tumour"][7, 9, 8:13] = True
    lines["Background"][1:13, 1, 1:19] = True
    lines["Background"][1:13, 16, 1:19] = True
    return lines


class TestChoices:
    def test_each_method_shows_what_it_heeds_and_nothing_of_models(self, widget, body):
        from MLILib.classical.requests import METHODS, OPTIONS, ClassicalRequest

        widget.ui.advancedCollapsibleButton.collapsed = False
        combo = widget.ui.methodComboBox
        assert [combo.itemData(index) for index in range(combo.count)] == ["model", *METHODS]
        tied = {}
        for one in widget.ui.__dict__.values():
            tied.setdefault(one.property("SlicerParameterName"), []).append(one)
        settings = {setting.name: setting for setting in ClassicalRequest.settings()}
        for method, (sentence, needs) in METHODS.items():
            choose(widget, method)
            assert widget.ui.methodBrowser.plainText == sentence
            assert widget.ui.modelComboBox.isHidden()
            assert widget.ui.uncertaintyCheckBox.isHidden()
            assert widget.ui.scribblesSelector.isHidden() == (not needs)
            for name in {name for options in OPTIONS.values() for name in options} - {"range", "examples", "side"}:
                assert all(one.isHidden() == (name not in OPTIONS[method]) for one in tied[name])
                assert name == "seed" or settings[name].help in tied[name][0].toolTip
                assert getattr(widget._parameterNode, name) == settings[name].default
        choose(widget, "model")
        assert not widget.ui.modelComboBox.isHidden()
        assert widget.ui.classicalWidget.isHidden()
        assert widget.ui.methodBrowser.isHidden()

    def test_apply_says_what_a_method_misses(self, widget, body):
        volume, inside = body
        choose(widget, "otsu")
        assert widget.ui.applyButton.enabled
        assert "by a trained model" in widget.ui.cohortButton.toolTip
        choose(widget, "graph-cut")
        assert "and in the background" in widget.ui.applyButton.toolTip
        choose(widget, "connected")
        assert "place points" in widget.ui.applyButton.toolTip
        widget._parameterNode.scribbles = draw(volume, strokes(inside))
        assert widget.ui.applyButton.toolTip == "Give the lowest and the highest intensity."
        widget.ui.rangeLowSpinBox.value, widget.ui.rangeHighSpinBox.value = 130, 200
        assert widget.ui.applyButton.enabled
        widget._parameterNode.outputSegmentation = widget._parameterNode.scribbles
        assert "would replace the scribbles" in widget.ui.applyButton.toolTip

    def test_paint_opens_the_editor_on_two_segments(self, widget, body, monkeypatch):
        opened = []
        monkeypatch.setattr(slicer.util, "selectModule", opened.append)
        choose(widget, "graph-cut")
        widget.ui.paintButton.click()
        scribbles = widget._parameterNode.scribbles
        names = [scribbles.GetSegmentation().GetNthSegment(n).GetName() for n in range(2)]
        assert names == ["object", "background"]
        assert scribbles.GetTransformNodeID() == body[0].GetTransformNodeID()
        editor = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
        assert editor.GetSegmentationNode() is scribbles
        assert editor.GetSourceVolumeNode() is body[0]
        assert opened == ["SegmentEditor"]
        widget.ui.paintButton.click()
        assert widget._parameterNode.scribbles is scribbles  # the same go on


class TestResults:
    def test_a_graph_cut_from_scribbles_is_measured_and_repeats(self, widget, standin, body, pictures):
        volume, inside = body
        choose(widget, "graph-cut")
        widget._parameterNode.scribbles = draw(volume, strokes(inside))
        widget._parameterNode.reference = draw(volume, {"tumour": inside}, "reference")
        clicks.apply(widget, standin, PATIENCE)
        assert not errors(standin)
        standin.picture.grab(widget, pictures / "MLISegmentation_classical.png", width=420)
        result = widget._parameterNode.outputSegmentation
        segment = result.GetSegmentation().GetNthSegment(0)
        assert segment.GetName() == "tumour"
        assert tuple(segment.GetColor()) == pytest.approx((0.1, 0.8, 0.3))
        assert dice(found(result, volume), inside) > 0.97
        measured = slicer.util.arrayFromTableColumn(widget._parameterNode.metricsTable, "Dice")
        assert float(measured[0]) == pytest.approx(dice(found(result, volume), inside), abs=1e-3)
        record = widget._parameterNode.record.GetText()
        assert "mli segment-classical" in record
        assert "1=tumour" in record

    def test_points_grow_into_a_region(self, widget, standin, body):
        volume, inside = body
        choose(widget, "confidence")
        points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "seeds")
        from MLISlicerLib import nodes

        local = nodes.to_world(volume) @ nodes.ijk_to_ras(volume) @ [10, 9, 7, 1]
        points.AddControlPointWorld(*local[:3])
        widget._parameterNode.points = points
        assert not widget.ui.pointRadiusSpinBox.isHidden()
        widget.ui.pointRadiusSpinBox.value = 2
        clicks.apply(widget, standin, PATIENCE)
        assert not errors(standin)
        assert dice(found(widget._parameterNode.outputSegmentation, volume), inside) > 0.9

    def test_a_mask_keeps_a_threshold_inside(self, widget, standin, body):
        volume, inside = body
        half = inside.copy()
        half[7:] = False
        half[:, :4] = True  # the mask holds background, too
        choose(widget, "otsu")
        widget._parameterNode.mask = draw(volume, {"region": half})
        clicks.apply(widget, standin, PATIENCE)
        assert not errors(standin)
        assert dice(found(widget._parameterNode.outputSegmentation, volume), inside & half) > 0.97

    def test_scribbles_on_one_side_are_told(self, widget, standin, body):
        volume, inside = body
        choose(widget, "graph-cut")
        widget._parameterNode.scribbles = draw(volume, {"tumour": strokes(inside)["tumour"]})
        clicks.apply(widget, standin, PATIENCE)
        assert "No seed marks background." in errors(standin)[0]
        assert widget._parameterNode.outputSegmentation is None

    def test_the_logic_does_it_for_scripts(self, widget, body):
        volume, inside = body
        result = widget.logic.runClassical(
            volume, "connected", scribbles=draw(volume, strokes(inside)), range=[130, 220]
        )
        assert dice(found(result.segmentation, volume), inside) > 0.97

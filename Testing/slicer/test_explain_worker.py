"""MLI Explainability with the real worker, on a network of a few thousand parameters and the shipped classifier."""

import json
from pathlib import Path

import numpy as np
import pytest
import slicer

pytest.importorskip("torch", reason="torch is not installed")

from clicks import choose, errors, finish, temporary_folders
from scenes import add_segmentation, add_volume, scene_state

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MLIModules" / "Explainability" / "MLIExplainability.py"
CLASSIFIER = "chest-xray-28-classifier"
#: Seconds: the first job of a worker imports torch, which takes long on a busy machine.
PATIENCE = 240


@pytest.fixture
def panel(model_folder, open_panel):
    """The panel in an empty scene, with a model of random weights; it computes on the CPU."""
    from MLISlicerLib import install

    if install.missing():
        pytest.skip("packages are not installed: " + ", ".join(install.missing()))
    made = open_panel(MODULE)
    made._parameterNode.model = "tiny"
    made._parameterNode.device = "cpu"
    return made


def press(panel, standin, button="apply"):
    getattr(panel.ui, f"{button}Button").click()
    finish(panel, standin, PATIENCE)


def ready(panel, **options):
    volume = add_volume("head", **options)
    panel.initializeParameterNode()
    return volume


def world_of(volume, i, j, k):
    """Where the middle of a voxel lies, RAS."""
    matrix = slicer.vtkMRMLSliceNode().GetXYToRAS().NewInstance()
    volume.GetIJKToRASMatrix(matrix)
    return np.array(matrix.MultiplyPoint((i, j, k, 1.0)))[:3]


def test_the_map_is_that_of_the_command_line(panel, standin, tmp_path):
    """On an oblique, left-handed grid: what Slicer shows is what `mli explain` writes for the same image."""
    import SimpleITK as sitk

    from MLILib import tasks
    from MLILib.progress import Progress
    from MLISlicerLib import nodes

    volume = ready(panel, size=(24, 22, 20))
    node = panel._parameterNode
    choose(panel.ui.methodComboBox, "gradient")
    node.target = "posterior"
    press(panel, standin)
    assert errors(standin) == []
    sitk.WriteImage(nodes.image_of(volume), str(tmp_path / "head.nrrd"))
    request = tasks.request_class("explain").from_json(
        {
            "images": [str(tmp_path / "head.nrrd")],
            "model": "tiny",
            "method": "gradient",
            "target": "posterior",
            "output": str(tmp_path / "map.nrrd"),
            "device": "cpu",
        }
    )
    tasks.run(request, Progress(lambda event: None))
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "map.nrrd")))
    found = slicer.util.arrayFromVolume(node.outputMap)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert "posterior" in panel.ui.explainedBrowser.plainText
    assert temporary_folders() == []


def test_a_point_is_explained_by_its_surroundings(panel, standin):
    """The map of one voxel is nought where the network cannot see from there; the box says how far that is."""
    volume = ready(panel, size=(32, 30, 28))
    place = world_of(volume, 16, 15, 14)
    node = panel._parameterNode
    node.where = "point"
    node.point = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "there")
    node.point.AddControlPoint(*place)
    choose(panel.ui.methodComboBox, "gradient")
    press(panel, standin)
    assert errors(standin) == []
    for box in (node.theoreticalBox, node.effectiveBox):
        center = [0.0] * 3
        box.GetCenterWorld(center)
        assert np.linalg.norm(np.array(center) - place) < 0.5 * max(box.GetSize())
    assert (np.array(node.effectiveBox.GetSize()) <= np.array(node.theoreticalBox.GetSize()) + 1e-3).all()
    energy = slicer.util.arrayFromVolume(node.outputMap).astype(float) ** 2
    k, j, i = np.unravel_index(energy.argmax(), energy.shape)
    assert np.linalg.norm(world_of(volume, i, j, k) - place) < max(node.effectiveBox.GetSize())


def test_layers_methods_and_components(panel, standin):
    ready(panel, size=(20, 18, 16))
    choose(panel.ui.methodComboBox, "grad-cam")
    standin.process_events_until(lambda: panel.ui.layersTableWidget.rowCount > 0, PATIENCE)
    box = panel.ui.layerComboBox
    assert box.count > 5
    panel._parameterNode.layer = str(box.itemData(1))
    panel._parameterNode.compare = ["activations"]
    press(panel, standin)
    assert errors(standin) == []
    node = panel._parameterNode
    assert slicer.util.arrayFromVolume(node.maps[0]).min() >= 0  # Grad-CAM only says what speaks for
    panel.onShownActivated(1)
    assert panel.ui.componentSlider.maximum >= 1
    first = slicer.util.arrayFromVolume(node.maps[1]).copy()
    panel.ui.componentSlider.value = 1
    assert not np.array_equal(first, slicer.util.arrayFromVolume(node.maps[1]))
    assert json.loads(node.record.GetText())[0]["settings"]["layer"] == node.layer


def test_regions_are_taken_away(panel, standin):
    volume = ready(panel, size=(20, 18, 16))
    node = panel._parameterNode
    node.regions = node.regionSegmentation = add_segmentation("parts", volume)
    node.regionSegment, node.where = "right", "region"
    choose(panel.ui.methodComboBox, "ablation-regions")
    press(panel, standin)
    assert errors(standin) == []
    names = [node.partsTable.GetCellText(row, 0) for row in range(node.partsTable.GetNumberOfRows())]
    assert sorted(names) == ["all else", "left", "right"]


def test_an_attack_keeps_to_its_bound(panel, standin):
    volume = ready(panel, size=(20, 18, 16))
    node = panel._parameterNode
    panel.ui.epsilonSlider.value = 2.0
    press(panel, standin, "attack")
    assert errors(standin) == []
    clean, perturbed, added = (
        slicer.util.arrayFromVolume(one).astype(float) for one in (volume, node.attackedVolume, node.attackDifference)
    )
    assert 0 < np.abs(added).max() <= 2.0 + 1e-4
    np.testing.assert_allclose(perturbed - clean, added, atol=1e-3)
    assert node.attackCurve.GetNumberOfRows() > 1
    assert node.attackAfter.GetSegmentation().GetNumberOfSegments() == 2


def test_methods_are_tested(panel, standin):
    ready(panel, size=(16, 16, 16))
    node = panel._parameterNode
    node.draws, node.layers, node.curve_steps = 1, 1, 2
    choose(panel.ui.methodComboBox, "gradient")
    press(panel, standin, "belief")
    assert errors(standin) == []
    verdicts = [node.beliefTable.GetCellText(row, 1) for row in range(node.beliefTable.GetNumberOfRows())]
    assert verdicts[0] in ("reacts to the model", "edge detector", "not tested")
    assert verdicts[1:] == ["control", "control"]
    assert panel.ui.badgeLabel.text == verdicts[0]
    assert node.deletionChart.GetNumberOfPlotSeriesNodes() == 3


def test_a_classifier_of_one_slice(panel, standin):
    """What one class gains by a voxel, the other loses: the two probabilities add up to 1."""
    if CLASSIFIER not in panel.models:
        pytest.skip(f"the model {CLASSIFIER} is not installed")
    y, x = np.meshgrid(np.arange(28.0), np.arange(28.0), indexing="ij")
    array = 255 * np.exp(-((x - 9) ** 2 + (y - 14) ** 2) / 60.0).astype(np.float32)
    ready(panel, array=array[None])
    node = panel._parameterNode
    node.model = CLASSIFIER
    assert panel.ui.whereComboBox.findData("region") < 0
    choose(panel.ui.methodComboBox, "gradient")
    for target in ("normal", "pneumonia"):
        node.target = target
        press(panel, standin)
        assert errors(standin) == []
        assert slicer.util.arrayFromVolume(node.outputMap).shape == (1, 28, 28)
        assert f"{target}" in panel.ui.explainedBrowser.plainText
        node.outputMap = None
    assert "%" in panel.ui.explainedBrowser.plainText
    panel.ui.epsilonSlider.value = 8.0
    press(panel, standin, "attack")
    assert errors(standin) == []
    assert node.attackAfter is None  # a class has no place
    assert "accuracy" in panel.ui.attackBrowser.plainText


def test_a_point_outside_is_told(panel, standin):
    ready(panel, size=(16, 16, 16))
    node = panel._parameterNode
    node.where = "point"
    node.point = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "far away")
    node.point.AddControlPoint(500.0, 500.0, 500.0)
    before = scene_state()
    press(panel, standin)
    assert "outside" in errors(standin)[0]
    assert scene_state() == before
    assert temporary_folders() == []

"""The stand-in's parameter nodes, scripted modules and application, as a module's author would use them."""

import enum
import pathlib
import subprocess
import sys
import textwrap
from typing import Annotated

import numpy as np
import pytest

pytest.importorskip("PySide6", reason="PySide6-Essentials is not installed")
import SimpleITK as sitk

import slicer_standin

ROOT = pathlib.Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("fresh_standin")


# -- parameter nodes ---------------------------------------------------------------------------------------------------


class Speed(enum.Enum):
    SLOW = 1
    FAST = 2


@pytest.fixture
def parameters():
    """A parameter node wrapper with a parameter of each kind."""
    import slicer
    from slicer.parameterNodeWrapper import Choice, Default, FloatRange, WithinRange, parameterNodeWrapper

    class Parameters:
        model: slicer.vtkMRMLModelNode
        threshold: Annotated[float, WithinRange(0, 10)] = 2.5
        count: int = 3
        flag: bool = True
        method: Annotated[str, Choice(["a", "b"]), Default("b")]
        folder: pathlib.Path
        speed: Speed = Speed.FAST
        words: list[str]
        pair: tuple[int, str] = (1, "x")
        table: dict[str, float]
        maybe: int | None
        limits: FloatRange

    Parameters.__annotations__["model"] = slicer.vtkMRMLModelNode
    cls = parameterNodeWrapper(Parameters)
    return cls, cls(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode"))


class TestParameterNode:
    def test_defaults(self, parameters):
        _, node = parameters
        assert (node.threshold, node.count, node.flag, node.method, node.speed) == (2.5, 3, True, "b", Speed.FAST)
        assert (node.model, node.folder, node.words, node.maybe) == (None, pathlib.Path("."), [], None)
        assert node.default("count").value == 3
        assert node.isCached("count")

    def test_stored_as_slicer_stores_it(self, parameters):
        import slicer

        _, node = parameters
        node.model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode")
        node.words = ["p", "q"]
        node.words.append("r")
        node.table["k"] = 1.5
        node.maybe = 7
        raw = node.parameterNode
        stored = {name: raw.GetParameter(name) for name in raw.GetParameterNames()}
        expected = {"threshold": "2.5", "count": "3", "flag": "True", "method": "b", "speed": "FAST", "model": "",
                    "words.len": "3", "words.2": "r", "pair.0": "1", "pair.1": "x", "table.len": "1", "table.0.0": "k",
                    "table.0.1": "1.5", "maybe.0": "7"}  # fmt: skip
        assert {name: stored.get(name) for name in expected} == expected
        assert raw.GetNodeReference("model") is node.model

    def test_refused_values_change_nothing(self, parameters):
        _, node = parameters
        for name, value in {"threshold": 11, "count": "x", "method": "c", "flag": 1, "speed": "FAST"}.items():
            before = getattr(node, name)
            with pytest.raises((ValueError, TypeError)):
                setattr(node, name, value)
            assert getattr(node, name) == before
        node.words = ["p"]
        with pytest.raises(TypeError):
            node.words.append(3)
        assert node.words == ["p"]

    def test_survives_the_scene_file(self, parameters, tmp_path):
        import slicer

        cls, node = parameters
        node.model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "m")
        node.threshold, node.words, node.speed, node.limits.maximum = 4.25, ["p", "q"], Speed.SLOW, 8.0
        assert slicer.util.saveScene(str(tmp_path / "scene.mrml"))
        slicer.mrmlScene.Clear(0)
        slicer.util.loadScene(str(tmp_path / "scene.mrml"))
        again = cls(slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScriptedModuleNode"))
        assert (again.threshold, again.words, again.speed, again.limits.maximum) == (4.25, ["p", "q"], Speed.SLOW, 8.0)
        assert again.model.GetName() == "m"

    def test_widgets_and_parameters_follow_each_other_until_disconnected(self, parameters):
        import ctk
        import qt
        import slicer

        _, node = parameters
        slider, box, combo, selector = ctk.ctkSliderWidget(), qt.QCheckBox(), qt.QComboBox(), slicer.qMRMLNodeComboBox()
        selector.noneEnabled = True
        selector.setMRMLScene(slicer.mrmlScene)
        mapping = {"threshold": slider, "flag": box, "method": combo, "model": selector}
        tag = node.connectParametersToGui(mapping)
        assert (slider.value, slider.maximum, box.checked, combo.currentText) == (2.5, 10.0, True, "b")
        assert selector.nodeTypes == ("vtkMRMLModelNode",)
        slider.value, box.checked, combo.currentIndex = 6, False, 0
        selector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode"))
        assert (node.threshold, node.flag, node.method) == (6.0, False, "a")
        assert node.model is selector.currentNode()
        node.threshold = 1.5
        assert slider.value == 1.5
        node.disconnectGui(tag)
        slider.value = 9
        assert node.threshold == 1.5

    def test_observers_see_the_new_value_once_for_each_change(self, parameters):
        import vtk

        _, node = parameters
        seen = []
        node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: seen.append(node.count))
        node.count = 5
        was_modifying = node.StartModify()
        node.count, node.flag = 6, False
        node.EndModify(was_modifying)
        assert seen == [5, 6]


# -- modules -----------------------------------------------------------------------------------------------------------

MODULE = """
import slicer
import helper_beside_the_module
from slicer.ScriptedLoadableModule import *


class Sample(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "A sample"
        slicer.app.connect("startupCompleted()", lambda: events.append("started"))


events = []


class SampleWidget(ScriptedLoadableModuleWidget):
    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        events.append("setup")

    def enter(self):
        events.append("enter")

    def exit(self):
        events.append("exit")

    def cleanup(self):
        events.append("cleanup")


class SampleLogic(ScriptedLoadableModuleLogic):
    pass


class SampleTest(ScriptedLoadableModuleTest):
    def runTest(self):
        self.setUp()
        self.delayDisplay("Testing")
        self.assertEqual(helper_beside_the_module.VALUE, {expected})
"""


class TestModules:
    @pytest.fixture
    def module_file(self, tmp_path):
        (tmp_path / "helper_beside_the_module.py").write_text("VALUE = 4\n", encoding="utf-8")
        path = tmp_path / "Sample.py"

        def write(expected):
            path.write_text(MODULE.replace("{expected}", str(expected)), encoding="utf-8")
            return path

        yield write
        slicer_standin.unload_module("Sample")
        sys.modules.pop("helper_beside_the_module", None)
        sys.path[:] = [entry for entry in sys.path if not entry.startswith(str(tmp_path))]

    def test_is_loaded_entered_left_and_cleaned_up(self, module_file):
        import slicer

        path = module_file(4)
        instance, widget = slicer_standin.load_module(path)
        events = sys.modules["Sample"].events
        assert events == ["started", "setup", "enter"]
        assert (slicer.modules.sample.title, slicer.modules.sample.path) == ("A sample", str(path))
        assert slicer.modules.sample.widgetRepresentation().self() is widget
        assert slicer.util.modulePath("Sample") == str(path)
        assert widget.parent.mrmlScene() is slicer.mrmlScene
        assert instance.resourcePath("x") == str(path.parent / "Resources" / "x")
        slicer.modules.sample.widgetRepresentation().exit()
        slicer_standin.unload_module("Sample")
        assert events[3:] == ["exit", "cleanup"]
        assert not hasattr(slicer.modules, "sample")

    def test_the_self_test_passes_and_fails(self, module_file):
        import slicer

        slicer_standin.load_module(module_file(4))
        assert slicer_standin.run_self_test("Sample").testsRun == 1
        slicer.selfTests["Sample"]()
        slicer_standin.load_module(module_file(5))
        with pytest.raises(AssertionError, match="4 != 5"):
            slicer_standin.run_self_test("Sample")

    def test_parameter_nodes_are_one_or_several(self, module_file):
        slicer_standin.load_module(module_file(4))
        logic = sys.modules["Sample"].SampleLogic()
        assert logic.getParameterNode() is logic.getParameterNode()
        logic.isSingletonParameterNode = False
        import slicer

        slicer.mrmlScene.AddNode(logic.createParameterNode())
        assert len(logic.getAllParameterNodes()) == 2


# -- application, files, processes -------------------------------------------------------------------------------------


class TestApplication:
    def test_volumes_keep_their_voxels_and_places_through_files(self, tmp_path):
        import sitkUtils
        import slicer

        image = sitk.GaussianSource(sitk.sitkFloat32, [4, 5, 6])
        image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
        image.SetOrigin((1, 2, 3))
        image.SetSpacing((0.5, 1, 2))
        sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
        back = sitkUtils.PullVolumeFromSlicer(slicer.util.loadVolume(str(tmp_path / "a.nrrd")))
        pushed = sitkUtils.PullVolumeFromSlicer(sitkUtils.PushVolumeToSlicer(image, name="b"))
        for other in (back, pushed):
            assert np.array_equal(sitk.GetArrayFromImage(other), sitk.GetArrayFromImage(image))
            assert np.allclose(other.GetDirection(), image.GetDirection())
            assert np.allclose(other.GetOrigin(), image.GetOrigin())
            assert np.allclose(other.GetSpacing(), image.GetSpacing())

    def test_segmentations_and_scenes_are_saved_and_loaded(self, tmp_path):
        import slicer

        volume = slicer.util.addVolumeFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5), name="image")
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "labels")
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segment = node.GetSegmentation().AddEmptySegment("a", "A")
        mask = (slicer.util.arrayFromVolume(volume) > 30).astype(np.uint8)
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment, volume)
        assert slicer.util.saveNode(node, str(tmp_path / "labels.seg.nrrd"))
        assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
        slicer.mrmlScene.Clear(0)
        loaded = slicer.util.loadSegmentation(str(tmp_path / "labels.seg.nrrd"))
        assert loaded.GetSegmentation().GetNthSegment(0).GetName() == "A"
        slicer.mrmlScene.Clear(0)
        slicer.util.loadScene(str(tmp_path / "scene.mrb"))
        again = slicer.util.getNode("labels")
        found = slicer.util.arrayFromSegmentBinaryLabelmap(again, "a", slicer.util.getNode("image"))
        assert np.array_equal(found, mask)

    def test_a_missing_file_is_an_error(self, tmp_path):
        import slicer

        with pytest.raises(RuntimeError, match="Failed to load"):
            slicer.util.loadTable(str(tmp_path / "missing.tsv"))

    def test_slice_views_show_volumes(self):
        import slicer

        volume = slicer.util.addVolumeFromArray(np.ones((3, 4, 5)))
        slicer.util.setSliceViewerLayers(background=volume, fit=True)
        for name in slicer.app.layoutManager().sliceViewNames():
            composite = slicer.app.layoutManager().sliceWidget(name).mrmlSliceCompositeNode()
            assert composite.GetBackgroundVolumeID() == volume.GetID()

    def test_the_layout_shows_plots_and_tables(self):
        import slicer

        table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", "values")
        slicer.util.updateTableFromArray(table, (np.array([1.0, 2.0]),), ["x"])
        chart = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotChartNode", "chart")
        layout = slicer.app.layoutManager()
        layout.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        assert (layout.plotWidget(0), layout.tableWidget(0)) == (None, None)
        slicer.modules.plots.logic().ShowChartInLayout(chart)
        assert layout.plotWidget(0).mrmlPlotViewNode().GetPlotChartNode() is chart
        layout.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpTableView)
        slicer.app.applicationLogic().GetSelectionNode().SetActiveTableID(table.GetID())
        slicer.app.applicationLogic().PropagateTableSelection()
        assert layout.tableWidget(0).tableView().mrmlTableNode() is table

    def test_the_subject_hierarchy_follows_the_scene(self):
        import slicer

        volume = slicer.util.addVolumeFromArray(np.ones((3, 4, 5)))
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        item = hierarchy.GetItemByDataNode(volume)
        assert hierarchy.GetItemOwnerPluginName(item) == "Volumes"
        slicer.mrmlScene.RemoveNode(volume)
        assert hierarchy.GetNumberOfItems() == 0

    def test_messages_are_recorded(self):
        import slicer

        slicer.util.errorDisplay("Something broke")
        assert slicer.util.confirmOkCancelDisplay("Go on?") is False
        assert slicer_standin.messages == [("errorDisplay", "Something broke"), ("confirmOkCancelDisplay", "Go on?")]

    def test_console_processes_report_without_blocking(self):
        import slicer

        lines, codes = [], []
        slicer.util.launchConsoleProcess(
            [sys.executable, "-c", "print('a'); print('b'); raise SystemExit(3)"],
            blocking=False,
            logCallback=lines.append,
            completedCallback=codes.append,
        )
        assert codes == []
        slicer_standin.process_events_until(lambda: codes, seconds=60)
        assert (lines, codes) == (["a", "b"], [3])

    def test_nothing_is_installed(self):
        import slicer
        import slicer.packaging

        assert slicer.packaging.pip_check("numpy>=1.20")
        assert not slicer.packaging.pip_check(["numpy", "no-such-package-by-any-name"])
        assert slicer.packaging.pip_check("no-such-package-by-any-name; sys_platform == 'none'")
        assert slicer.packaging.pip_ensure("no-such-package-by-any-name") is None
        with pytest.raises(subprocess.CalledProcessError):
            slicer.packaging.pip_install("no-such-package-by-any-name")

    def test_sample_data_comes_from_files(self, tmp_path):
        import SampleData

        sitk.WriteImage(sitk.Image([3, 4, 5], sitk.sitkInt16), str(tmp_path / "s.nrrd"))
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="Tests",
            sampleName="A sample",
            uris=(tmp_path / "s.nrrd").as_uri(),
            fileNames="s.nrrd",
            nodeNames="s",
        )
        assert SampleData.downloadSample("A sample").GetName() == "s"
        with pytest.raises(ValueError, match="No sample data"):
            SampleData.downloadSample("Another sample")

    def test_a_picture_shows_text(self, tmp_path):
        import qt

        sizes = []
        for name, text in {"with.png": "Some words to read", "without.png": ""}.items():
            label = qt.QLabel(text)
            path = slicer_standin.picture.grab(label, tmp_path / name, width=200, height=40)
            pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            assert pixels.shape[:2] == (40, 200)
            sizes.append(len(np.unique(pixels)))
        assert sizes[0] > 10
        assert sizes[1] == 1

    def test_without_a_main_window_there_are_no_views(self):
        code = """
            import sys
            sys.path.insert(0, sys.argv[1])
            import slicer_standin
            slicer_standin.install(main_window=False)
            import numpy, slicer
            assert slicer.app.layoutManager() is None
            assert slicer.util.mainWindow() is None
            assert slicer.app.commandOptions().noMainWindow
            volume = slicer.util.addVolumeFromArray(numpy.ones((2, 3, 4)))
            slicer.util.setSliceViewerLayers(background=volume)
            try:
                slicer_standin.install()
            except RuntimeError:
                slicer.util.exit(5)
            raise SystemExit(slicer.app.exit_code)
        """
        arguments = [sys.executable, "-c", textwrap.dedent(code), str(ROOT / "Testing")]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
        assert done.returncode == 5, done.stderr

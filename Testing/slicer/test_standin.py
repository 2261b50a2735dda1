"""The stand-in for Slicer's Qt side against the description of a real Slicer: it offers nothing that is not there, and
the snippets recorded in behaviour.json give the same results.
"""

import ast
import json
import os
import pathlib
import re
import sys

import numpy as np
import pytest

pytest.importorskip("PySide6", reason="PySide6-Essentials is not installed")

import slicer_standin
from slicer_standin import make_names, names

ROOT = pathlib.Path(__file__).resolve().parents[2]
DESCRIPTION = ROOT.parent / "shared" / "slicer-api"
NO_DESCRIPTION = "no description of a real Slicer: ../shared/slicer-api"
described = pytest.mark.skipif(not DESCRIPTION.is_dir(), reason=NO_DESCRIPTION)
WIDGET_FILES = {"qt": "qt.json", "ctk": "ctk.json", "slicer": "slicer_qt.json"}


pytestmark = pytest.mark.usefixtures("fresh_standin")


def description(filename):
    return json.loads((DESCRIPTION / filename).read_text(encoding="utf-8"))


# -- the recorded behaviour --------------------------------------------------------------------------------------------

SNIPPETS = description("behaviour.json") if DESCRIPTION.is_dir() else []
OUTSIDE = {
    'sys.executable.split("/")[-1]': "the program is not PythonSlicer outside Slicer",
    'import shutil\nshutil.which("PythonSlicer") is not None': "there is no PythonSlicer outside Slicer",
}


def comparable(text):
    """A result's text without what differs from run to run: addresses, and paths that exist."""
    text = re.sub(r"at: 0x[0-9a-f]+", "at: <address>", text)
    return re.sub(
        r"'(/[^']+)'", lambda path: "'<path>'" if len(path[1]) > 5 and os.path.exists(path[1]) else path[0], text
    )


def same_result(text, recorded):
    """Equal to the last digits of a double: CTK's slider adds up steps, which a rounding error shows."""
    if comparable(text) == comparable(recorded):
        return True
    try:
        here, there = ast.literal_eval(text), ast.literal_eval(recorded)
    except (ValueError, SyntaxError):
        return False
    return repr(rounded(here)) == repr(rounded(there))


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.12g}")
    return type(value)(map(rounded, value)) if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def outcomes():
    """What each snippet gives here; they run one after the other in one scene, as they did in Slicer."""
    slicer_standin.install()
    import ctk
    import qt
    import slicer

    slicer.mrmlScene.Clear(0)
    found = []
    for snippet in SNIPPETS:
        space = {"qt": qt, "ctk": ctk, "slicer": slicer, "sys": sys, "log": []}
        *statements, expression = snippet["code"].split("\n")
        try:
            exec("\n".join(statements), space)
            value = eval(expression, space)
            found.append((repr(value), type(value).__name__))
        except Exception as error:
            found.append(error)
    return found


@described
class TestBehaviour:
    @pytest.mark.parametrize("number", range(len(SNIPPETS)), ids=[snippet["code"][:60] for snippet in SNIPPETS])
    def test_snippet(self, number, outcomes):
        snippet, outcome = SNIPPETS[number], outcomes[number]
        if snippet["code"] in OUTSIDE:
            pytest.skip(OUTSIDE[snippet["code"]])
        if "raises" in snippet:
            assert isinstance(outcome, Exception)
            assert (type(outcome).__name__, str(outcome)) == (snippet["raises"], snippet["message"])
            return
        assert not isinstance(outcome, Exception), repr(outcome)
        assert outcome[1] == snippet["type"]
        assert same_result(outcome[0], snippet["result"]), f"{outcome[0]} instead of {snippet['result']}"


# -- nothing that a real Slicer lacks ----------------------------------------------------------------------------------


def offered_classes(module):
    """Name -> class of what the stand-in's module qt, ctk or slicer offers as widgets and other Qt classes."""
    import ctk
    import qt
    import slicer

    space = {"qt": qt, "ctk": ctk, "slicer": slicer}[module]
    prefixes = {"qt": ("Q",), "ctk": ("ctk",), "slicer": ("qMRML", "qSlicer")}[module]
    return {name: value for name, value in vars(space).items() if isinstance(value, type) and name.startswith(prefixes)}


def visible(cls):
    """Public names that a class answers to."""
    return {name for name in dir(cls) if not name.startswith("_") and hasattr(cls, name)}


@described
class TestOffersOnlyWhatSlicerOffers:
    def test_the_condensed_names_are_those_of_the_description(self, tmp_path):
        make_names.write(DESCRIPTION, tmp_path / "names.json.gz")
        assert (tmp_path / "names.json.gz").read_bytes() == names.DATA_FILE.read_bytes()

    @pytest.mark.parametrize("module", ["qt", "ctk", "slicer"])
    def test_every_class_is_one_of_slicer(self, module):
        known = set(description(WIDGET_FILES[module]))
        if module == "qt":
            known |= set(names.QT_BESIDE_THE_LIST)
        assert set(offered_classes(module)) - known == set()

    @pytest.mark.parametrize("module", ["qt", "ctk", "slicer"])
    def test_every_member_of_every_class_is_one_of_slicer(self, module):
        from slicer_standin import pythonqt

        listed = description(WIDGET_FILES[module])
        everything = {name: entry for file in WIDGET_FILES.values() for name, entry in description(file).items()}
        checked = 0
        for name, cls in offered_classes(module).items():
            if name not in listed:
                continue
            entry = listed[name]
            if not entry.get("members"):
                # Not constructed in the described Slicer: its base's members, and its own after its header.
                ((base, own),) = names.UNCONSTRUCTED[name].items()
                allowed = set(own) | names.ALWAYS | set(names.members(base) if base else ())
                assert not base or base in everything
            else:
                slots = {
                    signature.partition("(")[0] for signature in [*entry.get("slots", []), *entry.get("signals", [])]
                }
                allowed = {*entry["members"], *entry.get("properties", {}), *slots, *names.ALWAYS}
                allowed |= {f"{word}_" for word in names.PYTHON_WORDS & allowed}
            extra = visible(cls) - allowed - pythonqt.VIRTUAL_HOOKS
            assert extra == set(), f"{module}.{name} offers {sorted(extra)}"
            checked += 1
        assert checked == len(set(offered_classes(module)) & set(listed))

    @pytest.mark.parametrize("module", ["qt", "ctk", "slicer"])
    def test_objects_offer_no_more_than_their_classes(self, module):
        from PySide6 import QtCore

        from slicer_standin import pythonqt

        made = 0
        for name, cls in offered_classes(module).items():
            if name in names.QT_BESIDE_THE_LIST:
                continue
            try:
                instance = QtCore.QCoreApplication.instance() if name == "QApplication" else cls()
            except (TypeError, NotImplementedError, RuntimeError):
                continue  # needs arguments, is abstract, or is the one application
            made += 1
            for attribute in pythonqt.hidden_names(cls):
                with pytest.raises(AttributeError):
                    getattr(instance, attribute)
            with pytest.raises(AttributeError, match="creating new attributes on C\\+\\+ objects is not allowed"):
                instance.nonsense = 1
            if isinstance(instance, QtCore.QObject):
                assert instance.className() == name
        assert made >= {"qt": 60, "ctk": 15, "slicer": 20}[module]

    def test_python_modules(self):
        import importlib

        described_modules = description("python.json")
        for module_name, known in described_modules.items():
            if module_name in ("slicer.cli", "slicer.logic"):
                continue  # not offered
            module = importlib.import_module(module_name)
            public = {name for name in vars(module) if not name.startswith("_")}
            submodules = {name.rpartition(".")[2] for name in described_modules if name.startswith(f"{module_name}.")}
            assert public - set(known) - submodules == set(), module_name
            if module_name == "slicer.util":
                continue  # slicer-core's own
            # A class of the description lists what it defines itself; what its bases define is listed with them.
            methods = {method for entry in known.values() for method in entry.get("methods", ())}
            for name in public & set(known):
                value = getattr(module, name)
                for cls in value.__mro__ if isinstance(value, type) else ():
                    if cls.__module__.startswith("slicer_standin"):
                        own = {key for key, member in vars(cls).items() if callable(member) and key[0] != "_"}
                        assert own - methods == set(), f"{module_name}.{name}"

    def test_the_application_and_the_package(self):
        import slicer

        application = description("application.json")
        offered = {name for name in dir(type(slicer.app)) if not name.startswith("_")}
        assert offered - set(application["slicer.app"]) == set()
        modules = {name for name, value in vars(slicer.modules).items() if hasattr(value, "widgetRepresentation")}
        assert modules - set(application["slicer.modules"]) == set()
        package = {name for name in vars(slicer) if not name.startswith(("_", "vtk", "qMRML", "qSlicer"))}
        assert package - set(application["slicer"]) == set()
        for name, module in application["slicer.modules"].items():
            logic = getattr(vars(slicer.modules).get(name), "logic", lambda: None)()
            if logic is not None:
                assert logic.GetClassName() == module["logic"]

    def test_what_slicer_has_and_the_stand_in_lacks_is_said(self):
        import qt
        import slicer

        with pytest.raises(NotImplementedError, match="Slicer has"):
            slicer.qMRMLTreeView  # noqa: B018
        with pytest.raises(NotImplementedError, match="Slicer has"):
            slicer.app.errorLogModel  # noqa: B018
        with pytest.raises(AttributeError):
            qt.QWebEngineView  # noqa: B018
        with pytest.raises(AttributeError):
            slicer.app.nonsense  # noqa: B018
        with pytest.raises(AttributeError):
            slicer.loadVolume  # noqa: B018


# -- widgets -----------------------------------------------------------------------------------------------------------


class TestNodeSelector:
    @pytest.fixture
    def selector(self):
        import slicer

        made = slicer.qMRMLNodeComboBox()
        made.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        made.noneEnabled = True
        made.setMRMLScene(slicer.mrmlScene)
        return made

    def test_follows_the_scene(self, selector):
        import slicer

        first = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "first")
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "of another type")
        second = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "second")
        assert [selector.nodeFromIndex(index) for index in range(selector.nodeCount())] == [first, second]
        assert selector.currentNode() is None
        selector.setCurrentNode(first)
        slicer.mrmlScene.RemoveNode(first)
        assert selector.currentNode() is second
        slicer.mrmlScene.RemoveNode(second)
        assert (selector.currentNode(), selector.currentNodeID) == (None, "")

    def test_is_empty_after_the_scene_is_closed(self, selector):
        import slicer

        seen = []
        selector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode"))
        selector.connect("currentNodeChanged(vtkMRMLNode*)", seen.append)
        slicer.mrmlScene.Clear(0)
        assert seen == [None]
        assert selector.nodeCount() == 0

    def test_hides_other_attributes_and_children(self, selector):
        import slicer

        selector.addAttribute("vtkMRMLScalarVolumeNode", "Kind", "a")
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
        assert selector.nodeCount() == 0
        assert selector.addNode().GetAttribute("Kind") == "a"
        assert selector.nodeCount() == 1
        selector.removeAttribute("vtkMRMLScalarVolumeNode", "Kind")
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
        assert selector.nodeCount() == 3
        selector.showChildNodeTypes = False
        assert selector.nodeCount() == 2

    def test_waits_for_the_scene(self):
        import slicer

        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
        made = slicer.qMRMLNodeComboBox()
        made.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        made.noneEnabled = True
        assert not made.enabled
        made.setCurrentNodeID(node.GetID())
        made.setMRMLScene(slicer.mrmlScene)
        assert made.currentNode() is node
        assert made.enabled

    def test_several_can_be_ticked(self):
        import slicer

        nodes = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode") for _ in range(3)]
        made = slicer.qMRMLCheckableNodeComboBox()
        made.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        made.setMRMLScene(slicer.mrmlScene)
        made.check(nodes[0])
        made.check(nodes[2])
        assert made.checkedNodes() == [nodes[0], nodes[2]]
        slicer.mrmlScene.RemoveNode(nodes[0])
        assert made.checkedNodes() == [nodes[2]]


class TestWidgets:
    def test_a_folded_section_hides_its_contents(self):
        import ctk
        import qt

        section = ctk.ctkCollapsibleButton()
        layout = qt.QVBoxLayout(section)
        shown, hidden = qt.QLabel("a"), qt.QLabel("b")
        layout.addWidget(shown)
        layout.addWidget(hidden)
        hidden.visible = False
        section.show()
        tall = section.sizeHint.height()
        section.collapsed = True
        assert not shown.visible
        shown.setVisible(True)
        assert not shown.visible
        assert section.maximumHeight < tall
        section.collapsed = False
        assert (shown.visible, hidden.visible) == (True, False)

    def test_slots_get_as_many_arguments_as_they_take_and_their_errors_are_kept(self):
        import qt

        seen = []
        combo = qt.QComboBox()
        combo.addItems(["a", "b"])
        combo.connect("currentIndexChanged(int)", lambda: seen.append("none"))
        combo.connect("currentIndexChanged(QString)", lambda text: seen.append(text))
        combo.currentIndexChanged.connect(lambda: 1 / 0)
        combo.currentIndex = 1
        assert seen == ["none", "b"]
        with pytest.raises(ZeroDivisionError):
            slicer_standin.check_slots()

    def test_blocked_signals_are_not_sent(self):
        import ctk

        seen = []
        slider = ctk.ctkSliderWidget()
        slider.valueChanged.connect(seen.append)
        was_blocked = slider.blockSignals(True)
        slider.value = 3
        slider.blockSignals(was_blocked)
        slider.value = 4
        assert seen == [4.0]

    def test_wrong_types_are_refused(self):
        import qt

        with pytest.raises(AttributeError, match="does not accept an object of type str"):
            qt.QSpinBox().value = "many"
        with pytest.raises(AttributeError, match="not writable"):
            qt.QLabel().width = 3

    def test_dialogs_need_an_answer_or_close_themselves(self, monkeypatch):
        import qt
        import slicer

        from slicer_standin import qtlayer

        slicer.util.delayDisplay("closes itself", 450)

        with pytest.raises(RuntimeError, match="waits for an answer"):
            qt.QMessageBox().exec_()
        monkeypatch.setattr(qtlayer, "dialog_patience", 0.05)
        with pytest.raises(RuntimeError, match="waits for an answer"):
            qt.QDialog().exec_()
        slicer_standin.dialog_answers.append("/chosen")
        assert qt.QFileDialog.getExistingDirectory() == "/chosen"

    def test_segments_are_listed_and_chosen(self):
        import slicer

        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        node.CreateDefaultDisplayNodes()
        selector, table = slicer.qMRMLSegmentSelectorWidget(), slicer.qMRMLSegmentsTableView()
        selector.setMRMLScene(slicer.mrmlScene)
        table.setSegmentationNode(node)
        node.GetSegmentation().AddEmptySegment("one", "One")
        node.GetSegmentation().AddEmptySegment("two", "Two")
        assert selector.currentSegmentID() == "one"
        assert table.displayedSegmentIDs() == ("one", "two")
        table.setSelectedSegmentIDs(["two"])
        node.GetSegmentation().RemoveSegment("one")
        assert table.selectedSegmentIDs() == ("two",)
        assert selector.currentSegmentID() == "two"

    def test_a_table_node_is_shown_and_edited(self):
        import slicer

        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
        slicer.util.updateTableFromArray(node, (np.array([1.0, 2.0]), np.array([3.0, 4.0])), ["x", "y"])
        view = slicer.qMRMLTableView()
        view.setMRMLTableNode(node)
        model = view.model()
        assert (model.rowCount(), model.columnCount(), model.item(1, 0).text()) == (2, 2, "2")
        model.item(1, 0).setText("5")
        assert slicer.util.arrayFromTableColumn(node, "x").tolist() == [1.0, 5.0]


UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>Demo</class>
 <widget class="qMRMLWidget" name="Demo"><layout class="QVBoxLayout" name="layout">
  <item><widget class="ctkCollapsibleButton" name="section">
   <property name="text"><string>Inputs</string></property><property name="collapsed"><bool>true</bool></property>
   <layout class="QFormLayout" name="form"><item row="0" column="1">
    <widget class="qMRMLNodeComboBox" name="selector">
     <property name="nodeTypes"><stringlist><string>vtkMRMLModelNode</string></stringlist></property>
     <property name="SlicerParameterName" stdset="0"><string>model</string></property>
    </widget></item></layout></widget></item>
  <item><widget class="{last}" name="last"/></item>
 </layout></widget>
 <connections><connection><sender>Demo</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
  <receiver>selector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections>
</ui>"""


class TestUiFiles:
    def test_loads_slicers_widgets_with_properties_and_connections(self, tmp_path):
        import slicer

        path = tmp_path / "demo.ui"
        path.write_text(UI.format(last="QPushButton"), encoding="utf-8")
        root = slicer.util.loadUI(str(path))
        ui = slicer.util.childWidgetVariables(root)
        assert type(ui.selector) is slicer.qMRMLNodeComboBox
        assert ui.selector.nodeTypes == ("vtkMRMLModelNode",)
        assert ui.selector.property("SlicerParameterName") == "model"
        assert (ui.section.text, ui.section.collapsed) == ("Inputs", True)
        assert ui.selector.mrmlScene() is None
        root.setMRMLScene(slicer.mrmlScene)
        assert ui.selector.mrmlScene() is slicer.mrmlScene

    def test_an_unknown_class_is_refused(self, tmp_path):
        import slicer

        path = tmp_path / "demo.ui"
        path.write_text(UI.format(last="qMRMLTreeView"), encoding="utf-8")
        with pytest.raises(NotImplementedError, match="qMRMLTreeView"):
            slicer.util.loadUI(str(path))

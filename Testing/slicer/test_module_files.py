"""What may import what: module files, the bridge and the library, read from their source and once by doing it."""

import ast
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ROOT / "MLIModules"
MODULE_FILES = sorted(p for p in MODULES.glob("*/MLI*.py") if p.parent.name not in ("MLILib", "MLISlicerLib"))
BRIDGE = sorted((MODULES / "MLISlicerLib").glob("*.py"))
LIBRARY = sorted((MODULES / "MLILib").rglob("*.py"))
UI_FILES = sorted(MODULES.glob("*/Resources/UI/*.ui"))

#: What a module file may import at file scope beside the standard library.
ALLOWED_AT_FILE_SCOPE = {"slicer", "qt", "ctk", "vtk", "numpy", "SimpleITK", "MLISlicerLib", "MLILib"}
#: Parts of MLILib that load neither torch nor monai, which Slicer's own process may import.
LIGHT = {
    "tasks", "settings", "errors", "files", "progress", "folders", "bundles", "segmentation.requests",
    "registration.requests", "registration.presets", "registration.similarity_words", "fusion.requests",
    "fusion.methods", "explanation.requests", "explanation.methods", "explanation.choices", "explanation.badges",
    "anomaly.requests", "classical.requests", "cohort.requests", "stop_file",
}  # fmt: skip
#: Widgets that show what is in a scene.
OF_NODES = ("qMRMLNodeComboBox", "qMRMLCheckableNodeComboBox", "qMRMLTableView")
SLICER = {"slicer", "qt", "ctk", "vtk", "PythonQt", "mrml", "sitkUtils"}
HEAVY = {"torch", "monai", "matplotlib", "scipy", "nibabel"}


def name_of(path):
    return str(path.relative_to(MODULES))


def imports(path, *, file_scope=False):
    """Modules that a file imports, as dotted names; relative ones begin with a dot."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if file_scope else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module is None or node.module in ("MLILib", "MLISlicerLib"):
                prefix = "." * node.level + (f"{node.module}." if node.module else "")
                yield from (prefix + alias.name for alias in node.names)
            else:
                yield "." * node.level + node.module


def test_there_are_module_files():
    assert MODULES / "Segmentation" / "MLISegmentation.py" in MODULE_FILES


@pytest.mark.parametrize("path", MODULE_FILES, ids=name_of)
class TestModuleFile:
    def test_file_scope_imports_only_what_slicer_has(self, path):
        roots = {name.partition(".")[0] for name in imports(path, file_scope=True)}
        assert roots <= ALLOWED_AT_FILE_SCOPE | sys.stdlib_module_names

    def test_torch_and_monai_are_nowhere(self, path):
        assert not {name.partition(".")[0] for name in imports(path)} & HEAVY

    def test_of_the_library_it_imports_only_what_is_light(self, path):
        parts = {name.partition(".")[2] for name in imports(path) if name.startswith("MLILib.")}
        assert parts <= LIGHT

    def test_the_classes_of_the_template_are_there(self, path):
        classes = {
            node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
        }
        assert {path.stem + end for end in ("", "ParameterNode", "Widget", "Logic", "Test")} <= classes

    def test_it_does_not_know_the_stand_in(self, path):
        assert "standin" not in path.read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("path", BRIDGE, ids=name_of)
class TestBridge:
    def test_it_imports_no_torch_and_no_module(self, path):
        roots = {name.partition(".")[0] for name in imports(path)}
        assert not roots & (HEAVY | {module.stem for module in MODULE_FILES})

    def test_of_the_library_it_imports_only_what_is_light(self, path):
        parts = {name.partition(".")[2] for name in imports(path) if name.startswith("MLILib.")}
        assert parts <= LIGHT


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_the_library_knows_nothing_of_slicer(path):
    assert not {name.partition(".")[0] for name in imports(path)} & (SLICER | {"MLISlicerLib"})


def test_the_light_part_of_the_library_loads_no_torch():
    code = (
        f"import sys; sys.path.insert(0, {str(MODULES)!r})\n"
        f"import {', '.join('MLILib.' + name for name in sorted(LIGHT))}\n"
        f"print([name for name in {sorted(HEAVY | SLICER)!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", UI_FILES, ids=lambda p: p.stem)
class TestUiFile:
    def test_every_custom_class_is_declared(self, path):
        root = ElementTree.parse(path).getroot()
        used = {w.get("class") for w in root.iter("widget")}
        declared = {c.findtext("class") for c in root.iter("customwidget")}
        assert {name for name in used if name.startswith(("qMRML", "ctk", "qSlicer"))} <= declared

    def test_every_widget_of_nodes_gets_the_scene(self, path):
        root = ElementTree.parse(path).getroot()
        need = {w.get("name") for w in root.iter("widget") if w.get("class") in OF_NODES}
        connected = {
            c.findtext("receiver")
            for c in root.iter("connection")
            if c.findtext("slot") == "setMRMLScene(vtkMRMLScene*)"
        }
        assert need <= connected

    def test_the_shared_widgets_are_there(self, path):
        names = {w.get("name") for w in ElementTree.parse(path).getroot().iter("widget")}
        shared = {"parameterNodeSelector", "applyButton", "progressBar", "statusLabel"}
        assert shared | {"computerCollapsibleButton", "checkButton", "installButton", "checkBrowser"} <= names


def test_what_is_installed_in_slicer_is_what_pyproject_asks_for():
    source = (MODULES / "MLISlicerLib" / "install.py").read_text(encoding="utf-8")
    assigned = {n.targets[0].id: n.value for n in ast.parse(source).body if isinstance(n, ast.Assign)}
    requirements = set(ast.literal_eval(assigned["REQUIREMENTS"]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # both only draw pictures for files, which the modules do not ask for
    drawing = ("matplotlib", "pillow")
    assert requirements == {d for d in project["dependencies"] if not d.startswith(drawing)}
    for_methods = ast.literal_eval(assigned["FOR_METHODS"])
    assert for_methods["random-forest"] == tuple(project["optional-dependencies"]["forest"])

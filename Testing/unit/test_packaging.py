"""What `pip install` gives: a wheel with the library, the shipped models and the command, and honest dependencies."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import MLILib

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "MLIModules" / "MLILib"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
#: Extras that the library imports where they are installed.
OPTIONAL = ("cluster", "forest")
#: Name to import, where it is not the name to install.
IMPORTED = {"PyYAML": "yaml", "pillow": "PIL", "scikit-learn": "sklearn"}
JUNK = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*", "build")


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


def imports_of(file: Path) -> set[str]:
    """Top-level names of the absolute imports anywhere in a file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel, built from a copy of the source tree, was installed into."""
    pytest.importorskip("setuptools", reason="setuptools, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in ("MLIModules/MLILib", "Resources"):
        shutil.copytree(ROOT / name, source / name, ignore=JUNK)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    target = folder / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def files_in(folder: Path) -> set[str]:
    return {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts and not p.name.startswith(".")
    }


class TestWheel:
    def test_holds_every_file_of_the_library(self, installed: Path) -> None:
        models = {f"Resources/Models/{name}" for name in files_in(ROOT / "Resources" / "Models")}
        assert files_in(installed / "MLILib") == files_in(LIBRARY) | models

    def test_holds_nothing_beside_the_library(self, installed: Path) -> None:
        assert {p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")} == {"MLILib"}

    def test_finds_its_models_without_the_source_tree(self, installed: Path, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", "import MLILib.folders as f; print(f.shipped())"],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed)},
        )
        assert Path(done.stdout.strip()) == installed / "MLILib" / "Resources" / "Models"

    def test_has_the_command_the_version_and_the_licence(self, installed: Path) -> None:
        (info,) = installed.glob("*.dist-info")
        assert "mli = MLILib.cli:main" in (info / "entry_points.txt").read_text(encoding="utf-8")
        metadata = (info / "METADATA").read_text(encoding="utf-8")
        assert f"\nVersion: {MLILib.__version__}\n" in metadata
        assert "\nLicense-Expression: Apache-2.0 AND CC-BY-SA-4.0 AND CC-BY-4.0 AND CC0-1.0\n" in metadata
        assert {p.name for p in (info / "licenses").iterdir()} == {"LICENSE", "NOTICE"}


class TestDependencies:
    def test_what_the_library_imports_is_declared(self) -> None:
        extras = PROJECT["project"]["optional-dependencies"]
        wanted = [*PROJECT["project"]["dependencies"], *(d for name in OPTIONAL for d in extras[name])]
        declared = {IMPORTED.get(name_of(d), name_of(d)) for d in wanted}
        used = set().union(*(imports_of(file) for file in LIBRARY.rglob("*.py")))
        through_monai = {"nibabel"}  # MONAI's Orientation imports it when an image is turned
        assert (used - set(sys.stdlib_module_names) - {"MLILib"}) | through_monai == declared

    def test_every_dependency_and_extra_is_within_constraints(self) -> None:
        extras = PROJECT["project"]["optional-dependencies"]
        wanted = {name_of(d) for group in (PROJECT["project"]["dependencies"], *extras.values()) for d in group}
        lines = [
            line
            for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
            if line and line[0] != "#"
        ]
        limited = {name_of(line) for line in lines if "==" in line or ("<" in line and ">=" in line)}
        assert wanted - {"mli-imaging"} <= limited

    def test_torch_is_pinned(self) -> None:
        assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()

    def test_the_packages_are_those_in_the_source_tree(self) -> None:
        found = {".".join(("MLILib", *file.parent.relative_to(LIBRARY).parts)) for file in LIBRARY.rglob("__init__.py")}
        assert set(PROJECT["tool"]["setuptools"]["packages"]) - {"MLILib.Resources"} == found

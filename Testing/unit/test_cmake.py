"""The extension's CMake files, configured, built and installed against a mock of Slicer's macros.

The mock has the signatures and the effects of Slicer's and CTK's macros (slicerMacroBuildScriptedModule,
slicer_add_python_unittest, ctkMacroCompilePythonScript): the listed files are copied into qt-scripted-modules of the
build tree, that folder is installed as a whole, a file that does not exist and an unknown keyword are errors.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ROOT / "MLIModules"
LIBRARIES = ("MLILib", "MLISlicerLib")

SLICER_CONFIG = """
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/Metadata.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/Pack.cmake)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.12/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.12/qt-scripted-modules)
set(Slicer_USE_PYTHONQT ON)
"""

USE_SLICER = """
if("${PROJECT_NAME}" STREQUAL "" OR NOT DEFINED EXTENSION_HOMEPAGE)
  message(FATAL_ERROR "project() and the metadata come before Slicer_USE_FILE")
endif()
set(BUILD_TESTING ON)
enable_testing()

macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY_SLICER "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_SLICER_UNPARSED_ARGUMENTS OR NOT DEFINED MY_SLICER_NAME)
    message(FATAL_ERROR "unknown keywords, or no NAME: ${MY_SLICER_UNPARSED_ARGUMENTS}")
  endif()
  set(module_dir ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
  foreach(file IN LISTS MY_SLICER_SCRIPTS MY_SLICER_RESOURCES)
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${file})
      message(FATAL_ERROR "${MY_SLICER_NAME}: given nonexistent file '${file}'")
    endif()
    # Slicer copies when it builds; here a process for each of some hundred files would take most of the time.
    configure_file(${CMAKE_CURRENT_SOURCE_DIR}/${file} ${module_dir}/${file} COPYONLY)
  endforeach()
  install(DIRECTORY ${module_dir}/ DESTINATION ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR})
  file(APPEND ${CMAKE_BINARY_DIR}/record.txt "module ${MY_SLICER_NAME} ${MY_SLICER_WITH_GENERIC_TESTS}\\n")
endmacro()

macro(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "TESTNAME_PREFIX;SCRIPT" "SLICER_ARGS" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS OR NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${MY_SCRIPT})
    message(FATAL_ERROR "no such test script: ${MY_SCRIPT} ${MY_UNPARSED_ARGUMENTS}")
  endif()
  file(APPEND ${CMAKE_BINARY_DIR}/record.txt "test ${MY_SCRIPT}\\n")
endmacro()
"""

METADATA = """
foreach(key IN ITEMS HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS)
  file(APPEND ${CMAKE_BINARY_DIR}/record.txt "EXTENSION_${key} ${EXTENSION_${key}}\\n")
endforeach()
"""


def cmake(*arguments: str | Path) -> str:
    done = subprocess.run(["cmake", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the build tree `build`, the installed tree `installed` and the mock's `build/record.txt`."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler, which CMake's project() looks for")
    folder = tmp_path_factory.mktemp("cmake")
    slicer = folder / "slicer"
    slicer.mkdir()
    for name, text in {
        "SlicerConfig.cmake": SLICER_CONFIG,
        "UseSlicer.cmake": USE_SLICER,
        "Metadata.cmake": METADATA,
        "Pack.cmake": "include(CPack)\n",
    }.items():
        (slicer / name).write_text(text, encoding="utf-8")
    cmake("-S", ROOT, "-B", folder / "build", f"-DSlicer_DIR={slicer}")
    cmake("--build", folder / "build")
    cmake("--install", folder / "build", "--prefix", folder / "installed")
    return folder


@pytest.fixture(scope="module")
def modules_folder(built: Path) -> Path:
    return built / "installed" / "lib" / "Slicer-5.12" / "qt-scripted-modules"


def record(built: Path, kind: str) -> list[list[str]]:
    lines = (built / "build" / "record.txt").read_text(encoding="utf-8").splitlines()
    return [line.split()[1:] for line in lines if line.split()[0] == kind]


def sources(folder: Path, *patterns: str) -> set[str]:
    """Files under `folder`, relative to it, without what Python, editors and git leave there."""
    found = {p.relative_to(folder).as_posix() for pattern in patterns for p in folder.rglob(pattern) if p.is_file()}
    return {name for name in found if not re.search(r"(^|/)(\.|__pycache__/|[^/]*\.egg-info/)|~$", name)}


def module_folders() -> list[Path]:
    return sorted(p.parent for p in MODULES.glob("*/MLI*.py") if p.parent.name not in LIBRARIES)


def module_files(folder: Path) -> set[str]:
    return sources(folder, "*.py", "Resources/**/*")


class TestFiles:
    @pytest.mark.parametrize("library", LIBRARIES)
    def test_every_file_of_a_library_is_installed_and_nothing_else(self, library: str, modules_folder: Path) -> None:
        assert sources(modules_folder / library, "*") == sources(MODULES / library, "*.py", "*.json", "*.txt")

    def test_every_file_of_every_module_is_installed(self, modules_folder: Path) -> None:
        assert module_folders(), "there is no module"
        for folder in module_folders():
            missing = {name for name in module_files(folder) if not (modules_folder / name).is_file()}
            assert not missing, f"not listed in {folder.name}/CMakeLists.txt"

    def test_models_lie_beside_the_library(self, modules_folder: Path) -> None:
        models = ROOT / "Resources" / "Models"
        assert sources(modules_folder / "Resources" / "Models", "*") == sources(models, "*")
        assert "catalogue.json" in sources(models, "*")

    def test_what_is_installed_is_what_is_in_the_source_tree(self, modules_folder: Path) -> None:
        for name in sources(modules_folder, "*"):
            places = (MODULES / name, ROOT / name, *(folder / name for folder in module_folders()))
            source = next((place for place in places if place.is_file()), None)
            assert source is not None, f"{name} comes from nowhere"
            assert source.read_bytes() == (modules_folder / name).read_bytes()


class TestInstalledTree:
    def test_the_library_finds_the_shipped_models(self, modules_folder: Path, tmp_path: Path) -> None:
        code = "from MLILib import folders; print(folders.shipped())"
        environment = {**os.environ, "PYTHONPATH": str(modules_folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        )
        assert Path(done.stdout.strip()) == modules_folder / "Resources" / "Models"

    def test_every_module_is_named_as_its_file(self, built: Path) -> None:
        names = {name for name, _ in record(built, "module")} - set(LIBRARIES)
        assert names == {p.stem for folder in module_folders() for p in folder.glob("MLI*.py")}

    def test_every_module_has_the_generic_tests_and_runs_its_own(self, built: Path) -> None:
        modules = {name: generic for name, generic in record(built, "module") if name not in LIBRARIES}
        assert set(modules.values()) == {"TRUE"}
        assert {script for (script,) in record(built, "test")} == {f"{name}.py" for name in modules}


class TestMetadata:
    @pytest.mark.parametrize("key", ["HOMEPAGE", "ICONURL", "SCREENSHOTURLS"])
    def test_urls_are_literal_and_secure(self, key: str) -> None:
        # Slicer's extension index reads the text of CMakeLists.txt, so a variable in a URL would stay a variable.
        text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
        match = re.search(rf'^set\(EXTENSION_{key} "(https://[^"$\s]+)"\)$', text, re.MULTILINE)
        assert match, f"EXTENSION_{key} is not one literal https URL"

    @pytest.mark.parametrize("key", ["ICONURL", "SCREENSHOTURLS"])
    def test_pictures_named_by_urls_are_in_the_repository(self, key: str, built: Path) -> None:
        (url,) = record(built, f"EXTENSION_{key}")[0]
        assert (ROOT / url.split("/main/", 1)[1]).is_file()

    def test_torch_comes_from_the_extension_of_its_own(self, built: Path) -> None:
        assert record(built, "EXTENSION_DEPENDS") == [["PyTorch"]]

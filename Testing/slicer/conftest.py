"""What the tests of the Slicer side share: fresh scenes, models, and a Slicer made of slicer-core and the stand-in."""

import contextlib
import os
import sys
from pathlib import Path

import pytest

# slicer-core takes every folder called "slicer" beside a path entry for a part of itself, and this one is called so:
# it is imported before Testing becomes an entry.
try:
    import slicer
except ImportError:
    slicer = None

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "MLIModules", ROOT / "Testing", ROOT / "Testing" / "unit", ROOT / "Testing" / "slicer"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def pytest_pycollect_makemodule():
    """No file of this folder is imported where there is no slicer; they are skipped together."""
    if slicer is None:
        pytest.skip("slicer-core is not installed")


@pytest.fixture
def scene(monkeypatch):
    """An empty scene, slicer.mrmlScene for the time of a test."""
    made = slicer.vtkMRMLScene()
    monkeypatch.setattr(slicer, "mrmlScene", made, raising=False)
    return made


@pytest.fixture(scope="session")
def user_models(tmp_path_factory):
    """An empty folder for the user's models; every process started from now on looks there, the kept worker too."""
    folder = tmp_path_factory.mktemp("models")
    before = os.environ.get("MLI_MODELS")
    os.environ["MLI_MODELS"] = str(folder)
    yield folder
    if before is None:
        del os.environ["MLI_MODELS"]
    else:
        os.environ["MLI_MODELS"] = before


@pytest.fixture(scope="session")
def standin(user_models):
    """The stand-in for Slicer's Qt layer, installed in this process."""
    pytest.importorskip("PySide6", reason="PySide6 is not installed")
    import slicer_standin

    slicer_standin.install()
    yield slicer_standin
    from MLISlicerLib import jobs

    jobs.shared_runner().close()


@pytest.fixture(scope="session")
def model_folder(user_models):
    """The user's folder of models with bundles of random weights in it."""
    pytest.importorskip("monai", reason="monai is not installed")
    from tiny_bundle import write_tiny_bundle

    folder = user_models
    write_tiny_bundle(folder / "tiny", labels=("anterior", "posterior"), dropout=0.2)
    write_tiny_bundle(folder / "tiny-second", labels=("anterior", "posterior"), dropout=0.2, seed=1)
    write_tiny_bundle(folder / "three-channels", channels=3)
    docs = folder / "tiny" / "docs"
    docs.mkdir(exist_ok=True)
    (docs / "README.md").write_text("# Tiny\n\nRandom weights, for tests.\n", encoding="utf-8")
    return folder


def emptied(standin):
    """An empty scene, and no message and no exception of a slot from before."""
    slicer.mrmlScene.Clear()
    standin.messages.clear()
    standin.slot_errors.clear()
    standin.dialog_answers.clear()


@pytest.fixture
def fresh_standin(standin):
    """The stand-in with an empty scene; an exception in a slot fails the test."""
    emptied(standin)
    yield standin
    standin.check_slots()


@contextlib.contextmanager
def opened(standin, module):
    """A module's panel in an empty scene; at the end its job is stopped, and no slot may have raised."""
    import clicks  # lies in a folder that this file makes known

    emptied(standin)
    _, made = standin.load_module(module)
    yield made
    standin.check_slots()
    if made.job is not None:
        made.cancelJob()
        standin.process_events_until(lambda: made.job is None, 10)
    standin.unload_module(module.stem)
    clicks.forget_own_views()


@pytest.fixture
def open_panel(standin):
    """Opens a module's panel in an empty scene for the time of a test."""
    with contextlib.ExitStack() as stack:
        yield lambda module: stack.enter_context(opened(standin, module))


@pytest.fixture
def widget(model_folder, open_panel):
    """The panel of MLI Segmentation in an empty scene, with the model "tiny" chosen."""
    made = open_panel(ROOT / "MLIModules" / "Segmentation" / "MLISegmentation.py")
    made._parameterNode.model = "tiny"
    return made


@pytest.fixture
def explain_panel(fake_runner, model_folder, open_panel):
    """MLI Explainability in an empty scene, with the worker that does not compute, and a model of random weights."""
    import explain_panel

    from MLISlicerLib import explanation_layers

    explanation_layers.forget("tiny")
    made = open_panel(explain_panel.MODULE)
    made._parameterNode.model = "tiny"
    return made


@pytest.fixture
def fake_runner(standin, user_models, monkeypatch):
    """A runner whose worker does not compute (fake_worker.py), in place of the one that the panels share."""
    from MLISlicerLib import widget as shared
    from MLISlicerLib.jobs import JobRunner
    from MLISlicerLib.process import WorkerProcess

    made = JobRunner(lambda: WorkerProcess([sys.executable, str(Path(__file__).with_name("fake_worker.py"))]))
    monkeypatch.setattr(shared, "shared_runner", lambda: made)
    monkeypatch.setattr(shared.install, "ensure", lambda requester: None)
    yield made
    made.close()


@pytest.fixture(scope="session")
def pictures():
    """The folder of pictures for a person to look at."""
    folder = ROOT / "Testing" / "Output"
    folder.mkdir(exist_ok=True)
    return folder

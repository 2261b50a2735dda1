"""Makes the pictures of README.md: the panels before, during and after a job; the demo's picture.

Run as ``python demo/make_screenshots.py`` after ``make demo``. The stand-in for Slicer's widgets draws the panels.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "Resources" / "Screenshots"
_WIDTH = 460
_PATIENCE = 300.0


def main() -> int:
    """Entry point of the command."""
    drawn = ROOT / "demo-output" / "MNI152_right_hippocampus.png"
    if not drawn.exists():
        print("Run `make demo` first: its picture is one of the README's.", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    shutil.copy(drawn, FOLDER / drawn.name)

    import slicer  # first: slicer-core takes folders called "slicer" beside later path entries for its own

    sys.path += [str(ROOT / "MLIModules"), str(ROOT / "Testing")]
    standin: Any = importlib.import_module("slicer_standin")
    standin.install()
    for picture in (_segmentation, _registration, _fusion):
        picture(standin)
        standin.check_slots()
        slicer.mrmlScene.Clear()
    jobs: Any = importlib.import_module("MLISlicerLib.jobs")
    jobs.shared_runner().close()
    return 0


def _segmentation(standin: Any) -> None:
    """The right hippocampus, with its uncertainty map."""
    instance, widget = standin.load_module(str(ROOT / "MLIModules" / "Segmentation" / "MLISegmentation.py"))
    sample_data: Any = importlib.import_module("SampleData")
    importlib.import_module(type(instance).__module__).registerSampleData()
    sample_data.downloadSample("MNI152 right hippocampus")
    widget.enter()
    widget.ui.uncertaintyCheckBox.checked = True
    _grab(standin, widget, "ready")
    widget.ui.applyButton.click()
    standin.process_events_until(lambda: widget.ui.progressBar.value > 0 or widget.job is None, _PATIENCE)
    _grab(standin, widget, "running")
    standin.process_events_until(lambda: widget.job is None, _PATIENCE)
    _grab(standin, widget, "result")


def _registration(standin: Any) -> None:
    """The moved hippocampus brought back, with landmarks and the joint histogram."""
    instance, widget = standin.load_module(str(ROOT / "MLIModules" / "Registration" / "MLIRegistration.py"))
    sample_data: Any = importlib.import_module("SampleData")
    importlib.import_module(type(instance).__module__).registerSampleData()
    fixed, moving, fixed_points, moving_points = sample_data.downloadSamples("MNI152 right hippocampus, moved")
    widget.enter()
    node = widget._parameterNode
    node.fixedVolume, node.movingVolume, node.fixedPoints, node.movingPoints = (
        fixed,
        moving,
        fixed_points,
        moving_points,
    )
    widget.ui.guidanceCollapsibleButton.collapsed = False
    _grab(standin, widget, "ready")
    widget.ui.guidanceCollapsibleButton.collapsed = True
    widget.ui.applyButton.click()

    def bends() -> bool:
        status = widget.job.status if widget.job is not None else None
        return status is None or (status.stage == "Deformable" and (status.fraction or 0.0) > 0.2)

    standin.process_events_until(bends, _PATIENCE)
    _grab(standin, widget, "running")
    standin.process_events_until(lambda: widget.job is None, _PATIENCE)
    widget.ui.histogramButton.click()
    standin.process_events_until(lambda: widget.job is None, _PATIENCE)
    _grab(standin, widget, "result")


def _fusion(standin: Any) -> None:
    """The sample atlases fused by joint label fusion, beside the reference; none is taken from the cache."""
    instance, widget = standin.load_module(str(ROOT / "MLIModules" / "AtlasFusion" / "MLIAtlasFusion.py"))
    sample = importlib.import_module(type(instance).__module__).loadAtlases()
    widget.enter()
    node = widget._parameterNode
    node.targetVolume, node.reference, node.keep = sample.volume, sample.reference, False
    standin.process_events_until(lambda: node.atlasFolder, _PATIENCE)
    _grab(standin, widget, "ready")
    widget.ui.applyButton.click()

    def half() -> bool:
        status = widget.job.status if widget.job is not None else None
        return status is None or "done" in status.raters.values()

    standin.process_events_until(half, _PATIENCE)
    _grab(standin, widget, "running")
    standin.process_events_until(lambda: widget.job is None, 2 * _PATIENCE)
    _grab(standin, widget, "result")


def _grab(standin: Any, widget: Any, name: str) -> None:
    for shown in (widget, widget.uiWidget):  # the first drawing lays the panel out
        standin.picture.grab(shown, str(FOLDER / f"{widget.moduleName}_{name}.png"), width=_WIDTH)


if __name__ == "__main__":
    sys.exit(main())

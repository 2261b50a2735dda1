"""Makes the pictures of README.md: the panel of MLI Segmentation before, during and after a job; the demo's picture.

Run as ``python demo/make_screenshots.py`` after ``make demo``. The panel is drawn by the stand-in for Slicer's widgets.
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
    instance, widget = standin.load_module(str(ROOT / "MLIModules" / "Segmentation" / "MLISegmentation.py"))
    sample_data: Any = importlib.import_module("SampleData")
    importlib.import_module(type(instance).__module__).registerSampleData()
    sample_data.downloadSample("MNI152 right hippocampus")
    widget.enter()

    def grab(name: str) -> None:
        standin.picture.grab(widget.uiWidget, str(FOLDER / f"MLISegmentation_{name}.png"), width=_WIDTH)

    widget.ui.uncertaintyCheckBox.checked = True
    grab("ready")
    widget.ui.applyButton.click()
    standin.process_events_until(lambda: widget.ui.progressBar.value > 0 or widget.job is None, _PATIENCE)
    grab("running")
    standin.process_events_until(lambda: widget.job is None, _PATIENCE)
    standin.check_slots()
    grab("result")
    jobs: Any = importlib.import_module("MLISlicerLib.jobs")
    jobs.shared_runner().close()
    slicer.mrmlScene.Clear()
    return 0


if __name__ == "__main__":
    sys.exit(main())

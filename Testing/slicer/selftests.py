"""Runs a self-test of a module's file in a process of its own, as Slicer does with --no-main-window."""

import contextlib
import subprocess
import sys
import unittest
from pathlib import Path

import pytest
import slicer
from clicks import forget_own_views

ROOT = Path(__file__).resolve().parents[2]

_SCRIPT = """
import sys, unittest
sys.path[:0] = [{modules!r}, {testing!r}]
import slicer_standin
slicer_standin.install(main_window=False)
import slicer
assert slicer.app.layoutManager() is None
_, widget = slicer_standin.load_module({module!r})
result = unittest.TestResult()
getattr(sys.modules[{name!r}], {name!r} + "Test")({test!r}).run(result)
slicer_standin.check_slots()
for _, report in result.failures + result.errors:
    print(report)
print("skipped: " + result.skipped[0][1] if result.skipped else "ran")
from MLISlicerLib import jobs
jobs.shared_runner().close()
sys.exit(0 if result.wasSuccessful() else 1)
"""


def tell(result):
    """Fail or skip as the self-test did."""
    for _, report in result.failures + result.errors:
        pytest.fail(report)
    if result.skipped:
        pytest.skip(result.skipped[0][1])


@contextlib.contextmanager
def loaded(standin, module):
    """A module in an empty scene; it is gone afterwards, and what it left in the scene."""
    standin.load_module(module)
    try:
        yield sys.modules[module.stem]
    finally:
        standin.unload_module(module.stem)
        forget_own_views()
        slicer.mrmlScene.Clear()


def with_a_main_window(standin, module, test):
    """Run one test of the module's test class in this process; skips as it does."""
    with loaded(standin, module) as code:
        result = unittest.TestResult()
        getattr(code, f"{module.stem}Test")(test).run(result)
        standin.check_slots()
        tell(result)


def as_the_button_runs_it(standin, module):
    """Run all tests of a module in one call, as the button "Reload and Test" does."""
    with loaded(standin, module):
        standin.run_self_test(module.stem)


def without_a_main_window(module, test):
    """Run one test of the module's test class without a main window; skips as it does."""
    modules, testing = str(ROOT / "MLIModules"), str(ROOT / "Testing")
    code = _SCRIPT.format(modules=modules, testing=testing, module=str(module), name=module.stem, test=test)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    if last.startswith("skipped: "):
        pytest.skip(last.removeprefix("skipped: "))
    assert last == "ran"

"""Runs the self-tests of a module's file as Slicer does: by the button "Reload and Test", and with --no-main-window.

Each way takes one run a module, in which every test notes what became of it, for the tests that ask.
"""

import contextlib
import functools
import json
import subprocess
import sys
import traceback
import unittest
from pathlib import Path

import pytest
import slicer
from clicks import forget_own_views

ROOT = Path(__file__).resolve().parents[2]
PASSED = "passed"
SKIPPED = "skipped: "

_SCRIPT = """
import json, sys, unittest
sys.path[:0] = [{modules!r}, {testing!r}]
import slicer_standin
slicer_standin.install(main_window=False)
import slicer
assert slicer.app.layoutManager() is None
_, widget = slicer_standin.load_module({module!r})
outcomes = {{}}
for test in {tests!r}:
    result = unittest.TestResult()
    getattr(sys.modules[{name!r}], {name!r} + "Test")(test).run(result)
    slicer_standin.check_slots()
    reports = [report for _, report in result.failures + result.errors]
    skipped = [{skipped!r} + reason for _, reason in result.skipped]
    outcomes[test] = "\\n".join(reports or skipped or [{passed!r}])
print(json.dumps(outcomes))
from MLISlicerLib import jobs
jobs.shared_runner().close()
"""


def file_of(name):
    """The file of a module, such as "Segmentation"."""
    return ROOT / "MLIModules" / name / f"MLI{name}.py"


def tell(outcome):
    """Fail or skip as a self-test did."""
    if outcome.startswith(SKIPPED):
        pytest.skip(outcome.removeprefix(SKIPPED))
    if outcome != PASSED:
        pytest.fail(outcome)


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


def press_the_button(standin, module):
    """Run all tests of a module in one call, as the button "Reload and Test" does, with a main window.

    Tests that this did not reach, since one before them failed or was skipped, are then run one by one.

    Returns:
        What became of the button's run as a whole, the names of the tests that it reached, and what became of each
        test: "passed", "skipped: " with the reason, or the report of its failure.
    """
    with loaded(standin, module) as code:
        test_class = getattr(code, f"{module.stem}Test")
        names = [name for name in dir(test_class) if name.startswith("test_")]
        outcomes = {}
        for name in names:
            setattr(test_class, name, _noting(getattr(test_class, name), outcomes))
        whole = PASSED
        try:
            skipped = standin.run_self_test(module.stem).skipped
            whole = SKIPPED + skipped[0][1] if skipped else PASSED
        except AssertionError as error:
            whole = str(error)
        reached = list(outcomes)
        for name in set(names) - set(reached):
            test_class(name).run(unittest.TestResult())
        standin.check_slots()
        return whole, reached, outcomes


def _noting(test, outcomes):
    """The test, which also notes what becomes of it."""

    @functools.wraps(test)
    def noting(self):
        try:
            test(self)
        except unittest.SkipTest as skip:
            outcomes[test.__name__] = f"{SKIPPED}{skip}"
            raise
        except BaseException:
            outcomes[test.__name__] = traceback.format_exc()
            raise
        outcomes[test.__name__] = PASSED

    return noting


def without_a_main_window(module, tests):
    """Run tests of a module one by one in a process that has no main window; what became of each, by name."""
    code = _SCRIPT.format(
        modules=str(ROOT / "MLIModules"), testing=str(ROOT / "Testing"), module=str(module), name=module.stem,
        tests=list(tests), passed=PASSED, skipped=SKIPPED,
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])

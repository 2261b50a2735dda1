"""The self-tests in the modules' files, unchanged, as Slicer runs them: with a main window, and without one."""

import functools

import pytest
from selftests import PASSED, file_of, press_the_button, tell, without_a_main_window

#: Each module's tests, and those of them that are also run without a main window.
TESTS = {
    "AnomalyGAN": (["test_badInput", "test_lesion", "test_parametersAreSaved"], ["test_badInput"]),
    "AtlasFusion": (
        ["test_atlases", "test_badInput", "test_parametersAreSaved", "test_raters"],
        ["test_atlases", "test_badInput", "test_raters"],
    ),
    "Explainability": (
        ["test_attack", "test_badInput", "test_parametersAreSaved", "test_point"],
        ["test_badInput", "test_point"],
    ),
    "Registration": (
        ["test_badInput", "test_deformable", "test_parametersAreSaved", "test_rigid"],
        ["test_badInput", "test_rigid"],
    ),
    "Segmentation": (
        ["test_badInput", "test_classicalMethods", "test_parametersAreSaved", "test_sampleImage"],
        ["test_badInput", "test_classicalMethods", "test_parametersAreSaved", "test_sampleImage"],
    ),
}


@pytest.fixture(scope="module")
def pressed(standin):
    """What comes of a module's button "Reload and Test", which is pressed once."""
    return functools.cache(lambda module: press_the_button(standin, file_of(module)))


@pytest.fixture(scope="module")
def windowless():
    """What comes of a module's tests without a main window, in one process."""
    return functools.cache(lambda module: without_a_main_window(file_of(module), TESTS[module][1]))


@pytest.mark.parametrize(
    ("module", "test"), [(module, test) for module, (tests, _) in TESTS.items() for test in ["runTest", *tests]]
)
def test_as_the_button_reload_and_test_runs_it(module, test, pressed):
    """runTest() goes through all tests in one call, and leaves none out."""
    whole, reached, outcomes = pressed(module)
    if test == "runTest":
        tell(whole)
        assert sorted(reached) == TESTS[module][0]
    else:
        tell(outcomes[test])


@pytest.mark.parametrize(("module", "test"), [(module, test) for module, (_, tests) in TESTS.items() for test in tests])
def test_without_a_main_window(module, test, windowless):
    tell(windowless(module)[test])


SOME_FAIL = """
from slicer.ScriptedLoadableModule import *

class MLISomeFail(ScriptedLoadableModule):
    pass

class MLISomeFailWidget(ScriptedLoadableModuleWidget):
    pass

class MLISomeFailTest(ScriptedLoadableModuleTest):
    def runTest(self):
        self.test_good()
        self.test_bad()
        self.test_behind()

    def test_good(self):
        pass

    def test_bad(self):
        self.fail("no such volume")

    def test_behind(self):
        self.skipTest("no model")
"""


def test_a_self_test_that_fails_is_told(standin, tmp_path):
    """By its own report; those behind it, which the button did not reach, are run nevertheless."""
    file = tmp_path / "MLISomeFail.py"
    file.write_text(SOME_FAIL, encoding="utf-8")
    whole, reached, outcomes = press_the_button(standin, file)
    assert reached == ["test_good", "test_bad"]
    tell(outcomes["test_good"])
    for report in (whole, outcomes["test_bad"]):
        with pytest.raises(pytest.fail.Exception, match="no such volume"):
            tell(report)
    with pytest.raises(pytest.skip.Exception, match="no model"):
        tell(outcomes["test_behind"])
    outcomes = without_a_main_window(file, ["test_good", "test_bad", "test_behind"])
    assert outcomes["test_good"] == PASSED
    assert "no such volume" in outcomes["test_bad"]
    assert outcomes["test_behind"] == "skipped: no model"

"""What all tests share: the paths, the data folder, and a count of the skipped tests with their reasons at the end."""

import collections
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Let processes that a test starts find MLILib, and tell them where the data lie."""
    paths = [str(ROOT / "MLIModules"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ.setdefault("MLI_DATA", str(ROOT.parent / "shared" / "data"))
    os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_report_header() -> str:
    """Where the real images are looked for."""
    folder = Path(os.environ["MLI_DATA"])
    return f"data folder (MLI_DATA): {folder}{'' if folder.is_dir() else ', which does not exist'}"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real images, MLI_DATA; the test is skipped where there is none."""
    folder = Path(os.environ["MLI_DATA"])
    if not folder.is_dir():
        pytest.skip("no data folder: set MLI_DATA")
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests did not run, and why."""
    reasons: collections.Counter[str] = collections.Counter()
    for report in terminalreporter.getreports("skipped"):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[text.removeprefix("Skipped: ")] += 1
    ran = sum(len(terminalreporter.getreports(outcome)) for outcome in ("passed", "failed", "xfailed", "xpassed"))
    terminalreporter.section("skipped tests", sep="-")
    terminalreporter.line(f"{ran} tests ran, {sum(reasons.values())} were skipped{':' if reasons else '.'}")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:4d}  {reason}")

"""What all tests share: the paths, the data folder, and a count of the skipped tests with their reasons at the end.

With `pytest -n` tests run in several processes. One marked "alone" measures time: it begins when the tests of the other
processes have ended, and those that come next wait for it.
"""

import collections
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Processes at the most, and what each may take with the workers that it starts, bytes.
MOST, EACH = 4, 3 * 1024**3
_LOCKS = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Let processes that a test starts find MLILib, and tell them where the data lie."""
    paths = [str(ROOT / "MLIModules"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ.setdefault("MLI_DATA", str(ROOT.parent / "shared" / "data"))
    os.environ.setdefault("MPLBACKEND", "Agg")
    if hasattr(config, "workerinput"):  # one of several processes: they share the processors
        share = max(1, processors() // config.workerinput["workercount"])
        os.environ.setdefault("OMP_NUM_THREADS", str(share))
        os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", str(share))


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means."""
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // EACH
    return max(1, min(MOST, processors(), room))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process where the locks of :func:`turn` lie."""
    stash = node.config.stash
    if _LOCKS not in stash:
        stash[_LOCKS] = tempfile.mkdtemp(prefix="mli-tests-")
    node.workerinput["locks"] = stash[_LOCKS]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the locks."""
    if _LOCKS in config.stash:
        shutil.rmtree(config.stash[_LOCKS])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test with its fixtures when it is its turn."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    with turn(Path(item.config.workerinput["locks"]), alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextlib.contextmanager
def turn(locks: Path, *, alone: bool) -> Iterator[None]:
    """While the block runs no other process is in such a block, if it is to be `alone`; else none that is alone.

    Who waits to be alone holds the gate, so that those who come next wait behind it.
    """
    import fcntl

    with (locks / "gate").open("wb") as gate, (locks / "room").open("wb") as room:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # closing is not enough: a process that was forked has the file open, too


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

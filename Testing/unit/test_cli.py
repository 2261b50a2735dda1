"""The command line: exit codes, one JSON object, and errors in a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_dataset import write_dataset

import MLILib
from MLILib import cli
from MLILib.errors import BadInput

_ENV = {**os.environ, "PYTHONPATH": str(Path(MLILib.__file__).parents[1])}


def mli(*words: str, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run `mli` as a shell would."""
    command = [sys.executable, "-m", "MLILib.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=_ENV, timeout=120, check=False, **keywords)


def _label(path: Path, shift: int = 0) -> str:
    array = np.zeros((8, 8, 8), np.uint8)
    array[2:6, 2:6, 2 + shift : 6 + shift] = 1
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return str(path)


class TestJson:
    def test_one_object_and_nothing_else(self, tmp_path: Path) -> None:
        done = mli("evaluate", _label(tmp_path / "a.nrrd"), _label(tmp_path / "b.nrrd", 1), "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        # two 4x4x4 cubes that share 3 of 4 layers
        assert result["mean"]["dice"] == pytest.approx(0.75)
        assert "text" not in result

    def test_an_error_is_json_too(self, tmp_path: Path) -> None:
        done = mli("evaluate", str(tmp_path / "no.nii"), str(tmp_path), "--json")
        assert done.returncode == 2
        assert json.loads(done.stdout)["error"]["kind"] == "BadInput"
        assert "does not exist" in done.stderr
        assert "Traceback" not in done.stderr

    def test_without_json_a_table(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        path = _label(tmp_path / "a.nrrd")
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            assert cli.main(["evaluate", path, path]) == 0
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        said = capfd.readouterr().out
        assert "dice" in said.lower()
        with pytest.raises(json.JSONDecodeError):
            json.loads(said)


class TestBadCommandLines:
    @pytest.mark.parametrize(
        "words",
        [
            ["segment"],
            ["nonsense"],
            ["evaluate", "a", "b", "--tolerance", "-1"],
            ["evaluate", "a", "b", "--tolerance", "near"],
            ["segment", "a.nii", "-m", "m", "-o", "o.nii", "--ensemble", "quarrel"],
        ],
    )
    def test_they_are_bad_input(self, words: list[str]) -> None:
        with pytest.raises(BadInput):
            cli.parse(words)

    def test_exit_code_and_a_pointer_to_help(self) -> None:
        done = mli("segment")
        assert done.returncode == 2
        assert "--help" in done.stderr


class TestHelp:
    @pytest.mark.parametrize("words", [[], ["segment"], ["train", "segmentation"], ["models", "list"], ["check"]])
    def test_every_task_explains_itself(self, words: list[str]) -> None:
        done = mli(*words, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith("usage: mli")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
class TestInterrupt:
    def test_in_a_destructor_it_is_heeded_at_the_next_report(self) -> None:
        # Python prints and drops what is raised there.
        code = """
import os, signal, sys
from MLILib import cli, tasks

class Library:
    def __init__(self, number): self.number = number
    def __del__(self):
        if self.number: os.kill(os.getpid(), self.number)
        else: raise ValueError("a fault of its own")

def run(request, progress):
    del request
    Library(signal.SIGTERM if sys.argv[1] == "interrupt" else 0)  # SIGINT is ignored in a background
    progress.fraction(0.5)
    return {"text": "went on"}

tasks.run = run
sys.exit(cli.main(["check"]))
"""
        interrupted, faulty = (
            subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, env=_ENV, check=False)
            for word in ("interrupt", "fault")
        )
        assert interrupted.returncode == 130, interrupted.stderr
        assert "cancelled" in interrupted.stderr
        assert "Traceback" not in interrupted.stderr
        assert faulty.returncode == 0, faulty.stderr
        assert faulty.stdout == "went on\n"
        assert "a fault of its own" in faulty.stderr

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ctrl_c_says_so_and_exits_130(self, tmp_path: Path, number: signal.Signals) -> None:
        pytest.importorskip("torch")
        write_dataset(tmp_path, 8)
        command = [sys.executable, "-m", "MLILib.cli", "train", "segmentation", str(tmp_path / "dataset.json"),
                   "-o", str(tmp_path / "b"), "--epochs", "100000", "--filters", "2", "--device", "cpu"]  # fmt: skip
        # Where the tests run in a shell's background, Ctrl+C is ignored, and children inherit that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = subprocess.Popen(command, env=_ENV, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        finally:
            signal.signal(signal.SIGINT, before)
        checkpoint = tmp_path / "b" / "training" / "checkpoint.pt"
        deadline = time.monotonic() + 300
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 130, said
        assert "cancelled" in said
        assert "Traceback" not in said

"""The record beside a result says what is needed to repeat it, and nothing of the machine but what the user typed."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from grids import random_image
from tiny_bundle import write_tiny_bundle

from MLILib import cli, record, tasks
from MLILib.segmentation import models


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A request with relative names, its result and its record."""
    monkeypatch.chdir(tmp_path)
    sitk.WriteImage(random_image(np.random.default_rng(0)), "head scan.nii.gz")
    write_tiny_bundle(tmp_path / "tiny", dropout=0.2)
    request = tasks.SegmentRequest(("head scan.nii.gz",), ("./tiny",), "out.seg.nrrd", mc_dropout=2, seed=7)
    result = tasks.run(request)
    yield request, result, json.loads(Path(result["record"]).read_text(encoding="utf-8"))
    models.forget_all()


class TestSegmentation:
    def test_lies_beside_the_output(self, run: Any) -> None:
        assert run[1]["record"] == "out.json"

    def test_the_command_repeats_the_request(self, run: Any) -> None:
        request, _, noted = run
        words = shlex.split(noted["command"])
        assert words[:2] == ["mli", "segment"]
        assert noted["settings"] == request.to_json()
        assert cli.parse(words[1:]) == (request, False)

    def test_names_inputs_and_model_by_their_content(self, run: Any) -> None:
        _, result, noted = run
        digest = hashlib.sha256(Path("head scan.nii.gz").read_bytes()).hexdigest()
        assert noted["inputs"] == [{"name": "head scan.nii.gz", "sha256": digest}]
        assert noted["models"] == result["model"]
        assert noted["seed"] == 7

    def test_versions_time_and_memory(self, run: Any) -> None:
        import torch

        noted = run[2]
        assert noted["versions"]["torch"] == torch.__version__
        assert noted["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
        parts = sum(v for k, v in noted["seconds"].items() if k != "total")
        assert noted["seconds"]["total"] == pytest.approx(parts, abs=0.005)  # each is rounded to milliseconds
        # A process with torch in it holds 100 MB at the least.
        assert noted["peak_memory_bytes"]["host"] > 100e6

    def test_says_the_volumes(self, run: Any) -> None:
        assert run[2]["labels"] == run[1]["labels"]

    def test_names_nothing_of_the_machine(self, run: Any, tmp_path: Path) -> None:
        text = Path("out.json").read_text(encoding="utf-8")
        assert str(tmp_path) not in text
        assert not re.search(r'"/(home|root|tmp|Users|work)', text)


class TestChecksum:
    def test_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"abc")
        # FIPS 180-2, appendix B.1
        expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert record.checksum(str(tmp_path / "a")) == expected

    def test_of_a_folder_depends_on_content_and_names_only(self, tmp_path: Path) -> None:
        for name in ("one", "two", "three"):
            (tmp_path / name / "series").mkdir(parents=True)
            (tmp_path / name / "series" / "1.dcm").write_bytes(b"abc")
        (tmp_path / "three" / "series" / "1.dcm").rename(tmp_path / "three" / "series" / "2.dcm")
        one, two, three = (record.checksum(str(tmp_path / name)) for name in ("one", "two", "three"))
        assert one == two != three


class TestPeakMemory:
    def test_sees_what_was_held_and_let_go(self) -> None:
        peak = record.PeakMemory()
        before = peak.bytes()["host"]
        np.ones(200_000_000, np.uint8).sum()
        assert peak.bytes()["host"] - before == pytest.approx(200e6, rel=0.1)

    @pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets the mark be set back")
    def test_a_later_job_is_not_charged_for_an_earlier_one(self) -> None:
        np.ones(400_000_000, np.uint8).sum()
        high = record.PeakMemory().bytes()["host"]
        np.ones(400_000_000, np.uint8).sum()
        assert record.PeakMemory().bytes()["host"] == pytest.approx(high, rel=0.2)


class TestNames:
    @pytest.mark.parametrize(
        ("output", "expected"),
        [("a/out.nii.gz", "a/out.json"), ("out.seg.nrrd", "out.json"), ("v1.2.nrrd", "v1.2.json"), ("m", "m.json")],
    )
    def test_suffix_is_replaced(self, output: str, expected: str) -> None:
        assert Path(record.path_beside(output)) == Path(expected)

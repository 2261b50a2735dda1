"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from MLILib.errors import BadInput
from MLILib.files import Outputs, require_writable, stem, suffix


def _write_and_fail(path: Path, error: Exception) -> None:
    with Outputs() as outputs:
        Path(outputs.path(path)).write_text("new", encoding="utf-8")
        raise error


class TestNames:
    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("a/b.c.nii.gz", ("b.c", ".nii.gz")),
            ("x.SEG.NRRD", ("x", ".seg.nrrd")),
            ("x.nrrd", ("x", ".nrrd")),
            ("x", ("x", "")),
        ],
    )
    def test_double_suffixes_stay_together(self, name: str, parts: tuple[str, str]) -> None:
        assert (stem(name), suffix(name)) == parts


class TestOutputs:
    def test_all_files_appear_together(self, tmp_path: Path) -> None:
        with Outputs() as outputs:
            for name in ("a.nii.gz", "b.json"):
                made = Path(outputs.path(tmp_path / name))
                assert suffix(made) == suffix(name)
                made.write_text(name, encoding="utf-8")
            assert not (tmp_path / "a.nii.gz").exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.json"]
        assert (tmp_path / "b.json").read_text(encoding="utf-8") == "b.json"

    def test_a_failure_leaves_what_was_there(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("old", encoding="utf-8")
        with pytest.raises(RuntimeError, match="later"):
            _write_and_fail(tmp_path / "a.txt", RuntimeError("later"))
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
        assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"

    @pytest.mark.parametrize(
        "error", [OSError(errno.ENOSPC, "full"), RuntimeError("ITK says: No space left on device")]
    )
    def test_a_full_disk_is_said_in_a_sentence(self, tmp_path: Path, error: Exception) -> None:
        with pytest.raises(BadInput, match="is full"):
            _write_and_fail(tmp_path / "a.nrrd", error)
        assert list(tmp_path.iterdir()) == []

    def test_a_real_full_device(self) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        with pytest.raises(BadInput, match="is full"), Outputs(), open("/dev/full", "wb", buffering=0) as stream:
            stream.write(b"x")

    def test_permissions_are_those_of_an_ordinary_file(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        with Outputs() as outputs:
            outputs.path(tmp_path / "made")
        assert (tmp_path / "made").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(BadInput, match="cannot be written"):
        require_writable(str(tmp_path / "a.nrrd"))

"""`mli check`: each line says what it found, and one that is not fine says what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
from tiny_bundle import write_tiny_bundle

from MLILib import catalogue, folders, selfcheck, tasks
from MLILib.tasks import CheckRequest

pytest.importorskip("torch")
pytest.importorskip("monai")


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "Models"
    write_tiny_bundle(home / "given")
    catalogue.refresh_catalogue(home)
    monkeypatch.setattr(folders, "shipped", lambda: home)
    monkeypatch.setenv("MLI_MODELS", str(tmp_path / "mine"))
    monkeypatch.setenv("MLI_CACHE", str(tmp_path / "cache"))
    return home


def lines(device: str = "auto") -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in tasks.run(CheckRequest(device=device))["lines"]}


class TestRun:
    def test_here_all_is_well(self) -> None:
        result = tasks.run(CheckRequest(device="cpu"))
        assert result["ok"] is True
        names = {line["name"] for line in result["lines"]}
        assert {"Python", "torch", "Device", "GPU driver", "Free memory", "Your models", "Model given"} <= names
        assert {"monai", "SimpleITK", "numpy", "scipy"} <= names
        assert "Ready." in result["text"]
        json.dumps(result, allow_nan=False)

    def test_every_line_that_is_not_fine_has_a_remedy(self) -> None:
        for line in lines().values():
            assert line["value"]
            assert bool(line["remedy"]) == (line["ok"] is not True)

    def test_a_device_that_is_not_there_is_red(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        result = tasks.run(CheckRequest(device="cuda"))
        assert result["ok"] is False
        assert lines("cuda")["Device"]["ok"] is False

    def test_works_without_torch(self, tmp_path: Path) -> None:
        code = (
            "import sys, json; sys.modules['torch'] = sys.modules['monai'] = None\n"
            "from MLILib import tasks; print(json.dumps(tasks.run(tasks.CheckRequest())))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)
        found = {line["name"]: line for line in result["lines"]}
        assert result["ok"] is False
        assert found["torch"]["ok"] is found["Device"]["ok"] is found["monai"]["ok"] is False
        assert "PyTorch extension" in found["torch"]["remedy"]
        assert "!!  torch" in result["text"]


class TestModels:
    def test_a_changed_model_is_red(self, shipped: Path) -> None:
        with open(shipped / "given" / "models" / "model.pt", "ab") as stream:
            stream.write(b" ")
        line = lines()["Model given"]
        assert line["ok"] is False
        assert "is not" in line["value"]

    def test_a_missing_model_is_red(self, shipped: Path) -> None:
        (shipped / "given" / "configs" / "metadata.json").unlink()
        assert lines()["Model given"]["ok"] is False

    def test_none_is_red(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folders, "shipped", lambda: None)
        assert lines()["Shipped models"]["ok"] is False


class TestFolders:
    def test_a_folder_that_does_not_exist_yet_is_fine(self, tmp_path: Path) -> None:
        assert selfcheck.writable_line(tmp_path / "a" / "b")["ok"] is True
        assert list(tmp_path.glob("a")) == []

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_cannot_be_written_is_red(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        assert selfcheck.writable_line(tmp_path)["ok"] is False

    def test_a_full_disk_is_red(self, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = type("usage", (), {"free": 100_000_000})
        monkeypatch.setattr(selfcheck.shutil, "disk_usage", lambda folder: usage)
        assert [line["ok"] for line in selfcheck.disk_lines()] == [False, False]


class TestMemory:
    @pytest.mark.parametrize(("free", "ok"), [(1e9, False), (3e9, None), (16e9, True)])
    def test_little_memory(self, monkeypatch: pytest.MonkeyPatch, free: float, ok: bool | None) -> None:
        monkeypatch.setattr(selfcheck.devices, "free_host_memory", lambda: int(free))
        assert selfcheck.memory_lines()[0]["ok"] is ok


class TestPackages:
    @pytest.mark.parametrize(
        ("version", "oldest", "enough"),
        [("2.13.0+cpu", "2.8", True), ("2.8.0", "2.8", True), ("2.7.1", "2.8", False), ("1.10", "1.9", True)],
    )
    def test_versions_are_compared_as_numbers(self, version: str, oldest: str, enough: bool) -> None:
        assert selfcheck._new_enough(version, oldest) is enough

    def test_a_missing_package_says_what_to_install(self) -> None:
        line = selfcheck.package_line("no_such_package_here", "1.2")
        assert line["ok"] is False
        assert "no_such_package_here 1.2" in line["remedy"]

    def test_an_old_package_is_red(self) -> None:
        assert selfcheck.package_line("numpy", "99.0")["ok"] is False


class TestPathLength:
    short = PureWindowsPath("C:/Slicer 5.12")
    long = PureWindowsPath("C:/Users/somebody with a long name/AppData/Local/slicer.org/" + "3D Slicer 5.12.0/" * 4)

    @pytest.mark.parametrize(
        ("paths", "enabled", "ok"), [([short], False, True), ([short, long], False, False), ([short, long], True, True)]
    )
    def test_a_long_folder_is_red_unless_windows_allows_it(self, paths: list[Any], enabled: bool, ok: bool) -> None:
        assert selfcheck.path_length_line(paths, long_paths=enabled)["ok"] is ok


class TestDriver:
    def test_none_is_only_a_remark(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(selfcheck.shutil, "which", lambda name: None)
        assert selfcheck.driver_line()["ok"] is None

    @pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for nvidia-smi is a shell script")
    @pytest.mark.parametrize(
        ("script", "text"), [("echo 'RTX A4000, 580.95'", "RTX A4000, 580.95"), ("exit 9", "fails")]
    )
    def test_what_nvidia_smi_says(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, text: str
    ) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        assert text in selfcheck.driver_line()["value"]

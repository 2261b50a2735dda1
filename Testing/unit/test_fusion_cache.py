"""The cache of registered atlases: whole entries or none, damage noticed, bounded, fit for several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import MLILib
from MLILib.fusion import cache
from MLILib.fusion.cache import Cache, Entry
from MLILib.geometry import Grid, from_array


def entry(value: int = 1, voxels: int = 1000) -> Entry:
    return Entry(
        {"labels": np.full(voxels, value, np.uint8), "image": np.full(voxels, value, np.float32)}, {"similarity": value}
    )


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.npz")}


class TestEntries:
    def test_what_was_kept_comes_back(self, tmp_path: Path) -> None:
        kept = Cache(tmp_path / "new")
        assert kept.get("a") is None
        kept.put("a", entry(7))
        found = kept.get("a", ("labels", "image"))
        assert found is not None
        np.testing.assert_array_equal(found.arrays["labels"], np.full(1000, 7, np.uint8))
        assert found.arrays["image"].dtype == np.float32
        assert found.facts == {"similarity": 7}
        assert set(kept.get("a", ("labels",)).arrays) == {"labels"}  # type: ignore[union-attr]
        assert os.listdir(tmp_path / "new") == ["a.npz"]

    @pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "pickle"])
    def test_a_damaged_entry_is_none_and_removed(self, tmp_path: Path, damage: str) -> None:
        kept = Cache(tmp_path)
        kept.put("a", entry())
        path = tmp_path / "a.npz"
        whole = bytearray(path.read_bytes())
        if damage == "cut":
            path.write_bytes(whole[: len(whole) // 2])
        elif damage == "flipped":
            whole[600] ^= 0xFF  # a voxel
            path.write_bytes(whole)
        elif damage == "text":
            path.write_text("no entry", encoding="utf-8")
        elif damage == "empty":
            path.write_bytes(b"")
        else:
            np.savez(path, labels=np.array([{"code": 1}], dtype=object), image=np.zeros(1), facts=np.array("{}"))
        assert kept.get("a", ("labels", "image")) is None
        assert not path.exists()
        kept.put("a", entry(3))
        assert kept.get("a", ("labels",)) is not None

    def test_an_entry_without_what_is_wanted(self, tmp_path: Path) -> None:
        kept = Cache(tmp_path)
        kept.put("a", Entry({}, {"likeness": 0.5}))
        assert kept.get("a").facts == {"likeness": 0.5}  # type: ignore[union-attr]
        assert kept.get("a", ("labels",)) is None

    def test_a_write_that_fails_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(stream: object, **arrays: object) -> None:
            stream.write(b"half")  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space"):
            Cache(tmp_path).put("a", entry())
        assert os.listdir(tmp_path) == []

    def test_why_nothing_was_kept(self, tmp_path: Path) -> None:
        assert "is full" in cache.why_not(OSError(28, "No space left on device"), tmp_path)
        assert "cannot be written (Permission denied)" in cache.why_not(
            PermissionError(13, "Permission denied"), tmp_path
        )


class TestBound:
    def test_the_entry_used_longest_ago_goes(self, tmp_path: Path) -> None:
        kept = Cache(tmp_path)
        for number, name in enumerate("abc"):
            kept.put(name, entry())
            os.utime(tmp_path / f"{name}.npz", (1000.0 + number, 1000.0 + number))
        size = (tmp_path / "a.npz").stat().st_size
        assert kept.get("a", ("labels",)) is not None  # so b is the oldest now
        Cache(tmp_path, limit=round(3.5 * size)).put("d", entry())
        assert names(tmp_path) == {"a", "c", "d"}
        Cache(tmp_path, limit=1).put("e", entry())
        assert names(tmp_path) == {"e"}  # what was just kept stays in any case

    def test_what_a_killed_process_left_goes(self, tmp_path: Path) -> None:
        old, young = tmp_path / "entry-1.part", tmp_path / "entry-2.part"
        for path in (old, young):
            path.write_bytes(b"half")
        os.utime(old, (time.time() - 7200,) * 2)
        Cache(tmp_path).put("a", entry())
        assert {path.name for path in tmp_path.iterdir()} == {"entry-2.part", "a.npz"}

    def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "readme.txt").write_text("mine", encoding="utf-8")
        Cache(tmp_path, limit=1).put("a", entry())
        assert (tmp_path / "readme.txt").exists()


def test_several_processes(tmp_path: Path) -> None:
    """Two processes write and read the same entries under a bound that makes them remove each other's."""
    script = textwrap.dedent(
        """
        import sys
        import numpy as np
        from MLILib.fusion.cache import Cache, Entry
        kept = Cache(sys.argv[1], limit=40_000)
        for i in range(120):
            name = str(i % 7)
            found = kept.get(name, ("labels",))
            assert found is None or (found.arrays["labels"] == int(name)).all(), name
            kept.put(name, Entry({"labels": np.full(10_000, int(name), np.uint8)}, {"i": i}))
        """
    )
    env = {**os.environ, "PYTHONPATH": str(Path(MLILib.__file__).parents[1])}
    both = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=env, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert not list(tmp_path.glob("*.part"))
    for name in names(tmp_path):
        found = Cache(tmp_path).get(name, ("labels",))
        assert found is not None
        assert (found.arrays["labels"] == int(name)).all()


class TestKeys:
    GRID = Grid((4, 3, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))

    def image(self, **change: object) -> sitk.Image:
        array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
        if "voxel" in change:
            array[1, 1, 1] += 1
        image = from_array(array, self.GRID)
        if "origin" in change:
            image.SetOrigin((0.0, 0.1, 0.0))
        if "kind" in change:
            image = sitk.Cast(image, sitk.sitkFloat32)
        return image

    def test_the_same_image_in_another_file(self, tmp_path: Path) -> None:
        prints = set()
        for ending, compressed in ((".nrrd", True), (".nrrd", False), (".mha", True)):
            path = str(tmp_path / f"a{compressed}{ending}")
            sitk.WriteImage(self.image(), path, compressed)
            prints.add(cache.fingerprint(sitk.ReadImage(path)))
        assert prints == {cache.fingerprint(self.image())}

    @pytest.mark.parametrize("change", ["voxel", "origin", "kind"])
    def test_what_makes_another_image(self, change: str) -> None:
        assert cache.fingerprint(self.image(**{change: True})) != cache.fingerprint(self.image())

    @pytest.mark.parametrize(("change", "same"), [("voxel", False), ("origin", True), ("kind", True)])
    def test_content_is_the_voxels_alone(self, change: str, same: bool) -> None:
        assert (cache.content(self.image(**{change: True})) == cache.content(self.image())) == same

    def test_a_key_depends_on_all(self) -> None:
        keys = [
            cache.key({"preset": "rigid"}, "a", "b"),
            cache.key({"preset": "affine"}, "a", "b"),
            cache.key({"preset": "rigid"}, "b", "a"),
            cache.key({"preset": "rigid", "seed": 0}, "a", "b"),
        ]
        assert len(set(keys)) == 4
        assert cache.key({"x": 1, "y": 2}, "a") == cache.key({"y": 2, "x": 1}, "a")

    def test_a_key_depends_on_the_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = cache.key({}, "a")
        monkeypatch.setattr(cache, "__version__", "0.0.0")
        assert cache.key({}, "a") != before


def test_the_default_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLI_CACHE", str(tmp_path))
    assert cache.default_folder() == tmp_path / "atlases"

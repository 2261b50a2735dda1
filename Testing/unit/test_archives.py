"""A zip from somewhere else: nothing outside its folder, no links, no bombs, whole or not at all."""

import stat
import zipfile
from pathlib import Path

import pytest
from tiny_bundle import write_tiny_bundle

from MLILib import archives, bundles
from MLILib.errors import BadInput

pytest.importorskip("monai")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLI_MODELS", str(tmp_path / "models"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def zipped(folder: Path, file: Path, top: str = "tiny/") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            out.write(path, f"{top}{path.relative_to(folder).as_posix()}")
    return file


def files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} if folder.exists() else set()


class TestBasic:
    @pytest.mark.parametrize("top", ["", "tiny/"])
    def test_a_zip_is_the_folder(self, folder: Path, tmp_path: Path, top: str) -> None:
        bundle = bundles.find(str(zipped(folder, tmp_path / "some.zip", top)))
        assert bundle.sha256 == bundles.find(str(folder)).sha256
        assert bundle.name == "some"
        assert files_below(bundle.folder) == files_below(folder)
        bundles.network(bundle)

    def test_a_second_time_nothing_is_unpacked(self, folder: Path, tmp_path: Path) -> None:
        file = zipped(folder, tmp_path / "some.zip")
        first = bundles.find(str(file)).folder
        before = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
        assert bundles.find(str(file)).folder == first
        assert {p: p.stat().st_mtime_ns for p in first.rglob("*")} == before

    def test_what_a_mac_adds_is_passed_over(self, folder: Path, tmp_path: Path) -> None:
        file = zipped(folder, tmp_path / "some.zip")
        with zipfile.ZipFile(file, "a") as out:
            out.writestr("__MACOSX/tiny/configs/metadata.json", "{}")
        assert bundles.find(str(file)).sha256 == bundles.find(str(folder)).sha256


class TestRefusal:
    @pytest.mark.parametrize(
        "name",
        [
            "../pwned", "tiny/../../pwned", "/pwned", "//server/share/pwned", "C:/pwned", "C:pwned", "..\\pwned",
            "tiny\\..\\..\\pwned", "\\\\server\\share\\pwned", "tiny/configs/../../../pwned", "tiny/a:stream",
        ],
    )  # fmt: skip
    def test_names_that_leave_the_folder(self, folder: Path, tmp_path: Path, cache: Path, name: str) -> None:
        file = zipped(folder, tmp_path / "some.zip")
        with zipfile.ZipFile(file, "a") as out:
            out.writestr(zipfile.ZipInfo(name), "x")
        with pytest.raises(BadInput, match="climbs out of its folder"):
            bundles.find(str(file))
        assert files_below(cache) == set()
        assert not list(tmp_path.rglob("pwned"))

    def test_links(self, folder: Path, tmp_path: Path, cache: Path) -> None:
        file = zipped(folder, tmp_path / "some.zip")
        link = zipfile.ZipInfo("tiny/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(file, "a") as out:
            out.writestr(link, "/etc")
        with pytest.raises(BadInput, match="is a link"):
            bundles.find(str(file))
        assert files_below(cache) == set()

    def test_bombs(self, folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = zipped(folder, tmp_path / "some.zip")
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as out:
            out.writestr("tiny/zeros", bytes(5_000_000))
        assert file.stat().st_size < 1_000_000
        monkeypatch.setattr(archives, "MAX_BYTES", 4_000_000)
        with pytest.raises(BadInput, match="unpacks to more than"):
            bundles.find(str(file))
        assert files_below(cache) == set()

    def test_bombs_whose_header_lies(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = zipped(folder, tmp_path / "some.zip")
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as out:
            out.writestr("tiny/zeros", bytes(5_000_000))
            out.getinfo("tiny/zeros").file_size = 10
        monkeypatch.setattr(archives, "MAX_BYTES", 4_000_000)
        with pytest.raises(BadInput, match=r"unpacks to more than|damaged"):
            bundles.find(str(file))

    def test_too_many_files(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archives, "MAX_FILES", 3)
        with pytest.raises(BadInput, match="holds 4 files"):
            bundles.find(str(zipped(folder, tmp_path / "some.zip")))

    @pytest.mark.parametrize("keep", [0.3, 0.9])
    def test_cut_off(self, folder: Path, tmp_path: Path, cache: Path, keep: float) -> None:
        file = zipped(folder, tmp_path / "some.zip")
        content = file.read_bytes()
        file.write_bytes(content[: int(keep * len(content))])
        with pytest.raises(BadInput, match=r"not a zip|damaged"):
            bundles.find(str(file))
        assert files_below(cache) == set()

    def test_flipped_bytes(self, folder: Path, tmp_path: Path, cache: Path) -> None:
        file = zipped(folder, tmp_path / "some.zip")
        content = bytearray(file.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 50] = bytes(50)
        file.write_bytes(content)
        with pytest.raises(BadInput, match="damaged"):
            bundles.find(str(file))
        assert files_below(cache) == set()

    def test_no_bundle_in_it(self, tmp_path: Path, cache: Path) -> None:
        with zipfile.ZipFile(tmp_path / "some.zip", "w") as out:
            out.writestr("readme.txt", "nothing")
        with pytest.raises(BadInput, match="holds no model"):
            bundles.find(str(tmp_path / "some.zip"))
        assert files_below(cache) == set()

    def test_two_bundles_in_it(self, folder: Path, tmp_path: Path) -> None:
        file = zipped(folder, tmp_path / "some.zip", "one/")
        with zipfile.ZipFile(file, "a") as out:
            out.writestr("two/configs/metadata.json", "{}")
        with pytest.raises(BadInput, match="holds 2 models"):
            bundles.find(str(file))

    def test_not_a_zip(self, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(b"weights")
        with pytest.raises(BadInput, match="not a zip of a model"):
            bundles.find(str(tmp_path / "model.pt"))

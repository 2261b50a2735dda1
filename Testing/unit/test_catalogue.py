"""The models at hand: listed, shown, imported whole or not at all, removed; shipped ones stay as they were shipped."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_bundle import write_json, write_tiny_bundle

from MLILib import bundles, catalogue, folders, tasks
from MLILib.errors import BadInput
from MLILib.tasks import ModelsImportRequest, ModelsInfoRequest, ModelsListRequest, ModelsRemoveRequest

pytest.importorskip("monai")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of models, which does not exist yet."""
    monkeypatch.setenv("MLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLI_MODELS", str(tmp_path / "mine"))
    return tmp_path / "mine"


@pytest.fixture
def shipped(tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped models with one in it, called given."""
    home = tmp_path / "Resources" / "Models"
    write_tiny_bundle(home / "given", labels=("x",))
    catalogue.refresh_catalogue(home)
    monkeypatch.setattr(folders, "shipped", lambda: home)
    return home


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny")


def change(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8").replace("0.5", "0.25"), encoding="utf-8")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class TestFolders:
    def test_the_users_folders_are_named_by_the_environment(self, mine: Path, tmp_path: Path) -> None:
        assert folders.user() == mine
        assert folders.cache() == tmp_path / "cache"

    @pytest.mark.parametrize(
        ("library", "resources"),
        [
            ("lib/qt-scripted-modules/MLILib", "lib/qt-scripted-modules/Resources"),
            ("source/MLIModules/MLILib", "source/Resources"),
            ("site-packages/MLILib", "site-packages/MLILib/Resources"),
        ],
    )
    def test_shipped_models_are_found_where_they_are_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, resources: str
    ) -> None:
        (tmp_path / library).mkdir(parents=True)
        monkeypatch.setattr(folders, "__file__", str(tmp_path / library / "folders.py"))
        assert folders.shipped() is None
        home = tmp_path / resources / "Models"
        home.mkdir(parents=True)
        (home / "catalogue.json").write_text('{"models": []}', encoding="utf-8")
        assert folders.shipped() == home

    def test_a_damaged_catalogue_is_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "catalogue.json").write_text("[1", encoding="utf-8")
        with pytest.raises(BadInput, match="damaged"):
            folders.entries(tmp_path)


class TestShipped:
    def test_the_catalogue_says_what_there_is(self, shipped: Path) -> None:
        (entry,) = json.loads((shipped / "catalogue.json").read_text(encoding="utf-8"))["models"]
        assert {"name", "title", "sha256", "task", "modality", "bytes"} <= set(entry)
        assert entry["sha256"] == bundles.digest(shipped / "given")
        assert bundles.find("given").shipped

    def test_the_command_writes_it(self, shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = (shipped / "catalogue.json").read_bytes()
        (shipped / "catalogue.json").unlink()
        assert catalogue.main([str(shipped)]) == 0
        assert (shipped / "catalogue.json").read_bytes() == before
        assert bundles.digest(shipped / "given") in capsys.readouterr().out

    @pytest.mark.parametrize("file", ["configs/inference.json", "models/model.pt"])
    def test_a_changed_model_is_refused(self, shipped: Path, file: str) -> None:
        with open(shipped / "given" / file, "ab") as stream:
            stream.write(b" ")
        with pytest.raises(BadInput, match="checksum"):
            bundles.find("given")

    def test_is_not_removed(self, shipped: Path) -> None:
        before = snapshot(shipped)
        with pytest.raises(BadInput, match="was shipped and stays"):
            tasks.run(ModelsRemoveRequest(model="given"))
        assert snapshot(shipped) == before

    def test_its_name_is_taken(self, shipped: Path, source: Path) -> None:
        with pytest.raises(BadInput, match="shipped model is called given"):
            tasks.run(ModelsImportRequest(source=str(source), name="given", replace=True))


class TestImport:
    def test_from_a_folder(self, mine: Path, source: Path) -> None:
        result = tasks.run(ModelsImportRequest(source=str(source)))
        assert result["name"] == "tiny"
        assert bundles.find("tiny").folder == mine / "tiny"
        assert bundles.find("tiny").sha256 == bundles.digest(source)
        assert snapshot(mine / "tiny") == snapshot(source)
        assert {p.name for p in mine.iterdir()} == {"tiny", "catalogue.json"}

    def test_from_a_zip_under_another_name(self, mine: Path, source: Path, tmp_path: Path) -> None:
        file = shutil.make_archive(str(tmp_path / "packed"), "zip", source.parent, source.name)
        tasks.run(ModelsImportRequest(source=file, name="other"))
        assert bundles.find("other").sha256 == bundles.digest(source)

    def test_a_model_of_the_same_name_is_replaced_only_when_asked(self, mine: Path, source: Path) -> None:
        tasks.run(ModelsImportRequest(source=str(source)))
        before = snapshot(mine)
        change(source / "configs" / "inference.json")
        with pytest.raises(BadInput, match="--replace"):
            tasks.run(ModelsImportRequest(source=str(source)))
        assert snapshot(mine) == before
        tasks.run(ModelsImportRequest(source=str(source), replace=True))
        assert bundles.find("tiny").sha256 == bundles.digest(source) != json.loads(before["catalogue.json"])
        assert {p.name for p in mine.iterdir()} == {"tiny", "catalogue.json"}

    @pytest.mark.parametrize("fault", ["weights", "network", "config"])
    def test_what_cannot_be_used_is_not_imported(self, mine: Path, source: Path, fault: str) -> None:
        tasks.run(ModelsImportRequest(source=str(source)))
        before = snapshot(mine)
        if fault == "weights":
            (source / "models" / "model.pt").write_bytes(b"nothing")
        else:
            file = source / "configs" / "inference.json"
            data = json.loads(file.read_text(encoding="utf-8"))
            data["network_def"] |= {"out_channels": 9} if fault == "network" else {"_target_": "os.system"}
            write_json(file, data)
        with pytest.raises(BadInput):
            tasks.run(ModelsImportRequest(source=str(source), replace=True))
        assert snapshot(mine) == before

    def test_a_copy_that_fails_leaves_the_old_one(
        self, mine: Path, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tasks.run(ModelsImportRequest(source=str(source)))
        before = snapshot(mine)
        change(source / "configs" / "inference.json")

        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(catalogue.shutil, "copytree", full)
        with pytest.raises(BadInput, match="full"):
            tasks.run(ModelsImportRequest(source=str(source), replace=True))
        assert snapshot(mine) == before

    @pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "a b", "", "x" * 65, "C:x"])
    def test_a_name_is_a_name(self, mine: Path, source: Path, name: str) -> None:
        if name:
            with pytest.raises(BadInput, match="cannot be called"):
                tasks.run(ModelsImportRequest(source=str(source), name=name))
            assert not mine.exists()
        else:  # none given: the folder's own
            assert tasks.run(ModelsImportRequest(source=str(source), name=name))["name"] == "tiny"

    def test_trust_given_at_the_import_stays_with_that_content(self, mine: Path, source: Path) -> None:
        (source / "net.py").write_text("import monai\nmake = monai.networks.nets.BasicUNet\n", encoding="utf-8")
        file = source / "configs" / "inference.json"
        data = json.loads(file.read_text(encoding="utf-8"))
        data["network_def"]["_target_"] = "net.make"
        write_json(file, data)
        with pytest.raises(BadInput, match=r"net\.make"):
            tasks.run(ModelsImportRequest(source=str(source)))
        tasks.run(ModelsImportRequest(source=str(source), trust=(bundles.digest(source),)))
        bundles.network(bundles.find("tiny"))
        (mine / "tiny" / "net.py").write_text("import monai\nmake = monai.networks.nets.UNet\n", encoding="utf-8")
        with pytest.raises(BadInput, match="checksum"):
            bundles.find("tiny")

    def test_a_folder_that_cannot_be_made(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("", encoding="utf-8")
        monkeypatch.setenv("MLI_MODELS", str(tmp_path / "file" / "models"))
        with pytest.raises(BadInput, match="MLI_MODELS"):
            tasks.run(ModelsImportRequest(source=str(source)))


class TestRemove:
    def test_it_is_gone(self, mine: Path, source: Path) -> None:
        tasks.run(ModelsImportRequest(source=str(source)))
        tasks.run(ModelsImportRequest(source=str(source), name="kept"))
        tasks.run(ModelsRemoveRequest(model="tiny"))
        assert {p.name for p in mine.iterdir()} == {"kept", "catalogue.json"}
        assert list(folders.entries(mine)) == ["kept"]
        with pytest.raises(BadInput, match="no model 'tiny'"):
            bundles.find("tiny")

    @pytest.mark.parametrize("name", ["nothing", "..", "../tiny", "."])
    def test_what_is_not_there(self, mine: Path, source: Path, name: str) -> None:
        tasks.run(ModelsImportRequest(source=str(source)))
        before = snapshot(source.parent)
        with pytest.raises(BadInput, match="There is no model"):
            tasks.run(ModelsRemoveRequest(model=name))
        assert snapshot(source.parent) == before


class TestShow:
    def test_the_list_names_all_and_what_is_wrong(self, shipped: Path, mine: Path, source: Path) -> None:
        tasks.run(ModelsImportRequest(source=str(source)))
        shutil.copytree(source, mine / "copied")  # a folder put there by hand is a model, too
        (mine / "copied" / "models" / "model.pt").unlink()
        result = tasks.run(ModelsListRequest())
        found = {model["name"]: model for model in result["models"]}
        assert list(found) == ["given", "copied", "tiny"]
        assert [found[name]["shipped"] for name in found] == [True, False, False]
        assert "models/model.pt" in found["copied"]["problem"]
        assert all(name in result["text"] for name in found)
        json.dumps(result, allow_nan=False)

    def test_no_models_say_how_to_get_one(self, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folders, "shipped", lambda: None)
        result = tasks.run(ModelsListRequest())
        assert result["models"] == []
        assert "mli models import" in result["text"]

    def test_info_shows_labels_checksum_and_card(self, mine: Path, source: Path) -> None:
        result = tasks.run(ModelsInfoRequest(model=str(source)))
        assert [label["name"] for label in result["labels"]] == ["a", "b"]
        assert result["channels"] == ["image"]
        assert "Random weights, for tests." in result["card"]
        for part in (bundles.digest(source), "1 a, 2 b", "Random weights, for tests."):
            assert part in result["text"]
        json.dumps(result, allow_nan=False)


class TestWhatMliShips:
    """The models of this source tree, if it has any."""

    @pytest.fixture
    def names(self, mine: Path) -> list[str]:
        home = folders.shipped()
        if home is None:
            pytest.skip("no shipped models: Resources/Models has no catalogue.json")
        assert {p.parent.parent.name for p in home.glob("*/configs/metadata.json")} == set(folders.entries(home))
        return list(folders.entries(home))

    def test_each_loads_without_trust_and_has_a_card(self, names: list[str]) -> None:
        for name in names:
            bundle = bundles.find(name)
            assert bundle.shipped
            assert bundle.card
            assert all(label.terminology for label in bundle.labels)
            net = bundles.network(bundle)
            assert sum(p.numel() for p in net.parameters()) <= (8_000_000 if bundle.is_registration else 5_000_000)
            assert sum(p.stat().st_size for p in bundle.folder.rglob("*") if p.is_file()) <= 20_000_000
            bundles.preprocessing(bundle)
            bundles.inferer_settings(bundle)

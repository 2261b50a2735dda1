"""MONAI bundles: found, checked, and turned into a network and transforms."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import load_all, write_json, write_tiny_bundle

from MLILib import bundles
from MLILib.errors import BadInput

monai = pytest.importorskip("monai")
torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLI_MODELS", str(tmp_path / "models"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny")


def edit(folder: Path, name: str, change: dict[str, Any]) -> None:
    """Change entries of a JSON file of the bundle, named like "network_data_format.outputs.pred"; None removes one."""
    file = folder / "configs" / name
    data = json.loads(file.read_text(encoding="utf-8"))
    for path, value in change.items():
        *parents, last = path.split(".")
        inner = data
        for parent in parents:
            inner = inner[parent]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    write_json(file, data)


def refusal(folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        bundles.network(bundles.find(str(folder)))
    return str(caught.value)


class TestMetadata:
    def test_labels_have_names_colours_and_terminology(self, folder: Path) -> None:
        first, second = bundles.find(str(folder)).labels
        assert (first.value, first.name, second.value, second.name) == (1, "a", 2, "b")
        assert first.color == (220 / 255, 60 / 255, 60 / 255)
        assert first.terminology == (
            "Segmentation category and type - 3D Slicer General Anatomy list"
            "~SCT^85756007^Tissue~SCT^85756007^Tissue~^^~Anatomic codes - DICOM master list~^^~^^"
        )

    def test_a_zoo_model_without_our_key_has_labels_of_different_colours(self, folder: Path) -> None:
        edit(folder, "metadata.json", {"mli": None})
        labels = bundles.find(str(folder)).labels
        assert [label.name for label in labels] == ["a", "b"]
        assert all(0 <= part <= 1 for label in labels for part in label.color)
        assert np.linalg.norm(np.subtract(labels[0].color, labels[1].color)) > 0.3
        assert labels[0].terminology == ""

    def test_a_code_cannot_break_the_terminology_text(self, folder: Path) -> None:
        edit(folder, "metadata.json", {"mli.labels.1.terminology.type": ["SCT", "1", "a^b~c"]})
        assert bundles.find(str(folder)).labels[0].terminology.count("~") == 6

    def test_overlapping_labels_count_from_one(self, folder: Path) -> None:
        names = {"0": "core", "1": "whole", "2": "enhancing"}
        edit(folder, "metadata.json", {"mli": None, "network_data_format.outputs.pred.channel_def": names})
        edit(folder, "inference.json", {"postprocessing": None})
        bundle = bundles.find(str(folder))
        assert [(label.value, label.name) for label in bundle.labels] == [(1, "core"), (2, "whole"), (3, "enhancing")]
        assert not bundle.has_background
        assert bundle.activation == "sigmoid"

    @pytest.mark.parametrize(("channels", "names"), [(1, ("image",)), (2, ("image 1", "image 2"))])
    def test_channels_in_their_order(self, tmp_path: Path, channels: int, names: tuple[str, ...]) -> None:
        assert bundles.find(str(write_tiny_bundle(tmp_path / "m", channels=channels))).channels == names

    @pytest.mark.parametrize("dims", [2, 3])
    def test_dimensions(self, tmp_path: Path, dims: int) -> None:
        bundle = bundles.find(str(write_tiny_bundle(tmp_path / "m", dims=dims)))
        assert bundle.dimensions == dims
        assert bundles.network(bundle)(torch.zeros((1, 1, *[32] * dims))).shape == (1, 3, *[32] * dims)

    def test_required_metadata_is_what_the_tiny_bundle_writes(self, folder: Path) -> None:
        metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
        assert set(bundles.REQUIRED_METADATA) <= set(metadata)
        formats = metadata["network_data_format"]
        for tensor in (*formats["inputs"].values(), *formats["outputs"].values()):
            assert set(bundles.REQUIRED_TENSOR) <= set(tensor)


class TestFind:
    @pytest.mark.parametrize(
        "key", ["version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors",
                "copyright", "network_data_format"]
    )  # fmt: skip
    def test_a_missing_key_is_named(self, folder: Path, key: str) -> None:
        edit(folder, "metadata.json", {key: None})
        assert f'no "{key}" in configs/metadata.json' in refusal(folder)

    @pytest.mark.parametrize("key", ["inputs", "outputs"])
    def test_a_missing_side_is_named(self, folder: Path, key: str) -> None:
        edit(folder, "metadata.json", {f"network_data_format.{key}": None})
        assert f'"{key}"' in refusal(folder)

    @pytest.mark.parametrize("key", ["preprocessing", "inferer"])
    def test_a_missing_entry_is_named(self, folder: Path, key: str) -> None:
        edit(folder, "inference.json", {key: None})
        assert f'no "{key}" in configs/inference.json' in refusal(folder)

    def test_a_missing_network_is_named(self, folder: Path) -> None:
        edit(folder, "inference.json", {"network_def": None, "network": None})
        assert 'no "network_def"' in refusal(folder)

    @pytest.mark.parametrize("file", ["configs/metadata.json", "configs/inference.json", "models/model.pt"])
    def test_a_missing_file_is_named(self, folder: Path, file: str) -> None:
        (folder / file).unlink()
        assert file in refusal(folder)

    def test_torchscript_alone_is_refused(self, folder: Path) -> None:
        (folder / "models" / "model.pt").rename(folder / "models" / "model.ts")
        assert "TorchScript" in refusal(folder)

    def test_broken_json(self, folder: Path) -> None:
        (folder / "configs" / "inference.json").write_text("{", encoding="utf-8")
        assert "not valid JSON" in refusal(folder)

    def test_an_unknown_name_lists_the_known(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "models" / "mine")
        with pytest.raises(BadInput, match=r"no model 'hippocampsu'.*mine"):
            bundles.find("hippocampsu")

    def test_a_name_wins_over_a_folder_here(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(folder, tmp_path / "models" / "tiny")
        monkeypatch.chdir(tmp_path)
        assert bundles.find("tiny").folder == tmp_path / "models" / "tiny"
        assert bundles.find("./tiny").folder == folder

    @pytest.mark.parametrize("name", ["..", ".", "../tiny", "models/../tiny"])
    def test_a_name_is_not_a_way_out_of_the_models_folder(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        (tmp_path / "models").mkdir()
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        if (tmp_path / "elsewhere" / name / "configs").exists():
            assert bundles.find(name).folder == folder  # as a path, from here
        else:
            with pytest.raises(BadInput):
                bundles.find(name)

    def test_the_checksum_follows_configs_code_and_weights_only(self, folder: Path, tmp_path: Path) -> None:
        first = bundles.digest(folder)
        shutil.copytree(folder, tmp_path / "copy")
        (tmp_path / "copy" / "docs" / "README.md").write_text("another card", encoding="utf-8")
        assert bundles.digest(tmp_path / "copy") == first
        for file in ("configs/inference.json", "models/model.pt", "scripts/net.py"):
            shutil.copytree(folder, tmp_path / "changed", dirs_exist_ok=True)
            (tmp_path / "changed" / file).parent.mkdir(exist_ok=True)
            with open(tmp_path / "changed" / file, "ab") as stream:
                stream.write(b" ")
            assert bundles.digest(tmp_path / "changed") != first
            shutil.rmtree(tmp_path / "changed")

    def test_finding_needs_no_torch(self, folder: Path) -> None:
        code = (
            "import sys; sys.modules['torch'] = sys.modules['monai'] = None\n"
            f"from MLILib import bundles; print(bundles.find({str(folder)!r}).labels[1].name)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "b"


class TestNetwork:
    def test_has_the_weights_and_is_in_evaluation_mode(self, tmp_path: Path) -> None:
        folder = write_tiny_bundle(tmp_path / "m", dropout=0.5)
        net = bundles.network(bundles.find(str(folder)))
        state = torch.load(folder / "models" / "model.pt", weights_only=True)
        assert not net.training
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())

    def test_is_what_monai_itself_makes(self, folder: Path) -> None:
        parser = monai.bundle.ConfigParser()
        parser.read_config(folder / "configs" / "inference.json")
        reference = parser.get_parsed_content("network_def")
        reference.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
        image = torch.randn(1, 1, 32, 32, 32)
        with torch.no_grad():
            expected = reference.eval()(image)
            assert torch.equal(bundles.network(bundles.find(str(folder)))(image), expected)

    @pytest.mark.parametrize("key", ["model", "state_dict", None])
    def test_weights_may_be_wrapped(self, folder: Path, key: str | None) -> None:
        file = folder / "models" / "model.pt"
        state = torch.load(file, weights_only=True)
        wrapped = {key: state, "epoch": 3} if key else {f"module.{k}": v for k, v in state.items()}
        torch.save(wrapped, file)
        net = bundles.network(bundles.find(str(folder)))
        assert all(torch.equal(value, state[k]) for k, value in net.state_dict().items())

    def test_the_file_that_the_checkpoint_loader_names_is_taken(self, folder: Path) -> None:
        low = {k: v + 1 for k, v in torch.load(folder / "models" / "model.pt", weights_only=True).items()}
        torch.save(low, folder / "models" / "model_lowres.pt")
        name = "$@bundle_root + '/models/' + ('model.pt' if @highres else 'model_lowres.pt')"
        edit(folder, "inference.json", {"highres": False, "checkpointloader.load_path": name})
        net = bundles.network(bundles.find(str(folder)))
        assert all(torch.equal(value, low[k]) for k, value in net.state_dict().items())

    def test_weights_come_from_the_models_folder_only(self, folder: Path, tmp_path: Path) -> None:
        shutil.copy(folder / "models" / "model.pt", tmp_path / "other.pt")
        edit(folder, "inference.json", {"checkpointloader.load_path": str(tmp_path / "other.pt")})
        assert "own folder only" in refusal(folder)

    def test_a_folder_with_signs_that_monai_gives_a_meaning(self, tmp_path: Path) -> None:
        folder = write_tiny_bundle(tmp_path / "a#b $c %d @e" / "tiny")
        bundle = bundles.find(str(folder))
        bundles.network(bundle)
        bundles.preprocessing(bundle)

    def test_a_tensor_of_another_shape_is_named(self, folder: Path) -> None:
        edit(folder, "inference.json", {"network_def.out_channels": 5})
        text = refusal(folder)
        assert "do not fit its network" in text
        assert "final_conv.weight" in text
        assert "(5, 4, 1, 1, 1)" in text

    def test_a_missing_tensor_is_named(self, folder: Path) -> None:
        file = folder / "models" / "model.pt"
        state = torch.load(file, weights_only=True)
        state.pop("final_conv.bias")
        torch.save(state, file)
        assert "lack 'final_conv.bias' (1 of" in refusal(folder)

    def test_a_tensor_too_many_is_named(self, folder: Path) -> None:
        file = folder / "models" / "model.pt"
        torch.save(torch.load(file, weights_only=True) | {"other": torch.zeros(1)}, file)
        assert "'other'" in refusal(folder)

    def test_arguments_that_the_network_has_not(self, folder: Path) -> None:
        edit(folder, "inference.json", {"network_def.img_size": [96, 96, 96]})
        edit(folder, "metadata.json", {"monai_version": "1.2.0"})
        text = refusal(folder)
        assert "img_size" in text
        assert f"made with MONAI 1.2.0; this is MONAI {monai.__version__}" in text


class Evil:
    """An object whose pickle calls os.system when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


class TestWeights:
    @pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
    def test_code_in_the_weights_does_not_run(self, folder: Path, tmp_path: Path, kind: str) -> None:
        file, trace = folder / "models" / "model.pt", tmp_path / "pwned"
        evil = {"final_conv.bias": Evil(f"echo > {trace}")}
        if kind == "pickle":
            file.write_bytes(pickle.dumps(evil))
        else:
            torch.save(evil, file, _use_new_zipfile_serialization=kind == "zip")
        text = refusal(folder)
        assert not trace.exists()
        assert "reading them would run code" in text
        assert f"{os.system.__module__}.system" in text

    def test_a_whole_network_is_not_weights(self, folder: Path) -> None:
        torch.save(torch.nn.Linear(2, 2), folder / "models" / "model.pt")
        assert "torch.nn.modules.linear.Linear" in refusal(folder)

    def test_torchscript_is_not_weights(self, folder: Path) -> None:
        torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "models" / "model.pt")
        assert "TorchScript" in refusal(folder)

    @pytest.mark.parametrize("content", [b"", b"garbage" * 100, bytes(1000)])
    def test_another_file_is_not_weights(self, folder: Path, content: bytes) -> None:
        (folder / "models" / "model.pt").write_bytes(content)
        assert "cannot be read" in refusal(folder)

    def test_cut_off_weights(self, folder: Path) -> None:
        file = folder / "models" / "model.pt"
        file.write_bytes(file.read_bytes()[:5000])
        assert "damaged or cut off" in refusal(folder)

    @pytest.mark.parametrize("value", [torch.zeros(3), {"a": 1}, [1, 2]])
    def test_a_file_without_tensors_by_name(self, folder: Path, value: Any) -> None:
        torch.save(value, folder / "models" / "model.pt")
        assert "holds no weights" in refusal(folder)


class TestTransforms:
    def test_preprocessing_is_monais_without_its_loading(self, tmp_path: Path) -> None:
        nib = pytest.importorskip("nibabel")
        folder = write_tiny_bundle(tmp_path / "m", spacing=(1.5, 2.0, 1.0), orientation="LPS")
        voxels = np.random.default_rng(0).normal(size=(20, 22, 24)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, 1.2, 3.0, 1.0])), tmp_path / "image.nii.gz")
        parser = monai.bundle.ConfigParser()
        parser.read_config(folder / "configs" / "inference.json")
        expected = parser.get_parsed_content("preprocessing")({"image": str(tmp_path / "image.nii.gz")})["image"]
        loaded = monai.transforms.LoadImage(image_only=True)(tmp_path / "image.nii.gz")
        found = bundles.preprocessing(bundles.find(str(folder)))({"image": loaded})["image"]
        assert found.shape == expected.shape
        assert torch.equal(found.as_tensor(), expected.as_tensor())
        assert torch.equal(found.affine, expected.affine)

    def test_postprocessing_may_be_absent(self, folder: Path) -> None:
        edit(folder, "inference.json", {"postprocessing": None})
        assert bundles.postprocessing(bundles.find(str(folder))) is None

    def test_postprocessing_keeps_all_but_the_saving(self, folder: Path) -> None:
        after = bundles.postprocessing(bundles.find(str(folder)))
        assert after is not None
        assert [type(t).__name__ for t in after.transforms] == ["Activationsd", "Invertd", "AsDiscreted"]

    def test_a_list_from_an_expression(self, folder: Path) -> None:
        first = [{"_target_": "EnsureChannelFirstd", "keys": "@image_key"}]
        more = [{"_target_": "CastToTyped", "keys": "@image_key", "dtype": "$torch.float32"}]
        edit(folder, "inference.json", {"first": first, "more": more, "preprocessing.transforms": "$@first + @more"})
        found = bundles.preprocessing(bundles.find(str(folder))).transforms
        assert [type(t).__name__ for t in found] == ["EnsureChannelFirstd", "CastToTyped"]


class TestInferer:
    def test_sliding_windows(self, folder: Path) -> None:
        found = bundles.inferer_settings(bundles.find(str(folder)))
        assert found["kind"] == "sliding"
        assert found["roi_size"] == (32, 32, 32)
        assert (found["overlap"], found["sw_batch_size"], found["mode"]) == (0.5, 2, "gaussian")

    def test_defaults_are_monais(self, folder: Path) -> None:
        edit(
            folder, "inference.json", {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": "@size"}, "size": 16}
        )
        found = bundles.inferer_settings(bundles.find(str(folder)))
        made = monai.inferers.SlidingWindowInferer(roi_size=16)
        assert found["roi_size"] == (16, 16, 16)
        for key in ("overlap", "sw_batch_size", "mode", "sigma_scale", "padding_mode", "cval"):
            assert found[key] == getattr(made, key)

    def test_the_whole_image_at_once(self, folder: Path) -> None:
        edit(folder, "inference.json", {"inferer": {"_target_": "SimpleInferer"}})
        assert bundles.inferer_settings(bundles.find(str(folder))) == {"kind": "whole"}

    def test_another_inferer_is_refused_by_name(self, folder: Path) -> None:
        edit(folder, "inference.json", {"inferer": {"_target_": "scripts.inferer.Mine"}})
        with pytest.raises(BadInput, match=r"scripts\.inferer\.Mine"):
            bundles.inferer_settings(bundles.find(str(folder)))

    @pytest.mark.parametrize("size", [[32, 32], "32", [32, 32, 1.5]])
    def test_a_window_of_another_dimension_is_refused(self, folder: Path, size: Any) -> None:
        edit(folder, "inference.json", {"inferer.roi_size": size})
        with pytest.raises(BadInput, match="3 whole numbers"):
            bundles.inferer_settings(bundles.find(str(folder)))


class TestWrongKinds:
    """JSON that is valid and still not what it should be: a sentence, never a traceback."""

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("mli", []),
            ("mli", {"labels": []}),
            ("mli", {"labels": {"1": 3}}),
            ("mli", {"labels": {"1": {"terminology": {"category": "SCT", "type": ["SCT", "1", "x"]}}}}),
            ("network_data_format", []),
            ("network_data_format.inputs", {"image": 3}),
            ("network_data_format.inputs.image.num_channels", "one"),
            ("network_data_format.inputs.image.num_channels", 0),
            ("network_data_format.inputs.image.spatial_shape", [32]),
            ("network_data_format.outputs.pred.channel_def", ["background", "a"]),
        ],
    )
    def test_in_the_metadata(self, folder: Path, key: str, value: Any) -> None:
        edit(folder, "metadata.json", {key: value})
        with pytest.raises(BadInput, match="model tiny"):
            assert bundles.find(str(folder)).labels

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("network_def", None),
            ("network_def", "@nothing"),
            ("network_def", "%nothing"),
            ("network_def", 3),
            ("network_def._disabled_", True),
            ("network_def.spatial_dims", "$1 / 0"),
            ("network_def", "@network_def"),
            ("imports", ["$import"]),
            ("inferer", "@nothing"),
            ("inferer.roi_size", "@nothing"),
            ("preprocessing", "image"),
            ("preprocessing.transforms", "@nothing"),
            ("postprocessing", 3),
            ("checkpointloader.load_path", ["a"]),
        ],
    )
    def test_in_the_configuration(self, folder: Path, key: str, value: Any) -> None:
        edit(folder, "inference.json", {key: value} if value is not None else {"network": None, key: None})
        with pytest.raises(BadInput, match="tiny"):
            load_all(folder)

    @pytest.mark.parametrize("name", ["metadata.json", "inference.json"])
    @pytest.mark.parametrize("content", ["[]", "3", "", "nul\0l", '{"a": ' * 500 + "1" + "}" * 500, "[" * 100000])
    def test_in_the_file(self, folder: Path, name: str, content: str) -> None:
        (folder / "configs" / name).write_text(content, encoding="utf-8")
        with pytest.raises(BadInput):
            bundles.find(str(folder))

    def test_no_name_is_no_model(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        with pytest.raises(BadInput, match="no model ''"):
            bundles.find("")

"""A bundle's configuration is code: what it may name, and that nothing else of it ever runs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import load_all, write_json, write_tiny_bundle

from MLILib import bundles
from MLILib.errors import BadInput

pytest.importorskip("monai")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny")


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the attacks below make; its absence shows that they did not run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pwned"


def change(folder: Path, **entries: Any) -> None:
    file = folder / "configs" / "inference.json"
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | entries)


def refusal(folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load_all(folder)
    return str(caught.value)


NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}


class TestTargets:
    @pytest.mark.parametrize(
        "target",
        [
            "os.system",
            "subprocess.run",
            "builtins.eval",
            "builtins.exec",
            "torchevil.nn.Conv3d",
            "monai_evil.networks.nets.UNet",
            "MLILibevil.run",
            "scripts.network.Net",
            # callables inside the allowed packages that run, load, fetch or write
            "torch.load",
            "torch.save",
            "torch.hub.load",
            "torch.jit.load",
            "torch.utils.cpp_extension.load_inline",
            "torch.compile",
            "monai.bundle.run",
            "monai.bundle.ConfigParser",
            "monai.apps.download_url",
            "monai.utils.optional_import",
            "monai.utils.module.instantiate",
            "monai.transforms.LoadImage",
            "monai.transforms.io.array.SaveImage",
            "monai.transforms.TorchVision",
            "monai.networks.layers.gmm.GaussianMixtureModel",
            "MLILib.catalogue.run_remove",
            # other people's modules reached through the allowed ones
            "monai.bundle.scripts.os.system",
            "torch.os.system",
            "monai.networks.nets.resnet.Path",
            "numpy.load",
            "numpy.os.system",
            "torch.nn.modules.module.functools.partial",
            # names that are not plain
            "torch.nn.Module.__init__.__globals__",
            "torch.nn.modules.module.Module.load_state_dict",
            "",
        ],
    )
    def test_other_callables_are_refused_and_named(self, folder: Path, target: str) -> None:
        change(folder, network_def={"_target_": target, **NETWORK})
        text = refusal(folder)
        assert target in text
        assert "not allowed" in text

    def test_refusal_says_how_to_trust_this_very_model(self, folder: Path) -> None:
        change(folder, network_def={"_target_": "os.system", "command": "true"})
        assert f"--trust {bundles.find(str(folder)).sha256}" in refusal(folder)

    @pytest.mark.parametrize(
        "target", ["$@name", "@name", "$'os' + '.system'", "$@network_def", "$torch.nn.Identity", {"a": 1}, 7]
    )
    def test_a_computed_callable_is_refused(self, folder: Path, target: Any, trace: Path) -> None:
        change(folder, name="os.system", network={"_target_": target, "command": f"touch {trace}"})
        change(folder, network_def="@network")
        assert "computed" in refusal(folder)
        assert not trace.exists()

    def test_nested_arguments_are_checked(self, folder: Path, trace: Path) -> None:
        evil = {"_target_": "os.system", "command": f"touch {trace}"}
        change(folder, network_def={"_target_": "torch.nn.Identity", "a": [{"b": {"c": [evil]}}]})
        assert "os.system" in refusal(folder)
        assert not trace.exists()

    @pytest.mark.parametrize("key", ["_requires_", "_disabled_"])
    def test_what_a_component_waits_for_is_checked(self, folder: Path, trace: Path, key: str) -> None:
        evil = {"_target_": "os.system", "command": f"touch {trace}"}
        change(folder, evil=evil, network_def={"_target_": "torch.nn.Identity", key: "@evil"})
        assert "os.system" in refusal(folder)
        assert not trace.exists()

    def test_the_debugger_is_refused(self, folder: Path) -> None:
        change(folder, network_def={"_target_": "torch.nn.Identity", "_mode_": "debug"})
        assert "debug" in refusal(folder)

    def test_a_macro_cannot_smuggle_a_callable(self, folder: Path, trace: Path) -> None:
        change(folder, evil={"_target_": "os.system", "command": f"touch {trace}"}, network_def="%evil")
        assert "os.system" in refusal(folder)
        assert not trace.exists()

    def test_a_macro_reads_files_of_the_bundle_only(self, folder: Path, tmp_path: Path) -> None:
        write_json(tmp_path / "outside.json", {"network_def": {"_target_": "torch.nn.Identity"}})
        change(folder, network_def="%../outside.json::network_def")
        assert "outside the model's folder" in refusal(folder)

    def test_macros_in_a_circle_end(self, folder: Path) -> None:
        change(folder, network_def="%a", a="%b", b="%a")
        assert "circle" in refusal(folder)

    def test_macros_that_multiply_end(self, folder: Path) -> None:
        bomb = {f"m{i}": [f"%m{i + 1}"] * 10 for i in range(15)}
        change(folder, **bomb, m15=1, network_def="%m0")
        assert "circle" in refusal(folder)

    def test_weights_from_the_internet_are_switched_off(self, folder: Path) -> None:
        net = {"_target_": "FlexibleUNet", "in_channels": 1, "out_channels": 3, "backbone": "efficientnet-b0",
               "spatial_dims": 3, "pretrained": True}  # fmt: skip
        change(folder, network_def=net)
        checked = bundles.parser(bundles.find(str(folder)), ("network_def",))
        assert checked["network_def"]["pretrained"] is False
        assert checked["network_def"]["_target_"] == "monai.networks.nets.flexible_unet.FlexibleUNet"


class TestExpressions:
    @pytest.mark.parametrize(
        "expression",
        [
            "__import__('os').system('touch pwned')",
            "os.system('touch pwned')",
            "eval(\"open('pwned', 'w')\")",
            "exec('import os')",
            "open('pwned', 'w')",
            "getattr(torch, 'load')('x')",
            "torch.load('x')",
            "torch.hub.load('a', 'b')",
            "torch.os.system('touch pwned')",
            "monai.bundle.scripts.os.system('touch pwned')",
            "monai.utils.optional_import('os')[0].system('touch pwned')",
            "numpy.save('pwned', 1)",
            "numpy.zeros(3).tofile('pwned')",
            "np.fromfile('x')",
            "torch.zeros(3).__class__",
            "().__class__.__base__.__subclasses__()",
            "(lambda: 0).__globals__",
            "'{0.__class__}'.format(1)",
            "(lambda f: f('touch pwned'))(print)",
            "[e for e in [1]][0].__class__",
            '[1 for exec in sorted([\'open("pwned", "w")\'], key=exec)]',
            "[1 for torch in [1]]",
            "(lambda torch: torch)(1)",
            "list(map(open, ['pwned']))",
            "sorted(['pwned'], key=open)",
            "max(['pwned'], key=open)",
            "globals()",
            "vars()",
            "type('X', (), {})",
            "breakpoint()",
            "input()",
            "(x := 1)",
            "@image_key.__class__",
            "__local_refs['image_key']",
            "__local_refs.__class__",
            "@network_def('x')",
            "monai",
            "torch.nn",
            "torch.nn.Module.load_state_dict",
            "import os",
            "import os; os.system('touch pwned')",
            "from os import system",
            "1; 2",
            "lambda x: x.tofile('pwned')",
            "lambda x: (yield x)",
            "numpy.lib.npyio.os.system('touch pwned')",
        ],
    )
    def test_what_could_run_code_is_refused(self, folder: Path, expression: str, trace: Path) -> None:
        change(folder, image_key=f"${expression}")
        assert "not allowed" in refusal(folder)
        assert not trace.exists()

    @pytest.mark.parametrize(
        ("expression", "value"),
        [
            ("2 * 3 + 1", 7),
            ("[i + 1 for i in range(3) if i]", [2, 3]),
            ("{k: v for k, v in zip(['a'], [1])}", {"a": 1}),
            ("'a' if @flag else 'b'", "a"),
            ("len(@names) + @count", 5),
            ("@sizes::0 + @sizes#1", 5),
            ("np.prod([2, 3])", 6),
            ("max(@sizes, key=lambda s: -s)", 2),
            ("'-'.join(sorted(@names))", "a-b"),
            ('f"{@count}mm"', "3mm"),
            ("nn.ReLU", "ReLU"),
            ("Norm.BATCH", "BATCH"),
        ],
    )
    def test_what_inference_needs_is_allowed(self, folder: Path, expression: str, value: object) -> None:
        change(folder, imports=["$import torch.nn as nn", "$from monai.networks.layers import Norm", "$import os"],
               flag=True, names=["b", "a"], count=3, sizes=[2, 3], image_key=f"${expression}")  # fmt: skip
        found = bundles.parser(bundles.find(str(folder)), ("image_key",)).get_parsed_content("image_key")
        assert getattr(found, "__name__", str(found)) == value if isinstance(value, str) else found == value

    def test_dtypes_and_lambdas_of_the_model_zoo(self, folder: Path) -> None:
        import torch

        brats = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
        change(folder, postprocessing={"_target_": "Compose", "transforms": [
            {"_target_": "Lambdad", "keys": "pred", "func": brats},
            {"_target_": "CastToTyped", "keys": "pred", "dtype": "$torch.uint8"},
        ]})  # fmt: skip
        after = bundles.postprocessing(bundles.find(str(folder)))
        assert after is not None
        found = after({"pred": torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 0, 0], [0.0, 1, 1, 0]])})["pred"]
        assert found.tolist() == [[1, 4, 4, 0]]
        assert found.dtype == torch.uint8

    def test_an_import_under_a_trusted_name_is_refused(self, folder: Path, trace: Path) -> None:
        change(folder, imports=["$import os as np"], image_key=f"$np.system('touch {trace}')")
        assert "not allowed" in refusal(folder)
        assert not trace.exists()

    def test_an_import_that_nothing_uses_does_not_matter_and_does_not_run(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trace: Path
    ) -> None:
        (tmp_path / "leaves_a_trace.py").write_text(f"open({str(trace)!r}, 'w')", encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        change(folder, imports=["$import leaves_a_trace", "$import glob"])
        load_all(folder)
        assert not trace.exists()


class TestWhatIsLeftOut:
    def test_what_runs_the_bundle_is_never_made(self, folder: Path, trace: Path) -> None:
        evil = {"_target_": "os.system", "command": f"touch {trace}"}
        change(folder, evaluator=evil, handlers=[evil], dataloader=evil, initialize=[f"$os.system('touch {trace}')"],
               run=[f"$open({str(trace)!r}, 'w')"])  # fmt: skip
        load_all(folder)
        assert not trace.exists()

    def test_files_are_neither_read_nor_written_by_transforms(self, folder: Path, trace: Path) -> None:
        # LoadImage makes any callable that its reader names, with arguments of the configuration's choice
        reader = {"_target_": "LoadImaged", "keys": "image", "reader": "os.system", "command": f"touch {trace}"}
        saver = {"_target_": "monai.transforms.SaveImaged", "keys": "pred", "output_dir": str(trace)}
        change(folder, preprocessing={"_target_": "Compose", "transforms": [reader]},
               postprocessing={"_target_": "Compose", "transforms": [saver]})  # fmt: skip
        bundle = bundles.find(str(folder))
        after = bundles.postprocessing(bundle)
        assert after is not None
        assert len(bundles.preprocessing(bundle).transforms) == len(after.transforms) == 0
        assert not trace.exists()

    def test_metadata_is_data(self, folder: Path, trace: Path) -> None:
        file = folder / "configs" / "metadata.json"
        evil = {"_target_": "os.system", "command": f"touch {trace}"}
        write_json(
            file,
            json.loads(file.read_text(encoding="utf-8")) | {"description": f"$os.system('touch {trace}')", "x": evil},
        )
        load_all(folder)
        assert not trace.exists()


class TestTrust:
    @pytest.fixture
    def scripted(self, folder: Path) -> Path:
        (folder / "scripts").mkdir()
        (folder / "scripts" / "__init__.py").write_text("", encoding="utf-8")
        (folder / "scripts" / "net.py").write_text(
            "import monai\ndef make(**k):\n"
            "    return monai.networks.nets.BasicUNet(features=[4, 4, 8, 8, 8, 4], **k)\n",
            encoding="utf-8",
        )
        change(folder, network_def={"_target_": "scripts.net.make", **NETWORK})
        return folder

    def test_its_checksum_lifts_the_limits(self, scripted: Path) -> None:
        assert "scripts.net.make" in refusal(scripted)
        load_all(scripted, (bundles.find(str(scripted)).sha256,))

    def test_another_checksum_does_not(self, scripted: Path) -> None:
        with pytest.raises(BadInput, match=r"scripts\.net\.make"):
            load_all(scripted, ("0" * 64,))

    def test_trust_ends_when_the_code_changes(self, scripted: Path) -> None:
        trusted = (bundles.find(str(scripted)).sha256,)
        with open(scripted / "scripts" / "net.py", "a", encoding="utf-8") as stream:
            stream.write("# changed\n")
        with pytest.raises(BadInput, match=r"scripts\.net\.make"):
            load_all(scripted, trusted)

    def test_two_bundles_have_each_their_own_scripts(self, scripted: Path, tmp_path: Path) -> None:
        other = write_tiny_bundle(tmp_path / "other")
        (other / "scripts").mkdir()
        (other / "scripts" / "__init__.py").write_text("", encoding="utf-8")
        (other / "scripts" / "net.py").write_text(
            "def make(**k):\n    raise ValueError('the other one')\n", encoding="utf-8"
        )
        change(other, network_def={"_target_": "scripts.net.make", **NETWORK})
        load_all(scripted, (bundles.find(str(scripted)).sha256,))
        with pytest.raises(BadInput, match="the other one"):
            load_all(other, (bundles.find(str(other)).sha256,))

    def test_weights_stay_weights(self, scripted: Path, trace: Path) -> None:
        import torch

        class Evil:
            def __reduce__(self) -> tuple[Any, tuple[str]]:
                return os.system, (f"touch {trace}",)

        torch.save({"a": Evil()}, scripted / "models" / "other.bin")
        change(scripted, image_key="$str(torch.load(@bundle_root + '/models/other.bin', weights_only=False))")
        with pytest.raises(BadInput, match=r"cannot be made.*posix\.system|cannot be made.*nt\.system"):
            load_all(scripted, (bundles.find(str(scripted)).sha256,))
        assert not trace.exists()
        assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ

"""Networks by name: each one takes the patch it is planned for, learns, and comes back from its bundle."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_dataset import write_dataset

from MLILib.errors import BadInput, OutOfMemory
from MLILib.segmentation.dataset import Dataset, Fingerprint
from MLILib.segmentation.networks import NETWORKS
from MLILib.segmentation.plan import Memory, Plan, make_plan, pooling

torch = pytest.importorskip("torch")

from MLILib.allowed import is_network  # noqa: E402
from MLILib.bundle_parts import instantiate  # noqa: E402
from MLILib.segmentation import training_memory  # noqa: E402
from MLILib.segmentation.deepmedic import DeepMedic  # noqa: E402
from MLILib.segmentation.models import dropout_layers  # noqa: E402
from MLILib.segmentation.requests import SegmentRequest, TrainSegmentationRequest  # noqa: E402
from MLILib.tasks import run  # noqa: E402

DATASET = Dataset("", "", "", "", ("a", "b"), ("x", "y"), ())


def planned(network: str, shape: tuple[int, ...], **settings: Any) -> Plan:
    if network == "swinunetr":
        pytest.importorskip("einops", reason="MONAI's SwinUNETR needs einops")
    print_ = Fingerprint(len(shape), (1.0,) * len(shape), shape, voxels=100 * math.prod(shape))
    return make_plan(DATASET, print_, 12 if network == "swinunetr" else 4, network=network, **settings)


class TestEveryNetwork:
    @pytest.mark.parametrize(
        ("network", "shape"),
        [(name, (40, 25)) for name in NETWORKS] + [(n, (20, 37, 18)) for n in NETWORKS if n != "swinunetr"],
    )
    def test_it_takes_the_patch_it_is_planned_for(self, network: str, shape: tuple[int, ...]) -> None:
        plan = planned(network, shape)
        assert all(p >= n for p, n in zip(plan.patch, shape, strict=True))
        with torch.inference_mode():
            out = instantiate(plan.network).eval()(torch.zeros(1, 2, *plan.patch))
        assert out.shape == (1, 3, *plan.patch)

    @pytest.mark.parametrize("network", NETWORKS)
    def test_dropout_is_there_when_asked_for_and_only_then(self, network: str) -> None:
        assert not dropout_layers(instantiate(planned(network, (32, 32)).network))
        dropping = instantiate(planned(network, (32, 32), dropout=0.5).network)
        assert dropout_layers(dropping)
        x = torch.randn(1, 2, 64, 64)
        dropping.eval()
        for layer in dropout_layers(dropping):
            layer.train()
        with torch.no_grad():
            assert not torch.equal(dropping(x), dropping(x))

    @pytest.mark.parametrize("network", NETWORKS)
    def test_a_bundle_may_name_it(self, network: str) -> None:
        assert is_network(type(instantiate(planned(network, (32, 32)).network)))


class TestThroughTheTasks:
    @pytest.mark.parametrize(("network", "size"), [("lraspp", (20, 18)), ("deepmedic", (20, 18, 16)),
                                                   ("unet", (20, 18, 16)), ("segresnet", (20, 18))])  # fmt: skip
    def test_a_trained_bundle_segments(self, tmp_path: Path, network: str, size: tuple[int, ...]) -> None:
        data = write_dataset(tmp_path, 6, size=size)
        request = TrainSegmentationRequest(
            str(data), str(tmp_path / "model"), folds=3, epochs=6, filters=4, device="cpu", network=network,
            learning_rate=0.01, batch=2,
        )  # fmt: skip
        result = run(request)
        assert any(network in reason or "patch" in reason for reason in result["plan"])
        image = tmp_path / "image_00.nii.gz"
        run(SegmentRequest((str(image),), (str(tmp_path / "model"),), str(tmp_path / "out.nii.gz"), device="cpu"))
        found = sitk.ReadImage(str(tmp_path / "out.nii.gz"))
        assert found.GetSize() == size
        assert set(np.unique(sitk.GetArrayViewFromImage(found))) <= {0, 1, 2}

    def test_an_unknown_network_is_refused(self, tmp_path: Path) -> None:
        data = write_dataset(tmp_path, 1, size=(4, 4))
        with pytest.raises(BadInput, match="Choose one of: dynunet"):
            run(TrainSegmentationRequest(str(data), str(tmp_path / "model"), network="vnet"))


class TestDeepMedic:
    def test_it_sees_further_than_one_pathway(self) -> None:
        """Eight 3-voxel kernels see 8 voxels to each side; at a third of the resolution three times as far."""
        torch.manual_seed(0)
        network = DeepMedic(2, 1, 2, filters=6).eval()
        for layer in network.modules():  # instance norms see everything: leave them out
            if isinstance(layer, torch.nn.InstanceNorm2d):
                layer.forward = lambda x: x  # type: ignore[method-assign]
        x = torch.zeros(1, 1, 99, 99, requires_grad=True)
        network(x)[0, :, 49, 49].sum().backward()
        seen = x.grad[0, 0, 49].nonzero().flatten()
        assert 24 <= int(seen.max()) - 49 <= 8 * 3 + 3
        x.grad = None
        network.normal(x)[0, :, 49, 49].sum().backward()
        assert int(x.grad[0, 0, 49].nonzero().max()) - 49 == 8

    def test_any_size(self) -> None:
        assert DeepMedic(3, 1, 2, filters=4)(torch.zeros(1, 1, 7, 20, 3)).shape == (1, 2, 7, 20, 3)


class TestPlan:
    def test_depth_stops_before_four_voxels(self) -> None:
        strides, kernels = pooling((64, 16), (1.0, 1.0))
        assert [s[0] for s in strides] == [1, 2, 2, 2, 2]
        assert [s[1] for s in strides] == [1, 2, 2, 1, 1]
        assert {k for level in kernels[:3] for k in level} == {3}

    def test_a_thick_axis_is_pooled_once_the_others_are_as_thick(self) -> None:
        """nnU-Net: 1 x 1 x 4 mm voxels are 2 x 2 x 4 after one pooling, 4 x 4 x 4 after two."""
        strides, kernels = pooling((64, 64, 16), (1.0, 1.0, 4.0))
        assert strides[1] == (2, 2, 1)
        assert strides[2] == (2, 2, 1)
        assert strides[3] == (2, 2, 2)
        assert kernels[0] == (3, 3, 1)
        assert kernels[2] == (3, 3, 3)

    def test_the_default_plan_is_the_shipped_models(self) -> None:
        """Median 35 x 50 x 36 of the hippocampus crops: 40 x 56 x 40, four levels, two cases a step."""
        plan = make_plan(DATASET, Fingerprint(3, (1.0, 1.0, 1.0), (35, 50, 36)), 32)
        assert plan.patch == (40, 56, 40)
        assert plan.network["filters"] == [32, 64, 96, 128]
        assert plan.batch == 2

    def test_little_memory_makes_the_patch_smaller_and_says_so(self) -> None:
        shape = Fingerprint(3, (1.0, 1.0, 1.0), (100, 100, 100))
        free = Memory(10 * 2**20, False, lambda network, patch: (1000, 40.0))
        plan = make_plan(DATASET, shape, 4, memory=free)
        assert 2 * math.prod(plan.patch) * 40 + 20_000 <= 0.7 * free.free
        assert max(plan.patch) < 100
        assert any("memory" in reason for reason in plan.reasons)

    def test_no_memory_at_all_is_said(self) -> None:
        shape = Fingerprint(3, (1.0, 1.0, 1.0), (100, 100, 100))
        with pytest.raises(OutOfMemory, match="no room to train"):
            make_plan(DATASET, shape, 4, memory=Memory(2**20, False, lambda network, patch: (1000, 400.0)))

    def test_a_gpu_takes_five_per_cent_of_the_data_a_step(self) -> None:
        """100 cases of one patch each: 5 % are 5."""
        shape = Fingerprint(3, (1.0, 1.0, 1.0), (32, 32, 32), voxels=100 * 32**3)
        plan = make_plan(DATASET, shape, 4, memory=Memory(2**34, True, lambda network, patch: (1000, 400.0)))
        assert plan.batch == 5
        assert any("5 %" in reason for reason in plan.reasons)

    def test_a_plan_survives_its_checkpoint(self) -> None:
        plan = planned("unet", (40, 40, 40))
        back = Plan.from_json(plan.to_json())
        assert instantiate(back.network).state_dict().keys() == instantiate(plan.network).state_dict().keys()
        assert dataclasses.replace(back, network={}) == dataclasses.replace(plan, network={})

    def test_the_need_grows_with_the_features(self) -> None:
        small, large = (make_plan(DATASET, Fingerprint(2, (1.0, 1.0), (32, 32)), f).network for f in (4, 16))
        few, little = training_memory.need(small, (32, 32))
        many, much = training_memory.need(large, (32, 32))
        assert few == sum(p.numel() for p in instantiate(small).parameters())
        assert many > few
        assert 3 < much / little < 5  # activations are proportional to the feature maps

    def test_looking_at_the_memory_leaves_random_numbers_as_they_were(self) -> None:
        torch.manual_seed(3)
        before = torch.rand(1)
        torch.manual_seed(3)
        training_memory.need(planned("unet", (24, 24)).network, (24, 24))
        assert torch.equal(before, torch.rand(1))

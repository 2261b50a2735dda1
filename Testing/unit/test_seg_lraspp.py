"""The light networks: published sizes, torchvision's own arithmetic, and shapes of every kind."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from MLILib.allowed import is_network  # noqa: E402
from MLILib.segmentation.lraspp import LRASPP2D, LRASPP3D, LRASPPSlices  # noqa: E402


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


class TestSize:
    def test_the_planar_one_has_as_many_parameters_as_torchvision_states(self) -> None:
        """torchvision's documentation of lraspp_mobilenet_v3_large, 21 classes: 3,221,538 parameters."""
        assert parameters(LRASPP2D(3, 21)) == 3_221_538

    def test_the_one_for_volumes_has_about_1_2_million(self) -> None:
        assert parameters(LRASPP3D(1, 2)) == pytest.approx(1.2e6, rel=0.05)

    def test_slices_share_one_network(self) -> None:
        assert parameters(LRASPPSlices(1, 3)) == parameters(LRASPP2D(1, 3))


class TestAgainstTorchvision:
    @pytest.mark.parametrize("training", [False, True])
    def test_the_same_weights_give_the_same_logits(self, training: bool) -> None:
        segmentation = pytest.importorskip("torchvision.models.segmentation", reason="torchvision is not installed")
        torch.manual_seed(0)
        theirs = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
        ours = LRASPP2D(3, 5)
        state = theirs.state_dict()
        assert [v.shape for v in ours.state_dict().values()] == [v.shape for v in state.values()]
        ours.load_state_dict(dict(zip(ours.state_dict(), state.values(), strict=True)))
        x = torch.randn(2, 3, 64, 96)
        theirs.train(training)
        ours.train(training)
        with torch.no_grad():
            assert torch.allclose(ours(x), theirs(x)["out"], atol=1e-5)


class TestShapes:
    @pytest.mark.parametrize("shape", [(32, 32), (37, 50), (9, 33)])
    def test_logits_have_the_image_s_shape(self, shape: tuple[int, int]) -> None:
        assert LRASPP2D(2, 4, enlarge=2.0)(torch.randn(2, 2, *shape)).shape == (2, 4, *shape)

    @pytest.mark.parametrize("shape", [(16, 16, 16), (13, 22, 9), (2, 3, 2)])
    def test_logits_have_the_volume_s_shape(self, shape: tuple[int, int, int]) -> None:
        assert LRASPP3D(2, 4)(torch.randn(2, 2, *shape)).shape == (2, 4, *shape)

    def test_a_batch_of_one_can_be_trained_on(self) -> None:
        LRASPP3D(1, 2)(torch.randn(1, 1, 16, 16, 16)).sum().backward()

    def test_slices_are_segmented_one_by_one(self) -> None:
        network = LRASPPSlices(1, 2).eval()
        volume = torch.randn(2, 1, 24, 20, 3)
        with torch.no_grad():
            whole = network(volume)
            assert whole.shape == (2, 2, 24, 20, 3)
            for k in range(3):
                assert torch.allclose(whole[..., k], network.planar(volume[..., k]), atol=1e-5)


class TestTrust:
    @pytest.mark.parametrize("network", [LRASPP2D, LRASPP3D, LRASPPSlices])
    def test_a_bundle_may_name_it(self, network: type) -> None:
        assert is_network(network)


class TestLearning:
    def test_the_one_for_volumes_finds_a_bright_cube(self) -> None:
        torch.manual_seed(0)
        network = LRASPP3D(1, 2)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        image = 0.3 * torch.randn(2, 1, 16, 16, 16)
        label = torch.zeros(2, 16, 16, 16, dtype=torch.long)
        label[0, 2:10, 3:11, 4:12] = 1
        label[1, 6:14, 5:13, 1:9] = 1
        image[:, 0] += label
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(image), label).backward()
            optimizer.step()
        found = network(image).argmax(1)
        assert float(2 * (found * label).sum() / (found.sum() + label.sum())) > 0.9

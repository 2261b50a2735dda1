"""Occlusion beside captum's and beside closed forms of linear networks; windows, batches and memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from MLILib.errors import BadInput, Cancelled
from MLILib.explanation.occlusion import occlusion, windows
from MLILib.explanation.scoring import batch_size, forward_bytes
from MLILib.progress import Progress


def classifier(dimensions: int, channels: int = 2) -> nn.Module:
    torch.manual_seed(dimensions)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dimensions - 1]
    layers = [conv(channels, 4, 3), nn.ReLU(), conv(4, 5, 3, stride=2), nn.ReLU(), pool(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(5 * 2**dimensions, 3)).double().eval()


def second(output: torch.Tensor) -> torch.Tensor:
    return output[:, 1]


class Counting(nn.Module):
    """Sums its input, and remembers how many images each batch had."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(image))
        return image.flatten(1).sum(1)


def itself(output: torch.Tensor) -> torch.Tensor:
    return output


class TestCaptum:
    @pytest.mark.parametrize(
        ("shape", "window", "stride"),
        [
            ((13, 16), (4, 5), (3, 5)),
            ((9, 10, 12), (4, 4, 4), (2, 3, 4)),
            ((8, 8), (8, 8), (1, 1)),
            ((15,), (4,), (2,)),
        ],
    )
    @pytest.mark.parametrize("value", [0.0, 0.7])
    @pytest.mark.parametrize("each_channel", [False, True])
    def test_equal(
        self, shape: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...], value: float, each_channel: bool
    ) -> None:
        captum = pytest.importorskip("captum.attr")
        network = classifier(len(shape))
        image = torch.rand(2, 2, *shape, dtype=torch.float64)
        ours = occlusion(
            network, image, second, window=window, stride=stride, value=value, each_channel=each_channel, memory=1 << 20
        )
        channels = 1 if each_channel else 2
        theirs = captum.Occlusion(network).attribute(
            image, (channels, *window), strides=(channels, *stride), baselines=value, target=1
        )
        # captum adds up in float32, whatever the network computes in.
        torch.testing.assert_close(ours.expand_as(theirs).float(), theirs.float(), rtol=0, atol=1e-6)


class TestClosedForm:
    def test_sum_of_voxels_falls_by_what_the_window_holds(self) -> None:
        image = torch.rand(1, 1, 6, 6, dtype=torch.float64)
        found = occlusion(Counting().eval(), image, itself, window=3, stride=3)
        for i, j in ((0, 0), (0, 3), (3, 0), (3, 3)):
            block = image[0, 0, i : i + 3, j : j + 3].sum()
            torch.testing.assert_close(found[0, 0, i : i + 3, j : j + 3], block.expand(3, 3))

    @pytest.mark.parametrize("fill", ["mean", "blur"])
    def test_a_flat_image_has_nothing_to_take_away(self, fill: str) -> None:
        network = classifier(2)
        flat = torch.full((1, 2, 9, 9), 0.4, dtype=torch.float64)
        found = occlusion(network, flat, second, window=3, stride=2, fill=fill)  # type: ignore[arg-type]
        torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)

    def test_mean_fill(self) -> None:
        image = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])  # the mean is 3
        found = occlusion(Counting().eval(), image, itself, window=1, stride=1, fill="mean")
        assert found.flatten().tolist() == [-2.0, -1.0, 0.0, 3.0]

    def test_input_is_untouched(self) -> None:
        image = torch.rand(1, 2, 9, 9, dtype=torch.float64)
        before = image.clone()
        network = classifier(2)
        output = network(image)
        occlusion(network, image, second, window=3, stride=2)
        assert torch.equal(image, before)
        assert torch.equal(network(image), output)


class TestBatches:
    def test_no_batch_is_larger_than_memory(self) -> None:
        image = torch.rand(1, 1, 8, 8)
        network = Counting().eval()
        one = forward_bytes(network, image)
        occlusion(network, image, itself, window=2, stride=2, memory=5 * one)
        assert max(network.batches) == 5
        assert sum(network.batches) >= 16

    def test_one_image_is_tried_even_without_room(self) -> None:
        assert batch_size(Counting().eval(), torch.rand(1, 1, 8, 8), memory=1) == 1

    def test_bytes_of_a_forward(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU()).eval()
        # The input and twice 4 channels of 8 x 8, 4 bytes each; all of it doubled for buffers.
        assert forward_bytes(network, torch.rand(1, 1, 8, 8)) == 2 * 4 * 64 * (1 + 4 + 4)

    def test_windows_on_background_are_not_computed(self) -> None:
        image = torch.zeros(1, 1, 8, 8)
        image[..., 3, 3] = 1.0
        network = Counting().eval()
        occlusion(network, image, itself, window=2, stride=2)
        assert sum(network.batches) == 3  # to measure memory, the clean image, one window

    def test_cancel(self) -> None:
        with pytest.raises(Cancelled):
            occlusion(classifier(2), torch.rand(1, 2, 9, 9).double(), second, progress=Progress(cancelled=lambda: True))


class TestWindows:
    def test_last_is_cut_at_the_border(self) -> None:
        assert list(windows((7,), (4,), (2,))) == [(slice(0, 4),), (slice(2, 6),), (slice(4, 7),)]

    def test_number_for_a_volume(self) -> None:
        assert len(list(windows((64,) * 3, (8,) * 3, (4,) * 3))) == 15**3


class TestRefused:
    def test_window_larger_than_the_image(self) -> None:
        with pytest.raises(BadInput, match="9 x 9 does not fit into an image of 8 x 8"):
            occlusion(Counting().eval(), torch.rand(1, 1, 8, 8), itself, window=9)

    def test_stride_that_leaves_voxels_out(self) -> None:
        with pytest.raises(BadInput, match="never covered"):
            occlusion(Counting().eval(), torch.rand(1, 1, 8, 8), itself, window=2, stride=3)

    @pytest.mark.parametrize("window", [0, (2,), (2, 2, 2)])
    def test_window_of_other_dimensions(self, window: int | tuple[int, ...]) -> None:
        with pytest.raises(BadInput, match="The window"):
            occlusion(Counting().eval(), torch.rand(1, 1, 8, 8), itself, window=window, stride=1)

    def test_training_mode(self) -> None:
        with pytest.raises(ValueError, match="training mode"):
            occlusion(Counting(), torch.rand(1, 1, 8, 8), itself)

    def test_score_of_another_shape(self) -> None:
        with pytest.raises(ValueError, match=r"one number for each of 1 images, shape \(1,\), not \(1, 3\)"):
            occlusion(classifier(2), torch.rand(1, 2, 9, 9).double(), itself)

"""Windows, weights and sums as MONAI's sliding_window_inference, but streamed in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import sliding_window_inference
from monai.networks.nets import BasicUNet

from MLILib.errors import BadInput
from MLILib.segmentation import tiles
from MLILib.segmentation.sliding_window import Field, Tiling, accumulator_bytes, sliding_window
from MLILib.segmentation.tiles import Setup

CPU = torch.device("cpu")
CASES = [
    ((50, 40, 33), (16, 16, 16), 0.5),
    ((50, 40, 33), (16, 24, 16), 0.25),
    ((20, 40, 13), (32, 16, 16), 0.6),  # smaller than the window along two axes
    ((16, 16, 16), (16, 16, 16), 0.5),
    ((33, 17), (16, 16), 0.7),
]


class Stencil(torch.nn.Module):
    """A network with a receptive field and no padding tricks: what it says of a voxel depends on the window."""

    def __init__(self, dims: int, classes: int = 3) -> None:
        super().__init__()
        conv = torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d
        generator = torch.Generator().manual_seed(0)
        self.conv = conv(1, classes, 5, padding=2)
        for p in self.conv.parameters():
            p.data = torch.randn(p.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def image_of(size: Sequence[int]) -> torch.Tensor:
    return torch.randn((1, *size), generator=torch.Generator().manual_seed(1))


def monai(image: torch.Tensor, network: torch.nn.Module, tiling: Tiling, batch: int = 4) -> torch.Tensor:
    with torch.inference_mode():
        return sliding_window_inference(
            image[None], tiling.roi, batch, network, overlap=tiling.overlap[0], mode=tiling.mode
        )[0]


@pytest.mark.parametrize(("size", "roi", "overlap"), CASES)
class TestMonaiAgrees:
    def test_the_same_windows(self, size: tuple[int, ...], roi: tuple[int, ...], overlap: float) -> None:
        tiling = Tiling(roi, (overlap,))
        padded = [max(n, r) for n, r in zip(size, roi, strict=True)]
        step = [r if r == n else max(int(r * (1 - overlap)), 1) for n, r in zip(padded, roi, strict=True)]
        theirs = [tuple(s.start for s in window) for window in dense_patch_slices(padded, roi, step)]
        assert list(itertools.product(*tiling.starts(size))) == theirs
        assert tiling.count(size) == len(theirs)

    @pytest.mark.parametrize("mode", ["gaussian", "constant"])
    def test_bit_for_bit_along_the_first_axis(
        self, size: tuple[int, ...], roi: tuple[int, ...], overlap: float, mode: str
    ) -> None:
        network, tiling = Stencil(len(size)), Tiling(roi, (overlap,), mode)
        assert torch.equal(
            sliding_window(image_of(size), network, tiling, batch=4), monai(image_of(size), network, tiling)
        )

    def test_along_the_other_axes(self, size: tuple[int, ...], roi: tuple[int, ...], overlap: float) -> None:
        network, tiling = Stencil(len(size)), Tiling(roi, (overlap,))
        expected = monai(image_of(size), network, tiling)
        for axis in range(1, len(size)):
            ours = sliding_window(image_of(size), network, tiling, batch=3, axis=axis)
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)

    def test_mirrored(self, size: tuple[int, ...], roi: tuple[int, ...], overlap: float) -> None:
        network, tiling = Stencil(len(size)), Tiling(roi, (overlap,))
        for flips in [(0,), (1,), tuple(range(len(size)))]:
            dims = [f + 1 for f in flips]
            expected = monai(image_of(size).flip(dims), network, tiling).flip(dims)
            ours = sliding_window(image_of(size), network, tiling, flips=flips)
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("falling", [False, True])
    def test_read_in_thin_parts_and_released(
        self, size: tuple[int, ...], roi: tuple[int, ...], overlap: float, falling: bool
    ) -> None:
        network, tiling = Stencil(len(size)), Tiling(roi, (overlap,))
        field = Field(image_of(size), network, tiling, axis=1, batch=2, falling=falling)
        cuts = list(itertools.pairwise([*range(0, size[1], 3), size[1]]))
        parts = {}
        for a, b in reversed(cuts) if falling else cuts:
            parts[a] = field.read(a, b).clone()
            field.release_after(a) if falling else field.release(b)
        whole = torch.cat([parts[a] for a, _ in cuts], dim=2)
        torch.testing.assert_close(whole, monai(image_of(size), network, tiling), atol=1e-5, rtol=1e-5)

    def test_a_box_needs_only_the_windows_that_touch_it(
        self, size: tuple[int, ...], roi: tuple[int, ...], overlap: float
    ) -> None:
        network, tiling = Stencil(len(size)), Tiling(roi, (overlap,))
        box = tuple((n // 3, n // 3 + 2) for n in size)
        ours = sliding_window(image_of(size), network, tiling, box=box)
        expected = monai(image_of(size), network, tiling)[(slice(None), *(slice(a, b) for a, b in box))]
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
        field = Field(image_of(size), network, tiling, box=box)
        shift = [p[0] for p in tiling.padding(size)]
        touching = [
            corner
            for corner in itertools.product(*tiling.starts(size))
            if all(s < b + p and s + r > a + p for s, (a, b), p, r in zip(corner, box, shift, roi, strict=True))
        ]
        assert field.total == len(touching)


class TestField:
    def test_holds_no_more_than_it_says(self) -> None:
        size, tiling = (200, 24, 24), Tiling((16, 16, 16))
        field = Field(image_of(size), Stencil(3), tiling)
        most = 0
        for x in range(0, 200, 4):
            field.read(x, x + 4)
            alive = [s for s in field._segments if s.values is not None]
            most = max(most, sum(s.values.nbytes + s.weights.nbytes for s in alive))
            field.release(x + 4)
        whole = 4 * 4 * 200 * 24 * 24
        assert most <= accumulator_bytes(tiling, size, 3, 0) < whole / 6

    def test_reading_what_was_released_is_an_error(self) -> None:
        field = Field(image_of((64, 16, 16)), Stencil(3), Tiling((16, 16, 16)))
        field.read(0, 32)
        field.release(32)
        with pytest.raises(RuntimeError, match="released"):
            field.read(0, 8)

    def test_tells_of_each_batch(self) -> None:
        done: list[int] = []
        tiling = Tiling((16, 16, 16))
        sliding_window(image_of((40, 16, 16)), Stencil(3), tiling, batch=3, on_windows=done.append)
        assert done == [3, 1]

    def test_a_network_that_changes_the_size_is_refused(self) -> None:
        shrink = torch.nn.MaxPool3d(2)
        with pytest.raises(BadInput, match="16 x 16 x 16 voxels with one of 8 x 8 x 8"):
            sliding_window(image_of((16, 16, 16)), shrink, Tiling((16, 16, 16)))

    def test_a_window_of_minus_one_is_the_whole_image(self) -> None:
        image = image_of((20, 18, 17))
        torch.testing.assert_close(
            sliding_window(image, Stencil(3), Tiling((-1, -1, -1))), Stencil(3)(image[None])[0].detach()
        )


class TestTiles:
    def test_estimate_is_within_a_factor_of_the_activations(self) -> None:
        network = BasicUNet(3, 1, 2, features=(8, 8, 16, 32, 32, 8)).eval()
        per_voxel = tiles.bytes_per_voxel(network, 1, (64, 64, 64))
        # At full resolution the first level holds an 8-channel skip and, at the end, the 16 channels it is joined to.
        assert per_voxel is not None
        assert 4 * (8 + 16) * 0.5 <= per_voxel <= 4 * (8 + 16) * 4 * tiles.WORKSPACE

    def test_hooks_are_gone_afterwards(self) -> None:
        network = Stencil(3)
        tiles.bytes_per_voxel(network, 1, (32, 32, 32))
        assert not network.conv._forward_hooks
        assert not network.conv._forward_pre_hooks

    def test_batch_shrinks_before_the_window(self) -> None:
        tiling = Tiling((64, 64, 64))
        need = 100 * 64**3
        assert tiles.fitted(tiling, 4, (99, 99, 99), 100, int(need / tiles.SHARE) + 99) == (tiling, 1)
        smaller, batch = tiles.fitted(tiling, 4, (99, 99, 99), 100, int(need / tiles.SHARE / 2) + 99)
        assert (sorted(smaller.roi), batch) == ([32, 64, 64], 1)

    def test_unknown_memory_changes_nothing(self) -> None:
        tiling = Tiling((64, 64, 64))
        assert tiles.fitted(tiling, 4, (99, 99, 99), None, 1) == (tiling, 4)
        assert tiles.fitted(tiling, 4, (99, 99, 99), 100, None) == (tiling, 4)

    def test_fallbacks_go_from_batch_to_window_to_cpu(self) -> None:
        gpu = torch.device("cuda:0")
        first = Setup((Tiling((96, 96, 64)),), (4,), gpu, gpu)
        describe: Callable[[torch.device], str] = lambda device: f"the {device.type}"  # noqa: E731
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles.device, "describe", describe)
            tried = list(tiles.fallbacks(first, [(200, 200, 200)]))
        setups = [setup for setup, _ in tried]
        assert setups[0] == first
        assert setups[1] == Setup(first.tilings, (1,), gpu, CPU)
        windows = [(s.device.type, int(np.prod(s.tilings[0].roi))) for s in setups]
        assert [d for d, _ in windows] == sorted((d for d, _ in windows), reverse=True)  # cuda before cpu
        for kind in ("cuda", "cpu"):
            volumes = [v for d, v in windows[1:] if d == kind]
            assert volumes == sorted(volumes, reverse=True)
            assert volumes[-1] == 32**3
        assert "the cuda" in tried[-1][1]
        assert "32 x 32 x 32" in tried[-1][1]

"""Similarities of neighbourhoods, LNCC and MIND-SSC, against loops over their definitions and ITK."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
import torch

from MLILib.errors import BadInput
from MLILib.registration.box import Windows, margin
from MLILib.registration.lncc import lncc
from MLILib.registration.mind import mind, mind_ssc

SHAPES = [(5, 6, 7), (7, 9)]
Array = npt.NDArray[Any]


def noise(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(array)[None, None]


def weights(shape: tuple[int, ...], seed: int = 1) -> Array:
    """From 0 to 1, a third of them 0."""
    rng = np.random.default_rng(seed)
    return rng.uniform(size=shape) * (rng.uniform(size=shape) > 1 / 3)


def local_correlation(fixed: Array, moving: Array, weight: Array, radius: int, floor: float = 0.0) -> float:
    """Weighted mean of r^2, window by window."""
    raised = [floor * np.cov(image.ravel(), aweights=weight.ravel(), ddof=0) for image in (fixed, moving)]
    total = 0.0
    for place in itertools.product(*(range(n) for n in fixed.shape)):
        window = tuple(slice(max(i - radius, 0), i + radius + 1) for i in place)
        if weight[place] == 0 or np.count_nonzero(weight[window]) < 2:
            continue
        parts = [image[window].ravel() for image in (fixed, moving)]
        (a, b), (_, d) = np.cov(*parts, aweights=weight[window].ravel(), ddof=0)
        total += weight[place] * b**2 / ((a + raised[0]) * (d + raised[1]))
    return float(total / weight.sum())


def self_similarity(image: Array, radius: int, dilation: int) -> Array:
    """MIND-SSC (pairs, ...), voxel by voxel; pairs in the order that `mind_ssc` documents."""
    dims = image.ndim

    def value(place: Array) -> float:
        return float(image[tuple(np.clip(place, 0, np.array(image.shape) - 1))])

    pairs = []
    for i, j in itertools.combinations(range(dims), 2):
        one, other = (dilation * np.eye(dims, dtype=int)[k] for k in (i, j))
        pairs += [(one, other), (-one, -other), (one, -other), (-one, other)]
    patch = [np.array(p) for p in itertools.product(range(-radius, radius + 1), repeat=dims)]
    distances = np.zeros((len(pairs), *image.shape))
    for place in itertools.product(*(range(n) for n in image.shape)):
        for number, (a, b) in enumerate(pairs):
            gaps = [value(place + a + p) - value(place + b + p) for p in patch]
            distances[(number, *place)] = np.mean(np.square(gaps))
    above = distances - distances.min(0)
    variance = above.mean(0)
    return np.exp(-above / np.clip(variance, variance.mean() * 1e-3, variance.mean() * 1e3))


class TestWindows:
    @pytest.mark.parametrize("radius", range(8))
    def test_sums_are_those_of_the_windows(self, radius: int) -> None:
        image = noise((3, 4, 2))
        wide = np.pad(image, radius)
        row = torch.from_numpy(wide.ravel())
        sums = Windows(row, wide.shape, radius).sums(row).numpy()
        for place in itertools.product(*(range(n) for n in image.shape)):
            window = wide[tuple(slice(i, i + 2 * radius + 1) for i in place)]
            centre = np.ravel_multi_index([i + radius for i in place], wide.shape)
            assert sums[centre - margin(wide.shape, radius)] == pytest.approx(window.sum(), rel=1e-12, abs=1e-12)


class TestLncc:
    @pytest.mark.parametrize("radius", [1, 2, 3])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_is_its_definition(self, shape: tuple[int, ...], radius: int) -> None:
        fixed, moving = noise(shape), noise(shape) + noise(shape, 1)
        expected = local_correlation(fixed, moving, np.ones(shape), radius)
        assert lncc(tensor(fixed), tensor(moving), radius=radius).item() == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize("radius", [1, 2, 3])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_is_itks(self, shape: tuple[int, ...], radius: int) -> None:
        fixed, moving = noise(shape), noise(shape) + noise(shape, 1)
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsANTSNeighborhoodCorrelation(radius)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetInitialTransform(sitk.TranslationTransform(len(shape)))
        value = method.MetricEvaluate(*(sitk.GetImageFromArray(image) for image in (fixed, moving)))
        assert -lncc(tensor(fixed), tensor(moving), radius=radius).item() == pytest.approx(value, rel=1e-10)

    @pytest.mark.parametrize("floor", [0.0, 0.1])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_with_weights_is_its_definition(self, shape: tuple[int, ...], floor: float) -> None:
        fixed, moving, weight = noise(shape) + 5, noise(shape) + noise(shape, 1), weights(shape)
        expected = local_correlation(fixed, moving, weight, 2, floor)
        found = lncc(tensor(fixed), tensor(moving), tensor(weight), radius=2, floor=floor)
        assert found.item() == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize(
        ("shape", "box"),
        [((8, 7, 9), (slice(2, 6), slice(1, 7), slice(3, 8))), ((9, 8), (slice(1, 6), slice(2, 8)))],
    )
    def test_a_box_for_a_mask_is_a_crop(self, shape: tuple[int, ...], box: tuple[slice, ...]) -> None:
        fixed, moving = noise(shape), noise(shape) + noise(shape, 1)
        mask = np.zeros(shape)
        mask[box] = 1
        cropped = lncc(tensor(fixed[box].copy()), tensor(moving[box].copy())).item()
        assert lncc(tensor(fixed), tensor(moving), tensor(mask)).item() == pytest.approx(cropped, rel=1e-10)

    def test_outside_the_mask_nothing_matters(self) -> None:
        fixed, moving, weight = noise((6, 7)), noise((6, 7), 1), weights((6, 7))
        spoilt = np.where(weight > 0, moving, 1e6)
        expected = lncc(tensor(fixed), tensor(moving), tensor(weight)).item()
        assert lncc(tensor(fixed), tensor(spoilt), tensor(weight)).item() == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("slope", [3.0, -0.2])
    def test_of_a_linear_map_is_1(self, slope: float) -> None:
        fixed = noise((6, 7, 8))
        assert lncc(tensor(fixed), tensor(slope * fixed + 9)).item() == pytest.approx(1, abs=1e-10)

    def test_a_linear_map_changes_nothing(self) -> None:
        fixed, moving = noise((6, 7)), noise((6, 7)) + noise((6, 7), 1)
        expected = lncc(tensor(fixed), tensor(moving)).item()
        assert lncc(tensor(4 - 2 * fixed), tensor(0.1 * moving + 50)).item() == pytest.approx(expected, rel=1e-10)

    def test_another_brightness_and_contrast_in_each_half_is_1_inside_of_each(self) -> None:
        fixed = noise((6, 20))
        moving = np.concatenate([2 * fixed[:, :10] + 1, -fixed[:, 10:]], 1)
        mask = np.zeros_like(fixed)
        mask[:, 2:8] = 1
        assert lncc(tensor(fixed), tensor(moving), tensor(mask)).item() == pytest.approx(1, abs=1e-10)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
    def test_a_constant_image_explains_nothing(self, dtype: torch.dtype, value: float) -> None:
        fixed = tensor(noise((6, 7, 8))).to(dtype)
        moving = torch.full_like(fixed, value).requires_grad_()
        found = lncc(fixed, moving)
        found.sum().backward()
        assert found.item() == 0
        assert moving.grad is not None
        assert not moving.grad.any()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_constant_windows_count_0(self, dtype: torch.dtype) -> None:
        """Half of the image is constant; windows of radius 1 at the other half's border see some of it."""
        fixed = noise((4, 12))
        fixed[:, 6:] = 1.7
        found = lncc(*[tensor(fixed).to(dtype)] * 2, radius=1).item()
        assert found == pytest.approx(7 / 12, rel=1e-5)

    @pytest.mark.parametrize("shape", [(4, 3, 5), (5, 6)])
    @pytest.mark.parametrize("floor", [0.0, 0.2])
    def test_gradient_is_the_slope(self, shape: tuple[int, ...], floor: float) -> None:
        images = [tensor(noise(shape, seed)).requires_grad_() for seed in range(2)]
        weight = tensor(weights(shape))
        assert torch.autograd.gradcheck(lambda f, m: lncc(f, m, weight, radius=1, floor=floor), images)
        assert torch.autograd.gradcheck(lambda f, m: lncc(f, m, radius=2, floor=floor), images)

    @pytest.mark.parametrize("options", [{"radius": 0}, {"floor": -0.1}])
    def test_options_out_of_range(self, options: dict[str, Any]) -> None:
        with pytest.raises(BadInput, match="no correlation"):
            lncc(tensor(noise((3, 4))), tensor(noise((3, 4))), **options)


class TestMind:
    @pytest.mark.parametrize(("radius", "dilation"), [(0, 1), (1, 1), (1, 2), (2, 2), (2, 1)])
    @pytest.mark.parametrize("shape", [(4, 5, 3), (6, 7)])
    def test_is_its_definition(self, shape: tuple[int, ...], radius: int, dilation: int) -> None:
        image = noise(shape)
        found = mind_ssc(tensor(image), radius=radius, dilation=dilation)[0]
        np.testing.assert_allclose(found, self_similarity(image, radius, dilation), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize(("shape", "channels"), [((4, 5, 6), 12), ((5, 6), 4)])
    def test_has_a_channel_for_each_pair(self, shape: tuple[int, ...], channels: int) -> None:
        found = mind_ssc(tensor(noise(shape)))
        assert found.shape == (1, channels, *shape)
        assert found.amax(1).eq(1).all()
        assert found.amin() >= 0

    def test_images_of_a_batch_and_channels_do_not_mix(self) -> None:
        images = torch.from_numpy(noise((2, 2, 4, 5, 6)) * np.array([1, 10, 100, 1000.0]).reshape(2, 2, 1, 1, 1))
        found = mind_ssc(images)
        for n, c in itertools.product(range(2), range(2)):
            alone = mind_ssc(images[n : n + 1, c : c + 1])
            np.testing.assert_allclose(found[n, 12 * c : 12 * c + 12], alone[0], rtol=1e-10)

    @pytest.mark.parametrize(("slope", "shift"), [(3.0, 0.0), (-1.0, 0.0), (0.01, 700.0)])
    def test_scale_shift_and_inversion_change_nothing(self, slope: float, shift: float) -> None:
        image = noise((5, 6, 7))
        expected = mind_ssc(tensor(image))
        np.testing.assert_allclose(mind_ssc(tensor(slope * image + shift)), expected, rtol=1e-8)

    def test_a_shifted_image_has_a_shifted_descriptor(self) -> None:
        """Away from the border, and where V is not clamped: as noise's is not."""
        image = noise((12, 13))
        moved = mind_ssc(tensor(np.roll(image, (2, 1), (0, 1))))
        expected = mind_ssc(tensor(image)).roll((2, 1), (2, 3))
        np.testing.assert_allclose(moved[..., 5:-3, 4:-3], expected[..., 5:-3, 4:-3], rtol=1e-8)

    def test_value_is_the_mean_of_squares_under_the_mask(self) -> None:
        fixed, moving, weight = noise((5, 6)), noise((5, 6), 1), weights((5, 6))
        squares = np.mean((self_similarity(fixed, 1, 2) - self_similarity(moving, 1, 2)) ** 2, axis=0)
        found = mind(tensor(fixed), tensor(moving), tensor(weight)).item()
        assert found == pytest.approx(np.average(squares, weights=weight), rel=1e-9)
        assert mind(tensor(fixed), tensor(moving)).item() == pytest.approx(squares.mean(), rel=1e-9)

    def test_another_contrast_is_no_difference(self) -> None:
        image = noise((5, 6, 7))
        assert mind(tensor(image), tensor(20 - 3 * image)).item() == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
    def test_of_a_constant_image_is_1_without_a_gradient(self, value: float) -> None:
        image = torch.full((1, 1, 4, 5, 6), value, requires_grad=True)
        found = mind_ssc(image)
        assert found.eq(1).all()
        (found * torch.rand_like(found)).sum().backward()
        assert image.grad is not None
        assert not image.grad.any()

    def test_constant_regions_are_1_with_a_finite_gradient(self) -> None:
        image = noise((4, 24))
        image[:, 8:] = 0.3
        moving = tensor(image).requires_grad_()
        found = mind_ssc(moving)
        assert found[..., 12:].eq(1).all()
        (found * torch.rand_like(found)).sum().backward()
        assert moving.grad is not None
        assert moving.grad.isfinite().all()

    @pytest.mark.parametrize("shape", [(4, 3, 5), (5, 6)])
    @pytest.mark.parametrize(("radius", "dilation"), [(0, 1), (1, 2), (3, 1)])
    def test_gradient_is_the_slope(self, shape: tuple[int, ...], radius: int, dilation: int) -> None:
        image = tensor(noise(shape)).requires_grad_()
        assert torch.autograd.gradcheck(lambda m: mind_ssc(m, radius=radius, dilation=dilation), image)

    def test_gradient_of_clamped_noise_is_the_slope(self) -> None:
        """Faint noise beside strong: its V is the lower bound, which moves with the strong noise."""
        image = noise((4, 16))
        image[:, 8:] *= 1e-2
        moving = tensor(image).requires_grad_()
        assert torch.autograd.gradcheck(lambda m: mind_ssc(m, radius=0, dilation=1), moving)

    def test_noise_of_an_outlier_is_clamped(self) -> None:
        """Beside a bright pixel in faint noise V is more than 1000 times its mean, elsewhere less than a thousandth."""
        image = 1e-5 * noise((80, 90))
        image[40, 50] = 1
        moving, along = tensor(image).requires_grad_(), tensor(noise((80, 90), 2) * (image + 1e-5))
        found = mind_ssc(moving, radius=0, dilation=1)
        np.testing.assert_allclose(found.detach()[0], self_similarity(image, 0, 1), rtol=1e-8, atol=1e-12)
        factors = torch.from_numpy(noise((1, 4, 80, 90), 3))
        (found * factors).sum().backward()
        ahead, behind = (mind_ssc(tensor(image) + h * along, radius=0, dilation=1) for h in (1e-5, -1e-5))
        slope = ((ahead - behind) * factors).sum().item() / 2e-5
        assert moving.grad is not None
        assert (moving.grad * along).sum().item() == pytest.approx(slope, rel=1e-4)

    @pytest.mark.parametrize("options", [{"radius": -1}, {"dilation": 0}])
    def test_options_out_of_range(self, options: dict[str, Any]) -> None:
        with pytest.raises(BadInput, match="A descriptor of radius"):
            mind_ssc(tensor(noise((3, 4))), **options)

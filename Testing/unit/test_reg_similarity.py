"""Similarities of intensities and of joint histograms against closed forms, NumPy, ITK and their definitions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
import torch

from MLILib.errors import BadInput
from MLILib.registration import histogram, similarity
from MLILib.registration.histogram import (
    entropy,
    intensity_range,
    joint_entropy,
    joint_histogram,
    mutual_information,
    normalised_mutual_information,
)
from MLILib.registration.intensity import correlation, sad, ssd
from MLILib.registration.requests import SIMILARITIES as REQUESTED
from MLILib.registration.similarity import SIMILARITIES
from MLILib.registration.similarity_words import WORDS

Pair = tuple[torch.Tensor, torch.Tensor]
SHAPES = [(4, 5, 6), (7, 8)]
#: Those that need no neighbourhood, so that a mask and a selection of voxels are the same thing.
POINTWISE = ("ssd", "sad", "cc", "je", "mi", "nmi")


def pair(shape: tuple[int, ...], batch: int = 1, channels: int = 1, seed: int = 0) -> Pair:
    """Two related random images."""
    rng = np.random.default_rng(seed)
    fixed = rng.normal(size=(batch, channels, *shape))
    moving = 0.6 * fixed + 0.5 * rng.normal(size=fixed.shape) + 3.0
    return torch.from_numpy(fixed), torch.from_numpy(moving)


def random_mask(shape: tuple[int, ...], batch: int = 1, seed: int = 1) -> torch.Tensor:
    """Weights from 0 to 1, a third of them 0."""
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(size=(batch, 1, *shape))
    return torch.from_numpy(drawn * (rng.uniform(size=drawn.shape) > 1 / 3))


def measure(name: str, *args: Any, **options: Any) -> torch.Tensor:
    return SIMILARITIES[name].measure(*args, **options)


def itk_value(fixed: torch.Tensor, moving: torch.Tensor, choose: Callable[[Any], None]) -> float:
    """What ITK's metric, set by `choose`, says of two images on one grid."""
    method = sitk.ImageRegistrationMethod()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(sitk.TranslationTransform(fixed.ndim - 2))
    choose(method)
    return float(method.MetricEvaluate(*(sitk.GetImageFromArray(image[0, 0].numpy()) for image in (fixed, moving))))


def bspline(x: float) -> float:
    x = abs(x)
    return 2 / 3 - x**2 + x**3 / 2 if x < 1 else (2 - x) ** 3 / 6 if x < 2 else 0.0


def gaussian(x: float) -> float:
    return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def parzen(
    fixed: npt.NDArray[Any], moving: npt.NDArray[Any], weight: npt.NDArray[Any], bins: int, kernel: str
) -> npt.NDArray[Any]:
    """The joint histogram from its definition, voxel by voxel."""
    window, pad = {"bspline": (bspline, 1), "gaussian": (gaussian, 3)}[kernel]
    places = []
    for image in (fixed, moving):
        low, high = image[weight > 0].min(), image[weight > 0].max()
        places.append(pad + (image - low) / (high - low) * (bins - 1 - 2 * pad))
    counts = np.zeros((bins, bins))
    for f, m, w in zip(*places, weight, strict=True):
        if w > 0:
            counts += w * np.outer([window(i - f) for i in range(bins)], [window(j - m) for j in range(bins)])
    return counts / counts.sum()


#: Of the B-spline's values at whole places, 1/6, 2/3 and 1/6.
KERNEL_ENTROPY = -(2 / 6 * math.log(1 / 6) + 2 / 3 * math.log(2 / 3))


class TestIntensities:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_differences_are_numpys(self, shape: tuple[int, ...]) -> None:
        fixed, moving = pair(shape)
        gap = (fixed - moving).numpy()
        assert ssd(fixed, moving).item() == pytest.approx(np.mean(gap**2), rel=1e-12)
        assert sad(fixed, moving).item() == pytest.approx(np.mean(abs(gap)), rel=1e-12)
        assert ssd(fixed, moving, total=True).item() == pytest.approx(np.sum(gap**2), rel=1e-12)
        assert sad(fixed, moving, total=True).item() == pytest.approx(np.sum(abs(gap)), rel=1e-12)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_mean_of_squares_is_itks(self, shape: tuple[int, ...]) -> None:
        images = pair(shape)
        value = itk_value(*images, lambda method: method.SetMetricAsMeanSquares())
        assert ssd(*images).item() == pytest.approx(value, rel=1e-10)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_correlation_is_numpys_and_itks(self, shape: tuple[int, ...]) -> None:
        images = pair(shape)
        ours = correlation(*images).item()
        assert ours == pytest.approx(np.corrcoef(*(image.numpy().ravel() for image in images))[0, 1], rel=1e-12)
        value = itk_value(*images, lambda method: method.SetMetricAsCorrelation())
        assert -(ours**2) == pytest.approx(value, rel=1e-10)

    def test_weighted_correlation_is_that_of_the_weighted_covariance(self) -> None:
        fixed, moving = pair((6, 7))
        mask = random_mask((6, 7))
        (a, b), (_, d) = np.cov(fixed.numpy().ravel(), moving.numpy().ravel(), aweights=mask.numpy().ravel())
        assert correlation(fixed, moving, mask).item() == pytest.approx(b / math.sqrt(a * d), rel=1e-12)

    @pytest.mark.parametrize(("slope", "sign"), [(2.5, 1), (-0.3, -1)])
    def test_correlation_of_a_linear_map(self, slope: float, sign: int) -> None:
        fixed, _ = pair((5, 6))
        assert correlation(fixed, slope * fixed + 7).item() == pytest.approx(sign, abs=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
    def test_a_constant_image_is_uncorrelated(self, dtype: torch.dtype, value: float) -> None:
        fixed = pair((5, 6, 7))[0].to(dtype)
        moving = torch.full_like(fixed, value).requires_grad_()
        found = correlation(fixed, moving)
        found.sum().backward()
        assert found.item() == 0
        assert moving.grad is not None
        assert not moving.grad.any()


class TestHistogram:
    @pytest.mark.parametrize("kernel", ["bspline", "gaussian"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_is_its_definition(self, shape: tuple[int, ...], kernel: str) -> None:
        fixed, moving = pair(shape, batch=2, channels=2)
        mask = random_mask(shape, batch=2)
        found = joint_histogram(fixed, moving, mask, bins=9, kernel=kernel)
        for n, c in itertools.product(range(2), range(2)):
            parts = [image.numpy().ravel() for image in (fixed[n, c], moving[n, c], mask[n, 0])]
            np.testing.assert_allclose(found[n, c], parzen(*parts, bins=9, kernel=kernel), rtol=0, atol=1e-12)

    def test_portions_make_no_difference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fixed, moving = pair((9, 11), batch=2)
        whole = joint_histogram(fixed, moving)
        monkeypatch.setattr(histogram, "_PORTION_CPU", 14)
        np.testing.assert_allclose(joint_histogram(fixed, moving), whole, rtol=1e-12, atol=1e-15)

    def test_intensities_beyond_the_range_count_as_its_ends(self) -> None:
        fixed, moving = pair((6, 7))
        ends = torch.tensor([2.5, 3.1], dtype=torch.float64)
        found = joint_histogram(fixed, moving, fixed_range=(-0.5, 0.8), moving_range=ends)
        expected = joint_histogram(fixed.clamp(-0.5, 0.8), moving.clamp(2.5, 3.1))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("kernel", ["bspline", "gaussian"])
    def test_of_two_independent_binary_images(self, kernel: str) -> None:
        fixed = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64).view(1, 1, 2, 2)
        moving = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64).view(1, 1, 2, 2)
        assert mutual_information(fixed, moving, kernel=kernel).item() == pytest.approx(0, abs=1e-12)
        assert normalised_mutual_information(fixed, moving, kernel=kernel).item() == pytest.approx(1, abs=1e-12)

    def test_of_two_equal_binary_images(self) -> None:
        """ln 2 of each image's entropy is its content, and the rest the window's."""
        fixed = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64).view(1, 1, 2, 2)
        joint = math.log(2) + 2 * KERNEL_ENTROPY
        assert joint_entropy(fixed, fixed).item() == pytest.approx(joint, rel=1e-12)
        assert mutual_information(fixed, 5 - fixed).item() == pytest.approx(math.log(2), rel=1e-12)
        own = 2 * (math.log(2) + KERNEL_ENTROPY)
        assert normalised_mutual_information(fixed, fixed).item() == pytest.approx(own / joint, rel=1e-12)

    def test_of_labels_is_the_discrete_mutual_information(self) -> None:
        """Labels that lie on bins, three or more apart, share no bin: the windows' entropy cancels."""
        rng = np.random.default_rng(3)
        fixed = rng.integers(0, 4, (8, 9))
        moving = np.where(rng.uniform(size=fixed.shape) < 0.6, 3 - fixed, rng.integers(0, 4, fixed.shape))
        joint = np.histogram2d(fixed.ravel(), moving.ravel(), bins=(4, 4))[0] / fixed.size
        product = np.outer(joint.sum(1), joint.sum(0))
        expected = np.sum(joint[joint > 0] * np.log(joint[joint > 0] / product[joint > 0]))
        images = (torch.from_numpy(labels.astype(float))[None, None] for labels in (fixed, moving))
        assert mutual_information(*images, bins=3 + 3 * 5).item() == pytest.approx(expected, rel=1e-12)

    def test_renaming_labels_changes_nothing(self) -> None:
        """0, 1, 2, 3 and 0, 1, 3, 7 both lie on bins: 84 between the ends is a multiple of 3 and of 7."""
        rng = np.random.default_rng(4)
        labels = torch.from_numpy(rng.integers(0, 4, (2, 1, 1, 10, 11)))
        fixed, moving = labels[0].double(), torch.where(torch.rand(1, 1, 10, 11) < 0.7, labels[0], labels[1])
        renamed = torch.tensor([0.0, 1.0, 3.0, 7.0], dtype=torch.float64)[moving]
        for name in ("je", "mi", "nmi"):
            assert measure(name, fixed, renamed, bins=87).item() == pytest.approx(
                measure(name, fixed, moving.double(), bins=87).item(), rel=1e-12
            )

    def test_a_monotone_map_changes_little(self) -> None:
        axes = torch.meshgrid(*(torch.linspace(0, 1, n, dtype=torch.float64) for n in (20, 24)), indexing="ij")
        fixed = (0.5 + 0.25 * (torch.sin(5 * axes[0]) + torch.cos(4 * axes[1])))[None, None]
        apart = normalised_mutual_information(fixed, fixed.roll(9, 3)).item()
        same = normalised_mutual_information(fixed, fixed).item()
        mapped = normalised_mutual_information(fixed, fixed**1.3).item()
        inverted = normalised_mutual_information(fixed, 1 - fixed).item()
        assert inverted == pytest.approx(same, rel=1e-12)
        assert mapped == pytest.approx(same, rel=0.02)
        assert apart < same - 0.1

    @pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
    def test_a_constant_image_tells_nothing(self, value: float) -> None:
        fixed, _ = pair((5, 6))
        moving = torch.full_like(fixed, value).requires_grad_()
        assert mutual_information(fixed, moving).item() == pytest.approx(0, abs=1e-12)
        ratio = normalised_mutual_information(fixed, moving)
        ratio.sum().backward()
        assert ratio.item() == pytest.approx(1, abs=1e-12)
        assert moving.grad is not None
        assert not moving.grad.any()

    def test_range_is_that_of_the_chosen_voxels(self) -> None:
        image = torch.tensor([[5.0, -2.0], [9.0, 1.0]]).view(1, 1, 2, 2)
        mask = torch.tensor([[1.0, 0.5], [0.0, 1.0]]).view(1, 1, 2, 2)
        assert intensity_range(image).tolist() == [[[-2.0, 9.0]]]
        assert intensity_range(image, mask).tolist() == [[[-2.0, 5.0]]]
        assert intensity_range(image, mask * 0).tolist() == [[[0.0, 0.0]]]

    def test_entropy_of_equal_chances(self) -> None:
        probabilities = torch.tensor([0.25] * 4 + [0.0] * 3, dtype=torch.float64)
        assert entropy(probabilities).item() == pytest.approx(math.log(4), rel=1e-12)


class TestEvery:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("name", POINTWISE)
    def test_a_mask_is_a_selection(self, name: str, shape: tuple[int, ...]) -> None:
        fixed, moving = pair(shape)
        mask = random_mask(shape) > 0
        chosen = (image[mask].view(1, 1, 1, -1) for image in (fixed, moving))
        assert measure(name, fixed, moving, mask).item() == pytest.approx(measure(name, *chosen).item(), rel=1e-10)

    @pytest.mark.parametrize("name", POINTWISE)
    def test_a_weight_of_two_is_a_voxel_twice(self, name: str) -> None:
        fixed, moving = pair((5, 6))
        mask = torch.ones(1, 1, 5, 6)
        mask[..., :2, :] = 2
        twice = (torch.cat([image, image[..., :2, :]], 2) for image in (fixed, moving))
        assert measure(name, fixed, moving, mask).item() == pytest.approx(measure(name, *twice).item(), rel=1e-10)

    @pytest.mark.parametrize("name", SIMILARITIES)
    def test_channels_are_averaged(self, name: str) -> None:
        fixed, moving = pair((5, 6), channels=2)
        alone = [measure(name, fixed[:, [c]], moving[:, [c]]).item() for c in range(2)]
        assert measure(name, fixed, moving).item() == pytest.approx(np.mean(alone), rel=1e-10)

    @pytest.mark.parametrize("name", SIMILARITIES)
    def test_one_fixed_image_goes_with_many(self, name: str) -> None:
        fixed, moving = pair((5, 6, 4), batch=3)
        mask = random_mask((5, 6, 4), batch=3)
        alone = [measure(name, fixed[:1], moving[[n]], mask[[n]]).item() for n in range(3)]
        assert measure(name, fixed[:1], moving, mask).tolist() == pytest.approx(alone, rel=1e-10)
        alone = [measure(name, fixed[:1], moving[[n]], mask[:1]).item() for n in range(3)]
        assert measure(name, fixed[:1], moving, mask[:1]).tolist() == pytest.approx(alone, rel=1e-10)

    @pytest.mark.parametrize("name", SIMILARITIES)
    def test_an_empty_mask_is_undefined_and_leaves_others_alone(self, name: str) -> None:
        fixed, moving = pair((5, 6), batch=2)
        mask = torch.ones(2, 1, 5, 6)
        mask[0] = 0
        together, alone = moving.clone().requires_grad_(), moving[1:].clone().requires_grad_()
        found = similarity.loss(name, fixed, together, mask)
        found.sum().backward()
        similarity.loss(name, fixed[1:], alone).sum().backward()
        assert math.isnan(found[0].item())
        assert together.grad is not None
        assert not together.grad[0].any()
        assert together.grad[1].any()
        np.testing.assert_allclose(together.grad[1:], alone.grad, rtol=1e-10, atol=1e-14)

    @pytest.mark.parametrize("shape", [(3, 4, 3), (4, 5)])
    @pytest.mark.parametrize("name", SIMILARITIES)
    @pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
    def test_gradient_is_the_slope(self, name: str, shape: tuple[int, ...], masked: bool) -> None:
        images = [image.requires_grad_() for image in pair(shape, batch=2)]
        mask = random_mask(shape, batch=2) if masked else None
        # The histograms' ranges are constants; without them a step would move them.
        ranges = {"fixed_range": (-2.0, 1.5), "moving_range": (1.0, 5.0)} if name in ("je", "mi", "nmi") else {}
        assert torch.autograd.gradcheck(lambda f, m: similarity.loss(name, f, m, mask, **ranges), images)

    @pytest.mark.parametrize("name", ["je", "mi", "nmi"])
    def test_gradient_of_the_gaussian_window_is_the_slope(self, name: str) -> None:
        images = [image.requires_grad_() for image in pair((3, 5))]
        options = {"kernel": "gaussian", "bins": 12, "fixed_range": (-2.0, 1.5), "moving_range": (1.0, 5.0)}
        assert torch.autograd.gradcheck(lambda f, m: measure(name, f, m, None, **options), images)

    @pytest.mark.parametrize("name", SIMILARITIES)
    def test_single_precision_is_enough(self, name: str) -> None:
        """Far from zero, too, as a CT's or a scanner's intensities are."""
        fixed, moving = (1000 + 100 * image for image in pair((10, 11, 12)))
        exact = measure(name, fixed, moving).item()
        assert measure(name, fixed.float(), moving.float()).item() == pytest.approx(exact, rel=2e-5)

    @pytest.mark.parametrize("name", SIMILARITIES)
    def test_loss_is_lower_for_the_aligned_image(self, name: str) -> None:
        axes = torch.meshgrid(*(torch.linspace(0, 6, n) for n in (14, 15, 16)), indexing="ij")
        fixed = (torch.sin(axes[0]) + torch.cos(axes[1] * 1.3) + torch.sin(axes[2] * 0.8))[None, None]
        aligned, shifted = (similarity.loss(name, fixed, fixed.roll(n, 4)).item() for n in (0, 3))
        assert aligned < shifted

    @pytest.mark.parametrize("name", SIMILARITIES)
    def test_on_a_gpu_as_on_a_cpu(self, name: str) -> None:
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        fixed, moving = pair((6, 7, 8), batch=2)
        mask = random_mask((6, 7, 8), batch=2)
        found = measure(name, *(part.cuda() for part in (fixed, moving, mask)))
        assert found.tolist() == pytest.approx(measure(name, fixed, moving, mask).tolist(), rel=1e-6)


class TestRegistry:
    def test_every_request_has_a_similarity_and_words(self) -> None:
        assert tuple(SIMILARITIES) == tuple(name for name in REQUESTED if "+" not in name)
        assert {part for name in REQUESTED for part in name.split("+")} == set(SIMILARITIES)
        assert list(WORDS) == list(SIMILARITIES)

    @pytest.mark.parametrize("name", SIMILARITIES)
    def test_loss_falls_as_the_words_say(self, name: str) -> None:
        images = pair((6, 7))
        (value,), (lost,) = measure(name, *images).tolist(), similarity.loss(name, *images).tolist()
        best = {"cc": 1, "lncc": 1, "nmi": 2}.get(name, 0)
        assert lost == pytest.approx(best - value if WORDS[name].higher_is_better else value, rel=1e-12)

    def test_an_unknown_name(self) -> None:
        with pytest.raises(BadInput, match="no similarity 'cca'"):
            similarity.measure("cca", *pair((3, 4)))


class TestBadInput:
    @pytest.mark.parametrize("name", SIMILARITIES)
    @pytest.mark.parametrize(
        ("moving", "mask"),
        [
            ((2, 1, 4, 6), None),  # another grid
            ((2, 2, 4, 5), None),  # other channels
            ((3, 1, 4, 5), None),  # another batch
            ((2, 1, 4, 5), (2, 2, 4, 5)),  # a mask of two channels
            ((2, 1, 4, 5), (2, 1, 4, 6)),  # a mask on another grid
            ((2, 1, 4, 5), (4, 5)),  # a mask without batch and channel
            ((2, 1, 3, 4, 5), None),  # 3-D beside 2-D
        ],
    )
    def test_shapes_that_do_not_fit(self, name: str, moving: tuple[int, ...], mask: tuple[int, ...] | None) -> None:
        with pytest.raises(BadInput, match="shapes do not fit"):
            measure(name, torch.zeros(2, 1, 4, 5), torch.zeros(moving), None if mask is None else torch.ones(mask))

    @pytest.mark.parametrize("name", SIMILARITIES)
    @pytest.mark.parametrize(
        "image", [torch.zeros(4, 5), torch.zeros(1, 1, 4, 5, dtype=torch.int16), torch.zeros(1, 1, 0, 5)]
    )
    def test_what_is_no_image(self, name: str, image: torch.Tensor) -> None:
        with pytest.raises(BadInput, match="is no image"):
            measure(name, image, image)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"bins": 3}, "too few"),
            ({"bins": 7, "kernel": "gaussian"}, "too few"),
            ({"kernel": "box"}, "no kernel"),
            ({"fixed_range": (2.0, 1.0)}, "no range"),
            ({"moving_range": (math.nan, 1.0)}, "no range"),
        ],
    )
    def test_options_of_histograms(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(BadInput, match=message):
            joint_histogram(*pair((3, 4)), **options)

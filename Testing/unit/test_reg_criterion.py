"""What is minimised: every similarity on one scale, lower where images agree, and intensities brought to one range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blobs import Body, grid

from MLILib.geometry import to_zyx
from MLILib.registration.criterion import SUM, WEIGHTS, Criterion, matched, normalised
from MLILib.registration.requests import SIMILARITIES
from MLILib.registration.similarity import measure


@pytest.fixture(scope="module", params=[2, 3])
def image(request: pytest.FixtureRequest) -> torch.Tensor:
    size = (28, 24, 20)[: request.param]
    return normalised(to_zyx(Body(request.param).image(grid(size, (1.3,) * request.param)))[None])


class TestCriterion:
    @pytest.mark.parametrize("name", SIMILARITIES)
    def test_lower_where_the_images_agree_and_with_a_gradient_back(self, name: str, image: torch.Tensor) -> None:
        criterion = Criterion(name)
        features = criterion.features(image)
        away = features.roll(2, -1).requires_grad_()
        aligned, apart = criterion(features, features), criterion(features, away)
        assert aligned.shape == (1,)
        assert float(aligned) < float(apart.detach())
        apart.sum().backward()
        assert torch.isfinite(away.grad).all()
        better = away.detach() - 0.01 * away.grad / away.grad.abs().max()
        assert float(criterion(features, better)) < float(apart.detach())

    @pytest.mark.parametrize("name", SIMILARITIES)
    def test_images_of_a_batch_do_not_see_each_other(self, name: str, image: torch.Tensor) -> None:
        criterion = Criterion(name)
        several = torch.cat([image.roll(n, -1) for n in (1, 2, 3)])
        whole = criterion(criterion.features(image), criterion.features(several))
        alone = [criterion(criterion.features(image), criterion.features(one[None])) for one in several]
        torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", [name for name in SIMILARITIES if name != "mind"])
    def test_what_lies_outside_the_mask_is_not_seen(self, name: str, image: torch.Tensor) -> None:
        """Descriptors do see their neighbours: they are made before the mask is asked."""
        mask = torch.zeros_like(image)
        mask[..., 4:-8] = 1
        spoiled = torch.where(mask > 0, image, 0.9)
        criterion, away = Criterion(name), image.roll(1, -2)
        torch.testing.assert_close(criterion(away, spoiled, mask), criterion(away, image, mask), rtol=1e-4, atol=1e-5)

    def test_the_sum_is_the_sum_of_its_parts(self, image: torch.Tensor) -> None:
        away = image.roll(1, -1)
        lncc = Criterion("lncc")(image, away) / WEIGHTS["lncc"]
        expected = SUM["ssd"] * measure("ssd", image, away) + SUM["lncc"] * lncc
        torch.testing.assert_close(Criterion("ssd+lncc")(image, away), expected)

    def test_only_descriptors_depend_on_the_axes(self) -> None:
        assert [name for name in SIMILARITIES if Criterion(name).oriented] == ["mind"]


class TestNormalised:
    def test_a_range_from_0_to_1(self) -> None:
        values = torch.linspace(-1000, 3000, 4001).view(1, 1, 1, -1)
        found = normalised(torch.cat([values, 7 * values + 3]))
        torch.testing.assert_close(found[0], found[1])
        # The 0.5th and 99.5th percentiles are -980 and 2980.
        assert float(found[0].flatten()[1000]) == pytest.approx(980 / 3960, abs=1e-6)
        assert (float(found.min()), float(found.max())) == (0.0, 1.0)

    def test_a_few_voxels_among_many_alike_are_seen(self) -> None:
        image = torch.full((1, 1, 50, 50), 5.0)
        image[0, 0, 3, 3], image[0, 0, 4, 4] = 1.0, 3.0
        found = normalised(image)
        assert (found[0, 0, 3, 3], found[0, 0, 4, 4], found[0, 0, 0, 0]) == (0.0, 0.5, 1.0)

    def test_the_mask_makes_the_range(self) -> None:
        image = torch.linspace(0, 1, 1001).view(1, 1, 1, -1).repeat(1, 1, 2, 1)
        mask = torch.ones_like(image)
        mask[0, 0, 1] = 0
        spoiled = torch.where(mask > 0, image, 1000.0)
        found = normalised(spoiled, mask)
        torch.testing.assert_close(found[0, 0, 0], normalised(image[:, :, :1])[0, 0, 0])
        assert (found[0, 0, 1] == 1).all()


class TestMatched:
    def test_another_scanners_curve_is_undone(self) -> None:
        rng = torch.Generator().manual_seed(0)
        fixed = torch.rand((1, 1, 60, 60), generator=rng)
        moving = fixed.square()  # monotone, as of another gain
        found = matched(moving, moving, fixed, torch.ones_like(fixed))
        inner = (fixed > 0.05) & (fixed < 0.95)
        assert float((found - fixed)[inner].abs().max()) < 0.02

    def test_voxels_outside_the_mask_do_not_count(self) -> None:
        rng = torch.Generator().manual_seed(0)
        fixed = torch.rand((1, 1, 60, 60), generator=rng)
        mask = torch.ones_like(fixed)
        mask[..., :20] = 0
        moving = torch.where(mask > 0, fixed.square(), 9.0)
        found = matched(moving, moving, fixed, mask)
        inner = (fixed > 0.05) & (fixed < 0.95) & (mask > 0)
        assert float((found - fixed)[inner].abs().max()) < 0.02

    def test_too_few_voxels_change_nothing(self) -> None:
        moving = torch.rand(1, 1, 9, 9)
        assert torch.equal(matched(moving, moving, 1 - moving, torch.ones_like(moving)), moving)


def test_on_a_gpu_as_on_a_cpu(image: torch.Tensor) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for name in SIMILARITIES:
        criterion = Criterion(name)
        values = [
            float(criterion(*(criterion.features(i.to(device)) for i in (image, image.roll(1, -1)))))
            for device in ("cpu", "cuda")
        ]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-4)

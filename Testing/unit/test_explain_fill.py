"""What stands in for what is taken away: constants, means, and Gaussian blur beside SciPy's."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from MLILib.errors import BadInput
from MLILib.explanation.fill import blurred, filled


class TestFilled:
    def test_constant(self) -> None:
        assert torch.equal(filled(torch.rand(2, 3, 4, 5), "constant", value=-7.0), torch.full((2, 3, 4, 5), -7.0))

    def test_mean_of_each_channel_of_each_image(self) -> None:
        image = torch.arange(8.0).reshape(2, 2, 1, 2)
        assert filled(image, "mean").flatten().tolist() == [0.5, 0.5, 2.5, 2.5, 4.5, 4.5, 6.5, 6.5]

    @pytest.mark.parametrize("shape", [(17,), (9, 14), (6, 11, 9)])
    @pytest.mark.parametrize("sigma", [0.8, 2.5])
    def test_blur_is_scipys(self, shape: tuple[int, ...], sigma: float) -> None:
        image = torch.rand(2, 2, *shape, dtype=torch.float64)
        expected = ndimage.gaussian_filter(image.numpy(), (0, 0, *(sigma,) * len(shape)), mode="nearest")
        torch.testing.assert_close(blurred(image, sigma), torch.from_numpy(expected), rtol=0, atol=1e-12)

    def test_blur_leaves_a_flat_image_alone(self) -> None:
        flat = torch.full((1, 1, 8, 8), 3.0, dtype=torch.float64)
        torch.testing.assert_close(filled(flat, "blur"), flat)

    def test_unknown_fill_names_those_that_exist(self) -> None:
        with pytest.raises(BadInput, match="constant, mean, blur"):
            filled(torch.rand(1, 1, 4, 4), "noise")  # type: ignore[arg-type]

    @pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
    def test_no_blur(self, sigma: float) -> None:
        with pytest.raises(BadInput, match="above 0"):
            filled(torch.rand(1, 1, 4, 4), "blur", sigma=sigma)

    def test_infinite_constant(self) -> None:
        with pytest.raises(BadInput, match="finite"):
            filled(torch.rand(1, 1, 4, 4), "constant", value=float("inf"))

"""What several tests of the library share: random images with a bundle to segment them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import SimpleITK as sitk


@pytest.fixture
def no_models_kept() -> Iterator[None]:
    """The networks that a test has loaded are gone afterwards."""
    yield
    from MLILib.segmentation import models

    models.forget_all()


@pytest.fixture
def case(tmp_path: Path) -> Callable[..., tuple[Path, sitk.Image, Path]]:
    """Writes a bundle and an image on a random grid; gives the bundle, the image as read back, and its file."""
    import numpy as np
    import SimpleITK as sitk
    from grids import random_image
    from tiny_bundle import write_tiny_bundle

    from MLILib import images

    def make(seed: int = 0, dims: int = 3, low: int = 18, **options: Any) -> tuple[Path, sitk.Image, Path]:
        file = tmp_path / "image.nii.gz"
        sitk.WriteImage(random_image(np.random.default_rng(seed), dims, low, low + 14), str(file))
        bundle = write_tiny_bundle(tmp_path / "bundle", seed=seed, dims=dims, **options)
        return bundle, images.read(file), file

    return make

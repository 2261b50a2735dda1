"""Registration by a network on images of any grid: what it finds lies in space, not in the order of the voxels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")

from MLILib.errors import BadInput  # noqa: E402
from MLILib.geometry import Grid, to_zyx  # noqa: E402
from MLILib.registration import learned  # noqa: E402
from MLILib.registration.cascade import Cascade  # noqa: E402
from MLILib.registration.conversion import to_sitk  # noqa: E402
from MLILib.registration.networks import UNet  # noqa: E402
from MLILib.registration.placement import centre, centred, network_grid, placed, snapped  # noqa: E402
from MLILib.registration.sampling import index_matrix  # noqa: E402

SIZE = (32, 32, 48)
#: About three axes, 0.2 to 0.4 radian.
OBLIQUE = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.4).GetMatrix()


def write_bundle(folder: Path, strength: float) -> str:
    """A cascade with random weights; its answers grow with `strength`, and 0 is the identity."""
    torch.manual_seed(3)
    definition = {"_target_": "MLILib.registration.cascade.Cascade", "dimensions": 3, "features": [4, 6]}
    network = Cascade(3, features=(4, 6))
    for module in network.modules():
        if isinstance(module, UNet):
            torch.nn.init.normal_(module.last.weight, std=strength)
    for part in ("configs", "models"):
        (folder / part).mkdir(parents=True)
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    config = {"network_def": definition, "preprocessing": [], "inferer": {"_target_": "SimpleInferer"}}
    (folder / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    tensor = {"num_channels": 2, "spatial_shape": list(reversed(SIZE))}
    keys = ("version", "monai_version", "pytorch_version", "numpy_version", "description", "authors", "copyright")
    told = dict.fromkeys(keys, "test") | {
        "task": "registration",
        "network_data_format": {"inputs": {"image": tensor}, "outputs": {"pred": tensor | {"num_channels": 3}}},
        "mli": {"registration": {"spacing": [1.0, 1.0, 1.0], "size": list(SIZE)}},
    }
    (folder / "configs" / "metadata.json").write_text(json.dumps(told), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def moving_one(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that deforms."""
    return write_bundle(tmp_path_factory.mktemp("strong") / "strong", 0.05)


@pytest.fixture(scope="module")
def still_one(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that leaves everything where it is."""
    return write_bundle(tmp_path_factory.mktemp("still") / "still", 0.0)


def picture(seed: int, size: tuple[int, int, int] = (25, 27, 40)) -> sitk.Image:
    """Smooth noise on an axis-aligned grid with axes to the right, front and top, somewhere in space."""
    noise = np.random.default_rng(seed).normal(size=size[::-1]).astype(np.float32)
    image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(noise), 2.0)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    image.SetOrigin((10.0 + seed, -20.0, 33.5))
    return image


def mapped(found: learned.Learned, grid: Grid, points: np.ndarray) -> np.ndarray:
    transform = to_sitk(found.linear, found.displacement, grid)
    return np.array([transform.TransformPoint([float(x) for x in p]) for p in points])


def inner_points(image: sitk.Image) -> np.ndarray:
    """Points well inside, LPS mm."""
    size = np.asarray(image.GetSize())
    indices = np.random.default_rng(0).uniform(0.25, 0.75, (40, 3)) * size
    return np.array([image.TransformContinuousIndexToPhysicalPoint([float(i) for i in one]) for one in indices])


class TestStorage:
    @pytest.fixture(autouse=True)
    def _single_precision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The order of a sum changes its last digit, and half precision makes tenths of a voxel of that."""
        monkeypatch.setattr(learned, "amp_dtype", lambda device: None)

    @pytest.mark.parametrize(
        ("order", "flips"), [((0, 1, 2), (True, False, True)), ((2, 0, 1), (False, False, False)),
                             ((1, 2, 0), (True, True, False))]
    )  # fmt: skip
    def test_the_order_of_the_voxels_does_not_matter(
        self, order: tuple[int, ...], flips: tuple[bool, ...], moving_one: str
    ) -> None:
        fixed, moving = picture(1), picture(2, (29, 26, 38))
        points = inner_points(fixed)
        wanted = mapped(learned.predict(fixed, moving, moving_one), Grid.of(fixed), points)
        stored = [sitk.Flip(sitk.PermuteAxes(image, order), flips) for image in (fixed, moving)]
        found = mapped(learned.predict(*stored, moving_one), Grid.of(stored[0]), points)
        assert np.abs(found - wanted).max() < 1e-3
        shift = centre(Grid.of(moving)) - centre(Grid.of(fixed))
        assert np.abs(wanted - points - shift).max() > 0.5, "a test of nothing otherwise"

    def test_where_the_images_lie_does_not_matter(self, moving_one: str) -> None:
        fixed, moving = picture(1), picture(2)
        points = inner_points(fixed)
        wanted = mapped(learned.predict(fixed, moving, moving_one), Grid.of(fixed), points)
        away = np.array([37.25, -11.0, 5.5])
        moving.SetOrigin(tuple(np.asarray(moving.GetOrigin()) + away))
        found = mapped(learned.predict(fixed, moving, moving_one), Grid.of(fixed), points)
        assert np.abs(found - wanted - away).max() < 1e-3


class TestIdentity:
    @pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), OBLIQUE])
    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.3, 2.1)])
    def test_a_still_network_lays_centre_on_centre(
        self, direction: tuple[float, ...], spacing: tuple[float, ...], still_one: str
    ) -> None:
        """To half a moving voxel, by which the moving image is shifted so that it need not be interpolated."""
        fixed, moving = picture(1), picture(2, (24, 31, 37))
        fixed.SetDirection(direction)
        moving.SetSpacing(spacing)
        points = inner_points(fixed)
        found = learned.predict(fixed, moving, still_one)
        middle = centre(Grid.of(moving)) - centre(Grid.of(fixed))
        left = mapped(found, Grid.of(fixed), points) - points - middle
        assert np.abs(left - left[0]).max() < 1e-3
        assert np.abs(left[0] / spacing).max() <= 0.501

    def test_the_start_can_be_given(self, still_one: str) -> None:
        fixed, moving = picture(1), picture(2)
        start = np.eye(4)
        start[:3, :3] = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.1, 0.0, 0.2).GetMatrix(), (3, 3))
        start[:3, 3] = centre(Grid.of(moving)) - start[:3, :3] @ centre(Grid.of(fixed)) + [1.3, -0.4, 2.2]
        points = inner_points(fixed)
        found = mapped(learned.predict(fixed, moving, still_one, linear=start), Grid.of(fixed), points)
        left = found - (points @ start[:3, :3].T + start[:3, 3])
        assert np.abs(left - left[0]).max() < 1e-3
        assert np.abs(left[0]).max() < 1.0

    def test_a_shift_of_half_a_voxel_is_not_lost(self, still_one: str) -> None:
        """The still network shows what it saw: one image's voxels on the other's, so that equal ones meet exactly."""
        fixed = picture(1)
        moving = sitk.Image(fixed)
        moving.SetOrigin([float(x) for x in np.add(fixed.GetOrigin(), (3.0, -2.0, 1.0))])
        start = np.eye(4)
        start[:3, 3] = [3.4, -2.3, 1.2]  # wrong by less than half a voxel
        points = inner_points(fixed)
        found = mapped(learned.predict(fixed, moving, still_one, linear=start), Grid.of(fixed), points)
        assert np.abs(found - points - [3.0, -2.0, 1.0]).max() < 1e-3


class TestPlacement:
    def test_an_image_on_the_networks_grid_is_not_interpolated(self) -> None:
        image = picture(1, (25, 27, 40))
        own = Grid.of(image)
        grid = network_grid([own], (1, 1, 1), SIZE, 16)
        assert grid.size == SIZE
        seen = placed(to_zyx(image), index_matrix(grid, own), grid.shape)[0, 0].numpy()
        values = sitk.GetArrayFromImage(image)
        start = [(n - m) // 2 for n, m in zip(seen.shape, values.shape, strict=True)]
        found = [
            np.abs(seen[z : z + 40, y : y + 27, x : x + 25] - values).max()
            for z in (start[0], start[0] + 1)
            for y in (start[1], start[1] + 1)
            for x in (start[2], start[2] + 1)
        ]
        assert min(found) < 1e-5
        assert np.count_nonzero(seen) <= values.size

    def test_nor_is_the_moving_one(self) -> None:
        fixed, moving = Grid.of(picture(1, (25, 27, 40))), Grid.of(picture(2, (26, 30, 37)))
        grid = network_grid([fixed, moving], (1, 1, 1), SIZE, 16)
        through, shift = snapped(centred(fixed, moving), grid, moving)
        offset = index_matrix(grid, moving, through)[0].numpy()[:3, 3]
        assert np.abs(offset - np.round(offset)).max() < 1e-9
        assert np.abs(shift).max() <= 0.5 + 1e-9

    def test_the_grid_grows_with_the_images(self) -> None:
        large = Grid.of(picture(1, (40, 20, 70)))
        assert network_grid([large], (1, 1, 1), SIZE, 16).size == (48, 32, 80)
        assert network_grid([large], (1, 1, 1), SIZE, 16, grows=False).size == SIZE
        corners = large.corners()
        grid = network_grid([large], (1, 1, 1), SIZE, 16)
        inside = np.linalg.solve(grid.matrix(), np.vstack([corners.T, np.ones(8)]))[:3]
        assert (inside >= -0.5).all()
        assert (np.asarray(grid.size) - 0.5 >= inside.T).all()


class TestRefusals:
    def test_a_picture_of_two_dimensions(self, still_one: str) -> None:
        flat = picture(1)[:, :, 5]
        with pytest.raises(BadInput, match="is 2-D, but the model still is 3-D"):
            learned.predict(flat, picture(2), still_one)

    def test_colours(self, still_one: str) -> None:
        with pytest.raises(BadInput, match="2 values a voxel"):
            learned.predict(sitk.Compose(picture(1), picture(1)), picture(2), still_one)

    def test_voxels_that_are_no_numbers(self, still_one: str) -> None:
        bad = picture(1)
        bad[3, 3, 3] = float("nan")
        with pytest.raises(BadInput, match="NaN"):
            learned.predict(picture(2), bad, still_one)

    def test_an_image_far_larger_than_the_trained_ones_is_warned_of(self, still_one: str) -> None:
        large = picture(1, (25, 27, 90))
        (warning,) = learned.predict(large, picture(2), still_one).warnings
        assert "25 x 27 x 90 mm" in warning
        assert learned.predict(picture(1), picture(2), still_one).warnings == ()

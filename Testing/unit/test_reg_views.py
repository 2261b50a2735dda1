"""Views of a registration: orientation on every kind of grid, the arrays' definitions, and that pictures are drawn."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from grids import random_image
from scipy.spatial.transform import Rotation

from MLILib.geometry import Grid, from_array
from MLILib.registration import pictures, quality, views
from MLILib.registration.comparison import compare
from MLILib.registration.planes import centre_of, letter, planes

#: What grows along the columns, and down the rows, of each plane: axis of LPS and sign.
DIRECTIONS = {
    "Axial": (("R", "L", "A", "P"), (0, 1), (1, 1)),
    "Coronal": (("R", "L", "S", "I"), (0, 1), (2, -1)),
    "Sagittal": (("A", "P", "S", "I"), (1, 1), (2, -1)),
}


def grids() -> list[Grid]:
    """Every way in which the axes of a grid can lie along the body's."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.eye(3)[:, list(order)] * signs
            found.append(Grid((5, 6, 7), (1.0, 2.0, 3.0), (10.0, -20.0, 30.0), tuple(matrix.ravel())))
    return found


def positions(grid: Grid) -> np.ndarray:
    """LPS of every voxel, (z, y, x, 3)."""
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")[::-1], axis=-1)
    matrix = grid.matrix()
    return indices @ matrix[:3, :3].T + matrix[:3, 3]


class TestPlanes:
    @pytest.mark.parametrize("grid", grids())
    def test_orientation(self, grid: Grid) -> None:
        where = positions(grid)
        for plane in planes(grid, (3, 2, 1)):
            letters, (column, right), (row, down) = DIRECTIONS[plane.name]
            assert plane.letters == letters
            cut = plane.cut(where)
            assert (np.diff(cut[..., column], axis=1) * right > 0).all()
            assert (np.diff(cut[..., row], axis=0) * down > 0).all()
            other = 3 - column - row
            assert np.ptp(cut[..., other]) == 0
            assert cut[0, 0, other] == pytest.approx(where[3, 2, 1, other])
            rows, columns = cut.shape[:2]
            width, height = plane.pixel(where)
            assert abs(cut[0, 1, column] - cut[0, 0, column]) == pytest.approx(width)
            assert abs(cut[1, 0, row] - cut[0, 0, row]) == pytest.approx(height)
            assert plane.size == (pytest.approx(columns * width), pytest.approx(rows * height))

    def test_place(self) -> None:
        grid = Grid((9, 9, 9), (1.0,) * 3, (10.0, -20.0, 30.0), tuple(np.eye(3).ravel()))
        assert [plane.place for plane in planes(grid, (4, 3, 2))] == ["S 34 mm", "A 17 mm", "L 12 mm"]

    def test_oblique_grid_is_shown_along_its_axes(self) -> None:
        turn = Rotation.from_euler("x", 30, degrees=True).as_matrix()
        axial, coronal, sagittal = planes(Grid((5, 5, 5), (1.0,) * 3, (0.0,) * 3, tuple(turn.ravel())), (2, 2, 2))
        assert axial.name == "Axial (oblique)"
        assert axial.place == ""
        assert axial.letters == ("R", "L", "AI", "PS")
        assert coronal.letters == ("R", "L", "SA", "IP")
        assert sagittal.letters == ("AI", "PS", "SA", "IP")

    def test_letters(self) -> None:
        assert letter(np.array([0.0, 0.0, -1.0])) == "I"
        assert letter(np.array([0.9, -0.43, 0.0])) == "LA"
        assert letter(np.array([-0.99, 0.1, 0.1])) == "R"

    @pytest.mark.parametrize("seed", range(4))
    def test_flat_image(self, seed: int) -> None:
        """Columns run along x and rows along y, as far as the image's axes allow."""
        image = random_image(np.random.default_rng(seed), 2)
        grid = Grid.of(image)
        indices = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")[::-1], axis=-1)
        (plane,) = planes(grid, (0, 0))
        cut = plane.cut(indices @ grid.matrix()[:2, :2].T)
        assert cut[0, 1, 0] > cut[0, 0, 0]
        assert cut[1, 0, 1] > cut[0, 0, 1]
        assert plane.letters == ("", "", "", "")

    def test_centre_of(self) -> None:
        weights = np.zeros((5, 6, 7))
        weights[1, 2, 2] = weights[1, 2, 6] = 1
        assert centre_of(weights) == (1, 2, 4)
        assert centre_of(np.zeros((4, 6))) == (2, 3)


class TestArrays:
    def test_overlay_is_grey_where_images_agree(self) -> None:
        found = views.overlay(np.array([0.5, 1.0, 0.0, 1.0]), np.array([0.5, 0.0, 1.0, np.nan]))
        np.testing.assert_allclose(found, [[0.5] * 3, [1, 0, 0], [0, 1, 1], [0.3] * 3])

    def test_checkerboard(self) -> None:
        found = views.checkerboard(np.zeros((4, 6)), np.ones((4, 6)), (2, 3))
        np.testing.assert_array_equal(found[0], [0, 0, 1, 1, 0, 0])
        np.testing.assert_array_equal(found[2], [1, 1, 0, 0, 1, 1])

    def test_checkerboard_outside(self) -> None:
        np.testing.assert_allclose(views.checkerboard(np.ones((1, 2)), np.full((1, 2), np.nan), (1, 2)), 0.3)

    def test_difference(self) -> None:
        found = views.difference(np.array([0.2, 0.2]), np.array([0.7, np.nan]))
        np.testing.assert_allclose(found, [0.5, 0.0])

    def test_histogram(self) -> None:
        fixed, mask = np.array([0.0, 0.0, 1.0, 1.0]), np.array([True, True, True, False])
        np.testing.assert_array_equal(views.histogram(fixed, fixed, mask, 2), [[2, 0], [0, 1]])
        np.testing.assert_array_equal(views.histogram(fixed, 1 - fixed, mask, 2), [[0, 1], [2, 0]])

    def test_window_leaves_the_background_out(self) -> None:
        values = np.concatenate([np.zeros(1000), np.linspace(100, 200, 1001)])
        low, high = views.window(values)
        assert low == pytest.approx(100.5)
        assert high == pytest.approx(199.7)
        np.testing.assert_allclose(views.scaled(np.array([0.0, low, high, 500.0]), (low, high)), [0, 0, 1, 1])

    @pytest.mark.parametrize("grid", grids()[::5])
    def test_displacements_of_a_translation(self, grid: Grid) -> None:
        """3 mm to the left, 2 to the front, 5 up: to the right, up and up on a picture."""
        transform = sitk.TranslationTransform(3, (3.0, -2.0, 5.0))
        wanted = {"Axial": (3, -2), "Coronal": (3, -5), "Sagittal": (-2, -5)}
        for plane in planes(grid, (3, 2, 1)):
            found = views.displacements(plane, grid, transform)
            assert found.shape[:2] == plane.cut(np.zeros(grid.shape)).shape
            np.testing.assert_allclose(found, np.broadcast_to(wanted[plane.name], found.shape), atol=1e-12)

    def test_displacements_belong_to_the_plane(self) -> None:
        grid = Grid((5, 6, 7), (1.0, 2.0, 3.0), (0.0,) * 3, tuple(np.eye(3).ravel()))
        scale = sitk.AffineTransform(3)
        scale.SetMatrix((1.0, 0, 0, 0, 1.0, 0.5, 0, 0, 1.0))  # y grows by half of z
        axial = planes(grid, (4, 0, 0))[0]
        np.testing.assert_allclose(views.displacements(axial, grid, scale)[..., 1], 6.0)

    def test_bent_grid_of_a_scale(self) -> None:
        grid = Grid((8, 6), (1.0, 2.0), (0.5, 1.0), (1.0, 0.0, 0.0, 1.0))  # the image begins at (0, 0)
        scale = sitk.ScaleTransform(2, (1.5, 0.5))
        (plane,) = planes(grid, (0, 0))
        x, y, from_x, from_y = views.bent_grid(plane, views.displacements(plane, grid, scale))
        np.testing.assert_allclose(from_x, np.broadcast_to(1.5 * x, from_x.shape), atol=1e-9)
        np.testing.assert_allclose(from_y, np.broadcast_to(0.5 * y[:, None], from_y.shape), atol=1e-9)
        assert x[0] == pytest.approx(-0.5)
        assert y[-1] == pytest.approx(13.0)


class TestPictures:
    def drawn(self, tmp_path: Path, image: sitk.Image, *, curve: list[dict[str, Any]], deformed: bool) -> list[str]:
        d = image.GetDimension()
        transform = sitk.TranslationTransform(d, [1.0] * d)
        registration = _Registration(transform, d)
        compared = compare(image, image, transform)
        determinant = np.full(Grid.of(image).shape, 1.1, np.float32)
        determinant.flat[0] = -1
        found = quality.assess(image, image, registration, comparison=compared)
        shown = views.scene(compared, transform, determinant=determinant if deformed else None, curve=curve)
        return pictures.write(shown, found, "moving on fixed", lambda name: str(tmp_path / name))

    def test_volume(self, tmp_path: Path) -> None:
        curve = [{"stage": "rigid", "level": k // 3, "iteration": k % 3, "value": 1 / (k + 1)} for k in range(6)]
        image = random_image(np.random.default_rng(1))
        names = self.drawn(tmp_path, image, curve=curve, deformed=True)
        assert set(names) == {
            "report.png", "overlay.png", "checkerboard.png", "difference.png", "histogram.png", "grid.png",
            "jacobian.png", "curve.png", "flicker.gif",
        }  # fmt: skip
        for name in names:
            picture = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))) if name.endswith("png") else None
            assert picture is None or np.ptp(picture[..., :3]) > 100

    def test_flat_linear_without_curve(self, tmp_path: Path) -> None:
        from PIL import Image

        names = self.drawn(tmp_path, random_image(np.random.default_rng(0), 2), curve=[], deformed=False)
        assert "jacobian.png" not in names
        assert "curve.png" not in names
        with Image.open(tmp_path / "flicker.gif") as picture:
            assert picture.n_frames == 2
            assert picture.info["loop"] == 0

    def test_nothing_in_common(self, tmp_path: Path) -> None:
        image = from_array(np.random.default_rng(0).random((6, 7, 8), np.float32), Grid(
            (8, 7, 6), (1.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel())))  # fmt: skip
        far = sitk.TranslationTransform(3, (500.0, 0.0, 0.0))
        compared = compare(image, image, far)
        found = quality.assess(image, image, _Registration(far, 3), comparison=compared)
        pictures.page(views.scene(compared, far), found, "far").savefig(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000


class _Registration:
    """A translation."""

    displacement = None

    def __init__(self, transform: sitk.Transform, d: int) -> None:
        self.transform = transform
        self.inverse = transform.GetInverse()
        self.linear = np.eye(d + 1)
        self.linear[:d, d] = transform.TransformPoint([0.0] * d)

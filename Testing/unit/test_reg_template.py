"""Group-wise templates of ellipses whose mean is known: where they lie, how large they are, and what is written."""

from __future__ import annotations

import dataclasses
import json
import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
import torch

from MLILib import tasks
from MLILib.errors import BadInput, Cancelled, MLIError
from MLILib.geometry import Grid, from_array, same_grid
from MLILib.progress import Progress
from MLILib.registration import conversion, deformable, groupwise, label_vote, midpoint, template
from MLILib.registration.fields import carry, compose, smooth
from MLILib.registration.groupwise import Template, average
from MLILib.registration.requests import TemplateRequest
from MLILib.registration.sharpness import sharpness
from MLILib.segmentation import label_files

GRID = Grid((40, 36), (1.5, 1.5), (-29.25, -26.25), (1.0, 0.0, 0.0, 1.0))  # its middle is 0, 0
RADII = np.array([15.0, 10.0])
CENTRES = ([5.0, 0.0], [-4.0, 3.0], [2.0, -6.0])
SCALES = (0.8, 1.0, 1.25)  # their geometric mean is 1


def radius(centre: Sequence[float], radii: npt.NDArray, grid: Grid = GRID) -> npt.NDArray:
    """Distance of each pixel from an ellipse's centre, 1 on its border."""
    y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    matrix = grid.matrix()
    points = np.stack([x, y], axis=-1) @ matrix[:2, :2].T + matrix[:2, 2]
    return np.sqrt((((points - np.asarray(centre)) / radii) ** 2).sum(axis=-1))


def ellipse(centre: Sequence[float], radii: npt.NDArray = RADII, grid: Grid = GRID) -> sitk.Image:
    """A soft bright ellipse with a darker, smaller one in it; its intensities are those of any scaled copy of it."""
    r = radius(centre, radii, grid)
    array = 100 / (1 + np.exp((r - 1) * 9)) - 50 / (1 + np.exp((r - 0.45) * 9))
    return from_array(array.astype(np.float32), grid)


def area_radius(image: sitk.Image) -> float:
    """Radius of a disc with the area that is brighter than half of the border's contrast, the hole filled."""
    bright = sitk.BinaryFillhole(sitk.BinaryThreshold(image, 50.0, 1e9, 1, 0))
    return math.sqrt(float(sitk.GetArrayFromImage(bright).sum()) * math.prod(image.GetSpacing()) / math.pi)


def array(image: sitk.Image) -> npt.NDArray:
    return sitk.GetArrayFromImage(image)


@pytest.fixture(scope="module")
def translated() -> Template:
    return average([ellipse(c) for c in CENTRES], iterations=0, device="cpu")


@pytest.fixture(scope="module")
def scaled() -> Template:
    return average([ellipse([0, 0], RADII * s) for s in SCALES], iterations=0, device="cpu")


@pytest.fixture(scope="module")
def bent() -> Template:
    shapes = ((1.25, 0.9), (0.85, 1.1), (1.0, 1.0))
    images = [ellipse(c, RADII * s) for c, s in zip(CENTRES, shapes, strict=True)]
    return average(images, iterations=2, device="cpu")


class TestTranslatedCopies:
    def test_the_template_is_the_copy_at_the_mean_place(self, translated: Template) -> None:
        there = ellipse(np.mean(CENTRES, axis=0), RADII, translated.grid)
        inner = (slice(4, -4), slice(4, -4))
        assert np.abs(array(translated.image) - array(there))[inner].max() < 10  # of 100, at the steepest pixel
        assert np.abs(array(translated.image) - array(there))[inner].mean() < 1

    def test_transforms_lead_to_each_copy(self, translated: Template) -> None:
        middle = np.mean(CENTRES, axis=0)
        for transform, centre in zip(translated.transforms, CENTRES, strict=True):
            assert transform.TransformPoint(middle.tolist()) == pytest.approx(centre, abs=0.3)

    def test_sharpness_grows(self, translated: Template) -> None:
        assert translated.rounds[-1]["sharpness"] > 1.2 * translated.rounds[0]["sharpness"]
        assert translated.rounds[-1]["laplacian_variance"] > 1.2 * translated.rounds[0]["laplacian_variance"]

    def test_the_order_of_the_images_does_not_matter(self, translated: Template) -> None:
        again = average([ellipse(CENTRES[i]) for i in (2, 0, 1)], iterations=0, device="cpu")
        assert same_grid(again.grid, translated.grid)
        assert np.abs(array(again.image) - array(translated.image)).max() < 2

    def test_copies_at_other_origins_meet_in_the_middle(self) -> None:
        origins = [np.add(GRID.origin, step) for step in ([30.0, 0.0], [-30.0, 12.0])]
        grids = [Grid(GRID.size, GRID.spacing, tuple(o.tolist()), GRID.direction) for o in origins]
        images = [ellipse(step, RADII, grid) for step, grid in zip(([30.0, 0.0], [-30.0, 12.0]), grids, strict=True)]
        found = average(images, iterations=0, device="cpu")
        assert conversion.middle(found.grid) == pytest.approx([0.0, 6.0])
        there = ellipse([0.0, 6.0], RADII, found.grid)
        assert np.abs(array(found.image) - array(there)).max() < 3


class TestVolumes:
    def test_copies_of_a_volume_with_long_voxels_meet_in_the_middle(self) -> None:
        tilt = np.radians(20)
        direction = (np.cos(tilt), -np.sin(tilt), 0.0, np.sin(tilt), np.cos(tilt), 0.0, 0.0, 0.0, 1.0)
        grid = Grid((16, 15, 9), (2.0, 2.0, 4.0), (-10.0, 4.0, 7.0), direction)
        z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
        points = np.stack([x, y, z], axis=-1) @ grid.matrix()[:3, :3].T + grid.matrix()[:3, 3]
        middle = conversion.middle(grid)
        shift = np.array([2.0, -2.0, 3.0])
        images = []
        for centre in (middle + shift, middle - shift):
            r = np.sqrt((((points - centre) / (9.0, 7.0, 8.0)) ** 2).sum(axis=-1))
            images.append(from_array((100 / (1 + np.exp(6 * (r - 1)))).astype(np.float32), grid))
        found = average(images, iterations=1, device="cpu")
        assert same_grid(found.grid, grid)
        weights = array(found.image)[..., None]
        assert (points * weights).sum((0, 1, 2)) / weights.sum() == pytest.approx(middle, abs=0.4)
        seen = [array(sitk.Resample(one, found.image, t)) for one, t in zip(images, found.transforms, strict=True)]
        inner = (slice(2, -2),) * 3
        assert np.abs(np.mean(seen, axis=0) - array(found.image))[inner].max() < 1.5
        assert np.corrcoef(seen[0][inner].ravel(), seen[1][inner].ravel())[0, 1] > 0.98


class TestScaledCopies:
    def test_the_template_has_the_geometric_mean_size(self, scaled: Template) -> None:
        assert area_radius(scaled.image) == pytest.approx(area_radius(ellipse([0, 0])), rel=0.03)

    def test_the_logarithms_of_the_maps_average_to_zero(self, scaled: Template) -> None:
        volumes = [np.linalg.det(one[:2, :2]) for one in scaled.linear]
        assert sum(math.log(v) for v in volumes) == pytest.approx(0, abs=1e-6)
        assert volumes[0] < volumes[1] < volumes[2]


class TestDeformation:
    def test_the_mean_displacement_is_zero(self, bent: Template) -> None:
        assert bent.displacements is not None
        assert midpoint.length(midpoint.mean_of(bent.displacements), bent.field_grid) < 0.02  # mm
        assert max(midpoint.length(u, bent.field_grid) for u in bent.displacements) > 0.1

    def test_the_images_through_their_transforms_average_to_the_template(self, bent: Template) -> None:
        shapes = ((1.25, 0.9), (0.85, 1.1), (1.0, 1.0))
        seen = [
            array(sitk.Resample(ellipse(c, RADII * s), bent.image, transform))
            for c, s, transform in zip(CENTRES, shapes, bent.transforms, strict=True)
        ]
        inner = (slice(8, -8), slice(8, -8))  # where ITK has voxels of all images
        assert np.abs(np.mean(seen, axis=0) - array(bent.image))[inner].max() < 1.5

    def test_each_image_looks_like_the_template(self, bent: Template) -> None:
        assert min(row["correlation"] for row in bent.images) > 0.98
        assert max(row["folded"] for row in bent.images) == 0
        assert bent.warnings == []

    def test_rounds_are_told(self, bent: Template) -> None:
        assert [row["stage"] for row in bent.rounds] == [
            "start", "rigid 1", "rigid 2", "affine 1", "affine 2", "deformable 1", "deformable 2"
        ]  # fmt: skip
        assert bent.rounds[-1]["sharpness"] > 1.2 * bent.rounds[0]["sharpness"]


class TestCost:
    SIZES = ((40, 36), (44, 36), (40, 38))

    @pytest.fixture(autouse=True)
    def _no_linear_rounds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(groupwise, "LINEAR_ROUNDS", {})

    def images(self) -> list[sitk.Image]:
        """One texture, which leaves no place where any displacement would do, shifted by a pixel or two."""
        noise = torch.randn(1, 1, 50, 50, generator=torch.Generator().manual_seed(0))
        whole = 100 * smooth(noise, 2.0)[0, 0].numpy()
        grids = [Grid(size, GRID.spacing, GRID.origin, GRID.direction) for size in self.SIZES]
        return [
            from_array(whole[2 * i : 2 * i + grid.size[1], i : i + grid.size[0]].copy(), grid)
            for i, grid in enumerate(grids)
        ]

    def test_small_images_are_optimised_side_by_side_as_they_would_be_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[int, tuple[int, ...]]] = []
        plain = deformable.optimise

        def noted(levels: Sequence[deformable.Level], *given: Any) -> deformable.Outcome:
            asked.append((levels[-1].batch, levels[-1].shape))
            return plain(levels, *given)

        monkeypatch.setattr(deformable, "optimise", noted)
        monkeypatch.setattr(deformable, "TOLERANCE", -1.0)  # all to the last iteration: a batch ends together
        found = []
        for most in (groupwise.AT_ONCE, 1):
            monkeypatch.setattr(groupwise, "AT_ONCE", most)
            found.append(average(self.images(), iterations=1, similarity="ssd", device="cpu"))
        shape = found[0].grid.shape
        assert asked == [(3, shape)] + [(1, shape)] * 3
        for one, other in zip(*(each.displacements or () for each in found), strict=True):
            assert float(other.abs().max()) > 1
            assert float((one - other).abs().mean()) < 0.02

    def test_the_finest_level_waits_for_an_average_that_shows_something(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[int, ...]] = []

        def noted(levels: Sequence[deformable.Level], *given: Any) -> deformable.Outcome:
            asked.append(levels[-1].shape)
            return deformable.Outcome(torch.zeros(levels[-1].batch, 2, *levels[-1].shape), False)

        monkeypatch.setattr(deformable, "optimise", noted)
        found = average(self.images(), iterations=3, device="cpu")
        half = tuple(n // 2 for n in found.grid.shape)
        assert asked == [half, found.grid.shape, found.grid.shape]
        assert found.field_grid == found.grid

    def test_there_are_never_two_sets_of_displacements(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fields = [torch.full((1, 2, *GRID.shape), float(n)) for n in range(5)]
        first = [weakref.ref(u) for u in fields]
        left: list[int] = []

        def counted(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
            left.append(sum(u() is not None for u in first))
            return compose(one, two)

        monkeypatch.setattr(midpoint, "compose", counted)
        midpoint.remove_displacement(fields, GRID)
        assert left == [5, 4, 3, 2, 1]

    def test_votes_are_counted_slab_by_slab(
        self, monkeypatch: pytest.MonkeyPatch, translated: Template, group: dict[str, tuple[str, ...]]
    ) -> None:
        labels = [label_files.read(path) for path in group["labels"]]
        field = torch.zeros(1, 2, *translated.grid.shape)
        moved = dataclasses.replace(translated, displacements=[field + n for n in (0.0, 0.5, 1.0)])
        sizes: list[tuple[int, ...]] = []

        def noted(u: torch.Tensor, matrix: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
            sizes.append(tuple(shape))
            return carry(u, matrix, shape)

        monkeypatch.setattr(label_vote, "carry", noted)
        whole = label_vote.vote(labels, [GRID] * 3, moved)[0]
        monkeypatch.setattr(label_vote, "MOST_VOTES", 700)
        parts = label_vote.vote(labels, [GRID] * 3, moved)[0]
        assert np.array_equal(array(whole), array(parts))
        assert set(np.unique(array(whole))) == {0, 1, 3}
        assert sizes[0] == translated.grid.shape
        assert max(rows for rows, _ in sizes[3:]) * translated.grid.size[0] * 2 <= 700


class TestMiddle:
    def test_scales_are_divided_by_their_geometric_mean(self) -> None:
        maps, removed, left = midpoint.remove_linear([np.diag([8.0, 8.0, 1.0]), np.diag([2.0, 2.0, 1.0])], GRID)
        assert np.diag(maps[0]) == pytest.approx([2, 2, 1])
        assert np.diag(maps[1]) == pytest.approx([0.5, 0.5, 1])
        assert removed == pytest.approx(3 * np.hypot(29.25, 26.25))  # the corners, four times as far from 0, 0
        assert left < 1e-6

    def test_maps_that_do_not_commute_have_a_middle(self) -> None:
        from scipy.linalg import logm

        rng = np.random.default_rng(1)
        maps = [np.eye(4) for _ in range(4)]
        for one in maps:
            one[:3] += rng.normal(0, 0.2, (3, 4))
        grid = Grid((9, 9, 9), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
        found, _, _ = midpoint.remove_linear(maps, grid)
        assert np.mean([logm(one) for one in found], axis=0) == pytest.approx(np.zeros((4, 4)), abs=1e-7)
        # one map, the same for all, was taken out
        shared = [np.linalg.solve(one, first) for one, first in zip(found, maps, strict=True)]
        assert np.ptp(shared, axis=0) == pytest.approx(np.zeros((4, 4)), abs=1e-9)

    def test_a_mirrored_image_is_said(self) -> None:
        with pytest.raises(MLIError, match="no middle"):
            midpoint.remove_linear([np.eye(3), np.diag([-1.0, 1.0, 1.0])], GRID)

    def test_displacements_lose_their_mean_and_nothing_else(self) -> None:
        noise = torch.randn(2, 1, 2, *GRID.shape, generator=torch.Generator().manual_seed(0))
        fields = [smooth(one * 12, 4.0) + 0.7 for one in noise]
        mean = midpoint.mean_of(fields)
        found = list(fields)
        removed, left = midpoint.remove_displacement(found, GRID)
        assert removed == pytest.approx(1.5 * float(mean.square().sum(1).mean().sqrt()), rel=1e-5)
        assert left < 0.01 * removed
        for before, after in zip(fields, found, strict=True):
            inner = (compose(mean, after) - before)[..., 5:-5, 5:-5]
            assert float(inner.abs().max()) < 0.05  # voxels: (id + D') (id + mean) is id + D

    def test_the_grid_has_median_spacing_and_extent_about_the_mean_centre(self) -> None:
        one = Grid((10, 20, 30), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
        two = Grid((12, 22, 30), (1.0, 1.0, 2.0), (3.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
        three = Grid((14, 24, 15), (1.0, 1.0, 4.0), (6.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
        found = midpoint.common_grid([one, two, three])
        assert found.size == (12, 22, 30)
        assert found.spacing == (1.0, 1.0, 2.0)
        centres = [conversion.middle(grid) for grid in (one, two, three)]
        assert conversion.middle(found) == pytest.approx(np.mean(centres, axis=0))
        assert midpoint.common_grid([one, two, three], 2.0).size == (6, 11, 30)

    def test_the_grid_does_not_depend_on_how_images_are_stored(self) -> None:
        image = from_array(
            np.zeros((6, 5, 4), np.uint8), Grid((4, 5, 6), (1, 2, 3), (7, 8, 9), tuple(np.eye(3).ravel()))
        )
        stored = [Grid.of(sitk.DICOMOrient(image, code)) for code in ("LPS", "PIR", "RAS")]
        found = midpoint.common_grid(stored)
        assert same_grid(found, Grid.of(sitk.DICOMOrient(image, "RAS")))
        assert same_grid(midpoint.common_grid([stored[1]] * 2), stored[1])

    def test_a_grid_beyond_memory_is_refused(self) -> None:
        with pytest.raises(BadInput, match="larger spacing"):
            midpoint.common_grid([GRID, GRID], 0.001)


class TestSharpness:
    def test_of_a_ramp_is_its_slope(self) -> None:
        z, y, x = np.meshgrid(*[np.arange(n) for n in (5, 6, 7)], indexing="ij")
        grid = Grid((7, 6, 5), (0.5, 1.0, 3.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
        ramp = torch.from_numpy(0.2 * 0.5 * x + 0.3 * 1.0 * y - 0.6 * 3.0 * z)[None, None]
        gradient, laplacian = sharpness(ramp, grid, torch.ones_like(ramp, dtype=torch.bool))
        assert gradient == pytest.approx(0.7)
        assert laplacian == pytest.approx(0, abs=1e-20)

    def test_of_a_cubic_has_the_variance_of_its_second_derivative(self) -> None:
        x = torch.arange(12, dtype=torch.float64) * 0.5
        cubic = (x**3 / 6).expand(1, 1, 9, 12)
        grid = Grid((12, 9), (0.5, 2.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
        _, laplacian = sharpness(cubic, grid, torch.ones_like(cubic, dtype=torch.bool))
        assert laplacian == pytest.approx(0.25 * (10**2 - 1) / 12)  # of ten equidistant values, 0.5 apart


def save(image: sitk.Image, path: Path) -> str:
    sitk.WriteImage(image, str(path))
    return str(path)


@pytest.fixture
def group(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """Three translated ellipses and their labels: 1 is the ellipse, 3 its core."""
    images, labels = [], []
    for number, centre in enumerate(CENTRES):
        r = radius(centre, RADII)
        drawn = np.where(r < 0.45, 3, r < 1).astype(np.uint8)
        images.append(save(ellipse(centre), tmp_path / f"case{number}.nii.gz"))
        labels.append(save(from_array(drawn, GRID), tmp_path / f"labels{number}.nii.gz"))
    return {"images": tuple(images), "labels": tuple(labels)}


class TestTask:
    def test_everything_is_written(self, tmp_path: Path, group: dict[str, tuple[str, ...]]) -> None:
        request = TemplateRequest(
            **group,
            output=str(tmp_path / "template.nii.gz"),
            template_labels=str(tmp_path / "drawn.nrrd"),
            transforms=str(tmp_path / "transforms"),
            report=str(tmp_path / "report.json"),
            iterations=0,
            device="cpu",
        )
        answer = tasks.run(request)
        written = sitk.ReadImage(request.output)
        voted = label_files.read(request.template_labels)
        assert [one.value for one in voted.labels] == [1, 3]
        for value, lowest, highest in ((1, 0.45, 1.0), (3, 0.0, 0.45)):
            r = radius(np.mean(CENTRES, axis=0), RADII, Grid.of(written))
            truth, ours = (r >= lowest) & (r < highest), voted.layers[0] == value
            assert 2 * (truth & ours).sum() / (truth.sum() + ours.sum()) > 0.9
        middle = np.mean(CENTRES, axis=0).tolist()
        for name, centre in zip(("case0.h5", "case1.h5", "case2.h5"), CENTRES, strict=True):
            there = conversion.read_transform(tmp_path / "transforms" / name, 2)
            assert there.TransformPoint(middle) == pytest.approx(centre, abs=0.3)
        report = json.loads(Path(request.report).read_text(encoding="utf-8"))
        assert report["rounds"] == answer["rounds"]
        assert len(report["images"]) == 3
        for picture in report["pictures"].values():
            assert min(sitk.ReadImage(picture).GetSize()[:2]) > 200
        record = json.loads((tmp_path / "template.json").read_text(encoding="utf-8"))
        assert record["command"] == request.command()

    @pytest.mark.parametrize("stage", ["Rigid, round 1 of 2", "Writing"])
    def test_cancelled_leaves_nothing(
        self, tmp_path: Path, group: dict[str, tuple[str, ...]], translated: Template, stage: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        if stage == "Writing":
            monkeypatch.setattr(template, "average", lambda images, **given: translated)
        request = TemplateRequest(
            images=group["images"], output=str(tmp_path / "template.nii.gz"), transforms=str(tmp_path / "transforms"),
            iterations=0, device="cpu",
        )  # fmt: skip
        before = sorted(tmp_path.iterdir())
        seen: list[str] = []
        progress = Progress(lambda e: seen.append(str(e.get("name", ""))), cancelled=lambda: stage in seen)
        with pytest.raises(Cancelled):
            tasks.run(request, progress)
        assert seen[-1] == stage
        assert sorted(tmp_path.iterdir()) == before

    def test_one_image_is_no_group(self, group: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="two or more"):
            tasks.run(TemplateRequest(images=group["images"][:1], output=str(tmp_path / "t.nii.gz")))

    def test_2d_and_3d_do_not_mix(self, group: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
        volume = save(from_array(np.arange(60, dtype=np.float32).reshape(3, 4, 5), sitk.Image(5, 4, 3, 1)),
                      tmp_path / "volume.nii.gz")  # fmt: skip
        with pytest.raises(BadInput, match=r"volume\.nii\.gz 3-D"):
            tasks.run(TemplateRequest(images=(group["images"][0], volume), output=str(tmp_path / "t.nii.gz")))

    def test_a_blank_image_is_named(self, group: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
        blank = save(from_array(np.full(GRID.shape, 7.0, np.float32), GRID), tmp_path / "blank.nii.gz")
        with pytest.raises(BadInput, match=r"blank\.nii\.gz is 7 everywhere"):
            tasks.run(TemplateRequest(images=(group["images"][0], blank), output=str(tmp_path / "t.nii.gz")))

    def test_a_full_folder_is_not_mixed_with(self, group: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="not an empty folder"):
            tasks.run(
                TemplateRequest(images=group["images"], output=str(tmp_path / "t.nii.gz"), transforms=str(tmp_path))
            )

    def test_transforms_of_images_with_one_name_are_numbered(self) -> None:
        assert template.transform_names(["a/t1.nii.gz", "b/t2.nrrd"]) == ["t1.h5", "t2.h5"]
        assert template.transform_names(["a/t1.nii.gz", "b/t1.nrrd"]) == ["1_t1.h5", "2_t1.h5"]

    def test_blank_labels_are_said(self, group: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
        blank = save(from_array(np.zeros(GRID.shape, np.uint8), GRID), tmp_path / "blank.nii.gz")
        request = TemplateRequest(
            images=group["images"][:2], labels=(blank, blank), template_labels=str(tmp_path / "l.nrrd"),
            output=str(tmp_path / "t.nii.gz"),
        )  # fmt: skip
        with pytest.raises(BadInput, match="labels are empty"):
            tasks.run(request)

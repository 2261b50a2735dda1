"""Registration in memory: starts, stages, masks, what comes back, what it says, and what it refuses."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from blobs import Body, grid, linear, miss, positions, through
from broken_criterion import break_after

from MLILib.errors import BadInput, Cancelled, MLIError
from MLILib.geometry import Grid, from_array
from MLILib.progress import Event, Progress
from MLILib.registration import conversion, jacobian, learned, linear_stage, pairwise, task
from MLILib.registration.criterion import Criterion
from MLILib.registration.pairwise import Registration, register
from MLILib.registration.presets import PRESETS
from MLILib.registration.requests import DEFORMATIONS, RegisterRequest
from MLILib.settings import Request

SHIFT = (30.0, -5.0, 8.0)
FIXED = grid((28, 28, 22), (1.2, 1.1, 1.5), turn=20)
MOVING = grid((30, 26, 24), (1.1, 1.2, 1.4), turn=-15, flip=True, centre=SHIFT)
FIXED_2D = grid((36, 30), (1.0, 1.2), turn=20)
MOVING_2D = grid((34, 32), (1.1, 1.0), turn=-35, flip=True, centre=SHIFT[:2])

#: A short deformable registration.
BENT: dict[str, Any] = {"stages": ("deformable",), "iterations": 8}


def bend(points: np.ndarray) -> np.ndarray:
    """A smooth deformation by up to 2 mm each way, and the shift to where the moving image lies."""
    d = points.shape[1]
    return points + 2.0 * np.sin(np.roll(points, 1, axis=1) / 7 + np.arange(d)) + SHIFT[:d]


def unbend(points: np.ndarray) -> np.ndarray:
    x = points - SHIFT[: points.shape[1]]
    for _ in range(60):
        x = x - (bend(x) - points)
    return x


def rigid_pair(dims: int, truth: np.ndarray, **given: Any) -> tuple[sitk.Image, sitk.Image]:
    body = Body(dims)
    fixed, moving = (FIXED, MOVING) if dims == 3 else (FIXED_2D, MOVING_2D)
    return body.image(fixed), body.image(moving, through(np.linalg.inv(truth)), **given)


def bent_pair(dims: int) -> tuple[sitk.Image, sitk.Image]:
    body = Body(dims)
    fixed, moving = (FIXED, MOVING) if dims == 3 else (FIXED_2D, MOVING_2D)
    return body.image(fixed), body.image(moving, unbend)


@pytest.fixture(scope="module")
def bent() -> tuple[sitk.Image, sitk.Image, Registration]:
    fixed, moving = bent_pair(3)
    return fixed, moving, register(fixed, moving)


class TestResult:
    def test_a_known_deformation(self, bent: tuple[sitk.Image, sitk.Image, Registration]) -> None:
        fixed, moving, result = bent
        off = miss(result.transform, bend, Body(3))
        assert off.mean() < 0.6  # half a voxel; it was 2 mm
        assert float(jacobian.determinant(result.displacement).min()) > 0
        warped = sitk.Resample(moving, fixed, result.transform, sitk.sitkLinear, 0.0)
        both = [sitk.GetArrayFromImage(image).ravel() for image in (fixed, warped)]
        assert np.corrcoef(*both)[0, 1] > 0.98

    def test_its_parts_agree(self, bent: tuple[sitk.Image, sitk.Image, Registration]) -> None:
        _, _, result = bent
        again = conversion.to_sitk(result.linear, result.displacement, result.grid)
        linear_only, u = conversion.from_sitk(result.transform, FIXED)
        np.testing.assert_allclose(linear_only, result.linear, atol=1e-9)
        torch.testing.assert_close(u, result.displacement, atol=1e-4, rtol=0)
        for point in positions(FIXED)[::997].tolist():
            assert again.TransformPoint(point) == pytest.approx(result.transform.TransformPoint(point), abs=1e-9)
        assert result.grid == FIXED
        assert result.device == "CPU" or "CPU" in result.device
        assert result.seconds > 0

    def test_the_inverse_undoes_it(self, bent: tuple[sitk.Image, sitk.Image, Registration]) -> None:
        _, _, result = bent
        there_and_back = sitk.CompositeTransform([result.inverse, result.transform])
        assert miss(there_and_back, lambda points: points, Body(3)).max() < 0.15

    def test_a_linear_one_has_no_displacement(self) -> None:
        truth = linear(2, 10, SHIFT[:2])
        result = register(*rigid_pair(2, truth), preset="rigid")
        assert result.displacement is None
        assert result.transform.GetName() == "Euler2DTransform"
        np.testing.assert_allclose(conversion.matrix_of(result.transform), result.linear, atol=1e-9)
        assert miss(result.inverse, through(np.linalg.inv(truth)), Body(2, centre=SHIFT[:2])).max() < 0.3

    def test_the_curve_is_told_and_kept(self) -> None:
        events: list[Event] = []
        stages = ("rigid", "affine", "deformable")
        result = register(*bent_pair(2), stages=stages, iterations=10, progress=Progress(events.append))
        names = ["Rigid", "Affine", "Deformable"]
        assert [event["name"] for event in events if event["event"] == "stage"] == names
        assert list(dict.fromkeys(row["stage"] for row in result.curve)) == names
        told = [event for event in events if event["event"] == "curve"]
        kept = [{"event": "curve", **row} for row in result.curve]
        assert told
        assert all(event in kept for event in told)
        for name in names:
            values = [row["value"] for row in result.curve if (row["stage"], row["level"]) == (name, 1)]
            assert min(values) < values[0]
        fractions = [event["value"] for event in events if event["event"] == "fraction"]
        assert all(0 <= value <= 1 for value in fractions)


class TestPresets:
    @pytest.mark.parametrize(("preset", "dims"), [*((preset, 2) for preset in PRESETS), ("lung-ct", 3)])
    def test_each_brings_the_images_together(self, preset: str, dims: int) -> None:
        truth = linear(dims, 6, SHIFT[:dims])
        result = register(*rigid_pair(dims, truth), preset=preset)
        off = miss(result.transform, through(truth), Body(dims))
        assert off.mean() < 1.2  # a voxel
        assert (result.displacement is None) == ("deformable" not in PRESETS[preset].stages)
        assert not result.warnings

    @pytest.mark.parametrize("deformation", DEFORMATIONS)
    def test_deformations(self, deformation: str) -> None:
        result = register(*bent_pair(2), stages=("deformable",), iterations=20, deformation=deformation)
        assert miss(result.transform, bend, Body(2)).mean() < 0.6
        np.testing.assert_array_equal(result.linear[:2, :2], np.eye(2))

    @pytest.mark.parametrize("deformation", DEFORMATIONS)
    def test_a_single_slice_of_a_volume(self, deformation: str) -> None:
        slices = [
            sitk.JoinSeries(Body(2).image(grid((36, 34), (1.0, 1.1)), back, noise=0), 0.0, 4.0)
            for back in (None, lambda q: unbend(q + SHIFT[:2]))
        ]
        result = register(*slices, stages=("deformable",), iterations=15, deformation=deformation)
        warped = sitk.GetArrayFromImage(sitk.Resample(slices[1], slices[0], result.transform, sitk.sitkLinear, -1.0))
        fixed, before = (sitk.GetArrayFromImage(image) for image in slices)
        inner = (slice(None), slice(6, -6), slice(6, -6))
        assert warped[inner].min() >= 0  # nothing has left the slice
        assert np.abs(warped - fixed)[inner].mean() < 0.3 * np.abs(before - fixed)[inner].mean()


class TestSettings:
    def test_all_of_the_request_reach_the_engine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given: dict[str, Any] = {}

        class Reached(Exception):
            pass

        def caught(*images: Any, **settings: Any) -> None:
            given.update(settings)
            raise Reached

        monkeypatch.setattr(task, "register", caught)
        for name, image in zip(("f", "m"), bent_pair(2), strict=True):
            sitk.WriteImage(image, str(tmp_path / f"{name}.nrrd"))
        wanted: dict[str, Any] = {
            "preset": "affine", "similarity": "mi", "deformation": "ffd", "regularisation": 0.3, "iterations": 7,
            "resolution": 2.5, "sampling": 0.2, "init": "moments", "seed": 5, "device": "cpu",
        }  # fmt: skip
        request: Request = RegisterRequest(
            fixed=str(tmp_path / "f.nrrd"), moving=str(tmp_path / "m.nrrd"), output=str(tmp_path / "o.nrrd"),
            stages="rigid,deformable", **wanted,
        )  # fmt: skip
        request.check()
        with pytest.raises(Reached):
            task.run(request, Progress())
        assert given["stages"] == ("rigid", "deformable")
        assert {name: given[name] for name in wanted} == wanted

    @staticmethod
    @functools.cache
    def found(**settings: Any) -> tuple[float, ...]:
        """Where a point comes to lie."""
        return register(*bent_pair(2), **settings).transform.TransformPoint((3.0, 2.0))

    @pytest.mark.parametrize(
        ("plain", "settings"),
        [
            *((BENT, more) for more in (
                {"similarity": "cc"}, {"deformation": "greedy"}, {"regularisation": 5.0}, {"iterations": 3},
                {"resolution": 4.0}, {"stages": ("rigid", "deformable")}, {"init": "moments"},
                {"preset": "deformable-multimodal"},
            )),
            *(({"preset": "rigid"}, more) for more in ({"similarity": "nmi"}, {"sampling": 0.3})),
            ({"preset": "rigid", "sampling": 0.3}, {"seed": 9}),
        ],
        ids=str,
    )  # fmt: skip
    def test_each_does_something(self, plain: dict[str, Any], settings: dict[str, Any]) -> None:
        found = [self.found(**kind) for kind in (plain, plain | settings)]
        assert np.abs(np.subtract(*found)).max() > 1e-5

    def test_samples_are_the_seeds(self) -> None:
        pair = rigid_pair(2, linear(2, 10, SHIFT[:2]))
        found = [register(*pair, preset="rigid", sampling=0.5, seed=seed).linear for seed in (3, 3, 4)]
        np.testing.assert_array_equal(found[0], found[1])
        assert np.abs(found[0] - found[2]).max() > 0

    def test_where_sampling_cannot_be_it_says_so(self) -> None:
        result = register(*rigid_pair(2, linear(2, 5, SHIFT[:2])), preset="rigid", similarity="lncc", sampling=0.5)
        assert result.warnings == ["All voxels were looked at: lncc compares each with its neighbours."]

    def test_levels_and_iterations(self) -> None:
        result = register(*bent_pair(2), stages=("deformable",), iterations=3)
        assert {row["level"] for row in result.curve} == {1, 2, 3}
        assert max(row["iteration"] for row in result.curve) == 2
        result = register(*bent_pair(2), stages=("deformable",), resolution=4.0, iterations=3)
        assert {row["level"] for row in result.curve} == {1}


class TestStart:
    def test_none_is_where_the_headers_place_them(self) -> None:
        body = Body(2)
        pair = body.image(FIXED_2D), body.image(FIXED_2D)
        result = register(*pair, stages=("deformable",), iterations=0, init="none")
        np.testing.assert_array_equal(result.linear, np.eye(3))

    def test_geometry_and_moments(self) -> None:
        """The body lies 6 mm off the moving image's middle, which only its mass tells."""
        body = Body(2)
        moving = grid((60, 60), (1.0, 1.0), centre=(100.0, 50.0))
        there = np.array([106.0, 47.0])
        pair = body.image(FIXED_2D), body.image(moving, lambda q: q - there)
        starts = [
            register(*pair, stages=("deformable",), iterations=0, init=init).linear[:2, 2]
            for init in ("geometry", "moments")
        ]
        np.testing.assert_allclose(starts[0], (100.0, 50.0), atol=1e-9)
        np.testing.assert_allclose(starts[1], there, atol=1.0)

    def test_a_transform_and_its_file(self, tmp_path: Path) -> None:
        truth = linear(2, 100, SHIFT[:2])  # out of reach of a search from the middle
        pair = rigid_pair(2, truth)
        near = conversion.to_sitk(linear(2, 93, (SHIFT[0] + 1, SHIFT[1])), None, FIXED_2D)
        sitk.WriteTransform(near, str(tmp_path / "near.tfm"))
        for init in (near, str(tmp_path / "near.tfm")):
            result = register(*pair, stages=("affine",), preset="rigid", init=init)
            assert miss(result.transform, through(truth), Body(2)).max() < 0.3

    def test_a_displacement_file(self, tmp_path: Path) -> None:
        """What a field already does is kept, before linear and deformable stages alike."""
        pair = bent_pair(2)
        half = register(*pair, stages=("deformable",), iterations=4)
        path = str(tmp_path / "half.h5")
        conversion.write_transform(half.transform, path, FIXED_2D)
        before = miss(half.transform, bend, Body(2)).mean()
        again = register(*pair, stages=("deformable",), iterations=0, init=path)
        assert miss(again.transform, bend, Body(2)).mean() == pytest.approx(before, abs=1e-3)
        on = register(*pair, stages=("deformable",), init=path)
        assert miss(on.transform, bend, Body(2)).mean() < min(0.6, before)
        moved = register(*pair, stages=("rigid",), preset="rigid", init=path)
        assert moved.displacement is not None
        assert miss(moved.transform, bend, Body(2)).mean() < before + 0.1

    def test_a_mirror_is_kept_by_affine_and_refused_by_rigid(self) -> None:
        truth = linear(2, 5, SHIFT[:2]) @ np.diag([-1.0, 1.0, 1.0])
        pair = rigid_pair(2, truth)
        init = conversion.to_sitk(linear(2, 0, SHIFT[:2]) @ np.diag([-1.0, 1.0, 1.0]), None, FIXED_2D)
        result = register(*pair, stages=("affine",), preset="rigid", init=init)
        assert miss(result.transform, through(truth), Body(2)).max() < 0.3
        with pytest.raises(BadInput, match="mirrors the image"):
            register(*pair, stages=("rigid",), preset="rigid", init=init)


class TestMasks:
    @staticmethod
    def spoiled(image: sitk.Image, at: tuple[float, ...]) -> tuple[sitk.Image, sitk.Image]:
        """A ball of metal, 20 times as bright as anything, and the mask of the rest."""
        own = Grid.of(image)
        away = np.linalg.norm(positions(own) - at, axis=1).reshape(own.shape)
        array = sitk.GetArrayFromImage(image)
        array[away < 8] = 20.0
        return from_array(array, own), from_array((away > 9).astype(np.uint8), own)

    @pytest.mark.parametrize("settings", [{"preset": "rigid", "similarity": "ssd"}, {}], ids=str)
    def test_an_artefact_outside_does_not_disturb(self, settings: dict[str, Any]) -> None:
        truth = linear(2, 10, SHIFT[:2])
        places = (9.0, 6.0), (21.0, -14.0)
        (fixed, fixed_mask), (moving, moving_mask) = (
            self.spoiled(*one) for one in zip(rigid_pair(2, truth), places, strict=True)
        )
        points = positions(FIXED_2D)
        kept = [
            np.linalg.norm(points - places[0], axis=1) > 11,
            np.linalg.norm(through(truth)(points) - places[1], axis=1) > 11,
            np.linalg.norm(points, axis=1) < 9,
        ]
        points = points[np.all(kept, axis=0)]
        assert len(points) > 10
        off = []
        for masks in ({}, {"fixed_mask": fixed_mask, "moving_mask": moving_mask}):
            result = register(fixed, moving, **settings, **masks)
            found = np.array([result.transform.TransformPoint(p) for p in points.tolist()])
            off.append(np.linalg.norm(found - through(truth)(points), axis=1).mean())
        assert off[1] < 0.6 < 2 < off[0]

    @pytest.mark.parametrize(("side", "deformation"), [("fixed", "svf"), ("moving", "greedy")])
    def test_an_artefact_in_one_image_does_not_bend_the_other(self, side: str, deformation: str) -> None:
        pair = dict(zip(("fixed", "moving"), bent_pair(2), strict=True))
        place = {"fixed": (9.0, 6.0), "moving": (21.0, -14.0)}[side]
        pair[side], mask = self.spoiled(pair[side], place)
        points = positions(FIXED_2D)
        away = np.linalg.norm((points if side == "fixed" else bend(points)) - place, axis=1)
        points = points[(away > 9) & (np.linalg.norm(points, axis=1) < 10)]
        off = []
        for masks in ({}, {f"{side}_mask": mask}):
            result = register(**pair, stages=("deformable",), deformation=deformation, similarity="ssd", **masks)
            found = np.array([result.transform.TransformPoint(p) for p in points.tolist()])
            off.append(np.linalg.norm(found - bend(points), axis=1).mean())
        assert off[1] < {"fixed": 0.8, "moving": 0.4}[side]  # behind a mask of its own there is nothing to go by
        assert off[0] > 1.2

    def test_a_mask_must_fit_and_hold_something(self) -> None:
        fixed, moving = bent_pair(2)
        mask = from_array(np.ones(MOVING_2D.shape, np.uint8), MOVING_2D)
        with pytest.raises(BadInput, match="fixed mask does not lie on the grid"):
            register(fixed, moving, fixed_mask=mask)
        with pytest.raises(BadInput, match="moving mask is empty"):
            register(fixed, moving, moving_mask=mask * 0)


class TestTrouble:
    def test_cancel_in_the_middle(self) -> None:
        for stage in ("Rigid", "Deformable"):
            seen: list[Event] = []

            def cancelled(seen: list[Event] = seen, stage: str = stage) -> bool:
                return any(event.get("stage") == stage for event in seen)

            progress = Progress(seen.append, cancelled=cancelled, interval=0.0)
            with pytest.raises(Cancelled):
                register(*bent_pair(2), stages=("rigid", "deformable"), progress=progress)
            points = [event for event in seen if event.get("stage") == stage]
            assert len(points) == 1

    @pytest.mark.parametrize("stage", ["rigid", "deformable"])
    def test_divergence_keeps_the_best_and_says_so(self, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
        break_after(monkeypatch, 10 if stage == "rigid" else 50)
        result = register(*bent_pair(2), stages=(stage,), preset="rigid" if stage == "rigid" else "deformable")
        assert result.warnings == [f"The stage {stage} diverged and was stopped; the best result until then was kept."]
        off = miss(result.transform, bend, Body(2)).mean()
        assert np.isfinite(off)
        assert off < miss(sitk.TranslationTransform(2, SHIFT[:2]), bend, Body(2)).mean()

    def test_nothing_better_than_the_start_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = Criterion.__call__
        monkeypatch.setattr(Criterion, "__call__", lambda self, *given: plain(self, *given) * float("nan"))
        with pytest.raises(MLIError, match="found nothing better than its start"):
            register(*bent_pair(2))

    def test_images_apart(self) -> None:
        with pytest.raises(BadInput, match="do not overlap"):
            register(Body(2).image(FIXED_2D), Body(2, centre=(500.0, 0.0)).image(grid((30, 30), (1.0, 1.0), centre=(
                500.0, 0.0))), init="none")  # fmt: skip

    def test_2d_and_3d(self) -> None:
        with pytest.raises(BadInput, match="2-D and the moving image 3-D"):
            register(bent_pair(2)[0], bent_pair(3)[1])

    def test_a_constant_image(self) -> None:
        fixed, moving = bent_pair(2)
        with pytest.raises(BadInput, match="The moving image is 0 everywhere"):
            register(fixed, moving * 0)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"preset": "brain"}, "no preset 'brain'"), ({"stages": ("bend",)}, "no stage 'bend'"),
            ({"similarity": "ncc"}, "no similarity 'ncc'"), ({"deformation": "syn"}, "no deformation 'syn'"),
            ({"sampling": 0.0}, "0 is no share"), ({"init": "middle.tfm"}, "middle.tfm"),
            ({"init": sitk.TranslationTransform(3)}, "is 3-D and the images 2-D"),
        ],
    )  # fmt: skip
    def test_unknown_settings(self, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(BadInput, match=words):
            register(*bent_pair(2), **settings)


class TestModel:
    """A network that knows a part of the way, in place of the stages."""

    @pytest.fixture
    def network(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def predict(fixed: sitk.Image, moving: sitk.Image, model: str, **given: Any) -> learned.Learned:
            asked.update(given, model=model)
            u = torch.full((1, 2, *FIXED_2D.shape), 0.5)
            return learned.Learned(u, given["linear"], ("The moving image is larger than the model knows.",))

        monkeypatch.setattr(learned, "predict", predict)
        return asked

    def test_it_starts_where_it_is_told_and_its_warnings_are_passed_on(self, network: dict[str, Any]) -> None:
        result = register(*bent_pair(2), model="tiny", init=sitk.TranslationTransform(2, (31.0, -5.0)))
        assert network["model"] == "tiny"
        np.testing.assert_allclose(network["linear"][:2, 2], (31.0, -5.0))
        assert result.warnings == ["The moving image is larger than the model knows."]
        assert not result.curve
        assert float(result.displacement.mean()) == 0.5

    def test_it_is_refined_on_demand(self, network: dict[str, Any]) -> None:
        result = register(*bent_pair(2), model="tiny", refine=True)
        assert {row["stage"] for row in result.curve} == {"Deformable"}
        assert miss(result.transform, bend, Body(2)).mean() < 0.6

    def test_a_displacement_is_no_start_of_it(self, network: dict[str, Any]) -> None:
        init = conversion.to_sitk(np.eye(3), torch.zeros(1, 2, *FIXED_2D.shape), FIXED_2D)
        with pytest.raises(BadInput, match="cannot start from a displacement"):
            register(*bent_pair(2), model="tiny", init=init)


def test_titles_cover_the_stages() -> None:
    assert set(pairwise._TITLES) == {*linear_stage.linear.KINDS, "deformable"}

"""Propagation: atlases on any grid arrive where they belong; what fails is left out; nothing is registered twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import atlas_scenes
import numpy as np
import pytest
import SimpleITK as sitk
from atlas_scenes import Registrar

from MLILib.errors import BadInput, Cancelled, MissingPackage, MLIError
from MLILib.fusion import batches, fuse, propagate, propagation
from MLILib.fusion.cache import Cache
from MLILib.fusion.propagation import Source
from MLILib.geometry import Grid, from_array, same_grid
from MLILib.labels import Label
from MLILib.progress import Event, Progress


class Scene:
    """A target and atlases, each on a grid of its own and moved by a step of its own."""

    def __init__(self, dims: int = 3, atlases: int = 4, fail: dict[int, Exception] | None = None) -> None:
        rng = np.random.default_rng(dims)
        self.step = rng.uniform(-2, 2, dims)
        self.grid = atlas_scenes.grid(100, dims)
        self.target = atlas_scenes.image(self.grid, self.step, 100)
        steps = [rng.uniform(-5, 5, dims) for _ in range(atlases)]
        self.atlases = [atlas_scenes.atlas(seed, step) for seed, step in enumerate(steps)]
        known = [(image, step) for (image, _), step in zip(self.atlases, steps, strict=True)]
        self.register = Registrar([*known, (self.target, self.step)], fail)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(**keywords: Any) -> Scene:
        made = Scene(**keywords)
        monkeypatch.setattr(propagation, "register", made.register)
        monkeypatch.setattr(propagation.selection, "register", made.register)
        return made

    return make


def events(heard: list[Event], kind: str = "rater") -> list[tuple[str, str]]:
    return [(e["name"], e["status"]) for e in heard if e["event"] == kind]


class TestGeometry:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("borders", ["smooth", "nearest"])
    def test_labels_arrive_on_oblique_flipped_and_anisotropic_grids(self, scene: Any, dims: int, borders: str) -> None:
        made = scene(dims=dims)
        found = propagate(made.target, made.atlases, borders=borders)
        assert same_grid(found.raters.grid, made.target)
        truth = sitk.GetArrayFromImage(atlas_scenes.labels(made.grid, made.step))
        sure = atlas_scenes.deep(made.grid, made.step, 1.5)
        assert sure.mean() > 0.5
        for one in found.raters.values[found.raters.stack]:
            np.testing.assert_array_equal(one[sure], truth[sure])

    @pytest.mark.parametrize("dims", [2, 3])
    def test_images_arrive_too(self, scene: Any, dims: int) -> None:
        made = scene(dims=dims)
        found = propagate(made.target, made.atlases)
        assert found.warped is not None
        assert found.warped.shape == (4, *made.grid.shape)
        assert found.warped.dtype == np.float32
        inner = tuple(slice(6, -6) for _ in made.grid.shape)
        for one, outcome in zip(found.warped, found.outcomes, strict=True):
            assert np.abs(one[inner] - found.target[inner]).mean() < 5.0  # of 100: the interpolation of an edge
            assert outcome.similarity == pytest.approx(1.0, abs=0.05)

    def test_smooth_borders_lie_between_voxels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A plane between two voxels of an atlas is found to a fraction of a voxel of a target twice as fine."""
        fine = Grid((16, 12, 12), (0.5, 1.0, 1.0), (0.25, 0.0, 0.0), tuple(np.eye(3).ravel()))
        coarse = Grid((8, 12, 12), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
        half = np.zeros(coarse.shape, np.uint8)
        half[..., 3:] = 1  # the border is at x = 2.5 mm
        rng = np.random.default_rng(0)
        image = from_array(rng.normal(size=coarse.shape).astype(np.float32), coarse)
        target = from_array(rng.normal(size=fine.shape).astype(np.float32), fine)
        register = Registrar([(image, np.zeros(3)), (target, np.zeros(3))])
        monkeypatch.setattr(propagation, "register", register)
        x = np.broadcast_to(0.25 + 0.5 * np.arange(16), fine.shape)
        (smooth,) = propagate(target, [(image, from_array(half, coarse))]).raters.stack
        inside = x < 7.4  # the atlas ends at 7.5 mm
        np.testing.assert_array_equal(smooth[inside], (x > 2.5)[inside])

    def test_beyond_an_atlas_its_border_goes_on(self, scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        made = scene(atlases=1)
        image, labels = made.atlases[0]
        part = tuple(slice(8, n - 8) for n in image.GetSize())
        cut = image[part]
        register = Registrar([(cut, np.zeros(3)), (made.target, np.zeros(3))])
        monkeypatch.setattr(propagation, "register", register)
        found = propagate(made.target, [(cut, labels[part])])
        assert found.warped is not None
        array = sitk.GetArrayViewFromImage(cut)
        assert np.isfinite(found.warped).all()
        assert found.warped.min() >= array.min() - 1e-3
        assert found.warped[0].ravel()[0] in array  # a corner far outside: one of the cut image's own voxels


class TestCache:
    def test_another_method_does_not_register_again(self, scene: Any, tmp_path: Path) -> None:
        made = scene()
        kept = Cache(tmp_path)
        first = propagate(made.target, made.atlases, kept=kept)
        assert sorted(made.register.calls) == [0, 1, 2, 3]
        assert [one.cached for one in first.outcomes] == [False] * 4
        heard: list[Event] = []
        second = propagate(made.target, made.atlases, kept=kept, images=False, progress=Progress(heard.append))
        assert sorted(made.register.calls) == [0, 1, 2, 3]  # not one more
        assert second.warped is None
        assert [one.cached for one in second.outcomes] == [True] * 4
        np.testing.assert_array_equal(first.raters.stack, second.raters.stack)
        assert events(heard)[4:] == [(f"atlas {i}", "cached") for i in range(1, 5)]
        for method in ("majority", "staple", "local"):
            third = propagate(made.target, made.atlases, kept=kept)
            fuse(third.raters, method, target=third.target, warped=third.warped)
        assert len(made.register.calls) == 4

    @pytest.mark.parametrize(
        "change", [{"registration": "affine"}, {"seed": 1}, {"borders": "nearest"}, {"labels": ()}, {"image": 1}]
    )
    def test_what_changes_is_registered_again(self, scene: Any, tmp_path: Path, change: dict[str, Any]) -> None:
        made = scene(atlases=2)
        kept = Cache(tmp_path)
        propagate(made.target, made.atlases, kept=kept)
        if "image" in change:  # another atlas on the first one's grid
            image, labels = made.atlases[0]
            other = sitk.GetArrayFromImage(labels)
            other[0, 0, 0] = 1
            propagate(made.target, [(image, from_array(other, labels)), made.atlases[1]], kept=kept)
            assert made.register.calls[2:] == [0]
        else:
            propagate(made.target, made.atlases, kept=kept, **change)
            assert sorted(made.register.calls[2:]) == ([] if "labels" in change else [0, 1])

    def test_without_a_cache_nothing_is_kept(self, scene: Any) -> None:
        made = scene(atlases=2)
        for _ in range(2):
            propagate(made.target, made.atlases)
        assert len(made.register.calls) == 4

    def test_a_folder_that_cannot_be_written_is_a_warning(self, scene: Any, tmp_path: Path) -> None:
        made = scene(atlases=2)
        (tmp_path / "file").touch()
        found = propagate(made.target, made.atlases, kept=Cache(tmp_path / "file"))
        assert len(found.raters) == 2
        assert any("were not kept" in text for text in found.warnings)


class TestFailure:
    def test_an_atlas_that_fails_is_left_out_and_reported(self, scene: Any) -> None:
        made = scene(fail={1: MLIError("It diverged.")})
        heard: list[Event] = []
        found = propagate(made.target, made.atlases, names=list("abcd"), progress=Progress(heard.append))
        assert found.raters.names == ("a", "c", "d")
        assert found.warped is not None
        assert len(found.warped) == 3
        assert [(one.name, one.status) for one in found.outcomes] == [
            ("a", "used"), ("b", "failed"), ("c", "used"), ("d", "used"),
        ]  # fmt: skip
        assert found.outcomes[1].reason == "It diverged."
        assert [s for n, s in events(heard) if n == "b"] == ["waiting", "registering", "failed"]
        assert [s for n, s in events(heard) if n == "c"] == ["waiting", "registering", "done"]

    def test_all_fail(self, scene: Any) -> None:
        made = scene(atlases=2, fail={0: MLIError("It diverged."), 1: MLIError("It diverged.")})
        with pytest.raises(MLIError, match="None of the 2 atlases could be registered") as error:
            propagate(made.target, made.atlases)
        assert "It diverged." in error.value.cause

    def test_an_atlas_that_cannot_be_read(self, scene: Any) -> None:
        made = scene(atlases=1)

        def broken() -> tuple[sitk.Image, sitk.Image]:
            raise BadInput("x.nii is truncated.")

        found = propagate(made.target, [Source("x", broken), Source("y", lambda: made.atlases[0])])
        assert found.raters.names == ("y",)
        assert found.outcomes[0].reason == "x.nii is truncated."

    @pytest.mark.parametrize("fault", ["grid", "empty", "dimension", "constant"])
    def test_an_atlas_that_cannot_be_used(self, scene: Any, fault: str) -> None:
        made = scene(atlases=2)
        image, labels = made.atlases[0]
        if fault == "grid":
            labels = labels[1:]
        elif fault == "empty":
            labels = labels * 0
        elif fault == "dimension":
            image, labels = image[:, :, 0], labels[:, :, 0]
        else:
            image = image * 0
        found = propagate(made.target, [(image, labels), made.atlases[1]])
        assert [one.status for one in found.outcomes] == ["failed", "used"]
        assert made.register.calls == [1]

    def test_an_atlas_that_ends_outside_is_left_out(self, scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        made = scene(atlases=2)
        image, _ = made.atlases[0]
        far = Grid.of(image)
        array = np.zeros(far.shape, np.uint8)
        array[0, 0, 0] = 1  # a corner; the known transform then brings it outside of the target
        register = Registrar(
            [(image, np.array([60.0, 0, 0])), (made.atlases[1][0], np.zeros(3)), (made.target, np.zeros(3))]
        )
        monkeypatch.setattr(propagation, "register", register)
        found = propagate(made.target, [(image, from_array(array, far)), made.atlases[1]])
        assert found.outcomes[0].status == "left out"
        assert "none of its labels lies in the target" in found.outcomes[0].reason

    def test_the_target_is_no_atlas_of_itself(self, scene: Any) -> None:
        made = scene(atlases=2)
        itself = sitk.Cast(made.target, sitk.sitkFloat64)  # saved in another way
        truth = atlas_scenes.labels(made.grid, made.step)
        found = propagate(made.target, [*made.atlases, (itself, truth)], names=["a", "b", "self"])
        assert found.raters.names == ("a", "b")
        assert found.outcomes[2].status == "left out"
        assert any("self" in text and "the target itself" in text for text in found.warnings)

    def test_a_bug_is_not_hidden(self, scene: Any) -> None:
        made = scene(fail={1: RuntimeError("index out of range")})
        with pytest.raises(RuntimeError, match="index out of range"):
            propagate(made.target, made.atlases)

    def test_a_missing_package_ends_it(self, scene: Any) -> None:
        made = scene(fail={0: MissingPackage("No torch.")})
        with pytest.raises(MissingPackage):
            propagate(made.target, made.atlases)

    def test_no_memory_fails_the_atlas_alone(self, scene: Any) -> None:
        made = scene(fail={1: MemoryError()})
        found = propagate(made.target, made.atlases)
        assert [one.status for one in found.outcomes] == ["used", "failed", "used", "used"]

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"registration": "nonsense"}, "There is no registration 'nonsense'"),
            ({"registration": "hippocampus"}, "not for registration"),
            ({"borders": "round"}, "no borders 'round'"),
            ({"names": ["a"]}, "4 atlases have 1 names"),
            ({"names": ["a"] * 4}, "one name"),
        ],
    )
    def test_bad_input(self, scene: Any, given: dict[str, Any], said: str) -> None:
        made = scene()
        with pytest.raises(BadInput, match=said):
            propagate(made.target, made.atlases, **given)

    def test_no_atlas(self, scene: Any) -> None:
        with pytest.raises(BadInput, match="no atlas"):
            propagate(scene().target, [])

    def test_a_blank_target(self, scene: Any) -> None:
        made = scene()
        with pytest.raises(BadInput, match="The target image is 0 everywhere"):
            propagate(made.target * 0, made.atlases)

    def test_a_warning_of_every_registration_is_said_once(self, scene: Any, tmp_path: Path) -> None:
        made = scene()
        made.register.warnings = ["The fixed image is large."]
        for _ in range(2):  # now, and from the cache
            found = propagate(made.target, made.atlases, kept=Cache(tmp_path))
            assert found.warnings == ["Each atlas: The fixed image is large."]


class TestProgress:
    def test_one_fraction_over_all(self, scene: Any) -> None:
        made = scene()
        heard: list[Event] = []
        propagate(made.target, made.atlases, progress=Progress(heard.append, interval=0.0))
        start = next(i for i, e in enumerate(heard) if e == {"event": "stage", "name": "Registering atlases"})
        values = [e["value"] for e in heard[start:] if e["event"] == "fraction"]
        assert values == sorted(values)
        assert values[-1] == 1.0
        assert [e["name"] for e in heard if e["event"] == "stage"] == ["Reading atlases", "Registering atlases"]

    def test_cancel_midway_keeps_what_is_done(self, scene: Any, tmp_path: Path) -> None:
        made = scene()
        heard: list[Event] = []

        def stop() -> bool:
            return sum(status == "done" for _, status in events(heard)) >= 2

        with pytest.raises(Cancelled):
            propagate(made.target, made.atlases, kept=Cache(tmp_path), progress=Progress(heard.append, cancelled=stop))
        done = len(made.register.calls)
        assert done < 5
        assert not list(tmp_path.glob("*.part"))
        kept = len(list(tmp_path.glob("*.npz")))
        assert kept >= 2
        found = propagate(made.target, made.atlases, kept=Cache(tmp_path))
        assert sum(one.cached for one in found.outcomes) == kept
        assert len(found.raters) == 4


class TestBatches:
    def test_results_are_in_order_whoever_ends_first(self) -> None:
        import threading

        gate = threading.Barrier(3, timeout=20)

        def work(item: int, progress: Progress) -> int:
            gate.wait()  # none can end before three run
            progress.stage("x")
            return item * item

        assert batches.each(list(range(6)), work, Progress(), workers=3) == [0, 1, 4, 9, 16, 25]

    @pytest.mark.parametrize("workers", [1, 3])
    def test_an_error_ends_all(self, workers: int) -> None:
        ended = []

        def work(item: int, progress: Progress) -> None:
            if item == 1:
                raise ValueError("one")
            for _ in range(10_000_000):
                progress.fraction(0.5)
                if item != 1 and workers == 1:
                    break
            ended.append(item)

        with pytest.raises(ValueError, match="one"):
            batches.each([0, 1, 2], work, Progress(), workers=workers)
        assert 2 not in ended

    def test_cancel_reaches_every_thread(self) -> None:
        reports = 0

        def asked() -> bool:
            nonlocal reports
            reports += 1
            return reports > 20

        def work(item: int, progress: Progress) -> None:
            while True:
                progress.fraction(0.5)

        with pytest.raises(Cancelled):
            batches.each([0, 1, 2], work, Progress(cancelled=asked), workers=3)


def test_labels_keep_their_names_and_colours(scene: Any) -> None:
    made = scene(atlases=1)
    named = [
        Label(1, "front", (1.0, 0.0, 0.0), "coded"),
        Label(2, "back", (0.0, 1.0, 0.0), ""),
        Label(3, "x", (0, 0, 0), ""),
    ]
    found = propagate(made.target, made.atlases, labels=named)
    assert list(found.raters.labels) == named[:2]


def test_a_real_registration(tmp_path: Path) -> None:
    """Nothing stands in here: the preset finds the step, and the labels follow."""
    step = np.array([2.0, -1.5])
    where = atlas_scenes.grid(2, 2, 36)
    target = atlas_scenes.image(where, step, 50)
    pairs = [atlas_scenes.atlas(seed, np.zeros(2)) for seed in (4, 5)]
    found = propagate(target, pairs, registration="rigid", select=1, kept=Cache(tmp_path))
    assert sorted(one.status for one in found.outcomes) == ["not selected", "used"]
    truth = sitk.GetArrayFromImage(atlas_scenes.labels(where, step))
    ours = found.raters.values[found.raters.stack[0]]
    assert 2 * np.count_nonzero((ours > 0) & (truth > 0)) / (np.count_nonzero(ours) + np.count_nonzero(truth)) > 0.95

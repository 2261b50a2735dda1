"""The task "fuse" around registrations that are known: what is read, refused, fused, measured and written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import atlas_scenes
import numpy as np
import pytest
import SimpleITK as sitk
from atlas_scenes import Registrar

from MLILib import cli, tasks, worker
from MLILib.errors import BadInput, Cancelled, MLIError
from MLILib.fusion import fuse, fusing, propagation, selection, task
from MLILib.fusion.methods import METHODS
from MLILib.fusion.requests import FuseRequest
from MLILib.geometry import Grid, from_array, same_grid
from MLILib.labels import Label
from MLILib.progress import Event, Progress
from MLILib.segmentation import label_files, seg_nrrd

STEP = np.array([1.0, -2.0, 0.5])
GRID = atlas_scenes.grid(100)
NAMES = {1: "front", 2: "back"}


class Folder:
    """A target and a set of four atlases as files, and a registration that knows the answer."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.target = self.save("target.nrrd", atlas_scenes.image(GRID, STEP, 100))
        self.truth = self.save("truth.nrrd", atlas_scenes.labels(GRID, STEP))
        known = [(sitk.ReadImage(self.target), STEP)]
        (path / "set").mkdir()
        rng = np.random.default_rng(5)
        for number in range(4):
            step = rng.uniform(-4, 4, 3)
            image, labels = atlas_scenes.atlas(number, step)
            self.save(f"set/a{number}.nrrd", image)
            self.save(f"set/a{number}_seg.nrrd", labels)
            known.append((image, step))
        data = {
            "labels": {"0": "background", **{str(k): v for k, v in NAMES.items()}},
            "training": [{"image": f"set/a{i}.nrrd", "label": f"set/a{i}_seg.nrrd"} for i in range(4)],
        }
        (path / "dataset.json").write_text(json.dumps(data), encoding="utf-8")
        self.register = Registrar(known)
        for module in (propagation, selection):
            monkeypatch.setattr(module, "register", self.register)

    def save(self, name: str, image: sitk.Image) -> str:
        sitk.WriteImage(image, str(self.path / name))
        return str(self.path / name)

    def request(self, **settings: Any) -> FuseRequest:
        plain = {"target": self.target, "atlases": str(self.path / "dataset.json"), "output": "out.nrrd"} | settings
        for name in ("output", "probabilities", "disagreement", "report"):
            if plain.get(name):
                plain[name] = str(self.path / plain[name])
        return FuseRequest(**{"cache": str(self.path / "kept"), "device": "cpu", **plain})

    def run(self, progress: Progress | None = None, **settings: Any) -> dict[str, Any]:
        return tasks.run(self.request(**settings), progress)

    def names(self) -> set[str]:
        return {p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()}

    def refused(self, words: str, kind: type[MLIError] = BadInput, **settings: Any) -> MLIError:
        before = self.names()
        with pytest.raises(kind, match=words) as error:
            self.run(**settings)
        assert self.names() == before
        return error.value


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    return Folder(tmp_path, monkeypatch)


def dice(path: str, truth: str) -> float:
    a, b = (sitk.GetArrayFromImage(sitk.ReadImage(p)) for p in (path, truth))
    return float(np.mean([2 * np.sum((a == k) & (b == k)) / (np.sum(a == k) + np.sum(b == k)) for k in (1, 2)]))


class TestAtlases:
    def test_everything(self, folder: Folder) -> None:
        before = folder.names()
        found = folder.run(
            method="local", output="out.seg.nrrd", probabilities="p.nii.gz", disagreement="d.nrrd", report="r.json",
            reference=folder.truth,
        )  # fmt: skip
        made = label_files.read(found["output"])
        assert same_grid(made.grid, GRID)
        assert [one.name for one in made.labels] == ["front", "back"]
        assert dice(found["output"], folder.truth) > 0.95
        assert found["metrics"]["front"]["dice"] == pytest.approx(
            found["metrics"]["mean"]["dice"] * 2 - found["metrics"]["back"]["dice"]
        )
        assert found["metrics"]["mean"]["dice"] == pytest.approx(dice(found["output"], folder.truth))
        shares = sitk.ReadImage(found["probabilities"])
        assert shares.GetNumberOfComponentsPerPixel() == 2
        assert same_grid(shares, GRID)
        total = sitk.GetArrayFromImage(shares).sum(axis=-1)
        assert total.max() <= 1 + 1e-5
        assert total.min() >= 0
        bits = sitk.GetArrayFromImage(sitk.ReadImage(found["disagreement"]))
        assert bits.max() <= np.log2(3) + 1e-6
        assert (bits[atlas_scenes.deep(GRID, STEP, 2.0)] == 0).all()
        assert [one["status"] for one in found["raters"]] == ["used"] * 4
        assert [one["name"] for one in found["raters"]] == ["a0", "a1", "a2", "a3"]
        assert all(one["seconds"] > 0 and one["similarity"] > 0.9 for one in found["raters"])
        assert [one["name"] for one in found["report"]["raters"]] == ["a0", "a1", "a2", "a3"]
        volume = np.count_nonzero(sitk.GetArrayFromImage(sitk.ReadImage(found["output"])) == 1) * GRID.voxel_ml
        assert found["labels"][0]["volume_ml"] == pytest.approx(volume)
        assert {"value", "name", "color", "terminology", "voxels", "volume_ml"} == set(found["labels"][0])
        assert set(found["pictures"]) == {"raters", "agreement", "disagreement"}
        record = json.loads(Path(found["record"]).read_text(encoding="utf-8"))
        assert {Path(one["name"]).name for one in record["files"]} == {
            *(f"a{i}.nrrd" for i in range(4)), *(f"a{i}_seg.nrrd" for i in range(4)),
        }  # fmt: skip
        report = json.loads((folder.path / "r.json").read_text(encoding="utf-8"))
        assert report["report"] == record["report"]
        assert report["metrics"] == record["metrics"]
        assert json.loads(json.dumps(found, allow_nan=False))["method"] == "local"
        assert "Locally weighted vote of 4 of 4." in found["text"]
        written = {Path(p).name for p in (*found["pictures"].values(), found["record"])}
        kept = {name for name in folder.names() if name.startswith("kept/")}
        assert len(kept) == 4
        assert folder.names() - before - kept == written | {"out.seg.nrrd", "p.nii.gz", "d.nrrd", "r.json"}

    @pytest.mark.parametrize("method", sorted(METHODS))
    def test_every_method_and_none_registers_again(self, folder: Folder, method: str) -> None:
        folder.run(method="majority")
        assert sorted(folder.register.calls) == [1, 2, 3, 4]
        found = folder.run(method=method, steps=3, probabilities="p.nrrd")
        assert sorted(folder.register.calls) == [1, 2, 3, 4]
        assert all(one["cached"] for one in found["raters"])
        assert dice(found["output"], folder.truth) > 0.9
        assert sitk.ReadImage(found["probabilities"]).GetNumberOfComponentsPerPixel() == 2

    def test_the_command_repeats_it(self, folder: Folder) -> None:
        request = folder.request(method="staple", names=("1=x", "2=y"), select=2, margin=3.0)
        assert cli.parse(shlex.split(request.command())[1:]) == (request, False)
        assert "--cache" in request.command()

    def test_names_of_the_user_come_first(self, folder: Folder) -> None:
        found = folder.run(method="majority", names=("1=top",))
        assert [one["name"] for one in found["labels"]] == ["top", "back"]

    def test_segmentations_bring_names_and_colours(self, folder: Folder) -> None:
        (folder.path / "dataset.json").unlink()
        for number in range(4):
            labels = folder.path / "set" / f"a{number}_seg.nrrd"
            array = sitk.ReadImage(str(labels))
            segments = [Label(1, "head", (0.1, 0.2, 0.3), ""), Label(2, "tail", (0.4, 0.5, 0.6), "")]
            if number % 2:  # the same names under other values
                array = sitk.ChangeLabel(array, {1: 2, 2: 1})
                segments = [Label(2, "head", (0, 0, 0), ""), Label(1, "tail", (0, 0, 0), "")]
            seg_nrrd.write(array, segments, str(folder.path / "set" / f"a{number}.seg.nrrd"))
            labels.unlink()
        found = folder.run(method="majority", atlases=str(folder.path / "set"), output="out.seg.nrrd")
        assert [(one["value"], one["name"]) for one in found["labels"]] == [(1, "head"), (2, "tail")]
        header = sitk.ReadImage(found["output"])
        assert [float(x) for x in header.GetMetaData("Segment1_Color").split()] == pytest.approx([0.4, 0.5, 0.6])
        assert dice(found["output"], folder.truth) > 0.95

    def test_one_atlas_is_allowed_and_said(self, folder: Folder) -> None:
        for number in (1, 2, 3):
            for ending in ("", "_seg"):
                (folder.path / "set" / f"a{number}{ending}.nrrd").unlink()
        found = folder.run(method="jlf", atlases=str(folder.path / "set"))
        assert any("There is one rater, a0" in note for note in found["report"]["notes"])
        assert "There is one rater, a0" in found["text"]

    def test_an_atlas_that_fails_is_told_and_the_rest_goes_on(self, folder: Folder) -> None:
        (folder.path / "set" / "a2_seg.nrrd").write_bytes(b"damaged")
        (folder.path / "set" / "a3.nrrd").write_bytes(b"damaged")
        heard: list[Event] = []
        found = folder.run(Progress(heard.append), method="majority")
        assert [one["status"] for one in found["raters"]] == ["used", "used", "failed", "failed"]
        assert "a2_seg.nrrd" in found["raters"][2]["reason"]
        assert found["warnings"][0].startswith("2 of 4 atlases failed")
        assert "a3: failed." in found["text"]
        assert [e["status"] for e in heard if e["event"] == "rater" and e["name"] == "a3"] == ["waiting", "failed"]

    def test_all_fail(self, folder: Folder) -> None:
        for number in range(4):
            (folder.path / "set" / f"a{number}_seg.nrrd").write_bytes(b"damaged")
        error = folder.refused("None of the 4 atlases", MLIError)
        assert "a0_seg.nrrd" in error.cause

    def test_cancel_midway_leaves_nothing_but_a_sound_cache(self, folder: Folder) -> None:
        heard: list[Event] = []

        def stop() -> bool:
            return sum(e.get("status") == "done" for e in heard) >= 2

        before = folder.names()
        with pytest.raises(Cancelled):
            folder.run(Progress(heard.append, cancelled=stop), method="majority", report="r.json")
        left = folder.names() - before
        assert left
        assert all(name.startswith("kept/") and name.endswith(".npz") for name in left)
        found = folder.run(method="majority")
        assert sum(one["cached"] for one in found["raters"]) == len(left)
        assert len(folder.names() - before) == 4 + 2

    def test_without_keeping_nothing_is_kept(self, folder: Folder) -> None:
        for _ in range(2):
            folder.run(method="majority", keep=False)
        assert len(folder.register.calls) == 8
        assert not (folder.path / "kept").exists()

    def test_simple_says_whom_it_dropped(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        heard: list[Event] = []
        labels = folder.path / "set" / "a1_seg.nrrd"
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(labels)))
        sitk.WriteImage(from_array(np.roll(array, 6, 0), sitk.ReadImage(str(labels))), str(labels))  # a bad rater
        found = folder.run(Progress(heard.append), method="simple")
        assert [one["status"] for one in found["raters"]][1] == "left out"
        assert "SIMPLE dropped it" in found["raters"][1]["reason"]
        assert {"event": "rater", "name": "a1", "status": "left out"} in heard

    def test_selection(self, folder: Folder) -> None:
        found = folder.run(method="majority", select=3)
        assert sorted(one["status"] for one in found["raters"]) == ["not selected", "used", "used", "used"]
        assert "3 of 4" in found["text"]


class TestRefusal:
    def test_bad_requests(self, folder: Folder) -> None:
        labels = str(folder.path / "truth.nrrd")
        folder.refused("nothing to fuse", atlases="")
        folder.refused("no target", target="")
        folder.refused("Both atlases and raters", labels=(labels,))
        folder.refused("cannot fuse labels alone", atlases="", labels=(labels,), method="jlf")
        folder.refused("needs the image", atlases="", target="", labels=(labels,), method="deepstaple")
        folder.refused("There is no registration", registration="nonsense")
        folder.refused("does not name a label", names=("x",))
        folder.refused("patch_radius|patch-radius", patch_radius=0)

    def test_bad_output_names(self, folder: Folder) -> None:
        folder.refused("no ending", output="out.png")
        folder.refused("no ending", probabilities="p.seg.nrrd")
        folder.refused("no name for the report", report="r.txt")
        folder.refused("would be overwritten", output="set/a0.nrrd")
        folder.refused("is an input and an output", output="target.nrrd")
        folder.refused("would be overwritten", output="dataset.nrrd")  # whose record is dataset.json
        folder.refused("is a file", cache=folder.target)

    def test_bad_atlas_sets(self, folder: Folder) -> None:
        (folder.path / "empty").mkdir()
        folder.refused("holds no atlas", atlases=str(folder.path / "empty"))
        folder.save("set/b.nrrd", atlas_scenes.image(GRID, STEP, 3))
        folder.refused(r"b\.nrrd has no labels", atlases=str(folder.path / "set"))

    def test_labels_of_different_value_sets(self, folder: Folder) -> None:
        path = folder.path / "set" / "a3_seg.nrrd"
        sitk.WriteImage(sitk.ReadImage(str(path)) * 100, str(path))
        folder.refused("hold the value 100, which has no name")
        (folder.path / "dataset.json").unlink()
        folder.refused("different values: 1, 2 and 100, 200", atlases=str(folder.path / "set"))

    def test_empty_labels(self, folder: Folder) -> None:
        for number in range(4):
            path = str(folder.path / "set" / f"a{number}_seg.nrrd")
            sitk.WriteImage(sitk.ReadImage(path) * 0, path)
        folder.refused("All label maps are empty")

    def test_a_reference_elsewhere_is_refused_before_the_work(self, folder: Folder) -> None:
        other = folder.save("other.nrrd", atlas_scenes.labels(atlas_scenes.grid(7), STEP))
        folder.refused("reference .* is not on the grid", reference=other)
        assert folder.register.calls == []


class TestRaters:
    def maps(self, folder: Folder, count: int = 3) -> list[str]:
        """The truth, with a cube cut out of it at a place of each rater's own."""
        out = []
        truth = sitk.GetArrayFromImage(sitk.ReadImage(folder.truth))
        middle = [n // 2 for n in truth.shape]
        for number in range(count):
            array = truth.copy()
            array[tuple(slice(m + 3 * number - 4, m + 3 * number - 1) for m in middle)] = 0
            out.append(folder.save(f"r{number}.nrrd", from_array(array, GRID)))
        return out

    def test_a_majority_undoes_what_each_did_alone(self, folder: Folder) -> None:
        found = folder.run(atlases="", target="", labels=tuple(self.maps(folder)), method="majority")
        np.testing.assert_array_equal(
            sitk.GetArrayFromImage(sitk.ReadImage(found["output"])),
            sitk.GetArrayFromImage(sitk.ReadImage(folder.truth)),
        )
        assert [one["name"] for one in found["raters"]] == ["r0", "r1", "r2"]
        assert folder.register.calls == []
        assert not (folder.path / "kept").exists()

    @pytest.mark.parametrize("method", ["majority", "simple", "staple", "deepstaple"])
    def test_methods(self, folder: Folder, method: str) -> None:
        heard: list[Event] = []
        target = folder.target if METHODS[method].target else ""
        found = folder.run(
            Progress(heard.append), atlases="", target=target, labels=tuple(self.maps(folder)), method=method, steps=3,
            reference=folder.truth, names=("1=front", "2=back"),
        )  # fmt: skip
        assert found["metrics"]["front"]["dice"] > 0.9
        assert [e for e in heard if e["event"] == "rater"][:4] == [
            *({"event": "rater", "name": f"r{i}", "status": "waiting"} for i in range(3)),
            {"event": "rater", "name": "r0", "status": "done"},
        ]

    def test_the_command_needs_no_target(self, folder: Folder) -> None:
        paths = self.maps(folder)
        request = folder.request(atlases="", target="", labels=tuple(paths), method="staple")
        words = shlex.split(request.command())
        assert words[:3] == ["mli", "fuse", "--labels"]
        assert cli.parse(words[1:]) == (request, False)
        with_target = folder.request(atlases="", labels=tuple(paths), method="deepstaple")
        assert cli.parse(shlex.split(with_target.command())[1:]) == (with_target, False)
        late, _ = cli.parse(["fuse", "--atlases", "x", folder.target, "-o", "y.nrrd"])
        assert late == FuseRequest(target=folder.target, atlases="x", output="y.nrrd")

    def test_other_grids_are_refused(self, folder: Folder) -> None:
        paths = self.maps(folder, 2)
        other = folder.save("other.nrrd", atlas_scenes.labels(atlas_scenes.grid(7), STEP))
        folder.refused("not on the grid of", atlases="", target="", labels=(*paths, other), method="majority")
        folder.refused("not on the grid of", atlases="", labels=(other,), method="majority")

    def test_all_empty(self, folder: Folder) -> None:
        empty = folder.save("empty.nrrd", sitk.ReadImage(folder.truth) * 0)
        folder.refused("All label maps are empty", atlases="", target="", labels=(empty, empty), method="majority")

    def test_cropped_segmentations_are_laid_on_one_grid(self, folder: Folder) -> None:
        truth = sitk.ReadImage(folder.truth)
        paths = []
        for number in range(2):
            part = truth[2 + number :, 1:, : 20 + number] if number else truth[1:, 2:, :22]
            path = folder.path / f"c{number}.seg.nrrd"
            seg_nrrd.write(part, [Label(1, "front", (1, 0, 0), ""), Label(2, "back", (0, 1, 0), "")], str(path))
            paths.append(str(path))
        found = folder.run(atlases="", labels=tuple(paths), method="majority", output="out.nrrd")
        assert same_grid(sitk.ReadImage(found["output"]), GRID)
        alone = folder.run(atlases="", target="", labels=tuple(paths), method="majority", output="o2.nrrd")
        size = sitk.ReadImage(alone["output"]).GetSize()
        assert size == (GRID.size[0] - 1, GRID.size[1] - 1, 22)

    def test_two_dimensions(self, tmp_path: Path) -> None:
        where = atlas_scenes.grid(3, 2)
        paths = []
        for number in range(3):
            image = atlas_scenes.labels(where, np.array([0.2 * number, 0.0]))
            sitk.WriteImage(image, str(tmp_path / f"{number}.nrrd"))
            paths.append(str(tmp_path / f"{number}.nrrd"))
        for method in ("majority", "staple", "simple"):
            request = FuseRequest(labels=tuple(paths), output=str(tmp_path / "o.nrrd"), method=method)
            made = sitk.ReadImage(tasks.run(request)["output"])
            assert same_grid(made, where)
            assert dice(str(tmp_path / "o.nrrd"), paths[1]) > 0.97


class TestFusing:
    def test_in_a_script(self, folder: Folder) -> None:
        maps = [sitk.ReadImage(path) for path in TestRaters().maps(folder)]
        found = fuse(maps, "majority", names=["x", "y", "z"], label_names=NAMES, probabilities=True)
        assert same_grid(found.labels, GRID)
        assert found.probabilities is not None
        assert found.report["agreement"]["kappa"] > 0.9
        assert found.raters.names == ("x", "y", "z")

    def test_one_label_has_one_share(self, folder: Folder) -> None:
        one = sitk.ReadImage(folder.truth) == 1
        found = fuse([one, one], "majority", probabilities=True)
        assert found.probabilities is not None
        assert found.probabilities.GetNumberOfComponentsPerPixel() == 1
        np.testing.assert_array_equal(
            sitk.GetArrayViewFromImage(found.probabilities), sitk.GetArrayFromImage(one).astype(np.float32)
        )

    @pytest.mark.parametrize("method", sorted(METHODS))
    def test_one_rater_is_right_by_any_method(self, folder: Folder, method: str) -> None:
        truth = sitk.ReadImage(folder.truth)
        found = fuse([truth], method, probabilities=True)
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(found.labels), sitk.GetArrayViewFromImage(truth))
        assert any("one rater" in note for note in found.consensus.notes)

    def test_every_method_has_a_function(self) -> None:
        assert set(fusing._PLACES) == set(fusing._SETTINGS) == set(METHODS)

    def test_bad_input(self, folder: Folder) -> None:
        maps = [sitk.ReadImage(path) for path in TestRaters().maps(folder)]
        with pytest.raises(BadInput, match="no method 'best'"):
            fuse(maps, "best")
        with pytest.raises(BadInput, match="needs the target"):
            fuse(maps, "jlf")
        with pytest.raises(BadInput, match="no region 'all'"):
            fuse(maps, "staple", region="all")
        with pytest.raises(BadInput, match="not on the grid of the labels"):
            fuse(maps, "deepstaple", target=atlas_scenes.image(atlas_scenes.grid(7), STEP))

    def test_the_region_is_a_box_of_the_margin(self) -> None:
        where = Grid((40, 40, 20), (1.0, 0.5, 2.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
        array = np.zeros(where.shape, np.uint8)
        array[8:12, 15:25, 10:20] = 1
        maps = [from_array(array, where)] * 2
        found = fuse(maps, "staple", margin=5.0)
        assert found.consensus.region == (slice(5, 15), slice(5, 35), slice(5, 25))  # 3, 10 and 5 voxels wider
        assert fuse(maps, "staple", region="image").consensus.region == (slice(0, 20), slice(0, 40), slice(0, 40))


def test_the_worker_passes_raters_on(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    import io

    out = io.StringIO()
    request = folder.request(method="majority").to_json()
    worker._answer({"id": 3, "task": "fuse", "request": request}, out)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert events[-1]["event"] == "result"
    assert {"id": 3, "event": "rater", "name": "a2", "status": "registering"} in events
    assert [e["status"] for e in events if e.get("name") == "a2" and e["event"] == "rater"] == [
        "waiting", "registering", "done",
    ]  # fmt: skip


def test_a_full_disk_writes_nothing(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(task.record, "write", full)
    folder.refused("is full", method="majority", keep=False)

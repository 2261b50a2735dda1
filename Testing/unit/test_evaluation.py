"""The task "evaluate": pairs of files and folders, names of labels, Slicer's segmentations, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from MLILib import cli, tasks
from MLILib.errors import BadInput
from MLILib.metrics import METRICS
from MLILib.segmentation import label_files
from MLILib.segmentation.evaluation import compare_files, format_table
from MLILib.segmentation.label_files import Label

Array = npt.NDArray[Any]


def two_labels(shift: int = 0) -> Array:
    """Label 1 in 4 x 4 x 4 voxels, moved along x by `shift`; label 2 in 2 x 3 x 3 voxels that stay."""
    made = np.zeros((10, 12, 14), np.uint8)
    made[2:6, 2:6, 2 + shift : 6 + shift] = 1
    made[7:9, 7:10, 9:12] = 2
    return made


def write(path: Path, array: Array, *, origin: Sequence[float] = (10.0, -20.0, 30.0), **metadata: str) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.5, 1.0, 2.0)[: array.ndim])
    image.SetOrigin(origin[: array.ndim])
    for key, value in metadata.items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path))
    return path


def segments(names: Mapping[str, int]) -> dict[str, str]:
    """The header of a .seg.nrrd with one layer, as Slicer writes it."""
    found = {}
    for i, (name, value) in enumerate(names.items()):
        found |= {f"Segment{i}_ID": f"Segment_{i}", f"Segment{i}_Name": name}
        found |= {f"Segment{i}_LabelValue": str(value), f"Segment{i}_Layer": "0"}
    return found


def write_layers(path: Path, layers: Sequence[Array], fields: str) -> Path:
    """A .seg.nrrd with overlapping segments in Slicer's layout: a list of layers for each voxel."""
    data = np.stack(layers, axis=-1).astype(np.uint8)
    z, y, x, n = data.shape
    header = (
        f"NRRD0004\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\nsizes: {n} {x} {y} {z}\n"
        "space directions: none (0.5,0,0) (0,1,0) (0,0,2)\nkinds: list domain domain domain\nendian: little\n"
        f"encoding: raw\nspace origin: (10,-20,30)\n{fields}\n"
    )
    path.write_bytes(header.encode() + data.tobytes())
    return path


def evaluate(prediction: Path, reference: Path, **settings: Any) -> dict[str, Any]:
    return tasks.run(tasks.EvaluateRequest(str(prediction), str(reference), **settings))


class TestFiles:
    def test_metrics_under_each_label_and_mean(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.nii.gz", two_labels(1))
        b = write(tmp_path / "b.nrrd", two_labels())
        found = evaluate(a, b)
        assert found["labels"] == ["1", "2"]
        assert set(METRICS) <= set(found["1"])
        assert found["1"]["dice"] == pytest.approx(0.75)
        assert found["1"]["hausdorff"] == pytest.approx(0.5)
        assert found["2"]["dice"] == 1.0
        assert found["mean"]["dice"] == pytest.approx(0.875)
        assert found["ok"]

    def test_tolerance_is_in_mm(self, tmp_path: Path) -> None:
        a, b = write(tmp_path / "a.nrrd", two_labels(2)), write(tmp_path / "b.nrrd", two_labels())
        assert evaluate(a, b, tolerance=1.0)["1"]["surface_dice"] == 1.0
        assert evaluate(a, b, tolerance=0.9)["1"]["surface_dice"] < 1.0

    def test_pictures(self, tmp_path: Path) -> None:
        mask = np.zeros((8, 9), np.uint8)
        mask[2:5, 2:6] = 255
        for name in "ab":
            sitk.WriteImage(sitk.GetImageFromArray(mask), str(tmp_path / f"{name}.png"))
        assert evaluate(tmp_path / "a.png", tmp_path / "b.png")["255"]["dice"] == 1.0

    def test_undefined_is_null(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.nrrd", np.zeros((4, 5, 6), np.uint8))
        b = write(tmp_path / "b.nrrd", np.pad(np.ones((2, 2, 2), np.uint8), [(1, 1), (1, 2), (2, 2)]))
        found = evaluate(a, b)
        assert found["1"]["hausdorff"] is None
        assert found["mean"]["counted"]["hausdorff"] == 0
        assert "n/a" in found["text"]

    def test_two_images_without_labels(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.nrrd", np.zeros((4, 5, 6), np.uint8))
        found = evaluate(a, a)
        assert found["labels"] == []
        assert found["mean"]["dice"] is None
        assert "nothing to compare" in found["text"]

    def test_result_is_written_as_json(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.nrrd", two_labels())
        found = evaluate(a, a, output=str(tmp_path / "out.json"))
        written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        assert written["mean"]["dice"] == 1.0
        assert written == {k: v for k, v in found.items() if k in written}
        assert written["record"]["command"].startswith("mli evaluate ")
        assert len(written["record"]["inputs"]) == 2

    def test_an_input_is_never_overwritten(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.nrrd", two_labels())
        before = a.read_bytes()
        with pytest.raises(BadInput, match="an input and the output"):
            evaluate(a, a, output=str(a))
        assert a.read_bytes() == before

    def test_another_grid_is_refused_and_nothing_written(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.nrrd", two_labels(), origin=(11.0, -20.0, 30.0))
        b = write(tmp_path / "b.nrrd", two_labels())
        with pytest.raises(BadInput, match="different grids"):
            evaluate(a, b, output=str(tmp_path / "out.json"))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nrrd", "b.nrrd"]

    def test_the_image_instead_of_its_labels_is_refused(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.nrrd", np.linspace(0, 1, 60, dtype=np.float32).reshape(3, 4, 5))
        with pytest.raises(BadInput, match="not a label image"):
            evaluate(a, a)


class TestNames:
    def test_names_from_the_command_line(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.nrrd", two_labels())
        assert evaluate(a, a, labels=("1=anterior", "2=posterior"))["labels"] == ["anterior", "posterior"]

    def test_a_name_for_a_label_that_neither_has_is_reported_as_undefined(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.nrrd", two_labels())
        assert evaluate(a, a, labels=("9=lesion",))["lesion"]["dice"] is None

    @pytest.mark.parametrize("labels", [("anterior",), ("x=1",), ("1=",), ("1=a", "1=b"), ("1=a", "2=a"), ("-1=a",)])
    def test_what_names_no_label_is_refused(self, tmp_path: Path, labels: tuple[str, ...]) -> None:
        a = write(tmp_path / "a.nrrd", two_labels())
        with pytest.raises(BadInput):
            evaluate(a, a, labels=labels)

    def test_segments_have_their_names(self, tmp_path: Path) -> None:
        seg = write(tmp_path / "a.seg.nrrd", two_labels(), **segments({"anterior": 1, "posterior": 2}))
        plain = write(tmp_path / "b.nii.gz", two_labels(1))
        for a, b in ((seg, plain), (plain, seg)):
            found = evaluate(a, b)
            assert found["labels"] == ["anterior", "posterior"]
            assert found["anterior"]["dice"] == pytest.approx(0.75)

    def test_segments_are_matched_by_name_whatever_their_value(self, tmp_path: Path) -> None:
        swapped = np.choose(two_labels(), np.array([0, 2, 1], np.uint8))
        a = write(tmp_path / "a.seg.nrrd", swapped, **segments({"posterior": 1, "anterior": 2}))
        b = write(tmp_path / "b.seg.nrrd", two_labels(), **segments({"anterior": 1, "posterior": 2}))
        found = evaluate(a, b)
        assert found["labels"] == ["anterior", "posterior"]
        assert found["mean"]["dice"] == 1.0

    def test_names_that_do_not_agree_are_matched_by_value_and_said(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.seg.nrrd", two_labels(), **segments({"Segment_1": 1, "Segment_2": 2}))
        b = write(tmp_path / "b.seg.nrrd", two_labels(), **segments({"anterior": 1, "posterior": 2}))
        found = evaluate(a, b)
        assert found["anterior"]["dice"] == 1.0
        assert "Segment_1 with anterior" in found["text"]

    def test_a_segment_named_like_the_mean(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.seg.nrrd", two_labels(), **segments({"mean": 1, "cases": 2}))
        found = evaluate(a, a)
        assert found["labels"] == ["mean (label 1)", "cases (label 2)"]

    def test_two_segments_of_one_name(self, tmp_path: Path) -> None:
        header = segments({"node": 1, "nodes": 2}) | {"Segment1_Name": "node"}
        a = write(tmp_path / "a.seg.nrrd", two_labels(), **header)
        assert evaluate(a, a)["labels"] == ["node (label 1)", "node (label 2)"]


class TestPair:
    def test_a_name_beats_a_value(self) -> None:
        ours = [Label("a", True, 0, 1), Label("b", True, 0, 2)]
        theirs = [Label("b", True, 0, 1), Label("c", True, 0, 2)]
        found, note = label_files.pair(ours, theirs)
        assert found == [("b", ours[1], theirs[0]), ("a", ours[0], None), ("c", None, theirs[1])]
        assert note == ""

    def test_a_value_without_a_name_takes_the_other_sides(self) -> None:
        ours = [Label("1", False, 0, 1), Label("3", False, 0, 3)]
        theirs = [Label("heart", True, 0, 1), Label("2", False, 0, 2)]
        found, _ = label_files.pair(ours, theirs)
        assert found == [("heart", ours[0], theirs[0]), ("2", None, theirs[1]), ("3", ours[1], None)]

    def test_a_value_that_several_layers_share_is_not_guessed(self) -> None:
        ours = [Label("1", False, 0, 1)]
        theirs = [Label("a", True, 0, 1), Label("b", True, 1, 1)]
        found, _ = label_files.pair(ours, theirs)
        assert {(name, a is None) for name, a, _ in found} == {("1", False), ("a", True), ("b", True)}


class TestSlicerFiles:
    FIELDS = (
        "Segment0_ID:=s0\nSegment0_Name:=organ\nSegment0_LabelValue:=1\nSegment0_Layer:=0\n"
        "Segment1_ID:=s1\nSegment1_Name:=tumour\nSegment1_LabelValue:=1\nSegment1_Layer:=1\n"
    )

    def organ_and_tumour(self) -> list[Array]:
        organ, tumour = np.zeros((8, 9, 10), np.uint8), np.zeros((8, 9, 10), np.uint8)
        organ[1:7, 1:7, 1:7], tumour[3:5, 3:5, 3:5] = 1, 1
        return [organ, tumour]

    def test_overlapping_segments_are_each_compared(self, tmp_path: Path) -> None:
        organ, tumour = self.organ_and_tumour()
        a = write_layers(tmp_path / "a.seg.nrrd", [organ, tumour], self.FIELDS)
        b = write_layers(tmp_path / "b.seg.nrrd", [organ, np.roll(tumour, 1, axis=2)], self.FIELDS)
        found = evaluate(a, b)
        assert found["organ"]["tp"] == 216
        assert found["tumour"]["dice"] == 0.5
        assert found["tumour"]["hausdorff"] == pytest.approx(0.5)

    def test_overlapping_segments_against_a_label_map_that_is_named(self, tmp_path: Path) -> None:
        organ, tumour = self.organ_and_tumour()
        a = write_layers(tmp_path / "a.seg.nrrd", [organ, tumour], self.FIELDS)
        b = write(tmp_path / "b.seg.nrrd", 7 * tumour, **segments({"tumour": 7}))
        assert evaluate(a, b)["tumour"]["dice"] == 1.0

    def test_one_layer_a_segment_as_before_slicer_4_11(self, tmp_path: Path) -> None:
        old = "".join(line + "\n" for line in self.FIELDS.splitlines() if "Layer" not in line and "Value" not in line)
        a = write_layers(tmp_path / "a.seg.nrrd", self.organ_and_tumour(), old)
        b = write_layers(tmp_path / "b.seg.nrrd", self.organ_and_tumour(), self.FIELDS)
        found = evaluate(a, b)
        assert found["labels"] == ["organ", "tumour"]
        assert found["mean"]["dice"] == 1.0

    def test_a_segmentation_cropped_to_its_segments(self, tmp_path: Path) -> None:
        names = segments({"anterior": 1, "posterior": 2})
        whole = write(tmp_path / "b.seg.nrrd", two_labels(), **names)
        cropped = two_labels(1)[1:9, 2:11, 3:13]
        a = write(tmp_path / "a.seg.nrrd", cropped, origin=(10 + 3 * 0.5, -20 + 2 * 1.0, 30 + 1 * 2.0), **names)
        full = write(tmp_path / "c.seg.nrrd", two_labels(1), **names)
        expected = evaluate(full, whole)
        for x, y in ((a, whole), (full, whole)):
            found = evaluate(x, y)
            assert {k: found[k] for k in ("anterior", "posterior", "mean")} == {
                k: expected[k] for k in ("anterior", "posterior", "mean")
            }
        assert "different extents" in evaluate(a, whole)["text"]
        assert evaluate(whole, a)["anterior"]["fp"] == expected["anterior"]["fn"]

    def test_a_plain_label_map_of_another_size_is_refused(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.nrrd", two_labels()[1:], origin=(10.0, -20.0, 32.0))
        with pytest.raises(BadInput, match="14 x 12 x 9 voxels"):
            evaluate(a, write(tmp_path / "b.nrrd", two_labels()))

    def test_a_segmentation_off_by_part_of_a_voxel_is_refused(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.seg.nrrd", two_labels()[1:], origin=(10.0, -20.0, 32.5), **segments({"x": 1}))
        with pytest.raises(BadInput, match="14 x 12 x 9 voxels"):
            evaluate(a, write(tmp_path / "b.nrrd", two_labels()))

    def test_a_picture_kept_as_one_slice(self, tmp_path: Path) -> None:
        mask = np.pad(np.ones((3, 4), np.uint8), 2)
        a = write(tmp_path / "a.seg.nrrd", mask[None], **segments({"disc": 1}))
        b = write(tmp_path / "b.nrrd", mask)
        assert evaluate(a, b)["disc"]["dice"] == 1.0
        assert evaluate(b, a)["disc"]["hausdorff"] == 0.0
        c = write(tmp_path / "c.nrrd", np.stack([mask, mask]))
        with pytest.raises(BadInput, match="2-D"):
            evaluate(b, c)

    @pytest.mark.parametrize(
        ("fields", "word"),
        [
            ("", "does not list the segments"),
            ("Segment0_ID:=s0\nSegment0_Layer:=4\n", "more layers"),
            ("Segment0_ID:=s0\nSegment0_LabelValue:=one\n", "damaged header"),
        ],
    )
    def test_a_header_that_says_nothing_useful_is_refused(self, tmp_path: Path, fields: str, word: str) -> None:
        a = write_layers(tmp_path / "a.seg.nrrd", self.organ_and_tumour(), fields)
        with pytest.raises(BadInput, match=word):
            evaluate(a, a)

    def test_a_truncated_segmentation_is_refused(self, tmp_path: Path) -> None:
        a = write_layers(tmp_path / "a.seg.nrrd", self.organ_and_tumour(), self.FIELDS)
        a.write_bytes(a.read_bytes()[:-700])
        with pytest.raises(BadInput, match="cannot be read"):
            evaluate(a, a)

    def test_names_for_values_that_segments_share_are_refused(self, tmp_path: Path) -> None:
        a = write_layers(tmp_path / "a.seg.nrrd", self.organ_and_tumour(), self.FIELDS)
        with pytest.raises(BadInput, match="cannot be given"):
            evaluate(a, a, labels=("1=organ",))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases, one of them shifted; the endings differ."""
    ours, theirs = tmp_path / "predictions", tmp_path / "references"
    for folder in (ours, theirs):
        folder.mkdir()
    for case, shift in (("case_1", 0), ("case_2", 2)):
        write(ours / f"{case}.nii.gz", two_labels(shift))
        write(theirs / f"{case}.nrrd", two_labels())
    (ours / "case_1.json").write_text("{}", encoding="utf-8")
    return ours, theirs


class TestFolders:
    def test_each_case_and_their_mean(self, folders: tuple[Path, Path]) -> None:
        found = evaluate(*folders)
        assert list(found["cases"]) == ["case_1", "case_2"]
        assert found["cases"]["case_2"]["1"]["dice"] == 0.5
        assert found["1"]["dice"] == 0.75
        assert found["1"]["counted"]["dice"] == 2
        assert found["mean"]["dice"] == 0.875
        assert "case_2" in found["text"]

    def test_a_label_that_only_some_cases_have(self, folders: tuple[Path, Path]) -> None:
        array = two_labels()
        array[0, 0, 0] = 3
        write(folders[0] / "case_2.nii.gz", array)
        write(folders[1] / "case_2.nrrd", array)
        found = evaluate(*folders)
        assert found["labels"] == ["1", "2", "3"]
        assert found["3"]["counted"]["dice"] == 1

    def test_a_missing_prediction_is_an_error(self, folders: tuple[Path, Path]) -> None:
        write(folders[1] / "case_3.nrrd", two_labels())
        found = evaluate(*folders)
        assert not found["ok"]
        assert found["errors"] == [f"case_3: {folders[0]} has no prediction for it."]
        assert found["errors"][0] in found["text"]

    def test_a_prediction_without_reference_is_noted(self, folders: tuple[Path, Path]) -> None:
        write(folders[0] / "case_0.nii.gz", two_labels())
        found = evaluate(*folders)
        assert found["ok"]
        assert found["notes"][0].startswith("case_0: not compared")

    def test_a_case_that_cannot_be_compared_does_not_stop_the_others(self, folders: tuple[Path, Path]) -> None:
        (folders[0] / "case_1.nii.gz").write_bytes(b"not an image")
        found = evaluate(*folders)
        assert not found["ok"]
        assert list(found["cases"]) == ["case_2"]
        assert found["errors"][0].startswith("case_1: ")

    def test_nothing_in_common_is_refused(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        with pytest.raises(BadInput, match="holds no label maps"):
            evaluate(other, folders[1])
        write(other / "elsewhere.nii.gz", two_labels())
        with pytest.raises(BadInput, match="has the name of one"):
            evaluate(other, folders[1])
        write(other / "case_1.nii.gz", two_labels()[1:])
        with pytest.raises(BadInput, match="None of the 1 cases"):
            evaluate(other, folders[1])

    def test_two_files_of_one_case_are_refused(self, folders: tuple[Path, Path]) -> None:
        write(folders[0] / "case_1.nrrd", two_labels())
        with pytest.raises(BadInput, match="two files for the case case_1"):
            evaluate(*folders)

    def test_a_folder_and_a_file_are_refused(self, folders: tuple[Path, Path]) -> None:
        with pytest.raises(BadInput, match="a folder and a file"):
            evaluate(folders[0], folders[1] / "case_1.nrrd")


class TestTable:
    def test_few_labels_show_every_metric(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.nrrd", two_labels())
        lines = evaluate(a, a, tolerance=2.5)["text"].splitlines()
        assert lines[0].split() == ["1", "2", "mean"]
        assert sum(line.startswith(tuple(METRICS.values())) for line in lines) == len(METRICS)
        assert any(line.startswith("Surface Dice at 2.5 mm") for line in lines)

    def test_many_labels_have_a_row_each(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.nrrd", np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
        found = compare_files(a, a)
        text = format_table({**found, "errors": []})
        assert len(text.split("\n\n")[0].splitlines()) == 2 + 59 + 1
        assert max(map(len, text.splitlines())) <= 120


class TestCommandLine:
    def test_json_and_nothing_else(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        a, b = write(tmp_path / "a.nrrd", two_labels(1)), write(tmp_path / "b.nrrd", two_labels())
        assert cli.main(["evaluate", str(a), str(b), "--json", "--tolerance", "0.4"]) == 0
        found = json.loads(capfd.readouterr().out)
        assert found["1"]["dice"] == pytest.approx(0.75)
        assert found["1"]["surface_dice"] < 1.0

    def test_a_missing_prediction_is_seen_by_the_shell(
        self, folders: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
    ) -> None:
        write(folders[1] / "case_3.nrrd", two_labels())
        assert cli.main(["evaluate", str(folders[0]), str(folders[1])]) == 1
        assert "case_3" in capfd.readouterr().out

    def test_bad_input_is_one_sentence_and_exit_2(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        a = write(tmp_path / "a.nrrd", two_labels())
        assert cli.main(["evaluate", str(a), str(tmp_path / "none.nrrd")]) == 2
        captured = capfd.readouterr()
        assert captured.out == ""
        assert "does not exist" in captured.err

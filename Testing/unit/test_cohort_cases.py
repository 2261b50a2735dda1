"""The cases of a cohort, from folders, tables and data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from MLILib.cohort.cases import CohortCase, read
from MLILib.errors import BadInput


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


class TestFolder:
    def test_each_image_is_a_case(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.nii.gz", "a.nrrd", "notes.txt", ".hidden.nii.gz")
        assert read(tmp_path) == [
            CohortCase("a", (str(tmp_path / "a.nrrd"),)),
            CohortCase("b", (str(tmp_path / "b.nii.gz"),)),
        ]

    def test_numbered_channels_are_one_case(self, tmp_path: Path) -> None:
        touch(tmp_path, "p1_0001.nii.gz", "p1_0000.nii.gz", "p2_0000.nii.gz", "p2_0001.nii.gz")
        assert [(c.name, [Path(p).name for p in c.images]) for c in read(tmp_path)] == [
            ("p1", ["p1_0000.nii.gz", "p1_0001.nii.gz"]),
            ("p2", ["p2_0000.nii.gz", "p2_0001.nii.gz"]),
        ]

    def test_other_numbers_are_names(self, tmp_path: Path) -> None:
        touch(tmp_path, "visit_2019.nii.gz", "visit_2021.nii.gz")
        assert [c.name for c in read(tmp_path)] == ["visit_2019", "visit_2021"]

    def test_a_folder_of_slices_is_a_case(self, tmp_path: Path) -> None:
        touch(tmp_path, "anna/1.dcm", "anna/2.dcm", "ben/1.dcm")
        (tmp_path / "empty").mkdir()
        assert [(c.name, c.images) for c in read(tmp_path)] == [
            ("anna", (str(tmp_path / "anna"),)),
            ("ben", (str(tmp_path / "ben"),)),
        ]

    def test_refusals(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="holds no case"):
            read(tmp_path)
        touch(tmp_path, "a.nii.gz", "A.nrrd")
        with pytest.raises(BadInput, match="several cases named a"):
            read(tmp_path)


class TestTable:
    def table(self, folder: Path, text: str) -> Path:
        path = folder / "cohort.csv"
        path.write_text(text, encoding="utf-8")
        return path

    def test_names_and_channels(self, tmp_path: Path) -> None:
        path = self.table(tmp_path, "case,age,image_10,image_2\nx,40,flair.nii,t1.nii\n,41,f/y.nii,z.nii\n")
        assert read(path) == [
            CohortCase("x", (str(tmp_path / "t1.nii"), str(tmp_path / "flair.nii"))),
            CohortCase("z", (str(tmp_path / "z.nii"), str(tmp_path / "f/y.nii"))),
        ]

    def test_a_byte_order_mark_is_no_part_of_a_name(self, tmp_path: Path) -> None:
        assert [c.name for c in read(self.table(tmp_path, "\ufeffimage\na.nii.gz\n"))] == ["a"]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("file\na.nii\n", "no column image"),
            ("image\n", "holds no case"),
            ("image,case\na.nii,x\n,y\n", "Line 3 .* names no image"),
            ("image,case\na.nii,../x\n", "cannot name a file"),
            ("image,case\na.nii,x\nb.nii,x\n", "several cases named x"),
        ],
    )
    def test_refusals(self, tmp_path: Path, text: str, words: str) -> None:
        with pytest.raises(BadInput, match=words):
            read(self.table(tmp_path, text))


class TestDataset:
    def test_training_and_test_cases(self, tmp_path: Path) -> None:
        path = tmp_path / "dataset.json"
        entries = {"training": [{"image": "./i/a.nii.gz", "label": "l"}], "test": ["./i/b.nii.gz"]}
        path.write_text(json.dumps(entries), encoding="utf-8")
        assert [(c.name, c.images) for c in read(path)] == [
            ("a", (str(tmp_path / "i/a.nii.gz"),)),
            ("b", (str(tmp_path / "i/b.nii.gz"),)),
        ]

    def test_refusals(self, tmp_path: Path) -> None:
        path = tmp_path / "dataset.json"
        for text in ("[1]", "{", '{"training": [{"label": "x"}]}'):
            path.write_text(text, encoding="utf-8")
            with pytest.raises(BadInput, match="not in the Decathlon format"):
                read(path)
        (tmp_path / "list.txt").touch()
        with pytest.raises(BadInput, match="is not a cohort"):
            read(tmp_path / "list.txt")

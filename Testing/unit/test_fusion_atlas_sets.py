"""Atlas sets: every layout is read, what is ambiguous or incomplete is refused, and labels get common values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from MLILib.errors import BadInput
from MLILib.fusion import atlas_labels, atlas_sets
from MLILib.geometry import Grid, from_array, same_grid
from MLILib.labels import Label
from MLILib.segmentation import seg_nrrd


def touch(folder: Path, *names: str) -> Path:
    """Empty files; their content is not looked at here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def pairs(path: Path) -> dict[str, tuple[str, str]]:
    base = path if path.is_dir() else path.parent
    return {
        one.name: (Path(one.image).relative_to(base).as_posix(), Path(one.labels).relative_to(base).as_posix())
        for one in atlas_sets.read(path).atlases
    }


def dataset(folder: Path, **data: Any) -> Path:
    (folder / "dataset.json").write_text(json.dumps(data), encoding="utf-8")
    return folder / "dataset.json"


class TestLayouts:
    def test_two_folders(self, tmp_path: Path) -> None:
        touch(tmp_path, "imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz", "notes.txt")
        touch(tmp_path, "imagesTs/c.nii.gz", "imagesTr/._a.nii.gz")
        assert pairs(tmp_path) == {name: (f"imagesTr/{name}.nii.gz", f"labelsTr/{name}.nii.gz") for name in "ab"}

    def test_two_folders_beside_masks_and_with_other_endings(self, tmp_path: Path) -> None:
        touch(tmp_path, "image/a.mha", "label/a.nrrd", "mask/a.nrrd")
        assert pairs(tmp_path) == {"a": ("image/a.mha", "label/a.nrrd")}

    def test_masks_where_there_is_nothing_else(self, tmp_path: Path) -> None:
        touch(tmp_path, "images/a.png", "masks/a_mask.png")
        assert pairs(tmp_path) == {"a": ("images/a.png", "masks/a_mask.png")}

    def test_folders_in_the_two_folders(self, tmp_path: Path) -> None:
        touch(tmp_path, "images/x/1.nii", "images/y/1.nii", "labels/x/1.nii", "labels/y/1.nii")
        assert pairs(tmp_path) == {f"{k}/1": (f"images/{k}/1.nii", f"labels/{k}/1.nii") for k in "xy"}

    def test_nnunet(self, tmp_path: Path) -> None:
        touch(tmp_path, "imagesTr/c_001_0000.nii.gz", "labelsTr/c_001.nii.gz")
        dataset(tmp_path, labels={"background": 0, "left": 1, "right": 2}, channel_names={"0": "MRI"})
        assert pairs(tmp_path) == {"c_001": ("imagesTr/c_001_0000.nii.gz", "labelsTr/c_001.nii.gz")}
        assert atlas_sets.read(tmp_path).names == {1: "left", 2: "right"}

    @pytest.mark.parametrize(
        ("image", "labels"),
        [
            ("t1.nii.gz", "t1_seg.nii.gz"),
            ("t1.nii.gz", "t1_label.nii.gz"),
            ("t1.nrrd", "t1-label.nrrd"),
            ("t1.nrrd", "t1.seg.nrrd"),
            ("T1.nrrd", "T1-labels.mha"),
            ("t1_image.nii", "t1_labelmap.nii"),
            ("img01.png", "seg01.png"),
            ("image_01.nii.gz", "label_01.nii.gz"),
            ("sub-01_T1w.nii.gz", "sub-01_T1w_dseg.nii.gz"),
        ],
    )
    def test_side_by_side(self, tmp_path: Path, image: str, labels: str) -> None:
        touch(tmp_path, image, labels)
        assert list(pairs(tmp_path).values()) == [(image, labels)]

    def test_a_folder_for_each_subject(self, tmp_path: Path) -> None:
        touch(tmp_path, "s1/brain.nii.gz", "s1/brain_seg.nii.gz", "s2/mr.nrrd", "s2/Segmentation.seg.nrrd", "log/x.txt")
        assert pairs(tmp_path) == {
            "s1": ("s1/brain.nii.gz", "s1/brain_seg.nii.gz"),
            "s2": ("s2/mr.nrrd", "s2/Segmentation.seg.nrrd"),
        }

    def test_decathlon(self, tmp_path: Path) -> None:
        touch(tmp_path, "i/b.nii.gz", "i/a.nii.gz", "l/b.nii.gz", "l/a.nii.gz")
        listed = dataset(
            tmp_path,
            labels={"0": "background", "3": "hilus"},
            training=[{"image": f"./i/{k}.nii.gz", "label": f"./l/{k}.nii.gz"} for k in "ba"],
        )
        assert list(pairs(listed)) == ["a", "b"]
        found = atlas_sets.read(tmp_path)  # the folder of a dataset.json stands for it
        assert found.names == {3: "hilus"}
        assert [one.name for one in found.atlases] == ["a", "b"]

    def test_decathlon_of_files_with_one_name(self, tmp_path: Path) -> None:
        touch(tmp_path, "s1/t1.nii", "s1/l.nii", "s2/t1.nii", "s2/l.nii")
        entries = [{"image": f"s{i}/t1.nii", "label": f"s{i}/l.nii"} for i in (1, 2)]
        dataset(tmp_path, labels={"1": "a"}, training=entries)
        assert set(pairs(tmp_path)) == {"s1/t1", "s2/t1"}


class TestRefusal:
    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (("a.nii", "a_seg.nii", "a_label.nii"), "a_label.nii and a_seg.nii are label maps of one name"),
            (("imagesTr/a.nii", "imagesTr/a.nrrd", "labelsTr/a.nii"), "are images of one name"),
            (("images/a.nii", "imagesTr/a.nii", "labels/a.nii"), "folders imagesTr, images"),
            (("s1/t1.nii", "s1/t2.nii", "s1/t1_seg.nii"), "2 images .* and 1 label map"),
            (("a.nii", "a_seg.nii", "s1/b.nii", "s1/b_seg.nii"), "a.nii.* and in its folder s1"),
        ],
    )
    def test_what_is_ambiguous(self, tmp_path: Path, names: tuple[str, ...], said: str) -> None:
        with pytest.raises(BadInput, match="not clear which images and labels") as error:
            atlas_sets.read(touch(tmp_path, *names))
        assert re.search(said, str(error.value))

    def test_no_atlas(self, tmp_path: Path) -> None:
        touch(tmp_path, "readme.txt")
        with pytest.raises(BadInput, match="holds no atlas"):
            atlas_sets.read(tmp_path)

    def test_a_single_image_is_no_set(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="not an atlas set"):
            atlas_sets.read(touch(tmp_path, "a.nii") / "a.nii")

    def test_an_image_without_labels(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.nii", "a_seg.nii", "b.nii", "c.nii")
        with pytest.raises(BadInput, match=r"b\.nii has no labels\. 1 more"):
            atlas_sets.read(tmp_path)
        assert [Path(one).name for one in atlas_sets.find(tmp_path).unlabelled] == ["b.nii", "c.nii"]

    def test_labels_without_an_image(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"b_seg\.nii has no image"):
            atlas_sets.read(touch(tmp_path, "a.nii", "a_seg.nii", "b_seg.nii"))

    def test_several_channels(self, tmp_path: Path) -> None:
        touch(tmp_path, "imagesTr/c_0000.nii", "imagesTr/c_0001.nii", "labelsTr/c.nii")
        with pytest.raises(BadInput, match="several channels"):
            atlas_sets.read(tmp_path)

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ({"labels": {"1": "a"}, "training": []}, "has no 'training'"),
            ({"labels": {"1": "a"}, "training": [{"image": ["a", "b"], "label": "c"}]}, "one image with its labels"),
            ({"labels": ["a"], "training": [{"image": "a.nii", "label": "a_seg.nii"}]}, "not numbered"),
            ({"labels": {"a": 1, "b": 1}, "training": [{"image": "a.nii", "label": "a_seg.nii"}]}, "twice"),
            ({"labels": {"a": [1, 2]}, "training": [{"image": "a.nii", "label": "a_seg.nii"}]}, "not numbered"),
            ({"labels": {"1": "a"}, "training": [{"image": "a.nii"}]}, "has no labels"),
            (
                {"labels": {"1": "a"}, "training": [{"image": "a.nii", "label": "gone.nii"}]},
                r"gone\.nii does not exist",
            ),
        ],
    )
    def test_a_wrong_dataset(self, tmp_path: Path, data: dict[str, Any], said: str) -> None:
        touch(tmp_path, "a.nii", "a_seg.nii")
        with pytest.raises(BadInput, match=said):
            atlas_sets.read(dataset(tmp_path, **data))

    def test_no_json(self, tmp_path: Path) -> None:
        (tmp_path / "dataset.json").write_text("{", encoding="utf-8")
        with pytest.raises(BadInput, match="not a JSON file"):
            atlas_sets.read(tmp_path)


GRID = Grid((5, 4, 3), (1.0, 2.0, 3.0), (10.0, 20.0, 30.0), (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))


def plain(path: Path, *values: int) -> Path:
    """A label map that holds these values, a voxel each."""
    array = np.zeros(GRID.shape, np.uint8)
    array.ravel()[: len(values)] = values
    sitk.WriteImage(from_array(array, GRID), str(path))
    return path


def segments(path: Path, **names: int) -> Path:
    """A .seg.nrrd with a voxel of each value."""
    array = np.zeros(GRID.shape, np.uint8)
    array.ravel()[: len(names)] = list(names.values())
    made = [Label(value, name, (0.25, 0.5, value / 100), "") for name, value in names.items()]
    seg_nrrd.write(from_array(array, GRID), made, str(path))
    return path


def common(*paths: Path, names: dict[int, str] | None = None) -> atlas_labels.Common:
    maps = [atlas_labels.drawn(atlas_labels.read(path), path.name, path) for path in paths]
    return atlas_labels.common(maps, names, "The list")


class TestCommonLabels:
    def test_segments_are_one_label_where_they_have_one_name(self, tmp_path: Path) -> None:
        a, b = segments(tmp_path / "a.seg.nrrd", left=1, right=2), segments(tmp_path / "b.seg.nrrd", right=1, left=5)
        found = common(a, b)
        assert [(one.value, one.name) for one in found.labels] == [(1, "left"), (2, "right")]
        assert found.labels[0].color == pytest.approx((0.25, 0.5, 0.01))  # as the first file has it
        image = found.image(atlas_labels.read(b))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).ravel()[:3], [2, 1, 0])
        assert same_grid(image, GRID)

    def test_a_value_that_is_taken_is_not_given_twice(self, tmp_path: Path) -> None:
        found = common(segments(tmp_path / "a.seg.nrrd", left=1), segments(tmp_path / "b.seg.nrrd", right=1))
        assert {one.name: one.value for one in found.labels} == {"left": 1, "right": 2}

    def test_declared_names(self, tmp_path: Path) -> None:
        found = common(plain(tmp_path / "a.nrrd", 1, 3), plain(tmp_path / "b.nrrd", 3), names={1: "one", 3: "three"})
        assert [(one.value, one.name) for one in found.labels] == [(1, "one"), (3, "three")]
        assert found.warnings == ("1 of 2 have drawn the label one; b.nrrd does not.",)

    def test_undeclared_values_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"b\.nrrd hold the value 7"):
            common(plain(tmp_path / "a.nrrd", 1), plain(tmp_path / "b.nrrd", 1, 7), names={1: "one"})

    def test_different_codes_are_refused(self, tmp_path: Path) -> None:
        a, b, c = (plain(tmp_path / f"{k}.nrrd", *v) for k, v in {"a": [1], "b": [1], "c": [255]}.items())
        with pytest.raises(BadInput, match=r"different values: 1 and 255"):
            common(a, b, c)
        d, e = plain(tmp_path / "d.nrrd", 1, 2), plain(tmp_path / "e.nrrd", 1, 3)
        with pytest.raises(BadInput, match="different values"):
            common(d, e)

    def test_a_rater_may_lack_labels(self, tmp_path: Path) -> None:
        maps = [plain(tmp_path / f"{i}.nrrd", *v) for i, v in enumerate([(1, 2, 3), (1, 3), (2, 3), (), (3, 2, 1)])]
        assert [one.value for one in common(*maps).labels] == [1, 2, 3]

    def test_all_empty(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="empty"):
            common(plain(tmp_path / "a.nrrd"), plain(tmp_path / "b.nrrd"))

    def test_a_cropped_segmentation_is_put_back(self, tmp_path: Path) -> None:
        array = np.zeros(GRID.shape, np.uint8)
        array[1:3, 2:4, 1:3] = 1
        part = from_array(array, GRID)[1:4, 1:, 1:]
        path = tmp_path / "a.seg.nrrd"
        seg_nrrd.write(part, [Label(1, "x", (1, 0, 0), "")], str(path))
        placed = atlas_labels.placed(atlas_labels.read(path), GRID)
        assert placed is not None
        np.testing.assert_array_equal(placed.layers[0], array)
        moved = Grid(GRID.size, GRID.spacing, (10.4, 20.0, 30.0), GRID.direction)
        assert atlas_labels.placed(atlas_labels.read(path), moved) is None

    def test_overlapping_segments_are_refused(self, tmp_path: Path) -> None:
        stack = from_array(np.ones((*GRID.shape, 2), np.uint8), GRID, vector=True)
        seg_nrrd.write(stack, [Label(i, f"s{i}", (1, 0, 0), "") for i in (1, 2)], str(tmp_path / "a.seg.nrrd"))
        with pytest.raises(BadInput, match="overlap"):
            atlas_labels.read(tmp_path / "a.seg.nrrd")

    def test_names_of_raters(self) -> None:
        assert atlas_labels.rater_names(["x/a.nii.gz", "y/b.seg.nrrd"]) == ["a", "b"]
        assert atlas_labels.rater_names(["x/a.nii", "y/a.nii"]) == ["x/a", "y/a"]
        assert atlas_labels.rater_names(["x/a.nii", "x/a.nrrd"]) == ["x/a (1)", "x/a (2)"]

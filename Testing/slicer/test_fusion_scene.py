"""Atlases and raters in a scene: which belong together, their labels, the grid they were drawn on, and the report."""

import json
import math

import numpy as np
import pytest
import slicer

pytest.importorskip("PySide6", reason="PySide6 is not installed")

from scenes import add_volume, linear, motion
from test_fusion_widget import add_segmentation


@pytest.fixture(autouse=True)
def empty_scene(standin):
    """Every test begins with an empty scene."""
    slicer.mrmlScene.Clear()


def hierarchy():
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)


def under(item, *nodes):
    """Put nodes below an item of the tree."""
    for node in nodes:
        hierarchy().SetItemParent(hierarchy().GetItemByDataNode(node), item)


def alone(name):
    """A segmentation that does not say where it was drawn."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.GetSegmentation().AddEmptySegment("one", "one")
    return node


def volume(name):
    return add_volume(name, size=(5, 4, 3))


def drained(steps):
    """The result of steps that need nobody's answer."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value


class TestPairs:
    def read(self, *members, without=()):
        from MLISlicerLib import fusion_atlases

        found = fusion_atlases.read(fusion_atlases.make_folder("Atlases", members), without)
        return [(one.volume.GetName(), one.segmentation.GetName()) for one in found.atlases], list(found.notes)

    def test_a_segmentation_belongs_to_the_volume_it_was_drawn_on(self):
        a, b = volume("a"), volume("b")
        pairs, notes = self.read(a, b, add_segmentation("x", b), add_segmentation("y", a))
        assert pairs == [("a", "y"), ("b", "x")]
        assert notes == []

    def test_else_to_the_one_it_lies_below(self):
        a, b, x = volume("a"), volume("b"), alone("x")
        from MLISlicerLib import fusion_atlases

        folder = fusion_atlases.make_folder("Atlases", [a, b, x])
        under(hierarchy().GetItemByDataNode(b), x)
        pairs = [(one.volume, one.segmentation) for one in fusion_atlases.read(folder).atlases]
        assert pairs == [(b, x)]

    def test_else_to_the_one_it_shares_a_folder_with(self):
        from MLISlicerLib import fusion_atlases

        folder = fusion_atlases.make_folder("Atlases", [])
        top = hierarchy().GetItemByUID(fusion_atlases._UID, folder)
        expected = []
        for number in (1, 2):
            pair = volume(f"scan {number}"), alone(f"drawn {number}")
            under(hierarchy().CreateFolderItem(top, f"patient {number}"), *pair)
            expected.append(pair)
        assert [(one.volume, one.segmentation) for one in fusion_atlases.read(folder).atlases] == expected
        assert list(fusion_atlases.folders().values()) == ["Atlases (2 atlases)"]  # and not those of each patient

    def test_else_to_the_one_whose_name_it_begins_with(self):
        pairs, notes = self.read(volume("brain 1"), volume("brain 10"), alone("brain 10_seg"), alone("Brain 1 labels"))
        assert pairs == [("brain 1", "Brain 1 labels"), ("brain 10", "brain 10_seg")]
        assert notes == []

    def test_what_is_left_over_is_told(self):
        a, b = volume("a"), volume("b")
        lost, empty = alone("lost"), slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "b empty")
        labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "map")
        pairs, notes = self.read(a, b, add_segmentation("x", a), add_segmentation("y", a), lost, empty, labels)
        assert pairs == [("a", "x")]
        assert notes == [
            "a has two segmentations: x is used, y is not.",
            "lost has no volume.",
            "b empty has no segment.",
            "b has no segmentation.",
            "map is a label map: convert it to a segmentation.",
        ]

    def test_the_target_and_what_was_drawn_on_it_take_no_part(self):
        a, b = volume("a"), volume("b")
        pairs, notes = self.read(a, b, add_segmentation("x", a), add_segmentation("y", b), without=[b])
        assert pairs == [("a", "x")]
        assert notes == []

    def test_atlases_outside_of_folders_are_offered_as_the_whole_scene(self):
        from MLISlicerLib import fusion_atlases

        assert fusion_atlases.folders() == {}
        a = volume("a")
        add_segmentation("x", a)
        assert fusion_atlases.folders() == {fusion_atlases.WHOLE_SCENE: "The whole scene (1 atlas)"}
        assert fusion_atlases.read(fusion_atlases.WHOLE_SCENE).atlases[0].volume is a


class TestLabels:
    def test_segments_of_one_name_are_one_label(self):
        from MLISlicerLib.scene_labels import SceneLabels

        a = volume("a")
        first, second = add_segmentation("1", a, ("Left", "right")), add_segmentation("2", a, ("right", "left", "x y"))
        first.GetSegmentation().GetSegment("Left").SetColor(0.1, 0.2, 0.3)
        labels = SceneLabels.of([first, second])
        assert [(one["value"], one["name"]) for one in labels.labels] == [(1, "Left"), (2, "right"), (3, "x y")]
        assert labels.values == ({"Left": 1, "right": 2}, {"right": 2, "left": 1, "x y": 3})
        known = labels.known({"value": 7, "name": "LEFT", "color": [1, 1, 1], "terminology": "", "voxels": 4})
        assert (known["value"], known["name"], known["voxels"]) == (7, "Left", 4)
        np.testing.assert_allclose(known["color"], (0.1, 0.2, 0.3))
        assert labels.known({"value": 9, "name": "else", "color": [1, 0, 0]})["color"] == [1, 0, 0]

    def test_files_are_called_as_the_nodes(self):
        from MLISlicerLib.fusion_atlases import file_names

        assert file_names(["a b", "c/d:e", "A B", "x_0000", "..", "a  b"]) == [
            "a b", "c_d_e", "A B (2)", "x_0", "unnamed", "a b (3)",
        ]  # fmt: skip

    def test_what_is_written_is_read_by_the_library(self, tmp_path):
        """As a data set of pairs on one grid each, oblique and under a transform, with names and values."""
        from MLILib.fusion import atlas_sets
        from MLILib.metrics import label_array
        from MLILib.segmentation import label_files
        from MLISlicerLib import fusion_atlases, nodes

        pairs = []
        for number in (1, 2):
            a = add_volume(f"brain {number}", size=(20, 18, 16))
            a.SetAndObserveTransformNodeID(linear(slicer.mrmlScene, motion(number)).GetID())
            pairs.append((a, add_segmentation(f"drawn {number}", a, ("left", "right")[:: 1 if number == 1 else -1])))
        files = {}
        listing = drained(fusion_atlases.write(fusion_atlases.of_pairs(pairs), tmp_path, files, "Brains"))
        found = atlas_sets.read(listing)
        assert found.names == {1: "left", 2: "right"}
        assert [atlas.name for atlas in found.atlases] == ["brain 1", "brain 2"]
        assert set(files) == {
            listing,
            *(tmp_path.joinpath(path) for one in found.atlases for path in (one.image, one.labels)),
        }
        import SimpleITK as sitk

        for atlas, (a, drawn) in zip(found.atlases, pairs, strict=True):
            image, expected = sitk.ReadImage(atlas.image), nodes.image_of(a)
            np.testing.assert_allclose(image.GetOrigin(), expected.GetOrigin(), atol=1e-9)
            np.testing.assert_allclose(image.GetDirection(), expected.GetDirection(), atol=1e-9)
            labels = label_array(sitk.ReadImage(atlas.labels), atlas.name)
            for value, name in found.names.items():
                own = slicer.util.arrayFromSegmentBinaryLabelmap(drawn, name, a)
                np.testing.assert_array_equal(labels == value, own == 1)
        assert label_files.read(found.atlases[0].labels).layers


class TestGrids:
    def test_a_segmentation_knows_the_grid_it_was_drawn_on(self):
        from MLISlicerLib import nodes

        a = add_volume("a", size=(20, 18, 16))
        a.SetAndObserveTransformNodeID(linear(slicer.mrmlScene, motion(2)).GetID())
        drawn = add_segmentation("x", a)
        assert nodes.same_grid(nodes.grid_of_segmentation(drawn), nodes.grid_of(a))
        a.SetAndObserveTransformNodeID(None)
        assert not nodes.same_grid(nodes.grid_of_segmentation(drawn), nodes.grid_of(a))

    def test_one_that_does_not_say_so_is_refused(self):
        from MLILib.errors import BadInput
        from MLISlicerLib import nodes

        with pytest.raises(BadInput, match="lost does not say on which grid"):
            nodes.grid_of_segmentation(alone("lost"))

    def test_a_segmentation_is_filled_on_a_grid_without_a_volume(self):
        from MLISlicerLib import nodes

        a = add_volume("a", size=(5, 4, 3))
        grid = nodes.grid_of(a)
        scalars = nodes.Scalars()
        scalars.allocate(np.dtype(np.uint8), 60)[:] = np.arange(60) % 3
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "made")
        labels = [{"value": v, "name": f"label {v}", "color": (1, 0, 0)} for v in (1, 2)]
        nodes.fill_segmentation(node, [scalars], labels, grid)
        assert nodes.same_grid(nodes.grid_of_segmentation(node), grid)
        identifier = node.GetSegmentation().GetSegmentIDs()[1]
        found = slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, a)
        np.testing.assert_array_equal(found.reshape(-1), np.arange(60) % 3 == 2)


class TestReport:
    @pytest.fixture
    def details(self):
        """A result whose numbers are known."""
        from fake_worker import report

        labels = [{"value": v, "name": name, "volume_ml": v / 2} for v, name in ((1, "left"), (2, "right"))]
        return {"method": "simple", "labels": labels, "report": report(["a", "b", "c"], labels, 1000), "warnings": []}

    @pytest.mark.parametrize(
        ("kappa", "word"),
        [
            (1.0, "almost perfect"),
            (0.8, "substantial"),
            (0.41, "moderate"),
            (0.4, "fair"),
            (0.0, "slight"),
            (-0.3, "poor"),
        ],
    )
    def test_kappa_in_the_words_of_landis_and_koch(self, details, kappa, word):
        """Their ranges: up to .2 slight, .4 fair, .6 moderate, .8 substantial, above almost perfect; below 0 poor."""
        from MLISlicerLib import fusion_report

        details["report"]["agreement"]["kappa"] = kappa
        assert f"{word} agreement" in fusion_report.words(details, "raters")

    def test_words(self, details):
        from MLISlicerLib import fusion_report

        text = fusion_report.words(details, "atlases")
        assert "<b>3 atlases</b>, SIMPLE" in text
        assert "left 0.50 ml, right 1.00 ml" in text
        assert "0.71 to 0.73" in text
        details["report"]["agreement"]["kappa"] = None
        assert "kappa" not in fusion_report.words(details, "atlases")

    def test_one_who_was_dropped_is_marked(self, details):
        from MLISlicerLib import fusion_report

        details["report"]["raters"][1]["kept"] = False
        assert fusion_report.table(details)["Rater"][2] == "b (dropped)"

    def test_weights_of_labels_and_of_raters(self, details):
        from MLISlicerLib import fusion_report

        assert fusion_report.table(details)["Weight"] == [0.5, 0.5, 0.25, 0.25, 0.1667, 0.1667]
        for rater in details["report"]["raters"]:
            rater["weight"] = None
            for k, label in enumerate(rater["labels"]):
                label["weight"] = k / 10
        details["report"]["measure"] = "theta"
        assert fusion_report.table(details)["Theta"] == [0.0, 0.1] * 3
        assert fusion_report._weights(details["report"], True) == {"Theta, left": [0.0] * 3, "Theta, right": [0.1] * 3}
        assert fusion_report._weights(details["report"], False) == {"Theta, mean": [0.05] * 3}
        details["report"]["measure"] = None
        assert "Theta" not in fusion_report.table(details)

    def test_the_range_of_the_map(self, details):
        """Three raters and three labels with the background can differ by log2(3) bits; one rater by none."""
        from MLISlicerLib import fusion_report

        assert fusion_report.largest_entropy(details) == pytest.approx(math.log2(3))
        details["report"]["raters"] = details["report"]["raters"][:1]
        assert fusion_report.largest_entropy(details) == 1.0

    def test_states(self):
        from MLISlicerLib.fusion_report import states
        from MLISlicerLib.state_list import State

        outcomes = [
            {"name": "a", "status": "used", "reason": "", "seconds": 75.0, "cached": False},
            {"name": "b", "status": "used", "reason": "", "seconds": 0.1, "cached": True},
            {"name": "c", "status": "used", "reason": "", "seconds": 0.0, "cached": False},
            {"name": "d", "status": "failed", "reason": "Why.", "seconds": 1.0, "cached": False},
        ]
        assert states({"raters": outcomes}) == [
            State("a", "done", "1 min 15 s"), State("b", "cached"), State("c", "used"), State("d", "failed", "Why."),
        ]  # fmt: skip


def test_records_name_a_folder_of_the_scene(tmp_path):
    from MLISlicerLib.wording import record_text

    a = volume("brain 1")
    files = {tmp_path / "job" / "atlases" / "images" / "x.nrrd": a, tmp_path / "job" / "set.json": "My atlases"}
    record = {"paths": [str(path) for path in files], "out": str(tmp_path / "job" / "out.nrrd")}
    assert json.loads(record_text(record, files)) == {"paths": ["brain 1.nrrd", "My atlases"], "out": "out.nrrd"}

"""Landmark files: Slicer's own writers as oracle, tables, and which points correspond."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from MLILib.errors import BadInput
from MLILib.registration import landmarks
from MLILib.registration.landmarks import Landmarks

RAS = [[1.0, 2.0, 3.0], [-4.5, 5.0, 6.25], [7.0, -8.0, 9.0], [0.0, 0.5, -10.0]]
LPS = np.array(RAS) * (-1.0, -1.0, 1.0)


def written(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def some(labels: tuple[str, ...], shift: float = 0.0) -> Landmarks:
    return Landmarks(np.arange(3.0 * len(labels)).reshape(-1, 3) + shift, labels)


class TestSlicer:
    """What Slicer writes is read as it meant it."""

    @pytest.mark.parametrize(
        ("storage", "name"),
        [("vtkMRMLMarkupsJsonStorageNode", "p.mrk.json"), ("vtkMRMLMarkupsFiducialStorageNode", "p.fcsv")],
    )
    @pytest.mark.parametrize("system", ["LPS", "RAS"])
    def test_written_by_slicer(self, tmp_path: Path, storage: str, name: str, system: str) -> None:
        slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
        scene, node = slicer.vtkMRMLScene(), slicer.vtkMRMLMarkupsFiducialNode()
        scene.AddNode(node)
        labels = ("tip", 'a, b "c"', "left", "4")
        for position, label in zip(RAS, labels, strict=True):
            node.AddControlPoint(*position, label)
        writer = getattr(slicer, storage)()
        scene.AddNode(writer)
        getattr(writer, f"Use{system}On")()
        writer.SetFileName(str(tmp_path / name))
        assert writer.WriteData(node)
        found = landmarks.read(tmp_path / name)
        assert system in (tmp_path / name).read_text(encoding="utf-8")
        assert found.labels == labels
        np.testing.assert_allclose(found.points, LPS, atol=1e-9)

    @pytest.mark.parametrize(
        ("header", "sign"), [("", -1), ("# CoordinateSystem = 0\n", -1), ("# CoordinateSystem = 1\n", 1)]
    )
    def test_older_fcsv(self, tmp_path: Path, header: str, sign: int) -> None:
        text = f"# Markups fiducial file version = 4.6\n{header}" + "".join(
            f"vtkMRMLMarkupsFiducialNode_{i},{x},{y},{z},0,0,0,1,1,1,0,F-{i},,\n" for i, (x, y, z) in enumerate(RAS)
        )
        found = landmarks.read(written(tmp_path, "old.fcsv", text))
        np.testing.assert_allclose(found.points, np.array(RAS) * (sign, sign, 1))
        assert found.labels == ("F-0", "F-1", "F-2", "F-3")

    def test_voxel_indices_are_refused(self, tmp_path: Path) -> None:
        path = written(tmp_path, "ijk.fcsv", "# CoordinateSystem = 2\n1,1,2,3,0,0,0,1,1,1,0,F-1,,\n")
        with pytest.raises(BadInput, match="IJK"):
            landmarks.read(path)

    @pytest.mark.parametrize("name", ["p.mrk.json", "p.fcsv"])
    def test_unplaced_point_is_named(self, tmp_path: Path, name: str) -> None:
        point = {"label": "apex", "position": "", "positionStatus": "undefined"}
        text = json.dumps({"markups": [{"type": "Fiducial", "controlPoints": [point]}]})
        if name.endswith("fcsv"):
            text = "# CoordinateSystem = LPS\n3,-7,-8,9,0,0,0,1,1,1,0,apex,,,0,0\n"
        with pytest.raises(BadInput, match=r"'apex'.*no position"):
            landmarks.read(written(tmp_path, name, text))

    def test_centimetres(self, tmp_path: Path) -> None:
        markup = {"coordinateUnits": ["cm", "UCUM", "centimeter"], "controlPoints": [{"position": [1, 2, 3]}]}
        found = landmarks.read(written(tmp_path, "p.json", json.dumps({"markups": [markup]})))
        np.testing.assert_allclose(found.points, [[10, 20, 30]])


class TestTables:
    @pytest.mark.parametrize(
        "text",
        [
            "1,2,3\n-4.5,5,6.25\n",
            "1;2;3\n-4.5;5;6.25\n",
            "# by hand\n1 2 3\n\n  -4.5 5  6.25\n",
            "x,y,z\n1,2,3\n-4.5,5,6.25\n",
            "l,p,s\n1,2,3\n-4.5,5,6.25\n",
            "label,r,a,s,defined\nF-1,-1,-2,3,1\nF-2,4.5,-5,6.25,1\n",
            "Z, Y, X\n3, 2, 1\n6.25, 5, -4.5\n",
            "\ufeffx,y,z\n1,2,3\n-4.5,5,6.25\n",
            "point\n2\n1 2 3\n-4.5 5 6.25\n",
        ],
    )  # fmt: skip
    def test_positions(self, tmp_path: Path, text: str) -> None:
        found = landmarks.read(written(tmp_path, "p.csv", text))
        np.testing.assert_allclose(found.points, [[1, 2, 3], [-4.5, 5, 6.25]])

    @pytest.mark.parametrize("text", ["name,x,y,z\ntip,1,2,3\n", "1,2,3,tip\n"])
    def test_labels(self, tmp_path: Path, text: str) -> None:
        assert landmarks.read(written(tmp_path, "p.txt", text)).labels == ("tip",)

    @pytest.mark.parametrize("text", ["1,2\n3,4\n", "x,y\n1,2\n3,4\n", "1,2,a\n3,4,b\n"])
    def test_two_columns_lie_in_the_plane(self, tmp_path: Path, text: str) -> None:
        np.testing.assert_allclose(landmarks.read(written(tmp_path, "p.csv", text)).points, [[1, 2, 0], [3, 4, 0]])


class TestBadFiles:
    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("p.csv", "", "no landmarks"),
            ("p.csv", "x,y,z\n", "no landmarks"),
            ("p.csv", "1,2,3\n1,two,3\n", "not a point.*two"),
            ("p.csv", "a,b,c\n1,2,3\n", "no columns x, y and z"),
            ("p.csv", "l,a,s\n1,2,3\n", "no columns x, y and z"),
            ("p.csv", "1,2,nan\n", "not finite"),
            ("p.csv", "x,y,z\n1,2\n", "not a point"),
            ("p.csv", "index\n1\n1 2 3\n", "voxel indices"),
            ("p.csv", "point\n4\n1 2 3\n", "as many points"),
            ("p.mrk.json", "{", "not a markups file"),
            ("p.mrk.json", '{"labels": []}', "not a markups file"),
            ("p.mrk.json", '{"markups": []}', "no landmarks"),
            ("p.mrk.json", '{"markups": [{"coordinateSystem": "IJK", "controlPoints": []}]}', "IJK"),
            ("p.fcsv", "1,2\n", "not a point"),
            ("p.vtk", "1,2,3\n", "no ending"),
        ],
    )  # fmt: skip
    def test_sentence(self, tmp_path: Path, name: str, text: str, words: str) -> None:
        with pytest.raises(BadInput, match=words):
            landmarks.read(written(tmp_path, name, text))

    def test_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "p.csv").write_bytes(bytes(range(128, 256)))
        with pytest.raises(BadInput, match="not a text file"):
            landmarks.read(tmp_path / "p.csv")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="does not exist"):
            landmarks.read(tmp_path / "p.csv")


class TestPairs:
    def test_by_label_in_any_order(self) -> None:
        fixed, moving = some(("a", "b", "c", "d")), some(("c", "a", "d", "b"), shift=100.0)
        ours, theirs, labels = landmarks.pair(fixed, moving)
        assert labels == ("a", "b", "c", "d")
        np.testing.assert_array_equal(ours, fixed.points)
        np.testing.assert_array_equal(theirs, moving.points[[1, 3, 0, 2]])

    @pytest.mark.parametrize("others", [("M-1", "M-2", "M-3", "M-4"), ("", "", "", ""), ("1", "2", "3", "4")])
    def test_by_order(self, others: tuple[str, ...]) -> None:
        _, theirs, labels = landmarks.pair(some(("1", "2", "3", "4")), some(others))
        np.testing.assert_array_equal(theirs, some(others).points)
        assert labels == ("1", "2", "3", "4")

    @pytest.mark.parametrize(
        "others", [("a", "b", "c", "e"), ("w", "x", "y", "z"), ("a", "a", "b", "c"), ("M-1", "M-2", "M-4", "M-3")]
    )
    def test_labels_without_partner(self, others: tuple[str, ...]) -> None:
        ours = ("F-1", "F-2", "F-3", "F-4") if others[0] == "M-1" else ("a", "b", "c", "d")
        with pytest.raises(BadInput, match="do not correspond"):
            landmarks.pair(some(ours), some(others))

    def test_numbers_differ(self) -> None:
        with pytest.raises(BadInput, match="4 and 5 points"):
            landmarks.pair(some(("a", "b", "c", "d")), some(("a", "b", "c", "d", "e")))

    def test_fewer_than_four(self) -> None:
        with pytest.raises(BadInput, match=r"are 3 points.*4 or more pairs"):
            landmarks.pair(some(("a", "b", "c")), some(("a", "b", "c")))

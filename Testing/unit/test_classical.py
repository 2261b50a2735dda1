"""Classical segmentation: against brute force, scikit-image and scipy, on noisy bodies, and through `mli`."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import grids
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from MLILib import cli, labels
from MLILib.classical import Seeds, graph_cut, level_sets, seeds, segment_classical, voxel_features
from MLILib.classical.requests import METHODS
from MLILib.errors import BadInput
from MLILib.geometry import Grid, from_array
from MLILib.segmentation import seg_nrrd

SPACING = (1.0, 1.2, 1.5)


def _body(noise: float = 12.0, seed: int = 0) -> tuple[sitk.Image, np.ndarray]:
    """A bright ellipsoid of intensity 100 on 0, blurred and noisy, on an oblique anisotropic grid, and its mask."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (28, 34, 40)), indexing="ij")
    truth = (x / 0.6) ** 2 + (y / 0.55) ** 2 + (z / 0.5) ** 2 < 1
    rng = np.random.default_rng(seed)
    values = 100 * ndimage.gaussian_filter(truth.astype(float), 0.6) + noise * rng.normal(size=truth.shape)
    image = grids.place(sitk.GetImageFromArray(values.astype(np.float32)), rng)
    image.SetSpacing(SPACING)
    return image, truth


def _scribbles(image: sitk.Image) -> sitk.Image:
    """1 in the body's middle, 2 along the image's first slices."""
    drawn = np.zeros(image.GetSize()[::-1], np.uint8)
    drawn[12:16, 15:19, 18:22] = 1
    drawn[:2] = 2
    return from_array(drawn, image)


def _dice(found: sitk.Image | np.ndarray, truth: np.ndarray) -> float:
    array = (sitk.GetArrayFromImage(found) if isinstance(found, sitk.Image) else found) != 0
    return float(2 * (array & truth).sum() / (array.sum() + truth.sum()))


@pytest.mark.parametrize("seed", range(5))
def test_no_cut_is_cheaper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.normal(size=(3, 4))
    weights = [rng.uniform(0, 1.5, (2, 4)), rng.uniform(0, 1.5, (3, 3))]
    found = graph_cut.cut(cost, weights)

    def energy(inside: np.ndarray) -> float:
        parted = sum(float(w[np.diff(inside.astype(int), axis=a) != 0].sum()) for a, w in enumerate(weights))
        return float(cost[inside].sum()) + parted

    best = min(energy(np.array(bits, bool).reshape(3, 4)) for bits in itertools.product((0, 1), repeat=12))
    assert energy(found.inside) == pytest.approx(best, abs=1e-9)
    # The energy counts from all voxels on their cheaper side.
    assert found.energy == pytest.approx(best - cost[cost < 0].sum(), abs=1e-9)
    assert found.flow == pytest.approx(found.energy, abs=0.03)


def test_a_cut_is_proven_by_its_flow_and_stays_inside_the_mask() -> None:
    image, truth = _body()
    values = sitk.GetArrayFromImage(image)
    weights = graph_cut.neighbour_weights(values, SPACING[::-1], 2.0)
    cost = ((50.0 - values) / 20).astype(np.float32)
    found = graph_cut.cut(cost, weights)
    assert found.flow == pytest.approx(found.energy, rel=1e-3)
    assert _dice(found.inside, truth) > 0.97
    where = np.zeros(truth.shape, bool)
    where[:, :, 20:] = True
    half = graph_cut.cut(cost, weights, where)
    assert not half.inside[~where].any()
    assert half.inside[:, :, 22:].sum() == pytest.approx(found.inside[:, :, 22:].sum(), rel=0.05)


def test_expansions_stay_below_their_bound_and_never_climb() -> None:
    """Of all 3^6 labellings of six pixels the best costs at least half of what expansions find (Boykov 2001)."""
    exact = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        costs = [rng.uniform(0, 2, (2, 3)).astype(np.float32) for _ in range(3)]
        weights = [rng.uniform(0, 1, (1, 3)).astype(np.float32), rng.uniform(0, 1, (2, 2)).astype(np.float32)]

        def energy(drawn: np.ndarray, costs: list = costs, weights: list = weights) -> float:
            parted = sum(float(w[np.diff(drawn.astype(int), axis=a) != 0].sum()) for a, w in enumerate(weights))
            return float(np.choose(drawn, costs).sum()) + parted

        found, cuts = graph_cut._expanded(costs, weights, lambda value: None)
        best = min(energy(np.array(drawn).reshape(2, 3)) for drawn in itertools.product(range(3), repeat=6))
        assert energy(found) <= energy(np.argmin(costs, axis=0)) + 1e-6
        assert energy(found) <= 2 * best
        assert len(cuts) >= 3
        exact += energy(found) < best + 1e-3
    assert exact >= 7


def test_faces_count_by_their_area() -> None:
    weights = graph_cut.neighbour_weights(np.zeros((3, 3, 3)), (1.0, 2.0, 4.0), 1.0)
    flat = [float(w.max()) for w in weights]
    assert flat[0] / flat[1] == pytest.approx(2.0)  # 2 x 4 mm beside 1 x 4 mm
    assert flat[0] / flat[2] == pytest.approx(4.0)


def test_thresholds_are_scikit_images() -> None:
    filters = pytest.importorskip("skimage.filters", reason="scikit-image is the oracle")
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(m, 6, 4000) for m in (20, 80, 150)]).astype(np.float32)
    image = sitk.GetImageFromArray(values.reshape(40, 300))
    width = float(np.ptp(values)) / 256
    two = segment_classical(image, "otsu").figures["thresholds"][0]
    assert two == pytest.approx(filters.threshold_otsu(values, 256), abs=2 * width)
    several = segment_classical(image, "multi-otsu", levels=2)
    np.testing.assert_allclose(several.figures["thresholds"], filters.threshold_multiotsu(values, 3), atol=2 * width)
    parts = sitk.GetArrayFromImage(several.labels).ravel()
    np.testing.assert_array_equal(np.bincount(parts), [4000, 4000, 4000])


def test_the_dark_side_and_the_mask() -> None:
    image, truth = _body()
    dark = segment_classical(image, "otsu", side="dark")
    assert _dice(dark.labels, ~truth) > 0.97
    where = np.zeros(truth.shape, np.uint8)
    where[:, :, :20] = 1
    bright = sitk.GetArrayFromImage(segment_classical(image, "otsu", mask=from_array(where, image)).labels)
    assert not bright[:, :, 20:].any()
    assert _dice(bright[:, :, :20], truth[:, :, :20]) > 0.95


def test_connected_is_the_component_of_the_seed() -> None:
    image, _ = _body(noise=30)
    values = sitk.GetArrayFromImage(image)
    found = segment_classical(image, "connected", seeds=_scribbles(image), background=2, range=(50.0, 1e4))
    parts, _ = ndimage.label(values >= 50)
    drawn = sitk.GetArrayFromImage(_scribbles(image)) == 1
    expected = np.isin(parts, np.unique(parts[drawn & (values >= 50)]))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found.labels) == 1, expected)


@pytest.mark.parametrize(
    ("method", "settings", "least"),
    [
        ("otsu", {}, 0.96),
        ("otsu", {"smooth": 1.0, "keep_largest": True}, 0.97),
        ("connected", {"range": (50.0, 1e4), "smooth": 1.0}, 0.97),
        ("confidence", {"multiplier": 3.0}, 0.97),
        ("geodesic", {}, 0.95),
        ("chan-vese", {}, 0.97),
        ("graph-cut", {}, 0.96),
        ("random-forest", {"trees": 30}, 0.9),
    ],
)
def test_a_noisy_body_is_found(method: str, settings: dict[str, Any], least: float) -> None:
    if method == "random-forest":
        pytest.importorskip("sklearn", reason="the random forest is scikit-learn's")
    image, truth = _body()
    known = {"seeds": _scribbles(image), "background": 2} if METHODS[method][1] else {}
    found = segment_classical(image, method, **known, **settings)
    assert _dice(found.labels, truth) > least
    assert Grid.of(found.labels) == Grid.of(image)


def test_otsu_knows_a_plane() -> None:
    rng = np.random.default_rng(0)
    truth = np.hypot(*np.meshgrid(np.linspace(-1, 1, 50), np.linspace(-1, 1, 60))) < 0.6
    image = sitk.GetImageFromArray((truth * 100 + 15 * rng.normal(size=truth.shape)).astype(np.float32))
    drawn = np.zeros(truth.shape, np.uint8)
    drawn[28:32, 23:27] = 1
    drawn[:3] = 2
    for method in ("otsu", "chan-vese", "graph-cut", "geodesic", "confidence"):
        known = {"seeds": from_array(drawn, image), "background": 2} if METHODS[method][1] else {}
        assert _dice(segment_classical(image, method, **known).labels, truth) > 0.93, method


def test_a_surface_says_when_it_had_not_settled() -> None:
    image, _ = _body()
    found = segment_classical(image, "geodesic", seeds=_scribbles(image), background=2, iterations=5)
    assert found.figures == {"iterations": 5, "settled": False}
    assert "still moving after 5" in found.warnings[0]


def test_threshold_dynamics_smooths_the_border() -> None:
    image, truth = _body(noise=45)
    start = sitk.OtsuThreshold(image, 0, 1)
    found = [level_sets.chan_vese(image, start, border=border) for border in (0.1, 2.0)]
    assert all(one.settled for one in found)
    rough, smooth = (_dice(one.inside, truth) for one in found)
    assert smooth > 0.92
    assert rough < 0.5


def test_several_objects_share_the_image() -> None:
    values = np.zeros((20, 20, 30), np.float32)
    values[5:15, 5:15, 4:12], values[5:15, 5:15, 18:26] = 60, 120
    truth = np.digitize(values, (30, 90))
    values += 5 * np.random.default_rng(0).normal(size=values.shape)
    drawn = np.zeros(values.shape, np.uint8)
    drawn[9:11, 9:11, 7:9], drawn[9:11, 9:11, 21:23], drawn[0] = 4, 7, 9
    image = sitk.GetImageFromArray(values)
    for method in ("graph-cut", "confidence"):
        found = segment_classical(image, method, seeds=sitk.GetImageFromArray(drawn), background=9, multiplier=4.0)
        assert found.names == ("Segment 4", "Segment 7")
        array = sitk.GetArrayFromImage(found.labels)
        assert _dice(array == 1, truth == 1) > 0.85, method
        assert _dice(array == 2, truth == 2) > 0.85, method


@pytest.mark.parametrize("method", ["graph-cut", "random-forest"])
def test_what_looks_alike_elsewhere_is_left_out(method: str) -> None:
    """Two bodies alike, scribbles in one: only that is labelled, unless both are asked for."""
    array = np.zeros((12, 20, 40), np.float32)
    array[3:9, 5:15, 4:14] = array[3:9, 5:15, 24:34] = 100.0
    array += np.random.default_rng(0).normal(0, 3, array.shape).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    values, dark = np.zeros(array.shape, np.uint8), np.zeros(array.shape, bool)
    values[5:7, 8:12, 6:12] = 1
    dark[1, :, :] = True
    seeds = Seeds(values, dark, ("body",))
    one, both = (
        sitk.GetArrayFromImage(segment_classical(image, method, seeds=seeds, connected_only=only).labels)
        for only in (True, False)
    )
    body = array > 50
    assert not one[..., 20:].any()
    assert _dice(one > 0, body & (np.arange(40) < 20)) > (0.95 if method == "graph-cut" else 0.7)
    assert _dice(both[..., 20:] > 0, body[..., 20:]) > (0.95 if method == "graph-cut" else 0.7)


def test_a_scribble_that_was_not_believed_adds_nothing() -> None:
    """Where two objects look the same the forest labels the scribbles of one as the other."""
    array = np.zeros((24, 40, 40), np.float32)
    array[:, 34:] = 100.0
    values, dark = np.zeros(array.shape, np.uint8), array > 50
    values[10:14, 14:18, 14:20] = 1 + np.indices((4, 4, 6)).sum(axis=0) % 2
    known = Seeds(values, dark, ("a", "b"))
    only, every = (
        sitk.GetArrayFromImage(
            segment_classical(
                sitk.GetImageFromArray(array), "random-forest", seeds=known, trees=1, connected_only=one
            ).labels
        )
        for one in (True, False)
    )
    assert (every[values > 0] != values[values > 0]).any()
    assert (only[only > 0] == every[only > 0]).all()


def test_a_seed_outside_of_the_mask_labels_nothing() -> None:
    image, body = _body()
    drawn = seeds.of_image(_scribbles(image), 2)
    mask = np.zeros(body.shape, np.uint8)
    mask[: body.shape[0] // 2] = 1
    inside = sitk.GetImageFromArray(mask)
    inside.CopyInformation(image)
    values = drawn.values.copy()
    values[-1, 0, 0] = 1
    found = segment_classical(image, "graph-cut", seeds=Seeds(values, drawn.background, drawn.names), mask=inside)
    assert not sitk.GetArrayFromImage(found.labels)[mask == 0].any()


def test_boxes_are_means_and_patterns_count_neighbours() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(7, 8, 9)).astype(np.float32)
    spacing = (1.5, 1.0, 1.0)
    found = voxel_features.features(image, spacing)
    names = voxel_features.names(3)
    assert found.shape == (image.size, len(names))
    low, middle, high = np.percentile(image, (5, 50, 95))
    scaled = (image - middle) / (high - low)
    box = found[:, names.index("box 1.5 mm")].reshape(image.shape)
    # 1.5 mm is one voxel along z and two (rounded to even) along y and x.
    assert box[3, 4, 5] == pytest.approx(scaled[2:5, 2:7, 3:8].mean(), abs=1e-5)
    assert box[0, 0, 0] == pytest.approx(scaled[:2, :3, :3].mean(), abs=1e-5)
    count = found[:, names.index("binary pattern 2 mm count")].reshape(image.shape)
    around = [(3 - 1, 4, 5), (3 + 1, 4, 5), (3, 2, 5), (3, 6, 5), (3, 4, 3), (3, 4, 7)]
    assert count[3, 4, 5] == sum(image[place] > image[3, 4, 5] for place in around)


def test_a_forest_learns_from_examples_and_repeats() -> None:
    pytest.importorskip("sklearn", reason="the random forest is scikit-learn's")
    shown = [_body(seed=seed) for seed in (1, 2)]
    pairs = [(image, from_array(truth.astype(np.int64) * 3, image)) for image, truth in shown]
    image, truth = _body(seed=5)
    found = segment_classical(image * 40.0, "random-forest", examples=pairs, trees=20)
    array = sitk.GetArrayFromImage(found.labels)
    assert set(np.unique(array)) == {0, 3}
    assert _dice(array, truth) > 0.95
    again = segment_classical(image * 40.0, "random-forest", examples=pairs, trees=20)
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(again.labels))


def test_points_are_balls_in_patient_coordinates(tmp_path: Path) -> None:
    image, _ = _body()
    grid = Grid.of(image)
    inside = image.TransformIndexToPhysicalPoint((20, 17, 14))
    outside = image.TransformIndexToPhysicalPoint((1, 1, 1))
    rows = [f"{','.join(str(x) for x in p)},{label}" for p, label in ((inside, "a"), (outside, "Background"))]
    (tmp_path / "p.csv").write_text("x,y,z,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    found = seeds.read("", str(tmp_path / "p.csv"), "background", 3.0, grid)
    assert found.names == ("Segment 1",)
    z, y, x = np.indices(found.values.shape)
    near = ((x - 20) * 1.0) ** 2 + ((y - 17) * 1.2) ** 2 + ((z - 14) * 1.5) ** 2 <= 9 + 1e-6
    np.testing.assert_array_equal(found.values == 1, near)
    assert found.background[1, 1, 1]
    single = seeds.read("", str(tmp_path / "p.csv"), "background", 0.0, grid)
    assert np.argwhere(single.values).tolist() == [[14, 17, 20]]
    away = image.TransformIndexToPhysicalPoint((-3, 0, 0))
    (tmp_path / "p.csv").write_text(",".join(str(x) for x in away) + "\n", encoding="utf-8")
    with pytest.raises(BadInput, match="outside of the image"):
        seeds.read("", str(tmp_path / "p.csv"), "background", 0.0, grid)


def _mli(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    code = cli.main([*(str(word) for word in words), "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_segments_are_scribbles_and_names_stay(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image, truth = _body()
    sitk.WriteImage(image, str(tmp_path / "image.nrrd"))
    named = [labels.label(1, "Liver", {}), labels.label(2, "background", {})]
    seg_nrrd.write(_scribbles(image), named, str(tmp_path / "drawn.seg.nrrd"))
    code, told = _mli(
        capfd, "segment-classical", tmp_path / "image.nrrd", "--method", "graph-cut", "--seeds",
        tmp_path / "drawn.seg.nrrd", "-o", tmp_path / "out.seg.nrrd",
    )  # fmt: skip
    assert code == 0
    assert [one["name"] for one in told["labels"]] == ["Liver"]
    made = sitk.ReadImage(str(tmp_path / "out.seg.nrrd"))
    assert _dice(made, truth) > 0.96
    assert told["labels"][0]["volume_ml"] == pytest.approx(truth.sum() * 1.8 / 1000, rel=0.06)
    record = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert record["command"].startswith("mli segment-classical")
    assert record["figures"]["cuts"][0]["flow"] == pytest.approx(record["figures"]["cuts"][0]["energy"], rel=1e-2)


def test_bad_input_is_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image, _ = _body()
    sitk.WriteImage(image, str(tmp_path / "image.nrrd"))
    drawn = tmp_path / "drawn.nrrd"
    sitk.WriteImage(_scribbles(image), str(drawn))
    other = tmp_path / "other.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((3, 3, 3), np.uint8)), str(other))

    def said(*words: object) -> str:
        ask = ["segment-classical", tmp_path / "image.nrrd", "-o", tmp_path / "out.nrrd", "--method", *words]
        assert cli.main([str(word) for word in ask]) == 2
        assert not (tmp_path / "out.nrrd").exists()
        return capfd.readouterr().err

    assert "has no seeds" in said("graph-cut")
    assert "marks background" in said("graph-cut", "--seeds", drawn)
    assert "not on the image's grid" in said("graph-cut", "--seeds", other)
    assert "takes no seeds" in said("otsu", "--seeds", drawn)
    assert "--range LOW HIGH" in said("connected", "--seeds", drawn)
    assert "takes no --range" in said("otsu", "--range", 1, 2)
    assert "takes no --trees" in said("otsu", "--trees", 5)
    assert "or use geodesic or chan-vese" in said("graph-cut", "--seeds", drawn, "--curvature", 2)
    assert "--no-connected-only is for seeds" in said("random-forest", "--examples", "a=b", "--no-connected-only")
    assert "Names were given for no seeds" in said("otsu", "--names", "1=bone")
    assert "takes no --examples" in said("otsu", "--examples", "a=b")
    assert "Write IMAGE=LABELS" in said("random-forest", "--examples", tmp_path / "image.nrrd")
    assert "Seeds of several objects" in said("chan-vese", "--seeds", drawn)
    assert "not on the grid of" in said("random-forest", "--examples", f"{tmp_path / 'image.nrrd'}={other}")
    assert "invalid choice" in said("watershed")


def test_seeds_in_the_background_alone_are_none() -> None:
    image, _ = _body()
    empty = np.zeros(image.GetSize()[::-1], np.uint8)
    dark = empty.astype(bool)
    dark[0] = True
    with pytest.raises(BadInput, match="what is sought"):
        segment_classical(image, "graph-cut", seeds=Seeds(empty, dark, ()))
    with pytest.raises(BadInput, match="no method"):
        segment_classical(image, "magic")
    flat = sitk.Image(5, 5, 5, sitk.sitkFloat32)
    with pytest.raises(BadInput, match="one intensity"):
        segment_classical(flat, "otsu")

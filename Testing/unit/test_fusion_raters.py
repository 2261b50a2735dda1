"""Raters: label maps of any type and values become indices, on one grid; patterns are the unique columns of these."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from rater_maps import Stack, drawn, images, people

from MLILib.errors import BadInput
from MLILib.fusion import patterns
from MLILib.fusion.patterns import Patterns, decide
from MLILib.fusion.raters import Region, raters

SHAPES = [(6, 7, 8), (9, 11)]


class TestRaters:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint32, np.float32])
    def test_indices_stand_for_values(self, shape: tuple[int, ...], dtype: type) -> None:
        """Values 3, 7 and 200, of which one rater knows two: the image made of indices is the image that came in."""
        values = np.array([0, 3, 7, 200])
        stack = values[drawn(shape, labels=3)]
        stack[1][stack[1] == 7] = 0
        made = raters(images(stack.astype(dtype)))
        assert [one.value for one in made.labels] == [3, 7, 200]
        assert made.stack.dtype == np.uint8
        for given, indices in zip(stack, made.stack, strict=True):
            np.testing.assert_array_equal(sitk.GetArrayFromImage(made.image(indices)), given)

    def test_values_too_large_for_a_table(self) -> None:
        stack = drawn((4, 5, 6), labels=2).astype(np.uint32) * 70_000
        made = raters(images(stack))
        assert [one.value for one in made.labels] == [70_000, 140_000]
        np.testing.assert_array_equal(made.stack, stack // 70_000)

    def test_more_labels_than_a_byte_holds(self) -> None:
        stack = np.arange(2 * 300, dtype=np.uint16).reshape(2, 15, 20) % 301
        made = raters(images(stack))
        assert made.stack.dtype == np.uint16
        np.testing.assert_array_equal(made.stack, stack)

    def test_255_labels_fit_a_byte(self) -> None:
        stack = np.arange(256, dtype=np.uint16).reshape(1, 16, 16)
        assert raters(images(stack)).stack.dtype == np.uint8

    def test_grid_is_kept(self) -> None:
        given = images(drawn((6, 7, 8)))
        found = raters(given).image(raters(given).stack[0])
        for key in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(found, key)() == getattr(given[0], key)()

    def test_names(self) -> None:
        given = images(drawn((6, 7, 8)))
        assert raters(given).names[:2] == ("rater 1", "rater 2")
        made = raters(given, ["a", "b", "c", "d", "e"], {1: "Tumour"})
        assert made.only([3, 0]).names == ("d", "a")
        assert made.labels[0].name == "Tumour"
        np.testing.assert_array_equal(made.only([3, 0]).stack, made.stack[[3, 0]])

    def test_union_agreed_and_box(self) -> None:
        stack = np.zeros((2, 8, 9, 10), dtype=np.uint16)
        stack[0, 2:4, 3:5, 4:6] = 1
        stack[1, 2:4, 3:5, 4:8] = 1
        made = people(stack)
        np.testing.assert_array_equal(made.union(), stack.any(axis=0))
        np.testing.assert_array_equal(made.agreed(), stack[0] == stack[1])
        assert made.box() == (slice(2, 4), slice(3, 5), slice(4, 8))
        assert made.box(3) == (slice(0, 7), slice(0, 8), slice(1, 10))
        assert made.whole() == (slice(0, 8), slice(0, 9), slice(0, 10))


class TestBadInput:
    def test_nobody(self) -> None:
        with pytest.raises(BadInput, match="nobody"):
            raters([])

    def test_another_grid(self) -> None:
        given = images(drawn((6, 7, 8)))
        given[2].SetOrigin((1e3, 0, 0))
        with pytest.raises(BadInput, match="rater 3 are not on the grid of rater 1"):
            raters(given)

    def test_all_empty(self) -> None:
        with pytest.raises(BadInput, match="all raters are empty"):
            raters(images(np.zeros((3, 4, 5, 6), dtype=np.uint16)))

    def test_one_name_twice(self) -> None:
        with pytest.raises(BadInput, match="5 label maps have 4 names"):
            raters(images(drawn((6, 7, 8))), ["a", "b", "c", "d", "a"])

    def test_an_image_for_a_label_map(self) -> None:
        given = images(drawn((6, 7, 8)).astype(np.float32) + 0.25)
        with pytest.raises(BadInput, match="not a label image"):
            raters(given)


def same(found: Patterns, stack: Stack, region: Region) -> None:
    """`found` is what NumPy's unique columns of the region say."""
    columns = np.stack([one[region].ravel() for one in stack], axis=1)
    unique, counts = np.unique(columns, axis=0, return_counts=True)
    order = np.lexsort(found.decisions.T[::-1])
    np.testing.assert_array_equal(found.decisions[order], unique)
    np.testing.assert_array_equal(found.counts[order], counts)
    np.testing.assert_array_equal(found.decisions[found.index.ravel()], columns)


class TestPatterns:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("labels", [1, 2, 15, 16, 37, 300])
    @pytest.mark.parametrize("count", [1, 3, 9])
    def test_are_the_unique_columns(self, shape: tuple[int, ...], labels: int, count: int) -> None:
        stack = drawn(shape, labels, np.linspace(0.1, 0.6, count).tolist())
        for dtype in (np.uint8, np.uint16) if labels < 256 else (np.uint16,):
            whole = tuple(slice(0, n) for n in shape)
            same(patterns.find(stack.astype(dtype), labels + 1, whole), stack, whole)
            part = tuple(slice(1, n - 2) for n in shape)
            same(patterns.find(stack.astype(dtype), labels + 1, part), stack, part)

    @pytest.mark.parametrize("table", [1, 40, 2000])
    def test_with_a_small_table(self, table: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """With 20 raters of 37 labels no table holds what could be said; here already that of 1 to 2000 entries."""
        monkeypatch.setattr(patterns, "TABLE", table)
        stack = drawn((6, 7, 8), 37, [0.2] * 20)
        whole = tuple(slice(0, n) for n in stack.shape[1:])
        same(patterns.find(stack, 38, whole), stack, whole)

    @pytest.mark.parametrize("numbers", [1, 100])
    def test_blocks_hold_each_pattern_once(self, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(patterns, "_NUMBERS", numbers)
        stack = drawn((6, 7, 8), 3)
        found = patterns.find(stack, 4, tuple(slice(0, n) for n in stack.shape[1:]))
        covered = np.concatenate([np.arange(part.start, part.stop) for part in found.blocks()])
        np.testing.assert_array_equal(covered, np.arange(len(found.counts)))
        assert len(list(found.blocks())) > 1

    def test_votes(self) -> None:
        stack = drawn((6, 7, 8), 3)
        found = patterns.find(stack, 4, tuple(slice(0, n) for n in stack.shape[1:]))
        weights = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
        for part in found.blocks():
            for row, said in zip(found.votes(part, weights), found.decisions[part], strict=True):
                for level in range(4):
                    assert row[level] == weights[said == level].sum()

    def test_decide_takes_the_lowest_of_equals(self) -> None:
        """0.1 + 0.2 and 0.3 are the same support, although the sums of doubles differ."""
        winner, tied = decide(np.array([[0.0, 2.0, 2.0], [0.3, 0.1 + 0.2, 0.0], [1.0, 0.0, 3.0]]))
        assert winner.tolist() == [1, 0, 2]
        assert tied.tolist() == [True, True, False]

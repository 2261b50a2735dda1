"""SIMPLE against a loop that follows its definition, and where it is plain who must go."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from rater_maps import drawn, people, truth

from MLILib.errors import BadInput
from MLILib.fusion.simple import simple
from MLILib.fusion.voting import majority

SHAPES = [(6, 10, 11), (24, 25)]


def mean_dice(a: npt.NDArray, b: npt.NDArray, labels: int) -> float:
    found = [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum())
             for k in range(1, labels + 1) if (a == k).any() or (b == k).any()]  # fmt: skip
    return float(np.mean(found)) if found else 1.0


def vote(stack: npt.NDArray, weights: list[float], labels: int) -> npt.NDArray:
    support = [sum(w * (one == k) for w, one in zip(weights, stack, strict=True)) for k in range(labels + 1)]
    support = np.round(np.array(support), 9)
    return support.argmax(axis=0)


def by_definition(
    stack: npt.NDArray, labels: int, drop: float, least: int
) -> tuple[npt.NDArray, list[bool], list[float]]:
    """Consensus, who is kept, and the weights."""
    kept, weights = [True] * len(stack), [1.0] * len(stack)
    while True:
        consensus = vote(stack, weights, labels)
        overlap = [mean_dice(one, consensus, labels) for one in stack]
        left = [overlap[i] for i in range(len(stack)) if kept[i]]
        limit = np.mean(left) - drop * np.std(left)
        bad = sorted((i for i in range(len(stack)) if kept[i] and overlap[i] < limit - 1e-9), key=lambda i: overlap[i])
        bad = bad[: max(sum(kept) - least, 0)]
        for i in bad:
            kept[i] = False
        weights = [o if k else 0.0 for o, k in zip(overlap, kept, strict=True)]
        if not bad:
            return vote(stack, weights, labels), kept, weights


class TestDefinition:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("labels", [1, 3, 37])
    @pytest.mark.parametrize(("drop", "least"), [(1.0, 3), (0.5, 1), (2.0, 3), (0.0, 2)])
    def test_is_a_loop(self, shape: tuple[int, ...], labels: int, drop: float, least: int) -> None:
        stack = drawn(shape, labels, np.linspace(0.05, 0.7, 9).tolist())
        consensus, kept, weights = by_definition(stack, labels, drop, least)
        found = simple(people(stack), drop=drop, least=least)
        np.testing.assert_array_equal(found.kept, kept)
        np.testing.assert_allclose(found.weights, weights, atol=1e-12)
        np.testing.assert_array_equal(found.indices, consensus)

    def test_shares_are_the_weighted_vote(self) -> None:
        stack = drawn((6, 10, 11), 3, np.linspace(0.05, 0.7, 9).tolist())
        found = simple(people(stack), probabilities=True)
        assert found.weights is not None
        expected = majority(people(stack), weights=found.weights.tolist(), probabilities=True)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
        np.testing.assert_array_equal(found.indices, expected.indices)


class TestWhoGoes:
    def test_the_bad_ones(self) -> None:
        """Eight raters with few mistakes, two of whom one drew elsewhere and one draws at random."""
        right = truth((12, 14, 16), 2)
        stack = drawn((12, 14, 16), 2, [0.05] * 8 + [0.95, 0.95])
        stack[8] = np.roll(right, 5, axis=2)
        found = simple(people(stack), drop=1.5)
        assert found.kept.tolist() == [True] * 8 + [False] * 2
        assert found.weights is not None
        assert (found.weights[8:] == 0).all()
        assert "dropped 2 of 10 raters" in found.notes[0]
        assert "rater 9, rater 10" in found.notes[0]
        assert (found.indices != right).mean() < 1e-3

    def test_nobody_where_all_are_alike(self) -> None:
        right = truth((12, 14, 16), 2)
        found = simple(people(np.stack([right] * 5)))
        assert found.kept.all()
        assert found.iterations == 1
        np.testing.assert_array_equal(found.indices, right)
        np.testing.assert_array_equal(found.weights, 1.0)

    def test_at_least_some_stay_and_the_worst_go_first(self) -> None:
        stack = drawn((12, 14, 16), 1, np.linspace(0.02, 0.6, 12).tolist())
        found = simple(people(stack), drop=0.0, least=5)
        assert found.kept.tolist() == [True] * 5 + [False] * 7

    @pytest.mark.parametrize(("count", "stay"), [(1, 1), (2, 1), (7, 4), (8, 4)])
    def test_half_of_them_stay(self, count: int, stay: int) -> None:
        """Those below the mean are dropped until then: some always are, as no two are alike."""
        stack = drawn((20, 22, 24), 1, np.linspace(0.02, 0.6, count).tolist())
        assert simple(people(stack), drop=0.0).kept.sum() == stay

    @pytest.mark.parametrize("count", [1, 2])
    def test_few(self, count: int) -> None:
        """At one standard deviation neither of two can be dropped: the worse lies on the limit."""
        stack = drawn((12, 14, 16), 1, [0.05, 0.4][:count])
        found = simple(people(stack), least=1)
        assert found.kept.all()

    def test_nobody_overlaps_an_empty_consensus(self) -> None:
        """Three draw in different places: by majority there is nothing, and all still count alike."""
        stack = np.zeros((3, 6, 6), dtype=np.uint16)
        stack[0, :2], stack[1, 2:4], stack[2, 4:] = 1, 1, 1
        found = simple(people(stack))
        assert found.kept.all()
        assert not found.indices.any()
        np.testing.assert_array_equal(found.weights, 1.0)

    def test_region(self) -> None:
        """A rater who is wrong outside of the region alone is kept; outside nothing is drawn."""
        right = truth((12, 14, 16), 1)
        stack = drawn((12, 14, 16), 1, [0.05, 0.05, 0.05, 0.05])
        wrong = right.copy()
        wrong[:3] = 1
        region = (slice(3, 12), slice(0, 14), slice(0, 16))
        both = people(np.concatenate([stack, wrong[None]]))
        assert not simple(both).kept[4]
        found = simple(both, region=region)
        assert found.kept[4]
        assert found.voxels == 9 * 14 * 16
        assert not found.indices[:3].any()

    @pytest.mark.parametrize("settings", [{"drop": -1.0}, {"least": 0}])
    def test_bad_settings(self, settings: dict) -> None:
        with pytest.raises(BadInput, match="SIMPLE cannot drop"):
            simple(people(drawn((6, 10, 11))), **settings)

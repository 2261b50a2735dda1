"""Agreement of raters: Fleiss' kappa of the published example, Dice and entropy in closed forms and in loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import SimpleITK as sitk
from rater_maps import drawn, people, truth
from scipy import stats

from MLILib.fusion.agreement import entropy, fleiss_kappa, pairwise_dice
from MLILib.fusion.raters import Raters, raters

#: How many of 14 raters gave each of 10 subjects each of 5 categories; the worked example of "Fleiss' kappa" in
#: Wikipedia, where kappa is .210.
TABLE = np.array([
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
])  # fmt: skip


def of_table(table: np.ndarray) -> Raters:
    """Raters of a picture of one row, a pixel for each subject, the first category as background."""
    said = np.array([np.repeat(np.arange(table.shape[1]), row) for row in table], dtype=np.uint8)
    return raters([sitk.GetImageFromArray(one[None]) for one in said.T])


class TestKappa:
    def test_published_example(self) -> None:
        assert fleiss_kappa(of_table(TABLE), (slice(0, 1), slice(0, 10))) == pytest.approx(0.210, abs=5e-4)

    def test_two_raters_are_scotts_pi(self) -> None:
        """Of two raters it is Scott's pi (Public Opinion Quarterly 1955): here (.6 - .5) / (1 - .5)."""
        both = people(np.array([[[1, 1, 1, 0, 0, 0, 1, 1, 0, 0]], [[1, 1, 1, 0, 0, 0, 0, 0, 1, 1]]], dtype=np.uint16))
        assert fleiss_kappa(both, both.whole()) == pytest.approx(0.2)

    @pytest.mark.parametrize("shape", [(5, 6, 7), (9, 10)])
    def test_is_the_definition(self, shape: tuple[int, ...]) -> None:
        stack = drawn(shape, 3)
        n = len(stack)
        flat = stack.reshape(n, -1)
        agreeing = [np.mean([a == b for a, b in itertools.permutations(voxel, 2)]) for voxel in flat.T]
        chance = sum(np.mean(flat == k) ** 2 for k in range(4))
        expected = (np.mean(agreeing) - chance) / (1 - chance)
        made = people(stack)
        assert fleiss_kappa(made, made.whole()) == pytest.approx(expected)

    def test_full_agreement(self) -> None:
        assert fleiss_kappa(people(np.stack([truth((6, 7, 8), 3)] * 3)), None) == pytest.approx(1.0)

    def test_by_default_looks_at_the_box_of_what_was_drawn(self) -> None:
        stack = drawn((6, 7, 8))
        padded = people(np.pad(stack, ((0, 0), (9, 9), (9, 9), (9, 9))))
        assert fleiss_kappa(padded) == fleiss_kappa(people(stack), people(stack).box())
        assert fleiss_kappa(padded, padded.whole()) > fleiss_kappa(padded)

    def test_undefined(self) -> None:
        assert math.isnan(fleiss_kappa(people(drawn((6, 7, 8), 1, [0.1]))))
        assert math.isnan(fleiss_kappa(people(np.ones((3, 4, 5), dtype=np.uint16))))


class TestPairwiseDice:
    @pytest.mark.parametrize("shape", [(6, 7, 8), (9, 10)])
    @pytest.mark.parametrize("labels", [1, 4, 37])
    def test_is_simpleitk(self, shape: tuple[int, ...], labels: int) -> None:
        stack = drawn(shape, labels)
        made = people(stack)
        found = pairwise_dice(made)
        assert found.shape == (len(made.labels), 5, 5)
        for i, j in itertools.product(range(5), repeat=2):
            measure = sitk.LabelOverlapMeasuresImageFilter()
            measure.Execute(made.image(made.stack[i]), made.image(made.stack[j]))
            for k, label in enumerate(made.labels):
                there = ((made.stack[i] == k + 1) | (made.stack[j] == k + 1)).any()
                expected = measure.GetDiceCoefficient(label.value) if there else math.nan
                assert found[k, i, j] == pytest.approx(expected, nan_ok=True)


class TestEntropy:
    @pytest.mark.parametrize("shape", [(5, 6, 7), (9, 10)])
    def test_is_scipy(self, shape: tuple[int, ...]) -> None:
        stack = drawn(shape, 3)
        found = entropy(people(stack))
        assert found.dtype == np.float32
        for place in np.ndindex(shape):
            votes = np.bincount(stack[(slice(None), *place)])
            assert found[place] == pytest.approx(stats.entropy(votes, base=2), abs=1e-6)

    def test_closed_forms(self) -> None:
        """All one label, two halves, four quarters, 3 to 1."""
        stack = np.array([[[1, 1, 1, 1]], [[1, 1, 2, 1]], [[1, 2, 3, 1]], [[1, 2, 0, 0]]], dtype=np.uint16)
        found = entropy(people(stack))
        np.testing.assert_allclose(found, [[0.0, 1.0, 2.0, 2 - 0.75 * math.log2(3)]], atol=1e-6)
        assert not np.signbit(found).any()

    def test_one_rater_is_sure(self) -> None:
        assert not entropy(people(drawn((5, 6, 7), 3, [0.2]))).any()

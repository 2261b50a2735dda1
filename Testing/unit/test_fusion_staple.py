"""STAPLE against SimpleITK's filters, against its definition in a loop, and where the answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from rater_maps import Stack, drawn, images, people, truth

from MLILib.errors import BadInput
from MLILib.fusion import patterns
from MLILib.fusion.staple import _start, staple

SHAPES = [(6, 10, 11), (24, 25)]


def binary_itk(stack: Stack, confidence: float = 1.0, iterations: int | None = None) -> sitk.STAPLEImageFilter:
    """SimpleITK's binary filter, run; its image is its attribute `truth`."""
    method = sitk.STAPLEImageFilter()
    method.SetForegroundValue(1)
    method.SetConfidenceWeight(confidence)
    if iterations is not None:
        method.SetMaximumIterations(iterations)
    method.truth = sitk.GetArrayFromImage(method.Execute(images(stack)))
    return method


def by_definition(
    stack: npt.NDArray, prior: npt.NDArray | None = None, tolerance: float = 1e-7, limit: int = 2000
) -> tuple[npt.NDArray, npt.NDArray, int]:
    """Warfield's two steps, voxel by voxel: W (voxels, true), theta (raters, said, true), iterations."""
    voices = stack.reshape(len(stack), -1)
    raters, voxels = voices.shape
    levels = int(stack.max()) + 1
    w = np.array([[np.mean(voices[:, v] == t) for t in range(levels)] for v in range(voxels)])
    f = w.mean(axis=0) if prior is None else prior
    theta = np.full((raters, levels, levels), -10.0)
    change, done = np.inf, 0
    while change > tolerance and done < limit:
        before, done = theta, done + 1
        theta = np.zeros_like(theta)
        for i, s, t in itertools.product(range(raters), range(levels), range(levels)):
            theta[i, s, t] = w[voices[i] == s, t].sum() / w[:, t].sum()
        for v in range(voxels):
            for t in range(levels):
                w[v, t] = f[t] * np.prod([theta[i, voices[i, v], t] for i in range(raters)])
            w[v] /= w[v].sum()
        change = np.abs(theta - before).max()
    return w, theta, done


def multi_label_itk(stack: Stack) -> tuple[npt.NDArray, npt.NDArray]:
    """Labels and confusion matrices (raters, said, true) of SimpleITK's filter for several labels, run to the end."""
    method = sitk.MultiLabelSTAPLEImageFilter()
    method.SetTerminationUpdateThreshold(1e-10)
    found = sitk.GetArrayFromImage(method.Execute(images(stack)))
    levels = int(stack.max()) + 1
    # Its matrices have a row more, for voxels that nobody decided.
    return found, np.array([np.reshape(method.GetConfusionMatrix(i), (-1, levels))[:levels] for i in range(len(stack))])


def log_likelihood(stack: Stack, thetas: npt.NDArray, prior: npt.NDArray) -> float:
    voices = stack.reshape(len(stack), -1)
    each = np.prod([theta[said] for theta, said in zip(thetas, voices, strict=True)], axis=0)
    return float(np.log(each @ prior).sum())


class TestBinary:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("count", [2, 3, 5, 20])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_is_simpleitk(self, shape: tuple[int, ...], count: int, seed: int) -> None:
        stack = drawn(shape, 1, np.linspace(0.02, 0.5, count).tolist(), seed)
        theirs = binary_itk(stack)
        ours = staple(people(stack), probabilities=True, iterations=100_000)
        assert ours.sensitivity is not None
        assert ours.specificity is not None
        assert ours.probabilities is not None
        np.testing.assert_allclose(ours.probabilities[1], theirs.truth, atol=1e-6)
        np.testing.assert_allclose(ours.sensitivity[:, 0], theirs.GetSensitivity(), atol=1e-6)
        np.testing.assert_allclose(ours.specificity[:, 0], theirs.GetSpecificity(), atol=1e-6)
        assert ours.iterations == theirs.GetElapsedIterations() + 1  # ITK counts from 0
        clear = np.abs(theirs.truth - 0.5) > 1e-6
        np.testing.assert_array_equal(ours.indices[clear], theirs.truth[clear] > 0.5)

    @pytest.mark.parametrize("iterations", [1, 2, 7])
    def test_stops_where_it_is_told_to(self, iterations: int) -> None:
        stack = drawn((6, 10, 11), 1, [0.1, 0.2, 0.3, 0.4])
        theirs = binary_itk(stack, iterations=iterations)
        ours = staple(people(stack), probabilities=True, iterations=iterations)
        assert ours.probabilities is not None
        np.testing.assert_allclose(ours.probabilities[1], theirs.truth, atol=1e-6)
        assert ours.iterations == iterations
        assert any("had not settled" in note for note in ours.notes)

    def test_another_prior(self) -> None:
        """ITK's confidence weight is a factor of its prior, the share of all decisions that are foreground."""
        stack = drawn((6, 10, 11), 1, [0.1, 0.2, 0.3, 0.4])
        foreground = float((stack == 1).mean()) * 0.4
        theirs = binary_itk(stack, confidence=0.4)
        ours = staple(people(stack), prior=(1 - foreground, foreground), probabilities=True)
        assert ours.probabilities is not None
        assert ours.sensitivity is not None
        np.testing.assert_allclose(ours.probabilities[1], theirs.truth, atol=1e-6)
        np.testing.assert_allclose(ours.sensitivity[:, 0], theirs.GetSensitivity(), atol=1e-6)

    def test_value_of_the_label_does_not_matter(self) -> None:
        stack = drawn((6, 10, 11))
        np.testing.assert_array_equal(staple(people(stack)).indices, staple(people(stack * 77)).indices)


class TestRegion:
    def test_is_simpleitk_on_the_cut_images(self) -> None:
        stack = drawn((8, 12, 13), 1, [0.05, 0.1, 0.2])
        region = (slice(1, 7), slice(2, 11), slice(3, 13))
        theirs = binary_itk(stack[(slice(None), *region)])
        ours = staple(people(stack), region=region, probabilities=True)
        assert ours.probabilities is not None
        assert ours.sensitivity is not None
        np.testing.assert_allclose(ours.probabilities[1][region], theirs.truth, atol=1e-6)
        np.testing.assert_allclose(ours.sensitivity[:, 0], theirs.GetSensitivity(), atol=1e-6)
        assert ours.voxels == 6 * 9 * 10
        assert ours.region == region
        outside = np.ones(stack.shape[1:], dtype=bool)
        outside[region] = False
        assert not ours.indices[outside].any()
        assert (ours.probabilities[0][outside] == 1).all()
        assert not ours.probabilities[1][outside].any()

    def test_background_around_changes_the_answer_unless_the_region_is_fixed(self) -> None:
        stack = drawn((8, 12, 13), 1, [0.1, 0.25, 0.25])
        padded = np.pad(stack, ((0, 0), *((20, 20),) * 3))
        region = tuple(slice(20, 20 + n) for n in stack.shape[1:])
        alone, wide, fixed = staple(people(stack)), staple(people(padded)), staple(people(padded), region=region)
        for found in (alone, wide, fixed):
            assert found.specificity is not None
        np.testing.assert_array_equal(alone.specificity, fixed.specificity)
        np.testing.assert_array_equal(alone.indices, fixed.indices[region])
        assert (wide.specificity > alone.specificity).all()
        np.testing.assert_allclose(wide.specificity[:, 0], binary_itk(padded).GetSpecificity(), atol=1e-6)
        assert (wide.indices[region] != alone.indices).any()
        assert f"{padded[0].size:,} voxels" in wide.notes[0]

    def test_empty_region(self) -> None:
        with pytest.raises(BadInput, match="region is empty"):
            staple(people(drawn((6, 10, 11))), region=(slice(3, 3), slice(0, 5), slice(0, 5)))


class TestSeveralLabels:
    @pytest.mark.parametrize("shape", [(4, 5, 6), (9, 10)])
    @pytest.mark.parametrize(("labels", "count"), [(2, 3), (3, 5), (5, 4)])
    def test_is_the_definition(self, shape: tuple[int, ...], labels: int, count: int) -> None:
        stack = drawn(shape, labels, np.linspace(0.1, 0.5, count).tolist())
        w, theta, done = by_definition(stack)
        found = staple(people(stack), probabilities=True)
        assert found.probabilities is not None
        np.testing.assert_allclose(found.probabilities.reshape(labels + 1, -1).T, w, atol=1e-6)
        assert abs(found.iterations - done) <= 1  # a last change of 1e-7 may fall to either side
        mass = w.sum(axis=0)
        for i, k in itertools.product(range(count), range(1, labels + 1)):
            others = [t for t in range(labels + 1) if t != k]
            wrongly = sum(mass[t] * theta[i, k, t] for t in others) / sum(mass[t] for t in others)
            assert found.sensitivity[i, k - 1] == pytest.approx(theta[i, k, k], abs=1e-5)
            assert found.specificity[i, k - 1] == pytest.approx(1 - wrongly, abs=1e-5)

    @pytest.mark.parametrize(("labels", "shape"), [(2, (6, 16, 18)), (4, (150, 170)), (9, (30, 40, 50))])
    def test_where_raters_are_mostly_right_it_is_simpleitk(self, labels: int, shape: tuple[int, ...]) -> None:
        """MultiLabelSTAPLE begins elsewhere; run to the end it finds the same confusion matrices and labels."""
        stack = drawn(shape, labels, np.linspace(0.05, 0.3, 7).tolist())
        theirs, thetas = multi_label_itk(stack)
        ours = staple(people(stack), tolerance=1e-10)
        assert ours.sensitivity is not None
        np.testing.assert_array_equal(ours.indices, theirs)
        np.testing.assert_allclose(ours.sensitivity, [np.diag(theta)[1:] for theta in thetas], atol=1e-6)

    def test_elsewhere_it_explains_the_raters_better(self) -> None:
        """Rare labels and more mistakes: both end in a peak of the likelihood, SimpleITK's filter in a lower one."""
        stack = drawn((12, 20, 80), 37, np.linspace(0.05, 0.3, 9).tolist())
        made, prior = people(stack), np.bincount(stack.ravel()) / stack.size
        labels, thetas = multi_label_itk(stack)
        theirs = log_likelihood(stack, thetas, prior)
        found = patterns.find(made.stack, 38, made.whole())
        model = _start(found)
        while model.step(found) > 1e-7:
            pass
        assert log_likelihood(stack, model.theta, prior) > theirs
        right = truth((12, 20, 80), 37)
        assert np.count_nonzero(staple(made).indices != right) < np.count_nonzero(labels != right)

    def test_undecided_voxels(self) -> None:
        """Two raters of whom nothing else is known: SimpleITK invents a label, we take the lowest."""
        stack = np.array([[[1, 2]], [[2, 1]]], dtype=np.uint16)
        theirs = sitk.GetArrayFromImage(sitk.MultiLabelSTAPLE(images(stack)))
        ours = staple(people(stack))
        assert theirs.tolist() == [[3, 3]]
        assert ours.indices.tolist() == [[1, 1]]
        assert ours.ties == 2

    def test_finds_the_rates_that_made_the_data(self) -> None:
        """Each pattern occurs just as often as the model says: the maximum of the likelihood is then the model."""
        prior = np.array([0.5, 0.3, 0.2])
        right = np.array([0.9, 0.8, 0.7, 0.9, 0.6])
        theta = np.array([r * np.eye(3) + (1 - r) / 2 * (1 - np.eye(3)) for r in right])
        columns, counts = [], []
        for said in itertools.product(range(3), repeat=5):
            expected = (prior * np.prod([theta[i, s] for i, s in enumerate(said)], axis=0)).sum() * 2_000_000
            columns.append(said)
            counts.append(round(expected))
        stack = np.repeat(np.array(columns, dtype=np.uint16), counts, axis=0).T[:, None, :]
        found = staple(people(stack), prior=prior.tolist())
        np.testing.assert_allclose(found.sensitivity, np.stack([right, right], axis=1), atol=1e-3)
        wrong = (1 - right[:, None]) / 2
        np.testing.assert_allclose(found.specificity, 1 - np.concatenate([wrong, wrong], axis=1), atol=1e-3)

    def test_a_label_outside_of_the_region(self) -> None:
        stack = drawn((6, 10, 24), 2)
        region = (slice(0, 6), slice(0, 10), slice(0, 3))
        stack[:, :, :, :3][stack[:, :, :, :3] == 2] = 0
        found = staple(people(stack), region=region)
        assert np.isnan(found.sensitivity[:, 1]).all()
        assert (found.specificity[:, 1] == 1).all()
        assert np.isfinite(found.sensitivity[:, 0]).all()


class TestExtremes:
    def test_one_rater_is_right(self) -> None:
        stack = drawn((6, 10, 11), 3, [0.2])
        found = staple(people(stack))
        np.testing.assert_array_equal(found.indices, stack[0])
        np.testing.assert_array_equal(found.sensitivity, 1.0)
        np.testing.assert_array_equal(found.specificity, 1.0)
        assert not any("settled" in note for note in found.notes)

    def test_raters_who_agree_are_right(self) -> None:
        right = truth((6, 10, 11), 3)
        found = staple(people(np.stack([right] * 4)), probabilities=True)
        np.testing.assert_array_equal(found.indices, right)
        np.testing.assert_array_equal(found.sensitivity, 1.0)
        np.testing.assert_array_equal(found.probabilities, np.eye(4)[right].transpose(3, 0, 1, 2))

    def test_a_good_rater_outvotes_two_bad_ones(self) -> None:
        """The bad ones agree with nobody, so that the good pair's word counts where these two alone say so."""
        stack = drawn((20, 22, 24), 1, [0.01, 0.02, 0.45, 0.45, 0.45])
        right = truth((20, 22, 24), 1)
        found = staple(people(stack))
        votes = (stack.sum(axis=0) >= 3).astype(np.uint8)
        assert (found.indices != right).mean() < 0.3 * (votes != right).mean()

    def test_products_of_many_raters_do_not_underflow(self) -> None:
        """Of 1500 raters, each right with .55, every product is below the smallest double."""
        stack = drawn((20, 21), 3, [0.6] * 1500)
        found = staple(people(stack), probabilities=True)
        assert found.probabilities is not None
        np.testing.assert_allclose(found.probabilities.sum(axis=0), 1.0, atol=1e-5)
        np.testing.assert_array_equal(found.indices, truth((20, 21), 3))

    def test_in_small_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stack = drawn((6, 10, 11), 3)
        expected = staple(people(stack), probabilities=True)
        monkeypatch.setattr(patterns, "_NUMBERS", 20)
        monkeypatch.setattr(patterns, "_SLAB", 1)
        found = staple(people(stack), probabilities=True)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)

    @pytest.mark.parametrize("prior", [(0.5, 0.2), (0.5,), (1.2, -0.2), (0.2, 0.3, 0.5), (np.nan, 1.0)])
    def test_prior_that_does_not_fit(self, prior: tuple[float, ...]) -> None:
        with pytest.raises(BadInput, match="does not fit"):
            staple(people(drawn((6, 10, 11))), prior=prior)

    def test_prior_that_forbids_what_was_drawn(self) -> None:
        with pytest.raises(BadInput, match="impossible"):
            staple(people(drawn((6, 10, 11))), prior=(1.0, 0.0))
